//! The API from outside: a real listener, real TLS, a real store on disk.
//!
//! `requests` drives it by hand, `kubectl` with the program that people use.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends with the first thing that goes wrong"
)]

mod harness;
mod kubectl;
mod requests;
mod watches;
