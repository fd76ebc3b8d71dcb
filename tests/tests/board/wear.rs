//! What reaches the flash: nothing while nothing changes, and how much for each change, as the disk itself counts it.

use serde_json::{Value, json};

use crate::harness::pods::IDLE;
use crate::harness::{pod, shell, wait};
use crate::node::{Board, PATIENCE, Wanted};

/// Pods that are there and healthy.
const HEALTHY: usize = 5;

/// Pods of the long run, as SPECIFICATION has them.
const MANY: usize = 20;

/// Seconds without a write after which the file system has nothing left to write: ext4 commits every five, and with
/// [`SOON`] the kernel writes what a change has left dirty a second after it.
const QUIET: u64 = 9;

const SOON: &str =
    "echo 100 >/proc/sys/vm/dirty_expire_centisecs; echo 100 >/proc/sys/vm/dirty_writeback_centisecs";

/// Seconds for which nothing may be written.
const IDLE_SECONDS: u64 = 30;

/// Bytes that the disk may be given for a Pod whose image is there, the file system's own journal included.
const DEPLOY_BYTES: u64 = 512 << 10;

/// Bytes for a container that is restarted.
const RESTART_BYTES: u64 = 384 << 10;

/// Waits until the disk has been left alone; gives what was written by then.
#[track_caller]
fn settled(board: &mut Board) -> u64 {
    let mut last = board.machine().disk().written();
    let mut since = std::time::Instant::now();
    wait("the disk to be left alone", PATIENCE, || {
        let now = board.machine().disk().written();
        if now != last {
            (last, since) = (now, std::time::Instant::now());
        }
        if since.elapsed().as_secs() >= QUIET {
            Ok(last)
        } else {
            Err(format!("{now} bytes"))
        }
    })
}

/// What the agent says that its journal wrote.
#[track_caller]
fn journal(board: &mut Board) -> (u64, u64) {
    let status = board.answer("status");
    let figure = |name: &str| status["disk"]["journal"][name].as_u64().unwrap();
    (figure("bytes"), figure("syncs"))
}

/// What reaches the disk for a change, once it is left alone again; at most `bound` bytes may.
#[track_caller]
fn costs(board: &mut Board, what: &str, bound: u64, change: impl FnOnce(&mut Board)) {
    let (bytes, syncs) = journal(board);
    let before = board.machine().disk().written();
    change(board);
    let disk = settled(board) - before;
    let (after, times) = journal(board);
    let (journal, syncs) = (after - bytes, times - syncs);
    println!("{what}: {disk} bytes on the disk, {journal} of the journal in {syncs} syncs");
    assert!(disk <= bound, "{what}: {disk} bytes");
}

/// A board on which so many Pods have been healthy for so long without a byte for the disk.
#[track_caller]
fn idles(pods: usize, seconds: u64) -> Board {
    let mut board = Board::start(&Wanted {
        before: SOON,
        ..Wanted::default()
    });
    for number in 0..pods {
        board
            .control
            .apply(&pod(&format!("p{number}"), &shell(IDLE), json!({})));
    }
    for number in 0..pods {
        board.running(&format!("p{number}"));
    }
    let before = settled(&mut board);
    std::thread::sleep(std::time::Duration::from_secs(seconds));
    let idle = board.machine().disk().written() - before;
    println!("{pods} healthy Pods, {seconds} s: {idle} bytes");
    assert_eq!(idle, 0, "a node whose Pods are healthy writes nothing");
    for number in 0..pods {
        let it = board.running(&format!("p{number}"));
        assert_eq!(it["status"]["containerStatuses"][0]["restartCount"], 0, "{it}");
    }
    board
}

#[test]
#[ignore = "takes long: cargo xtask board --idle SECONDS"]
fn as_long_as_asked_for() {
    let seconds = std::env::var("SKIFF_BOARD_IDLE").expect("SKIFF_BOARD_IDLE says how long");
    idles(MANY, seconds.parse().unwrap());
}

#[test]
fn flash_is_written_for_changes_alone() {
    let mut board = idles(HEALTHY, IDLE_SECONDS);
    costs(&mut board, "one Pod more", DEPLOY_BYTES, |board| {
        board.control.apply(&pod("more", &shell(IDLE), json!({})));
        board.running("more");
    });
    let more = board.running("more");
    let cgroup = board.cgroup(more["metadata"]["uid"].as_str().unwrap());
    costs(&mut board, "one restart", RESTART_BYTES, |board| {
        board.ok(&format!("kill -9 $(head -n 1 {cgroup}/cgroup.procs)"));
        board
            .control
            .until("more", "to be restarted", PATIENCE, |it: &Value| {
                let status = &it["status"]["containerStatuses"][0];
                status["restartCount"] == 1 && !status["state"]["running"].is_null()
            });
    });
    println!("{}", board.ok("skiff-agent metrics | grep ^skiff_disk"));
}
