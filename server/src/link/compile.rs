//! From stored objects to what each node shall have.
//!
//! Pure: [`World`] is fed with the store's objects and answers which nodes a change concerns and what a node's desired
//! state is now.
//!
//! What always holds: an object is compiled once per version, and a change of a Pod's status alone compiles nothing; a Pod
//! that cannot be compiled is in no node's desired state and is named as refused; the desired state of a node is
//! within the protocol's bounds, but for Pods that have ended until they are marked as left; a Pod that a node was told of
//! goes before those that it was not, and of these earlier ones before later ones; a Pod that has ended takes no place from one that has not, and once it has left its node it never
//! comes back, where it would run again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::Index;
use skiff_protocol::wire::spec::{ConfigData, Object as Wire, ObjectKey, PersistentVolume};
use skiff_protocol::{Digest, limits as bounds, sha256};

use super::limits;
use crate::api::{drops, holder, mirrored, node_of, node_uid, quantity};
use crate::store::{Key, Object};

/// An object as it travels.
#[derive(Debug, PartialEq)]
pub(crate) struct Compiled {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
}

/// Why a Pod runs nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `status.reason`.
    pub(crate) reason: &'static str,
    /// `status.message`.
    pub(crate) message: String,
}

/// A ConfigMap (`false`) or Secret (`true`), by namespace and name.
type ConfigKey = (bool, String, String);

#[derive(Debug)]
struct PodEntry {
    object: Arc<Object>,
    uid: Option<Uid>,
    node: String,
    wanted: bool,
    /// It has ended for good: its node keeps its logs, and nothing else waits for it.
    ended: bool,
    /// The node has told of it.
    accepted: bool,
    compiled: Result<Arc<Compiled>, Refusal>,
    reads: BTreeSet<ConfigKey>,
}

/// What a node shall have.
#[derive(Debug, Default)]
pub(crate) struct NodeState {
    pub(crate) index: Index,
    pub(crate) objects: BTreeMap<ObjectKey, Arc<Compiled>>,
    /// Pods bound to the node that it shall not have.
    pub(crate) refused: Vec<(Arc<Object>, Refusal)>,
    /// The oldest of the Pods that have ended, for which there is no place any more. Each stays in the desired state
    /// until it is marked with [`super::status::leave`].
    pub(crate) surplus: Vec<Arc<Object>>,
}

/// A PersistentVolume.
#[derive(Debug)]
struct VolumeEntry {
    /// The node that keeps it.
    node: String,
    compiled: Arc<Compiled>,
    /// A claim has it.
    claimed: bool,
    /// Its files are to go.
    drop: bool,
}

/// All that desired states are made of.
#[derive(Debug, Default)]
pub(crate) struct World {
    pods: BTreeMap<Key, PodEntry>,
    of_node: BTreeMap<String, BTreeSet<Key>>,
    of_uid: BTreeMap<Uid, Key>,
    configs: BTreeMap<ConfigKey, Arc<Compiled>>,
    readers: BTreeMap<ConfigKey, BTreeSet<Key>>,
    /// By name.
    volumes: BTreeMap<String, VolumeEntry>,
}

impl World {
    /// Takes a new version of an object; gives the nodes whose desired state may differ now.
    pub(crate) fn put(&mut self, object: &Arc<Object>) -> BTreeSet<String> {
        match object.key.resource.as_str() {
            "pods" => self.put_pod(object),
            "configmaps" => self.put_config(false, object),
            "secrets" => self.put_config(true, object),
            "persistentvolumes" => self.put_volume(object),
            _ => BTreeSet::new(),
        }
    }

    /// Forgets an object; gives the nodes whose desired state may differ now.
    pub(crate) fn remove(&mut self, key: &Key) -> BTreeSet<String> {
        let secret = match key.resource.as_str() {
            "pods" => {
                let node = self.forget_pod(key).map(|entry| entry.node);
                return node.into_iter().filter(|node| !node.is_empty()).collect();
            }
            "configmaps" => false,
            "secrets" => true,
            "persistentvolumes" => {
                let gone = self.volumes.remove(&key.name);
                return gone.into_iter().map(|it| it.node).collect();
            }
            _ => return BTreeSet::new(),
        };
        let key = (secret, key.namespace.clone(), key.name.clone());
        match self.configs.remove(&key) {
            Some(_) => self.nodes_that_read(&key),
            None => BTreeSet::new(),
        }
    }

    /// The keys of all objects of a resource.
    pub(crate) fn keys(&self, resource: &str) -> Vec<Key> {
        match resource {
            "pods" => self.pods.keys().cloned().collect(),
            "persistentvolumes" => {
                let names = self.volumes.keys();
                names.map(|name| Key::cluster(resource, name)).collect()
            }
            _ => {
                let secret = resource == "secrets";
                let ours = self.configs.keys().filter(|key| key.0 == secret);
                ours.map(|(_, namespace, name)| Key::new(resource, namespace, name))
                    .collect()
            }
        }
    }

    /// The Pod of this uid, if it is bound to this node.
    pub(crate) fn pod_on(&self, node: &str, uid: &Uid) -> Option<&Arc<Object>> {
        let entry = self.pods.get(self.of_uid.get(uid)?)?;
        (entry.node == node).then_some(&entry.object)
    }

    /// Whether a Pod of this uid exists on any node.
    pub(crate) fn knows(&self, uid: &Uid) -> bool {
        self.of_uid.contains_key(uid)
    }

    /// The Pods bound to the node.
    pub(crate) fn pods_of(&self, node: &str) -> impl Iterator<Item = &Arc<Object>> {
        let keys = self.of_node.get(node).into_iter().flatten();
        keys.filter_map(|key| self.pods.get(key))
            .map(|entry| &entry.object)
    }

    /// The mirrors of the node's static Pods.
    pub(crate) fn mirrors_on(&self, node: &str) -> impl Iterator<Item = (Uid, &Arc<Object>)> {
        self.pods_of(node)
            .filter_map(|pod| Some((mirrored(&pod.value)?, pod)))
    }

    /// The volumes of the node whose files are to go.
    pub(crate) fn dropping_on(&self, node: &str) -> Vec<Key> {
        let volumes = self.volumes.iter().filter(|(_, it)| it.drop && it.node == node);
        let volumes = volumes.map(|(name, _)| Key::cluster("persistentvolumes", name));
        volumes.collect()
    }

    /// What the node shall have; `announced` is what it was told last.
    pub(crate) fn desired(&self, node: &str, announced: Option<&Index>) -> NodeState {
        let mut state = NodeState::default();
        // First: what a node does not know of it cannot mount, nor remove. Placement makes no more than the bound; of those
        // that were made by hand nobody uses the ones that nobody claims.
        let volumes = self.volumes.iter().filter(|(_, it)| it.node == node);
        let mut volumes: Vec<_> = volumes.collect();
        volumes.sort_by_key(|(name, it)| (!it.claimed, *name));
        volumes.truncate(bounds::PERSISTENT_VOLUMES);
        let volumes = volumes
            .into_iter()
            .map(|(name, it)| (ObjectKey::Volume(name.clone()), it.compiled.clone()));
        state.objects.extend(volumes);
        let entries = self.of_node.get(node).into_iter().flatten();
        let entries = entries.filter_map(|key| self.pods.get(key));
        let (mut ended, mut entries): (Vec<&PodEntry>, Vec<_>) = entries
            .filter(|entry| entry.wanted)
            .partition(|entry| entry.ended);
        let told = |entry: &PodEntry| {
            let key = entry.uid.map(ObjectKey::Pod);
            entry.accepted || key.is_some_and(|key| announced.is_some_and(|index| index.0.contains_key(&key)))
        };
        // A Pod that is bound late may be older than one that runs, and must not push it out.
        entries.sort_by_key(|entry| (!told(entry), created(&entry.object), entry.uid));
        let mut pods = 0;
        for entry in entries {
            match self.admit(entry, pods, &state) {
                Ok(added) => {
                    pods += 1;
                    state.objects.extend(added);
                }
                Err(refusal) => state.refused.push((entry.object.clone(), refusal)),
            }
        }
        // The newest first, so that it is the oldest for which there is no place.
        ended.sort_by_key(|entry| Reverse((created(&entry.object), entry.uid)));
        for entry in ended {
            let added = self.admit(entry, 0, &state);
            if pods >= bounds::PODS || added.is_err() {
                state.surplus.push(entry.object.clone());
            }
            pods += 1;
            state.objects.extend(added.into_iter().flatten());
        }
        let index = state.objects.iter().map(|(key, it)| (key.clone(), it.digest));
        state.index = Index(index.collect());
        state
    }

    fn admit(
        &self,
        entry: &PodEntry,
        pods: usize,
        state: &NodeState,
    ) -> Result<Vec<(ObjectKey, Arc<Compiled>)>, Refusal> {
        let compiled = entry.compiled.clone()?;
        let Some(uid) = entry.uid else {
            return Err(Refusal {
                reason: "InvalidPod",
                message: "metadata.uid is not a UUID".into(),
            });
        };
        if pods >= bounds::PODS {
            let message = format!(
                "Node didn't have enough resource: pods, the bound is {}",
                bounds::PODS
            );
            return Err(Refusal {
                reason: "OutOfpods",
                message,
            });
        }
        let mut added = vec![(ObjectKey::Pod(uid), compiled)];
        for read in &entry.reads {
            let key = object_key(read);
            if let Some(config) = self.configs.get(read)
                && !state.objects.contains_key(&key)
            {
                added.push((key, config.clone()));
            }
        }
        if state.objects.len() + added.len() > bounds::OBJECTS {
            let message = format!(
                "the node's Pods would read more than {} ConfigMaps and Secrets together",
                bounds::OBJECTS
            );
            return Err(Refusal {
                reason: "OutOfObjects",
                message,
            });
        }
        Ok(added)
    }

    fn put_pod(&mut self, object: &Arc<Object>) -> BTreeSet<String> {
        let node = node_name(&object.value).to_owned();
        // What the node has from its own directory it is not sent.
        let wanted = wanted(&object.value) && mirrored(&object.value).is_none();
        let before = self.forget_pod(&object.key);
        let unchanged = before
            .as_ref()
            .is_some_and(|before| same_meaning(&before.object, object));
        let mut dirty = BTreeSet::new();
        let (compiled, reads) = match before {
            Some(before) => {
                if !(unchanged && before.wanted == wanted) {
                    dirty.extend([before.node, node.clone()]);
                }
                if unchanged {
                    (before.compiled, before.reads)
                } else {
                    compile_pod(object)
                }
            }
            None => {
                dirty.insert(node.clone());
                compile_pod(object)
            }
        };
        dirty.remove("");
        let uid = node_uid(object);
        if let Some(uid) = uid {
            self.of_uid.insert(uid, object.key.clone());
        }
        if !node.is_empty() {
            self.of_node
                .entry(node.clone())
                .or_default()
                .insert(object.key.clone());
        }
        for read in &reads {
            self.readers
                .entry(read.clone())
                .or_default()
                .insert(object.key.clone());
        }
        let entry = PodEntry {
            object: object.clone(),
            uid,
            node,
            wanted,
            ended: has_ended(&object.value),
            accepted: !text(&object.value, "/status/startTime").is_empty(),
            compiled,
            reads,
        };
        self.pods.insert(object.key.clone(), entry);
        dirty
    }

    fn forget_pod(&mut self, key: &Key) -> Option<PodEntry> {
        let entry = self.pods.remove(key)?;
        if let Some(uid) = &entry.uid {
            self.of_uid.remove(uid);
        }
        discard(&mut self.of_node, &entry.node, key);
        for read in &entry.reads {
            discard(&mut self.readers, read, key);
        }
        Some(entry)
    }

    fn put_config(&mut self, secret: bool, object: &Arc<Object>) -> BTreeSet<String> {
        let key = (secret, object.key.namespace.clone(), object.key.name.clone());
        let before = match compile_config(secret, object) {
            Ok(compiled) => {
                let compiled = Arc::new(compiled);
                let before = self.configs.insert(key.clone(), compiled.clone());
                if before
                    .as_ref()
                    .is_some_and(|before| before.digest == compiled.digest)
                {
                    return BTreeSet::new();
                }
                before
            }
            Err(why) => {
                // Pods that read it wait, as for one that is missing; those that run are left alone.
                tracing::warn!(object = %object.key, why, "cannot be sent to nodes");
                self.configs.remove(&key)
            }
        };
        drop(before);
        self.nodes_that_read(&key)
    }

    fn put_volume(&mut self, object: &Arc<Object>) -> BTreeSet<String> {
        let before = self.volumes.get(&object.key.name);
        let Some(entry) = compile_volume(object) else {
            // Its source and node cannot change, so this is one that was never sent.
            tracing::warn!(object = %object.key, "is no volume of a node");
            return BTreeSet::new();
        };
        if before.is_some_and(|it| it.node == entry.node && it.compiled.digest == entry.compiled.digest) {
            return BTreeSet::new();
        }
        let mut dirty = BTreeSet::from([entry.node.clone()]);
        dirty.extend(before.map(|it| it.node.clone()));
        self.volumes.insert(object.key.name.clone(), entry);
        dirty
    }

    fn nodes_that_read(&self, key: &ConfigKey) -> BTreeSet<String> {
        let pods = self.readers.get(key).into_iter().flatten();
        let nodes = pods
            .filter_map(|pod| self.pods.get(pod))
            .map(|entry| entry.node.clone());
        nodes.filter(|node| !node.is_empty()).collect()
    }
}

fn discard<K: Ord>(map: &mut BTreeMap<K, BTreeSet<Key>>, at: &K, key: &Key) {
    if let Some(set) = map.get_mut(at) {
        set.remove(key);
        if set.is_empty() {
            map.remove(at);
        }
    }
}

fn object_key((secret, namespace, name): &ConfigKey) -> ObjectKey {
    if *secret {
        ObjectKey::Secret(namespace.clone(), name.clone())
    } else {
        ObjectKey::ConfigMap(namespace.clone(), name.clone())
    }
}

/// `spec.nodeName`, empty where there is none.
pub(crate) fn node_name(pod: &Value) -> &str {
    text(pod, "/spec/nodeName")
}

/// The text at a JSON pointer, empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn created(object: &Object) -> &str {
    text(&object.value, "/metadata/creationTimestamp")
}

/// Whether the Pod has ended for good.
pub(crate) fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// Whether a Pod belongs into a desired state at all. Not one that is deleted without grace: nobody waits for its
/// end. Not one that failed before it had containers: it was refused, and stays so. Not one that has left its node.
fn wanted(pod: &Value) -> bool {
    let metadata = &pod["metadata"];
    let deleted = metadata.get("deletionTimestamp").is_some_and(|it| !it.is_null());
    let forced = deleted && metadata["deletionGracePeriodSeconds"].as_i64() == Some(0);
    let status = &pod["status"];
    let ran = status["containerStatuses"]
        .as_array()
        .is_some_and(|it| !it.is_empty());
    !forced && (ran || status["phase"] != "Failed") && !super::status::has_left(pod)
}

/// Whether both versions compile to the same.
fn same_meaning(before: &Object, after: &Object) -> bool {
    const METADATA: [&str; 4] = [
        "labels",
        "annotations",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ];
    let metadata = |object: &Object, field: &str| object.value["metadata"].get(field).cloned();
    before.uid == after.uid
        && before.value["spec"] == after.value["spec"]
        && METADATA
            .iter()
            .all(|field| metadata(before, field) == metadata(after, field))
}

fn compile_pod(object: &Object) -> (Result<Arc<Compiled>, Refusal>, BTreeSet<ConfigKey>) {
    let pod = match Pod::parse(&object.value) {
        Ok(parsed) => parsed.pod,
        Err(causes) => {
            let causes: Vec<String> = causes.iter().map(ToString::to_string).collect();
            return (
                Err(Refusal {
                    reason: "InvalidPod",
                    message: causes.join(", "),
                }),
                BTreeSet::new(),
            );
        }
    };
    let reads = pod.references();
    let reads = reads
        .map(|(secret, name)| (secret, pod.namespace.clone(), name.to_owned()))
        .collect();
    let compiled = encode(&Wire::Pod(pod.into_wire()));
    let compiled = compiled.map(Arc::new).map_err(|message| Refusal {
        reason: "TooLarge",
        message,
    });
    (compiled, reads)
}

fn compile_config(secret: bool, object: &Object) -> Result<Compiled, String> {
    let mut data = BTreeMap::new();
    let plain = if secret { "stringData" } else { "data" };
    let encoded = if secret { "data" } else { "binaryData" };
    for (field, decode) in [(encoded, true), (plain, false)] {
        let Some(entries) = object.value[field].as_object() else {
            continue;
        };
        for (key, value) in entries {
            let value = value
                .as_str()
                .ok_or_else(|| format!("{field}[{key:?}] is not a string"))?;
            let bytes = if decode {
                STANDARD
                    .decode(value)
                    .map_err(|error| format!("{field}[{key:?}]: {error}"))?
            } else {
                value.as_bytes().to_vec()
            };
            data.insert(key.clone(), bytes);
        }
    }
    let bytes: usize = data.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > bounds::CONFIG_BYTES {
        return Err(format!(
            "{bytes} bytes of data, the bound is {}",
            bounds::CONFIG_BYTES
        ));
    }
    let data = ConfigData {
        namespace: object.key.namespace.clone(),
        name: object.key.name.clone(),
        data,
    };
    encode(&if secret {
        Wire::Secret(data)
    } else {
        Wire::ConfigMap(data)
    })
}

/// The volume as its node is told of it.
fn compile_volume(object: &Object) -> Option<VolumeEntry> {
    let value = &object.value;
    let node = node_of(value)?.to_owned();
    let drop = drops(value);
    let bound = value["status"]["phase"] == "Bound";
    // While its files are to go, the claim says whose Pods must have ended before.
    let claim = holder(value).filter(|(_, uid)| bound || (drop && !uid.is_empty()));
    let claimed = claim.is_some();
    let capacity = quantity(&value["spec"]["capacity"]["storage"]);
    let volume = PersistentVolume {
        name: object.key.name.clone(),
        claim: claim.map_or_else(Default::default, |(key, _)| (key.namespace, key.name)),
        capacity: capacity.map_or(0, |it| it.value().unsigned_abs()),
        drop,
    };
    let compiled = Arc::new(encode(&Wire::Volume(volume)).ok()?);
    Some(VolumeEntry {
        node,
        compiled,
        claimed,
        drop,
    })
}

fn encode(object: &Wire) -> Result<Compiled, String> {
    let bytes = postcard::to_allocvec(object).map_err(|error| error.to_string())?;
    if bytes.len() > limits::OBJECT {
        return Err(format!(
            "{} bytes, a message to a node carries at most {}",
            bytes.len(),
            limits::OBJECT
        ));
    }
    Ok(Compiled {
        digest: sha256(&bytes),
        bytes,
    })
}

#[cfg(test)]
mod tests;
