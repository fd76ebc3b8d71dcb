//! The Skiff server: Kubernetes API, store, placement, and the link to the nodes.
//!
//! ```text
//! kubectl ──▶ api ──▶ store ──▶ placement ──▶ store
//!                       │ watch
//!                       ▼
//!                     link ──▶ broker ──▶ node          link ◀── broker ◀── node
//!                       │ status, events
//!                       ▼
//!                     store ──▶ api's watches
//! ```
//!
//! [`Server::start`] puts the parts together; [`run`] is a whole server.
//!
//! What always holds: the parts know the store and nothing of each other; only the link speaks to nodes, except that a
//! node joins and fetches images over HTTPS (`enrol.rs`, `registry.rs`).

use std::time::Duration;

pub mod api;
mod config;
mod enrol;
mod events;
mod fleet;
pub mod link;
mod orphans;
pub mod placement;
mod registry;
mod server;
pub mod store;

pub use config::{BrokerConfig, Config, Validity};
pub use server::{Server, run};

/// How long a task waits after its store failed before it tries again.
const RETRY: Duration = Duration::from_secs(1);

/// The current time as Kubernetes writes it: RFC 3339 in UTC, whole seconds.
fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}
