//! The manifests that people bring: applied, shown, read, followed, asked over HTTP and deleted with kubectl.
//!
//! Always holds: after the last deletion the machine has nothing left of any Pod.

use serde_json::Value;

use crate::harness::cluster::get;
use crate::harness::{Cluster, Setup, pods, programs, wait};

const IMAGES: [&str; 9] = [
    "nginx",
    "redis",
    "counter",
    "mysql",
    "myapp",
    "my-app-image",
    "log-collector",
    "echo",
    "busybox",
];

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/manifests");

#[track_caller]
fn apply(cluster: &Cluster, file: &str) -> String {
    let said = cluster.kubectl(&["apply", "-f", &format!("{MANIFESTS}/{file}")]);
    assert_eq!(said.code, 0, "{said}");
    said.err
}

#[track_caller]
fn check(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn manifests_of_the_field_run_with_kubectl() {
    let cluster = Cluster::start(&Setup {
        images: &IMAGES,
        ..Setup::default()
    });
    let watch = cluster.kubectl_beside("watch", &["get", "pods", "-w"]);
    for file in [
        "nginx.yaml",
        "counter-redis.yaml",
        "mysql-env.yaml",
        "full-pod.yaml",
        "sidecar-shared-volume.yaml",
        "echo-probes.yaml",
    ] {
        assert_eq!(apply(&cluster, file), "", "{file} needs no warning");
    }
    for pod in ["web", "counter", "mysql", "full", "sidecar", "echo"] {
        cluster.running(pod);
    }
    cluster.until("echo", "to be ready by its probes", 30, |it| {
        let status = &it["status"]["containerStatuses"][0];
        status["ready"] == true && status["restartCount"] == 0
    });
    they_are_shown(&cluster);
    they_do_their_work(&cluster);
    logs_are_read_in_part_and_followed(&cluster);
    watch.says("sidecar", 10);
    watch.says("Running", 10);
    leftovers_are_seen(&cluster);
    apply_again_changes_nothing(&cluster);
    they_are_deleted(&cluster);
    drop(watch);
}

/// The control of the check for leftovers: while Pods run, it finds every kind.
fn leftovers_are_seen(cluster: &Cluster) {
    let seen = cluster.node.leftovers().join("\n");
    check(
        &seen,
        &[
            "process ",
            "cgroup ",
            "mount ",
            "directory ",
            "interface sk",
            "shim",
        ],
    );
}

fn they_are_shown(cluster: &Cluster) {
    let get = |words: &str| {
        let all: Vec<&str> = ["get"].into_iter().chain(words.split(' ')).collect();
        cluster.kubectl(&all).ok()
    };
    let table = get("pods");
    check(&table, &["NAME", "READY", "STATUS", "RESTARTS", "AGE", "2/2"]);
    assert_eq!(table.lines().count(), 7, "{table}");
    let ip = get("pod web -o jsonpath={.status.podIP}");
    assert!(ip.starts_with("10."), "{ip}");
    check(
        &get("pods -o wide"),
        &["IP", "NODE", "NOMINATED NODE", "rover", &ip],
    );
    check(
        &get("pod web -o yaml"),
        &["phase: Running", "image: nginx:latest"],
    );
    let list: Value = serde_json::from_str(&get("pods -o json")).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 6);
    let chosen = get("pods -l app=web,tier!=back -o name");
    assert_eq!(chosen.trim(), "pod/web");
    let chosen = cluster.kubectl(&["get", "pods", "-l", "tier in (front, middle)", "-o", "name"]);
    assert_eq!(chosen.ok().trim(), "pod/web");
    check(
        &cluster.kubectl(&["describe", "pod", "web"]).ok(),
        &["Node:", "rover/", "Image ID:", "Events:", "Scheduled", "Started"],
    );
    check(&get("nodes"), &["rover", "Ready", env!("CARGO_PKG_VERSION")]);
    check(
        &cluster.kubectl(&["describe", "node", "rover"]).ok(),
        &[
            "MemoryPressure",
            "DiskPressure",
            "Allocatable",
            "Non-terminated Pods",
        ],
    );
}

fn they_do_their_work(cluster: &Cluster) {
    let web = cluster.running("web");
    let address = web["status"]["podIP"].as_str().unwrap();
    let answer = wait("an answer of nginx", 10, || get(address, 80, "/"));
    check(&answer, &["200 OK", "Welcome to nginx!"]);
    cluster.logs_say(&["web"], "GET / HTTP/1.0");

    cluster.logs_say(&["counter", "-c", "app"], "count 2");
    check(
        &cluster.logs_say(&["mysql"], "ready for connections"),
        &["MYSQL_ROOT_PASSWORD=123456"],
    );
    check(
        &cluster.logs_say(&["full"], "mode=edge"),
        &[
            "running as uid 1000 gid 3000",
            "ENV_VAR=from-the-manifest",
            "--- /config/app.properties",
        ],
    );
    // Its liveness probe asks a server that listens on port 80 as user 1000.
    let full = cluster.running("full");
    let address = full["status"]["podIP"].as_str().unwrap();
    let answer = wait("an answer of myapp", 10, || get(address, 80, "/healthz"));
    check(&answer, &["200 OK"]);
    cluster.logs_say(&["sidecar", "-c", "collector"], "collected: line 2");
}

fn logs_are_read_in_part_and_followed(cluster: &Cluster) {
    let numbers = pods::pod("numbers", &pods::shell(pods::NUMBERS), Value::Null);
    cluster.run(&numbers);
    let follower = cluster.kubectl_beside("follow", &["logs", "-f", "numbers"]);
    follower.says("n 3\n", 20);
    let early = pods::numbers(&cluster.logs(&["numbers"]));
    // What was written after the follower began reaches it too.
    follower.says(&format!("n {}\n", early.len() + 10), 20);
    let followed = follower.text();
    let whole = &followed[..=followed.rfind('\n').unwrap()];
    let followed = pods::numbers(whole);
    assert_eq!(followed, (1..=followed.len() as u64).collect::<Vec<_>>());
    drop(follower);

    let tail = pods::numbers(&cluster.logs(&["numbers", "--tail=2"]));
    assert_eq!(tail.len(), 2);
    assert!(tail[0] > 10 && tail[1] == tail[0] + 1, "{tail:?}");
    let since = pods::numbers(&cluster.logs(&["numbers", "--since=1s"]));
    let all = pods::numbers(&cluster.logs(&["numbers"]));
    assert!(
        !since.is_empty() && since.len() <= 8 && all.len() > since.len(),
        "since 1s: {since:?} of {all:?}"
    );
    assert_eq!(all[0], 1);
    let times = cluster.logs(&["numbers", "--timestamps", "--tail=1"]);
    check(&times, &["T", "Z n "]);
    assert_eq!(cluster.logs(&["numbers", "--limit-bytes=5"]), "n 1\nn");
    // kubectl takes the first of several containers, and says which there are.
    check(&cluster.kubectl(&["logs", "counter"]).err, &["app", "db"]);
    cluster
        .kubectl(&["logs", "numbers", "--previous"])
        .fails(1, &["previous terminated container", "main"]);
    cluster
        .kubectl(&["logs", "numbers", "-c", "other"])
        .fails(1, &["other"]);
}

fn apply_again_changes_nothing(cluster: &Cluster) {
    let before = cluster.node.inits();
    let said = cluster.kubectl(&["apply", "-f", &format!("{MANIFESTS}/nginx.yaml")]);
    assert_eq!(said.out.trim(), "pod/web unchanged", "{said}");
    assert_eq!(cluster.node.inits(), before);
}

fn they_are_deleted(cluster: &Cluster) {
    let deleted = cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=5"])
        .ok();
    assert_eq!(deleted.lines().count(), 7, "{deleted}");
    cluster.kubectl(&["delete", "configmap", "app-config"]).ok();
    cluster.is_empty();
}

#[test]
fn the_newest_kubectl_works_too() {
    let cluster = Cluster::busybox().with_kubectl(programs::kubectl_next());
    cluster
        .kubectl(&[
            "run",
            "tool",
            "--image=busybox",
            "--restart=Never",
            "--",
            "sh",
            "-c",
            pods::NUMBERS,
        ])
        .ok();
    cluster.running("tool");
    cluster.logs_say(&["tool"], "n 2\n");
    check(
        &cluster.kubectl(&["get", "pods", "-o", "wide"]).ok(),
        &["tool", "1/1", "rover"],
    );
    check(&cluster.kubectl(&["describe", "pod", "tool"]).ok(), &["Started"]);
    // With the token in place of the certificate.
    let token = cluster
        .data()
        .join("admin-token.kubeconfig")
        .display()
        .to_string();
    check(
        &cluster.kubectl(&["get", "pods", "--kubeconfig", &token]).ok(),
        &["tool"],
    );
    let numbers = pods::pod("numbers", &pods::shell(pods::NUMBERS), Value::Null);
    cluster.run(&numbers);
    cluster
        .kubectl(&["delete", "pod", "tool", "numbers", "--grace-period=2"])
        .ok();
    cluster.is_empty();
}
