//! What a node may be able to do or may allow, by name, in [`super::NodeInfo::features`].
//!
//! Always holds: a Pod that asks for something of this list on a node without it is named when it is applied, or refused
//! by the node; it never runs without.

/// The node's policy allows `hostNetwork`.
pub const HOST_NETWORK: &str = "host-network";
/// The node's policy allows `hostPID`.
pub const HOST_PID: &str = "host-pid";
/// The node's policy allows `hostIPC`.
pub const HOST_IPC: &str = "host-ipc";
/// The node's policy allows `privileged`.
pub const PRIVILEGED: &str = "privileged";
/// The node's policy allows `capabilities.add` beyond [`COMMON_CAPABILITIES`]; where it allows `privileged`, it does.
pub const CAPABILITIES: &str = "capabilities";
/// The node's policy allows `hostPath`.
pub const HOST_PATH: &str = "host-path";
/// `hostUsers: false`: user namespaces with idmapped mounts of the file systems in use.
pub const USER_NAMESPACES: &str = "user-namespaces";
/// AppArmor is in the kernel and on.
pub const APPARMOR: &str = "apparmor";
/// `recursiveReadOnly`: `mount_setattr(2)`.
pub const RECURSIVE_READ_ONLY: &str = "recursive-read-only";

/// All of them.
pub const ALL: [&str; 9] = [
    HOST_NETWORK,
    HOST_PID,
    HOST_IPC,
    PRIVILEGED,
    CAPABILITIES,
    HOST_PATH,
    USER_NAMESPACES,
    APPARMOR,
    RECURSIVE_READ_ONLY,
];

/// Capabilities, without `CAP_`, that a container may have without the node's leave: those that it has by default. With any
/// other it could reach beyond its Pod.
pub const COMMON_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Whether adding this capability, with or without `CAP_`, needs [`CAPABILITIES`].
#[must_use]
pub fn is_uncommon(capability: &str) -> bool {
    let name = capability.strip_prefix("CAP_").unwrap_or(capability);
    !COMMON_CAPABILITIES.contains(&name)
}
