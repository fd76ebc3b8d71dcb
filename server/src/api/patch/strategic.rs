//! Strategic merge patch: a merge patch in which some lists merge by a key.
//!
//! What always holds: which lists merge, and by what, is Kubernetes' (`patchStrategy` and `patchMergeKey` of its
//! types), for every kind the same way; a list without a rule is replaced, as there.
//!
//! Directives: `$patch: replace | delete | merge`, `$deleteFromPrimitiveList/F`, `$setElementOrder/F`, `$retainKeys`.

use serde_json::{Map, Value};

use crate::api::status::{ApiError, ApiResult};

/// How a list merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Objects with the same value of this field are the same element.
    Key(&'static str),
    /// Equal values are the same element.
    Primitive,
}

/// Lists below a PodSpec.
const POD_SPEC: &[(&str, Rule)] = &[
    ("containers", Rule::Key("name")),
    ("initContainers", Rule::Key("name")),
    ("ephemeralContainers", Rule::Key("name")),
    ("volumes", Rule::Key("name")),
    ("imagePullSecrets", Rule::Key("name")),
    ("hostAliases", Rule::Key("ip")),
    ("topologySpreadConstraints", Rule::Key("topologyKey")),
    ("schedulingGates", Rule::Key("name")),
    ("resourceClaims", Rule::Key("name")),
];

/// Lists of a container.
const CONTAINER: &[(&str, Rule)] = &[
    ("ports", Rule::Key("containerPort")),
    ("env", Rule::Key("name")),
    ("volumeMounts", Rule::Key("mountPath")),
    ("volumeDevices", Rule::Key("devicePath")),
];

/// Lists of all kinds' metadata.
const METADATA: &[(&str, Rule)] = &[
    ("finalizers", Rule::Primitive),
    ("ownerReferences", Rule::Key("uid")),
];

/// Lists elsewhere, by kind and path.
const OTHERS: &[(&str, &str, Rule)] = &[
    ("Pod", "status.conditions", Rule::Key("type")),
    ("Pod", "status.podIPs", Rule::Key("ip")),
    ("Pod", "status.hostIPs", Rule::Key("ip")),
    ("Node", "status.conditions", Rule::Key("type")),
    ("Node", "status.addresses", Rule::Key("type")),
    ("Node", "spec.podCIDRs", Rule::Primitive),
    ("Namespace", "status.conditions", Rule::Key("type")),
    ("Service", "spec.ports", Rule::Key("port")),
    ("Service", "status.conditions", Rule::Key("type")),
];

fn lookup(rows: &[(&str, Rule)], name: &str) -> Option<Rule> {
    rows.iter().find(|(row, _)| *row == name).map(|(_, rule)| *rule)
}

/// The rule of the list at `path`, in which lists' elements leave no trace.
fn rule(kind: &str, path: &[&str]) -> Option<Rule> {
    match path {
        ["metadata", name] => return lookup(METADATA, name),
        ["spec", name] if kind == "Pod" => return lookup(POD_SPEC, name),
        [
            "spec",
            "containers" | "initContainers" | "ephemeralContainers",
            name,
        ] if kind == "Pod" => {
            return lookup(CONTAINER, name);
        }
        _ => {}
    }
    let path = path.join(".");
    OTHERS
        .iter()
        .find(|row| row.0 == kind && row.1 == path)
        .map(|row| row.2)
}

/// Applies the patch to a copy of the document.
pub(super) fn apply(kind: &str, document: &Value, patch: &Value) -> ApiResult<Value> {
    let Value::Object(patch) = patch else {
        return Err(ApiError::bad_request("a strategic merge patch is a JSON object"));
    };
    let mut document = document.clone();
    let Value::Object(target) = &mut document else {
        return Err(ApiError::bad_request("the object is not a JSON object"));
    };
    Merge { kind }.object(target, patch, &mut Vec::new())?;
    Ok(document)
}

struct Merge<'a> {
    kind: &'a str,
}

impl Merge<'_> {
    fn object<'p>(
        &self,
        target: &mut Map<String, Value>,
        patch: &'p Map<String, Value>,
        path: &mut Vec<&'p str>,
    ) -> ApiResult<()> {
        match patch.get("$patch").and_then(Value::as_str) {
            Some("replace") => {
                *target = plain(patch);
                return Ok(());
            }
            Some("delete") => {
                target.clear();
                return Ok(());
            }
            None | Some("merge") => {}
            Some(other) => return Err(bad(path, &format!("unknown $patch {other:?}"))),
        }
        if let Some(keep) = patch.get("$retainKeys") {
            let Value::Array(keep) = keep else {
                return Err(bad(path, "$retainKeys is not a list"));
            };
            target.retain(|key, _| keep.iter().any(|kept| kept == key));
        }
        for (key, value) in patch {
            if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
                delete_primitives(target, field, value, path)?;
            }
        }
        for (key, value) in patch {
            if key.starts_with('$') {
                continue;
            }
            path.push(key);
            self.field(target, key, value, patch, path)?;
            path.pop();
        }
        // An order may come without a patch of the list itself.
        for (key, order) in patch {
            if let Some(field) = key.strip_prefix("$setElementOrder/")
                && !patch.contains_key(field)
            {
                path.push(field);
                self.reorder(target, field, order, path)?;
                path.pop();
            }
        }
        Ok(())
    }

    fn field<'p>(
        &self,
        target: &mut Map<String, Value>,
        key: &str,
        value: &'p Value,
        patch: &'p Map<String, Value>,
        path: &mut Vec<&'p str>,
    ) -> ApiResult<()> {
        match (target.get_mut(key), value) {
            (_, Value::Null) => {
                target.remove(key);
            }
            (Some(Value::Object(inner)), Value::Object(patch)) => self.object(inner, patch, path)?,
            (_, Value::Object(patch)) => {
                let mut inner = Map::new();
                self.object(&mut inner, patch, path)?;
                target.insert(key.to_owned(), Value::Object(inner));
            }
            (found, Value::Array(items)) => {
                let existing = match found {
                    Some(Value::Array(existing)) => std::mem::take(existing),
                    _ => Vec::new(),
                };
                let merged = match rule(self.kind, path) {
                    None => plain_list(items),
                    Some(Rule::Primitive) => merge_primitives(existing, items),
                    Some(Rule::Key(merge_key)) => self.merge_list(existing, items, merge_key, path)?,
                };
                target.insert(key.to_owned(), Value::Array(merged));
                if let Some(order) = patch.get(&format!("$setElementOrder/{key}")) {
                    self.reorder(target, key, order, path)?;
                }
            }
            (_, value) => {
                target.insert(key.to_owned(), value.clone());
            }
        }
        Ok(())
    }

    fn merge_list<'p>(
        &self,
        mut existing: Vec<Value>,
        patches: &'p [Value],
        key: &str,
        path: &mut Vec<&'p str>,
    ) -> ApiResult<Vec<Value>> {
        let replace = |patch: &&Value| patch.get("$patch").is_some_and(|it| it == "replace");
        if patches.iter().any(|patch| replace(&patch)) {
            return Ok(plain_list(patches));
        }
        for patch in patches {
            let Value::Object(patch) = patch else {
                return Err(bad(path, "the list has an element that is no object"));
            };
            let Some(wanted) = patch.get(key) else {
                return Err(bad(
                    path,
                    &format!(
                        "map: {} does not contain declared merge key: {key}",
                        Value::Object(patch.clone())
                    ),
                ));
            };
            let same = |item: &Value| item.get(key) == Some(wanted);
            if patch.get("$patch").is_some_and(|directive| directive == "delete") {
                existing.retain(|item| !same(item));
                continue;
            }
            match existing.iter_mut().find(|item| same(item)) {
                Some(Value::Object(item)) => self.object(item, patch, path)?,
                _ => {
                    let mut item = Map::new();
                    self.object(&mut item, patch, path)?;
                    existing.push(Value::Object(item));
                }
            }
        }
        Ok(existing)
    }

    /// Puts the elements that `order` names into its order; the others keep their place relative to their predecessor.
    fn reorder(
        &self,
        target: &mut Map<String, Value>,
        field: &str,
        order: &Value,
        path: &[&str],
    ) -> ApiResult<()> {
        let Value::Array(order) = order else {
            return Err(bad(path, "$setElementOrder is not a list"));
        };
        let Some(Value::Array(items)) = target.get_mut(field) else {
            return Ok(());
        };
        let place = |item: &Value| {
            order.iter().position(|wanted| match rule(self.kind, path) {
                Some(Rule::Key(key)) => wanted.get(key).is_some() && wanted.get(key) == item.get(key),
                _ => wanted == item,
            })
        };
        // An unnamed element follows the named one before it; those before any named one stay first.
        let mut last = (0, 0);
        let mut placed: Vec<((usize, usize), Value)> = Vec::with_capacity(items.len());
        for item in items.drain(..) {
            last = match place(&item) {
                Some(at) => (at + 1, 0),
                None => (last.0, last.1 + 1),
            };
            placed.push((last, item));
        }
        placed.sort_by_key(|(place, _)| *place);
        *items = placed.into_iter().map(|(_, item)| item).collect();
        Ok(())
    }
}

fn bad(path: &[&str], why: &str) -> ApiError {
    ApiError::bad_request(format!("strategic merge patch at {:?}: {why}", path.join(".")))
}

/// A patch that replaces, without its directives.
fn plain(patch: &Map<String, Value>) -> Map<String, Value> {
    let fields = patch
        .iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null());
    fields
        .map(|(key, value)| {
            let value = match value {
                Value::Object(inner) => Value::Object(plain(inner)),
                Value::Array(items) => Value::Array(plain_list(items)),
                other => other.clone(),
            };
            (key.clone(), value)
        })
        .collect()
}

fn plain_list(items: &[Value]) -> Vec<Value> {
    let elements = items.iter().filter_map(|item| match item {
        Value::Object(map) => {
            let map = plain(map);
            // An element that was nothing but a directive is not part of the list.
            let directive = item.get("$patch").is_some() && map.is_empty();
            (!directive).then_some(Value::Object(map))
        }
        other => Some(other.clone()),
    });
    elements.collect()
}

fn merge_primitives(mut existing: Vec<Value>, items: &[Value]) -> Vec<Value> {
    for item in items {
        if !existing.contains(item) {
            existing.push(item.clone());
        }
    }
    existing
}

fn delete_primitives(
    target: &mut Map<String, Value>,
    field: &str,
    gone: &Value,
    path: &[&str],
) -> ApiResult<()> {
    let Value::Array(gone) = gone else {
        return Err(bad(path, "$deleteFromPrimitiveList is not a list"));
    };
    if let Some(Value::Array(items)) = target.get_mut(field) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[allow(
        clippy::needless_pass_by_value,
        reason = "the cases read better without a borrow each"
    )]
    fn check(document: Value, patch: Value, expected: Option<Value>) {
        let found = apply("Pod", &document, &patch);
        assert_eq!(found.clone().ok(), expected, "{document} {patch} {found:?}");
    }

    #[allow(clippy::needless_pass_by_value, reason = "as above")]
    fn spec(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn lists_merge_by_their_key() {
        let old =
            spec(json!([{"name": "a", "image": "x:1", "env": [{"name": "K", "value": "1"}]}, {"name": "b"}]));
        let change =
            spec(json!([{"name": "a", "image": "x:2", "env": [{"name": "L", "value": "2"}]}, {"name": "c"}]));
        check(
            old.clone(),
            change,
            Some(spec(json!([
            {"name": "a", "image": "x:2", "env": [{"name": "K", "value": "1"}, {"name": "L", "value": "2"}]},
            {"name": "b"}, {"name": "c"}]))),
        );
        check(
            old.clone(),
            spec(json!([{"name": "b", "$patch": "delete"}])),
            Some(spec(json!([
            {"name": "a", "image": "x:1", "env": [{"name": "K", "value": "1"}]}]))),
        );
        check(
            old.clone(),
            spec(json!([{"$patch": "replace"}, {"name": "z"}])),
            Some(spec(json!([{"name": "z"}]))),
        );
        check(old.clone(), spec(json!([{"image": "no-name"}])), None);
        check(
            old,
            json!({"spec": {"containers": null}}),
            Some(json!({"spec": {}})),
        );
    }

    #[test]
    fn lists_without_a_key_are_replaced() {
        let old = spec(json!([{"name": "a", "command": ["sh", "-c"]}]));
        let new = spec(json!([{"name": "a", "command": ["bash"]}]));
        check(old, new.clone(), Some(new));
    }

    #[test]
    fn directives() {
        check(
            json!({"spec": {"a": 1, "b": 2}}),
            json!({"spec": {"$patch": "replace", "c": 3}}),
            Some(json!({"spec": {"c": 3}})),
        );
        check(
            json!({"spec": {"a": 1}}),
            json!({"spec": {"$patch": "delete"}}),
            Some(json!({"spec": {}})),
        );
        check(
            json!({"spec": {"a": 1}}),
            json!({"spec": {"$patch": "explode"}}),
            None,
        );
        check(
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]}}),
            Some(json!({"spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}})),
        );
        check(
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
            Some(json!({"metadata": {"finalizers": ["b", "c"]}})),
        );
    }

    #[test]
    fn orders() {
        let old = spec(json!([{"name": "a"}, {"name": "b"}, {"name": "c"}]));
        check(
            old.clone(),
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "c", "image": "x"}]}}),
            Some(spec(
                json!([{"name": "c", "image": "x"}, {"name": "a"}, {"name": "b"}]),
            )),
        );
        check(
            old,
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "c"}]}}),
            Some(spec(json!([{"name": "b"}, {"name": "a"}, {"name": "c"}]))),
        );
    }
}
