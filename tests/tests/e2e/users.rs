//! `spec.hostUsers: false`: the same Pod with ids of its own, for which nothing else changes.
//!
//! Always holds: what a Pod sees is compared with what it sees without a user namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::harness::pods::{IDLE, shell_with};
use crate::harness::{Cluster, Setup, pod};

/// A file of every kind of volume, with its owner and what it holds, and one that is made there.
const LOOK: &str = "id -u; id -G; cd /v; for f in config/k secret/k down/labels image/bin/busybox disk memory host/given claim; do \
                    stat -Lc '%u %g %a %n' $f; done; cat secret/k host/given; stat -c '%u %g %n' / /etc/hosts /dev/termination-log; \
                    for d in disk memory claim; do touch $d/new && stat -c '%u %g %n' $d/new; done; \
                    echo last > /dev/termination-log; echo told >/dev/stderr";

fn looks(name: &str, host_users: bool, uid: u32, host: &str) -> Value {
    let kinds = [
        "config", "secret", "down", "image", "disk", "memory", "host", "claim",
    ];
    let mounts: Vec<Value> = kinds
        .iter()
        .map(|it| json!({ "name": it, "mountPath": format!("/v/{it}") }))
        .collect();
    let container = shell_with(
        LOOK,
        &json!({ "volumeMounts": mounts, "securityContext": { "runAsUser": uid } }),
    );
    pod(
        name,
        &container,
        json!({
            "restartPolicy": "Never", "hostUsers": host_users, "securityContext": { "fsGroup": 2000 },
            "volumes": [
                { "name": "config", "configMap": { "name": "c" } },
                { "name": "secret", "secret": { "secretName": "s", "defaultMode": 0o440 } },
                { "name": "down", "downwardAPI": { "items": [
                    { "path": "labels", "fieldRef": { "fieldPath": "metadata.namespace" } } ] } },
                { "name": "image", "image": { "reference": "hello:1.1.1" } },
                { "name": "disk", "emptyDir": {} },
                { "name": "memory", "emptyDir": { "medium": "Memory" } },
                { "name": "host", "hostPath": { "path": host } },
                { "name": "claim", "persistentVolumeClaim": { "claimName": "data" } },
            ],
        }),
    )
}

#[test]
fn a_pod_with_users_of_its_own_finds_everything_as_one_without() {
    let cluster = Cluster::start(&Setup {
        images: &["busybox", "hello"],
        agent: "[policy]\nallow = [\"host-path\"]\n",
        ..Setup::default()
    });
    let host = cluster.dir().join("given");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("given"), "from the host\n").unwrap();
    std::os::unix::fs::chown(host.join("given"), Some(1000), Some(1000)).unwrap();
    let host = host.display().to_string();
    for object in [
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "k": "v" } }),
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "k": "hidden\n" } }),
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } },
        }),
    ] {
        cluster.apply(&object);
    }
    for uid in [0, 1000] {
        let see = |host_users: bool| {
            let name = format!("sees-{uid}-{host_users}");
            let warning = cluster.apply(&looks(&name, host_users, uid, &host));
            assert!(!warning.contains("Warning"), "{warning}");
            let ended = cluster.until(&name, "to end", 40, |it| it["status"]["phase"] == "Succeeded");
            let message = &ended["status"]["containerStatuses"][0]["state"]["terminated"]["message"];
            assert_eq!(message, "last\n", "{name}");
            let said = cluster.logs(&[&name]);
            cluster.delete(&name);
            said
        };
        let (with, without) = (see(false), see(true));
        assert_eq!(with, without, "as user {uid}");
        assert!(with.contains("\nhidden\nfrom the host\n"), "{with}");
    }
    processes_have_other_ids(&cluster);
    cluster.is_empty();
}

fn processes_have_other_ids(cluster: &Cluster) {
    let probe = json!({
        "readinessProbe": { "exec": { "command": ["sh", "-c", "test $(id -u) = 7 && test $(awk '{print $3}' /proc/self/uid_map) = 65536"] }, "periodSeconds": 1 },
        "securityContext": { "runAsUser": 7, "procMount": "Unmasked" },
    });
    let mut owners = Vec::new();
    for name in ["one", "two"] {
        let running = cluster.run(&pod(
            name,
            &shell_with(IDLE, &probe),
            json!({ "hostUsers": false }),
        ));
        let init = cluster.node.init_of(running["metadata"]["uid"].as_str().unwrap());
        owners.push(fs::metadata(format!("/proc/{}", init.pid)).unwrap().uid());
    }
    assert!(
        owners.iter().all(|it| *it >= 65_536 && it % 65_536 == 7),
        "{owners:?}"
    );
    assert_ne!(owners[0], owners[1], "no two Pods have the same");
    for name in ["one", "two"] {
        cluster.delete(name);
    }
}
