//! A core, a clock and a server's key; everything that goes in and comes out is written down as text.
//!
//! Always holds: a deadline that was handled by a tick lies in the future or is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use ring::signature::{Ed25519KeyPair, KeyPair};
use skiff_core::{
    Config, ContainerRef, Core, Effect, Event, Exit, HookKind, ImageError, Now, ObservedContainer,
    ObservedPhase, ObservedPod, Pressure, ProbeKind, ProbeOutcome, Probed, Record, Recovered, StartError,
    Usage,
};
use skiff_protocol::sha256;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::{Change, Desired, Index, signed_bytes};
use skiff_protocol::wire::spec::{
    ConfigData, Container, Object, PodSecurity, PodSpec, PullPolicy, Resources, RestartPolicy, Security,
};
use skiff_protocol::wire::status::PodStatus;
use skiff_protocol::wire::{Down, NodeInfo};

use crate::show::{show, show_key, show_status, show_up};

/// 2026-01-01, so that seconds since 1970 look like some.
pub(crate) const EPOCH: i64 = 1_767_225_600;

pub(crate) const SERVER_KEY: [u8; 32] = [7; 32];

/// Runs a scenario on a fresh core and compares what was written down with `scenarios/<name>.txt`.
pub(crate) fn check(name: &str, scenario: impl FnOnce(&mut Bench)) {
    let mut bench = Bench::new();
    bench.observed(Vec::new());
    scenario(&mut bench);
    compare(name, &bench.text);
}

pub(crate) fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/scenarios/{name}.txt"));
    if std::env::var_os("SKIFF_BLESS").is_some() {
        std::fs::write(&path, text).expect("the golden text can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == text,
        "{} differs.\n--- golden\n{golden}\n--- now\n{text}",
        path.display()
    );
}

/// A uid that shows the Pod's name.
pub(crate) fn uid(name: &str) -> Uid {
    let mut bytes = [b'.'; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Uid(bytes)
}

pub(crate) fn name_of(uid: Uid) -> String {
    String::from_utf8_lossy(&uid.0).trim_end_matches('.').to_owned()
}

pub(crate) fn container(name: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: format!("{name}:1"),
        pull_policy: PullPolicy::IfNotPresent,
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        env_from: Vec::new(),
        env: Vec::new(),
        ports: Vec::new(),
        resources: Resources::default(),
        mounts: Vec::new(),
        security: Security::default(),
        ..Default::default()
    }
}

/// A Pod of one container, `app`, that is always restarted.
pub(crate) fn pod(name: &str) -> PodSpec {
    PodSpec {
        uid: uid(name),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        deletion_grace_seconds: None,
        restart_policy: RestartPolicy::Always,
        termination_grace_seconds: 30,
        hostname: name.to_owned(),
        security: PodSecurity::default(),
        containers: vec![container("app")],
        volumes: Vec::new(),
        ..Default::default()
    }
}

pub(crate) fn pod_with(name: &str, change: impl FnOnce(&mut PodSpec)) -> PodSpec {
    let mut pod = pod(name);
    change(&mut pod);
    pod
}

/// A container that was found running or ended, from the spec given.
pub(crate) fn found(spec: &Container, attempt: u32, phase: ObservedPhase) -> ObservedContainer {
    ObservedContainer {
        name: spec.name.clone(),
        attempt,
        container_id: format!("skiff://{}-{attempt}", spec.name),
        image_id: format!("id of {}", spec.image),
        spec_digest: Some(Core::spec_digest(spec)),
        probed: Probed {
            started: true,
            ready: true,
        },
        phase,
    }
}

pub(crate) fn found_pod(name: &str, ip: u8, containers: Vec<ObservedContainer>) -> ObservedPod {
    ObservedPod {
        uid: uid(name),
        sandbox: true,
        ip: Some(Ipv4Addr::new(10, 88, 0, ip)),
        containers,
    }
}

pub(crate) fn exit(code: i32, finished_at: i64) -> Exit {
    Exit {
        exit_code: code,
        signal: 0,
        oom_killed: false,
        started_at: finished_at - 1,
        finished_at: EPOCH + finished_at,
        ..Default::default()
    }
}

pub(crate) struct Bench {
    pub(crate) core: Core,
    pub(crate) config: Config,
    now: u64,
    /// How far the system's clock is ahead, in seconds.
    clock: i64,
    text: String,
    /// What the journal holds.
    pub(crate) journal: Vec<Vec<Record>>,
    /// Batches are not answered for.
    pub(crate) hold: bool,
    /// Starts come to nothing before they begin: what a container needs is not there.
    pub(crate) unmet: bool,
    held: Vec<(u64, Vec<Record>)>,
    pub(crate) generation: u64,
    pub(crate) index: Index,
    shown: BTreeMap<Uid, String>,
    deadline: Option<u64>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_room_for(4)
    }

    pub(crate) fn with_room_for(pods: usize) -> Self {
        let key = Ed25519KeyPair::from_seed_unchecked(&SERVER_KEY).expect("32 bytes are a seed");
        let config = Config {
            node: NodeName::parse("rover-7").expect("a node's name"),
            server_key: key.public_key().as_ref().to_vec(),
            network: Ipv4Addr::new(10, 88, 0, 0),
            prefix: 24,
            allocatable_cpu_milli: 1000,
            allocatable_memory: 1 << 30,
            allocatable_storage: 10 << 30,
            extended: [("skiff.io/tty".to_owned(), 2)].into(),
            features: BTreeSet::new(),
            max_pods: pods,
        };
        Self {
            core: Core::new(config.clone(), Recovered::default()),
            config,
            now: 0,
            clock: 0,
            text: String::new(),
            journal: Vec::new(),
            hold: false,
            unmet: false,
            held: Vec::new(),
            generation: 0,
            index: Index::default(),
            shown: BTreeMap::new(),
            deadline: None,
        }
    }

    fn now(&self) -> Now {
        Now {
            mono: self.now,
            unix: EPOCH + self.clock + (self.now / 1000) as i64,
        }
    }

    pub(crate) fn note(&mut self, text: &str) {
        let _ = writeln!(self.text, "# {text}");
    }

    /// Tells the core; writes down what it does, and what it shows differently from before.
    pub(crate) fn event(&mut self, said: &str, event: Event) {
        let _ = writeln!(self.text, "{}.{:03} {said}", self.now / 1000, self.now % 1000);
        let tick = event == Event::Tick;
        let effects = self.core.handle(self.now(), event);
        let (mut appended, mut launched) = (Vec::new(), Vec::new());
        for effect in effects {
            match &effect {
                Effect::Append { token, records } => appended.push((*token, records.clone())),
                Effect::Start(container) => launched.push(container.clone()),
                _ => {}
            }
            let line = show(&effect);
            let _ = writeln!(self.text, "    {line}");
        }
        for container in launched.into_iter().filter(|_| !self.unmet) {
            for effect in self.core.handle(self.now(), Event::Launched(container)) {
                let line = show(&effect);
                let _ = writeln!(self.text, "    {line}");
                match effect {
                    Effect::Append { token, records } => appended.push((token, records)),
                    _ => panic!("a launch leads to records alone\n{}", self.text),
                }
            }
        }
        if tick {
            let next = self.core.next_deadline();
            assert!(
                next.is_none_or(|at| at > self.now),
                "a tick at {} left the deadline {next:?}\n{}",
                self.now,
                self.text
            );
        }
        for (token, records) in appended {
            if self.hold {
                self.held.push((token, records));
            } else {
                self.journal.push(records);
                self.event("  durable", Event::Durable(token));
            }
        }
        self.show_changes();
        if self.core.next_deadline().is_some_and(|at| at <= self.now) {
            self.event("tick", Event::Tick);
        }
    }

    fn show_changes(&mut self) {
        let statuses: Vec<PodStatus> = self.core.statuses().map(|(_, status)| status).collect();
        for uid in self.shown.keys().copied().collect::<Vec<_>>() {
            if statuses.iter().all(|it| it.uid != uid) {
                self.shown.remove(&uid);
                let _ = writeln!(self.text, "  = {} forgotten", name_of(uid));
            }
        }
        for status in statuses {
            let line = show_status(&status);
            if self.shown.insert(status.uid, line.clone()).as_ref() != Some(&line) {
                let _ = writeln!(self.text, "  = {line}");
            }
        }
        let deadline = self.core.next_deadline();
        if deadline != self.deadline {
            self.deadline = deadline;
            let shown = deadline.map_or("none".to_owned(), |at| format!("{}.{:03}", at / 1000, at % 1000));
            let _ = writeln!(self.text, "  = deadline {shown}");
        }
    }

    /// What the journal adds up to.
    pub(crate) fn recovered(&self) -> Recovered {
        let mut recovered = Recovered::default();
        for record in self.journal.iter().flatten() {
            recovered.apply(record.clone());
        }
        recovered
    }

    /// The agent starts anew from the journal and finds these shims.
    pub(crate) fn restart(&mut self, observed: Vec<ObservedPod>) {
        self.begin_anew();
        self.observed(observed);
    }

    /// The agent starts anew from the journal and has not looked yet.
    pub(crate) fn begin_anew(&mut self) {
        self.note("the agent starts anew");
        self.held.clear();
        self.shown.clear();
        self.deadline = None;
        self.core = Core::new(self.config.clone(), self.recovered());
    }

    pub(crate) fn observed(&mut self, pods: Vec<ObservedPod>) {
        let names: Vec<String> = pods.iter().map(|it| name_of(it.uid)).collect();
        self.event(&format!("observed [{}]", names.join(" ")), Event::Observed(pods));
    }

    /// The server wants exactly these.
    pub(crate) fn desired(&mut self, objects: &[Object]) {
        let bytes: Vec<Vec<u8>> = objects.iter().map(encode).collect();
        let index = Index(
            objects
                .iter()
                .zip(&bytes)
                .map(|(object, bytes)| (object.key(), sha256(bytes)))
                .collect(),
        );
        self.generation += 1;
        let desired = self.sign(self.generation, Change::Full(index.clone()), &index, bytes);
        self.index = index;
        let names: Vec<String> = objects.iter().map(|it| show_key(&it.key())).collect();
        self.event(
            &format!("desired {}: [{}]", self.generation, names.join(" ")),
            Event::Down(Down::Desired(desired)),
        );
    }

    pub(crate) fn pods(&mut self, pods: &[PodSpec]) {
        let objects: Vec<Object> = pods.iter().cloned().map(Object::Pod).collect();
        self.desired(&objects);
    }

    pub(crate) fn sign(
        &self,
        generation: u64,
        change: Change,
        index: &Index,
        objects: Vec<Vec<u8>>,
    ) -> Desired {
        let key = Ed25519KeyPair::from_seed_unchecked(&SERVER_KEY).expect("32 bytes are a seed");
        let bytes = signed_bytes(&self.config.node, generation, &index.digest());
        Desired {
            generation,
            signature: key.sign(&bytes).as_ref().to_vec(),
            change,
            objects,
        }
    }

    /// Answers for the oldest batch that is held back.
    pub(crate) fn answer(&mut self, durable: bool) {
        let (token, records) = self.held.remove(0);
        if durable {
            self.journal.push(records);
            self.event("durable", Event::Durable(token));
        } else {
            self.event("not durable", Event::NotDurable(token));
        }
    }

    pub(crate) fn image_ready(&mut self, at: &str) {
        let container = reference(at);
        let image_id = format!("id of {}", container.name);
        self.event(
            &format!("image ready {at}"),
            Event::ImageReady { container, image_id },
        );
    }

    pub(crate) fn pulling(&mut self, at: &str) {
        self.event(&format!("pulling {at}"), Event::Pulling(reference(at)));
    }

    pub(crate) fn pull_goes_on(&mut self, at: &str, text: &str) {
        let (container, text) = (reference(at), text.to_owned());
        self.event(
            &format!("pull goes on {at}"),
            Event::PullProgress { container, text },
        );
    }

    pub(crate) fn image_failed(&mut self, at: &str, reason: &str) {
        let error = ImageError {
            reason: reason.to_owned(),
            message: "the registry said no".to_owned(),
            retry: reason != "InvalidImageName",
        };
        let container = reference(at);
        self.event(
            &format!("image failed {at}: {reason}"),
            Event::ImageFailed { container, error },
        );
    }

    pub(crate) fn sandbox_ready(&mut self, pod: &str) {
        self.event(&format!("sandbox ready {pod}"), Event::SandboxReady(uid(pod)));
    }

    pub(crate) fn started(&mut self, at: &str) {
        let container = reference(at);
        let container_id = format!("skiff://{at}");
        self.event(
            &format!("started {at}"),
            Event::Started {
                container,
                container_id,
            },
        );
    }

    pub(crate) fn start_failed(&mut self, at: &str, error: StartError) {
        let container = reference(at);
        self.event(
            &format!("start failed {at}: {error:?}"),
            Event::StartFailed { container, error },
        );
    }

    pub(crate) fn exited(&mut self, at: &str, code: i32) {
        let container = reference(at);
        let exit = exit(code, (self.now / 1000) as i64);
        self.event(&format!("exited {at}: {code}"), Event::Exited { container, exit });
    }

    pub(crate) fn probed(&mut self, at: &str, kind: ProbeKind, outcome: ProbeOutcome) {
        let container = reference(at);
        self.event(
            &format!("{kind:?} probe of {at}: {outcome:?}"),
            Event::Probed {
                container,
                kind,
                outcome,
            },
        );
    }

    pub(crate) fn succeeds(&mut self, at: &str, kind: ProbeKind) {
        self.probed(at, kind, ProbeOutcome::Success);
    }

    pub(crate) fn fails(&mut self, at: &str, kind: ProbeKind) {
        let message = "HTTP probe failed with statuscode: 500".to_owned();
        self.probed(at, kind, ProbeOutcome::Failure(message));
    }

    pub(crate) fn hook_done(&mut self, at: &str, kind: HookKind, result: Result<(), &str>) {
        let container = reference(at);
        self.event(
            &format!("{kind:?} hook of {at}: {result:?}"),
            Event::HookDone {
                container,
                kind,
                result: result.map_err(str::to_owned),
            },
        );
    }

    pub(crate) fn resized(&mut self, at: &str, result: Result<(), &str>) {
        let container = reference(at);
        self.event(
            &format!("resized {at}: {result:?}"),
            Event::Resized {
                container,
                result: result.map_err(str::to_owned),
            },
        );
    }

    /// The node is short of memory; Pods use so many MiB.
    pub(crate) fn memory_pressure(&mut self, used: &[(&str, u64)]) {
        let usage = used.iter().map(|(pod, mib)| Usage {
            pod: uid(pod),
            memory: mib << 20,
            ..Usage::default()
        });
        let pressure = Pressure {
            memory: Some("less than 100Mi is left".to_owned()),
            usage: usage.collect(),
            ..Pressure::default()
        };
        self.event(&format!("memory pressure {used:?}"), Event::Pressure(pressure));
    }

    pub(crate) fn removed(&mut self, pod: &str) {
        self.event(&format!("removed {pod}"), Event::Removed(uid(pod)));
    }

    /// The system's clock is set by so many seconds.
    pub(crate) fn set_clock(&mut self, by: i64) {
        self.clock += by;
        self.note(&format!("the clock is set by {by:+} s"));
    }

    /// An event that has nothing to say, so that the core looks at its clocks.
    pub(crate) fn run_nothing(&mut self) {
        self.event("tick", Event::Tick);
    }

    /// The image of a container is there, and it starts.
    pub(crate) fn start(&mut self, at: &str) {
        self.image_ready(at);
        self.started(at);
    }

    /// A Pod of one container `app` that runs.
    pub(crate) fn run(&mut self, pod: &str) {
        self.sandbox_ready(pod);
        self.image_ready(&format!("{pod}/app#0"));
        self.started(&format!("{pod}/app#0"));
    }

    /// Lets time pass; every deadline in it is met.
    pub(crate) fn wait(&mut self, seconds: u64) {
        let end = self.now + seconds * 1000;
        while let Some(at) = self.core.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.event("tick", Event::Tick);
        }
        self.now = end;
    }

    pub(crate) fn link_up(&mut self) {
        self.event("link up", Event::LinkUp(NodeInfo::default()));
    }

    /// A link whose server has answered.
    pub(crate) fn linked(&mut self) {
        self.link_up();
        let generation = self.generation;
        self.event("in step", Event::Down(Down::InStep { generation }));
    }

    /// Everything that waits to be reported.
    pub(crate) fn reports(&mut self) {
        while let Some(report) = self.core.next_report() {
            let line = show_up(&report);
            let _ = writeln!(self.text, "  report {line}");
        }
    }
}

pub(crate) fn encode(object: &Object) -> Vec<u8> {
    postcard::to_allocvec(object).expect("postcard encodes into memory without fail")
}

pub(crate) fn config_map(name: &str) -> Object {
    config_map_with(name, "")
}

pub(crate) fn config_map_with(name: &str, value: &str) -> Object {
    Object::ConfigMap(ConfigData {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        data: [("key".to_owned(), value.as_bytes().to_vec())].into(),
    })
}

pub(crate) fn secret(name: &str) -> Object {
    Object::Secret(ConfigData {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        data: BTreeMap::new(),
    })
}

/// `pod/container#attempt`.
pub(crate) fn reference(at: &str) -> ContainerRef {
    let (pod, rest) = at.split_once('/').expect("pod/container#attempt");
    let (name, attempt) = rest.split_once('#').expect("pod/container#attempt");
    ContainerRef {
        pod: uid(pod),
        name: name.to_owned(),
        attempt: attempt.parse().expect("a number"),
    }
}
