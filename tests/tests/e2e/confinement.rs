//! What a container may not do unless its spec asks for it, seen from within and from the kernel's files.
//!
//! Always holds: each refusal stands beside the same act where it is allowed, so that a refusal for another reason
//! shows.

use serde_json::{Value, json};

use crate::harness::pods::IDLE;
use crate::harness::{Cluster, pod, shell};

/// The fourteen capabilities that container runtimes leave by default.
const DEFAULT_CAPABILITIES: &str = "00000000a80425fb";

/// Runs scripts, each in a Pod of its own, and compares what they print.
fn check_all(cluster: &Cluster, cases: &[(&str, Value, Value, &str, &str)]) {
    for (name, container, more, script, _) in cases {
        let mut all = shell(script);
        merge(&mut all, container);
        let mut spec = json!({ "restartPolicy": "Never" });
        merge(&mut spec, more);
        cluster.apply(&pod(name, &all, spec));
    }
    for (name, _, _, _, expected) in cases {
        cluster.until(name, "to end", 40, |it| {
            it["status"]["phase"] == "Succeeded" || it["status"]["phase"] == "Failed"
        });
        assert_eq!(cluster.logs(&[name]), *expected, "{name}");
    }
}

fn merge(into: &mut Value, from: &Value) {
    if let Value::Object(from) = from {
        into.as_object_mut().unwrap().extend(from.clone());
    }
}

fn security(value: &Value) -> Value {
    json!({ "securityContext": value })
}

#[test]
fn containers_are_confined_by_default() {
    let cluster = Cluster::busybox();
    the_kernel_has_it_so(&cluster);
    let none = || json!({});
    let caps = "grep ^CapEff /proc/self/status";
    let mknod = "mknod /tmp/d b 8 0 && head -c 1 /tmp/d 2>&1 | sed 's/.*: //'";
    let forks = "n=0; while [ $n -lt 1100 ]; do sleep 30 & n=$((n+1)); done 2>/dev/null; echo unlimited";
    check_all(
        &cluster,
        &[
            (
                "masked",
                none(),
                none(),
                "wc -c < /proc/keys; ls /sys/firmware | wc -l",
                "0\n0\n",
            ),
            (
                "proc-sys",
                none(),
                none(),
                "echo 1 > /proc/sys/kernel/panic",
                "sh: can't create /proc/sys/kernel/panic: Read-only file system\n",
            ),
            (
                "no-mount",
                none(),
                none(),
                "mount -t tmpfs none /tmp",
                "mount: permission denied (are you root?)\n",
            ),
            (
                "no-userns",
                none(),
                none(),
                "unshare -U true",
                "unshare: unshare(0x10000000): Operation not permitted\n",
            ),
            // It may make the node of a disk, as Docker's containers may, but not open it.
            ("no-disk", none(), none(), mknod, "Operation not permitted\n"),
            (
                "dev-null",
                none(),
                none(),
                "echo x > /dev/null && echo written",
                "written\n",
            ),
            (
                "as-user",
                none(),
                json!({ "securityContext": { "runAsUser": 1000, "runAsGroup": 3000 } }),
                "id -u; id -g; id -G; grep ^CapEff /proc/self/status",
                "1000\n3000\n3000\nCapEff:\t0000000000000000\n",
            ),
            (
                "read-only",
                security(&json!({ "readOnlyRootFilesystem": true })),
                none(),
                "echo > /file",
                "sh: can't create /file: Read-only file system\n",
            ),
            (
                "writable",
                none(),
                none(),
                "echo > /file && echo written",
                "written\n",
            ),
            (
                "dropped",
                security(&json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] } })),
                none(),
                caps,
                "CapEff:\t0000000000000400\n",
            ),
            (
                "escalation",
                security(&json!({ "allowPrivilegeEscalation": true })),
                none(),
                "grep ^NoNewPrivs /proc/self/status",
                "NoNewPrivs:\t0\n",
            ),
            ("forks", none(), none(), forks, ""),
        ],
    );
    non_root_is_demanded(&cluster);
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

/// Seen from outside, where a container cannot lie.
fn the_kernel_has_it_so(cluster: &Cluster) {
    let running = cluster.run(&pod("plain", &shell(IDLE), Value::Null));
    let uid = running["metadata"]["uid"].as_str().unwrap();
    let init = cluster.node.init_of(uid);
    for (field, expected) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Seccomp_filters", "1"),
        ("CapEff", DEFAULT_CAPABILITIES),
        ("CapPrm", DEFAULT_CAPABILITIES),
        ("CapBnd", DEFAULT_CAPABILITIES),
        ("CapAmb", "0000000000000000"),
        ("Groups", ""),
    ] {
        assert_eq!(init.status(field), expected, "{field}");
    }
    let own = std::process::id();
    for space in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{space}")).unwrap();
        assert_ne!(of(&init.pid.to_string()), of(&own.to_string()), "{space}");
    }
    let pids: Vec<u64> = crate::harness::kernel::cgroups(&cluster.node.cgroup)
        .iter()
        .filter_map(|dir| {
            std::fs::read_to_string(dir.join("pids.max"))
                .ok()?
                .trim()
                .parse()
                .ok()
        })
        .collect();
    assert!(pids.contains(&1024), "no limit of processes: {pids:?}");
}

fn non_root_is_demanded(cluster: &Cluster) {
    let container = {
        let mut container = shell(IDLE);
        merge(&mut container, &security(&json!({ "runAsNonRoot": true })));
        container
    };
    cluster.apply(&pod("non-root", &container, Value::Null));
    let waiting = cluster.until("non-root", "to be refused", 30, |it| {
        it["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let message = &waiting["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert!(message.as_str().unwrap().contains("non-root"), "{waiting}");
    assert!(cluster.node.inits().len() == 1, "only the plain one runs");
}
