//! Tests of [`super`]: the document for a plain, a privileged and a limited container.

use super::*;
use crate::config::{
    Device, Hook, IdRange, Limits, Namespaces, Overlay, Propagation, Seccomp, User, default_capabilities,
};

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
    let devices = Allowed::of(config).unwrap();
    let staged = Staged::take(config, None).unwrap();
    let capabilities = cap::parse(&config.capabilities).unwrap();
    let document = document(config, capabilities, &devices, &staged, &cgroups);
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

#[test]
fn devices_hooks_and_what_is_not_masked_are_in_the_document() {
    let hook = |stage: &str| Hook {
        stage: stage.into(),
        path: "/bin/hook".into(),
        args: vec!["hook".into(), stage.into()],
        env: vec!["A=b".into()],
        timeout: Some(3),
    };
    let document = document_of(&ContainerConfig {
        unmasked_proc: true,
        devices: vec![Device {
            path: "/dev/mine".into(),
            host_path: "/dev/zero".into(),
            access: "rw".into(),
            mode: Some(0o640),
            owner: None,
        }],
        hooks: vec![hook("createRuntime"), hook("poststop"), hook("createRuntime")],
        ..config()
    });
    let node = json!({"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1000, "gid": 100});
    assert_eq!(document["linux"]["devices"], json!([node]));
    let rules = document["linux"]["resources"]["devices"].as_array().unwrap();
    let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rw"});
    assert_eq!(rules.last(), Some(&rule));
    let masked = document["linux"]["maskedPaths"].as_array().unwrap();
    assert_eq!(masked, &["/sys/devices/virtual/powercap", "/sys/firmware"]);
    assert_eq!(document["linux"]["readonlyPaths"], json!([]));
    assert_eq!(document["hooks"]["createRuntime"].as_array().unwrap().len(), 2);
    assert_eq!(
        document["hooks"]["poststop"][0]["args"],
        json!(["hook", "poststop"])
    );
}

#[test]
fn a_device_that_is_none_is_refused_by_name() {
    let check = |path: &str, host_path: &str, access: &str, expected: &str| {
        let devices = vec![Device {
            path: path.into(),
            host_path: host_path.into(),
            access: access.into(),
            mode: None,
            owner: None,
        }];
        let error = Allowed::of(&ContainerConfig { devices, ..config() }).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    check("/etc/zero", "/dev/zero", "r", "/etc/zero: not below /dev");
    check("/dev/x", "/etc/passwd", "r", "/etc/passwd: not a device");
    check("/dev/x", "/dev/no-such-device", "r", "/dev/no-such-device");
    check("/dev/x", "/dev/zero", "rx", "access \"rx\"");
}

#[test]
fn shared_mounts_and_namespaces_are_in_the_document() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount {
        source: dir.path().to_owned(),
        destination: "/shared".into(),
        propagation: Propagation::Bidirectional,
        ..Default::default()
    };
    let namespaces = Namespaces {
        pid: Some("/ns/pid".into()),
        ..Namespaces::default()
    };
    let document = document_of(&ContainerConfig {
        mounts: vec![mount],
        namespaces,
        ..config()
    });
    assert_eq!(document["linux"]["rootfsPropagation"], "shared");
    let list = document["linux"]["namespaces"].as_array().unwrap();
    assert!(
        list.contains(&json!({"type": "pid", "path": "/ns/pid"})),
        "{list:?}"
    );
    let order = destinations(&document);
    let at = |path: &str| order.iter().position(|found| *found == path).unwrap();
    assert_eq!(
        document["mounts"][at("/shared")]["source"],
        "/run/bundle/mounts/0"
    );
    assert_eq!(
        document["mounts"][at("/dev/shm")]["source"],
        "/dev/shm",
        "the host's, as its IPC namespace"
    );
}

/// The user namespace is entered last, by whoever is root until then; what is made for it belongs to its own ids.
#[test]
fn who_has_a_user_namespace_comes_as_root() {
    let range = IdRange {
        first: 100_000,
        count: 65_536,
    };
    let config = ContainerConfig {
        namespaces: Namespaces {
            user: Some(("/ns/user".into(), range)),
            ..Namespaces::default()
        },
        ..config()
    };
    assert_eq!(config.host_owner(), (101_000, 100_100));
    let document = document_of(&config);
    let user = &document["process"]["user"];
    assert_eq!(
        (&user["uid"], &user["gid"], &user["additionalGids"]),
        (&json!(0), &json!(0), &json!([]))
    );
    let list = document["linux"]["namespaces"].as_array().unwrap();
    assert!(list.iter().all(|it| it["type"] != "user"), "{list:?}");
    let order = destinations(&document);
    for (path, options) in [
        ("/dev", vec!["uid=100000", "gid=100000"]),
        ("/dev/pts", vec!["gid=100005"]),
    ] {
        let at = order.iter().position(|found| *found == path).unwrap();
        let found = document["mounts"][at]["options"].as_array().unwrap();
        for option in options {
            assert!(found.contains(&json!(option)), "{path}: {found:?}");
        }
    }
}
