//! From a Pod's container and its image to what the runtime is to make of it.
//!
//! Always holds: pure. Every choice about a container's process is made here; the executors below make none.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use skiff_images::{Image, ImageConfig};
use skiff_protocol::wire::spec::{
    ConfigData, Container, EnvValue, FieldPath, PodSpec, ResourceField, ResourceName, Seccomp as SeccompSpec,
    VolumeSource,
};
use skiff_sys::{
    ContainerConfig, Limits, Mount, MountKind, Namespaces, Overlay, Seccomp, User, default_capabilities,
};

/// Kubernetes' period of a CPU limit, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// The least `cpu.shares` that the kernel takes.
const LEAST_SHARES: u64 = 2;

/// What an image without a `PATH` gets, as containerd gives it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds a ConfigMap (`false`) or Secret (`true`) of the Pod's namespace.
pub(crate) type Lookup<'a> = &'a dyn Fn(bool, &str) -> Option<ConfigData>;

/// What a plan needs to know beside the Pod.
pub(crate) struct Facts<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The node's address.
    pub host_ip: &'a str,
    /// The Pod's address.
    pub pod_ip: Option<Ipv4Addr>,
    /// Thousandths of a CPU of the node.
    pub node_cpu_milli: u64,
    /// Bytes of memory of the node.
    pub node_memory: u64,
    /// Bytes of the file system that Pods write to.
    pub node_storage: u64,
    /// Processes that one container may have.
    pub pids: u64,
    /// `<parent>/<pod>`: the Pod's cgroup.
    pub pod_cgroup: String,
    /// The Pod's directory on tmpfs.
    pub run: &'a Path,
    /// The Pod's directory on disk.
    pub state: &'a Path,
    /// What the agent itself may do: `ALL` means no more than this.
    pub bounding: &'a [String],
    /// Namespaces of the sandbox.
    pub namespaces: Namespaces,
}

/// Where a volume's files are on the node.
#[must_use]
pub(crate) fn volume_path(run: &Path, state: &Path, name: &str, source: &VolumeSource) -> PathBuf {
    match source {
        VolumeSource::EmptyDir { memory: false, .. } => state.join("volumes").join(name),
        // Memory means tmpfs; and ConfigMaps and Secrets never touch flash.
        VolumeSource::EmptyDir { memory: true, .. } | VolumeSource::Config { .. } => {
            run.join("volumes").join(name)
        }
        VolumeSource::Projected { .. } => run.join("volumes").join(name),
        VolumeSource::HostPath { path, .. } => PathBuf::from(path),
        VolumeSource::Image { .. } | VolumeSource::Claim { .. } => state.join("volumes").join(name),
    }
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
    lookup: Lookup<'_>,
) -> Result<ContainerConfig, String> {
    let (user, home) = user(pod, spec, image)?;
    let variables = variables(pod, spec, facts, lookup)?;
    let args = args(spec, &image.config, &variables)?;
    let id = format!("{}-{attempt}", spec.name);
    let disk = facts.state.join("containers").join(&id);
    Ok(ContainerConfig {
        state_root: facts.run.join("state"),
        bundle: facts.run.join("bundles").join(&id),
        rootfs: Overlay {
            lower: image.layers.clone(),
            upper: disk.join("upper"),
            work: disk.join("work"),
            merged: disk.join("merged"),
        },
        args,
        env: environment(pod, &image.config, &variables, &home),
        cwd: working_dir(spec, &image.config),
        user,
        capabilities: capabilities(
            &spec.security.add_capabilities,
            &spec.security.drop_capabilities,
            facts.bounding,
        ),
        no_new_privileges: !spec.security.allow_privilege_escalation,
        read_only_root: spec.security.read_only_root,
        privileged: false,
        mounts: mounts(pod, spec, facts),
        namespaces: facts.namespaces.clone(),
        cgroup_path: format!("{}/{id}", facts.pod_cgroup),
        resources: limits(spec, facts.pids),
        seccomp: match &spec.security.seccomp {
            None | Some(SeccompSpec::RuntimeDefault) => Seccomp::RuntimeDefault,
            Some(SeccompSpec::Unconfined) => Seccomp::Unconfined,
            Some(SeccompSpec::Localhost(name)) => {
                return Err(format!(
                    "seccompProfile.localhostProfile {name:?} is not supported yet"
                ));
            }
        },
        rlimits: Vec::new(),
        oom_score_adj: Some(oom_score_adj(pod, spec, facts.node_memory)),
        id,
        ..Default::default()
    })
}

fn user(pod: &PodSpec, spec: &Container, image: &Image) -> Result<(User, String), String> {
    let wanted = spec
        .security
        .run_as_user
        .map_or_else(|| image.config.user.clone(), |uid| uid.to_string());
    let found = image.resolve_user(&wanted).map_err(|error| error.to_string())?;
    if spec.security.run_as_non_root && found.uid == 0 {
        return Err(format!(
            "container has runAsNonRoot and image will run as root (pod: \"{}_{}({})\", container: {})",
            pod.name, pod.namespace, pod.uid, spec.name
        ));
    }
    let mut additional_gids = found.additional_gids;
    additional_gids.extend(&pod.security.supplemental_groups);
    let gid = spec.security.run_as_group.unwrap_or(found.gid);
    Ok((
        User {
            uid: found.uid,
            gid,
            additional_gids,
        },
        found.home,
    ))
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

fn field(pod: &PodSpec, path: &FieldPath, facts: &Facts<'_>) -> String {
    match path {
        FieldPath::Name => pod.name.clone(),
        FieldPath::Namespace => pod.namespace.clone(),
        FieldPath::Uid => pod.uid.to_string(),
        FieldPath::Label(key) => pod.labels.get(key).cloned().unwrap_or_default(),
        FieldPath::Annotation(key) => pod.annotations.get(key).cloned().unwrap_or_default(),
        FieldPath::NodeName => facts.node.to_owned(),
        FieldPath::ServiceAccountName => pod.service_account.clone(),
        FieldPath::HostIp => facts.host_ip.to_owned(),
        FieldPath::PodIp => facts.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        FieldPath::Labels => quoted(&pod.labels),
        FieldPath::Annotations => quoted(&pod.annotations),
    }
}

/// A map as a downward file shows it: `key="value"`, a line each, the value as Go's `%q` writes it.
fn quoted(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    lines.join("\n")
}

/// A `resourceFieldRef`: rounded up to whole divisors. A limit that is not set is what the node has.
///
/// Source: Kubernetes documentation, "Downward API", information available via `resourceFieldRef`.
fn resource(pod: &PodSpec, own: &str, wanted: &ResourceField, facts: &Facts<'_>) -> Result<String, String> {
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
        (ResourceName::Memory, false) => milli(it.memory_limit.or(Some(facts.node_memory))),
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
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
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
    pod: &PodSpec,
    image: &ImageConfig,
    variables: &[(String, String)],
    home: &str,
) -> Vec<String> {
    let mut out: Vec<String> = image.env.clone();
    let has = |out: &[String], name: &str| out.iter().any(|it| it.split('=').next() == Some(name));
    if !has(&out, "PATH") {
        out.insert(0, DEFAULT_PATH.to_owned());
    }
    out.push(format!("HOSTNAME={}", pod.hostname));
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

fn capabilities(add: &[String], drop: &[String], bounding: &[String]) -> Vec<String> {
    let full = |name: &String| format!("CAP_{name}");
    let all = |names: &[String]| names.iter().any(|name| name == "ALL");
    let mut out = match (all(add), all(drop)) {
        (true, _) => bounding.to_vec(),
        (false, true) => Vec::new(),
        (false, false) => default_capabilities(),
    };
    out.extend(add.iter().filter(|name| *name != "ALL").map(full));
    out.retain(|name| !drop.iter().any(|it| full(it) == *name));
    out.sort();
    out.dedup();
    out
}

fn mounts(pod: &PodSpec, spec: &Container, facts: &Facts<'_>) -> Vec<Mount> {
    let bind = |source: PathBuf, destination: &str, read_only| Mount {
        source,
        destination: PathBuf::from(destination),
        kind: MountKind::Bind,
        options: Vec::new(),
        read_only,
        ..Default::default()
    };
    let etc = facts.run.join("etc");
    let files =
        ["hosts", "hostname", "resolv.conf"].map(|name| bind(etc.join(name), &format!("/etc/{name}"), false));
    let volumes = spec.mounts.iter().filter_map(|mount| {
        let volume = pod.volumes.iter().find(|it| it.name == mount.volume)?;
        let path = volume_path(facts.run, facts.state, &volume.name, &volume.source);
        let config = matches!(volume.source, VolumeSource::Config { .. });
        let destination = format!("/{}", mount.path.trim_start_matches('/'));
        Some(bind(path, &destination, mount.read_only || config))
    });
    let own: Vec<Mount> = volumes.collect();
    let taken = |it: &Mount| own.iter().any(|volume| volume.destination == it.destination);
    files
        .into_iter()
        .filter(|it| !taken(it))
        .chain(own.iter().cloned())
        .collect()
}

pub(crate) fn limits(spec: &Container, pids: u64) -> Limits {
    let request = spec.resources.cpu_request.unwrap_or(0);
    Limits {
        memory_bytes: spec.resources.memory_limit,
        cpu_quota_us: spec.resources.cpu_limit.map(quota),
        cpu_period_us: spec.resources.cpu_limit.map(|_| CPU_PERIOD_US),
        cpu_shares: Some(shares(request)),
        pids: Some(pids),
        ..Default::default()
    }
}

/// Limits of the Pod as a whole: the sum, where every container has one.
#[must_use]
pub(crate) fn pod_limits(pod: &PodSpec) -> Limits {
    let sum = |of: &dyn Fn(&Container) -> Option<u64>| {
        let parts = pod.containers.iter().map(of);
        parts.reduce(|a, b| Some(a?.saturating_add(b?))).flatten()
    };
    let request = sum(&|it| Some(it.resources.cpu_request.unwrap_or(0)));
    let cpu = sum(&|it| it.resources.cpu_limit);
    Limits {
        memory_bytes: sum(&|it| it.resources.memory_limit),
        cpu_quota_us: cpu.map(quota),
        cpu_period_us: cpu.map(|_| CPU_PERIOD_US),
        cpu_shares: Some(shares(request.unwrap_or(0))),
        pids: None,
        ..Default::default()
    }
}

/// Thousandths of a CPU as microseconds of each period, at least the millisecond that the kernel takes.
fn quota(milli: u64) -> u64 {
    (milli.saturating_mul(CPU_PERIOD_US) / 1000).max(1000)
}

fn shares(milli: u64) -> u64 {
    (milli.saturating_mul(1024) / 1000).max(LEAST_SHARES)
}

/// Source: Kubernetes documentation, "Node-pressure Eviction", node out of memory behavior.
fn oom_score_adj(pod: &PodSpec, spec: &Container, node_memory: u64) -> i32 {
    let guaranteed = |it: &Container| {
        let r = &it.resources;
        r.cpu_limit.is_some()
            && r.memory_limit.is_some()
            && r.cpu_limit == r.cpu_request
            && r.memory_limit == r.memory_request
    };
    let asks = |it: &Container| it.resources != Default::default();
    if pod.containers.iter().all(guaranteed) {
        return -997;
    }
    if !pod.containers.iter().any(asks) {
        return 1000;
    }
    let request = spec.resources.memory_request.unwrap_or(0);
    let share = (u128::from(request) * 1000 / u128::from(node_memory.max(1))).min(1000) as i32;
    (1000 - share).clamp(2, 999)
}

#[cfg(test)]
mod tests;
