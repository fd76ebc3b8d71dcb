//! Storage with its errors named and its traffic counted.
//!
//! Always holds: an error says what was tried and on which file; a byte or a sync is counted when the
//! storage said it succeeded.

use std::io;
use std::path::PathBuf;

use crate::error::{ADVICE, Damage, Error};
use crate::storage::{Segment, Storage};

/// What was asked of the storage since the journal was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes_written: u64,
    pub(crate) syncs: u64,
    pub(crate) failures: u64,
}

pub(crate) struct Disk<S> {
    storage: S,
    pub(crate) traffic: Traffic,
}

impl<S: Storage> Disk<S> {
    pub(crate) fn new(storage: S) -> Self {
        Self {
            storage,
            traffic: Traffic::default(),
        }
    }

    pub(crate) fn path(&self, segment: Segment) -> PathBuf {
        self.storage.path(segment)
    }

    pub(crate) fn corrupt(&self, segment: Segment, offset: usize, what: Damage) -> Error {
        Error::Corrupt {
            path: self.path(segment),
            offset: offset as u64,
            what,
            advice: ADVICE,
        }
    }

    /// Runs one operation of the storage that is about `segment`.
    pub(crate) fn run<T>(
        &mut self,
        action: &'static str,
        segment: Segment,
        operation: impl FnOnce(&mut S) -> io::Result<T>,
    ) -> Result<T, Error> {
        operation(&mut self.storage).map_err(|source| {
            self.traffic.failures += 1;
            Error::Io {
                action,
                path: self.storage.path(segment),
                source,
            }
        })
    }

    pub(crate) fn read(&mut self, segment: Segment, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        self.run("reading", segment, |storage| {
            storage.read_at(segment, offset, into)
        })
    }

    pub(crate) fn write(&mut self, segment: Segment, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.run("writing", segment, |storage| {
            storage.write_at(segment, offset, bytes)
        })?;
        self.traffic.bytes_written += bytes.len() as u64;
        Ok(())
    }

    /// Writes zeros from `offset` up to `end`.
    pub(crate) fn wipe(&mut self, segment: Segment, offset: usize, end: usize) -> Result<(), Error> {
        const ZEROS: [u8; 4096] = [0; 4096];
        for at in (offset..end).step_by(ZEROS.len()) {
            let len = ZEROS.len().min(end - at);
            self.write(segment, at as u64, &ZEROS[..len])?;
        }
        Ok(())
    }

    pub(crate) fn sync(&mut self, segment: Segment) -> Result<(), Error> {
        self.run("syncing", segment, |storage| storage.sync(segment))?;
        self.traffic.syncs += 1;
        Ok(())
    }
}
