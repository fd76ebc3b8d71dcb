//! Pods: Kubernetes' defaults, what may be changed after creation, and how a deletion waits for the node.
//!
//! What always holds: a stored Pod has every default filled in, so that readers never guess; its spec stays what the
//! node was told, but for the few fields that Kubernetes lets change.

use serde_json::{Map, Value, json};
use skiff_protocol::manifest::Cause;
use skiff_protocol::quantity::Quantity;

use crate::api::resources::Strategy;

/// See the module.
pub struct Pod;

/// How long a pod may take to end unless it says otherwise.
const GRACE_SECONDS: i64 = 30;

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
     `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
     tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

impl Strategy for Pod {
    fn default(&self, object: &mut Value) {
        if let Some(Value::Object(spec)) = object.get_mut("spec") {
            default_spec(spec);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        let class = object.get("spec").map_or("BestEffort", qos_class);
        object["status"] = json!({ "phase": "Pending", "qosClass": class });
    }

    fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        match (old.get("spec"), new.get("spec")) {
            (Some(old), Some(new)) => check_spec_update(old, new),
            _ => Vec::new(),
        }
    }

    fn grace_seconds(&self, object: &Value, requested: Option<i64>) -> i64 {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        // Nobody has to end what no node runs.
        if text("/spec/nodeName").is_empty() || matches!(text("/status/phase"), "Succeeded" | "Failed") {
            return 0;
        }
        let own = object
            .pointer("/spec/terminationGracePeriodSeconds")
            .and_then(Value::as_i64);
        let seconds = requested.or(own).unwrap_or(GRACE_SECONDS);
        // A negative period is an old way to say one second.
        if seconds < 0 { 1 } else { seconds }
    }
}

fn set(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    match map.get_mut(field) {
        None => {
            map.insert(field.into(), value.into());
        }
        Some(present) if present.is_null() => *present = value.into(),
        Some(_) => {}
    }
}

fn objects<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let items = map.get_mut(field).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut)
}

fn object<'a>(map: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(field).and_then(Value::as_object_mut)
}

/// Fills in the defaults of a PodSpec (Kubernetes' `SetDefaults_PodSpec` and what it calls).
pub fn default_spec(spec: &mut Map<String, Value>) {
    set(spec, "restartPolicy", "Always");
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "terminationGracePeriodSeconds", GRACE_SECONDS);
    set(spec, "securityContext", json!({}));
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "enableServiceLinks", true);
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for container in objects(spec, field) {
            default_container(container);
        }
    }
    for volume in objects(spec, "volumes") {
        default_volume(volume);
    }
}

fn default_container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set(container, "imagePullPolicy", policy);
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    for port in objects(container, "ports") {
        set(port, "protocol", "TCP");
    }
    for variable in objects(container, "env") {
        let source = object(variable, "valueFrom").and_then(|from| object(from, "fieldRef"));
        if let Some(reference) = source {
            set(reference, "apiVersion", "v1");
        }
    }
    if let Some(resources) = object(container, "resources") {
        default_requests(resources);
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = object(container, field) {
            default_probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        let hook = object(container, "lifecycle").and_then(|lifecycle| object(lifecycle, hook));
        if let Some(get) = hook.and_then(|hook| object(hook, "httpGet")) {
            default_http_get(get);
        }
    }
}

fn default_probe(probe: &mut Map<String, Value>) {
    set(probe, "timeoutSeconds", 1);
    set(probe, "periodSeconds", 10);
    set(probe, "successThreshold", 1);
    set(probe, "failureThreshold", 3);
    if let Some(get) = object(probe, "httpGet") {
        default_http_get(get);
    }
}

fn default_http_get(get: &mut Map<String, Value>) {
    set(get, "path", "/");
    set(get, "scheme", "HTTP");
}

/// A limit without a request asks for the whole limit.
fn default_requests(resources: &mut Map<String, Value>) {
    let Some(limits) = object(resources, "limits").map(|limits| limits.clone()) else {
        return;
    };
    set(resources, "requests", json!({}));
    if let Some(requests) = object(resources, "requests") {
        for (name, quantity) in limits {
            set(requests, &name, quantity);
        }
    }
}

fn default_volume(volume: &mut Map<String, Value>) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = object(volume, source) {
            set(source, "defaultMode", 0o644);
        }
    }
    if let Some(path) = object(volume, "hostPath") {
        set(path, "type", "");
    }
}

/// Whether the image's tag moves: `latest`, or no tag and no digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// `status.qosClass`, from the requests and limits of cpu and memory.
pub fn qos_class(spec: &Value) -> &'static str {
    let containers = ["initContainers", "containers"];
    let containers = containers
        .iter()
        .filter_map(|field| spec.get(*field)?.as_array())
        .flatten();
    let (mut guaranteed, mut nothing) = (true, true);
    for container in containers {
        for name in ["cpu", "memory"] {
            let amount = |part: &str| {
                let value = container.get("resources")?.get(part)?.get(name)?;
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                Quantity::parse(&text).ok()
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            nothing &= request.is_none() && limit.is_none();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (nothing, guaranteed) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}

fn check_spec_update(old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for field in ["containers", "initContainers"] {
        let count = |spec: &Value| spec.get(field).and_then(Value::as_array).map_or(0, Vec::len);
        if count(old) != count(new) {
            let why = "pod updates may not add or remove containers";
            causes.push(Cause::forbidden(format!("spec.{field}"), why));
            return causes;
        }
    }
    let mut allowed = new.clone();
    for field in ["containers", "initContainers"] {
        for (at, container) in array(&mut allowed, field).enumerate() {
            copy(&old[field][at], container, "image");
        }
    }
    let deadline = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (deadline(old), deadline(new)) {
        (Some(before), Some(now)) if now > before => {
            let why = "must be less than or equal to previous value";
            causes.push(Cause::invalid("spec.activeDeadlineSeconds", now, why));
        }
        (Some(_), None) => causes.push(Cause::invalid(
            "spec.activeDeadlineSeconds",
            0,
            "must not update from a positive integer to nil value",
        )),
        _ => copy(old, &mut allowed, "activeDeadlineSeconds"),
    }
    let tolerations = |spec: &Value| {
        spec.get("tolerations")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let now = tolerations(new);
    if tolerations(old).iter().all(|toleration| now.contains(toleration)) {
        copy(old, &mut allowed, "tolerations");
    }
    let grace = |spec: &Value| {
        spec.get("terminationGracePeriodSeconds")
            .and_then(Value::as_i64)
            .unwrap_or(0)
    };
    if grace(old) < 0 && grace(new) == 1 {
        copy(old, &mut allowed, "terminationGracePeriodSeconds");
    }
    let mut changed = Vec::new();
    differences(old, &allowed, "spec", &mut changed);
    if !changed.is_empty() {
        causes.push(Cause::forbidden(
            "spec",
            format!("{MUTABLE}\nchanged: {}", changed.join(", ")),
        ));
    }
    causes
}

fn array<'a>(spec: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    spec.get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// Makes `field` of `to` what it is in `from`.
fn copy(from: &Value, to: &mut Value, field: &str) {
    let Value::Object(to) = to else { return };
    match from.get(field) {
        Some(value) => to.insert(field.into(), value.clone()),
        None => to.remove(field),
    };
}

/// How many changed fields a refusal names.
const NAMED_CHANGES: usize = 8;

/// The paths at which two documents differ, at most [`NAMED_CHANGES`] of them.
fn differences(old: &Value, new: &Value, path: &str, out: &mut Vec<String>) {
    if old == new || out.len() == NAMED_CHANGES {
        return;
    }
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
            for key in keys {
                let (old, new) = (
                    old.get(key).unwrap_or(&Value::Null),
                    new.get(key).unwrap_or(&Value::Null),
                );
                differences(old, new, &format!("{path}.{key}"), out);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (at, (old, new)) in old.iter().zip(new).enumerate() {
                differences(old, new, &format!("{path}[{at}]"), out);
            }
        }
        _ => out.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies_follow_the_tag() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.14.2", false),
            ("localhost:5000/nginx", true),
            ("localhost:5000/nginx:1", false),
            ("nginx@sha256:00", false),
            ("nginx:latest@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn qos_classes() {
        let class = |resources: &[Value]| {
            let containers: Vec<Value> = resources.iter().map(|it| json!({ "resources": it })).collect();
            qos_class(&json!({ "containers": containers }))
        };
        let full =
            json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "0.5", "memory": "1Gi"}});
        let half = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}});
        assert_eq!(class(&[json!({})]), "BestEffort");
        assert_eq!(class(std::slice::from_ref(&full)), "Guaranteed");
        assert_eq!(class(&[full.clone(), json!({})]), "Burstable");
        assert_eq!(class(&[half]), "Burstable");
    }

    #[test]
    fn updates_of_a_spec() {
        let old = json!({"containers": [{"name": "a", "image": "x:1", "command": ["sh"]}], "tolerations": [{"key": "k"}]});
        let check = |change: &dyn Fn(&mut Value), field: Option<&str>| {
            let mut new = old.clone();
            change(&mut new);
            let causes = check_spec_update(&old, &new);
            assert_eq!(
                causes.first().map(|cause| cause.field.as_str()),
                field,
                "{new} {causes:?}"
            );
        };
        check(&|_| {}, None);
        check(&|new| new["containers"][0]["image"] = "x:2".into(), None);
        check(
            &|new| new["tolerations"] = json!([{"key": "k"}, {"key": "l"}]),
            None,
        );
        check(&|new| new["tolerations"] = json!([]), Some("spec"));
        check(
            &|new| new["containers"][0]["command"] = json!(["bash"]),
            Some("spec"),
        );
        check(&|new| new["containers"] = json!([]), Some("spec.containers"));
        check(&|new| new["nodeName"] = "n".into(), Some("spec"));
    }
}
