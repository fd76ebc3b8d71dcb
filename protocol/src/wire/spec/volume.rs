//! Volumes of a Pod, as they travel.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::container::{FieldPath, PullPolicy, ResourceField};

/// `spec.volumes[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `name`.
    pub name: String,
    /// What it is made of.
    pub source: VolumeSource,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// `emptyDir`.
    EmptyDir {
        /// `medium: Memory`.
        memory: bool,
        /// `sizeLimit`, in bytes.
        size_limit: Option<u64>,
    },
    /// `configMap` or `secret`.
    Config {
        /// A Secret rather than a ConfigMap.
        secret: bool,
        /// The object's name.
        name: String,
        /// `items`; empty means every key under its own name.
        items: Vec<KeyToPath>,
        /// `defaultMode`.
        default_mode: u16,
        /// `optional`.
        optional: bool,
    },
    /// `hostPath`.
    HostPath {
        /// `path`, absolute, without `..`.
        path: String,
        /// `type`.
        kind: HostPathType,
    },
    /// `projected`, and `downwardAPI`, which is a projection of one source.
    Projected {
        /// `sources`, in order; a later file hides an earlier one.
        sources: Vec<Projection>,
        /// `defaultMode`.
        default_mode: u16,
    },
    /// `image`: an image's files, read-only.
    Image {
        /// `reference`, as written.
        reference: String,
        /// `pullPolicy`.
        pull_policy: PullPolicy,
    },
    /// `persistentVolumeClaim`. The server has bound it to a volume of this node.
    Claim {
        /// `claimName`.
        name: String,
        /// `readOnly`.
        read_only: bool,
    },
}

/// `hostPath.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathType {
    /// Empty: nothing is checked.
    #[default]
    Unchecked,
    /// Made as a directory, 0755, where it is missing.
    DirectoryOrCreate,
    /// Must be a directory.
    Directory,
    /// Made as an empty file, 0644, where it is missing.
    FileOrCreate,
    /// Must be a file.
    File,
    /// Must be a UNIX socket.
    Socket,
    /// Must be a character device.
    CharDevice,
    /// Must be a block device.
    BlockDevice,
}

/// `projected.sources[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Projection {
    /// `configMap` or `secret`.
    Config {
        /// A Secret rather than a ConfigMap.
        secret: bool,
        /// The object's name.
        name: String,
        /// `items`; empty means every key under its own name.
        items: Vec<KeyToPath>,
        /// `optional`.
        optional: bool,
    },
    /// `downwardAPI`.
    Downward(Vec<DownwardFile>),
}

/// `downwardAPI.items[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownwardFile {
    /// `path`, relative, without `..`.
    pub path: String,
    /// `mode`.
    pub mode: Option<u16>,
    /// What it says.
    pub value: DownwardValue,
}

/// `fieldRef` or `resourceFieldRef` of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownwardValue {
    /// `fieldRef`.
    Field(FieldPath),
    /// `resourceFieldRef`, with its container named.
    Resource(ResourceField),
}

/// `items[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyToPath {
    /// `key`.
    pub key: String,
    /// `path`, relative, without `..`.
    pub path: String,
    /// `mode`.
    pub mode: Option<u16>,
}

/// A PersistentVolume that is a directory of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentVolume {
    /// `metadata.name`; also the directory's name.
    pub name: String,
    /// `spec.claimRef`: namespace and name; empty where nobody claims it now.
    pub claim: (String, String),
    /// `spec.capacity.storage`, in bytes; what is asked for, not a bound that is enforced.
    pub capacity: u64,
    /// It is being deleted, and `spec.persistentVolumeReclaimPolicy` is `Delete`: its files go once no Pod uses them.
    pub drop: bool,
}
