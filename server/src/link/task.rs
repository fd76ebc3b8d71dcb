//! The link's task: it owns the MQTT client, the outbox and all that is known of the nodes.
//!
//! What always holds: whatever arrives is dealt with before the next thing is waited for, and nothing of that waits
//! for a disk or a peer; what the store is told goes through [`Writes`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use skiff_protocol::limits as bounds;
use skiff_protocol::topic::{DownKind, NodeName, Topic};
use skiff_protocol::wire::{self, Down, Hello, StreamOpen, Up, encode_down};
use skiff_transport::outbox::{Bound, Bounds, Class, Message, Outbox};
use skiff_transport::{Bytes, Client, Event, OptionsError, PublishError, Qos, Transport};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::compile::World;
use super::ingest::{Counters, Ingest, Wrong};
use super::node::{Late, Node, Order, Sign, Step};
use super::nodes::{self, Liveness};
use super::streams::Streams;
use super::writes::{self, Done, Writes};
use super::{Command, Fleet, Options, limits, status};
use crate::api::LogError;
use crate::events::{Happening, Recorder};
use crate::store::{self, EventKind, Scope, Store, StoreError, StoreExt, Watch};

/// What desired states are made of.
const RESOURCES: [&str; 3] = ["pods", "configmaps", "secrets"];
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
    /// Frames with objects on their way to the broker.
    objects: BTreeMap<u64, NodeName>,
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
            objects: BTreeMap::new(),
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
            let [pods, maps, secrets] = &mut watches;
            tokio::select! {
                // Every arm waits for something that stays where it is when another arm is taken.
                event = self.client.next() => self.transport(event),
                event = pods.next() => if !self.changed(event, pods)? { return Ok(()) },
                event = maps.next() => if !self.changed(event, maps)? { return Ok(()) },
                event = secrets.next() => if !self.changed(event, secrets)? { return Ok(()) },
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
        let addresses: BTreeMap<&str, &str> = objects
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
            node.address = addresses
                .get(name.as_str())
                .copied()
                .unwrap_or_default()
                .to_owned();
            // Nothing is sent yet: whoever speaks first, the broker's connection or the node, is early enough.
            node.ask(until);
            self.arm(&name);
        }
        Ok(())
    }

    /// Brings the world up to what is stored now.
    async fn load(&mut self) -> Result<[Watch; 3], StoreError> {
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
        let mut state = self.world.desired(name.as_str());
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
        node.refused.retain(|uid| self.world.knows(uid));
        node.set_state(state);
        self.announce(name);
    }

    fn announce(&mut self, name: &NodeName) {
        let now = Instant::now();
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        match node.announce(&self.signer, now) {
            Step::Nothing => {}
            Step::Reserve(bound) => self.writes.reserve(name, bound),
            Step::Send(down) => {
                if !self.send(name, DownKind::Spec, None, &down)
                    && let Some(node) = self.nodes.get_mut(name)
                {
                    node.unsent(now);
                }
            }
        }
        self.arm(name);
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
                self.objects_left(id);
            }
            Event::Refused { id, reason } => {
                if let Some((_, message)) = self.outbox.refused(id) {
                    tracing::warn!(
                        topic = message.topic,
                        reason,
                        "link: the broker refused a message"
                    );
                }
                self.objects_left(id);
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

    fn known(&self, node: &NodeName) -> Result<(), Wrong> {
        if !self.fleet.is_member(node) {
            Err(Wrong::Stranger)
        } else if self.nodes.len() >= limits::NODES && !self.nodes.contains_key(node) {
            Err(Wrong::TooManyNodes)
        } else {
            Ok(())
        }
    }

    /// The node, which [`Task::known`] has let pass.
    fn node(&mut self, name: &NodeName) -> &mut Node {
        let reserved = self.generations.get(name.as_str()).copied().unwrap_or(0);
        self.nodes
            .entry(name.clone())
            .or_insert_with(|| Node::new(name, reserved))
    }

    fn message(&mut self, topic: &str, payload: &[u8]) {
        let mut ingest = std::mem::take(&mut self.ingest);
        let word = ingest.take(topic, payload, |node| self.known(node), &self.counters);
        self.ingest = ingest;
        let Some((name, up)) = word else { return };
        if !self.nodes.contains_key(&name) {
            self.node(&name);
            self.refresh(&name);
        }
        match up {
            Up::Hello(hello) => self.hello(&name, topic, hello),
            Up::Need { generation, keys } => {
                self.node(&name).need(generation, keys);
                self.send_objects(&name);
            }
            Up::Applied { generation, digest } => {
                self.node(&name).applied_now(generation, digest);
                self.announce(&name);
            }
            Up::Status {
                epoch,
                sequence,
                pods,
            } => self.statuses(&name, topic, epoch, sequence, pods),
            Up::Node(info) => {
                let node = self.node(&name);
                if node.is_here() {
                    node.address.clone_from(&info.address);
                    self.writes.node(&name, Some(info), Liveness::Ready);
                }
            }
            Up::Events { lost, events } => self.happened(&name, topic, lost, &events),
            Up::StreamData { sid, offset, bytes } => {
                let (wrong, answer) = self.streams.data(&name, sid, offset, &bytes);
                if let Some(wrong) = wrong {
                    self.counters
                        .count(wrong, topic, &format_args!("offset {offset}"));
                }
                if let Some(answer) = answer {
                    self.send(&name, DownKind::Stream, Some(sid), &answer);
                }
            }
            Up::StreamEnd { sid, end } => {
                if let Some(wrong) = self.streams.end(&name, sid, end) {
                    self.counters.count(wrong, topic, &"its end");
                }
            }
            Up::Bye { epoch } => {
                if self.node(&name).bye(epoch) {
                    self.gone(&name);
                    self.send(&name, DownKind::Sync, None, &Down::Resync);
                }
            }
        }
    }

    fn hello(&mut self, name: &NodeName, topic: &str, hello: Hello) {
        let node = self.node(name);
        // A hello that nobody asked for says that there is a new connection, and with the old one went its streams.
        let restarted = hello.epoch != node.epoch() || !node.is_asked();
        let Some((liveness, answer)) = node.hello(&hello) else {
            self.counters.count(
                Wrong::Epoch,
                topic,
                &format_args!("hello of epoch {}", hello.epoch),
            );
            return;
        };
        node.address.clone_from(&hello.node.address);
        if restarted {
            self.streams.lost(name);
        }
        self.to_ask.remove(name);
        self.writes.node(name, Some(hello.node), liveness);
        if let Some(answer) = answer {
            self.send(name, DownKind::Sync, None, &answer);
        }
        self.announce(name);
    }

    fn statuses(
        &mut self,
        name: &NodeName,
        topic: &str,
        epoch: u64,
        sequence: u64,
        pods: Vec<wire::status::PodStatus>,
    ) {
        if pods.len() > bounds::STATUSES {
            self.counters
                .count(Wrong::TooMany, topic, &format_args!("{} statuses", pods.len()));
            return;
        }
        let (order, question) = self.node(name).order(epoch, sequence, Instant::now());
        if let Some(question) = question {
            self.send(name, DownKind::Sync, None, &question);
        }
        self.arm(name);
        if order == Order::Stale {
            self.counters.count(
                Wrong::Epoch,
                topic,
                &format_args!("epoch {epoch}, sequence {sequence}"),
            );
            return;
        }
        for said in pods {
            let host_ip = self
                .nodes
                .get(name)
                .map(|node| node.address.clone())
                .unwrap_or_default();
            match self.world.pod_on(name.as_str(), &said.uid) {
                Some(pod) => self.writes.pod(name, &host_ip, &pod.key, said),
                None if self.world.knows(&said.uid) => {
                    self.counters.count(Wrong::NotItsPod, topic, &said.uid);
                }
                // The index already says that it must go.
                None => {}
            }
        }
    }

    fn happened(&mut self, name: &NodeName, topic: &str, lost: u64, events: &[wire::Event]) {
        if events.len() > bounds::EVENTS {
            self.counters
                .count(Wrong::TooMany, topic, &format_args!("{} events", events.len()));
            return;
        }
        if lost > 0 {
            tracing::warn!(node = %name, lost, "the node dropped events for want of room");
        }
        for event in events {
            let Some(pod) = self.world.pod_on(name.as_str(), &event.uid) else {
                if self.world.knows(&event.uid) {
                    self.counters.count(Wrong::NotItsPod, topic, &event.uid);
                }
                continue;
            };
            let happening = Happening {
                warning: event.warning,
                reason: status::bounded(&event.reason),
                message: status::bounded(&event.message),
                component: "skiff-agent",
                host: name.to_string(),
                container: event
                    .container
                    .as_deref()
                    .map(status::bounded)
                    .unwrap_or_default(),
            };
            self.events.tell(pod, happening);
        }
    }

    /// Nothing is known of the node any more; its Pods are left alone.
    fn gone(&mut self, name: &NodeName) {
        tracing::info!(node = %name, "the node is out of contact");
        self.streams.lost(name);
        self.writes.node(name, None, Liveness::Unknown);
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

    fn serve_streams(&mut self) {
        for (node, sid, down) in self.streams.service() {
            if !self.send(&node, DownKind::Stream, Some(sid), &down) {
                self.streams.fail(sid, "too much is waiting for the broker");
            }
        }
    }

    fn send_objects(&mut self, name: &NodeName) {
        let Some(down) = self.nodes.get_mut(name).and_then(Node::next_objects) else {
            return;
        };
        let ids = self.queue(name, DownKind::Spec, None, &down);
        if let Some(node) = self.nodes.get_mut(name) {
            match ids {
                Some(ids) => {
                    node.objects_in_flight = ids.len();
                    self.objects.extend(ids.into_iter().map(|id| (id, name.clone())));
                }
                None => node.unsent(Instant::now()),
            }
        }
        self.arm(name);
    }

    fn objects_left(&mut self, id: u64) {
        let Some(name) = self.objects.remove(&id) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(&name) {
            node.objects_in_flight = node.objects_in_flight.saturating_sub(1);
        }
        self.send_objects(&name);
    }

    /// Whether there was room for the message.
    fn send(&mut self, name: &NodeName, kind: DownKind, sid: Option<u32>, down: &Down) -> bool {
        self.queue(name, kind, sid, down).is_some()
    }

    /// Puts all of a message's frames into the outbox, or none.
    fn queue(&mut self, name: &NodeName, kind: DownKind, sid: Option<u32>, down: &Down) -> Option<Vec<u64>> {
        let class = if kind == DownKind::Stream {
            Class::Stream
        } else {
            Class::Control
        };
        let topic = Topic::Down {
            node: name.clone(),
            kind,
            sid,
        }
        .to_string();
        self.message_id = self.message_id.wrapping_add(1);
        let frames = match wire::frames(&encode_down(down), self.message_id) {
            Ok(frames) => frames,
            Err(error) => {
                tracing::error!(node = %name, %error, "a message to the node is too long");
                return None;
            }
        };
        let bytes = frames.iter().map(|frame| frame.len() + topic.len()).sum();
        let most = if class == Class::Stream {
            limits::STREAM_MESSAGES
        } else {
            limits::CONTROL_MESSAGES
        };
        if self.outbox.len(class) + frames.len() > most || !self.outbox.has_room(class, bytes) {
            return None;
        }
        let push = |payload: Vec<u8>| {
            let payload = Bytes::from(payload);
            let message = Message {
                topic: topic.clone(),
                payload,
                qos: Qos::AtLeastOnce,
            };
            self.outbox.push(class, None, message).ok()
        };
        frames.into_iter().map(push).collect()
    }

    /// Hands to the client what it takes.
    fn pump(&mut self) {
        while self.connected
            && self.outbox.len(Class::Control) < limits::CONTROL_MESSAGES / 2
            && let Some(name) = self.to_ask.pop_first()
        {
            let until = Instant::now() + self.grace;
            if let Some(node) = self.nodes.get_mut(&name) {
                let question = node.ask(until);
                self.send(&name, DownKind::Sync, None, &question);
                self.arm(&name);
            }
        }
        while let Some((id, message)) = self.outbox.next() {
            match self
                .client
                .try_publish(id, &message.topic, message.payload.clone(), message.qos)
            {
                Ok(()) => self.outbox.sent(id),
                Err(PublishError::Offline(_) | PublishError::Full(_)) => return,
                Err(error) => {
                    tracing::warn!(%error, "link: a message cannot be sent through this broker");
                    self.outbox.refused(id);
                    self.objects_left(id);
                }
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
