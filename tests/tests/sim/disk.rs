//! A journal with bad luck, and the shell's rules for it.
//!
//! Always holds: what a commit reported is recovered; what it did not report may be; a batch is recovered whole or not
//! at all; after a failed commit nothing is taken before a checkpoint has succeeded.

use std::collections::BTreeSet;

use skiff_core::{Record, Recovered};
use skiff_protocol::wire::spec::Object;
use skiff_protocol::{Digest, sha256};
use skiff_tests::rng::Rng;

/// The journal of one node.
#[derive(Default)]
pub(crate) struct Disk {
    /// Batches on the medium, as bytes.
    batches: Vec<Vec<u8>>,
    buffered: Vec<(u64, Vec<Record>)>,
    /// A commit that failed: on the medium, or not.
    maybe: Vec<Vec<u8>>,
    poisoned: bool,
    /// Digests of all objects that were ever durable.
    ever: BTreeSet<Digest>,
    /// What the medium is known to add up to.
    pub(crate) stable: Recovered,
}

fn encode(records: &[Record]) -> Vec<u8> {
    postcard::to_allocvec(records).expect("postcard encodes into memory without fail")
}

fn decode(bytes: &[u8]) -> Vec<Record> {
    postcard::from_bytes(bytes).expect("the medium gives back what it was given")
}

fn fold(batches: &[Vec<u8>]) -> Recovered {
    let mut out = Recovered::default();
    for record in batches.iter().flat_map(|it| decode(it)) {
        out.apply(record);
    }
    out
}

impl Disk {
    /// Buffers a batch; refused while an earlier failure is not made good.
    pub(crate) fn append(
        &mut self,
        token: u64,
        records: Vec<Record>,
        live: &[Record],
        fails: bool,
    ) -> Result<(), ()> {
        if self.poisoned {
            self.checkpoint(live, fails)?;
        }
        self.buffered.push((token, records));
        Ok(())
    }

    /// Makes the buffered batches durable; gives their tokens and whether it worked.
    pub(crate) fn commit(&mut self, fails: bool) -> (Vec<u64>, bool) {
        let buffered = std::mem::take(&mut self.buffered);
        let tokens = buffered.iter().map(|(token, _)| *token).collect();
        let bytes: Vec<Vec<u8>> = buffered.iter().map(|(_, records)| encode(records)).collect();
        if fails {
            self.poisoned = true;
            self.maybe = bytes;
            return (tokens, false);
        }
        for record in buffered.into_iter().flat_map(|(_, records)| records) {
            if let Record::Put(_, bytes) = &record {
                self.ever.insert(sha256(bytes));
            }
            self.stable.apply(record);
        }
        self.batches.extend(bytes);
        (tokens, true)
    }

    /// Writes the journal anew.
    pub(crate) fn checkpoint(&mut self, live: &[Record], fails: bool) -> Result<(), ()> {
        if fails {
            return Err(());
        }
        self.batches = vec![encode(live)];
        self.stable = fold(&self.batches);
        self.maybe.clear();
        self.poisoned = false;
        Ok(())
    }

    /// Whether everything that was appended is on the medium, and nothing else.
    pub(crate) fn settled(&self) -> bool {
        self.buffered.is_empty() && !self.poisoned
    }

    /// The process ends, with the power or without: what was not synced is gone.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        self.buffered.clear();
        if !self.maybe.is_empty() && rng.percent(50) {
            self.batches.append(&mut self.maybe);
        }
        self.maybe.clear();
        self.poisoned = false;
        self.stable = fold(&self.batches);
        self.ever
            .extend(self.stable.objects.values().map(|bytes| sha256(bytes)));
    }

    /// Whether this object was ever durable, byte for byte.
    pub(crate) fn ever_held(&self, object: &Object) -> bool {
        let bytes = postcard::to_allocvec(object).expect("postcard encodes into memory without fail");
        self.ever.contains(&sha256(&bytes))
    }

    /// For the control: the medium loses something that it had reported.
    pub(crate) fn lose_the_last(&mut self) {
        self.batches.pop();
        self.stable = fold(&self.batches);
    }

    pub(crate) fn len(&self) -> usize {
        self.batches.len()
    }
}
