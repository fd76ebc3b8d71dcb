//! `securityContext` of Pod and container.

use alloc::format;
use alloc::vec::Vec;

use super::relative;
use crate::limits;
use crate::manifest::Cause;
use crate::wire::spec::{AppArmor, PodSecurity, PodSpec, Seccomp, Security};

/// Linux's capabilities (capabilities(7)), without `CAP_`.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// The kernel's settings that one Pod can change without harm to others.
///
/// Source: Kubernetes documentation, "Using sysctls in a Kubernetes Cluster", safe sysctls.
const SAFE_SYSCTLS: [&str; 13] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
    "net.ipv4.tcp_notsent_lowat",
];

pub(super) fn pod(pod: &PodSpec, out: &mut Vec<Cause>) {
    let at = "spec.securityContext";
    let security = &pod.security;
    if security.sysctls.len() > limits::ITEMS {
        out.push(Cause::too_long(format!("{at}.sysctls"), limits::ITEMS, "sysctls"));
    }
    for (n, (name, _)) in security.sysctls.iter().enumerate() {
        let field = format!("{at}.sysctls[{n}].name");
        if security.sysctls[..n].iter().any(|(other, _)| other == name) {
            out.push(Cause::duplicate(&field, name));
        }
        if name.is_empty() {
            out.push(Cause::required(field, ""));
        } else if !SAFE_SYSCTLS.contains(&name.as_str()) {
            let why = format!("{name:?} is not in the safe set: it would change the node for other Pods");
            out.push(Cause::forbidden(field, why));
        } else if name.starts_with("net.") && pod.host_network {
            let why = "sysctls of the network may not be set when hostNetwork is true";
            out.push(Cause::invalid(field, name, why));
        } else if name.starts_with("kernel.shm") && pod.host_ipc {
            let why = "sysctls of IPC may not be set when hostIPC is true";
            out.push(Cause::invalid(field, name, why));
        }
    }
    let PodSecurity {
        seccomp, apparmor, ..
    } = security;
    profiles(at, seccomp.as_ref(), apparmor.as_ref(), out);
    if pod.host_pid && pod.share_process_namespace {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        out.push(Cause::invalid("spec.shareProcessNamespace", true, why));
    }
    if pod.user_namespace {
        for (field, set) in [
            ("spec.hostNetwork", pod.host_network),
            ("spec.hostPID", pod.host_pid),
            ("spec.hostIPC", pod.host_ipc),
        ] {
            if set {
                out.push(Cause::forbidden(field, "when `hostUsers` is false"));
            }
        }
    }
}

pub(super) fn container(path: &str, security: &Security, pod: &PodSpec, out: &mut Vec<Cause>) {
    capabilities(path, security, out);
    profiles(path, security.seccomp.as_ref(), security.apparmor.as_ref(), out);
    if security.unmasked_proc && !pod.user_namespace {
        let why = "`hostUsers` must be false to use `Unmasked`";
        out.push(Cause::invalid(format!("{path}.procMount"), "Unmasked", why));
    }
}

/// A profile's name comes from the wire as well, where nobody has looked at it.
fn profiles(path: &str, seccomp: Option<&Seccomp>, apparmor: Option<&AppArmor>, out: &mut Vec<Cause>) {
    if let Some(Seccomp::Localhost(name)) = seccomp {
        relative(&format!("{path}.seccompProfile.localhostProfile"), name, out);
    }
    if let Some(AppArmor::Localhost(name)) = apparmor
        && (name.len() > 4095 || name.trim() != name || name.contains(['\n', '\0']))
    {
        let field = format!("{path}.appArmorProfile.localhostProfile");
        let why = "must be one line of at most 4095 bytes, without leading or trailing whitespace";
        out.push(Cause::invalid(field, name, why));
    }
}

fn capabilities(path: &str, security: &Security, out: &mut Vec<Cause>) {
    for (list, names) in [
        ("add", &security.add_capabilities),
        ("drop", &security.drop_capabilities),
    ] {
        for (at, name) in names.iter().enumerate() {
            if name != "ALL" && !CAPABILITIES.contains(&name.as_str()) {
                let mut cause = Cause::invalid(
                    format!("{path}.capabilities.{list}[{at}]"),
                    name,
                    "not a Linux capability",
                );
                if let Some(near) = crate::manifest::nearest(name, CAPABILITIES.iter().copied()) {
                    cause.message += &format!(" (did you mean {near:?}?)");
                }
                out.push(cause);
            }
        }
    }
}
