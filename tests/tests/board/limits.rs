//! cgroup v2 for real: what a Pod asks for is what the kernel holds it to.

use serde_json::{Value, json};

use crate::harness::pods::IDLE;
use crate::harness::{pod, shell};
use crate::node::{Board, PATIENCE, Wanted};

fn limited(script: &str, resources: Value) -> Value {
    let mut container = shell(script);
    container["resources"] = resources;
    container
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[test]
fn budgets_hold_on_cgroup_v2() {
    let mut board = Board::start(&Wanted {
        agent: "memory_qos = true\npids_per_container = 24",
        ..Wanted::default()
    });
    assert_eq!(board.ok("stat -f -c %T /sys/fs/cgroup"), "UNKNOWN");

    let resources =
        json!({"requests": {"cpu": "100m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "32Mi"}});
    board
        .control
        .apply(&pod("idle", &limited(IDLE, resources), json!({})));
    let idle = board.running("idle");
    let cgroup = board.cgroup(&uid(&idle));
    println!("{cgroup}");
    println!("{}", board.ok(&format!("cd {cgroup}; grep . cpu.* memory.* pids.* io.* cgroup.*; cd ..; pwd; grep . cpu.max memory.max pids.max; cd ..; pwd;  grep . cpu.max memory.max pids.max; cat cgroup.subtree_control; cd /")));
    println!(
        "{}",
        board.ok("skiff-agent status; skiff-agent pods; cat /run/agent.log")
    );
    let _ = PATIENCE;
}
