//! What this node's kernel can do, found by looking or trying, not by guessing from its version.
//!
//! Always holds: nothing is changed for good: what a probe makes goes with it; a probe that cannot tell says so. Probes that
//! need a namespace of their own run in a process of the caller's making: see [`Probe`].

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use crate::cap;
use crate::cgroup::{Cgroups, ROOT, Version};
use crate::config::{IdRange, IpNet, Overlay};
use crate::devices;
use crate::error::{Doing as _, Result};
use crate::fs::{Space, space};
use crate::mount;
use crate::netlink::Netlink;
use crate::tree::Tree;
use crate::users;

/// Outcome of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It works.
    Works,
    /// It does not, with the kernel's word.
    Fails(String),
}

impl<T> From<Result<T>> for Probe {
    fn from(result: Result<T>) -> Self {
        match result {
            Ok(_) => Self::Works,
            Err(error) => Self::Fails(error.to_string()),
        }
    }
}

impl Probe {
    fn of(works: bool, otherwise: &str) -> Self {
        if works {
            Self::Works
        } else {
            Self::Fails(otherwise.to_owned())
        }
    }
}

/// Memory of the node, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In all.
    pub total: u64,
    /// What can be had without swapping.
    pub available: u64,
}

/// What was found without changing anything.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub machine: String,
    /// Namespaces that the kernel has, of those that we need, each with whether it is there.
    pub namespaces: Vec<(&'static str, bool)>,
    /// What is mounted.
    pub cgroup: std::result::Result<Version, String>,
    /// Controllers that we need, each with whether it is there.
    pub controllers: Vec<(&'static str, bool)>,
    /// System call filters.
    pub seccomp: Probe,
    /// Device programs, needed on v2 only.
    pub device_program: Probe,
    /// Pressure stall information.
    pub pressure: Probe,
    /// Packet filter by nf_tables; without it a userspace proxy takes over.
    pub nf_tables: Probe,
    /// Nanoseconds since 1970 by the system clock: before a node has ever had the time it is near zero.
    pub unix_ns: i64,
    /// Memory.
    pub memory: std::result::Result<Memory, String>,
    /// Capabilities that containers need of us but that we do not hold.
    pub lacking_capabilities: Vec<&'static str>,
}

/// Looks at everything that can be seen without changing anything.
#[must_use]
pub fn look() -> Facts {
    let uname = nix::sys::utsname::uname();
    let text = |value: Option<&std::ffi::OsStr>| value.unwrap_or_default().to_string_lossy().into_owned();
    let cgroups = Cgroups::detect(Path::new(ROOT));
    let has = |name: &str| {
        cgroups.as_ref().is_ok_and(|cgroups| match cgroups.version() {
            // On v2 devices are a program, and there is no freezer controller: every cgroup has one.
            Version::V2 => matches!(name, "devices" | "freezer") || cgroups.controllers().contains(name),
            Version::V1 | Version::Hybrid => cgroups.controllers().contains(name),
        })
    };
    let needed = ["cpu", "memory", "pids", "devices", "freezer"];
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    Facts {
        kernel: text(uname.as_ref().ok().map(nix::sys::utsname::UtsName::release)),
        machine: text(uname.as_ref().ok().map(nix::sys::utsname::UtsName::machine)),
        namespaces: kinds
            .map(|kind| (kind, Path::new("/proc/self/ns").join(kind).exists()))
            .to_vec(),
        controllers: needed.map(|name| (name, has(name))).to_vec(),
        cgroup: cgroups
            .as_ref()
            .map(Cgroups::version)
            .map_err(ToString::to_string),
        seccomp: Probe::of(
            Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() || has_status_field("Seccomp:"),
            "the kernel lacks CONFIG_SECCOMP_FILTER",
        ),
        device_program: devices::probe().into(),
        pressure: Probe::of(
            Path::new("/proc/pressure/memory").exists(),
            "the kernel lacks CONFIG_PSI, or psi=1 at boot",
        ),
        nf_tables: nf_tables(),
        unix_ns: crate::process::unix_ns(),
        memory: memory().map_err(|error| format!("/proc/meminfo: {error}")),
        lacking_capabilities: lacking_capabilities(),
    }
}

fn has_status_field(field: &str) -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| status.contains(field))
}

fn lacking_capabilities() -> Vec<&'static str> {
    let wanted = cap::parse(&crate::config::default_capabilities()).unwrap_or(0)
        | cap::SYS_ADMIN
        | cap::SETPCAP
        | cap::NET_ADMIN
        | cap::SYS_RESOURCE;
    cap::names(wanted & !cap::bounding().unwrap_or(0))
}

fn memory() -> io::Result<Memory> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let bytes = |key: &str| {
        let kib = text.lines().find_map(|line| {
            line.strip_prefix(key)?
                .trim()
                .strip_suffix(" kB")?
                .trim()
                .parse::<u64>()
                .ok()
        });
        kib.map(|kib| kib * 1024)
            .ok_or_else(|| io::Error::other(format!("no {key}")))
    };
    Ok(Memory {
        total: bytes("MemTotal:")?,
        available: bytes("MemAvailable:")?,
    })
}

/// Opens a netfilter socket and asks for the generation: a subsystem that is not there does not answer.
fn nf_tables() -> Probe {
    use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
    // NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN, NLM_F_REQUEST; then `struct nfgenmsg`.
    const MESSAGE: [u8; 20] = [20, 0, 0, 0, 16, 10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const ERROR: [u8; 2] = [2, 0];
    let ask = || -> io::Result<()> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let timeout = nix::sys::time::TimeVal::new(2, 0);
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
        socket.send(&MESSAGE, 0)?;
        let mut answer = Vec::with_capacity(4096);
        socket.recv(&mut answer, 0)?;
        match (answer.get(4..6), answer.get(16..20)) {
            (Some(kind), Some(&[a, b, c, d])) if kind == ERROR && [a, b, c, d] != [0; 4] => {
                Err(io::Error::from_raw_os_error(-i32::from_le_bytes([a, b, c, d])))
            }
            (Some(_), _) => Ok(()),
            (None, _) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    match ask() {
        Ok(()) => Probe::Works,
        Err(error) => Probe::Fails(format!("nf_tables does not answer: {error}")),
    }
}

/// Whether the kernel can make mounts read-only together with those below them (`recursiveReadOnly`).
#[must_use]
pub fn recursive_read_only() -> bool {
    crate::tree::recursive_read_only()
}

/// Whether AppArmor profiles can be applied.
#[must_use]
pub fn apparmor() -> bool {
    crate::apparmor::is_enabled()
}

/// Tries a user namespace with these ids, an overlay in `memory` whose layer shows them, and whether the file system of
/// `disk` can show them, as for Pods with `hostUsers: false`; nothing is written to `disk`. Called in a child of the
/// caller's with one thread: its mount namespace changes.
#[must_use]
pub fn try_user_namespace(disk: &Path, memory: &Path, ids: IdRange) -> Probe {
    let base = memory.join(format!(".probe-{}", std::process::id()));
    let config = overlay_below(&base);
    let attempt = (|| {
        let (users, ()) = users::make(ids, CloneFlags::empty(), || Ok(()))?;
        Tree::of(disk)?
            .map_ids(users.as_fd())
            .doing_path("map the ids of", disk)?;
        mount::private_namespace()?;
        fs::create_dir_all(&config.lower[0]).doing_path("make", &config.lower[0])?;
        users::overlay(&config, &base.join("staged"), &users)
    })();
    let _ = mount::unmount_all_under(&base);
    let _ = fs::remove_dir_all(&base);
    attempt.into()
}

/// Room on the filesystem of a directory.
///
/// # Errors
/// When there is no such directory.
pub fn disk(directory: &Path) -> Result<Space> {
    space(directory)
}

/// Whether the kernel knows a kind of file system; one whose module is not loaded yet it does not.
#[must_use]
pub fn has_file_system(name: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    // `nodev` or nothing, and the name, a line each.
    known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name))
}

/// Whether overlays with their writable layers in this directory work for certain, so that nobody has to try by writing there.
#[must_use]
pub fn takes_overlays(directory: &Path) -> bool {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, TMPFS_MAGIC, statfs};
    let known = [BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, TMPFS_MAGIC];
    let kind = statfs(directory).map(|it| it.filesystem_type());
    has_file_system("overlay") && kind.is_ok_and(|it| known.contains(&it))
}

/// Tries an overlay whose layers lie below `directory`, as containers' will. Called in a child of the caller's: its mount
/// namespace changes.
#[must_use]
pub fn try_overlay(directory: &Path) -> Probe {
    let base = directory.join(format!(".probe-{}", std::process::id()));
    let config = overlay_below(&base);
    let attempt = mount::private_namespace().and_then(|()| {
        fs::create_dir_all(&config.lower[0]).doing_path("make", &config.lower[0])?;
        mount::overlay(&config)
    });
    let _ = mount::detach(&config.merged);
    let _ = fs::remove_dir_all(&base);
    attempt.into()
}

fn overlay_below(base: &Path) -> Overlay {
    Overlay {
        lower: vec![base.join("lower")],
        upper: base.join("upper"),
        work: base.join("work"),
        merged: base.join("merged"),
    }
}

/// Tries a bridge with a port. Called in a child of the caller's: its network namespace changes.
#[must_use]
pub fn try_network() -> Probe {
    let address = IpNet {
        address: std::net::Ipv4Addr::new(192, 0, 2, 1).into(),
        prefix: 24,
    };
    let attempt = (|| {
        unshare(CloneFlags::CLONE_NEWNET).doing("make", "a network namespace")?;
        let own = fs::File::open("/proc/self/ns/net").doing("open", "/proc/self/ns/net")?;
        let mut netlink = Netlink::open()?;
        let bridge = netlink.ensure_bridge("probe0", address, 0)?;
        netlink.add_veth("probe1", bridge, "probe2", &own.into(), 0)
    })();
    attempt.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_runs_pods() {
        let facts = look();
        assert!(!facts.kernel.is_empty() && !facts.machine.is_empty());
        assert!(facts.namespaces.iter().all(|(_, there)| *there), "{facts:?}");
        assert!(facts.controllers.iter().all(|(_, there)| *there), "{facts:?}");
        assert_eq!(
            (&facts.seccomp, &facts.device_program),
            (&Probe::Works, &Probe::Works)
        );
        assert!(facts.cgroup.is_ok());
        assert!(facts.memory.is_ok_and(|memory| memory.total > memory.available));
        assert!(facts.unix_ns > 0);
    }

    #[test]
    fn overlay_and_network_are_tried_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // Each on a thread of its own, whose namespaces end with it.
        let overlay = std::thread::scope(|scope| scope.spawn(|| try_overlay(dir.path())).join().unwrap());
        assert_eq!(overlay, Probe::Works);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(std::thread::spawn(try_network).join().unwrap(), Probe::Works);
        let missing = std::thread::spawn(|| try_overlay(Path::new("/proc/no/such")))
            .join()
            .unwrap();
        assert!(matches!(missing, Probe::Fails(reason) if reason.contains("/proc/no/such")));
    }
}
