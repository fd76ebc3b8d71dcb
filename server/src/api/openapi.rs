//! The OpenAPI documents: version 3 as JSON for today's clients, version 2 as protobuf for old ones.
//!
//! What always holds: a document claims nothing but which paths there are, what kind they are about and which
//! parameters they take. That is what `kubectl` reads to leave validation and dry runs to the server, which knows the
//! fields; schemas name only what all kinds have.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::discovery::versions;
use super::resources::{RESOURCES, Resource, Verb};

/// One operation of a path.
struct Operation {
    method: &'static str,
    action: &'static str,
    parameters: &'static [&'static str],
}

const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const WATCH: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds"];
const DELETE_ALL: &[&str] = &["dryRun", "fieldSelector", "gracePeriodSeconds", "labelSelector"];

fn operation(verb: Verb) -> Option<Operation> {
    let (method, action, parameters): (_, _, &'static [&'static str]) = match verb {
        Verb::Get => ("get", "get", &[]),
        Verb::List => ("get", "list", WATCH),
        // A watch is a list with a parameter.
        Verb::Watch => return None,
        Verb::Create => ("post", "post", WRITE),
        Verb::Update => ("put", "put", WRITE),
        Verb::Patch => ("patch", "patch", WRITE),
        Verb::Delete => ("delete", "delete", DELETE),
        Verb::DeleteCollection => ("delete", "deletecollection", DELETE_ALL),
    };
    Some(Operation {
        method,
        action,
        parameters,
    })
}

/// The paths of a resource with what can be done there.
fn paths(row: &Resource) -> BTreeMap<String, Vec<Verb>> {
    let root = if row.group.is_empty() {
        format!("/api/{}", row.version)
    } else {
        format!("/apis/{}/{}", row.group, row.version)
    };
    let inside = if row.namespaced {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let collection = format!("{root}{inside}/{}", row.plural);
    let one = |verb: &Verb| matches!(verb, Verb::Get | Verb::Update | Verb::Patch | Verb::Delete);
    let mut paths = BTreeMap::new();
    paths.insert(
        format!("{collection}/{{name}}"),
        row.verbs.iter().copied().filter(|verb| one(verb)).collect(),
    );
    paths.insert(
        collection.clone(),
        row.verbs.iter().copied().filter(|verb| !one(verb)).collect(),
    );
    if row.namespaced {
        paths.insert(format!("{root}/{}", row.plural), vec![Verb::List]);
    }
    for sub in row.subresources {
        paths.insert(format!("{collection}/{{name}}/{}", sub.name), sub.verbs.to_vec());
    }
    paths
}

/// GET /openapi/v3: where the documents of the groups are.
pub(crate) fn v3_index() -> Value {
    let mut paths = serde_json::Map::new();
    for (group, version) in versions() {
        let name = name(group, version);
        // The hash lets clients keep a document until the server's version changes.
        let url = format!("/openapi/v3/{name}?hash={}", env!("CARGO_PKG_VERSION"));
        paths.insert(name, json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

fn name(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// GET /openapi/v3/NAME: the document of one group.
pub(crate) fn v3(wanted: &str) -> Option<Value> {
    let (group, version) = versions()
        .into_iter()
        .find(|(group, version)| name(group, version) == wanted)?;
    let mut documented = serde_json::Map::new();
    for row in RESOURCES
        .iter()
        .filter(|row| row.group == group && row.version == version)
    {
        for (path, verbs) in paths(row) {
            let mut item = serde_json::Map::new();
            let in_path: Vec<Value> = ["name", "namespace"]
                .iter()
                .filter(|name| path.contains(&format!("{{{name}}}")))
                .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
                .collect();
            item.insert("parameters".into(), in_path.into());
            for operation in verbs.into_iter().filter_map(operation) {
                item.insert(operation.method.into(), v3_operation(row, &operation));
            }
            documented.insert(path, Value::Object(item));
        }
    }
    let rows = RESOURCES
        .iter()
        .filter(|row| row.group == group && row.version == version);
    let schemas: serde_json::Map<String, Value> = rows.map(schema).collect();
    Some(json!({
        "openapi": "3.0.0",
        "info": { "title": "Skiff", "version": env!("CARGO_PKG_VERSION") },
        "paths": documented,
        "components": { "schemas": schemas },
    }))
}

/// What all kinds have in common; the fields of each are the server's to check.
fn schema(row: &Resource) -> (String, Value) {
    let group = if row.group.is_empty() { "core" } else { row.group };
    let schema = json!({
        "type": "object",
        "description": format!("{} as in Kubernetes. Its fields are checked when it is applied.", row.kind),
        "properties": {
            "apiVersion": { "type": "string", "description": "The version of the schema." },
            "kind": { "type": "string", "description": "The kind of the object." },
            "metadata": { "type": "object", "description": "The object's name, labels and annotations." },
        },
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-group-version-kind": [{ "group": row.group, "version": row.version, "kind": row.kind }],
    });
    (format!("{group}.{}.{}", row.version, row.kind), schema)
}

fn v3_operation(row: &Resource, operation: &Operation) -> Value {
    let parameters: Vec<Value> = operation
        .parameters
        .iter()
        .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string" } }))
        .collect();
    json!({
        "parameters": parameters,
        "responses": { "200": { "description": "OK" } },
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": { "group": row.group, "version": row.version, "kind": row.kind },
    })
}

/// GET /openapi/v2: the same as protobuf (`openapi.v2.Document` of gnostic), which is all that old clients ask for.
pub(crate) fn v2() -> Vec<u8> {
    let mut paths = Vec::new();
    for row in RESOURCES {
        for (path, verbs) in self::paths(row) {
            let mut item = Vec::new();
            for operation in verbs.into_iter().filter_map(operation) {
                let field = match operation.method {
                    "get" => 2,
                    "put" => 3,
                    "post" => 4,
                    "delete" => 5,
                    _ => 8,
                };
                message(&mut item, field, &v2_operation(row, &operation));
            }
            let mut named = Vec::new();
            message(&mut named, 1, path.as_bytes());
            message(&mut named, 2, &item);
            message(&mut paths, 2, &named);
        }
    }
    let mut info = Vec::new();
    message(&mut info, 1, b"Skiff");
    message(&mut info, 2, env!("CARGO_PKG_VERSION").as_bytes());
    let mut document = Vec::new();
    message(&mut document, 1, b"2.0");
    message(&mut document, 2, &info);
    message(&mut document, 8, &paths);
    document
}

fn v2_operation(row: &Resource, operation: &Operation) -> Vec<u8> {
    let mut out = Vec::new();
    for name in operation.parameters {
        // ParametersItem { Parameter { NonBodyParameter { QueryParameterSubSchema } } }
        let mut query = Vec::new();
        message(&mut query, 2, b"query");
        message(&mut query, 4, name.as_bytes());
        message(&mut query, 6, b"string");
        let parameter = [3, 2, 1].iter().fold(query, |inner, field| {
            let mut outer = Vec::new();
            message(&mut outer, *field, &inner);
            outer
        });
        message(&mut out, 8, &parameter);
    }
    let kind = format!(
        "group: {:?}\nkind: {:?}\nversion: {:?}\n",
        row.group, row.kind, row.version
    );
    let extensions = [
        ("x-kubernetes-action", operation.action),
        ("x-kubernetes-group-version-kind", kind.as_str()),
    ];
    for (name, yaml) in extensions {
        let mut any = Vec::new();
        message(&mut any, 2, yaml.as_bytes());
        let mut named = Vec::new();
        message(&mut named, 1, name.as_bytes());
        message(&mut named, 2, &any);
        message(&mut out, 13, &named);
    }
    out
}

/// Appends a length-delimited protobuf field: a string, bytes or an inner message.
fn message(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    varint(out, u64::from(field << 3 | 2));
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_names_its_kind_and_takes_field_validation() {
        for (group, version) in versions() {
            let document = v3(&name(group, version)).unwrap();
            for row in RESOURCES
                .iter()
                .filter(|row| row.group == group && row.verbs.contains(&Verb::Patch))
            {
                let (path, _) = paths(row)
                    .into_iter()
                    .find(|(path, _)| path.ends_with("{name}"))
                    .unwrap();
                let patch = &document["paths"][&path]["patch"];
                assert_eq!(
                    patch["x-kubernetes-group-version-kind"]["kind"], row.kind,
                    "{path}"
                );
                let names: Vec<&Value> = patch["parameters"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|it| &it["name"])
                    .collect();
                assert!(
                    names.iter().any(|name| **name == "fieldValidation"),
                    "{path}: {names:?}"
                );
            }
        }
    }

    #[test]
    fn protobuf_is_length_delimited() {
        let mut out = Vec::new();
        message(&mut out, 2, &[7; 200]);
        assert_eq!(&out[..3], &[0x12, 0xc8, 0x01]);
        assert_eq!(out.len(), 203);
    }
}
