//! Desired objects as they travel and as the journal keeps them.
//!
//! Always holds: plain data, every bound checked by [`crate::pod::Pod`] before anything acts on it. Fields and
//! variants are only appended, with a new wire version where a struct changes.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::uid::Uid;

mod container;
mod probe;
mod volume;

pub use container::*;
pub use probe::*;
pub use volume::*;

/// A desired object.
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of it at a time, and it is encoded or taken apart at once"
)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// A Pod that this node shall run.
    Pod(PodSpec),
    /// A ConfigMap that one of the node's Pods names.
    ConfigMap(ConfigData),
    /// A Secret that one of the node's Pods names.
    Secret(ConfigData),
    /// A PersistentVolume that this node keeps, whether or not a Pod uses it now.
    Volume(PersistentVolume),
}

impl Object {
    /// The key of this object in the desired state.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Pod(pod) => ObjectKey::Pod(pod.uid),
            Self::ConfigMap(data) => ObjectKey::ConfigMap(data.namespace.clone(), data.name.clone()),
            Self::Secret(data) => ObjectKey::Secret(data.namespace.clone(), data.name.clone()),
            Self::Volume(volume) => ObjectKey::Volume(volume.name.clone()),
        }
    }
}

/// What names an object in a node's desired state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ObjectKey {
    /// A Pod, by uid: a Pod that is made again under the same name is another Pod.
    Pod(Uid),
    /// A ConfigMap, by namespace and name.
    ConfigMap(String, String),
    /// A Secret, by namespace and name.
    Secret(String, String),
    /// A PersistentVolume, by name: it has no namespace.
    Volume(String),
}

/// The data of a ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigData {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `data` and `binaryData` (or a Secret's `data`), decoded.
    pub data: BTreeMap<String, Vec<u8>>,
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, but for the one that `kubectl apply` keeps for itself.
    pub annotations: BTreeMap<String, String>,
    /// Set once the Pod is to end: seconds of grace from now on (`metadata.deletionGracePeriodSeconds`).
    pub deletion_grace_seconds: Option<u32>,
    /// `spec.restartPolicy`.
    pub restart_policy: RestartPolicy,
    /// `spec.terminationGracePeriodSeconds`, in seconds.
    pub termination_grace_seconds: u32,
    /// `spec.activeDeadlineSeconds`: seconds from acceptance until the Pod is ended as failed.
    pub active_deadline_seconds: Option<u32>,
    /// `spec.hostname`, or the Pod's name cut to 63 bytes.
    pub hostname: String,
    /// `spec.subdomain`; empty means none.
    pub subdomain: String,
    /// `spec.setHostnameAsFQDN`.
    pub hostname_is_fqdn: bool,
    /// `spec.hostAliases`.
    pub host_aliases: Vec<HostAlias>,
    /// `spec.dnsPolicy`.
    pub dns_policy: DnsPolicy,
    /// `spec.dnsConfig`.
    pub dns: DnsConfig,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.hostUsers: false`: a user namespace of its own.
    pub user_namespace: bool,
    /// `spec.shareProcessNamespace`.
    pub share_process_namespace: bool,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// `spec.resources`: of the Pod as a whole.
    pub resources: Resources,
    /// `spec.securityContext`.
    pub security: PodSecurity,
    /// `spec.initContainers`, in order.
    pub init_containers: Vec<Container>,
    /// `spec.containers`.
    pub containers: Vec<Container>,
    /// `spec.volumes`.
    pub volumes: Vec<Volume>,
    /// `spec.imagePullSecrets`: names of Secrets in the Pod's namespace.
    pub image_pull_secrets: Vec<String>,
}

impl PodSpec {
    /// The init containers, then the others: the order in which they begin.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// The container of this name. Names are unique over both lists.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|it| it.name == name)
    }
}

/// `spec.hostAliases[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    /// `ip`.
    pub ip: String,
    /// `hostnames`.
    pub hostnames: Vec<String>,
}

/// `spec.dnsPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DnsPolicy {
    /// The fleet's DNS where the node serves one, else the node's.
    #[default]
    ClusterFirst,
    /// The same, also with the host's network.
    ClusterFirstWithHostNet,
    /// The node's.
    Default,
    /// Only what `dnsConfig` says.
    None,
}

/// `spec.dnsConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// `nameservers`.
    pub nameservers: Vec<String>,
    /// `searches`.
    pub searches: Vec<String>,
    /// `options`: name and value, which may be empty.
    pub options: Vec<(String, String)>,
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
    #[default]
    Always,
    /// Restart after a non-zero exit code.
    OnFailure,
    /// Never restart.
    Never,
}

/// `spec.securityContext`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSecurity {
    /// `runAsUser`.
    pub run_as_user: Option<u32>,
    /// `runAsGroup`.
    pub run_as_group: Option<u32>,
    /// `runAsNonRoot`.
    pub run_as_non_root: bool,
    /// `supplementalGroups`.
    pub supplemental_groups: Vec<u32>,
    /// `supplementalGroupsPolicy: Strict`: none of the image's own groups.
    pub strict_groups: bool,
    /// `fsGroup`.
    pub fs_group: Option<u32>,
    /// `fsGroupChangePolicy: OnRootMismatch`.
    pub fs_group_on_root_mismatch: bool,
    /// `sysctls`: name and value.
    pub sysctls: Vec<(String, String)>,
    /// `seccompProfile`.
    pub seccomp: Option<Seccomp>,
    /// `appArmorProfile`.
    pub apparmor: Option<AppArmor>,
}
