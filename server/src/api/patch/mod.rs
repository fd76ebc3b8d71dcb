//! PATCH: JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch.
//!
//! What always holds: a patch is a pure function from a document to a document or an error that names the place; what
//! it makes nests no deeper and grows no larger than a document may.

mod json;
mod merge;
mod strategic;

use serde_json::Value;

use super::limits;
use super::resources::Resource;
use super::status::{ApiError, ApiResult};

/// The media types that are understood, for the answer to others.
pub(crate) const ACCEPTED: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

/// Applies a patch of the given media type to a copy of the document.
pub(crate) fn apply(
    resource: &Resource,
    media_type: &str,
    document: &Value,
    patch: &Value,
) -> ApiResult<Value> {
    let patched = match media_type {
        "application/json-patch+json" => json::apply(document, patch)?,
        "application/merge-patch+json" => merge::apply(document, patch),
        "application/strategic-merge-patch+json" => strategic::apply(resource.kind, document, patch)?,
        _ => return Err(ApiError::unsupported_media_type(ACCEPTED)),
    };
    if patched.is_object() {
        Ok(patched)
    } else {
        Err(ApiError::bad_request("the patch makes no object"))
    }
}

/// Refuses documents that nest too deep to be handled by recursion later.
pub(crate) fn check_depth(value: &Value) -> ApiResult<()> {
    if depth(value, 0) > limits::DEPTH {
        return Err(ApiError::bad_request(format!(
            "the object nests deeper than {} levels",
            limits::DEPTH
        )));
    }
    Ok(())
}

/// How deep the value nests below `above`; stops counting just past the bound.
fn depth(value: &Value, above: usize) -> usize {
    if above > limits::DEPTH {
        return above;
    }
    let inner = match value {
        Value::Object(map) => map.values().map(|value| depth(value, above + 1)).max(),
        Value::Array(items) => items.iter().map(|value| depth(value, above + 1)).max(),
        _ => None,
    };
    inner.unwrap_or(above)
}
