//! The desired state of a node: a signed set of objects, and how two ends agree on it.
//!
//! The server signs (node, generation, digest), where the digest covers the sorted index of (key, object digest).
//! An object is believed when its digest stands in a signed index; so the objects themselves may come by any way.
//!
//! Always holds: an [`Index`] is sorted and bounded; a [`Change`] that does not verify leaves everything as it was;
//! a generation never goes back.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use ring::signature::{ED25519, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use super::spec::ObjectKey;
use crate::topic::NodeName;
use crate::{Digest, limits, sha256};

/// What the node shall have: each object's digest by its key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index(pub BTreeMap<ObjectKey, Digest>);

impl Index {
    /// The digest over the sorted entries, postcard-encoded.
    ///
    /// # Panics
    /// Never: encoding into memory cannot fail.
    #[must_use]
    pub fn digest(&self) -> Digest {
        sha256(&postcard::to_allocvec(&self.0).expect("postcard encodes into memory without fail"))
    }
}

/// A signed desired state, whole or as a change to a former one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// Counts the states of this node's desired objects; it never goes back.
    pub generation: u64,
    /// Ed25519 over [`signed_bytes`].
    pub signature: Vec<u8>,
    /// The index, or how to get there.
    pub change: Change,
    /// Objects that the sender thinks are missing: postcard of [`super::spec::Object`] each.
    pub objects: Vec<Vec<u8>>,
}

/// How the new index comes about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The whole index.
    Full(Index),
    /// What differs from the index of `base`.
    Delta {
        /// The generation that this builds on.
        base: u64,
        /// Keys that are gone.
        remove: Vec<ObjectKey>,
        /// Keys that are new or have another digest.
        put: Vec<(ObjectKey, Digest)>,
    },
}

/// The bytes that a server signs and a node checks.
#[must_use]
pub fn signed_bytes(node: &NodeName, generation: u64, digest: &Digest) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    out.extend_from_slice(b"skiff desired state v1\0");
    out.push(node.as_str().len() as u8);
    out.extend_from_slice(node.as_str().as_bytes());
    out.extend_from_slice(&generation.to_le_bytes());
    out.extend_from_slice(digest);
    out
}

/// Why a desired state was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The signature is not by the key that this node pinned.
    Signature,
    /// The generation is older than the one held.
    Replayed {
        /// What came.
        got: u64,
        /// What is held.
        held: u64,
    },
    /// The same generation with another content.
    Forked(u64),
    /// A change to a generation that is not the one held: a full state is needed.
    Base {
        /// What it builds on.
        got: u64,
        /// What is held.
        held: u64,
    },
    /// More objects than a node takes.
    TooMany(usize),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signature => f.write_str("signature is not by the server's pinned key"),
            Self::Replayed { got, held } => write!(f, "generation {got} is older than the one held, {held}"),
            Self::Forked(generation) => {
                write!(f, "generation {generation} came twice with different content")
            }
            Self::Base { got, held } => write!(f, "change to generation {got}, but {held} is held"),
            Self::TooMany(count) => write!(f, "{count} objects, past the bound of {}", limits::OBJECTS),
        }
    }
}

impl core::error::Error for Refused {}

/// Checks a desired state against the index held and the pinned key, and gives the new index.
///
/// # Errors
/// When anything about it is not right; the caller keeps what it has.
pub fn verify(
    node: &NodeName,
    key: &[u8],
    held_generation: u64,
    held: &Index,
    desired: &Desired,
) -> Result<Index, Refused> {
    if desired.generation < held_generation {
        return Err(Refused::Replayed {
            got: desired.generation,
            held: held_generation,
        });
    }
    let index = match &desired.change {
        Change::Full(index) => index.clone(),
        Change::Delta { base, .. } if *base != held_generation => {
            return Err(Refused::Base {
                got: *base,
                held: held_generation,
            });
        }
        Change::Delta { remove, put, .. } => {
            let mut index = held.clone();
            for key in remove {
                index.0.remove(key);
            }
            index.0.extend(put.iter().cloned());
            index
        }
    };
    if index.0.len() > limits::OBJECTS {
        return Err(Refused::TooMany(index.0.len()));
    }
    let digest = index.digest();
    UnparsedPublicKey::new(&ED25519, key)
        .verify(
            &signed_bytes(node, desired.generation, &digest),
            &desired.signature,
        )
        .map_err(|_| Refused::Signature)?;
    if desired.generation == held_generation && held_generation != 0 && digest != held.digest() {
        return Err(Refused::Forked(held_generation));
    }
    Ok(index)
}

/// How `new` comes about from `old`.
#[must_use]
pub fn delta(base: u64, old: &Index, new: &Index) -> Change {
    let remove = old
        .0
        .keys()
        .filter(|key| !new.0.contains_key(key))
        .cloned()
        .collect();
    let put = new
        .0
        .iter()
        .filter(|(key, digest)| old.0.get(key) != Some(digest));
    Change::Delta {
        base,
        remove,
        put: put.map(|(key, digest)| (key.clone(), *digest)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uid::Uid;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    fn index(pods: &[u8]) -> Index {
        Index(
            pods.iter()
                .map(|pod| (ObjectKey::Pod(Uid([*pod; 16])), sha256(&[*pod])))
                .collect(),
        )
    }

    #[test]
    fn only_the_pinned_key_and_a_later_generation_are_believed() {
        let node = NodeName::parse("rover-7").unwrap();
        let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let other = Ed25519KeyPair::from_seed_unchecked(&[2; 32]).unwrap();
        let held = index(&[1, 2]);
        let sign = |pair: &Ed25519KeyPair, node: &NodeName, generation, change, result: &Index| Desired {
            generation,
            signature: pair
                .sign(&signed_bytes(node, generation, &result.digest()))
                .as_ref()
                .to_vec(),
            change,
            objects: Vec::new(),
        };
        let next = index(&[2, 3]);
        let check = |desired: &Desired| verify(&node, pair.public_key().as_ref(), 5, &held, desired);

        let full = Change::Full(next.clone());
        assert_eq!(
            check(&sign(&pair, &node, 6, full.clone(), &next)),
            Ok(next.clone())
        );
        assert_eq!(
            check(&sign(&pair, &node, 6, delta(5, &held, &next), &next)),
            Ok(next.clone())
        );
        assert_eq!(
            check(&sign(&pair, &node, 5, Change::Full(held.clone()), &held)),
            Ok(held.clone())
        );

        let stranger = NodeName::parse("rover-8").unwrap();
        for (desired, why) in [
            (sign(&other, &node, 6, full.clone(), &next), Refused::Signature),
            (sign(&pair, &stranger, 6, full.clone(), &next), Refused::Signature),
            (sign(&pair, &node, 6, full.clone(), &held), Refused::Signature),
            (
                sign(&pair, &node, 4, full.clone(), &next),
                Refused::Replayed { got: 4, held: 5 },
            ),
            (sign(&pair, &node, 5, full, &next), Refused::Forked(5)),
            (
                sign(&pair, &node, 7, delta(4, &held, &next), &next),
                Refused::Base { got: 4, held: 5 },
            ),
        ] {
            assert_eq!(check(&desired), Err(why));
        }
    }
}
