//! What a journal must hold, a workload, and the one checker.
//!
//! Always holds: the model knows the state that was acknowledged last and every state attempted since;
//! recovery must give exactly one of them.

use skiff_journal::{AppendError, Error, Journal, Outcome, Recovery};

use crate::medium::{Medium, Rng};

pub(crate) type Records = Vec<Vec<u8>>;

#[derive(Clone, Default)]
pub(crate) struct Model {
    /// An open has returned: from now on the journal is never `Empty`.
    pub(crate) opened: bool,
    pub(crate) acknowledged: Records,
    /// States handed to a commit or checkpoint that has not been acknowledged.
    pub(crate) attempted: Vec<Records>,
    buffered: Records,
}

impl Model {
    fn acknowledge(&mut self, records: Records) {
        self.acknowledged = records;
        self.attempted.clear();
        self.buffered.clear();
    }

    /// What recovery may give, after any crash now.
    pub(crate) fn allows(&self, records: &Records) -> bool {
        self.acknowledged == *records || self.attempted.contains(records)
    }

    /// Opens the journal and judges what comes out; then what came out counts as acknowledged.
    pub(crate) fn check(&mut self, medium: &Medium) -> Result<(Journal<Medium>, Recovery), String> {
        let (journal, recovery) = Journal::open(medium.clone()).map_err(|error| format!("{error}"))?;
        if self.opened && recovery.outcome == Outcome::Empty {
            return Err("an existing journal was taken for an empty one".into());
        }
        if !self.allows(&recovery.records) {
            let lens = |records: &Records| records.iter().map(Vec::len).collect::<Vec<_>>();
            return Err(format!(
                "recovered {:?}, acknowledged {:?} with {} later states",
                lens(&recovery.records),
                lens(&self.acknowledged),
                self.attempted.len(),
            ));
        }
        self.opened = true;
        self.acknowledge(recovery.records.clone());
        Ok((journal, recovery))
    }

    fn commit(&mut self, journal: &mut Journal<Medium>) -> Result<(), Error> {
        let state = [self.acknowledged.clone(), self.buffered.clone()].concat();
        self.attempted.push(state.clone());
        let _durable = journal.commit()?;
        self.acknowledge(state);
        Ok(())
    }

    /// Keeps a random part of what is known, so that checkpoints are shorter than what they replace.
    fn checkpoint(&mut self, journal: &mut Journal<Medium>, rng: &mut Rng) -> Result<(), Error> {
        let all = [self.acknowledged.clone(), self.buffered.clone()].concat();
        let keep = rng.below(12).min(all.len());
        let state = all[all.len() - keep..].to_vec();
        self.attempted.push(state.clone());
        let _durable = journal.checkpoint(state.iter().map(Vec::as_slice))?;
        self.acknowledge(state);
        Ok(())
    }

    /// Appends, commits and checkpoints at random; repeats what failed until `patience` failures, or the
    /// power is gone.
    pub(crate) fn work(
        &mut self,
        journal: &mut Journal<Medium>,
        medium: &Medium,
        rng: &mut Rng,
        steps: usize,
    ) {
        let mut patience = 4;
        for _ in 0..steps {
            let mut full = false;
            for _ in 0..1 + rng.below(4) {
                let len = if rng.below(8) == 0 {
                    rng.below(1500)
                } else {
                    rng.below(120)
                };
                let record = rng.bytes(len);
                match journal.append(&record) {
                    Ok(_) => self.buffered.push(record),
                    Err(AppendError::SegmentFull { .. }) => full = true,
                    Err(AppendError::BatchFull { .. }) => break,
                    Err(error @ AppendError::TooLarge { .. }) => panic!("{error}"),
                }
            }
            let result = if full || rng.below(15) == 0 {
                self.checkpoint(journal, rng)
            } else {
                self.commit(journal)
            };
            let result = match result {
                Err(Error::NeedsCheckpoint { .. }) => self.checkpoint(journal, rng),
                other => other,
            };
            match result {
                Ok(()) => {}
                Err(Error::Io { .. }) if patience > 0 && !medium.is_off() => patience -= 1,
                Err(Error::Io { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A whole run on a fresh medium, up to its end or its power cut.
pub(crate) fn run(medium: &Medium, seed: u64, steps: usize) -> Model {
    let mut model = Model::default();
    if let Ok((mut journal, _)) = model.check(medium) {
        model.work(&mut journal, medium, &mut Rng(seed), steps);
    }
    model
}
