//! What the kinds do differently from a plain document, one file a kind.

pub mod data;
pub mod event;
pub mod namespace;
pub mod pod;
pub mod volume;
