//! The everyday verbs of `skiff`, for machines without kubectl, and what the agent says of itself.
//!
//! Always holds: whatever one program makes, the other can go on with.

use serde_json::Value;

use crate::harness::pods::NUMBERS;
use crate::harness::process::Process;
use crate::harness::{Cluster, pod, programs, shell};

#[track_caller]
fn check(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn skiff_does_what_kubectl_does() {
    let cluster = Cluster::busybox();
    check(&cluster.skiff(&["node", "ls"]).ok(), &["rover", "Ready"]);
    check(&cluster.skiff(&["image", "ls"]).ok(), &["busybox:latest", "MiB"]);

    let object = pod("numbers", &shell(NUMBERS), Value::Null).to_string();
    check(
        &cluster
            .skiff_with(&["apply", "-f", "-", "--dry-run"], &object)
            .ok(),
        &["pod/numbers"],
    );
    assert_eq!(cluster.skiff(&["get", "pods", "-o", "name"]).ok(), "");
    check(
        &cluster.skiff_with(&["apply", "-f", "-"], &object).ok(),
        &["pod/numbers created"],
    );
    cluster.running("numbers");
    check(
        &cluster.skiff(&["get", "pods", "-o", "wide"]).ok(),
        &["NAME", "numbers", "1/1", "Running", "rover"],
    );
    check(
        &cluster.skiff(&["get", "pod/numbers", "-o", "yaml"]).ok(),
        &["phase: Running"],
    );
    let json: Value =
        serde_json::from_str(&cluster.skiff(&["get", "pod", "numbers", "-o", "json"]).ok()).unwrap();
    assert_eq!(json["status"]["phase"], "Running");
    logs_are_followed(&cluster);
    // Each takes over from the other.
    check(
        &cluster.kubectl_with(&["apply", "-f", "-"], &object).ok(),
        &["pod/numbers"],
    );
    check(
        &cluster.skiff_with(&["apply", "-f", "-"], &object).ok(),
        &["pod/numbers unchanged"],
    );
    the_agent_shows_its_pods(&cluster);
    cluster
        .skiff(&["get", "pod", "nobody"])
        .fails(1, &["nobody", "not found"]);
    cluster.skiff(&["delete", "pod", "nobody"]).fails(1, &["nobody"]);
    check(
        &cluster
            .skiff(&["delete", "pod", "numbers", "--grace-period", "2"])
            .ok(),
        &["numbers"],
    );
    cluster.is_empty();
    check(
        &cluster.skiff(&["node", "remove", "rover"]).ok(),
        &["node/rover removed"],
    );
    assert!(!cluster.skiff(&["node", "ls"]).ok().contains("rover"));
    cluster
        .skiff(&["node", "remove", "rover"])
        .fails(1, &["no node is named \"rover\""]);
}

fn logs_are_followed(cluster: &Cluster) {
    cluster.logs_say(&["numbers"], "n 3\n");
    let mut command = std::process::Command::new(programs::skiff());
    command
        .args(["logs", "-f", "numbers"])
        .env("KUBECONFIG", cluster.kubeconfig());
    let follower = Process::start(command, &cluster.dir().join("skiff-logs"));
    follower.says("n 3\n", 10);
    follower.says("n 12\n", 20);
    check(&follower.text(), &["n 1\nn 2\nn 3\n"]);
    drop(follower);
    assert_eq!(
        cluster
            .skiff(&["logs", "numbers", "--tail", "1"])
            .ok()
            .lines()
            .count(),
        1
    );
}

fn the_agent_shows_its_pods(cluster: &Cluster) {
    check(
        &cluster.node.agent(&["status"]).ok(),
        &["rover", "connected", "generation", "1 Pods"],
    );
    check(
        &cluster.node.agent(&["pods"]).ok(),
        &["default", "numbers", "main", "Running"],
    );
    // Nothing ends Pods under an agent that would start them again.
    cluster.node.agent(&["stop"]).fails(1, &["an agent runs here"]);
    cluster.running("numbers");
}
