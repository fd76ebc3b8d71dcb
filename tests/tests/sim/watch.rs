//! What must never happen on a node, looked at from outside: the checkers of every simulated run.
//!
//! Always holds: nothing in here changes the run; a violation names the Pod and what was seen.

use std::collections::{BTreeMap, BTreeSet};

use skiff_core::{ContainerRef, Core, Recovered, Urgency};
use skiff_protocol::limits;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Object, ObjectKey, PodSpec};
use skiff_protocol::wire::status::{ContainerState, ContainerStatus};
use skiff_protocol::wire::{Up, encode_up};

use crate::disk::Disk;
use crate::machine::{Life, Machine, Name, Sandbox};

/// The checkers' memory of one node.
#[derive(Default)]
pub(crate) struct Watch {
    /// The highest generation that was confirmed to the server.
    confirmed: u64,
    /// Restart counts shown in this life of the agent.
    counts: BTreeMap<(Uid, Name), u32>,
    /// Attempts that were started in this boot, or are known to the journal.
    started: BTreeMap<(Uid, Name), u32>,
    /// Who was said to ail by a probe or a hook: such a container may be ended.
    ailing: BTreeSet<ContainerRef>,
    /// Who was asked to end.
    asked: BTreeSet<ContainerRef>,
    pub(crate) violations: Vec<String>,
    /// Nothing has any reason to happen any more.
    pub(crate) idle: bool,
}

/// The desired Pod as the medium holds it.
fn durable_pod(stable: &Recovered, uid: Uid) -> Option<PodSpec> {
    match postcard::from_bytes(stable.objects.get(&ObjectKey::Pod(uid))?) {
        Ok(Object::Pod(pod)) => Some(pod),
        _ => None,
    }
}

/// Whether nothing but sidecars of the Pod may be left: those are ended.
fn over(core: &Core, uid: Uid) -> bool {
    let status = core.statuses().find(|(_, it)| it.uid == uid);
    let Some((Some(pod), status)) = status else {
        return false;
    };
    let ended = |it: &ContainerStatus| matches!(it.state, ContainerState::Terminated(_));
    let inits = pod.init_containers.iter().zip(&status.init_containers);
    let failed = inits.into_iter().any(|(spec, it)| {
        !spec.sidecar && matches!(&it.state, ContainerState::Terminated(end) if end.exit_code != 0)
    });
    failed || status.containers.iter().all(ended)
}

impl Watch {
    fn violated(&mut self, why: String) {
        self.violations.push(why);
    }

    /// Something is done for a Pod: the medium must have been told before that it shall be, just as it is.
    pub(crate) fn acts(&mut self, what: &str, uid: Uid, core: &Core, disk: &Disk) {
        let held = core.pod(uid).map(|(pod, _)| Object::Pod(pod.clone()));
        if held.is_none_or(|object| !disk.ever_held(&object)) {
            self.violated(format!(
                "acted before durable: {what} of {uid}, which the journal does not hold as it is"
            ));
        }
        if self.idle && what != "image" {
            self.violated(format!("{what} of {uid} on a node where all was well"));
        }
    }

    pub(crate) fn appends(&mut self) {
        if self.idle {
            self.violated("wrote to the journal while all was well".to_owned());
        }
    }

    pub(crate) fn sandbox(&mut self, uid: Uid, ip: Option<std::net::Ipv4Addr>, machine: &Machine) {
        if machine
            .shims
            .get(&uid)
            .is_some_and(|it| it.sandbox != Sandbox::None)
        {
            self.violated(format!("a second sandbox for {uid}"));
        }
        let taken = |(other, shim): (&Uid, &crate::machine::Shim)| *other != uid && shim.ip == ip;
        if ip.is_some() && machine.shims.iter().any(taken) {
            self.violated(format!("{uid} gets the address {ip:?}, which is in use"));
        }
    }

    pub(crate) fn starts(&mut self, at: &ContainerRef, machine: &Machine) {
        let key = (at.pod, at.name.clone());
        let shim = machine.shims.get(&at.pod);
        if shim.is_none_or(|it| it.sandbox != Sandbox::Ready || it.removing) {
            self.violated(format!("{at:?} is started without a sandbox"));
        }
        if shim
            .and_then(|it| it.containers.get(&at.name))
            .is_some_and(|it| !matches!(it.life, Life::Exited(_)))
        {
            self.violated(format!("{at:?} is started while another instance of it is alive"));
        }
        if self.started.get(&key).is_some_and(|before| *before >= at.attempt) {
            self.violated(format!(
                "{at:?} is started, and attempt {} was already",
                self.started[&key]
            ));
        }
    }

    /// Init containers come before the others, each once the one before has ended well, in this sandbox.
    pub(crate) fn in_order(&mut self, at: &ContainerRef, core: &Core, machine: &Machine) {
        let Some((pod, _)) = core.pod(at.pod) else { return };
        let before = pod.init_containers.iter().take_while(|it| it.name != at.name);
        let instances = machine.shims.get(&at.pod).map(|it| &it.containers);
        let well = |name: &str| {
            let life = instances.and_then(|it| it.get(name)).map(|it| &it.life);
            matches!(life, Some(Life::Exited(exit)) if exit.exit_code == 0)
        };
        let missing = before.filter(|it| !it.sidecar).find(|it| !well(&it.name));
        if let Some(missing) = missing.map(|it| it.name.clone()) {
            self.violated(format!(
                "{at:?} is started before init container {missing} ended well"
            ));
        }
    }

    /// A probe is tried: of something that runs.
    pub(crate) fn probes(&mut self, at: &ContainerRef, machine: &Machine) {
        let shim = machine.shims.get(&at.pod);
        let instance = shim.and_then(|it| it.containers.get(&at.name));
        if instance.is_none_or(|it| it.attempt != at.attempt) {
            self.violated(format!("{at:?} is probed, and is not there"));
        }
    }

    /// A probe or hook of it failed.
    pub(crate) fn ails(&mut self, at: &ContainerRef) {
        self.ailing.insert(at.clone());
    }

    /// The start was not refused for want of configuration.
    pub(crate) fn started(&mut self, at: &ContainerRef) {
        self.started.insert((at.pod, at.name.clone()), at.attempt);
    }

    pub(crate) fn stops(
        &mut self,
        at: &ContainerRef,
        urgency: Urgency,
        machine: &Machine,
        (core, stable): (&Core, &Recovered),
    ) {
        let instance = machine
            .shims
            .get(&at.pod)
            .and_then(|shim| shim.containers.get(&at.name));
        let healthy = instance.is_some_and(|it| {
            let runs = matches!(it.life, Life::Running(_)) && it.attempt == at.attempt;
            // Of two states that became durable by one sync, the core may still be at the first.
            let current = |pod: &PodSpec| core.pod(at.pod).is_none_or(|(held, _)| held == pod);
            let pod = durable_pod(stable, at.pod).filter(current);
            let pod = pod.filter(|pod| pod.deletion_grace_seconds.is_none());
            let spec = pod.and_then(|pod| pod.container(&at.name).cloned());
            runs && spec.is_some_and(|spec| Core::spec_digest(&spec) == it.digest)
        });
        // Whoever was asked for a good reason may be half way through its end.
        let asked = self.asked.contains(at);
        let healthy = healthy && !self.ailing.contains(at) && !over(core, at.pod);
        if !healthy {
            self.asked.insert(at.clone());
        }
        if healthy && !asked {
            self.violated(format!("{urgency:?} to {at:?}, which runs as desired"));
        }
        if self.idle {
            self.violated(format!("{urgency:?} to {at:?} on a node where all was well"));
        }
    }

    pub(crate) fn sends(
        &mut self,
        up: &Up,
        stable: &Recovered,
        signed: impl Fn(u64) -> Option<skiff_protocol::Digest>,
    ) {
        match up {
            Up::Applied { generation, digest } => {
                // Two states may become durable by one sync; the first is confirmed when the medium holds the second.
                let same = *generation == stable.generation;
                if *generation > stable.generation || (same && stable.index().digest() != *digest) {
                    self.violated(format!(
                        "generation {generation} confirmed before durable: the journal holds {}",
                        stable.generation
                    ));
                }
                if signed(*generation) != Some(*digest) {
                    self.violated(format!(
                        "generation {generation} confirmed, which the server never signed"
                    ));
                }
                if *generation < self.confirmed {
                    self.violated(format!(
                        "generation {generation} confirmed after {}",
                        self.confirmed
                    ));
                }
                self.confirmed = self.confirmed.max(*generation);
            }
            Up::Status { pods, .. } if pods.len() > limits::STATUSES => {
                self.violated(format!("{} statuses in one message", pods.len()));
            }
            Up::Events { events, .. } if events.len() > limits::EVENTS => {
                self.violated(format!("{} events in one message", events.len()));
            }
            _ => {}
        }
        let bytes = encode_up(up).len();
        if bytes > limits::MESSAGE {
            self.violated(format!("a message of {bytes} bytes"));
        }
    }

    /// The journal was read after a crash.
    pub(crate) fn recovers(
        &mut self,
        recovered: &Recovered,
        signed: impl Fn(u64) -> Option<skiff_protocol::Digest>,
    ) {
        if recovered.generation < self.confirmed {
            self.violated(format!(
                "generation {} recovered, {} was confirmed",
                recovered.generation, self.confirmed
            ));
        }
        if signed(recovered.generation) != Some(recovered.index().digest()) {
            self.violated(format!(
                "recovered a state that never was: generation {} with {} objects",
                recovered.generation,
                recovered.objects.len()
            ));
        }
        let stray = |uid: &Uid| !recovered.objects.contains_key(&ObjectKey::Pod(*uid));
        if recovered.containers.keys().any(|(uid, _)| stray(uid))
            || recovered.accepted.keys().any(stray)
            || recovered.rejected.keys().any(stray)
        {
            self.violated("the journal keeps facts of Pods that are no more".to_owned());
        }
    }

    /// A new agent begins: restart counts go on from what shims and journal know.
    pub(crate) fn begins(&mut self, recovered: &Recovered, machine: &Machine) {
        self.counts = recovered
            .containers
            .iter()
            .map(|(key, record)| (key.clone(), record.restart_count))
            .collect();
        for (uid, shim) in &machine.shims {
            for (name, instance) in &shim.containers {
                let count = self.counts.entry((*uid, name.clone())).or_default();
                *count = (*count).max(instance.attempt);
            }
        }
        let known = |key: &(Uid, Name)| {
            recovered.containers.contains_key(key)
                || machine
                    .shims
                    .get(&key.0)
                    .is_some_and(|it| it.containers.contains_key(&key.1))
        };
        self.started = self
            .counts
            .iter()
            .filter(|(key, _)| known(key))
            .map(|(key, count)| (key.clone(), *count))
            .collect();
    }

    /// After every turn of the core.
    pub(crate) fn looks(&mut self, core: &Core, machine: &Machine) {
        let mut pods = 0;
        for (spec, status) in core.statuses() {
            pods += 1;
            for container in spec.map_or(&[][..], |_| &status.containers) {
                let key = (status.uid, container.name.clone());
                let before = self.counts.insert(key, container.restart_count).unwrap_or(0);
                if container.restart_count < before {
                    let why = format!(
                        "restart count of {}/{} went from {before} to {}",
                        status.uid, container.name, container.restart_count
                    );
                    self.violations.push(why);
                }
            }
        }
        let bound = limits::OBJECTS + machine.shims.len() + limits::PODS;
        if pods > bound {
            self.violated(format!("{pods} Pods kept"));
        }
    }
}
