//! Containers: image, start, end, restart.

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Container, RestartPolicy};
use skiff_protocol::wire::status::Terminated;

use crate::backoff::Backoff;
use crate::effect::{ContainerRef, Effect, Urgency};
use crate::event::{Exit, ImageError, StartError};
use crate::machine::{Core, Now, cut};
use crate::record::{ContainerRecord, Record};
use crate::state::{ContainerState, Image, Mono, Phase, Step, Stop};

/// Milliseconds until a configuration that could not be met is tried again unasked.
const UNMET_AGAIN: u64 = 10_000;

/// Kubernetes' exit code for a container whose end nobody saw.
const LOST_EXIT_CODE: i32 = 137;

impl ContainerState {
    /// Has it ended by `deadline`, unless it is to end earlier already.
    pub(crate) fn end_by(&mut self, deadline: Mono) {
        let before = self.stop.unwrap_or(Stop {
            deadline,
            asked: false,
            killed: false,
        });
        self.stop = Some(Stop {
            deadline: before.deadline.min(deadline),
            ..before
        });
    }

    /// Has it replaced if it was started from another spec than `spec`, within `grace` milliseconds.
    pub(crate) fn replace_unless(&mut self, now: Mono, spec: &Container, grace: u64) {
        let asked = self.stop.is_some_and(|stop| stop.asked);
        let same = self.digest == Core::spec_digest(spec);
        let before = self.replace;
        // One that was asked to end may be half way through it, so it goes also when its spec is wanted again.
        self.replace = self.alive() && (!same || (before && asked));
        if self.replace {
            self.end_by(now + grace);
        } else if before && !asked {
            self.stop = None;
        }
    }

    /// Another spec owes nothing to the failures of the one before: what waits for a back-off waits no longer.
    pub(crate) fn start_afresh(&mut self, now: Mono) {
        self.crash = Backoff::default();
        self.pull = Backoff::default();
        if let Phase::Backoff { until } = &mut self.phase {
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
}

impl Core {
    pub(crate) fn reconcile_containers(&mut self, now: Now, uid: Uid) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        let ending = state.ending;
        let sandbox = state.sandbox == Step::Done;
        let Some(pod) = state
            .pod
            .clone()
            .filter(|_| ending.is_none() && state.rejected.is_none())
        else {
            for container in &mut state.containers {
                if let Some(deadline) = ending {
                    container.end_by(deadline);
                }
                stop_step(now, uid, container, &mut self.effects);
            }
            return;
        };
        for (container, spec) in state.containers.iter_mut().zip(&pod.containers) {
            if container.replace && container.stop.is_none() {
                container.end_by(now.mono + u64::from(pod.termination_grace_seconds) * 1000);
            }
            stop_step(now, uid, container, &mut self.effects);
            run_step(now, uid, container, spec, sandbox, &mut self.effects);
        }
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
    fn current(&mut self, reference: &ContainerRef) -> Option<&mut ContainerState> {
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
        let wait = container.pull.failed();
        let again = container.pull.wait > Backoff::default().wait && wait > 10_000;
        let mut message = error.message;
        cut(&mut message);
        // Kubernetes shows the error at the first failure and the back-off from then on.
        let reason = if error.reason == "ErrImagePull" && again {
            "ImagePullBackOff".to_owned()
        } else {
            error.reason
        };
        let until = if error.retry {
            now.mono + wait
        } else {
            now.mono + wait.max(60_000)
        };
        container.image = Image::Waiting {
            until,
            reason: reason.clone(),
            message: message.clone(),
        };
        let reason = if reason == "ImagePullBackOff" {
            "BackOff"
        } else {
            "Failed"
        };
        self.event(now, reference.pod, Some(&reference.name), true, reason, message);
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
        let name = &reference.name;
        self.event(
            now,
            reference.pod,
            Some(name),
            false,
            "Started",
            format!("Started container {name}"),
        );
        self.touch(now, reference.pod);
        self.reconcile(now, reference.pod);
    }

    pub(crate) fn start_failed(&mut self, now: Now, reference: &ContainerRef, error: StartError) {
        let Some(container) = self.current(reference).filter(|it| it.phase == Phase::Starting) else {
            return;
        };
        match error {
            StartError::Config(mut message) => {
                cut(&mut message);
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
        let end = terminated(reason, exit.exit_code, exit.signal, times, String::new());
        self.note_end(now, reference, end);
    }

    pub(crate) fn container_lost(&mut self, now: Now, reference: &ContainerRef) {
        let message = "the container's shim ended; how the container ended is not known".to_owned();
        let end = terminated(
            "ContainerStatusUnknown",
            LOST_EXIT_CODE,
            0,
            (now.unix, now.unix),
            message,
        );
        self.ended(now, reference, end);
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
        let ending = state.ending.is_some();
        let policy = state.pod.as_ref().map(|pod| pod.restart_policy);
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
        let restart = !ending
            && (replace
                || match policy {
                    Some(RestartPolicy::Always) => true,
                    Some(RestartPolicy::OnFailure) => end.exit_code != 0,
                    Some(RestartPolicy::Never) | None => false,
                });
        container.stop = None;
        container.last = Some(end.clone());
        if restart {
            let wait = if replace { 0 } else { container.crash.crashed(ran) };
            container.phase = Phase::Backoff {
                until: now.mono + wait,
            };
            // Every start asks for its image: the pull policy may say so, and what was there may be gone.
            container.image = Image::Unknown;
            if wait > 0 {
                let message = format!("Back-off restarting failed container {}", reference.name);
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

/// Asks a container that is to end, and kills it when its time is over.
fn stop_step(now: Now, uid: Uid, container: &mut ContainerState, effects: &mut Vec<Effect>) {
    if !matches!(container.phase, Phase::Running { .. }) {
        return;
    }
    let Some(mut stop) = container.stop else { return };
    let mut say = |urgency| {
        let container = ContainerRef {
            pod: uid,
            name: container.name.clone(),
            attempt: container.restart_count,
        };
        effects.push(Effect::Stop { container, urgency });
    };
    if stop.deadline <= now.mono && !stop.killed {
        say(Urgency::Kill);
        stop = Stop {
            asked: true,
            killed: true,
            ..stop
        };
    } else if !stop.asked {
        say(Urgency::Ask);
        stop.asked = true;
    }
    container.stop = Some(stop);
}

/// Brings a container nearer to running.
fn run_step(
    now: Now,
    uid: Uid,
    container: &mut ContainerState,
    spec: &Container,
    sandbox: bool,
    effects: &mut Vec<Effect>,
) {
    match &container.phase {
        Phase::Backoff { until } | Phase::Unmet { until, .. } if *until <= now.mono => {
            container.phase = Phase::Waiting;
        }
        Phase::Waiting => {}
        _ => return,
    }
    let attempt = if container.ran {
        container.restart_count + 1
    } else {
        0
    };
    let reference = ContainerRef {
        pod: uid,
        name: container.name.clone(),
        attempt,
    };
    let ask = match &container.image {
        Image::Unknown => true,
        Image::Waiting { until, .. } => *until <= now.mono,
        Image::Asked | Image::Stale | Image::Ready => false,
    };
    if ask {
        container.image = Image::Asked;
        effects.push(Effect::EnsureImage {
            container: reference,
            image: spec.image.clone(),
            policy: spec.pull_policy,
        });
    } else if container.image == Image::Ready && sandbox {
        container.phase = Phase::Starting;
        container.restart_count = attempt;
        container.ran = true;
        container.digest = Core::spec_digest(spec);
        effects.push(Effect::Start(reference));
    }
}
