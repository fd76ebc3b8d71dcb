//! Invalid Pods, each with the complaint in Kubernetes' wording.
//!
//! Each row changes one valid Pod at one place (an RFC 6901 pointer), and names every complaint that follows.

use serde_json::{Value, json};
use skiff_protocol::limits;
use skiff_protocol::manifest::Reason::{
    self, Duplicate, Forbidden, Invalid, NotSupported, Required, TooLong, TypeInvalid,
};
use skiff_protocol::pod::Pod;

/// A Pod with one of everything that the rows below spoil.
fn valid() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}, "annotations": {}},
        "spec": {
            "containers": [
                {
                    "name": "app", "image": "app:1", "command": ["run"], "args": [],
                    "env": [
                        {"name": "A", "value": "1"},
                        {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    ],
                    "envFrom": [{"configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}],
                    "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}, {"containerPort": 81}],
                    "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "64Mi"}},
                    "volumeMounts": [
                        {"name": "scratch", "mountPath": "/scratch"}, {"name": "config", "mountPath": "/config"},
                    ],
                    "securityContext": {"runAsUser": 1, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}},
                },
                {"name": "side", "image": "side:1"},
            ],
            "volumes": [
                {"name": "scratch", "emptyDir": {}},
                {"name": "config", "configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
                {"name": "keys", "secret": {"secretName": "s", "items": [{"key": "k", "path": "p"}]}},
            ],
            "securityContext": {"runAsUser": 1},
        },
    })
}

/// `valid()` with `value` at `pointer`, members made on the way.
fn spoiled(pointer: &str, value: Value) -> Value {
    let mut pod = valid();
    let mut at = &mut pod;
    for part in pointer.split('/').skip(1) {
        at = match part.parse::<usize>() {
            Ok(index) if at.is_array() => &mut at[index],
            _ => &mut at[part.replace("~1", "/").as_str()],
        };
    }
    *at = value;
    pod
}

/// One row: where, what, and each complaint as (field, reason, part of the message).
fn check(pointer: &str, value: Value, expected: &[(&str, Reason, &str)]) {
    let pod = spoiled(pointer, value);
    let causes = Pod::parse(&pod).err().unwrap_or_default();
    let fields: Vec<_> = causes
        .iter()
        .map(|cause| (cause.field.as_str(), cause.reason))
        .collect();
    let wanted: Vec<_> = expected
        .iter()
        .map(|(field, reason, _)| (*field, *reason))
        .collect();
    assert_eq!(fields, wanted, "{pointer}\n{causes:#?}");
    for (cause, (_, _, text)) in causes.iter().zip(expected) {
        assert!(
            cause.message.contains(text),
            "{pointer}: {:?} lacks {text:?}",
            cause.message
        );
    }
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of";
const C: &str = "spec.containers[0]";

fn c(rest: &str) -> String {
    format!("{C}.{rest}")
}

#[test]
fn the_base_is_valid() {
    let parsed = Pod::parse(&valid()).unwrap();
    assert_eq!(parsed.warnings, []);
}

#[test]
fn types_and_metadata() {
    let long = "a".repeat(64);
    let (name, labels, annotations) = ("metadata.name", "metadata.labels", "metadata.annotations");
    for (pointer, value, field, reason, text) in [
        (
            "/apiVersion",
            json!(null),
            "apiVersion",
            Required,
            "write apiVersion: v1",
        ),
        (
            "/apiVersion",
            json!("v2"),
            "apiVersion",
            NotSupported,
            "supported values: \"v1\"",
        ),
        ("/kind", json!(null), "kind", Required, "write kind: Pod"),
        (
            "/kind",
            json!("Pods"),
            "kind",
            NotSupported,
            "did you mean \"Pod\"?",
        ),
        (
            "/metadata/name",
            json!(null),
            name,
            Required,
            "name or generateName is required",
        ),
        (
            "/metadata/name",
            json!("Web"),
            name,
            Invalid,
            "Invalid value: \"Web\": a lowercase RFC 1123 subdomain",
        ),
        ("/metadata/name", json!("web-"), name, Invalid, "subdomain"),
        ("/metadata/name", json!("a..b"), name, Invalid, "subdomain"),
        (
            "/metadata/name",
            json!("a".repeat(254)),
            name,
            Invalid,
            "must be no more than 253 bytes",
        ),
        (
            "/metadata/name",
            json!(7),
            name,
            TypeInvalid,
            "expected a string, found the number 7",
        ),
        (
            "/metadata/namespace",
            json!("a.b"),
            "metadata.namespace",
            Invalid,
            LABEL,
        ),
        (
            "/metadata/namespace",
            json!(long),
            "metadata.namespace",
            Invalid,
            "must be no more than 63 bytes",
        ),
        (
            "/metadata/uid",
            json!("7"),
            "metadata.uid",
            Invalid,
            "must be a UUID",
        ),
        (
            "/metadata/labels/-bad",
            json!("x"),
            labels,
            Invalid,
            "Invalid value: \"-bad\": a label's key is",
        ),
        (
            "/metadata/labels/app",
            json!("no good"),
            labels,
            Invalid,
            "a valid label must be an empty string",
        ),
        (
            "/metadata/labels/app",
            json!(1.5),
            "metadata.labels.app",
            TypeInvalid,
            "write it in quotes: \"1.5\"",
        ),
        (
            "/metadata/labels/app",
            json!(true),
            "metadata.labels.app",
            TypeInvalid,
            "found the boolean true",
        ),
        (
            "/metadata/annotations/a b",
            json!("x"),
            annotations,
            Invalid,
            "an annotation's key is",
        ),
        (
            "/metadata/annotations/a",
            json!("x".repeat(limits::ANNOTATION_BYTES)),
            annotations,
            TooLong,
            "262144 bytes",
        ),
        (
            "/spec",
            json!("x"),
            "spec",
            TypeInvalid,
            "expected an object, found the string \"x\"",
        ),
        (
            "/spec/containers",
            json!({"name": "a"}),
            "spec.containers",
            TypeInvalid,
            "expected a list, found an object; begin it with '- '",
        ),
        (
            "/spec/containers",
            json!([null]),
            C,
            TypeInvalid,
            "expected a list item, found nothing",
        ),
        (
            "/spec/volumes",
            json!("x"),
            "spec.volumes",
            TypeInvalid,
            "expected a list",
        ),
    ] {
        check(pointer, value, &[(field, reason, text)]);
    }
}

#[test]
fn the_pod() {
    let user = "spec.securityContext.runAsUser";
    for (pointer, value, field, reason, text) in [
        (
            "/spec/restartPolicy",
            json!("always"),
            "spec.restartPolicy",
            NotSupported,
            "did you mean \"Always\"?",
        ),
        (
            "/spec/terminationGracePeriodSeconds",
            json!(-1),
            "spec.terminationGracePeriodSeconds",
            Invalid,
            "must be greater than or equal to 0",
        ),
        (
            "/spec/terminationGracePeriodSeconds",
            json!("30"),
            "spec.terminationGracePeriodSeconds",
            TypeInvalid,
            "write it without quotes: 30",
        ),
        (
            "/spec/terminationGracePeriodSeconds",
            json!("soon"),
            "spec.terminationGracePeriodSeconds",
            TypeInvalid,
            "expected an integer, found the string \"soon\"",
        ),
        ("/spec/hostname", json!("a.b"), "spec.hostname", Invalid, LABEL),
        (
            "/spec/nodeName",
            json!("Rover_7"),
            "spec.nodeName",
            Invalid,
            "at most 23 lower case letters",
        ),
        (
            "/spec/nodeSelector/disk",
            json!("s s d"),
            "spec.nodeSelector",
            Invalid,
            "a valid label must be",
        ),
        (
            "/spec/securityContext/runAsUser",
            json!(-1),
            user,
            Invalid,
            "must be between 0 and 2147483647, inclusive",
        ),
        (
            "/spec/securityContext/runAsUser",
            json!(1_i64 << 31),
            user,
            Invalid,
            "must be between 0 and 2147483647",
        ),
        (
            "/spec/securityContext/runAsUser",
            json!("root"),
            user,
            TypeInvalid,
            "expected an integer",
        ),
        (
            "/spec/securityContext/supplementalGroups",
            json!([1, -2]),
            "spec.securityContext.supplementalGroups[1]",
            Invalid,
            "must be between",
        ),
        (
            "/spec/securityContext/seccompProfile",
            json!({"type": "Localhost"}),
            "spec.securityContext.seccompProfile.localhostProfile",
            Required,
            "must be set when type is Localhost",
        ),
        (
            "/spec/containers/0",
            json!({"name": "a", "image": "a:1", "lifecycle": {"preStop": {}}}),
            "spec.containers[0].lifecycle.preStop",
            Required,
            "must specify a handler type",
        ),
        (
            "/spec/dnsPolicy",
            json!("None"),
            "spec.dnsConfig.nameservers",
            Required,
            "must provide at least one DNS nameserver",
        ),
        (
            "/spec/dnsConfig",
            json!({"nameservers": ["ns.example"]}),
            "spec.dnsConfig.nameservers[0]",
            Invalid,
            "must be a valid IP address",
        ),
        (
            "/spec/hostAliases",
            json!([{"ip": "here", "hostnames": ["a"]}]),
            "spec.hostAliases[0].ip",
            Invalid,
            "must be a valid IP address",
        ),
        (
            "/spec/securityContext/sysctls",
            json!([{"name": "kernel.x", "value": "1"}]),
            "spec.securityContext.sysctls[0].name",
            Forbidden,
            "is not in the safe set",
        ),
        (
            "/spec/initContainers",
            json!([{"name": "i", "image": "i:1", "livenessProbe": {"exec": {"command": ["a"]}}}]),
            "spec.initContainers[0].livenessProbe",
            Forbidden,
            "may not be set for init containers without restartPolicy=Always",
        ),
        (
            "/spec/activeDeadlineSeconds",
            json!(0),
            "spec.activeDeadlineSeconds",
            Invalid,
            "must be between 1 and 2147483647, inclusive",
        ),
        (
            "/spec/os",
            json!({"name": "windows"}),
            "spec.os",
            Forbidden,
            "not supported",
        ),
        (
            "/spec/containers",
            json!([]),
            "spec.containers",
            Required,
            "a Pod runs at least one container",
        ),
    ] {
        let mut pod = valid();
        if pointer == "/spec/containers" {
            pod["spec"]["volumes"] = json!([]);
        }
        check(pointer, value, &[(field, reason, text)]);
    }
}

#[test]
fn containers() {
    let at = "/spec/containers/0/";
    for (rest, value, field, reason, text) in [
        ("name", json!(""), "name", Required, "Required value"),
        ("name", json!("a.b"), "name", Invalid, LABEL),
        (
            "name",
            json!("a".repeat(64)),
            "name",
            Invalid,
            "must be no more than 63 bytes",
        ),
        ("image", json!(""), "image", Required, "Required value"),
        (
            "image",
            json!(" app:1"),
            "image",
            Invalid,
            "must not have leading or trailing whitespace",
        ),
        (
            "imagePullPolicy",
            json!("Sometimes"),
            "imagePullPolicy",
            NotSupported,
            "supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            "command",
            json!("run me"),
            "command",
            TypeInvalid,
            "begin it with '- '",
        ),
        (
            "command",
            json!(["a\0b"]),
            "command",
            Invalid,
            "must not contain a NUL byte",
        ),
        (
            "args",
            json!([8080]),
            "args[0]",
            TypeInvalid,
            "write it in quotes: \"8080\"",
        ),
        (
            "args",
            json!(["x".repeat(limits::ARGS_BYTES)]),
            "",
            TooLong,
            "262144 bytes of command, args and env",
        ),
        (
            "stdin",
            json!("yes"),
            "stdin",
            TypeInvalid,
            "expected true or false",
        ),
        (
            "restartPolicy",
            json!("Always"),
            "restartPolicy",
            Forbidden,
            "may not be set for non-init containers",
        ),
        ("env/0/name", json!(""), "env[0].name", Required, "Required value"),
        (
            "env/0/name",
            json!("A=B"),
            "env[0].name",
            Invalid,
            "printable ASCII characters other than '='",
        ),
        ("env/0/value", json!("a\0b"), "env[0].value", Invalid, "NUL"),
        (
            "env/1/value",
            json!("x"),
            "env[1].valueFrom",
            Invalid,
            "may not be specified when `value` is not empty",
        ),
        (
            "env/1/valueFrom",
            json!({}),
            "env[1].valueFrom",
            Invalid,
            "must specify one of",
        ),
        (
            "env/1/valueFrom/secretKeyRef",
            json!({"name": "s", "key": "k"}),
            "env[1].valueFrom",
            Invalid,
            "may not have more than one field specified",
        ),
        (
            "env/1/valueFrom/fieldRef/fieldPath",
            json!("status.phase"),
            "env[1].valueFrom.fieldRef.fieldPath",
            NotSupported,
            "\"metadata.name\"",
        ),
        (
            "env/1/valueFrom",
            json!({"resourceFieldRef": {"resource": "limits.gpu"}}),
            "env[1].valueFrom.resourceFieldRef.resource",
            NotSupported,
            "supported values: \"limits.cpu\"",
        ),
        (
            "env/2/valueFrom/secretKeyRef/name",
            json!(""),
            "env[2].valueFrom.secretKeyRef.name",
            Required,
            "Required value",
        ),
        (
            "env/2/valueFrom/secretKeyRef/key",
            json!(""),
            "env[2].valueFrom.secretKeyRef.key",
            Required,
            "Required value",
        ),
        (
            "envFrom/0",
            json!({}),
            "envFrom[0]",
            Invalid,
            "must specify one of: `configMapRef` or `secretRef`",
        ),
        (
            "envFrom/0/secretRef",
            json!({"name": "s"}),
            "envFrom[0]",
            Invalid,
            "more than one field",
        ),
        (
            "envFrom/1/secretRef/name",
            json!(""),
            "envFrom[1].secretRef.name",
            Required,
            "Required value",
        ),
        (
            "volumeMounts/0/name",
            json!(""),
            "volumeMounts[0].name",
            Required,
            "Required value",
        ),
        (
            "volumeMounts/0/name",
            json!("nowhere"),
            "volumeMounts[0].name",
            Invalid,
            "Not found: \"nowhere\"",
        ),
        (
            "volumeMounts/0/mountPath",
            json!(""),
            "volumeMounts[0].mountPath",
            Required,
            "Required value",
        ),
        (
            "volumeMounts/0/mountPath",
            json!("/a:b"),
            "volumeMounts[0].mountPath",
            Invalid,
            "must not contain ':'",
        ),
        (
            "volumeMounts/0/mountPath",
            json!("/a/../b"),
            "volumeMounts[0].mountPath",
            Invalid,
            "must not contain '..'",
        ),
        (
            "volumeMounts/1/mountPath",
            json!("/scratch/"),
            "volumeMounts[1].mountPath",
            Invalid,
            "must be unique",
        ),
        (
            "volumeMounts/0/subPath",
            json!("a/../../b"),
            "volumeMounts[0].subPath",
            Invalid,
            "must not contain '..'",
        ),
        (
            "volumeMounts/0/mountPropagation",
            json!("Bidirectional"),
            "volumeMounts[0].mountPropagation",
            Forbidden,
            "available only to privileged containers",
        ),
        (
            "securityContext",
            json!({"privileged": true, "allowPrivilegeEscalation": false}),
            "securityContext",
            Invalid,
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ),
        (
            "livenessProbe",
            json!({"httpGet": {"port": 80}, "periodSeconds": -1}),
            "livenessProbe.periodSeconds",
            Invalid,
            "must be greater than or equal to",
        ),
        (
            "livenessProbe",
            json!({"httpGet": {"port": 80}, "successThreshold": 2}),
            "livenessProbe.successThreshold",
            Invalid,
            "must be 1",
        ),
        (
            "readinessProbe",
            json!({"httpGet": {"port": 0}}),
            "readinessProbe.httpGet.port",
            Invalid,
            "must be between 1 and 65535, inclusive",
        ),
        (
            "readinessProbe",
            json!({"httpGet": {"port": 80}, "tcpSocket": {"port": 80}}),
            "readinessProbe",
            Forbidden,
            "may not specify more than 1 handler type",
        ),
        (
            "securityContext/runAsUser",
            json!(-1),
            "securityContext.runAsUser",
            Invalid,
            "must be between",
        ),
        (
            "securityContext/capabilities/add/0",
            json!("NET_ADMNI"),
            "securityContext.capabilities.add[0]",
            Invalid,
            "did you mean \"NET_ADMIN\"?",
        ),
        (
            "securityContext/capabilities/drop/0",
            json!("all"),
            "securityContext.capabilities.drop[0]",
            Invalid,
            "not a Linux capability",
        ),
    ] {
        let field = if field.is_empty() { C.to_owned() } else { c(field) };
        check(&format!("{at}{rest}"), value, &[(&field, reason, text)]);
    }
}

#[test]
fn ports_and_resources() {
    let at = "/spec/containers/0/";
    let range = "must be between 1 and 65535, inclusive";
    for (rest, value, field, reason, text) in [
        (
            "ports/0/containerPort",
            json!(null),
            "ports[0].containerPort",
            Required,
            "Required value",
        ),
        (
            "ports/0/containerPort",
            json!(0),
            "ports[0].containerPort",
            Required,
            "Required value",
        ),
        (
            "ports/0/containerPort",
            json!(65_536),
            "ports[0].containerPort",
            Invalid,
            range,
        ),
        (
            "ports/0/containerPort",
            json!(-1),
            "ports[0].containerPort",
            Invalid,
            range,
        ),
        (
            "ports/0/containerPort",
            json!("80"),
            "ports[0].containerPort",
            TypeInvalid,
            "write it without quotes: 80",
        ),
        (
            "ports/0/hostPort",
            json!(70_000),
            "ports[0].hostPort",
            Invalid,
            range,
        ),
        (
            "ports/0/protocol",
            json!("tcp"),
            "ports[0].protocol",
            NotSupported,
            "did you mean \"TCP\"?",
        ),
        (
            "ports/0/name",
            json!("a-very-long-name"),
            "ports[0].name",
            Invalid,
            "must be at most 15 lower case letters",
        ),
        (
            "ports/0/name",
            json!("80"),
            "ports[0].name",
            Invalid,
            "at least one of them a letter",
        ),
        (
            "ports/1/name",
            json!("http"),
            "ports[1].name",
            Duplicate,
            "Duplicate value: \"http\"",
        ),
        (
            "resources/limits/cpu",
            json!("fast"),
            "resources.limits.cpu",
            Invalid,
            "\"fast\" is not a quantity",
        ),
        (
            "resources/limits/memory",
            json!("64MB"),
            "resources.limits.memory",
            Invalid,
            "is not a quantity",
        ),
        (
            "resources/limits/memory",
            json!("-1"),
            "resources.limits.memory",
            Invalid,
            "must be greater than or equal to 0",
        ),
        (
            "resources/limits/cpu",
            json!(1e15),
            "resources.limits.cpu",
            Invalid,
            "must be less than or equal to 1000000",
        ),
        (
            "resources/limits/cpu",
            json!("1000000001m"),
            "resources.limits.cpu",
            Invalid,
            "Invalid value: \"1000000001m\": must be less than or equal to 1000000",
        ),
        (
            "resources/limits/memory",
            json!("1152921504606846977"),
            "resources.limits.memory",
            Invalid,
            "must be less than or equal to 1152921504606846976",
        ),
        (
            "resources/limits/memory",
            json!("1e20"),
            "resources.limits.memory",
            Invalid,
            "must be less than or equal to 1152921504606846976",
        ),
        (
            "resources/limits/memory",
            json!(true),
            "resources.limits.memory",
            TypeInvalid,
            "expected a quantity",
        ),
        (
            "resources/limits/gpu",
            json!("1"),
            "resources.limits.gpu",
            NotSupported,
            "supported values: \"cpu\", \"memory\"",
        ),
        (
            "resources/limits/memroy",
            json!("1"),
            "resources.limits.memroy",
            NotSupported,
            "did you mean \"memory\"?",
        ),
        (
            "resources/requests/cpu",
            json!("2"),
            "resources.requests",
            Invalid,
            "Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            "resources/claims",
            json!([{"name": "x"}]),
            "resources.claims",
            Forbidden,
            "not supported",
        ),
    ] {
        check(&format!("{at}{rest}"), value, &[(&c(field), reason, text)]);
    }
}

#[test]
fn the_largest_quantities_are_taken() {
    check("/spec/containers/0/resources/limits/cpu", json!("1000000"), &[]);
    check("/spec/containers/0/resources/limits/memory", json!("1Ei"), &[]);
    check("/spec/volumes/0/emptyDir/sizeLimit", json!("1Ei"), &[]);
    let field = "spec.volumes[0].emptyDir.sizeLimit";
    let why = "must be less than or equal to 1152921504606846976";
    check(
        "/spec/volumes/0/emptyDir/sizeLimit",
        json!("2Ei"),
        &[(field, Invalid, why)],
    );
}

#[test]
fn volumes() {
    let mode = "must be a number between 0 and 0777 (octal), both inclusive";
    for (rest, value, field, reason, text) in [
        ("2/name", json!(""), "[2].name", Required, "Required value"),
        ("2/name", json!("A"), "[2].name", Invalid, LABEL),
        (
            "2/name",
            json!("config"),
            "[2].name",
            Duplicate,
            "Duplicate value: \"config\"",
        ),
        (
            "0/secret",
            json!({"secretName": "s"}),
            "[0]",
            Forbidden,
            "may not specify more than 1 volume type",
        ),
        (
            "0/emptyDir/medium",
            json!("memory"),
            "[0].emptyDir.medium",
            NotSupported,
            "did you mean \"Memory\"?",
        ),
        (
            "0/emptyDir/sizeLimit",
            json!("big"),
            "[0].emptyDir.sizeLimit",
            Invalid,
            "is not a quantity",
        ),
        (
            "0/emptyDir/sizeLimit",
            json!("-1Mi"),
            "[0].emptyDir.sizeLimit",
            Invalid,
            "must be greater than or equal to 0",
        ),
        (
            "1/configMap/name",
            json!(null),
            "[1].configMap.name",
            Required,
            "Required value",
        ),
        (
            "1/configMap/defaultMode",
            json!(0o1000),
            "[1].configMap.defaultMode",
            Invalid,
            mode,
        ),
        (
            "1/configMap/defaultMode",
            json!(-1),
            "[1].configMap.defaultMode",
            Invalid,
            mode,
        ),
        (
            "1/configMap/items/0/mode",
            json!(70_000),
            "[1].configMap.items[0].mode",
            Invalid,
            mode,
        ),
        (
            "1/configMap/items/0/key",
            json!(""),
            "[1].configMap.items[0].key",
            Required,
            "Required value",
        ),
        (
            "1/configMap/items/0/path",
            json!(""),
            "[1].configMap.items[0].path",
            Required,
            "Required value",
        ),
        (
            "1/configMap/items/0/path",
            json!("/etc"),
            "[1].configMap.items[0].path",
            Invalid,
            "must be a relative path",
        ),
        (
            "1/configMap/items/0/path",
            json!("a/../b"),
            "[1].configMap.items[0].path",
            Invalid,
            "must not contain '..'",
        ),
        (
            "1/configMap/items/0/path",
            json!("..a"),
            "[1].configMap.items[0].path",
            Invalid,
            "must not start with '..'",
        ),
        (
            "2/secret/secretName",
            json!(""),
            "[2].secret.secretName",
            Required,
            "Required value",
        ),
        (
            "2",
            json!({"name": "keys", "nfs": {"server": "a", "path": "/"}}),
            "[2].nfs",
            Forbidden,
            "not supported",
        ),
    ] {
        check(
            &format!("/spec/volumes/{rest}"),
            value,
            &[(&format!("spec.volumes{field}"), reason, text)],
        );
    }
}

/// More than one complaint, each against the place where the user wrote it, none twice.
#[test]
fn complaints_keep_their_places() {
    check(
        "/spec/containers/0/env",
        json!([{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "="}]),
        &[
            (&c("env[0].valueFrom"), Invalid, "`value`"),
            (&c("env[1].name"), Invalid, "'='"),
        ],
    );
    check(
        "/spec/containers/0/envFrom",
        json!([{}, {"secretRef": {"name": ""}}]),
        &[
            (&c("envFrom[0]"), Invalid, "must specify"),
            (&c("envFrom[1].secretRef.name"), Required, ""),
        ],
    );
    check(
        "/spec/volumes/0",
        json!({"name": "scratch", "emptyDir": {}, "configMap": {"name": "m"}}),
        &[("spec.volumes[0]", Forbidden, "more than 1 volume type")],
    );
    check(
        "/spec/containers/1/name",
        json!("app"),
        &[("spec.containers[1].name", Duplicate, "\"app\"")],
    );
    check(
        "/spec/containers/0/ports",
        json!([{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9, "protocol": "UDP"},
               {"containerPort": 3, "hostPort": 9}]),
        &[(&c("ports[2].hostPort"), Duplicate, "Duplicate value: \"TCP//9\"")],
    );
}

/// Every bound on a list is refused just past it and taken at it.
#[test]
fn bounds() {
    let many = |count: usize, one: &dyn Fn(usize) -> Value| (0..count).map(one).collect::<Vec<_>>();
    let env = |at: usize| json!({"name": format!("V{at}")});
    let port = |_: usize| json!({"containerPort": 1});
    let volume = |at: usize| json!({"name": format!("v{at}"), "emptyDir": {}});
    let container = |at: usize| json!({"name": format!("c{at}"), "image": "a:1"});
    let mount = |at: usize| json!({"name": "scratch", "mountPath": format!("/m{at}")});
    type Row<'a> = (&'a str, usize, &'a dyn Fn(usize) -> Value, &'a str);
    let rows: [Row<'_>; 5] = [
        (
            "/spec/containers/1/env",
            limits::ENV,
            &env,
            "spec.containers[1].env",
        ),
        (
            "/spec/containers/1/ports",
            limits::PORTS,
            &port,
            "spec.containers[1].ports",
        ),
        (
            "/spec/containers/1/volumeMounts",
            limits::MOUNTS,
            &mount,
            "spec.containers[1].volumeMounts",
        ),
        (
            "/spec/containers",
            limits::CONTAINERS,
            &container,
            "spec.containers",
        ),
        ("/spec/volumes", limits::VOLUMES, &volume, "spec.volumes"),
    ];
    for (pointer, bound, one, field) in rows {
        for (count, expected) in [(bound, 0), (bound + 1, 1)] {
            let mut pod = spoiled(pointer, Value::Array(many(count, one)));
            if field == "spec.volumes" {
                pod["spec"]["containers"][0]["volumeMounts"] = json!([]);
            }
            let causes = Pod::parse(&pod).err().unwrap_or_default();
            let found = causes
                .iter()
                .filter(|cause| cause.field == field && cause.reason == TooLong);
            assert_eq!(
                (found.count(), causes.len()),
                (expected, expected),
                "{field} {count}\n{causes:#?}"
            );
        }
    }
}
