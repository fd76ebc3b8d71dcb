//! What to send so that an object becomes as described.
//!
//! Three objects decide: what was applied last (L), what is wanted (W), what is there (C). A field of W that C lacks or
//! has otherwise is set. A field of L that W has no longer is removed. A field only of C is somebody else's: the
//! server's defaults, the node's status. A list that changed is sent whole, for a merge patch knows no parts of lists.
//!
//! Always holds: an object that is already as wanted gives no patch.

use serde_json::{Map, Value, json};

/// The annotation that holds what was applied last; the name is kubectl's.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The manifest as it is to be stored, with itself in its annotation as kubectl would write it.
pub(super) fn wanted(manifest: &Value, namespace: Option<&str>) -> Value {
    let mut wanted = manifest.clone();
    if !wanted["metadata"].is_object() {
        wanted["metadata"] = json!({});
    }
    if let Some(namespace) = namespace {
        wanted["metadata"]["namespace"] = namespace.into();
    }
    if let Some(object) = wanted.as_object_mut() {
        // What is observed is the server's to say.
        object.remove("status");
    }
    let annotations = &mut wanted["metadata"]["annotations"];
    match annotations {
        Value::Object(members) => drop(members.remove(LAST_APPLIED)),
        other => *other = json!({}),
    }
    let applied = as_go_writes(&wanted);
    wanted["metadata"]["annotations"][LAST_APPLIED] = applied.into();
    wanted
}

/// JSON as Go's encoder writes it, byte for byte, or kubectl would see a change where there is none.
fn as_go_writes(value: &Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        match c {
            // These stand in strings only.
            '&' | '<' | '>' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

/// The merge patch from `current` to `wanted`; nothing where none is needed.
pub(super) fn patch(wanted: &Value, current: &Value) -> Option<Value> {
    let last = current["metadata"]["annotations"][LAST_APPLIED].as_str();
    let last: Value = last
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null);
    let patch = object(last.as_object(), wanted.as_object()?, current.as_object()?);
    (!patch.is_empty()).then_some(Value::Object(patch))
}

fn object(
    last: Option<&Map<String, Value>>,
    wanted: &Map<String, Value>,
    current: &Map<String, Value>,
) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, value) in wanted.iter().filter(|(_, value)| !value.is_null()) {
        let before = last.and_then(|last| last.get(key));
        match (value, current.get(key)) {
            (Value::Object(value), Some(Value::Object(there))) => {
                let inner = object(before.and_then(Value::as_object), value, there);
                if !inner.is_empty() {
                    patch.insert(key.clone(), Value::Object(inner));
                }
            }
            (value, Some(there)) if covers(there, value) && !is_other_list(before, value) => {}
            (value, _) => {
                patch.insert(key.clone(), without_nulls(value));
            }
        }
    }
    for (key, _) in last.into_iter().flatten() {
        let unwanted = wanted.get(key).is_none_or(Value::is_null);
        // What was applied says nothing of the annotation that holds it.
        if unwanted && current.contains_key(key) && key != LAST_APPLIED {
            patch.insert(key.clone(), Value::Null);
        }
    }
    patch
}

/// Whether the value that is there is the wanted one, with defaults filled in.
fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| value.is_null() || there.get(key).is_some_and(|it| covers(it, value))),
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len()
                && there
                    .iter()
                    .zip(wanted)
                    .all(|(there, wanted)| covers(there, wanted))
        }
        (there, wanted) => there == wanted,
    }
}

/// Whether a list was another one when it was applied last: something may have been taken out of an item, which
/// what is there cannot show.
fn is_other_list(before: Option<&Value>, value: &Value) -> bool {
    value.is_array() && before.is_some_and(|before| before != value)
}

/// In a merge patch null means removal; in a manifest it means nothing.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(key, value)| (key.clone(), without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"app": "a"}}, "spec": spec})
    }

    /// What a server makes of it: defaults and fields of its own.
    fn stored(wanted: &Value) -> Value {
        let mut stored = wanted.clone();
        stored["metadata"]["uid"] = "u".into();
        stored["metadata"]["labels"]["theirs"] = "x".into();
        stored["status"] = json!({"phase": "Running"});
        stored["spec"]["restartPolicy"] = "Always".into();
        for container in stored["spec"]["containers"].as_array_mut().into_iter().flatten() {
            container["imagePullPolicy"] = "Always".into();
        }
        stored
    }

    /// The patch, its annotation left out.
    fn change(first: &Value, second: &Value) -> Option<Value> {
        let current = stored(&wanted(first, Some("default")));
        let mut patch = patch(&wanted(second, Some("default")), &current)?;
        if let Some(annotations) = patch["metadata"]["annotations"].as_object_mut() {
            annotations.remove(LAST_APPLIED);
        }
        Some(patch)
    }

    #[test]
    fn patches() {
        let containers = json!([{"name": "c", "image": "i:1", "env": [{"name": "A", "value": "1"}]}]);
        let base = pod(&json!({"containers": containers, "hostname": "h"}));
        assert_eq!(change(&base, &base), None, "applied twice");

        let mut next = base.clone();
        next["spec"]["containers"][0]["image"] = "i:2".into();
        let expected =
            json!({"metadata": {"annotations": {}}, "spec": {"containers": next["spec"]["containers"]}});
        assert_eq!(change(&base, &next), Some(expected), "a list is sent whole");

        let mut next = base.clone();
        next["spec"]["containers"][0]["env"] = json!([]);
        let patch = change(&base, &next).unwrap();
        assert_eq!(
            patch["spec"]["containers"], next["spec"]["containers"],
            "taken out of an item"
        );

        let mut next = base.clone();
        next["metadata"]["labels"] = json!({"tier": "b"});
        next["spec"].as_object_mut().unwrap().remove("hostname");
        let expected = json!({
            "metadata": {"annotations": {}, "labels": {"app": null, "tier": "b"}}, "spec": {"hostname": null},
        });
        assert_eq!(
            change(&base, &next),
            Some(expected),
            "what was ours goes, what is theirs stays"
        );

        let mut next = base.clone();
        next["spec"]["hostname"] = Value::Null;
        assert_eq!(
            change(&base, &next).unwrap()["spec"],
            json!({"hostname": null}),
            "null is absence"
        );
    }

    #[test]
    fn what_was_applied_is_written_as_kubectl_writes_it() {
        let manifest = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "a && <b>"}, "status": {}});
        let wanted = wanted(&manifest, Some("n"));
        assert_eq!(
            wanted["metadata"]["annotations"][LAST_APPLIED],
            "{\"apiVersion\":\"v1\",\"data\":{\"k\":\"a \\u0026\\u0026 \\u003cb\\u003e\"},\"kind\":\"ConfigMap\",\
             \"metadata\":{\"annotations\":{},\"name\":\"a\",\"namespace\":\"n\"}}\n"
        );
        assert_eq!(
            super::wanted(&wanted, Some("n")),
            wanted,
            "the annotation does not hold itself"
        );
    }

    #[test]
    fn an_object_that_was_never_applied_is_taken_over() {
        let current =
            json!({"metadata": {"name": "a", "labels": {"theirs": "x"}}, "data": {"k": "old", "other": "y"}});
        let manifest = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
        let patch = patch(&wanted(&manifest, None), &current).unwrap();
        assert_eq!(patch["data"], json!({"k": "v"}), "nothing of theirs is removed");
    }
}
