//! What the caller decides about a sandbox and a container, as plain values.
//!
//! Nothing here acts. Every type travels over the shim's socket as postcard, so there is no `skip`, `flatten` or
//! `untagged`, and fields and variants are only ever appended together with a new protocol version.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An address with the length of its network prefix, as in `10.88.0.1/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpNet {
    /// The address itself; host bits may be set.
    pub address: IpAddr,
    /// Length of the network prefix: at most 32 for IPv4, 128 for IPv6.
    pub prefix: u8,
}

impl std::fmt::Display for IpNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// How the Pod's network namespace is joined to the node's bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Name of the bridge in the host's namespace; made when it is missing. At most 15 bytes.
    pub bridge: String,
    /// The bridge's own address, which Pods use as their gateway.
    pub bridge_address: IpNet,
    /// The Pod's address.
    pub address: IpNet,
    /// The default route's next hop.
    pub gateway: IpAddr,
    /// Bytes; 0 takes the kernel's default of 1500.
    pub mtu: u32,
    /// Name of the host's end of the pair. At most 15 bytes, unique on the node.
    pub host_veth: String,
}

/// Limits of one cgroup. `None` leaves the kernel's default, which is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// `memory.max` / `memory.limit_in_bytes`, bytes.
    pub memory_bytes: Option<u64>,
    /// CPU time per period, microseconds.
    pub cpu_quota_us: Option<u64>,
    /// Length of the period, microseconds; 100 000 when only the quota is set.
    pub cpu_period_us: Option<u64>,
    /// Relative weight on v1's scale, 2 to 262 144; converted to `cpu.weight` on v2.
    pub cpu_shares: Option<u64>,
    /// `pids.max`.
    pub pids: Option<u64>,
    /// `memory.min`, bytes; v2 only.
    pub memory_min: Option<u64>,
    /// `memory.low`, bytes; v2 only.
    pub memory_low: Option<u64>,
    /// `memory.high`, bytes; v2 only.
    pub memory_high: Option<u64>,
    /// `memory.oom.group`: one process out of memory ends them all; v2 only.
    pub oom_group: bool,
    /// `hugetlb.<size>.max`: size of a page and bytes; a size that is not listed is left as it is.
    pub hugepages: Vec<(u64, u64)>,
    /// `io.max`; on v1 the throttle files.
    pub io: Vec<IoLimit>,
}

/// Bounds of a block device's use. `None` is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// The device's numbers: major and minor.
    pub device: (u32, u32),
    /// Bytes read a second.
    pub read_bytes: Option<u64>,
    /// Bytes written a second.
    pub write_bytes: Option<u64>,
    /// Reads a second.
    pub reads: Option<u64>,
    /// Writes a second.
    pub writes: Option<u64>,
}

/// Where the Pod's cgroup is: `<parent>/<pod>`, with one child per container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCgroup {
    /// A cgroup of ours directly under the root, for instance `skiff`.
    pub parent: String,
    /// The Pod's own name under it.
    pub pod: String,
    /// Limits of the Pod as a whole.
    pub limits: Limits,
}

impl PodCgroup {
    /// `<parent>/<pod>`, relative to the root of a hierarchy.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.parent, self.pod)
    }
}

/// A Pod's namespaces, network and cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// `metadata.uid`; it appears in errors only.
    pub pod_uid: String,
    /// Hostname of the UTS namespace, at most 64 bytes.
    pub hostname: String,
    /// Directory under which `net`, `ipc`, `uts` are pinned and `shm` is mounted. On tmpfs, made when missing.
    pub ns_dir: PathBuf,
    /// `spec.hostNetwork`: no network namespace of its own.
    pub host_network: bool,
    /// The Pod's address; `None` leaves it with only the loopback device.
    pub network: Option<NetworkConfig>,
    /// The Pod's cgroup.
    pub cgroup: PodCgroup,
    /// Size of the Pod's shared `/dev/shm`, bytes.
    pub shm_bytes: u64,
    /// `spec.hostIPC`: no IPC namespace of its own.
    pub host_ipc: bool,
    /// `spec.hostPID`: no PID namespaces of its own.
    pub host_pid: bool,
    /// `spec.shareProcessNamespace`: one PID namespace for all containers, whose first process is ours.
    pub share_pid: bool,
    /// `spec.hostUsers: false`: a user namespace of its own, in which ids from 0 on are these of the host.
    pub users: Option<IdRange>,
    /// `spec.securityContext.sysctls`: name with dots, and value; written in the Pod's namespaces.
    pub sysctls: Vec<(String, String)>,
}

/// Ids of the host that a user namespace maps its own to, from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The host's id of 0.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl IdRange {
    /// The host's id of one inside.
    #[must_use]
    pub fn host(self, id: u32) -> u32 {
        self.first.saturating_add(id)
    }
}

impl SandboxConfig {
    /// The namespaces that a container of this Pod joins.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        Namespaces {
            net: (!self.host_network).then(|| self.ns_dir.join("net")),
            ipc: (!self.host_ipc).then(|| self.ns_dir.join("ipc")),
            // As a kubelet has it: who shares the host's network has the host's name.
            uts: (!self.host_network).then(|| self.ns_dir.join("uts")),
            shm: (!self.host_ipc).then(|| self.ns_dir.join("shm")),
            host_pid: self.host_pid,
            pid: self.share_pid.then(|| self.ns_dir.join("pid")),
            user: self.users.map(|range| (self.ns_dir.join("user"), range)),
        }
    }
}

/// Namespaces that a container joins; mount (and cgroup, on v2) namespaces are always new.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Pinned network namespace; `None` is the host's.
    pub net: Option<PathBuf>,
    /// Pinned IPC namespace; `None` is the host's.
    pub ipc: Option<PathBuf>,
    /// Pinned UTS namespace; `None` is the host's.
    pub uts: Option<PathBuf>,
    /// tmpfs shared by the Pod, seen as `/dev/shm`; `None` gives the container its own of 64 MiB.
    pub shm: Option<PathBuf>,
    /// `spec.hostPID`: no PID namespace of its own.
    pub host_pid: bool,
    /// Pinned PID namespace that the Pod's containers share.
    pub pid: Option<PathBuf>,
    /// Pinned user namespace, and what it maps to.
    pub user: Option<(PathBuf, IdRange)>,
}

/// The container's root filesystem.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Image layers from the bottom (first unpacked) to the top. At least one.
    pub lower: Vec<PathBuf>,
    /// The container's own writable layer.
    pub upper: PathBuf,
    /// Overlayfs' work directory, on the same filesystem as `upper`.
    pub work: PathBuf,
    /// Where the three are mounted, in the container's mount namespace only.
    pub merged: PathBuf,
}

/// `runAsUser`, `runAsGroup` and all supplementary groups. The caller resolves names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Exactly these supplementary groups; none of the agent's are inherited.
    pub additional_gids: Vec<u32>,
}

/// What is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the host, recursively.
    #[default]
    Bind,
    /// A new tmpfs; `source` is ignored.
    Tmpfs,
}

/// The option of a bind whose files, and those below it where that can be, show the ids of the container's user namespace.
pub const IDS: &str = "ridmap";

/// One mount besides the default ones. A mount on a default one's destination replaces it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Host path of a bind mount.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// What is mounted.
    pub kind: MountKind,
    /// Further options, as in the OCI runtime specification: `nosuid`, `size=64k`, `rslave`, …; [`IDS`] for a bind.
    pub options: Vec<String>,
    /// Adds `ro`.
    pub read_only: bool,
    /// Read-only also in the mounts below it (`recursiveReadOnly`).
    pub recursive_read_only: RecursiveReadOnly,
    /// A part of `source` that is looked up when it is mounted, without leaving `source` by any link; made as a directory
    /// where it is missing.
    pub sub_path: Option<PathBuf>,
    /// Whether mounts made later on one side appear on the other.
    pub propagation: Propagation,
}

/// `recursiveReadOnly` of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecursiveReadOnly {
    /// Mounts below keep their own mode.
    #[default]
    Disabled,
    /// Where the kernel can.
    IfPossible,
    /// The container does not start without it.
    Enabled,
}

/// `mountPropagation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither side sees the other's later mounts.
    #[default]
    Private,
    /// The container sees the host's (`rslave`).
    HostToContainer,
    /// Both see each other's (`rshared`).
    Bidirectional,
}

/// A device node in a container, with leave to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where it stands in the container.
    pub path: PathBuf,
    /// The node of the host that it is a copy of; read when the container is made.
    pub host_path: PathBuf,
    /// Of `r`, `w` and `m`, as in the devices cgroup.
    pub access: String,
    /// Mode of the node; `None` takes that of the host's.
    pub mode: Option<u32>,
    /// Owner of the node; `None` takes the container's user.
    pub owner: Option<(u32, u32)>,
}

/// A command of the host that is run while a container is made, as in the OCI runtime specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// `createRuntime`, `createContainer`, `startContainer`, `poststart`, `poststop`.
    pub stage: String,
    /// Absolute path.
    pub path: PathBuf,
    /// Arguments, the name first.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u32>,
}

/// `securityContext.seccompProfile.type`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The default filter, fitted to the container's capabilities.
    #[default]
    RuntimeDefault,
    /// No filter.
    Unconfined,
    /// The profile in this file of the host, as Docker and containerd write them (JSON).
    Profile(PathBuf),
}

/// A resource limit of `setrlimit(2)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, ….
    pub kind: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// One container. Identifiers and paths are the caller's; none are made up here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Unique under `state_root`; `[A-Za-z0-9_.+-]`.
    pub id: String,
    /// libcontainer's state; on tmpfs.
    pub state_root: PathBuf,
    /// Where `config.json` is written; on tmpfs.
    pub bundle: PathBuf,
    /// The root filesystem.
    pub rootfs: Overlay,
    /// Command and arguments; at least one.
    pub args: Vec<String>,
    /// `NAME=value`; later entries win.
    pub env: Vec<String>,
    /// Working directory; made when the image lacks it.
    pub cwd: PathBuf,
    /// Whom the process runs as.
    pub user: User,
    /// `CAP_…` names: the bounding, effective and permitted sets. [`default_capabilities`] unless the Pod says otherwise.
    pub capabilities: Vec<String>,
    /// `!allowPrivilegeEscalation`.
    pub no_new_privileges: bool,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// `privileged`: all capabilities and devices, no filter, nothing masked.
    pub privileged: bool,
    /// Mounts besides the default ones, in any order.
    pub mounts: Vec<Mount>,
    /// Namespaces joined.
    pub namespaces: Namespaces,
    /// `<parent>/<pod>/<container>`, relative to the root of a hierarchy.
    pub cgroup_path: String,
    /// Limits of the container.
    pub resources: Limits,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// `oom_score_adj` of the container; lowered as far as the kernel lets us.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile; `None` leaves it to the kernel.
    pub apparmor: Option<String>,
    /// `procMount: Unmasked`: nothing of `/proc` is hidden or read-only.
    pub unmasked_proc: bool,
    /// Device nodes besides the default ones.
    pub devices: Vec<Device>,
    /// Commands of CDI specifications.
    pub hooks: Vec<Hook>,
    /// A terminal of its own as its standard streams.
    pub tty: bool,
    /// Its standard input stays open for whoever attaches; else it reads from nothing.
    pub stdin: bool,
}

impl ContainerConfig {
    /// The host's ids of the container's user and group.
    #[must_use]
    pub fn host_owner(&self) -> (u32, u32) {
        let host = |id| match &self.namespaces.user {
            Some((_, range)) => range.host(id),
            None => id,
        };
        (host(self.user.uid), host(self.user.gid))
    }
}

/// A command that is run in a running container: with the container's user, groups, environment, directory, capabilities,
/// filter, limits and cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecConfig {
    /// Command and arguments; at least one.
    pub args: Vec<String>,
}

/// What a container may do unless its Pod says otherwise: the set that containerd, CRI-O and Docker agree on.
#[must_use]
pub fn default_capabilities() -> Vec<String> {
    [
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// A container whose init runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id of init in the caller's PID namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: with `pid` it names one process for the life of the boot.
    pub start_time: u64,
}

/// Why a container does not run, by the step that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be expressed; nothing was touched.
    #[error("container {id}: {reason}")]
    Config {
        /// The container.
        id: String,
        /// Which field and why.
        reason: String,
    },
    /// The root filesystem could not be mounted.
    #[error("container {id}: cannot mount the root filesystem: {reason}")]
    Rootfs {
        /// The container.
        id: String,
        /// The kernel's word.
        reason: String,
    },
    /// Namespaces, cgroup, mounts or privileges could not be set up.
    #[error("container {id}: cannot create: {reason}")]
    Create {
        /// The container.
        id: String,
        /// What failed, with the kernel's word.
        reason: String,
    },
    /// It was created, but would not go on to execute its command.
    #[error("container {id}: cannot start: {reason}")]
    Start {
        /// The container.
        id: String,
        /// What failed.
        reason: String,
    },
    /// The command could not be executed.
    #[error("exec {path:?}: {reason}")]
    Exec {
        /// The command as it was given.
        path: String,
        /// `no such file or directory`, ….
        reason: String,
        /// The error number, for the exit code: 127 for ENOENT, else 126.
        errno: i32,
    },
    /// The kernel killed the container's set-up for want of memory.
    #[error("container {id}: the memory limit of {limit} bytes is too small to start: {reason}")]
    OutOfMemory {
        /// The container.
        id: String,
        /// The limit in bytes.
        limit: u64,
        /// What failed.
        reason: String,
    },
    /// The step did not end in time; what it had begun was killed and removed.
    #[error("container {id}: no answer within {millis} ms; the attempt was killed")]
    Timeout {
        /// The container.
        id: String,
        /// The deadline in milliseconds.
        millis: u64,
    },
    /// The Pod's network could not be set up: the sandbox is of no use.
    #[error("container {id}: {reason}")]
    Network {
        /// The container.
        id: String,
        /// The kernel's word.
        reason: String,
    },
}
