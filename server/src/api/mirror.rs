//! Mirror Pods: how the API shows the static Pods of nodes, which no server can change or end.
//!
//! What always holds: only a node's own word makes a mirror, bound to that node and named after it; one that is deleted is
//! gone at once, and comes again as long as its node has the static Pod. Source: Kubernetes documentation, "Static Pods".

use serde_json::{Map, Value, json};
use skiff_protocol::manifest::Cause;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;

use super::{ApiError, ApiResult, metadata, resources, validate};
use crate::store::{CreateGuard, Key, Object, Store};

/// The annotation that makes a Pod a mirror. Its value is the static Pod's uid.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The static Pod that a Pod is the mirror of.
pub(crate) fn mirrored(pod: &Value) -> Option<Uid> {
    annotation(pod)?.parse().ok()
}

fn annotation(pod: &Value) -> Option<&str> {
    pod["metadata"]["annotations"].get(MIRROR)?.as_str()
}

/// The uid under which the Pod's node knows it.
pub(crate) fn node_uid(pod: &Object) -> Option<Uid> {
    mirrored(&pod.value).or_else(|| pod.uid.parse().ok())
}

/// What is wrong with what somebody other than a node wants to do to the annotation.
pub(crate) fn check(old: Option<&Value>, new: &Value) -> Option<Cause> {
    let changed = old.and_then(annotation) != annotation(new);
    let field = format!("metadata.annotations[{MIRROR}]");
    changed.then(|| Cause::forbidden(field, "only nodes set it, on the mirrors of their static Pods"))
}

/// Stores the mirror of a static Pod; gives its key.
///
/// # Errors
/// When the manifest is none of a static Pod of this node, its namespace is not there, or another has its name.
pub(crate) async fn make(store: &dyn Store, node: &NodeName, uid: Uid, manifest: &[u8]) -> ApiResult<Key> {
    let manifest: Value = serde_json::from_slice(manifest)
        .map_err(|error| ApiError::bad_request(format!("a static Pod's manifest is no JSON: {error}")))?;
    let mut pod = shown(&manifest, node, uid)?;
    let resource = resources::pods();
    validate::schema(resource, &mut pod, validate::FieldValidation::Ignore)?;
    let namespace = metadata::text(&manifest, "namespace").to_owned();
    let name = metadata::prepare_create(resource, &namespace, &mut pod)?;
    resource.strategy.default(&mut pod);
    resource.strategy.prepare_create(&mut pod);
    let mut causes = metadata::check(resource, &pod);
    causes.extend(resource.strategy.check(&pod));
    causes.extend(validate::meaning(resource, &pod).err().into_iter().flatten());
    if !causes.is_empty() {
        return Err(ApiError::invalid(resource.kind, resource.group, &name, &causes));
    }
    let key = resource.key(&namespace, &name);
    let within = Some(resources::namespaces().key("", &namespace));
    let created = store.create(&key, pod, CreateGuard { within }).await;
    created.map_err(|error| ApiError::of_store(error, resource, &name))?;
    Ok(key)
}

/// Of a node's manifest what the API shows: nothing of the node's own choosing but what a Pod says.
fn shown(manifest: &Value, node: &NodeName, uid: Uid) -> ApiResult<Value> {
    let said = &manifest["metadata"];
    let name = said["name"].as_str().unwrap_or_default();
    if !name
        .strip_suffix(node.as_str())
        .is_some_and(|it| it.ends_with('-'))
    {
        return Err(ApiError::bad_request(format!(
            "a static Pod's name {name:?} does not end with -{node}"
        )));
    }
    let map = |field: &str| said[field].as_object().cloned().unwrap_or_else(Map::new);
    let mut annotations = map("annotations");
    annotations.insert(MIRROR.to_owned(), uid.to_string().into());
    let mut spec = manifest["spec"].clone();
    if !spec.is_object() {
        return Err(ApiError::bad_request("a static Pod's manifest has no spec"));
    }
    spec["nodeName"] = node.as_str().into();
    Ok(json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {
            "name": name, "namespace": said["namespace"], "labels": map("labels"), "annotations": annotations,
        },
    }))
}
