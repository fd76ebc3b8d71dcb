//! The journal itself: open, append, commit, checkpoint.
//!
//! Always holds: state in memory changes only after the storage said that the bytes are on the medium; what
//! is uncertain on the medium is either owed (see [`Owed`]) or bars further commits (`needs_checkpoint`).
//!
//! ```text
//!                 append            commit ok
//!   ┌──────────┐ ───────▶ ┌──────────┐ ───────▶ (durable; buffer empty)
//!   │  ready   │          │ buffered │ ──┐ write failed: retry in the same place
//!   └──────────┘ ◀─────── └──────────┘ ◀─┘
//!        ▲      checkpoint      │ sync failed
//!        │          ok          ▼
//!        └───────────── needs checkpoint ──┐ commit: NeedsCheckpoint
//!                               ▲──────────┘
//! ```

use std::mem;

use crate::disk::Disk;
use crate::error::{AppendError, Damage, Error};
use crate::format::{
    Batch, END_MARK, FRAME_HEADER, FRAMES_START, HEADER_COPIES, Header, RECORD_HEADER, first_sequence,
    mark_fits,
};
use crate::limits;
use crate::recover::{Plan, plan};
use crate::storage::{Presence, Segment, SegmentSize, Storage};

/// A record's number. Numbers only grow, over checkpoints and restarts too; the first one is arbitrary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(u64);

impl Sequence {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Proof that every record up to and including a sequence survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[must_use]
pub struct Durable {
    /// The last durable record; before the first record, the number below the first.
    pub through: Sequence,
}

/// How a journal that could be opened was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was no journal, and one was made.
    Empty,
    /// Every frame was whole.
    Clean,
    /// The last batch was being written when the power went; it was never acknowledged and was dropped.
    TornTail {
        /// Bytes of the batch as far as its header could be read, at least 16.
        dropped_bytes: u64,
    },
}

/// What an opened journal holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// How it was found.
    pub outcome: Outcome,
    /// The last checkpoint's records, then what was committed after it, in order. All of them are on the
    /// medium.
    pub records: Vec<Vec<u8>>,
}

/// Figures since the journal was opened, and its fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Bytes handed to the storage, framing, headers and wiping included.
    pub bytes_written: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Checkpoints that succeeded.
    pub checkpoints: u64,
    /// Reads, writes and syncs that failed.
    pub failures: u64,
    /// Bytes for frames in a segment.
    pub capacity: usize,
    /// Bytes of frames in the ruling segment.
    pub used: usize,
    /// Bytes of frame that wait for a commit.
    pub buffered: usize,
    /// Live records may take this many bytes, framing included, in a checkpoint.
    pub max_checkpoint: usize,
}

/// Header work that must reach the medium before anything else is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Nothing,
    /// The standby segment's first copy may hold the header of a checkpoint that failed: set it back.
    Retraction,
    /// The ruling segment's second copy is not known to equal the first.
    SecondCopy,
}

/// An open journal. Only one may exist for a storage.
pub struct Journal<S> {
    disk: Disk<S>,
    size: SegmentSize,
    headers: [Header; 2],
    active: Segment,
    /// Offset behind the last durable frame.
    end: usize,
    batch: Batch,
    /// What the next appended record gets.
    next_sequence: u64,
    durable: u64,
    /// Above every epoch that this process may have written.
    next_epoch: u64,
    /// The standby segment may hold frames of an epoch that will be used again.
    standby_dirty: bool,
    needs_checkpoint: bool,
    owed: Owed,
    checkpoints: u64,
}

impl<S: Storage> Journal<S> {
    /// Opens the journal in `storage`, or makes one where none ever was.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Version`] leave the storage as it was. [`Error::Io`] may be tried
    /// again.
    pub fn open(storage: S) -> Result<(Self, Recovery), Error> {
        let mut disk = Disk::new(storage);
        let outcome = match disk.run("looking for", Segment::Zero, S::presence)? {
            Presence::Absent => {
                create(&mut disk)?;
                Some(Outcome::Empty)
            }
            Presence::Whole => None,
            Presence::Partial { missing } => return Err(disk.corrupt(missing, 0, Damage::Missing)),
        };
        let plan = plan(&mut disk)?;
        make_durable(&mut disk, &plan)?;

        let Plan {
            headers,
            active,
            chain,
            ..
        } = plan;
        let outcome = outcome.unwrap_or(match chain.torn {
            None => Outcome::Clean,
            Some(bytes) => Outcome::TornTail {
                dropped_bytes: bytes as u64,
            },
        });
        let header = headers[active.index()];
        let journal = Self {
            disk,
            size: header.size,
            headers,
            active,
            end: chain.end,
            batch: Batch::new(),
            next_sequence: chain.next_sequence,
            durable: chain.next_sequence.saturating_sub(1),
            next_epoch: header.epoch + 1,
            standby_dirty: outcome != Outcome::Empty,
            needs_checkpoint: false,
            owed: Owed::Nothing,
            checkpoints: 0,
        };
        Ok((
            journal,
            Recovery {
                outcome,
                records: chain.records,
            },
        ))
    }

    /// Buffers a record for the next [`commit`](Self::commit). Touches no storage.
    pub fn append(&mut self, record: &[u8]) -> Result<Sequence, AppendError> {
        let max = self.size.max_record();
        if record.len() > max {
            return Err(AppendError::TooLarge {
                len: record.len(),
                max,
            });
        }
        let head = if self.batch.is_empty() { FRAME_HEADER } else { 0 };
        let needed = head + RECORD_HEADER + record.len();
        let free = self.size.len() - self.end - self.batch.frame_len();
        if needed > free {
            return Err(AppendError::SegmentFull {
                needed,
                free,
                capacity: self.size.capacity(),
            });
        }
        let (buffered, max) = (self.batch.payload(), self.size.max_payload());
        if buffered + RECORD_HEADER + record.len() > max {
            return Err(AppendError::BatchFull { buffered, max });
        }
        self.batch.push(record);
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 1;
        Ok(sequence)
    }

    /// Makes every buffered record durable: one write, one sync. Without buffered records it touches no
    /// storage.
    ///
    /// # Errors
    /// The batch is not durable and stays buffered. After a failed write the next commit tries again in the
    /// same place; after a failed sync commits fail with [`Error::NeedsCheckpoint`] until a checkpoint
    /// succeeds.
    pub fn commit(&mut self) -> Result<Durable, Error> {
        if self.batch.is_empty() {
            return Ok(self.durable());
        }
        self.pay()?;
        if self.needs_checkpoint {
            return Err(Error::NeedsCheckpoint {
                path: self.disk.path(self.active),
            });
        }
        let end = self.end + self.batch.frame_len();
        let sequence = self.next_sequence - self.batch.records();
        let salt = self.headers[self.active.index()].salt();
        let sealed = self.batch.seal(salt, sequence, mark_fits(end, self.size));
        self.disk.write(self.active, self.end as u64, sealed.bytes())?;
        drop(sealed);
        if let Err(error) = self.disk.sync(self.active) {
            self.needs_checkpoint = true;
            return Err(error);
        }
        self.end = end;
        self.committed();
        Ok(self.durable())
    }

    /// Replaces everything appended so far, buffered records included, by `live`, durably and atomically.
    ///
    /// `live` must therefore stand for every record that [`append`](Self::append) took.
    ///
    /// # Errors
    /// The journal is as before, and buffered records stay buffered. [`Error::CheckpointTooLarge`] and
    /// [`Error::RecordTooLarge`] name the bound; an [`Error::Io`] may be tried again.
    pub fn checkpoint<'a>(&mut self, live: impl IntoIterator<Item = &'a [u8]>) -> Result<Durable, Error> {
        self.pay()?;
        let target = self.active.other();
        let mut header = Header {
            segment: target,
            epoch: self.next_epoch,
            first_sequence: self.next_sequence,
            ..self.headers[self.active.index()]
        };
        self.next_epoch += 1;
        let wipe = mem::replace(&mut self.standby_dirty, true);
        let next_sequence = self.write_live(&mut header, live, wipe)?;
        self.disk.sync(target)?;

        self.owed = Owed::Retraction;
        self.disk.write(target, HEADER_COPIES[0], &header.encode())?;
        self.disk.sync(target)?;

        self.headers[target.index()] = header;
        self.active = target;
        self.end = header.checkpoint_end;
        self.next_sequence = next_sequence;
        self.standby_dirty = false;
        self.needs_checkpoint = false;
        self.owed = Owed::SecondCopy;
        self.checkpoints += 1;
        self.committed();
        // The checkpoint is durable whatever becomes of the second copy; a failure is counted, and stands
        // in the way of the next commit or checkpoint until it is made good.
        let _owed_until_paid = self.pay();
        Ok(self.durable())
    }

    /// What is durable now.
    pub fn durable(&self) -> Durable {
        Durable {
            through: Sequence(self.durable),
        }
    }

    /// Figures for metrics and for deciding when to checkpoint.
    pub fn stats(&self) -> Stats {
        let traffic = self.disk.traffic;
        Stats {
            bytes_written: traffic.bytes_written,
            syncs: traffic.syncs,
            checkpoints: self.checkpoints,
            failures: traffic.failures,
            capacity: self.size.capacity(),
            used: self.end - FRAMES_START,
            buffered: self.batch.frame_len(),
            max_checkpoint: self.size.max_checkpoint(),
        }
    }

    /// The largest record that [`append`](Self::append) takes, bytes.
    pub fn max_record(&self) -> usize {
        self.size.max_record()
    }

    fn committed(&mut self) {
        self.durable = self.next_sequence - 1;
        self.batch.clear(limits::RETAINED_BUFFER);
    }

    /// Writes `live` as frames into the segment of `header`, sets its `checkpoint_end`, and gives the
    /// sequence behind the last record. Syncs nothing.
    fn write_live<'a>(
        &mut self,
        header: &mut Header,
        live: impl IntoIterator<Item = &'a [u8]>,
        wipe: bool,
    ) -> Result<u64, Error> {
        let target = header.segment;
        let limit = FRAMES_START + self.size.max_checkpoint();
        let (mut end, mut sequence) = (FRAMES_START, header.first_sequence);
        let (salt, mut batch) = (header.salt(), Batch::new());
        let mut flush = |disk: &mut Disk<S>, batch: &mut Batch, end: &mut usize| {
            let len = batch.frame_len();
            if len > 0 {
                disk.write(target, *end as u64, batch.seal(salt, sequence, false).bytes())?;
            }
            sequence += batch.records();
            *end += len;
            batch.clear(limits::CHECKPOINT_PAYLOAD);
            Ok(sequence)
        };
        for record in live {
            let (len, max) = (record.len(), self.size.max_record());
            if len > max {
                return Err(Error::RecordTooLarge {
                    path: self.disk.path(target),
                    len,
                    max,
                });
            }
            if batch.payload() + RECORD_HEADER + len > limits::CHECKPOINT_PAYLOAD.min(self.size.max_payload())
            {
                flush(&mut self.disk, &mut batch, &mut end)?;
            }
            batch.push(record);
            if end + batch.frame_len() > limit {
                let max = self.size.max_checkpoint();
                return Err(Error::CheckpointTooLarge {
                    path: self.disk.path(target),
                    max,
                });
            }
        }
        let sequence = flush(&mut self.disk, &mut batch, &mut end)?;
        header.checkpoint_end = end;
        let wipe_end = if wipe {
            self.size.len()
        } else {
            end + END_MARK.len()
        };
        self.disk.wipe(target, end, wipe_end)?;
        Ok(sequence)
    }

    /// Does the header work that is owed, if any.
    fn pay(&mut self) -> Result<(), Error> {
        let (segment, offset) = match self.owed {
            Owed::Nothing => return Ok(()),
            Owed::Retraction => (self.active.other(), HEADER_COPIES[0]),
            Owed::SecondCopy => (self.active, HEADER_COPIES[1]),
        };
        self.disk
            .write(segment, offset, &self.headers[segment.index()].encode())?;
        self.disk.sync(segment)?;
        self.owed = Owed::Nothing;
        Ok(())
    }
}

/// Makes a journal where none is: both segments whole and synced before either is to be seen.
fn create<S: Storage>(disk: &mut Disk<S>) -> Result<(), Error> {
    let id = disk.run("drawing an id for", Segment::Zero, S::nonce)?;
    let size = disk.run("creating", Segment::Zero, S::create)?;
    for (segment, epoch) in [(Segment::Zero, 1), (Segment::One, 0)] {
        let header = Header {
            segment,
            size,
            id,
            epoch,
            first_sequence: first_sequence(id),
            checkpoint_end: FRAMES_START,
        };
        for offset in HEADER_COPIES {
            disk.write(segment, offset, &header.encode())?;
        }
        disk.sync(segment)?;
    }
    disk.run("publishing", Segment::Zero, S::publish)
}

/// Executes a recovery's plan, so that what is reported to the caller is on the medium.
fn make_durable<S: Storage>(disk: &mut Disk<S>, plan: &Plan) -> Result<(), Error> {
    for &(segment, offset) in &plan.repairs {
        disk.write(segment, offset, &plan.headers[segment.index()].encode())?;
        disk.sync(segment)?;
    }
    let (chain, size) = (&plan.chain, plan.headers[plan.active.index()].size);
    if let Some(torn) = chain.torn {
        disk.wipe(
            plan.active,
            chain.end,
            size.len().min(chain.end + torn + END_MARK.len()),
        )?;
    }
    if let Some((start, bytes)) = &plan.last_frame {
        disk.write(plan.active, *start as u64, bytes)?;
    }
    if chain.torn.is_some() || plan.last_frame.is_some() {
        disk.sync(plan.active)?;
    }
    Ok(())
}
