//! How a container that runs is ended.
//!
//! ```text
//!   Due ──preStop──▶ Hook ──ended, or no time left──▶ Turn ──▶ Asked ──no time left──▶ Killed
//!    │                                                 ▲ │
//!    ├── no preStop, or forced ────────────────────────┘ └─ a sidecar of a Pod that ends waits here until everything
//!    └── no grace at all ──▶ Killed                          after it in the spec has ended
//! ```
//!
//! All of it happens within one grace. Whoever has used it up before it could be asked, by its hook or by waiting, is given
//! [`LEAST`] to end, as a kubelet does; unless it is forced.
//!
//! Always holds: nobody is asked twice; an end that was begun is gone through, also when its reason is gone.

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Container, RestartPolicy};

use crate::effect::{Effect, Urgency};
use crate::event::HookKind;
use crate::out::Out;
use crate::state::{ContainerState, Kind, Mono, PodState};

/// The time between being asked and being killed that is always given where the grace was used up before, in
/// milliseconds: a kubelet's `minimumGracePeriodInSeconds`.
const LEAST: u64 = 2_000;

/// How far the ending of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    /// The end of the grace.
    pub(crate) deadline: Mono,
    /// No hook, and no time beyond the grace.
    pub(crate) forced: bool,
    pub(crate) step: StopStep,
}

/// See the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopStep {
    /// To be begun.
    Due,
    /// Its preStop hook runs.
    Hook,
    /// To be asked; `late` when time was lost before.
    Turn { late: bool },
    /// It was asked, and is killed at this time.
    Asked { kill_at: Mono },
    /// It was killed.
    Killed,
}

impl Stop {
    /// When there is something to do.
    pub(crate) fn next(&self) -> Option<Mono> {
        match self.step {
            StopStep::Due | StopStep::Hook | StopStep::Turn { .. } => Some(self.deadline),
            StopStep::Asked { kill_at } => Some(kill_at),
            StopStep::Killed => None,
        }
    }

    /// Whether the container may know of it.
    pub(crate) fn begun(&self) -> bool {
        self.step != StopStep::Due
    }
}

/// Why a container is ended, where it is not for a change or for the end of the Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its liveness probe failed.
    Liveness,
    /// Its startup probe failed.
    Startup,
    /// Its postStart hook failed.
    PostStart,
}

impl ContainerState {
    /// Has it ended by `deadline`, unless it is to end earlier already.
    pub(crate) fn end_by(&mut self, deadline: Mono, forced: bool) {
        let Some(stop) = &mut self.stop else {
            self.stop = Some(Stop {
                deadline,
                forced,
                step: StopStep::Due,
            });
            return;
        };
        stop.forced |= forced;
        if deadline < stop.deadline {
            stop.deadline = deadline;
            if let StopStep::Asked { kill_at } = &mut stop.step {
                *kill_at = deadline.min(*kill_at);
            }
        }
    }

    /// A kubelet's words for its end.
    fn farewell(&self, policy: Option<RestartPolicy>) -> String {
        let name = &self.name;
        let again = match policy {
            Some(RestartPolicy::Never) if self.kind != Kind::Sidecar => "",
            _ => ", will be restarted",
        };
        match self.why {
            Some(Why::Liveness) => format!("Container {name} failed liveness probe{again}"),
            Some(Why::Startup) => format!("Container {name} failed startup probe{again}"),
            Some(Why::PostStart) => "FailedPostStartHook".to_owned(),
            None if self.replace => format!("Container {name} definition changed, will be restarted"),
            None => format!("Stopping container {name}"),
        }
    }

    /// Takes its ending as far as it can go now. `turn`: nobody has to end before it.
    fn stop_step(
        &mut self,
        now: Mono,
        uid: Uid,
        spec: Option<(&Container, RestartPolicy)>,
        turn: bool,
        out: &mut Out,
    ) {
        let Some(mut stop) = self.stop.filter(|_| self.running()) else {
            return;
        };
        let late = stop.deadline <= now;
        if stop.step == StopStep::Due {
            let message = self.farewell(spec.map(|(_, policy)| policy));
            out.tell(&self.name, "Killing", message);
            let hook = spec.is_some_and(|(spec, _)| spec.pre_stop.is_some()) && !stop.forced;
            if late {
                stop.step = self.signal(uid, Urgency::Kill, StopStep::Killed, out);
            } else if hook {
                stop.step = StopStep::Hook;
                out.effects.push(Effect::Hook {
                    container: self.reference(uid),
                    kind: HookKind::PreStop,
                    within: stop.deadline - now,
                });
            } else {
                stop.step = StopStep::Turn { late: false };
            }
        }
        if stop.step == StopStep::Hook && late {
            stop.step = StopStep::Turn { late: true };
        }
        if let StopStep::Turn { late: lost } = stop.step {
            stop.step = if late && stop.forced {
                self.signal(uid, Urgency::Kill, StopStep::Killed, out)
            } else if turn || late {
                let least = if lost && !stop.forced { now + LEAST } else { 0 };
                let kill_at = stop.deadline.max(least);
                self.signal(uid, Urgency::Ask, StopStep::Asked { kill_at }, out)
            } else {
                StopStep::Turn { late: true }
            };
        }
        if let StopStep::Asked { kill_at } = stop.step
            && kill_at <= now
        {
            stop.step = self.signal(uid, Urgency::Kill, StopStep::Killed, out);
        }
        self.stop = Some(stop);
    }

    fn signal(&self, uid: Uid, urgency: Urgency, step: StopStep, out: &mut Out) -> StopStep {
        let container = self.reference(uid);
        out.effects.push(Effect::Stop { container, urgency });
        step
    }

    /// Its preStop hook has ended.
    pub(crate) fn pre_stop_ended(&mut self) {
        if let Some(stop) = &mut self.stop
            && stop.step == StopStep::Hook
        {
            stop.step = StopStep::Turn { late: true };
        }
    }
}

impl PodState {
    /// Takes the ending of each container as far as it can go now.
    pub(crate) fn stop_steps(&mut self, now: Mono, out: &mut Out) {
        let whole = self.end().is_some() || self.over();
        let last = self.containers.iter().rposition(ContainerState::alive);
        let (uid, pod) = (self.uid, self.pod.as_ref());
        for (at, container) in self.containers.iter_mut().enumerate() {
            let turn = container.kind != Kind::Sidecar || !whole || last == Some(at);
            let spec = pod.and_then(|pod| Some((pod.container(&container.name)?, pod.restart_policy)));
            container.stop_step(now, uid, spec, turn, out);
        }
    }
}
