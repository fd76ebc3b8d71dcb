//! A container of a Pod, as it travels.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::probe::{Handler, Probe};

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// `resizePolicy`: what a change of its resources restarts.
    pub resize: ResizePolicy,
    /// `restartPolicy: Always` of an init container: a sidecar, which runs as long as the Pod.
    pub sidecar: bool,
    /// `volumeMounts`.
    pub mounts: Vec<Mount>,
    /// `securityContext`, with the Pod's where the container has none.
    pub security: Security,
    /// `livenessProbe`.
    pub liveness: Option<Probe>,
    /// `readinessProbe`.
    pub readiness: Option<Probe>,
    /// `startupProbe`.
    pub startup: Option<Probe>,
    /// `lifecycle.postStart`.
    pub post_start: Option<Handler>,
    /// `lifecycle.preStop`.
    pub pre_stop: Option<Handler>,
    /// `lifecycle.stopSignal`, as a number; `None` means the image's, or SIGTERM.
    pub stop_signal: Option<u8>,
    /// `terminationMessagePath`, absolute; empty means `/dev/termination-log`.
    pub termination_message_path: String,
    /// `terminationMessagePolicy: FallbackToLogsOnError`.
    pub termination_message_from_log: bool,
    /// `stdin`.
    pub stdin: bool,
    /// `stdinOnce`.
    pub stdin_once: bool,
    /// `tty`.
    pub tty: bool,
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Ask the registry at each start.
    Always,
    /// Pull what is not there.
    #[default]
    IfNotPresent,
    /// Run only what is there.
    Never,
}

/// `resizePolicy`: whether a change of a resource restarts the container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResizePolicy {
    /// `RestartContainer` for `cpu`.
    pub cpu_restarts: bool,
    /// `RestartContainer` for `memory`.
    pub memory_restarts: bool,
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
    /// `resourceFieldRef`.
    Resource(ResourceField),
}

/// The `fieldRef` paths that Kubernetes knows. [`FieldPath::Labels`] and [`FieldPath::Annotations`] are for files only.
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
    /// `metadata.labels`: all of them.
    Labels,
    /// `metadata.annotations`: all of them.
    Annotations,
}

/// `resourceFieldRef`: the value is the resource divided by the divisor, rounded up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceField {
    /// `containerName`; empty means the container that has the variable.
    pub container: String,
    /// `requests.…` rather than `limits.…`.
    pub request: bool,
    /// Which resource.
    pub resource: ResourceName,
    /// `divisor` in thousandths of the resource's unit; never 0.
    pub divisor_milli: u64,
}

/// The resources that a `resourceFieldRef` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResourceName {
    /// `cpu`.
    Cpu,
    /// `memory`.
    Memory,
    /// `ephemeral-storage`.
    EphemeralStorage,
    /// `hugepages-…`, with the size of a page in bytes.
    HugePages(u64),
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// `limits.cpu`, in thousandths of a CPU.
    pub cpu_limit: Option<u64>,
    /// `limits.memory`, in bytes.
    pub memory_limit: Option<u64>,
    /// `requests.cpu`, in thousandths of a CPU; the limit where only that is given.
    pub cpu_request: Option<u64>,
    /// `requests.memory`, in bytes; the limit where only that is given.
    pub memory_request: Option<u64>,
    /// `limits.ephemeral-storage`, in bytes.
    pub storage_limit: Option<u64>,
    /// `requests.ephemeral-storage`, in bytes; the limit where only that is given.
    pub storage_request: Option<u64>,
    /// `hugepages-…`: the size of a page and the bytes in such pages. Request and limit are the same.
    pub hugepages: Vec<(u64, u64)>,
    /// Extended resources, such as `nvidia.com/gpu`: name and count. Request and limit are the same.
    pub extended: Vec<(String, u64)>,
}

/// `volumeMounts[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume's `name`.
    pub volume: String,
    /// `mountPath`, absolute.
    pub path: String,
    /// `readOnly`.
    pub read_only: bool,
    /// `recursiveReadOnly`.
    pub recursive_read_only: RecursiveReadOnly,
    /// `mountPropagation`.
    pub propagation: Propagation,
    /// `subPath`, or `subPathExpr` with its `$(NAME)`s.
    pub sub_path: SubPath,
}

/// `recursiveReadOnly`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecursiveReadOnly {
    /// Mounts below the volume keep their own mode.
    #[default]
    Disabled,
    /// Where the kernel can (Linux 5.12).
    IfPossible,
    /// The container does not start without it.
    Enabled,
}

/// `mountPropagation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Mounts made later on either side stay there.
    #[default]
    None,
    /// The container sees mounts that the node makes later.
    HostToContainer,
    /// And the node sees those of the container, which must be privileged.
    Bidirectional,
}

/// Which part of a volume is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubPath {
    /// All of it.
    #[default]
    None,
    /// `subPath`, relative, without `..`.
    Path(String),
    /// `subPathExpr`, expanded at the start of the container.
    Expr(String),
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
    /// `privileged`.
    pub privileged: bool,
    /// `allowPrivilegeEscalation: true` was asked for by name.
    pub allow_privilege_escalation: bool,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
    /// `capabilities.add`, without `CAP_`; `ALL` is possible.
    pub add_capabilities: Vec<String>,
    /// `capabilities.drop`, without `CAP_`; `ALL` is possible.
    pub drop_capabilities: Vec<String>,
    /// `seccompProfile`.
    pub seccomp: Option<Seccomp>,
    /// `appArmorProfile`.
    pub apparmor: Option<AppArmor>,
}

/// `seccompProfile`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The node's default filter; also what an absent profile means here.
    RuntimeDefault,
    /// No filter.
    Unconfined,
    /// A profile of the node, by `localhostProfile`: relative, without `..`.
    Localhost(String),
}

/// `appArmorProfile`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppArmor {
    /// The node's default profile, where it has one.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile that is loaded on the node, by `localhostProfile`.
    Localhost(String),
}
