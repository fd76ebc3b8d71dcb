//! From a Pod's container and its image to what the runtime is to make of it.
//!
//! Always holds: pure. Every choice about a container's process is made here; the executors below make none.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use skiff_images::{Image, ImageConfig};
use skiff_protocol::wire::spec::{
    ConfigData, Container, EnvValue, FieldPath, PersistentVolume, PodSpec, ResourceField, ResourceName,
};
use skiff_sys::{ContainerConfig, Namespaces, Overlay};

#[cfg(test)]
pub(crate) use mounts::tests as mounts_tests;
pub(crate) use mounts::{etc_path, files_path, termination_path, volume_path};

use crate::devices::Edits;

pub(crate) mod limits;
mod mounts;
mod sandbox;
mod security;

pub(crate) use limits::{Lacks, NodeLimits, limits};
pub(crate) use sandbox::{SandboxFacts, domain, sandbox};
pub(crate) use security::APPARMOR_DEFAULT;

/// What an image without a `PATH` gets, as containerd gives it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds a ConfigMap (`false`) or Secret (`true`) of the Pod's namespace.
pub(crate) type Lookup<'a> = &'a dyn Fn(bool, &str) -> Option<ConfigData>;

/// Finds the PersistentVolume that a claim of the Pod's namespace is bound to.
pub(crate) type Claims<'a> = &'a dyn Fn(&str) -> Option<PersistentVolume>;

/// What a plan needs to know beside the Pod.
pub(crate) struct Facts<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The node's address.
    pub host_ip: &'a str,
    /// The Pod's address.
    pub pod_ip: Option<Ipv4Addr>,
    /// The name that the Pod's processes see.
    pub hostname: &'a str,
    /// Thousandths of a CPU that Pods may request.
    pub node_cpu_milli: u64,
    /// Bytes of memory of the node.
    pub node_memory: u64,
    /// Bytes of `ephemeral-storage` that Pods may request.
    pub node_storage: u64,
    /// What of the node decides about limits.
    pub limits: &'a NodeLimits<'a>,
    /// Where seccomp profiles are.
    pub seccomp_dir: &'a Path,
    /// Whether an AppArmor profile is loaded; `None` where the kernel has no AppArmor.
    pub apparmor: Option<&'a dyn Fn(&str) -> bool>,
    /// `<parent>/<pod>`: the Pod's cgroup.
    pub pod_cgroup: String,
    /// The Pod's directory on tmpfs.
    pub run: &'a Path,
    /// The Pod's directory on disk.
    pub state: &'a Path,
    /// The directory of its containers' writable layers.
    pub layers: &'a Path,
    /// What the agent itself may do: `ALL` means no more than this.
    pub bounding: &'a [String],
    /// Namespaces of the sandbox.
    pub namespaces: Namespaces,
    /// The directory of this node's PersistentVolumes.
    pub volumes: &'a Path,
    /// Which of them a claim is bound to.
    pub claim: Claims<'a>,
}

/// What a start of a container is called below its Pod.
#[must_use]
pub(crate) fn container_id(spec: &Container, attempt: u32) -> String {
    format!("{}-{attempt}", spec.name)
}

/// The configuration of one start of a container.
///
/// # Errors
/// What of the configuration cannot be met, in a kubelet's words (`CreateContainerConfigError`).
pub(crate) fn container(
    pod: &PodSpec,
    spec: &Container,
    attempt: u32,
    image: &Image,
    facts: &Facts<'_>,
    edits: Edits,
    lookup: Lookup<'_>,
) -> Result<ContainerConfig, String> {
    let (user, home) = security::user(pod, spec, image)?;
    let variables = variables(pod, spec, facts, lookup)?;
    let args = args(spec, &image.config, &variables)?;
    let id = container_id(spec, attempt);
    let mounts = mounts::mounts(pod, spec, &id, &variables, facts)?;
    let disk = facts.layers.join(&id);
    let mut config = ContainerConfig {
        state_root: facts.run.join("state"),
        bundle: facts.run.join("bundles").join(&id),
        rootfs: Overlay {
            lower: image.layers.clone(),
            upper: disk.join("upper"),
            work: disk.join("work"),
            merged: disk.join("merged"),
        },
        args,
        env: environment(spec, &image.config, &variables, facts.hostname, &home),
        cwd: working_dir(spec, &image.config),
        user,
        capabilities: security::capabilities(spec, facts.bounding),
        no_new_privileges: !security::may_escalate(spec),
        read_only_root: spec.security.read_only_root,
        privileged: spec.security.privileged,
        mounts,
        namespaces: facts.namespaces.clone(),
        cgroup_path: format!("{}/{id}", facts.pod_cgroup),
        resources: limits(pod, spec, facts.limits)?,
        seccomp: security::seccomp(spec, facts),
        rlimits: Vec::new(),
        oom_score_adj: Some(limits::oom_score_adj(pod, spec, facts.node_memory)),
        apparmor: security::apparmor(spec, facts)?,
        unmasked_proc: spec.security.unmasked_proc,
        devices: Vec::new(),
        hooks: Vec::new(),
        tty: spec.tty,
        stdin: spec.stdin,
        id,
    };
    edits.apply(&mut config);
    if config.namespaces.user.is_some() {
        mounts::show_ids(&mut config.mounts, pod, facts);
    }
    Ok(config)
}

/// The variables of `envFrom` and `env`, in order, expanded.
fn variables(
    pod: &PodSpec,
    spec: &Container,
    facts: &Facts<'_>,
    lookup: Lookup<'_>,
) -> Result<Vec<(String, String)>, String> {
    let kind = |secret| if secret { "secret" } else { "configmap" };
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    let mut order = Vec::new();
    let mut set = |out: &mut BTreeMap<String, String>, name: String, value: String| {
        if out.insert(name.clone(), value).is_none() {
            order.push(name);
        }
    };
    for from in &spec.env_from {
        let Some(data) = lookup(from.secret, &from.name) else {
            if from.optional {
                continue;
            }
            return Err(format!("{} {:?} not found", kind(from.secret), from.name));
        };
        for (key, value) in data.data {
            set(
                &mut out,
                format!("{}{key}", from.prefix),
                String::from_utf8_lossy(&value).into_owned(),
            );
        }
    }
    for var in &spec.env {
        let value = match &var.value {
            EnvValue::Literal(text) => expand(text, &out),
            EnvValue::Field(path) => field(pod, path, facts),
            EnvValue::Resource(wanted) => resource(pod, &spec.name, wanted, facts)?,
            EnvValue::Key {
                secret,
                name,
                key,
                optional,
            } => {
                let data = lookup(*secret, name);
                match data.as_ref().and_then(|it| it.data.get(key)) {
                    Some(value) => String::from_utf8_lossy(value).into_owned(),
                    None if *optional => continue,
                    None if data.is_none() => return Err(format!("{} {name:?} not found", kind(*secret))),
                    None => {
                        let what = if *secret { "Secret" } else { "ConfigMap" };
                        return Err(format!(
                            "couldn't find key {key} in {what} {}/{name}",
                            pod.namespace
                        ));
                    }
                }
            }
        };
        set(&mut out, var.name.clone(), value);
    }
    Ok(order
        .into_iter()
        .map(|name| (name.clone(), out.remove(&name).unwrap_or_default()))
        .collect())
}

pub(crate) fn field(pod: &PodSpec, path: &FieldPath, facts: &Facts<'_>) -> String {
    match path {
        FieldPath::Name => pod.name.clone(),
        FieldPath::Namespace => pod.namespace.clone(),
        FieldPath::Uid => pod.uid.to_string(),
        FieldPath::Label(key) => pod.labels.get(key).cloned().unwrap_or_default(),
        FieldPath::Annotation(key) => pod.annotations.get(key).cloned().unwrap_or_default(),
        FieldPath::NodeName => facts.node.to_owned(),
        FieldPath::ServiceAccountName => pod.service_account.clone(),
        FieldPath::HostIp => facts.host_ip.to_owned(),
        FieldPath::PodIp if pod.host_network => facts.host_ip.to_owned(),
        FieldPath::PodIp => facts.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        FieldPath::Labels => quoted(&pod.labels),
        FieldPath::Annotations => quoted(&pod.annotations),
    }
}

/// A map as a downward file shows it: `key="value"`, a line each, the value as Go's `%q` writes it.
fn quoted(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={}", go_quoted(value)))
        .collect();
    lines.join("\n")
}

/// A string as Go's `strconv.Quote` writes it.
fn go_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\'' => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.escape_debug().len() == 1 => out.push(c),
            c if u32::from(c) > 0xffff => out.push_str(&format!("\\U{:08x}", u32::from(c))),
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// A `resourceFieldRef`: rounded up to whole divisors. A limit that is not set is what the node has for Pods.
///
/// Source: Kubernetes documentation, "Downward API", information available via `resourceFieldRef`.
pub(crate) fn resource(
    pod: &PodSpec,
    own: &str,
    wanted: &ResourceField,
    facts: &Facts<'_>,
) -> Result<String, String> {
    let name = if wanted.container.is_empty() {
        own
    } else {
        &wanted.container
    };
    let container = pod
        .container(name)
        .ok_or_else(|| format!("couldn't find container {name:?} of a resourceFieldRef"))?;
    let it = &container.resources;
    let pages = |size: u64| {
        it.hugepages
            .iter()
            .find(|(page, _)| *page == size)
            .map(|(_, bytes)| *bytes)
    };
    // In thousandths of the resource's unit, as the divisor is.
    let milli = |amount: Option<u64>| amount.unwrap_or(0).saturating_mul(1000);
    let amount = match (wanted.resource, wanted.request) {
        (ResourceName::Cpu, false) => it.cpu_limit.unwrap_or(facts.node_cpu_milli),
        (ResourceName::Cpu, true) => it.cpu_request.unwrap_or(0),
        (ResourceName::Memory, false) => milli(it.memory_limit.or(Some(facts.limits.allocatable_memory))),
        (ResourceName::Memory, true) => milli(it.memory_request),
        (ResourceName::EphemeralStorage, false) => milli(it.storage_limit.or(Some(facts.node_storage))),
        (ResourceName::EphemeralStorage, true) => milli(it.storage_request),
        (ResourceName::HugePages(size), _) => milli(pages(size)),
    };
    Ok(amount.div_ceil(wanted.divisor_milli.max(1)).to_string())
}

/// `$(NAME)` becomes the variable's value, stays where there is none; `$$` is one `$`.
///
/// Source: Kubernetes API reference, `EnvVar.value`.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    expand_with(text, &mut |name| variables.get(name).cloned())
}

fn expand_with(text: &str, value_of: &mut dyn FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')')) {
            match value_of(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Source: Kubernetes documentation, "Define a Command and Arguments for a Container".
fn args(
    spec: &Container,
    image: &ImageConfig,
    variables: &[(String, String)],
) -> Result<Vec<String>, String> {
    let map: BTreeMap<String, String> = variables.iter().cloned().collect();
    let expanded = |words: &[String]| words.iter().map(|word| expand(word, &map)).collect::<Vec<_>>();
    let mut out = if spec.command.is_empty() {
        image.entrypoint.clone()
    } else {
        expanded(&spec.command)
    };
    if !spec.args.is_empty() {
        out.extend(expanded(&spec.args));
    } else if spec.command.is_empty() {
        out.extend(image.cmd.clone());
    }
    if out.is_empty() {
        Err(format!("no command specified for container {}", spec.name))
    } else {
        Ok(out)
    }
}

fn environment(
    spec: &Container,
    image: &ImageConfig,
    variables: &[(String, String)],
    hostname: &str,
    home: &str,
) -> Vec<String> {
    let mut out: Vec<String> = image.env.clone();
    let has = |out: &[String], name: &str| out.iter().any(|it| it.split('=').next() == Some(name));
    if !has(&out, "PATH") {
        out.insert(0, DEFAULT_PATH.to_owned());
    }
    out.push(format!("HOSTNAME={hostname}"));
    if spec.tty && !has(&out, "TERM") {
        // As containerd does for whoever has a terminal.
        out.push("TERM=xterm".to_owned());
    }
    for (name, value) in variables {
        out.retain(|it| it.split('=').next() != Some(name));
        out.push(format!("{name}={value}"));
    }
    if !has(&out, "HOME") {
        out.push(format!("HOME={}", if home.is_empty() { "/" } else { home }));
    }
    out
}

fn working_dir(spec: &Container, image: &ImageConfig) -> PathBuf {
    let wanted = if spec.working_dir.is_empty() {
        &image.working_dir
    } else {
        &spec.working_dir
    };
    Path::new("/").join(wanted)
}

#[cfg(test)]
mod tests;
