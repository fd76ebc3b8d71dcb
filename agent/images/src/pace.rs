//! How fast bytes may come: limits that all pulls of the node share.
//!
//! ```text
//! <file>   u64, little endian: nanoseconds of CLOCK_MONOTONIC until when what was taken lasts
//! ```
//!
//! Always holds: who takes bytes moves that time on by what they last, under the file's lock, and waits until what was taken
//! before has lasted; so together no more comes than the limit, whoever takes it. A file that says nonsense limits as an
//! empty one; one that cannot be written ends no pull.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::pull::{Fetched, SourceKind};

const SECOND: u64 = 1_000_000_000;

/// Nanoseconds of the limit that may come at once after a pause.
const BURST: u64 = SECOND / 10;

/// No wait that was left to others lasts longer: it is nonsense.
const MOST: u64 = 60 * SECOND;

/// Bytes that are taken at once, unless the limit is so low that these last longer than a [`BURST`].
const PIECE: u64 = 64 << 10;
const LEAST: u64 = 512;

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pace {
    /// What those share who keep to it. Best where nothing is written to flash.
    pub file: PathBuf,
    /// The limit, not 0.
    pub bytes_per_second: u64,
}

impl Pace {
    /// Takes so many bytes; gives how long to wait before more are taken.
    fn take(&self, bytes: u64, now: u64) -> io::Result<Duration> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&self.file);
        let mut file = file?;
        file.lock()?;
        let mut text = [0; 8];
        let until = match file.read_exact(&mut text) {
            Ok(()) => u64::from_le_bytes(text),
            Err(_) => 0,
        };
        let lasts = u128::from(bytes) * u128::from(SECOND) / u128::from(self.bytes_per_second.max(1));
        let begins = until.min(now + MOST).max(now.saturating_sub(BURST));
        let until = begins.saturating_add(u64::try_from(lasts).unwrap_or(MOST));
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&until.to_le_bytes())?;
        Ok(Duration::from_nanos(until.saturating_sub(now)))
    }
}

/// The limits that hold for one source, and the count of what came from it.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    paces: Vec<Pace>,
    kind: SourceKind,
}

/// Bytes that this process was sent, by the kind of the sender.
static FETCHED: [AtomicU64; 3] = [AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)];

/// Bytes that this process was sent.
pub(crate) fn fetched() -> Fetched {
    let [server, mirror, registry] = [0, 1, 2].map(|at: usize| FETCHED[at].load(Ordering::Relaxed));
    Fetched {
        server,
        mirror,
        registry,
    }
}

impl Meter {
    pub(crate) fn new(kind: SourceKind, paces: &[Pace]) -> Self {
        Self {
            paces: paces.to_vec(),
            kind,
        }
    }

    /// Bytes to ask for at once.
    pub(crate) fn piece(&self) -> usize {
        let slowest = self.paces.iter().map(|it| it.bytes_per_second / 10).min();
        // Never more than a piece, which is few.
        slowest.map_or(usize::MAX, |it| it.clamp(LEAST, PIECE) as usize)
    }

    /// So many bytes came: they are counted, and lasted out.
    pub(crate) fn came(&self, bytes: usize) {
        let at = match self.kind {
            SourceKind::Server => 0,
            SourceKind::Mirror => 1,
            SourceKind::Registry => 2,
        };
        FETCHED[at].fetch_add(bytes as u64, Ordering::Relaxed);
        let now = clock_gettime(ClockId::Monotonic);
        let now = (now.tv_sec as u64)
            .saturating_mul(SECOND)
            .saturating_add(now.tv_nsec as u64);
        let waits = self.paces.iter().filter_map(|it| {
            it.take(bytes as u64, now)
                .inspect_err(|error| tracing::warn!(path = %it.file.display(), %error, "a limit is not kept"))
                .ok()
        });
        if let Some(longest) = waits.max() {
            thread::sleep(longest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_take_together_keep_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let pace = Pace {
            file: dir.path().join("node"),
            bytes_per_second: 1000,
        };
        let other = pace.clone();
        let start = 1000 * SECOND;
        let millis = |wait: io::Result<Duration>| wait.unwrap().as_millis();
        // What was not taken for a while comes at once, as far as a burst goes.
        assert_eq!(millis(pace.take(100, start)), 0);
        assert_eq!(millis(pace.take(500, start)), 500);
        assert_eq!(millis(other.take(500, start)), 1000, "the other waits for both");
        assert_eq!(millis(pace.take(100, start + SECOND)), 100);
        assert_eq!(millis(other.take(100, start + 20 * SECOND)), 0);
        // Nonsense is none.
        std::fs::write(&pace.file, [0xff; 8]).unwrap();
        assert_eq!(millis(pace.take(1000, start)), 61_000);
        std::fs::write(&pace.file, [1; 3]).unwrap();
        assert_eq!(millis(pace.take(100, start)), 0);
    }

    #[test]
    fn pieces_last_no_longer_than_a_burst() {
        let of = |limits: &[u64]| {
            let pace = |bytes_per_second: &u64| Pace {
                file: PathBuf::new(),
                bytes_per_second: *bytes_per_second,
            };
            let paces: Vec<Pace> = limits.iter().map(pace).collect();
            Meter::new(SourceKind::Registry, &paces).piece()
        };
        assert_eq!(of(&[]), usize::MAX);
        assert_eq!(of(&[1 << 40]), 64 << 10);
        assert_eq!(of(&[100_000, 1 << 40]), 10_000);
        assert_eq!(of(&[1]), 512);
    }
}
