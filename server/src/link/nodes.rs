//! From a node's words to its Kubernetes `Node` object.
//!
//! Pure. What always holds: labels and taints that people set stay; what the node brings is bounded and cannot name
//! the labels that say who and what it is.

use std::net::IpAddr;

use serde_json::{Map, Value, json};
use skiff_protocol::quantity::Quantity;
use skiff_protocol::topic::NodeName;
use skiff_protocol::wire::{NodeImage, NodeInfo, OLDEST, VERSION, feature};

use super::limits;
use super::status::{bounded, set_condition};
use crate::api::{FEATURES, status_of};

/// Names the labels that came from the node, so that they go when its configuration drops them.
const OWN_LABELS: &str = "skiff.io/node-labels";

/// What the server knows of a node's liveness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// It said hello and has not gone.
    Ready,
    /// It is there and speaks no version that we speak.
    Incompatible {
        /// The versions it speaks.
        versions: (u8, u8),
    },
    /// Nothing is known: its connection broke, or it did not answer.
    Unknown,
}

/// A `Node` that does not exist yet.
pub(crate) fn new_node(name: &NodeName) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name.as_str() }, "spec": {}, "status": {} })
}

/// Writes what the node said of itself into its document. `now` is the server's time, RFC 3339.
pub(crate) fn describe(node: &mut Value, name: &NodeName, info: &NodeInfo, now: &str) {
    labels(node, name, info);
    features(node, info);
    let Some(status) = status_of(node) else { return };
    let cpu = |milli: u64| {
        if milli.is_multiple_of(1000) {
            (milli / 1000).to_string()
        } else {
            format!("{milli}m")
        }
    };
    let resources = |cpu_milli: u64, memory: u64, storage: u64| {
        let mut out = json!({
            "cpu": cpu(cpu_milli),
            "memory": format!("{}Ki", memory / 1024),
            "ephemeral-storage": format!("{}Ki", storage / 1024),
            "pods": info.pods.to_string(),
        });
        for (name, count) in extended(info) {
            out[name] = count.into();
        }
        out
    };
    let capacity = resources(info.cpu_milli, info.memory, info.storage);
    status.insert("capacity".into(), capacity);
    let (cpu_milli, memory) = (info.allocatable_cpu_milli, info.allocatable_memory);
    let allocatable = resources(cpu_milli, memory, info.allocatable_storage);
    status.insert("allocatable".into(), allocatable);
    let mut addresses = vec![json!({ "type": "Hostname", "address": name.as_str() })];
    if let Ok(address) = info.address.parse::<IpAddr>() {
        addresses.insert(0, json!({ "type": "InternalIP", "address": address.to_string() }));
    }
    status.insert("addresses".into(), addresses.into());
    let version = bounded(&info.agent_version);
    let node_info = json!({
        "machineID": bounded(&info.machine_id),
        "systemUUID": bounded(&info.machine_id),
        "bootID": bounded(&info.boot_id),
        "kernelVersion": bounded(&info.kernel),
        "osImage": bounded(&info.os_image),
        "containerRuntimeVersion": format!("skiff://{}", version.trim_start_matches('v')),
        "kubeletVersion": version,
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": bounded(&info.architecture),
    });
    status.insert("nodeInfo".into(), node_info);
    own_conditions(status, info, now);
}

/// Extended resources and huge pages under Kubernetes' names: bytes as a quantity, anything else as a count.
fn extended(info: &NodeInfo) -> impl Iterator<Item = (&str, String)> {
    let known = info.extended.iter().filter(|(name, _)| {
        let pages = name.strip_prefix("hugepages-");
        let pages = pages.is_some_and(|size| Quantity::parse(size).is_ok());
        pages || (name.contains('/') && is_label(name, "") && !is_reserved(name))
    });
    known.take(limits::EXTENDED).map(|(name, count)| {
        let bytes = name.starts_with("hugepages-") && count.is_multiple_of(1024);
        let count = if bytes && *count > 0 {
            format!("{}Ki", count / 1024)
        } else {
            count.to_string()
        };
        (name.as_str(), count)
    })
}

/// Keeps what the node can do and allows, for whoever applies a Pod and for placement.
fn features(node: &mut Value, info: &NodeInfo) {
    let known = feature::ALL
        .iter()
        .filter(|it| info.features.iter().any(|said| said == *it));
    let known: Vec<&str> = known.copied().collect();
    if !node["metadata"]["annotations"].is_object() {
        node["metadata"]["annotations"] = json!({});
    }
    node["metadata"]["annotations"][FEATURES] = known.join(",").into();
}

/// Writes which images the node has: `status.images`.
pub(crate) fn set_images(node: &mut Value, images: &[NodeImage]) {
    let known = images.iter().take(skiff_protocol::limits::NODE_IMAGES);
    let names = |it: &NodeImage| -> Vec<String> {
        let names = it.names.iter().take(skiff_protocol::limits::IMAGE_NAMES);
        names.map(|name| bounded(name)).collect()
    };
    let listed = known.map(|it| json!({ "names": names(it), "sizeBytes": it.size_bytes }));
    let listed: Vec<Value> = listed.collect();
    if let Some(status) = status_of(node) {
        status.insert("images".into(), listed.into());
    }
}

/// The node's own address, where it has one.
pub(crate) fn address(node: &Value) -> Option<IpAddr> {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let mut internal = addresses.filter(|it| it["type"] == "InternalIP");
    internal.next()?["address"].as_str()?.parse().ok()
}

/// Sets Ready, and for a node that is there the time of its last word.
pub(crate) fn set_liveness(node: &mut Value, liveness: &Liveness, now: &str) {
    let Some(status) = status_of(node) else { return };
    match liveness {
        Liveness::Ready => {
            set_condition(
                status,
                "Ready",
                "True",
                "AgentReady",
                "skiff-agent is in contact",
                now,
            );
        }
        Liveness::Incompatible {
            versions: (low, high),
        } => {
            let message = format!(
                "the agent speaks wire versions {low} to {high} and this server {OLDEST} to {VERSION}; upgrade the older of \
                 them"
            );
            set_condition(status, "Ready", "False", "IncompatibleAgent", &message, now);
        }
        Liveness::Unknown => {
            let list = status.get("conditions").and_then(Value::as_array);
            let kinds: Vec<String> = list
                .into_iter()
                .flatten()
                .filter_map(|it| it["type"].as_str().map(str::to_owned))
                .chain(["Ready".to_owned()])
                .collect();
            for kind in kinds {
                let message = "the node stopped being in contact";
                set_condition(status, &kind, "Unknown", "NodeStatusUnknown", message, now);
            }
            return;
        }
    }
    let list = status.get_mut("conditions").and_then(Value::as_array_mut);
    for condition in list.into_iter().flatten().filter_map(Value::as_object_mut) {
        condition.insert("lastHeartbeatTime".into(), now.into());
    }
}

/// The node's own conditions; one that it no longer brings goes.
fn own_conditions(status: &mut Map<String, Value>, info: &NodeInfo, now: &str) {
    let kept = info
        .conditions
        .iter()
        .filter(|it| it.kind != "Ready" && is_word(&it.kind));
    let kept: Vec<_> = kept.take(limits::CONDITIONS).collect();
    if let Some(list) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        list.retain(|old| old["type"] == "Ready" || kept.iter().any(|it| old["type"] == it.kind.as_str()));
    }
    for it in kept {
        let value = if it.status { "True" } else { "False" };
        set_condition(
            status,
            &it.kind,
            value,
            &bounded(&it.reason),
            &bounded(&it.message),
            now,
        );
    }
}

fn labels(node: &mut Value, name: &NodeName, info: &NodeInfo) {
    let accepted = info
        .labels
        .iter()
        .filter(|(key, value)| is_label(key, value) && !is_reserved(key));
    let accepted: Vec<_> = accepted.take(limits::LABELS).collect();
    let metadata = &mut node["metadata"];
    for field in ["labels", "annotations"] {
        if !metadata[field].is_object() {
            metadata[field] = json!({});
        }
    }
    let before = metadata["annotations"][OWN_LABELS]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let Some(labels) = metadata["labels"].as_object_mut() else {
        return;
    };
    for key in before.split(',').filter(|key| !is_reserved(key)) {
        labels.remove(key);
    }
    for (key, value) in &accepted {
        labels.insert(key.clone(), value.clone().into());
    }
    labels.insert("kubernetes.io/hostname".into(), name.as_str().into());
    labels.insert("kubernetes.io/os".into(), "linux".into());
    if is_label("a", &info.architecture) {
        labels.insert("kubernetes.io/arch".into(), info.architecture.clone().into());
    }
    let keys: Vec<&str> = accepted.iter().map(|(key, _)| key.as_str()).collect();
    let Some(annotations) = metadata["annotations"].as_object_mut() else {
        return;
    };
    if keys.is_empty() {
        annotations.remove(OWN_LABELS);
    } else {
        annotations.insert(OWN_LABELS.into(), keys.join(",").into());
    }
}

/// Labels by which work is kept apart must not be the node's own to choose (Kubernetes' NodeRestriction).
fn is_reserved(key: &str) -> bool {
    let prefix = key.split_once('/').map_or("", |(prefix, _)| prefix);
    let topology = key.starts_with("topology.kubernetes.io/");
    let theirs = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    !topology && (theirs("kubernetes.io") || theirs("k8s.io"))
}

fn is_label(key: &str, value: &str) -> bool {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    let prefix = key.rsplit_once('/').map_or("", |(prefix, _)| prefix);
    let subdomain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    prefix.len() <= 253
        && prefix.chars().all(subdomain)
        && (prefix.is_empty() != key.contains('/'))
        && is_word(name)
        && (value.is_empty() || is_word(value))
}

fn is_word(text: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.len() <= 63 && end(text.chars().next()) && end(text.chars().last()) && text.chars().all(inner)
}

#[cfg(test)]
mod tests;
