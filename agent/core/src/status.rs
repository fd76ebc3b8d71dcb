//! From what the core knows to what Kubernetes calls the Pod's status.

use skiff_protocol::wire::status::{self, ContainerState as Shown, ContainerStatus, PodStatus};

use crate::state::{ContainerState, Image, Phase, PodState, Step};

/// The Pod's status now.
pub(crate) fn of(pod: &PodState) -> PodStatus {
    let (reason, message) = pod.rejected.clone().unwrap_or_default();
    PodStatus {
        uid: pod.uid,
        phase: phase(pod),
        reason,
        message,
        pod_ip: pod
            .ip
            .filter(|_| pod.sandbox == Step::Done)
            .map(|ip| ip.to_string())
            .unwrap_or_default(),
        start_time: Some(pod.accepted_at),
        ready_since: pod.ready_since,
        initialized_since: Some(pod.accepted_at),
        init_containers: Vec::new(),
        resize: None,
        containers: pod.containers.iter().map(container).collect(),
        gone: pod.removal == Step::Done,
    }
}

/// Notes when Ready changed.
pub(crate) fn note_ready(pod: &mut PodState, now: i64) {
    let ready = of(pod).ready();
    if ready != pod.ready || pod.ready_since.is_none() {
        pod.ready = ready;
        pod.ready_since = Some(now);
    }
}

/// Ready did not change because the agent was started anew: a Pod found ready has been since its last container came up.
pub(crate) fn note_found(pod: &mut PodState) {
    if !of(pod).ready() {
        return;
    }
    let since = pod.containers.iter().filter_map(|it| match it.phase {
        Phase::Running { started_at, .. } => Some(started_at),
        _ => None,
    });
    pod.ready = true;
    pod.ready_since = since.max();
}

/// Source: Kubernetes documentation, "Pod Lifecycle", Pod phase.
fn phase(pod: &PodState) -> status::Phase {
    if pod.rejected.is_some() {
        return status::Phase::Failed;
    }
    let done = |it: &ContainerState| {
        if let Phase::Done(end) = &it.phase {
            Some(end.exit_code)
        } else {
            None
        }
    };
    let ends: Vec<Option<i32>> = pod.containers.iter().map(done).collect();
    if !ends.is_empty() && ends.iter().all(Option::is_some) {
        let well = ends.iter().all(|code| *code == Some(0));
        return if well {
            status::Phase::Succeeded
        } else {
            status::Phase::Failed
        };
    }
    let never_ran =
        |it: &ContainerState| !it.ran || (matches!(it.phase, Phase::Starting) && it.last.is_none());
    if pod.containers.iter().any(never_ran) {
        status::Phase::Pending
    } else {
        status::Phase::Running
    }
}

fn container(from: &ContainerState) -> ContainerStatus {
    let waiting = |reason: &str, message: &str| Shown::Waiting {
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let mut container_id = String::new();
    let state = match &from.phase {
        Phase::Running {
            started_at,
            container_id: id,
            ..
        } => {
            container_id.clone_from(id);
            Shown::Running {
                started_at: *started_at,
            }
        }
        Phase::Done(end) => {
            container_id.clone_from(&end.container_id);
            Shown::Terminated(end.clone())
        }
        Phase::Unmet { message, .. } => waiting("CreateContainerConfigError", message),
        Phase::Backoff { .. } => {
            let message = "back-off before restarting the failed container";
            waiting("CrashLoopBackOff", message)
        }
        Phase::Waiting | Phase::Starting => match &from.image {
            Image::Waiting { reason, message, .. } => waiting(reason, message),
            Image::Unknown | Image::Asked | Image::Stale | Image::Ready => waiting("ContainerCreating", ""),
        },
    };
    // `lastState` is the end before the state shown.
    let last = from
        .last
        .clone()
        .filter(|_| !matches!(from.phase, Phase::Done(_)));
    ContainerStatus {
        name: from.name.clone(),
        ready: matches!(state, Shown::Running { .. }),
        started: matches!(state, Shown::Running { .. }),
        resources: None,
        state,
        last,
        restart_count: from.restart_count,
        image_id: from.image_id.clone(),
        container_id,
    }
}
