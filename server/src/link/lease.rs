//! A node's Lease: when the server heard of the node last, where Kubernetes' tools look for it.
//!
//! What always holds: one Lease a node, under the node's name in `kube-node-lease`. A quiet node is a healthy one here,
//! so a Lease names no duration: an old one says that the node had nothing to say, and its Ready condition says the
//! rest.

use serde_json::{Value, json};
use skiff_protocol::topic::NodeName;

use crate::store::{CreateGuard, Key, Store, StoreError, StoreExt as _, UpdateError};

/// The resource of Leases, as the store's keys have it.
pub(crate) const RESOURCE: &str = "leases.coordination.k8s.io";
/// The namespace of the nodes' Leases, which every server has.
pub(crate) const NAMESPACE: &str = "kube-node-lease";

/// Writes that the node was heard of now; makes the Lease where there is none.
pub(crate) async fn renew(store: &dyn Store, node: &NodeName) -> Result<(), StoreError> {
    let key = Key::new(RESOURCE, NAMESPACE, node.as_str());
    // Kubernetes' MicroTime.
    let now = format!("{:.6}", jiff::Timestamp::now());
    let renewed = store.update::<_, std::convert::Infallible>(&key, |lease| {
        if !lease.get("spec").is_some_and(Value::is_object) {
            lease["spec"] = json!({ "holderIdentity": node.as_str() });
        }
        lease["spec"]["renewTime"] = now.clone().into();
        Ok(())
    });
    match renewed.await {
        Ok(_) => return Ok(()),
        Err(UpdateError::Store(StoreError::NotFound(_))) => {}
        Err(UpdateError::Store(error)) => return Err(error),
        Err(UpdateError::Refused(never)) => match never {},
    }
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {},
        "spec": { "holderIdentity": node.as_str(), "renewTime": now },
    });
    if let Some(owner) = store.get(&Key::cluster("nodes", node.as_str())).await? {
        lease["metadata"]["ownerReferences"] =
            json!([{ "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": owner.uid }]);
    }
    match store.create(&key, lease, CreateGuard::default()).await {
        Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}
