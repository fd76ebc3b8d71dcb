//! What outlives the agent: shims, sandboxes, containers and images of one node.
//!
//! Always holds: only the boot ends what is here; the agent only asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use skiff_core::{Exit, ObservedContainer, ObservedPhase, ObservedPod, Probed};
use skiff_protocol::uid::Uid;

/// A container's name in its Pod.
pub(crate) type Name = String;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Life {
    Starting,
    Running(i64),
    Exited(Exit),
}

#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub(crate) attempt: u32,
    pub(crate) digest: u64,
    pub(crate) image: String,
    pub(crate) args: Vec<String>,
    /// What the agent noted of it.
    pub(crate) probed: Probed,
    pub(crate) life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sandbox {
    None,
    Making,
    Ready,
}

#[derive(Clone, Debug)]
pub(crate) struct Shim {
    /// Tells this shim from a later one of the same Pod.
    pub(crate) id: u64,
    pub(crate) sandbox: Sandbox,
    pub(crate) ip: Option<Ipv4Addr>,
    pub(crate) containers: BTreeMap<Name, Instance>,
    pub(crate) removing: bool,
}

#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) shims: BTreeMap<Uid, Shim>,
    pub(crate) images: BTreeSet<String>,
    next_shim: u64,
}

impl Machine {
    pub(crate) fn shim(&mut self, uid: Uid) -> &mut Shim {
        let next = &mut self.next_shim;
        self.shims.entry(uid).or_insert_with(|| {
            *next += 1;
            Shim {
                id: *next,
                sandbox: Sandbox::None,
                ip: None,
                containers: BTreeMap::new(),
                removing: false,
            }
        })
    }

    pub(crate) fn instance(&mut self, uid: Uid, name: &str) -> Option<&mut Instance> {
        self.shims.get_mut(&uid)?.containers.get_mut(name)
    }

    /// Whether an operation is under way that a new agent must see the end of before it looks.
    pub(crate) fn busy(&self) -> bool {
        self.shims.values().any(|shim| {
            let starting = |it: &Instance| it.life == Life::Starting;
            shim.removing || shim.sandbox == Sandbox::Making || shim.containers.values().any(starting)
        })
    }

    /// What a new agent finds.
    pub(crate) fn observe(&self) -> Vec<ObservedPod> {
        let pods = self.shims.iter().map(|(uid, shim)| ObservedPod {
            uid: *uid,
            sandbox: shim.sandbox == Sandbox::Ready,
            ip: shim.ip,
            containers: shim
                .containers
                .iter()
                .map(|(name, it)| {
                    let phase = match &it.life {
                        Life::Starting => ObservedPhase::Starting,
                        Life::Running(since) => ObservedPhase::Running(*since),
                        Life::Exited(exit) => ObservedPhase::Exited(exit.clone()),
                    };
                    ObservedContainer {
                        name: name.clone(),
                        attempt: it.attempt,
                        container_id: container_id(name, it.attempt),
                        image_id: image_id(&it.image),
                        spec_digest: Some(it.digest),
                        phase,
                        probed: it.probed,
                    }
                })
                .collect(),
        });
        pods.collect()
    }
}

pub(crate) fn container_id(name: &str, attempt: u32) -> String {
    format!("skiff://{name}-{attempt}")
}

pub(crate) fn image_id(image: &str) -> String {
    format!("id of {image}")
}
