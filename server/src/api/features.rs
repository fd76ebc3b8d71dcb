//! What a Pod asks of its node beyond the common, and whether the node has it, said when the Pod is applied.
//!
//! What always holds: a Pod whose node is named and lacks what would change the Pod's meaning is refused by the field;
//! where the node is still open, or unknown, the same is a warning, and placement looks for a node that has it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use skiff_protocol::manifest::Cause;
use skiff_protocol::wire::feature;

use super::kinds::volume::quantity;
use super::status::{ApiError, ApiResult};
use super::{metadata, resources};
use crate::store::{Key, Scope, Store, StoreExt};

/// The annotation of a Node that names its features, separated by commas. A node without it has never said.
pub(crate) const FEATURES: &str = "skiff.io/features";

/// The node's features.
pub(crate) fn features(node: &Value) -> BTreeSet<String> {
    let said = node["metadata"]["annotations"][FEATURES]
        .as_str()
        .unwrap_or_default();
    let words = said.split(',').filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// What of [`feature`] the Pod asks for, each with the field that does.
pub(crate) fn wanted(pod: &Value) -> Vec<(String, &'static str)> {
    let spec = &pod["spec"];
    let mut out = Vec::new();
    for (field, feature) in [
        ("hostNetwork", feature::HOST_NETWORK),
        ("hostPID", feature::HOST_PID),
        ("hostIPC", feature::HOST_IPC),
    ] {
        if spec[field] == true {
            out.push((format!("spec.{field}"), feature));
        }
    }
    if spec["hostUsers"] == false {
        out.push(("spec.hostUsers".to_owned(), feature::USER_NAMESPACES));
    }
    apparmor("spec.securityContext", &spec["securityContext"], &mut out);
    let volumes = spec["volumes"].as_array().into_iter().flatten().enumerate();
    for (at, _) in volumes.filter(|(_, volume)| volume["hostPath"].is_object()) {
        out.push((format!("spec.volumes[{at}].hostPath"), feature::HOST_PATH));
    }
    for (path, container) in containers(pod) {
        let security = &container["securityContext"];
        if security["privileged"] == true {
            out.push((format!("{path}.securityContext.privileged"), feature::PRIVILEGED));
        }
        let added = security["capabilities"]["add"].as_array().into_iter().flatten();
        let added = added.enumerate().filter_map(|(at, it)| Some((at, it.as_str()?)));
        if let Some((at, _)) = added.into_iter().find(|(_, name)| feature::is_uncommon(name)) {
            let field = format!("{path}.securityContext.capabilities.add[{at}]");
            out.push((field, feature::CAPABILITIES));
        }
        apparmor(&format!("{path}.securityContext"), security, &mut out);
        let mounts = container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate();
        for (at, _) in mounts.filter(|(_, mount)| mount["recursiveReadOnly"] == "Enabled") {
            let field = format!("{path}.volumeMounts[{at}].recursiveReadOnly");
            out.push((field, feature::RECURSIVE_READ_ONLY));
        }
    }
    out
}

fn apparmor(path: &str, security: &Value, out: &mut Vec<(String, &'static str)>) {
    let kind = security["appArmorProfile"]["type"].as_str();
    if kind.is_some_and(|kind| kind != "Unconfined") {
        out.push((format!("{path}.appArmorProfile"), feature::APPARMOR));
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = (String, &Value)> {
    ["initContainers", "containers"].into_iter().flat_map(|field| {
        let list = pod["spec"][field].as_array().into_iter().flatten().enumerate();
        list.map(move |(at, container)| (format!("spec.{field}[{at}]"), container))
    })
}

/// Resources that not every node has, each with the field that asks for it.
fn resources_wanted(pod: &Value) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for (path, container) in containers(pod) {
        for part in ["limits", "requests"] {
            for name in container["resources"][part]
                .as_object()
                .into_iter()
                .flatten()
                .map(|it| it.0)
            {
                if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                    out.entry(name.clone())
                        .or_insert_with(|| format!("{path}.resources.{part}.{name}"));
                }
            }
        }
    }
    out
}

fn has_resource(node: &Value, name: &str) -> bool {
    quantity(&node["status"]["allocatable"][name]).is_some_and(|it| it.value() > 0)
}

/// Compares a new Pod with the node it names, or with all of them; gives the warnings.
///
/// # Errors
/// When the node that the Pod names lacks a feature that it asks for.
pub(super) async fn admit(store: &dyn Store, pod: &Value) -> ApiResult<Vec<String>> {
    let (features, resources) = (wanted(pod), resources_wanted(pod));
    if features.is_empty() && resources.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |error| ApiError::of_store(error, resources::pods(), metadata::text(pod, "name"));
    let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if name.is_empty() {
        let (nodes, _) = store.list_all(&Scope::all("nodes")).await.map_err(failed)?;
        let nodes: Vec<&Value> = nodes.iter().map(|it| &it.value).collect();
        return Ok(against_all(&features, &resources, &nodes));
    }
    let found = store.get(&Key::cluster("nodes", name)).await.map_err(failed)?;
    let Some(node) = found else {
        return Ok(vec![format!(
            "spec.nodeName: there is no node {name:?} yet; the Pod waits for it"
        )]);
    };
    let (causes, warnings) = against_one(&features, &resources, name, &node.value);
    if causes.is_empty() {
        return Ok(warnings);
    }
    Err(ApiError::invalid("Pod", "", metadata::text(pod, "name"), &causes))
}

fn against_one(
    features: &[(String, &'static str)],
    resources: &BTreeMap<String, String>,
    name: &str,
    node: &Value,
) -> (Vec<Cause>, Vec<String>) {
    let has = self::features(node);
    let lacking = features.iter().filter(|(_, feature)| !has.contains(*feature));
    let said = node["metadata"]["annotations"][FEATURES].is_string();
    let why = |feature: &str| format!("node {name:?} does not have or does not allow it ({feature})");
    let (mut causes, mut warnings) = (Vec::new(), Vec::new());
    for (field, feature) in lacking {
        if said {
            causes.push(Cause::forbidden(field, why(feature)));
        } else {
            warnings.push(format!("{field}: {}", why(feature)));
        }
    }
    for (resource, field) in resources
        .iter()
        .filter(|(resource, _)| !has_resource(node, resource))
    {
        warnings.push(format!("{field}: node {name:?} has no {resource}"));
    }
    (causes, warnings)
}

fn against_all(
    features: &[(String, &'static str)],
    resources: &BTreeMap<String, String>,
    nodes: &[&Value],
) -> Vec<String> {
    let waits = "the Pod waits for one";
    let anywhere = |feature: &str| nodes.iter().any(|node| self::features(node).contains(feature));
    let lacking = features.iter().filter(|(_, feature)| !anywhere(feature));
    let mut out: Vec<String> = lacking
        .map(|(field, feature)| format!("{field}: no node has or allows it ({feature}); {waits}"))
        .collect();
    for (resource, field) in resources {
        if !nodes.iter().any(|node| has_resource(node, resource)) {
            out.push(format!("{field}: no node has {resource}; {waits}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_feature_has_a_field() {
        let pod = json!({ "spec": {
            "hostNetwork": true, "hostPID": true, "hostIPC": true, "hostUsers": false,
            "securityContext": { "appArmorProfile": { "type": "RuntimeDefault" } },
            "volumes": [{ "name": "a", "emptyDir": {} }, { "name": "b", "hostPath": { "path": "/x" } }],
            "initContainers": [{ "securityContext": { "privileged": true } }],
            "containers": [{ "volumeMounts": [{ "recursiveReadOnly": "Enabled" }],
                "securityContext": { "appArmorProfile": { "type": "Unconfined" },
                    "capabilities": { "add": ["CHOWN", "CAP_KILL", "SYS_ADMIN"] } } }],
        } });
        let wanted = wanted(&pod);
        let found: BTreeSet<&str> = wanted.iter().map(|(_, feature)| *feature).collect();
        assert_eq!(found, feature::ALL.into_iter().collect());
        let fields: Vec<&str> = wanted.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.hostNetwork",
                "spec.hostPID",
                "spec.hostIPC",
                "spec.hostUsers",
                "spec.securityContext.appArmorProfile",
                "spec.volumes[1].hostPath",
                "spec.initContainers[0].securityContext.privileged",
                "spec.containers[0].securityContext.capabilities.add[2]",
                "spec.containers[0].volumeMounts[0].recursiveReadOnly",
            ]
        );
        let plain = json!({ "spec": { "hostUsers": true, "containers": [{ "name": "a" }] } });
        assert!(super::wanted(&plain).is_empty());
    }

    #[test]
    fn what_a_node_lacks_is_refused_or_warned_about() {
        let node = |features: &str, gpus: &str| {
            json!({ "metadata": { "annotations": { FEATURES: features } },
                "status": { "allocatable": { "nvidia.com/gpu": gpus } } })
        };
        let pod = json!({ "spec": { "hostNetwork": true,
            "containers": [{ "resources": { "limits": { "nvidia.com/gpu": "1", "cpu": "1" } } }] } });
        let (features, resources) = (wanted(&pod), resources_wanted(&pod));
        let one = |node: &Value| {
            let (causes, warnings) = against_one(&features, &resources, "n", node);
            let causes: Vec<String> = causes.iter().map(ToString::to_string).collect();
            [causes, warnings].concat()
        };
        assert_eq!(one(&node("host-network", "1")), Vec::<String>::new());
        assert_eq!(
            one(&node("host-pid", "0")),
            [
                "spec.hostNetwork: Forbidden: node \"n\" does not have or does not allow it (host-network)",
                "spec.containers[0].resources.limits.nvidia.com/gpu: node \"n\" has no nvidia.com/gpu",
            ]
        );
        assert_eq!(
            one(&json!({ "status": { "allocatable": { "nvidia.com/gpu": 1 } } })),
            ["spec.hostNetwork: node \"n\" does not have or does not allow it (host-network)"],
            "a node that never said is not judged"
        );
        let (able, unable) = (node("host-network", "1"), node("", "0"));
        assert!(against_all(&features, &resources, &[&unable, &able]).is_empty());
        assert_eq!(
            against_all(&features, &resources, &[&unable]),
            [
                "spec.hostNetwork: no node has or allows it (host-network); the Pod waits for one",
                "spec.containers[0].resources.limits.nvidia.com/gpu: no node has nvidia.com/gpu; the Pod waits for one",
            ]
        );
    }
}
