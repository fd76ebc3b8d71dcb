//! What can go wrong, and what it is about.
//!
//! Always holds: a damaged journal is [`Error::Corrupt`] or [`Error::Version`], which come without a
//! journal and without records, so no caller can go on with them as if the node were new.

use std::io;
use std::path::PathBuf;

/// Why the journal could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a read, write or sync. What holds after a failed write is told by the
    /// call.
    #[error("{action} {}", .path.display())]
    Io {
        /// What was tried, as a phrase that the path completes.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Another process has the journal open.
    #[error("{} is in use by another process; only one agent may use a journal", .path.display())]
    Locked {
        /// The journal's directory.
        path: PathBuf,
    },
    /// The journal was damaged in a way that no interrupted write explains. It was left as it is.
    #[error("{} is damaged at byte {offset}: {what}; {advice}", .path.display())]
    Corrupt {
        /// The segment's file.
        path: PathBuf,
        /// Where in the file the damage begins.
        offset: u64,
        /// What is wrong there.
        what: Damage,
        /// What a person should do.
        advice: &'static str,
    },
    /// The journal was written in a format that this program does not know. It was left as it is.
    #[error("{} has format version {found}, this program knows {supported}; run the program that wrote it", .path.display())]
    Version {
        /// The segment's file.
        path: PathBuf,
        /// The version in its header.
        found: u16,
        /// The one version that this program reads and writes.
        supported: u16,
    },
    /// An earlier sync failed, so this segment cannot be trusted with more; a checkpoint moves to the other
    /// one.
    #[error("an earlier sync of {} failed; nothing can be committed before a checkpoint succeeds", .path.display())]
    NeedsCheckpoint {
        /// The segment's file.
        path: PathBuf,
    },
    /// A record handed to a checkpoint is too large. Nothing changed.
    #[error("a record of {len} bytes in a checkpoint of {}: at most {max} are allowed", .path.display())]
    RecordTooLarge {
        /// The segment's file.
        path: PathBuf,
        /// The record's length, bytes.
        len: usize,
        /// The bound, bytes.
        max: usize,
    },
    /// The live records do not fit into a segment. Nothing changed.
    #[error("the live records need more than the {max} bytes that a checkpoint may take in {}", .path.display())]
    CheckpointTooLarge {
        /// The segment's file.
        path: PathBuf,
        /// The bound, bytes, framing included.
        max: usize,
    },
}

/// Why a record was not taken. The journal is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// No segment of this size ever takes such a record.
    #[error("a record of {len} bytes: at most {max} are allowed")]
    TooLarge {
        /// The record's length, bytes.
        len: usize,
        /// The bound, bytes.
        max: usize,
    },
    /// The buffered batch would become too large: commit, then append again.
    #[error("{buffered} bytes wait to be committed and at most {max} may: commit first")]
    BatchFull {
        /// Bytes buffered now.
        buffered: usize,
        /// The bound, bytes.
        max: usize,
    },
    /// The segment has no room behind what is written and buffered: checkpoint, then append again.
    #[error(
        "the record needs {needed} bytes and the segment has {free} left of {capacity}: checkpoint first"
    )]
    SegmentFull {
        /// Bytes that the record needs, framing included.
        needed: usize,
        /// Bytes left.
        free: usize,
        /// Bytes for frames in a segment.
        capacity: usize,
    },
}

/// What is wrong with a journal that is [`Error::Corrupt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// One of the two files is gone.
    #[error("the file is missing while the other segment exists")]
    Missing,
    /// The file's length is none that a segment can have, or differs from what its header says.
    #[error("the file has a length of {0} bytes, which is not what was made")]
    Length(u64),
    /// Neither copy of the header passes its checksum.
    #[error("both copies of the header are invalid")]
    Headers,
    /// The two copies of the header, or the headers of the two segments, contradict each other.
    #[error("the headers contradict each other")]
    HeadersDisagree,
    /// The header belongs to the other segment.
    #[error("the header is the other segment's")]
    WrongSegment,
    /// The header belongs to another journal than the other segment's.
    #[error("the two segments belong to different journals")]
    OtherJournal,
    /// A frame of the checkpoint, which was synced before it was used, is invalid.
    #[error("a frame of the checkpoint is invalid")]
    Checkpoint,
    /// An invalid frame stands before a valid later one.
    #[error("an invalid frame is followed by a valid one at byte {next}")]
    Middle {
        /// Where the valid frame begins.
        next: u64,
    },
    /// A frame passes its checksum but not its place in the order.
    #[error("a valid frame has sequence {found} where {expected} belongs")]
    Sequence {
        /// The sequence in the frame.
        found: u64,
        /// The sequence that would continue the journal.
        expected: u64,
    },
    /// A frame passes its checksum but its records do not fill it.
    #[error("the records of a valid frame do not fill it")]
    Records,
}

/// What [`Error::Corrupt`] tells a person to do.
pub(crate) const ADVICE: &str = "stop the agent, copy both journal files away for diagnosis, check the medium, and restore a \
    backup; or, if the node may be enrolled anew, move the files away and start again";
