//! What a node has, what its Pods are promised, and what happens at the end of it: admission, devices, resizing.
//!
//! Always holds: limits are read from the kernel's files, not from what the API says of them.

use serde_json::{Value, json};

use crate::harness::pods::{IDLE, shell_with};
use crate::harness::{Cluster, Setup, kernel, pod, shell, wait};

const AGENT: &str = "[[devices]]\nname = \"skiff.io/fuse\"\npaths = [\"/dev/fuse\"]\n";

#[test]
fn what_a_node_has_is_shared_out() {
    let dir = tempfile::tempdir().unwrap();
    let spec = json!({
        "cdiVersion": "0.6.0", "kind": "example.com/lamp",
        "devices": [{ "name": "one", "containerEdits": {
            "env": ["LAMP=one"], "deviceNodes": [{ "path": "/dev/lamp", "hostPath": "/dev/fuse" }],
        } }],
        "containerEdits": { "env": ["VENDOR=example"] },
    });
    std::fs::write(dir.path().join("lamp.json"), spec.to_string()).unwrap();
    std::fs::write(dir.path().join("broken.json"), "{").unwrap();
    let agent = format!("cdi_dirs = [{:?}]\n{AGENT}", dir.path());
    let cluster = Cluster::start(&Setup {
        images: &["busybox"],
        agent: &agent,
        ..Setup::default()
    });
    devices_are_given(&cluster);
    what_does_not_fit_is_refused(&cluster);
    limits_change_without_a_restart(&cluster);
    cluster.is_empty();
}

fn asks(limits: &Value) -> Value {
    json!({ "resources": { "limits": limits } })
}

fn devices_are_given(cluster: &Cluster) {
    let node: Value =
        serde_json::from_str(&cluster.kubectl(&["get", "node", "rover", "-o", "json"]).ok()).unwrap();
    for name in ["skiff.io/fuse", "example.com/lamp"] {
        assert_eq!(node["status"]["allocatable"][name], "1", "{node}");
    }
    // One byte of /dev/fuse is refused by the device itself, which only one that is open can do.
    let script = "head -c 1 /dev/fuse 2>&1 | sed 's/.*: //'; ls /dev/lamp 2>/dev/null; echo $LAMP $VENDOR";
    for (name, limits, expected) in [
        ("fuse", json!({ "skiff.io/fuse": 1 }), "Input/output error\n\n"),
        (
            "lamp",
            json!({ "example.com/lamp": 1 }),
            "head: /dev/fuse: No such file or directory",
        ),
        ("none", json!({}), "No such file or directory\n\n"),
    ] {
        cluster.apply(&pod(
            name,
            &shell_with(script, &asks(&limits)),
            json!({ "restartPolicy": "Never" }),
        ));
        cluster.phase(name, "Succeeded");
        let said = cluster.logs(&[name]);
        match name {
            "lamp" => assert!(
                said.contains("/dev/lamp") && said.contains("one example"),
                "{said}"
            ),
            _ => assert_eq!(said, expected, "{name}"),
        }
        cluster.delete(name);
    }
}

fn what_does_not_fit_is_refused(cluster: &Cluster) {
    // The first holds the only device; the second has no place, wherever it is decided.
    cluster.run(&pod(
        "holds",
        &shell_with(IDLE, &asks(&json!({ "skiff.io/fuse": 1 }))),
        json!({}),
    ));
    cluster.apply(&pod(
        "second",
        &shell_with(IDLE, &asks(&json!({ "skiff.io/fuse": 1 }))),
        json!({}),
    ));
    wait("the second to be told that there is no room", 20, || {
        let text = cluster.kubectl(&["describe", "pod", "second"]).ok();
        if text.contains("Insufficient skiff.io/fuse") {
            Ok(())
        } else {
            Err(text)
        }
    });
    // Bound by hand, it is the node that says so.
    for (name, limits, reason) in [
        ("third", json!({ "skiff.io/fuse": 1 }), "OutOfskiff.io/fuse"),
        ("cpus", json!({ "cpu": "900" }), "OutOfcpu"),
        ("bytes", json!({ "memory": "900Ti" }), "OutOfmemory"),
        (
            "disk",
            json!({ "ephemeral-storage": "900Ti" }),
            "OutOfephemeral-storage",
        ),
    ] {
        let container = shell_with(IDLE, &asks(&limits));
        cluster.apply(&pod(name, &container, json!({ "nodeName": "rover" })));
        let failed = cluster.phase(name, "Failed");
        assert_eq!(failed["status"]["reason"], reason, "{failed}");
        cluster.delete(name);
    }
    for name in ["holds", "second"] {
        cluster.delete(name);
    }
}

fn limits_change_without_a_restart(cluster: &Cluster) {
    let container = shell_with(
        IDLE,
        &json!({ "resources": {
        "requests": { "cpu": "100m", "memory": "32Mi" }, "limits": { "cpu": "200m", "memory": "64Mi" },
    } }),
    );
    let before = cluster.run(&pod("grows", &container, json!({})));
    let uid = before["metadata"]["uid"].as_str().unwrap().to_owned();
    let init = cluster.node.init_of(&uid);
    let patch = json!({ "spec": { "containers": [{ "name": "main", "resources": {
        "requests": { "cpu": "150m", "memory": "48Mi" }, "limits": { "cpu": "300m", "memory": "96Mi" },
    } }] } });
    let said = cluster.kubectl(&[
        "patch",
        "pod",
        "grows",
        "--subresource",
        "resize",
        "-p",
        &patch.to_string(),
    ]);
    assert_eq!(said.code, 0, "{said}");
    wait("the kernel's limit", 20, || {
        let limit = kernel::limit(&cluster.node.cgroup, &uid, "memory.limit_in_bytes", "memory.max");
        if limit.contains(&(96 << 20)) {
            Ok(())
        } else {
            Err(format!("{limit:?}"))
        }
    });
    let after = cluster.until("grows", "to show what is in force", 20, |it| {
        it["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] == "96Mi"
    });
    assert_eq!(cluster.node.init_of(&uid), init, "{after}");
    assert_eq!(
        after["status"]["containerStatuses"][0]["restartCount"], 0,
        "{after}"
    );
    // More than the node has stays as it was, and says why.
    let patch = json!({ "spec": { "containers": [{ "name": "main", "resources": {
        "requests": { "cpu": "900" }, "limits": { "cpu": "900" },
    } }] } });
    cluster
        .kubectl(&[
            "patch",
            "pod",
            "grows",
            "--subresource",
            "resize",
            "-p",
            &patch.to_string(),
        ])
        .ok();
    cluster.until("grows", "to say that it cannot be", 20, |it| {
        it["status"]["conditions"].as_array().is_some_and(|all| {
            all.iter()
                .any(|it| it["type"] == "PodResizePending" && it["reason"] == "Infeasible")
        })
    });
    assert_eq!(cluster.node.init_of(&uid), init);
    cluster.delete("grows");
}

/// Processes that the crowd has, and half of them: as far as the node may be from its threshold on either side.
const CROWD: u64 = 800;

#[test]
fn a_node_that_is_short_of_processes_evicts_who_has_the_most() {
    let mut cluster = Cluster::busybox();
    cluster.run(&pod("calm", &shell(IDLE), Value::Null));
    let calm = cluster.node.inits();
    let script = format!("i=0; while [ $i -lt {CROWD} ]; do sleep 3600 & i=$((i+1)); done; echo all; wait");
    let crowd = cluster.run(&pod("crowd", &shell(&script), Value::Null));
    cluster.logs_say(&["crowd"], "all\n");
    cluster.node.stop();
    let config = std::fs::read_to_string(&cluster.node.config).unwrap();
    // Others on this machine come and go meanwhile, but not by hundreds.
    let threshold = pids_left() + CROWD / 2;
    let eviction = format!("{config}\n[eviction]\npid_available = \"{threshold}\"\nhold_seconds = 8\n");
    std::fs::write(&cluster.node.config, eviction).unwrap();
    cluster.node.start();
    let evicted = cluster.phase("crowd", "Failed");
    assert_eq!(evicted["status"]["reason"], "Evicted", "{evicted}");
    let message = evicted["status"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("The node was low on resource: pids. "),
        "{message}"
    );
    assert_eq!(evicted["metadata"]["uid"], crowd["metadata"]["uid"]);
    let condition = |status: &str| {
        let path = "jsonpath={.status.conditions[?(@.type==\"PIDPressure\")].status}";
        wait(&format!("PIDPressure to be {status}"), 40, || {
            let said = cluster.kubectl(&["get", "node", "rover", "-o", path]).ok();
            (said == status).then_some(()).ok_or(said)
        });
    };
    condition("True");
    // Meanwhile nothing new comes here, and afterwards it does.
    cluster.apply(&pod("late", &shell(IDLE), Value::Null));
    wait("the Pod to wait for the node", 20, || {
        let text = cluster.kubectl(&["describe", "pod", "late"]).ok();
        let waits = text.contains("untolerated taint {node.kubernetes.io/pid-pressure: }");
        waits.then_some(()).ok_or(text)
    });
    condition("False");
    cluster.running("late");
    assert!(
        cluster.node.inits().is_superset(&calm),
        "who had few processes goes on"
    );
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

/// Processes and threads that this machine can still have.
fn pids_left() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let number = |name: &str| -> u64 { read(&format!("/proc/sys/kernel/{name}")).trim().parse().unwrap() };
    let used = read("/proc/loadavg");
    let used: u64 = used
        .split(' ')
        .nth(3)
        .unwrap()
        .split_once('/')
        .unwrap()
        .1
        .parse()
        .unwrap();
    number("pid_max").min(number("threads-max")) - used
}
