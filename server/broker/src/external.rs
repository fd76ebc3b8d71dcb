//! A broker that somebody else runs, and what to configure there so that it keeps the same promises.
//!
//! Always holds: the texts give exactly the rights of the embedded broker's table, except that they cannot tell a
//! node's shard.

use async_trait::async_trait;
use skiff_protocol::topic::NodeName;

use crate::{Broker, Counters};

/// A broker that somebody else runs.
#[derive(Debug, Clone)]
pub struct External {
    url: String,
}

impl External {
    /// The broker at `url`, `mqtts://host:port`.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned() }
    }
}

#[async_trait]
impl Broker for External {
    fn url(&self) -> &str {
        &self.url
    }

    /// All zero: its own monitoring has them.
    fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Does nothing: MQTT has no way to ask for it. The node's certificate must be revoked at that broker.
    async fn disconnect(&self, _node: &NodeName) {}

    async fn shutdown(&self) {}
}

/// A Mosquitto ACL file. The user is the certificate's common name (`use_identity_as_username`).
#[must_use]
pub fn mosquitto_acl(server_name: &str) -> String {
    format!(
        "# Skiff: the server may do all under skiff/; a node reads its own and writes as itself.\n\
         user {server_name}\n\
         topic readwrite skiff/#\n\
         \n\
         pattern read skiff/d/%u/#\n\
         pattern write skiff/u/+/%u/#\n"
    )
}

/// A Mosquitto configuration that goes with [`mosquitto_acl`]. The paths are those of the files on its machine.
#[must_use]
pub fn mosquitto_conf(port: u16, ca: &str, certificate: &str, key: &str, acl: &str) -> String {
    format!(
        "# Skiff: clients are who their certificate says, and their client id is that name.\n\
         per_listener_settings false\n\
         allow_anonymous false\n\
         acl_file {acl}\n\
         # Digest sync makes a broker's memory worthless.\n\
         persistence false\n\
         retain_available false\n\
         max_packet_size 131072\n\
         max_queued_messages 1000\n\
         max_queued_bytes 1048576\n\
         persistent_client_expiration 1h\n\
         \n\
         listener {port}\n\
         cafile {ca}\n\
         certfile {certificate}\n\
         keyfile {key}\n\
         require_certificate true\n\
         use_identity_as_username true\n\
         use_username_as_clientid true\n"
    )
}
