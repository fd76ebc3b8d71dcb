//! What a Pod asks for, as Kubernetes adds it up.
//!
//! ```text
//!   running:  all regular containers + all sidecars
//!   starting: an init container + the sidecars before it, for each init container
//!   asked:    the most of these, per resource; `spec.resources` of the Pod, where given, instead
//! ```
//!
//! Source: Kubernetes documentation, "Sidecar Containers", Resource sharing within containers; "Resource Management", Pod-level
//! resource specification.
//!
//! Always holds: a sum too large to count is more than any node has.

use std::collections::BTreeMap;

use skiff_protocol::quantity::hugepages;
use skiff_protocol::wire::spec::{Container, PodSpec, Resources};

use crate::machine::Config;

/// An amount of each resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// Thousandths of a CPU.
    pub(crate) cpu: u64,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes of `ephemeral-storage`.
    pub(crate) storage: u64,
    /// Extended resources and `hugepages-…`, by name; empty for nearly every Pod.
    pub(crate) others: BTreeMap<String, u64>,
}

impl Requests {
    /// What there is for Pods.
    pub(crate) fn allocatable(config: &Config) -> Self {
        Self {
            cpu: config.allocatable_cpu_milli,
            memory: config.allocatable_memory,
            storage: config.allocatable_storage,
            others: config.extended.clone(),
        }
    }

    fn one(from: &Resources) -> Self {
        let pages = from.hugepages.iter();
        let pages = pages.map(|(size, bytes)| (hugepages(*size), *bytes));
        Self {
            cpu: from.cpu_request.unwrap_or(0),
            memory: from.memory_request.unwrap_or(0),
            storage: from.storage_request.unwrap_or(0),
            others: pages.chain(from.extended.iter().cloned()).collect(),
        }
    }

    /// What the Pod asks for.
    pub(crate) fn of(pod: &PodSpec) -> Self {
        let mut sum = Self::default();
        for it in &pod.containers {
            sum.add(&Self::one(&it.resources));
        }
        let (mut sidecars, mut peak) = (Self::default(), Self::default());
        for it in &pod.init_containers {
            let mut now = Self::one(&it.resources);
            now.add(&sidecars);
            if it.sidecar {
                sidecars.clone_from(&now);
            }
            peak.most(&now);
        }
        sum.add(&sidecars);
        sum.most(&peak);
        let whole = &pod.resources;
        sum.cpu = whole.cpu_request.unwrap_or(sum.cpu);
        sum.memory = whole.memory_request.unwrap_or(sum.memory);
        sum.others.extend(Self::one(whole).others);
        sum
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.join(other, u64::saturating_add);
    }

    fn most(&mut self, other: &Self) {
        self.join(other, u64::max);
    }

    fn join(&mut self, other: &Self, of: fn(u64, u64) -> u64) {
        self.cpu = of(self.cpu, other.cpu);
        self.memory = of(self.memory, other.memory);
        self.storage = of(self.storage, other.storage);
        for (name, amount) in &other.others {
            let mine = self.others.entry(name.clone()).or_default();
            *mine = of(*mine, *amount);
        }
    }

    /// The first resource of which there is too little beside `used`: its name, what is asked, what is used, what there is.
    pub(crate) fn first_short(&self, used: &Self, there: &Self) -> Option<(String, u64, u64, u64)> {
        let own = [
            ("cpu", self.cpu, used.cpu, there.cpu),
            ("memory", self.memory, used.memory, there.memory),
            ("ephemeral-storage", self.storage, used.storage, there.storage),
        ];
        let others = self.others.iter().map(|(name, wanted)| {
            let of = |from: &Self| from.others.get(name).copied().unwrap_or(0);
            (name.as_str(), *wanted, of(used), of(there))
        });
        own.into_iter()
            .chain(others)
            .find(|(_, wanted, used, there)| *wanted > 0 && used.saturating_add(*wanted) > *there)
            .map(|(name, wanted, used, there)| (name.to_owned(), wanted, used, there))
    }
}

/// A Pod's quality of service class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Qos {
    BestEffort,
    Burstable,
    Guaranteed,
}

impl Qos {
    /// Source: Kubernetes documentation, "Pod Quality of Service Classes".
    pub(crate) fn of(pod: &PodSpec) -> Self {
        let named = |it: &Resources| {
            it.cpu_limit
                .or(it.memory_limit)
                .or(it.cpu_request)
                .or(it.memory_request)
                .is_some()
        };
        let full = |it: &Resources| {
            let cpu = it.cpu_limit.is_some() && it.cpu_limit == it.cpu_request;
            cpu && it.memory_limit.is_some() && it.memory_limit == it.memory_request
        };
        let all: Vec<&Resources> = if named(&pod.resources) {
            vec![&pod.resources]
        } else {
            pod.all_containers().map(|it: &Container| &it.resources).collect()
        };
        if !all.iter().any(|it| named(it)) {
            Self::BestEffort
        } else if all.iter().all(|it| full(it)) {
            Self::Guaranteed
        } else {
            Self::Burstable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(cpu: u64, sidecar: bool) -> Container {
        let resources = Resources {
            cpu_request: Some(cpu),
            ..Resources::default()
        };
        Container {
            sidecar,
            resources,
            ..Container::default()
        }
    }

    #[test]
    fn what_a_pod_asks_for_is_the_most_it_has_at_once() {
        for (inits, regular, whole, expected) in [
            (vec![], vec![100, 200], None, 300),
            (vec![(500, false)], vec![100], None, 500),
            (vec![(50, true)], vec![100], None, 150),
            (vec![(50, true), (200, false)], vec![100], None, 250),
            (vec![(200, false), (50, true)], vec![100], None, 200),
            (vec![(50, true), (60, true), (10, false)], vec![1], None, 120),
            (vec![(50, true)], vec![100], Some(400), 400),
        ] {
            let pod = PodSpec {
                init_containers: inits
                    .iter()
                    .map(|(cpu, sidecar)| container(*cpu, *sidecar))
                    .collect(),
                containers: regular.iter().map(|cpu| container(*cpu, false)).collect(),
                resources: Resources {
                    cpu_request: whole,
                    ..Resources::default()
                },
                ..PodSpec::default()
            };
            assert_eq!(
                Requests::of(&pod).cpu,
                expected,
                "{inits:?} {regular:?} {whole:?}"
            );
        }
    }
}
