//! A Pod that is valid by construction.
//!
//! Always holds: a [`Pod`] came through [`Pod::parse`] (from a manifest) or [`Pod::from_wire`] (from the server or
//! the journal), and both end in the same [`check`](check::check). Server, agent and CLI share this one gate.

mod check;
mod convert;

use alloc::vec::Vec;
use core::ops::Deref;

use serde_json::Value;

use crate::manifest::{self, Cause};
use crate::wire::spec::{EnvValue, PodSpec, Projection, VolumeSource};

/// A Pod whose every field is in its bounds and whose references resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod(PodSpec);

/// A Pod, and what of its manifest is not yet honoured.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The Pod.
    pub pod: Pod,
    /// Fields that are kept and not yet honoured, by name.
    pub warnings: Vec<Cause>,
}

impl Pod {
    /// Parses a manifest given as JSON. Unknown fields are not its business: see [`manifest::inspect`].
    /// A manifest without `metadata.uid` gets the nil uid, so that it can be checked before it is stored.
    ///
    /// # Errors
    /// Every cause found, never an empty list.
    pub fn parse(value: &Value) -> Result<Parsed, Vec<Cause>> {
        let unsupported = manifest::unsupported(value);
        let typed: manifest::Pod = manifest::decode("Pod", value)?;
        let (spec, mut causes) = convert::pod_spec(&typed);
        // A field that could not be converted holds a stand-in, of which the check must not complain again.
        let unconverted = causes.len();
        for cause in check::check(&spec) {
            if !causes[..unconverted]
                .iter()
                .any(|known| known.field == cause.field)
            {
                causes.push(cause);
            }
        }
        let known = |refused: &Cause| causes.iter().any(|known| known.field == refused.field);
        let more: Vec<Cause> = unsupported.refused.into_iter().filter(|it| !known(it)).collect();
        causes.extend(more);
        if !causes.is_empty() {
            return Err(causes);
        }
        Ok(Parsed {
            pod: Self(spec),
            warnings: unsupported.later,
        })
    }

    /// Checks a Pod that came over the wire or out of the journal.
    ///
    /// # Errors
    /// Every cause found, never an empty list.
    pub fn from_wire(spec: PodSpec) -> Result<Self, Vec<Cause>> {
        let causes = check::check(&spec);
        if causes.is_empty() {
            Ok(Self(spec))
        } else {
            Err(causes)
        }
    }

    /// The Pod as it travels.
    #[must_use]
    pub fn into_wire(self) -> PodSpec {
        self.0
    }

    /// The same Pod, to be ended within `seconds`.
    #[must_use]
    pub fn deleted(mut self, seconds: u32) -> Self {
        self.0.deletion_grace_seconds = Some(seconds);
        self
    }

    /// The names of the ConfigMaps (`false`) and Secrets (`true`) that the Pod reads, in its own namespace.
    pub fn references(&self) -> impl Iterator<Item = (bool, &str)> {
        let volumes = self.0.volumes.iter().flat_map(|volume| sources(&volume.source));
        let from = self.0.all_containers().flat_map(|container| &container.env_from);
        let from = from.map(|from| (from.secret, from.name.as_str()));
        let keys = self
            .0
            .all_containers()
            .flat_map(|container| &container.env)
            .filter_map(|var| match &var.value {
                EnvValue::Key { secret, name, .. } => Some((*secret, name.as_str())),
                EnvValue::Literal(_) | EnvValue::Field(_) | EnvValue::Resource(_) => None,
            });
        let pulls = self.0.image_pull_secrets.iter();
        let pulls = pulls.map(|name| (true, name.as_str()));
        volumes.chain(from).chain(keys).chain(pulls)
    }

    /// The names of the PersistentVolumeClaims that the Pod uses, in its own namespace.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        self.0.volumes.iter().filter_map(|volume| match &volume.source {
            VolumeSource::Claim { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }
}

/// The ConfigMaps (`false`) and Secrets (`true`) that a volume is made of.
fn sources(volume: &VolumeSource) -> Vec<(bool, &str)> {
    match volume {
        VolumeSource::Config { secret, name, .. } => alloc::vec![(*secret, name.as_str())],
        VolumeSource::Projected { sources, .. } => sources
            .iter()
            .filter_map(|source| match source {
                Projection::Config { secret, name, .. } => Some((*secret, name.as_str())),
                Projection::Downward(_) => None,
            })
            .collect(),
        VolumeSource::EmptyDir { .. }
        | VolumeSource::HostPath { .. }
        | VolumeSource::Image { .. }
        | VolumeSource::Claim { .. } => Vec::new(),
    }
}

impl Deref for Pod {
    type Target = PodSpec;

    fn deref(&self) -> &PodSpec {
        &self.0
    }
}
