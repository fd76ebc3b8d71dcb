//! From what the core knows to what Kubernetes calls the Pod's status.

use skiff_protocol::pod::Pod;
use skiff_protocol::wire::status::{self, ContainerState as Shown, ContainerStatus, PodStatus};

use crate::resize;
use crate::state::{ContainerState, Image, Kind, Phase, PodState, Step};

/// The Pod's status now.
pub(crate) fn of(pod: &PodState) -> PodStatus {
    let failed = pod.failed.as_ref();
    let failed = failed.map(|it| (it.reason.clone(), it.message.clone()));
    let (reason, message) = pod.rejected.clone().or(failed).unwrap_or_default();
    let (inits, regular) = pod.containers.split_at(pod.inits);
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
        initialized_since: pod.initialized_since,
        init_containers: inits.iter().map(|it| container(it, pod)).collect(),
        resize: pod.resize.clone(),
        containers: regular.iter().map(|it| container(it, pod)).collect(),
        gone: pod.removal == Step::Done && pod.ending.is_some(),
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

/// Source: Kubernetes documentation, "Pod Lifecycle", Pod phase. A Pod is done only once nothing of it runs any more.
fn phase(pod: &PodState) -> status::Phase {
    if pod.rejected.is_some() {
        return status::Phase::Failed;
    }
    let settled = !pod.any_alive();
    if settled && (pod.failed.is_some() || pod.init_failed()) {
        return status::Phase::Failed;
    }
    let badly = |it: &ContainerState| matches!(&it.phase, Phase::Done(end) if end.exit_code != 0);
    if settled && pod.over() {
        return if pod.regular().iter().any(badly) {
            status::Phase::Failed
        } else {
            status::Phase::Succeeded
        };
    }
    let never_ran = |it: &ContainerState| {
        let begins = it.phase == Phase::Starting || it.health.post_start || it.health.post_start_failed;
        !it.ran || (it.last.is_none() && begins)
    };
    if pod.initialized_since.is_none() || pod.regular().iter().any(never_ran) {
        status::Phase::Pending
    } else {
        status::Phase::Running
    }
}

/// A duration as Kubernetes writes it.
fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

/// A Pod in a kubelet's messages.
pub(crate) fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", pod.name, pod.namespace, pod.uid)
}

fn waiting(reason: &str, message: String) -> Shown {
    Shown::Waiting {
        reason: reason.to_owned(),
        message,
    }
}

fn back_off(from: &ContainerState, pod: &PodState, wait: u64) -> Shown {
    let whose = pod.pod.as_ref().map(full_name).unwrap_or_default();
    let message = format!(
        "back-off {} restarting failed container={} pod={whose}",
        duration(wait),
        from.name
    );
    waiting("CrashLoopBackOff", message)
}

fn container(from: &ContainerState, pod: &PodState) -> ContainerStatus {
    let creating = if pod.inits > 0 {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let mut container_id = String::new();
    let state = match &from.phase {
        // Kubernetes shows a container as running once its postStart hook has ended.
        Phase::Running { .. } if from.health.post_start || from.health.post_start_failed => {
            waiting(creating, String::new())
        }
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
        Phase::Unmet { message, .. } => waiting("CreateContainerConfigError", message.clone()),
        // After a wait of nothing it is only not its turn.
        Phase::Backoff { wait: 0, .. } => waiting(creating, String::new()),
        Phase::Backoff { wait, .. } => back_off(from, pod, *wait),
        Phase::Waiting | Phase::Starting => match &from.image {
            Image::Waiting { reason, message, .. } => waiting(reason, message.clone()),
            Image::Unknown | Image::Asked | Image::Stale | Image::Ready => waiting(creating, String::new()),
        },
    };
    let runs = matches!(state, Shown::Running { .. });
    let ready = match (from.kind, &from.phase) {
        (Kind::Init, Phase::Done(end)) => end.exit_code == 0,
        (Kind::Init, _) => false,
        (Kind::Sidecar | Kind::Regular, _) => runs && from.health.ready && from.health.started,
    };
    let spec = pod.pod.as_ref().and_then(|pod| pod.container(&from.name));
    let resources = from.in_force.or_else(|| spec.map(resize::wanted));
    // `lastState` is the end before the state shown.
    let last = from
        .last
        .clone()
        .filter(|_| !matches!(from.phase, Phase::Done(_)));
    ContainerStatus {
        name: from.name.clone(),
        ready,
        started: runs && from.health.started,
        resources: resources.filter(|_| runs),
        state,
        last,
        restart_count: from.restart_count,
        image_id: from.image_id.clone(),
        container_id,
    }
}
