//! Signals, the grace of a probe, and ports of the node that containers have one after another.

use serde_json::{Value, json};
use skiff_protocol::pod::Pod;

fn complaints(spec: &Value) -> Vec<String> {
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" }, "spec": spec });
    match Pod::parse(&pod) {
        Ok(_) => Vec::new(),
        Err(causes) => causes.iter().map(ToString::to_string).collect(),
    }
}

fn with(field: &str, value: Value) -> Vec<String> {
    let mut container = json!({ "name": "c", "image": "i:1" });
    container[field] = value;
    complaints(&json!({ "containers": [container] }))
}

#[test]
fn a_signal_is_a_name_of_linux() {
    for name in [
        "SIGTERM",
        "SIGUSR2",
        "SIGRTMIN",
        "SIGRTMIN+3",
        "SIGRTMAX-1",
        "SIGRTMAX",
    ] {
        assert_eq!(
            with("lifecycle", json!({ "stopSignal": name })),
            [""; 0],
            "{name}"
        );
    }
    for name in [
        "TERM",
        "SIGRTMIN-3",
        "SIGRTMAX+1",
        "SIGRTMIN+31",
        "SIGRTMIN+",
        "SIGRTMIN3",
        "15",
    ] {
        let found = with("lifecycle", json!({ "stopSignal": name }));
        assert!(
            found.len() == 1 && found[0].contains("lifecycle.stopSignal: Unsupported value"),
            "{name}: {found:?}"
        );
    }
}

#[test]
fn a_probe_that_kills_leaves_some_time() {
    let probe =
        |seconds: i64| json!({ "exec": { "command": ["true"] }, "terminationGracePeriodSeconds": seconds });
    assert_eq!(with("livenessProbe", probe(1)), [""; 0]);
    for seconds in [0, -1] {
        let expected = format!(
            "spec.containers[0].livenessProbe.terminationGracePeriodSeconds: Invalid value: {seconds}: must be greater than 0"
        );
        assert_eq!(with("livenessProbe", probe(seconds)), [expected]);
    }
}

#[test]
fn an_init_container_gives_its_port_back() {
    let ports = json!([{ "containerPort": 80, "hostPort": 8080 }]);
    let pod = |restart: Value| {
        let mut first = json!({ "name": "first", "image": "i:1", "ports": ports });
        if restart.is_string() {
            first["restartPolicy"] = restart;
        }
        complaints(&json!({
            "initContainers": [first], "containers": [{ "name": "c", "image": "i:1", "ports": ports }],
        }))
    };
    assert_eq!(pod(Value::Null), [""; 0]);
    let found = pod(json!("Always"));
    assert!(
        found.len() == 1 && found[0].starts_with("spec.containers[0].ports[0].hostPort: Duplicate value"),
        "{found:?}"
    );
}
