//! Power cuts at every operation of a workload, on an honest medium and on one that lies.
//!
//! Always holds: a violation names the seed, the operation and the cut that replay it.

use skiff_journal::{Journal, Outcome};

use crate::medium::{Cut, Fault, Medium, Rng};
use crate::model::{Model, run};

const STEPS: usize = 60;

fn cuts(seed: u64) -> [Cut; 6] {
    [
        Cut::DropAll,
        Cut::KeepAll,
        Cut::Random(seed),
        Cut::Random(seed + 1),
        Cut::Random(seed + 2),
        Cut::Random(seed + 3),
    ]
}

/// Recovers, cuts the power again at every operation of the recovery, and then lets the journal work on.
fn survive(model: &Model, medium: &Medium, seed: u64) -> Result<Outcome, String> {
    for operation in 1.. {
        let (medium, mut model) = (medium.fork(), model.clone());
        medium.rearm([(operation, Fault::PowerOff)]);
        let interrupted = model.clone().check(&medium).is_err() && medium.is_off();
        if !interrupted {
            break;
        }
        medium.cut(Cut::Random(seed ^ operation));
        model
            .check(&medium)
            .map_err(|why| format!("{why}, after a second cut at operation {operation}"))?;
    }
    let (medium, mut model) = (medium.fork(), model.clone());
    let (mut journal, recovery) = model.check(&medium)?;

    let unused = medium.fork();
    unused.cut(Cut::DropAll);
    let (_, again) = model
        .clone()
        .check(&unused)
        .map_err(|why| format!("{why}, though it was reported durable"))?;
    if again.outcome != Outcome::Clean {
        return Err(format!("a settled journal was found {:?}", again.outcome));
    }

    model.work(&mut journal, &medium, &mut Rng(seed), 12);
    medium.cut(Cut::Random(seed));
    model
        .check(&medium)
        .map_err(|why| format!("{why}, after working on"))?;
    Ok(recovery.outcome)
}

/// Every violation, and how many recoveries found a torn tail, over all operations and cuts of some runs.
fn sweep(seeds: std::ops::Range<u64>, medium: impl Fn(u64) -> Medium) -> (Vec<String>, usize) {
    let (mut violations, mut torn) = (Vec::new(), 0);
    for seed in seeds {
        for operation in 1.. {
            let disk = medium(operation);
            let model = run(&disk, seed, STEPS);
            if !disk.is_off() {
                assert!(operation > 100, "the workload is too small to mean anything");
                break;
            }
            for cut in cuts(seed ^ operation) {
                let disk = disk.fork();
                disk.cut(cut);
                match survive(&model, &disk, seed ^ operation) {
                    Ok(Outcome::TornTail { .. }) => torn += 1,
                    Ok(Outcome::Empty | Outcome::Clean) => {}
                    Err(why) => {
                        violations.push(format!("seed {seed}, operation {operation}, {cut:?}: {why}"));
                    }
                }
            }
        }
    }
    (violations, torn)
}

#[test]
fn every_crash_point_recovers_what_was_acknowledged() {
    let (violations, torn) = sweep(0..2, |operation| Medium::new([(operation, Fault::PowerOff)]));
    assert!(
        violations.is_empty(),
        "{} violations, first: {}",
        violations.len(),
        violations[0]
    );
    assert!(torn > 0, "no cut ever tore a batch, so the sweep shows nothing");
}

/// The control: without syncs the same sweep must fail, or it could not have shown anything above.
#[test]
fn the_checker_catches_a_medium_that_lies_about_sync() {
    let (violations, _) = sweep(0..1, |operation| Medium::lying([(operation, Fault::PowerOff)]));
    assert!(
        violations.iter().any(|why| why.contains("acknowledged")),
        "no loss was noticed: {violations:?}"
    );
}

/// A killed process leaves the page cache behind: what recovery then reports must outlive a later power cut.
#[test]
fn what_recovery_reports_after_a_kill_is_durable() {
    for operation in 1.. {
        let medium = Medium::new([(operation, Fault::PowerOff)]);
        let model = run(&medium, 11, STEPS);
        if !medium.is_off() {
            break;
        }
        for published in [false, true] {
            let medium = medium.fork();
            medium.kill(published);
            survive(&model, &medium, operation)
                .unwrap_or_else(|why| panic!("killed at operation {operation}: {why}"));
        }
    }
}

/// More than the format promises to bear: a sector that was being written turns to noise. Acknowledged
/// records that share the sector may be lost then, but nothing is invented and nothing is taken for empty.
#[test]
fn a_garbled_sector_invents_nothing() {
    let mut harmed = 0;
    for operation in 1.. {
        let medium = Medium::new([(operation, Fault::PowerOff)]);
        let mut model = run(&medium, 5, STEPS);
        if !medium.is_off() {
            break;
        }
        medium.cut(Cut::Garble(operation));
        match Journal::open(medium) {
            Err(_) => harmed += 1,
            Ok((_, recovery)) => {
                assert!(
                    !model.opened || recovery.outcome != Outcome::Empty,
                    "operation {operation}"
                );
                model.attempted.push(model.acknowledged.clone());
                let prefix = model
                    .attempted
                    .iter()
                    .any(|state| state.starts_with(&recovery.records));
                assert!(prefix, "operation {operation}: records that were never appended");
                harmed += usize::from(!model.allows(&recovery.records));
            }
        }
    }
    assert!(harmed > 0, "the assumption about sectors was never broken");
}

/// A checkpoint that a cut interrupts leaves frames of an epoch that the next process uses again. None of
/// them may count behind a shorter checkpoint.
#[test]
fn frames_of_an_interrupted_checkpoint_are_wiped() {
    for operation in 1..9 {
        let medium = Medium::new([]);
        let (mut journal, _) = Journal::open(medium.clone()).expect("a fresh medium opens");
        medium.rearm([(operation, Fault::PowerOff)]);
        let record = vec![1; 150];
        let interrupted = journal.checkpoint([record.as_slice(); 30]).is_err();
        assert_eq!(
            interrupted,
            operation < 8,
            "a checkpoint of three frames, cut at operation {operation}"
        );
        medium.cut(Cut::KeepAll);

        let (mut journal, _) = Journal::open(medium.clone()).expect("whole after the cut");
        let short: [&[u8]; 1] = [b"short"];
        let _durable = journal.checkpoint(short).expect("the medium works");
        drop(journal);
        let (_, recovery) =
            Journal::open(medium).unwrap_or_else(|why| panic!("cut at operation {operation}: {why}"));
        assert_eq!(
            (recovery.outcome, recovery.records),
            (Outcome::Clean, vec![b"short".to_vec()])
        );
    }
}
