//! Pods come, change, end; their sandboxes are made and removed.

use std::collections::{BTreeMap, BTreeSet};

use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;

use crate::admission::{self, Standing};
use crate::effect::Effect;
use crate::event::{ObservedContainer, ObservedPhase, ObservedPod};
use crate::eviction::Failed;
use crate::machine::{Core, Now};
use crate::out::Out;
use crate::record::Record;
use crate::state::{ContainerState, Image, Kind, Phase, PodState, Step};
use crate::status;
use crate::volumes::downward_differs;

/// Grace of a Pod that is gone from the desired state without a word (a forced deletion), in milliseconds.
const FORCED_GRACE: u64 = 1_000;

/// Milliseconds until a failed removal is tried again.
const REMOVE_AGAIN: u64 = 5_000;

impl Core {
    /// The start: what runs is taken over, what shall run is brought up, what nobody wants is ended.
    pub(crate) fn observed(&mut self, now: Now, observed: Vec<ObservedPod>) {
        let epoch = self.durable.epoch;
        self.epoch_token = Some(self.append(now, vec![Record::Epoch(epoch)]));
        // Whoever had a place keeps it: those found running first, then in the order in which they came.
        let running: BTreeSet<Uid> = observed.iter().map(|it| it.uid).collect();
        let came = |uid: &Uid| self.durable.accepted.get(uid).copied();
        let mut desired: Vec<_> = self.desired_pods().into_iter().collect();
        let later = |uid: &Uid| !self.is_static(*uid);
        desired.sort_by_key(|(uid, _)| (!running.contains(uid), later(uid), came(uid), *uid));
        for (uid, parsed) in desired {
            let standing = match running.contains(&uid) {
                true => Standing::Running,
                // It gives way to what runs, and to nothing else; refused, it is tried again.
                false if self.is_static(uid) => Standing::Static,
                false => Standing::Kept,
            };
            self.accept(now, uid, parsed, standing);
        }
        for found in observed {
            self.adopt(now, found);
        }
        self.lose_interrupted(now);
        let without = self.pods.values_mut().filter(|it| it.sandbox == Step::Absent);
        without.for_each(PodState::begin_anew);
        let all: Vec<Uid> = self.pods.keys().copied().collect();
        for uid in all {
            self.reconcile(now, uid);
        }
        self.statics.begun = true;
        self.follow_statics(now);
    }

    fn adopt(&mut self, now: Now, found: ObservedPod) {
        let pod = self
            .pods
            .entry(found.uid)
            .or_insert_with(|| PodState::new(found.uid, None, now.unix));
        pod.sandbox = if found.sandbox { Step::Done } else { Step::Absent };
        pod.ip = found.ip;
        if let Some(ip) = found.ip {
            self.ipam.adopt(found.uid, ip);
        }
        // One that is wanted and that this version cannot read runs on as it is.
        if pod.pod.is_none() && pod.rejected.is_none() {
            pod.inits = 0;
            pod.containers = found
                .containers
                .iter()
                .map(|it| ContainerState::new(&it.name, Kind::Regular))
                .collect();
            pod.ending = Some(now.mono + FORCED_GRACE);
        }
        let regular: BTreeSet<&str> = pod.regular().iter().map(|it| it.name.as_str()).collect();
        let regular_found = found
            .containers
            .iter()
            .any(|it| regular.contains(it.name.as_str()));
        let names = found.containers.iter().map(|it| it.name.clone()).collect();
        for container in found.containers {
            self.adopt_container(now, found.uid, container);
        }
        if let Some(pod) = self.pods.get_mut(&found.uid) {
            if found.sandbox {
                pod.forget_other_sandbox(&names);
                pod.find_initialized(regular_found);
            }
            status::note_found(pod);
        }
    }

    fn adopt_container(&mut self, now: Now, uid: Uid, found: ObservedContainer) {
        let Some(pod) = self.pods.get_mut(&uid) else {
            return;
        };
        let spec = pod.pod.as_ref().and_then(|pod| pod.container(&found.name));
        let wanted = spec.map(Self::spec_digest);
        let changed = wanted
            .zip(found.spec_digest)
            .is_some_and(|(wanted, was)| wanted != was);
        let ending = pod.ending;
        let mut out = Out::default();
        let Some(container) = pod.container(&found.name) else {
            return;
        };
        let ended = matches!(found.phase, ObservedPhase::Exited(_));
        if ended && container.ran && found.attempt < container.restart_count {
            // An attempt before the last one, which is in the journal: it never came to run.
            return;
        }
        container.interrupted = false;
        if found.phase == ObservedPhase::Starting {
            // The same attempt is asked for again, and whoever began it tells what became of it.
            container.restart_count = found.attempt.saturating_sub(1);
            container.ran = found.attempt > 0;
            return;
        }
        let known = container.ran && found.attempt == container.restart_count;
        container.restart_count = found.attempt;
        // What is not known counts as what is wanted: nothing that runs is ended on a guess.
        container.digest = found.spec_digest.or(wanted).unwrap_or(0);
        container.ran = true;
        container.image_id = found.image_id;
        match found.phase {
            ObservedPhase::Starting => {}
            ObservedPhase::Running(started_at) => {
                container.image = Image::Ready;
                container.phase = Phase::Running {
                    started_at,
                    since: now.mono,
                    container_id: found.container_id,
                };
                container.replace = changed;
                if let Some(deadline) = ending {
                    container.end_by(deadline, false);
                }
                if let Some((container, spec, _)) = pod.with_spec(&found.name) {
                    container.found_up(now.mono, uid, spec, found.probed, &mut out);
                }
                self.take_out(now, uid, out);
            }
            // The exit is in the journal already, with what followed from it.
            ObservedPhase::Exited(exit)
                if known
                    && container
                        .last
                        .as_ref()
                        .is_some_and(|last| last.finished_at == exit.finished_at) => {}
            ObservedPhase::Exited(exit) => {
                let reference = crate::ContainerRef {
                    pod: uid,
                    name: found.name,
                    attempt: found.attempt,
                };
                container.phase = Phase::Running {
                    started_at: exit.started_at,
                    since: now.mono,
                    container_id: found.container_id,
                };
                // What follows is decided once all containers of the Pod have been taken over.
                self.note_exit(now, &reference, &exit);
            }
        }
    }

    /// The objects held have changed: follow them.
    pub(crate) fn follow_objects(&mut self, now: Now) {
        let desired = self.desired_pods();
        let gone: Vec<Uid> = self
            .pods
            .keys()
            .filter(|uid| !desired.contains_key(uid))
            .copied()
            .collect();
        for uid in gone {
            self.unwanted(now, uid);
        }
        self.changed(now, desired);
    }

    fn changed(&mut self, now: Now, desired: BTreeMap<Uid, Result<Pod, String>>) {
        for (uid, parsed) in desired {
            match (self.pods.get_mut(&uid), parsed) {
                (None, parsed) => {
                    let is_static = self.is_static(uid);
                    let standing = if is_static {
                        Standing::Static
                    } else {
                        Standing::New
                    };
                    self.accept(now, uid, parsed, standing);
                }
                (Some(state), Ok(pod)) => {
                    if state.asked.as_ref().or(state.pod.as_ref()) != Some(&pod) {
                        self.update(now, uid, pod);
                    }
                    // A ConfigMap or Secret that was missing may have come.
                    self.retry_unmet(now, uid);
                }
                (Some(_), Err(_)) => {}
            }
            self.reconcile(now, uid);
        }
    }

    /// Takes a Pod in.
    fn accept(&mut self, now: Now, uid: Uid, parsed: Result<Pod, String>, standing: Standing) {
        let accepted_at = self.durable.accepted.get(&uid).copied().unwrap_or(now.unix);
        let (pod, invalid) = match parsed {
            Ok(pod) => (Some(pod), None),
            Err(message) => (None, Some(("UnexpectedAdmissionError".to_owned(), message))),
        };
        let mut state = PodState::new(uid, pod, accepted_at);
        for container in &mut state.containers {
            let key = (uid, container.name.clone());
            if let Some(record) = self.durable.containers.get(&key) {
                container.recall(record);
            }
            if let Some(attempt) = self.durable.started.get(&key) {
                container.recall_start(*attempt);
            }
        }
        state.rejected = invalid.or_else(|| self.durable.rejected.get(&uid).cloned());
        let failed = self.durable.failed.get(&uid).cloned();
        state.failed = failed.map(|(reason, message)| Failed::recovered(reason, message, now.mono));
        if admission::holds_resources(&state) {
            let refuse = |pod| admission::refuse(&self.config, &self.pods, &self.pressure, pod, standing);
            state.rejected = state.pod.as_ref().and_then(refuse);
            // Failed is for good, also when there is room after the next restart; but a static Pod has nobody who makes
            // another.
            if let Some((reason, message)) = state.rejected.clone()
                && !self.is_static(uid)
            {
                self.record(now, vec![Record::Rejected(uid, reason, message)]);
            }
        }
        if let Some((reason, message)) = state.rejected.clone() {
            self.event(now, uid, None, true, &reason, message);
        }
        if let Some(grace) = state.pod.as_ref().and_then(|pod| pod.deletion_grace_seconds) {
            state.ending = Some(now.mono + u64::from(grace) * 1000);
        }
        self.count_deadline(now, &mut state);
        self.pods.insert(uid, state);
        self.touch(now, uid);
    }

    /// The same Pod with another spec: an image may change, labels may, and it may be asked to end.
    pub(crate) fn update(&mut self, now: Now, uid: Uid, asked: Pod) {
        let old = self.pods.get(&uid).and_then(|it| it.pod.clone());
        let (pod, refused) = match &old {
            Some(old) => self.grant(old, asked.clone()),
            None => (asked.clone(), None),
        };
        let downward = old.as_ref().is_some_and(|old| downward_differs(old, &pod));
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        state.asked = refused.is_some().then_some(asked);
        state.resize = refused;
        if let Some(grace) = pod.deletion_grace_seconds {
            let deadline = now.mono + u64::from(grace) * 1000;
            // Asked again, only a shorter grace counts.
            let deadline = state.ending.map_or(deadline, |before| before.min(deadline));
            state.ending = Some(deadline);
            for container in &mut state.containers {
                container.end_by(deadline, false);
            }
        }
        let grace = u64::from(pod.termination_grace_seconds) * 1000;
        for spec in pod.all_containers() {
            let old = old.as_ref().and_then(|old| old.container(&spec.name));
            let Some(container) = state.containers.iter_mut().find(|it| it.name == spec.name) else {
                continue;
            };
            if old != Some(spec) {
                if old.is_none_or(|old| old.image != spec.image) && !container.alive() {
                    container.image.forget();
                }
                let resized = old.is_some_and(|old| Self::spec_digest(old) == Self::spec_digest(spec));
                if !resized {
                    container.start_afresh(now.mono);
                }
                container.replace_unless(now.mono, spec, grace);
            }
        }
        let seconds = |pod: &Pod| pod.active_deadline_seconds;
        let since = old.as_ref().map(seconds) != Some(seconds(&pod));
        state.pod = Some(pod);
        let runs = state.lives() && state.any_alive();
        if since && let Some(mut state) = self.pods.remove(&uid) {
            self.count_deadline(now, &mut state);
            self.pods.insert(uid, state);
        }
        if downward && runs {
            self.refresh(uid);
        }
        self.touch(now, uid);
    }

    pub(crate) fn unwanted(&mut self, now: Now, uid: Uid) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        if state.removal == Step::Done {
            self.pods.remove(&uid);
            return;
        }
        state.pod = state.pod.take().filter(|_| state.ending.is_some());
        let deadline = state.ending.map_or(now.mono + FORCED_GRACE, |before| {
            before.min(now.mono + FORCED_GRACE)
        });
        state.ending = Some(deadline);
        state.forced = true;
        // Nobody asks any more how it is.
        for container in &mut state.containers {
            container.health.leave();
        }
        self.reconcile(now, uid);
    }

    pub(crate) fn reconcile_due(&mut self, now: Now) {
        let due = self
            .pods
            .values()
            .filter(|it| it.deadline().is_some_and(|at| at <= now.mono));
        let due: Vec<Uid> = due.map(|it| it.uid).collect();
        for uid in due {
            self.reconcile(now, uid);
        }
    }

    /// Brings one Pod a step nearer to what it shall be. Asks for nothing twice.
    pub(crate) fn reconcile(&mut self, now: Now, uid: Uid) {
        self.reconcile_containers(now, uid);
        self.reconcile_sandbox(now, uid);
        self.reconcile_removal(now, uid);
    }

    fn reconcile_sandbox(&mut self, now: Now, uid: Uid) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        if !state.wants_sandbox() {
            return;
        }
        let due = match state.sandbox {
            Step::Absent => true,
            Step::Waiting(until) => until <= now.mono,
            Step::Asked | Step::Done => false,
        };
        if due {
            state.sandbox = Step::Asked;
            state.begin_anew();
            let ip = self.ipam.assign(uid);
            state.ip = ip;
            self.effects.push(Effect::MakeSandbox { pod: uid, ip });
        }
    }

    fn reconcile_removal(&mut self, now: Now, uid: Uid) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        if !state.removable() {
            return;
        }
        let due = match state.removal {
            Step::Absent => true,
            Step::Waiting(until) => until <= now.mono,
            Step::Asked | Step::Done => false,
        };
        if due {
            state.removal = Step::Asked;
            self.effects.push(Effect::Remove(uid));
        }
    }

    pub(crate) fn sandbox_ready(&mut self, now: Now, uid: Uid) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        state.sandbox = Step::Done;
        state.sandbox_backoff = Default::default();
        self.touch(now, uid);
        self.reconcile(now, uid);
    }

    pub(crate) fn sandbox_failed(&mut self, now: Now, uid: Uid, message: &str) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        state.sandbox = Step::Waiting(now.mono + state.sandbox_backoff.failed());
        let message = format!("Failed to create pod sandbox: {message}");
        self.event(now, uid, None, true, "FailedCreatePodSandBox", message);
        self.touch(now, uid);
        self.reconcile(now, uid);
    }

    pub(crate) fn removed(&mut self, now: Now, uid: Uid) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        state.removal = Step::Done;
        state.sandbox = Step::Absent;
        let deleted = state
            .pod
            .as_ref()
            .is_none_or(|pod| pod.deletion_grace_seconds.is_some());
        self.ipam.release(uid);
        let wanted = self.durable.holds(uid);
        let evicted = state.failed.as_ref().is_some_and(Failed::evicted);
        if wanted && evicted && !deleted {
            // What was made for it is gone; it stays in the node's books until the server deletes it.
            self.touch(now, uid);
            return;
        }
        if !wanted || !deleted {
            self.pods.remove(&uid);
        }
        // Nobody wanted it when its removal began, and now somebody does: it begins anew.
        if wanted
            && !deleted
            && let Some(parsed) = self.desired_pods().remove(&uid)
        {
            self.accept(now, uid, parsed, Standing::New);
            self.reconcile(now, uid);
        }
        self.touch(now, uid);
    }

    pub(crate) fn remove_failed(&mut self, now: Now, uid: Uid, message: String) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        state.removal = Step::Waiting(now.mono + REMOVE_AGAIN);
        self.event(now, uid, None, true, "FailedKillPod", message);
    }

    /// The shim is gone and its containers with it: they ended in a way that nobody saw.
    pub(crate) fn shim_lost(&mut self, now: Now, uid: Uid) {
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        // One that could not be made keeps its back-off: a shim that dies of it must not be started in a loop.
        if state.sandbox == Step::Done {
            state.sandbox = Step::Absent;
        }
        let alive = state.containers.iter().filter(|it| it.alive());
        let lost: Vec<(String, u32)> = alive.map(|it| (it.name.clone(), it.restart_count)).collect();
        for (name, attempt) in lost {
            self.container_lost(
                now,
                &crate::ContainerRef {
                    pod: uid,
                    name,
                    attempt,
                },
            );
        }
        if let Some(state) = self.pods.get_mut(&uid)
            && state.sandbox == Step::Absent
        {
            state.begin_anew();
        }
        self.touch(now, uid);
        self.reconcile(now, uid);
    }
}
