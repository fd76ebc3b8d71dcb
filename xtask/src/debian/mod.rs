//! Debian packages as a source of programs: fetched and unpacked under `target/debian`, nothing installed.
//!
//! apt runs with its own configuration, state and cache, so this needs no root, starts no daemon and leaves
//! the system's package lists alone. The mirror is the one that the system's own configuration names.

mod sources;
mod suite;

pub(crate) use suite::{Suite, Unpacked};
