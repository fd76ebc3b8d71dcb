//! Probes: when each is tried, and what follows from its outcomes.
//!
//! ```text
//!   Started ──▶ postStart hook ──▶ startup probe ──success──▶ started ──▶ liveness and readiness probes
//!    (either is skipped where there is none)    └─failure──▶ ended, and restarted by policy    │
//!                                                                ▲                             │
//!                     liveness, failureThreshold times in a row ─┘◀────────────────────────────┘
//!                     readiness moves `ready`, by successThreshold and failureThreshold
//! ```
//!
//! Source: Kubernetes documentation, "Configure Liveness, Readiness and Startup Probes".
//!
//! Always holds: no two tries of one probe are in flight; an outcome that says nothing counts neither way; a container
//! that is being ended is not ended for its probes.

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Container, Probe};

use crate::effect::{ContainerRef, Effect};
use crate::event::{ProbeKind, ProbeOutcome, Probed};
use crate::machine::{Core, Now};
use crate::out::Out;
use crate::state::{ContainerState, Mono, Phase};
use crate::stop::Why;

/// The first tries of liveness probes are spread over so many milliseconds, or their period where that is less.
const SPREAD: u64 = 1_000;

/// What is known of the health of a process that runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    /// Its postStart hook has ended, and its startup probe has succeeded.
    pub(crate) started: bool,
    /// Its readiness probe stands at success, or it has none and is started.
    pub(crate) ready: bool,
    /// Its postStart hook runs.
    pub(crate) post_start: bool,
    /// Its postStart hook has failed.
    pub(crate) post_start_failed: bool,
    /// What the next agent would be told of it.
    noted: Probed,
    probes: Vec<Run>,
}

/// A probe that is being tried again and again.
#[derive(Clone, Debug)]
struct Run {
    kind: ProbeKind,
    /// When it is tried next.
    due: Mono,
    in_flight: bool,
    /// The last outcome that said something.
    success: bool,
    /// So often in a row.
    row: u32,
    /// Tries in a row that said nothing.
    unknown: u32,
}

impl Health {
    /// Nothing is tried any more.
    pub(crate) fn leave(&mut self) {
        self.probes.clear();
    }

    /// When there is something to try; of one that is being ended only readiness is still of interest.
    pub(crate) fn next(&self, ending: bool) -> Option<Mono> {
        let wanted = |it: &&Run| !it.in_flight && (!ending || it.kind == ProbeKind::Readiness);
        self.probes.iter().filter(wanted).map(|it| it.due).min()
    }
}

fn of(spec: &Container, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => spec.startup.as_ref(),
        ProbeKind::Liveness => spec.liveness.as_ref(),
        ProbeKind::Readiness => spec.readiness.as_ref(),
    }
}

/// Kubernetes' word at the beginning of a sentence.
fn word(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Startup => "Startup",
        ProbeKind::Liveness => "Liveness",
        ProbeKind::Readiness => "Readiness",
    }
}

/// A number below `bound` that differs from container to container: the probes of a hundred of them, begun in one moment,
/// must not all fall due in one.
fn spread(uid: Uid, name: &str, bound: u64) -> u64 {
    let bytes = uid.0.iter().copied().chain(name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // FNV's low bits are poor where only the last bytes differ.
    (hash ^ (hash >> 29)) % bound.max(1)
}

impl ContainerState {
    /// Its process runs and its postStart hook, if it has one, has ended. `found`: by an earlier agent.
    pub(crate) fn comes_up(&mut self, now: Mono, uid: Uid, spec: &Container, found: bool, out: &mut Out) {
        if spec.startup.is_some() && !self.health.started {
            self.begin_probe(now, uid, spec, ProbeKind::Startup, found);
        } else {
            self.is_started(now, uid, spec, found, out);
        }
    }

    fn is_started(&mut self, now: Mono, uid: Uid, spec: &Container, found: bool, out: &mut Out) {
        self.health.started = true;
        self.health.ready |= spec.readiness.is_none();
        self.begin_probe(now, uid, spec, ProbeKind::Liveness, found);
        self.begin_probe(now, uid, spec, ProbeKind::Readiness, found);
        self.note(uid, spec, out);
    }

    /// A container that runs is taken over with what was known of it.
    pub(crate) fn found_up(&mut self, now: Mono, uid: Uid, spec: &Container, probed: Probed, out: &mut Out) {
        self.health = Health {
            // A postStart hook is not run again: whatever became of it, it was.
            started: spec.startup.is_none() || probed.started,
            ready: probed.ready && spec.readiness.is_some(),
            noted: probed,
            ..Health::default()
        };
        self.comes_up(now, uid, spec, true, out);
    }

    fn begin_probe(&mut self, now: Mono, uid: Uid, spec: &Container, kind: ProbeKind, found: bool) {
        let (Some(probe), Phase::Running { since, .. }) = (of(spec, kind), &self.phase) else {
            return;
        };
        let period = u64::from(probe.period_seconds) * 1000;
        let spread = match kind {
            _ if found => spread(uid, &self.name, period),
            // Whoever waits for the Pod waits for these.
            ProbeKind::Startup | ProbeKind::Readiness => 0,
            ProbeKind::Liveness => spread(uid, &self.name, period.min(SPREAD)),
        };
        let delay = if found {
            0
        } else {
            u64::from(probe.initial_delay_seconds) * 1000
        };
        self.health.probes.push(Run {
            kind,
            due: now.max(since + delay) + spread,
            in_flight: false,
            success: false,
            row: 0,
            unknown: 0,
        });
    }

    /// Tries what is due.
    pub(crate) fn probe_step(&mut self, now: Mono, uid: Uid, spec: &Container, out: &mut Out) {
        if !self.running() || self.health.next(self.stop.is_some()).is_none_or(|at| at > now) {
            return;
        }
        let container = self.reference(uid);
        let ending = self.stop.is_some();
        for run in &mut self.health.probes {
            let wanted = !run.in_flight && (!ending || run.kind == ProbeKind::Readiness);
            let Some(probe) = of(spec, run.kind).filter(|_| wanted && run.due <= now) else {
                continue;
            };
            let period = u64::from(probe.period_seconds.max(1)) * 1000;
            run.in_flight = true;
            run.due += period * (1 + (now - run.due) / period);
            out.effects.push(Effect::Probe {
                container: container.clone(),
                kind: run.kind,
            });
        }
    }

    /// Has the next agent know what it must not forget.
    fn note(&mut self, uid: Uid, spec: &Container, out: &mut Out) {
        out.changed = true;
        let probed = Probed {
            started: self.health.started,
            ready: self.health.ready,
        };
        // Of others everything follows from their running.
        let noted = spec.startup.is_some() || spec.readiness.is_some() || spec.post_start.is_some();
        if noted && probed != self.health.noted {
            self.health.noted = probed;
            out.effects.push(Effect::Note {
                container: self.reference(uid),
                probed,
            });
        }
    }

    /// Counts an outcome; gives whether the probe's threshold is reached by it.
    fn count(
        &mut self,
        kind: ProbeKind,
        spec: &Container,
        outcome: ProbeOutcome,
        out: &mut Out,
    ) -> Option<bool> {
        let probe = of(spec, kind)?;
        let run = self.health.probes.iter_mut();
        let run = run.into_iter().find(|it| it.kind == kind && it.in_flight)?;
        run.in_flight = false;
        // Kubernetes counts equal events; here each goes over the link, so a long row is told ever more rarely.
        let (success, threshold) = match outcome {
            ProbeOutcome::Success => (true, probe.success_threshold),
            ProbeOutcome::Failure(_) => (false, probe.failure_threshold),
            ProbeOutcome::Unknown(message) => {
                run.unknown = run.unknown.saturating_add(1);
                if run.unknown.is_power_of_two() {
                    let message = format!("{} probe errored: {message}", word(kind));
                    out.warn(&self.name, "Unhealthy", message);
                }
                return None;
            }
        };
        run.unknown = 0;
        run.row = if run.success == success {
            run.row.saturating_add(1)
        } else {
            1
        };
        run.success = success;
        let reached = run.row >= threshold;
        if let ProbeOutcome::Failure(message) = outcome
            && (run.row.is_power_of_two() || run.row == threshold)
        {
            let message = format!("{} probe failed: {message}", word(kind));
            out.warn(&self.name, "Unhealthy", message);
        }
        reached.then_some(success)
    }
}

impl Core {
    pub(crate) fn probed(
        &mut self,
        now: Now,
        reference: &ContainerRef,
        kind: ProbeKind,
        outcome: ProbeOutcome,
    ) {
        if self.current(reference).is_none_or(|it| !it.running()) {
            return;
        }
        let uid = reference.pod;
        let Some(state) = self.pods.get_mut(&uid) else {
            return;
        };
        let Some((container, spec, pod)) = state.with_spec(&reference.name) else {
            return;
        };
        let mut out = Out::default();
        let reached = container.count(kind, spec, outcome, &mut out);
        match (kind, reached) {
            (_, None) | (ProbeKind::Liveness, Some(true)) => {}
            (ProbeKind::Startup, Some(true)) => {
                container.health.probes.retain(|it| it.kind != ProbeKind::Startup);
                container.is_started(now.mono, uid, spec, false, &mut out);
            }
            (ProbeKind::Readiness, Some(ready)) => {
                if container.health.ready != ready {
                    container.health.ready = ready;
                    container.note(uid, spec, &mut out);
                }
            }
            (ProbeKind::Liveness | ProbeKind::Startup, Some(false)) if container.stop.is_none() => {
                let liveness = kind == ProbeKind::Liveness;
                container.why = Some(if liveness { Why::Liveness } else { Why::Startup });
                let grace = of(spec, kind).and_then(|it| it.termination_grace_seconds);
                let grace = u64::from(grace.unwrap_or(pod.termination_grace_seconds)) * 1000;
                container.end_by(now.mono + grace, false);
                out.changed = true;
            }
            (ProbeKind::Liveness | ProbeKind::Startup, Some(false)) => {}
        }
        // Most outcomes change nothing, and then nothing more is looked at.
        let changed = out.changed;
        let due = container.health.next(container.stop.is_some());
        let due = due.is_some_and(|at| at <= now.mono);
        self.take_out(now, uid, out);
        if changed || due {
            self.reconcile(now, uid);
        }
    }
}
