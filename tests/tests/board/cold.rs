//! Power on far from everything: no link, no name service, and a clock that says 1970.

use serde_json::{Value, json};

use crate::disk::Cut;
use crate::harness::pods::IDLE;
use crate::harness::{pod, shell, wait};
use crate::machine::Boot;
use crate::node::{Board, PATIENCE, Wanted};

/// A boot with the clock at the epoch.
fn in_1970(words: &str) -> Boot {
    Boot {
        words: words.to_owned(),
        qemu: ["-rtc", "base=1970-01-01T00:00:00"].map(str::to_owned).to_vec(),
    }
}

/// What the node says of a Pod's only container.
fn container<'a>(pods: &'a Value, name: &str) -> &'a Value {
    let pod = pods
        .as_array()
        .and_then(|all| all.iter().find(|it| it["name"] == name));
    pod.map_or(&Value::Null, |it| &it["containers"][0])
}

#[test]
fn pods_run_from_the_journal_in_1970() {
    let mut board = Board::start(&Wanted::default());
    let never = json!({ "restartPolicy": "Never" });
    let minute = json!({ "restartPolicy": "Never", "activeDeadlineSeconds": 3600 });
    board.control.apply(&pod("serves", &shell(IDLE), json!({})));
    board
        .control
        .apply(&pod("done", &shell("echo once; exit 0"), never.clone()));
    board
        .control
        .apply(&pod("crashes", &shell("sleep 2; exit 3"), json!({})));
    board.control.apply(&pod("late", &shell("exit 0"), minute));
    board.running("serves");
    board.control.phase("done", "Succeeded");
    board.control.phase("late", "Succeeded");
    let crashed = board
        .control
        .until("crashes", "to have crashed twice", PATIENCE, |it| {
            it["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(2)
        });
    let crashes = crashed["status"]["containerStatuses"][0]["restartCount"]
        .as_u64()
        .unwrap();
    board.cut(Cut::Torn(1));

    board.boot(&in_1970("board.offline"));
    assert_eq!(board.ok("date -u +%Y"), "1970");
    board.run_agent();
    wait("all to be as they were", PATIENCE, || {
        let pods = board.answer("pods");
        let count = container(&pods, "crashes")["restartCount"].as_u64();
        let as_before = container(&pods, "serves")["state"] == "Running"
            && container(&pods, "done")["state"] == "Completed"
            && container(&pods, "late")["state"] == "Completed"
            && count >= Some(crashes);
        if as_before { Ok(()) } else { Err(pods.to_string()) }
    });
    let pods = board.answer("pods");
    assert_eq!(
        container(&pods, "done")["restartCount"],
        0,
        "a Pod that was done is not run again: {pods}"
    );
    let served = container(&pods, "serves").clone();
    assert_eq!(served["restartCount"], 1, "{pods}");

    // With a link and no time: certificates are held against the last time that was known.
    board.ok("/up");
    connected(&mut board);
    assert_eq!(board.ok("date -u +%Y"), "1970");
    let shown = board.control.until("serves", "to be heard of", PATIENCE, |it| {
        it["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    assert_eq!(shown["status"]["phase"], "Running");

    // The right time comes, with a jump of half a century.
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    board.ok(&format!("date -u -s @{now}"));
    board.control.apply(&pod("after", &shell(IDLE), json!({})));
    board.running("after");
    board.ok("sleep 5");
    let pods = board.answer("pods");
    assert_eq!(*container(&pods, "serves"), served, "nothing restarts");
    for name in ["done", "late"] {
        assert_eq!(container(&pods, name)["state"], "Completed", "{pods}");
    }
    connected(&mut board);
    board.control.phase("done", "Succeeded");
}

/// Waits until the link stands.
#[track_caller]
fn connected(board: &mut Board) {
    wait("the link", PATIENCE, || {
        let status = board.answer("status");
        if status["link"]["connected"] == true {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}
