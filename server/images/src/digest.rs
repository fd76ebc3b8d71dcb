//! SHA-256 over what passes by, reading and writing.

use std::io::{self, Read, Write};

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

/// Hashes and counts what goes through it, in either direction.
pub(crate) struct Hashing<T> {
    inner: T,
    context: Context,
    count: u64,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            context: Context::new(&SHA256),
            count: 0,
        }
    }

    /// The inner stream, the digest and the number of bytes.
    pub(crate) fn finish(self) -> (T, Digest, u64) {
        (self.inner, finish(self.context), self.count)
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.count += bytes.len() as u64;
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.pass(&buffer[..count]);
        Ok(count)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.pass(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
