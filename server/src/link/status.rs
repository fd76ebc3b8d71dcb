//! From a node's words to Kubernetes' `status` of a Pod.
//!
//! Pure. What always holds: only fields that the node speaks of are touched; a condition's transition time moves only
//! with its status; a node without a clock does not make times jump about.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use skiff_protocol::limits;
use skiff_protocol::wire::status::{
    ContainerState, ContainerStatus, Phase, PodStatus, Terminated, UnixSeconds,
};

use super::compile::{Refusal, text};
use crate::api::status_of;

/// 2024-01-01: a time before it is that of a node whose clock was never set.
const PLAUSIBLE: UnixSeconds = 1_704_067_200;

/// Writes what the node says of a Pod into its document. `host_ip` is the node's own address; `now` is the server's
/// time, RFC 3339.
pub(crate) fn apply(pod: &mut Value, said: &PodStatus, host_ip: Option<IpAddr>, now: &str) {
    let names: Vec<(String, String)> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| (text(it, "/name").to_owned(), text(it, "/image").to_owned()))
        .collect();
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
    if said.pod_ip.parse::<IpAddr>().is_ok() {
        status.insert("podIP".into(), said.pod_ip.clone().into());
        status.insert("podIPs".into(), json!([{ "ip": said.pod_ip }]));
    } else {
        status.remove("podIP");
        status.remove("podIPs");
    }
    if let Some(at) = said.start_time {
        let time = times.choose(at, old["startTime"].as_str());
        status.insert("startTime".into(), time.into());
    }
    let statuses: Vec<Value> = said
        .containers
        .iter()
        .take(limits::CONTAINERS)
        .filter_map(|it| {
            let (_, image) = names.iter().find(|(name, _)| *name == it.name)?;
            let mut before = old["containerStatuses"].as_array().into_iter().flatten();
            let before = before.find(|old| old["name"] == it.name.as_str());
            Some(container(it, image, before.unwrap_or(&Value::Null), &times))
        })
        .collect();
    status.insert("containerStatuses".into(), statuses.into());
    conditions(status, said, &names, &times);
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

fn conditions(
    status: &mut Map<String, Value>,
    said: &PodStatus,
    names: &[(String, String)],
    times: &Times<'_>,
) {
    let ended = match said.phase {
        Phase::Succeeded => Some("PodCompleted"),
        Phase::Failed => Some("PodFailed"),
        Phase::Pending | Phase::Running => None,
    };
    let unready: Vec<&str> = names
        .iter()
        .filter(|(name, _)| !said.containers.iter().any(|it| it.name == *name && it.ready))
        .map(|(name, _)| name.as_str())
        .collect();
    let ready = said.ready() && unready.is_empty();
    let (value, reason, message) = match (ready, ended) {
        (true, _) => ("True", "", String::new()),
        (false, Some(reason)) => ("False", reason, String::new()),
        (false, None) => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            ("False", "ContainersNotReady", message)
        }
    };
    let since = said
        .ready_since
        .filter(|_| ready)
        .map_or(times.now.to_owned(), |at| times.choose(at, None));
    let initialized = if said.phase == Phase::Succeeded {
        "PodCompleted"
    } else {
        ""
    };
    set_condition(status, "PodScheduled", "True", "", "", times.now);
    set_condition(status, "Initialized", "True", initialized, "", times.now);
    set_condition(status, "ContainersReady", value, reason, &message, &since);
    set_condition(status, "Ready", value, reason, &message, &since);
}

fn container(said: &ContainerStatus, image: &str, before: &Value, times: &Times<'_>) -> Value {
    let running = matches!(said.state, ContainerState::Running { .. });
    let last = said.last.as_ref().map_or_else(
        || json!({}),
        |it| json!({ "terminated": terminated(it, &before["lastState"]["terminated"], times) }),
    );
    let mut out = json!({
        "name": said.name,
        "image": image,
        "imageID": bounded(&said.image_id),
        "ready": said.ready,
        "started": running,
        "restartCount": said.restart_count,
        "state": state(&said.state, &before["state"], times),
        "lastState": last,
    });
    if !said.container_id.is_empty() {
        out["containerID"] = container_id(&said.container_id).into();
    }
    out
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
