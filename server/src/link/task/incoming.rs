//! What nodes say.
//!
//! What always holds: a message touches only the node it came from and the Pods bound to that node.

use skiff_protocol::limits as bounds;
use skiff_protocol::topic::{DownKind, NodeName};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::{self, Down, Hello, Up};
use tokio::time::Instant;

use super::Task;
use crate::events::Happening;
use crate::link::ingest::Wrong;
use crate::link::node::{Node, Order};
use crate::link::nodes::Liveness;
use crate::link::statics::Shown;
use crate::link::{limits, status};

impl Task {
    pub(super) fn known(&self, node: &NodeName) -> Result<(), Wrong> {
        if !self.fleet.is_member(node) {
            Err(Wrong::Stranger)
        } else if self.nodes.len() >= limits::NODES && !self.nodes.contains_key(node) {
            Err(Wrong::TooManyNodes)
        } else {
            Ok(())
        }
    }

    /// The node, which [`Task::known`] has let pass.
    pub(super) fn node(&mut self, name: &NodeName) -> &mut Node {
        let reserved = self.generations.get(name.as_str()).copied().unwrap_or(0);
        self.nodes
            .entry(name.clone())
            .or_insert_with(|| Node::new(name, reserved))
    }

    pub(super) fn message(&mut self, topic: &str, payload: &[u8]) {
        let mut ingest = std::mem::take(&mut self.ingest);
        let word = ingest.take(topic, payload, |node| self.known(node), &self.counters);
        self.ingest = ingest;
        let Some((name, up)) = word else { return };
        if !self.nodes.contains_key(&name) {
            self.node(&name);
            self.refresh(&name);
        }
        self.speak(&name, topic, up);
        if self.node(&name).renews(Instant::now()) {
            self.writes.lease(&name);
        }
    }

    fn speak(&mut self, name: &NodeName, topic: &str, up: Up) {
        match up {
            Up::Hello(hello) => self.hello(name, topic, hello),
            Up::Need { generation, keys } => {
                self.node(name).need(generation, keys);
                self.announce(name);
            }
            Up::Applied { generation, digest } => {
                if let Err(wrong) = self.node(name).applied_now(generation, digest) {
                    self.counters
                        .count(wrong, topic, &format_args!("generation {generation}"));
                }
                self.settle_volumes(name);
                self.announce(name);
            }
            Up::Status {
                epoch,
                sequence,
                pods,
            } => self.statuses(name, topic, epoch, sequence, pods),
            Up::Node(info) => {
                let node = self.node(name);
                if node.is_here() {
                    node.address = info.address.parse().ok();
                    self.writes.node(name, Some(info), Liveness::Ready);
                }
            }
            Up::Images { images } => {
                if self.node(name).is_here() {
                    self.writes.images(name, images);
                }
            }
            Up::Statics { uids } => self.told_statics(name, topic, uids),
            Up::StaticPod { uid, manifest } => self.static_pod(name, topic, uid, manifest),
            Up::Events { lost, events } => self.happened(name, topic, lost, &events),
            Up::StreamData { sid, offset, bytes } => {
                let (wrong, answer) = self.streams.data(name, sid, offset, &bytes);
                if let Some(wrong) = wrong {
                    self.counters
                        .count(wrong, topic, &format_args!("offset {offset}"));
                }
                if let Some(answer) = answer {
                    self.send(name, DownKind::Stream, Some(sid), &answer);
                }
            }
            Up::StreamEnd { sid, end } => {
                if let Some(wrong) = self.streams.end(name, sid, end) {
                    self.counters.count(wrong, topic, &"its end");
                }
            }
            Up::Bye { epoch } => {
                if self.node(name).bye(epoch) {
                    self.gone(name);
                    self.send(name, DownKind::Sync, None, &Down::Resync);
                }
            }
        }
    }

    fn hello(&mut self, name: &NodeName, topic: &str, hello: Hello) {
        let node = self.node(name);
        // A hello that nobody asked for says that there is a new connection, and with the old one went its streams.
        let restarted = hello.epoch != node.epoch() || !node.is_asked();
        let (liveness, answer) = match node.hello(&hello) {
            Ok(answered) => answered,
            Err(wrong) => {
                let (epoch, generation) = (hello.epoch, hello.generation);
                self.counters.count(
                    wrong,
                    topic,
                    &format_args!("hello of epoch {epoch}, generation {generation}"),
                );
                return;
            }
        };
        // Bytes of the node's own choosing: nothing but an address is kept of them.
        node.address = hello.node.address.parse().ok();
        if restarted {
            self.streams.lost(name);
        }
        let ask_statics = self
            .nodes
            .get_mut(name)
            .is_some_and(|node| node.statics.hello(hello.epoch))
            && self.world.mirrors_on(name.as_str()).next().is_some();
        if ask_statics {
            let which = Down::NeedStatics { uids: Vec::new() };
            self.send(name, DownKind::Spec, None, &which);
        }
        self.to_ask.remove(name);
        self.writes.node(name, Some(hello.node), liveness);
        if let Some(answer) = answer {
            self.send(name, DownKind::Sync, None, &answer);
        }
        self.settle_volumes(name);
        self.announce(name);
    }

    /// Lets the volumes go whose files the node is to remove, once it has heard so.
    fn settle_volumes(&mut self, name: &NodeName) {
        if !self.node(name).has_it_all() {
            return;
        }
        for volume in self.world.dropping_on(name.as_str()) {
            self.writes.dropped(name, &volume);
        }
    }

    fn statuses(
        &mut self,
        name: &NodeName,
        topic: &str,
        epoch: u64,
        sequence: u64,
        pods: Vec<wire::status::PodStatus>,
    ) {
        if pods.len() > bounds::STATUSES {
            self.counters
                .count(Wrong::TooMany, topic, &format_args!("{} statuses", pods.len()));
            return;
        }
        let (order, question) = self.node(name).order(epoch, sequence, Instant::now());
        if let Some(question) = question {
            self.send(name, DownKind::Sync, None, &question);
        }
        self.arm(name);
        if order == Order::Stale {
            self.counters.count(
                Wrong::Epoch,
                topic,
                &format_args!("epoch {epoch}, sequence {sequence}"),
            );
            return;
        }
        let host_ip = self.node(name).address;
        for said in pods {
            match self.world.pod_on(name.as_str(), &said.uid) {
                Some(pod) => self.writes.pod(name, host_ip, &pod.key, said),
                None if self.world.knows(&said.uid) => {
                    self.counters.count(Wrong::NotItsPod, topic, &said.uid);
                }
                // Its mirror is on its way; if it has none, the index already says that it must go.
                None => self.node(name).statics.keep(said),
            }
        }
    }

    fn told_statics(&mut self, name: &NodeName, topic: &str, uids: Vec<Uid>) {
        if uids.len() > bounds::PODS {
            self.counters
                .count(Wrong::TooMany, topic, &format_args!("{} static Pods", uids.len()));
            return;
        }
        self.node(name).statics.told(uids);
        self.settle_mirrors(name);
    }

    fn static_pod(&mut self, name: &NodeName, topic: &str, uid: Uid, manifest: Vec<u8>) {
        if manifest.len() > bounds::STATIC_MANIFEST || !self.node(name).statics.answered(uid) {
            self.counters.count(Wrong::NotAsked, topic, &uid);
            return;
        }
        self.writes.mirror(name, uid, manifest);
        self.settle_mirrors(name);
    }

    /// Removes the mirrors of static Pods that are no more, and asks for those that have none.
    pub(super) fn settle_mirrors(&mut self, name: &NodeName) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let host_ip = node.address;
        let mirrors = self.world.mirrors_on(name.as_str());
        let mirrors: Vec<_> = mirrors.map(|(uid, pod)| (uid, pod.clone())).collect();
        for (uid, pod) in &mirrors {
            match node.statics.has_mirror(*uid) {
                Shown::Unwanted => self.writes.unmirror(name, pod),
                Shown::Yes(Some(said)) => self.writes.pod(name, host_ip, &pod.key, *said),
                Shown::Yes(None) => {}
            }
        }
        let there = mirrors.iter().map(|(uid, _)| *uid).collect();
        let uids = node.statics.ask(&there);
        if !uids.is_empty() {
            self.send(name, DownKind::Spec, None, &Down::NeedStatics { uids });
        }
    }

    fn happened(&mut self, name: &NodeName, topic: &str, lost: u64, events: &[wire::Event]) {
        if events.len() > bounds::EVENTS {
            self.counters
                .count(Wrong::TooMany, topic, &format_args!("{} events", events.len()));
            return;
        }
        if lost > 0 {
            tracing::warn!(node = %name, lost, "the node dropped events for want of room");
        }
        let allowed = self.node(name).may_tell(events.len(), Instant::now());
        if allowed < events.len() {
            let left = events.len() - allowed;
            self.counters
                .count(Wrong::TooFast, topic, &format_args!("{left} events left out"));
        }
        for event in &events[..allowed] {
            let Some(pod) = self.world.pod_on(name.as_str(), &event.uid) else {
                if self.world.knows(&event.uid) {
                    self.counters.count(Wrong::NotItsPod, topic, &event.uid);
                }
                continue;
            };
            let happening = Happening {
                warning: event.warning,
                reason: status::bounded(&event.reason),
                message: status::bounded(&event.message),
                component: "skiff-agent",
                host: name.to_string(),
                container: event
                    .container
                    .as_deref()
                    .map(status::bounded)
                    .unwrap_or_default(),
            };
            self.events.tell(pod, happening);
        }
    }
}
