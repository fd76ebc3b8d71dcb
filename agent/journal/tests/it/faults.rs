//! Writes and syncs that fail, once or for good, followed by power cuts.
//!
//! Always holds: the caller repeats what failed, as the documentation tells it to, and the same checker
//! judges.

use skiff_journal::{Error, Journal};

use crate::medium::{Cut, Fault, Medium, Rng};
use crate::model::{Model, run};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const STEPS: usize = 40;

fn check(faults: &[(u64, Fault)], seed: u64) -> bool {
    let medium = Medium::new(faults.iter().copied());
    let model = run(&medium, seed, STEPS);
    for cut in [
        Cut::DropAll,
        Cut::KeepAll,
        Cut::Random(seed),
        Cut::Random(seed + 1),
    ] {
        let medium = medium.fork();
        medium.cut(cut);
        let mut model = model.clone();
        let (mut journal, _) = model
            .check(&medium)
            .unwrap_or_else(|why| panic!("{faults:?}, {cut:?}: {why}"));
        model.work(&mut journal, &medium, &mut Rng(seed), 10);
        medium.cut(cut);
        model
            .check(&medium)
            .unwrap_or_else(|why| panic!("{faults:?}, {cut:?}, working on: {why}"));
    }
    // The process dies instead, and what it reads back from the cache may not be on the medium.
    let mut model = model;
    medium.kill(true);
    model
        .check(&medium)
        .unwrap_or_else(|why| panic!("{faults:?}, killed: {why}"));
    medium.cut(Cut::DropAll);
    model
        .check(&medium)
        .unwrap_or_else(|why| panic!("{faults:?}, killed, then cut: {why}"));
    medium.operations() >= faults.iter().map(|(operation, _)| *operation).max().unwrap_or(0)
}

#[test]
fn one_failure_anywhere() {
    for operation in 1.. {
        let hit = [Fault::Once(EIO), Fault::Once(ENOSPC)].map(|fault| check(&[(operation, fault)], 3));
        if hit == [false; 2] {
            assert!(operation > 60, "the workload is too small to mean anything");
            break;
        }
    }
}

#[test]
fn failing_for_good() {
    for operation in 1..100 {
        check(&[(operation, Fault::Always(EIO))], 4);
    }
}

/// A failure, and a power cut or a second failure soon after: while the journal is making good the first.
#[test]
fn trouble_while_recovering_from_trouble() {
    for operation in 1..70 {
        for later in 1..8 {
            for second in [Fault::PowerOff, Fault::Once(EIO)] {
                check(&[(operation, Fault::Once(EIO)), (operation + later, second)], 6);
            }
        }
    }
}

fn opened() -> (Medium, Journal<Medium>) {
    let medium = Medium::new([]);
    let (journal, _) = Model::default().check(&medium).expect("a fresh medium opens");
    (medium, journal)
}

/// After a failed sync nothing is committed to the segment, and a checkpoint is the way on.
#[test]
fn a_failed_sync_bars_commits_until_a_checkpoint() {
    let (medium, mut journal) = opened();
    medium.rearm([(2, Fault::Once(EIO))]);
    let sequence = journal.append(b"one").expect("room");
    assert!(matches!(journal.commit(), Err(Error::Io { .. })));
    assert!(matches!(journal.commit(), Err(Error::NeedsCheckpoint { .. })));
    assert!(journal.durable().through < sequence);
    let live: [&[u8]; 1] = [b"one"];
    assert!(journal.checkpoint(live).expect("the other segment works").through > sequence);
    journal.append(b"two").expect("room");
    let _durable = journal.commit().expect("the new segment works");
    let (_, recovery) = Journal::open(medium).expect("whole");
    assert_eq!(recovery.records, [b"one", b"two"]);
    assert_eq!(journal.stats().failures, 1);
}

/// A failed write leaves the batch buffered, and the next commit, with more in it, takes its place.
#[test]
fn a_failed_write_can_be_retried() {
    let (medium, mut journal) = opened();
    medium.rearm([(1, Fault::Once(ENOSPC))]);
    journal.append(b"one").expect("room");
    let error = journal.commit().expect_err("the write fails");
    assert_eq!(error.to_string(), "writing medium/journal.0");
    let second = journal.append(b"two").expect("room");
    assert_eq!(journal.commit().expect("the retry works").through, second);
    medium.cut(Cut::DropAll);
    assert_eq!(Journal::open(medium).expect("whole").1.records, [b"one", b"two"]);
}
