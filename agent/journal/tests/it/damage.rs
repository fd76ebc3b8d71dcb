//! Journals damaged by hand, by single bits and at random.
//!
//! Always holds: damage is never `Empty`, never a panic, and never a record that was not there.

use skiff_journal::{Damage, Error, Journal, Outcome, Segment};

use crate::medium::{Medium, NONCE, Rng};

type Files = [Vec<u8>; 2];

/// Where the fixture's frames stand in segment 1: the checkpoint, then three commits.
const FRAMES: [usize; 5] = [8192, 8232, 8254, 8276, 8298];
const RECORDS: [&[u8]; 5] = [b"live one", b"live two", b"r1", b"r2", b"r3"];
const FIRST: u64 = NONCE / 2 + 1;

fn fixture() -> Files {
    let medium = Medium::new([]);
    let (mut journal, _) = Journal::open(medium.clone()).expect("a fresh medium opens");
    journal.append(b"old").expect("room");
    let _durable = journal.commit().expect("works");
    let _durable = journal.checkpoint(RECORDS[..2].iter().copied()).expect("works");
    for record in &RECORDS[2..] {
        journal.append(record).expect("room");
        let _durable = journal.commit().expect("works");
    }
    assert_eq!(journal.stats().used, FRAMES[4] - FRAMES[0]);
    medium.files()
}

/// CRC-32C bit by bit.
fn crc32c(pieces: &[&[u8]]) -> u32 {
    !pieces.concat().iter().fold(!0, |state, byte| {
        (0..8).fold(state ^ u32::from(*byte), |state, _| {
            (state >> 1) ^ (0x82f6_3b78 * (state & 1))
        })
    })
}

/// Changes a header field in one copy and makes the checksum right again.
fn forge_header(file: &mut [u8], copy: usize, at: usize, field: &[u8]) {
    file[copy + at..][..field.len()].copy_from_slice(field);
    let crc = crc32c(&[&file[copy..copy + 44]]);
    file[copy + 44..copy + 48].copy_from_slice(&crc.to_le_bytes());
}

/// Puts a frame with a right checksum into segment 1 (epoch 2).
fn forge_frame(file: &mut [u8], at: usize, sequence: u64, payload: &[u8]) {
    let len = (payload.len() as u32).to_le_bytes();
    let sequence = sequence.to_le_bytes();
    let crc = crc32c(&[
        &NONCE.to_le_bytes(),
        &2_u64.to_le_bytes(),
        &len,
        &sequence,
        payload,
    ]);
    let frame = [&len[..], &crc.to_le_bytes(), &sequence, payload].concat();
    file[at..at + frame.len()].copy_from_slice(&frame);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Outcome and the number of the fixture's records.
    Opened(Outcome, usize),
    Corrupt(Segment, u64, Damage),
    Version(u16),
}

/// Opens damaged files. Records must be a prefix of `whole`, and a corrupt journal must be left as it was.
fn open(files: &Files, whole: &[&[u8]]) -> Found {
    let medium = Medium::holding(files.clone());
    let found = match Journal::open(medium.clone()) {
        Ok((_, recovery)) => {
            assert_ne!(recovery.outcome, Outcome::Empty);
            assert!(whole.starts_with(&recovery.records.iter().map(Vec::as_slice).collect::<Vec<_>>()));
            return Found::Opened(recovery.outcome, recovery.records.len());
        }
        Err(Error::Corrupt {
            path, offset, what, ..
        }) => {
            let segment = if path.ends_with("journal.0") {
                Segment::Zero
            } else {
                Segment::One
            };
            Found::Corrupt(segment, offset, what)
        }
        Err(Error::Version {
            found, supported: 1, ..
        }) => Found::Version(found),
        Err(error) => panic!("{error}"),
    };
    assert!(
        medium.files() == *files,
        "a journal that was refused was written to"
    );
    found
}

fn check(name: &str, damage: impl FnOnce(&mut Files), want: Found) {
    let mut files = fixture();
    damage(&mut files);
    assert_eq!(open(&files, &RECORDS), want, "{name}");
}

fn zero(file: &mut [u8], from: usize, to: usize) {
    file[from..to].fill(0);
}

#[test]
fn frames() {
    use Found::{Corrupt, Opened};
    let torn = |dropped_bytes| Outcome::TornTail { dropped_bytes };
    let corrupt = |offset, what| Corrupt(Segment::One, offset, what);
    check("untouched", |_| {}, Opened(Outcome::Clean, 5));
    check(
        "checkpoint",
        |f| f[1][FRAMES[1] - 1] ^= 1,
        corrupt(8192, Damage::Checkpoint),
    );
    check(
        "checkpoint zeroed",
        |f| zero(&mut f[1], 8192, 8232),
        corrupt(8192, Damage::Checkpoint),
    );
    check(
        "everything zeroed",
        |f| zero(&mut f[1], 8192, 16384),
        corrupt(8192, Damage::Checkpoint),
    );
    check(
        "first commit",
        |f| f[1][FRAMES[1]] ^= 1,
        corrupt(8232, Damage::Middle { next: 8254 }),
    );
    check(
        "first zeroed",
        |f| zero(&mut f[1], 8232, 8254),
        corrupt(8232, Damage::Middle { next: 8254 }),
    );
    check(
        "two zeroed",
        |f| zero(&mut f[1], 8232, 8276),
        corrupt(8232, Damage::Middle { next: 8276 }),
    );
    check("last commit", |f| f[1][FRAMES[4] - 1] ^= 1, Opened(torn(22), 4));
    check("last's length", |f| f[1][FRAMES[3]] = 0, Opened(torn(16), 4));
    check(
        "last zeroed",
        |f| zero(&mut f[1], 8276, 8298),
        Opened(Outcome::Clean, 4),
    );
    check("end mark", |f| f[1][FRAMES[4] + 9] = 1, Opened(torn(16), 5));
    check(
        "far behind",
        |f| f[1][FRAMES[4] + 900] = 1,
        Opened(Outcome::Clean, 5),
    );
    let swapped = Damage::Sequence {
        found: FIRST + 4,
        expected: FIRST + 3,
    };
    check(
        "order",
        |f| f[1].copy_within(8254..8276, 8232),
        corrupt(8232, swapped),
    );
    check(
        "overfull",
        |f| forge_frame(&mut f[1], 8298, FIRST + 6, &[9, 0, 0, 0]),
        corrupt(8298, Damage::Records),
    );
    check(
        "forged",
        |f| forge_frame(&mut f[1], 9000, FIRST + 7, &[0; 4]),
        corrupt(8298, Damage::Middle { next: 9000 }),
    );
}

/// A later frame is found wherever it begins, up to the last place where one fits.
#[test]
fn a_later_frame_anywhere() {
    for at in (FRAMES[4] + 1..=16384 - 20).rev().step_by(7).chain(12289..12320) {
        let want = Found::Corrupt(Segment::One, 8298, Damage::Middle { next: at as u64 });
        check("later", |f| forge_frame(&mut f[1], at, FIRST + 7, &[0; 4]), want);
    }
}

/// Frames that an earlier use of the segment left, right but for the epoch, never count.
#[test]
fn stale_frames() {
    let stale = |f: &mut Files, at: usize| {
        let frame = f[0][8192..8215].to_vec();
        f[1][at..at + frame.len()].copy_from_slice(&frame);
    };
    check("behind", |f| stale(f, 9000), Found::Opened(Outcome::Clean, 5));
    check(
        "next",
        |f| stale(f, 8298),
        Found::Opened(Outcome::TornTail { dropped_bytes: 16 }, 5),
    );
}

#[test]
fn headers() {
    use Found::{Corrupt, Opened, Version};
    let clean = || Opened(Outcome::Clean, 5);
    check("first copy", |f| zero(&mut f[1], 0, 48), clean());
    check("second copy", |f| zero(&mut f[1], 4096, 4144), clean());
    check(
        "one of each",
        |f| f.iter_mut().for_each(|file| file[20] ^= 1),
        clean(),
    );
    let both = |f: &mut Files, segment: usize| {
        zero(&mut f[segment], 0, 48);
        zero(&mut f[segment], 4096, 4144);
    };
    check(
        "ruling",
        |f| both(f, 1),
        Corrupt(Segment::One, 0, Damage::Headers),
    );
    check(
        "standby",
        |f| both(f, 0),
        Corrupt(Segment::Zero, 0, Damage::Headers),
    );
    let zeros = |f: &mut Files| f.iter_mut().for_each(|file| file.fill(0));
    check("all zero", zeros, Corrupt(Segment::Zero, 0, Damage::Headers));
    check(
        "swapped",
        |f| f.swap(0, 1),
        Corrupt(Segment::Zero, 0, Damage::WrongSegment),
    );
    check(
        "short",
        |f| f[1].truncate(16383),
        Corrupt(Segment::One, 0, Damage::Length(16383)),
    );
    check(
        "empty",
        |f| f[0].clear(),
        Corrupt(Segment::Zero, 0, Damage::Length(0)),
    );
    check(
        "long",
        |f| f[1].resize(16896, 0),
        Corrupt(Segment::One, 0, Damage::Length(16896)),
    );

    let forge = |segment: usize, copies: &'static [usize], at: usize, field: u64| {
        move |f: &mut Files| {
            copies
                .iter()
                .for_each(|copy| forge_header(&mut f[segment], *copy, at, &field.to_le_bytes()));
        }
    };
    const BOTH: &[usize] = &[0, 4096];
    check("version", |f| forge_header(&mut f[1], 0, 8, &[2, 0]), Version(2));
    check(
        "id",
        forge(0, BOTH, 16, 1),
        Corrupt(Segment::One, 0, Damage::OtherJournal),
    );
    check(
        "id of a copy",
        forge(0, &[0], 16, 1),
        Corrupt(Segment::Zero, 0, Damage::OtherJournal),
    );
    check(
        "equal epochs",
        forge(0, BOTH, 24, 2),
        Corrupt(Segment::One, 0, Damage::HeadersDisagree),
    );
    check(
        "later second",
        forge(1, &[4096], 24, 3),
        Corrupt(Segment::One, 0, Damage::HeadersDisagree),
    );
    // Cut between the two header writes of a checkpoint: the first copy is the newer.
    check("older second", forge(1, &[4096], 24, 0), clean());
}

#[test]
fn every_single_bit() {
    let fixture = fixture();
    for segment in Segment::ALL {
        let used = (0..48).chain(4096..4144).chain(8192..FRAMES[4] + 16);
        for (at, bit) in used.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut files = fixture.clone();
            files[segment.index()][at] ^= 1 << bit;
            let found = open(&files, &RECORDS);
            let acknowledged = segment == Segment::One && (FRAMES[0]..FRAMES[3]).contains(&at);
            let last = segment == Segment::One && (FRAMES[3]..FRAMES[4]).contains(&at);
            let mark = segment == Segment::One && at >= FRAMES[4];
            let right = match found {
                Found::Corrupt(..) => acknowledged,
                Found::Opened(Outcome::TornTail { .. }, records) => {
                    (last && records == 4) || (mark && records == 5)
                }
                Found::Opened(Outcome::Clean, 5) => at < 8192 || segment == Segment::Zero,
                Found::Opened(..) | Found::Version(_) => false,
            };
            assert!(right, "{segment:?}, byte {at}, bit {bit}: {found:?}");
        }
    }
}

#[test]
fn random_damage() {
    let fixture = fixture();
    let mut corrupt = 0;
    for seed in 0..4000 {
        let mut rng = Rng(seed);
        let mut files = fixture.clone();
        for _ in 0..1 + rng.below(4) {
            let segment = rng.below(2);
            let start = [0, 4096, 8192][rng.below(3)] + rng.below(128);
            let scale = [16, 600, 8000][rng.below(3)];
            let len = 1 + rng.below(scale).min(16383 - start);
            let noise = match rng.below(3) {
                0 => vec![0; len],
                1 => rng.bytes(len),
                _ => fixture[1 - segment][16384 - len - rng.below(16384 - len)..][..len].to_vec(),
            };
            files[segment][start..start + len].copy_from_slice(&noise);
        }
        corrupt += usize::from(matches!(open(&files, &RECORDS), Found::Corrupt(..)));
    }
    assert!(
        corrupt > 1000,
        "only {corrupt} of 4000 damaged journals were refused"
    );
}

#[test]
fn pure_noise() {
    for seed in 0..500 {
        let mut rng = Rng(seed);
        let files = [rng.bytes(16384), rng.bytes(16384)];
        assert_eq!(
            open(&files, &[]),
            Found::Corrupt(Segment::Zero, 0, Damage::Headers),
            "seed {seed}"
        );
        // Right headers, and frames of noise.
        let mut files = fixture();
        let noise = rng.bytes(8192);
        files[1][8192..].copy_from_slice(&noise);
        assert_eq!(
            open(&files, &RECORDS),
            Found::Corrupt(Segment::One, 8192, Damage::Checkpoint),
            "seed {seed}"
        );
    }
}
