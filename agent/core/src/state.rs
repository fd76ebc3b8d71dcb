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
//!   removal:  No ──▶ Asked ──▶ Done        (once nothing runs any more and the Pod is to end, or was evicted)
//!                      │  ▲
//!                      └──┘ Waiting(until), failed
//! ```
//!
//! The order of a Pod's containers, who may start and who is passed, stands in [`crate::init`]; how one comes up and stays
//! healthy in [`crate::probes`]; how one is ended in [`crate::stop`]; how a whole Pod fails in [`crate::eviction`].
//!
//! Always holds: a container is `Starting` exactly while one start is on its way; answers to other attempts change nothing.

use std::net::Ipv4Addr;

use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::Container;
use skiff_protocol::wire::status::{InForce, Terminated};

use crate::backoff::Backoff;
use crate::effect::ContainerRef;
use crate::eviction::{Failed, Failing};
use crate::probes::Health;
use crate::stop::{Stop, Why};

/// Milliseconds on a clock that never jumps.
pub(crate) type Mono = u64;

/// A Pod on this node.
#[derive(Clone, Debug)]
pub(crate) struct PodState {
    pub(crate) uid: Uid,
    /// What it shall be; `None` for one that was found running and that nobody wants.
    pub(crate) pod: Option<Pod>,
    /// What it was asked to be, where a change of its resources is not granted: `pod` then has the former ones.
    pub(crate) asked: Option<Pod>,
    /// Refused by this node: reason and message.
    pub(crate) rejected: Option<(String, String)>,
    /// It is about to fail as a whole, once the journal has it.
    pub(crate) failing: Option<Failing>,
    /// It failed as a whole: by its deadline, or evicted.
    pub(crate) failed: Option<Failed>,
    pub(crate) accepted_at: i64,
    /// When `activeDeadlineSeconds` are over.
    pub(crate) active_until: Option<Mono>,
    pub(crate) sandbox: Step,
    pub(crate) sandbox_backoff: Backoff,
    pub(crate) ip: Option<Ipv4Addr>,
    /// So many of `containers`, the first ones, are init containers.
    pub(crate) inits: usize,
    /// The init containers, then the others; each in the spec's order.
    pub(crate) containers: Vec<ContainerState>,
    /// When the init containers had all done their part in this sandbox.
    pub(crate) initialized_since: Option<i64>,
    /// When all must be over.
    pub(crate) ending: Option<Mono>,
    /// It ends without hooks and without more time than it was given.
    pub(crate) forced: bool,
    pub(crate) removal: Step,
    /// Why a change of its resources is not in force: reason and message.
    pub(crate) resize: Option<(String, String)>,
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

/// What part a container has in its Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An init container: it ends before the next begins.
    Init,
    /// An init container that is always restarted: it runs along with what comes after it.
    Sidecar,
    /// One of `spec.containers`.
    Regular,
}

/// A container of a Pod.
#[derive(Clone, Debug)]
pub(crate) struct ContainerState {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) phase: Phase,
    pub(crate) image: Image,
    pub(crate) image_id: String,
    /// When the pull that is under way began.
    pub(crate) pulling: Option<Mono>,
    /// Credentials have come since it was asked for.
    pub(crate) new_keys: bool,
    /// Starts after the first; also the attempt that is running or was last.
    pub(crate) restart_count: u32,
    /// [`crate::Core::spec_digest`] of what was started last.
    pub(crate) digest: u64,
    /// It has been started in this boot or an earlier one.
    pub(crate) ran: bool,
    /// The journal has its start and not its end, and nobody has found it running yet.
    pub(crate) interrupted: bool,
    pub(crate) last: Option<Terminated>,
    pub(crate) crash: Backoff,
    pub(crate) pull: Backoff,
    /// Started, ready, and its probes; of the process that runs.
    pub(crate) health: Health,
    /// It is being ended.
    pub(crate) stop: Option<Stop>,
    /// Why it is ended, where it is not for a change or for the end of the Pod.
    pub(crate) why: Option<Why>,
    /// It runs from a spec that is no longer the desired one.
    pub(crate) replace: bool,
    /// The resources it runs with; `None` where that is not known.
    pub(crate) in_force: Option<InForce>,
    /// The resources that it is being given.
    pub(crate) resizing: Option<InForce>,
    /// The kernel refused them; tried again at this time.
    pub(crate) resize_again: Mono,
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// To be started as soon as image and sandbox are there and its turn has come.
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
    /// It ended and is started again at this time, after a wait of so many milliseconds.
    Backoff { until: Mono, wait: u64 },
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

impl ContainerState {
    pub(crate) fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            phase: Phase::Waiting,
            image: Image::Unknown,
            image_id: String::new(),
            pulling: None,
            new_keys: false,
            restart_count: 0,
            digest: 0,
            ran: false,
            interrupted: false,
            last: None,
            crash: Backoff::default(),
            pull: Backoff::default(),
            health: Health::default(),
            stop: None,
            why: None,
            replace: false,
            in_force: None,
            resizing: None,
            resize_again: 0,
        }
    }

    /// Whether a process of it may exist.
    pub(crate) fn alive(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running { .. })
    }

    pub(crate) fn running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub(crate) fn reference(&self, pod: Uid) -> ContainerRef {
        ContainerRef {
            pod,
            name: self.name.clone(),
            attempt: self.restart_count,
        }
    }

    /// The next moment at which something is to be done for it.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        match &self.phase {
            Phase::Backoff { until, .. } | Phase::Unmet { until, .. } => Some(*until),
            Phase::Waiting => match &self.image {
                Image::Waiting { until, .. } => Some(*until),
                Image::Unknown | Image::Asked | Image::Stale | Image::Ready => None,
            },
            Phase::Running { .. } => {
                let stop = self.stop.and_then(|stop| stop.next());
                let resizes = self.resize_again > 0 && self.stop.is_none();
                let resize = Some(self.resize_again).filter(|_| resizes);
                let probes = self.health.next(self.stop.is_some());
                stop.into_iter().chain(resize).chain(probes).min()
            }
            Phase::Starting | Phase::Done(_) => None,
        }
    }
}

fn kind(at: usize, inits: usize, spec: &Container) -> Kind {
    match at < inits {
        true if spec.sidecar => Kind::Sidecar,
        true => Kind::Init,
        false => Kind::Regular,
    }
}

impl PodState {
    pub(crate) fn new(uid: Uid, pod: Option<Pod>, accepted_at: i64) -> Self {
        let inits = pod.as_ref().map_or(0, |pod| pod.init_containers.len());
        let specs = pod.iter().flat_map(|pod| pod.all_containers()).enumerate();
        let containers = specs
            .map(|(at, it)| ContainerState::new(&it.name, kind(at, inits, it)))
            .collect();
        Self {
            uid,
            pod,
            asked: None,
            rejected: None,
            failing: None,
            failed: None,
            accepted_at,
            active_until: None,
            sandbox: Step::Absent,
            sandbox_backoff: Backoff::default(),
            ip: None,
            inits,
            containers,
            initialized_since: (inits == 0).then_some(accepted_at),
            ending: None,
            forced: false,
            removal: Step::Absent,
            resize: None,
            ready: false,
            ready_since: None,
            reported: 0,
        }
    }

    pub(crate) fn container(&mut self, name: &str) -> Option<&mut ContainerState> {
        self.containers.iter_mut().find(|it| it.name == name)
    }

    /// A container and its spec, of a Pod that is known.
    pub(crate) fn with_spec(&mut self, name: &str) -> Option<(&mut ContainerState, &Container, &Pod)> {
        let pod = self.pod.as_ref()?;
        let container = self.containers.iter_mut().find(|it| it.name == name)?;
        Some((container, pod.container(name)?, pod))
    }

    pub(crate) fn any_alive(&self) -> bool {
        self.containers.iter().any(ContainerState::alive)
    }

    /// Whether containers of it are to run, as far as the node is concerned.
    pub(crate) fn lives(&self) -> bool {
        self.pod.is_some()
            && self.ending.is_none()
            && self.rejected.is_none()
            && self.failing.is_none()
            && self.failed.is_none()
    }

    /// When every container of it must have ended, if it is to end.
    pub(crate) fn end(&self) -> Option<Mono> {
        let failed = self.failed.as_ref().map(|it| it.deadline);
        self.ending.into_iter().chain(failed).min()
    }

    /// Whether a sandbox is of use.
    pub(crate) fn wants_sandbox(&self) -> bool {
        let wanted = self
            .containers
            .iter()
            .any(|it| !matches!(it.phase, Phase::Done(_)));
        self.ending.is_none() && self.lives() && wanted && !self.over()
    }

    /// Whether what was made for it is to go, and nothing of it is in the way.
    pub(crate) fn removable(&self) -> bool {
        let evicted = self.failed.as_ref().is_some_and(Failed::evicted);
        (self.ending.is_some() || evicted) && self.sandbox != Step::Asked && !self.any_alive()
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
        // A Pod that ends starts nothing any more; only what is being ended has a deadline.
        let starts = self.lives() && !self.over();
        let containers = (self.containers.iter().enumerate()).filter_map(|(at, it)| {
            let awaited = it.alive() || (starts && self.may_start(at));
            if awaited && self.rejected.is_none() {
                it.deadline()
            } else {
                None
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
        let active = self.active_until.filter(|_| starts);
        containers.chain(sandbox).chain(removal).chain(active).min()
    }
}
