//! The core's records in the journal: batches stay whole, Secrets are sealed with the node's key.
//!
//! Format: a journal record is postcard of `Vec<Entry>`; an entry is a record in the clear, or
//! ChaCha20-Poly1305 (nonce 12 bytes, random) over postcard of a record, with the node's name as associated data.
//!
//! Always holds: one batch of the core is one journal record, so it is recovered whole or not at all; an entry that
//! does not open is an error and never skipped.

use std::path::Path;

use anyhow::{Context, Result, bail};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use skiff_core::{Record, Recovered};
use skiff_journal::{AppendError, FileStorage, Journal, Outcome, SegmentSize, Stats};
use skiff_protocol::topic::NodeName;

/// How one record lies in the journal.
#[derive(Serialize, Deserialize)]
enum Entry {
    Clear(Record),
    Sealed { nonce: [u8; 12], bytes: Vec<u8> },
}

/// The journal, speaking records.
pub(crate) struct Ledger {
    journal: Journal<FileStorage>,
    seal: LessSafeKey,
    node: NodeName,
    random: SystemRandom,
    /// A commit failed: what is buffered was given up.
    spoilt: bool,
}

/// Whether a batch was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It waits for a commit.
    Taken,
    /// It needs a checkpoint first.
    Checkpoint,
}

impl Ledger {
    /// Opens the journal and adds its records up.
    ///
    /// # Errors
    /// When it is damaged, in use, of another version, or cannot be read: the agent must not go on without it.
    pub(crate) fn open(
        state: &Path,
        segment_bytes: u64,
        node: &NodeName,
    ) -> Result<(Self, Recovered, Outcome)> {
        let key_path = state.join("identity/seal.key");
        let key = std::fs::read(&key_path).with_context(|| format!("cannot read {}", key_path.display()))?;
        let Ok(key) = UnboundKey::new(&CHACHA20_POLY1305, &key) else {
            bail!(
                "{} does not hold a key of 32 bytes; join again",
                key_path.display()
            );
        };
        let size = SegmentSize::new(segment_bytes)
            .map_err(|error| anyhow::anyhow!("journal_segment_bytes: {error}"))?;
        let storage = FileStorage::open(state.join("journal"), size)?;
        let (journal, recovery) = Journal::open(storage)?;
        let ledger = Self {
            journal,
            seal: LessSafeKey::new(key),
            node: node.clone(),
            random: SystemRandom::new(),
            spoilt: false,
        };
        let mut recovered = Recovered::default();
        for bytes in recovery.records {
            for record in ledger.decode(&bytes)? {
                recovered.apply(record);
            }
        }
        Ok((ledger, recovered, recovery.outcome))
    }

    /// Buffers one batch. Durable after [`Ledger::commit`]. [`Room::Checkpoint`] means that it was not taken: let what is
    /// buffered become durable, checkpoint, and append it again.
    ///
    /// # Errors
    /// When it would not fit even an emptied journal.
    pub(crate) fn append(&mut self, records: &[Record]) -> Result<Room> {
        if self.spoilt {
            return Ok(Room::Checkpoint);
        }
        let bytes = self.encode(records)?;
        match self.journal.append(&bytes) {
            Ok(_) => Ok(Room::Taken),
            Err(error @ AppendError::TooLarge { .. }) => Err(error.into()),
            Err(AppendError::BatchFull { .. } | AppendError::SegmentFull { .. }) => Ok(Room::Checkpoint),
        }
    }

    /// Makes everything appended durable.
    ///
    /// # Errors
    /// When the medium refuses. What was appended is then given up, so nothing is taken before a checkpoint succeeds:
    /// a batch that was told to be lost must not come to be written with a later one.
    pub(crate) fn commit(&mut self) -> Result<()> {
        if self.spoilt {
            bail!("an earlier write failed, and the journal could not be written anew since");
        }
        match self.journal.commit() {
            Ok(_) => Ok(()),
            Err(error) => {
                self.spoilt = true;
                Err(error.into())
            }
        }
    }

    /// Writes a fresh journal of just `live`, which must hold all that was ever told to be durable.
    ///
    /// # Errors
    /// When it does not fit, or the medium refuses; the old journal then stands.
    pub(crate) fn checkpoint(&mut self, live: &[Record]) -> Result<()> {
        let encoded = live
            .iter()
            .map(|record| self.encode(std::slice::from_ref(record)));
        let encoded: Vec<Vec<u8>> = encoded.collect::<Result<_>>()?;
        let _ = self.journal.checkpoint(encoded.iter().map(Vec::as_slice))?;
        self.spoilt = false;
        Ok(())
    }

    /// Figures since the start.
    pub(crate) fn stats(&self) -> Stats {
        self.journal.stats()
    }

    fn encode(&self, records: &[Record]) -> Result<Vec<u8>> {
        let entries: Result<Vec<Entry>> = records.iter().map(|record| self.entry(record)).collect();
        Ok(postcard::to_allocvec(&entries?)?)
    }

    fn entry(&self, record: &Record) -> Result<Entry> {
        if !record.is_secret() {
            return Ok(Entry::Clear(record.clone()));
        }
        let mut bytes = postcard::to_allocvec(record)?;
        let mut nonce = [0; 12];
        let failed = |_| anyhow::anyhow!("cannot seal a Secret for the journal");
        self.random.fill(&mut nonce).map_err(failed)?;
        let aad = Aad::from(self.node.as_str().as_bytes());
        self.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut bytes)
            .map_err(failed)?;
        Ok(Entry::Sealed { nonce, bytes })
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<Record>> {
        let advice = "the journal was written by another version of the agent, or under another identity; run the \
                      agent that wrote it, or set the journal directory aside and join again";
        let (entries, rest): (Vec<Entry>, &[u8]) = postcard::take_from_bytes(bytes).context(advice)?;
        if !rest.is_empty() {
            bail!("{advice}");
        }
        entries
            .into_iter()
            .map(|entry| self.open_entry(entry).context(advice))
            .collect()
    }

    fn open_entry(&self, entry: Entry) -> Result<Record> {
        match entry {
            Entry::Clear(record) => Ok(record),
            Entry::Sealed { nonce, mut bytes } => {
                let aad = Aad::from(self.node.as_str().as_bytes());
                let opened = self
                    .seal
                    .open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut bytes);
                let opened = opened
                    .map_err(|_| anyhow::anyhow!("a sealed Secret does not open with this node's key"))?;
                Ok(postcard::from_bytes(opened)?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_protocol::wire::spec::ObjectKey;

    #[test]
    fn secrets_are_sealed_and_batches_come_back() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("identity")).unwrap();
        std::fs::write(dir.path().join("identity/seal.key"), [7; 32]).unwrap();
        let node = NodeName::parse("rover-7").unwrap();
        let (mut ledger, state, outcome) = Ledger::open(dir.path(), 1 << 20, &node).unwrap();
        assert_eq!((state, outcome), (Recovered::default(), Outcome::Empty));
        let secret = b"correct horse battery staple".to_vec();
        let key = ObjectKey::Secret("default".into(), "s".into());
        let batch = [Record::Put(key.clone(), secret.clone()), Record::Generation(4)];
        assert_eq!(ledger.append(&batch).unwrap(), Room::Taken);
        ledger.commit().unwrap();
        drop(ledger);
        for segment in ["journal.0", "journal.1"] {
            let bytes = std::fs::read(dir.path().join("journal").join(segment)).unwrap();
            assert!(
                !bytes.windows(secret.len()).any(|it| it == secret),
                "{segment} holds the Secret in the clear"
            );
        }
        let (ledger, state, _) = Ledger::open(dir.path(), 1 << 20, &node).unwrap();
        assert_eq!((state.generation, state.objects.get(&key)), (4, Some(&secret)));
        drop(ledger);
        std::fs::write(dir.path().join("identity/seal.key"), [8; 32]).unwrap();
        assert!(
            Ledger::open(dir.path(), 1 << 20, &node).is_err(),
            "another key must not open it"
        );
    }
}
