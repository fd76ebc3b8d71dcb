//! What the core is told.

use std::net::Ipv4Addr;

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::{Down, NodeInfo};

use crate::effect::ContainerRef;
use crate::statics::Manifests;

/// Something that happened outside.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The node's own directory of manifests was read, whole: before [`Event::Observed`], and whenever it has changed.
    Statics(Manifests),
    /// The shims that were found at the start, once, before anything else but [`Event::Statics`].
    Observed(Vec<ObservedPod>),
    /// The link stands; hello is due.
    LinkUp(NodeInfo),
    /// The link broke.
    LinkDown,
    /// The node's own state changed.
    NodeChanged(NodeInfo),
    /// A message of the server.
    Down(Down),
    /// The records of this [`crate::Effect::Append`] are durable.
    Durable(u64),
    /// They are not and will not be: the journal refused them.
    NotDurable(u64),
    /// The image of this container is being fetched; said between [`crate::Effect::EnsureImage`] and its answer.
    Pulling(ContainerRef),
    /// A pull goes on; `text` says how far it is.
    PullProgress {
        /// The container that waits for it.
        container: ContainerRef,
        /// For people.
        text: String,
    },
    /// Nothing is in the way of this start any more; said between [`crate::Effect::Start`] and its answer, and done once the
    /// records that follow are durable.
    Launched(ContainerRef),
    /// The image of this container is in the store.
    ImageReady {
        /// Which.
        container: ContainerRef,
        /// `imageID`.
        image_id: String,
    },
    /// The image of this container could not be had.
    ImageFailed {
        /// Which.
        container: ContainerRef,
        /// Why.
        error: ImageError,
    },
    /// The Pod's sandbox stands.
    SandboxReady(Uid),
    /// The Pod's sandbox could not be made.
    SandboxFailed(Uid, String),
    /// The container's process runs.
    Started {
        /// Which.
        container: ContainerRef,
        /// `containerID`.
        container_id: String,
    },
    /// The container did not start.
    StartFailed {
        /// Which.
        container: ContainerRef,
        /// Why.
        error: StartError,
    },
    /// The container's process ended.
    Exited {
        /// Which.
        container: ContainerRef,
        /// How.
        exit: Exit,
    },
    /// A probe was tried once.
    Probed {
        /// Which container.
        container: ContainerRef,
        /// Which of its probes.
        kind: ProbeKind,
        /// What came of it.
        outcome: ProbeOutcome,
    },
    /// A lifecycle hook has ended; the error is what a kubelet would say in its event.
    HookDone {
        /// Which container.
        container: ContainerRef,
        /// Which of its hooks.
        kind: HookKind,
        /// How.
        result: Result<(), String>,
    },
    /// The container's limits are those asked for, or cannot be.
    Resized {
        /// Which container.
        container: ContainerRef,
        /// How; the error is the kernel's word.
        result: Result<(), String>,
    },
    /// The node is short of something, or no longer is; told when it changes, and again while something is short.
    Pressure(Pressure),
    /// The Pod has used more of the node's disk than it may; the message says what and how much.
    OverLimit(Uid, String),
    /// The files of a PersistentVolume that nobody desires any more are gone.
    VolumeDropped(String),
    /// Everything that was made for the Pod is gone.
    Removed(Uid),
    /// It is not.
    RemoveFailed(Uid, String),
    /// The Pod's shim ended without being asked; its containers were killed.
    ShimLost(Uid),
    /// The deadline given by [`crate::Core::next_deadline`] has come.
    Tick,
}

/// Which probe of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "Kubernetes' own names")]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

/// What came of one try of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeOutcome {
    /// It succeeded.
    Success,
    /// It failed, or took longer than its timeout; the message is what a kubelet would say.
    Failure(String),
    /// It could not be tried; says nothing about the container.
    Unknown(String),
}

/// Which lifecycle hook of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "Kubernetes' own names")]
pub enum HookKind {
    PostStart,
    PreStop,
}

/// What the node is short of, and what each Pod uses of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// `MemoryPressure`: with the message of the condition.
    pub memory: Option<String>,
    /// `DiskPressure`.
    pub disk: Option<String>,
    /// `PIDPressure`.
    pub pids: Option<String>,
    /// Use per Pod; only of what is short.
    pub usage: Vec<Usage>,
}

/// What one Pod uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Which Pod.
    pub pod: Uid,
    /// Bytes of memory: the working set.
    pub memory: u64,
    /// Bytes of disk: writable layers and emptyDirs.
    pub disk: u64,
    /// Processes.
    pub pids: u64,
}

/// Why an image is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageError {
    /// Kubernetes' reason: `ErrImagePull`, `InvalidImageName`, `ErrImageNeverPull`.
    pub reason: String,
    /// The registry's answer among it.
    pub message: String,
    /// Trying again can help.
    pub retry: bool,
}

/// Why a container did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartError {
    /// Its configuration cannot be met yet; it counts as no start (`CreateContainerConfigError`).
    Config(String),
    /// It was tried and failed: counts as an exit with this code.
    Failed {
        /// 127 where the command was not found, 126 where it cannot be executed, else 128.
        exit_code: i32,
        /// The kernel's word.
        message: String,
    },
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// 128 + signal where a signal ended it.
    pub exit_code: i32,
    /// 0 where none.
    pub signal: i32,
    /// The kernel killed it for want of memory.
    pub oom_killed: bool,
    /// Seconds since 1970.
    pub started_at: i64,
    /// Seconds since 1970.
    pub finished_at: i64,
    /// The container's own word about its end: `terminationMessagePath`.
    pub message: String,
}

/// A Pod whose shim was found running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPod {
    /// Which.
    pub uid: Uid,
    /// Its sandbox stands.
    pub sandbox: bool,
    /// Its address.
    pub ip: Option<Ipv4Addr>,
    /// Its containers.
    pub containers: Vec<ObservedContainer>,
}

/// A container of such a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedContainer {
    /// Its name.
    pub name: String,
    /// How often it had been restarted when it was started.
    pub attempt: u32,
    /// `containerID`.
    pub container_id: String,
    /// `imageID` of the image it was started from.
    pub image_id: String,
    /// The digest of the spec it was started from, by [`crate::Core::spec_digest`]; `None` where it is not known.
    pub spec_digest: Option<u64>,
    /// What was known of its probes; see [`crate::Effect::Note`].
    pub probed: Probed,
    /// Where it is.
    pub phase: ObservedPhase,
}

/// What a restart of the agent must not forget of a container's probes: nothing healthy becomes unready by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// Its startup probe has succeeded, and its postStart hook has ended.
    pub started: bool,
    /// Its readiness probe stands at success.
    pub ready: bool,
}

/// Where an observed container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObservedPhase {
    /// Its start was under way when the agent ended, and still is or has just failed.
    Starting,
    /// It runs, since this many seconds after 1970.
    Running(i64),
    /// It ended.
    Exited(Exit),
}
