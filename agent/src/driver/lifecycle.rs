//! What a container is started with, and what happens to it while it runs: probes, hooks, other limits, and its last words.
//!
//! Always holds: each effect of the core is answered by exactly one event, at once where it cannot be carried out.

use std::time::Duration;

use skiff_core::{ContainerRef, Core, Event, HookKind, ObservedPhase, ProbeKind, ProbeOutcome};
use skiff_protocol::image_ref::Digest;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{ConfigData, Container, Object, ObjectKey, PodSpec};
use skiff_shim::protocol::{LogConfig, RunRequest};

use super::Driver;
use super::signal::{SIGTERM, signal_number};
use crate::devices::Edits;
use crate::hooks::Hook;
use crate::plan;
use crate::probes::{Action, PROBE_AGENT};
use crate::shims::{Command, NOTE_FORMAT, Note, last_words};

/// How long one start may take before it is undone.
const START_TIMEOUT_MS: u64 = 60_000;

/// What a container is started with.
pub(super) struct Start {
    pub(super) request: RunRequest,
    /// For the next agent.
    pub(super) note: Note,
    /// What it is asked to end with.
    pub(super) signal: i32,
    /// The image it runs from.
    pub(super) image: Digest,
}

impl Driver {
    /// Has the service manager know how the agent is, in one line.
    pub(super) fn say_status(&mut self) {
        let (core, link) = (&self.core, &self.link);
        self.watchdog.status(|| {
            let pods = core.statuses().count();
            let link = if link.counters().connected {
                "connected"
            } else {
                "not connected; Pods run on"
            };
            format!("{pods} Pods, {link}")
        });
    }

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

    /// The configuration of a start; an error is what it lacks, in a kubelet's words.
    pub(super) fn run_request(&self, container: &ContainerRef, edits: Edits) -> Result<Start, String> {
        let (pod, ip) = self.core.pod(container.pod).ok_or("the Pod is not known")?;
        let spec = pod
            .container(&container.name)
            .ok_or("the container is not known")?;
        let image = self
            .images
            .get(&spec.image)
            .map_err(|error| format!("{error:#}"))?;
        let config = self.with_facts(pod, ip, |facts, lookup| {
            plan::container(pod, spec, container.attempt, &image, facts, edits, lookup)
        })??;
        let of_image = || signal_number(image.config.stop_signal.as_deref()?);
        let signal = spec.stop_signal.map(i32::from);
        let signal = signal.or_else(of_image).unwrap_or(SIGTERM);
        let note = Note {
            format: NOTE_FORMAT,
            image_id: image.repo_digest.to_string(),
            spec_digest: Core::spec_digest(spec),
        };
        let request = RunRequest {
            config,
            name: spec.name.clone(),
            attempt: container.attempt,
            log: LogConfig {
                capacity: self.config.log_bytes,
            },
            timeout_ms: START_TIMEOUT_MS,
        };
        Ok(Start {
            request,
            note,
            signal,
            image: image.digest,
        })
    }

    /// The stop signal of a container that an earlier agent started.
    pub(super) fn stop_signal(&self, container: &ContainerRef) -> Option<i32> {
        let (pod, _) = self.core.pod(container.pod)?;
        let spec = pod.container(&container.name)?;
        if let Some(signal) = spec.stop_signal {
            return Some(i32::from(signal));
        }
        let image = self.images.get(&spec.image).ok()?;
        signal_number(image.config.stop_signal.as_deref()?)
    }

    /// ConfigMaps and Secrets of a namespace, as they are desired.
    pub(super) fn lookup<'a>(&'a self, namespace: &'a str) -> impl Fn(bool, &str) -> Option<ConfigData> + 'a {
        move |secret, name| {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            let key = if secret {
                ObjectKey::Secret(namespace, name)
            } else {
                ObjectKey::ConfigMap(namespace, name)
            };
            match self.core.object(&key)? {
                Object::ConfigMap(data) | Object::Secret(data) => Some(data),
                Object::Pod(_) | Object::Volume(_) => None,
            }
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
            None => self.core.wanted_pod(uid).is_some_and(|pod| asks(&pod)),
        };
        let from_log = from_log && exit_code != 0;
        last_words::read(&self.place.run_of(uid), name, attempt, from_log)
    }
}
