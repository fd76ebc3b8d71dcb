//! A Pod's sandbox: network, IPC and UTS namespaces pinned as files, its network, its shared memory and its cgroup.
//!
//! Always holds: the namespaces belong to no process, so they outlive the agent and the shim (but a shared PID namespace,
//! which lives as long as its first process, see `pause`); [`create`] leaves nothing
//! behind when it fails; [`destroy`] can be repeated and undoes everything but the bridge, which all Pods share.
//!
//! ```text
//! <ns_dir>/user  nsfs of the user namespace that the following belong to, with hostUsers: false
//! <ns_dir>/net   nsfs of the network namespace, unless hostNetwork
//! <ns_dir>/ipc   nsfs of the IPC namespace, unless hostIPC
//! <ns_dir>/uts   nsfs of the UTS namespace, hostname set, unless hostNetwork
//! <ns_dir>/pid   nsfs of the PID namespace, with shareProcessNamespace
//! <ns_dir>/shm   tmpfs, the Pod's /dev/shm, unless hostIPC
//! <ns_dir>/network   `ok`, or why the network is not there; locked until that is known
//! ```
//!
//! The network is set up by a process of its own, because the kernel takes as long for a pair of devices as for the rest
//! of a container: [`create`] returns as soon as the namespaces can be joined, and a container's start waits for the
//! network ([`wait_for_network`]) just before its command runs.

mod pause;
mod sysctl;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::cgroup::Cgroups;
use crate::config::{NetworkConfig, SandboxConfig};
use crate::error::{Doing, Result};
use crate::fs::remove_dir_all;
use crate::mount;
use crate::netlink::Netlink;
use crate::users;

/// Says how far the network is.
const NETWORK_FILE: &str = "network";

/// What the file holds once the network is there.
const NETWORK_READY: &str = "ok";

/// Name of a Pod's network device inside its namespace.
const POD_LINK: &str = "eth0";

/// How long the processes of a Pod may take to go after SIGKILL: the kernel frees much memory meanwhile.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the sandbox. Called in a forked child: the child's own namespaces change.
///
/// # Errors
/// With the first step that failed, everything undone.
pub fn create(config: &SandboxConfig, cgroups: &Cgroups) -> Result<()> {
    let made = try_create(config, cgroups);
    if made.is_err() {
        let _ = destroy(config, cgroups);
    }
    made
}

fn try_create(config: &SandboxConfig, cgroups: &Cgroups) -> Result<()> {
    fs::create_dir_all(&config.ns_dir).doing_path("make", &config.ns_dir)?;
    // Opened outside of the Pod's namespace, so that it speaks to the host's.
    let host = Netlink::open()?;
    let flags = own_namespaces(config);
    let (users, later) = match config.users {
        Some(range) => {
            let (users, later) = users::make(range, flags, || sysctl::write_first(config))?;
            let opened = format!("/proc/self/fd/{}", users.as_fd().as_raw_fd());
            pin(&config.ns_dir, Path::new(&opened), "user")?;
            (Some(users), later)
        }
        None => {
            unshare(flags).doing("make the namespaces of pod", &config.pod_uid)?;
            (None, sysctl::write_first(config)?)
        }
    };
    if flags.contains(CloneFlags::CLONE_NEWUTS) {
        nix::unistd::sethostname(&config.hostname).doing("set the hostname", &config.hostname)?;
        pin_own(&config.ns_dir, "uts")?;
    }
    if flags.contains(CloneFlags::CLONE_NEWIPC) {
        pin_own(&config.ns_dir, "ipc")?;
        let shm = config.ns_dir.join("shm");
        fs::create_dir_all(&shm).doing_path("make", &shm)?;
        mount::tmpfs(&shm, config.shm_bytes, 0o1777)?;
        let root = config.users.map(|range| range.host(0));
        std::os::unix::fs::chown(&shm, root, root).doing_path("own", &shm)?;
    }
    if flags.contains(CloneFlags::CLONE_NEWNET) {
        let namespace = pin_own(&config.ns_dir, "net")?;
        begin_network(config, host, namespace, users, later)?;
    }
    // Last, because the cgroup lock may be held meanwhile: see `Cgroups::warm_up`.
    cgroups.ensure_pod(&config.cgroup)?;
    if config.share_pid {
        let first = pause::start(config, cgroups)?;
        pin(&config.ns_dir, Path::new(&format!("/proc/{first}/ns/pid")), "pid")?;
    }
    Ok(())
}

/// Which namespaces the Pod does not share with the host. As a kubelet has it, who shares the host's network has its name.
fn own_namespaces(config: &SandboxConfig) -> CloneFlags {
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWIPC, !config.host_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, !config.host_network);
    flags.set(CloneFlags::CLONE_NEWNET, !config.host_network);
    flags
}

/// Binds a namespace of this process to a file, so that it lives on without a process.
fn pin_own(ns_dir: &Path, name: &str) -> Result<OwnedFd> {
    pin(ns_dir, &Path::new("/proc/self/ns").join(name), name)
}

fn pin(ns_dir: &Path, source: &Path, name: &str) -> Result<OwnedFd> {
    let target = ns_dir.join(name);
    fs::File::create(&target).doing_path("make", &target)?;
    mount::bind(source, &target, false)?;
    Ok(fs::File::open(&target).doing_path("open", &target)?.into())
}

/// Has the network set up by a process that outlives this one. The lock is the process's: it is free when it has ended,
/// however it ended.
fn begin_network(
    config: &SandboxConfig,
    mut host: Netlink,
    namespace: OwnedFd,
    users: Option<users::Namespace>,
    sysctls: Vec<(String, String)>,
) -> Result<()> {
    let path = config.ns_dir.join(NETWORK_FILE);
    let mut file = fs::File::create(&path).doing_path("make", &path)?;
    file.lock().doing_path("lock", &path)?;
    let network = config.network.clone();
    // Nobody waits for its report: what it has to say is in the file.
    crate::process::fork_child(move || {
        let outcome = set_up_network(network.as_ref(), &mut host, &namespace).and_then(|()| {
            if sysctls.is_empty() {
                return Ok(());
            }
            // Ids in a setting are the Pod's.
            users.as_ref().map_or(Ok(()), users::Namespace::become_root)?;
            sysctls
                .iter()
                .try_for_each(|(name, value)| sysctl::write(name, value))
        });
        let text = outcome.map_or_else(|error| error.to_string(), |()| NETWORK_READY.to_owned());
        io::Write::write_all(&mut file, text.as_bytes()).is_ok()
    })
    .map(drop)
}

/// Waits until the network of the sandbox with this directory is set up. The caller has a deadline of its own.
///
/// # Errors
/// Why it is not.
pub fn wait_for_network(ns_dir: &Path) -> Result<()> {
    let path = ns_dir.join(NETWORK_FILE);
    let mut file = fs::File::open(&path).doing_path("open", &path)?;
    file.lock_shared().doing_path("lock", &path)?;
    let mut text = String::new();
    io::Read::read_to_string(&mut file, &mut text).doing_path("read", &path)?;
    match text.as_str() {
        NETWORK_READY => Ok(()),
        "" => Err(io::Error::other("the process that set it up was killed")).doing("set up", "the network"),
        why => Err(io::Error::other(why.to_owned())).doing("set up", "the network"),
    }
}

/// Runs inside the Pod's network namespace; `host` was opened outside.
fn set_up_network(network: Option<&NetworkConfig>, host: &mut Netlink, namespace: &OwnedFd) -> Result<()> {
    let mut pod = Netlink::open()?;
    let loopback = pod.index("lo")?;
    pod.set_up(loopback)?;
    let Some(network) = network else { return Ok(()) };
    let bridge = host.ensure_bridge(&network.bridge, network.bridge_address, network.mtu)?;
    // What a Pod of a former boot of the agent left under this name is of no use to anybody.
    host.delete_link(&network.host_veth)?;
    host.add_veth(&network.host_veth, bridge, POD_LINK, namespace, network.mtu)?;
    let link = pod.index(POD_LINK)?;
    pod.add_address(link, network.address)?;
    pod.set_up(link)?;
    pod.set_default_route(network.gateway, link)
}

/// Kills all processes of the Pod and removes its cgroup, device and namespaces. What is not there is passed over.
///
/// # Errors
/// With the first step that failed; the others are tried all the same.
pub fn destroy(config: &SandboxConfig, cgroups: &Cgroups) -> Result<()> {
    // What is still being made would come into being behind our back.
    let _ = wait_for_network(&config.ns_dir);
    let path = config.cgroup.path();
    let killed = cgroups.kill_all(&path, KILL_TIMEOUT);
    let removed = cgroups.remove(&path, KILL_TIMEOUT);
    let unlinked = match &config.network {
        Some(network) if !config.host_network => {
            Netlink::open().and_then(|mut host| host.delete_link(&network.host_veth))
        }
        _ => Ok(()),
    };
    let unmounted = mount::unmount_all_under(&config.ns_dir);
    killed
        .and(removed)
        .and(unlinked)
        .and(unmounted)
        .and_then(|()| remove_dir_all(&config.ns_dir))
}

/// What is still there of Pods, found without any record of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Mounts below the run directory.
    pub mounts: Vec<PathBuf>,
    /// Pods' cgroups below the parent, by name.
    pub cgroups: Vec<String>,
}

/// Lists what is left below a run directory and a parent cgroup. It decides nothing: the caller knows which Pods have a
/// living shim.
///
/// # Errors
/// When the mounts or cgroups cannot be listed.
pub fn collect(run_dir: &Path, cgroups: &Cgroups, parent: &str) -> Result<Leftovers> {
    Ok(Leftovers {
        mounts: mount::mounts_under(run_dir)?,
        cgroups: cgroups.children(parent)?.into_iter().collect(),
    })
}
