//! Placement: how a pod gets its node.
//!
//! What always holds: a pod is placed once, and it is the very pod that was meant, not a later one of its name. Whoever
//! places it, the scheduler here or a client through `pods/binding`, comes through [`bind`].

use std::sync::Arc;

use serde_json::{Value, json};

use super::reply::Reply;
use super::resources::pods;
use super::status::{ApiError, ApiResult};
use super::verbs::Call;
use super::{metadata, time};
use crate::store::{Key, Object, Store, StoreExt};

/// Which version of a pod is meant; what is not given may be any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `metadata.resourceVersion` as a number.
    pub revision: Option<u64>,
}

impl Seen {
    /// This version, and no other.
    pub fn exactly(object: &Object) -> Self {
        Self {
            uid: Some(object.uid.clone()),
            revision: Some(object.revision),
        }
    }

    fn check(&self, key: &Key, stored: &Value) -> ApiResult<()> {
        let uid = metadata::text(stored, "uid");
        if let Some(seen) = self.uid.as_deref().filter(|seen| *seen != uid) {
            let why = format!("Precondition failed: UID in precondition: {seen}, UID in object meta: {uid}");
            return Err(ApiError::conflict_because(pods(), &key.name, &why));
        }
        let revision = metadata::text(stored, "resourceVersion");
        match self.revision {
            Some(seen) if seen.to_string() != revision => Err(ApiError::conflict(pods(), &key.name)),
            _ => Ok(()),
        }
    }
}

/// Places a pod on a node: sets `spec.nodeName` and the condition PodScheduled. Placing it again on the same node
/// changes nothing. A pod of another version than the one seen is a conflict.
pub async fn bind(store: &dyn Store, pod: &Key, seen: &Seen, node: &str) -> ApiResult<Arc<Object>> {
    let resource = pods();
    let placed = store.update(pod, |value| {
        seen.check(pod, value)?;
        let current = value
            .pointer("/spec/nodeName")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if current == node {
            return Ok(());
        }
        if !current.is_empty() {
            let why = format!("pod {} is already assigned to node {current:?}", pod.name);
            return Err(ApiError::conflict_because(resource, &pod.name, &why));
        }
        if metadata::is_deleting(value) {
            let why = format!("pod {} is being deleted, cannot be assigned to a host", pod.name);
            return Err(ApiError::conflict_because(resource, &pod.name, &why));
        }
        value["spec"]["nodeName"] = node.into();
        set_condition(value, "PodScheduled", "True", "", "");
        Ok(())
    });
    placed
        .await
        .map_err(|error| ApiError::of_update(error, resource, &pod.name))
}

/// Notes why a pod has no node yet, as `kubectl describe` shows it. Saying the same again changes nothing. A pod of
/// another version than the one seen is a conflict.
pub async fn mark_unschedulable(
    store: &dyn Store,
    pod: &Key,
    seen: &Seen,
    message: &str,
) -> ApiResult<Arc<Object>> {
    let marked = store.update(pod, |value| {
        seen.check(pod, value)?;
        set_condition(value, "PodScheduled", "False", "Unschedulable", message);
        Ok(())
    });
    marked
        .await
        .map_err(|error| ApiError::of_update(error, pods(), &pod.name))
}

/// Sets a condition of the status; lastTransitionTime moves only when the status does.
pub fn set_condition(object: &mut Value, kind: &str, status: &str, reason: &str, message: &str) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    if !object["status"]["conditions"].is_array() {
        object["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = object["status"]["conditions"].as_array_mut() else {
        return;
    };
    let mut condition = json!({ "type": kind, "status": status, "lastProbeTime": null });
    for (field, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[field] = text.into();
        }
    }
    let existing = conditions.iter_mut().find(|condition| condition["type"] == kind);
    let since = existing.as_ref().filter(|existing| existing["status"] == status);
    condition["lastTransitionTime"] = since.map_or_else(
        || time::now().into(),
        |existing| existing["lastTransitionTime"].clone(),
    );
    match existing {
        Some(existing) => *existing = condition,
        None => conditions.push(condition),
    }
}

impl Call<'_> {
    /// POST of a Binding to `pods/NAME/binding`.
    pub(crate) async fn bind(&self, binding: &Value) -> ApiResult<Reply> {
        let text = |pointer: &str| {
            binding
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (kind, node) = (text("/target/kind"), text("/target/name"));
        if !matches!(kind, "" | "Node") || node.is_empty() {
            let message = "a Binding must have target.kind Node and target.name, the node's name";
            return Err(ApiError::bad_request(message));
        }
        let given = |pointer: &str| Some(text(pointer)).filter(|text| !text.is_empty());
        let revision = given("/metadata/resourceVersion").map(|text| {
            text.parse().map_err(|_| {
                ApiError::bad_request(format!("metadata.resourceVersion: {text:?} is no number"))
            })
        });
        let seen = Seen {
            uid: given("/metadata/uid").map(str::to_owned),
            revision: revision.transpose()?,
        };
        if !self.query.dry_run()? {
            bind(&*self.state.store, &self.key(), &seen, node).await?;
        }
        let body =
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 });
        Ok(Reply {
            code: 201,
            body,
            warnings: Vec::new(),
        })
    }
}
