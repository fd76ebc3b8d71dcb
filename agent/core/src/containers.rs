//! Containers: image, start, end, restart.

use std::collections::BTreeSet;

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Container, ObjectKey, RestartPolicy};
use skiff_protocol::wire::status::Terminated;

use crate::backoff::Backoff;
use crate::effect::{ContainerRef, Effect};
use crate::event::{Exit, ImageError, StartError};
use crate::machine::{Core, Now, cut};
use crate::out::Out;
use crate::probes::Health;
use crate::record::{ContainerRecord, Record};
use crate::resize;
use crate::state::{ContainerState, Image, Kind, Mono, Phase, PodState, Step};
use crate::status;

/// Milliseconds until a configuration that could not be met is tried again unasked.
const UNMET_AGAIN: u64 = 10_000;

/// Kubernetes' exit code for a container whose end nobody saw.
const LOST_EXIT_CODE: i32 = 137;

impl ContainerState {
    /// Has it replaced if it was started from another spec than `spec`, within `grace` milliseconds.
    pub(crate) fn replace_unless(&mut self, now: Mono, spec: &Container, grace: u64) {
        let begun = self.stop.is_some_and(|stop| stop.begun());
        let same = self.digest == Core::spec_digest(spec) && !self.resize_restarts(spec);
        let before = self.replace;
        // One that was asked to end may be half way through it, so it goes also when its spec is wanted again.
        self.replace = self.alive() && (!same || (before && begun));
        if self.replace {
            self.end_by(now + grace, false);
        } else if before && !begun {
            self.stop = None;
        }
    }

    /// Another spec owes nothing to the failures of the one before: what waits for a back-off waits no longer.
    pub(crate) fn start_afresh(&mut self, now: Mono) {
        self.crash = Backoff::default();
        self.pull = Backoff::default();
        if let Phase::Backoff { until, .. } = &mut self.phase {
            *until = now;
        }
    }

    /// Takes over what the journal knows of it from before a reboot.
    pub(crate) fn recall(&mut self, record: &ContainerRecord) {
        self.restart_count = record.restart_count;
        self.ran = true;
        self.last.clone_from(&record.last);
        self.crash = Backoff {
            wait: record.backoff_ms,
        };
        if let (true, Some(last)) = (record.done, &record.last) {
            self.phase = Phase::Done(last.clone());
        }
    }

    /// The journal has the start of this attempt and not its end.
    pub(crate) fn recall_start(&mut self, attempt: u32) {
        self.restart_count = attempt;
        self.ran = true;
        self.interrupted = true;
    }

    /// Whether its start must be durable before it happens: it may run once only, or its count has been promised to go up.
    /// The first start of others is written down when it has happened, for it is waited for.
    fn starts_durably(&self, policy: RestartPolicy) -> bool {
        self.restart_count > 0 || (self.kind == Kind::Regular && policy == RestartPolicy::Never)
    }

    /// Brings it nearer to running; its turn has come.
    fn run_step(&mut self, now: Mono, uid: Uid, spec: &Container, sandbox: bool, out: &mut Out) {
        match &self.phase {
            Phase::Backoff { until, .. } | Phase::Unmet { until, .. } if *until <= now => {
                self.phase = Phase::Waiting;
            }
            Phase::Waiting => {}
            _ => return,
        }
        let attempt = if self.ran { self.restart_count + 1 } else { 0 };
        let reference = ContainerRef {
            pod: uid,
            name: self.name.clone(),
            attempt,
        };
        let ask = match &self.image {
            Image::Unknown => true,
            Image::Waiting { until, .. } => *until <= now,
            Image::Asked | Image::Stale | Image::Ready => false,
        };
        if ask {
            self.image = Image::Asked;
            self.pulling = None;
            self.new_keys = false;
            out.effects.push(Effect::EnsureImage {
                container: reference,
                image: spec.image.clone(),
                policy: spec.pull_policy,
            });
        } else if self.image == Image::Ready && sandbox {
            self.phase = Phase::Starting;
            self.restart_count = attempt;
            self.ran = true;
            self.digest = Core::spec_digest(spec);
            self.in_force = Some(resize::wanted(spec));
            out.effects.push(Effect::Start(reference));
        }
    }

    /// What was known of the process that ran is of no use any more.
    fn process_gone(&mut self) {
        self.health = Health::default();
        self.stop = None;
        self.why = None;
        self.in_force = None;
        self.resizing = None;
        self.resize_again = 0;
    }
}

impl PodState {
    /// Brings each container a step nearer to what it shall be, and tries the probes that are due.
    fn run_steps(&mut self, now: Mono, out: &mut Out) {
        let starts = self.lives() && !self.over();
        let sandbox = self.sandbox == Step::Done;
        for at in 0..self.containers.len() {
            let turn = starts && self.may_start(at);
            let container = &mut self.containers[at];
            let Some(pod) = &self.pod else { return };
            let Some(spec) = pod.container(&container.name) else {
                continue;
            };
            if turn {
                container.run_step(now, self.uid, spec, sandbox, out);
            }
            if starts {
                container.resize_step(now, self.uid, spec, out);
            }
            container.probe_step(now, self.uid, spec, out);
        }
    }

    /// Has those ended whose replacement was taken back and is due again.
    fn end_replaced(&mut self, now: Mono) {
        let Some(pod) = self.pod.as_ref().filter(|_| self.ending.is_none()) else {
            return;
        };
        let deadline = now + u64::from(pod.termination_grace_seconds) * 1000;
        for container in &mut self.containers {
            if container.replace && container.stop.is_none() {
                container.end_by(deadline, false);
            }
        }
    }
}

impl Core {
    pub(crate) fn reconcile_containers(&mut self, now: Now, uid: Uid) {
        self.check_deadline(now, uid);
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        let mut out = Out {
            changed: state.note_initialized(now.unix),
            ..Out::default()
        };
        state.end_what_is_over(now.mono);
        state.end_replaced(now.mono);
        state.stop_steps(now.mono, &mut out);
        state.run_steps(now.mono, &mut out);
        self.take_out(now, uid, out);
    }

    pub(crate) fn retry_unmet(&mut self, now: Now, uid: Uid) {
        let containers = self.pods.get_mut(&uid).map(|it| it.containers.iter_mut());
        for container in containers.into_iter().flatten() {
            if let Phase::Unmet { until, .. } = &mut container.phase {
                *until = now.mono;
            }
        }
    }

    /// The container that an answer is about, if the answer is about its current attempt.
    pub(crate) fn current(&mut self, reference: &ContainerRef) -> Option<&mut ContainerState> {
        let container = self.pods.get_mut(&reference.pod)?.container(&reference.name)?;
        let attempt = if container.ran && matches!(container.phase, Phase::Waiting) {
            container.restart_count + 1
        } else {
            container.restart_count
        };
        (attempt == reference.attempt).then_some(container)
    }

    /// Whether this answer is about an image that is no longer the one wanted; the right one is then asked for.
    fn stale_answer(&mut self, now: Now, reference: &ContainerRef) -> bool {
        let Some(container) = self.current(reference).filter(|it| it.image == Image::Stale) else {
            return false;
        };
        container.image = Image::Unknown;
        self.reconcile(now, reference.pod);
        true
    }

    pub(crate) fn pulling(&mut self, now: Now, reference: &ContainerRef) {
        let container = self.current(reference).filter(|it| it.image == Image::Asked);
        if let Some(container) = container {
            container.pulling = Some(now.mono);
            let image = self.image_of(reference);
            let message = format!("Pulling image {image:?}");
            self.event(
                now,
                reference.pod,
                Some(&reference.name),
                false,
                "Pulling",
                message,
            );
            self.tell_missing_keys(now, reference.pod);
        }
    }

    /// Says how far a pull is.
    pub(crate) fn pull_goes_on(&mut self, now: Now, reference: &ContainerRef, text: &str) {
        let waits = self.current(reference).is_some_and(|it| it.image == Image::Asked);
        if waits {
            let message = format!("Pulling image {:?}: {text}", self.image_of(reference));
            let name = Some(reference.name.as_str());
            self.event(now, reference.pod, name, false, "Pulling", message);
        }
    }

    /// Says which Secrets for registries are not there. The image may be had without them.
    fn tell_missing_keys(&mut self, now: Now, uid: Uid) {
        let Some(pod) = self.pods.get(&uid).and_then(|it| it.pod.as_ref()) else {
            return;
        };
        let missing = pod.image_pull_secrets.iter().filter(|name| {
            let key = ObjectKey::Secret(pod.namespace.clone(), (*name).clone());
            !self.durable.objects.contains_key(&key)
        });
        let missing: Vec<&str> = missing.map(String::as_str).collect();
        if !missing.is_empty() {
            let message = format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                missing.join(", ")
            );
            self.event(now, uid, None, true, "FailedToRetrieveImagePullSecret", message);
        }
    }

    /// Credentials that images wait for may be among these objects: they are asked for at once.
    pub(crate) fn retry_pulls(&mut self, now: Now, changed: &BTreeSet<ObjectKey>) {
        let mut touched = Vec::new();
        for state in self.pods.values_mut() {
            let Some(pod) = &state.pod else { continue };
            let is_key = |key: &ObjectKey| {
                matches!(key, ObjectKey::Secret(namespace, name)
                    if *namespace == pod.namespace && pod.image_pull_secrets.contains(name))
                    && self.durable.objects.contains_key(key)
            };
            if !changed.iter().any(is_key) {
                continue;
            }
            for container in &mut state.containers {
                match &mut container.image {
                    Image::Waiting { until, .. } => {
                        *until = now.mono;
                        touched.push(state.uid);
                    }
                    Image::Asked => container.new_keys = true,
                    Image::Unknown | Image::Stale | Image::Ready => {}
                }
            }
        }
        for uid in touched {
            self.reconcile(now, uid);
        }
    }

    fn image_of(&mut self, reference: &ContainerRef) -> String {
        let state = self.pods.get_mut(&reference.pod);
        state
            .and_then(|it| Some(it.with_spec(&reference.name)?.1.image.clone()))
            .unwrap_or_default()
    }

    pub(crate) fn image_ready(&mut self, now: Now, reference: &ContainerRef, image_id: String) {
        if self.stale_answer(now, reference) {
            return;
        }
        let Some(container) = self.current(reference).filter(|it| it.image == Image::Asked) else {
            return;
        };
        container.image = Image::Ready;
        container.pull = Backoff::default();
        container.image_id = image_id;
        let pulled = container.pulling.take();
        let image = self.image_of(reference);
        let message = match pulled {
            Some(began) => {
                let took = (now.mono - began) as f64 / 1000.0;
                format!("Successfully pulled image {image:?} in {took}s")
            }
            None => format!("Container image {image:?} already present on machine"),
        };
        self.event(
            now,
            reference.pod,
            Some(&reference.name),
            false,
            "Pulled",
            message,
        );
        self.touch(now, reference.pod);
        self.reconcile(now, reference.pod);
    }

    pub(crate) fn image_failed(&mut self, now: Now, reference: &ContainerRef, error: ImageError) {
        if self.stale_answer(now, reference) {
            return;
        }
        let Some(container) = self.current(reference).filter(|it| it.image == Image::Asked) else {
            return;
        };
        let first = container.pull == Backoff::default();
        let wait = container.pull.failed();
        container.pulling = None;
        let image = self.image_of(reference);
        let mut said = match error.reason.as_str() {
            "ErrImagePull" => format!("Failed to pull image {image:?}: {}", error.message),
            _ => error.message.clone(),
        };
        cut(&mut said);
        // Kubernetes shows the error at the first failure and the back-off from then on.
        let back_off = error.reason == "ErrImagePull" && !first;
        let (reason, mut message) = if back_off {
            let message = format!(
                "Back-off pulling image {image:?}: ErrImagePull: {}",
                error.message
            );
            ("ImagePullBackOff".to_owned(), message)
        } else {
            (error.reason, error.message)
        };
        cut(&mut message);
        let Some(container) = self.current(reference) else {
            return;
        };
        let until = if std::mem::take(&mut container.new_keys) {
            now.mono
        } else if error.retry {
            now.mono + wait
        } else {
            now.mono + wait.max(60_000)
        };
        container.image = Image::Waiting {
            until,
            reason,
            message,
        };
        let (pod, name) = (reference.pod, Some(reference.name.as_str()));
        self.event(now, pod, name, true, "Failed", said);
        if back_off {
            let message = format!("Back-off pulling image {image:?}");
            self.event(now, pod, name, false, "BackOff", message);
        }
        self.touch(now, reference.pod);
    }

    pub(crate) fn started(&mut self, now: Now, reference: &ContainerRef, container_id: String) {
        let Some(container) = self.current(reference).filter(|it| it.phase == Phase::Starting) else {
            return;
        };
        container.phase = Phase::Running {
            started_at: now.unix,
            since: now.mono,
            container_id,
        };
        // A first start that nothing had to wait for. One of an init container is of no use after a reboot: in another
        // sandbox it runs again.
        self.note_start(now, reference, |container, durably| {
            !durably && container.kind != Kind::Init
        });
        let name = &reference.name;
        let mut out = Out {
            changed: true,
            ..Out::default()
        };
        out.tell(name, "Created", format!("Created container: {name}"));
        out.tell(name, "Started", format!("Started container {name}"));
        let state = self.pods.get_mut(&reference.pod);
        if let Some((container, spec, _)) = state.and_then(|it| it.with_spec(name))
            // One that is to end at once needs neither hook nor probes.
            && container.stop.is_none()
        {
            if spec.post_start.is_some() {
                container.begin_post_start(reference.pod, &mut out);
            } else {
                container.comes_up(now.mono, reference.pod, spec, false, &mut out);
            }
        }
        self.take_out(now, reference.pod, out);
        self.reconcile(now, reference.pod);
    }

    /// Nothing is in the way of a start any more: it happens now.
    pub(crate) fn launched(&mut self, now: Now, reference: &ContainerRef) {
        self.note_start(now, reference, |container, durably| {
            durably && container.phase == Phase::Starting
        });
    }

    /// Puts a start into the journal, so that after a reboot it is known to have been; if it is one of `these`, told whether
    /// it has to be durable first.
    fn note_start(
        &mut self,
        now: Now,
        reference: &ContainerRef,
        these: impl Fn(&ContainerState, bool) -> bool,
    ) {
        let Some(policy) = self.pods.get(&reference.pod).and_then(|it| it.pod.as_ref()) else {
            return;
        };
        let policy = policy.restart_policy;
        let Some(container) = self.current(reference) else {
            return;
        };
        if these(container, container.starts_durably(policy)) {
            let record = Record::Started(reference.pod, reference.name.clone(), reference.attempt);
            self.record(now, vec![record]);
        }
    }

    pub(crate) fn start_failed(&mut self, now: Now, reference: &ContainerRef, error: StartError) {
        let Some(container) = self.current(reference).filter(|it| it.phase == Phase::Starting) else {
            return;
        };
        match error {
            StartError::Config(mut message) => {
                cut(&mut message);
                container.in_force = None;
                // It was no start: the count goes back to where it was.
                container.ran = container.restart_count > 0;
                container.restart_count = container.restart_count.saturating_sub(1);
                // Nothing runs that would have to be replaced; the next try is of the spec as it is then.
                if std::mem::take(&mut container.replace) {
                    container.stop = None;
                    container.image = Image::Unknown;
                }
                container.phase = Phase::Unmet {
                    until: now.mono + UNMET_AGAIN,
                    message: message.clone(),
                };
                self.event(
                    now,
                    reference.pod,
                    Some(&reference.name),
                    true,
                    "Failed",
                    format!("Error: {message}"),
                );
                let key = (reference.pod, reference.name.clone());
                if self.durable.started.get(&key) == Some(&reference.attempt) {
                    self.record(now, vec![Record::NotStarted(key.0, key.1)]);
                }
                self.touch(now, reference.pod);
            }
            StartError::Failed { exit_code, message } => {
                let text = format!("Error: {message}");
                self.event(now, reference.pod, Some(&reference.name), true, "Failed", text);
                let end = terminated("StartError", exit_code, 0, (now.unix, now.unix), message);
                self.ended(now, reference, end);
            }
        }
    }

    pub(crate) fn exited(&mut self, now: Now, reference: &ContainerRef, exit: &Exit) {
        if self.current(reference).is_none_or(|it| !it.alive()) {
            return;
        }
        self.note_exit(now, reference, exit);
        self.reconcile(now, reference.pod);
    }

    /// Takes an exit in, and leaves for later what it leads to.
    pub(crate) fn note_exit(&mut self, now: Now, reference: &ContainerRef, exit: &Exit) {
        let reason = match exit {
            Exit { oom_killed: true, .. } => "OOMKilled",
            Exit { exit_code: 0, .. } => "Completed",
            Exit { .. } => "Error",
        };
        let times = (exit.started_at, exit.finished_at);
        let end = terminated(reason, exit.exit_code, exit.signal, times, exit.message.clone());
        self.note_end(now, reference, end);
    }

    /// Nobody saw how it ended; what that leads to is left for later.
    pub(crate) fn container_lost(&mut self, now: Now, reference: &ContainerRef) {
        let message =
            "the node or the container's shim ended; how the container ended is not known".to_owned();
        let end = terminated(
            "ContainerStatusUnknown",
            LOST_EXIT_CODE,
            0,
            (now.unix, now.unix),
            message,
        );
        self.note_end(now, reference, end);
    }

    /// Of containers whose start is in the journal and which nobody found: they went with the power, or with their shims.
    pub(crate) fn lose_interrupted(&mut self, now: Now) {
        let lost = self.pods.values().flat_map(|state| {
            let all = state.containers.iter().filter(|it| it.interrupted);
            all.map(|it| it.reference(state.uid))
        });
        let lost: Vec<ContainerRef> = lost.collect();
        for reference in lost {
            self.container_lost(now, &reference);
        }
    }

    fn ended(&mut self, now: Now, reference: &ContainerRef, end: Terminated) {
        self.note_end(now, reference, end);
        self.reconcile(now, reference.pod);
    }

    /// A container is over: decide what follows, and remember it.
    fn note_end(&mut self, now: Now, reference: &ContainerRef, mut end: Terminated) {
        let Some(state) = self.pods.get_mut(&reference.pod) else {
            return;
        };
        let goes_on = state.ending.is_none() && state.failed.is_none() && !state.over();
        let policy = state.pod.as_ref().map(|pod| pod.restart_policy);
        let whose = state.pod.as_ref().map(status::full_name).unwrap_or_default();
        let Some(container) = state.container(&reference.name) else {
            return;
        };
        let ran = match &container.phase {
            Phase::Running {
                since, container_id, ..
            } => {
                end.container_id.clone_from(container_id);
                now.mono.saturating_sub(*since)
            }
            _ => 0,
        };
        cut(&mut end.message);
        let replace = std::mem::take(&mut container.replace);
        // What went with the node has not crashed.
        let blameless = std::mem::take(&mut container.interrupted) || replace;
        let restart = goes_on && policy.is_some_and(|policy| replace || container.restarts(policy, &end));
        container.process_gone();
        container.last = Some(end.clone());
        if restart {
            let wait = if blameless {
                0
            } else {
                container.crash.crashed(ran)
            };
            container.phase = Phase::Backoff {
                until: now.mono + wait,
                wait,
            };
            // Every start asks for its image: the pull policy may say so, and what was there may be gone.
            container.image = Image::Unknown;
            if wait > 0 {
                let message = format!(
                    "Back-off restarting failed container {} in pod {whose}",
                    reference.name
                );
                self.event(
                    now,
                    reference.pod,
                    Some(&reference.name),
                    true,
                    "BackOff",
                    message,
                );
            }
        } else {
            container.phase = Phase::Done(end);
        }
        self.remember(now, reference);
        self.touch(now, reference.pod);
    }

    /// Puts what must survive a reboot into the journal; of a Pod that ends, nothing must.
    fn remember(&mut self, now: Now, reference: &ContainerRef) {
        let Some(state) = self.pods.get_mut(&reference.pod) else {
            return;
        };
        if state.ending.is_some() || state.pod.is_none() {
            return;
        }
        let Some(container) = state.container(&reference.name) else {
            return;
        };
        // An init container that went well runs again after a reboot, and until then its shim knows of it: a Pod's start
        // waits for no write.
        let well = matches!(&container.phase, Phase::Done(end) if end.exit_code == 0);
        if container.kind == Kind::Init && well && container.restart_count == 0 {
            return;
        }
        let record = ContainerRecord {
            name: container.name.clone(),
            restart_count: container.restart_count,
            last: container.last.clone(),
            done: matches!(container.phase, Phase::Done(_)),
            backoff_ms: container.crash.wait,
        };
        self.record(now, vec![Record::Container(reference.pod, record)]);
    }
}

fn terminated(reason: &str, exit_code: i32, signal: i32, times: (i64, i64), message: String) -> Terminated {
    Terminated {
        exit_code,
        signal,
        reason: reason.to_owned(),
        message,
        started_at: times.0,
        finished_at: times.1,
        container_id: String::new(),
    }
}
