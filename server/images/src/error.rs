//! What can go wrong in an import or a lookup, each error naming the file it is about.

use std::io;
use std::path::{Path, PathBuf};

use skiff_protocol::image_ref::{Digest, ImageRefError};

/// An error of the server's image store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the store could not be read or written.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// A record of the store is damaged.
    #[error("{path}: the record is damaged: {reason}; import the image again", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// What was given is neither format.
    #[error("neither an OCI layout nor a docker-archive: no manifest.json, no oci-layout in {0}")]
    Unrecognised(String),
    /// The archive breaks off or is no tar.
    #[error("{file}: not a whole tar archive: {source}")]
    Archive {
        /// The file as given.
        file: String,
        /// What the reader met.
        source: io::Error,
    },
    /// A part that the archive promises is wrong or not there.
    #[error("{file}: {part}: {reason}")]
    Invalid {
        /// The file as given.
        file: String,
        /// Which part of it.
        part: String,
        /// What is wrong.
        reason: String,
    },
    /// Content is not what its digest says.
    #[error("{file}: {part}: digest mismatch: expected {expected}, got {got}")]
    Mismatch {
        /// The file as given.
        file: String,
        /// Which part of it.
        part: String,
        /// What it should have been.
        expected: Digest,
        /// What it is.
        got: Digest,
    },
    /// Nothing names the image.
    #[error("{file}: {reason}; say which name the image is to have")]
    Unnamed {
        /// The file as given.
        file: String,
        /// Why the name cannot be known.
        reason: String,
    },
    /// A name in the archive is no image reference.
    #[error("{file}: {source}")]
    Name {
        /// The file as given.
        file: String,
        /// What is wrong with the name.
        source: ImageRefError,
    },
    /// A bound was reached.
    #[error("{file}: {what} is over the limit of {limit}")]
    Limit {
        /// The file as given.
        file: String,
        /// What is too large or too many.
        what: String,
        /// The bound.
        limit: u64,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn invalid(file: &str, part: &str, reason: impl std::fmt::Display) -> Self {
        Self::Invalid {
            file: file.to_owned(),
            part: part.to_owned(),
            reason: reason.to_string(),
        }
    }
}
