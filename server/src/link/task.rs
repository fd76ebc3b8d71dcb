//! The link's task: it owns the MQTT client, the outbox and all that is known of the nodes.
//!
//! What always holds: whatever arrives is dealt with before the next thing is waited for, and nothing of that waits
//! for a disk or a peer; what the store is told goes through [`Writes`].

mod incoming;
mod outgoing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use skiff_protocol::topic::{DownKind, NodeName, Topic};
use skiff_protocol::wire::{Down, StreamOpen};
use skiff_transport::outbox::{Bound, Bounds, Outbox};
use skiff_transport::{Client, Event, OptionsError, Transport};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::compile::World;
use super::ingest::{Counters, Ingest};
use super::node::{Late, Node, Sign};
use super::nodes::{self, Liveness};
use super::streams::Streams;
use super::writes::{self, Done, Writes};
use super::{Command, Fleet, Options, limits};
use crate::api::{LogError, node_uid};
use crate::events::{Happening, Recorder};
use crate::store::{self, EventKind, Scope, Store, StoreError, StoreExt, Watch};

/// What desired states are made of.
const RESOURCES: [&str; 4] = ["pods", "configmaps", "secrets", "persistentvolumes"];
/// How long the last words of the nodes may take to the disk when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the connection to the broker is tested; a dead one is noticed within one and a half times this.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The first and the longest wait before the broker is tried again: there is one server, and a fleet waits for it.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Largest payload that is looked at: the embedded broker lets nothing larger through.
const MAX_PAYLOAD: usize = 128 * 1024;

struct Signer(Arc<dyn Fleet>);

impl Sign for Signer {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message)
    }
}

/// See the module.
pub(super) struct Task {
    store: Arc<dyn Store>,
    events: Recorder,
    fleet: Arc<dyn Fleet>,
    signer: Signer,
    counters: Arc<Counters>,
    client: Client,
    connected: bool,
    outbox: Outbox,
    message_id: u32,
    world: World,
    nodes: BTreeMap<NodeName, Node>,
    generations: BTreeMap<String, u64>,
    ingest: Ingest,
    streams: Streams,
    writes: Writes,
    timers: BTreeSet<(Instant, NodeName)>,
    /// Nodes to be asked to say hello once there is room.
    to_ask: BTreeSet<NodeName>,
    /// Frames about desired state on their way to the broker.
    in_flight: BTreeMap<u64, NodeName>,
    grace: Duration,
}

impl Task {
    pub(super) fn new(
        store: Arc<dyn Store>,
        events: Recorder,
        fleet: Arc<dyn Fleet>,
        options: Options,
        counters: Arc<Counters>,
    ) -> Result<Self, OptionsError> {
        let mut mqtt = skiff_transport::Options::new(options.broker, &options.client_id, Box::new(random));
        mqtt.credentials = options.credentials;
        mqtt.tls = options.tls;
        mqtt.keepalive = KEEPALIVE;
        mqtt.subscriptions = vec![Topic::server_filter().to_owned()];
        mqtt.max_payload = MAX_PAYLOAD;
        (mqtt.backoff_base, mqtt.backoff_cap) = BACKOFF;
        let none = Bound {
            messages: 0,
            bytes: 0,
        };
        let control = Bound {
            messages: limits::CONTROL_MESSAGES,
            bytes: limits::CONTROL_BYTES,
        };
        let stream = Bound {
            messages: limits::STREAM_MESSAGES,
            bytes: limits::STREAM_BYTES,
        };
        Ok(Self {
            writes: Writes::new(store.clone()),
            store,
            events,
            signer: Signer(fleet.clone()),
            fleet,
            counters,
            client: Client::new(mqtt)?,
            connected: false,
            outbox: Outbox::new(Bounds([control, none, none, stream, none])),
            message_id: random() as u32,
            world: World::default(),
            nodes: BTreeMap::new(),
            generations: BTreeMap::new(),
            ingest: Ingest::default(),
            streams: Streams::new(random() as u32),
            timers: BTreeSet::new(),
            to_ask: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            grace: options.grace,
        })
    }

    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut known = false;
        loop {
            let ended = tokio::select! {
                // What is left undone is done again from the store and the nodes' hellos.
                _ = stop.wait_for(|stop| *stop) => break,
                ended = self.follow(&mut commands, &mut known) => ended,
            };
            match ended {
                Ok(()) | Err(StoreError::Closed) => break,
                Err(StoreError::Gone { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, "link: the store failed; trying again");
                    tokio::time::sleep(crate::RETRY).await;
                }
            }
        }
        self.client.disconnect().await;
        if timeout(DRAIN, self.writes.drain()).await.is_err() {
            tracing::warn!("link: the store did not take the nodes' last words within {DRAIN:?}");
        }
    }

    /// Lists, then deals with whatever comes. Ends with the store, or with what ended a watch.
    async fn follow(
        &mut self,
        commands: &mut mpsc::Receiver<Command>,
        known: &mut bool,
    ) -> Result<(), StoreError> {
        if !*known {
            self.remember().await?;
            *known = true;
        }
        let mut watches = self.load().await?;
        let bell = self.streams.bell();
        let refresh: Vec<NodeName> = self.nodes.keys().cloned().collect();
        refresh.iter().for_each(|node| self.refresh(node));
        loop {
            self.pump();
            let due = self.timers.first().map(|(at, _)| *at);
            let [pods, maps, secrets, volumes] = &mut watches;
            tokio::select! {
                // Every arm waits for something that stays where it is when another arm is taken.
                event = self.client.next() => self.transport(event),
                event = pods.next() => if !self.changed(event, pods)? { return Ok(()) },
                event = maps.next() => if !self.changed(event, maps)? { return Ok(()) },
                event = secrets.next() => if !self.changed(event, secrets)? { return Ok(()) },
                event = volumes.next() => if !self.changed(event, volumes)? { return Ok(()) },
                done = self.writes.next() => self.written(done),
                () = bell.wait() => self.serve_streams(),
                () = async { match due { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {
                    self.tick();
                }
                Some(command) = commands.recv() => self.command(command),
            }
        }
    }

    /// What an earlier process knew.
    async fn remember(&mut self) -> Result<(), StoreError> {
        self.generations = writes::generations(&*self.store).await?;
        let (objects, _) = self.store.list_all(&Scope::all("nodes")).await?;
        let addresses: BTreeMap<&str, Option<IpAddr>> = objects
            .iter()
            .map(|it| (it.key.name.as_str(), nodes::address(&it.value)))
            .collect();
        let names = addresses
            .keys()
            .copied()
            .map(str::to_owned)
            .chain(self.generations.keys().cloned());
        let names: BTreeSet<NodeName> = names.filter_map(|name| NodeName::parse(&name).ok()).collect();
        let until = Instant::now() + self.grace;
        for name in names {
            if self.known(&name).is_err() {
                continue;
            }
            let node = self.node(&name);
            node.address = addresses.get(name.as_str()).copied().flatten();
            // Nothing is sent yet: whoever speaks first, the broker's connection or the node, is early enough.
            node.ask(until);
            self.arm(&name);
        }
        Ok(())
    }

    /// Brings the world up to what is stored now.
    async fn load(&mut self) -> Result<[Watch; 4], StoreError> {
        let mut watches = Vec::with_capacity(RESOURCES.len());
        for resource in RESOURCES {
            let (objects, revision) = self.store.list_all(&Scope::all(resource)).await?;
            watches.push(self.store.watch(Scope::all(resource), Some(revision))?);
            let mut gone: BTreeSet<_> = self.world.keys(resource).into_iter().collect();
            for object in &objects {
                gone.remove(&object.key);
                self.world.put(object);
            }
            for key in gone {
                self.world.remove(&key);
            }
        }
        watches.try_into().map_err(|_| StoreError::Closed)
    }

    /// Takes an event and all that wait behind it; `false` at the store's end.
    fn changed(
        &mut self,
        event: Option<Result<store::Event, StoreError>>,
        watch: &mut Watch,
    ) -> Result<bool, StoreError> {
        let Some(event) = event else { return Ok(false) };
        let mut next = Some(event?);
        let mut dirty = BTreeSet::new();
        while let Some(event) = next {
            dirty.extend(match event.kind {
                EventKind::Deleted => self.world.remove(&event.object.key),
                EventKind::Added | EventKind::Modified => self.world.put(&event.object),
            });
            next = watch.try_next();
        }
        for node in dirty.iter().filter_map(|name| NodeName::parse(name).ok()) {
            self.refresh(&node);
        }
        Ok(true)
    }

    /// The node's desired state may have changed.
    fn refresh(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let mut state = self.world.desired(name.as_str(), node.announced());
        for (object, refusal) in std::mem::take(&mut state.refused) {
            let Ok(uid) = object.uid.parse() else { continue };
            if node.refused.insert(uid) {
                let happening = Happening {
                    warning: true,
                    reason: refusal.reason.to_owned(),
                    message: refusal.message.clone(),
                    component: "skiff-server",
                    ..Happening::default()
                };
                self.events.tell(&object, happening);
                self.writes.refused(name, uid, &object.key, refusal);
            }
        }
        for object in std::mem::take(&mut state.surplus) {
            let Ok(uid) = object.uid.parse() else { continue };
            self.writes.left(name, uid, &object.key);
        }
        node.refused.retain(|uid| self.world.knows(uid));
        node.set_state(state);
        self.announce(name);
        self.settle_mirrors(name);
    }

    fn transport(&mut self, event: Event) {
        match event {
            Event::Connected {
                protocol,
                session_present,
                ..
            } => {
                tracing::info!(%protocol, session_present, "link: connected to the broker");
                self.connected = true;
                self.to_ask = self.nodes.keys().cloned().collect();
            }
            Event::Disconnected { why, retry_in } => self.disconnected(&why, retry_in),
            Event::Message { topic, payload, ack } => {
                self.message(&topic, &payload);
                // Refused only when its connection is gone; then the message comes again.
                let _again = self.client.ack(ack);
            }
            Event::Acked { id } => {
                self.outbox.acked(id);
                self.left(id);
            }
            Event::Refused { id, reason, .. } => {
                if let Some((_, message)) = self.outbox.refused(id) {
                    tracing::warn!(
                        topic = message.topic,
                        reason,
                        "link: the broker refused a message"
                    );
                }
                self.left(id);
            }
        }
    }

    fn disconnected(&mut self, why: &skiff_transport::Why, retry_in: Option<Duration>) {
        tracing::warn!(%why, ?retry_in, "link: no connection to the broker");
        self.outbox.disconnected();
        if !std::mem::take(&mut self.connected) {
            return;
        }
        let until = Instant::now() + self.grace;
        let names: Vec<NodeName> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.is_here())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            if let Some(node) = self.nodes.get_mut(&name) {
                // The question goes out once there is a connection.
                node.ask(until);
            }
            self.arm(&name);
        }
    }

    /// Nothing is known of the node any more. Its Pods go on as they are, but nobody may rely on them: its next word of
    /// each makes good what is written here.
    fn gone(&mut self, name: &NodeName) {
        tracing::info!(node = %name, "the node is out of contact");
        self.streams.lost(name);
        self.writes.node(name, None, Liveness::Unknown);
        for pod in self.world.pods_of(name.as_str()) {
            let Some(uid) = node_uid(pod) else { continue };
            self.writes.out_of_contact(name, uid, &pod.key);
        }
    }

    fn written(&mut self, done: Done) {
        match done {
            Done::Written(ended) => self.writes.ended(*ended),
            Done::Reserved(name, bound) => {
                if let Some(node) = self.nodes.get_mut(&name) {
                    node.reserved(bound, Instant::now());
                }
                if let Some(bound) = bound {
                    self.generations.insert(name.to_string(), bound);
                }
                // Where the store failed, this only sees to it that it is asked again later.
                self.announce(&name);
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((at, name)) = self.timers.pop_first() else {
                break;
            };
            let Some(node) = self.nodes.get_mut(&name).filter(|node| node.armed == Some(at)) else {
                continue;
            };
            node.armed = None;
            if node.deadline().is_none_or(|at| at > now) {
                self.arm(&name);
                continue;
            }
            match node.late(now, self.grace) {
                Late::Gone => self.gone(&name),
                Late::Announce => self.announce(&name),
                Late::Ask(down) => {
                    self.send(&name, DownKind::Sync, None, &down);
                }
            }
            self.arm(&name);
        }
    }

    /// Sees to it that [`Task::tick`] comes by when the node's deadline passes.
    fn arm(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        if let Some(at) = node.deadline()
            && node.armed.is_none_or(|armed| armed > at)
        {
            node.armed = Some(at);
            self.timers.insert((at, name.clone()));
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Forget(name) => {
                if self.nodes.remove(&name).is_some() {
                    self.gone(&name);
                }
                self.ingest.forget(&name);
            }
            Command::OpenLog { node, request, reply } => {
                if !self.connected || !self.nodes.get(&node).is_some_and(Node::is_here) {
                    let _gone = reply.send(Err(LogError::Unreachable {
                        node: node.to_string(),
                    }));
                    return;
                }
                let opened = self.streams.open(&node);
                if let Ok((sid, _)) = &opened {
                    let open = Down::StreamOpen(StreamOpen::Logs { sid: *sid, request });
                    if !self.send(&node, DownKind::Stream, Some(*sid), &open) {
                        self.streams.fail(*sid, "too much is waiting for the broker");
                    }
                }
                // Whoever asked may have gone; then the reader is dropped, and that closes the stream.
                let _gone = reply.send(opened.map(|(_, reader)| reader));
            }
        }
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        // Only jitter and the start of counters hang on it.
        tracing::warn!("the system gives no random numbers");
    }
    u64::from_le_bytes(bytes)
}
