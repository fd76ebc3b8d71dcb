//! `pods/NAME/resize`: cpu and memory of containers that run, and nothing else.
//!
//! What always holds: what else a client sends to this path is dropped, as Kubernetes drops it; the QoS class of a Pod
//! never changes.

use serde_json::{Map, Value};
use skiff_protocol::manifest::Cause;

use super::qos_class;

/// The stored Pod with the resources of the one that was sent, each container by its name.
pub(super) fn resized(old: &Value, sent: &Value) -> Result<Value, Vec<Cause>> {
    let mut new = old.clone();
    let mut causes = Vec::new();
    for field in ["initContainers", "containers"] {
        let list = new["spec"].get_mut(field).and_then(Value::as_array_mut);
        for (at, container) in list.into_iter().flatten().enumerate() {
            let mut theirs = sent["spec"][field].as_array().into_iter().flatten();
            let Some(theirs) = theirs.find(|it| it["name"] == container["name"]) else {
                continue;
            };
            let path = format!("spec.{field}[{at}].resources");
            let sidecar = container["restartPolicy"] == "Always";
            if field == "initContainers" && !sidecar && theirs["resources"] != container["resources"] {
                let why = "only sidecars of the init containers can be resized";
                causes.push(Cause::forbidden(path, why));
                continue;
            }
            compare(&path, &container["resources"], &theirs["resources"], &mut causes);
            container["resources"] = theirs["resources"].clone();
        }
    }
    let (before, after) = (qos_class(&old["spec"]), qos_class(&new["spec"]));
    if causes.is_empty() && before != after {
        let why = "Pod QOS Class may not change as a result of resizing";
        causes.push(Cause::invalid("spec", after, why));
    }
    if causes.is_empty() { Ok(new) } else { Err(causes) }
}

fn compare(path: &str, old: &Value, new: &Value, causes: &mut Vec<Cause>) {
    let none = Map::new();
    let map = |value: &'_ Value, part: &str| value[part].as_object().cloned().unwrap_or(none.clone());
    for part in ["limits", "requests"] {
        let (before, after) = (map(old, part), map(new, part));
        for name in ["cpu", "memory"] {
            if before.contains_key(name) && !after.contains_key(name) {
                let why = format!("resource {part} cannot be removed");
                causes.push(Cause::forbidden(format!("{path}.{part}"), why));
            }
        }
        let others = |map: Map<String, Value>| -> Map<String, Value> {
            let kept = map.into_iter();
            kept.filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory"))
                .collect()
        };
        if others(before) != others(after) {
            let why = "only cpu and memory resources are mutable";
            causes.push(Cause::forbidden("spec", why));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_cpu_and_memory_of_what_runs() {
        let old = json!({ "metadata": { "labels": {} }, "spec": { "containers": [{ "name": "a", "image": "x:1",
            "resources": { "limits": { "cpu": "1", "x.io/y": "1" }, "requests": { "cpu": "500m", "x.io/y": "1" } } }],
            "initContainers": [{ "name": "i", "resources": {} }] } });
        let check = |change: fn(&mut Value), expected: Result<(&str, &str), &str>| {
            let mut sent = old.clone();
            change(&mut sent);
            match (resized(&old, &sent), expected) {
                (Ok(new), Ok((pointer, value))) => assert_eq!(new.pointer(pointer), Some(&json!(value))),
                (Err(causes), Err(start)) => assert!(causes[0].to_string().starts_with(start), "{causes:?}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        let cpu = "/spec/containers/0/resources/limits/cpu";
        check(
            |it| it["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "2".into(),
            Ok((cpu, "2")),
        );
        // A part that is not about resources is dropped.
        check(
            |it| it["spec"]["containers"][0]["image"] = "y:1".into(),
            Ok(("/spec/containers/0/image", "x:1")),
        );
        check(
            |it| it["spec"]["containers"][0]["resources"]["limits"] = json!({ "x.io/y": "1" }),
            Err("spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"),
        );
        check(
            |it| it["spec"]["containers"][0]["resources"]["limits"]["x.io/y"] = "2".into(),
            Err("spec: Forbidden: only cpu and memory resources are mutable"),
        );
        check(
            |it| it["spec"]["initContainers"][0]["resources"] = json!({ "limits": { "cpu": "1" } }),
            Err("spec.initContainers[0].resources: Forbidden: "),
        );
        check(
            |it| {
                let all = json!({ "cpu": "1", "memory": "1Gi", "x.io/y": "1" });
                it["spec"]["containers"][0]["resources"] = json!({ "limits": all, "requests": all });
                it["spec"]["initContainers"] = json!([]);
            },
            Ok(("/spec/containers/0/resources/limits/memory", "1Gi")),
        );
    }

    #[test]
    fn the_qos_class_stays() {
        let old = json!({ "spec": { "containers": [{ "name": "a", "resources": { "requests": { "cpu": "1" } } }] } });
        let mut sent = old.clone();
        let all = json!({ "cpu": "1", "memory": "1Gi" });
        sent["spec"]["containers"][0]["resources"] = json!({ "limits": all, "requests": all });
        let causes = resized(&old, &sent).unwrap_err();
        assert_eq!(
            causes[0].to_string(),
            "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing"
        );
    }
}
