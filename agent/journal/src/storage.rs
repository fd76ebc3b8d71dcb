//! What the journal needs of the place it is kept in.
//!
//! Always holds: the journal touches storage only through [`Storage`], so a test can make every write and
//! every sync fail, tear or lie. Segment numbers and sizes are valid by construction.

use std::io;
use std::path::PathBuf;

use crate::format::{FRAME_HEADER, FRAMES_START, RECORD_HEADER};
use crate::limits;

/// One of the journal's two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// `journal.0`
    Zero,
    /// `journal.1`
    One,
}

impl Segment {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Zero, Self::One];

    /// 0 or 1.
    pub fn index(self) -> usize {
        match self {
            Self::Zero => 0,
            Self::One => 1,
        }
    }

    /// The one that this is not.
    pub fn other(self) -> Self {
        match self {
            Self::Zero => Self::One,
            Self::One => Self::Zero,
        }
    }
}

/// What a storage holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// No journal was ever published here.
    Absent,
    /// Both segments exist.
    Whole,
    /// One segment exists without the other.
    Partial {
        /// The one that is gone.
        missing: Segment,
    },
}

/// A segment's length in bytes, within [`limits::MIN_SEGMENT`] and [`limits::MAX_SEGMENT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentSize(u32);

/// The size asked for is out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a segment of {0} bytes: from {min} to {max} are allowed", min = limits::MIN_SEGMENT, max = limits::MAX_SEGMENT)]
pub struct InvalidSegmentSize(pub u64);

impl SegmentSize {
    /// [`limits::DEFAULT_SEGMENT`]
    pub const DEFAULT: Self = Self(limits::DEFAULT_SEGMENT);

    /// Checks the bounds.
    pub fn new(bytes: u64) -> Result<Self, InvalidSegmentSize> {
        match u32::try_from(bytes) {
            Ok(len) if (limits::MIN_SEGMENT..=limits::MAX_SEGMENT).contains(&len) => Ok(Self(len)),
            _ => Err(InvalidSegmentSize(bytes)),
        }
    }

    /// Bytes of the file.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// Bytes of the file, as an index into its content.
    pub(crate) fn len(self) -> usize {
        self.0 as usize
    }

    /// Bytes for frames.
    pub fn capacity(self) -> usize {
        self.len() - FRAMES_START
    }

    /// The largest record, bytes: a fourth of the capacity, at most [`limits::MAX_RECORD`].
    pub fn max_record(self) -> usize {
        limits::MAX_RECORD.min(self.capacity() / 4 - FRAME_HEADER - RECORD_HEADER)
    }

    /// The largest payload of a frame, bytes: what one record of the largest size needs.
    pub(crate) fn max_payload(self) -> usize {
        self.max_record() + RECORD_HEADER
    }

    /// The most a checkpoint may take, bytes, framing included: one record of the largest size fits behind
    /// it.
    pub fn max_checkpoint(self) -> usize {
        self.capacity() - self.max_payload() - FRAME_HEADER
    }
}

/// Where segments are kept. [`FileStorage`](crate::FileStorage) is the one for a node.
///
/// The journal assumes of it what `FORMAT.md` says under "What the medium is assumed to do", no more.
pub trait Storage {
    /// What is there. An interrupted [`publish`](Self::publish) is completed or undone here.
    fn presence(&mut self) -> io::Result<Presence>;

    /// Makes two segments of zeros, replacing what an interrupted `create` left. Until they are published
    /// they can be read, written and synced, but [`presence`](Self::presence) does not count them.
    fn create(&mut self) -> io::Result<SegmentSize>;

    /// Makes the created, synced segments present, atomically and durably.
    fn publish(&mut self) -> io::Result<()>;

    /// The length of a segment, bytes.
    fn len(&mut self, segment: Segment) -> io::Result<u64>;

    /// Fills `into` from `offset` on; a shorter file is an error.
    fn read_at(&mut self, segment: Segment, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, or fails having written any part of it. Never makes the file
    /// longer.
    fn write_at(&mut self, segment: Segment, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Returns when everything written to the segment before is on the medium.
    fn sync(&mut self, segment: Segment) -> io::Result<()>;

    /// A number that nobody can predict.
    fn nonce(&mut self) -> io::Result<u64>;

    /// The segment's name for messages.
    fn path(&self, segment: Segment) -> PathBuf;
}
