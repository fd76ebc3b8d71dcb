//! How long a cold boot takes on the board, beside a bare start of the same processes.

use serde_json::json;

use crate::disk::Cut;
use crate::harness::pods::shell_with;
use crate::harness::{pod, wait};
use crate::machine::Boot;
use crate::node::{Board, PATIENCE, Wanted};

/// The Pods of SPECIFICATION's promise.
const PODS: usize = 20;

/// What it promises: milliseconds, and times a bare start.
const MOST_MS: u64 = 8000;
const MOST_TIMES: f64 = 30.0;

/// Boots of which the median is shown.
const BOOTS: usize = 5;

/// Says when it runs, in seconds since the machine's start, before anything else.
const SAYS: &str = "read up rest </proc/uptime; echo $up >>/board/started; exec sleep 3600";

/// From `command`, which starts [`PODS`] shells that say when they run in `/run/board/started`, to the last of them; ms.
#[track_caller]
fn took(board: &mut Board, command: &str) -> u64 {
    let before = board.ok(&format!(
        "mkdir -p /run/board; rm -f /run/board/started; read up rest </proc/uptime; {command}; echo $up"
    ));
    let said = wait("all to run", PATIENCE, || {
        let said = board.run("cat /run/board/started").out;
        if said.lines().count() == PODS {
            Ok(said)
        } else {
            Err(said)
        }
    });
    let centis = |text: &str| text.trim().replace('.', "").parse::<u64>().unwrap();
    let last = said.lines().map(centis).max().unwrap();
    (last - centis(before.lines().last().unwrap())) * 10
}

fn median(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    all[all.len() / 2]
}

#[test]
#[ignore = "a measurement: cargo xtask board --boots"]
fn a_cold_boot_beside_a_bare_start() {
    let mut board = Board::start(&Wanted {
        agent: "policy.allow = [\"host-path\"]",
        ..Wanted::default()
    });
    board.ok("mkdir -p /run/board");
    let container = shell_with(
        SAYS,
        &json!({ "volumeMounts": [{ "name": "b", "mountPath": "/board" }] }),
    );
    let spec = json!({
        "terminationGracePeriodSeconds": 1,
        "volumes": [{ "name": "b", "hostPath": { "path": "/run/board", "type": "DirectoryOrCreate" } }],
    });
    for number in 0..PODS {
        board
            .control
            .apply(&pod(&format!("p{number}"), &container, spec.clone()));
    }
    for number in 0..PODS {
        board.running(&format!("p{number}"));
    }
    let agent = "skiff-agent run --config /data/agent.toml >>/run/agent.log 2>&1 </dev/null & echo $! >/run/agent.pid";
    // As much as a container is apart from others, and nothing more: no image, no limits, no network, no filter.
    let bare = format!(
        "ln -sfn /run/board /board; i=0; while [ $i -lt {PODS} ]; do unshare -f -m -p -n -i -u sh -c '{SAYS}' & i=$((i+1)); done"
    );
    let (mut pods, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..BOOTS {
        board.cut(Cut::Clean);
        board.boot(&Boot::with("board.offline"));
        alone.push(took(&mut board, &bare));
        board.ok("kill $(pidof sleep)");
        pods.push(took(&mut board, agent));
    }
    let all = format!("{pods:?} ms beside {alone:?} ms");
    let (pods, alone) = (median(pods), median(alone));
    let ratio = pods as f64 / alone as f64;
    println!(
        "agent start -> {PODS} Pods of the journal run, no link: {pods} ms; the same processes started bare: {alone} ms; \
         ratio {ratio:.1} (medians of {all})"
    );
    assert!(
        pods <= MOST_MS && ratio <= MOST_TIMES,
        "SPECIFICATION promises more"
    );
}
