//! Files of volumes that must follow what they are made from, and files that nobody may read any more.
//!
//! Always holds: a volume's files are dropped only once the server's word that they shall go is durable, and no Pod that
//! claims it is left. A volume that is not spoken of any more keeps its files.

use std::collections::BTreeSet;

use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{
    DownwardValue, FieldPath, Object, ObjectKey, PodSpec, Projection, VolumeSource,
};

use crate::effect::Effect;
use crate::machine::Core;
use crate::record::Record;

/// A volume whose files are to go.
#[derive(Clone, Debug)]
pub(crate) struct Dropping {
    name: String,
    /// Namespace and name of the claim that it was bound to.
    claim: (String, String),
}

/// The ConfigMap or Secret of this name is mounted.
fn mounts(pod: &PodSpec, wanted: &ObjectKey) -> bool {
    let meets = |secret: bool, name: &str| match wanted {
        ObjectKey::ConfigMap(namespace, it) => !secret && *namespace == pod.namespace && it == name,
        ObjectKey::Secret(namespace, it) => secret && *namespace == pod.namespace && it == name,
        ObjectKey::Pod(_) | ObjectKey::Volume(_) => false,
    };
    pod.volumes.iter().any(|volume| match &volume.source {
        VolumeSource::Config { secret, name, .. } => meets(*secret, name),
        VolumeSource::Projected { sources, .. } => sources.iter().any(|source| match source {
            Projection::Config { secret, name, .. } => meets(*secret, name),
            Projection::Downward(_) => false,
        }),
        VolumeSource::EmptyDir { .. }
        | VolumeSource::HostPath { .. }
        | VolumeSource::Image { .. }
        | VolumeSource::Claim { .. } => false,
    })
}

/// Whether a mounted file says something of the Pod that differs between these two.
pub(crate) fn downward_differs(old: &PodSpec, new: &PodSpec) -> bool {
    let labels = old.labels != new.labels;
    let annotations = old.annotations != new.annotations;
    let says = |value: &DownwardValue| match value {
        DownwardValue::Field(FieldPath::Label(_) | FieldPath::Labels) => labels,
        DownwardValue::Field(FieldPath::Annotation(_) | FieldPath::Annotations) => annotations,
        DownwardValue::Field(_) => false,
        DownwardValue::Resource(_) => old.resources != new.resources || resources(old) != resources(new),
    };
    new.volumes.iter().any(|volume| match &volume.source {
        VolumeSource::Projected { sources, .. } => sources.iter().any(|source| match source {
            Projection::Downward(files) => files.iter().any(|file| says(&file.value)),
            Projection::Config { .. } => false,
        }),
        _ => false,
    })
}

fn resources(pod: &PodSpec) -> Vec<&skiff_protocol::wire::spec::Resources> {
    pod.all_containers().map(|it| &it.resources).collect()
}

impl Core {
    /// Looks at records that are about to be applied: which Pods' files they touch, which volumes they end.
    pub(crate) fn note_volumes(&mut self, records: &[Record]) -> BTreeSet<ObjectKey> {
        let mut changed = BTreeSet::new();
        for record in records {
            match record {
                Record::Put(key @ (ObjectKey::ConfigMap(..) | ObjectKey::Secret(..)), _)
                | Record::Remove(key @ (ObjectKey::ConfigMap(..) | ObjectKey::Secret(..))) => {
                    changed.insert(key.clone());
                }
                Record::Put(ObjectKey::Volume(name), bytes) => {
                    self.dropping.retain(|it| it.name != *name);
                    if let Ok(Object::Volume(volume)) = postcard::from_bytes(bytes)
                        && volume.drop
                    {
                        self.dropping.push(Dropping {
                            name: name.clone(),
                            claim: volume.claim,
                        });
                    }
                }
                _ => {}
            }
        }
        changed
    }

    /// Has the files follow of each Pod that runs and mounts one of these.
    pub(crate) fn refresh_volumes(&mut self, changed: &BTreeSet<ObjectKey>) {
        if changed.is_empty() {
            return;
        }
        let touched = self.pods.values().filter(|it| it.lives() && it.any_alive());
        let touched = touched.filter(|it| {
            let mounts = |pod: &Pod| changed.iter().any(|key| mounts(pod, key));
            it.pod.as_ref().is_some_and(mounts)
        });
        let touched: Vec<Uid> = touched.map(|it| it.uid).collect();
        for uid in touched {
            self.refresh(uid);
        }
    }

    /// Asks once for all that changed at once.
    pub(crate) fn refresh(&mut self, uid: Uid) {
        let effect = Effect::RefreshVolumes(uid);
        if !self.effects.contains(&effect) {
            self.effects.push(effect);
        }
    }

    /// Drops the volumes that nobody is left to use.
    pub(crate) fn drop_volumes(&mut self) {
        if self.dropping.is_empty() {
            return;
        }
        // Of a Pod that is being ended against the server's word the spec is not known any more.
        let used = |it: &Dropping| {
            self.pods.values().any(|state| match &state.pod {
                None => state.ending.is_some(),
                Some(pod) => pod.namespace == it.claim.0 && pod.claims().any(|name| name == it.claim.1),
            })
        };
        let (stay, go): (Vec<_>, Vec<_>) = self.dropping.iter().cloned().partition(used);
        self.dropping = stay;
        let go = go.into_iter().map(|it| Effect::DropVolume(it.name));
        self.effects.extend(go);
    }
}
