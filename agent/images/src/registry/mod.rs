//! The pull side of the OCI distribution API.
//!
//! Always holds: what a registry says is bounded before it is read and verified before it is believed; credentials and
//! the client certificate go to the source's own origin, and from there only to the token service it names.

mod auth;
mod blob;
mod client;
mod manifest;
mod tls;

use std::fmt;

use skiff_protocol::image_ref::Digest;

pub(crate) use blob::{BlobReader, ReadFailure};
pub(crate) use client::Client;
pub use client::https;
pub(crate) use manifest::{Config, Descriptor, Document, Manifest, choose};

/// What went wrong at one source.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// No connection, no answer in time, or an answer that says "not now".
    #[error("{0}")]
    Unavailable(String),
    /// The registry answered that it will not.
    #[error("{what}: {words} (HTTP {status})")]
    Answer {
        what: String,
        status: u16,
        words: String,
    },
    /// The answer is larger than anything sensible.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    /// The answer is not what the specification says.
    #[error("{what}: {reason}")]
    Malformed { what: String, reason: String },
    /// The content is not what its digest says.
    #[error("{what}: digest mismatch: expected {expected}, got {got}")]
    Mismatch {
        what: String,
        expected: Digest,
        got: Digest,
    },
    /// The image is not for this node.
    #[error("no image for platform {wanted}; there is {offered}")]
    Platform { wanted: String, offered: String },
    /// The source as configured cannot be used.
    #[error("{0}")]
    Configuration(String),
}

impl RegistryError {
    pub(crate) fn malformed(what: &str, reason: impl fmt::Display) -> Self {
        Self::Malformed {
            what: what.to_owned(),
            reason: reason.to_string(),
        }
    }
}
