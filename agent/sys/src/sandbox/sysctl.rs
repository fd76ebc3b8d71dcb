//! `spec.securityContext.sysctls`: the kernel's settings of the Pod's own namespaces.
//!
//! Always holds: a setting that does not belong to a namespace of the Pod's own is refused before anything is written,
//! because writing it would change the host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::SandboxConfig;
use crate::error::{Doing, KernelError, Result};

/// Those of the IPC namespace.
const IPC: [&str; 4] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];

/// Those of the network namespace.
const NET: &str = "net.";

/// Writes what can be written before the Pod's network is there, and gives what has to wait for its devices.
pub(super) fn write_first(config: &SandboxConfig) -> Result<Vec<(String, String)>> {
    for (name, _) in &config.sysctls {
        check(config, name)
            .map_err(io::Error::other)
            .doing("set sysctl", name)?;
    }
    let mut later = Vec::new();
    for (name, value) in &config.sysctls {
        match write(name, value) {
            // A device that is still to come.
            Err(error) if error.is(libc::ENOENT) && dotted(name).starts_with(NET) => {
                later.push((name.clone(), value.clone()));
            }
            result => result?,
        }
    }
    Ok(later)
}

/// Sets one in the namespaces of this process.
pub(super) fn write(name: &str, value: &str) -> Result<()> {
    fs::write(path(name), value).map_err(|cause| KernelError {
        action: "set sysctl",
        subject: format!("{name} to {value:?}"),
        cause,
    })
}

fn check(config: &SandboxConfig, name: &str) -> std::result::Result<(), String> {
    let dotted = dotted(name);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if !name.chars().all(plain)
        || dotted.split('.').any(|part| part.is_empty() || part == "/")
        || name.contains("..")
    {
        return Err("this is no name of a sysctl".to_owned());
    }
    let shared = |what: &str| format!("it belongs to the {what} namespace, which is the host's");
    if dotted.starts_with(NET) {
        return if config.host_network {
            Err(shared("network"))
        } else {
            Ok(())
        };
    }
    if IPC.iter().any(|prefix| dotted.starts_with(prefix)) {
        return if config.host_ipc {
            Err(shared("IPC"))
        } else {
            Ok(())
        };
    }
    Err("it belongs to no namespace of the pod's own".to_owned())
}

/// With dots between its parts. As `sysctl(8)` has it, the first separator decides which of `.` and `/` it is; the other
/// stands for itself.
fn dotted(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => swap(name),
        _ => name.to_owned(),
    }
}

fn swap(name: &str) -> String {
    let other = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    name.chars().map(other).collect()
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(swap(&dotted(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_of_the_pods_own_namespaces_are_taken() {
        let own = SandboxConfig::default();
        let host = SandboxConfig {
            host_network: true,
            host_ipc: true,
            ..SandboxConfig::default()
        };
        let cases = [
            ("net.ipv4.ip_forward", true),
            ("net/ipv4/conf/eth0.1/rp_filter", true),
            ("kernel.shm_rmid_forced", true),
            ("kernel.msgmax", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.panic", false),
            ("vm.swappiness", false),
            ("fs.file-max", false),
            ("kernel.hostname", false),
            ("net..ipv4", false),
            ("net.ipv4.../../kernel", false),
            ("net/../kernel/panic", false),
            ("net.ipv4.a b", false),
            ("", false),
        ];
        for (name, allowed) in cases {
            assert_eq!(check(&own, name).is_ok(), allowed, "{name}");
            assert!(check(&host, name).is_err(), "{name} on the host's namespaces");
        }
    }

    #[test]
    fn both_ways_to_write_a_name_are_one() {
        for (name, expected) in [
            (
                "net.ipv4.conf.eth0/1.rp_filter",
                "/proc/sys/net/ipv4/conf/eth0.1/rp_filter",
            ),
            (
                "net/ipv4/conf/eth0.1/rp_filter",
                "/proc/sys/net/ipv4/conf/eth0.1/rp_filter",
            ),
            ("kernel.sem", "/proc/sys/kernel/sem"),
        ] {
            assert_eq!(path(name), Path::new(expected));
        }
    }
}
