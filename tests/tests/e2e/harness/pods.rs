//! Pods that the tests write themselves, as JSON.
//!
//! Always holds: each runs `busybox:latest` and pulls it only when it is not there.

use serde_json::{Value, json};

/// A container `main` that runs a shell script.
pub(crate) fn shell(script: &str) -> Value {
    json!({
        "name": "main",
        "image": "busybox:latest",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
    })
}

/// The same; `more` goes into the container.
pub(crate) fn shell_with(script: &str, more: &Value) -> Value {
    let mut container = shell(script);
    container
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    container
}

/// A Pod with one container; `more` goes into its spec.
pub(crate) fn pod(name: &str, container: &Value, more: Value) -> Value {
    let mut spec = json!({ "containers": [container] });
    if let Value::Object(more) = more {
        spec.as_object_mut().unwrap().extend(more);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": spec,
    })
}

/// Counts `n 1`, `n 2`, … five times a second, for ever.
pub(crate) const NUMBERS: &str =
    "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo \"n $i\"; sleep 0.2 & wait $!; done";

/// Does nothing until it is told to end.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// The numbers that [`NUMBERS`] wrote.
pub(crate) fn numbers(log: &str) -> Vec<u64> {
    log.lines()
        .map(|line| {
            let number = line.strip_prefix("n ").and_then(|it| it.parse().ok());
            number.unwrap_or_else(|| panic!("not a whole line of the log: {line:?}"))
        })
        .collect()
}
