//! Every field of the Kubernetes API below a Pod, a ConfigMap, a Secret, a Namespace and the kinds of storage is known here, so that a
//! field which is not supported is never called a typing mistake.
//!
//! The field names come from the `Deserialize` of k8s-openapi's generated types: each hands the list to its
//! deserializer, and the one below only takes it down.

use std::fmt;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde_json::{Value, json};
use skiff_protocol::manifest;

/// The names that a type's `Deserialize` asked for.
#[derive(Debug)]
enum Asked {
    Fields(&'static [&'static str]),
    Otherwise,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Asked {}

impl de::Error for Asked {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Otherwise
    }
}

struct Listener;

impl<'de> Deserializer<'de> for Listener {
    type Error = Asked;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Asked> {
        Err(Asked::Fields(fields))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Asked> {
        Err(Asked::Otherwise)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<T: Deserialize<'static>>() -> &'static [&'static str] {
    match T::deserialize(Listener) {
        Err(Asked::Fields(fields)) if !fields.is_empty() => fields,
        _ => panic!("{} is no struct", std::any::type_name::<T>()),
    }
}

/// Puts `value` at a path such as `spec.containers[].env[]` of an object.
fn nest(path: &str, value: Value) -> Value {
    let mut out = value;
    for part in path.split('.').rev().filter(|part| !part.is_empty()) {
        let (name, list) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        out = if list {
            json!({ name: [out] })
        } else {
            json!({ name: out })
        };
    }
    out
}

/// Fields of the API that are unknown here, by kind and path.
#[derive(Default)]
struct Missing(Vec<String>);

impl Missing {
    /// Asks after each field of `T`, standing at `path`, and after one that no API has.
    fn check<T: Deserialize<'static>>(&mut self, kind: &str, path: &str) {
        for field in fields::<T>() {
            let found = manifest::inspect(kind, &nest(path, json!({ *field: null })));
            self.0.extend(
                found
                    .unknown
                    .iter()
                    .map(|cause| format!("{kind} {}", cause.field)),
            );
        }
        let found = manifest::inspect(kind, &nest(path, json!({ "fieldOfNoApi": null })));
        assert_eq!(found.unknown.len(), 1, "{kind} {path} is not looked into");
    }

    /// What probes and hooks have in common.
    fn actions(&mut self, path: &str) {
        self.check::<core::HTTPGetAction>("Pod", &format!("{path}.httpGet"));
        self.check::<core::HTTPHeader>("Pod", &format!("{path}.httpGet.httpHeaders[]"));
        self.check::<core::TCPSocketAction>("Pod", &format!("{path}.tcpSocket"));
    }
}

#[test]
fn every_field_of_the_api_is_known() {
    let mut missing = Missing::default();
    missing.check::<core::Pod>("Pod", "");
    missing.check::<core::ConfigMap>("ConfigMap", "");
    missing.check::<core::Secret>("Secret", "");
    missing.check::<core::Namespace>("Namespace", "");
    missing.check::<core::PersistentVolumeClaim>("PersistentVolumeClaim", "");
    missing.check::<core::PersistentVolumeClaimSpec>("PersistentVolumeClaim", "spec");
    missing.check::<core::VolumeResourceRequirements>("PersistentVolumeClaim", "spec.resources");
    missing.check::<core::PersistentVolume>("PersistentVolume", "");
    missing.check::<core::PersistentVolumeSpec>("PersistentVolume", "spec");
    missing.check::<core::ObjectReference>("PersistentVolume", "spec.claimRef");
    missing.check::<core::CSIPersistentVolumeSource>("PersistentVolume", "spec.csi");
    missing.check::<storage::StorageClass>("StorageClass", "");
    for kind in manifest::KINDS {
        missing.check::<ObjectMeta>(kind, "metadata");
    }
    missing.check::<core::PodSpec>("Pod", "spec");
    missing.check::<core::PodSecurityContext>("Pod", "spec.securityContext");
    missing.check::<core::SeccompProfile>("Pod", "spec.securityContext.seccompProfile");
    missing.check::<core::AppArmorProfile>("Pod", "spec.securityContext.appArmorProfile");
    missing.check::<core::Sysctl>("Pod", "spec.securityContext.sysctls[]");
    missing.check::<core::PodDNSConfig>("Pod", "spec.dnsConfig");
    missing.check::<core::PodDNSConfigOption>("Pod", "spec.dnsConfig.options[]");
    missing.check::<core::HostAlias>("Pod", "spec.hostAliases[]");
    missing.check::<core::Toleration>("Pod", "spec.tolerations[]");
    missing.check::<core::LocalObjectReference>("Pod", "spec.imagePullSecrets[]");
    missing.check::<core::ResourceRequirements>("Pod", "spec.resources");
    missing.check::<core::Volume>("Pod", "spec.volumes[]");
    missing.check::<core::EmptyDirVolumeSource>("Pod", "spec.volumes[].emptyDir");
    missing.check::<core::ConfigMapVolumeSource>("Pod", "spec.volumes[].configMap");
    missing.check::<core::SecretVolumeSource>("Pod", "spec.volumes[].secret");
    missing.check::<core::KeyToPath>("Pod", "spec.volumes[].configMap.items[]");
    missing.check::<core::KeyToPath>("Pod", "spec.volumes[].secret.items[]");
    missing.check::<core::HostPathVolumeSource>("Pod", "spec.volumes[].hostPath");
    missing.check::<core::ImageVolumeSource>("Pod", "spec.volumes[].image");
    missing.check::<core::PersistentVolumeClaimVolumeSource>("Pod", "spec.volumes[].persistentVolumeClaim");
    missing.check::<core::DownwardAPIVolumeSource>("Pod", "spec.volumes[].downwardAPI");
    missing.check::<core::ProjectedVolumeSource>("Pod", "spec.volumes[].projected");
    let source = "spec.volumes[].projected.sources[]";
    missing.check::<core::VolumeProjection>("Pod", source);
    missing.check::<core::ConfigMapProjection>("Pod", &format!("{source}.configMap"));
    missing.check::<core::SecretProjection>("Pod", &format!("{source}.secret"));
    missing.check::<core::DownwardAPIProjection>("Pod", &format!("{source}.downwardAPI"));
    for items in ["configMap.items[]", "secret.items[]"] {
        missing.check::<core::KeyToPath>("Pod", &format!("{source}.{items}"));
    }
    for downward in [
        format!("{source}.downwardAPI"),
        "spec.volumes[].downwardAPI".to_owned(),
    ] {
        let item = format!("{downward}.items[]");
        missing.check::<core::DownwardAPIVolumeFile>("Pod", &item);
        missing.check::<core::ObjectFieldSelector>("Pod", &format!("{item}.fieldRef"));
        missing.check::<core::ResourceFieldSelector>("Pod", &format!("{item}.resourceFieldRef"));
    }
    missing.check::<core::EphemeralContainer>("Pod", "spec.ephemeralContainers[]");
    for containers in ["spec.containers[]", "spec.initContainers[]"] {
        let at = |rest: &str| format!("{containers}.{rest}");
        missing.check::<core::Container>("Pod", containers);
        missing.check::<core::EnvVar>("Pod", &at("env[]"));
        missing.check::<core::EnvVarSource>("Pod", &at("env[].valueFrom"));
        missing.check::<core::ObjectFieldSelector>("Pod", &at("env[].valueFrom.fieldRef"));
        missing.check::<core::ConfigMapKeySelector>("Pod", &at("env[].valueFrom.configMapKeyRef"));
        missing.check::<core::SecretKeySelector>("Pod", &at("env[].valueFrom.secretKeyRef"));
        missing.check::<core::EnvFromSource>("Pod", &at("envFrom[]"));
        missing.check::<core::ConfigMapEnvSource>("Pod", &at("envFrom[].configMapRef"));
        missing.check::<core::SecretEnvSource>("Pod", &at("envFrom[].secretRef"));
        missing.check::<core::ContainerPort>("Pod", &at("ports[]"));
        missing.check::<core::ResourceRequirements>("Pod", &at("resources"));
        missing.check::<core::VolumeMount>("Pod", &at("volumeMounts[]"));
        missing.check::<core::SecurityContext>("Pod", &at("securityContext"));
        missing.check::<core::Capabilities>("Pod", &at("securityContext.capabilities"));
        missing.check::<core::SeccompProfile>("Pod", &at("securityContext.seccompProfile"));
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            missing.check::<core::Probe>("Pod", &at(probe));
            missing.check::<core::ExecAction>("Pod", &at(&format!("{probe}.exec")));
            missing.check::<core::GRPCAction>("Pod", &at(&format!("{probe}.grpc")));
            missing.actions(&at(probe));
        }
        missing.check::<core::Lifecycle>("Pod", &at("lifecycle"));
        for hook in ["lifecycle.postStart", "lifecycle.preStop"] {
            missing.check::<core::LifecycleHandler>("Pod", &at(hook));
            missing.check::<core::ExecAction>("Pod", &at(&format!("{hook}.exec")));
            missing.check::<core::SleepAction>("Pod", &at(&format!("{hook}.sleep")));
            missing.actions(&at(hook));
        }
        missing.check::<core::ContainerResizePolicy>("Pod", &at("resizePolicy[]"));
        missing.check::<core::ResourceFieldSelector>("Pod", &at("env[].valueFrom.resourceFieldRef"));
        missing.check::<core::AppArmorProfile>("Pod", &at("securityContext.appArmorProfile"));
    }
    assert_eq!(missing.0, Vec::<String>::new());
}

/// What our schema takes, and what Kubernetes calls it: a manifest with every honoured field is one of Kubernetes' too.
#[test]
fn what_is_honoured_is_spelt_as_kubernetes_spells_it() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "n", "namespace": "d", "labels": {"a": "b"}, "annotations": {"a": "b"}},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "nodeSelector": {"a": "b"},
            "nodeName": "n", "hostname": "h", "enableServiceLinks": false,
            "securityContext": {
                "runAsUser": 1, "runAsGroup": 1, "runAsNonRoot": true, "supplementalGroups": [1],
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "a", "image": "a:1", "imagePullPolicy": "Never", "command": ["a"], "args": ["b"],
                "workingDir": "/",
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
                    {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": true}}},
                    {"name": "D", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}},
                ],
                "envFrom": [
                    {"prefix": "P_", "configMapRef": {"name": "m", "optional": true}},
                    {"prefix": "Q_", "secretRef": {"name": "s", "optional": true}},
                ],
                "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "1", "memory": "1Mi"}},
                "volumeMounts": [{"name": "e", "mountPath": "/e", "readOnly": true}],
                "securityContext": {
                    "runAsUser": 1, "runAsGroup": 1, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
                    "allowPrivilegeEscalation": false, "capabilities": {"add": ["KILL"], "drop": ["ALL"]},
                    "seccompProfile": {"type": "Unconfined"},
                },
            }],
            "volumes": [
                {"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "m", "configMap": {
                    "name": "m", "defaultMode": 420, "optional": true, "items": [{"key": "k", "path": "p", "mode": 420}],
                }},
                {"name": "s", "secret": {"secretName": "s", "defaultMode": 420, "optional": true, "items": []}},
            ],
        },
    });
    assert_eq!(manifest::inspect("Pod", &pod), manifest::Inspection::default());
    let parsed = skiff_protocol::pod::Pod::parse(&pod).unwrap();
    assert_eq!(parsed.warnings, []);
    let theirs: core::Pod = serde_json::from_value(pod.clone()).unwrap();
    let mut again = serde_json::to_value(theirs).unwrap();
    // Kubernetes leaves an empty list out.
    again["spec"]["volumes"][2]["secret"]["items"] = json!([]);
    assert_eq!(
        again, pod,
        "a field that Kubernetes does not know would be lost here"
    );
}
