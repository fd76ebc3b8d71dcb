//! A Pod's share of the node: its sandbox, its limits, its devices, and what happens when the node runs short.
//!
//! Always holds: no choices are made here; what is asked and answered is the core's, the plan's, the devices' and the
//! watch's.

use std::net::Ipv4Addr;
use std::time::Instant;

use skiff_core::{ContainerRef, Event};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::PodSpec;
use skiff_sys::SandboxConfig;
use skiff_sys::cgroup::Version;

use super::Driver;
use crate::devices::{self, Edits};
use crate::plan::{self, Lacks, NodeLimits, SandboxFacts};
use crate::pressure::{All, ToMeasure, Wake};

impl Driver {
    pub(super) fn sandbox(&self, pod: &PodSpec, ip: Option<Ipv4Addr>) -> Result<SandboxConfig, String> {
        let facts = SandboxFacts {
            config: &self.config,
            node: self.node.hostname(),
            ns_dir: self.place.run_of(pod.uid).join("ns"),
            limits: &self.limits(),
        };
        plan::sandbox(pod, ip, &facts)
    }

    /// What of the node decides about limits.
    pub(super) fn limits(&self) -> NodeLimits<'_> {
        let lacks = |name: &str| !self.place.cgroups.controllers().contains(name);
        NodeLimits {
            pids: self.config.pids_per_container,
            allocatable_memory: self.node.allocatable_memory(&self.config),
            hugepages: self.node.hugepage_sizes(),
            unified: self.place.cgroups.version() == Version::V2,
            memory_qos: self.config.memory_qos,
            block_device: &|path| devices::numbers(path, true),
            lacks: Lacks {
                memory: lacks("memory"),
                cpu: lacks("cpu"),
                pids: lacks("pids"),
            },
        }
    }

    /// What the container's devices add to it; it holds them from now on.
    pub(super) fn devices_of(&mut self, container: &ContainerRef) -> Result<Edits, String> {
        let (pod, _) = self.core.pod(container.pod).ok_or("the Pod is not known")?;
        let spec = pod
            .container(&container.name)
            .ok_or("the container is not known")?;
        let ended = |uid: Uid| !self.core.holds_resources(uid);
        self.node.devices.edits(pod, spec, &ended)
    }

    /// Looks at what the node is short of, and tells the core of it and of Pods over their limits.
    pub(super) fn watched(&mut self, wake: Wake) {
        let now = Instant::now();
        let over = match wake {
            Wake::Look => {
                self.node.look_again(&self.config, now);
                self.prove_images();
                self.see_to_room(now);
                self.measure(now);
                self.statics.look(now);
                Vec::new()
            }
            Wake::Measured(measured) => self.node.watch.counted(measured),
        };
        for (pod, message) in over {
            self.event(Event::OverLimit(pod, message));
        }
        let pods = self.core.wanted().into_iter();
        let making_room = self.is_making_room(now);
        let pressure = self
            .node
            .watch
            .pressure(pods, &self.place.cgroups, &self.config.cgroup, making_room);
        if let Some(pressure) = pressure {
            self.event(Event::Pressure(pressure));
        }
    }

    /// Has files counted where that is due.
    fn measure(&mut self, now: Instant) {
        let Some(All(all)) = self.node.watch.to_measure(now) else {
            return;
        };
        let pods = self.core.wanted();
        let pods = pods.iter().filter_map(|uid| {
            let (pod, _) = self.core.pod(*uid)?;
            let it = ToMeasure::of(pod, self.place.state_of(*uid), self.place.layers_of(*uid));
            (all || it.is_limited()).then_some(it)
        });
        let pods = pods.collect();
        self.node.watch.measure(pods, now);
    }
}
