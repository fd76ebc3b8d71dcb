//! What happens to a container while it runs: probes, hooks, other limits, and its last words.
//!
//! Always holds: each effect of the core is answered by exactly one event, at once where it cannot be carried out.

use std::time::Duration;

use skiff_core::{ContainerRef, Event, HookKind, ObservedPhase, ProbeKind, ProbeOutcome};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Container, Object, ObjectKey, PodSpec};

use super::Driver;
use crate::hooks::Hook;
use crate::plan;
use crate::probes::{Action, PROBE_AGENT};
use crate::shims::{Command, last_words};

impl Driver {
    /// Has a probe tried once.
    pub(super) fn probe(&mut self, container: ContainerRef, kind: ProbeKind) -> Option<Event> {
        match self.probe_of(&container, kind) {
            Ok((action, within)) => {
                let shim = self.shims.commands(container.pod);
                self.probes.probe(container, kind, action, within, shim);
                None
            }
            Err(why) => Some(Event::Probed {
                container,
                kind,
                outcome: ProbeOutcome::Unknown(why),
            }),
        }
    }

    fn probe_of(&self, container: &ContainerRef, kind: ProbeKind) -> Result<(Action, Duration), String> {
        let (pod, spec) = self.spec(container)?;
        let probe = match kind {
            ProbeKind::Startup => &spec.startup,
            ProbeKind::Liveness => &spec.liveness,
            ProbeKind::Readiness => &spec.readiness,
        };
        let probe = probe.as_ref().ok_or("the container has no such probe")?;
        let action = Action::of(&probe.handler, spec, &self.host_of(pod)?, PROBE_AGENT)?;
        let within = Duration::from_secs(u64::from(probe.timeout_seconds));
        Ok((action.expanded(spec), within))
    }

    /// Runs a lifecycle hook for at most `within` milliseconds.
    pub(super) fn hook(&mut self, container: ContainerRef, kind: HookKind, within: u64) -> Option<Event> {
        let hook = self.spec(&container).and_then(|(pod, spec)| {
            let hook = Hook::of(container.clone(), kind, pod, spec, &self.host_of(pod)?);
            hook.ok_or_else(|| "the container has no such hook".to_owned())
        });
        match hook {
            Ok(hook) => {
                let shim = self.shims.commands(container.pod);
                self.probes.hook(hook, Duration::from_millis(within), shim);
                None
            }
            Err(why) => Some(Event::HookDone {
                container,
                kind,
                result: Err(why),
            }),
        }
    }

    /// Gives a running container the limits of its present spec.
    pub(super) fn resize(&mut self, container: ContainerRef) -> Option<Event> {
        let limits = self.spec(&container).and_then(|(pod, spec)| {
            let node = self.limits();
            Ok((
                plan::limits(pod, spec, &node)?,
                plan::limits::pod_limits(pod, &node),
            ))
        });
        match limits {
            Ok((limits, pod)) => {
                let uid = container.pod;
                let command = Command::Update {
                    container,
                    limits: Box::new(limits),
                    pod: Box::new(pod),
                };
                self.shims.send(uid, command);
                None
            }
            Err(why) => Some(Event::Resized {
                container,
                result: Err(why),
            }),
        }
    }

    fn spec(&self, container: &ContainerRef) -> Result<(&PodSpec, &Container), String> {
        let (pod, _) = self.core.pod(container.pod).ok_or("the Pod is not known")?;
        let spec = pod.container(&container.name);
        Ok((pod, spec.ok_or("the container is not known")?))
    }

    /// Where the Pod's own ports are, seen from the node.
    fn host_of(&self, pod: &PodSpec) -> Result<String, String> {
        if pod.host_network {
            return Ok("127.0.0.1".to_owned());
        }
        let ip = self.core.pod(pod.uid).and_then(|it| it.1);
        ip.map(|it| it.to_string())
            .ok_or_else(|| "the Pod has no address".to_owned())
    }

    /// Adds to the ends that are told of what the containers had to say about them.
    pub(super) fn add_last_words(&self, event: &mut Event) {
        match event {
            Event::Exited { container, exit } => {
                exit.message =
                    self.last_words(container.pod, &container.name, container.attempt, exit.exit_code);
            }
            Event::Observed(pods) => {
                for pod in pods {
                    for it in &mut pod.containers {
                        if let ObservedPhase::Exited(exit) = &mut it.phase {
                            exit.message = self.last_words(pod.uid, &it.name, it.attempt, exit.exit_code);
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn last_words(&self, uid: Uid, name: &str, attempt: u32, exit_code: i32) -> String {
        let asks = |pod: &PodSpec| {
            pod.container(name)
                .is_some_and(|it| it.termination_message_from_log)
        };
        // At the start the core has no Pods yet, and what ended while no agent ran is told of all the same.
        let from_log = match self.core.pod(uid) {
            Some((pod, _)) => asks(pod),
            None => match self.core.object(&ObjectKey::Pod(uid)) {
                Some(Object::Pod(pod)) => asks(&pod),
                _ => false,
            },
        };
        let from_log = from_log && exit_code != 0;
        last_words::read(&self.place.run_of(uid), name, attempt, from_log)
    }
}
