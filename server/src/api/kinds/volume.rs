//! PersistentVolumes, PersistentVolumeClaims and StorageClasses: one kind of storage, a directory that a node keeps.
//!
//! What always holds: a volume belongs to one node, which its nodeAffinity names; what asks for another kind of
//! storage is refused by name; a claim without a class gets the default one, as in Kubernetes.

use async_trait::async_trait;
use serde_json::{Map, Value, json};
use skiff_protocol::manifest::Cause;
use skiff_protocol::quantity::Quantity;

use crate::api::metadata;
use crate::api::resources::{Strategy, classes};
use crate::api::status::{ApiError, ApiResult};
use crate::store::{Scope, Store, StoreExt};

/// Who makes the volumes, and the driver of their `csi` source.
pub const PROVISIONER: &str = "skiff.io/node-local";
/// The class that every server has from its start.
pub const CLASS: &str = "node-local";
/// Holds a claim back while a Pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Holds a volume back while it is bound.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// Marks the class of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

const MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

/// A PersistentVolumeClaim.
pub struct Claim;
/// A PersistentVolume.
pub struct Volume;
/// A StorageClass.
pub struct Class;

/// The built-in class.
pub fn built_in() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": { "name": CLASS, "annotations": { DEFAULT_CLASS: "true" } },
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
    })
}

#[async_trait]
impl Strategy for Claim {
    fn default(&self, object: &mut Value) {
        set(object, "spec", "volumeMode", "Filesystem".into());
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({ "phase": "Pending" });
        protect(object, CLAIM_PROTECTION);
    }

    fn check(&self, object: &Value) -> Vec<Cause> {
        let spec = &object["spec"];
        let mut causes = Vec::new();
        modes(spec, "at least 1 access mode is required", &mut causes);
        mode(spec, &mut causes);
        let field = "spec.resources[storage]";
        match &spec["resources"]["requests"]["storage"] {
            Value::Null => causes.push(Cause::required(field, "")),
            written => positive(field, written, &mut causes),
        }
        class_name(spec, &mut causes);
        causes
    }

    fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        let (mut before, mut after) = (old["spec"].clone(), new["spec"].clone());
        let bound = old["status"]["phase"] == "Bound";
        if before["volumeName"].as_str().unwrap_or_default().is_empty() {
            remove(&mut before, "volumeName");
            remove(&mut after, "volumeName");
        }
        if bound && after["resources"].is_object() {
            after["resources"]["requests"] = before["resources"]["requests"].clone();
        }
        let mut causes = Vec::new();
        if before != after {
            let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName \
                 for bound claims";
            causes.push(Cause::forbidden("spec", why));
        }
        let size = |claim: &Value| quantity(&claim["spec"]["resources"]["requests"]["storage"]);
        let has = quantity(&old["status"]["capacity"]["storage"]).or(size(old));
        if size(new) < has && size(new) != size(old) {
            let field = "spec.resources.requests.storage";
            causes.push(Cause::forbidden(
                field,
                "field can not be less than status.capacity",
            ));
        }
        causes
    }

    async fn admit(
        &self,
        store: &dyn Store,
        old: Option<&Value>,
        claim: &mut Value,
    ) -> ApiResult<Vec<String>> {
        let name = metadata::text(claim, "name").to_owned();
        let failed = |error| ApiError::of_store(error, classes(), "");
        let Some(old) = old else {
            if claim["spec"]["storageClassName"].is_null() {
                let (all, _) = store
                    .list_all(&Scope::all(&classes().qualified()))
                    .await
                    .map_err(failed)?;
                // Of several the newest, as in Kubernetes.
                let marked = all
                    .iter()
                    .filter(|class| class.value["metadata"]["annotations"][DEFAULT_CLASS] == "true");
                let newest = marked.max_by_key(|class| metadata::text(&class.value, "creationTimestamp"));
                if let (Some(class), true) = (newest, claim["spec"].is_object()) {
                    claim["spec"]["storageClassName"] = class.key.name.clone().into();
                }
            }
            return Ok(Vec::new());
        };
        let size = |claim: &Value| quantity(&claim["spec"]["resources"]["requests"]["storage"]);
        if size(claim) > size(old) {
            let class = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
            let class = store.get(&classes().key("", class)).await.map_err(failed)?;
            if class.is_none_or(|class| class.value["allowVolumeExpansion"] != true) {
                let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the \
                     pvc must support resize";
                return Err(ApiError::forbidden(crate::api::resources::claims(), &name, why));
            }
        }
        Ok(Vec::new())
    }
}

impl Strategy for Volume {
    fn default(&self, object: &mut Value) {
        set(object, "spec", "volumeMode", "Filesystem".into());
        set(object, "spec", "persistentVolumeReclaimPolicy", "Retain".into());
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({ "phase": "Pending" });
        protect(object, VOLUME_PROTECTION);
    }

    fn check(&self, object: &Value) -> Vec<Cause> {
        let spec = &object["spec"];
        let mut causes = Vec::new();
        modes(spec, "", &mut causes);
        mode(spec, &mut causes);
        policy(
            "spec.persistentVolumeReclaimPolicy",
            &spec["persistentVolumeReclaimPolicy"],
            &mut causes,
        );
        class_name(spec, &mut causes);
        match &spec["capacity"]["storage"] {
            Value::Null => causes.push(Cause::required("spec.capacity", "")),
            written => positive("spec.capacity[storage]", written, &mut causes),
        }
        for source in ["local", "hostPath"] {
            if !spec[source].is_null() {
                let why = format!(
                    "a PersistentVolume here is a directory that its node makes and keeps (csi.driver {PROVISIONER}); \
                     use hostPath in the Pod for a path of your own"
                );
                causes.push(Cause::forbidden(format!("spec.{source}"), why));
                return causes;
            }
        }
        source(object, &mut causes);
        causes
    }

    fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        let (before, after) = (&old["spec"], &new["spec"]);
        let mut causes = Vec::new();
        if before["csi"] != after["csi"] {
            let why = "spec.persistentvolumesource is immutable after creation";
            causes.push(Cause::forbidden("spec.persistentvolumesource", why));
        }
        immutable(before, after, "spec.", "volumeMode", &mut causes);
        immutable(before, after, "spec.", "nodeAffinity", &mut causes);
        causes
    }
}

impl Strategy for Class {
    fn default(&self, object: &mut Value) {
        let Value::Object(class) = object else { return };
        fill(class, "reclaimPolicy", "Delete".into());
        // Kubernetes' own default, Immediate, cannot be had: only a Pod's placement says on which node.
        fill(class, "volumeBindingMode", "WaitForFirstConsumer".into());
    }

    fn check(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        match object["provisioner"].as_str().unwrap_or_default() {
            "" => causes.push(Cause::required("provisioner", "")),
            PROVISIONER => {}
            other => causes.push(Cause::not_supported("provisioner", other, &[PROVISIONER])),
        }
        policy("reclaimPolicy", &object["reclaimPolicy"], &mut causes);
        one_of(
            "volumeBindingMode",
            &object["volumeBindingMode"],
            &["WaitForFirstConsumer"],
            &mut causes,
        );
        causes
    }

    fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if old[field] != new[field] {
                causes.push(Cause::forbidden(
                    field,
                    format!("updates to {field} are forbidden."),
                ));
            }
        }
        immutable(old, new, "", "volumeBindingMode", &mut causes);
        causes
    }
}

/// The one node whose volume this is: `nodeAffinity.required` with one term, `kubernetes.io/hostname In [node]`.
pub fn node_of(volume: &Value) -> Option<&str> {
    let one = |list: &'_ Value| (list.as_array().map(Vec::len) == Some(1)).then_some(());
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
    one(terms)?;
    let expressions = &terms[0]["matchExpressions"];
    one(expressions)?;
    let expression = &expressions[0];
    one(&expression["values"])?;
    let named = expression["key"] == "kubernetes.io/hostname" && expression["operator"] == "In";
    named.then(|| expression["values"][0].as_str()).flatten()
}

fn source(volume: &Value, causes: &mut Vec<Cause>) {
    let spec = &volume["spec"];
    if spec["csi"].is_null() {
        causes.push(Cause::required("spec", "must specify a volume type"));
        return;
    }
    match spec["csi"]["driver"].as_str().unwrap_or_default() {
        "" => causes.push(Cause::required("spec.csi.driver", "")),
        PROVISIONER => {}
        other => causes.push(Cause::not_supported("spec.csi.driver", other, &[PROVISIONER])),
    }
    let handle = spec["csi"]["volumeHandle"].as_str().unwrap_or_default();
    if handle.is_empty() {
        causes.push(Cause::required("spec.csi.volumeHandle", ""));
    } else if handle != metadata::text(volume, "name") {
        let why = "must be the PersistentVolume's name";
        causes.push(Cause::invalid("spec.csi.volumeHandle", handle, why));
    }
    if node_of(volume).is_none() {
        let why = "Local volume requires node affinity: one term, kubernetes.io/hostname In one node";
        causes.push(Cause::required("spec.nodeAffinity", why));
    }
}

fn modes(spec: &Value, why: &str, causes: &mut Vec<Cause>) {
    let modes = spec["accessModes"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if modes.is_empty() {
        causes.push(Cause::required("spec.accessModes", why));
    }
    for mode in modes {
        let mode = mode.as_str().unwrap_or_default();
        if !MODES.contains(&mode) {
            causes.push(Cause::not_supported("spec.accessModes", mode, &MODES));
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        causes.push(Cause::forbidden("spec.accessModes", why));
    }
}

fn mode(spec: &Value, causes: &mut Vec<Cause>) {
    one_of("spec.volumeMode", &spec["volumeMode"], &["Filesystem"], causes);
}

fn policy(field: &str, value: &Value, causes: &mut Vec<Cause>) {
    one_of(field, value, &["Delete", "Retain"], causes);
}

fn one_of(field: &str, value: &Value, choices: &[&str], causes: &mut Vec<Cause>) {
    if let Some(value) = value.as_str()
        && !choices.contains(&value)
    {
        causes.push(Cause::not_supported(field, value, choices));
    }
}

fn class_name(spec: &Value, causes: &mut Vec<Cause>) {
    let name = spec["storageClassName"].as_str().unwrap_or_default();
    if !name.is_empty() && !metadata::is_subdomain(name) {
        causes.push(Cause::invalid("spec.storageClassName", name, metadata::SUBDOMAIN));
    }
}

fn positive(field: &str, written: &Value, causes: &mut Vec<Cause>) {
    let text = written
        .as_str()
        .map_or_else(|| written.to_string(), str::to_owned);
    match Quantity::parse(&text) {
        Ok(amount) if amount <= Quantity::ZERO => {
            causes.push(Cause::invalid(field, text, "must be greater than zero"));
        }
        Ok(_) => {}
        Err(error) => causes.push(Cause::invalid(field, text, error)),
    }
}

/// A quantity in a document.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn immutable(old: &Value, new: &Value, path: &str, field: &str, causes: &mut Vec<Cause>) {
    if !old[field].is_null() && old[field] != new[field] {
        let value = new[field]
            .as_str()
            .map_or_else(|| new[field].to_string(), str::to_owned);
        causes.push(Cause::invalid(
            format!("{path}{field}"),
            value,
            "field is immutable",
        ));
    }
}

fn protect(object: &mut Value, finalizer: &str) {
    let held = object["metadata"]["finalizers"].as_array_mut();
    match held {
        Some(held) if held.iter().any(|it| it == finalizer) => {}
        Some(held) => held.push(finalizer.into()),
        None => object["metadata"]["finalizers"] = json!([finalizer]),
    }
}

fn set(object: &mut Value, inside: &str, field: &str, value: Value) {
    if let Some(map) = object.get_mut(inside).and_then(Value::as_object_mut) {
        fill(map, field, value);
    }
}

fn fill(map: &mut Map<String, Value>, field: &str, value: Value) {
    let at = map.entry(field).or_insert(Value::Null);
    if at.is_null() {
        *at = value;
    }
}

fn remove(value: &mut Value, field: &str) {
    if let Value::Object(map) = value {
        map.remove(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(causes: &[Cause]) -> Option<String> {
        causes.first().map(ToString::to_string)
    }

    #[test]
    fn claims_in_kubernetes_wording() {
        let check = |change: fn(&mut Value), expected: Option<&str>| {
            let mut claim = json!({ "metadata": { "name": "data" }, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
            change(&mut claim["spec"]);
            assert_eq!(first(&Claim.check(&claim)).as_deref(), expected);
        };
        check(|_| {}, None);
        check(
            |it| it["accessModes"] = json!([]),
            Some("spec.accessModes: Required value: at least 1 access mode is required"),
        );
        check(
            |it| it["accessModes"] = json!(["ReadWriteOncePod", "ReadOnlyMany"]),
            Some("spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"),
        );
        check(
            |it| it["accessModes"] = json!(["Often"]),
            Some(
                "spec.accessModes: Unsupported value: \"Often\": supported values: \"ReadOnlyMany\", \
                 \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            ),
        );
        check(
            |it| it["resources"] = json!({}),
            Some("spec.resources[storage]: Required value"),
        );
        check(
            |it| it["resources"]["requests"]["storage"] = "0".into(),
            Some("spec.resources[storage]: Invalid value: \"0\": must be greater than zero"),
        );
        check(
            |it| it["volumeMode"] = "Block".into(),
            Some("spec.volumeMode: Unsupported value: \"Block\": supported values: \"Filesystem\""),
        );
    }

    #[test]
    fn a_claim_only_grows_and_only_when_bound() {
        let check = |phase: &str, change: fn(&mut Value), expected: Option<&str>| {
            let old = json!({ "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "a",
                "resources": { "requests": { "storage": "2Gi" } } },
                "status": { "phase": phase, "capacity": { "storage": "2Gi" } } });
            let mut new = old.clone();
            change(&mut new["spec"]);
            let found = first(&Claim.check_update(&old, &new));
            let starts = |start: &str| found.as_deref().is_some_and(|it| it.starts_with(start));
            assert!(expected.map_or(found.is_none(), starts), "{found:?} {expected:?}");
        };
        let grow: fn(&mut Value) = |it| it["resources"]["requests"]["storage"] = "3Gi".into();
        let immutable = "spec: Forbidden: spec is immutable after creation";
        check("Bound", |_| {}, None);
        check("Bound", grow, None);
        check("Pending", grow, Some(immutable));
        check(
            "Bound",
            |it| it["resources"]["requests"]["storage"] = "1Gi".into(),
            Some("spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"),
        );
        check("Bound", |it| it["storageClassName"] = "b".into(), Some(immutable));
        check("Pending", |it| it["volumeName"] = "v".into(), None);
    }

    #[test]
    fn only_volumes_of_nodes() {
        let check = |change: fn(&mut Value), expected: Option<&str>| {
            let mut volume = json!({ "metadata": { "name": "v" }, "spec": {
                "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" },
                "csi": { "driver": PROVISIONER, "volumeHandle": "v" },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "kubernetes.io/hostname", "operator": "In", "values": ["a"] } ] }] } } } });
            change(&mut volume["spec"]);
            let found = first(&Volume.check(&volume));
            let starts = |start: &str| found.as_deref().is_some_and(|it| it.starts_with(start));
            assert!(expected.map_or(found.is_none(), starts), "{found:?} {expected:?}");
        };
        check(|_| {}, None);
        check(
            |it| it["local"] = json!({ "path": "/x" }),
            Some("spec.local: Forbidden: "),
        );
        check(
            |it| it["hostPath"] = json!({ "path": "/x" }),
            Some("spec.hostPath: Forbidden: "),
        );
        check(
            |it| it["csi"] = Value::Null,
            Some("spec: Required value: must specify a volume type"),
        );
        check(
            |it| it["csi"]["driver"] = "x".into(),
            Some("spec.csi.driver: Unsupported value: \"x\""),
        );
        check(
            |it| it["csi"]["volumeHandle"] = "w".into(),
            Some("spec.csi.volumeHandle: Invalid value: \"w\""),
        );
        check(
            |it| it["nodeAffinity"] = Value::Null,
            Some("spec.nodeAffinity: Required value"),
        );
        check(
            |it| it["capacity"] = Value::Null,
            Some("spec.capacity: Required value"),
        );
        check(
            |it| it["persistentVolumeReclaimPolicy"] = "Recycle".into(),
            Some("spec.persistentVolumeReclaimPolicy: Unsupported value: \"Recycle\""),
        );
    }

    #[test]
    fn classes_are_of_the_one_provisioner() {
        let check = |class: Value, expected: Option<&str>| {
            let mut class = class;
            Class.default(&mut class);
            assert_eq!(first(&Class.check(&class)).as_deref(), expected);
        };
        check(built_in(), None);
        check(
            json!({ "provisioner": PROVISIONER, "reclaimPolicy": "Retain" }),
            None,
        );
        check(json!({}), Some("provisioner: Required value"));
        check(
            json!({ "provisioner": "x" }),
            Some("provisioner: Unsupported value: \"x\": supported values: \"skiff.io/node-local\""),
        );
        check(
            json!({ "provisioner": PROVISIONER, "volumeBindingMode": "Immediate" }),
            Some(
                "volumeBindingMode: Unsupported value: \"Immediate\": supported values: \"WaitForFirstConsumer\"",
            ),
        );
    }
}
