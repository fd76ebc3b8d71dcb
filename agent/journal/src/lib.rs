//! The node's journal: opaque records in, durable records out.
//!
//! Always holds:
//! - A record is durable when [`Journal::commit`] or [`Journal::checkpoint`] returned `Ok`, and not before.
//! - A commit is recovered whole or not at all, and never without everything committed before it.
//! - A damaged journal is an [`Error`]; it is never opened, so it cannot be taken for an empty one.
//! - Nothing is written unless the caller appends, checkpoints or opens.
//!
//! What the records mean, and whether they are sealed, is the caller's business. `FORMAT.md` beside this
//! crate describes every byte and what the medium is assumed to do. The calls block.

mod crc;
mod disk;
mod error;
mod file;
mod format;
mod journal;
pub mod limits;
mod recover;
mod storage;

pub use error::{AppendError, Damage, Error};
pub use file::FileStorage;
pub use journal::{Durable, Journal, Outcome, Recovery, Sequence, Stats};
pub use storage::{InvalidSegmentSize, Presence, Segment, SegmentSize, Storage};
