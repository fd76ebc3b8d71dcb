//! An image as the store gives it: its layers as directories and its configuration as values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skiff_protocol::image_ref::Digest;

use crate::error::UserError;
use crate::user::{self, User};

/// What the image says about running it: the OCI image specification's `config`, with what is missing as empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageConfig {
    /// `Entrypoint`: replaced by a container's `command`.
    pub entrypoint: Vec<String>,
    /// `Cmd`: replaced by a container's `args`, and dropped if it has a `command`.
    pub cmd: Vec<String>,
    /// `Env`, each `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`; empty means `/`.
    pub working_dir: String,
    /// `User`; empty means root. [`Image::resolve_user`] reads it.
    pub user: String,
    /// `StopSignal`, as a name or a number.
    pub stop_signal: Option<String>,
    /// `ExposedPorts`, each `port/protocol`, sorted.
    pub exposed_ports: Vec<String>,
    /// `Volumes`: paths that the image expects to be volumes, sorted.
    pub volumes: Vec<String>,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
    /// `os`, Go's word: `linux`.
    pub os: String,
    /// `architecture`, Go's word: `arm64`.
    pub architecture: String,
    /// `variant`: `v7`.
    pub variant: Option<String>,
}

/// A whole, verified image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of the platform's manifest: the image's identity in the store.
    pub digest: Digest,
    /// The digest that the reference led to: of an index, where there is one. Kubernetes' `imageID` names it.
    pub repo_digest: Digest,
    /// The unpacked layers, bottom first, at most [`crate::limits::MAX_LAYERS`]. Directories that never change.
    pub layers: Vec<PathBuf>,
    /// How to run it.
    pub config: ImageConfig,
    /// What the registry has of it, in bytes: configuration and layers as transferred. Kubernetes' `sizeBytes`.
    pub size_bytes: u64,
}

impl Image {
    /// Resolves `user[:group]`, each a name or a number, against `/etc/passwd` and `/etc/group` of the layers.
    ///
    /// An empty `spec` is root. A number needs no entry; a name does. Without a group the passwd entry's group and the
    /// groups that list the user apply; with one, that group alone (as Docker and containerd do).
    ///
    /// # Errors
    /// [`UserError`] names the user or group that is missing, or the file that cannot be read.
    pub fn resolve_user(&self, spec: &str) -> Result<User, UserError> {
        user::resolve(&self.layers, spec)
    }
}
