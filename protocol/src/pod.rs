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
use crate::wire::spec::PodSpec;

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
        causes.extend(unsupported.refused);
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
        use crate::wire::spec::{EnvValue, VolumeSource};
        let volumes = self.0.volumes.iter().filter_map(|volume| match &volume.source {
            VolumeSource::Config { secret, name, .. } => Some((*secret, name.as_str())),
            VolumeSource::EmptyDir { .. } => None,
        });
        let from = self.0.containers.iter().flat_map(|container| &container.env_from);
        let from = from.map(|from| (from.secret, from.name.as_str()));
        let keys = self
            .0
            .containers
            .iter()
            .flat_map(|container| &container.env)
            .filter_map(|var| match &var.value {
                EnvValue::Key { secret, name, .. } => Some((*secret, name.as_str())),
                EnvValue::Literal(_) | EnvValue::Field(_) => None,
            });
        volumes.chain(from).chain(keys)
    }
}

impl Deref for Pod {
    type Target = PodSpec;

    fn deref(&self) -> &PodSpec {
        &self.0
    }
}
