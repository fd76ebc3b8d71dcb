//! Pods as people write them: those that must run, with what is reported as not yet honoured, and those that carry
//! a slip of the hand, with the text that says which.

use serde_json::{Value, json};
use skiff_protocol::manifest::{self, Cause};
use skiff_protocol::pod::{Parsed, Pod};
use skiff_protocol::wire::spec::{EnvValue, PullPolicy};

fn taken(manifest: &Value) -> Parsed {
    let found = manifest::inspect("Pod", manifest);
    assert_eq!(found, manifest::Inspection::default(), "{manifest}");
    Pod::parse(manifest).unwrap_or_else(|causes| panic!("{manifest}\n{causes:#?}"))
}

fn texts(causes: &[Cause]) -> Vec<String> {
    causes.iter().map(ToString::to_string).collect()
}

/// The manifest is taken, and exactly these fields are reported.
fn check_taken(manifest: &Value, warned: &[&str]) -> Pod {
    let parsed = taken(manifest);
    let fields: Vec<&str> = parsed.warnings.iter().map(|cause| cause.field.as_str()).collect();
    assert_eq!(fields, warned, "{manifest}");
    for warning in &parsed.warnings {
        assert!(warning.message.contains("not yet honoured"), "{warning}");
    }
    parsed.pod
}

/// The manifest is refused, with exactly these complaints, unknown fields first.
fn check_refused(manifest: &Value, expected: &[&str]) {
    let mut causes = manifest::inspect("Pod", manifest).unknown;
    causes.extend(Pod::parse(manifest).err().unwrap_or_default());
    assert_eq!(texts(&causes), expected, "{manifest}");
}

#[test]
fn a_web_server() {
    let pod = check_taken(
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"containers": [
                {"name": "server", "image": "nginx:latest", "ports": [{"containerPort": 80}]},
            ]},
        }),
        &[],
    );
    assert_eq!((pod.name.as_str(), pod.namespace.as_str()), ("web", "default"));
    assert_eq!(pod.hostname, "web");
    assert_eq!(pod.containers[0].pull_policy, PullPolicy::Always);
    assert_eq!(pod.containers[0].ports[0].container_port, 80);
}

#[test]
fn two_containers_that_meet_on_localhost() {
    let pod = check_taken(
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "visits", "labels": {"app": "visits"}},
            "spec": {"containers": [
                {"name": "app", "image": "registry.example/team/visits:latest",
                 "env": [{"name": "REDIS_HOST", "value": "localhost"}]},
                {"name": "db", "image": "redis"},
            ]},
        }),
        &[],
    );
    assert_eq!(pod.containers.len(), 2);
    assert_eq!(
        pod.containers[0].env[0].value,
        EnvValue::Literal("localhost".into())
    );
}

#[test]
fn a_number_as_text_in_the_environment() {
    let pod = check_taken(
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "database", "labels": {"app": "database"}},
            "spec": {"containers": [
                {"name": "server", "image": "mysql:5.7", "env": [{"name": "MYSQL_ROOT_PASSWORD", "value": "123456"}]},
            ]},
        }),
        &[],
    );
    assert_eq!(pod.containers[0].pull_policy, PullPolicy::IfNotPresent);
}

#[test]
fn a_volume_that_two_containers_share() {
    let mount = json!([{"mountPath": "/data", "name": "shared"}]);
    let pod = check_taken(
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pair"},
            "spec": {
                "volumes": [{"name": "shared", "emptyDir": {}}],
                "containers": [
                    {"name": "writer", "image": "writer:1", "ports": [{"containerPort": 8080}],
                     "env": [{"name": "ENVIRONMENT", "value": "production"}], "volumeMounts": mount},
                    {"name": "reader", "image": "reader:1", "volumeMounts": mount},
                ],
            },
        }),
        &[],
    );
    assert_eq!(pod.containers[1].mounts[0].volume, "shared");
}

#[test]
fn a_server_with_probes() {
    let probe = json!({"httpGet": {"path": "/", "port": 3000}});
    check_taken(
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "echo", "labels": {"app": "echo"}},
            "spec": {"containers": [
                {"name": "app", "image": "echo:v1", "livenessProbe": probe, "readinessProbe": probe},
            ]},
        }),
        &[],
    );
}

#[test]
fn a_pod_with_everything() {
    let pod = check_taken(
        &json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "whole", "labels": {"app": "whole"}, "annotations": {"example.com/note": "a value"},
            },
            "spec": {
                "containers": [{
                    "name": "app", "image": "whole:latest", "ports": [{"containerPort": 80}],
                    "env": [{"name": "MODE", "value": "a value"}],
                    "resources": {
                        "requests": {"memory": "64Mi", "cpu": "250m"},
                        "limits": {"memory": "128Mi", "cpu": "500m"},
                    },
                    "volumeMounts": [{"name": "config", "mountPath": "/config"}],
                    "livenessProbe": {
                        "httpGet": {"path": "/healthz", "port": 80}, "initialDelaySeconds": 3, "periodSeconds": 3,
                    },
                }],
                "volumes": [{"name": "config", "configMap": {"name": "settings"}}],
                "restartPolicy": "Always",
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                    "labelSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["whole"]}]},
                    "topologyKey": "kubernetes.io/hostname",
                }]}},
                "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000},
            },
        }),
        &[],
    );
    let resources = &pod.containers[0].resources;
    assert_eq!(
        (resources.cpu_request, resources.cpu_limit),
        (Some(250), Some(500))
    );
    assert_eq!(resources.memory_request, Some(64 << 20));
    assert_eq!(resources.memory_limit, Some(128 << 20));
    assert_eq!(
        pod.containers[0].security.run_as_user,
        Some(1000),
        "the Pod's user is the container's"
    );
    assert_eq!(pod.references().collect::<Vec<_>>(), [(false, "settings")]);
}

#[test]
fn a_name_with_dots_is_a_name_and_gives_the_hostname() {
    let pod = check_taken(
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sensor.hall.2"},
            "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        }),
        &[],
    );
    assert_eq!(pod.hostname, "sensor.hall.2");
}

#[test]
fn a_number_where_text_belongs() {
    check_refused(
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "database"},
            "spec": {"containers": [
                {"name": "server", "image": "mysql:5.7", "env": [{"name": "MYSQL_ROOT_PASSWORD", "value": 123456}]},
            ]},
        }),
        &[
            "spec.containers[0].env[0].value: expected a string, found the number 123456; \
           write it in quotes: \"123456\"",
        ],
    );
}

#[test]
fn a_kind_in_lower_case_and_a_field_with_one_letter_too_many() {
    check_refused(
        &json!({
            "apiVersion": "v1", "kind": "pod", "metadata": {"name": "by-hand"},
            "spec": {"containers": [
                {"images": "team/app", "name": "app", "ports": [{"containerPort": 8080, "protocol": "TCP"}]},
            ]},
        }),
        &[
            "spec.containers[0].images: unknown field \"spec.containers[0].images\" (did you mean \"image\"?)",
            "kind: Unsupported value: \"pod\": supported values: \"Pod\" (did you mean \"Pod\"?)",
            "spec.containers[0].image: Required value",
        ],
    );
}

#[test]
fn one_port_of_the_node_for_two_containers() {
    let ports = json!([{"containerPort": 8080, "hostPort": 8080}]);
    check_refused(
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "two"},
            "spec": {"containers": [
                {"name": "a", "image": "nginx", "ports": ports}, {"name": "b", "image": "nginx", "ports": ports},
            ]},
        }),
        &[
            "spec.containers[1].ports[0].hostPort: Duplicate value: \"TCP//8080\": \
           another container of this Pod already has this port of the node",
        ],
    );
}

#[test]
fn an_api_version_under_a_wrong_key() {
    check_refused(
        &json!({
            "apiVersion1": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "web", "image": "nginx:1.14.2", "ports": [{"containerPort": 80}]}]},
        }),
        &[
            "apiVersion1: unknown field \"apiVersion1\" (did you mean \"apiVersion\"?)",
            "apiVersion: Required value: write apiVersion: v1",
        ],
    );
}
