//! Tests of the journal through its public API, on simulated media and on real files.
//!
//! Always holds: every promise is judged by the one checker in `model`, and a control shows that the
//! checker can fail.

mod crash;
mod damage;
mod faults;
mod file;
mod golden;
mod medium;
mod model;
