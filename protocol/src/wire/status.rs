//! What a node says of its Pods.
//!
//! Always holds: a status is whole (latest wins), stamped by the message that carries it, and bounded in text.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::uid::Uid;

/// Seconds since 1970 by the node's clock; below the build's own time when the node has none.
pub type UnixSeconds = i64;

/// `status` of a Pod, as its node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Which Pod.
    pub uid: Uid,
    /// `phase`.
    pub phase: Phase,
    /// `reason`; may be empty.
    pub reason: String,
    /// `message`; may be empty.
    pub message: String,
    /// `podIP`; empty while there is none.
    pub pod_ip: String,
    /// `startTime`.
    pub start_time: Option<UnixSeconds>,
    /// When Ready last changed.
    pub ready_since: Option<UnixSeconds>,
    /// When the init containers had all done their part; `None` while they have not.
    pub initialized_since: Option<UnixSeconds>,
    /// `initContainerStatuses`, in the spec's order.
    pub init_containers: Vec<ContainerStatus>,
    /// `containerStatuses`, in the spec's order.
    pub containers: Vec<ContainerStatus>,
    /// Why a change of resources is not in force: reason (`Deferred`, `Infeasible`, `Error`) and message.
    pub resize: Option<(String, String)>,
    /// The Pod's containers are all gone and so is everything that was made for it.
    pub gone: bool,
}

impl PodStatus {
    /// Whether the Pod is Ready: every container is, and every sidecar. Init containers that have ended count as ready.
    #[must_use]
    pub fn ready(&self) -> bool {
        let mut all = self.containers.iter().chain(&self.init_containers);
        self.phase == Phase::Running && self.initialized_since.is_some() && all.all(|it| it.ready)
    }
}

/// `phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted, not every container has run yet.
    #[default]
    Pending,
    /// Every container was made, at least one runs or is to be restarted.
    Running,
    /// All ended with exit code 0 and none will be restarted.
    Succeeded,
    /// All ended, at least one badly, and none will be restarted.
    Failed,
}

impl Phase {
    /// Kubernetes' word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// `containerStatuses[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// `name`.
    pub name: String,
    /// `state`.
    pub state: ContainerState,
    /// `lastState.terminated`.
    pub last: Option<Terminated>,
    /// `ready`.
    pub ready: bool,
    /// `started`: it runs and its startup probe, if it has one, has succeeded.
    pub started: bool,
    /// `restartCount`.
    pub restart_count: u32,
    /// `imageID`; empty while unknown.
    pub image_id: String,
    /// `containerID`; empty while there is none.
    pub container_id: String,
    /// `resources` as they are in force; `None` where nothing runs.
    pub resources: Option<InForce>,
}

/// The limits and requests that a running container has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// `limits.cpu`, in thousandths of a CPU.
    pub cpu_limit: Option<u64>,
    /// `limits.memory`, in bytes.
    pub memory_limit: Option<u64>,
    /// `requests.cpu`, in thousandths of a CPU.
    pub cpu_request: Option<u64>,
    /// `requests.memory`, in bytes.
    pub memory_request: Option<u64>,
}

/// `state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not running and not ended for good.
    Waiting {
        /// `reason`.
        reason: String,
        /// `message`; may be empty.
        message: String,
    },
    /// Running.
    Running {
        /// `startedAt`.
        started_at: UnixSeconds,
    },
    /// Ended.
    Terminated(Terminated),
}

impl Default for ContainerState {
    fn default() -> Self {
        Self::Waiting {
            reason: String::new(),
            message: String::new(),
        }
    }
}

/// `state.terminated`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminated {
    /// `exitCode`; 128 + signal where a signal ended it.
    pub exit_code: i32,
    /// `signal`; 0 where none.
    pub signal: i32,
    /// `reason`.
    pub reason: String,
    /// `message`; may be empty.
    pub message: String,
    /// `startedAt`.
    pub started_at: UnixSeconds,
    /// `finishedAt`.
    pub finished_at: UnixSeconds,
    /// `containerID`; empty where none was made.
    pub container_id: String,
}
