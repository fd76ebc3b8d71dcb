//! A layer as it was transferred, read as the tar archive that it is: gzip, zstd or plain.
//!
//! The first bytes decide and not the media type, as in other engines: registries hold layers whose media type is
//! wrong, and the digests say whether the content is right. Memory is bounded: by deflate's 32 KiB window, and by
//! [`MAX_ZSTD_WINDOW`].

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::limits::MAX_ZSTD_WINDOW;

const BUFFER: usize = 64 << 10;

/// The stream again from its start, after its first bytes were looked at.
type Restarted<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// The decompressed stream.
pub(crate) enum Decompressed<R: Read> {
    Plain(Restarted<R>),
    Gzip(Box<MultiGzDecoder<Restarted<R>>>),
    Zstd(Box<ZstdReader<Restarted<R>>>),
}

impl<R: Read> Decompressed<R> {
    pub(crate) fn new(mut source: R) -> io::Result<Self> {
        let mut magic = Vec::with_capacity(4);
        source.by_ref().take(4).read_to_end(&mut magic)?;
        let is_gzip = magic.starts_with(&[0x1f, 0x8b]);
        let is_zstd = magic == [0x28, 0xb5, 0x2f, 0xfd]
            || matches!(magic.as_slice(), [first, 0x2a, 0x4d, 0x18] if first & 0xf0 == 0x50);
        let restarted = BufReader::with_capacity(BUFFER, Cursor::new(magic).chain(source));
        Ok(if is_gzip {
            Self::Gzip(Box::new(MultiGzDecoder::new(restarted)))
        } else if is_zstd {
            Self::Zstd(Box::new(ZstdReader::new(restarted)))
        } else {
            Self::Plain(restarted)
        })
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

/// All frames of a zstd stream in a row; skippable ones (zstd:chunked ends with some) are skipped.
pub(crate) struct ZstdReader<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdReader<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW);
        Self {
            source,
            decoder,
            in_frame: false,
        }
    }

    /// Starts the next frame with content. `false` at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.in_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("zstd: {error}"),
                    ));
                }
            }
        }
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {error}")))?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            // A frame with a checksum that does not match would otherwise only be caught by the digests.
            if let (Some(stored), Some(computed)) = (
                self.decoder.get_checksum_from_data(),
                self.decoder.get_calculated_checksum(),
            ) && stored != computed
            {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "zstd: the frame's checksum differs",
                ));
            }
            self.in_frame = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn check(name: &str, stream: &[u8], expected: Result<&[u8], io::ErrorKind>) {
        let mut out = Vec::new();
        let result = Decompressed::new(stream).and_then(|mut reader| reader.read_to_end(&mut out));
        match (result, expected) {
            (Ok(_), Ok(bytes)) => assert_eq!(out, bytes, "{name}"),
            (Err(error), Err(kind)) => assert_eq!(error.kind(), kind, "{name}: {error}"),
            (result, expected) => panic!("{name}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_first_bytes_decide() {
        let text: Vec<u8> = (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let twice = [text.as_slice(), text.as_slice()].concat();
        let skippable = [
            &[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3],
            zstd(&text).as_slice(),
        ]
        .concat();
        let trailing = [zstd(&text).as_slice(), &[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9]].concat();
        let cut = gzip(&text)[..1000].to_vec();
        let cut_zstd = zstd(&text)[..1000].to_vec();
        // Window descriptor 0xa0: 2^30 bytes.
        let wide = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa0, 0x01, 0x00, 0x00];
        check("plain", &text, Ok(&text));
        check("empty", b"", Ok(b""));
        check("short", b"ab", Ok(b"ab"));
        check("gzip", &gzip(&text), Ok(&text));
        check(
            "two gzip members",
            &[gzip(&text), gzip(&text)].concat(),
            Ok(&twice),
        );
        check("zstd", &zstd(&text), Ok(&text));
        check(
            "two zstd frames",
            &[zstd(&text), zstd(&text)].concat(),
            Ok(&twice),
        );
        check("leading skippable frame", &skippable, Ok(&text));
        check("trailing skippable frame", &trailing, Ok(&text));
        check("cut gzip", &cut, Err(io::ErrorKind::UnexpectedEof));
        check("cut zstd", &cut_zstd, Err(io::ErrorKind::InvalidData));
        check(
            "cut skippable frame",
            &skippable[..9],
            Err(io::ErrorKind::UnexpectedEof),
        );
        check(
            "zstd window of a gigabyte",
            &wide,
            Err(io::ErrorKind::InvalidData),
        );
    }
}
