//! The way between server and node: real frames that are lost, repeated, delayed, reordered, cut short and forged.
//!
//! Always holds: on a good day everything arrives once, whole and in order.

use ring::signature::Ed25519KeyPair;
use skiff_protocol::topic::NodeName;
use skiff_protocol::wire::desired::{Change, Desired, Index, signed_bytes};
use skiff_protocol::wire::{Down, OLDEST, encode_down, frames};
use skiff_tests::rng::Rng;

/// The seed of the key of somebody who owns the broker.
pub(crate) const MALLORY: [u8; 32] = [66; 32];

/// How long a frame takes on a good day, in milliseconds.
const LATENCY: u64 = 20;

/// How long a frame may be under way on a bad one, in milliseconds.
pub(crate) const LATEST: u64 = 65_000;

/// Frames of one direction, each with its delay.
pub(crate) fn carry(payloads: Vec<Vec<u8>>, faults: bool, rng: &mut Rng) -> Vec<(u64, Vec<u8>)> {
    let mut out = Vec::new();
    for mut payload in payloads {
        if !faults {
            out.push((LATENCY, payload));
            continue;
        }
        if rng.percent(8) {
            continue;
        }
        if rng.percent(3) {
            let length = usize::try_from(rng.below(payload.len() as u64)).expect("below a length");
            payload.truncate(length);
        }
        let delay = if rng.percent(30) {
            rng.between(1, 5000)
        } else {
            LATENCY
        };
        if rng.percent(8) {
            out.push((delay + rng.between(1, LATEST - 5000), payload.clone()));
        }
        out.push((delay, payload));
    }
    out
}

/// What somebody who owns the broker puts in a message's place.
pub(crate) fn forge(message: &Down, node: &NodeName, rng: &mut Rng) -> Option<Vec<Vec<u8>>> {
    let forged = match message {
        Down::Desired(desired) => {
            let mut forged: Desired = desired.clone();
            match rng.below(3) {
                // The same content as something newer, which the signature does not cover.
                0 => forged.generation += 1000,
                // An empty node, signed by somebody else.
                1 => {
                    let (index, generation) = (Index::default(), desired.generation + 1000);
                    let mallory = Ed25519KeyPair::from_seed_unchecked(&MALLORY).expect("32 bytes are a seed");
                    let signed = signed_bytes(node, generation, &index.digest());
                    forged = Desired {
                        generation,
                        signature: mallory.sign(&signed).as_ref().to_vec(),
                        change: Change::Full(index),
                        objects: Vec::new(),
                    };
                }
                // The right signature over another content.
                _ => forged.change = Change::Full(Index::default()),
            }
            Down::Desired(forged)
        }
        Down::Objects { generation, objects } => {
            let mut objects = objects.clone();
            for object in &mut objects {
                if let Some(byte) = object.last_mut() {
                    *byte ^= 1;
                }
            }
            Down::Objects {
                generation: *generation,
                objects,
            }
        }
        _ => return None,
    };
    let id = u32::try_from(rng.below(1 << 32)).expect("below 2^32");
    frames(OLDEST, &encode_down(&forged), id).ok()
}
