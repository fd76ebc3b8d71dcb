//! The rows of Nodes.

use serde_json::Value;

use super::{AGE, Column, NAME, column, text_or, wide};

/// The columns.
pub(crate) const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Status",
        "string",
        "Whether the node is ready for pods.",
        |node, _| status(node).into(),
    ),
    column("Roles", "string", "The roles of the node.", |node, _| {
        roles(node).into()
    }),
    AGE,
    column("Version", "string", "The version of the agent.", |node, _| {
        text_or(node, "/status/nodeInfo/kubeletVersion", "<unknown>").into()
    }),
    wide("Internal-IP", "string", "The node's own address.", |node, _| {
        address(node, "InternalIP").into()
    }),
    wide(
        "External-IP",
        "string",
        "The node's address outside.",
        |node, _| address(node, "ExternalIP").into(),
    ),
    wide("OS-Image", "string", "The operating system.", |node, _| {
        text_or(node, "/status/nodeInfo/osImage", "<unknown>").into()
    }),
    wide("Kernel-Version", "string", "The kernel.", |node, _| {
        text_or(node, "/status/nodeInfo/kernelVersion", "<unknown>").into()
    }),
    wide(
        "Container-Runtime",
        "string",
        "What runs the containers.",
        |node, _| text_or(node, "/status/nodeInfo/containerRuntimeVersion", "<unknown>").into(),
    ),
];

fn status(node: &Value) -> String {
    let mut conditions = node
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let ready = conditions.rfind(|it| it.get("type").is_some_and(|kind| kind == "Ready"));
    let mut words = match ready.map(|it| text_or(it, "/status", "Unknown")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        words.push_str(",SchedulingDisabled");
    }
    words
}

fn roles(node: &Value) -> String {
    let labels = node
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    let roles = labels.filter_map(
        |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => (!role.is_empty()).then_some(role),
            None if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            None => None,
        },
    );
    let mut roles: Vec<&str> = roles.collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        "<none>".into()
    } else {
        roles.join(",")
    }
}

fn address(node: &Value, kind: &str) -> String {
    let mut addresses = node
        .pointer("/status/addresses")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let found = addresses.find(|it| it.get("type").is_some_and(|it| it == kind));
    found
        .map_or("<none>", |it| text_or(it, "/address", "<none>"))
        .to_owned()
}
