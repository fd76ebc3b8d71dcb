//! What both ends of Skiff agree on: the Kubernetes objects as users write them, Pods that are
//! valid by construction, MQTT topics, and the messages between server and node.
//!
//! Always holds: no I/O, no clock, no randomness, no `std`. Every bound stands in [`limits`].

#![no_std]

extern crate alloc;

pub mod enrol;
pub mod image_ref;
pub mod limits;
pub mod manifest;
pub mod pod;
pub mod quantity;
pub mod topic;
pub mod uid;
pub mod wire;

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// The SHA-256 digest of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    out
}
