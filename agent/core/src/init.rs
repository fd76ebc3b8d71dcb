//! The order of a Pod's containers.
//!
//! ```text
//!   kind     may start when                                       is passed when        restarted
//!   Init     all before it are passed, the Pod is not initialized it ended with 0       unless it ended with 0, or the
//!                                                                                       policy is Never: the Pod fails
//!   Sidecar  all before it are passed, or the Pod is initialized  it runs, is started   always
//!   Regular  the Pod is initialized                               -                     by policy
//!
//!   initialized: all init containers were passed in this sandbox. A new sandbox begins with the first init container
//!                again; one that is taken over does not.
//!   over:        every regular container has ended for good, or an init container has failed for good. Sidecars are then
//!                ended, the last one first; how they end says nothing about the Pod.
//! ```
//!
//! Source: Kubernetes documentation, "Init Containers" and "Sidecar Containers".
//!
//! Always holds: a Pod that is over starts nothing, not even after a reboot.

use std::collections::BTreeSet;

use skiff_protocol::wire::spec::RestartPolicy;
use skiff_protocol::wire::status::Terminated;

use crate::state::{ContainerState, Image, Kind, Mono, Phase, PodState};
use crate::stop::Why;

impl ContainerState {
    /// Whether those after it need not wait for it.
    fn passed(&self) -> bool {
        match self.kind {
            Kind::Init => matches!(&self.phase, Phase::Done(end) if end.exit_code == 0),
            Kind::Sidecar => self.running() && self.health.started,
            Kind::Regular => true,
        }
    }

    /// Whether it is started again after `end`, in a Pod that goes on.
    pub(crate) fn restarts(&self, policy: RestartPolicy, end: &Terminated) -> bool {
        let probe = matches!(self.why, Some(Why::Liveness | Why::Startup));
        match (self.kind, policy) {
            (Kind::Sidecar, _) => true,
            (Kind::Init, RestartPolicy::Never) => false,
            (Kind::Init, _) => end.exit_code != 0 || probe,
            (Kind::Regular, RestartPolicy::Always) => true,
            (Kind::Regular, RestartPolicy::OnFailure) => end.exit_code != 0 || probe,
            (Kind::Regular, RestartPolicy::Never) => false,
        }
    }
}

impl PodState {
    fn inits(&self) -> &[ContainerState] {
        &self.containers[..self.inits]
    }

    pub(crate) fn regular(&self) -> &[ContainerState] {
        &self.containers[self.inits..]
    }

    /// Whether an init container has ended badly, for good.
    pub(crate) fn init_failed(&self) -> bool {
        let failed = |it: &ContainerState| {
            it.kind == Kind::Init && matches!(&it.phase, Phase::Done(end) if end.exit_code != 0)
        };
        self.inits().iter().any(failed)
    }

    /// Whether its work is over, however it went.
    pub(crate) fn over(&self) -> bool {
        let regular = self.regular();
        let done = |it: &ContainerState| matches!(it.phase, Phase::Done(_));
        (!regular.is_empty() && regular.iter().all(done)) || self.init_failed()
    }

    /// Whether it is the turn of the container at this place.
    pub(crate) fn may_start(&self, at: usize) -> bool {
        let initialized = self.initialized_since.is_some();
        let passed = || self.containers[..at].iter().all(ContainerState::passed);
        match self.containers[at].kind {
            Kind::Regular => initialized,
            Kind::Init => !initialized && passed(),
            Kind::Sidecar => initialized || passed(),
        }
    }

    /// Notes that the init containers are through; gives whether that is new.
    pub(crate) fn note_initialized(&mut self, unix: i64) -> bool {
        let through = self.initialized_since.is_none()
            && self.lives()
            && self.inits().iter().all(ContainerState::passed);
        if through {
            self.initialized_since = Some(unix);
        }
        through
    }

    /// The sandbox that was found knows only these: what the journal says of other init containers they did in one before.
    pub(crate) fn forget_other_sandbox(&mut self, found: &BTreeSet<String>) {
        if self.over() {
            return;
        }
        for container in &mut self.containers[..self.inits] {
            if matches!(container.phase, Phase::Done(_)) && !found.contains(&container.name) {
                container.phase = Phase::Waiting;
            }
        }
    }

    /// The Pod was taken over with its sandbox: what was through is through, since it was.
    pub(crate) fn find_initialized(&mut self, regular_found: bool) {
        if !regular_found && !self.inits().iter().all(ContainerState::passed) {
            return;
        }
        for it in &mut self.containers[..self.inits] {
            // Its shim has forgotten it: it went well, or nothing after it would be there.
            if it.kind == Kind::Init && it.phase == Phase::Waiting {
                it.phase = Phase::Done(Terminated {
                    exit_code: 0,
                    signal: 0,
                    reason: "Completed".to_owned(),
                    message: String::new(),
                    started_at: self.accepted_at,
                    finished_at: self.accepted_at,
                    container_id: String::new(),
                });
            }
        }
        let since = self.inits().iter().filter_map(|it| match &it.phase {
            Phase::Done(end) => Some(end.finished_at),
            Phase::Running { started_at, .. } => Some(*started_at),
            _ => None,
        });
        self.initialized_since = since.max().or(Some(self.accepted_at));
    }

    /// A new sandbox is made: nothing that an init container did in the former one is there.
    pub(crate) fn begin_anew(&mut self) {
        if self.inits == 0 || self.over() {
            return;
        }
        self.initialized_since = None;
        for container in &mut self.containers[..self.inits] {
            if matches!(container.phase, Phase::Done(_)) {
                container.phase = Phase::Waiting;
                container.image = Image::Unknown;
            }
        }
    }

    /// Has those end that are to end because the Pod is.
    pub(crate) fn end_what_is_over(&mut self, now: Mono) {
        if let Some(deadline) = self.end() {
            let forced = self.forced;
            self.containers
                .iter_mut()
                .for_each(|it| it.end_by(deadline, forced));
        } else if self.over()
            && let Some(pod) = &self.pod
        {
            let deadline = now + u64::from(pod.termination_grace_seconds) * 1000;
            let alive = self.containers.iter_mut().filter(|it| it.alive());
            alive
                .filter(|it| it.stop.is_none())
                .for_each(|it| it.end_by(deadline, false));
        }
    }
}
