//! `metadata`: what clients may set in it, and what the server owns.
//!
//! What always holds: uid, creationTimestamp, resourceVersion, deletionTimestamp and deletionGracePeriodSeconds of a
//! stored object come from the server; names, labels and annotations have Kubernetes' syntax.

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value};
use skiff_protocol::manifest::Cause;

use super::limits;
use super::resources::{NameRule, Resource};
use super::status::{ApiError, ApiResult};

/// What is wrong with a name that is no subdomain.
pub(crate) const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
     and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
     an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
     '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
     and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used \
     for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Fields that only the server writes.
const OWNED: [&str; 3] = ["uid", "creationTimestamp", "resourceVersion"];
/// Fields that only a deletion writes.
const DELETION: [&str; 2] = ["deletionTimestamp", "deletionGracePeriodSeconds"];

/// A text inside the metadata, empty when absent.
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object
        .get("metadata")
        .and_then(|metadata| metadata.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Whether a deletion of the object has begun.
pub(crate) fn is_deleting(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

/// Whether somebody still holds the object back.
pub(crate) fn has_finalizers(object: &Value) -> bool {
    let finalizers = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}

/// The metadata, made when it is missing.
pub(crate) fn of(object: &mut Value) -> ApiResult<&mut Map<String, Value>> {
    let Value::Object(object) = object else {
        return Err(ApiError::bad_request("the body is not a JSON object"));
    };
    let metadata = object
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata
        .as_object_mut()
        .ok_or_else(|| ApiError::bad_request("metadata: expected an object"))
}

/// The `status` of a stored document, made where there is none or none that is an object.
pub(crate) fn status_of(document: &mut Value) -> Option<&mut Map<String, Value>> {
    let status = document
        .as_object_mut()?
        .entry("status")
        .or_insert_with(|| Value::Object(Map::new()));
    if !status.is_object() {
        *status = Value::Object(Map::new());
    }
    status.as_object_mut()
}

/// Prepares the metadata of a new object; gives back its name, drawn when only `generateName` is set.
pub(crate) fn prepare_create(resource: &Resource, namespace: &str, object: &mut Value) -> ApiResult<String> {
    let metadata = of(object)?;
    let version = metadata.get("resourceVersion").and_then(Value::as_str);
    if version.is_some_and(|version| !version.is_empty() && version != "0") {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for field in OWNED
        .iter()
        .chain(&DELETION)
        .chain(&["managedFields", "selfLink"])
    {
        metadata.remove(*field);
    }
    set_namespace(resource, namespace, metadata)?;
    let set = |field: &str| {
        metadata
            .get(field)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    match (set("name"), set("generateName")) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, Some(prefix)) => {
            let name = generate(prefix)?;
            metadata.insert("name".into(), name.clone().into());
            Ok(name)
        }
        (None, None) => Err(ApiError::invalid(
            resource.kind,
            resource.group,
            "",
            &[Cause::required(
                "metadata.name",
                "name or generateName is required",
            )],
        )),
    }
}

fn set_namespace(resource: &Resource, namespace: &str, metadata: &mut Map<String, Value>) -> ApiResult<()> {
    if !resource.namespaced {
        metadata.remove("namespace");
        return Ok(());
    }
    let given = metadata
        .get("namespace")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !given.is_empty() && given != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata.insert("namespace".into(), namespace.into());
    Ok(())
}

/// Prepares the metadata of an object that replaces `old`; gives back the revision that the client saw, if it says so.
pub(crate) fn prepare_update(
    resource: &Resource,
    namespace: &str,
    name: &str,
    old: &Value,
    object: &mut Value,
) -> ApiResult<Option<u64>> {
    let metadata = of(object)?;
    let given = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
    if given != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    set_namespace(resource, namespace, metadata)?;
    let uid = metadata.get("uid").and_then(Value::as_str).unwrap_or_default();
    if !uid.is_empty() && uid != text(old, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            text(old, "uid")
        );
        return Err(ApiError::conflict_because(resource, name, &why));
    }
    let version = metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let revision = match version {
        "" | "0" => None,
        text => Some(text.parse::<u64>().map_err(|_| {
            let cause = Cause::invalid("metadata.resourceVersion", text, "must be a number");
            ApiError::invalid(resource.kind, resource.group, name, &[cause])
        })?),
    };
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    for field in OWNED.iter().chain(&DELETION).chain(&["generateName"]) {
        match old.get("metadata").and_then(|metadata| metadata.get(*field)) {
            Some(value) => metadata.insert((*field).to_owned(), value.clone()),
            None => metadata.remove(*field),
        };
    }
    Ok(revision)
}

/// Letters and digits that cannot spell a word, as Kubernetes draws them.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

fn generate(prefix: &str) -> ApiResult<String> {
    let mut bytes = [0u8; 5];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| ApiError::internal("no random numbers"))?;
    let suffix = bytes
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]));
    let prefix: String = prefix.chars().take(58).collect();
    Ok(prefix.chars().chain(suffix).collect())
}

/// What is wrong with the metadata.
pub(crate) fn check(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = text(object, "name");
    let (fits, bound, why) = match resource.names {
        NameRule::Subdomain => (is_subdomain(name), 253, SUBDOMAIN),
        NameRule::Label => (is_label(name), 63, LABEL),
    };
    if name.len() > bound {
        causes.push(Cause::invalid(
            "metadata.name",
            name,
            format!("must be no more than {bound} characters"),
        ));
    } else if !fits {
        causes.push(Cause::invalid("metadata.name", name, why));
    }
    let Some(metadata) = object.get("metadata").and_then(Value::as_object) else {
        return causes;
    };
    check_labels(metadata, &mut causes);
    check_annotations(metadata, &mut causes);
    for (at, finalizer) in metadata
        .get("finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        let finalizer = finalizer.as_str().unwrap_or_default();
        if let Err(why) = qualified(finalizer) {
            causes.push(Cause::invalid(
                format!("metadata.finalizers[{at}]"),
                finalizer,
                why,
            ));
        }
    }
    causes
}

fn check_labels(metadata: &Map<String, Value>, causes: &mut Vec<Cause>) {
    let Some(labels) = metadata.get("labels") else {
        return;
    };
    let Value::Object(labels) = labels else {
        causes.extend(
            (!labels.is_null())
                .then(|| Cause::invalid("metadata.labels", labels.to_string(), "must be an object")),
        );
        return;
    };
    for (key, value) in labels {
        if let Err(why) = qualified(key) {
            causes.push(Cause::invalid("metadata.labels", key, why));
        }
        match value.as_str() {
            None => causes.push(Cause::invalid(
                format!("metadata.labels.{key}"),
                value.to_string(),
                "must be a string",
            )),
            Some(text) if text.len() > 63 => {
                causes.push(Cause::invalid(
                    "metadata.labels",
                    text,
                    "must be no more than 63 characters",
                ));
            }
            Some(text) if !text.is_empty() && !is_name_part(text) => {
                causes.push(Cause::invalid("metadata.labels", text, LABEL_VALUE));
            }
            Some(_) => {}
        }
    }
}

fn check_annotations(metadata: &Map<String, Value>, causes: &mut Vec<Cause>) {
    let Some(annotations) = metadata.get("annotations") else {
        return;
    };
    let Value::Object(annotations) = annotations else {
        if !annotations.is_null() {
            causes.push(Cause::invalid(
                "metadata.annotations",
                annotations.to_string(),
                "must be an object",
            ));
        }
        return;
    };
    let mut bytes = 0;
    for (key, value) in annotations {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        if let Err(why) = qualified(&key.to_ascii_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", key, why));
        }
        if !value.is_string() {
            let field = format!("metadata.annotations.{key}");
            causes.push(Cause::invalid(field, value.to_string(), "must be a string"));
        }
    }
    if bytes > limits::ANNOTATION_BYTES {
        causes.push(Cause::too_long(
            "metadata.annotations",
            limits::ANNOTATION_BYTES,
            "bytes",
        ));
    }
}

fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

pub(crate) fn is_subdomain(text: &str) -> bool {
    // Unlike a label, a part of a subdomain has no bound of its own in Kubernetes.
    let part = |part: &str| {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        !part.is_empty() && part.bytes().all(inner) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn is_name_part(text: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    edge(text.bytes().next()) && edge(text.bytes().last()) && text.bytes().all(inner)
}

/// A label's or annotation's key: a name of at most 63 characters, after an optional DNS prefix.
fn qualified(key: &str) -> Result<(), &'static str> {
    let name = match key.split_once('/') {
        None => key,
        Some((prefix, _)) if !is_subdomain(prefix) => {
            return Err("prefix part must be a lowercase RFC 1123 subdomain");
        }
        Some((_, name)) if name.contains('/') => {
            return Err(
                "a qualified name must have at most one '/', between a DNS subdomain prefix and the name",
            );
        }
        Some((_, name)) => name,
    };
    if name.is_empty() {
        return Err("name part must be non-empty");
    }
    if name.len() > 63 {
        return Err("name part must be no more than 63 characters");
    }
    if is_name_part(name) {
        Ok(())
    } else {
        Err(QUALIFIED)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::resources;

    #[test]
    fn names_labels_and_annotations() {
        let check = |metadata: Value, field: Option<&str>| {
            let causes = check(resources::pods(), &json!({ "metadata": metadata }));
            assert_eq!(
                causes.first().map(|cause| cause.field.as_str()),
                field,
                "{causes:?}"
            );
        };
        check(json!({"name": "a.b-c"}), None);
        check(json!({"name": "A"}), Some("metadata.name"));
        check(json!({"name": "a..b"}), Some("metadata.name"));
        check(json!({"name": "a".repeat(253)}), None);
        check(json!({"name": "a".repeat(254)}), Some("metadata.name"));
        check(
            json!({"name": "a", "labels": {"app.kubernetes.io/name": "X_y.z"}}),
            None,
        );
        check(json!({"name": "a", "labels": {"a": ""}}), None);
        check(
            json!({"name": "a", "labels": {"a/b/c": "x"}}),
            Some("metadata.labels"),
        );
        check(
            json!({"name": "a", "labels": {"a": "-x"}}),
            Some("metadata.labels"),
        );
        check(
            json!({"name": "a", "labels": {"a": 1}}),
            Some("metadata.labels.a"),
        );
        check(json!({"name": "a", "annotations": {"a": "x y"}}), None);
        check(
            json!({"name": "a", "annotations": {"a": "x".repeat(300_000)}}),
            Some("metadata.annotations"),
        );
        check(json!({"name": "a", "finalizers": ["example.com/x"]}), None);
        check(
            json!({"name": "a", "finalizers": [""]}),
            Some("metadata.finalizers[0]"),
        );
    }

    #[test]
    fn generated_names_differ_and_keep_their_prefix() {
        let (one, two) = (generate("web-").unwrap(), generate("web-").unwrap());
        assert!(
            one.starts_with("web-") && one.len() == 9 && one != two,
            "{one} {two}"
        );
    }
}
