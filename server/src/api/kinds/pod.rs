//! Pods: Kubernetes' defaults, what may be changed after creation, and how a deletion waits for the node.
//!
//! What always holds: a stored Pod has every default filled in, so that readers never guess; its spec stays what the
//! node was told, but for the few fields that Kubernetes lets change.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use skiff_protocol::manifest::Cause;
use skiff_protocol::quantity::Quantity;

use crate::api::kinds::volume::quantity;
use crate::api::resources::Strategy;
use crate::api::status::{ApiError, ApiResult};
use crate::api::{features, metadata, mirror};
use crate::store::Store;

mod resize;

/// See the module.
pub struct Pod;

/// How long a pod may take to end unless it says otherwise.
const GRACE_SECONDS: i64 = 30;

const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
     `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
     tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

#[async_trait]
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
            (Some(old), Some(new)) => {
                // One that was stored before a field had its default changes in no way by getting it.
                let mut old = old.clone();
                if let Value::Object(spec) = &mut old {
                    default_spec(spec);
                }
                check_spec_update(&old, new)
            }
            _ => Vec::new(),
        }
    }

    fn resize(&self, old: &Value, sent: &Value) -> Result<Value, Vec<Cause>> {
        resize::resized(old, sent)
    }

    async fn admit(&self, store: &dyn Store, old: Option<&Value>, pod: &mut Value) -> ApiResult<Vec<String>> {
        if let Some(cause) = mirror::check(old, pod) {
            return Err(ApiError::invalid(
                "Pod",
                "",
                metadata::text(pod, "name"),
                &[cause],
            ));
        }
        match old {
            None => features::admit(store, pod).await,
            // What a Pod asks of its node cannot change.
            Some(_) => Ok(Vec::new()),
        }
    }

    fn grace_seconds(&self, object: &Value, requested: Option<i64>) -> i64 {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        // Nobody has to end what no node runs, and nobody can end a static Pod here.
        if mirror::mirrored(object).is_some()
            || text("/spec/nodeName").is_empty()
            || matches!(text("/status/phase"), "Succeeded" | "Failed")
        {
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
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for container in objects(spec, field) {
            default_container(container, host_network);
        }
    }
    for volume in objects(spec, "volumes") {
        default_volume(volume);
    }
    default_pod_requests(spec);
}

/// A limit of the Pod as a whole without a request asks for what its containers ask for together, or for the limit.
fn default_pod_requests(spec: &mut Map<String, Value>) {
    let mut sums = Map::new();
    for (name, milli) in [("cpu", true), ("memory", false)] {
        let containers = spec
            .get("containers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let asked: Vec<Quantity> = containers
            .filter_map(|it| quantity(&it["resources"]["requests"][name]))
            .collect();
        if !asked.is_empty() {
            let sum: i64 = asked
                .iter()
                .map(|it| if milli { it.milli() } else { it.value() })
                .fold(0, i64::saturating_add);
            let text = if milli { format!("{sum}m") } else { sum.to_string() };
            sums.insert(name.to_owned(), text.into());
        }
    }
    let Some(resources) = object(spec, "resources") else {
        return;
    };
    let Some(limits) = object(resources, "limits").map(|limits| limits.clone()) else {
        return;
    };
    set(resources, "requests", json!({}));
    if let Some(requests) = object(resources, "requests") {
        for (name, limit) in limits {
            let value = sums.get(&name).cloned().unwrap_or(limit);
            set(requests, &name, value);
        }
    }
}

fn default_container(container: &mut Map<String, Value>, host_network: bool) {
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
        if let (true, Some(number)) = (host_network, port.get("containerPort").cloned()) {
            set(port, "hostPort", number);
        }
    }
    for variable in objects(container, "env") {
        let Some(source) = object(variable, "valueFrom") else {
            continue;
        };
        if let Some(reference) = object(source, "fieldRef") {
            set(reference, "apiVersion", "v1");
        }
        if let Some(reference) = object(source, "resourceFieldRef") {
            set(reference, "divisor", "0");
        }
    }
    if let Some(resources) = object(container, "resources") {
        default_requests(resources);
    }
    default_resize_policy(container);
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
    if let Some(grpc) = object(probe, "grpc") {
        set(grpc, "service", "");
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

/// What is limited or asked for can be changed without a restart, unless it says otherwise.
fn default_resize_policy(container: &mut Map<String, Value>) {
    let resources = container.get("resources").unwrap_or(&Value::Null);
    let has = |name: &str| {
        ["limits", "requests"]
            .iter()
            .any(|part| !resources[*part][name].is_null())
    };
    let missing: Vec<&str> = ["cpu", "memory"].into_iter().filter(|name| has(name)).collect();
    if missing.is_empty() {
        return;
    }
    set(container, "resizePolicy", json!([]));
    if let Some(Value::Array(policies)) = container.get_mut("resizePolicy") {
        for name in missing {
            if !policies.iter().any(|it| it["resourceName"] == name) {
                policies.push(json!({ "resourceName": name, "restartPolicy": "NotRequired" }));
            }
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
    if let Some(image) = object(volume, "image") {
        let reference = image.get("reference").and_then(Value::as_str).unwrap_or_default();
        let policy = if is_latest(reference) {
            "Always"
        } else {
            "IfNotPresent"
        };
        set(image, "pullPolicy", policy);
    }
    if let Some(downward) = object(volume, "downwardAPI") {
        default_downward(downward);
    }
    if let Some(projected) = object(volume, "projected") {
        for source in objects(projected, "sources") {
            if let Some(downward) = object(source, "downwardAPI") {
                default_downward(downward);
            }
        }
    }
}

fn default_downward(downward: &mut Map<String, Value>) {
    for item in objects(downward, "items") {
        if let Some(reference) = object(item, "fieldRef") {
            set(reference, "apiVersion", "v1");
        }
        if let Some(reference) = object(item, "resourceFieldRef") {
            set(reference, "divisor", "0");
        }
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

/// `status.qosClass`, from the requests and limits of cpu and memory: of the Pod as a whole where it has some, else of
/// every container, init containers and sidecars among them.
pub fn qos_class(spec: &Value) -> &'static str {
    let has = |resources: &Value| {
        let parts = ["requests", "limits"].into_iter();
        parts
            .map(|part| &resources[part])
            .any(|part| part.as_object().is_some_and(|it| !it.is_empty()))
    };
    let whole = &spec["resources"];
    let all: Vec<&Value> = if has(whole) {
        vec![whole]
    } else {
        let lists = ["initContainers", "containers"].into_iter();
        let containers = lists.filter_map(|field| spec[field].as_array()).flatten();
        containers.map(|container| &container["resources"]).collect()
    };
    let (mut guaranteed, mut nothing) = (true, true);
    for resources in all {
        for name in ["cpu", "memory"] {
            let amount = |part: &str| quantity(&resources[part][name]).filter(|it| *it > Quantity::ZERO);
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
        assert_eq!(class(std::slice::from_ref(&half)), "Burstable");
        assert_eq!(class(&[json!({"requests": {"cpu": "0"}})]), "BestEffort");
        let sidecar = json!({ "containers": [{ "resources": full }], "initContainers": [{ "restartPolicy": "Always" }] });
        assert_eq!(qos_class(&sidecar), "Burstable");
        let whole = json!({ "resources": full, "containers": [{ "resources": half }] });
        assert_eq!(qos_class(&whole), "Guaranteed");
    }

    #[test]
    fn defaults() {
        let check = |spec: Value, pointer: &str, expected: Value| {
            let mut spec = spec;
            if let Value::Object(spec) = &mut spec {
                default_spec(spec);
            }
            assert_eq!(spec.pointer(pointer), Some(&expected), "{spec}");
        };
        let container = |fields: Value| json!({ "containers": [fields] });
        check(
            json!({ "hostNetwork": true, "initContainers": [{ "ports": [{ "containerPort": 80 }] }] }),
            "/initContainers/0/ports/0/hostPort",
            json!(80),
        );
        check(
            container(json!({ "resources": { "limits": { "ephemeral-storage": "1Gi" } } })),
            "/containers/0/resources/requests/ephemeral-storage",
            json!("1Gi"),
        );
        check(
            container(json!({ "resources": { "requests": { "memory": "1Gi" } } })),
            "/containers/0/resizePolicy",
            json!([{ "resourceName": "memory", "restartPolicy": "NotRequired" }]),
        );
        check(
            container(json!({ "startupProbe": { "grpc": { "port": 1 } } })),
            "/containers/0/startupProbe",
            json!({ "grpc": { "port": 1, "service": "" }, "timeoutSeconds": 1, "periodSeconds": 10,
                "successThreshold": 1, "failureThreshold": 3 }),
        );
        check(
            json!({ "volumes": [{ "image": { "reference": "x:1" } }] }),
            "/volumes/0/image/pullPolicy",
            json!("IfNotPresent"),
        );
        check(
            json!({ "volumes": [{ "projected": { "sources": [{ "downwardAPI": { "items": [{ "fieldRef": {} }] } }] } }] }),
            "/volumes/0/projected/sources/0/downwardAPI/items/0/fieldRef/apiVersion",
            json!("v1"),
        );
        check(
            json!({ "resources": { "limits": { "cpu": "2", "memory": "1Gi" } },
                "containers": [{ "resources": { "requests": { "cpu": "250m" } } }] }),
            "/resources/requests",
            json!({ "cpu": "250m", "memory": "1Gi" }),
        );
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
