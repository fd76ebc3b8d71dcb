//! What a node leaves behind when it is no more: its Pods and its Lease (Kubernetes' pod garbage collector).
//!
//! A node is no more when it was a member of the fleet, was removed from it, and has no Node object: whoever removes it
//! does both, in either order. Nobody will ever say what became of its Pods, so they count as failed and go. The Pods of a
//! node that has not joined yet wait for it.
//!
//! What always holds: looks at the start, when a Node object goes, and when it is told that a member was removed;
//! nothing here polls.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use skiff_protocol::topic::NodeName;
use tokio::sync::{Notify, watch};

use crate::api::{self, DeleteOptions, resources, set_condition, status_of};
use crate::link::{Fleet, lease};
use crate::store::{DeleteGuard, EventKind, Object, Scope, Store, StoreError, StoreExt as _, UpdateError};

/// Collects until `stop` is set or the store is closed. `removed` is rung when a member was removed.
pub(crate) async fn run(
    store: Arc<dyn Store>,
    fleet: Arc<dyn Fleet>,
    removed: Arc<Notify>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let ended = tokio::select! {
            // What is left undone is found again at the next start.
            _ = stop.wait_for(|stop| *stop) => return,
            ended = follow(&*store, &*fleet, &removed) => ended,
        };
        match ended {
            Ok(()) | Err(StoreError::Closed) => return,
            Err(StoreError::Gone { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, "what removed nodes left cannot be collected; trying again");
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(crate::RETRY) => {}
                }
            }
        }
    }
}

async fn follow(store: &dyn Store, fleet: &dyn Fleet, removed: &Notify) -> Result<(), StoreError> {
    let mut nodes = store.watch(Scope::all("nodes"), None)?;
    loop {
        collect(store, fleet).await?;
        loop {
            tokio::select! {
                // Waiting for an event can be cancelled without losing one; a ring is kept until it is waited for.
                event = nodes.next() => match event {
                    None => return Ok(()),
                    Some(event) => if event?.kind == EventKind::Deleted { break },
                },
                () = removed.notified() => break,
            }
        }
    }
}

/// Collects what nodes left that are no more.
async fn collect(store: &dyn Store, fleet: &dyn Fleet) -> Result<(), StoreError> {
    let (pods, _) = store.list_all(&Scope::all("pods")).await?;
    let (leases, _) = store
        .list_all(&Scope::namespace(lease::RESOURCE, lease::NAMESPACE))
        .await?;
    // Read after what may belong to them: a node that joins meanwhile is not missed.
    let (nodes, _) = store.list_all(&Scope::all("nodes")).await?;
    let nodes: BTreeSet<&str> = nodes.iter().map(|node| node.key.name.as_str()).collect();
    let is_gone = |name: &str| {
        !nodes.contains(name) && NodeName::parse(name).is_ok_and(|name| fleet.was_removed(&name))
    };
    for pod in pods.iter().filter(|pod| is_gone(node_of(pod))) {
        collect_pod(store, pod).await?;
    }
    for lease in leases.iter().filter(|lease| is_gone(&lease.key.name)) {
        let guard = DeleteGuard {
            uid: Some(lease.uid.clone()),
            ..DeleteGuard::default()
        };
        match store.delete(&lease.key, guard).await {
            Ok(_) | Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn node_of(pod: &Object) -> &str {
    let node = pod.value.pointer("/spec/nodeName").and_then(Value::as_str);
    node.unwrap_or_default()
}

/// Marks a Pod as failed, for those who watch it, and removes it; finalizers may hold it.
async fn collect_pod(store: &dyn Store, pod: &Object) -> Result<(), StoreError> {
    let node = node_of(pod);
    tracing::info!(pod = %pod.key, node, "the Pod's node is no more; the Pod goes");
    let failed = store.update(&pod.key, |value| {
        // Another Pod has the name by now.
        if value.pointer("/metadata/uid").and_then(Value::as_str) != Some(&pod.uid) {
            return Err(());
        }
        let ended = matches!(
            value.pointer("/status/phase").and_then(Value::as_str),
            Some("Succeeded" | "Failed")
        );
        if !ended && let Some(status) = status_of(value) {
            status.insert("phase".into(), "Failed".into());
            let why = "PodGC: node no longer exists";
            set_condition(value, "DisruptionTarget", "True", "DeletionByPodGC", why);
        }
        Ok(())
    });
    // Otherwise it went, or somebody writes it all the time: the deletion looks for itself.
    if let Err(UpdateError::Store(error @ (StoreError::Database { .. } | StoreError::Closed))) = failed.await
    {
        return Err(error);
    }
    let options = DeleteOptions {
        grace_seconds: Some(0),
        uid: Some(pod.uid.clone()),
        revision: None,
    };
    match api::delete(store, resources::pods(), &pod.key, &options).await {
        Ok(_) => {}
        Err(error) if matches!(error.code, 404 | 409) => {}
        // One Pod must not keep the others.
        Err(error) => tracing::warn!(pod = %pod.key, %error, "the Pod of a removed node cannot be removed"),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
