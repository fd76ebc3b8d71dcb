//! What callers see: the [`Transport`] trait, its events, and why a connection or a publish failed.
//!
//! Always holds: whatever a call does not take, it gives back; reasons are texts for people only at their leaves.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::options::{Protocol, Qos};

/// Why a connection ended or never came to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The host cannot be resolved or reached.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The TLS handshake failed; says what was wrong with which certificate.
    #[error("TLS: {0}")]
    Tls(String),
    /// No CONNACK in time.
    #[error("no answer to CONNECT in time")]
    NoAnswer,
    /// The broker does not speak this version of MQTT.
    #[error("the broker does not speak this version of MQTT")]
    ProtocolVersion,
    /// CONNECT was refused, by its reason: user name, password, client id, ban, quota.
    #[error("the broker refused the connection: {0}")]
    Refused(String),
    /// A subscription was refused: without it the client is deaf.
    #[error("the broker refused the subscription to {0}")]
    SubscriptionRefused(String),
    /// The broker has no QoS 1.
    #[error("the broker offers only QoS 0")]
    NoQos1,
    /// The broker hung up, or the network broke.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The broker hung up on CONNECT without a CONNACK.
    #[error("the broker hung up on CONNECT: {0}")]
    HungUp(String),
    /// The broker closed the connection with a reason.
    #[error("the broker closed the connection: {0}")]
    Kicked(String),
    /// Another client came with the same client id.
    #[error("another client connected with the same client id")]
    TakenOver,
    /// A ping went unanswered for half the keepalive.
    #[error("the broker did not answer a ping")]
    Silent,
    /// A write was stuck for one and a half times the keepalive.
    #[error("the connection stalled")]
    Stalled,
    /// A packet above the limit came in. The next session starts clean, or the broker would send it again.
    #[error("the broker sent a packet above the limit")]
    Oversize,
    /// The broker broke the protocol.
    #[error("MQTT protocol error: {0}")]
    Protocol(String),
    /// This side asked for it.
    #[error("disconnected on request")]
    Requested,
}

impl Why {
    /// The handshake failed. Nothing of MQTT was said, so a network that broke says nothing of the broker's version.
    pub(crate) fn tls(error: &rumqttc::TlsError) -> Self {
        match error {
            rumqttc::TlsError::Io(e) => match tls_cause(e) {
                Some(tls) => Self::Tls(tls),
                None => Self::Unreachable(format!("the TLS handshake broke off: {e}")),
            },
            other => Self::Tls(other.to_string()),
        }
    }

    pub(crate) fn hung_up(connected: bool) -> Self {
        let text = "closed by the broker".to_owned();
        if connected {
            Self::Lost(text)
        } else {
            Self::HungUp(text)
        }
    }

    pub(crate) fn broken(error: &io::Error, connected: bool) -> Self {
        match tls_cause(error) {
            Some(tls) => Self::Tls(tls),
            None if connected => Self::Lost(error.to_string()),
            None => Self::HungUp(error.to_string()),
        }
    }
}

/// What rustls says is behind an error of the connection.
fn tls_cause(error: &io::Error) -> Option<String> {
    let mut cause: Option<&(dyn StdError + 'static)> = error.get_ref().map(|e| e as _);
    while let Some(inner) = cause {
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        cause = inner.source();
    }
    None
}

/// Which message an ack is for. It is worthless after its connection ended: the broker then sends the message again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckToken {
    pub(crate) connection: u64,
    pub(crate) pkid: u16,
}

/// What a transport has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Connected, and subscribed to everything.
    Connected {
        /// Whether the broker kept the session. If not, messages may have been lost: say hello.
        session_present: bool,
        /// What is spoken.
        protocol: Protocol,
        /// The largest payload that `try_publish` takes on this connection, for a topic of at most 256 bytes.
        max_payload: usize,
    },
    /// A message came. Nothing is acked to the broker until [`Transport::ack`].
    Message {
        /// Its topic.
        topic: String,
        /// Its payload.
        payload: Bytes,
        /// To ack it with.
        ack: AckToken,
    },
    /// The publish with this id is the broker's now (QoS 1), or was written (QoS 0).
    Acked {
        /// As given to `try_publish`.
        id: u64,
    },
    /// The broker refused the publish with this id.
    Refused {
        /// As given to `try_publish`.
        id: u64,
        /// The broker's reason.
        reason: String,
        /// The reason is the broker's state and not the message: the same publish may be taken later.
        passing: bool,
    },
    /// The connection ended, or an attempt failed. All un-acked publishes are forgotten here.
    Disconnected {
        /// Why.
        why: Why,
        /// When the next attempt starts; `None` after `disconnect`.
        retry_in: Option<Duration>,
    },
}

/// A publish that was not taken. The payload comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Not connected.
    #[error("not connected")]
    Offline(Bytes),
    /// The window of un-acked publishes is full; try again after the next event.
    #[error("the window of un-acked publishes is full")]
    Full(Bytes),
    /// Larger than this side or the broker takes. To try again is useless.
    #[error("{} bytes of payload on {topic}, at most {limit}", payload.len())]
    TooLarge {
        /// Given back.
        payload: Bytes,
        /// Its topic.
        topic: String,
        /// The largest payload for this topic.
        limit: usize,
    },
    /// Not a topic that can be published to.
    #[error("cannot publish to topic {topic:?}")]
    Topic {
        /// Given back.
        payload: Bytes,
        /// As given.
        topic: String,
    },
}

/// An MQTT connection that mends itself.
#[async_trait]
pub trait Transport: Send {
    /// What happens next. Cancel-safe. Never ends; pending for ever after [`Transport::disconnect`].
    async fn next(&mut self) -> Event;

    /// Queues one message. Returns at once; `id` comes back in [`Event::Acked`] or [`Event::Refused`].
    ///
    /// # Errors
    /// Gives the payload back.
    fn try_publish(&mut self, id: u64, topic: &str, payload: Bytes, qos: Qos) -> Result<(), PublishError>;

    /// Acks a message to the broker. `false` when its connection is gone, so the broker will send the message again.
    fn ack(&mut self, token: AckToken) -> bool;

    /// Cuts the wait before the next attempt, as when the network came back.
    fn wake(&mut self);

    /// Says goodbye so that the last will is not published, and stays disconnected.
    async fn disconnect(&mut self);
}
