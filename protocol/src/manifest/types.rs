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
        hostname: String,
        security_context: PodSecurityContext,
    }
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
    }
    /// `env[]`.
    EnvVar { name: String, value: Option<String>, value_from: Option<EnvVarSource>, }
    /// `env[].valueFrom`.
    EnvVarSource {
        field_ref: Option<ObjectFieldSelector>,
        config_map_key_ref: Option<KeySelector>,
        secret_key_ref: Option<KeySelector>,
    }
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
    VolumeMount { name: String, mount_path: String, read_only: bool, }
    /// `spec.containers[].securityContext`.
    SecurityContext {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        read_only_root_filesystem: bool,
        allow_privilege_escalation: Option<bool>,
        capabilities: Capabilities,
        seccomp_profile: Option<SeccompProfile>,
    }
    /// `capabilities`.
    Capabilities { add: Vec<String>, drop: Vec<String>, }
    /// `seccompProfile`.
    SeccompProfile {
        #[serde(rename = "type")]
        kind: String,
    }
    /// `spec.securityContext`.
    PodSecurityContext {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        supplemental_groups: Vec<i64>,
        seccomp_profile: Option<SeccompProfile>,
    }
    /// `spec.volumes[]`.
    Volume {
        name: String,
        empty_dir: Option<EmptyDir>,
        config_map: Option<ConfigMapVolume>,
        secret: Option<SecretVolume>,
    }
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
