//! The Kubernetes API over HTTPS.
//!
//! Data flow: listener → TLS → [`Identity`] → path → the table of [`resources`] → one verb for all kinds →
//! [`Store`](crate::store::Store). What differs between kinds stands in the table and in a
//! [`Strategy`](resources::Strategy) each; the verbs know no kind by name.
//!
//! What always holds: a request is answered by a Kubernetes object, errors by a `Status`; nothing is stored that the
//! [`validate`] module has not passed; bodies, queues and connections are bounded by [`limits`].

pub mod identity;
pub mod limits;
pub mod nodes;

pub use identity::{Identity, StaticTokens, Tokens};
pub use nodes::{LogError, LogOptions, LogStream, Nodes, PodRef};
