//! The MQTT broker of a fleet: [`Embedded`] for one machine, [`External`] for one that somebody else runs.
//!
//! Always holds: a client is who its certificate says; a node reads only what is for it and writes only as itself;
//! nothing is retained, nothing is on disk, and every queue has a bound. Refusals are counted.
//!
//! The embedded broker is the `mqtt5` crate below its listener. Its own listener reads keys from files, accepts one
//! TLS handshake at a time with no time limit, and does not show the certificate's name to its authentication hook, so
//! accepting, TLS and the link between certificate, client id and role are done here; sessions, routing and the
//! protocol are its.

mod acl;
mod embedded;
mod external;
mod gate;

use async_trait::async_trait;
use skiff_protocol::topic::NodeName;

pub use embedded::{BrokerError, Config, Embedded, Tls};
pub use external::{External, mosquitto_acl, mosquitto_conf};

/// Who a client turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The server: everything under `skiff/`.
    Server,
    /// A node: only what is its own.
    Node(NodeName),
}

/// What a client shows when it connects. Its certificate was signed by the fleet CA; nothing else is verified yet.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The certificate's common name.
    pub certificate_name: &'a str,
    /// The certificate's public key: the bits of its SubjectPublicKeyInfo (RFC 5280).
    pub certificate_key: &'a [u8],
    /// The MQTT client id.
    pub client_id: &'a str,
    /// The user name.
    pub username: Option<&'a str>,
    /// The password.
    pub password: Option<&'a [u8]>,
}

/// Says who a client is. Asked on every connect, so that nodes enrolled or removed a moment ago count; called in the
/// broker's tasks, so it must not block for long.
pub trait Credentials: Send + Sync {
    /// The client's role, or `None` to refuse it. The broker itself checks that client id and certificate fit the role.
    fn verify(&self, attempt: &Attempt<'_>) -> Option<Role>;
}

/// What happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections open now, those in a handshake among them.
    pub open: u64,
    /// Clients that connected.
    pub connected: u64,
    /// TLS handshakes that failed: no certificate, another CA's, expired, or no TLS at all.
    pub tls_failed: u64,
    /// Clients refused: unknown, wrong password, or a client id that is not the certificate's.
    pub refused: u64,
    /// Publishes refused by topic.
    pub publish_denied: u64,
    /// Subscriptions refused by topic.
    pub subscribe_denied: u64,
    /// Messages dropped because they asked to be retained.
    pub retain_dropped: u64,
    /// Connections closed because [`Config::max_clients`] were open.
    pub over_limit: u64,
}

/// A broker as the server sees it.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Where clients reach it: `mqtts://host:port`.
    fn url(&self) -> &str;

    /// What happened since the start.
    fn counters(&self) -> Counters;

    /// Closes a node's connection, as when it was removed from the fleet.
    async fn disconnect(&self, node: &NodeName);

    /// Stops accepting, closes all connections, and waits for them, for a few seconds at most.
    async fn shutdown(&self);
}
