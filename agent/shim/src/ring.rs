//! A container's log: a bounded file in tmpfs that one shim writes and anybody reads, without locks.
//!
//! ```text
//! 0     header   magic, capacity, oldest, end, records, dropped records, dropped bytes, checksum   (u64 each, little-endian)
//! 4096  data     `capacity` bytes; the byte of offset `o` is at 4096 + o % capacity
//!
//! record, 8-byte aligned:
//!   length u32 │ stream u8 │ flags u8 (1 = partial) │ 0x5a5a u16 │ its own offset u64 │ unix time, ns i64 │ bytes │ padding
//! ```
//!
//! Offsets count bytes since the ring was made and never go back. Always holds: before the writer overwrites a record it
//! publishes an `oldest` behind it, and it publishes `end` only after the records before it are written. So a reader that
//! looks at `oldest` again after reading knows which of the records it has were overwritten meanwhile; a record's own
//! offset and mark show the same. What is dropped is counted, and a reader that falls behind is told the [`Gap`].
//! `oldest` moves by whole blocks of 1/32 of the capacity, so the writer never reads back what it wrote.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest line, bytes; a longer one becomes partial records, as with the CRI.
pub const MAX_LINE: usize = 16 * 1024;

/// Least capacity, bytes: a block must hold more than one record of the longest line.
pub const MIN_CAPACITY: u64 = 1 << 20;

const MAGIC: u64 = u64::from_le_bytes(*b"SKRING01");
const HEADER_WORDS: usize = 8;
const DATA: u64 = 4096;
const RECORD: usize = 24;
const MARK: u16 = 0x5a5a;
const PARTIAL: u8 = 1;
const BLOCKS: u64 = 32;

/// Bytes that are buffered before they are written. Large enough for the allocator to give the buffer back at once.
const FLUSH_AT: usize = 160 * 1024;

/// How often a reader tries to get ahead of a writer that keeps overtaking it.
const MAX_TRIES: usize = 16;

/// Which stream a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn index(self) -> usize {
        usize::from(self == Self::Stderr)
    }
}

/// One line, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it is in the log.
    pub offset: u64,
    /// When it was read from the container, nanoseconds since 1970.
    pub unix_ns: i64,
    /// Which stream.
    pub stream: Stream,
    /// No newline followed these bytes.
    pub partial: bool,
    /// Without the newline.
    pub bytes: Vec<u8>,
}

/// Records that are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// First offset that was asked for.
    pub from: u64,
    /// First offset that there is.
    pub to: u64,
}

impl Gap {
    /// Bytes of log that are gone, record headers included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.to - self.from
    }
}

/// Part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// What was asked for but is gone.
    pub gap: Option<Gap>,
    /// Records, oldest first.
    pub records: Vec<Record>,
    /// Where to go on.
    pub next: u64,
}

/// What a ring holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Offset of the oldest record.
    pub oldest: u64,
    /// Offset after the newest record.
    pub end: u64,
    /// Records written so far.
    pub records: u64,
    /// Records dropped so far.
    pub dropped_records: u64,
    /// Bytes dropped so far, record headers included.
    pub dropped_bytes: u64,
}

/// Why a ring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The file failed.
    #[error("log {path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        cause: io::Error,
    },
    /// The file is not a ring, or not a whole one.
    #[error("log {path}: not a log ring: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

fn header(capacity: u64, bounds: &Bounds) -> [u8; HEADER_WORDS * 8] {
    let mut words = [
        MAGIC,
        capacity,
        bounds.oldest,
        bounds.end,
        bounds.records,
        bounds.dropped_records,
        bounds.dropped_bytes,
        0,
    ];
    words[HEADER_WORDS - 1] = checksum(&words);
    let mut bytes = [0; HEADER_WORDS * 8];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// FNV-1a over all words but the last: a reader must notice a header of which it saw only a part.
fn checksum(words: &[u64; HEADER_WORDS]) -> u64 {
    words[..HEADER_WORDS - 1]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
}

fn padded(length: usize) -> usize {
    (RECORD + length).next_multiple_of(8)
}

/// Records from one offset on, counted so that they can be dropped together.
#[derive(Clone, Copy, Debug)]
struct Block {
    offset: u64,
    records: u64,
}

/// Writes a ring.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    capacity: u64,
    bounds: Bounds,
    blocks: VecDeque<Block>,
    pending: Vec<u8>,
    pending_blocks: Vec<Block>,
}

impl Writer {
    /// Makes a ring of at least this capacity, replacing a file of that name.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, capacity: u64) -> Result<Self, RingError> {
        let capacity = capacity.max(MIN_CAPACITY).next_multiple_of(BLOCKS * 8);
        let io = |cause| RingError::Io {
            path: path.to_owned(),
            cause,
        };
        // A reader of the old file keeps that file.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(io)?;
        let writer = Self {
            path: path.to_owned(),
            file,
            capacity,
            bounds: Bounds::default(),
            blocks: VecDeque::new(),
            pending: Vec::new(),
            pending_blocks: Vec::new(),
        };
        writer.publish(&writer.bounds).map_err(io)?;
        Ok(writer)
    }

    /// The ring's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the ring holds, without what is not flushed.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Adds a record of at most [`MAX_LINE`] bytes; what is longer is cut. It can be read after [`Writer::flush`].
    pub fn append(&mut self, stream: Stream, unix_ns: i64, partial: bool, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(MAX_LINE)];
        if self.pending.capacity() == 0 {
            self.pending.reserve_exact(FLUSH_AT);
        }
        if self.pending.len() + padded(bytes.len()) > FLUSH_AT {
            self.flush();
        }
        let offset = self.bounds.end + self.pending.len() as u64;
        match self.pending_blocks.last_mut().or(self.blocks.back_mut()) {
            Some(block) if offset < block.offset + self.capacity / BLOCKS => block.records += 1,
            _ => self.pending_blocks.push(Block { offset, records: 1 }),
        }
        let mut header = [0; RECORD];
        header[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        header[4] = stream.index() as u8;
        header[5] = if partial { PARTIAL } else { 0 };
        header[6..8].copy_from_slice(&MARK.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[16..].copy_from_slice(&unix_ns.to_le_bytes());
        self.pending.extend_from_slice(&header);
        self.pending.extend_from_slice(bytes);
        let padding = padded(bytes.len()) - RECORD - bytes.len();
        self.pending.extend_from_slice(&[0; 8][..padding]);
        self.bounds.records += 1;
    }

    /// Makes everything appended readable. When the file system is full, what is pending is dropped and counted.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let before = self.bounds;
        self.blocks.extend(self.pending_blocks.drain(..));
        let end = before.end + self.pending.len() as u64;
        self.make_room(end);
        let bytes = std::mem::take(&mut self.pending);
        let written = (|| {
            if self.bounds.oldest != before.oldest {
                self.publish(&self.bounds)?;
            }
            self.write(self.bounds.end, &bytes)?;
            self.publish(&Bounds { end, ..self.bounds })
        })();
        match written {
            Ok(()) => self.bounds.end = end,
            Err(_) => self.lose(end),
        }
    }

    /// Forgets whole blocks until everything up to `end` fits.
    fn make_room(&mut self, end: u64) {
        while end - self.bounds.oldest > self.capacity {
            let Some(block) = self.blocks.pop_front() else {
                break;
            };
            let next = self.blocks.front().map_or(end, |block| block.offset);
            self.bounds.dropped_records += block.records;
            self.bounds.dropped_bytes += next - self.bounds.oldest;
            self.bounds.oldest = next;
        }
    }

    /// Nothing of the ring can be relied on after a write that failed in its middle: it starts anew behind `end`.
    fn lose(&mut self, end: u64) {
        self.bounds.dropped_records += self.blocks.iter().map(|block| block.records).sum::<u64>();
        self.bounds.dropped_bytes += end - self.bounds.oldest;
        self.blocks.clear();
        self.bounds.oldest = end;
        self.bounds.end = end;
        // If this fails as well, readers find that records do not bear their own offset.
        let _ = self.publish(&self.bounds);
    }

    fn publish(&self, bounds: &Bounds) -> io::Result<()> {
        self.file.write_all_at(&header(self.capacity, bounds), 0)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let at = offset % self.capacity;
        let first = bytes.len().min((self.capacity - at) as usize);
        self.file.write_all_at(&bytes[..first], DATA + at)?;
        self.file.write_all_at(&bytes[first..], DATA)
    }
}

/// Reads a ring, while it is written or after.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    capacity: u64,
}

impl Reader {
    /// Opens a ring.
    ///
    /// # Errors
    /// When there is none of that name, or it is something else.
    pub fn open(path: &Path) -> Result<Self, RingError> {
        let file = File::open(path).map_err(|cause| RingError::Io {
            path: path.to_owned(),
            cause,
        })?;
        let mut reader = Self {
            path: path.to_owned(),
            file,
            capacity: 0,
        };
        let (capacity, _) = reader.header()?;
        if capacity < MIN_CAPACITY || !capacity.is_multiple_of(8) {
            return Err(reader.malformed("capacity"));
        }
        reader.capacity = capacity;
        Ok(reader)
    }

    /// What the ring holds now.
    ///
    /// # Errors
    /// When the file fails or is malformed.
    pub fn bounds(&self) -> Result<Bounds, RingError> {
        self.header().map(|(_, bounds)| bounds)
    }

    fn header(&self) -> Result<(u64, Bounds), RingError> {
        for _ in 0..MAX_TRIES {
            let mut bytes = [0; HEADER_WORDS * 8];
            self.read_exact(&mut bytes, 0)?;
            let mut words = [0; HEADER_WORDS];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            let [
                magic,
                capacity,
                oldest,
                end,
                records,
                dropped_records,
                dropped_bytes,
                sum,
            ] = words;
            if magic != MAGIC {
                return Err(self.malformed("magic"));
            }
            if sum == checksum(&words) && oldest <= end && end - oldest <= capacity {
                return Ok((
                    capacity,
                    Bounds {
                        oldest,
                        end,
                        records,
                        dropped_records,
                        dropped_bytes,
                    },
                ));
            }
            // Half of a header that is just being written.
            std::thread::yield_now();
        }
        Err(self.malformed("checksum"))
    }

    /// Records from an offset on, as they lie in about `max_bytes` of log (at least one). The offset is that of a
    /// record, or of the end: 0, a [`Chunk::next`], or what [`Reader::tail`] or [`Reader::since`] gave.
    ///
    /// # Errors
    /// When the file fails or is malformed.
    pub fn read(&self, from: u64, max_bytes: usize) -> Result<Chunk, RingError> {
        let window = max_bytes.max(padded(MAX_LINE)).min(self.capacity as usize);
        for _ in 0..MAX_TRIES {
            let before = self.bounds()?;
            let start = from.clamp(before.oldest, before.end);
            let mut bytes = vec![0; window.min((before.end - start) as usize)];
            self.read_at(start, &mut bytes)?;
            let parsed = parse(start, &bytes);
            let after = self.bounds()?;
            let whole = |offset: u64| offset >= after.oldest;
            let Ok((records, next)) = parsed else {
                if whole(start) {
                    return Err(self.malformed("record"));
                }
                continue;
            };
            if !whole(start) {
                // Overtaken while reading: what was read may be mixed up, so it is read again further on.
                continue;
            }
            let gap = (start > from).then_some(Gap { from, to: start });
            return Ok(Chunk { gap, records, next });
        }
        // The writer is faster than we read: everything up to its end is gone for us.
        let end = self.bounds()?.end;
        Ok(Chunk {
            gap: (end > from).then_some(Gap { from, to: end }),
            records: Vec::new(),
            next: end,
        })
    }

    /// Where the last `lines` lines begin. Parts of a long line count as one.
    ///
    /// # Errors
    /// When the file fails or is malformed.
    pub fn tail(&self, lines: usize) -> Result<u64, RingError> {
        let mut starts = VecDeque::new();
        let mut continued = [false; 2];
        let end = self.scan(|record| {
            let stream = record.stream.index();
            if !std::mem::replace(&mut continued[stream], record.partial) {
                if starts.len() == lines {
                    starts.pop_front();
                }
                if lines > 0 {
                    starts.push_back(record.offset);
                }
            }
            true
        })?;
        Ok(starts.front().copied().unwrap_or(end))
    }

    /// Where the first record begins that is not older than this.
    ///
    /// # Errors
    /// When the file fails or is malformed.
    pub fn since(&self, unix_ns: i64) -> Result<u64, RingError> {
        let mut found = None;
        let end = self.scan(|record| {
            if record.unix_ns >= unix_ns {
                found = Some(record.offset);
            }
            found.is_none()
        })?;
        Ok(found.unwrap_or(end))
    }

    /// Shows all records that there are now, until `see` has seen enough; gives the offset after the last one.
    fn scan(&self, mut see: impl FnMut(&Record) -> bool) -> Result<u64, RingError> {
        let Bounds {
            oldest: mut at, end, ..
        } = self.bounds()?;
        while at < end {
            let chunk = self.read(at, FLUSH_AT)?;
            if !chunk.records.iter().all(&mut see) || chunk.next == at {
                return Ok(chunk.next);
            }
            at = chunk.next;
        }
        Ok(at)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), RingError> {
        let at = offset % self.capacity;
        let first = bytes.len().min((self.capacity - at) as usize);
        let (head, tail) = bytes.split_at_mut(first);
        self.read_exact(head, DATA + at)?;
        self.read_exact(tail, DATA)
    }

    fn read_exact(&self, bytes: &mut [u8], at: u64) -> Result<(), RingError> {
        self.file.read_exact_at(bytes, at).map_err(|cause| RingError::Io {
            path: self.path.clone(),
            cause,
        })
    }

    fn malformed(&self, what: &'static str) -> RingError {
        RingError::Malformed {
            path: self.path.clone(),
            what,
        }
    }
}

/// The whole records at the beginning of `bytes`, and the offset after them.
fn parse(start: u64, bytes: &[u8]) -> Result<(Vec<Record>, u64), ()> {
    let mut records = Vec::new();
    let mut at = 0;
    while let Some(record) = bytes[at..].first_chunk::<RECORD>() {
        let offset = start + at as u64;
        let [
            a,
            b,
            c,
            d,
            stream,
            flags,
            mark @ ..,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
        ] = *record;
        let own: [u8; 8] = record[8..16].try_into().map_err(drop)?;
        let time: [u8; 8] = record[16..24].try_into().map_err(drop)?;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if u16::from_le_bytes(mark) != MARK
            || u64::from_le_bytes(own) != offset
            || length > MAX_LINE
            || stream > 1
        {
            return Err(());
        }
        let Some(line) = bytes.get(at + RECORD..at + RECORD + length) else {
            break;
        };
        records.push(Record {
            offset,
            unix_ns: i64::from_le_bytes(time),
            stream: if stream == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            },
            partial: flags & PARTIAL != 0,
            bytes: line.to_vec(),
        });
        at = (at + padded(length)).min(bytes.len());
    }
    Ok((records, start + at as u64))
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
