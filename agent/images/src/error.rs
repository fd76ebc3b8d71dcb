//! What can go wrong in the store, in a layer and with an image's user, each error naming what it is about.

use std::io;
use std::path::{Path, PathBuf};

/// An error of the image store.
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
    /// A layer needs more room than there is.
    #[error("{path}: a layer needs at least {needed} bytes, and {free} are free; free some", path = path.display())]
    Full {
        /// The directory of the store.
        path: PathBuf,
        /// Bytes of the layer as transferred; it unpacks to no less.
        needed: u64,
        /// Bytes that are free for it.
        free: u64,
        /// Bytes beside those that the node keeps, and that other pulls need.
        kept: u64,
    },
    /// A metadata file is not what the store writes. Pulling the image again repairs it.
    #[error("{path}: the image's metadata is damaged: {reason}; pull the image again", path = path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A reference leads to an image, or an image to a layer, that is not in the store. Pulling repairs it.
    #[error("image {reference}: {missing} is missing from the store; pull the image again")]
    Incomplete {
        /// The image as asked for.
        reference: String,
        /// What is missing.
        missing: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The same for an error of a raw system call.
    pub(crate) fn sys(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::Io {
            action,
            path,
            source: errno.into(),
        }
    }

    /// Whether more room on the disk would have helped.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        }
    }

    /// Whether pulling the image again puts it right.
    #[must_use]
    pub fn is_repaired_by_pull(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Incomplete { .. })
    }
}

/// The user that an image or a Pod asks for cannot be found in the image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// A name that `/etc/passwd` of the image does not have.
    #[error("unable to find user {0:?}: no matching entry in the image's /etc/passwd")]
    NoUser(String),
    /// A name that `/etc/group` of the image does not have.
    #[error("unable to find group {0:?}: no matching entry in the image's /etc/group")]
    NoGroup(String),
    /// Not `user[:group]`.
    #[error("user {0:?} is not user[:group], with names or with numbers up to 4294967294")]
    Malformed(String),
    /// The file could not be read.
    #[error("image file {path}: {source}")]
    Io {
        /// The path in the image.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A layer was refused, or could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The stream is not a tar archive, or it breaks off.
    #[error("not a whole tar archive: {0}")]
    Archive(#[source] io::Error),
    /// An entry that no layer may have.
    #[error("entry {name}: {reason}")]
    Refused {
        /// The entry's name, escaped.
        name: String,
        /// Why it is refused.
        reason: String,
    },
    /// A bound was reached.
    #[error("{what} is over the limit of {limit}")]
    Limit {
        /// What is too large or too many.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The disk would be left with less than must stay free.
    #[error("the disk has less than {keep_free} bytes free, which the node keeps for what runs; free some")]
    Full {
        /// Bytes that stay free.
        keep_free: u64,
    },
    /// The node's file system refused.
    #[error("entry {name}: cannot {action}: {source}")]
    Write {
        /// What was tried.
        action: &'static str,
        /// For which entry.
        name: String,
        /// The kernel's word.
        source: io::Error,
    },
}
