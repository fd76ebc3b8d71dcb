//! From the bytes of a stream to records: whole lines where they are short, parts where they are long.
//!
//! Always holds: no record is longer than [`MAX_LINE`]; a part ends between two characters when the bytes are UTF-8; all
//! bytes but newlines come out, in order.

use crate::ring::MAX_LINE;

/// Bytes of one stream that wait for the rest of their line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// Takes bytes as they were read; `emit(bytes, partial)` gets the records that they complete.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], emit: &mut impl FnMut(&[u8], bool)) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, tail) = (&bytes[..end], &bytes[end + 1..]);
            if self.rest.is_empty() {
                let last = split_long(line, emit);
                emit(last, false);
            } else {
                self.rest.extend_from_slice(line);
                let whole = std::mem::take(&mut self.rest);
                let last = split_long(&whole, emit);
                emit(last, false);
            }
            bytes = tail;
        }
        self.rest.extend_from_slice(bytes);
        if self.rest.len() > MAX_LINE {
            let kept = split_long(&self.rest, emit).len();
            self.rest.drain(..self.rest.len() - kept);
            self.rest.shrink_to(MAX_LINE);
        }
    }

    /// The stream has ended: what is left had no newline.
    pub(crate) fn finish(&mut self, emit: &mut impl FnMut(&[u8], bool)) {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            emit(&rest, true);
        }
    }
}

/// Emits parts of what is too long for one record, and gives the last part.
fn split_long<'a>(mut line: &'a [u8], emit: &mut impl FnMut(&[u8], bool)) -> &'a [u8] {
    while line.len() > MAX_LINE {
        let (part, tail) = line.split_at(boundary(line));
        emit(part, true);
        line = tail;
    }
    line
}

/// The last place at or before [`MAX_LINE`] that is not inside of a character of UTF-8.
fn boundary(line: &[u8]) -> usize {
    let inside = |at: usize| line[at] & 0xc0 == 0x80;
    (MAX_LINE - 3..=MAX_LINE)
        .rev()
        .find(|&at| !inside(at))
        .unwrap_or(MAX_LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut out = Vec::new();
        let mut emit = |bytes: &[u8], partial| out.push((bytes.to_vec(), partial));
        let mut lines = Lines::default();
        for piece in pieces {
            lines.feed(piece, &mut emit);
        }
        lines.finish(&mut emit);
        out
    }

    #[test]
    fn lines_come_out_whole_however_they_are_cut() {
        let check = |pieces: &[&str], expected: &[(&str, bool)]| {
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|(text, partial)| (text.as_bytes().to_vec(), *partial))
                .collect();
            assert_eq!(records(&pieces), expected);
        };
        check(&["a\nb\n"], &[("a", false), ("b", false)]);
        check(&["a", "b\nc"], &[("ab", false), ("c", true)]);
        check(
            &["a\n", "\n", "b\r\n"],
            &[("a", false), ("", false), ("b\r", false)],
        );
        check(&["", "\n"], &[("", false)]);
        check(&[], &[]);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        for lead in 0..4 {
            let text = format!("{}{}\n", "x".repeat(lead), "€😀".repeat(6000));
            for piece in [1, 7, 4096, MAX_LINE, text.len()] {
                let pieces: Vec<&[u8]> = text.as_bytes().chunks(piece).collect();
                let out = records(&pieces);
                assert!(
                    out.iter()
                        .all(|(bytes, _)| bytes.len() <= MAX_LINE && std::str::from_utf8(bytes).is_ok())
                );
                let (last, parts) = out.split_last().unwrap();
                assert!(!last.1 && parts.iter().all(|(_, partial)| *partial));
                let whole: Vec<u8> = out.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
                assert_eq!(whole, text.trim_end().as_bytes());
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_cut_all_the_same() {
        let out = records(&[&vec![0x80; 3 * MAX_LINE]]);
        assert_eq!(
            out.iter().map(|(bytes, _)| bytes.len()).sum::<usize>(),
            3 * MAX_LINE
        );
    }
}
