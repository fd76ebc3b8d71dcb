//! What a container said about its own end: `terminationMessagePath` and `terminationMessagePolicy`.
//!
//! Always holds: at most [`limits::TEXT`] bytes, the last ones; a file that cannot be read is told of in its place.
//!
//! Source: Kubernetes documentation, "Determine the Reason for Pod Failure".

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use skiff_protocol::limits;
use skiff_shim::ring::{Reader, RingError};

use crate::logs::ring_path;
use crate::plan::termination_path;

/// Bytes of a log that stand in for a message.
const LOG_BYTES: usize = 2048;

/// Lines of a log that stand in for a message.
const LOG_LINES: usize = 80;

/// Bytes of a log that are read at once.
const PIECE: usize = 16 * 1024;

/// The last words of one attempt; with `from_log` the end of its log where it left none.
pub(crate) fn read(run: &Path, name: &str, attempt: u32, from_log: bool) -> String {
    let path = termination_path(run, &format!("{name}-{attempt}"));
    let said = match tail(&path) {
        Ok(said) => said,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return format!("Error on reading termination log {}: {error}", path.display()),
    };
    if said.is_empty() && from_log {
        // Without a log there is nothing to say.
        return text(&log_tail(&ring_path(run, name, attempt)).unwrap_or_default());
    }
    text(&said)
}

fn tail(path: &Path) -> io::Result<Vec<u8>> {
    // What is no plain file was put there by somebody who can do worse, and could block us for ever.
    if !path.symlink_metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limits::TEXT as u64)))?;
    let mut out = Vec::new();
    file.take(limits::TEXT as u64).read_to_end(&mut out)?;
    Ok(out)
}

fn log_tail(ring: &Path) -> Result<Vec<u8>, RingError> {
    let reader = Reader::open(ring)?;
    let mut at = reader.tail(LOG_LINES)?;
    let mut out = Vec::new();
    loop {
        let chunk = reader.read(at, PIECE)?;
        for record in &chunk.records {
            out.extend_from_slice(&record.bytes);
            if !record.partial {
                out.push(b'\n');
            }
        }
        out.drain(..out.len().saturating_sub(LOG_BYTES));
        if chunk.records.is_empty() || chunk.next == at {
            return Ok(out);
        }
        at = chunk.next;
    }
}

/// As text. What is not UTF-8 grows by being marked, so it is cut again, at its beginning.
fn text(bytes: &[u8]) -> String {
    let mut out = String::from_utf8_lossy(bytes).into_owned();
    let mut cut = out.len().saturating_sub(limits::TEXT);
    while !out.is_char_boundary(cut) {
        cut += 1;
    }
    out.drain(..cut);
    out
}

#[cfg(test)]
mod tests;
