//! The loop: inputs to the core, effects to their executors. The only caller of the core.
//!
//! ```text
//!   link ─────┐                      ┌──▶ journal (synced before anything follows)
//!   shims ────┼──▶ inputs ▶ core ▶ ──┼──▶ shims, images, volumes
//!   pulls ────┤                      └──▶ link
//!   timers ───┘
//! ```
//!
//! Always holds: a message of the server is acked to the broker after the journal has what follows from it; a batch of
//! inputs costs one sync; executors make no choices.

mod keys;
mod lifecycle;
mod share;
mod signal;
mod store;
mod volumes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use skiff_core::{ContainerRef, Core, Effect, Event, Now, Record, Refusal, StartError};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::PodSpec;
use skiff_protocol::wire::{Down, Up};
use skiff_transport::AckToken;
use skiff_transport::outbox::Class;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::identity::Identity;
use crate::images::{Ensured, Images};
use crate::input::Input;
use crate::ledger::{Ledger, Room};
use crate::link::{self, Incoming, Link};
use crate::local::{self, Query};
use crate::logs::Streams;
use crate::network::Network;
use crate::node::{self, Node};
use crate::plan::{self, Facts, Lookup};
use crate::probes::Probes;
use crate::renewal::Renewal;
use crate::shims::{Command, Place, Shims};
use crate::statics::Statics;
use crate::watchdog::Watchdog;
use lifecycle::Start;
use signal::SIGTERM;
use store::Uses;
use volumes::Volumes;

/// Inputs dealt with before the journal is synced.
const BATCH: usize = 64;

/// How long after the journal refused something the broker is asked for it again.
const AGAIN: Duration = Duration::from_secs(30);

/// When the start is over, and the pages of the program that only it needed are unmapped.
const REST: Duration = Duration::from_secs(2);

/// Starts whose latency is remembered for `skiff-agent status`.
const LATENCIES: usize = 256;

/// Everything that the loop works with.
pub(crate) struct Driver {
    pub(crate) config: Arc<Config>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) node: Node,
    pub(crate) core: Core,
    pub(crate) ledger: Ledger,
    pub(crate) link: Link,
    pub(crate) images: Images,
    pub(crate) shims: Shims,
    pub(crate) probes: Probes,
    pub(crate) streams: Streams,
    pub(crate) place: Place,
    pub(crate) floor: Arc<AtomicU64>,
    pub(crate) began: Instant,
    pub(crate) renewal: Renewal,
    pub(crate) statics: Statics,
    inputs: mpsc::Receiver<Input>,
    /// Batches that are in the journal's buffer.
    unsynced: Vec<u64>,
    /// Messages whose effects are not all durable yet.
    unacked: Vec<AckToken>,
    /// When the link is made anew, so that what was not acked comes again.
    reconnect_at: Option<Instant>,
    /// The journal refused something in this turn.
    journal_failed: bool,
    /// What each container's image said of its end.
    stop_signals: BTreeMap<(Uid, String), i32>,
    /// When the spec of a Pod that has not started yet came.
    arrived: BTreeMap<Uid, Instant>,
    /// Microseconds from spec to first process, the latest last.
    pub(crate) latencies: Vec<u64>,
    refusals: BTreeMap<&'static str, u64>,
    network: Network,
    /// A sandbox came or went since the network was looked at.
    network_stale: bool,
    volumes: Volumes,
    uses: Uses,
    watchdog: Watchdog,
}

impl Driver {
    /// A driver; nothing has happened yet.
    #[must_use]
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a part that main makes; a builder would only rename them"
    )]
    pub(crate) fn new(
        config: Arc<Config>,
        identity: Arc<Identity>,
        node: Node,
        core: Core,
        ledger: Ledger,
        link: Link,
        images: Images,
        shims: Shims,
        probes: Probes,
        streams: Streams,
        place: Place,
        floor: Arc<AtomicU64>,
        inputs: mpsc::Receiver<Input>,
        began: Instant,
    ) -> Self {
        let renewal = Renewal::new(place.executable.clone(), config.state_dir.clone());
        let executable = place.executable.clone();
        let statics = Statics::new(&config.static_pods_dir, executable, identity.node.clone());
        let watchdog = Watchdog::new(&config);
        let uses = Uses::new(place.run.clone());
        Self {
            config,
            identity,
            node,
            core,
            ledger,
            link,
            images,
            shims,
            probes,
            streams,
            place,
            floor,
            began,
            renewal,
            statics,
            inputs,
            unsynced: Vec::new(),
            unacked: Vec::new(),
            journal_failed: false,
            reconnect_at: None,
            stop_signals: BTreeMap::new(),
            arrived: BTreeMap::new(),
            latencies: Vec::new(),
            refusals: BTreeMap::new(),
            network: Network::default(),
            network_stale: true,
            volumes: Volumes::new(),
            uses,
            watchdog,
        }
    }

    /// Runs until `stop` is done. Pods go on without us.
    ///
    /// # Errors
    /// When the directory of Pods cannot be read.
    pub(crate) async fn run(
        mut self,
        mut queries: mpsc::Receiver<Query>,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let found = self
            .shims
            .find(&self.core.wanted())
            .await
            .context("cannot look for running Pods")?;
        self.begin_statics().await;
        let adopted_us = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        info!(pods = found.len(), adopted_us, "found running Pods");
        let running: Vec<Uid> = found.iter().map(|it| it.uid).collect();
        let mut found = Event::Observed(found);
        self.add_last_words(&mut found);
        self.adopt_images(&found);
        self.event(found);
        self.tidy_volumes(&running);
        self.settle();
        self.watchdog.ready();
        self.say_status();
        tokio::pin!(stop);
        let mut rest = Some(Box::pin(tokio::time::sleep(REST)));
        loop {
            let deadline = self.core.next_deadline();
            let room = self.link.has_room(Class::Stream);
            tokio::select! {
                // Receiving from a channel loses nothing when cancelled.
                Some(input) = self.inputs.recv() => self.batch(input),
                // The link's `next` is cancel-safe.
                incoming = self.link.next() => self.incoming(incoming),
                // Pieces wait in their channel while the outbox has no room.
                Some(input) = self.streams.next(), if room => self.input(input),
                // Receiving from a channel loses nothing when cancelled.
                Some(answer) = self.volumes.next() => self.volume_answer(answer),
                Some(query) = queries.recv() => local::answer(&mut self, query),
                // A deadline that is cancelled is computed anew.
                () = sleep_until(deadline, self.began) => self.event(Event::Tick),
                // One sleep, kept over the turns.
                () = elapsed(&mut rest) => {
                    rest = None;
                    if let Err(error) = skiff_sys::process::unmap_program() {
                        info!(%error, "the pages of the start stay mapped");
                    }
                }
                () = sleep_for(self.reconnect_at) => self.reconnect().await,
                // The renewal's `next` is cancel-safe.
                turn = self.renewal.next() => self.renew(turn).await,
                // The directory's `next` is cancel-safe.
                turn = self.statics.next() => self.statics_turn(turn),
                // What it waits for is kept over the turns.
                wake = self.node.watch.wake() => self.watched(wake),
                () = sleep_for(self.watchdog.due()) => {
                    self.watchdog.alive();
                    self.say_status();
                }
                () = &mut stop => break,
            }
            self.settle();
        }
        info!("stopping; Pods run on");
        self.watchdog.stopping();
        self.link.close(self.core.epoch()).await;
        Ok(())
    }

    /// Makes the link anew: the session at the broker stays, and with it what was not acked.
    pub(crate) async fn reconnect(&mut self) {
        self.reconnect_at = None;
        match Link::new(
            &self.config,
            &self.identity,
            self.core.epoch(),
            self.floor.clone(),
        ) {
            Ok(link) => {
                self.link.close(self.core.epoch()).await;
                let before = std::mem::replace(&mut self.link, link);
                self.link.succeed(before);
                self.incoming(Incoming::Down);
            }
            Err(error) => error!(%error, "the link cannot be made anew"),
        }
    }

    /// Takes what waits, up to a bound, so that many inputs share one sync.
    fn batch(&mut self, first: Input) {
        self.input(first);
        for _ in 1..BATCH {
            match self.inputs.try_recv() {
                Ok(input) => self.input(input),
                Err(_) => break,
            }
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Core(mut event) => {
                self.add_last_words(&mut event);
                self.observe(&event);
                let removed = matches!(*event, Event::Removed(_));
                self.event(*event);
                if removed {
                    self.tidy_again();
                }
            }
            Input::PullProgress { image, text } => {
                let events = self.images.progressed(&image, &text);
                self.image_events(events);
            }
            Input::Pulled { image, result, cost } => {
                let events = self.images.pulled(&image, &result, cost);
                self.image_events(events);
                self.see_to_room(Instant::now());
            }
            Input::Collected(done) => {
                let events = self.images.collected(*done, Instant::now());
                self.image_events(events);
            }
            Input::StreamData { sid, offset, bytes } => {
                self.link.send(&Up::StreamData { sid, offset, bytes });
            }
            Input::StreamEnd { sid, end } => {
                self.streams.ended(sid);
                self.link.send(&Up::StreamEnd { sid, end });
            }
        }
    }

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Started { container, .. } => {
                if let Some(arrived) = self.arrived.remove(&container.pod) {
                    if self.latencies.len() == LATENCIES {
                        self.latencies.remove(0);
                    }
                    let micros = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX);
                    info!(pod = %container.pod, first_process_us = micros, "the Pod's first process runs");
                    self.latencies.push(micros);
                }
            }
            // With its last container a Pod gives its ports back.
            Event::SandboxReady(_) | Event::SandboxFailed(..) | Event::Exited { .. } => {
                self.network_stale = true;
            }
            Event::ShimLost(uid) => {
                self.network_stale = true;
                self.volumes.let_go(*uid);
            }
            Event::Removed(uid) => {
                self.network_stale = true;
                self.shims.forget(*uid);
                self.volumes.forget(*uid);
                self.release_images(*uid);
                self.node.devices.release(*uid);
                self.arrived.remove(uid);
                self.stop_signals.retain(|(pod, _), _| pod != uid);
            }
            _ => {}
        }
    }

    fn incoming(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Up => {
                let info = self.node.info(&self.config, &self.place);
                self.event(Event::LinkUp(info));
                self.say_status();
            }
            Incoming::Down => {
                self.streams.close_all();
                self.event(Event::LinkDown);
                self.say_status();
            }
            Incoming::Message(message, token) => {
                self.unacked.push(token);
                self.message(*message);
            }
            Incoming::Nothing => {}
        }
    }

    fn message(&mut self, message: Down) {
        match message {
            Down::StreamOpen(open) => self.streams.open(&self.core, &self.place, open),
            Down::StreamCredit { sid, bytes } => self.streams.credit(sid, bytes),
            Down::StreamClose { sid } => self.streams.close(sid),
            message => {
                let before = self.core.generation();
                let arrived = Instant::now();
                self.event(Event::Down(message));
                self.sync();
                if self.core.generation() != before {
                    self.note_arrivals(arrived);
                    self.mark_volumes();
                }
            }
        }
    }

    /// Remembers when the Pods came that have nothing running yet.
    fn note_arrivals(&mut self, arrived: Instant) {
        let new = self.core.statuses().filter(|(_, status)| {
            let mut all = status.init_containers.iter().chain(&status.containers);
            all.all(|it| it.container_id.is_empty())
        });
        let new: Vec<Uid> = new.map(|(_, status)| status.uid).collect();
        for uid in new {
            self.arrived.entry(uid).or_insert(arrived);
        }
    }

    fn now(&self) -> Now {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |it| it.as_secs());
        Now {
            mono: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            unix: i64::try_from(unix).unwrap_or(i64::MAX),
        }
    }

    /// Tells the core, and has its effects done, and those that follow from them at once.
    pub(crate) fn event(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now();
            for effect in self.core.handle(now, event) {
                events.extend(self.execute(effect));
            }
        }
    }

    /// After every turn: sync, ack, report.
    fn settle(&mut self) {
        self.end_held();
        self.sync();
        let refused = std::mem::take(&mut self.journal_failed);
        for token in std::mem::take(&mut self.unacked) {
            // What the journal did not take stays with the broker, which sends it again after a reconnect.
            if !refused {
                self.link.ack(token);
            }
        }
        if refused && self.reconnect_at.is_none() {
            self.reconnect_at = Some(Instant::now() + AGAIN);
        }
        if std::mem::take(&mut self.network_stale)
            && let Some(error) = self.network.refresh(&self.core, &self.config)
        {
            self.node.network_answered(error);
        }
        if self.node.take_changed() {
            let info = self.node.info(&self.config, &self.place);
            self.event(Event::NodeChanged(info));
        }
        self.link.report(|| self.core.next_report());
        self.tell_images();
    }

    /// Makes what was appended durable, and lets follow what waits for it.
    fn sync(&mut self) {
        while !self.unsynced.is_empty() {
            let tokens = std::mem::take(&mut self.unsynced);
            let done = self.ledger.commit();
            self.node.journal_answered(done.as_ref().err());
            if let Err(error) = &done {
                self.journal_failed = true;
                error!(%error, "the journal cannot be written; what was not acknowledged is not acted upon");
            }
            for token in tokens {
                self.event(if done.is_ok() {
                    Event::Durable(token)
                } else {
                    Event::NotDurable(token)
                });
            }
            if done.is_err() {
                self.reopen_segment();
            }
        }
        link::raise(&self.floor, self.now().unix);
    }

    /// Buffers a batch of the core; makes room for it where there is none.
    fn append(&mut self, token: u64, records: &[Record]) -> Option<Event> {
        let mut taken = self.ledger.append(records);
        if matches!(taken, Ok(Room::Checkpoint)) {
            // The core must know what is durable before it says what a fresh journal holds.
            self.sync();
            let live = self.core.checkpoint();
            taken = self
                .ledger
                .checkpoint(&live)
                .and_then(|()| self.ledger.append(records));
        }
        match taken {
            Ok(Room::Taken) => {
                self.unsynced.push(token);
                return None;
            }
            Ok(Room::Checkpoint) => {
                error!("the journal has no room for this even when fresh; it is not acted upon");
            }
            Err(error) => {
                error!(%error, "the journal does not take this; it is not acted upon");
                self.node.journal_answered(Some(&error));
            }
        }
        self.journal_failed = true;
        Some(Event::NotDurable(token))
    }

    /// After a failed sync only a checkpoint makes the journal usable again.
    fn reopen_segment(&mut self) {
        let live = self.core.checkpoint();
        if let Err(error) = self.ledger.checkpoint(&live) {
            warn!(%error, "the journal cannot be written anew either; tried again at the next change");
        }
    }

    fn execute(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Append { token, records } => self.append(token, &records),
            Effect::Send(message) => {
                if !self.link.send(&message) {
                    warn!("no room to send; the next connection says everything anew");
                }
                None
            }
            Effect::EnsureImage {
                container,
                image,
                policy,
            } => {
                let floor = self.floor.load(std::sync::atomic::Ordering::Relaxed);
                let pulling = Event::Pulling(container.clone());
                let logins = self.logins(container.pod, &image);
                match self.images.ensure(container, &image, policy, logins, floor) {
                    Ensured::Now(event) => Some(*event),
                    Ensured::Pulling => Some(pulling),
                    Ensured::Later => None,
                }
            }
            Effect::MakeSandbox { pod, ip } => self.make_sandbox(pod, ip),
            Effect::Start(container) => self.start(container),
            Effect::Stop { container, urgency } => {
                let key = (container.pod, container.name.clone());
                let signal = self.stop_signals.get(&key).copied();
                let signal = signal.or_else(|| self.stop_signal(&container)).unwrap_or(SIGTERM);
                self.shims.send(
                    container.pod,
                    Command::Stop {
                        container,
                        urgency,
                        signal,
                    },
                );
                None
            }
            Effect::Probe { container, kind } => self.probe(container, kind),
            Effect::Hook {
                container,
                kind,
                within,
            } => self.hook(container, kind, within),
            Effect::Resize(container) => self.resize(container),
            Effect::Note { container, probed } => {
                self.shims.note(&container, probed);
                None
            }
            Effect::RefreshVolumes(pod) => {
                self.refresh_volumes(pod);
                None
            }
            Effect::DropVolume(name) => self.drop_volume(name),
            Effect::Remove(pod) => {
                self.shims.send(pod, Command::Remove);
                None
            }
            Effect::Report(refusal) => {
                self.report(&refusal);
                None
            }
        }
    }

    /// Logs what was not believed at the 1st, 2nd, 4th, … time of its kind.
    fn report(&mut self, refusal: &Refusal) {
        let (kind, text) = match refusal {
            Refusal::Desired(why) => ("desired", why.to_string()),
            Refusal::Object => ("object", "an object that no announced index names".to_owned()),
            Refusal::Journal => ("journal", "the desired state does not fit the journal".to_owned()),
        };
        let count = self.refusals.entry(kind).or_default();
        *count += 1;
        if count.is_power_of_two() {
            warn!(kind, count, "ignored what the server sent: {text}");
        }
    }

    fn make_sandbox(&mut self, uid: Uid, ip: Option<std::net::Ipv4Addr>) -> Option<Event> {
        let config = self.core.pod(uid).map(|(pod, _)| self.sandbox(pod, ip));
        match config {
            Some(Ok(config)) => {
                self.shims.send(uid, Command::MakeSandbox(Box::new(config)));
                None
            }
            Some(Err(error)) => Some(Event::SandboxFailed(uid, error)),
            None => Some(Event::SandboxFailed(uid, "the Pod is not known".to_owned())),
        }
    }

    fn start(&mut self, container: ContainerRef) -> Option<Event> {
        match self.make_volumes(&container) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(message) => {
                let error = StartError::Config(message);
                return Some(Event::StartFailed { container, error });
            }
        }
        let edits = self.devices_of(&container);
        match edits.and_then(|edits| self.run_request(&container, edits)) {
            Ok(Start {
                request,
                note,
                signal,
                image,
            }) => {
                self.hold_image(&container, image);
                self.stop_signals
                    .insert((container.pod, container.name.clone()), signal);
                // It may start anew because its resources are others, and then the Pod's are too.
                if container.attempt > 0
                    && let Some((pod, _)) = self.core.pod(container.pod)
                {
                    let limits = plan::limits::pod_limits(pod, &self.limits());
                    self.shims
                        .send(container.pod, Command::PodLimits(Box::new(limits)));
                }
                let command = Command::Run {
                    container: container.clone(),
                    request: Box::new(request),
                    note,
                };
                // Its shim's task gets to it after this turn, and the turn ends with the journal's sync.
                self.shims.send(container.pod, command);
                Some(Event::Launched(container))
            }
            Err(message) => Some(Event::StartFailed {
                container,
                error: StartError::Config(message),
            }),
        }
    }

    /// Tells `plan` what it must know beside the Pod.
    fn with_facts<R>(
        &self,
        pod: &PodSpec,
        ip: Option<std::net::Ipv4Addr>,
        plan: impl FnOnce(&Facts<'_>, Lookup<'_>) -> R,
    ) -> Result<R, String> {
        let (run, state) = (self.place.run_of(pod.uid), self.place.state_of(pod.uid));
        let layers = self.place.layers_of(pod.uid);
        let sandbox = self.sandbox(pod, ip)?;
        let apparmor = skiff_sys::doctor::apparmor();
        let volumes = self.volume_dir();
        let claim = |name: &str| {
            let mut all = self.core.volumes();
            all.find(|it| !it.drop && it.claim.0 == pod.namespace && it.claim.1 == name)
        };
        let facts = Facts {
            node: self.identity.node.as_str(),
            host_ip: self.node.address(),
            pod_ip: ip,
            hostname: &sandbox.hostname,
            node_cpu_milli: self.node.allocatable_cpu(&self.config),
            node_memory: self.node.memory(),
            node_storage: self.node.allocatable_storage(&self.config),
            limits: &self.limits(),
            seccomp_dir: &self.config.seccomp_profiles(),
            apparmor: apparmor.then_some(&node::apparmor_profile),
            pod_cgroup: sandbox.cgroup.path(),
            run: &run,
            state: &state,
            layers: &layers,
            bounding: self.node.bounding(),
            namespaces: sandbox.namespaces(),
            volumes: &volumes,
            claim: &claim,
        };
        Ok(plan(&facts, &self.lookup(&pod.namespace)))
    }
}

async fn sleep_for(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn elapsed(sleep: &mut Option<std::pin::Pin<Box<tokio::time::Sleep>>>) {
    match sleep {
        Some(sleep) => sleep.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<u64>, began: Instant) {
    match deadline {
        Some(millis) => tokio::time::sleep_until((began + Duration::from_millis(millis)).into()).await,
        None => std::future::pending().await,
    }
}
