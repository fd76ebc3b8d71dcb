//! The node's end of the MQTT session: what waits to be sent, and what comes.
//!
//! Always holds: a message is acked to the broker only after the driver has dealt with it (a chunk of one as it comes:
//! digest sync repairs what a restart then loses); what is sent leaves the
//! outbox only with the broker's ack, or a refusal that repeating would not change; a message is queued whole or not
//! at all; nothing here blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use ring::rand::{SecureRandom, SystemRandom};
use skiff_protocol::limits;
use skiff_protocol::topic::{NodeName, Topic, UpKind};
use skiff_protocol::wire::{self, Assembler, Down, OLDEST, Up, decode_down, encode_up, frames};
use skiff_transport::outbox::{Bound, Bounds, Class, Message, Outbox};
use skiff_transport::{
    AckToken, BrokerUrl, Bytes, Client, Event, LastWill, Options, ProtocolChoice, PublishError, Qos,
    Transport, tls,
};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::identity::Identity;

/// What statuses may hold: the largest one, of 32 containers that each have two texts of 4 KiB, beside a full frame.
const STATUS: Bound = Bound {
    messages: 256,
    bytes: 384 * 1024,
};

/// The first and the longest wait after a refusal that may pass. A quota is mostly one a minute or an hour.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What the link has to tell.
pub(crate) enum Incoming {
    /// It stands.
    Up,
    /// It broke.
    Down,
    /// A message of the server, to be acked once it is dealt with.
    Message(Box<Down>, AckToken),
    /// Nothing for the driver.
    Nothing,
}

/// The link.
pub(crate) struct Link {
    node: NodeName,
    client: Box<dyn Transport>,
    outbox: Outbox,
    /// A report that found no room; it goes before any other, so that the server misses none.
    kept: Option<Up>,
    assembler: Assembler,
    /// The wire version of the server's last frame on this connection; before it, the one that every server reads.
    speaks: u8,
    connected: bool,
    /// The broker refused something for now. Until all that waits is sent, one message goes at a time, so that they
    /// keep their order, and none before this time.
    throttle: Option<(Instant, Duration)>,
    next_message: u32,
    unreadable: u64,
    unsendable: u64,
}

/// Figures of the link.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct LinkCounters {
    /// Whether it stands.
    pub connected: bool,
    /// Payloads that were no messages of ours.
    pub unreadable: u64,
    /// Messages that found no room, or were refused.
    pub unsendable: u64,
}

impl Link {
    /// A link that connects when it is first asked for news. `floor` is the least time that certificates are
    /// checked against, in seconds since 1970.
    ///
    /// # Errors
    /// When URL, certificates or an option are wrong.
    pub(crate) fn new(
        config: &Config,
        identity: &Identity,
        epoch: u64,
        floor: Arc<AtomicU64>,
    ) -> Result<Self> {
        if !identity.has_joined() {
            return Ok(Self::over(identity.node.clone(), Box::new(Nowhere)));
        }
        let url = config
            .broker_url
            .as_deref()
            .unwrap_or(&identity.joined.broker_url);
        let url = BrokerUrl::parse(url, false).context("broker_url")?;
        let clock = tls::Clock::at_least(floor);
        let tls = tls::client_config(&identity.joined.ca_certificate, Some(identity.tls()), &clock)?;
        let random = SystemRandom::new();
        // Jitter only spreads reconnects; without randomness all nodes wait alike.
        let jitter = Box::new(move || {
            let mut bytes = [0; 8];
            let _ = random.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        });
        let mut options = Options::new(url, identity.node.as_str(), jitter);
        options.credentials = Some((
            identity.joined.broker_username.clone(),
            identity.joined.broker_password.clone(),
        ));
        options.protocol = match config.mqtt_version.as_str() {
            "5" => ProtocolChoice::V5,
            "3.1.1" => ProtocolChoice::V311,
            _ => ProtocolChoice::Auto,
        };
        options.keepalive = Duration::from_secs(config.keepalive_seconds);
        options.backoff_cap = Duration::from_secs(config.reconnect_cap_seconds.max(1));
        options.tls = Some(tls);
        options.subscriptions = vec![Topic::node_filter(&identity.node)];
        options.max_payload = limits::FRAME;
        let bye = frames(OLDEST, &encode_up(&Up::Bye { epoch }), 0)?.remove(0);
        options.last_will = Some(LastWill {
            topic: Topic::up(&identity.node, UpKind::Bye).to_string(),
            payload: bye.into(),
        });
        Ok(Self::over(identity.node.clone(), Box::new(Client::new(options)?)))
    }

    /// A link over a transport.
    fn over(node: NodeName, client: Box<dyn Transport>) -> Self {
        let mut bounds = Bounds::default();
        bounds.0[Class::Status as usize] = STATUS;
        // A random beginning: chunks of a start before this one may still be on their way under low numbers.
        let mut bytes = [0; 4];
        let _ = SystemRandom::new().fill(&mut bytes);
        Self {
            node,
            client,
            outbox: Outbox::new(bounds),
            kept: None,
            assembler: Assembler::default(),
            speaks: OLDEST,
            connected: false,
            throttle: None,
            next_message: u32::from_le_bytes(bytes),
            unreadable: 0,
            unsendable: 0,
        }
    }

    /// Goes on where `before` ends: what it had not sent, this one sends.
    pub(crate) fn succeed(&mut self, before: Self) {
        self.outbox = before.outbox;
        self.outbox.clear(Class::Stream);
        self.outbox.disconnected();
        self.kept = before.kept;
        self.next_message = before.next_message;
        self.unreadable += before.unreadable;
        self.unsendable += before.unsendable;
    }

    /// What happens next. Cancel-safe: the transport's `next` and a sleep until a fixed time are, and everything after
    /// them is done without waiting.
    pub(crate) async fn next(&mut self) -> Incoming {
        let again = self.throttle.map(|(until, _)| until).filter(|_| self.connected);
        let event = tokio::select! {
            // Cancelled, it tells the same event at the next call.
            event = self.client.next() => event,
            // Cancelled, it ends at the same time at the next call.
            () = passed(again, self.outbox.is_in_flight()) => {
                self.pump();
                return Incoming::Nothing;
            }
        };
        let incoming = self.took(event);
        self.pump();
        incoming
    }

    fn took(&mut self, event: Event) -> Incoming {
        match event {
            Event::Connected { protocol, .. } => {
                info!(%protocol, "connected to the broker");
                self.connected = true;
                // It may be another server by now, of another age.
                self.speaks = OLDEST;
                // Hellos and answers of an earlier connection are worthless: all of it is said anew.
                self.outbox.clear(Class::Control);
                Incoming::Up
            }
            Event::Disconnected { why, retry_in } => {
                if self.connected {
                    warn!(%why, ?retry_in, "the link broke");
                } else {
                    info!(%why, ?retry_in, "the broker cannot be reached");
                }
                self.connected = false;
                self.throttle = None;
                // The server ends the streams of a connection with it.
                self.outbox.clear(Class::Stream);
                self.outbox.disconnected();
                Incoming::Down
            }
            Event::Message { topic, payload, ack } => self.message(&topic, &payload, ack),
            Event::Acked { id } => {
                self.outbox.acked(id);
                Incoming::Nothing
            }
            Event::Refused {
                id,
                reason,
                passing: true,
            } => {
                self.hold_back(&reason);
                self.outbox.postponed(id);
                Incoming::Nothing
            }
            Event::Refused { id, reason, .. } => {
                self.unsendable += 1;
                warn!(reason, "the broker refused a message");
                self.outbox.refused(id);
                Incoming::Nothing
            }
        }
    }

    fn message(&mut self, topic: &str, payload: &[u8], ack: AckToken) -> Incoming {
        let ours = matches!(Topic::parse(topic), Ok(Topic::Down { node, .. }) if node == self.node);
        let message = if ours {
            self.assembler
                .push(payload)
                .and_then(|whole| whole.map(|it| decode_down(&it)).transpose())
        } else {
            Err(wire::Unreadable::Malformed)
        };
        if let (Ok(_), Some(version)) = (&message, payload.first()) {
            self.speaks = *version;
        }
        match message {
            Ok(Some(message)) => Incoming::Message(Box::new(message), ack),
            Ok(None) => {
                self.client.ack(ack);
                Incoming::Nothing
            }
            Err(why) => {
                // Logged at 1, 2, 4, 8, …: a broken peer must not fill the log.
                self.unreadable += 1;
                if self.unreadable.is_power_of_two() {
                    warn!(topic, %why, count = self.unreadable, "ignored a payload that is no message of ours");
                }
                self.client.ack(ack);
                Incoming::Nothing
            }
        }
    }

    /// Acks a message that was dealt with.
    pub(crate) fn ack(&mut self, token: AckToken) {
        self.client.ack(token);
    }

    /// Whether a report would be taken now.
    pub(crate) fn has_room(&self, class: Class) -> bool {
        self.connected && self.outbox.has_room(class, limits::FRAME)
    }

    /// Sends what there is to report, while there is room. What finds none is kept, and goes first the next time.
    pub(crate) fn report(&mut self, mut next: impl FnMut() -> Option<Up>) {
        while self.has_room(Class::Status)
            && self.has_room(Class::Event)
            && let Some(report) = self.kept.take().or_else(&mut next)
        {
            match self.queue(&report) {
                Ok(()) => {}
                Err(Unqueued::Full) => {
                    self.kept = Some(report);
                    return;
                }
                Err(Unqueued::TooLarge) => self.unsendable += 1,
            }
        }
    }

    /// Queues a message; `false` when there is no room for it.
    pub(crate) fn send(&mut self, message: &Up) -> bool {
        let queued = self.queue(message).is_ok();
        if !queued {
            self.unsendable += 1;
        }
        queued
    }

    /// Queues all frames of a message, or none.
    fn queue(&mut self, message: &Up) -> Result<(), Unqueued> {
        let (class, kind, sid) = address(message);
        let topic = match sid {
            None => Topic::up(&self.node, kind),
            Some(_) => Topic::Up {
                node: self.node.clone(),
                kind,
                sid,
            },
        };
        let topic = topic.to_string();
        // What this node speaks is told in a way that every server understands.
        let version = if matches!(message, Up::Hello(_)) {
            OLDEST
        } else {
            self.speaks
        };
        self.next_message = self.next_message.wrapping_add(1);
        let payloads = match frames(version, &encode_up(message), self.next_message) {
            Ok(payloads) => payloads,
            Err(why) => {
                error!(topic, %why, "a message cannot be sent");
                return Err(Unqueued::TooLarge);
            }
        };
        let (count, bytes) = payloads.iter().fold((0, 0), |(count, bytes), payload| {
            (count + 1, bytes + topic.len() + payload.len())
        });
        if !self.outbox.could_hold(class, count, bytes) {
            error!(topic, bytes, "a message can never be sent: the outbox holds less");
            return Err(Unqueued::TooLarge);
        }
        if !self.outbox.has_room_for(class, count, bytes) {
            return Err(Unqueued::Full);
        }
        for payload in payloads {
            let message = Message {
                topic: topic.clone(),
                payload: Bytes::from(payload),
                qos: Qos::AtLeastOnce,
            };
            // There is room: that was asked for all of them.
            if let Err(full) = self.outbox.push(class, None, message) {
                error!(%full, "a part of a message is lost");
            }
        }
        self.pump();
        Ok(())
    }

    /// Hands the transport what it takes.
    fn pump(&mut self) {
        while self.connected
            && !self.holds_back()
            && let Some((id, message)) = self.outbox.next()
        {
            let Message { topic, payload, qos } = message.clone();
            match self.client.try_publish(id, &topic, payload, qos) {
                Ok(()) => self.outbox.sent(id),
                Err(PublishError::Full(_) | PublishError::Offline(_)) => return,
                Err(error @ (PublishError::TooLarge { .. } | PublishError::Topic { .. })) => {
                    self.unsendable += 1;
                    warn!(%error, "a message cannot be sent");
                    self.outbox.refused(id);
                }
            }
        }
    }

    /// Sends nothing for a while, longer each time. What was on its way already when that began is one refusal.
    fn hold_back(&mut self, reason: &str) {
        let now = Instant::now();
        let wait = match self.throttle {
            Some((until, _)) if now < until => return,
            Some((_, wait)) => (wait * 2).min(AGAIN.1),
            None => AGAIN.0,
        };
        info!(reason, ?wait, "the broker takes no message now");
        self.throttle = Some((now + wait, wait));
    }

    /// Whether the broker's last refusal keeps the next message here for now.
    fn holds_back(&mut self) -> bool {
        let Some((until, _)) = self.throttle else {
            return false;
        };
        if self.outbox.is_empty() {
            self.throttle = None;
            return false;
        }
        self.outbox.is_in_flight() || Instant::now() < until
    }

    /// Figures.
    pub(crate) fn counters(&self) -> LinkCounters {
        LinkCounters {
            connected: self.connected,
            unreadable: self.unreadable,
            unsendable: self.unsendable,
        }
    }

    /// Says goodbye: the last will is not published, so this is.
    pub(crate) async fn close(&mut self, epoch: u64) {
        if self.connected && self.send(&Up::Bye { epoch }) {
            let flush = async {
                while !self.outbox.is_empty() {
                    self.next().await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(1), flush).await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), self.client.disconnect()).await;
    }
}

/// The transport of a node that belongs to no fleet: nothing ever comes or goes.
struct Nowhere;

#[async_trait::async_trait]
impl Transport for Nowhere {
    async fn next(&mut self) -> Event {
        std::future::pending().await
    }

    fn try_publish(&mut self, _: u64, _: &str, payload: Bytes, _: Qos) -> Result<(), PublishError> {
        Err(PublishError::Offline(payload))
    }

    fn ack(&mut self, _: AckToken) -> bool {
        false
    }

    fn wake(&mut self) {}

    async fn disconnect(&mut self) {}
}

/// Why a message is not in the outbox.
enum Unqueued {
    /// There is no room now.
    Full,
    /// There is never room for it.
    TooLarge,
}

/// Done at the time; never while the broker has yet to answer for a message, whose answer comes as an event.
async fn passed(time: Option<Instant>, in_flight: bool) {
    match time.filter(|_| !in_flight) {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn address(message: &Up) -> (Class, UpKind, Option<u32>) {
    match message {
        Up::Hello(_) | Up::Need { .. } | Up::Applied { .. } | Up::Statics { .. } | Up::StaticPod { .. } => {
            (Class::Control, UpKind::Hello, None)
        }
        Up::Bye { .. } => (Class::Control, UpKind::Bye, None),
        Up::Status { .. } | Up::Node(_) | Up::Images { .. } => (Class::Status, UpKind::Status, None),
        Up::Events { .. } => (Class::Event, UpKind::Event, None),
        Up::StreamData { sid, .. } | Up::StreamEnd { sid, .. } => (Class::Stream, UpKind::Stream, Some(*sid)),
    }
}

/// The latest time that is known to have passed, for everything that checks certificates.
pub(crate) fn raise(floor: &AtomicU64, unix: i64) {
    floor.fetch_max(u64::try_from(unix).unwrap_or(0), Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
