//! A node: the real core, in a shell that keeps to the driver's rules, on a disk and a machine with bad luck.
//!
//! Always holds: everything that a node does comes out of [`Node::work`] and its kin as jobs and messages; the shell makes
//! no choices of its own, but for those of [`Defect`].

mod outcomes;

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use ring::signature::{Ed25519KeyPair, KeyPair};
use skiff_core::{
    Config, ContainerRef, Core, Effect, Event, HookKind, Now, ProbeKind, Record, Recovered, StartError,
    Urgency,
};
use skiff_protocol::Digest;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::feature;
use skiff_protocol::wire::spec::{Container, PullPolicy};
use skiff_protocol::wire::{Assembler, Down, NodeInfo, Up};
use skiff_tests::rng::Rng;

use crate::disk::Disk;
use crate::machine::{Instance, Life, Machine, Sandbox, image_id};
use crate::server;
use crate::watch::Watch;

/// 2026-01-01.
const EPOCH: i64 = 1_767_225_600;

/// The image that no registry has.
pub(crate) const ABSENT: &str = "absent";

/// A shell that is broken on purpose, so that the checkers show what they are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// None.
    Sound,
    /// Says that a batch is durable before it is.
    ActsBeforeDurable,
    /// The medium loses the last batch that it reported, at each crash.
    LosesSynced,
    /// Believes another key than the server's, which the link signs with.
    BelievesAnybody,
    /// A new agent does not know what the containers were started from.
    ForgetsSpecs,
    /// A new agent does not find the shims that run.
    FindsNothing,
    /// An image that could not be had is never answered for.
    NeverAnswers,
}

/// Something that happens to a node at a later time.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// The journal is synced.
    Sync,
    /// A pull of this life of the agent is over.
    Pulled {
        life: u64,
        container: ContainerRef,
        image: String,
    },
    SandboxMade {
        uid: Uid,
        shim: u64,
    },
    StartDone {
        container: ContainerRef,
        shim: u64,
    },
    Ends {
        container: ContainerRef,
        shim: u64,
        code: i32,
    },
    RemoveDone {
        uid: Uid,
        shim: u64,
    },
    /// A try of a probe of this life of the agent is over.
    Probed {
        life: u64,
        container: ContainerRef,
        kind: ProbeKind,
    },
    /// A hook of this life of the agent is over.
    Hooked {
        life: u64,
        container: ContainerRef,
        kind: HookKind,
        late: bool,
    },
    Tick,
    Report,
    AgentStart {
        life: u64,
    },
    LinkUp {
        life: u64,
    },
}

/// What the world lends to a node for one turn.
pub(crate) struct Turn<'a> {
    pub(crate) now: u64,
    pub(crate) rng: &'a mut Rng,
    pub(crate) faults: bool,
    /// After so many milliseconds.
    pub(crate) jobs: Vec<(u64, Work)>,
    pub(crate) sends: Vec<Up>,
    pub(crate) signed: &'a dyn Fn(u64) -> Option<Digest>,
    pub(crate) trace: &'a mut VecDeque<String>,
    pub(crate) label: usize,
}

impl Turn<'_> {
    fn unlucky(&mut self, percent: u64) -> bool {
        self.faults && self.rng.percent(percent)
    }

    fn later(&mut self, low: u64, high: u64, work: Work) {
        let after = self.rng.between(low, high);
        self.jobs.push((after, work));
    }

    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        if self.trace.len() == 200 {
            self.trace.pop_front();
        }
        let line = format!("{:>8} n{} {}", self.now, self.label, text());
        self.trace.push_back(line);
    }
}

pub(crate) struct Node {
    config: Config,
    defect: Defect,
    pub(crate) core: Option<Core>,
    /// Counts the agents.
    pub(crate) life: u64,
    began: u64,
    clock: i64,
    pub(crate) disk: Disk,
    sync_due: bool,
    tick_at: Option<u64>,
    pub(crate) machine: Machine,
    pub(crate) assembler: Assembler,
    pub(crate) connected: bool,
    pub(crate) watch: Watch,
}

impl Node {
    pub(crate) fn new(name: NodeName, defect: Defect) -> Self {
        let seed = if defect == Defect::BelievesAnybody {
            crate::link::MALLORY
        } else {
            server::KEY
        };
        let key = Ed25519KeyPair::from_seed_unchecked(&seed).expect("32 bytes are a seed");
        Self {
            config: Config {
                node: name,
                server_key: key.public_key().as_ref().to_vec(),
                network: Ipv4Addr::new(10, 88, 0, 0),
                prefix: 28,
                allocatable_cpu_milli: 1000,
                allocatable_memory: 1 << 30,
                allocatable_storage: 10 << 30,
                extended: [("skiff.io/tty".to_owned(), 3)].into(),
                features: [feature::HOST_PATH.to_owned()].into(),
                max_pods: 6,
            },
            defect,
            core: None,
            life: 0,
            began: 0,
            clock: 0,
            disk: Disk::default(),
            sync_due: false,
            tick_at: None,
            machine: Machine::default(),
            assembler: Assembler::default(),
            connected: false,
            watch: Watch::default(),
        }
    }

    fn now(&self, turn: &Turn<'_>) -> Now {
        Now {
            mono: turn.now - self.began,
            unix: EPOCH + self.clock + (turn.now / 1000) as i64,
        }
    }

    /// Tells the core, and has its effects done, and what follows from them at once.
    pub(crate) fn event(&mut self, turn: &mut Turn<'_>, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now(turn);
            let Some(core) = &mut self.core else { return };
            turn.say(|| format!("> {}", brief(&event)));
            let tick = event == Event::Tick;
            let effects = core.handle(now, event);
            let next = core.next_deadline();
            if tick && next.is_some_and(|at| at <= now.mono) {
                let why = format!("a tick at {} left the deadline {next:?}", now.mono);
                self.watch.violations.push(why);
                return;
            }
            for effect in effects {
                turn.say(|| format!("    {effect:?}").chars().take(220).collect());
                let answer = self.execute(turn, effect);
                events.extend(answer);
            }
            let due = self.core.as_ref().and_then(Core::next_deadline);
            if events.is_empty() && due.is_some_and(|at| at <= now.mono) {
                events.push_back(Event::Tick);
            }
        }
        if let Some(core) = &self.core {
            self.watch.looks(core, &self.machine);
        }
        self.arm(turn);
        self.report(turn);
    }

    fn arm(&mut self, turn: &mut Turn<'_>) {
        let due = self.core.as_ref().and_then(Core::next_deadline);
        let due = due.map(|at| at + self.began);
        if due != self.tick_at {
            self.tick_at = due;
            if let Some(at) = due {
                turn.jobs.push((at.saturating_sub(turn.now), Work::Tick));
            }
        }
    }

    fn report(&mut self, turn: &mut Turn<'_>) {
        while self.connected {
            if turn.unlucky(20) {
                turn.later(100, 2000, Work::Report);
                return;
            }
            let Some(up) = self.core.as_mut().and_then(Core::next_report) else {
                return;
            };
            self.send(turn, up);
        }
    }

    fn send(&mut self, turn: &mut Turn<'_>, up: Up) {
        self.watch.sends(&up, &self.disk.stable, turn.signed);
        if self.connected {
            turn.sends.push(up);
        }
    }

    fn execute(&mut self, turn: &mut Turn<'_>, effect: Effect) -> Option<Event> {
        let core = self.core.as_ref()?;
        let stable = &self.disk.stable;
        match effect {
            Effect::Append { token, records } => return self.append(turn, token, records),
            Effect::Send(up) => self.send(turn, *up),
            Effect::EnsureImage {
                container,
                image,
                policy,
            } => {
                self.watch.acts("image", container.pod, core, &self.disk);
                return self.ensure(turn, container, image, policy);
            }
            Effect::MakeSandbox { pod, ip } => {
                self.watch.acts("sandbox", pod, core, &self.disk);
                self.watch.sandbox(pod, ip, &self.machine);
                if ip.is_none() {
                    return Some(Event::SandboxFailed(pod, "no address is free".to_owned()));
                }
                let shim = self.machine.shim(pod);
                (shim.sandbox, shim.ip) = (Sandbox::Making, ip);
                let shim = shim.id;
                turn.later(20, 800, Work::SandboxMade { uid: pod, shim });
            }
            Effect::Start(container) => {
                self.watch.acts("start", container.pod, core, &self.disk);
                self.watch.starts(&container, &self.machine);
                self.watch.in_order(&container, core, &self.machine);
                return self.start(turn, container);
            }
            Effect::Stop { container, urgency } => {
                self.watch
                    .stops(&container, urgency, &self.machine, (core, stable));
                self.stop(turn, container, urgency);
            }
            Effect::Remove(uid) => {
                let shim = self.machine.shim(uid);
                shim.removing = true;
                let shim = shim.id;
                turn.later(20, 3000, Work::RemoveDone { uid, shim });
            }
            Effect::Probe { container, kind } => {
                self.watch.probes(&container, &self.machine);
                let life = self.life;
                let probed = Work::Probed {
                    life,
                    container,
                    kind,
                };
                turn.later(1, 900, probed);
            }
            Effect::Hook {
                container,
                kind,
                within,
            } => {
                let takes = turn.rng.between(10, 8_000);
                let hooked = Work::Hooked {
                    life: self.life,
                    container,
                    kind,
                    late: takes > within,
                };
                turn.jobs.push((takes.min(within), hooked));
            }
            Effect::Note { container, probed } => {
                if let Some(instance) = self.machine.instance(container.pod, &container.name)
                    && instance.attempt == container.attempt
                {
                    instance.probed = probed;
                }
            }
            Effect::Resize(container) => {
                let result = Ok(());
                return Some(Event::Resized { container, result });
            }
            // Files of volumes are no matter of the simulation.
            Effect::RefreshVolumes(_) | Effect::DropVolume(_) | Effect::Report(_) => {}
        }
        None
    }

    fn append(&mut self, turn: &mut Turn<'_>, token: u64, records: Vec<Record>) -> Option<Event> {
        self.watch.appends();
        let live = self.core.as_ref()?.checkpoint();
        let fails = turn.unlucky(30);
        if self.disk.append(token, records, &live, fails).is_err() {
            return Some(Event::NotDurable(token));
        }
        if !self.sync_due {
            self.sync_due = true;
            turn.later(0, 20, Work::Sync);
        }
        (self.defect == Defect::ActsBeforeDurable).then_some(Event::Durable(token))
    }

    fn sync(&mut self, turn: &mut Turn<'_>) {
        if !std::mem::take(&mut self.sync_due) {
            return;
        }
        let (tokens, done) = self.disk.commit(turn.unlucky(3));
        for token in tokens {
            let event = if done {
                Event::Durable(token)
            } else {
                Event::NotDurable(token)
            };
            self.event(turn, event);
        }
        let Some(core) = &self.core else { return };
        let full = self.disk.len() > 60;
        if !done || (full && self.disk.settled()) {
            let before = self.disk.stable.objects.clone();
            let _tried_again_at_the_next_append = self.disk.checkpoint(&core.checkpoint(), turn.unlucky(30));
            if self.disk.stable.objects != before {
                let why = "a checkpoint changed the desired state".to_owned();
                self.watch.violations.push(why);
            }
        }
    }

    fn ensure(
        &mut self,
        turn: &mut Turn<'_>,
        container: ContainerRef,
        image: String,
        policy: PullPolicy,
    ) -> Option<Event> {
        if policy != PullPolicy::Always && self.machine.images.contains(&image) {
            let image_id = image_id(&image);
            return Some(Event::ImageReady { container, image_id });
        }
        let life = self.life;
        let pulled = Work::Pulled {
            life,
            container,
            image,
        };
        turn.later(50, 5000, pulled);
        None
    }

    /// The driver's `run_request`: what a start needs, in its words.
    fn lacks(&self, container: &ContainerRef) -> Result<Container, String> {
        let core = self.core.as_ref().ok_or("no core")?;
        let (pod, _) = core.pod(container.pod).ok_or("the Pod is not known")?;
        let spec = pod.container(&container.name);
        let spec = spec.ok_or("the container is not known")?;
        if !self.machine.images.contains(&spec.image) {
            return Err(format!("image {} is not in the store", spec.image));
        }
        let missing = spec.env_from.iter().find(|from| {
            core.object(&server::config_key(from.secret, &from.name))
                .is_none()
        });
        match missing {
            Some(from) => Err(format!("{:?} not found", from.name)),
            None => Ok(spec.clone()),
        }
    }

    fn start(&mut self, turn: &mut Turn<'_>, container: ContainerRef) -> Option<Event> {
        let spec = match self.lacks(&container) {
            Ok(spec) => spec,
            Err(message) => {
                let error = StartError::Config(message);
                return Some(Event::StartFailed { container, error });
            }
        };
        self.watch.started(&container);
        let shim = self.machine.shim(container.pod);
        let instance = Instance {
            attempt: container.attempt,
            digest: Core::spec_digest(&spec),
            image: spec.image,
            args: spec.args,
            probed: Default::default(),
            life: Life::Starting,
        };
        shim.containers.insert(container.name.clone(), instance);
        let shim = shim.id;
        let slow = if turn.unlucky(10) { 20_000 } else { 300 };
        turn.later(
            5,
            slow,
            Work::StartDone {
                container: container.clone(),
                shim,
            },
        );
        Some(Event::Launched(container))
    }

    fn stop(&mut self, turn: &mut Turn<'_>, container: ContainerRef, urgency: Urgency) {
        let shim = self.machine.shims.get(&container.pod).map(|it| it.id);
        let instance = self.machine.instance(container.pod, &container.name);
        let runs =
            |it: &&mut Instance| it.attempt == container.attempt && matches!(it.life, Life::Running(_));
        let (Some(shim), Some(instance)) = (shim, instance.filter(runs)) else {
            return;
        };
        let stubborn = instance.args.iter().any(|it| it == "stubborn");
        let (high, code) = match urgency {
            Urgency::Ask if stubborn => return,
            Urgency::Ask => (2000, 143),
            Urgency::Kill => (50, 137),
        };
        turn.later(
            1,
            high,
            Work::Ends {
                container,
                shim,
                code,
            },
        );
    }

    /// Something that was begun is over, or its time has come.
    pub(crate) fn work(&mut self, turn: &mut Turn<'_>, work: Work) {
        match work {
            Work::Sync => self.sync(turn),
            Work::Pulled {
                life,
                container,
                image,
            } => self.pulled(turn, life, container, &image),
            Work::SandboxMade { uid, shim } => self.sandbox_made(turn, uid, shim),
            Work::StartDone { container, shim } => self.start_done(turn, container, shim),
            Work::Ends {
                container,
                shim,
                code,
            } => self.ends(turn, container, shim, code),
            Work::RemoveDone { uid, shim } => self.remove_done(turn, uid, shim),
            Work::Probed {
                life,
                container,
                kind,
            } => self.probe_done(turn, life, container, kind),
            Work::Hooked {
                life,
                container,
                kind,
                late,
            } => self.hook_done(turn, life, container, kind, late),
            Work::Tick => {
                let due = self.core.as_ref().and_then(Core::next_deadline);
                if due.is_some_and(|at| at + self.began <= turn.now) {
                    self.tick_at = None;
                    self.event(turn, Event::Tick);
                }
            }
            Work::Report => self.report(turn),
            Work::AgentStart { life } => self.agent_start(turn, life),
            Work::LinkUp { life } => {
                if life == self.life && self.core.is_some() && !self.connected {
                    self.connected = true;
                    self.event(turn, Event::LinkUp(NodeInfo::default()));
                }
            }
        }
    }

    /// The agent's process ends at once; with the power it takes all that runs along.
    pub(crate) fn agent_dies(&mut self, turn: &mut Turn<'_>, reboot: bool) {
        turn.say(|| if reboot { "# reboot" } else { "# agent killed" }.to_owned());
        self.core = None;
        self.connected = false;
        self.life += 1;
        self.tick_at = None;
        self.sync_due = false;
        self.disk.crash(turn.rng);
        if self.defect == Defect::LosesSynced {
            self.disk.lose_the_last();
        }
        if reboot {
            self.machine.shims.clear();
            self.clock = *turn.rng.pick(&[0, 0, 5, -3600, -EPOCH]);
        }
        let life = self.life;
        turn.later(10, 5000, Work::AgentStart { life });
    }

    fn agent_start(&mut self, turn: &mut Turn<'_>, life: u64) {
        if life != self.life || self.core.is_some() {
            return;
        }
        if self.machine.busy() {
            turn.jobs.push((50, Work::AgentStart { life }));
            return;
        }
        let recovered: Recovered = self.disk.stable.clone();
        self.watch.recovers(&recovered, turn.signed);
        self.watch.begins(&recovered, &self.machine);
        self.began = turn.now;
        self.assembler = Assembler::default();
        self.core = Some(Core::new(self.config.clone(), recovered));
        let mut observed = self.machine.observe();
        match self.defect {
            Defect::FindsNothing => observed.clear(),
            Defect::ForgetsSpecs => {
                let containers = observed.iter_mut().flat_map(|it| &mut it.containers);
                containers.for_each(|it| it.spec_digest = Some(0));
            }
            _ => {}
        }
        self.event(turn, Event::Observed(observed));
        turn.later(50, 1000, Work::LinkUp { life });
    }

    /// The link breaks; it is made again by itself.
    pub(crate) fn link_breaks(&mut self, turn: &mut Turn<'_>) {
        if !self.connected {
            return;
        }
        self.connected = false;
        self.event(turn, Event::LinkDown);
        let life = self.life;
        turn.later(100, 20_000, Work::LinkUp { life });
    }

    /// A message of the server.
    pub(crate) fn down(&mut self, turn: &mut Turn<'_>, message: Down) {
        self.event(turn, Event::Down(message));
    }
}

fn brief(event: &Event) -> String {
    let text = match event {
        Event::Down(Down::Desired(it)) => format!("Desired {} ({} objects)", it.generation, it.objects.len()),
        Event::Down(Down::Objects { generation, objects }) => {
            format!("Objects {generation} ({})", objects.len())
        }
        Event::LinkUp(_) => "LinkUp".to_owned(),
        other => format!("{other:?}"),
    };
    text.chars().take(220).collect()
}
