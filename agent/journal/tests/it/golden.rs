//! The format, byte for byte. The hex was computed from `FORMAT.md` alone, by a program that shares nothing
//! with this crate.
//!
//! Always holds: a journal written by any released version is in here, and still opens.

use skiff_journal::{Journal, Outcome, Segment};

use crate::medium::Medium;

/// Segment, offset, bytes. Everything else in the two files is zero.
type Golden = [(Segment, usize, &'static str)];

const HEADER_0: &str =
    "534b4946464a4e4c0100000000400000efcdab89674523010100000000000000f8e6d5c4b3a291000020000098fc24ad";
const HEADER_1_UNUSED: &str =
    "534b4946464a4e4c0100010000400000efcdab89674523010000000000000000f8e6d5c4b3a2910000200000f48093e4";
const HEADER_1_RULING: &str =
    "534b4946464a4e4c0100010000400000efcdab89674523010200000000000000fbe6d5c4b3a2910017200000291ae229";
const BATCH_OF_TWO: &str = "0b000000247f55cff8e6d5c4b3a291000100000061020000006263";
const BATCH_OF_ONE_EMPTY: &str = "04000000ba5e863bfae6d5c4b3a2910000000000";
const CHECKPOINT: &str = "0700000067478338fbe6d5c4b3a2910003000000616263";
const BEHIND_CHECKPOINT: &str = "0500000089f5a99afce6d5c4b3a291000100000064";

const BEFORE_CHECKPOINT: &Golden = &[
    (Segment::Zero, 0, HEADER_0),
    (Segment::Zero, 4096, HEADER_0),
    (Segment::Zero, 8192, BATCH_OF_TWO),
    (Segment::Zero, 8219, BATCH_OF_ONE_EMPTY),
    (Segment::One, 0, HEADER_1_UNUSED),
    (Segment::One, 4096, HEADER_1_UNUSED),
];

const AFTER_CHECKPOINT: &Golden = &[
    (Segment::Zero, 0, HEADER_0),
    (Segment::Zero, 4096, HEADER_0),
    (Segment::Zero, 8192, BATCH_OF_TWO),
    (Segment::Zero, 8219, BATCH_OF_ONE_EMPTY),
    (Segment::One, 0, HEADER_1_RULING),
    (Segment::One, 4096, HEADER_1_RULING),
    (Segment::One, 8192, CHECKPOINT),
    (Segment::One, 8215, BEHIND_CHECKPOINT),
];

fn bytes(golden: &Golden) -> [Vec<u8>; 2] {
    let mut files = [vec![0; 16 * 1024], vec![0; 16 * 1024]];
    for (segment, offset, hex) in golden {
        for (index, pair) in hex.as_bytes().chunks(2).enumerate() {
            let digits = std::str::from_utf8(pair).expect("ASCII");
            files[segment.index()][offset + index] = u8::from_str_radix(digits, 16).expect("hex");
        }
    }
    files
}

fn check(golden: &Golden, records: &[&[u8]]) {
    let medium = Medium::holding(bytes(golden));
    let (_, recovery) = Journal::open(medium.clone()).expect("golden bytes open");
    assert_eq!(recovery.outcome, Outcome::Clean);
    assert_eq!(recovery.records, records);
    assert!(
        medium.files() == bytes(golden),
        "opening a clean journal changed it"
    );
}

#[test]
fn golden_bytes_are_read() {
    check(BEFORE_CHECKPOINT, &[b"a", b"bc", b""]);
    check(AFTER_CHECKPOINT, &[b"abc", b"d"]);
}

#[test]
fn golden_bytes_are_written() {
    let medium = Medium::new([]);
    let (mut journal, recovery) = Journal::open(medium.clone()).expect("a fresh medium opens");
    assert_eq!(recovery.outcome, Outcome::Empty);
    for record in [b"a".as_slice(), b"bc"] {
        journal.append(record).expect("room");
    }
    let _durable = journal.commit().expect("works");
    journal.append(b"").expect("room");
    let _durable = journal.commit().expect("works");
    assert!(medium.files() == bytes(BEFORE_CHECKPOINT));

    let live: [&[u8]; 1] = [b"abc"];
    let _durable = journal.checkpoint(live).expect("works");
    journal.append(b"d").expect("room");
    let _durable = journal.commit().expect("works");
    assert!(medium.files() == bytes(AFTER_CHECKPOINT));
}
