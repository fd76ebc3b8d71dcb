//! YAML documents as JSON values, with the place of every field in its file.
//!
//! The rules are those by which Kubernetes reads manifests (YAML 1.1 scalars, see [`scalar`]), with its leniency left
//! out: a key that stands twice is refused with both lines, since one of the two would be lost unseen.
//!
//! Always holds: what is read is bounded in bytes, depth, and values, aliases counted as often as they are used, so
//! that a small file cannot become a large object. The [`Spot`] of a document has the shape of its value.

mod reader;
mod scalar;
mod spot;
mod write;

pub use reader::read;
pub use spot::{Inner, Mark, Spot};
pub use write::to_yaml;

/// Bytes of one file: what the server takes as one request's body.
pub const FILE_BYTES: usize = 3 << 20;

/// Values in one file, aliases counted as often as they are used; the largest manifest that people write has some
/// thousands.
pub const VALUES: usize = 200_000;

/// Bytes of all scalars in one file, aliases counted as often as they are used.
pub const SCALAR_BYTES: usize = 2 * FILE_BYTES;

/// How deep values may nest, which is the server's own bound.
pub const DEPTH: usize = 100;
