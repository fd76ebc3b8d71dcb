//! Every bound of the store, each with the reason for its number.
//!
//! Reaching one is an answer to whoever asked (an error, or the end of a watch), never silence.

use std::time::Duration;

/// Writes waiting for the writer task; a full queue makes the caller wait, which slows clients down evenly.
pub const WRITE_QUEUE: usize = 1024;

/// Writes in one transaction: enough to amortise a sync over a burst, few enough to keep it within milliseconds.
pub const WRITE_BATCH: usize = 128;

/// Events kept so that a watch can resume after a short absence.
pub const HISTORY_EVENTS: usize = 8192;

/// Bytes of JSON those events may hold, so that large objects cannot multiply into gigabytes.
pub const HISTORY_BYTES: usize = 32 << 20;

/// Events waiting for one watcher; a watcher that falls further behind is ended and must list again.
pub const WATCH_QUEUE: usize = 1024;

/// Watches open at once, over all clients.
pub const WATCHES: usize = 4096;

/// Database connections for reads; each costs a thread.
pub const READERS: u32 = 3;

/// Rows fetched at once when a caller walks a whole listing.
pub const PAGE: usize = 500;

/// Largest stored document, above the 3 MiB that a request body may have because defaults are added to it.
pub const DOCUMENT_BYTES: usize = 4 << 20;

/// Largest value of the key-value table.
pub const VALUE_BYTES: usize = 1 << 20;

/// How often a read-modify-write is tried again after somebody else wrote in between.
pub const UPDATE_ATTEMPTS: usize = 16;

/// How long a statement waits for another connection's lock.
pub const BUSY: Duration = Duration::from_secs(10);
