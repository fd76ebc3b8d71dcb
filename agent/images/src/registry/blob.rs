//! A layer as one stream, whatever the connection does.
//!
//! Always holds: the bytes come in order and exactly once. A broken connection is taken up by `Range` where it broke;
//! a server that ignores `Range` is read again up to there. Retries are bounded, in a row and altogether.

use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use skiff_protocol::image_ref::Digest;
use ureq::BodyReader;
use ureq::http::header::CONTENT_RANGE;

use super::client::{Client, refusal};
use super::{Descriptor, RegistryError};
use crate::limits::{MAX_RETRIES, MAX_STALLED_RETRIES};
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
    ) -> Self {
        Self {
            client,
            progress,
            digest: layer.digest,
            size: layer.size,
            what: what.to_owned(),
            body: None,
            offset: 0,
            stalled: 0,
            retries: 0,
            failure: None,
        }
    }

    /// Why the last read failed, if it did.
    pub(crate) fn into_failure(self) -> Option<ReadFailure> {
        self.failure
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
        if self.stalled > MAX_STALLED_RETRIES || self.retries > MAX_RETRIES {
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

    fn fail(&mut self, failure: ReadFailure) -> io::Error {
        self.failure = Some(failure);
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
            if self.body.is_none() {
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
            let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            match body.read(&mut buffer[..wanted]) {
                Ok(0) => self.broken("the connection was closed")?,
                Ok(count) => {
                    self.offset += count as u64;
                    self.stalled = 0;
                    if let Err(error) = self.progress.progress(&self.digest, self.offset, self.size) {
                        return Err(self.fail(ReadFailure::Listener(error)));
                    }
                    return Ok(count);
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
