//! The core itself: one function in, effects out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use skiff_protocol::limits;
use skiff_protocol::pod::Pod;
use skiff_protocol::sha256;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::Index;
use skiff_protocol::wire::spec::{Container, Object, ObjectKey, PersistentVolume, PodSpec};
use skiff_protocol::wire::{self, Hello, NodeInfo, Up};

use crate::admission;
use crate::desired::{Gathering, Staged};
use crate::effect::Effect;
use crate::event::{Event, Pressure};
use crate::ipam::Ipam;
use crate::record::{Record, Recovered};
use crate::state::PodState;
use crate::statics::Statics;
use crate::status;
use crate::volumes::Dropping;

/// Bytes of one report: the link says that it has room for a frame, and a report must fit.
const REPORT: usize = limits::FRAME - 1024;

/// Bytes of an event beside its message: uid, names, reason, time.
const EVENT_BESIDE_TEXT: usize = 256;

/// Above every number that a start counts to whose epoch is in the journal.
const UNCOUNTED: u64 = 1 << 60;

/// Milliseconds until a hello that nobody answers is said again; doubled each time.
const HELLO_AGAIN: u64 = 5_000;

/// The longest wait between two hellos, in milliseconds.
const HELLO_AGAIN_LONGEST: u64 = 300_000;

/// Seconds by which two clocks may part before one of them was set.
const CLOCK_SET: i64 = 2;

/// The moment of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds on a clock that never jumps; all timers use it.
    pub mono: u64,
    /// Seconds since 1970 by the system clock, which may be wrong; only shown.
    pub unix: i64,
}

/// What the node is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name.
    pub node: NodeName,
    /// The server's Ed25519 public key, pinned at enrolment.
    pub server_key: Vec<u8>,
    /// The Pods' network.
    pub network: Ipv4Addr,
    /// Its prefix length, 8 to 30.
    pub prefix: u8,
    /// Thousandths of a CPU that Pods may request.
    pub allocatable_cpu_milli: u64,
    /// Bytes of memory that Pods may request.
    pub allocatable_memory: u64,
    /// Bytes of `ephemeral-storage` that Pods may request.
    pub allocatable_storage: u64,
    /// Extended resources and `hugepages-…` that Pods may request, by name.
    pub extended: BTreeMap<String, u64>,
    /// What this node can do or allows; see [`skiff_protocol::wire::feature`].
    pub features: BTreeSet<String>,
    /// Pods at once.
    pub max_pods: usize,
}

/// What was dropped or not believed, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Desired states that did not verify.
    pub desired_refused: u64,
    /// Objects that no announced index names, or that do not decode.
    pub objects_refused: u64,
    /// Events dropped for want of room.
    pub events_lost: u64,
    /// Batches that the journal refused.
    pub journal_refused: u64,
}

/// The node's state.
#[derive(Debug)]
pub struct Core {
    pub(crate) config: Config,
    /// What the journal holds, and what a checkpoint writes.
    pub(crate) durable: Recovered,
    /// The index of `durable.objects`.
    pub(crate) index: Index,
    pub(crate) gathering: Option<Gathering>,
    pub(crate) staged: VecDeque<Staged>,
    pub(crate) next_token: u64,
    pub(crate) pods: BTreeMap<Uid, PodState>,
    pub(crate) ipam: Ipam,
    pub(crate) effects: Vec<Effect>,
    pub(crate) counters: Counters,
    /// What the node is short of.
    pub(crate) pressure: Pressure,
    /// Volumes whose files are to go once nobody uses them.
    pub(crate) dropping: Vec<Dropping>,
    pub(crate) statics: Statics,
    /// The system's clock less the one that never jumps, in seconds.
    clock: Option<i64>,
    node: NodeInfo,
    linked: bool,
    /// Nothing of the server came since hello: when it is said again, and the wait that led there.
    unanswered: Option<(u64, u64)>,
    /// The append of this start's epoch, until the journal answers.
    pub(crate) epoch_token: Option<u64>,
    sequence: u64,
    dirty: BTreeSet<Uid>,
    events: VecDeque<wire::Event>,
    events_lost_unsaid: u64,
}

impl Core {
    /// The core of a node whose journal held `recovered`. Tell it [`Event::Observed`] next.
    #[must_use]
    pub fn new(config: Config, mut recovered: Recovered) -> Self {
        recovered.epoch += 1;
        Self {
            ipam: Ipam::new(config.network, config.prefix),
            index: recovered.index(),
            durable: recovered,
            config,
            gathering: None,
            staged: VecDeque::new(),
            next_token: 1,
            pods: BTreeMap::new(),
            effects: Vec::new(),
            counters: Counters::default(),
            pressure: Pressure::default(),
            dropping: Vec::new(),
            statics: Statics::default(),
            clock: None,
            node: NodeInfo::default(),
            linked: false,
            unanswered: None,
            epoch_token: None,
            sequence: 0,
            dirty: BTreeSet::new(),
            events: VecDeque::new(),
            events_lost_unsaid: 0,
        }
    }

    /// Takes an event; gives what is to be done, in order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Effect> {
        self.watch_clock(now);
        // Whether something may have gone that others wait for.
        let frees = matches!(
            event,
            Event::Exited { .. } | Event::Removed(_) | Event::Durable(_) | Event::ShimLost(_)
        );
        self.take(now, event);
        if frees {
            self.retry_deferred(now);
            self.retry_statics(now);
            self.follow_statics(now);
            self.drop_volumes();
        }
        std::mem::take(&mut self.effects)
    }

    fn take(&mut self, now: Now, event: Event) {
        match event {
            Event::Statics(manifests) => self.statics_read(now, manifests),
            Event::Observed(pods) => self.observed(now, pods),
            Event::LinkUp(node) => {
                self.node = node;
                self.linked = true;
                self.greet();
                self.unanswered = Some((now.mono + HELLO_AGAIN, HELLO_AGAIN));
            }
            Event::LinkDown => {
                self.linked = false;
                self.unanswered = None;
            }
            Event::NodeChanged(node) => {
                // What comes next is measured by what there is now: a device may have come or gone.
                self.config.extended = node.extended.iter().cloned().collect();
                self.node = node;
                self.retry_statics(now);
                if self.linked {
                    self.send(Up::Node(self.node.clone()));
                }
            }
            Event::Down(message) => {
                self.unanswered = None;
                self.down(now, message);
            }
            Event::Durable(token) => {
                self.durable(now, token);
                self.statics_answered(now, token, true);
                self.failure_answered(now, token, true);
                self.epoch_answered(now, token, true);
            }
            Event::NotDurable(token) => {
                self.not_durable(token);
                self.statics_answered(now, token, false);
                self.failure_answered(now, token, false);
                self.epoch_answered(now, token, false);
            }
            Event::Pulling(container) => self.pulling(now, &container),
            Event::PullProgress { container, text } => self.pull_goes_on(now, &container, &text),
            Event::ImageReady { container, image_id } => self.image_ready(now, &container, image_id),
            Event::ImageFailed { container, error } => self.image_failed(now, &container, error),
            Event::Launched(container) => self.launched(now, &container),
            Event::SandboxReady(uid) => self.sandbox_ready(now, uid),
            Event::SandboxFailed(uid, message) => self.sandbox_failed(now, uid, &message),
            Event::Started {
                container,
                container_id,
            } => self.started(now, &container, container_id),
            Event::StartFailed { container, error } => self.start_failed(now, &container, error),
            Event::Exited { container, exit } => self.exited(now, &container, &exit),
            Event::Probed {
                container,
                kind,
                outcome,
            } => self.probed(now, &container, kind, outcome),
            Event::HookDone {
                container,
                kind,
                result,
            } => self.hook_done(now, &container, kind, result),
            Event::Resized { container, result } => self.resized(now, &container, result),
            Event::Pressure(pressure) => self.pressed(now, pressure),
            Event::OverLimit(uid, message) => self.over_limit(now, uid, message),
            // Nothing waits for it; one that was cut off is found by the next start of the agent.
            Event::VolumeDropped(_) => {}
            Event::Removed(uid) => self.removed(now, uid),
            Event::RemoveFailed(uid, message) => self.remove_failed(now, uid, message),
            Event::ShimLost(uid) => self.shim_lost(now, uid),
            Event::Tick => {
                self.greet_again(now);
                self.reconcile_due(now);
                if self.statics.again.is_some() {
                    self.follow_statics(now);
                }
            }
        }
    }

    /// Notices when the system's clock was set.
    fn watch_clock(&mut self, now: Now) {
        let mono = i64::try_from(now.mono / 1000).unwrap_or(i64::MAX);
        let apart = now.unix.saturating_sub(mono);
        match self.clock {
            Some(before) if (apart - before).abs() <= CLOCK_SET => {}
            before => {
                self.clock = Some(apart);
                if let Some(before) = before {
                    self.clock_set(now, before.saturating_add(mono));
                }
            }
        }
    }

    /// When [`Event::Tick`] is due, on the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let hello = self.unanswered.map(|(at, _)| at);
        self.pods
            .values()
            .filter_map(PodState::deadline)
            .chain(hello)
            .chain(self.statics.again)
            .min()
    }

    /// The next status or event message, once the link has room for one. Latest wins: what changed twice since is
    /// reported once.
    pub fn next_report(&mut self) -> Option<Up> {
        if !self.linked {
            return None;
        }
        let (mut statuses, mut bytes) = (Vec::new(), 0);
        while statuses.len() < limits::STATUSES
            && let Some(uid) = self.dirty.pop_first()
        {
            let Some(pod) = self.pods.get_mut(&uid) else {
                continue;
            };
            let status = status::of(pod);
            let encoded = encode(&status);
            let hash = hash_of(&encoded);
            if hash == pod.reported {
                continue;
            }
            bytes += encoded.len();
            if bytes > REPORT && !statuses.is_empty() {
                self.dirty.insert(uid);
                break;
            }
            pod.reported = hash;
            statuses.push(status);
        }
        if !statuses.is_empty() {
            self.sequence += 1;
            return Some(Up::Status {
                epoch: self.durable.epoch,
                sequence: self.sequence,
                pods: statuses,
            });
        }
        if self.events.is_empty() {
            return None;
        }
        let mut bytes = 0;
        let fits = |event: &&wire::Event| {
            bytes += event.message.len() + EVENT_BESIDE_TEXT;
            bytes <= REPORT
        };
        let count = self.events.iter().take_while(fits).count().max(1);
        Some(Up::Events {
            lost: std::mem::take(&mut self.events_lost_unsaid),
            events: self.events.drain(..count).collect(),
        })
    }

    /// The records that a checkpoint of the journal consists of.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<Record> {
        self.durable.records()
    }

    /// The epoch of this start.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.durable.epoch
    }

    /// The generation held, durably.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.durable.generation
    }

    /// What was dropped or not believed.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The Pod and its address, while it is on this node.
    #[must_use]
    pub fn pod(&self, uid: Uid) -> Option<(&PodSpec, Option<Ipv4Addr>)> {
        let state = self.pods.get(&uid)?;
        Some((&**state.pod.as_ref()?, state.ip))
    }

    /// The Pods that the durable desired state or the node's own directory wants.
    #[must_use]
    pub fn wanted(&self) -> BTreeSet<Uid> {
        let uid = |key: &ObjectKey| {
            if let ObjectKey::Pod(uid) = key {
                Some(*uid)
            } else {
                None
            }
        };
        let statics = self.durable.statics.values().map(|it| it.uid);
        self.durable
            .objects
            .keys()
            .filter_map(uid)
            .chain(statics)
            .collect()
    }

    /// A Pod that is wanted, whether or not it was taken in yet.
    #[must_use]
    pub fn wanted_pod(&self, uid: Uid) -> Option<PodSpec> {
        match self.object(&ObjectKey::Pod(uid)) {
            Some(Object::Pod(pod)) => Some(pod),
            _ => self.static_pod(uid).map(Pod::into_wire),
        }
    }

    /// A desired object's bytes, as the server sent them.
    #[must_use]
    pub fn object(&self, key: &ObjectKey) -> Option<Object> {
        postcard::from_bytes(self.durable.objects.get(key)?).ok()
    }

    /// The PersistentVolumes that this node keeps.
    pub fn volumes(&self) -> impl Iterator<Item = PersistentVolume> + '_ {
        let keys = self.durable.objects.keys();
        let volumes = keys.filter(|key| matches!(key, ObjectKey::Volume(_)));
        volumes.filter_map(|key| match self.object(key)? {
            Object::Volume(volume) => Some(volume),
            Object::Pod(_) | Object::ConfigMap(_) | Object::Secret(_) => None,
        })
    }

    /// Whether containers of the Pod are to run: it is not to end, was not refused, and has not failed.
    #[must_use]
    pub fn lives(&self, uid: Uid) -> bool {
        self.pods.get(&uid).is_some_and(PodState::lives)
    }

    /// Whether the Pod has a share of the node: room, devices, ports. One whose work is over and whose containers have ended
    /// has none, though it is still here.
    #[must_use]
    pub fn holds_resources(&self, uid: Uid) -> bool {
        self.pods.get(&uid).is_some_and(admission::holds_resources)
    }

    /// Every Pod with its status, for people.
    pub fn statuses(&self) -> impl Iterator<Item = (Option<&PodSpec>, wire::status::PodStatus)> {
        self.pods.values().map(|it| (it.pod.as_deref(), status::of(it)))
    }

    /// What tells two specs of one container apart that cannot be changed while it runs: all but cpu and memory.
    #[must_use]
    pub fn spec_digest(container: &Container) -> u64 {
        let mut container = container.clone();
        let resources = &mut container.resources;
        (resources.cpu_limit, resources.cpu_request) = (None, None);
        (resources.memory_limit, resources.memory_request) = (None, None);
        hash(&container)
    }

    pub(crate) fn send(&mut self, message: Up) {
        self.effects.push(Effect::Send(Box::new(message)));
    }

    /// Says hello, and has every status sent anew.
    pub(crate) fn greet(&mut self) {
        if !self.can_speak() {
            return;
        }
        self.send(Up::Hello(Hello {
            epoch: self.durable.epoch,
            versions: (wire::OLDEST, wire::VERSION),
            max_frame: limits::FRAME as u32,
            generation: self.durable.generation,
            desired_digest: self.index.digest(),
            inventory_digest: [0; 32],
            node: self.node.clone(),
        }));
        self.tell_statics();
        for pod in self.pods.values_mut() {
            pod.reported = 0;
            self.dirty.insert(pod.uid);
        }
    }

    /// Whether the server can be told anything: nothing is said before the journal has this start's epoch.
    pub(crate) fn can_speak(&self) -> bool {
        self.linked && self.epoch_token.is_none()
    }

    /// The journal answered for this start's epoch. Nothing is said under an epoch before that: a start after this one
    /// would count its messages under the same epoch from the beginning, and the server would take them for old ones.
    fn epoch_answered(&mut self, now: Now, token: u64, durable: bool) {
        if self.epoch_token != Some(token) {
            return;
        }
        self.epoch_token = None;
        if !durable {
            // This start goes on under the epoch before, above every number that was used in it.
            self.durable.epoch -= 1;
            self.sequence = UNCOUNTED | u64::try_from(now.unix).unwrap_or(0) << 20;
        }
        self.greet();
    }

    /// Says hello again when nobody answered: whoever listens to nodes may not have been there yet.
    fn greet_again(&mut self, now: Now) {
        if let Some((at, wait)) = self.unanswered
            && at <= now.mono
        {
            self.greet();
            let wait = (wait * 2).min(HELLO_AGAIN_LONGEST);
            self.unanswered = Some((now.mono + wait, wait));
        }
    }

    /// Has the Pod's status sent, whether or not it is what was sent last.
    pub(crate) fn report_anew(&mut self, uid: Uid) {
        if let Some(pod) = self.pods.get_mut(&uid) {
            pod.reported = 0;
            self.dirty.insert(uid);
        }
    }

    /// Notes that a Pod's status may have changed.
    pub(crate) fn touch(&mut self, now: Now, uid: Uid) {
        if let Some(pod) = self.pods.get_mut(&uid) {
            status::note_ready(pod, now.unix);
            self.dirty.insert(uid);
        }
    }

    /// Appends records that no effect waits for.
    pub(crate) fn record(&mut self, now: Now, records: Vec<Record>) {
        for record in &records {
            self.durable.apply(record.clone());
        }
        self.append(now, records);
    }

    /// Appends records; the token names the answer.
    pub(crate) fn append(&mut self, now: Now, mut records: Vec<Record>) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        if now.unix > self.durable.time {
            self.durable.time = now.unix;
            records.push(Record::Time(now.unix));
        }
        self.effects.push(Effect::Append { token, records });
        token
    }

    /// Notes an event for the server; the oldest gives way when there are too many.
    pub(crate) fn event(
        &mut self,
        now: Now,
        uid: Uid,
        container: Option<&str>,
        warning: bool,
        reason: &str,
        message: String,
    ) {
        if self.events.len() == limits::EVENTS {
            self.events.pop_front();
            self.counters.events_lost += 1;
            self.events_lost_unsaid += 1;
        }
        let mut message = message;
        cut(&mut message);
        self.events.push_back(wire::Event {
            uid,
            container: container.map(str::to_owned),
            warning,
            reason: reason.to_owned(),
            message,
            at: now.unix,
        });
    }
}

/// Cuts a text to its bound, at a character.
pub(crate) fn cut(text: &mut String) {
    if text.len() > limits::TEXT {
        let end = (0..=limits::TEXT)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
    }
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("postcard encodes into memory without fail")
}

fn hash(value: &impl serde::Serialize) -> u64 {
    hash_of(&encode(value))
}

fn hash_of(bytes: &[u8]) -> u64 {
    let digest = sha256(bytes);
    u64::from_le_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ])
}
