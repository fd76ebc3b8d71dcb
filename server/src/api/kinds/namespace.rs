//! Namespaces: they outlive their deletion until their contents are gone.

use serde_json::{Map, Value, json};
use skiff_protocol::manifest::Cause;

use crate::api::metadata;
use crate::api::resources::Strategy;

/// The namespaces that every server has from its start.
pub const INITIAL: [&str; 3] = ["default", "kube-node-lease", "kube-system"];

/// See the module.
pub struct Namespace;

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        let name = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let Value::Object(object) = object else { return };
        let spec = object.entry("spec").or_insert_with(|| json!({}));
        if let Value::Object(spec) = spec {
            spec.entry("finalizers").or_insert_with(|| json!(["kubernetes"]));
        }
        // Kubernetes labels each namespace with its name, so that selectors can find it.
        let metadata = object.entry("metadata").or_insert_with(|| json!({}));
        if let (Some(name), Value::Object(metadata)) = (name, metadata) {
            let labels = metadata
                .entry("labels")
                .or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(labels) = labels {
                labels.insert("kubernetes.io/metadata.name".into(), name.into());
            }
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({ "phase": "Active" });
    }

    fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        let finalizers = |value: &Value| value.pointer("/spec/finalizers").cloned();
        if finalizers(old) == finalizers(new) {
            return Vec::new();
        }
        vec![Cause::forbidden(
            "spec.finalizers",
            "may only be changed by the namespace controller",
        )]
    }

    fn outlives_deletion(&self, _object: &Value) -> bool {
        true
    }

    fn begin_deletion(&self, object: &mut Value) {
        if let Some(status) = metadata::status_of(object) {
            status.insert("phase".into(), "Terminating".into());
        }
    }

    fn undeletable(&self, name: &str) -> Option<String> {
        INITIAL
            .contains(&name)
            .then(|| "this namespace may not be deleted".to_owned())
    }
}
