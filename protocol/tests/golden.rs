//! The wire, byte for byte: `golden/v1` holds each message as it was when version 1 was released.
//!
//! A golden file is written once and then compared for ever. `SKIFF_GOLDEN=write` writes those that are missing;
//! `SKIFF_GOLDEN=overwrite` writes all, which is right only for a version that no node speaks yet.

#![allow(clippy::unwrap_used, reason = "a test says by its line what failed")]

mod samples;

use std::fs;
use std::path::PathBuf;

use samples::{Sample, samples};
use skiff_protocol::wire::{Assembler, Frame, OLDEST, Unreadable, VERSION, frames};
use skiff_protocol::{limits, sha256};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v1/{name}.hex"))
}

fn to_hex(bytes: &[u8]) -> String {
    let lines = bytes
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n");
    lines.collect()
}

fn from_hex(name: &str, text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .lines()
        .flat_map(str::chars)
        .map(|c| c.to_digit(16).expect(name))
        .collect();
    assert_eq!(digits.len() % 2, 0, "{name}: half a byte");
    digits
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}

/// The bytes of the golden file, which `bytes` must equal.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = path(name);
    let mode = std::env::var("SKIFF_GOLDEN").unwrap_or_default();
    match (mode.as_str(), path.exists()) {
        ("write", false) | ("overwrite", _) => fs::write(&path, to_hex(bytes)).unwrap(),
        ("" | "write", _) => {}
        (other, _) => panic!("SKIFF_GOLDEN={other}: write, or overwrite"),
    }
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; SKIFF_GOLDEN=write makes it", path.display()));
    let stored = from_hex(name, &text);
    assert_eq!(
        to_hex(bytes),
        to_hex(&stored),
        "{name}: the wire has changed; a node in the field would not read it"
    );
    stored
}

#[test]
fn every_message_encodes_to_its_golden_bytes_and_back() {
    for (name, sample) in samples() {
        let stored = golden(name, &sample.encode());
        assert_eq!(sample.decode_same(&stored).as_ref(), Ok(&sample), "{name}");
    }
}

#[test]
fn no_golden_file_is_left_without_its_message() {
    let mut known: Vec<String> = samples().iter().map(|(name, _)| format!("{name}.hex")).collect();
    known.extend(
        [
            "frame-whole.hex",
            "frame-chunks.hex",
            "signed-bytes.hex",
            "index.hex",
        ]
        .map(String::from),
    );
    for file in fs::read_dir(path("").parent().unwrap()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "golden/v1/{name} is compared with nothing");
    }
}

#[test]
fn frames_are_golden() {
    let whole = frames(OLDEST, &[7, 8, 9], 1).unwrap();
    assert_eq!(golden("frame-whole", &whole.concat()), whole.concat());

    // Two chunks: what is pinned is each header, and the digest of all the bytes.
    let message: Vec<u8> = (0..limits::FRAME).map(|at| (at % 251) as u8).collect();
    let chunks = frames(OLDEST, &message, 0x0102_0304).unwrap();
    assert_eq!(chunks.len(), 2);
    let mut pinned: Vec<u8> = chunks.iter().flat_map(|chunk| chunk[..10].to_vec()).collect();
    pinned.extend(sha256(&chunks.concat()));
    golden("frame-chunks", &pinned);
    let Ok(Frame::Chunk { id, index, count, .. }) = Frame::parse(&chunks[1]) else {
        panic!("not a chunk");
    };
    assert_eq!((id, index, count), (0x0102_0304, 1, 2));
}

#[test]
fn what_is_signed_is_golden() {
    let index = samples::index();
    golden("index", &postcard::to_allocvec(&index).unwrap());
    let bytes = skiff_protocol::wire::desired::signed_bytes(&samples::node(), 7, &index.digest());
    golden("signed-bytes", &bytes);
    assert_eq!(index.digest(), sha256(&postcard::to_allocvec(&index).unwrap()));
}

/// Cut anywhere, or with anything after its end, a message is unreadable and nothing else.
#[test]
fn a_message_decodes_whole_or_not_at_all() {
    for (name, sample) in samples() {
        let mut bytes = sample.encode();
        for length in 0..bytes.len() {
            assert_eq!(
                sample.decode_same(&bytes[..length]),
                Err(Unreadable::Malformed),
                "{name} cut at {length}"
            );
        }
        bytes.push(0);
        assert_eq!(
            sample.decode_same(&bytes),
            Err(Unreadable::Malformed),
            "{name} and one byte more"
        );
    }
}

/// The same through frames: no prefix of a payload carries a message.
#[test]
fn a_truncated_frame_carries_nothing() {
    for (name, sample) in samples() {
        let payload = frames(OLDEST, &sample.encode(), 1).unwrap().concat();
        for length in 0..payload.len() {
            let message = Assembler::default().push(&payload[..length]);
            let read = message.and_then(|message| sample.decode_same(&message.unwrap_or_default()));
            assert!(read.is_err(), "{name} cut at {length}");
        }
    }
    // A long one: each of its frames cut at either end of its header and of its bytes.
    let long = Sample::long();
    let payloads = frames(OLDEST, &long.encode(), 9).unwrap();
    assert!(payloads.len() > 2);
    for (at, whole) in payloads.iter().enumerate() {
        for length in (0..16).chain([whole.len() / 2, whole.len() - 1]) {
            let mut assembler = Assembler::default();
            let mut read = Vec::new();
            for (other, payload) in payloads.iter().enumerate() {
                let payload = if other == at { &payload[..length] } else { payload };
                read.extend(assembler.push(payload).ok().flatten());
            }
            let decoded: Vec<_> = read
                .iter()
                .filter_map(|message| long.decode_same(message).ok())
                .collect();
            assert_eq!(decoded, [], "frame {at} cut to {length}");
        }
    }
}

#[test]
fn frames_of_another_version_or_with_impossible_numbers_are_refused() {
    let chunk = |index: u16, count: u16| {
        let mut payload = vec![OLDEST, 1, 1, 0, 0, 0];
        payload.extend(index.to_le_bytes());
        payload.extend(count.to_le_bytes());
        payload.push(9);
        payload
    };
    let most = limits::MESSAGE.div_ceil(limits::CHUNK) as u16;
    for (payload, expected) in [
        (vec![0, 0, 1], Err(Unreadable::Version(0))),
        (vec![VERSION + 1, 0, 1], Err(Unreadable::Version(VERSION + 1))),
        (vec![255; 64], Err(Unreadable::Version(255))),
        (chunk(0, 0), Err(Unreadable::Malformed)),
        (chunk(1, 1), Err(Unreadable::Malformed)),
        (chunk(0, most + 1), Err(Unreadable::Malformed)),
        (chunk(u16::MAX, u16::MAX), Err(Unreadable::Malformed)),
        (chunk(u16::MAX, 0), Err(Unreadable::Malformed)),
        (chunk(0, 2), Err(Unreadable::Malformed)),
        (chunk(1, 2), Ok(())),
        (
            vec![VERSION; limits::FRAME + 1],
            Err(Unreadable::TooLong(limits::FRAME + 1)),
        ),
    ] {
        assert_eq!(
            Frame::parse(&payload).map(|_| ()),
            expected,
            "{:?}",
            &payload[..payload.len().min(12)]
        );
    }
}
