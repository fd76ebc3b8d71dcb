//! Typed manifests: the fields that are honoured, as Kubernetes names and nests them.
//!
//! Always holds: absent and default are the same; these types say what was written, not whether it makes sense.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::Deserialize;
use serde_json::Value;

macro_rules! manifest {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        #[allow(missing_docs, reason = "the Kubernetes API reference documents each field under this very name")]
        pub struct $name { $($(#[$fmeta])* pub $field: $type,)* }
    )*};
}

/// A quantity as written: a string, or a bare number.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenQuantity(pub String);

impl<'de> Deserialize<'de> for WrittenQuantity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match Value::deserialize(deserializer)? {
            Value::String(text) => text,
            other => alloc::format!("{other}"),
        }))
    }
}

/// A number, or a name: a port.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(i64),
    /// A name, or a number in quotes.
    Text(String),
}

impl Default for IntOrString {
    fn default() -> Self {
        Self::Int(0)
    }
}

manifest! {
    /// `metadata` of any object.
    ObjectMeta {
        name: String,
        namespace: String,
        generate_name: String,
        uid: String,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        deletion_timestamp: Option<String>,
        deletion_grace_period_seconds: Option<i64>,
    }
    /// A Pod.
    Pod {
        api_version: String,
        kind: String,
        metadata: ObjectMeta,
        spec: PodSpec,
    }
    /// `spec` of a Pod.
    PodSpec {
        containers: Vec<Container>,
        volumes: Vec<Volume>,
        restart_policy: Option<String>,
        termination_grace_period_seconds: Option<i64>,
        node_selector: BTreeMap<String, String>,
        node_name: String,
        affinity: Affinity,
        topology_spread_constraints: Vec<TopologySpreadConstraint>,
        hostname: String,
        subdomain: String,
        #[serde(rename = "setHostnameAsFQDN")]
        set_hostname_as_fqdn: bool,
        host_aliases: Vec<HostAlias>,
        dns_policy: Option<String>,
        dns_config: PodDnsConfig,
        active_deadline_seconds: Option<i64>,
        host_network: bool,
        #[serde(rename = "hostPID")]
        host_pid: bool,
        #[serde(rename = "hostIPC")]
        host_ipc: bool,
        host_users: Option<bool>,
        share_process_namespace: bool,
        service_account_name: String,
        service_account: String,
        resources: ResourceRequirements,
        security_context: PodSecurityContext,
        init_containers: Vec<Container>,
        image_pull_secrets: Vec<LocalObjectReference>,
    }
    /// A reference to an object in the same namespace.
    LocalObjectReference { name: String, }
    /// `spec.affinity`.
    Affinity { node_affinity: NodeAffinity, pod_affinity: PodAffinity, pod_anti_affinity: PodAffinity, }
    /// `spec.affinity.nodeAffinity`.
    NodeAffinity {
        #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
        required: Option<NodeSelector>,
        #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
        preferred: Vec<PreferredSchedulingTerm>,
    }
    /// `nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution`.
    NodeSelector { node_selector_terms: Vec<NodeSelectorTerm>, }
    /// `nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[]`.
    PreferredSchedulingTerm { weight: i64, preference: NodeSelectorTerm, }
    /// `nodeSelectorTerms[]` and `preference`.
    NodeSelectorTerm { match_expressions: Vec<SelectorRequirement>, match_fields: Vec<SelectorRequirement>, }
    /// `matchExpressions[]` of any selector.
    SelectorRequirement { key: String, operator: String, values: Vec<String>, }
    /// `spec.affinity.podAffinity` and `podAntiAffinity`.
    PodAffinity {
        #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
        required: Vec<PodAffinityTerm>,
        #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution")]
        preferred: Vec<WeightedPodAffinityTerm>,
    }
    /// `podAffinity.preferredDuringSchedulingIgnoredDuringExecution[]`.
    WeightedPodAffinityTerm { weight: i64, pod_affinity_term: PodAffinityTerm, }
    /// `podAffinity.requiredDuringSchedulingIgnoredDuringExecution[]`.
    PodAffinityTerm {
        label_selector: Option<LabelSelector>,
        topology_key: String,
        namespaces: Vec<String>,
        namespace_selector: Option<LabelSelector>,
        match_label_keys: Vec<String>,
        mismatch_label_keys: Vec<String>,
    }
    /// A selector of objects by their labels.
    LabelSelector { match_labels: BTreeMap<String, String>, match_expressions: Vec<SelectorRequirement>, }
    /// `spec.topologySpreadConstraints[]`.
    TopologySpreadConstraint {
        max_skew: i64,
        topology_key: String,
        when_unsatisfiable: String,
        label_selector: Option<LabelSelector>,
        min_domains: Option<i64>,
        node_affinity_policy: Option<String>,
        node_taints_policy: Option<String>,
        match_label_keys: Vec<String>,
    }
    /// `spec.hostAliases[]`.
    HostAlias { ip: String, hostnames: Vec<String>, }
    /// `spec.dnsConfig`.
    PodDnsConfig { nameservers: Vec<String>, searches: Vec<String>, options: Vec<DnsOption>, }
    /// `spec.dnsConfig.options[]`.
    DnsOption { name: String, value: Option<String>, }
    /// `spec.containers[]`.
    Container {
        name: String,
        image: String,
        image_pull_policy: Option<String>,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        env: Vec<EnvVar>,
        env_from: Vec<EnvFromSource>,
        ports: Vec<ContainerPort>,
        resources: ResourceRequirements,
        volume_mounts: Vec<VolumeMount>,
        security_context: SecurityContext,
        restart_policy: Option<String>,
        resize_policy: Vec<ContainerResizePolicy>,
        liveness_probe: Option<Probe>,
        readiness_probe: Option<Probe>,
        startup_probe: Option<Probe>,
        lifecycle: Option<Lifecycle>,
        termination_message_path: Option<String>,
        termination_message_policy: Option<String>,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
    }
    /// `resizePolicy[]`.
    ContainerResizePolicy { resource_name: String, restart_policy: String, }
    /// `livenessProbe` and its siblings.
    Probe {
        exec: Option<ExecAction>,
        http_get: Option<HttpGetAction>,
        tcp_socket: Option<TcpSocketAction>,
        grpc: Option<GrpcAction>,
        initial_delay_seconds: Option<i64>,
        timeout_seconds: Option<i64>,
        period_seconds: Option<i64>,
        success_threshold: Option<i64>,
        failure_threshold: Option<i64>,
        termination_grace_period_seconds: Option<i64>,
    }
    /// `exec`.
    ExecAction { command: Vec<String>, }
    /// `httpGet`.
    HttpGetAction {
        path: String,
        port: IntOrString,
        host: String,
        scheme: Option<String>,
        http_headers: Vec<HttpHeader>,
    }
    /// `httpHeaders[]`.
    HttpHeader { name: String, value: String, }
    /// `tcpSocket`.
    TcpSocketAction { port: IntOrString, host: String, }
    /// `grpc`.
    GrpcAction { port: i64, service: Option<String>, }
    /// `sleep`.
    SleepAction { seconds: i64, }
    /// `lifecycle`.
    Lifecycle { post_start: Option<LifecycleHandler>, pre_stop: Option<LifecycleHandler>, stop_signal: Option<String>, }
    /// `lifecycle.postStart` and `lifecycle.preStop`.
    LifecycleHandler {
        exec: Option<ExecAction>,
        http_get: Option<HttpGetAction>,
        tcp_socket: Option<TcpSocketAction>,
        sleep: Option<SleepAction>,
    }
    /// `env[]`.
    EnvVar { name: String, value: Option<String>, value_from: Option<EnvVarSource>, }
    /// `env[].valueFrom`.
    EnvVarSource {
        field_ref: Option<ObjectFieldSelector>,
        config_map_key_ref: Option<KeySelector>,
        secret_key_ref: Option<KeySelector>,
        resource_field_ref: Option<ResourceFieldSelector>,
    }
    /// `resourceFieldRef`.
    ResourceFieldSelector { container_name: String, resource: String, divisor: Option<WrittenQuantity>, }
    /// `fieldRef`.
    ObjectFieldSelector { api_version: String, field_path: String, }
    /// `configMapKeyRef` and `secretKeyRef`.
    KeySelector { name: String, key: String, optional: bool, }
    /// `envFrom[]`.
    EnvFromSource { prefix: String, config_map_ref: Option<OptionalReference>, secret_ref: Option<OptionalReference>, }
    /// A reference that may be optional.
    OptionalReference { name: String, optional: bool, }
    /// `ports[]`.
    ContainerPort {
        name: String,
        container_port: i64,
        host_port: i64,
        #[serde(rename = "hostIP")]
        host_ip: String,
        protocol: Option<String>,
    }
    /// `resources`.
    ResourceRequirements {
        limits: BTreeMap<String, WrittenQuantity>,
        requests: BTreeMap<String, WrittenQuantity>,
    }
    /// `volumeMounts[]`.
    VolumeMount {
        name: String,
        mount_path: String,
        read_only: bool,
        recursive_read_only: Option<String>,
        mount_propagation: Option<String>,
        sub_path: String,
        sub_path_expr: String,
    }
    /// `spec.containers[].securityContext`.
    SecurityContext {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        read_only_root_filesystem: bool,
        allow_privilege_escalation: Option<bool>,
        capabilities: Capabilities,
        seccomp_profile: Option<SeccompProfile>,
        app_armor_profile: Option<AppArmorProfile>,
        privileged: bool,
        proc_mount: Option<String>,
    }
    /// `capabilities`.
    Capabilities { add: Vec<String>, drop: Vec<String>, }
    /// `seccompProfile`.
    SeccompProfile {
        #[serde(rename = "type")]
        kind: String,
        localhost_profile: Option<String>,
    }
    /// `appArmorProfile`.
    AppArmorProfile {
        #[serde(rename = "type")]
        kind: String,
        localhost_profile: Option<String>,
    }
    /// `spec.securityContext`.
    PodSecurityContext {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        supplemental_groups: Vec<i64>,
        supplemental_groups_policy: Option<String>,
        fs_group: Option<i64>,
        fs_group_change_policy: Option<String>,
        sysctls: Vec<Sysctl>,
        seccomp_profile: Option<SeccompProfile>,
        app_armor_profile: Option<AppArmorProfile>,
    }
    /// `sysctls[]`.
    Sysctl { name: String, value: String, }
    /// `spec.volumes[]`.
    Volume {
        name: String,
        empty_dir: Option<EmptyDir>,
        config_map: Option<ConfigMapVolume>,
        secret: Option<SecretVolume>,
        host_path: Option<HostPathVolume>,
        projected: Option<ProjectedVolume>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<DownwardVolume>,
        image: Option<ImageVolume>,
        persistent_volume_claim: Option<ClaimVolume>,
    }
    /// `hostPath`.
    HostPathVolume {
        path: String,
        #[serde(rename = "type")]
        kind: Option<String>,
    }
    /// `projected`.
    ProjectedVolume { sources: Vec<ProjectedSource>, default_mode: Option<i64>, }
    /// `projected.sources[]`.
    ProjectedSource {
        config_map: Option<ProjectedConfig>,
        secret: Option<ProjectedConfig>,
        #[serde(rename = "downwardAPI")]
        downward_api: Option<ProjectedDownward>,
    }
    /// `projected.sources[].configMap` and `.secret`.
    ProjectedConfig { name: String, items: Vec<KeyToPath>, optional: bool, }
    /// `projected.sources[].downwardAPI`.
    ProjectedDownward { items: Vec<DownwardItem>, }
    /// `downwardAPI`.
    DownwardVolume { items: Vec<DownwardItem>, default_mode: Option<i64>, }
    /// `downwardAPI.items[]`.
    DownwardItem {
        path: String,
        field_ref: Option<ObjectFieldSelector>,
        resource_field_ref: Option<ResourceFieldSelector>,
        mode: Option<i64>,
    }
    /// `image`.
    ImageVolume { reference: String, pull_policy: Option<String>, }
    /// `persistentVolumeClaim`.
    ClaimVolume { claim_name: String, read_only: bool, }
    /// `emptyDir`.
    EmptyDir { medium: String, size_limit: Option<WrittenQuantity>, }
    /// `configMap` as a volume.
    ConfigMapVolume { name: String, items: Vec<KeyToPath>, default_mode: Option<i64>, optional: bool, }
    /// `secret` as a volume.
    SecretVolume { secret_name: String, items: Vec<KeyToPath>, default_mode: Option<i64>, optional: bool, }
    /// `items[]`.
    KeyToPath { key: String, path: String, mode: Option<i64>, }
    /// A ConfigMap; `binaryData` is base64.
    ConfigMap {
        metadata: ObjectMeta,
        data: BTreeMap<String, String>,
        binary_data: BTreeMap<String, String>,
        immutable: bool,
    }
    /// A Secret; `data` is base64.
    Secret {
        metadata: ObjectMeta,
        data: BTreeMap<String, String>,
        string_data: BTreeMap<String, String>,
        #[serde(rename = "type")]
        kind: String,
        immutable: bool,
    }
    /// A Namespace.
    Namespace { metadata: ObjectMeta, }
}
