//! The Kubernetes API over HTTPS.
//!
//! Data flow: listener → TLS → [`Identity`] → path → the table of [`resources`] → one verb for all kinds →
//! [`Store`]. What differs between kinds stands in the table and in a [`Strategy`](resources::Strategy) each; the
//! verbs know no kind by name.
//!
//! What always holds: a request is answered by a Kubernetes object, errors by a `Status`; nothing is stored that the
//! [`validate`] module has not passed; bodies, queues and connections are bounded by [`limits`].

mod binding;
mod delete;
mod discovery;
mod dispatch;
mod events;
mod features;
mod housekeeping;
pub mod identity;
pub mod kinds;
pub mod limits;
mod logs;
mod metadata;
pub mod mirror;
mod nodes;
mod openapi;
mod patch;
mod protobuf;
mod reply;
mod request;
pub mod resources;
mod route;
mod selector;
mod serve;
mod status;
mod table;
mod time;
mod validate;
mod verbs;
mod volumes;
mod watch;

use std::sync::Arc;

pub use binding::{Seen, bind, mark_unschedulable, set_condition};
pub use delete::{DeleteOptions, Deletion, delete};
pub use dispatch::router;
pub use events::{Happening, record_event, sweep as sweep_events};
pub(crate) use features::{FEATURES, features as node_features, wanted as wanted_features};
pub use housekeeping::make_namespaces;
#[cfg(test)]
pub(crate) use housekeeping::run as housekeeping;
pub use identity::{Identity, StaticTokens, Tokens};
pub(crate) use kinds::volume::{PROVISIONER, node_of, quantity};
pub(crate) use metadata::status_of;
pub(crate) use mirror::{make as make_mirror, mirrored, node_uid};
pub use nodes::{LogError, LogOptions, LogStream, Nodes, PodRef};
pub(crate) use request::in_time;
pub use serve::serve;
pub use status::{ApiError, ApiResult};
pub(crate) use volumes::{bind_claim, claims_of, drops, fits, holder, volume_dropped, volume_of};

use crate::store::Store;

/// What the API works with. Cloning it clones handles.
#[derive(Clone)]
pub struct ApiState {
    store: Arc<dyn Store>,
    nodes: Arc<dyn Nodes>,
    tokens: Arc<dyn Tokens>,
    stop: tokio::sync::watch::Receiver<bool>,
}

impl ApiState {
    /// The state of one server.
    pub fn new(store: Arc<dyn Store>, nodes: Arc<dyn Nodes>, tokens: Arc<dyn Tokens>) -> Self {
        // Replaced by the listener's; until then nothing stops.
        let (_, stop) = tokio::sync::watch::channel(false);
        Self {
            store,
            nodes,
            tokens,
            stop,
        }
    }
}
