//! A disk that is full, read-only, or fails: the node says so, what runs goes on, and it recovers alone.

use serde_json::{Value, json};

use crate::disk::{Cut, Health};
use crate::harness::pods::IDLE;
use crate::harness::{pod, shell, wait};
use crate::machine::Boot;
use crate::node::{Board, PATIENCE, Wanted};

/// The first process of a Pod on the board.
#[track_caller]
fn first(board: &mut Board, pod: &Value) -> String {
    let cgroup = board.cgroup(pod["metadata"]["uid"].as_str().unwrap());
    board.ok(&format!("head -1 {cgroup}/cgroup.procs"))
}

#[test]
fn a_disk_that_takes_nothing_ends_nothing() {
    let mut board = Board::start(&Wanted {
        agent: "eviction.hold_seconds = 5",
        ..Wanted::default()
    });
    board.control.apply(&pod("steady", &shell(IDLE), json!({})));
    let steady = board.running("steady");
    let before = first(&mut board, &steady);

    // Full, by somebody else: the node says so, and no Pod goes, for that would give nothing back.
    board.ok("dd if=/dev/zero of=/data/filler bs=1M 2>/dev/null; sync; true");
    assert!(!board.condition("DiskPressure").is_empty());
    board.ok("sleep 15");
    assert_eq!(first(&mut board, &steady), before);
    board.ok("rm /data/filler; sync");
    board.no_condition("DiskPressure");
    board.control.apply(&pod("after-full", &shell(IDLE), json!({})));
    board.running("after-full");
    assert_eq!(first(&mut board, &steady), before);

    // Read-only, as a file system makes itself that has met an error.
    board.ok("echo u >/proc/sysrq-trigger; sleep 1");
    board.control.apply(&pod("waits", &shell(IDLE), json!({})));
    let message = board.condition("ReadonlyFilesystem");
    assert!(message.contains("mount it read-write"), "{message}");
    // The journal is written in place, into blocks that are there: it goes on as long as the device does.
    board
        .control
        .until("waits", "to say why it does not run", PATIENCE, |it| {
            it["status"]["containerStatuses"][0]
                .to_string()
                .contains("Read-only file system")
        });
    assert_eq!(first(&mut board, &steady), before);
    board.ok("mount -o remount,rw /data");
    board.no_condition("ReadonlyFilesystem");
    board.running("waits");
    assert_eq!(first(&mut board, &steady), before);

    // Failing: nothing that is written arrives.
    board.machine().disk().set(Health::Failing);
    board.control.apply(&pod("fails", &shell(IDLE), json!({})));
    let message = board.condition("JournalUnwritable");
    assert!(message.contains("error"), "{message}");
    assert_eq!(first(&mut board, &steady), before);
    board.machine().disk().set(Health::Good);
    board.cut(Cut::Clean);
    board.boot(&Boot::default());
    board.run_agent();
    board.no_condition("JournalUnwritable");
    board.running("fails");
    let last = board.control.until("steady", "to be heard of", PATIENCE, |it| {
        it["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    assert_eq!(last["status"]["phase"], "Running");
    wait("all to run", PATIENCE, || {
        let pods = board.answer("pods");
        let all = pods.as_array().unwrap();
        let run = all.len() == 4 && all.iter().all(|it| it["containers"][0]["state"] == "Running");
        if run { Ok(()) } else { Err(pods.to_string()) }
    });
}
