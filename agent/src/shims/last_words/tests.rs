//! Messages from files and from logs.

use skiff_shim::ring::{MIN_CAPACITY, Stream, Writer};

use super::*;

/// What is read where the container left these bytes, if any, and wrote these lines.
fn said(left: Option<&[u8]>, lines: &[&str], from_log: bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = termination_path(dir.path(), "c-1");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if let Some(left) = left {
        std::fs::write(&path, left).unwrap();
    }
    if !lines.is_empty() {
        let ring = ring_path(dir.path(), "c", 1);
        std::fs::create_dir_all(ring.parent().unwrap()).unwrap();
        let mut writer = Writer::create(&ring, MIN_CAPACITY).unwrap();
        for (at, line) in lines.iter().enumerate() {
            let stream = if at % 2 == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            writer.append(stream, 1, false, line.as_bytes());
        }
        writer.flush();
    }
    read(dir.path(), "c", 1, from_log)
}

#[test]
fn the_file_comes_before_the_log() {
    let check = |left: Option<&str>, lines: &[&str], from_log, expected: &str| {
        assert_eq!(said(left.map(str::as_bytes), lines, from_log), expected);
    };
    check(Some("done\n"), &["log"], true, "done\n");
    check(Some(""), &["out", "err"], true, "out\nerr\n");
    check(None, &["out"], true, "out\n");
    check(Some(""), &["out"], false, "");
    check(None, &[], false, "");
    check(None, &[], true, "");
}

#[test]
fn the_end_is_what_counts() {
    let long = [&[b'a'; 100][..], &[b'b'; limits::TEXT][..]].concat();
    assert_eq!(said(Some(&long), &[], false), "b".repeat(limits::TEXT));
    // What is not text stays within the bound also when it is marked as that.
    let binary = said(Some(&[0xff; limits::TEXT]), &[], false);
    assert_eq!(binary.len(), limits::TEXT / 3 * 3);
    assert!(binary.chars().all(|it| it == '\u{fffd}'));
    let lines: Vec<String> = (0..100).map(|it| it.to_string()).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let tail = said(None, &lines, true);
    assert_eq!(tail.lines().count(), LOG_LINES);
    assert!(tail.starts_with("20\n") && tail.ends_with("99\n"), "{tail}");
    let wide = "x".repeat(1500);
    let tail = said(None, &[&wide, &wide], true);
    assert_eq!(tail.len(), LOG_BYTES);
    assert!(tail.ends_with("x\n"));
}

#[test]
fn what_is_no_file_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = termination_path(dir.path(), "c-1");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    let expected = format!("Error on reading termination log {}: not a file", path.display());
    assert_eq!(read(dir.path(), "c", 1, true), expected);
}
