//! Every bound of the journal, each with the reason for its number.
//!
//! Always holds: one record of the largest size fits into a segment behind the largest checkpoint, so a
//! checkpoint that succeeded always makes room. The assertions at the end are checked by the compiler.

/// Smallest segment, bytes. Two header blocks of 4 KiB and as much again for frames.
pub const MIN_SEGMENT: u32 = 16 * 1024;

/// Segment size unless told otherwise, bytes. A fourth of it holds the largest message of the wire (1.5
/// MiB), the rest the desired state of some hundred pods.
pub const DEFAULT_SEGMENT: u32 = 8 * 1024 * 1024;

/// Largest segment, bytes. Recovery reads one whole segment into memory.
pub const MAX_SEGMENT: u32 = 64 * 1024 * 1024;

/// Largest record in any segment, bytes: above the wire's largest message. In segments below 8 MiB it is a
/// fourth of the room for frames.
pub const MAX_RECORD: usize = 2 * 1024 * 1024;

/// Payload bytes after which a checkpoint closes a frame and begins the next, so that it needs little memory.
pub const CHECKPOINT_PAYLOAD: usize = 64 * 1024;

/// Bytes the commit buffer keeps allocated between commits; a rare large batch gives its memory back.
pub const RETAINED_BUFFER: usize = 16 * 1024;

const _: () = assert!(MIN_SEGMENT <= DEFAULT_SEGMENT && DEFAULT_SEGMENT <= MAX_SEGMENT);
const _: () = assert!(MAX_RECORD < DEFAULT_SEGMENT as usize / 2);
const _: () = assert!(RETAINED_BUFFER < CHECKPOINT_PAYLOAD);
