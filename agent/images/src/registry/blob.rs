//! A layer as one stream, whatever the connection does, and whatever ended the pull before this one.
//!
//! Always holds: the bytes come in order and exactly once. What an earlier pull had got comes from its file; the rest is
//! asked for by `Range`, as after a broken connection; a server that ignores `Range` is read again up to there. Retries are
//! bounded, in a row and altogether.

use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use skiff_protocol::image_ref::Digest;
use ureq::BodyReader;
use ureq::http::header::CONTENT_RANGE;

use super::client::{Client, refusal};
use super::{Descriptor, RegistryError};
use crate::limits::{BYTES_PER_RETRY, MAX_RETRIES, MAX_STALLED_RETRIES};
use crate::partial::Partial;
use crate::pull::ProgressSink;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Why a stream ended early.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    Registry(RegistryError),
    /// Nobody listens to the progress any more.
    Listener(io::Error),
}

/// Reads a blob of known size.
pub(crate) struct BlobReader<'a> {
    client: &'a mut Client,
    progress: &'a mut dyn ProgressSink,
    digest: Digest,
    size: u64,
    what: String,
    /// What has come of it, while that can be kept.
    partial: Option<Partial>,
    /// Bytes that came from there.
    known: u64,
    body: Option<BodyReader<'static>>,
    offset: u64,
    stalled: u32,
    retries: u32,
    failure: Option<ReadFailure>,
}

impl<'a> BlobReader<'a> {
    pub(crate) fn new(
        client: &'a mut Client,
        progress: &'a mut dyn ProgressSink,
        layer: &Descriptor,
        what: &str,
        partial: Partial,
    ) -> Self {
        Self {
            client,
            progress,
            digest: layer.digest,
            size: layer.size,
            what: what.to_owned(),
            partial: Some(partial),
            known: 0,
            body: None,
            offset: 0,
            stalled: 0,
            retries: 0,
            failure: None,
        }
    }

    /// Why the last read failed, if it did; and what has come of the layer, with how much of it came before this pull.
    pub(crate) fn into_outcome(self) -> (Option<ReadFailure>, Option<Partial>, u64) {
        (self.failure, self.partial, self.known)
    }

    /// Bytes that came before this pull, while there are more; nothing where they do not fit the layer.
    fn remembered(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let partial = self.partial.as_mut()?;
        match partial.read(buffer) {
            Ok(0) => None,
            Ok(count) => {
                self.known += count as u64;
                Some(count)
            }
            Err(error) => {
                self.forget(&error);
                None
            }
        }
    }

    /// Keeps what came now for the next pull.
    fn remember(&mut self, bytes: &[u8]) {
        if let Some(partial) = &mut self.partial
            && let Err(error) = partial.add(bytes)
        {
            self.forget(&error);
        }
    }

    /// Without its file the layer comes all the same, if nothing ends the pull.
    fn forget(&mut self, error: &io::Error) {
        tracing::warn!(layer = %self.digest, %error, "what comes of the layer cannot be kept");
        if let Some(partial) = self.partial.take()
            && let Err(error) = partial.remove()
        {
            tracing::warn!(%error, "what was kept of a layer stays");
        }
    }

    fn connect(&mut self) -> Result<BodyReader<'static>, RegistryError> {
        let response = self.client.blob(&self.digest, &self.what, self.offset)?;
        let skip = match response.status().as_u16() {
            200 => self.offset,
            206 => {
                let range = response
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|value| value.to_str().ok());
                if range.and_then(range_start) != Some(self.offset) {
                    return Err(RegistryError::malformed(
                        &self.what,
                        "the answer is of another range",
                    ));
                }
                0
            }
            _ => return Err(refusal(&self.what, response)),
        };
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let skipped = io::copy(&mut body.by_ref().take(skip), &mut io::sink());
        self.client.meter.came(
            skipped
                .as_ref()
                .map_or(0, |count| usize::try_from(*count).unwrap_or(0)),
        );
        match skipped {
            Ok(count) if count == skip => Ok(body),
            Ok(_) => Err(RegistryError::Unavailable(format!(
                "{}: the connection was closed",
                self.what
            ))),
            Err(error) => Err(RegistryError::Unavailable(format!("{}: {error}", self.what))),
        }
    }

    /// Counts a broken connection, and waits or gives up.
    fn broken(&mut self, reason: &str) -> io::Result<()> {
        self.body = None;
        self.retries += 1;
        self.stalled += 1;
        let earned = self.offset / BYTES_PER_RETRY;
        if self.stalled > MAX_STALLED_RETRIES || u64::from(self.retries) > MAX_RETRIES + earned {
            let text = format!(
                "{}: broken off at {} of {} bytes, {} retries did not help: {reason}",
                self.what,
                self.offset,
                self.size,
                self.retries - 1
            );
            return Err(self.fail(ReadFailure::Registry(RegistryError::Unavailable(text))));
        }
        tracing::debug!(layer = %self.digest, offset = self.offset, reason, "the transfer is taken up again");
        thread::sleep(
            FIRST_WAIT
                .saturating_mul(1 << (self.stalled - 1))
                .min(LONGEST_WAIT),
        );
        Ok(())
    }

    /// So many bytes more were given.
    fn came(&mut self, count: usize) -> io::Result<usize> {
        self.offset += count as u64;
        match self.progress.progress(&self.digest, self.offset, self.size) {
            Ok(()) => Ok(count),
            Err(error) => Err(self.fail(ReadFailure::Listener(error))),
        }
    }

    fn fail(&mut self, failure: ReadFailure) -> io::Error {
        self.failure = Some(failure);
        if let Some(Err(error)) = self.partial.as_mut().map(Partial::keep) {
            self.forget(&error);
        }
        io::Error::other("the transfer failed")
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("the transfer failed"));
        }
        loop {
            let left = self.size - self.offset;
            if left == 0 || buffer.is_empty() {
                return Ok(0);
            }
            let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            if self.body.is_none() {
                if let Some(count) = self.remembered(&mut buffer[..wanted]) {
                    return self.came(count);
                }
                match self.connect() {
                    Ok(body) => self.body = Some(body),
                    Err(RegistryError::Unavailable(reason)) => {
                        self.broken(&reason)?;
                        continue;
                    }
                    Err(error) => return Err(self.fail(ReadFailure::Registry(error))),
                }
            }
            let Some(body) = &mut self.body else { continue };
            let wanted = wanted.min(self.client.meter.piece());
            match body.read(&mut buffer[..wanted]) {
                Ok(0) => self.broken("the connection was closed")?,
                Ok(count) => {
                    self.client.meter.came(count);
                    self.stalled = 0;
                    self.remember(&buffer[..count]);
                    return self.came(count);
                }
                Err(error) => self.broken(&error.to_string())?,
            }
        }
    }
}

/// The start of `bytes <start>-<end>/<total>`.
fn range_start(value: &str) -> Option<u64> {
    value
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .trim()
        .parse()
        .ok()
}
