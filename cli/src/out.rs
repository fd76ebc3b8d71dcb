//! Standard output, for results.
//!
//! Always holds: an error of writing reaches the caller, so that a closed pipe ends the command.

use std::io::{self, BufWriter, Stdout, Write as _};

use crate::failure::Outcome;

/// Buffered standard output.
pub(crate) struct Out(BufWriter<Stdout>);

impl Out {
    pub(crate) fn new() -> Self {
        Self(BufWriter::new(io::stdout()))
    }

    /// A line.
    pub(crate) fn line(&mut self, text: &str) -> Outcome {
        Ok(writeln!(self.0, "{text}")?)
    }

    /// Bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Outcome {
        Ok(self.0.write_all(bytes)?)
    }

    /// What was written becomes visible.
    pub(crate) fn flush(&mut self) -> Outcome {
        Ok(self.0.flush()?)
    }
}
