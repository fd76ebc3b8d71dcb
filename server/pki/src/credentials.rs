//! Broker passwords. They are derived, not stored: a node's from its name and a serial that the server keeps with the
//! node and raises to make the old password worthless.
//!
//! Always holds: comparison is in constant time; the password of one use, node or serial says nothing about another.

use ring::hmac;
use skiff_protocol::enrol::{from_base64, to_base64};
use skiff_protocol::topic::NodeName;

use crate::authority::FleetAuthority;
use crate::issue::SERVER_CN;

impl FleetAuthority {
    /// The node's password at the broker: 43 printable characters.
    #[must_use]
    pub fn broker_password(&self, node: &NodeName, serial: u64) -> String {
        to_base64(hmac::sign(&self.token_key, &node_message(node, serial)).as_ref())
    }

    /// Whether `password` is that of the node and serial.
    #[must_use]
    pub fn is_broker_password(&self, node: &NodeName, serial: u64, password: &[u8]) -> bool {
        self.matches(&node_message(node, serial), password)
    }

    /// The password of the server's own client, [`SERVER_CN`].
    #[must_use]
    pub fn server_password(&self) -> String {
        to_base64(hmac::sign(&self.token_key, &server_message()).as_ref())
    }

    /// Whether `password` is that of the server's own client.
    #[must_use]
    pub fn is_server_password(&self, password: &[u8]) -> bool {
        self.matches(&server_message(), password)
    }

    fn matches(&self, message: &[u8], password: &[u8]) -> bool {
        let tag = std::str::from_utf8(password)
            .ok()
            .filter(|text| text.len() <= 64)
            .and_then(from_base64);
        tag.is_some_and(|tag| hmac::verify(&self.token_key, message, &tag).is_ok())
    }
}

fn node_message(node: &NodeName, serial: u64) -> Vec<u8> {
    let mut message = b"skiff-broker-v1\0".to_vec();
    message.extend_from_slice(&serial.to_be_bytes());
    message.extend_from_slice(node.as_str().as_bytes());
    message
}

fn server_message() -> Vec<u8> {
    let mut message = b"skiff-broker-server-v1\0".to_vec();
    message.extend_from_slice(SERVER_CN.as_bytes());
    message
}
