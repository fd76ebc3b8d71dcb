//! A command in a running container: entered by the kernel's own means, ended with everything that it started.
//!
//! Always holds: [`exec`] is called in a child forked by [`crate::process::fork_child`]; the command gets what the container's
//! first process has (ids, capabilities, filter, profile, limits, cgroups, namespaces) or does not run; it is in a cgroup of
//! its own below the container's before it can fork, so that nothing it starts can get away.
//!
//! ```text
//! shim ──fork──▶ operation: makes the cgroup, enters the PID namespace, keeps the time, kills, reports
//!                    └──fork──▶ joins the cgroups, enters the other namespaces, drops, filters, execve
//! ```
//!
//! From the moment it is in the container's namespaces until it has dropped its privileges, the second process is not
//! dumpable and has no descriptor of the host but its streams and the status pipe: no process of the container can trace
//! it, or look through its files at the host.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::CloneFlags;
use nix::unistd::{ForkResult, Pid, Uid};
use serde::{Deserialize, Serialize};

use super::payload::{self, Failure, Payload};
use super::user::{self, Become};
use super::{Privileges, executed};
use crate::cgroup::{Cgroups, Membership};
use crate::config::{ContainerConfig, ExecConfig, RunError, Started};
use crate::error::{Doing, Result, check};
use crate::process::{self, Ended, PidFd};

/// How long the kernel may take to end what a command has started.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of output read at a time.
const CHUNK: usize = 16 * 1024;

/// Where the status pipe is while nothing else of the host is open.
const STATUS: RawFd = 3;

/// Process of the container, and command.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container as it was started.
    pub container: &'a ContainerConfig,
    /// Its first process.
    pub process: Started,
    /// What is executed.
    pub command: &'a ExecConfig,
    /// The cgroup below the container's that the command has for itself: see [`group`].
    pub group: String,
    /// When it is killed.
    pub timeout: Duration,
    /// Bytes of its output that are kept; the first ones.
    pub output: usize,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// `None` when it was killed at its timeout.
    pub ended: Option<Ended>,
    /// The beginning of its output.
    pub output: Vec<u8>,
}

/// The cgroup of the command in a place of its own among those that run at once in a container.
#[must_use]
pub fn group(container: &ContainerConfig, place: usize) -> String {
    format!("{}/exec-{place}", container.cgroup_path)
}

/// Runs a command to its end, or to its timeout.
///
/// # Errors
/// When it could not be executed as the container has it.
pub fn exec(exec: &Exec<'_>, cgroups: &Cgroups) -> std::result::Result<Execution, RunError> {
    let deadline = Instant::now() + exec.timeout;
    let ended = attempt(exec, cgroups, deadline);
    // Zombies of a container whose first process does not wait for them keep a cgroup; it is then used again.
    let _ = cgroups.remove(&exec.group, Duration::ZERO);
    ended
}

fn attempt(
    exec: &Exec<'_>,
    cgroups: &Cgroups,
    deadline: Instant,
) -> std::result::Result<Execution, RunError> {
    let config = exec.container;
    let start = |reason: String| RunError::Start {
        id: config.id.clone(),
        reason,
    };
    let failed = |error: crate::KernelError| start(error.to_string());
    let privileges = Privileges::of(config).map_err(&start)?;
    if exec.command.args.is_empty() {
        return Err(start("exec: no command".to_owned()));
    }
    let init = PidFd::open(exec.process.pid, Some(exec.process.start_time)).map_err(failed)?;
    let membership = cgroups
        .membership(exec.process.pid, &config.cgroup_path, &exec.group)
        .map_err(failed)?;
    // The host's: what stands there in the container is the image's business.
    let null = File::open("/dev/null")
        .doing("open", "/dev/null")
        .map_err(failed)?;
    let (output, out) = process::pipe().map_err(failed)?;
    process::set_nonblocking(&output).map_err(failed)?;
    // It may open its streams again by name.
    let (owner, _) = config.host_owner();
    nix::unistd::fchown(out.as_raw_fd(), Some(Uid::from_raw(owner)), None)
        .doing("own", "a pipe")
        .map_err(failed)?;
    let (status, sender) = process::pipe().map_err(failed)?;
    let payload = Payload {
        args: exec.command.args.clone(),
        console: None,
        ..privileges.payload(config, STATUS, true).map_err(&start)?
    };
    // For children only: the operation goes on where the cgroups' files are.
    set_namespaces(&init, CloneFlags::CLONE_NEWPID).map_err(failed)?;
    let child = match spawn(&membership).doing("fork", "a command").map_err(failed)? {
        Spawned::Parent(child) => child,
        Spawned::Child { joined } => {
            drop((output, status));
            let entry = Entry {
                config,
                membership: (!joined).then_some(&membership),
                init: &init,
                null: null.as_raw_fd(),
                out: out.as_raw_fd(),
                status: sender.as_raw_fd(),
            };
            entry.enter(&privileges, payload)
        }
    };
    drop((out, sender));
    let mut kept = Kept::new(output, exec.output);
    let ended = watch(child, &mut kept, deadline).map_err(failed);
    cgroups.kill_all(&exec.group, KILL_TIMEOUT).map_err(failed)?;
    if !matches!(ended, Ok(Some(_))) {
        // It may not have got as far as its cgroup.
        let _ = process::kill(child, libc::SIGKILL);
        let _ = nix::sys::wait::waitpid(Pid::from_raw(child), None);
    }
    let ended = ended?;
    kept.drain();
    if ended.is_some() {
        executed(config, &exec.command.args, status)?;
    }
    Ok(Execution {
        ended,
        output: kept.bytes,
    })
}

/// Waits for the command's end and reads what it says; `None` when the time is over before that.
fn watch(child: i32, kept: &mut Kept, deadline: Instant) -> Result<Option<Ended>> {
    let process = PidFd::open(child, None)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            kept.source
                .as_ref()
                .map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        let _ = nix::poll::poll(&mut fds, timeout);
        let ended = fds[0].any().unwrap_or(false);
        kept.drain();
        if ended {
            let status = nix::sys::wait::waitpid(Pid::from_raw(child), None).doing("wait for", child)?;
            return Ok(Some(process::ended(status)));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

/// The beginning of an output; the rest is read and forgotten, so that nobody waits on a full pipe.
struct Kept {
    source: Option<File>,
    limit: usize,
    bytes: Vec<u8>,
}

impl Kept {
    fn new(source: OwnedFd, limit: usize) -> Self {
        Self {
            source: Some(source.into()),
            limit,
            bytes: Vec::new(),
        }
    }

    /// Reads what there is, at most so much that the time is still kept.
    fn drain(&mut self) {
        let mut chunk = [0; CHUNK];
        for _ in 0..64 {
            let Some(source) = &mut self.source else { return };
            match source.read(&mut chunk) {
                Ok(0) => self.source = None,
                Ok(n) => {
                    let room = self.limit - self.bytes.len();
                    self.bytes.extend_from_slice(&chunk[..n.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

fn set_namespaces(process: &PidFd, kinds: CloneFlags) -> Result<()> {
    nix::sched::setns(process.as_fd(), kinds).doing("enter", "the container's namespaces")
}

/// Which process goes on.
enum Spawned {
    Parent(i32),
    Child {
        /// It is in its cgroup already.
        joined: bool,
    },
}

/// Forks. On v2 it begins its life in its cgroup, which takes no lock that the whole node waits for.
fn spawn(membership: &Membership) -> io::Result<Spawned> {
    if let Some(group) = membership.unified()
        && let Ok(child) = clone_into(group.as_raw_fd())
    {
        return Ok(child.map_or(Spawned::Child { joined: true }, Spawned::Parent));
    }
    // SAFETY: the operation's process has one thread, see `fork_child`; the child executes or exits, it does not return
    // into its caller's stack.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Spawned::Child { joined: false }),
        ForkResult::Parent { child } => Ok(Spawned::Parent(child.as_raw())),
    }
}

/// `struct clone_args` of `clone3(2)`.
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks into a v2 cgroup; `None` is the child.
fn clone_into(group: RawFd) -> io::Result<Option<i32>> {
    let arguments = CloneArguments {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: group as u64,
        ..CloneArguments::default()
    };
    // SAFETY: the arguments have the kernel's layout and their size is given; without a stack the child goes on as after
    // fork, in a process with one thread (see `fork_child`).
    let child = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArguments>(),
        )
    })?;
    Ok((child != 0).then_some(child as i32))
}

/// What the child goes in with.
struct Entry<'a> {
    config: &'a ContainerConfig,
    /// The cgroups that it is not in yet.
    membership: Option<&'a Membership>,
    init: &'a PidFd,
    null: RawFd,
    out: RawFd,
    status: RawFd,
}

impl Entry<'_> {
    /// The child: becomes the command, or says why not.
    fn enter(&self, privileges: &Privileges, mut payload: Payload) -> ! {
        let entered = become_member(self.config, self.membership)
            .and_then(|()| set_namespaces(self.init, namespaces(self.config)))
            .and_then(|()| self.leave_host());
        if let Err(error) = entered {
            // Until the descriptors are in order, the pipe has its old number.
            payload::fail(self.status, &Failure::Protect(error.to_string()))
        }
        payload.home = user::home(self.config.user.uid);
        let confined =
            enter_directory(&self.config.cwd).and_then(|()| Become::of(self.config, privileges).now());
        match confined {
            Ok(()) => payload.run(),
            Err(error) => payload::fail(STATUS, &Failure::Protect(error.to_string())),
        }
    }

    /// Leaves nothing of the host in this process: session, streams and descriptors.
    fn leave_host(&self) -> Result<()> {
        nix::unistd::setsid().doing("start", "a session")?;
        // Numbers above those that are about to be taken.
        let high = |fd: RawFd| {
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(16)).doing("copy descriptor", fd)
        };
        let (null, out, status) = (high(self.null)?, high(self.out)?, high(self.status)?);
        for (from, to) in [(null, 0), (out, 1), (out, 2)] {
            nix::unistd::dup2(from, to).doing("use as standard stream", from)?;
        }
        nix::unistd::dup3(status, STATUS, nix::fcntl::OFlag::O_CLOEXEC).doing("keep descriptor", status)?;
        // SAFETY: whoever owns the descriptors in this process is never dropped: it executes or exits.
        check(unsafe { libc::syscall(libc::SYS_close_range, STATUS + 1, libc::c_uint::MAX, 0) })
            .doing("close", "the host's descriptors")?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        Ok(())
    }
}

/// Goes where the command begins; a directory that the container cannot reach would show the host.
fn enter_directory(path: &Path) -> Result<()> {
    nix::unistd::chdir(path).doing_path("enter", path)?;
    let found = std::env::current_dir().doing("find", "the working directory")?;
    if found.is_absolute() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EXDEV)).doing_path("enter", &found)
    }
}

fn become_member(config: &ContainerConfig, membership: Option<&Membership>) -> Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one integer.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into()).doing("protect", "a command")?;
    membership.map_or(Ok(()), Membership::join)?;
    match process::set_oom_score_adj(config.oom_score_adj.unwrap_or(0)) {
        Err(error) if error.is(libc::EACCES) => {}
        result => result?,
    }
    for limit in &config.rlimits {
        process::set_rlimit(limit)?;
    }
    Ok(())
}

/// What a container has of its own, or shares with its Pod.
fn namespaces(config: &ContainerConfig) -> CloneFlags {
    let mut kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if config.namespaces.user.is_some() {
        kinds |= CloneFlags::CLONE_NEWUSER;
    }
    kinds
}
