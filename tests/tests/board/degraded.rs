//! Kernels that lack something: the node says what and how to mend it, and what can still run runs.

use serde_json::{Value, json};

use crate::disk::Cut;
use crate::harness::pods::IDLE;
use crate::harness::{pod, shell, wait};
use crate::machine::Boot;
use crate::node::{Board, NAME, PATIENCE, Wanted};

impl Board {
    /// The message of a condition of the node that is True.
    #[track_caller]
    pub(crate) fn condition(&self, kind: &str) -> String {
        wait(&format!("the condition {kind}"), PATIENCE, || {
            let said = self.control.kubectl(&["get", "node", NAME, "-o", "json"]).ok();
            let node: Value = serde_json::from_str(&said).unwrap();
            let all = node["status"]["conditions"].as_array().unwrap();
            let found = all.iter().find(|it| it["type"] == kind && it["status"] == "True");
            let message = found.and_then(|it| it["message"].as_str());
            message
                .map(str::to_owned)
                .ok_or_else(|| node["status"]["conditions"].to_string())
        })
    }

    /// Waits until a condition does not stand any more.
    #[track_caller]
    pub(crate) fn no_condition(&self, kind: &str) {
        wait(&format!("the condition {kind} to go"), PATIENCE, || {
            let path = format!("jsonpath={{.status.conditions[?(@.type==\"{kind}\")].status}}");
            let said = self.control.kubectl(&["get", "node", NAME, "-o", &path]).ok();
            if said == "True" { Err(said) } else { Ok(()) }
        });
    }
}

/// A Pod with limits, a port of the node and a probe: what a kernel may lack something for.
fn asks_much() -> Value {
    let script = "mkdir /www; echo hello >/www/index.html; httpd -p 80 -h /www; while :; do sleep 1; done";
    let mut container = shell(script);
    container["resources"] = json!({ "limits": { "memory": "32Mi", "cpu": "500m" } });
    container["ports"] = json!([{ "containerPort": 80, "hostPort": 8080 }]);
    container["readinessProbe"] =
        json!({ "httpGet": { "path": "/index.html", "port": 80 }, "periodSeconds": 1 });
    pod("web", &container, json!({}))
}

#[test]
fn a_node_on_a_poor_kernel_says_so_and_runs_what_it_can() {
    let mut board = Board::start(&Wanted::default());
    board.control.apply(&asks_much());
    ready(&mut board);
    board.cut(Cut::Clean);

    // As a Raspberry Pi comes: no memory controller, no pressure stall information. And without the packet filter.
    board.boot(&Boot::with("cgroup_disable=memory psi=0 board.without=nf_tables"));
    board.run_agent();
    for (kind, fix) in [
        ("MemoryLimitsUnavailable", "cgroup_enable=memory"),
        ("PressureStallUnavailable", "psi=1"),
        ("HostPortsDegraded", "NF_TABLES"),
    ] {
        let message = board.condition(kind);
        assert!(message.contains(fix), "{kind}: {message}");
    }
    ready(&mut board);
    // The port of the node leads to the Pod all the same.
    wait("the port of the node to answer", PATIENCE, || {
        let said = board.run("wget -q -T 5 -O - http://10.0.2.15:8080/index.html");
        if said.out == "hello\n" {
            Ok(())
        } else {
            Err(said.to_string())
        }
    });
    let doctor = board.run("skiff-agent doctor --config /data/agent.toml");
    assert!(
        doctor.out.contains("cgroup_enable=memory") && doctor.out.contains("psi=1"),
        "{doctor}"
    );
    board.cut(Cut::Clean);

    // Version 1 of control groups.
    board.boot(&Boot::with("cgroup_v1"));
    board.run_agent();
    assert!(board.condition("CgroupV1").contains("cgroup_no_v1=all"));
    board.no_condition("PressureStallUnavailable");
    ready(&mut board);
    // This kernel has the memory controller for version 2 alone; the processor's it has for both.
    let limit = "find /sys/fs/cgroup/cpu/skiff -name cpu.cfs_quota_us | xargs cat";
    assert!(board.ok(limit).lines().any(|it| it == "50000"));

    // And as it should be again, nothing of it is left.
    board.cut(Cut::Clean);
    board.boot(&Boot::default());
    board.run_agent();
    board.is_ready();
    for kind in [
        "CgroupV1",
        "MemoryLimitsUnavailable",
        "PressureStallUnavailable",
        "HostPortsDegraded",
    ] {
        board.no_condition(kind);
    }
    ready(&mut board);
    board.control.apply(&pod("late", &shell(IDLE), json!({})));
    board.running("late");
}

/// Waits until the Pod is ready in this boot, as its node has it, and until the server has that too.
#[track_caller]
fn ready(board: &mut Board) {
    wait("the Pod to be ready on its node", PATIENCE, || {
        let pods = board.answer("pods");
        let web = pods
            .as_array()
            .and_then(|all| all.iter().find(|it| it["name"] == "web"));
        if web.is_some_and(|it| it["ready"] == true) {
            Ok(())
        } else {
            Err(pods.to_string())
        }
    });
    board.control.until("web", "to be ready", PATIENCE, |it| {
        let conditions = it["status"]["conditions"].as_array();
        conditions.is_some_and(|all| {
            all.iter()
                .any(|it| it["type"] == "Ready" && it["status"] == "True")
        })
    });
}
