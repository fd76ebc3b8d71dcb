//! Tests of [`super`]: the document for a plain, a privileged and a limited container.

use super::*;
use crate::config::{Limits, Namespaces, Overlay, Seccomp, User, default_capabilities};

fn config() -> ContainerConfig {
    ContainerConfig {
        id: "c".into(),
        state_root: "/run/state".into(),
        bundle: "/run/bundle".into(),
        rootfs: Overlay {
            lower: vec!["/l".into()],
            upper: "/u".into(),
            work: "/w".into(),
            merged: "/m".into(),
        },
        args: vec!["sh".into()],
        env: vec![],
        cwd: "/".into(),
        user: User {
            uid: 1000,
            gid: 100,
            additional_gids: vec![7],
        },
        capabilities: default_capabilities(),
        no_new_privileges: true,
        read_only_root: true,
        privileged: false,
        mounts: vec![],
        namespaces: Namespaces {
            net: Some("/ns/net".into()),
            ..Namespaces::default()
        },
        cgroup_path: "skiff/pod/c".into(),
        resources: Limits::default(),
        seccomp: Seccomp::RuntimeDefault,
        rlimits: vec![],
        oom_score_adj: None,
        ..Default::default()
    }
}

fn document_of(config: &ContainerConfig) -> Value {
    let cgroups = Cgroups::detect(Path::new(ROOT)).unwrap();
    let document = document(config, cap::parse(&config.capabilities).unwrap(), &cgroups);
    // What we write must be what libcontainer's own types read.
    serde_json::from_value::<oci_spec::runtime::Spec>(document.clone()).unwrap();
    document
}

fn destinations(document: &Value) -> Vec<&str> {
    document["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect()
}

#[test]
fn a_plain_container_is_confined() {
    let document = document_of(&config());
    assert_eq!(document["root"], json!({"path": "/m", "readonly": true}));
    assert_eq!(
        document["process"]["user"],
        json!({"uid": 1000, "gid": 100, "additionalGids": [7], "umask": 18})
    );
    assert_eq!(document["process"]["noNewPrivileges"], true);
    assert_eq!(document["linux"]["cgroupsPath"], "/skiff/pod/c");
    assert_eq!(
        document["linux"]["resources"]["devices"][0],
        json!({"allow": false, "access": "rwm"})
    );
    assert_eq!(
        document["linux"]["maskedPaths"].as_array().unwrap().len(),
        MASKED.len()
    );
    let shown =
        document["mounts"].as_array().unwrap().iter().filter(|mount| {
            mount["type"] == "bind" && mount["destination"].as_str().unwrap().starts_with(ROOT)
        });
    let all_read_only = shown
        .inspect(|mount| assert!(mount["options"].as_array().unwrap().contains(&"ro".into())))
        .count();
    assert!(all_read_only > 0, "the container sees its own cgroup");
    let namespaces = json!([{"type": "mount"}, {"type": "pid"}, {"type": "network", "path": "/ns/net"}]);
    assert_eq!(document["linux"]["namespaces"], namespaces);
    assert_eq!(
        document["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        14
    );
}

#[test]
fn a_privileged_container_is_not() {
    let document = document_of(&ContainerConfig {
        privileged: true,
        ..config()
    });
    assert_eq!(
        document["linux"]["resources"]["devices"],
        json!([{"allow": true, "access": "rwm"}])
    );
    assert!(document["linux"].get("maskedPaths").is_none());
    let devices = document["linux"]["devices"].as_array().unwrap();
    assert!(devices.iter().any(|device| device["path"] == "/dev/null"));
}

#[test]
fn mounts_are_ordered_by_depth_and_replace_the_defaults() {
    let mount = |destination: &str, kind, read_only| Mount {
        source: "/host".into(),
        destination: destination.into(),
        kind,
        options: vec!["size=1k".into()],
        read_only,
        ..Default::default()
    };
    let mut config = config();
    config.mounts = vec![
        mount("/data/deep/er", MountKind::Bind, true),
        mount("/data", MountKind::Tmpfs, false),
        mount("/dev/shm", MountKind::Tmpfs, false),
    ];
    let document = document_of(&config);
    let order = destinations(&document);
    let at = |path: &str| order.iter().position(|found| *found == path).unwrap();
    assert!(
        at("/data") < at("/data/deep/er") && at("/dev") < at("/dev/shm"),
        "{order:?}"
    );
    assert_eq!(order.iter().filter(|path| **path == "/dev/shm").count(), 1);
    let deep = json!({"destination": "/data/deep/er", "type": "bind", "source": "/host", "options": ["rbind", "size=1k", "ro"]});
    assert_eq!(document["mounts"][at("/data/deep/er")], deep);
}

#[test]
fn limits_are_the_specifications() {
    let limits = Limits {
        memory_bytes: Some(9),
        cpu_quota_us: Some(5),
        cpu_period_us: None,
        cpu_shares: Some(2),
        pids: Some(3),
        ..Default::default()
    };
    let document = document_of(&ContainerConfig {
        resources: limits,
        ..config()
    });
    let resources = &document["linux"]["resources"];
    assert_eq!(resources["memory"], json!({"limit": 9}));
    assert_eq!(
        resources["cpu"],
        json!({"shares": 2, "quota": 5, "period": 100_000})
    );
    assert_eq!(resources["pids"], json!({"limit": 3}));
}
