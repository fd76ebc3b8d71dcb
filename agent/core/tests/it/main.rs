//! The core's behaviour as tables: what happens goes in, and what the core does and shows of it is golden text.
//!
//! Always holds: every scenario runs through one [`bench::check`], which also asserts that no deadline is left in the past.
//! `SKIFF_BLESS=1` writes the golden texts anew; read the difference before you commit it.

mod admission;
mod adoption;
mod bench;
mod deletion;
mod desired;
mod eviction;
mod hooks;
mod init;
mod lifecycle;
mod probes;
mod regressions;
mod resize;
mod show;
mod statics;
mod termination;
mod volumes;
