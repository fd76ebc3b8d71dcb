//! Images that were imported on the server, and the registry face that nodes pull them from.
//!
//! What always holds:
//! - A blob under `blobs/sha256/` is whole, synced, and has the digest that names it.
//! - A reference leads to a manifest whose configuration and layers (of at least one platform) are all there.
//! - An import that fails or is cut off leaves no reference, and its working files are gone at the next
//!   [`ImageStore::open`].
//!
//! Absent on purpose: a push API (images come in through an import), deletion and garbage collection, and HTTP itself:
//! [`registry::answer`] is a function from a request's parts to an answer's.

#![forbid(unsafe_code)]

mod digest;
mod error;
mod import;
pub mod limits;
pub mod registry;
mod store;

pub use error::Error;
pub use import::{Imported, Progress};
pub use store::{ImageStore, StoredImage, StoredManifest};
