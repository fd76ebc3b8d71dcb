//! The fields of the Kubernetes API that a manifest may have, and how far each is honoured.
//!
//! Source: the Kubernetes API reference, core/v1. Always holds: a field of `PodSpec` or `Container` is listed
//! here, so that a typing mistake and an unsupported field are never confused.

use super::schema::Shape::{Any, Bool, Int, IntOrString, List, Object, Quantities, Quantity, Str, Strings};
use super::schema::{Field, later, refused, yes};

mod affinity;
mod volumes;

/// The schema of a kind.
pub(super) fn of(kind: &str) -> Option<&'static [Field]> {
    Some(match kind {
        "Pod" => &POD,
        "ConfigMap" => &CONFIG_MAP,
        "Secret" => &SECRET,
        "Namespace" => &NAMESPACE,
        "PersistentVolume" => &volumes::VOLUME,
        "PersistentVolumeClaim" => &volumes::CLAIM,
        "StorageClass" => &volumes::CLASS,
        _ => return None,
    })
}

pub(super) static POD: [Field; 5] = [
    yes("apiVersion", Str),
    yes("kind", Str),
    yes("metadata", Object(&METADATA)),
    yes("spec", Object(&POD_SPEC)),
    yes("status", Any),
];

static CONFIG_MAP: [Field; 6] = [
    yes("apiVersion", Str),
    yes("kind", Str),
    yes("metadata", Object(&METADATA)),
    yes("data", Strings),
    yes("binaryData", Strings),
    yes("immutable", Bool),
];

static SECRET: [Field; 7] = [
    yes("apiVersion", Str),
    yes("kind", Str),
    yes("metadata", Object(&METADATA)),
    yes("data", Strings),
    yes("stringData", Strings),
    yes("type", Str),
    yes("immutable", Bool),
];

static NAMESPACE: [Field; 5] = [
    yes("apiVersion", Str),
    yes("kind", Str),
    yes("metadata", Object(&METADATA)),
    yes("spec", Any),
    yes("status", Any),
];

static METADATA: [Field; 15] = [
    yes("name", Str),
    yes("namespace", Str),
    yes("generateName", Str),
    yes("labels", Strings),
    yes("annotations", Strings),
    yes("uid", Str),
    yes("resourceVersion", Str),
    yes("generation", Int),
    yes("creationTimestamp", Str),
    yes("deletionTimestamp", Str),
    yes("deletionGracePeriodSeconds", Int),
    yes("finalizers", List(&Str)),
    yes("ownerReferences", List(&Any)).noted("kept; nothing goes with its owner"),
    yes("managedFields", List(&Any)).noted("dropped"),
    yes("selfLink", Str).noted("dropped"),
];

static POD_SPEC: [Field; 43] = [
    yes("containers", List(&Object(&CONTAINER))),
    yes("initContainers", List(&Object(&CONTAINER))),
    refused("ephemeralContainers", List(&Object(&CONTAINER)), &[]),
    yes("volumes", List(&Object(&VOLUME))),
    yes("restartPolicy", Str),
    yes("terminationGracePeriodSeconds", Int),
    yes("activeDeadlineSeconds", Int),
    yes("dnsPolicy", Str).noted("there is no DNS of the fleet, so ClusterFirst is the node's"),
    yes("dnsConfig", Object(&DNS_CONFIG)),
    yes("nodeSelector", Strings),
    yes("nodeName", Str),
    later("serviceAccountName", Str, &["\"default\"", "\"\""]),
    later("serviceAccount", Str, &["\"default\"", "\"\""]),
    // There is no token to mount, so only a wish for one goes unheard.
    later("automountServiceAccountToken", Bool, &[]),
    yes("hostNetwork", Bool).noted("where the node's policy allows it"),
    yes("hostPID", Bool).noted("where the node's policy allows it"),
    yes("hostIPC", Bool).noted("where the node's policy allows it"),
    yes("hostUsers", Bool).noted("`false` where the node's kernel can"),
    yes("shareProcessNamespace", Bool),
    yes("securityContext", Object(&POD_SECURITY)),
    yes("imagePullSecrets", List(&Object(&LOCAL_REFERENCE))),
    yes("hostname", Str),
    yes("subdomain", Str),
    yes("setHostnameAsFQDN", Bool),
    yes("hostAliases", List(&Object(&HOST_ALIAS))),
    yes("affinity", Object(&affinity::AFFINITY)),
    later("schedulerName", Str, &["\"default-scheduler\"", "\"\""]),
    yes("tolerations", List(&Object(&TOLERATION)))
        .noted("a taint keeps Pods away; one of NoExecute ends none that run"),
    later("priorityClassName", Str, &["\"\""]),
    later("priority", Int, &["0"]),
    later("preemptionPolicy", Str, &["\"PreemptLowerPriority\""]),
    later("readinessGates", List(&Any), &[]),
    later("runtimeClassName", Str, &[]),
    // There are no Services yet, so there are no links to leave out.
    yes("enableServiceLinks", Bool).noted("there are no Services to link to"),
    later("overhead", Quantities, &[]),
    yes("topologySpreadConstraints", List(&Object(&affinity::SPREAD))),
    refused("os", Any, &["{\"name\":\"linux\"}"]),
    refused("schedulingGates", List(&Any), &[]),
    refused("resourceClaims", List(&Any), &[]),
    yes("resources", Object(&RESOURCES)),
    later("hostnameOverride", Str, &[]),
    later("evictionResponders", List(&Any), &[]),
    refused("schedulingGroup", Any, &[]),
];

static CONTAINER: [Field; 26] = [
    yes("name", Str),
    yes("image", Str),
    yes("imagePullPolicy", Str),
    yes("command", List(&Str)),
    yes("args", List(&Str)),
    yes("workingDir", Str),
    yes("env", List(&Object(&ENV))),
    yes("envFrom", List(&Object(&ENV_FROM))),
    yes("ports", List(&Object(&PORT))),
    yes("resources", Object(&RESOURCES)),
    yes("resizePolicy", List(&Object(&RESIZE_POLICY))),
    yes("restartPolicy", Str).noted("Always, of an init container"),
    refused("restartPolicyRules", List(&Any), &[]),
    yes("volumeMounts", List(&Object(&VOLUME_MOUNT))),
    refused("volumeDevices", List(&Any), &[]),
    yes("securityContext", Object(&SECURITY)),
    yes("livenessProbe", Object(&PROBE)),
    yes("readinessProbe", Object(&PROBE)),
    yes("startupProbe", Object(&PROBE)),
    yes("lifecycle", Object(&LIFECYCLE)),
    yes("terminationMessagePath", Str),
    yes("terminationMessagePolicy", Str),
    yes("stdin", Bool).noted("it stays open; nobody can attach to it yet"),
    later("stdinOnce", Bool, &[]),
    yes("tty", Bool),
    refused("targetContainerName", Str, &[]),
];

static ENV: [Field; 3] = [
    yes("name", Str),
    yes("value", Str),
    yes("valueFrom", Object(&ENV_SOURCE)),
];

static ENV_SOURCE: [Field; 5] = [
    yes("fieldRef", Object(&FIELD_REF)),
    yes("resourceFieldRef", Object(&RESOURCE_FIELD)),
    yes("configMapKeyRef", Object(&KEY_REF)),
    yes("secretKeyRef", Object(&KEY_REF)),
    refused("fileKeyRef", Any, &[]),
];

static FIELD_REF: [Field; 2] = [yes("apiVersion", Str), yes("fieldPath", Str)];

static KEY_REF: [Field; 3] = [yes("name", Str), yes("key", Str), yes("optional", Bool)];

static ENV_FROM: [Field; 3] = [
    yes("prefix", Str),
    yes("configMapRef", Object(&REF)),
    yes("secretRef", Object(&REF)),
];

static REF: [Field; 2] = [yes("name", Str), yes("optional", Bool)];

static LOCAL_REFERENCE: [Field; 1] = [yes("name", Str)];

static PORT: [Field; 5] = [
    yes("name", Str),
    yes("containerPort", Int),
    yes("hostPort", Int),
    yes("hostIP", Str),
    yes("protocol", Str),
];

static RESOURCES: [Field; 3] = [
    yes("limits", Quantities),
    yes("requests", Quantities),
    refused("claims", List(&Any), &[]),
];

static VOLUME_MOUNT: [Field; 8] = [
    yes("name", Str),
    yes("mountPath", Str),
    yes("readOnly", Bool),
    yes("subPath", Str),
    yes("subPathExpr", Str),
    yes("mountPropagation", Str),
    yes("recursiveReadOnly", Str),
    refused("bindMountOptions", List(&Any), &[]),
];

static SECURITY: [Field; 12] = [
    yes("runAsUser", Int),
    yes("runAsGroup", Int),
    yes("runAsNonRoot", Bool),
    yes("readOnlyRootFilesystem", Bool),
    yes("allowPrivilegeEscalation", Bool),
    yes("capabilities", Object(&CAPABILITIES))
        .noted("beyond those that a container has by default, where the node's policy allows it"),
    yes("privileged", Bool).noted("where the node's policy allows it"),
    yes("seccompProfile", Object(&SECCOMP)).noted("an absent profile means `RuntimeDefault`"),
    yes("procMount", Str).noted("Unmasked needs hostUsers: false"),
    later("seLinuxOptions", Any, &[]),
    yes("appArmorProfile", Object(&APP_ARMOR)).noted("where the node's kernel has AppArmor"),
    refused("windowsOptions", Any, &[]),
];

static CAPABILITIES: [Field; 2] = [yes("add", List(&Str)), yes("drop", List(&Str))];

static SECCOMP: [Field; 2] = [yes("type", Str), yes("localhostProfile", Str)];

static POD_SECURITY: [Field; 13] = [
    yes("runAsUser", Int),
    yes("runAsGroup", Int),
    yes("runAsNonRoot", Bool),
    yes("supplementalGroups", List(&Int)),
    yes("supplementalGroupsPolicy", Str),
    yes("fsGroup", Int),
    yes("fsGroupChangePolicy", Str),
    yes("seccompProfile", Object(&SECCOMP)),
    yes("sysctls", List(&Object(&SYSCTL))).noted("the safe ones"),
    later("seLinuxOptions", Any, &[]),
    later("seLinuxChangePolicy", Str, &[]),
    yes("appArmorProfile", Object(&APP_ARMOR)).noted("where the node's kernel has AppArmor"),
    refused("windowsOptions", Any, &[]),
];

static SYSCTL: [Field; 2] = [yes("name", Str), yes("value", Str)];

static APP_ARMOR: [Field; 2] = [yes("type", Str), yes("localhostProfile", Str)];

static PROBE: [Field; 10] = [
    yes("exec", Object(&EXEC)),
    yes("httpGet", Object(&HTTP_GET)),
    yes("tcpSocket", Object(&TCP_SOCKET)),
    yes("grpc", Object(&GRPC)),
    yes("initialDelaySeconds", Int),
    yes("timeoutSeconds", Int),
    yes("periodSeconds", Int),
    yes("successThreshold", Int),
    yes("failureThreshold", Int),
    yes("terminationGracePeriodSeconds", Int),
];

static HTTP_GET: [Field; 6] = [
    yes("path", Str),
    yes("port", IntOrString),
    yes("host", Str),
    yes("scheme", Str),
    yes("httpHeaders", List(&Object(&HTTP_HEADER))),
    yes("protocol", Str),
];

static HTTP_HEADER: [Field; 2] = [yes("name", Str), yes("value", Str)];

static EXEC: [Field; 1] = [yes("command", List(&Str))];

static TCP_SOCKET: [Field; 2] = [yes("port", IntOrString), yes("host", Str)];

static GRPC: [Field; 3] = [
    yes("port", Int),
    yes("service", Str),
    refused("mode", Str, &["\"Plaintext\""]),
];

static SLEEP: [Field; 1] = [yes("seconds", Int)];

static LIFECYCLE: [Field; 3] = [
    yes("postStart", Object(&HOOK)),
    yes("preStop", Object(&HOOK)),
    yes("stopSignal", Str),
];

static HOOK: [Field; 4] = [
    yes("exec", Object(&EXEC)),
    yes("httpGet", Object(&HTTP_GET)),
    yes("tcpSocket", Object(&TCP_SOCKET)),
    yes("sleep", Object(&SLEEP)),
];

static RESIZE_POLICY: [Field; 2] = [yes("resourceName", Str), yes("restartPolicy", Str)];

static RESOURCE_FIELD: [Field; 3] = [
    yes("containerName", Str),
    yes("resource", Str),
    yes("divisor", Quantity),
];

static DNS_CONFIG: [Field; 3] = [
    yes("nameservers", List(&Str)),
    yes("searches", List(&Str)),
    yes("options", List(&Object(&DNS_OPTION))),
];

static DNS_OPTION: [Field; 2] = [yes("name", Str), yes("value", Str)];

static HOST_ALIAS: [Field; 2] = [yes("ip", Str), yes("hostnames", List(&Str))];

static TOLERATION: [Field; 5] = [
    yes("key", Str),
    yes("operator", Str),
    yes("value", Str),
    yes("effect", Str),
    yes("tolerationSeconds", Int).noted("kept; no Pod is ended after it"),
];

static VOLUME: [Field; 31] = [
    yes("name", Str),
    yes("emptyDir", Object(&EMPTY_DIR)),
    yes("configMap", Object(&CONFIG_MAP_VOLUME)),
    yes("secret", Object(&SECRET_VOLUME)),
    yes("hostPath", Object(&HOST_PATH)).noted("where the node's policy allows it"),
    yes("projected", Object(&PROJECTED)),
    yes("downwardAPI", Object(&DOWNWARD)),
    yes("image", Object(&IMAGE_VOLUME)),
    yes("persistentVolumeClaim", Object(&CLAIM)).noted("directories of one node"),
    refused("ephemeral", Any, &[]),
    refused("csi", Any, &[]),
    refused("nfs", Any, &[]),
    refused("iscsi", Any, &[]),
    refused("fc", Any, &[]),
    refused("awsElasticBlockStore", Any, &[]),
    refused("azureDisk", Any, &[]),
    refused("azureFile", Any, &[]),
    refused("cephfs", Any, &[]),
    refused("cinder", Any, &[]),
    refused("flexVolume", Any, &[]),
    refused("flocker", Any, &[]),
    refused("gcePersistentDisk", Any, &[]),
    refused("gitRepo", Any, &[]),
    refused("glusterfs", Any, &[]),
    refused("photonPersistentDisk", Any, &[]),
    refused("portworxVolume", Any, &[]),
    refused("quobyte", Any, &[]),
    refused("rbd", Any, &[]),
    refused("scaleIO", Any, &[]),
    refused("storageos", Any, &[]),
    refused("vsphereVolume", Any, &[]),
];

static EMPTY_DIR: [Field; 3] = [
    yes("medium", Str),
    yes("sizeLimit", Quantity),
    later("mode", Int, &[]),
];

static CONFIG_MAP_VOLUME: [Field; 5] = [
    yes("name", Str),
    yes("items", List(&Object(&KEY_TO_PATH))),
    yes("defaultMode", Int),
    yes("optional", Bool),
    later("defaultUser", Int, &[]),
];

static SECRET_VOLUME: [Field; 5] = [
    yes("secretName", Str),
    yes("items", List(&Object(&KEY_TO_PATH))),
    yes("defaultMode", Int),
    yes("optional", Bool),
    later("defaultUser", Int, &[]),
];

static KEY_TO_PATH: [Field; 4] = [
    yes("key", Str),
    yes("path", Str),
    yes("mode", Int),
    later("user", Int, &[]),
];

static HOST_PATH: [Field; 2] = [yes("path", Str), yes("type", Str)];

static PROJECTED: [Field; 3] = [
    yes("sources", List(&Object(&PROJECTION))),
    yes("defaultMode", Int),
    later("defaultUser", Int, &[]),
];

static PROJECTION: [Field; 6] = [
    yes("configMap", Object(&PROJECTED_CONFIG)),
    yes("secret", Object(&PROJECTED_CONFIG)),
    yes("downwardAPI", Object(&PROJECTED_DOWNWARD)),
    // There are no tokens: the fleet's API knows people and nodes, not Pods.
    refused("serviceAccountToken", Any, &[]),
    refused("clusterTrustBundle", Any, &[]),
    refused("podCertificate", Any, &[]),
];

static PROJECTED_CONFIG: [Field; 3] = [
    yes("name", Str),
    yes("items", List(&Object(&KEY_TO_PATH))),
    yes("optional", Bool),
];

static PROJECTED_DOWNWARD: [Field; 1] = [yes("items", List(&Object(&DOWNWARD_ITEM)))];

static DOWNWARD: [Field; 3] = [
    yes("items", List(&Object(&DOWNWARD_ITEM))),
    yes("defaultMode", Int),
    later("defaultUser", Int, &[]),
];

static DOWNWARD_ITEM: [Field; 5] = [
    yes("path", Str),
    yes("fieldRef", Object(&FIELD_REF)),
    yes("resourceFieldRef", Object(&RESOURCE_FIELD)),
    yes("mode", Int),
    later("user", Int, &[]),
];

static IMAGE_VOLUME: [Field; 2] = [yes("reference", Str), yes("pullPolicy", Str)];

static CLAIM: [Field; 2] = [yes("claimName", Str), yes("readOnly", Bool)];
