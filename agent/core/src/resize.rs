//! A change of cpu and memory of a container that runs, without a restart where its `resizePolicy` allows.
//!
//! ```text
//!   new resources ──fits──▶ granted ──▶ Resize ──▶ in force
//!        │                     └── RestartContainer ──▶ replaced
//!        ├── not beside the others now ──▶ Deferred, tried again whenever something has gone
//!        └── not on this node at all   ──▶ Infeasible
//! ```
//!
//! Source: Kubernetes documentation, "Resize CPU and Memory Resources assigned to Containers".
//!
//! Always holds: a Pod counts with the resources that it was granted; what runs keeps them until others are granted.

use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Container, Resources};
use skiff_protocol::wire::status::InForce;

use crate::admission;
use crate::effect::{ContainerRef, Effect};
use crate::machine::{Core, Now, cut};
use crate::out::Out;
use crate::requests::Requests;
use crate::state::{ContainerState, Mono, PodState};

/// Milliseconds until limits that the kernel refused are tried again.
const AGAIN: u64 = 60_000;

/// The resources that a container is to run with.
pub(crate) fn wanted(spec: &Container) -> InForce {
    let it = &spec.resources;
    InForce {
        cpu_limit: it.cpu_limit,
        memory_limit: it.memory_limit,
        cpu_request: it.cpu_request,
        memory_request: it.memory_request,
    }
}

/// Puts the cpu and memory of `from` into `into`.
fn copy(from: &Resources, into: &mut Resources) {
    into.cpu_limit = from.cpu_limit;
    into.memory_limit = from.memory_limit;
    into.cpu_request = from.cpu_request;
    into.memory_request = from.memory_request;
}

/// `new` with the resources of `old`, if that makes a Pod.
fn with_resources_of(new: &Pod, old: &Pod) -> Option<Pod> {
    let mut spec = new.clone().into_wire();
    copy(&old.resources, &mut spec.resources);
    for into in spec.init_containers.iter_mut().chain(&mut spec.containers) {
        if let Some(from) = old.container(&into.name) {
            copy(&from.resources, &mut into.resources);
        }
    }
    Pod::from_wire(spec).ok()
}

impl ContainerState {
    /// Whether it must be started anew to run with the resources of `spec`.
    pub(crate) fn resize_restarts(&self, spec: &Container) -> bool {
        let Some(now) = self.in_force else { return false };
        let wanted = wanted(spec);
        let cpu = (now.cpu_limit, now.cpu_request) != (wanted.cpu_limit, wanted.cpu_request);
        let memory = (now.memory_limit, now.memory_request) != (wanted.memory_limit, wanted.memory_request);
        (cpu && spec.resize.cpu_restarts) || (memory && spec.resize.memory_restarts)
    }

    /// Gives a container that runs what its spec says.
    pub(crate) fn resize_step(&mut self, now: Mono, uid: Uid, spec: &Container, out: &mut Out) {
        let wanted = wanted(spec);
        if !self.running() || self.resizing.is_some() {
            return;
        }
        if self.in_force == Some(wanted) {
            self.resize_again = 0;
            return;
        }
        // What an earlier agent gave it is not known; nothing is what nearly all of them have.
        if self.in_force.is_none() && wanted == InForce::default() {
            self.in_force = Some(wanted);
            return;
        }
        if self.stop.is_none() && !self.replace && self.resize_again <= now {
            self.resize_again = 0;
            self.resizing = Some(wanted);
            out.effects.push(Effect::Resize(self.reference(uid)));
        }
    }
}

impl Core {
    /// What of `new` is granted to a Pod that runs as `old`: the spec to go by, and where its resources are not those
    /// asked for, the reason and message.
    pub(crate) fn grant(&self, old: &Pod, new: Pod) -> (Pod, Option<(String, String)>) {
        let (had, asks) = (Requests::of(old), Requests::of(&new));
        if had.cpu >= asks.cpu && had.memory >= asks.memory {
            return (new, None);
        }
        let grown = |had: u64, asks: u64| if asks > had { asks } else { 0 };
        let asks = Requests {
            cpu: grown(had.cpu, asks.cpu),
            memory: grown(had.memory, asks.memory),
            ..Requests::default()
        };
        let there = Requests::allocatable(&self.config);
        let others = self
            .pods
            .values()
            .filter(|it| it.uid != new.uid && admission::holds_resources(it));
        let used = admission::used(others);
        let refused = if let Some((what, asked, _, there)) = asks.first_short(&Requests::default(), &there) {
            let message =
                format!("Node didn't have enough capacity: {what}, requested: {asked}, capacity: {there}");
            ("Infeasible".to_owned(), message)
        } else if let Some((what, asked, used, there)) = asks.first_short(&used, &there) {
            let message = format!(
                "Node didn't have enough resource: {what}, requested: {asked}, used: {used}, capacity: {there}"
            );
            ("Deferred".to_owned(), message)
        } else {
            return (new, None);
        };
        match with_resources_of(&new, old) {
            Some(pod) => (pod, Some(refused)),
            None => (old.clone(), Some(refused)),
        }
    }

    /// Something has gone: what was deferred for want of room may fit now.
    pub(crate) fn retry_deferred(&mut self, now: Now) {
        let deferred = |it: &&PodState| it.asked.is_some() && it.lives();
        let deferred: Vec<Uid> = self.pods.values().filter(deferred).map(|it| it.uid).collect();
        for uid in deferred {
            let asked = self.pods.get_mut(&uid).and_then(|it| it.asked.take());
            if let Some(pod) = asked {
                self.update(now, uid, pod);
                self.reconcile(now, uid);
            }
        }
    }

    pub(crate) fn resized(&mut self, now: Now, reference: &ContainerRef, result: Result<(), String>) {
        let Some(container) = self.current(reference).filter(|it| it.running()) else {
            return;
        };
        let Some(given) = container.resizing.take() else {
            return;
        };
        match result {
            Ok(()) => container.in_force = Some(given),
            Err(_) => container.resize_again = now.mono + AGAIN,
        }
        if let Some(state) = self.pods.get_mut(&reference.pod) {
            match result {
                Err(mut message) => {
                    cut(&mut message);
                    state.resize = Some(("Error".to_owned(), message));
                }
                // What the kernel refused another container is still so.
                Ok(()) if state.asked.is_some() || state.containers.iter().any(|it| it.resize_again > 0) => {}
                Ok(()) => state.resize = None,
            }
        }
        self.touch(now, reference.pod);
        self.reconcile(now, reference.pod);
    }
}
