//! The emulated ARM board as a node: a kernel with cgroup v2 alone, and a disk that loses what was not flushed.
//!
//! Always holds: nothing here compares with a time; an emulated machine is as fast as it happens to be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "the helpers of tests are tests too"
)]

#[allow(dead_code, unused_imports, reason = "the end-to-end suite uses the rest")]
#[path = "../e2e/harness/mod.rs"]
mod harness;

mod boots;
mod cold;
mod degraded;
mod disk;
mod faults;
mod limits;
mod machine;
mod node;
mod payload;
mod power;
mod replay;
mod wear;
mod wedged;
