//! What the core knows of each Pod, and the states it goes through.
//!
//! ```text
//!                       desired, admitted
//!   sandbox:  Absent ───────────────────▶ Making ──▶ Ready
//!                ▲                           │
//!                └── Waiting(until) ◀────────┘ failed
//!
//!   container: Waiting ──▶ Starting ──▶ Running ──▶ Done            (policy says no restart, or the Pod ends)
//!                ▲             │           │
//!                │             └─────┬─────┘ exited, or did not start
//!                └── Backoff ◀───────┘
//!
//!   removal:  No ──▶ Asked ──▶ Done        (once nothing runs any more and the Pod is to end)
//!                      │  ▲
//!                      └──┘ Waiting(until), failed
//! ```
//!
//! Always holds: a container is `Starting` exactly while one start is on its way; answers to other attempts change nothing.

use std::net::Ipv4Addr;

use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::status::Terminated;

use crate::backoff::Backoff;

/// Milliseconds on a clock that never jumps.
pub(crate) type Mono = u64;

/// A Pod on this node.
#[derive(Clone, Debug)]
pub(crate) struct PodState {
    pub(crate) uid: Uid,
    /// What it shall be; `None` for one that was found running and that nobody wants.
    pub(crate) pod: Option<Pod>,
    /// Refused by this node: reason and message.
    pub(crate) rejected: Option<(String, String)>,
    pub(crate) accepted_at: i64,
    pub(crate) sandbox: Step,
    pub(crate) sandbox_backoff: Backoff,
    pub(crate) ip: Option<Ipv4Addr>,
    pub(crate) containers: Vec<ContainerState>,
    /// When all must be over.
    pub(crate) ending: Option<Mono>,
    pub(crate) removal: Step,
    pub(crate) ready: bool,
    pub(crate) ready_since: Option<i64>,
    /// Hash of the status last reported.
    pub(crate) reported: u64,
}

/// Something that is asked for once and may have to be asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Not asked for.
    Absent,
    /// Asked for, not answered.
    Asked,
    /// Failed; asked for again at this time.
    Waiting(Mono),
    /// Done.
    Done,
}

/// A container of a Pod.
#[derive(Clone, Debug)]
pub(crate) struct ContainerState {
    pub(crate) name: String,
    pub(crate) phase: Phase,
    pub(crate) image: Image,
    pub(crate) image_id: String,
    /// Starts after the first; also the attempt that is running or was last.
    pub(crate) restart_count: u32,
    /// [`crate::Core::spec_digest`] of what was started last.
    pub(crate) digest: u64,
    /// It has been started in this boot or an earlier one.
    pub(crate) ran: bool,
    pub(crate) last: Option<Terminated>,
    pub(crate) crash: Backoff,
    pub(crate) pull: Backoff,
    /// It is being ended.
    pub(crate) stop: Option<Stop>,
    /// It runs from a spec that is no longer the desired one.
    pub(crate) replace: bool,
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// To be started as soon as image and sandbox are there.
    Waiting,
    /// Its configuration cannot be met; tried again at this time.
    Unmet { until: Mono, message: String },
    /// A start is on its way.
    Starting,
    /// Its process runs.
    Running {
        started_at: i64,
        since: Mono,
        container_id: String,
    },
    /// It ended and is started again at this time.
    Backoff { until: Mono },
    /// It ended for good.
    Done(Terminated),
}

/// How far a container's image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Image {
    /// Not asked for.
    Unknown,
    /// Asked for.
    Asked,
    /// Asked for under a name that is no longer the one wanted: the answer says nothing, and is waited for, because it
    /// could not be told from the next one.
    Stale,
    /// In the store.
    Ready,
    /// Not to be had; tried again at this time.
    Waiting {
        until: Mono,
        reason: String,
        message: String,
    },
}

impl Image {
    /// What is known of it, or asked about it, is of no use any more.
    pub(crate) fn forget(&mut self) {
        *self = match self {
            Self::Asked | Self::Stale => Self::Stale,
            Self::Unknown | Self::Ready | Self::Waiting { .. } => Self::Unknown,
        };
    }
}

/// How far the ending of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stop {
    pub(crate) deadline: Mono,
    pub(crate) asked: bool,
    pub(crate) killed: bool,
}

impl ContainerState {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            phase: Phase::Waiting,
            image: Image::Unknown,
            image_id: String::new(),
            restart_count: 0,
            digest: 0,
            ran: false,
            last: None,
            crash: Backoff::default(),
            pull: Backoff::default(),
            stop: None,
            replace: false,
        }
    }

    /// Whether a process of it may exist.
    pub(crate) fn alive(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running { .. })
    }

    /// The next moment at which something is to be done for it.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        let running = matches!(self.phase, Phase::Running { .. });
        let stop = self
            .stop
            .filter(|stop| !stop.killed && running)
            .map(|stop| stop.deadline);
        let phase = match &self.phase {
            Phase::Backoff { until } | Phase::Unmet { until, .. } => Some(*until),
            Phase::Waiting => match &self.image {
                Image::Waiting { until, .. } => Some(*until),
                Image::Unknown | Image::Asked | Image::Stale | Image::Ready => None,
            },
            Phase::Starting | Phase::Running { .. } | Phase::Done(_) => None,
        };
        stop.into_iter().chain(phase).min()
    }
}

impl PodState {
    pub(crate) fn new(uid: Uid, pod: Option<Pod>, accepted_at: i64) -> Self {
        let containers = pod
            .iter()
            .flat_map(|pod| &pod.containers)
            .map(|it| ContainerState::new(&it.name))
            .collect();
        Self {
            uid,
            pod,
            rejected: None,
            accepted_at,
            sandbox: Step::Absent,
            sandbox_backoff: Backoff::default(),
            ip: None,
            containers,
            ending: None,
            removal: Step::Absent,
            ready: false,
            ready_since: None,
            reported: 0,
        }
    }

    pub(crate) fn container(&mut self, name: &str) -> Option<&mut ContainerState> {
        self.containers.iter_mut().find(|it| it.name == name)
    }

    /// Whether a sandbox is of use.
    pub(crate) fn wants_sandbox(&self) -> bool {
        let wanted = self
            .containers
            .iter()
            .any(|it| !matches!(it.phase, Phase::Done(_)));
        self.ending.is_none() && self.rejected.is_none() && wanted
    }

    /// Whether it is to end, and nothing of it is in the way.
    pub(crate) fn removable(&self) -> bool {
        self.ending.is_some()
            && self.sandbox != Step::Asked
            && !self.containers.iter().any(ContainerState::alive)
    }

    /// The next moment at which something is to be done for it.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        let waiting = |step| {
            if let Step::Waiting(until) = step {
                Some(until)
            } else {
                None
            }
        };
        let containers = self.containers.iter().filter_map(|it| {
            // A Pod that ends starts nothing any more; only what is being ended has a deadline.
            if self.ending.is_some() && !it.alive() || self.rejected.is_some() {
                None
            } else {
                it.deadline()
            }
        });
        let sandbox = if self.wants_sandbox() {
            waiting(self.sandbox)
        } else {
            None
        };
        let removal = if self.removable() {
            waiting(self.removal)
        } else {
            None
        };
        containers.chain(sandbox).chain(removal).min()
    }
}
