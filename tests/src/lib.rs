//! What the suites of this crate share. The suites themselves are under `tests/`.

pub mod port;
pub mod rng;
