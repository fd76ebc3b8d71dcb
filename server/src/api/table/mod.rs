//! What `kubectl get` prints: objects as rows of a `Table`.
//!
//! What always holds: a kind's columns are those of Kubernetes, in its order, so that scripts which read columns keep
//! working; a column of priority 1 is shown with `-o wide` only.

mod node;
mod pod;
mod volume;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::resources::Resource;
use super::{metadata, time};

/// One column.
pub(crate) struct Column {
    /// The heading.
    pub name: &'static str,
    /// OpenAPI's type of the cells.
    pub kind: &'static str,
    /// OpenAPI's format; `name` for the column that names the object.
    pub format: &'static str,
    /// What the column says.
    pub description: &'static str,
    /// 0, or 1 when only `-o wide` shows it.
    pub priority: u8,
    /// The cell of an object.
    pub cell: fn(&Value, Timestamp) -> Value,
}

const fn column(
    name: &'static str,
    kind: &'static str,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
) -> Column {
    Column {
        name,
        kind,
        format: "",
        description,
        priority: 0,
        cell,
    }
}

const fn wide(
    name: &'static str,
    kind: &'static str,
    description: &'static str,
    cell: fn(&Value, Timestamp) -> Value,
) -> Column {
    Column {
        name,
        kind,
        format: "",
        description,
        priority: 1,
        cell,
    }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name must be unique within a namespace.",
    priority: 0,
    cell: |object, _| metadata::text(object, "name").into(),
};

const AGE: Column = column(
    "Age",
    "string",
    "How long ago the object was created.",
    |object, now| time::age(metadata::text(object, "creationTimestamp"), now).into(),
);

/// The text at a JSON pointer, empty when absent.
fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn text_or<'a>(object: &'a Value, pointer: &str, absent: &'a str) -> &'a str {
    let text = text(object, pointer);
    if text.is_empty() { absent } else { text }
}

fn count(object: &Value, field: &str) -> usize {
    object
        .get(field)
        .and_then(Value::as_object)
        .map_or(0, serde_json::Map::len)
}

/// Columns of Pods.
pub(crate) use node::COLUMNS as NODE;
pub(crate) use pod::COLUMNS as POD;
pub(crate) use volume::{CLAIM, CLASS, VOLUME};

/// Columns of ConfigMaps.
pub(crate) const CONFIG_MAP: &[Column] = &[
    NAME,
    column(
        "Data",
        "string",
        "How many keys the ConfigMap has.",
        |object, _| {
            (count(object, "data") + count(object, "binaryData"))
                .to_string()
                .into()
        },
    ),
    AGE,
];

/// Columns of Secrets.
pub(crate) const SECRET: &[Column] = &[
    NAME,
    column("Type", "string", "What the Secret is for.", |object, _| {
        text(object, "/type").into()
    }),
    column("Data", "string", "How many keys the Secret has.", |object, _| {
        count(object, "data").to_string().into()
    }),
    AGE,
];

/// Columns of Namespaces.
pub(crate) const NAMESPACE: &[Column] = &[
    NAME,
    column("Status", "string", "The phase of the namespace.", |object, _| {
        text(object, "/status/phase").into()
    }),
    AGE,
];

/// Columns of kinds of which there is nothing to say.
pub(crate) const PLAIN: &[Column] = &[NAME, AGE];

/// Columns of Leases.
pub(crate) const LEASE: &[Column] = &[
    NAME,
    column("Holder", "string", "Who holds the lease.", |object, _| {
        text(object, "/spec/holderIdentity").into()
    }),
    AGE,
];

/// Columns of Services.
pub(crate) const SERVICE: &[Column] = &[
    NAME,
    column("Type", "string", "How the Service is exposed.", |object, _| {
        text(object, "/spec/type").into()
    }),
    column(
        "Cluster-IP",
        "string",
        "The Service's address inside.",
        |object, _| text_or(object, "/spec/clusterIP", "<none>").into(),
    ),
    column(
        "External-IP",
        "string",
        "The Service's address outside.",
        |object, _| text_or(object, "/spec/externalIPs/0", "<none>").into(),
    ),
    column("Port(s)", "string", "The ports of the Service.", |object, _| {
        let ports = object
            .pointer("/spec/ports")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let ports = ports.map(|port| {
            format!(
                "{}/{}",
                port.get("port").unwrap_or(&Value::Null),
                text_or(port, "/protocol", "TCP")
            )
        });
        ports.collect::<Vec<_>>().join(",").into()
    }),
    AGE,
];

/// Columns of Events.
pub(crate) const EVENT: &[Column] = &[
    column(
        "Last Seen",
        "string",
        "When the event was last seen.",
        |object, now| {
            let last = text_or(object, "/lastTimestamp", text(object, "/eventTime"));
            time::age(
                if last.is_empty() {
                    metadata::text(object, "creationTimestamp")
                } else {
                    last
                },
                now,
            )
            .into()
        },
    ),
    column("Type", "string", "Normal or Warning.", |object, _| {
        text(object, "/type").into()
    }),
    column(
        "Reason",
        "string",
        "Why the event happened, in a word.",
        |object, _| text(object, "/reason").into(),
    ),
    column("Object", "string", "What the event is about.", |object, _| {
        let kind = text(object, "/involvedObject/kind").to_lowercase();
        format!("{kind}/{}", text(object, "/involvedObject/name")).into()
    }),
    wide("Subobject", "string", "Which part of it.", |object, _| {
        text(object, "/involvedObject/fieldPath").into()
    }),
    wide("Source", "string", "Who reports it.", |object, _| {
        let host = text(object, "/source/host");
        let component = text_or(object, "/source/component", text(object, "/reportingComponent"));
        if host.is_empty() {
            component.into()
        } else {
            format!("{component}, {host}").into()
        }
    }),
    column("Message", "string", "What happened.", |object, _| {
        text(object, "/message").trim().into()
    }),
    wide(
        "First Seen",
        "string",
        "When the event was first seen.",
        |object, now| {
            let first = text_or(
                object,
                "/firstTimestamp",
                metadata::text(object, "creationTimestamp"),
            );
            time::age(first, now).into()
        },
    ),
    wide("Count", "string", "How often it happened.", |object, _| {
        object
            .get("count")
            .and_then(Value::as_i64)
            .unwrap_or(1)
            .to_string()
            .into()
    }),
    Column { priority: 1, ..NAME },
];

/// How much of each object a row carries beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// The objects as a Table. Watches leave the headings out after their first event.
pub(crate) fn render<'a>(
    resource: &Resource,
    version: &str,
    objects: impl Iterator<Item = &'a Value>,
    metadata: &Value,
    include: Include,
    headings: bool,
) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = objects
        .map(|object| row(resource, object, include, now))
        .collect();
    let definitions = if headings {
        resource.columns.iter().map(definition).collect()
    } else {
        Value::Null
    };
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name, "type": column.kind, "format": column.format,
        "description": column.description, "priority": column.priority,
    })
}

fn row(resource: &Resource, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells: Vec<Value> = resource
        .columns
        .iter()
        .map(|column| (column.cell)(object, now))
        .collect();
    let mut row = json!({ "cells": cells });
    match include {
        Include::None => {}
        Include::Metadata => row["object"] = partial(object),
        Include::Object => row["object"] = object.clone(),
    }
    if resource.kind == "Pod"
        && let Some(condition) = pod::completion(object)
    {
        row["conditions"] = json!([condition]);
    }
    row
}

/// The object as a PartialObjectMetadata.
pub(crate) fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").unwrap_or(&Value::Null),
    })
}
