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

mod exec;
mod hooks;
mod mounts;
mod payload;
mod spec;
mod trace;
mod user;

pub use exec::{Exec, Execution, exec, group};

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
use crate::users::{self, Entrance, Namespace};
use crate::{apparmor, devices, mount, process, sandbox, seccomp};
use payload::{Failure, Payload};
use trace::Trace;

/// Lines of libcontainer's account that an error carries.
const MAX_REASONS: usize = 2;

/// In the bundle: the filter that a profile came to.
const FILTER_FILE: &str = "filter";

/// In the bundle: where layers are mounted that show a user namespace's ids.
const LAYERS: &str = "layers";

/// The container's standard streams.
#[derive(Debug)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
    /// Where a terminal is to be sent that replaces the three: see [`crate::terminal::receive`].
    pub console: Option<OwnedFd>,
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
    let refuse = |reason: String| RunError::Config {
        id: config.id.clone(),
        reason,
    };
    let privileges = Privileges::of(config).map_err(refuse)?;
    let devices = devices::Allowed::of(config).map_err(refuse)?;
    let (status, sender) = process::pipe().map_err(|error| refuse(error.to_string()))?;
    let users = config.namespaces.user.as_ref();
    let users = users
        .map(|(path, range)| Namespace::open(path, *range))
        .transpose();
    let users = users.map_err(|error| refuse(error.to_string()))?;
    let mut payload = privileges
        .payload(config, sender.as_raw_fd(), false)
        .map_err(refuse)?;
    payload.entrance = users
        .as_ref()
        .map(|users| user::Entry::of(config, &privileges, Entrance::by(users)));
    payload.console = stdio.console.as_ref().map(AsRawFd::as_raw_fd);
    let rootfs = |error: KernelError| RunError::Rootfs {
        id: config.id.clone(),
        reason: error.to_string(),
    };
    let create = |error: KernelError| RunError::Create {
        id: config.id.clone(),
        reason: error.to_string(),
    };
    // What follows from the host's mounts is taken from them while this process still sees them as they are.
    let staged = mounts::Staged::take(config, users.as_ref()).map_err(create)?;
    prepare(
        config,
        &privileges,
        &devices,
        &staged,
        payload.filter.as_deref(),
        cgroups,
    )
    .map_err(create)?;
    // After the cgroup is made, for making one waits for a move; before the mounts, which pass the time.
    cgroups.warm_up_meanwhile();
    mount_root(config, users.as_ref()).map_err(rootfs)?;
    staged.put().map_err(create)?;
    let trace = trace::install(&cgroups.oom_file(&config.cgroup_path)).map_err(create)?;
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
        devices
            .attach(&cgroups.dir("devices", &config.cgroup_path))
            .map_err(create)?;
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
    executed(config, &config.args, status)?;
    Ok(Started { pid, start_time })
}

/// What the container's first process is left with, and what it has until its filter is in place.
#[derive(Clone, Copy)]
struct Privileges {
    /// What libcontainer leaves it with.
    outside: u64,
    capabilities: u64,
    until_filter: u64,
    filter: bool,
}

impl Privileges {
    fn of(config: &ContainerConfig) -> std::result::Result<Self, String> {
        let bounding = cap::bounding().map_err(|error| error.to_string())?;
        // Whoever enters a user namespace has everything in it.
        let own_users = config.namespaces.user.is_some();
        let held = if own_users { cap::ALL } else { bounding };
        if own_users && config.hooks.iter().any(|hook| hook.stage == "startContainer") {
            // It would be looked up in the image and run before the user namespace is entered.
            return Err(
                "hooks: one of startContainer does not go with a user namespace (hostUsers: false)"
                    .to_owned(),
            );
        }
        if config.args.is_empty() {
            return Err("args: no command".to_owned());
        }
        if config.rootfs.lower.is_empty() {
            return Err("rootfs.lower: no layer".to_owned());
        }
        if let Some(profile) = &config.apparmor
            && profile != apparmor::UNCONFINED
            && !apparmor::is_enabled()
        {
            return Err(format!(
                "apparmor: profile {profile:?} cannot be applied, this node's kernel has no AppArmor"
            ));
        }
        let filter = !config.privileged && config.seccomp != Seccomp::Unconfined;
        if config.privileged {
            return Ok(Self {
                outside: bounding,
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
        let until_filter = capabilities | extra;
        Ok(Self {
            outside: if own_users { bounding } else { until_filter },
            capabilities,
            until_filter,
            filter,
        })
    }

    fn payload(
        &self,
        config: &ContainerConfig,
        status: i32,
        running: bool,
    ) -> std::result::Result<Payload, String> {
        let own = fs::metadata("/proc/self/exe")
            .ok()
            .map(|file| (file.dev(), file.ino()));
        Ok(Payload {
            status,
            args: config.args.clone(),
            env: config.env.clone(),
            filter: self.filter(config, running)?,
            limit_to: (self.until_filter != self.capabilities).then_some(self.capabilities),
            own,
            apparmor: config.apparmor.clone(),
            entrance: None,
            console: None,
            home: None,
        })
    }

    /// The filter as the container's first process has it: a profile is read once, when the container starts.
    fn filter(
        &self,
        config: &ContainerConfig,
        running: bool,
    ) -> std::result::Result<Option<Vec<seccomp::Instruction>>, String> {
        if !self.filter {
            return Ok(None);
        }
        let names = cap::names(self.capabilities);
        match &config.seccomp {
            Seccomp::Unconfined => Ok(None),
            Seccomp::RuntimeDefault => {
                let names: Vec<_> = names.into_iter().map(str::to_owned).collect();
                Ok(Some(seccomp::default_filter(&names)))
            }
            Seccomp::Profile(path) => {
                if !running {
                    return seccomp::profile(path, &names).map(Some);
                }
                let compiled = config.bundle.join(FILTER_FILE);
                let bytes = fs::read(&compiled)
                    .map_err(|error| format!("seccomp: {}: {error}", compiled.display()))?;
                let filter = seccomp::from_bytes(&bytes);
                filter
                    .map(Some)
                    .ok_or_else(|| format!("seccomp: {} is damaged", compiled.display()))
            }
        }
    }
}

fn mount_root(config: &ContainerConfig, users: Option<&Namespace>) -> Result<()> {
    mount::private_namespace()?;
    let Some(users) = users else {
        mount::overlay(&config.rootfs)?;
        // The image may have made any part of this path a link to somewhere on the host.
        return Root::open(&config.rootfs.merged)?.create_dir_all(&config.cwd, None);
    };
    users::overlay(&config.rootfs, &config.bundle.join(LAYERS), users)?;
    let root = Root::open(&config.rootfs.merged)?;
    let owner = Some(users.host_id(0));
    root.create_dir_all(&config.cwd, owner)?;
    // libcontainer would make the way to a mount with ids that are nobody's inside.
    let mut ways = config
        .mounts
        .iter()
        .filter_map(|mount| mount.destination.parent());
    ways.try_for_each(|way| root.create_dir_all(way, owner))
}

fn prepare(
    config: &ContainerConfig,
    privileges: &Privileges,
    devices: &devices::Allowed,
    staged: &mounts::Staged,
    filter: Option<&[seccomp::Instruction]>,
    cgroups: &Cgroups,
) -> Result<()> {
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
    let first = Limits {
        // libcontainer sets these, after its own processes have joined.
        cpu_quota_us: None,
        cpu_period_us: None,
        cpu_shares: None,
        pids: None,
        ..config.resources.clone()
    };
    cgroups.create(&config.cgroup_path, &first)?;
    for directory in [&config.state_root, &config.bundle] {
        fs::create_dir_all(directory).doing_path("make", directory)?;
    }
    let document = spec::document(config, privileges.outside, devices, staged, cgroups);
    if let (Seccomp::Profile(_), Some(filter)) = (&config.seccomp, filter) {
        let file = config.bundle.join(FILTER_FILE);
        fs::write(&file, seccomp::to_bytes(filter)).doing_path("write", &file)?;
    }
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
fn executed(config: &ContainerConfig, args: &[String], status: OwnedFd) -> std::result::Result<(), RunError> {
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
            let path = args.first().cloned().unwrap_or_default();
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
    hooks::after_stop(&remains.bundle);
    let removed = cgroups.remove(&remains.cgroup_path, timeout);
    let (state, bundle) = (remove_dir_all(&remains.state), remove_dir_all(&remains.bundle));
    killed.and(removed).and(state).and(bundle)
}
