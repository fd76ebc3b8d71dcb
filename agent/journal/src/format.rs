//! Headers and frames as bytes; `FORMAT.md` has them in prose.
//!
//! Always holds: a [`Header`] or [`Frame`] exists only for bytes that passed their checksum. Nothing here
//! reads or writes storage.

use crate::crc;
use crate::storage::{Segment, SegmentSize};

pub(crate) const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"SKIFFJNL";

pub(crate) const HEADER: usize = 48;
const HEADER_CRC: usize = 44;
/// Where the two copies of a header stand: in different pages, so that no write touches both.
pub(crate) const HEADER_COPIES: [u64; 2] = [0, 4096];
pub(crate) const FRAMES_START: usize = 8192;

pub(crate) const FRAME_HEADER: usize = 16;
pub(crate) const RECORD_HEADER: usize = 4;
/// The shortest frame: one empty record. Where less is left, neither a frame nor an end mark stands.
pub(crate) const MIN_FRAME: usize = FRAME_HEADER + RECORD_HEADER;
/// What stands behind the last frame: a frame header that no frame can have.
pub(crate) const END_MARK: [u8; FRAME_HEADER] = [0; FRAME_HEADER];

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) segment: Segment,
    pub(crate) size: SegmentSize,
    pub(crate) id: u64,
    pub(crate) epoch: u64,
    pub(crate) first_sequence: u64,
    /// Offset behind the checkpoint's last frame.
    pub(crate) checkpoint_end: usize,
}

/// Why bytes are no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Invalid,
    Version(u16),
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.segment.index() as u16).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.size.bytes().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_sequence.to_le_bytes());
        bytes[40..44].copy_from_slice(&(self.checkpoint_end as u32).to_le_bytes());
        let crc = crc::finish(crc::update(crc::START, &bytes[..HEADER_CRC]));
        bytes[HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; HEADER]) -> Result<Self, HeaderFault> {
        let crc = crc::finish(crc::update(crc::START, &bytes[..HEADER_CRC]));
        if bytes[..8] != MAGIC || u32_at(bytes, HEADER_CRC) != Some(crc) {
            return Err(HeaderFault::Invalid);
        }
        match u16_at(bytes, 8) {
            Some(VERSION) => Self::fields(bytes).ok_or(HeaderFault::Invalid),
            Some(other) => Err(HeaderFault::Version(other)),
            None => Err(HeaderFault::Invalid),
        }
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let segment = *Segment::ALL.get(usize::from(u16_at(bytes, 10)?))?;
        let size = SegmentSize::new(u32_at(bytes, 12)?.into()).ok()?;
        let checkpoint_end = u32_at(bytes, 40)? as usize;
        let header = Self {
            segment,
            size,
            id: u64_at(bytes, 16)?,
            epoch: u64_at(bytes, 24)?,
            first_sequence: u64_at(bytes, 32)?,
            checkpoint_end,
        };
        (FRAMES_START..=size.len())
            .contains(&checkpoint_end)
            .then_some(header)
    }

    /// The checksum's state that frames of this segment, in this epoch, continue from.
    pub(crate) fn salt(&self) -> u32 {
        crc::update(
            crc::update(crc::START, &self.id.to_le_bytes()),
            &self.epoch.to_le_bytes(),
        )
    }
}

/// The sequence of a new journal's first record. It cannot be guessed, and 2^63 are left to count up to.
pub(crate) fn first_sequence(id: u64) -> u64 {
    id / 2 + 1
}

/// A batch being gathered; the bytes of its frame with the header still open.
#[derive(Debug)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    records: u64,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            bytes: END_MARK.to_vec(),
            records: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    pub(crate) fn payload(&self) -> usize {
        self.bytes.len() - FRAME_HEADER
    }

    /// Bytes of the frame, 0 without records.
    pub(crate) fn frame_len(&self) -> usize {
        if self.is_empty() { 0 } else { self.bytes.len() }
    }

    /// Adds a record; its length was checked against [`SegmentSize::max_record`], so it fits a u32.
    pub(crate) fn push(&mut self, record: &[u8]) {
        self.bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(record);
        self.records += 1;
    }

    /// Fills in the frame's header and gives the frame, with an end mark behind it if `mark`.
    pub(crate) fn seal(&mut self, salt: u32, sequence: u64, mark: bool) -> Sealed<'_> {
        let len = (self.payload() as u32).to_le_bytes();
        let sequence = sequence.to_le_bytes();
        let state = crc::update(
            crc::update(crc::update(salt, &len), &sequence),
            &self.bytes[FRAME_HEADER..],
        );
        self.bytes[0..4].copy_from_slice(&len);
        self.bytes[4..8].copy_from_slice(&crc::finish(state).to_le_bytes());
        self.bytes[8..16].copy_from_slice(&sequence);
        if mark {
            self.bytes.extend_from_slice(&END_MARK);
        }
        Sealed {
            bytes: &mut self.bytes,
            mark,
        }
    }

    /// Forgets the records, and memory beyond `retain` bytes.
    pub(crate) fn clear(&mut self, retain: usize) {
        self.bytes.truncate(FRAME_HEADER);
        self.bytes.shrink_to(retain);
        self.records = 0;
    }
}

/// A batch's frame, ready to be written. Dropping it takes the end mark off again, so the batch can grow
/// and be retried.
pub(crate) struct Sealed<'a> {
    bytes: &'a mut Vec<u8>,
    mark: bool,
}

impl Sealed<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes
    }
}

impl Drop for Sealed<'_> {
    fn drop(&mut self) {
        if self.mark {
            self.bytes.truncate(self.bytes.len() - FRAME_HEADER);
        }
    }
}

/// A frame that passed its checksum.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) sequence: u64,
    payload: &'a [u8],
}

/// The head of what may be a frame; nothing in it was checked but that its payload lies within the segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unverified {
    pub(crate) len: usize,
    pub(crate) sequence: u64,
    crc: u32,
}

/// The sequence of a frame at `at`, if one begins there.
pub(crate) fn sequence_at(segment: &[u8], at: usize) -> Option<u64> {
    u64_at(segment, at + 8)
}

impl Unverified {
    /// The head at `at`, if a frame of at most `max_payload` could begin there.
    pub(crate) fn at(segment: &[u8], at: usize, max_payload: usize) -> Option<Self> {
        let room = segment.len().checked_sub(at + FRAME_HEADER)?;
        let len = u32_at(segment, at)? as usize;
        let head = Self {
            len,
            crc: u32_at(segment, at + 4)?,
            sequence: sequence_at(segment, at)?,
        };
        (RECORD_HEADER..=max_payload.min(room))
            .contains(&len)
            .then_some(head)
    }

    /// The frame, if its checksum holds.
    pub(crate) fn verify(self, segment: &[u8], at: usize, salt: u32) -> Option<Frame<'_>> {
        let payload = segment.get(at + FRAME_HEADER..)?.get(..self.len)?;
        let state = crc::update(salt, &(self.len as u32).to_le_bytes());
        let state = crc::update(crc::update(state, &self.sequence.to_le_bytes()), payload);
        (crc::finish(state) == self.crc).then_some(Frame {
            sequence: self.sequence,
            payload,
        })
    }
}

impl<'a> Frame<'a> {
    /// Bytes of the whole frame.
    pub(crate) fn len(&self) -> usize {
        FRAME_HEADER + self.payload.len()
    }

    /// The records, if they fill the payload exactly.
    pub(crate) fn records(&self) -> Option<Vec<&'a [u8]>> {
        let mut records = Vec::new();
        let mut rest = self.payload;
        while !rest.is_empty() {
            let len = u32_at(rest, 0)? as usize;
            let (record, behind) = rest[RECORD_HEADER..].split_at_checked(len)?;
            records.push(record);
            rest = behind;
        }
        Some(records)
    }
}

/// Whether an end mark may and must stand behind a frame that ends at `end`.
pub(crate) fn mark_fits(end: usize, size: SegmentSize) -> bool {
    size.len() - end >= MIN_FRAME
}
