//! From a node's words to Kubernetes' `status` of a Pod.
//!
//! Pure. What always holds: only fields that the node speaks of are touched; a condition's transition time moves only
//! with its status; a node without a clock does not make times jump about.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use skiff_protocol::limits;
use skiff_protocol::quantity::binary;
use skiff_protocol::wire::status::{
    ContainerState, ContainerStatus, Phase, PodStatus, Terminated, UnixSeconds,
};

use super::compile::{Refusal, text};
use crate::api::{quantity, status_of};

/// 2024-01-01: a time before it is that of a node whose clock was never set.
const PLAUSIBLE: UnixSeconds = 1_704_067_200;

/// Writes what the node says of a Pod into its document. `host_ip` is the node's own address; `now` is the server's
/// time, RFC 3339.
pub(crate) fn apply(pod: &mut Value, said: &PodStatus, host_ip: Option<IpAddr>, now: &str) {
    let spec = Spec::of(pod);
    let old = pod.get("status").cloned().unwrap_or_else(|| json!({}));
    let times = Times { now };
    let Some(status) = status_of(pod) else { return };
    status.insert("phase".into(), said.phase.as_str().into());
    set_text(status, "reason", &bounded(&said.reason));
    set_text(status, "message", &bounded(&said.message));
    if let Some(host_ip) = host_ip.map(|it| it.to_string()) {
        status.insert("hostIPs".into(), json!([{ "ip": host_ip }]));
        status.insert("hostIP".into(), host_ip.into());
    }
    // With the node's network the Pod's address is the node's.
    let node = host_ip.filter(|_| spec.host_network && !spec.is_pending(said));
    if let Some(ip) = said.pod_ip.parse::<IpAddr>().ok().or(node) {
        let ip = ip.to_string();
        status.insert("podIPs".into(), json!([{ "ip": ip }]));
        status.insert("podIP".into(), ip.into());
    } else {
        status.remove("podIP");
        status.remove("podIPs");
    }
    if let Some(at) = said.start_time {
        let time = times.choose(at, old["startTime"].as_str());
        status.insert("startTime".into(), time.into());
    }
    for (field, said, of) in [
        ("initContainerStatuses", &said.init_containers, &spec.init),
        ("containerStatuses", &said.containers, &spec.containers),
    ] {
        if said.is_empty() && field == "initContainerStatuses" {
            status.remove(field);
        } else {
            status.insert(field.into(), statuses(said, of, &old[field], &times).into());
        }
    }
    conditions(status, said, &spec, &times);
    resize_conditions(status, said, now);
}

/// What of a Pod's spec its status is made with.
struct Spec {
    host_network: bool,
    init: Vec<Written>,
    containers: Vec<Written>,
}

/// A container as its Pod's spec has it.
struct Written {
    name: String,
    image: String,
    sidecar: bool,
    resources: Value,
}

impl Spec {
    fn of(pod: &Value) -> Self {
        let list = |field: &str| {
            let list = pod["spec"][field].as_array().into_iter().flatten();
            list.map(|it| Written {
                name: text(it, "/name").to_owned(),
                image: text(it, "/image").to_owned(),
                sidecar: it["restartPolicy"] == "Always",
                resources: it["resources"].clone(),
            })
            .collect()
        };
        Self {
            host_network: pod["spec"]["hostNetwork"] == true,
            init: list("initContainers"),
            containers: list("containers"),
        }
    }

    /// Whether nothing of it has run yet.
    fn is_pending(&self, said: &PodStatus) -> bool {
        let mut all = said.init_containers.iter().chain(&said.containers);
        all.all(|it| matches!(it.state, ContainerState::Waiting { .. }) && it.last.is_none())
    }
}

fn statuses(said: &[ContainerStatus], of: &[Written], before: &Value, times: &Times<'_>) -> Vec<Value> {
    said.iter()
        .take(limits::CONTAINERS)
        .filter_map(|it| {
            let written = of.iter().find(|written| written.name == it.name)?;
            let mut before = before.as_array().into_iter().flatten();
            let before = before.find(|old| old["name"] == it.name.as_str());
            Some(container(it, written, before.unwrap_or(&Value::Null), times))
        })
        .collect()
}

/// Marks a Pod that no node shall run.
pub(crate) fn refuse(pod: &mut Value, refusal: &Refusal) {
    let Some(status) = status_of(pod) else { return };
    status.insert("phase".into(), Phase::Failed.as_str().into());
    set_text(status, "reason", refusal.reason);
    set_text(status, "message", &bounded(&refusal.message));
}

/// The condition of a Pod that has ended and that its node does not keep any more.
const ON_NODE: &str = "skiff.io/OnNode";

/// Marks a Pod that has ended and for which its node has no place any more.
pub(crate) fn leave(pod: &mut Value, now: &str) {
    let Some(status) = status_of(pod) else { return };
    let message = format!(
        "the node keeps {} Pods, and later ones have ended since; its logs are gone",
        limits::PODS
    );
    set_condition(status, ON_NODE, "False", "TooManyEnded", &message, now);
}

/// Whether a Pod was marked with [`leave`].
pub(crate) fn has_left(pod: &Value) -> bool {
    condition_of(pod, ON_NODE).is_some_and(|it| it["status"] == "False")
}

/// Nothing is known of the Pod's node any more: nobody may rely on the Pod (as Kubernetes' node lifecycle controller
/// has it). The node's next word of the Pod says what is.
pub(crate) fn out_of_contact(pod: &mut Value, now: &str) {
    if condition_of(pod, "Ready").is_none_or(|it| it["status"] != "True") {
        return;
    }
    let Some(status) = status_of(pod) else { return };
    set_condition(status, "Ready", "False", "NodeNotReady", "Node is not ready", now);
}

fn condition_of<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    let list = pod.get("status")?.get("conditions")?.as_array()?;
    list.iter().find(|it| it["type"] == kind)
}

/// Sets one condition; its transition time is `at` when its status changes and stays otherwise.
pub(crate) fn set_condition(
    status: &mut Map<String, Value>,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    at: &str,
) {
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    let index = list.iter().position(|it| it["type"] == kind);
    let index = index.unwrap_or_else(|| {
        list.push(json!({ "type": kind }));
        list.len() - 1
    });
    let Some(condition) = list[index].as_object_mut() else {
        return;
    };
    if condition.get("status").and_then(Value::as_str) != Some(value) {
        condition.insert("lastTransitionTime".into(), at.into());
    }
    condition.insert("status".into(), value.into());
    set_text(condition, "reason", reason);
    set_text(condition, "message", message);
}

fn conditions(status: &mut Map<String, Value>, said: &PodStatus, spec: &Spec, times: &Times<'_>) {
    let ended = match said.phase {
        Phase::Succeeded => Some("PodCompleted"),
        Phase::Failed => Some("PodFailed"),
        Phase::Pending | Phase::Running => None,
    };
    let is_ready = |name: &str| {
        let mut all = said.containers.iter().chain(&said.init_containers);
        all.any(|it| it.name == name && it.ready)
    };
    // Sidecars run beside the containers, and are counted with them.
    let sidecars = spec.init.iter().filter(|it| it.sidecar);
    let unready: Vec<&str> = sidecars
        .chain(&spec.containers)
        .map(|it| it.name.as_str())
        .filter(|name| !is_ready(name))
        .collect();
    let initialized = said.initialized_since.is_some() || spec.init.is_empty();
    let ready = said.ready() && unready.is_empty();
    let (value, reason, message) = match (ready, ended) {
        (true, _) => ("True", "", String::new()),
        (false, Some(reason)) => ("False", reason, String::new()),
        (false, None) => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            ("False", "ContainersNotReady", message)
        }
    };
    let since = |at: Option<UnixSeconds>, holds: bool| {
        let at = at.filter(|_| holds);
        at.map_or(times.now.to_owned(), |at| times.choose(at, None))
    };
    let ready_since = since(said.ready_since, ready);
    // The sandbox and its network are there once the Pod has an address, or something of it has run.
    let sandbox = ended.is_none() && (!said.pod_ip.is_empty() || !spec.is_pending(said));
    let sandbox = if sandbox { "True" } else { "False" };
    set_condition(status, "PodReadyToStartContainers", sandbox, "", "", times.now);
    set_condition(status, "PodScheduled", "True", "", "", times.now);
    let at = since(said.initialized_since, initialized);
    if initialized {
        let reason = if said.phase == Phase::Succeeded {
            "PodCompleted"
        } else {
            ""
        };
        set_condition(status, "Initialized", "True", reason, "", &at);
    } else {
        let (reason, message) = match said.phase {
            Phase::Failed => ("PodFailed", String::new()),
            _ => ("ContainersNotInitialized", uninitialized(said, spec)),
        };
        set_condition(status, "Initialized", "False", reason, &message, &at);
    }
    set_condition(status, "ContainersReady", value, reason, &message, &ready_since);
    set_condition(status, "Ready", value, reason, &message, &ready_since);
}

/// Which init containers have not done their part: ended well, or started where they are sidecars.
fn uninitialized(said: &PodStatus, spec: &Spec) -> String {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for written in &spec.init {
        let Some(it) = said.init_containers.iter().find(|it| it.name == written.name) else {
            unknown.push(written.name.as_str());
            continue;
        };
        let done = match &it.state {
            ContainerState::Terminated(ended) => ended.exit_code == 0,
            ContainerState::Running { .. } => written.sidecar && it.started,
            ContainerState::Waiting { .. } => false,
        };
        if !done {
            incomplete.push(written.name.as_str());
        }
    }
    let parts = [("unknown", unknown), ("incomplete", incomplete)].into_iter();
    let parts = parts.filter(|(_, names)| !names.is_empty());
    let parts = parts.map(|(word, names)| format!("containers with {word} status: [{}]", names.join(" ")));
    parts.collect::<Vec<_>>().join(", ")
}

/// `PodResizePending` while the node cannot, or cannot yet, give what is asked for; `PodResizeInProgress` where it
/// tried and failed.
fn resize_conditions(status: &mut Map<String, Value>, said: &PodStatus, now: &str) {
    let (pending, progress) = ("PodResizePending", "PodResizeInProgress");
    let (kept, reason, message) = match &said.resize {
        None => ("", "", ""),
        Some((reason, message)) if reason == "Error" => (progress, reason.as_str(), message.as_str()),
        Some((reason, message)) => (pending, reason.as_str(), message.as_str()),
    };
    if let Some(list) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        list.retain(|it| it["type"] == kept || (it["type"] != pending && it["type"] != progress));
    }
    if !kept.is_empty() {
        set_condition(status, kept, "True", &bounded(reason), &bounded(message), now);
    }
}

fn container(said: &ContainerStatus, written: &Written, before: &Value, times: &Times<'_>) -> Value {
    let last = said.last.as_ref().map_or_else(
        || json!({}),
        |it| json!({ "terminated": terminated(it, &before["lastState"]["terminated"], times) }),
    );
    let mut out = json!({
        "name": said.name,
        "image": written.image,
        "imageID": bounded(&said.image_id),
        "ready": said.ready,
        "started": said.started,
        "restartCount": said.restart_count,
        "state": state(&said.state, &before["state"], times),
        "lastState": last,
    });
    if !said.container_id.is_empty() {
        out["containerID"] = container_id(&said.container_id).into();
    }
    if let Some(it) = &said.resources {
        let limits = amounts(it.cpu_limit, it.memory_limit, &written.resources["limits"]);
        let requests = amounts(it.cpu_request, it.memory_request, &written.resources["requests"]);
        out["resources"] = json!({});
        if !limits.is_empty() {
            out["resources"]["limits"] = limits.into();
        }
        if !requests.is_empty() {
            out["allocatedResources"] = requests.clone().into();
            out["resources"]["requests"] = requests.into();
        }
    }
    out
}

/// What is in force, in the words of the spec where it is the same.
fn amounts(cpu: Option<u64>, memory: Option<u64>, written: &Value) -> Map<String, Value> {
    let number = |it: i64| it.unsigned_abs();
    let cpu = cpu.map(|cpu| {
        let same = quantity(&written["cpu"]).is_some_and(|it| number(it.milli()) == cpu);
        let text = if cpu.is_multiple_of(1000) {
            (cpu / 1000).to_string()
        } else {
            format!("{cpu}m")
        };
        ("cpu", same, text)
    });
    let memory = memory.map(|memory| {
        let same = quantity(&written["memory"]).is_some_and(|it| number(it.value()) == memory);
        ("memory", same, binary(memory))
    });
    let both = [cpu, memory].into_iter().flatten();
    both.map(|(name, same, text)| {
        let value = if same { written[name].clone() } else { text.into() };
        (name.to_owned(), value)
    })
    .collect()
}

fn state(said: &ContainerState, before: &Value, times: &Times<'_>) -> Value {
    match said {
        ContainerState::Waiting { reason, message } => {
            let mut out = json!({ "reason": bounded(reason) });
            if !message.is_empty() {
                out["message"] = bounded(message).into();
            }
            json!({ "waiting": out })
        }
        ContainerState::Running { started_at } => {
            let old = before["running"]["startedAt"].as_str();
            json!({ "running": { "startedAt": times.choose(*started_at, old) } })
        }
        ContainerState::Terminated(it) => {
            json!({ "terminated": terminated(it, &before["terminated"], times) })
        }
    }
}

fn terminated(said: &Terminated, before: &Value, times: &Times<'_>) -> Value {
    let mut out = json!({
        "exitCode": said.exit_code,
        "reason": bounded(&said.reason),
        "startedAt": times.choose(said.started_at, before["startedAt"].as_str()),
        "finishedAt": times.choose(said.finished_at, before["finishedAt"].as_str()),
    });
    if said.signal != 0 {
        out["signal"] = said.signal.into();
    }
    if !said.message.is_empty() {
        out["message"] = bounded(&said.message).into();
    }
    if !said.container_id.is_empty() {
        out["containerID"] = container_id(&said.container_id).into();
    }
    out
}

fn container_id(id: &str) -> String {
    let id = bounded(id);
    if id.starts_with("skiff://") {
        id
    } else {
        format!("skiff://{id}")
    }
}

struct Times<'a> {
    now: &'a str,
}

impl Times<'_> {
    /// The node's time where it is plausible; else what was shown before, else now.
    fn choose(&self, at: UnixSeconds, before: Option<&str>) -> String {
        match jiff::Timestamp::from_second(at) {
            Ok(time) if at >= PLAUSIBLE => time.to_string(),
            _ => before.unwrap_or(self.now).to_owned(),
        }
    }
}

fn set_text(map: &mut Map<String, Value>, field: &str, value: &str) {
    if value.is_empty() {
        map.remove(field);
    } else {
        map.insert(field.into(), value.into());
    }
}

/// Text from a node, cut to the protocol's bound at a character's end.
pub(crate) fn bounded(text: &str) -> String {
    let end = text.floor_char_boundary(limits::TEXT);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests;
