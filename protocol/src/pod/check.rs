//! What must hold of every Pod, wherever it came from. The wording is that of Kubernetes' own validation.
//!
//! Always holds: reads only; each cause names the field as the manifest nests it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::convert::default_hostname;
use crate::limits;
use crate::manifest::Cause;
use crate::wire::spec::{Container, EnvValue, PodSpec, Port};

pub(super) mod affinity;
mod lifecycle;
mod network;
mod security;
mod volume;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
     and must start and end with an alphanumeric character";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
     start and end with an alphanumeric character";

/// Every cause against `pod`; an empty list means that it is valid.
pub(super) fn check(pod: &PodSpec) -> Vec<Cause> {
    let mut out = Vec::new();
    metadata(pod, &mut out);
    // The default comes from the name, which may have dots; whoever writes a hostname writes a label.
    if pod.hostname != default_hostname(&pod.name) && !is_label(&pod.hostname) {
        out.push(Cause::invalid(
            "spec.hostname",
            &pod.hostname,
            label_rule(&pod.hostname),
        ));
    }
    network::check(pod, &mut out);
    security::pod(pod, &mut out);
    let volumes = volume::volumes(pod, &mut out);
    if pod.containers.is_empty() {
        out.push(Cause::required(
            "spec.containers",
            "a Pod runs at least one container",
        ));
    }
    if pod.containers.len() + pod.init_containers.len() > limits::CONTAINERS {
        out.push(Cause::too_long(
            "spec.containers",
            limits::CONTAINERS,
            "containers, init containers among them",
        ));
    }
    let mut names = BTreeSet::new();
    let mut host_ports = BTreeSet::new();
    for (list, containers) in [
        ("initContainers", &pod.init_containers),
        ("containers", &pod.containers),
    ] {
        for (at, one) in containers.iter().enumerate() {
            let path = format!("spec.{list}[{at}]");
            name(&format!("{path}.name"), &one.name, &mut names, &mut out);
            container(&path, one, pod, &volumes, &mut out);
            lifecycle::check(&path, one, list == "initContainers", &mut out);
            // An init container has ended before the next begins, and its ports with it.
            let mut own = BTreeSet::new();
            let goes_on = list == "containers" || one.sidecar;
            let taken = if goes_on { &mut host_ports } else { &mut own };
            ports(&path, &one.ports, taken, &mut out);
        }
    }
    pod_resources(pod, &mut out);
    for (at, name) in pod.image_pull_secrets.iter().enumerate() {
        if name.is_empty() {
            out.push(Cause::required(
                format!("spec.imagePullSecrets[{at}].name"),
                "name the Secret that holds the credentials",
            ));
        }
    }
    out
}

/// What the Pod as a whole may have is not less than what its containers are promised.
fn pod_resources(pod: &PodSpec, out: &mut Vec<Cause>) {
    let sum = |of: fn(&Container) -> Option<u64>| -> u64 {
        pod.containers.iter().filter_map(of).fold(0, u64::saturating_add)
    };
    let whole = &pod.resources;
    let cpu = (whole.cpu_request, sum(|it| it.resources.cpu_request));
    let memory = (whole.memory_request, sum(|it| it.resources.memory_request));
    for (name, (given, needed)) in [("cpu", cpu), ("memory", memory)] {
        if let Some(given) = given
            && given < needed
        {
            let why = format!("must be greater than or equal to aggregate container requests of {needed}");
            let field = format!("spec.resources.requests[{name}]");
            out.push(Cause::invalid(field, given, why));
        }
    }
}

fn metadata(pod: &PodSpec, out: &mut Vec<Cause>) {
    if pod.name.is_empty() {
        out.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else if !is_subdomain(&pod.name) {
        let rule = if pod.name.len() > limits::OBJECT_NAME {
            "must be no more than 253 bytes"
        } else {
            SUBDOMAIN
        };
        out.push(Cause::invalid("metadata.name", &pod.name, rule));
    }
    if !is_label(&pod.namespace) {
        let rule = label_rule(&pod.namespace);
        out.push(Cause::invalid("metadata.namespace", &pod.namespace, rule));
    }
    labels("metadata.labels", &pod.labels, out);
    for key in pod.annotations.keys() {
        if !is_qualified(&key.to_ascii_lowercase()) {
            out.push(Cause::invalid(
                "metadata.annotations",
                key,
                "an annotation's key is [prefix/]name",
            ));
        }
    }
    let bytes: usize = pod
        .annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if bytes > limits::ANNOTATION_BYTES {
        out.push(Cause::too_long(
            "metadata.annotations",
            limits::ANNOTATION_BYTES,
            "bytes",
        ));
    }
}

/// Label keys and values, or what selects by them.
pub(super) fn labels(field: &str, labels: &BTreeMap<String, String>, out: &mut Vec<Cause>) {
    for (key, value) in labels {
        if !is_qualified(key) {
            out.push(Cause::invalid(field, key, "a label's key is [prefix/]name, a name at most 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends"));
        }
        if !value.is_empty() && !is_name_part(value) {
            out.push(Cause::invalid(field, value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, at most 63"));
        }
    }
}

/// A path inside a volume.
pub(super) fn relative(field: &str, path: &str, out: &mut Vec<Cause>) {
    if path.is_empty() {
        out.push(Cause::required(field, ""));
    } else if path.starts_with('/') {
        out.push(Cause::invalid(field, path, "must be a relative path"));
    } else if path.split('/').any(|part| part == "..") {
        out.push(Cause::invalid(field, path, "must not contain '..'"));
    } else if path.starts_with("..") {
        out.push(Cause::invalid(field, path, "must not start with '..'"));
    }
}

fn name<'a>(field: &str, value: &'a str, seen: &mut BTreeSet<&'a str>, out: &mut Vec<Cause>) {
    if value.is_empty() {
        out.push(Cause::required(field, ""));
    } else if !is_label(value) {
        out.push(Cause::invalid(field, value, label_rule(value)));
    }
    if !seen.insert(value) && !value.is_empty() {
        out.push(Cause::duplicate(field, value));
    }
}

fn container(path: &str, one: &Container, pod: &PodSpec, volumes: &BTreeSet<&str>, out: &mut Vec<Cause>) {
    if one.image.is_empty() {
        out.push(Cause::required(format!("{path}.image"), ""));
    } else if one.image.trim() != one.image {
        out.push(Cause::invalid(
            format!("{path}.image"),
            &one.image,
            "must not have leading or trailing whitespace",
        ));
    }
    env(path, one, out);
    volume::mounts(path, one, volumes, out);
    if one.working_dir.contains('\0') || one.command.iter().chain(&one.args).any(|arg| arg.contains('\0')) {
        out.push(Cause::invalid(
            format!("{path}.command"),
            "",
            "must not contain a NUL byte",
        ));
    }
    security::container(&format!("{path}.securityContext"), &one.security, pod, out);
}

fn env(path: &str, one: &Container, out: &mut Vec<Cause>) {
    if one.env.len() > limits::ENV {
        out.push(Cause::too_long(format!("{path}.env"), limits::ENV, "variables"));
    }
    for (at, var) in one.env.iter().enumerate() {
        let field = format!("{path}.env[{at}]");
        if var.name.is_empty() {
            out.push(Cause::required(format!("{field}.name"), ""));
        } else if !is_env_name(&var.name) {
            let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            out.push(Cause::invalid(format!("{field}.name"), &var.name, why));
        }
        match &var.value {
            EnvValue::Key {
                secret, name, key, ..
            } => {
                let source = if *secret {
                    "secretKeyRef"
                } else {
                    "configMapKeyRef"
                };
                for (part, value) in [("name", name), ("key", key)] {
                    if value.is_empty() {
                        out.push(Cause::required(format!("{field}.valueFrom.{source}.{part}"), ""));
                    }
                }
            }
            EnvValue::Literal(text) if text.contains('\0') => {
                out.push(Cause::invalid(
                    format!("{field}.value"),
                    text,
                    "must not contain a NUL byte",
                ));
            }
            EnvValue::Literal(_) | EnvValue::Field(_) | EnvValue::Resource(_) => {}
        }
    }
    for (at, from) in one.env_from.iter().enumerate() {
        let source = if from.secret { "secretRef" } else { "configMapRef" };
        if from.name.is_empty() {
            out.push(Cause::required(format!("{path}.envFrom[{at}].{source}.name"), ""));
        }
    }
    let text: usize = one.command.iter().chain(&one.args).map(String::len).sum();
    let values: usize = one
        .env
        .iter()
        .map(|var| var.name.len() + literal(&var.value))
        .sum();
    if text + values > limits::ARGS_BYTES {
        out.push(Cause::too_long(
            path,
            limits::ARGS_BYTES,
            "bytes of command, args and env",
        ));
    }
}

fn literal(value: &EnvValue) -> usize {
    if let EnvValue::Literal(text) = value {
        text.len()
    } else {
        0
    }
}

type HostPorts = BTreeSet<(u8, String, u16)>;

fn ports(path: &str, ports: &[Port], host_ports: &mut HostPorts, out: &mut Vec<Cause>) {
    if ports.len() > limits::PORTS {
        out.push(Cause::too_long(format!("{path}.ports"), limits::PORTS, "ports"));
    }
    let mut names = BTreeMap::new();
    for (at, port) in ports.iter().enumerate() {
        let path = format!("{path}.ports[{at}]");
        if !port.name.is_empty() {
            if !is_port_name(&port.name) {
                let why = "must be at most 15 lower case letters, digits or '-', at least one of them a letter, with no '-' at either end";
                out.push(Cause::invalid(format!("{path}.name"), &port.name, why));
            }
            if names.insert(port.name.as_str(), at).is_some() {
                out.push(Cause::duplicate(format!("{path}.name"), &port.name));
            }
        }
        if port.container_port == 0 {
            out.push(Cause::required(format!("{path}.containerPort"), ""));
        }
        if port.host_port != 0
            && !host_ports.insert((port.protocol as u8, port.host_ip.clone(), port.host_port))
        {
            let value = format!("{:?}/{}/{}", port.protocol, port.host_ip, port.host_port).to_uppercase();
            let mut cause = Cause::duplicate(format!("{path}.hostPort"), value);
            cause.message += ": another container of this Pod already has this port of the node";
            out.push(cause);
        }
    }
}

/// Which rule of a label `text` breaks.
fn label_rule(text: &str) -> &'static str {
    if text.len() > limits::LABEL {
        "must be no more than 63 bytes"
    } else {
        LABEL
    }
}

fn is_label(text: &str) -> bool {
    let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty()
        && text.len() <= limits::LABEL
        && text.bytes().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        let legal = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        !part.is_empty() && part.bytes().all(legal) && !part.starts_with('-') && !part.ends_with('-')
    };
    text.len() <= limits::OBJECT_NAME && text.split('.').all(part)
}

fn is_name_part(text: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    text.len() <= limits::LABEL
        && text.bytes().all(legal)
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
        None => is_name_part(key),
    }
}

fn is_env_name(name: &str) -> bool {
    name.bytes().all(|c| (b' '..=b'~').contains(&c) && c != b'=')
}

pub(super) fn is_port_name(name: &str) -> bool {
    name.len() <= 15 && is_label(name) && name.bytes().any(|c| c.is_ascii_lowercase()) && !name.contains("--")
}
