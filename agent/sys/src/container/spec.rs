//! From a [`ContainerConfig`] to the `config.json` of the OCI runtime specification.
//!
//! Always holds: mounts are sorted by depth, because they are applied in order and a parent would hide its child; what the
//! filter and the v2 device program do is not in here, because libcontainer without its C features would only warn.

use std::path::Path;

use serde_json::{Value, json};

use super::hooks;
use super::mounts::Staged;
use crate::cap;
use crate::cgroup::{Cgroups, ROOT, Version};
use crate::config::{ContainerConfig, IDS, Mount, MountKind, User};
use crate::devices::Allowed;

/// Paths that show the host, hidden from containers.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that change the host.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Nodes that a privileged container is given at most.
const MAX_DEVICES: usize = 1024;

/// The group of terminals.
const TTY_GROUP: u32 = 5;

/// Size of `/dev/shm` of a container that shares none.
const SHM_OPTION: &str = "size=65536k";

/// The whole document. `capabilities` is what libcontainer leaves the process with, which may be more than the container is
/// to have: see [`super::payload`]. `cgroups` are the host's directories that it sees of its own cgroup, and where.
pub(super) fn document(
    config: &ContainerConfig,
    capabilities: u64,
    devices: &Allowed,
    staged: &Staged,
    cgroups: &Cgroups,
) -> Value {
    let names = cap::names(capabilities);
    // Who is to enter a user namespace comes as root: see `user`.
    let root = User::default();
    let user = match &config.namespaces.user {
        Some(_) => &root,
        None => &config.user,
    };
    let mut linux = json!({
        "cgroupsPath": format!("/{}", config.cgroup_path.trim_start_matches('/')),
        "namespaces": namespaces(config, cgroups.version() == Version::V2),
        "resources": resources(config, devices),
    });
    let mut nodes = devices.nodes();
    if config.privileged {
        let listed: Vec<_> = config.devices.iter().map(|device| json!(device.path)).collect();
        let host = host_devices(Path::new("/dev"));
        nodes.extend(host.into_iter().filter(|node| !listed.contains(&node["path"])));
    } else {
        let shown = |path: &&str| !config.unmasked_proc || !path.starts_with("/proc/");
        linux["maskedPaths"] = MASKED.iter().copied().filter(shown).collect();
        linux["readonlyPaths"] = READ_ONLY.iter().copied().filter(shown).collect();
    }
    if !nodes.is_empty() {
        linux["devices"] = nodes.into();
    }
    if staged.shared() {
        linux["rootfsPropagation"] = "shared".into();
    }
    let rlimits: Vec<Value> = config
        .rlimits
        .iter()
        .map(|r| json!({"type": r.kind, "soft": r.soft, "hard": r.hard}))
        .collect();
    let mut document = json!({
        "ociVersion": "1.0.2",
        "root": {"path": config.rootfs.merged, "readonly": config.read_only_root},
        "mounts": mounts(config, staged, cgroups),
        "process": {
            "terminal": false,
            "user": {
                "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids, "umask": 0o022,
            },
            "args": config.args,
            "env": config.env,
            "cwd": config.cwd,
            "capabilities": {"bounding": names, "effective": names, "permitted": names},
            "noNewPrivileges": config.no_new_privileges,
            "rlimits": rlimits,
        },
        "linux": linux,
    });
    if let Some(hooks) = hooks::to_oci(&config.hooks) {
        document["hooks"] = hooks;
    }
    document
}

fn namespaces(config: &ContainerConfig, cgroup_namespace: bool) -> Vec<Value> {
    let mut list = vec![json!({"type": "mount"})];
    match &config.namespaces.pid {
        Some(path) => list.push(json!({"type": "pid", "path": path})),
        None if !config.namespaces.host_pid => list.push(json!({"type": "pid"})),
        None => {}
    }
    if cgroup_namespace {
        list.push(json!({"type": "cgroup"}));
    }
    let joined = [
        ("network", &config.namespaces.net),
        ("ipc", &config.namespaces.ipc),
        ("uts", &config.namespaces.uts),
    ];
    list.extend(
        joined
            .iter()
            .filter_map(|(kind, path)| path.as_ref().map(|path| json!({"type": kind, "path": path}))),
    );
    list
}

fn resources(config: &ContainerConfig, devices: &Allowed) -> Value {
    let limits = &config.resources;
    let mut rules = vec![json!({"allow": config.privileged, "access": "rwm"})];
    if !config.privileged {
        rules.extend(devices.rules().iter().map(|rule| rule.to_oci()));
    }
    let mut resources = json!({"devices": rules});
    if let Some(bytes) = limits.memory_bytes {
        resources["memory"] = json!({"limit": i64::try_from(bytes).unwrap_or(i64::MAX)});
    }
    let mut cpu = serde_json::Map::new();
    if let Some(shares) = limits.cpu_shares {
        cpu.insert("shares".into(), shares.into());
    }
    if let Some(quota) = limits.cpu_quota_us {
        cpu.insert("quota".into(), i64::try_from(quota).unwrap_or(i64::MAX).into());
        cpu.insert("period".into(), limits.cpu_period_us.unwrap_or(100_000).into());
    }
    if !cpu.is_empty() {
        resources["cpu"] = cpu.into();
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({"limit": i64::try_from(pids).unwrap_or(i64::MAX)});
    }
    resources
}

fn mounts(config: &ContainerConfig, staged: &Staged, cgroups: &Cgroups) -> Vec<Value> {
    let default = |destination: &str, kind: &str, options: &[&str]| {
        (
            destination.to_owned(),
            json!({"destination": destination, "type": kind, "source": kind, "options": options}),
        )
    };
    let sys: &[&str] = if config.privileged {
        &["nosuid", "noexec", "nodev"]
    } else {
        &["nosuid", "noexec", "nodev", "ro"]
    };
    let host = |id| {
        config
            .namespaces
            .user
            .as_ref()
            .map_or(id, |(_, range)| range.host(id))
    };
    let (owner, terminals) = (host(0), host(TTY_GROUP));
    let mut all = vec![
        default("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        default(
            "/dev",
            "tmpfs",
            &[
                "nosuid",
                "strictatime",
                "mode=755",
                "size=65536k",
                &format!("uid={owner}"),
                &format!("gid={owner}"),
            ],
        ),
        default(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                &format!("gid={terminals}"),
            ],
        ),
        default("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        default("/sys", "sysfs", sys),
    ];
    all.push(match &config.namespaces.shm {
        Some(shm) => (
            "/dev/shm".to_owned(),
            json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "nosuid", "noexec", "nodev"]}),
        ),
        // Who shares the host's IPC namespace shares its memory.
        None if config.namespaces.ipc.is_none() => (
            "/dev/shm".to_owned(),
            json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "nosuid", "noexec", "nodev"]}),
        ),
        None => default("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", SHM_OPTION]),
    });
    all.extend(cgroup_mounts(config, cgroups));
    let named = |destination: &str| {
        config
            .mounts
            .iter()
            .any(|mount| mount.destination == Path::new(destination))
    };
    all.retain(|(destination, _)| !named(destination));
    all.extend(config.mounts.iter().enumerate().map(|(index, mount)| {
        let source = staged.source(index);
        let destination = mount.destination.to_string_lossy().into_owned();
        (destination, to_oci(mount, source.as_deref()))
    }));
    all.sort_by_key(|(destination, _)| Path::new(destination).components().count());
    all.into_iter().map(|(_, mount)| mount).collect()
}

/// The container's own cgroup, bound read-only. libcontainer's mount of type `cgroup` is not used: on v1 it ignores `ro`, and
/// root in a container could lift its own limits.
fn cgroup_mounts(config: &ContainerConfig, cgroups: &Cgroups) -> Vec<(String, Value)> {
    let mut options = vec!["rbind", "nosuid", "noexec", "nodev"];
    if !config.privileged {
        options.push("ro");
    }
    let mut mounts = Vec::new();
    if cgroups.version() != Version::V2 {
        let options = ["nosuid", "noexec", "nodev", "mode=755", "size=4k"];
        let tmpfs = json!({"destination": ROOT, "type": "tmpfs", "source": "tmpfs", "options": options});
        mounts.push((ROOT.to_owned(), tmpfs));
    }
    for (source, destination) in cgroups.view(&config.cgroup_path) {
        let mount = json!({"destination": destination, "type": "bind", "source": source, "options": options});
        mounts.push((destination.to_string_lossy().into_owned(), mount));
    }
    mounts
}

fn to_oci(mount: &Mount, staged: Option<&Path>) -> Value {
    let (kind, source, first) = match mount.kind {
        MountKind::Bind => ("bind", staged.unwrap_or(&mount.source), Some("rbind")),
        MountKind::Tmpfs => ("tmpfs", Path::new("tmpfs"), None),
    };
    let mut options: Vec<&str> = first
        .into_iter()
        .chain(mount.options.iter().map(String::as_str))
        // Done already: see `mounts`.
        .filter(|it| *it != IDS)
        .collect();
    if mount.read_only && !options.contains(&"ro") {
        options.push("ro");
    }
    json!({"destination": mount.destination, "type": kind, "source": source, "options": options})
}

/// The host's device nodes, for a privileged container.
fn host_devices(dir: &Path) -> Vec<Value> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else {
                continue;
            };
            let kind = metadata.file_type();
            // These are file systems of the container's own.
            if kind.is_dir() && !matches!(entry.file_name().to_str(), Some("pts" | "shm" | "mqueue" | "fd")) {
                pending.push(entry.path());
            } else if (kind.is_char_device() || kind.is_block_device()) && found.len() < MAX_DEVICES {
                found.push(json!({
                    "path": entry.path(), "type": if kind.is_char_device() { "c" } else { "b" },
                    "major": libc::major(metadata.rdev()), "minor": libc::minor(metadata.rdev()),
                    "fileMode": metadata.mode() & 0o7777, "uid": metadata.uid(), "gid": metadata.gid(),
                }));
            }
        }
    }
    found
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
