//! The journal on a real file system, with real processes that are really killed.
//!
//! Always holds: every directory is a temporary one, and every child is waited for.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use skiff_journal::{AppendError, Damage, Error, FileStorage, Journal, Outcome, Recovery, SegmentSize};

const CHILD: &str = "SKIFF_JOURNAL_TEST_DIRECTORY";

/// Between its fork and its exec a child holds the locks of every test in this process, so one of these
/// runs at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size() -> SegmentSize {
    SegmentSize::new(64 * 1024).expect("within bounds")
}

fn open(dir: &Path) -> Result<(Journal<FileStorage>, Recovery), Error> {
    Journal::open(FileStorage::open(dir, size())?)
}

fn commit(journal: &mut Journal<FileStorage>, record: &[u8]) {
    journal.append(record).expect("room");
    let _durable = journal.commit().expect("works");
}

#[test]
fn records_outlive_the_journal() {
    let _alone = alone();
    let root = tempfile::tempdir().expect("a temporary directory");
    let dir = root.path().join("a/journal");
    let (mut journal, recovery) = open(&dir).expect("made");
    assert_eq!(
        recovery,
        Recovery {
            outcome: Outcome::Empty,
            records: Vec::new()
        }
    );
    commit(&mut journal, b"one");
    journal.append(b"never committed").expect("room");

    let error = open(&dir).err().expect("locked");
    assert!(
        matches!(&error, Error::Locked { path } if *path == dir),
        "{error}"
    );
    drop(journal);

    let (mut journal, recovery) = open(&dir).expect("unlocked");
    assert_eq!(
        recovery,
        Recovery {
            outcome: Outcome::Clean,
            records: vec![b"one".to_vec()]
        }
    );
    let live: [&[u8]; 2] = [b"live", b""];
    let _durable = journal.checkpoint(live).expect("works");
    commit(&mut journal, b"two");
    drop(journal);

    // A size asked for later does not change a journal that exists.
    let storage = FileStorage::open(&dir, SegmentSize::DEFAULT).expect("unlocked");
    let (journal, recovery) = Journal::open(storage).expect("whole");
    assert_eq!(recovery.records, [b"live".as_slice(), b"", b"two"]);
    assert_eq!(journal.stats().capacity, size().capacity());
    for name in ["journal.0", "journal.1"] {
        let meta = fs::metadata(dir.join(name)).expect("exists");
        assert_eq!(
            (meta.len(), meta.permissions().mode() & 0o777),
            (64 * 1024, 0o600),
            "{name}"
        );
    }
    assert_eq!(fs::read_dir(&dir).expect("a directory").count(), 2);
}

#[test]
fn interrupted_making_and_lost_files() {
    let _alone = alone();
    #[derive(Debug)]
    enum Want {
        Outcome(Outcome),
        Missing(&'static str),
    }
    type Rename = (&'static str, &'static str);
    let table: [(&[Rename], &[&str], Want); 5] = [
        (
            &[("journal.0", "journal.0.new"), ("journal.1", "journal.1.new")],
            &[],
            Want::Outcome(Outcome::Empty),
        ),
        (
            &[("journal.0", "journal.0.new")],
            &[],
            Want::Outcome(Outcome::Clean),
        ),
        (&[("journal.1", "journal.1.new")], &[], Want::Missing("journal.1")),
        (&[], &["journal.0"], Want::Missing("journal.0")),
        (&[], &["journal.1"], Want::Missing("journal.1")),
    ];
    for (renames, removals, want) in table {
        let dir = tempfile::tempdir().expect("a temporary directory");
        drop(open(dir.path()).expect("made"));
        renames
            .iter()
            .for_each(|(from, to)| fs::rename(dir.path().join(from), dir.path().join(to)).expect("renamed"));
        removals
            .iter()
            .for_each(|name| fs::remove_file(dir.path().join(name)).expect("removed"));
        match (open(dir.path()), &want) {
            (Ok((_, recovery)), Want::Outcome(outcome)) => assert_eq!(recovery.outcome, *outcome),
            (
                Err(Error::Corrupt {
                    path,
                    what: Damage::Missing,
                    ..
                }),
                Want::Missing(name),
            ) => {
                assert_eq!(path, dir.path().join(name));
            }
            (Ok((_, recovery)), want) => panic!("{:?}, not {want:?}", recovery.outcome),
            (Err(error), want) => panic!("{error}, not {want:?}"),
        }
    }
}

#[test]
fn bounds_are_named_and_change_nothing() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut journal, _) = open(dir.path()).expect("made");
    let max = journal.max_record();
    assert_eq!(
        journal.append(&vec![0; max + 1]),
        Err(AppendError::TooLarge { len: max + 1, max })
    );
    journal
        .append(&vec![1; max])
        .expect("the largest record is taken");
    assert_eq!(
        journal.append(b""),
        Err(AppendError::BatchFull {
            buffered: max + 4,
            max: max + 4
        })
    );
    let _durable = journal.commit().expect("works");
    let full = loop {
        match journal.append(&[2; 1000]) {
            Ok(_) => {}
            Err(AppendError::BatchFull { .. }) => drop(journal.commit().expect("works")),
            Err(error) => break error,
        }
    };
    let stats = journal.stats();
    let free = stats.capacity - stats.used - stats.buffered;
    assert!(
        matches!(full, AppendError::SegmentFull { needed: 1004 | 1020, free: f, .. } if f == free),
        "{full}"
    );
    let _durable = journal.commit().expect("works");

    let stats = journal.stats();
    let record = vec![3; max];
    let error = journal.checkpoint([record.as_slice(); 4]).expect_err("too many");
    assert!(
        matches!(error, Error::CheckpointTooLarge { max, .. } if max == stats.max_checkpoint),
        "{error}"
    );
    let larger = vec![3; max + 1];
    let error = journal.checkpoint([larger.as_slice()]).expect_err("too large");
    assert!(
        matches!(error, Error::RecordTooLarge { len, .. } if len == max + 1),
        "{error}"
    );
    assert_eq!(
        (journal.stats().used, journal.stats().checkpoints),
        (stats.used, 0)
    );

    // The largest checkpoint leaves room for the largest record.
    let live = [record.as_slice(); 3];
    let _durable = journal.checkpoint(live).expect("it fits exactly");
    assert_eq!(journal.stats().used, stats.max_checkpoint);
    commit(&mut journal, &record);
    drop(journal);
    let (_, recovery) = open(dir.path()).expect("whole");
    assert_eq!(recovery.records, [record.as_slice(); 4]);
}

/// The promise: a commit of one record is one write and one sync, of 36 bytes more than the record; and
/// idling costs nothing.
#[test]
fn what_a_commit_costs() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage = FileStorage::open(dir.path(), SegmentSize::DEFAULT).expect("unlocked");
    let (mut journal, _) = Journal::open(storage).expect("made");
    let io = || {
        fs::read_to_string("/proc/self/io")
            .unwrap_or_default()
            .replace('\n', " ")
    };
    let (before, io_before) = (journal.stats(), io());
    for _ in 0..1000 {
        commit(&mut journal, &[5; 120]);
    }
    let after = journal.stats();
    println!("1000 commits of 120 bytes: before {io_before}, after {}", io());
    assert_eq!(after.bytes_written - before.bytes_written, 156_000);
    assert_eq!(after.syncs - before.syncs, 1000);
    assert_eq!(after.used, 140_000);
    let _durable = journal.commit().expect("nothing to do");
    assert_eq!(journal.stats(), after);
}

/// The child of the test below; on its own it does nothing.
#[test]
fn child_commits_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let (mut journal, recovery) = open(dir.as_ref()).expect("opens after a kill");
    let mut records = recovery.records;
    for number in records.len() as u64.. {
        let record = number.to_le_bytes().repeat(1 + number as usize % 40);
        records.push(record.clone());
        match journal.append(&record) {
            Ok(_) => drop(journal.commit().expect("works")),
            Err(_) => drop(
                journal
                    .checkpoint(records.iter().map(Vec::as_slice))
                    .expect("works"),
            ),
        }
        println!("\nacknowledged {}", records.len());
    }
}

#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut acknowledged = 0;
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "file::child_commits_until_it_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary runs");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut numbers = stdout.lines().map_while(Result::ok).filter_map(|line| {
            line.strip_prefix("acknowledged ")
                .and_then(|number| number.parse::<usize>().ok())
        });
        let wanted = 5 + round * 3;
        acknowledged = numbers.by_ref().take(wanted).last().expect("the child commits");
        child.kill().expect("killed");
        acknowledged = numbers.last().unwrap_or(acknowledged);
        child.wait().expect("waited for");

        let (_, recovery) = open(dir.path()).expect("whole after a kill");
        let found = recovery.records.len();
        assert!(
            found == acknowledged || found == acknowledged + 1,
            "{found} of {acknowledged} in round {round}"
        );
        for (number, record) in recovery.records.iter().enumerate() {
            assert_eq!(*record, (number as u64).to_le_bytes().repeat(1 + number % 40));
        }
    }
    assert!(acknowledged >= 8 * 5);
}
