//! SHA-256 over what passes by.
//!
//! Always holds: a [`HashingReader`] has hashed and counted exactly the bytes that it gave to its caller.

use std::io::{self, Read};

use ring::digest::{Context, SHA256};
use skiff_protocol::image_ref::Digest;

/// The digest of a whole buffer.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    finish(context)
}

fn finish(context: Context) -> Digest {
    let mut bytes = [0_u8; 32];
    // SHA-256 gives 32 bytes, so the two slices are of one length.
    bytes.copy_from_slice(context.finish().as_ref());
    Digest::from_sha256(bytes)
}

/// Hashes and counts what is read through it.
pub(crate) struct HashingReader<R> {
    inner: R,
    context: Context,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            context: Context::new(&SHA256),
            count: 0,
        }
    }

    /// Reads the rest, so that the digest covers the whole of `inner`, and returns digest and length.
    pub(crate) fn drain(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((finish(self.context), self.count))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.context.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}
