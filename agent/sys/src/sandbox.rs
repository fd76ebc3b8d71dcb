//! A Pod's sandbox: network, IPC and UTS namespaces pinned as files, its network, its shared memory and its cgroup.
//!
//! Always holds: the namespaces belong to no process, so they outlive the agent and the shim; [`create`] leaves nothing
//! behind when it fails; [`destroy`] can be repeated and undoes everything but the bridge, which all Pods share.
//!
//! ```text
//! <ns_dir>/net   nsfs of the network namespace, unless hostNetwork
//! <ns_dir>/ipc   nsfs of the IPC namespace
//! <ns_dir>/uts   nsfs of the UTS namespace, hostname set
//! <ns_dir>/shm   tmpfs, the Pod's /dev/shm
//! ```

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use crate::cgroup::Cgroups;
use crate::config::{NetworkConfig, SandboxConfig};
use crate::error::{Doing, Result};
use crate::fs::remove_dir_all;
use crate::mount;
use crate::netlink::Netlink;

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
    let mut host = Netlink::open()?;
    let mut flags = CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if !config.host_network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).doing("make the namespaces of pod", &config.pod_uid)?;
    nix::unistd::sethostname(&config.hostname).doing("set the hostname", &config.hostname)?;
    for name in ["ipc", "uts"] {
        pin(&config.ns_dir, name)?;
    }
    if !config.host_network {
        let file = pin(&config.ns_dir, "net")?;
        set_up_network(config.network.as_ref(), &mut host, &file)?;
    }
    let shm = config.ns_dir.join("shm");
    fs::create_dir_all(&shm).doing_path("make", &shm)?;
    mount::tmpfs(&shm, config.shm_bytes, 0o1777)?;
    // Last, because the cgroup lock may be held meanwhile: see `Cgroups::warm_up`.
    cgroups.ensure_pod(&config.cgroup)
}

/// Binds a namespace of this process to a file, so that it lives on without a process.
fn pin(ns_dir: &Path, name: &str) -> Result<OwnedFd> {
    let (source, target) = (Path::new("/proc/self/ns").join(name), ns_dir.join(name));
    fs::File::create(&target).doing_path("make", &target)?;
    mount::bind(&source, &target, false)?;
    Ok(fs::File::open(&target).doing_path("open", &target)?.into())
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
