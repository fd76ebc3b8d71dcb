//! Events: what happened to an object, for people.
//!
//! What always holds: the same thing happening again is the same Event with a higher count, however often the server
//! restarts in between; Events older than [`limits::EVENT_AGE`] go by themselves.

use std::sync::Arc;

use serde_json::{Value, json};

use super::resources::{events, namespaces};
use super::status::{ApiError, ApiResult};
use super::{limits, metadata, time};
use crate::store::{self, CreateGuard, DeleteGuard, Object, Scope, Store, StoreError, StoreExt};

/// What an Event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happening<'a> {
    /// `Normal` or `Warning`.
    pub kind: &'a str,
    /// One word in CamelCase: `Pulled`, `BackOff`.
    pub reason: &'a str,
    /// A sentence.
    pub message: &'a str,
    /// Who reports it: `skiff-agent`, `skiff-scheduler`.
    pub component: &'a str,
    /// The node it happened on; empty when it happened on none.
    pub host: &'a str,
    /// The part of the object, as `spec.containers{app}`; empty for the whole.
    pub field_path: &'a str,
}

/// Longest message, as in Kubernetes.
const MESSAGE_BYTES: usize = 1024;

/// Records that something happened to `involved`, an object with kind and metadata.
pub async fn record_event(
    store: &dyn Store,
    involved: &Value,
    what: Happening<'_>,
) -> ApiResult<Arc<Object>> {
    let message = clip(what.message, MESSAGE_BYTES);
    let reference = reference(involved, what.field_path);
    let namespace = metadata::text(involved, "namespace");
    let namespace = if namespace.is_empty() {
        "default"
    } else {
        namespace
    };
    let resource = events();
    // The name is a digest of what makes two Events the same, so that a repetition finds the first.
    let same = [
        what.kind,
        what.reason,
        message,
        what.component,
        what.host,
        &reference.to_string(),
    ]
    .join("\0");
    let digest = skiff_protocol::sha256(same.as_bytes());
    let digest: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let subject = clip(metadata::text(involved, "name"), 253 - 1 - digest.len());
    let key = resource.key(namespace, &format!("{subject}.{digest}"));
    let now = time::now();
    let failed = |error: StoreError| ApiError::of_store(error, resource, &key.name);
    for _ in 0..store::limits::UPDATE_ATTEMPTS {
        let again = store.update(&key, |event| {
            let count = event.get("count").and_then(Value::as_i64).unwrap_or(1);
            event["count"] = count.saturating_add(1).into();
            event["lastTimestamp"] = now.clone().into();
            Ok::<_, ApiError>(())
        });
        match again
            .await
            .map_err(|error| ApiError::of_update(error, resource, &key.name))
        {
            Err(error) if error.code == 404 => {}
            other => return other,
        }
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {},
            "involvedObject": reference, "type": what.kind, "reason": what.reason, "message": message,
            "count": 1, "firstTimestamp": now, "lastTimestamp": now, "eventTime": null,
            "source": source(what), "reportingComponent": what.component, "reportingInstance": what.host,
        });
        let within = Some(namespaces().key("", namespace));
        match store.create(&key, event, CreateGuard { within }).await {
            Err(StoreError::Exists(_)) => {}
            other => return other.map_err(failed),
        }
    }
    Err(ApiError::conflict(resource, &key.name))
}

fn source(what: Happening<'_>) -> Value {
    let mut source = json!({ "component": what.component });
    if !what.host.is_empty() {
        source["host"] = what.host.into();
    }
    source
}

/// The reference to an object: everything but its version, which changes while the object stays the same.
fn reference(involved: &Value, field_path: &str) -> Value {
    let text = |field: &str| involved.get(field).and_then(Value::as_str).unwrap_or_default();
    let fields = [
        ("apiVersion", text("apiVersion")),
        ("kind", text("kind")),
        ("namespace", metadata::text(involved, "namespace")),
        ("name", metadata::text(involved, "name")),
        ("uid", metadata::text(involved, "uid")),
        ("fieldPath", field_path),
    ];
    let fields = fields.iter().filter(|(_, text)| !text.is_empty());
    Value::Object(
        fields
            .map(|(field, text)| ((*field).to_owned(), Value::from(*text)))
            .collect(),
    )
}

/// At most `bytes` of the text, whole characters only.
fn clip(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Removes Events that have not been seen for longer than [`limits::EVENT_AGE`]; gives back how many went.
pub async fn sweep(store: &dyn Store) -> Result<usize, StoreError> {
    let oldest = time::after(-i64::try_from(limits::EVENT_AGE.as_secs()).unwrap_or(i64::MAX));
    let scope = Scope::all(&events().qualified());
    let mut after: Option<(String, String)> = None;
    let mut gone = 0;
    loop {
        let from = after
            .as_ref()
            .map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        let page = store.list(&scope, from, store::limits::PAGE).await?;
        for event in page.objects {
            let seen = event.value.get("lastTimestamp").and_then(Value::as_str);
            let seen = seen.unwrap_or_else(|| metadata::text(&event.value, "creationTimestamp"));
            // Times of this form sort as text.
            if seen >= oldest.as_str() {
                continue;
            }
            let guard = DeleteGuard {
                revision: Some(event.revision),
                ..DeleteGuard::default()
            };
            match store.delete(&event.key, guard).await {
                Ok(_) => gone += 1,
                // It happened again just now.
                Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(gone),
        }
    }
}
