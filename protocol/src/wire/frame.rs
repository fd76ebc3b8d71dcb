//! Frames: one MQTT payload each. A message that does not fit one frame travels as chunks.
//!
//! ```text
//! | version u8 = 1 | 0 | message …                                           one message
//! | version u8 = 1 | 1 | id u32 LE | index u16 LE | count u16 LE | bytes …    a chunk of one
//! ```
//!
//! A node's hello and its last will are in version [`OLDEST`], and the hello names the versions that the node speaks. The
//! server answers in the newest that both speak, see [`common`], and the node goes on in that of the last frame that it
//! read. So either end can be upgraded first, or put back.
//!
//! Version 2 is what the next one will be to this build: the feature `next-version` speaks it, with other second bytes,
//! for tests of an upgrade. Nothing that is released has it.
//!
//! Always holds: an [`Assembler`] keeps at most [`limits::REASSEMBLIES`] unfinished messages of at most
//! [`limits::MESSAGE`] bytes; the oldest gives way to a new one, and its loss is counted.

use alloc::vec::Vec;
use core::fmt;

use crate::limits;

/// The newest wire version that this build speaks.
pub const VERSION: u8 = if cfg!(feature = "next-version") { 2 } else { 1 };

/// The oldest wire version that this build speaks.
pub const OLDEST: u8 = 1;

/// The version to use with a peer that speaks `low` to `high`; nothing where it and this build have none in common.
#[must_use]
pub fn common((low, high): (u8, u8)) -> Option<u8> {
    let newest = high.min(VERSION);
    (newest >= low.max(OLDEST)).then_some(newest)
}

/// What a version does to the byte that follows it.
const fn mark(version: u8) -> u8 {
    if version == 1 { 0 } else { 0x80 }
}

const WHOLE: u8 = 0;
const CHUNK: u8 = 1;
const CHUNK_HEADER: usize = 10;

/// A payload that is no message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The first byte names a version that this build does not speak.
    Version(u8),
    /// It ends before its fields do, or goes on after them.
    Malformed,
    /// It is longer than its bound, in bytes.
    TooLong(usize),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => {
                write!(
                    f,
                    "wire version {version}; this build speaks {OLDEST} to {VERSION}"
                )
            }
            Self::Malformed => f.write_str("truncated or malformed frame"),
            Self::TooLong(bytes) => write!(f, "{bytes} bytes, past the bound of {}", limits::MESSAGE),
        }
    }
}

impl core::error::Error for Unreadable {}

/// A payload taken apart; borrowed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A whole message.
    Whole(&'a [u8]),
    /// A part of one.
    Chunk {
        /// Which message, by its sender's count.
        id: u32,
        /// Which part, from 0.
        index: u16,
        /// How many parts.
        count: u16,
        /// The part.
        bytes: &'a [u8],
    },
}

impl<'a> Frame<'a> {
    /// Takes a payload apart.
    ///
    /// # Errors
    /// When its version, kind or lengths are not ours.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Unreadable> {
        if payload.len() > limits::FRAME {
            return Err(Unreadable::TooLong(payload.len()));
        }
        let (&version, rest) = payload.split_first().ok_or(Unreadable::Malformed)?;
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(Unreadable::Version(version));
        }
        let (&kind, rest) = rest.split_first().ok_or(Unreadable::Malformed)?;
        match (kind ^ mark(version), rest) {
            (WHOLE, message) => Ok(Self::Whole(message)),
            (CHUNK, rest) if rest.len() >= CHUNK_HEADER - 2 => {
                let (header, bytes) = rest.split_at(CHUNK_HEADER - 2);
                let id = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
                let index = u16::from_le_bytes([header[4], header[5]]);
                let count = u16::from_le_bytes([header[6], header[7]]);
                let last = index.checked_add(1) == Some(count);
                let bound = limits::MESSAGE.div_ceil(limits::CHUNK);
                if index >= count || usize::from(count) > bound || bytes.is_empty() {
                    return Err(Unreadable::Malformed);
                }
                if bytes.len() > limits::CHUNK || (!last && bytes.len() != limits::CHUNK) {
                    return Err(Unreadable::Malformed);
                }
                Ok(Self::Chunk {
                    id,
                    index,
                    count,
                    bytes,
                })
            }
            _ => Err(Unreadable::Malformed),
        }
    }
}

/// The payloads that carry `message` in a version that this build speaks; `id` must differ from that of every message
/// still on its way.
///
/// # Errors
/// When the message is longer than [`limits::MESSAGE`].
pub fn frames(version: u8, message: &[u8], id: u32) -> Result<Vec<Vec<u8>>, Unreadable> {
    if message.len() > limits::MESSAGE {
        return Err(Unreadable::TooLong(message.len()));
    }
    if message.len() + 2 <= limits::FRAME {
        let mut payload = Vec::with_capacity(message.len() + 2);
        payload.extend_from_slice(&[version, WHOLE ^ mark(version)]);
        payload.extend_from_slice(message);
        return Ok(alloc::vec![payload]);
    }
    let chunks = message.chunks(limits::CHUNK);
    // The bound on messages keeps the count far below u16::MAX; limits.rs asserts it.
    let count = chunks.len() as u16;
    Ok(chunks
        .enumerate()
        .map(|(index, bytes)| {
            let mut payload = Vec::with_capacity(bytes.len() + CHUNK_HEADER);
            payload.extend_from_slice(&[version, CHUNK ^ mark(version)]);
            payload.extend_from_slice(&id.to_le_bytes());
            payload.extend_from_slice(&(index as u16).to_le_bytes());
            payload.extend_from_slice(&count.to_le_bytes());
            payload.extend_from_slice(bytes);
            payload
        })
        .collect())
}

/// An unfinished message.
#[derive(Debug)]
struct Partial {
    id: u32,
    parts: Vec<Option<Vec<u8>>>,
}

/// Puts one peer's chunks together again, in whatever order and however often they come.
#[derive(Debug, Default)]
pub struct Assembler {
    partial: Vec<Partial>,
    lost: u64,
}

impl Assembler {
    /// Takes a payload; gives the message that it completes, if it does.
    ///
    /// # Errors
    /// When the payload is not a frame of ours. Nothing that was put together before is lost.
    pub fn push(&mut self, payload: &[u8]) -> Result<Option<Vec<u8>>, Unreadable> {
        let (id, index, count, bytes) = match Frame::parse(payload)? {
            Frame::Whole(message) => return Ok(Some(message.to_vec())),
            Frame::Chunk {
                id,
                index,
                count,
                bytes,
            } => (id, index, count, bytes),
        };
        let at = match self
            .partial
            .iter()
            .position(|it| it.id == id && it.parts.len() == usize::from(count))
        {
            Some(at) => at,
            None => self.begin(id, count),
        };
        self.partial[at].parts[usize::from(index)] = Some(bytes.to_vec());
        if self.partial[at].parts.iter().any(Option::is_none) {
            return Ok(None);
        }
        let done = self.partial.remove(at);
        let message: Vec<u8> = done.parts.into_iter().flatten().flatten().collect();
        if message.len() > limits::MESSAGE {
            return Err(Unreadable::TooLong(message.len()));
        }
        Ok(Some(message))
    }

    /// Messages given up unfinished because newer ones needed the room.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn begin(&mut self, id: u32, count: u16) -> usize {
        self.partial.retain(|it| it.id != id);
        if self.partial.len() == limits::REASSEMBLIES {
            self.partial.remove(0);
            self.lost += 1;
        }
        self.partial.push(Partial {
            id,
            parts: alloc::vec![None; usize::from(count)],
        });
        self.partial.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_every_size_round_trip_in_any_order_and_twice() {
        for size in [
            0,
            1,
            limits::FRAME - 2,
            limits::FRAME - 1,
            limits::CHUNK * 3,
            limits::MESSAGE,
        ] {
            let message: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut payloads = frames(VERSION, &message, 7).unwrap();
            assert!(payloads.iter().all(|it| it.len() <= limits::FRAME));
            payloads.reverse();
            let mut assembler = Assembler::default();
            let mut got = Vec::new();
            for payload in &payloads {
                got.extend(assembler.push(payload).unwrap());
                if got.is_empty() {
                    assert_eq!(
                        assembler.push(payload),
                        Ok(None),
                        "a repeated chunk completes nothing"
                    );
                }
            }
            assert_eq!(got, [message], "{size}");
        }
    }

    #[test]
    fn what_is_not_a_frame_is_refused() {
        let long = alloc::vec![VERSION; limits::FRAME + 1];
        for (payload, expected) in [
            (&[][..], Unreadable::Malformed),
            (&[OLDEST], Unreadable::Malformed),
            (&[9, 0, 1], Unreadable::Version(9)),
            (&[OLDEST, 2, 0], Unreadable::Malformed),
            (&[OLDEST, CHUNK, 0, 0, 0, 0, 0, 0], Unreadable::Malformed),
            (&[OLDEST, CHUNK, 0, 0, 0, 0, 2, 0, 2, 0, 9], Unreadable::Malformed),
            (
                &[OLDEST, CHUNK, 0, 0, 0, 0, 0, 0, 255, 255, 9],
                Unreadable::Malformed,
            ),
            (&long, Unreadable::TooLong(limits::FRAME + 1)),
        ] {
            assert_eq!(Frame::parse(payload), Err(expected));
        }
        assert_eq!(
            frames(VERSION, &alloc::vec![0; limits::MESSAGE + 1], 1),
            Err(Unreadable::TooLong(limits::MESSAGE + 1))
        );
    }

    #[test]
    fn unfinished_messages_are_bounded_and_their_loss_is_counted() {
        let message = alloc::vec![1; limits::CHUNK * 2];
        let mut assembler = Assembler::default();
        for id in 0..10 {
            assert_eq!(
                assembler.push(&frames(VERSION, &message, id).unwrap()[0]),
                Ok(None)
            );
        }
        assert_eq!(assembler.lost(), 10 - limits::REASSEMBLIES as u64);
        assert_eq!(
            assembler.push(&frames(VERSION, &message, 9).unwrap()[1]),
            Ok(Some(message))
        );
    }

    #[test]
    fn two_ends_speak_the_newest_version_that_both_know() {
        for (theirs, expected) in [
            ((OLDEST, OLDEST), Some(OLDEST)),
            ((OLDEST, VERSION), Some(VERSION)),
            ((OLDEST, VERSION + 1), Some(VERSION)),
            ((VERSION, VERSION + 7), Some(VERSION)),
            ((VERSION + 1, VERSION + 2), None),
            ((0, OLDEST - 1), None),
            ((0, u8::MAX), Some(VERSION)),
            ((u8::MAX, 0), None),
        ] {
            assert_eq!(common(theirs), expected, "{theirs:?}");
        }
    }

    #[test]
    fn every_version_is_read_and_no_other() {
        let message = alloc::vec![5; limits::CHUNK * 2];
        for version in OLDEST..=VERSION {
            let mut assembler = Assembler::default();
            let payloads = frames(version, &message, 3).unwrap();
            let read: Vec<_> = payloads
                .iter()
                .filter_map(|payload| assembler.push(payload).unwrap())
                .collect();
            assert_eq!(read, [&message[..]], "version {version}");
            assert_eq!(
                frames(version, &[7], 3).unwrap(),
                [[version, mark(version), 7]],
                "version {version}"
            );
        }
        for version in [OLDEST - 1, VERSION + 1] {
            assert_eq!(Frame::parse(&[version, WHOLE]), Err(Unreadable::Version(version)));
        }
    }
}
