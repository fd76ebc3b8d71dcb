//! The MQTT client: one connection at a time, for ever.
//!
//! ```text
//!              ┌────────── jittered wait ◀──────────┐
//!              ▼                                    │
//!  new ──▶ connecting ── CONNACK ──▶ subscribing ──▶ up
//!              │                         │           │      each arrow back to the wait is Event::Disconnected
//!              └─────────────────────────┴───────────┘
//!                             disconnect() ──▶ closed
//! ```
//!
//! Always holds: all state lives in [`Client`], none in the future that `next` returns, so dropping that future at any
//! await loses nothing: this is what makes `next` safe as one arm of a `select!`. The connection makes progress only
//! while `next` is polled; call it in a loop.
//!
//! A publish is "un-acked" from `try_publish` until [`Event::Acked`] or [`Event::Refused`]. After
//! [`Event::Disconnected`] all of them are forgotten here, and are the outbox's to repeat.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::api::{AckToken, Event, PublishError, Transport, Why};
use crate::backoff::Backoff;
use crate::driver::{self, Granted, Packet, Refusal, Submit, Timing};
use crate::options::{Options, OptionsError, Protocol, ProtocolChoice, Qos};
use crate::{v4, v5};

/// Packets between the driver and `next`. Both run in the same task, so this only has to hold one burst.
const PACKETS: usize = 16;
/// Requests queued in the library: publishes are bounded by the window, so this bounds acks. A broker of MQTT 3.1.1
/// chooses how many messages it has un-acked; Mosquitto's default is 20.
const REQUESTS: usize = 1024;
/// QoS 0 publishes handed to the library and not yet written.
const UNWRITTEN: usize = 32;
/// Hang-ups on CONNECT after which MQTT 3.1.1 is tried: one may be chance.
const HANG_UPS: u32 = 2;
/// How long a polite DISCONNECT may take.
const FAREWELL: Duration = Duration::from_secs(2);

type Driver = Pin<Box<dyn Future<Output = Why> + Send>>;

enum Phase {
    Waiting(Pin<Box<Sleep>>),
    Open(Connection),
    Closed,
}

struct Connection {
    number: u64,
    protocol: Protocol,
    sender: Box<dyn Submit>,
    driver: Driver,
    packets: mpsc::Receiver<Packet>,
    ended: Option<Why>,
    granted: Option<Granted>,
    /// Set once `Event::Connected` was given out.
    up: Option<Instant>,
    window: u16,
    library_window: u16,
    last_pkid: u16,
    /// Handed to the library, in order, and not yet written.
    submitted: VecDeque<u64>,
    /// Un-acked at QoS 1, by the packet id they have or, until written, will have.
    inflight: BTreeMap<u16, u64>,
}

/// The client.
pub struct Client {
    options: Options,
    backoff: Backoff,
    phase: Phase,
    ready: VecDeque<Event>,
    connections: u64,
    protocol: Protocol,
    /// MQTT 5 worked once, so a hang-up is no reason to try 3.1.1.
    v5_worked: bool,
    /// MQTT 3.1.1 worked where 5 did not, so one hang-up on 5 is reason enough to go back.
    v311_worked: bool,
    /// Attempts with MQTT 5 that ended in a hang-up on CONNECT, since the last change of version.
    hang_ups: u32,
    /// Subscriptions are surely known to the broker's session.
    subscribed: bool,
    clean_next: bool,
}

impl Client {
    /// A client that connects on the first call of `next`.
    ///
    /// # Errors
    /// When an option is out of bounds.
    pub fn new(mut options: Options) -> Result<Self, OptionsError> {
        options.check()?;
        let random = std::mem::replace(&mut options.jitter, Box::new(|| 0));
        let backoff = Backoff::new(options.backoff_base, options.backoff_cap, random);
        let protocol = match options.protocol {
            ProtocolChoice::V311 => Protocol::V311,
            ProtocolChoice::V5 | ProtocolChoice::Auto => Protocol::V5,
        };
        Ok(Self {
            options,
            backoff,
            phase: Phase::Waiting(Box::pin(sleep(Duration::ZERO))),
            ready: VecDeque::with_capacity(2),
            connections: 0,
            protocol,
            v5_worked: false,
            v311_worked: false,
            hang_ups: 0,
            subscribed: false,
            clean_next: false,
        })
    }

    /// Changes the keepalive from the next connection on.
    ///
    /// # Errors
    /// When it is not 5 s to 1100 s; the old one then stays.
    pub fn set_keepalive(&mut self, keepalive: Duration) -> Result<(), OptionsError> {
        let before = std::mem::replace(&mut self.options.keepalive, keepalive);
        self.options
            .check()
            .inspect_err(|_| self.options.keepalive = before)
    }

    fn open(&mut self) {
        self.connections += 1;
        let clean = self.clean_next;
        let (out, packets) = mpsc::channel(PACKETS);
        let timing = Timing {
            keepalive: self.options.keepalive,
            connect_timeout: self.options.connect_timeout,
        };
        let (sender, driver): (Box<dyn Submit>, Driver) = match self.protocol {
            Protocol::V5 => {
                let (sender, wire) = v5::open(&self.options, clean, REQUESTS);
                (Box::new(sender), Box::pin(driver::drive(wire, timing, out)))
            }
            Protocol::V311 => {
                let (sender, wire) = v4::open(&self.options, clean, REQUESTS);
                (Box::new(sender), Box::pin(driver::drive(wire, timing, out)))
            }
        };
        self.phase = Phase::Open(Connection {
            number: self.connections,
            protocol: self.protocol,
            sender,
            driver,
            packets,
            ended: None,
            granted: None,
            up: None,
            window: self.options.inflight,
            library_window: self.options.inflight + 1,
            last_pkid: 0,
            submitted: VecDeque::new(),
            inflight: BTreeMap::new(),
        });
    }

    /// Ends the connection and plans the next.
    fn close(&mut self, why: Why) -> Event {
        let Phase::Open(connection) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Event::Disconnected { why, retry_in: None };
        };
        let lived = connection.up.map_or(Duration::ZERO, |since| since.elapsed());
        let mut wait = self.backoff.next(lived);
        if self.options.protocol == ProtocolChoice::Auto && self.takes_other_version(&connection, &why) {
            self.hang_ups = 0;
            self.protocol = match connection.protocol {
                Protocol::V5 => Protocol::V311,
                Protocol::V311 => Protocol::V5,
            };
            if connection.protocol == Protocol::V5 && (why == Why::ProtocolVersion || self.v311_worked) {
                wait = Duration::ZERO;
            }
        }
        if why == Why::Oversize {
            self.clean_next = true;
        }
        if matches!(why, Why::SubscriptionRefused(_)) {
            self.subscribed = false;
        }
        self.phase = Phase::Waiting(Box::pin(sleep(wait)));
        Event::Disconnected {
            why,
            retry_in: Some(wait),
        }
    }

    /// Whether the next attempt speaks the other version. Only what a broker does with CONNECT says anything of it: a
    /// network that breaks before that does not.
    fn takes_other_version(&mut self, ended: &Connection, why: &Why) -> bool {
        match (ended.protocol, why) {
            // The broker may be another by now, and MQTT 5 says more.
            (Protocol::V311, _) if ended.up.is_some() => true,
            (_, Why::ProtocolVersion) => true,
            (Protocol::V311, Why::HungUp(_) | Why::Protocol(_)) => true,
            _ if self.v5_worked || ended.granted.is_some() => false,
            // An answer in the other version's format.
            (Protocol::V5, Why::Protocol(_)) => true,
            // Some brokers hang up on a version that they do not know; a broker that restarts hangs up too.
            (Protocol::V5, Why::HungUp(_)) => {
                self.hang_ups += 1;
                self.hang_ups >= HANG_UPS || self.v311_worked
            }
            _ => false,
        }
    }

    /// Takes one packet of the open connection; what the caller should know goes to `ready`.
    fn take(&mut self, packet: Packet) -> Result<(), Why> {
        let Phase::Open(connection) = &mut self.phase else {
            return Ok(());
        };
        match packet {
            Packet::Connected(granted) => {
                connection.granted = Some(granted);
                // Only a broker that answered has dropped the old session.
                self.clean_next = false;
                if granted.at_most_qos0 {
                    return Err(Why::NoQos1);
                }
                if let Some(receive_maximum) = granted.receive_maximum {
                    connection.library_window = receive_maximum.clamp(1, connection.library_window);
                    connection.window = connection.window.min(connection.library_window - 1).max(1);
                }
                let known = granted.session_present && self.subscribed;
                if known || self.options.subscriptions.is_empty() {
                    self.up();
                } else if connection.sender.subscribe(&self.options.subscriptions) {
                    connection.next_pkid();
                } else {
                    return Err(Why::Protocol(
                        "the client library took no subscription".to_owned(),
                    ));
                }
            }
            Packet::Subscribed { refused: Some(index) } => {
                let filter = self.options.subscriptions.get(index).cloned().unwrap_or_default();
                return Err(Why::SubscriptionRefused(filter));
            }
            Packet::Subscribed { refused: None } => {
                self.subscribed = true;
                self.up();
            }
            Packet::Message { topic, payload, pkid } => {
                let ack = AckToken {
                    connection: connection.number,
                    pkid,
                };
                // A message can overtake SUBACK; to the caller a connection begins with Connected.
                self.up();
                self.ready.push_back(Event::Message { topic, payload, ack });
            }
            Packet::Sent { pkid } => {
                if let Some(id) = connection.submitted.pop_front() {
                    if pkid == 0 {
                        self.ready.push_back(Event::Acked { id });
                    } else if connection.inflight.get(&pkid) != Some(&id) {
                        return Err(Why::Protocol(format!("packet id {pkid} was not the next one")));
                    }
                }
            }
            Packet::Acked { pkid, refused } => {
                if let Some(id) = connection.inflight.remove(&pkid) {
                    self.ready.push_back(match refused {
                        None => Event::Acked { id },
                        Some(Refusal { reason, passing }) => Event::Refused { id, reason, passing },
                    });
                }
            }
            Packet::Pinged | Packet::Disconnecting | Packet::Heard | Packet::Wrote => {}
        }
        Ok(())
    }

    fn up(&mut self) {
        let Phase::Open(connection) = &mut self.phase else {
            return;
        };
        if connection.up.is_some() {
            return;
        }
        connection.up = Some(Instant::now());
        match connection.protocol {
            Protocol::V5 => self.v5_worked = true,
            Protocol::V311 => self.v311_worked = true,
        }
        let granted = connection.granted.unwrap_or_default();
        self.ready.push_back(Event::Connected {
            session_present: granted.session_present,
            protocol: connection.protocol,
            max_payload: connection.payload_limit(&self.options, 256),
        });
    }
}

impl Connection {
    /// The next packet or the reason of the end. Cancel-safe: `recv` is, and the driver stays in `self`.
    async fn step(&mut self) -> Result<Packet, Why> {
        loop {
            if let Some(why) = &self.ended {
                // What the driver left behind comes before the end.
                return self.packets.try_recv().map_err(|_| why.clone());
            }
            tokio::select! {
                biased;
                Some(packet) = self.packets.recv() => return Ok(packet),
                why = &mut self.driver => self.ended = Some(why),
            }
        }
    }

    /// The packet id that the library will give next: it counts to its window and starts over.
    fn next_pkid(&mut self) -> u16 {
        self.last_pkid = self.last_pkid % self.library_window + 1;
        self.last_pkid
    }

    fn payload_limit(&self, options: &Options, topic: usize) -> usize {
        let theirs = self
            .granted
            .and_then(|granted| granted.max_packet)
            .unwrap_or(usize::MAX);
        // Fixed header 5, topic length 2, packet id 2, property length 1.
        options.max_payload.min(theirs.saturating_sub(10 + topic))
    }
}

#[async_trait]
impl Transport for Client {
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            match &mut self.phase {
                Phase::Closed => std::future::pending().await,
                Phase::Waiting(wait) => {
                    wait.as_mut().await;
                    self.open();
                }
                Phase::Open(connection) => {
                    // After this await there is no other until the result is in `self`.
                    let step = connection.step().await;
                    if let Err(why) = step.and_then(|packet| self.take(packet)) {
                        let event = self.close(why);
                        self.ready.push_back(event);
                    }
                }
            }
        }
    }

    fn try_publish(&mut self, id: u64, topic: &str, payload: Bytes, qos: Qos) -> Result<(), PublishError> {
        let Phase::Open(connection) = &mut self.phase else {
            return Err(PublishError::Offline(payload));
        };
        if connection.up.is_none() || connection.ended.is_some() {
            return Err(PublishError::Offline(payload));
        }
        if topic.is_empty() || topic.len() > 256 || topic.contains('\0') || !rumqttc::valid_topic(topic) {
            return Err(PublishError::Topic {
                payload,
                topic: topic.to_owned(),
            });
        }
        let limit = connection.payload_limit(&self.options, topic.len());
        if payload.len() > limit {
            return Err(PublishError::TooLarge {
                payload,
                topic: topic.to_owned(),
                limit,
            });
        }
        let next = connection.last_pkid % connection.library_window + 1;
        let full = match qos {
            Qos::AtMostOnce => connection.submitted.len() >= UNWRITTEN,
            Qos::AtLeastOnce => {
                connection.inflight.len() >= usize::from(connection.window)
                    || connection.inflight.contains_key(&next)
            }
        };
        if full || !connection.sender.publish(topic, payload.clone(), qos) {
            return Err(PublishError::Full(payload));
        }
        connection.submitted.push_back(id);
        if qos == Qos::AtLeastOnce {
            let pkid = connection.next_pkid();
            connection.inflight.insert(pkid, id);
        }
        Ok(())
    }

    fn ack(&mut self, token: AckToken) -> bool {
        match &self.phase {
            Phase::Open(connection)
                if connection.number == token.connection && connection.ended.is_none() =>
            {
                token.pkid == 0 || connection.sender.ack(token.pkid)
            }
            _ => false,
        }
    }

    fn wake(&mut self) {
        if let Phase::Waiting(wait) = &mut self.phase {
            wait.as_mut().reset(Instant::now());
        }
    }

    async fn disconnect(&mut self) {
        if let Phase::Open(connection) = &mut self.phase
            && connection.up.is_some()
            && connection.sender.disconnect()
        {
            let farewell = async {
                while let Ok(packet) = connection.step().await {
                    if matches!(packet, Packet::Disconnecting) {
                        break;
                    }
                }
            };
            // Past the bound the broker will publish the last will: late is better than never.
            let _late = timeout(FAREWELL, farewell).await;
        }
        self.phase = Phase::Closed;
        self.ready.clear();
        self.ready.push_back(Event::Disconnected {
            why: Why::Requested,
            retry_in: None,
        });
    }
}
