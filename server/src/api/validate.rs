//! The gate between what a client sent and what is stored: the API's view of `skiff-protocol`'s validation.
//!
//! What always holds: a Pod that passes here is one that the node's own gate passes too, because it is the same code.

use serde_json::Value;
use skiff_protocol::manifest::{self, Cause, Inspection, Reason};
use skiff_protocol::pod::Pod;

use super::resources::Resource;
use super::status::{ApiError, ApiResult};

/// What to do with fields that the schema does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// Refuse the object.
    Strict,
    /// Drop them, and say so in a warning.
    Warn,
    /// Drop them, and say nothing.
    Ignore,
}

impl FieldValidation {
    /// The query parameter's meaning; Kubernetes warns by default.
    pub(crate) fn parse(value: Option<&str>) -> ApiResult<Self> {
        match value.unwrap_or_default() {
            "" | "Warn" => Ok(Self::Warn),
            "Strict" => Ok(Self::Strict),
            "Ignore" => Ok(Self::Ignore),
            other => Err(ApiError::bad_request(format!(
                "invalid fieldValidation {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            ))),
        }
    }
}

/// Checks the object against its kind's schema and removes the fields that the schema does not know, as Kubernetes
/// does; gives back warnings.
pub(crate) fn schema(
    resource: &Resource,
    value: &mut Value,
    validation: FieldValidation,
) -> ApiResult<Vec<String>> {
    let Inspection { unknown, type_errors } = manifest::inspect(resource.kind, value);
    let mut fatal = identity(resource, value);
    let missing = !fatal.is_empty();
    fatal.extend(type_errors);
    fatal.extend(status_type(resource, value));
    let strict = !unknown.is_empty() && validation == FieldValidation::Strict;
    if strict || missing {
        // With a missing apiVersion or kind, the unknown field is most likely the misspelt one.
        fatal.extend(unknown.iter().cloned());
    }
    if !fatal.is_empty() {
        return Err(ApiError::undecodable(
            &resource.api_version(),
            resource.kind,
            &fatal,
            strict && !missing,
        ));
    }
    for cause in &unknown {
        remove(value, &cause.field);
    }
    match validation {
        FieldValidation::Warn => Ok(unknown.into_iter().map(|cause| cause.message).collect()),
        _ => Ok(Vec::new()),
    }
}

/// apiVersion and kind must be there and be those of the path.
fn identity(resource: &Resource, value: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (field, wanted) in [
        ("apiVersion", resource.api_version()),
        ("kind", resource.kind.to_owned()),
    ] {
        match value.get(field) {
            None | Some(Value::Null) => causes.push(Cause::required(field, &format!("must be {wanted:?}"))),
            Some(Value::String(found)) if *found != wanted => {
                causes.push(Cause::new(
                    field,
                    Reason::Invalid,
                    format!("Invalid value: {found:?}: does not match the expected {field} {wanted:?}"),
                ));
            }
            Some(_) => {}
        }
    }
    causes
}

/// A status must be an object; what it holds has no schema here, for only controllers write it.
fn status_type(resource: &Resource, value: &Value) -> Option<Cause> {
    let status = value.get("status").filter(|status| !status.is_null())?;
    let wrong = resource.has_status() && !status.is_object();
    wrong.then(|| Cause::new("status", Reason::TypeInvalid, "expected an object"))
}

/// Removes what a path such as `spec.containers[0].images` names.
fn remove(value: &mut Value, path: &str) {
    let mut current = value;
    let mut rest = path;
    loop {
        // A key of a map may hold dots itself; unknown fields only occur below known ones, whose names hold none.
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let Value::Object(map) = current else { return };
        if after.is_empty() || map.contains_key(rest) {
            map.remove(rest);
            return;
        }
        let Some(mut next) = map.get_mut(name) else { return };
        let mut after = after;
        while let Some(index) = after.strip_prefix('[') {
            let Some((index, tail)) = index.split_once(']') else {
                return;
            };
            let Some(item) = index.parse::<usize>().ok().and_then(|at| next.get_mut(at)) else {
                return;
            };
            (next, after) = (item, tail);
        }
        let Some(tail) = after.strip_prefix('.') else {
            return;
        };
        (current, rest) = (next, tail);
    }
}

/// Checks what the object means. Gives back the fields that are kept and not yet honoured, as warnings.
pub(crate) fn meaning(resource: &Resource, value: &Value) -> Result<Vec<String>, Vec<Cause>> {
    let warnings = if resource.kind == "Pod" {
        Pod::parse(value)?.warnings
    } else {
        let (warnings, refused) = manifest::not_honoured(resource.kind, value);
        if !refused.is_empty() {
            return Err(refused);
        }
        warnings
    };
    Ok(warnings.iter().map(ToString::to_string).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::resources;

    #[test]
    fn unknown_fields() {
        let check = |mut pod: Value, validation: FieldValidation, expected: Result<(Value, usize), &str>| {
            let found = schema(resources::pods(), &mut pod, validation);
            match (found, expected) {
                (Ok(warnings), Ok((kept, count))) => assert_eq!((&pod, warnings.len()), (&kept, count)),
                (Err(error), Err(part)) => assert!(error.message.contains(part), "{error}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        let good = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "a"}]}});
        let mut bad = good.clone();
        bad["spec"]["containers"][0]["images"] = "x".into();
        let strict =
            "strict decoding error: unknown field \"spec.containers[0].images\" (did you mean \"image\"?)";
        check(good.clone(), FieldValidation::Strict, Ok((good.clone(), 0)));
        check(bad.clone(), FieldValidation::Strict, Err(strict));
        check(bad.clone(), FieldValidation::Warn, Ok((good.clone(), 1)));
        check(bad, FieldValidation::Ignore, Ok((good.clone(), 0)));
        let mut typed = good.clone();
        typed["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": 1}]);
        check(
            typed,
            FieldValidation::Ignore,
            Err("spec.containers[0].env[0].value: expected a string"),
        );
        let misspelt = json!({"apiVersion1": "v1", "kind": "Pod"});
        check(
            misspelt,
            FieldValidation::Ignore,
            Err("(did you mean \"apiVersion\"?)"),
        );
        check(
            json!({"apiVersion": "v1", "kind": "pod"}),
            FieldValidation::Ignore,
            Err("expected kind \"Pod\""),
        );
    }
}
