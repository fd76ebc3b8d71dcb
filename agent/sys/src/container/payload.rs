//! The last steps in the container's first process: privileges, filter, `execve`.
//!
//! Always holds: the command is executed only after the filter is in place; whatever fails is written to the status pipe and
//! ends the process, it never goes on with less protection. The pipe is close-on-exec, so its end without a message means
//! that the command runs.
//!
//! Installing a filter takes `no_new_privs` or CAP_SYS_ADMIN. A container that may gain privileges has neither, so
//! libcontainer is told to leave it CAP_SYS_ADMIN and CAP_SETPCAP as well, and they are dropped here, after the filter and
//! before the command. A filter need let through no more for that than `capset`, `execve` and what ends a process.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::errno::Errno;
use nix::unistd::execve;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::user::Entry;
use crate::cap;
use crate::error::KernelError;
use crate::{apparmor, seccomp, terminal};

/// Where commands are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why the command was not executed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    /// The filter or the capabilities could not be set.
    Protect(String),
    /// `execve` failed.
    Exec { errno: i32, reason: String },
}

/// What the container's first process does last.
#[derive(Clone)]
pub(super) struct Payload {
    /// Descriptor of the status pipe, inherited from the operation's process.
    pub(super) status: RawFd,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) filter: Option<Vec<seccomp::Instruction>>,
    /// The container's capabilities, when it holds more until the filter is in place.
    pub(super) limit_to: Option<u64>,
    /// Device and inode of this program, which no container may execute.
    pub(super) own: Option<(u64, u64)>,
    /// AppArmor profile of the command.
    pub(super) apparmor: Option<String>,
    /// The user namespace that it is to enter first, and whom as.
    pub(super) entrance: Option<Entry>,
    /// Where a terminal is to be sent that the command gets as its standard streams.
    pub(super) console: Option<RawFd>,
    /// HOME where the environment has none.
    pub(super) home: Option<String>,
}

impl Executor for Payload {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        self.run()
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}

impl Payload {
    /// Executes the command, or says why it cannot and ends the process.
    pub(super) fn run(&self) -> ! {
        let failure = match self.protect() {
            Ok(()) => self.execute(),
            Err(error) => Failure::Protect(error.to_string()),
        };
        fail(self.status, &failure)
    }

    fn protect(&self) -> Result<(), KernelError> {
        if let Some(entrance) = &self.entrance {
            entrance.enter()?;
        }
        if let Some(console) = self.console {
            terminal::become_console(console)?;
        }
        if let Some(profile) = &self.apparmor {
            apparmor::on_exec(profile)?;
        }
        // Before the filter, which may know nothing of this call.
        self.limit_to.map_or(Ok(()), cap::drop_bounding)?;
        if let Some(filter) = &self.filter {
            seccomp::install(filter)?;
        }
        self.limit_to.map_or(Ok(()), cap::hold)
    }

    /// Returns only when nothing could be executed.
    fn execute(&self) -> Failure {
        let command = self.args.first().map_or("", String::as_str);
        let (Ok(args), Ok(env)) = (c_strings(&self.args), c_strings(&self.environment())) else {
            return Failure::Exec {
                errno: libc::EINVAL,
                reason: "a NUL byte in an argument or variable".to_owned(),
            };
        };
        let mut worst = Errno::ENOENT;
        for candidate in self.candidates(command) {
            if self.is_own(&candidate) {
                return Failure::Exec {
                    errno: libc::EACCES,
                    reason: "this is the node agent's own binary".to_owned(),
                };
            }
            let Ok(path) = CString::new(candidate.as_str()) else {
                continue;
            };
            match execve(&path, &args, &env) {
                Err(Errno::ENOENT | Errno::ENOTDIR) if !command.contains('/') => {}
                // Another directory of PATH may hold one that can be executed.
                Err(Errno::EACCES) if !command.contains('/') => worst = Errno::EACCES,
                Err(errno) => return describe(errno, &candidate),
                Ok(never) => match never {},
            }
        }
        match worst {
            Errno::ENOENT => Failure::Exec {
                errno: libc::ENOENT,
                reason: format!("executable file not found in $PATH ({})", self.path()),
            },
            errno => describe(errno, command),
        }
    }

    fn candidates(&self, command: &str) -> Vec<String> {
        if command.contains('/') {
            return vec![command.to_owned()];
        }
        let directories = self
            .path()
            .split(':')
            .map(|dir| if dir.is_empty() { "." } else { dir });
        if command.is_empty() {
            Vec::new()
        } else {
            directories.map(|dir| format!("{dir}/{command}")).collect()
        }
    }

    fn path(&self) -> &str {
        self.env
            .iter()
            .rev()
            .find_map(|entry| entry.strip_prefix("PATH="))
            .unwrap_or(DEFAULT_PATH)
    }

    /// The container's variables in their order, the last of each name, and HOME from `/etc/passwd` when it is not set.
    fn environment(&self) -> Vec<String> {
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        let mut env: Vec<String> = Vec::with_capacity(self.env.len() + 1);
        for (i, entry) in self.env.iter().enumerate() {
            if !self.env[i + 1..].iter().any(|later| name(later) == name(entry)) {
                env.push(entry.clone());
            }
        }
        // libcontainer has set this process's environment to the container's, and added HOME.
        let home = match &self.entrance {
            Some(entrance) => entrance.home(),
            None => self.home.clone().or_else(|| std::env::var("HOME").ok()),
        };
        if !env.iter().any(|entry| entry.starts_with("HOME="))
            && let Some(home) = home
        {
            env.push(format!("HOME={home}"));
        }
        env
    }

    fn is_own(&self, path: &str) -> bool {
        std::fs::metadata(path).is_ok_and(|file| self.own == Some((file.dev(), file.ino())))
    }
}

/// Says why the command does not run, and ends the process.
pub(super) fn fail(status: RawFd, failure: &Failure) -> ! {
    let code = match failure {
        Failure::Exec {
            errno: libc::ENOENT, ..
        } => 127,
        _ => 126,
    };
    if let Ok(message) = postcard::to_extend(failure, Vec::new()) {
        // SAFETY: the message outlives the call. The descriptor was opened for this by the parent; if it were not
        // open any more, the kernel would answer EBADF.
        let _ = unsafe { libc::write(status, message.as_ptr().cast(), message.len()) };
    }
    // SAFETY: ends the process at once; there is nothing to unwind to.
    unsafe { libc::_exit(code) }
}

fn c_strings(list: &[String]) -> Result<Vec<CString>, std::ffi::NulError> {
    list.iter().map(|text| CString::new(text.as_str())).collect()
}

fn describe(errno: Errno, path: &str) -> Failure {
    let mut reason = errno.desc().to_lowercase();
    match std::fs::metadata(path) {
        Ok(file) if errno == Errno::ENOENT && file.is_file() => {
            reason.push_str(" (the file is there: the interpreter or loader that it names is not)");
        }
        Ok(file) if errno == Errno::EACCES && file.is_dir() => reason.push_str(" (it is a directory)"),
        Ok(file) if errno == Errno::EACCES && file.mode() & 0o111 == 0 => {
            reason.push_str(" (it is not executable)");
        }
        _ => {}
    }
    if errno == Errno::ENOEXEC {
        reason.push_str(&format!(" (this node is {})", std::env::consts::ARCH));
    }
    Failure::Exec {
        errno: errno as i32,
        reason,
    }
}
