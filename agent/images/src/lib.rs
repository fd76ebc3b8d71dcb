//! Images on the node: a content-addressed store, and the pull that fills it.
//!
//! What always holds:
//! - An image that [`Store::resolve`] gives is whole: each layer was verified twice (the digest of what was
//!   transferred, the diff ID of what was unpacked), synced, and only then named.
//! - What has come of a layer is kept until the layer is whole, and believed for nothing but its digest in the end.
//! - A layer directory under `layers/` never changes.
//! - Nothing of an image is followed out of its own tree: neither by the unpack nor by a look at `/etc/passwd`.
//! - What a Pod names or something runs from is never taken out.
//! - Every byte from a registry is counted against a bound of [`limits`] before it is kept.
//!
//! Absent on purpose: a runtime (all of it blocks; pull and collection are processes of their own), and any choice of when
//! to pull or to collect.

#![forbid(unsafe_code)]

pub mod collect;
mod decompress;
mod digest;
mod error;
mod image;
pub mod limits;
mod merged;
mod pace;
mod partial;
pub mod pull;
mod record;
mod registry;
mod store;
mod unpack;
mod user;

pub use error::{Error, UnpackError, UserError};
pub use image::{Image, ImageConfig};
pub use pace::Pace;
pub use registry::https;
pub use store::{Store, StoredImage};
pub use unpack::{DeviceNodes, UnpackOptions, Unpacked, unpack_layer};
pub use user::User;
