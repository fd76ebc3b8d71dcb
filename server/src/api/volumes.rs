//! How claims get their volumes, and how both end.
//!
//! ```text
//!   claim   Pending ──placement binds a Pod that uses it──▶ Bound ──its volume is gone──▶ Lost
//!   volume  Available ──bound──▶ Bound ──its claim is gone──▶ Released (Retain), or Terminating (Delete)
//!           Terminating ──its node has heard that the files are to go, or there is no such node──▶ gone
//! ```
//!
//! What always holds: a claim is bound once and for good; a volume is bound to one claim by its uid; a claim that a
//! Pod on a node uses and a volume that is bound stay, Terminating, until they are let go. Whatever was begun is found
//! again in the store after the next start: every step looks at what is stored, not at what an event said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::kinds::volume::{
    CLAIM_PROTECTION, CLASS, PROVISIONER, VOLUME_PROTECTION, built_in, node_of, quantity,
};
use super::resources::{claims, classes, nodes, pods, volumes};
use super::status::{ApiError, ApiResult};
use super::{DeleteOptions, Happening, delete, metadata, record_event};
use crate::store::{
    CreateGuard, DeleteGuard, Event, EventKind, Key, Object, Scope, Store, StoreError, StoreExt, UpdateError,
    Watch,
};

/// Where a claim says which node it was bound for.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Who is to make its volume.
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Who made a volume.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Makes the class that every server has.
pub(crate) async fn make_class(store: &dyn Store) -> Result<(), StoreError> {
    let key = classes().key("", CLASS);
    match store.create(&key, built_in(), CreateGuard::default()).await {
        Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The claims that a Pod uses, in its own namespace.
pub(crate) fn claims_of(pod: &Value) -> Vec<Key> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let names = volumes.filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
    names
        .map(|name| claims().key(metadata::text(pod, "namespace"), name))
        .collect()
}

/// The volume that a claim is bound to; empty while there is none.
pub(crate) fn volume_of(claim: &Value) -> &str {
    claim["spec"]["volumeName"].as_str().unwrap_or_default()
}

/// The claim that holds a volume, if one does, and its uid, empty for one that was only named.
pub(crate) fn holder(volume: &Value) -> Option<(Key, &str)> {
    let reference = &volume["spec"]["claimRef"];
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    (!text("name").is_empty()).then(|| (claims().key(text("namespace"), text("name")), text("uid")))
}

/// Whether the node is to remove the volume's files: it is being deleted, its policy says so, and no claim holds it.
pub(crate) fn drops(volume: &Value) -> bool {
    metadata::is_deleting(volume)
        && volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        && volume["status"]["phase"] != "Bound"
}

/// The volume's node will remove the files, whatever happens: the object may go.
pub(crate) async fn volume_dropped(store: &dyn Store, key: &Key) -> Result<(), StoreError> {
    match store.get(key).await? {
        Some(volume) if drops(&volume.value) => let_go(store, &volume, VOLUME_PROTECTION).await,
        _ => Ok(()),
    }
}

/// Whether a claim may be bound to this volume.
pub(crate) fn fits(volume: &Value, claim: &Value) -> bool {
    let own = claims().key(metadata::text(claim, "namespace"), metadata::text(claim, "name"));
    let free = holder(volume)
        .is_none_or(|(key, uid)| key == own && (uid.is_empty() || uid == metadata::text(claim, "uid")));
    let spec = &claim["spec"];
    let asked = quantity(&spec["resources"]["requests"]["storage"]);
    let class = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let modes = volume["spec"]["accessModes"].as_array();
    let mut wanted = spec["accessModes"].as_array().into_iter().flatten();
    free && !metadata::is_deleting(volume)
        && (volume_of(claim).is_empty() || volume_of(claim) == metadata::text(volume, "name"))
        && class(&volume["spec"]["storageClassName"]) == class(&spec["storageClassName"])
        && quantity(&volume["spec"]["capacity"]["storage"]) >= asked
        && wanted.all(|mode| modes.is_some_and(|modes| modes.contains(mode)))
}

/// Binds a claim to a volume of the node: one that is there and fits, or a new one. A claim that is bound stays as
/// it is. Gives the name of the volume that was made.
pub(crate) async fn bind_claim(store: &dyn Store, key: &Key, node: &str) -> ApiResult<Option<String>> {
    let claim = get(store, key).await?;
    let claim = claim.ok_or_else(|| ApiError::not_found(claims(), &key.name))?;
    if metadata::is_deleting(&claim.value) {
        let why = format!("persistentvolumeclaim {:?} is being deleted", key.name);
        return Err(ApiError::conflict_because(claims(), &key.name, &why));
    }
    if claim.value["status"]["phase"] == "Bound" {
        return Ok(None);
    }
    let (all, _) = store
        .list_all(&Scope::all("persistentvolumes"))
        .await
        .map_err(|error| ApiError::of_store(error, volumes(), ""))?;
    let here = all
        .iter()
        .filter(|volume| node_of(&volume.value) == Some(node) && fits(&volume.value, &claim.value));
    // One that names the claim is its own; of the others the smallest, so that large ones stay for large claims.
    let best = here.min_by_key(|it| {
        (
            holder(&it.value).is_none(),
            quantity(&it.value["spec"]["capacity"]["storage"]),
        )
    });
    if let Some(volume) = best {
        bind_to(store, &claim, &volume.key, node).await?;
        return Ok(None);
    }
    // Who names a volume wants that one.
    let named = volume_of(&claim.value);
    if !named.is_empty() {
        let why = format!(
            "persistentvolume {named:?} is another claim's, does not fit, or is not of node {node:?}"
        );
        return Err(ApiError::conflict_because(claims(), &key.name, &why));
    }
    let volume = provision(store, &claim, node).await?;
    bind_to(store, &claim, &volume, node).await?;
    Ok(Some(volume.name))
}

async fn provision(store: &dyn Store, claim: &Object, node: &str) -> ApiResult<Key> {
    let class = claim.value["spec"]["storageClassName"]
        .as_str()
        .unwrap_or_default();
    let found = get(store, &classes().key("", class)).await?;
    let Some(class) = found.filter(|it| it.value["provisioner"] == PROVISIONER) else {
        let why = format!(
            "no StorageClass {class:?} makes volumes for claim {:?}",
            claim.key.name
        );
        return Err(ApiError::conflict_because(claims(), &claim.key.name, &why));
    };
    let name = format!("pvc-{}", claim.uid);
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name, "annotations": { PROVISIONED_BY: PROVISIONER }, "finalizers": [VOLUME_PROTECTION],
        },
        "spec": {
            "accessModes": claim.value["spec"]["accessModes"],
            "capacity": { "storage": claim.value["spec"]["resources"]["requests"]["storage"] },
            "claimRef": reference(claim),
            "csi": { "driver": PROVISIONER, "volumeHandle": name },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] },
            ] }] } },
            "persistentVolumeReclaimPolicy": class.value["reclaimPolicy"].as_str().unwrap_or("Delete"),
            "storageClassName": class.key.name,
            "volumeMode": "Filesystem",
        },
        "status": { "phase": "Bound" },
    });
    let key = volumes().key("", &name);
    let created = store.create(&key, volume, CreateGuard::default()).await;
    created.map_err(|error| ApiError::of_store(error, volumes(), &name))?;
    Ok(key)
}

fn reference(claim: &Object) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.key.namespace,
        "name": claim.key.name, "uid": claim.uid, "resourceVersion": claim.revision.to_string(),
    })
}

/// First the volume, then the claim: a claim that says Bound has its volume.
async fn bind_to(store: &dyn Store, claim: &Object, volume: &Key, node: &str) -> ApiResult<()> {
    let held = store.update(volume, |value| {
        if !fits(value, &claim.value) {
            return Err(ApiError::conflict(volumes(), &volume.name));
        }
        if holder(value).is_none_or(|(_, uid)| uid.is_empty()) {
            value["spec"]["claimRef"] = reference(claim);
        }
        status(value)["phase"] = "Bound".into();
        Ok(())
    });
    let held = held
        .await
        .map_err(|error| ApiError::of_update(error, volumes(), &volume.name))?;
    let bound = store.update(&claim.key, |value| {
        let same = metadata::text(value, "uid") == claim.uid && !metadata::is_deleting(value);
        if !same || !(volume_of(value).is_empty() || volume_of(value) == volume.name) {
            return Err(ApiError::conflict(claims(), &claim.key.name));
        }
        let annotations = &mut value["metadata"]["annotations"];
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[SELECTED_NODE] = node.into();
        annotations[STORAGE_PROVISIONER] = PROVISIONER.into();
        annotations["pv.kubernetes.io/bind-completed"] = "yes".into();
        annotations["pv.kubernetes.io/bound-by-controller"] = "yes".into();
        value["spec"]["volumeName"] = volume.name.clone().into();
        value["status"] = json!({
            "phase": "Bound",
            "accessModes": held.value["spec"]["accessModes"],
            "capacity": held.value["spec"]["capacity"],
        });
        Ok(())
    });
    bound
        .await
        .map_err(|error| ApiError::of_update(error, claims(), &claim.key.name))?;
    Ok(())
}

/// The status of an object, which clients may have written anything into.
fn status(value: &mut Value) -> &mut Value {
    let status = &mut value["status"];
    if !status.is_object() {
        *status = json!({});
    }
    status
}

async fn get(store: &dyn Store, key: &Key) -> ApiResult<Option<Arc<Object>>> {
    let found = store.get(key).await;
    found.map_err(|error| ApiError::of_store(error, claims(), &key.name))
}

/// Runs until the store is closed.
pub(super) async fn run(store: &dyn Store) {
    loop {
        match follow(store).await {
            Ok(()) | Err(Ended::Store(StoreError::Closed)) => return,
            Err(Ended::Store(StoreError::Gone { .. })) => {}
            Err(error) => {
                tracing::warn!(%error, "the volumes cannot be looked after; trying again");
                tokio::time::sleep(crate::RETRY).await;
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// What must be looked at again, and what that is found by.
#[derive(Default)]
struct State {
    /// Claims that wait for their Pods to end.
    ending: BTreeSet<Key>,
    /// The claims of the volumes, by the volume's name.
    held: BTreeMap<String, Option<Key>>,
    claims: BTreeSet<Key>,
    volumes: BTreeSet<String>,
}

async fn follow(store: &dyn Store) -> Result<(), Ended> {
    let mut state = State::default();
    let mut watches = Vec::new();
    // Pods first: they only say when to look.
    for resource in [pods(), nodes(), claims(), volumes()] {
        let scope = Scope::all(&resource.qualified());
        let (objects, revision) = store.list_all(&scope).await?;
        watches.push(store.watch(scope, Some(revision))?);
        objects.iter().for_each(|object| state.put(object, false));
    }
    let mut watches: [Watch; 4] = watches.try_into().map_err(|_| StoreError::Closed)?;
    loop {
        while let Some(key) = state.claims.pop_first() {
            look_at_claim(store, &key).await?;
        }
        while let Some(name) = state.volumes.pop_first() {
            look_at_volume(store, &volumes().key("", &name)).await?;
        }
        let [pods, nodes, claims, volumes] = &mut watches;
        let event = tokio::select! {
            // Waiting for an event can be cancelled without losing one.
            event = pods.next() => event,
            event = nodes.next() => event,
            event = claims.next() => event,
            event = volumes.next() => event,
        };
        let Some(event) = event else { return Ok(()) };
        let event = event?;
        state.take(&event);
        if event.kind == EventKind::Added {
            tell_of_waiting(store, &event.object).await;
        }
    }
}

impl State {
    fn take(&mut self, event: &Event) {
        self.put(&event.object, event.kind == EventKind::Deleted);
    }

    fn put(&mut self, object: &Object, gone: bool) {
        let value = &object.value;
        match object.key.resource.as_str() {
            "pods" => {
                let over = gone || matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
                if over && !self.ending.is_empty() {
                    let freed = claims_of(value);
                    self.claims
                        .extend(freed.into_iter().filter(|key| self.ending.contains(key)));
                }
            }
            "nodes" => {
                // What waits for the node to hear of it waits in vain.
                if gone {
                    self.volumes.extend(self.held.keys().cloned());
                }
            }
            "persistentvolumeclaims" => {
                if gone {
                    self.ending.remove(&object.key);
                    let its = self
                        .held
                        .iter()
                        .filter(|(_, key)| key.as_ref() == Some(&object.key));
                    self.volumes.extend(its.map(|(name, _)| name.clone()));
                } else {
                    if metadata::is_deleting(value) {
                        self.ending.insert(object.key.clone());
                    }
                    self.claims.insert(object.key.clone());
                    self.volumes
                        .extend(Some(volume_of(value).to_owned()).filter(|it| !it.is_empty()));
                }
            }
            _ => {
                let claim = holder(value).map(|(key, _)| key);
                self.claims.extend(claim.clone());
                if gone {
                    self.held.remove(&object.key.name);
                } else {
                    self.held.insert(object.key.name.clone(), claim);
                    self.volumes.insert(object.key.name.clone());
                }
            }
        }
    }
}

async fn look_at_claim(store: &dyn Store, key: &Key) -> Result<(), Ended> {
    let Some(claim) = store.get(key).await? else {
        return Ok(());
    };
    if metadata::is_deleting(&claim.value) {
        if !in_use(store, key).await? {
            let_go(store, &claim, CLAIM_PROTECTION).await?;
        }
        return Ok(());
    }
    let name = volume_of(&claim.value);
    if name.is_empty() {
        return Ok(());
    }
    let volume = volumes().key("", name);
    let phase = claim.value["status"]["phase"].as_str().unwrap_or_default();
    match store.get(&volume).await? {
        None if phase == "Bound" => {
            set(store, key, |claim| status(claim)["phase"] = "Lost".into()).await?;
        }
        None => {}
        Some(found) if phase == "Pending" => {
            // The claim names its volume: nobody has to place a Pod first.
            if let Some(node) = node_of(&found.value).filter(|_| fits(&found.value, &claim.value)) {
                match bind_to(store, &claim, &volume, node).await {
                    Err(error) if !matches!(error.code, 404 | 409) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Some(found) => grow(store, &claim, &found).await?,
    }
    Ok(())
}

/// A directory has no size of its own: it grows by saying so.
async fn grow(store: &dyn Store, claim: &Object, volume: &Object) -> Result<(), Ended> {
    let asked = &claim.value["spec"]["resources"]["requests"]["storage"];
    let own = holder(&volume.value).is_some_and(|(_, uid)| uid == claim.uid);
    if own && quantity(asked) > quantity(&volume.value["spec"]["capacity"]["storage"]) {
        set(store, &volume.key, |value| {
            value["spec"]["capacity"]["storage"] = asked.clone();
        })
        .await?;
        set(store, &claim.key, |value| {
            status(value)["capacity"] = json!({ "storage": asked });
        })
        .await?;
    }
    Ok(())
}

async fn look_at_volume(store: &dyn Store, key: &Key) -> Result<(), Ended> {
    let Some(volume) = store.get(key).await? else {
        return Ok(());
    };
    let value = &volume.value;
    let phase = match holder(value) {
        None => "Available",
        // Named beforehand, and not bound yet.
        Some((_, "")) => "Available",
        Some((claim, uid)) => match store.get(&claim).await? {
            Some(claim) if claim.uid == uid => "Bound",
            _ => "Released",
        },
    };
    if phase == "Released"
        && value["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
        && !metadata::is_deleting(value)
    {
        // This very version: one who changes the policy meanwhile is heard.
        let options = DeleteOptions {
            revision: Some(volume.revision),
            ..DeleteOptions::default()
        };
        match delete(store, volumes(), key, &options).await {
            // The event of its mark brings it back here, to be let go.
            Ok(_) => return Ok(()),
            Err(error) if matches!(error.code, 404 | 409) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    if value["status"]["phase"] != phase {
        set(store, key, |value| status(value)["phase"] = phase.into()).await?;
    }
    if metadata::is_deleting(value) && phase != "Bound" {
        let files_stay = value["spec"]["persistentVolumeReclaimPolicy"] != "Delete";
        let node = node_of(value).map(|node| nodes().key("", node));
        let is_there = match node {
            Some(node) => store.get(&node).await?.is_some(),
            None => false,
        };
        // Otherwise the node hears of it first: `volume_dropped`.
        if files_stay || !is_there {
            let_go(store, &volume, VOLUME_PROTECTION).await?;
        }
    }
    Ok(())
}

/// Whether a Pod that a node runs, or is to run, uses the claim. A Pod without a node does not get one any more.
async fn in_use(store: &dyn Store, claim: &Key) -> Result<bool, StoreError> {
    let scope = Scope::namespace(&pods().qualified(), &claim.namespace);
    let (all, _) = store.list_all(&scope).await?;
    Ok(all.iter().any(|pod| {
        let placed = pod.value["spec"]["nodeName"]
            .as_str()
            .is_some_and(|node| !node.is_empty());
        let over = matches!(
            pod.value["status"]["phase"].as_str(),
            Some("Succeeded" | "Failed")
        );
        placed && !over && claims_of(&pod.value).contains(claim)
    }))
}

/// Takes a finalizer away, and the object with the last of them.
async fn let_go(store: &dyn Store, object: &Object, finalizer: &str) -> Result<(), StoreError> {
    let Some(current) = store.get(&object.key).await? else {
        return Ok(());
    };
    let mut value = current.value.clone();
    if let Some(held) = value["metadata"]["finalizers"].as_array_mut() {
        held.retain(|it| it != finalizer);
    }
    let done = if metadata::has_finalizers(&value) {
        store.replace(&current.key, current.revision, value).await
    } else {
        let guard = DeleteGuard {
            revision: Some(current.revision),
            ..DeleteGuard::default()
        };
        store.delete(&current.key, guard).await
    };
    match done {
        // Whoever was faster has caused an event, which brings it back here.
        Ok(_) | Err(StoreError::Conflict(_) | StoreError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn set(
    store: &dyn Store,
    key: &Key,
    change: impl Fn(&mut Value) + Send + Sync,
) -> Result<(), StoreError> {
    let done = store
        .update::<_, std::convert::Infallible>(key, |value| {
            change(value);
            Ok(())
        })
        .await;
    match done {
        Ok(_) | Err(UpdateError::Store(StoreError::NotFound(_))) => Ok(()),
        Err(UpdateError::Store(error)) => Err(error),
        Err(UpdateError::Refused(never)) => match never {},
    }
}

/// As `kubectl describe pvc` explains why nothing happens yet.
async fn tell_of_waiting(store: &dyn Store, object: &Object) {
    if object.key.resource != "persistentvolumeclaims" || !volume_of(&object.value).is_empty() {
        return;
    }
    let what = Happening {
        kind: "Normal",
        reason: "WaitForFirstConsumer",
        message: "waiting for first consumer to be created before binding",
        component: "persistentvolume-controller",
        host: "",
        field_path: "",
    };
    if let Err(error) = record_event(store, &object.value, what).await {
        tracing::debug!(claim = %object.key, %error, "an event was lost");
    }
}
