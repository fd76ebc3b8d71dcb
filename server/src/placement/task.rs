//! The task that binds: events of the store in, bindings out.
//!
//! What always holds: it knows every Pod and Node of the store from one listing and the watch behind it; when the
//! watch is cut off, it lists anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::select_all;
use serde_json::Value;
use tokio::sync::watch;

use super::volumes::Volumes;
use super::{Amount, Needs, Neighbours, Node, place, strings, taken, unplaceable};
use crate::api::{self, ApiResult, Seen};
use crate::events::{Happening, Recorder};
use crate::store::{Event, EventKind, Key, Object, Scope, Store, StoreError, StoreExt, Watch};

/// What decides about placement. Volumes before Pods, so that a Pod never seems to lack what is there.
const RESOURCES: [&str; 6] = [
    "namespaces",
    "nodes",
    "storageclasses.storage.k8s.io",
    "persistentvolumes",
    "persistentvolumeclaims",
    "pods",
];

/// Who says so in events, and whose Pods these are (`spec.schedulerName`).
const SCHEDULER: &str = "default-scheduler";

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, Node>,
    bound: BTreeMap<Key, (String, Amount)>,
    used: BTreeMap<String, Amount>,
    neighbours: Neighbours,
    /// Oldest first: creationTimestamp, then key.
    waiting: BTreeMap<(String, Key), Arc<Object>>,
    /// Pods that have a node, from whomever, and claims without a volume.
    unbound: BTreeMap<Key, Arc<Object>>,
    volumes: Volumes,
}

/// Places Pods until `stop` is set or the store is closed.
pub(crate) async fn run(store: Arc<dyn Store>, events: Recorder, mut stop: watch::Receiver<bool>) {
    loop {
        let ended = tokio::select! {
            // Nothing is half done between two writes: what was not bound is found again at the next start.
            _ = stop.wait_for(|stop| *stop) => return,
            ended = follow(&*store, &events) => ended,
        };
        match ended {
            Ok(()) => return,
            Err(Ended::Store(StoreError::Gone { .. })) => {}
            Err(error) => {
                tracing::warn!(%error, "placement: the store failed; trying again");
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(crate::RETRY) => {}
                }
            }
        }
    }
}

/// What ended a watch, or kept a binding from being written.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Api(#[from] api::ApiError),
}

/// Lists, then follows the store. Ends when the store does.
async fn follow(store: &dyn Store, events: &Recorder) -> Result<(), Ended> {
    let mut state = State::default();
    let mut watches = Vec::with_capacity(RESOURCES.len());
    for resource in RESOURCES {
        let (objects, revision) = store.list_all(&Scope::all(resource)).await?;
        watches.push(store.watch(Scope::all(resource), Some(revision))?);
        for object in &objects {
            state.put(object);
        }
    }
    loop {
        state.place_all(store, events).await?;
        let mut changed = false;
        while !changed {
            // Waiting for an event can be cancelled without losing one.
            let next = watches.iter_mut().map(|watch| Box::pin(watch.next()));
            let (event, _, others) = select_all(next).await;
            drop(others);
            let Some(event) = event else { return Ok(()) };
            changed = state.take(&event?);
            for watch in &mut watches {
                changed |= state.drain(watch);
            }
        }
    }
}

impl State {
    fn drain(&mut self, events: &mut Watch) -> bool {
        let mut changed = false;
        while let Some(event) = events.try_next() {
            changed |= self.take(&event);
        }
        changed
    }

    /// Whether a Pod might be placed now that could not be before.
    fn take(&mut self, event: &Event) -> bool {
        match event.kind {
            EventKind::Deleted if self.volumes.take(&event.object, true) => true,
            EventKind::Deleted => self.remove(&event.object),
            EventKind::Added | EventKind::Modified => self.put(&event.object),
        }
    }

    fn put(&mut self, object: &Arc<Object>) -> bool {
        if self.volumes.take(object, false) {
            return true;
        }
        if object.key.resource == "namespaces" {
            let labels = strings(&object.value["metadata"]["labels"]);
            self.neighbours.namespace(&object.key.name, Some(labels));
            return true;
        }
        if object.key.resource == "nodes" {
            let mut node = Node::of(&object.value);
            let before = self.nodes.remove(&object.key.name);
            // Counted before each placement, and no change of the node's own.
            node.volumes = before.as_ref().map_or(0, |it| it.volumes);
            let changed = before.as_ref() != Some(&node);
            self.nodes.insert(object.key.name.clone(), node);
            return changed;
        }
        let before = self.bound.get(&object.key).map(|(_, amount)| amount.clone());
        let freed = self.free(object);
        let node = object.value["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            self.neighbours.remove(&object.key);
            if !is_ours(&object.value) {
                return freed;
            }
            self.waiting.insert(place_in_line(object), object.clone());
            return true;
        }
        let amount = taken(&object.value);
        let ended = amount == Amount::default();
        self.bind(&object.key, node, amount.clone());
        let moved = if ended {
            self.neighbours.remove(&object.key);
            false
        } else {
            self.neighbours.put(&object.key, node, &object.value)
        };
        let claims = !ended && !api::claims_of(&object.value).is_empty();
        if claims {
            self.unbound.insert(object.key.clone(), object.clone());
        }
        // Its containers may have been given less.
        let resized = before.is_some_and(|before| before != amount);
        (freed && ended) || resized || claims || moved
    }

    /// Whether room was freed.
    fn remove(&mut self, object: &Object) -> bool {
        if object.key.resource == "namespaces" {
            self.neighbours.namespace(&object.key.name, None);
            return false;
        }
        if object.key.resource == "nodes" {
            self.nodes.remove(&object.key.name);
            return false;
        }
        self.neighbours.remove(&object.key);
        self.free(object)
    }

    /// Forgets what the Pod takes; whether it took anything.
    fn free(&mut self, object: &Object) -> bool {
        self.waiting.remove(&place_in_line(object));
        self.unbound.remove(&object.key);
        let Some((node, amount)) = self.bound.remove(&object.key) else {
            return false;
        };
        if let Some(used) = self.used.get_mut(&node) {
            *used = used.minus(&amount);
        }
        true
    }

    fn bind(&mut self, key: &Key, node: &str, amount: Amount) {
        let used = self.used.entry(node.to_owned()).or_default();
        *used = used.plus(&amount);
        self.bound.insert(key.clone(), (node.to_owned(), amount));
    }

    async fn place_all(&mut self, store: &dyn Store, events: &Recorder) -> ApiResult<()> {
        self.volumes.count(&mut self.nodes);
        // One that waits for another's company is older than it, as likely as not.
        while self.place_waiting(store, events).await? {}
        let placed: Vec<_> = self.unbound.values().cloned().collect();
        for pod in placed.iter().filter(|pod| self.volumes.unbound(&pod.value)) {
            let node = pod.value["spec"]["nodeName"].as_str().unwrap_or_default();
            self.bind_claims(store, events, pod, node).await?;
        }
        Ok(())
    }

    /// Tries each once; whether one might fit now for the sake of another that was placed.
    async fn place_waiting(&mut self, store: &dyn Store, events: &Recorder) -> ApiResult<bool> {
        let waiting: Vec<_> = self.waiting.values().cloned().collect();
        let (mut placed, mut await_others) = (false, false);
        for pod in waiting {
            let needs = Needs::of(&pod.value);
            let awaits_others = needs.wants.awaits_others();
            let node = match self.volumes.needs(&pod.value) {
                Ok(volumes) => place(&needs.with(volumes), &self.nodes, &self.used, &self.neighbours),
                Err(why) => Err(unplaceable(self.nodes.len(), &why)),
            };
            match node {
                Ok(node) => {
                    // The volumes first: a Pod that is bound to a node finds them there.
                    if self.bind_claims(store, events, &pod, &node).await?
                        && bind(store, events, &pod, &node).await?
                    {
                        self.waiting.remove(&place_in_line(&pod));
                        self.bind(&pod.key, &node, taken(&pod.value));
                        self.neighbours.put(&pod.key, &node, &pod.value);
                        placed = true;
                    }
                }
                Err(why) => {
                    await_others |= awaits_others;
                    report(store, events, &pod, &why).await?;
                }
            }
        }
        Ok(placed && await_others)
    }

    /// Binds the Pod's claims to volumes of the node; `false` when one changed meanwhile, whose event then brings the
    /// Pod back.
    async fn bind_claims(
        &self,
        store: &dyn Store,
        events: &Recorder,
        pod: &Object,
        node: &str,
    ) -> ApiResult<bool> {
        for key in api::claims_of(&pod.value) {
            match api::bind_claim(store, &key, node).await {
                Ok(None) => {}
                Ok(Some(volume)) => {
                    if let Some(claim) = self.volumes.claim(&key) {
                        let message = format!("Successfully provisioned volume {volume}");
                        events.tell(claim, happening(false, "ProvisioningSucceeded", message));
                    }
                }
                Err(error) if matches!(error.code, 404 | 409) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn place_in_line(pod: &Object) -> (String, Key) {
    let created = pod.value["metadata"]["creationTimestamp"]
        .as_str()
        .unwrap_or_default();
    (created.to_owned(), pod.key.clone())
}

/// Whether the Pod waits for this scheduler.
fn is_ours(pod: &Value) -> bool {
    let spec = &pod["spec"];
    let gated = spec["schedulingGates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty());
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let scheduler = spec["schedulerName"].as_str().unwrap_or(SCHEDULER);
    let deleted = pod["metadata"]
        .get("deletionTimestamp")
        .is_some_and(|it| !it.is_null());
    scheduler == SCHEDULER && !gated && !ended && !deleted
}

/// Writes the binding; `false` when the Pod changed meanwhile, whose event then brings it back.
async fn bind(store: &dyn Store, events: &Recorder, pod: &Arc<Object>, node: &str) -> ApiResult<bool> {
    if !done(api::bind(store, &pod.key, &Seen::exactly(pod), node).await)? {
        return Ok(false);
    }
    let message = format!(
        "Successfully assigned {}/{} to {node}",
        pod.key.namespace, pod.key.name
    );
    events.tell(pod, happening(false, "Scheduled", message));
    Ok(true)
}

/// Says why a Pod is not placed, once for each reason.
async fn report(store: &dyn Store, events: &Recorder, pod: &Arc<Object>, why: &str) -> ApiResult<()> {
    let conditions = pod.value["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    if conditions.any(|it| it["type"] == "PodScheduled" && it["message"] == why) {
        return Ok(());
    }
    if done(api::mark_unschedulable(store, &pod.key, &Seen::exactly(pod), why).await)? {
        events.tell(pod, happening(true, "FailedScheduling", why.to_owned()));
    }
    Ok(())
}

fn happening(warning: bool, reason: &str, message: String) -> Happening {
    Happening {
        warning,
        reason: reason.to_owned(),
        message,
        component: SCHEDULER,
        ..Happening::default()
    }
}

fn done(result: ApiResult<Arc<Object>>) -> ApiResult<bool> {
    match result {
        Ok(_) => Ok(true),
        // Somebody else was faster: it is bound, changed or gone.
        Err(error) if matches!(error.code, 404 | 409) => Ok(false),
        Err(error) => Err(error),
    }
}
