//! An agent that answers nobody any more, and a machine without one.
//!
//! Always holds: the agent is stopped from without, by its cgroup's freezer, so that it cannot tell.

use serde_json::json;

use crate::disk::Cut;
use crate::harness::pods::IDLE;
use crate::harness::{pod, shell};
use crate::machine::Boot;
use crate::node::{Board, PATIENCE, Wanted};

#[test]
fn a_wedged_agent_is_ended_and_a_machine_without_one_is_reset() {
    let mut board = Board::start(&Wanted {
        agent: "watchdog_seconds = 12\nwatchdog_device = \"/dev/watchdog\"",
        ..Wanted::default()
    });
    board.control.apply(&pod("idle", &shell(IDLE), json!({})));
    let idle = board.running("idle");
    let cgroup = board.cgroup(idle["metadata"]["uid"].as_str().unwrap());
    let first = board.ok(&format!("head -1 {cgroup}/cgroup.procs"));

    let own = board.ok("sed 's|^0::|/sys/fs/cgroup|' /proc/$(cat /run/agent.pid)/cgroup");
    board.ok(&format!("echo 1 >{own}/cgroup.freeze"));
    board.agent_ends();
    board.ok(&format!("echo 0 >{own}/cgroup.freeze"));
    board.run_agent();
    board.answer("status");
    let pods = board.answer("pods");
    assert_eq!(pods[0]["containers"][0]["state"], "Running", "{pods}");
    assert_eq!(pods[0]["containers"][0]["restartCount"], 0, "{pods}");
    assert_eq!(board.ok(&format!("head -1 {cgroup}/cgroup.procs")), first);

    // Asked to end, it leaves the device in peace; killed, it does not.
    board.ok("kill $(cat /run/agent.pid)");
    board.agent_ends();
    board.ok("sleep 28");
    board.run_agent();
    board.answer("status");
    board.kill_agent();
    board.resets(PATIENCE);

    // And what ran runs again.
    board.boot(&Boot::default());
    board.run_agent();
    board.is_ready();
    board.control.until("idle", "to run again", PATIENCE, |it| {
        let status = &it["status"]["containerStatuses"][0];
        !status["state"]["running"].is_null() && status["restartCount"] == 1
    });
    board.cut(Cut::Clean);
}
