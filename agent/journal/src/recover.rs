//! What the bytes of a journal mean after anything may have happened to them.
//!
//! Always holds: deciding writes nothing; what has to be written before the journal may be used comes out
//! as a [`Plan`]. Damage is an error and never a shorter journal, except where `FORMAT.md` says that the
//! two cannot be told apart.

use crate::disk::Disk;
use crate::error::{Damage, Error};
use crate::format::{
    END_MARK, FRAME_HEADER, FRAMES_START, HEADER, HEADER_COPIES, Header, HeaderFault, MIN_FRAME, Unverified,
    VERSION, sequence_at,
};
use crate::storage::{Segment, SegmentSize, Storage};

/// A journal as found, and what must be written to rely on it.
pub(crate) struct Plan {
    /// The headers that hold, by segment.
    pub(crate) headers: [Header; 2],
    /// The segment that rules.
    pub(crate) active: Segment,
    /// Header copies to be written again, each synced before the next.
    pub(crate) repairs: Vec<(Segment, u64)>,
    /// The ruling segment's frames.
    pub(crate) chain: Chain,
    /// The last frame behind the checkpoint: where it starts, and its bytes, to be written again.
    pub(crate) last_frame: Option<(usize, Vec<u8>)>,
}

/// The frames of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) records: Vec<Vec<u8>>,
    /// Offset behind the last valid frame.
    pub(crate) end: usize,
    pub(crate) next_sequence: u64,
    /// Where the last frame behind the checkpoint begins.
    pub(crate) last: Option<usize>,
    /// Bytes of a frame that was being written, at `end`.
    pub(crate) torn: Option<usize>,
}

/// The header that holds of a segment's two copies, and the copies that must be written again.
type Held = (Header, &'static [u64]);

/// Reads the whole journal and decides what it holds.
pub(crate) fn plan<S: Storage>(disk: &mut Disk<S>) -> Result<Plan, Error> {
    let mut held = Vec::new();
    for segment in Segment::ALL {
        held.push(read_header(disk, segment)?);
    }
    let [(zero, zero_repairs), (one, one_repairs)] = [held[0], held[1]];
    if zero.id != one.id {
        return Err(disk.corrupt(Segment::One, 0, Damage::OtherJournal));
    }
    if zero.epoch == one.epoch || zero.size != one.size {
        return Err(disk.corrupt(Segment::One, 0, Damage::HeadersDisagree));
    }
    let (active, header) = if zero.epoch > one.epoch {
        (Segment::Zero, zero)
    } else {
        (Segment::One, one)
    };

    let mut bytes = vec![0; header.size.len()];
    disk.read(active, 0, &mut bytes)?;
    let chain = scan(&bytes, &header).map_err(|(offset, what)| disk.corrupt(active, offset, what))?;
    let last_frame = chain.last.map(|start| (start, bytes[start..chain.end].to_vec()));

    let copies = |segment, repairs: &[u64]| {
        repairs
            .iter()
            .map(move |copy| (segment, *copy))
            .collect::<Vec<_>>()
    };
    let repairs = [
        copies(Segment::Zero, zero_repairs),
        copies(Segment::One, one_repairs),
    ]
    .concat();
    Ok(Plan {
        headers: [zero, one],
        active,
        repairs,
        chain,
        last_frame,
    })
}

fn read_header<S: Storage>(disk: &mut Disk<S>, segment: Segment) -> Result<Held, Error> {
    let len = disk.run("reading the length of", segment, |storage| storage.len(segment))?;
    if SegmentSize::new(len).is_err() {
        return Err(disk.corrupt(segment, 0, Damage::Length(len)));
    }
    let mut copies = [Err(HeaderFault::Invalid); 2];
    for (copy, offset) in copies.iter_mut().zip(HEADER_COPIES) {
        let mut bytes = [0; HEADER];
        disk.read(segment, offset, &mut bytes)?;
        *copy = Header::parse(&bytes);
        match *copy {
            Err(HeaderFault::Version(found)) => {
                return Err(Error::Version {
                    path: disk.path(segment),
                    found,
                    supported: VERSION,
                });
            }
            Ok(header) if header.segment != segment => {
                return Err(disk.corrupt(segment, offset as usize, Damage::WrongSegment));
            }
            Ok(header) if u64::from(header.size.bytes()) != len => {
                return Err(disk.corrupt(segment, offset as usize, Damage::Length(len)));
            }
            Ok(_) | Err(HeaderFault::Invalid) => {}
        }
    }
    hold(copies).map_err(|what| disk.corrupt(segment, 0, what))
}

/// The table "Header copies of one segment" of `FORMAT.md`.
fn hold([first, second]: [Result<Header, HeaderFault>; 2]) -> Result<Held, Damage> {
    const FIRST: u64 = HEADER_COPIES[0];
    const SECOND: u64 = HEADER_COPIES[1];
    match (first, second) {
        (Ok(first), Ok(second)) if first == second => Ok((first, &[])),
        (Ok(first), Ok(second)) if first.id != second.id => Err(Damage::OtherJournal),
        // The first copy may have been read from the page cache alone, so it is written again too.
        (Ok(first), Ok(second)) if first.epoch > second.epoch => Ok((first, &[FIRST, SECOND])),
        (Ok(_), Ok(_)) => Err(Damage::HeadersDisagree),
        (Ok(first), Err(_)) => Ok((first, &[SECOND])),
        (Err(_), Ok(second)) => Ok((second, &[FIRST])),
        (Err(_), Err(_)) => Err(Damage::Headers),
    }
}

/// Follows the frames of a ruling segment, and looks behind the place where they end.
pub(crate) fn scan(segment: &[u8], header: &Header) -> Result<Chain, (usize, Damage)> {
    let (salt, max_payload) = (header.salt(), header.size.max_payload());
    let mut chain = Chain {
        records: Vec::new(),
        end: FRAMES_START,
        next_sequence: header.first_sequence,
        last: None,
        torn: None,
    };
    while let Some(frame) =
        Unverified::at(segment, chain.end, max_payload).and_then(|head| head.verify(segment, chain.end, salt))
    {
        if frame.sequence != chain.next_sequence {
            let damage = Damage::Sequence {
                found: frame.sequence,
                expected: chain.next_sequence,
            };
            return Err((chain.end, damage));
        }
        let records = frame.records().ok_or((chain.end, Damage::Records))?;
        chain.next_sequence = chain.next_sequence.saturating_add(records.len() as u64);
        chain.records.extend(records.into_iter().map(<[u8]>::to_vec));
        if chain.end >= header.checkpoint_end {
            chain.last = Some(chain.end);
        }
        chain.end += frame.len();
    }
    if chain.end < header.checkpoint_end {
        return Err((chain.end, Damage::Checkpoint));
    }
    if let Some(next) = later_frame(segment, header, chain.end, chain.next_sequence) {
        return Err((chain.end, Damage::Middle { next: next as u64 }));
    }
    chain.torn = torn(segment, header, chain.end, chain.next_sequence);
    Ok(chain)
}

/// The offset of a valid frame behind `end` that continues, or follows, `sequence`.
fn later_frame(segment: &[u8], header: &Header, end: usize, sequence: u64) -> Option<usize> {
    const STRIDE: usize = 4096;
    const ZEROS: [u8; STRIDE + FRAME_HEADER] = [0; STRIDE + FRAME_HEADER];
    let salt = header.salt();
    // No more records than record headers fit into the segment. The range is what keeps this scan short: a
    // checksum is computed only where eight bytes look like a sequence, and those cannot be guessed.
    let range = sequence..=sequence.saturating_add(segment.len() as u64);
    let starts = end + 1..segment.len().saturating_sub(MIN_FRAME - 1);
    starts.clone().step_by(STRIDE).find_map(|from| {
        let stride = &segment[from..segment.len().min(from + ZEROS.len())];
        // Where all is zero no sequence begins, and most of a segment is zero until it was filled once.
        if stride == &ZEROS[..stride.len()] {
            return None;
        }
        (from..starts.end.min(from + STRIDE)).find(|&at| {
            sequence_at(segment, at).is_some_and(|found| range.contains(&found))
                && Unverified::at(segment, at, header.size.max_payload())
                    .is_some_and(|head| head.verify(segment, at, salt).is_some())
        })
    })
}

/// Bytes of a batch that was being written at `end`, as far as its header survived; `None` at an end mark.
fn torn(segment: &[u8], header: &Header, end: usize, sequence: u64) -> Option<usize> {
    let tail = &segment[end..];
    if tail.len() < MIN_FRAME || tail.starts_with(&END_MARK) {
        return None;
    }
    match Unverified::at(segment, end, header.size.max_payload()) {
        Some(head) if head.sequence == sequence => Some(FRAME_HEADER + head.len),
        _ => Some(FRAME_HEADER),
    }
}
