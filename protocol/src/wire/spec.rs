//! Desired objects as they travel and as the journal keeps them.
//!
//! Always holds: plain data, every bound checked by [`crate::pod::Pod`] before anything acts on it. Fields and
//! variants are only appended, with a new wire version where a struct changes.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::uid::Uid;

/// A desired object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// A Pod that this node shall run.
    Pod(PodSpec),
    /// A ConfigMap that one of the node's Pods names.
    ConfigMap(ConfigData),
    /// A Secret that one of the node's Pods names.
    Secret(ConfigData),
}

impl Object {
    /// The key of this object in the desired state.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Pod(pod) => ObjectKey::Pod(pod.uid),
            Self::ConfigMap(data) => ObjectKey::ConfigMap(data.namespace.clone(), data.name.clone()),
            Self::Secret(data) => ObjectKey::Secret(data.namespace.clone(), data.name.clone()),
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// `spec.hostname`, or the Pod's name cut to 63 bytes.
    pub hostname: String,
    /// `spec.securityContext`.
    pub security: PodSecurity,
    /// `spec.containers`.
    pub containers: Vec<Container>,
    /// `spec.volumes`.
    pub volumes: Vec<Volume>,
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Restart whatever the exit code.
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
    /// `seccompProfile.type`.
    pub seccomp: Option<Seccomp>,
}

/// `seccompProfile.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The node's default filter; also what an absent profile means here.
    RuntimeDefault,
    /// No filter.
    Unconfined,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// `name`.
    pub name: String,
    /// `image`, as written.
    pub image: String,
    /// `imagePullPolicy`, defaulted by the tag.
    pub pull_policy: PullPolicy,
    /// `command`; empty means the image's entrypoint.
    pub command: Vec<String>,
    /// `args`; empty means the image's, unless `command` is given.
    pub args: Vec<String>,
    /// `workingDir`; empty means the image's.
    pub working_dir: String,
    /// `envFrom`, applied before `env`.
    pub env_from: Vec<EnvFrom>,
    /// `env`, in order.
    pub env: Vec<EnvVar>,
    /// `ports`.
    pub ports: Vec<Port>,
    /// `resources`.
    pub resources: Resources,
    /// `volumeMounts`.
    pub mounts: Vec<Mount>,
    /// `securityContext`, with the Pod's where the container has none.
    pub security: Security,
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Ask the registry at each start.
    Always,
    /// Pull what is not there.
    IfNotPresent,
    /// Run only what is there.
    Never,
}

/// `envFrom[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFrom {
    /// `prefix`.
    pub prefix: String,
    /// `secretRef` rather than `configMapRef`.
    pub secret: bool,
    /// The object's name.
    pub name: String,
    /// `optional`.
    pub optional: bool,
}

/// `env[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// `name`.
    pub name: String,
    /// `value` or `valueFrom`.
    pub value: EnvValue,
}

/// Where a variable's value comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    /// `value`, with `$(NAME)` expanded at start.
    Literal(String),
    /// `configMapKeyRef` or `secretKeyRef`.
    Key {
        /// Of a Secret rather than a ConfigMap.
        secret: bool,
        /// The object's name.
        name: String,
        /// The key in it.
        key: String,
        /// `optional`.
        optional: bool,
    },
    /// `fieldRef.fieldPath`.
    Field(FieldPath),
}

/// The `fieldRef` paths that Kubernetes knows for variables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FieldPath {
    /// `metadata.name`.
    Name,
    /// `metadata.namespace`.
    Namespace,
    /// `metadata.uid`.
    Uid,
    /// `metadata.labels['…']`.
    Label(String),
    /// `metadata.annotations['…']`.
    Annotation(String),
    /// `spec.nodeName`.
    NodeName,
    /// `spec.serviceAccountName`.
    ServiceAccountName,
    /// `status.hostIP` and `status.hostIPs`.
    HostIp,
    /// `status.podIP` and `status.podIPs`.
    PodIp,
}

/// `ports[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// `name`; may be empty.
    pub name: String,
    /// `containerPort`.
    pub container_port: u16,
    /// `hostPort`; 0 means none.
    pub host_port: u16,
    /// `hostIP`; may be empty.
    pub host_ip: String,
    /// `protocol`.
    pub protocol: Protocol,
}

/// `ports[].protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the protocols' own names")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// `resources`; `None` means no limit, or no request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// `limits.cpu`, in thousandths of a CPU.
    pub cpu_limit: Option<u64>,
    /// `limits.memory`, in bytes.
    pub memory_limit: Option<u64>,
    /// `requests.cpu`, in thousandths of a CPU; the limit where only that is given.
    pub cpu_request: Option<u64>,
    /// `requests.memory`, in bytes; the limit where only that is given.
    pub memory_request: Option<u64>,
}

/// `volumeMounts[]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume's `name`.
    pub volume: String,
    /// `mountPath`, absolute.
    pub path: String,
    /// `readOnly`.
    pub read_only: bool,
}

/// `securityContext` of a container, with the Pod's filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// `runAsUser`; `None` means the image's user.
    pub run_as_user: Option<u32>,
    /// `runAsGroup`.
    pub run_as_group: Option<u32>,
    /// `runAsNonRoot`.
    pub run_as_non_root: bool,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// `allowPrivilegeEscalation: true` was asked for by name.
    pub allow_privilege_escalation: bool,
    /// `capabilities.add`, without `CAP_`; `ALL` is possible.
    pub add_capabilities: Vec<String>,
    /// `capabilities.drop`, without `CAP_`; `ALL` is possible.
    pub drop_capabilities: Vec<String>,
    /// `seccompProfile.type`.
    pub seccomp: Option<Seccomp>,
}

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
