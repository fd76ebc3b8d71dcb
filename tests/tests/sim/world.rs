//! A fleet in virtual time: one server, its nodes, the links between them, and everything that goes wrong.
//!
//! A run has two halves. In the first, Pods come, change and go while frames are lost, syncs fail, processes die and
//! machines reboot. In the second nothing fails any more, and everybody must come to agree, and then do nothing.
//!
//! Always holds: the seed decides everything; a violation is found in the step in which it happens.

use std::collections::{BTreeMap, VecDeque};

use skiff_core::Core;
use skiff_protocol::topic::NodeName;
use skiff_protocol::wire::spec::RestartPolicy;
use skiff_protocol::wire::status::{ContainerState, Phase, PodStatus};
use skiff_protocol::wire::{
    Assembler, Down, OLDEST, Up, decode_down, decode_up, encode_down, encode_up, frames,
};
use skiff_tests::rng::Rng;

use crate::link;
use crate::machine::{Life, image_id};
use crate::node::{ABSENT, Defect, Node, Turn, Work};
use crate::pods;
use crate::server::Server;

/// How long things go wrong, in milliseconds.
const TROUBLE: u64 = 15 * 60_000;
/// How long agreement may take after that: the longest back-offs, of images, crashes and the server, one after another.
const PATIENCE: u64 = 40 * 60_000;
/// How long nothing may happen after that.
const QUIET: u64 = 5 * 60_000;

enum Job {
    Work(usize, Work),
    /// Bytes for the server.
    Up(usize, Vec<u8>),
    /// Bytes for a node.
    Down(usize, Vec<u8>),
    /// The server looks at its deadlines.
    Look,
    /// Somebody changes what shall run.
    Operation,
    /// Something goes wrong.
    Mishap,
}

/// How much a run did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) steps: u64,
    pub(crate) virtual_ms: u64,
    pub(crate) agents: u64,
    pub(crate) pods: u64,
}

pub(crate) struct World {
    rng: Rng,
    now: u64,
    queue: BTreeMap<(u64, u64), Job>,
    next: u64,
    server: Server,
    nodes: Vec<Node>,
    assemblers: Vec<Assembler>,
    defect: Defect,
    faults: bool,
    message: u32,
    trace: VecDeque<String>,
    tally: Tally,
}

impl World {
    pub(crate) fn new(seed: u64, defect: Defect) -> Self {
        let mut rng = Rng::new(seed);
        let count = rng.between(1, 4);
        let names: Vec<NodeName> = (0..count)
            .map(|at| NodeName::parse(&format!("rover-{at}")).expect("a node's name"))
            .collect();
        let nodes = names.iter().map(|name| Node::new(name.clone(), defect)).collect();
        let mut world = Self {
            rng,
            now: 0,
            queue: BTreeMap::new(),
            next: 0,
            assemblers: names.iter().map(|_| Assembler::default()).collect(),
            server: Server::new(names),
            nodes,
            defect,
            faults: true,
            message: 0,
            trace: VecDeque::new(),
            tally: Tally::default(),
        };
        for node in 0..world.nodes.len() {
            world.after(0, Job::Work(node, Work::AgentStart { life: 0 }));
        }
        world.after(1000, Job::Look);
        world.after(500, Job::Operation);
        world.after(20_000, Job::Mishap);
        world
    }

    fn after(&mut self, delay: u64, job: Job) {
        self.next += 1;
        self.queue.insert((self.now + delay, self.next), job);
    }

    /// The whole run.
    pub(crate) fn run(mut self) -> Result<Tally, String> {
        self.until(TROUBLE)?;
        self.faults = false;
        pods::supply(&mut self.server);
        // MQTT loses messages only together with a connection; the last of those that broke is made again.
        for node in 0..self.nodes.len() {
            self.on_node(node, Node::link_breaks);
        }
        for node in 0..self.nodes.len() {
            self.announce(node);
        }
        // What was delayed while things went wrong arrives.
        self.until(self.now + link::LATEST)?;
        let end = self.now + PATIENCE;
        while let Err(why) = self.agreed() {
            if self.now >= end {
                return Err(self.story(&format!("no agreement after {PATIENCE} ms: {why}")));
            }
            self.until(self.now + 5_000)?;
        }
        for node in &mut self.nodes {
            node.watch.idle = true;
        }
        self.until(self.now + QUIET)?;
        // A pull that is tried again just now is over in a moment.
        for _ in 0..10 {
            if self.agreed().is_err() {
                self.until(self.now + 2_000)?;
            }
        }
        self.agreed()
            .map_err(|why| self.story(&format!("parted again: {why}")))?;
        self.tally.virtual_ms = self.now;
        self.tally.agents = self.nodes.iter().map(|it| it.life + 1).sum();
        Ok(self.tally)
    }

    fn story(&self, why: &str) -> String {
        let lines: Vec<&str> = self.trace.iter().map(String::as_str).collect();
        format!("{why}\n{}", lines.join("\n"))
    }

    fn until(&mut self, end: u64) -> Result<(), String> {
        while let Some(entry) = self.queue.first_entry().filter(|it| it.key().0 <= end) {
            let ((at, _), job) = entry.remove_entry();
            self.now = at;
            self.tally.steps += 1;
            self.step(job);
            let mut violations = std::mem::take(&mut self.server.violations);
            for (at, node) in self.nodes.iter_mut().enumerate() {
                let seen = std::mem::take(&mut node.watch.violations);
                violations.extend(seen.into_iter().map(|why| format!("node {at}: {why}")));
            }
            if let Some(why) = violations.first() {
                return Err(self.story(&format!("at {} ms: {why}", self.now)));
            }
        }
        self.now = end;
        Ok(())
    }

    fn step(&mut self, job: Job) {
        match job {
            Job::Work(node, work) => self.on_node(node, |it, turn| it.work(turn, work)),
            Job::Up(node, bytes) => self.arrives(node, &bytes),
            Job::Down(node, bytes) => self.on_node(node, |it, turn| {
                if !it.connected {
                    return;
                }
                let whole = it.assembler.push(&bytes).ok().flatten();
                if let Some(message) = whole.and_then(|bytes| decode_down(&bytes).ok()) {
                    it.down(turn, message);
                }
            }),
            Job::Look => {
                for node in 0..self.nodes.len() {
                    if let Some(message) = self.server.look(node, self.now) {
                        self.send_down(node, &message);
                    }
                }
                self.after(1000, Job::Look);
            }
            Job::Operation => {
                if self.faults {
                    let node = pods::operate(&mut self.server, &mut self.rng, &mut self.tally.pods);
                    self.server.forget(node);
                    (0..self.nodes.len()).for_each(|node| self.announce(node));
                    let delay = self.rng.between(100, 15_000);
                    self.after(delay, Job::Operation);
                }
            }
            Job::Mishap => {
                if self.faults {
                    self.mishap();
                    let delay = self.rng.between(100, 30_000);
                    self.after(delay, Job::Mishap);
                }
            }
        }
    }

    /// Lends a node what it needs for a turn, and takes what came of it.
    fn on_node(&mut self, node: usize, act: impl FnOnce(&mut Node, &mut Turn<'_>)) {
        let signed = &self.server.signed;
        let signed = |generation| signed.get(&(node, generation)).copied();
        let mut turn = Turn {
            now: self.now,
            rng: &mut self.rng,
            faults: self.faults,
            jobs: Vec::new(),
            sends: Vec::new(),
            signed: &signed,
            trace: &mut self.trace,
            label: node,
        };
        act(&mut self.nodes[node], &mut turn);
        let (jobs, sends) = (turn.jobs, turn.sends);
        for (delay, work) in jobs {
            self.after(delay, Job::Work(node, work));
        }
        for up in sends {
            self.send_up(node, &up);
        }
    }

    fn send_up(&mut self, node: usize, up: &Up) {
        self.message = self.message.wrapping_add(1);
        let payloads = frames(OLDEST, &encode_up(up), self.message).expect("a message within its bound");
        for (delay, bytes) in link::carry(payloads, self.faults, &mut self.rng) {
            self.after(delay, Job::Up(node, bytes));
        }
    }

    fn send_down(&mut self, node: usize, message: &Down) {
        self.message = self.message.wrapping_add(1);
        let mut payloads =
            frames(OLDEST, &encode_down(message), self.message).expect("a message within its bound");
        let forging = self.defect == Defect::BelievesAnybody || (self.faults && self.rng.percent(5));
        if forging && let Some(forged) = link::forge(message, &self.server.names[node], &mut self.rng) {
            payloads = forged;
        }
        for (delay, bytes) in link::carry(payloads, self.faults, &mut self.rng) {
            self.after(delay, Job::Down(node, bytes));
        }
    }

    fn announce(&mut self, node: usize) {
        if let Some(message) = self.server.announce(node, self.now, &mut self.rng) {
            self.send_down(node, &message);
        }
    }

    fn arrives(&mut self, node: usize, bytes: &[u8]) {
        let whole = self.assemblers[node].push(bytes).ok().flatten();
        let Some(up) = whole.and_then(|bytes| decode_up(&bytes).ok()) else {
            return;
        };
        for message in self.server.up(node, up, self.now, &mut self.rng) {
            self.send_down(node, &message);
        }
    }

    fn mishap(&mut self) {
        let node = usize::try_from(self.rng.below(self.nodes.len() as u64)).expect("an index");
        let epoch = self.nodes[node].core.as_ref().map(Core::epoch);
        let kind = self.rng.below(100);
        match kind {
            0..25 => self.on_node(node, Node::link_breaks),
            25..50 => self.on_node(node, |it, turn| it.agent_dies(turn, false)),
            50..60 => self.on_node(node, |it, turn| it.agent_dies(turn, true)),
            60..85 => self.on_node(node, Node::container_ends),
            85..93 => {
                let shims: Vec<_> = self.nodes[node].machine.shims.keys().copied().collect();
                if !shims.is_empty() {
                    let uid = *self.rng.pick(&shims);
                    self.on_node(node, |it, turn| it.shim_dies(turn, uid));
                }
            }
            _ => {
                for (node, message) in self.server.restart(self.now) {
                    self.send_down(node, &message);
                }
                self.assemblers
                    .iter_mut()
                    .for_each(|it| *it = Assembler::default());
            }
        }
        // The broker publishes the last will.
        if let (0..60, Some(epoch)) = (kind, epoch) {
            self.send_up(node, &Up::Bye { epoch });
        }
    }

    /// Whether every node runs what it shall, and the server knows it.
    fn agreed(&self) -> Result<(), String> {
        for (at, node) in self.nodes.iter().enumerate() {
            self.node_agreed(at, node)
                .map_err(|why| format!("node {at}: {why}"))?;
        }
        Ok(())
    }

    fn node_agreed(&self, at: usize, node: &Node) -> Result<(), String> {
        let core = node.core.as_ref().ok_or("no agent")?;
        if !self.server.in_step(at) {
            return Err(format!(
                "not in step: the node holds generation {}",
                core.generation()
            ));
        }
        if self.server.index(at) != node.disk.stable.index() || !node.disk.settled() {
            return Err("the journal holds another desired state".to_owned());
        }
        let statuses: BTreeMap<_, PodStatus> =
            core.statuses().map(|(_, status)| (status.uid, status)).collect();
        if statuses != self.server.peers[at].statuses {
            return Err(format!(
                "the server sees {:#?}, the node {statuses:#?}",
                self.server.peers[at].statuses
            ));
        }
        let wanted = &self.server.pods[at];
        if !statuses.keys().eq(wanted.keys()) {
            return Err(format!(
                "{:?} are there, {:?} shall be",
                statuses.keys(),
                wanted.keys()
            ));
        }
        if let Some(stray) = node.machine.shims.keys().find(|uid| !wanted.contains_key(uid)) {
            return Err(format!("{stray} was left behind"));
        }
        for (uid, pod) in wanted {
            if pod.deletion_grace_seconds.is_some() {
                return Err(format!("{uid} is still being deleted"));
            }
            let status = &statuses[uid];
            if status.phase == Phase::Failed && status.reason.starts_with("OutOf") {
                continue;
            }
            if initializes(pod, status).map_err(|why| format!("{uid}: {why}"))? {
                continue;
            }
            for (spec, shown) in pod.containers.iter().zip(&status.containers) {
                settled(node, pod, spec, shown).map_err(|why| format!("{uid}/{}: {why}", spec.name))?;
            }
        }
        Ok(())
    }
}

/// Whether the Pod stands before its regular containers for good: an image that nobody has, or an init container that
/// failed.
fn initializes(pod: &skiff_protocol::wire::spec::PodSpec, status: &PodStatus) -> Result<bool, String> {
    for (spec, shown) in pod.init_containers.iter().zip(&status.init_containers) {
        match &shown.state {
            ContainerState::Terminated(end) if end.exit_code == 0 || spec.sidecar => {}
            ContainerState::Terminated(_) if pod.restart_policy == RestartPolicy::Never => {
                return match status.phase {
                    Phase::Failed => Ok(true),
                    phase => Err(format!("an init container failed, and the Pod is {phase:?}")),
                };
            }
            ContainerState::Waiting { reason, .. }
                if spec.image.starts_with(ABSENT) && reason.contains("ImagePull") =>
            {
                return Ok(true);
            }
            ContainerState::Running { .. } if spec.sidecar && shown.started => {}
            // Over: nothing of it is started any more.
            ContainerState::Waiting { .. } if matches!(status.phase, Phase::Failed | Phase::Succeeded) => {}
            state => return Err(format!("init container {} is {state:?}", spec.name)),
        }
    }
    Ok(false)
}

/// Whether a container is where its spec and policy want it.
fn settled(
    node: &Node,
    pod: &skiff_protocol::wire::spec::PodSpec,
    spec: &skiff_protocol::wire::spec::Container,
    shown: &skiff_protocol::wire::status::ContainerStatus,
) -> Result<(), String> {
    let wrong = || Err(format!("{:?} under {:?}", shown.state, pod.restart_policy));
    match &shown.state {
        ContainerState::Running { .. } => {
            let instance = node
                .machine
                .shims
                .get(&pod.uid)
                .and_then(|it| it.containers.get(&spec.name));
            let Some(instance) = instance.filter(|it| matches!(it.life, Life::Running(_))) else {
                return Err("shown as running, and does not".to_owned());
            };
            if instance.digest != Core::spec_digest(spec) || shown.image_id != image_id(&spec.image) {
                return Err(format!("runs from {}, not {}", shown.image_id, spec.image));
            }
            if instance.attempt != shown.restart_count {
                return Err(format!(
                    "attempt {} runs, {} is shown",
                    instance.attempt, shown.restart_count
                ));
            }
            let passing = spec.args.first().is_some_and(|it| it == "job")
                || spec.args.first().is_some_and(|it| it == "flaky") && instance.attempt < 3;
            if passing {
                return Err("has not ended yet".to_owned());
            }
            if !shown.ready {
                return Err("is not ready, and every probe succeeds".to_owned());
            }
            Ok(())
        }
        ContainerState::Terminated(end) => match pod.restart_policy {
            RestartPolicy::Never => Ok(()),
            RestartPolicy::OnFailure if end.exit_code == 0 => Ok(()),
            RestartPolicy::OnFailure | RestartPolicy::Always => wrong(),
        },
        ContainerState::Waiting { reason, .. } => {
            let absent = spec.image.starts_with(ABSENT);
            match reason.as_str() {
                "ErrImagePull" | "ImagePullBackOff" if absent => Ok(()),
                _ => wrong(),
            }
        }
    }
}
