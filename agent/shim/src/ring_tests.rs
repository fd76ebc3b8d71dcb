//! Tests of [`super`]: what is read is what was written, or a gap says that it is gone.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

fn ring(capacity: u64) -> (tempfile::TempDir, Writer, Reader) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.ring");
    let writer = Writer::create(&path, capacity).unwrap();
    let reader = Reader::open(&path).unwrap();
    (dir, writer, reader)
}

fn line(number: u64) -> Vec<u8> {
    format!("line {number} {}", "x".repeat((number % 100) as usize)).into_bytes()
}

fn write_lines(writer: &mut Writer, numbers: std::ops::Range<u64>) {
    for number in numbers {
        writer.append(Stream::Stdout, number as i64, false, &line(number));
    }
    writer.flush();
}

/// Reads to the end; every record must be the line that its time names.
fn read_all(reader: &Reader, mut from: u64, max_bytes: usize) -> (Vec<u64>, Vec<Gap>) {
    let (mut numbers, mut gaps) = (Vec::new(), Vec::new());
    loop {
        let chunk = reader.read(from, max_bytes).unwrap();
        gaps.extend(chunk.gap);
        for record in &chunk.records {
            assert_eq!(record.bytes, line(record.unix_ns as u64));
            numbers.push(record.unix_ns as u64);
        }
        if chunk.next == from {
            return (numbers, gaps);
        }
        from = chunk.next;
    }
}

#[test]
fn what_fits_is_read_whole_in_any_portions() {
    let (_dir, mut writer, reader) = ring(0);
    assert_eq!(reader.read(0, 100).unwrap(), Chunk::default());
    write_lines(&mut writer, 0..5000);
    for max_bytes in [0, 30_000, usize::MAX] {
        assert_eq!(read_all(&reader, 0, max_bytes), ((0..5000).collect(), vec![]));
    }
    assert_eq!(writer.bounds(), reader.bounds().unwrap());
    assert_eq!(writer.bounds().records, 5000);
}

#[test]
fn the_oldest_are_dropped_and_the_gap_is_told() {
    let (_dir, mut writer, reader) = ring(0);
    write_lines(&mut writer, 0..100_000);
    let bounds = reader.bounds().unwrap();
    assert!(bounds.end - bounds.oldest <= MIN_CAPACITY && bounds.end - bounds.oldest > MIN_CAPACITY * 9 / 10);
    let (numbers, gaps) = read_all(&reader, 0, 100_000);
    assert_eq!(
        gaps,
        [Gap {
            from: 0,
            to: bounds.oldest
        }]
    );
    assert_eq!(gaps[0].bytes(), bounds.dropped_bytes);
    assert_eq!(bounds.dropped_records, numbers[0]);
    assert_eq!(numbers, (numbers[0]..100_000).collect::<Vec<_>>());
    // A reader that had kept up goes on without a gap.
    write_lines(&mut writer, 100_000..100_010);
    assert_eq!(
        read_all(&reader, bounds.end, 100),
        ((100_000..100_010).collect(), vec![])
    );
}

#[test]
fn tail_and_since_find_the_beginning_of_lines() {
    let (_dir, mut writer, reader) = ring(0);
    let first = |from: u64| {
        reader
            .read(from, 0)
            .unwrap()
            .records
            .first()
            .map(|record| record.bytes.clone())
    };
    writer.append(Stream::Stdout, 10, false, b"one");
    writer.append(Stream::Stdout, 20, true, b"two, ");
    writer.append(Stream::Stderr, 25, false, b"error");
    writer.append(Stream::Stdout, 30, true, b"more, ");
    writer.append(Stream::Stdout, 40, false, b"end");
    writer.append(Stream::Stdout, 50, false, b"three");
    writer.flush();
    let check = |offset: u64, expected: Option<&str>| {
        assert_eq!(
            first(offset)
                .map(|bytes| String::from_utf8(bytes).unwrap())
                .as_deref(),
            expected
        );
    };
    check(reader.tail(0).unwrap(), None);
    check(reader.tail(1).unwrap(), Some("three"));
    check(reader.tail(2).unwrap(), Some("error"));
    check(reader.tail(3).unwrap(), Some("two, "));
    check(reader.tail(100).unwrap(), Some("one"));
    check(reader.since(0).unwrap(), Some("one"));
    check(reader.since(21).unwrap(), Some("error"));
    check(reader.since(51).unwrap(), None);
}

#[test]
fn a_reader_beside_a_writer_sees_lines_or_gaps_and_nothing_else() {
    let (_dir, mut writer, reader) = ring(0);
    let done = AtomicBool::new(false);
    const LINES: u64 = 300_000;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (mut from, mut last, mut seen, mut missed) = (0, None, 0u64, 0u64);
            loop {
                let finished = done.load(Ordering::SeqCst);
                let chunk = reader.read(from, 20_000).unwrap();
                missed += chunk.gap.map_or(0, |gap| gap.bytes());
                for record in &chunk.records {
                    assert_eq!(record.bytes, line(record.unix_ns as u64));
                    assert!(last.is_none_or(|last| record.unix_ns > last), "out of order");
                    last = Some(record.unix_ns);
                    seen += 1;
                }
                if finished && chunk.next == from {
                    return (seen, missed, last);
                }
                from = chunk.next;
            }
        });
        for batch in 0..LINES / 100 {
            write_lines(&mut writer, batch * 100..(batch + 1) * 100);
        }
        done.store(true, Ordering::SeqCst);
        let (seen, missed, last) = reading.join().unwrap();
        assert_eq!(last, Some(LINES as i64 - 1));
        assert!(
            seen == LINES || missed > 0,
            "{seen} seen, nothing reported missing"
        );
    });
}

#[test]
fn other_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, content: &[u8], expected: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = Reader::open(&path).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(expected), "{error}");
    };
    check("empty", b"", "failed to fill whole buffer");
    check("text", &[b'x'; 8192], "magic");
    let mut torn = header(MIN_CAPACITY, &Bounds::default()).to_vec();
    torn[20] ^= 1;
    check("torn", &torn, "checksum");
}

#[test]
fn a_full_file_system_costs_lines_and_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    skiff_sys::mount::tmpfs(dir.path(), 256 * 1024, 0o700).unwrap();
    let path = dir.path().join("0.ring");
    let mut writer = Writer::create(&path, 0).unwrap();
    let reader = Reader::open(&path).unwrap();
    write_lines(&mut writer, 0..20_000);
    let bounds = writer.bounds();
    assert_eq!(bounds.records, 20_000);
    assert!(bounds.dropped_records > 0);
    let (numbers, gaps) = read_all(&reader, 0, 10_000);
    assert!(!gaps.is_empty());
    assert_eq!(bounds.records - bounds.dropped_records, numbers.len() as u64);
    skiff_sys::mount::unmount_all_under(dir.path()).unwrap();
}
