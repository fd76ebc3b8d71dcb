//! Placeholder.
mod failure;
mod kinds;
mod manifest;
mod style;
mod yaml;
fn main() {}
