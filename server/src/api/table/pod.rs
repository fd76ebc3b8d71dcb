//! The rows of Pods. The words in STATUS are what people know from Kubernetes and what scripts wait for.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, column, text, text_or, wide};
use crate::api::{metadata, time};

/// The columns.
pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Ready",
        "string",
        "How many of the containers are ready.",
        |pod, _| ready(pod).into(),
    ),
    column(
        "Status",
        "string",
        "What the pod is doing, or why it is not.",
        |pod, _| status(pod).into(),
    ),
    column(
        "Restarts",
        "string",
        "How often containers were restarted, and when last.",
        |pod, now| restarts(pod, now).into(),
    ),
    AGE,
    wide("IP", "string", "The pod's address.", |pod, _| {
        text_or(
            pod,
            "/status/podIP",
            text_or(pod, "/status/podIPs/0/ip", "<none>"),
        )
        .into()
    }),
    wide(
        "Node",
        "string",
        "The node that the pod is placed on.",
        |pod, _| text_or(pod, "/spec/nodeName", "<none>").into(),
    ),
    wide(
        "Nominated Node",
        "string",
        "The node that is being cleared for the pod.",
        |pod, _| text_or(pod, "/status/nominatedNodeName", "<none>").into(),
    ),
    wide(
        "Readiness Gates",
        "string",
        "How many further conditions of readiness hold.",
        |pod, _| gates(pod).into(),
    ),
];

fn list<'a>(pod: &'a Value, pointer: &str) -> impl DoubleEndedIterator<Item = &'a Value> + ExactSizeIterator {
    pod.pointer(pointer)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
}

fn is_true(value: &Value, field: &str) -> bool {
    value.get(field) == Some(&Value::Bool(true))
}

fn condition(pod: &Value, kind: &str) -> bool {
    list(pod, "/status/conditions").any(|it| text(it, "/type") == kind && text(it, "/status") == "True")
}

/// Init containers that run beside the others count among them.
fn is_sidecar(pod: &Value, name: &str) -> bool {
    list(pod, "/spec/initContainers")
        .any(|it| text(it, "/name") == name && text(it, "/restartPolicy") == "Always")
}

/// How many of the containers and sidecars are ready; while others initialise, only the sidecars that have started.
fn ready(pod: &Value) -> String {
    let running = |status: &&Value| is_true(status, "ready") && status.pointer("/state/running").is_some();
    let sidecars = list(pod, "/spec/initContainers")
        .filter(|it| text(it, "/restartPolicy") == "Always")
        .count();
    let total = list(pod, "/spec/containers").len() + sidecars;
    let passed = list(pod, "/status/initContainerStatuses").take_while(|status| has_passed(pod, status));
    let mut ready = passed
        .filter(|it| !has_ended_well(it) && is_true(it, "ready"))
        .count();
    if !initialising(pod) {
        ready += list(pod, "/status/containerStatuses").filter(running).count();
    }
    format!("{ready}/{total}")
}

fn has_ended_well(status: &Value) -> bool {
    let code = status.pointer("/state/terminated/exitCode");
    code.and_then(Value::as_i64) == Some(0)
}

/// Whether an init container has done its part.
fn has_passed(pod: &Value, status: &Value) -> bool {
    has_ended_well(status) || (is_sidecar(pod, text(status, "/name")) && is_true(status, "started"))
}

/// Whether init containers are at work, and not again after the Pod had been initialised.
fn initialising(pod: &Value) -> bool {
    init_reason(pod).is_some() && !condition(pod, "Initialized")
}

fn status(pod: &Value) -> String {
    let mut reason = text_or(pod, "/status/reason", text(pod, "/status/phase")).to_owned();
    let waits_for =
        |it: &&Value| text(it, "/type") == "PodScheduled" && text(it, "/reason") == "SchedulingGated";
    if list(pod, "/status/conditions").any(|it| waits_for(&it)) {
        reason = "SchedulingGated".into();
    }
    if let Some(init) = init_reason(pod) {
        reason = init;
    }
    if !initialising(pod) {
        reason = container_reason(pod, reason);
    }
    if metadata::is_deleting(pod) {
        if text(pod, "/status/reason") == "NodeLost" {
            return "Unknown".into();
        }
        if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
            return "Terminating".into();
        }
    }
    reason
}

/// `ExitCode:1`, `Signal:9` or the reason that the runtime gave.
fn terminated(state: &Value) -> String {
    let number = |field: &str| state.get(field).and_then(Value::as_i64).unwrap_or(0);
    match (text(state, "/reason"), number("signal")) {
        ("", 0) => format!("ExitCode:{}", number("exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

/// What the first unfinished init container is doing.
fn init_reason(pod: &Value) -> Option<String> {
    let total = list(pod, "/spec/initContainers").len();
    for (at, status) in list(pod, "/status/initContainerStatuses").enumerate() {
        if has_passed(pod, status) {
            continue;
        }
        let ended = status.pointer("/state/terminated");
        let waiting = text(status, "/state/waiting/reason");
        return Some(match ended {
            Some(ended) => format!("Init:{}", terminated(ended)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{at}/{total}"),
        });
    }
    None
}

/// The reason of the first container that has one to tell.
fn container_reason(pod: &Value, phase: String) -> String {
    let mut reason = phase;
    let mut running = false;
    for status in list(pod, "/status/containerStatuses").rev() {
        let waiting = text(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            reason = waiting.into();
        } else if let Some(ended) = status.pointer("/state/terminated") {
            reason = terminated(ended);
        } else if is_true(status, "ready") && status.pointer("/state/running").is_some() {
            running = true;
        }
    }
    // A container that ended among others that run does not make the pod complete.
    if reason == "Completed" && running {
        reason = if condition(pod, "Ready") {
            "Running".into()
        } else {
            "NotReady".into()
        };
    }
    reason
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let sidecars = list(pod, "/status/initContainerStatuses").filter(|it| is_sidecar(pod, text(it, "/name")));
    let main = list(pod, "/status/containerStatuses").chain(sidecars);
    let inits = list(pod, "/status/initContainerStatuses");
    let statuses: Vec<&Value> = if initialising(pod) {
        inits.collect()
    } else {
        main.collect()
    };
    let mut total = 0;
    let mut last: Option<&str> = None;
    for status in statuses {
        total += status.get("restartCount").and_then(Value::as_i64).unwrap_or(0);
        // Times of this form sort as text.
        let finished = text(status, "/lastState/terminated/finishedAt");
        last = last.max(Some(finished).filter(|finished| !finished.is_empty()));
    }
    match last {
        Some(last) if total > 0 => format!("{total} ({} ago)", time::age(last, now)),
        _ => total.to_string(),
    }
}

fn gates(pod: &Value) -> String {
    let gates = list(pod, "/spec/readinessGates");
    if gates.len() == 0 {
        return "<none>".into();
    }
    let total = gates.len();
    let met = gates
        .filter(|gate| condition(pod, text(gate, "/conditionType")))
        .count();
    format!("{met}/{total}")
}

/// The condition by which `kubectl` tells rows of pods that are done.
pub(super) fn completion(pod: &Value) -> Option<Value> {
    let (reason, message) = match text(pod, "/status/phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!({ "type": "Completed", "status": "True", "reason": reason, "message": message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let check = |pod: Value, expected: (&str, &str, &str)| {
            let found = (ready(&pod), status(&pod), restarts(&pod, now));
            assert_eq!(
                (found.0.as_str(), found.1.as_str(), found.2.as_str()),
                expected,
                "{pod}"
            );
        };
        let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        check(
            json!({"spec": spec, "status": {"phase": "Pending"}}),
            ("0/2", "Pending", "0"),
        );
        check(
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [running, running]}}),
            ("2/2", "Running", "0"),
        );
        let crashed = json!({"ready": false, "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}});
        check(
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [crashed, running]}}),
            ("1/2", "CrashLoopBackOff", "3 (5m ago)"),
        );
        let done = json!({"ready": false, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        check(
            json!({"spec": spec, "status": {"phase": "Running", "containerStatuses": [done, running]}}),
            ("1/2", "NotReady", "0"),
        );
        let killed = json!({"state": {"terminated": {"exitCode": 137, "signal": 9}}});
        check(
            json!({"spec": spec, "status": {"phase": "Failed", "containerStatuses": [killed]}}),
            ("0/2", "Signal:9", "0"),
        );
        check(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec,
                "status": {"phase": "Running", "containerStatuses": [running, running]}}),
            ("2/2", "Terminating", "0"),
        );
        check(
            json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]},
                "status": {"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "restartCount": 1, "state": {"terminated": {"exitCode": 0}}},
                    {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]}}),
            ("0/1", "Init:1/2", "1"),
        );
        let with_init = |init: Value, conditions: Value, statuses: Value| {
            json!({"spec": {"containers": [{"name": "a"}],
                    "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
                "status": {"phase": "Pending", "initContainerStatuses": init, "conditions": conditions,
                    "containerStatuses": statuses}})
        };
        let over = json!({"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}, "ready": true});
        let side = json!({"name": "s", "state": {"running": {}}, "started": true, "ready": true});
        let waits = json!({"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}});
        for (init, expected) in [
            (
                json!([{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]),
                ("0/2", "Init:0/2", "0"),
            ),
            (
                json!([{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
                ("0/2", "Init:Error", "0"),
            ),
            (
                json!([{"name": "i", "state": {"terminated": {"exitCode": 3}}}]),
                ("0/2", "Init:ExitCode:3", "0"),
            ),
            (
                json!([{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
                ("0/2", "Init:CrashLoopBackOff", "2"),
            ),
            (json!([over, side]), ("1/2", "PodInitializing", "0")),
        ] {
            check(with_init(init, json!([]), json!([waits])), expected);
        }
        // A sidecar that crashes later does not send the pod back to its beginning.
        let crashed =
            json!({"name": "s", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}}});
        let initialized = json!([{"type": "Initialized", "status": "True"}]);
        check(
            with_init(json!([over, crashed]), initialized, json!([running])),
            ("1/2", "Init:CrashLoopBackOff", "1"),
        );
    }
}
