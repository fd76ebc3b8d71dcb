//! The claims, volumes and classes of the store, as far as placement needs them: where a Pod's claims let it run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::{Node, VolumeNeed};
use crate::api;
use crate::store::{Key, Object};

/// See the module.
#[derive(Default)]
pub(super) struct Volumes {
    claims: BTreeMap<Key, Arc<Object>>,
    volumes: BTreeMap<String, Arc<Object>>,
    /// Those that make volumes.
    classes: BTreeSet<String>,
}

impl Volumes {
    /// Takes an object's new version, or that it is gone; whether it is one of these.
    pub(super) fn take(&mut self, object: &Arc<Object>, gone: bool) -> bool {
        let name = &object.key.name;
        match (object.key.resource.as_str(), gone) {
            ("persistentvolumeclaims", false) => drop(self.claims.insert(object.key.clone(), object.clone())),
            ("persistentvolumeclaims", true) => drop(self.claims.remove(&object.key)),
            ("persistentvolumes", false) => drop(self.volumes.insert(name.clone(), object.clone())),
            ("persistentvolumes", true) => drop(self.volumes.remove(name)),
            ("storageclasses.storage.k8s.io", false) => {
                if object.value["provisioner"] == api::PROVISIONER {
                    self.classes.insert(name.clone());
                }
            }
            ("storageclasses.storage.k8s.io", true) => drop(self.classes.remove(name)),
            _ => return false,
        }
        true
    }

    /// Where the Pod's claims let it run.
    ///
    /// # Errors
    /// Why it can run nowhere, in the words of Kubernetes' scheduler.
    pub(super) fn needs(&self, pod: &Value) -> Result<Vec<VolumeNeed>, String> {
        api::claims_of(pod).iter().map(|claim| self.need(claim)).collect()
    }

    /// Whether a claim of the Pod is not bound yet.
    pub(super) fn unbound(&self, pod: &Value) -> bool {
        let claims = api::claims_of(pod);
        let mut found = claims.iter().filter_map(|key| self.claims.get(key));
        found.any(|claim| claim.value["status"]["phase"] == "Pending")
    }

    /// The claim as it was last seen.
    pub(super) fn claim(&self, key: &Key) -> Option<&Arc<Object>> {
        self.claims.get(key)
    }

    /// Says of each node how many volumes it keeps.
    pub(super) fn count(&self, nodes: &mut BTreeMap<String, Node>) {
        nodes.values_mut().for_each(|node| node.volumes = 0);
        for node in self.volumes.values().filter_map(|it| api::node_of(&it.value)) {
            if let Some(node) = nodes.get_mut(node) {
                node.volumes += 1;
            }
        }
    }

    fn need(&self, key: &Key) -> Result<VolumeNeed, String> {
        let name = &key.name;
        let claim = self
            .claims
            .get(key)
            .ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
        if claim.value["metadata"]["deletionTimestamp"].is_string() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let volume = api::volume_of(&claim.value);
        if claim.value["status"]["phase"] == "Lost" {
            return Err(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            ));
        }
        let on = |volume: &Arc<Object>| api::node_of(&volume.value).map(|it| VolumeNeed::On(it.to_owned()));
        if !volume.is_empty() {
            let why = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
            let found = self.volumes.get(volume).ok_or(why)?;
            if claim.value["status"]["phase"] == "Pending" && !api::fits(&found.value, &claim.value) {
                return Err(format!(
                    "persistentvolumeclaim {name:?} names persistentvolume {volume:?}, which is another claim's or does not fit"
                ));
            }
            return on(found).ok_or_else(|| why.to_owned());
        }
        // Its own volume was made, and the claim could not be told: that is where it stays.
        let its = |it: &&Arc<Object>| api::holder(&it.value).is_some_and(|(_, uid)| uid == claim.uid);
        if let Some(need) = self.volumes.values().find(its).and_then(on) {
            return Ok(need);
        }
        let fitting = self
            .volumes
            .values()
            .filter(|it| api::fits(&it.value, &claim.value));
        let nodes: BTreeSet<String> = fitting
            .filter_map(|it| api::node_of(&it.value).map(str::to_owned))
            .collect();
        let class = claim.value["spec"]["storageClassName"]
            .as_str()
            .unwrap_or_default();
        let make = self.classes.contains(class);
        if !make && nodes.is_empty() {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        Ok(VolumeNeed::Any { nodes, make })
    }
}

#[cfg(test)]
pub(super) mod tests;
