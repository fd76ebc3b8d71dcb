//! One process per Pod that owns its containers: their parents' duty to wait, their output and the record of their end.
//!
//! Always holds: a shim has one thread, no async runtime and no network; it outlives the agent; it never calls libcontainer
//! itself (a forked child does, with a deadline); it takes requests from root only.

pub mod client;
mod lines;
pub mod ring;
pub mod protocol;

/// The socket's name in the Pod's directory.
pub const SOCKET_NAME: &str = "shim.sock";
/// Directory of the log rings, `logs/<container>/<attempt>.ring`, in the Pod's directory.
pub const LOG_DIR: &str = "logs";
/// Directory of the exit records in the Pod's directory.
pub const EXIT_DIR: &str = "exits";
