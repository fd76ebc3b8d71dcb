//! Containers: made and started with libcontainer in a process that exists for this only, and removed without it.
//!
//! Always holds: [`run`] is called in a child forked by [`crate::process::fork_child`], with the process that is to be the
//! container's parent as its own parent; a container is never started without the filter and the device rules that it is to
//! have; the root filesystem is mounted in the container's mount namespace only, so it goes when the container goes.
//!
//! ```text
//! shim ──fork──▶ operation ──clone──▶ intermediate (joins the cgroup, exits)
//!   │                                     └──clone──▶ init: mounts, pivot, drop ─ wait ─ filter ─ execve
//!   └─────────────── parent of all three: CLONE_PARENT ──────────┘
//! ```

mod payload;
mod spec;
mod trace;

use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;

use crate::cap;
use crate::cgroup::{Cgroups, Version};
use crate::config::{ContainerConfig, Limits, RunError, Seccomp, Started};
use crate::error::{Doing, KernelError, Result};
use crate::fs::{Root, remove_dir_all};
use crate::{devices, mount, process, sandbox, seccomp};
use payload::{Failure, Payload};
use trace::Trace;

/// Lines of libcontainer's account that an error carries.
const MAX_REASONS: usize = 2;

/// The container's standard streams.
#[derive(Debug)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// Creates and starts a container; returns when its command has been executed.
///
/// On an error the caller runs [`remove`], which ends what has been started of it.
///
/// # Errors
/// By the step that failed.
pub fn run(
    config: &ContainerConfig,
    stdio: Stdio,
    cgroups: &Cgroups,
) -> std::result::Result<Started, RunError> {
    let privileges = Privileges::of(config).map_err(|reason| RunError::Config {
        id: config.id.clone(),
        reason,
    })?;
    let rootfs = |error: KernelError| RunError::Rootfs {
        id: config.id.clone(),
        reason: error.to_string(),
    };
    let create = |error: KernelError| RunError::Create {
        id: config.id.clone(),
        reason: error.to_string(),
    };
    prepare(config, &privileges, cgroups).map_err(create)?;
    // After the cgroup is made, for making one waits for a move; before the mounts, which pass the time.
    cgroups.warm_up_meanwhile();
    mount_root(config).map_err(rootfs)?;
    let trace = trace::install(&cgroups.oom_file(&config.cgroup_path)).map_err(create)?;
    let (status, sender) = process::pipe().map_err(create)?;
    let payload = privileges.payload(config, sender.as_raw_fd());
    let mut container = build(config, stdio, payload).map_err(|error| {
        let reason = reason(&trace, &error);
        match config.resources.memory_bytes {
            Some(limit) if trace.out_of_memory() => RunError::OutOfMemory {
                id: config.id.clone(),
                limit,
                reason,
            },
            _ => RunError::Create {
                id: config.id.clone(),
                reason,
            },
        }
    })?;
    if cgroups.version() == Version::V2 && !config.privileged {
        devices::attach(&cgroups.dir("devices", &config.cgroup_path)).map_err(create)?;
    }
    let start = |reason: String| RunError::Start {
        id: config.id.clone(),
        reason,
    };
    if let Some(ns_dir) = config.namespaces.net.as_deref().and_then(std::path::Path::parent) {
        sandbox::wait_for_network(ns_dir).map_err(|error| RunError::Network {
            id: config.id.clone(),
            reason: error.to_string(),
        })?;
    }
    let pid = container
        .pid()
        .ok_or_else(|| start("it has no process".to_owned()))?
        .as_raw();
    // Once it runs it may end, and be waited for by its parent, at any time; until then it waits for us.
    let start_time = process::start_time(pid).map_err(|error| start(error.to_string()))?;
    container.start().map_err(|error| start(reason(&trace, &error)))?;
    drop(sender);
    executed(config, status)?;
    Ok(Started { pid, start_time })
}

/// What the container's first process is left with, and what it has until its filter is in place.
struct Privileges {
    capabilities: u64,
    until_filter: u64,
    filter: bool,
}

impl Privileges {
    fn of(config: &ContainerConfig) -> std::result::Result<Self, String> {
        let held = cap::bounding().map_err(|error| error.to_string())?;
        if config.args.is_empty() {
            return Err("args: no command".to_owned());
        }
        if config.rootfs.lower.is_empty() {
            return Err("rootfs.lower: no layer".to_owned());
        }
        let filter = !config.privileged && config.seccomp == Seccomp::RuntimeDefault;
        if config.privileged {
            return Ok(Self {
                capabilities: held,
                until_filter: held,
                filter,
            });
        }
        let capabilities =
            cap::parse(&config.capabilities).map_err(|name| format!("capabilities: {name} is unknown"))?;
        let lacking = cap::names(capabilities & !held);
        if !lacking.is_empty() {
            return Err(format!(
                "capabilities: this node's agent does not hold {}",
                lacking.join(", ")
            ));
        }
        let extra = if filter && !config.no_new_privileges {
            cap::SYS_ADMIN | cap::SETPCAP
        } else {
            0
        };
        Ok(Self {
            capabilities,
            until_filter: capabilities | extra,
            filter,
        })
    }

    fn payload(&self, config: &ContainerConfig, status: i32) -> Payload {
        let own = fs::metadata("/proc/self/exe")
            .ok()
            .map(|file| (file.dev(), file.ino()));
        Payload {
            status,
            args: config.args.clone(),
            env: config.env.clone(),
            filter: self.filter.then(|| {
                let names: Vec<_> = cap::names(self.capabilities)
                    .into_iter()
                    .map(str::to_owned)
                    .collect();
                seccomp::default_filter(&names)
            }),
            limit_to: (self.until_filter != self.capabilities).then_some(self.capabilities),
            own,
        }
    }
}

fn mount_root(config: &ContainerConfig) -> Result<()> {
    mount::private_namespace()?;
    mount::overlay(&config.rootfs)?;
    // The image may have made any part of this path a link to somewhere on the host.
    Root::open(&config.rootfs.merged)?.create_dir_all(&config.cwd)
}

fn prepare(config: &ContainerConfig, privileges: &Privileges, cgroups: &Cgroups) -> Result<()> {
    nix::unistd::setgroups(&[]).doing("clear", "supplementary groups")?;
    // The shim's own score must not be inherited.
    match process::set_oom_score_adj(config.oom_score_adj.unwrap_or(0)) {
        // Without CAP_SYS_RESOURCE the score can only be raised: the container keeps ours.
        Err(error) if error.is(libc::EACCES) => {}
        result => result?,
    }
    // libcontainer would keep descriptors open for the container that systemd has passed to the agent.
    // SAFETY: this process was forked for this operation and has one thread.
    unsafe { std::env::remove_var("LISTEN_FDS") };
    // The cgroup is made before, so that its counters can be watched while libcontainer works; and with its memory limit,
    // because a v1 kernel refuses a limit below what is used already, instead of saying that memory ran out.
    let memory = Limits {
        memory_bytes: config.resources.memory_bytes,
        ..Limits::default()
    };
    cgroups.create(&config.cgroup_path, &memory)?;
    for directory in [&config.state_root, &config.bundle] {
        fs::create_dir_all(directory).doing_path("make", directory)?;
    }
    let document = spec::document(config, privileges.until_filter, cgroups);
    let file = config.bundle.join("config.json");
    fs::write(&file, document.to_string()).doing_path("write", &file)
}

fn build(
    config: &ContainerConfig,
    stdio: Stdio,
    payload: Payload,
) -> std::result::Result<libcontainer::container::Container, LibcontainerError> {
    ContainerBuilder::new(config.id.clone(), SyscallType::default())
        .with_root_path(&config.state_root)?
        .with_executor(payload)
        .with_stdin(stdio.stdin)
        .with_stdout(stdio.stdout)
        .with_stderr(stdio.stderr)
        .validate_id()?
        .as_init(&config.bundle)
        .with_systemd(false)
        .as_sibling(true)
        .build()
}

/// The error with the innermost lines of libcontainer's account, where the kernel's word is.
fn reason(trace: &Trace, error: &LibcontainerError) -> String {
    let lines: Vec<String> = trace.errors().take(MAX_REASONS).collect();
    if lines.is_empty() {
        error.to_string()
    } else {
        lines.join("; ")
    }
}

/// Waits until the command has been executed, or why it has not.
fn executed(config: &ContainerConfig, status: OwnedFd) -> std::result::Result<(), RunError> {
    let mut message = Vec::new();
    let limit = process::MAX_REPORT as u64;
    let start = |reason: String| RunError::Start {
        id: config.id.clone(),
        reason,
    };
    fs::File::from(status)
        .take(limit)
        .read_to_end(&mut message)
        .map_err(|error| start(error.to_string()))?;
    if message.is_empty() {
        return Ok(());
    }
    match postcard::from_bytes(&message) {
        Ok(Failure::Exec { errno, reason }) => {
            let path = config.args.first().cloned().unwrap_or_default();
            Err(RunError::Exec { path, reason, errno })
        }
        Ok(Failure::Protect(reason)) => Err(start(reason)),
        Err(error) => Err(start(error.to_string())),
    }
}

/// What has to be known of a container to remove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// [`ContainerConfig::cgroup_path`].
    pub cgroup_path: String,
    /// libcontainer's directory of this container.
    pub state: PathBuf,
    /// [`ContainerConfig::bundle`].
    pub bundle: PathBuf,
}

impl Remains {
    /// What a container of this configuration leaves.
    #[must_use]
    pub fn of(config: &ContainerConfig) -> Self {
        Self {
            cgroup_path: config.cgroup_path.clone(),
            state: config.state_root.join(&config.id),
            bundle: config.bundle.clone(),
        }
    }
}

/// Kills what is left of a container and removes its cgroup, state and bundle; its layers stay. It can be repeated.
///
/// The container's parent has to wait for its children meanwhile: a zombie keeps a v1 cgroup busy.
///
/// # Errors
/// With the first step that failed; the others are tried all the same.
pub fn remove(remains: &Remains, cgroups: &Cgroups, timeout: Duration) -> Result<()> {
    let killed = cgroups.kill_all(&remains.cgroup_path, timeout);
    let removed = cgroups.remove(&remains.cgroup_path, timeout);
    let (state, bundle) = (remove_dir_all(&remains.state), remove_dir_all(&remains.bundle));
    killed.and(removed).and(state).and(bundle)
}
