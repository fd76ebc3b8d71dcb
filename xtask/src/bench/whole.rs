//! A Pod with one of nearly everything, from its creation until it is Ready: what the node adds to what the Pod itself needs.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::own::{Api, promise};
use super::table::{Row, Spread};
use crate::fleet::Fleet;

/// Starts; each has five containers.
const ROUNDS: usize = 15;

const IMAGE: &str = "docker.io/library/busybox:latest";
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

/// Measures it. Its programs are ready at once, so all of the time is the node's and the way to it.
pub(super) fn row(fleet: &Fleet, api: &mut Api) -> Result<Row> {
    let namespace = "/api/v1/namespaces/default";
    for (kind, plural) in [("ConfigMap", "configmaps"), ("Secret", "secrets")] {
        let data = if kind == "Secret" { "stringData" } else { "data" };
        let object =
            json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": "bench" }, data: { "k": "v" } });
        api.create(&format!("{namespace}/{plural}"), &object)?;
    }
    let is_ready = |pod: &Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
    };
    let mut took = Vec::new();
    // The first is not counted.
    for round in 0..=ROUNDS {
        let time = api.create_and_wait(fleet, &pod(&format!("whole-{round}")), "Ready", is_ready)?;
        if round > 0 {
            took.push(time.as_secs_f64() * 1e3);
        }
        fleet.delete_pods()?;
    }
    let spread = Spread::of(&took).context("no pod was started")?;
    Ok(Row::at_most(
        "5 containers, probes, volumes: create -> Ready",
        "ms",
        promise::WHOLE_MS,
        spread.median,
        &format!("{spread} of {}", took.len()),
    ))
}

/// An init container, a sidecar and three containers; three probes; four volumes.
fn pod(name: &str) -> Value {
    let mounts = json!([
        { "name": "scratch", "mountPath": "/scratch" }, { "name": "config", "mountPath": "/config" },
        { "name": "secret", "mountPath": "/secret" }, { "name": "about", "mountPath": "/about" },
    ]);
    let container = |name: &str, script: &str, more: Value| {
        let mut container = json!({
            "name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script],
            "volumeMounts": mounts,
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            container[field] = value.clone();
        }
        container
    };
    let exec = json!({ "exec": { "command": ["test", "-f", "/config/k"] }, "periodSeconds": 1 });
    let serves = "httpd -p 8080 -h /config; ".to_owned() + IDLE;
    let http = json!({ "httpGet": { "path": "/k", "port": 8080 }, "periodSeconds": 1 });
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "app": "whole" } },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "initContainers": [
                container("first", "true", json!({})),
                container("beside", IDLE, json!({ "restartPolicy": "Always" })),
            ],
            "containers": [
                container("one", IDLE, json!({ "readinessProbe": exec })),
                container("two", &serves, json!({ "livenessProbe": http })),
                container("three", IDLE, json!({ "startupProbe": exec })),
            ],
            "volumes": [
                { "name": "scratch", "emptyDir": {} },
                { "name": "config", "configMap": { "name": "bench" } },
                { "name": "secret", "secret": { "secretName": "bench" } },
                { "name": "about", "downwardAPI": { "items": [
                    { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } } ] } },
            ],
        },
    })
}
