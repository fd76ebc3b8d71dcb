//! From a typed manifest to the wire's Pod: defaults filled in, text turned into numbers.
//!
//! Always holds: indices are kept, so that a later check names the field the user wrote. What cannot be converted
//! leaves a stand-in and a cause, and a Pod with a cause is never used.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::check;
use crate::manifest::{self, Cause};
use crate::quantity::Quantity;
use crate::topic::NodeName;
use crate::uid::Uid;
use crate::wire::spec::{
    Container, EnvFrom, EnvValue, EnvVar, FieldPath, KeyToPath, Mount, PodSecurity, PodSpec, Port, Protocol,
    PullPolicy, Resources, RestartPolicy, Seccomp, Security, Volume, VolumeSource,
};

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const GRACE_SECONDS: u32 = 30;

/// Most CPUs and bytes that a resource may name. No machine has as much, and sums over all Pods of a node stay in 64 bits.
const MAX_CPUS: u64 = 1_000_000;
const MAX_BYTES: u64 = 1 << 60;

/// What a volume without a source is, as in Kubernetes.
const EMPTY_DIR: VolumeSource = VolumeSource::EmptyDir {
    memory: false,
    size_limit: None,
};

/// Where `kubectl apply` keeps the last manifest; of no use to a node and often its largest part.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Collects causes while converting, so that a user sees all at once.
struct Convert {
    causes: Vec<Cause>,
}

/// Converts, giving a best-effort Pod beside the causes against it.
pub(super) fn pod_spec(pod: &manifest::Pod) -> (PodSpec, Vec<Cause>) {
    let mut convert = Convert { causes: Vec::new() };
    let spec = convert.pod(pod);
    (spec, convert.causes)
}

impl Convert {
    fn pod(&mut self, pod: &manifest::Pod) -> PodSpec {
        if pod.api_version != "v1" {
            self.causes.push(if pod.api_version.is_empty() {
                Cause::required("apiVersion", "write apiVersion: v1")
            } else {
                Cause::not_supported("apiVersion", &pod.api_version, &["v1"])
            });
        }
        if pod.kind.is_empty() {
            self.causes.push(Cause::required("kind", "write kind: Pod"));
        } else if pod.kind != "Pod" {
            self.causes
                .push(Cause::not_supported("kind", &pod.kind, &["Pod"]));
        }
        let meta = &pod.metadata;
        let uid = if meta.uid.is_empty() {
            Some(Uid([0; 16]))
        } else {
            meta.uid.parse().ok()
        };
        let uid = uid.unwrap_or_else(|| {
            self.causes
                .push(Cause::invalid("metadata.uid", &meta.uid, "must be a UUID"));
            Uid([0; 16])
        });
        let spec = &pod.spec;
        self.placement(spec);
        let security = self.pod_security(&spec.security_context);
        let containers = spec.containers.iter().enumerate();
        let containers = containers
            .map(|(at, it)| self.container(&format!("spec.containers[{at}]"), it, &security))
            .collect();
        let volumes = spec.volumes.iter().enumerate();
        let volumes = volumes
            .map(|(at, it)| self.volume(&format!("spec.volumes[{at}]"), it))
            .collect();
        let mut annotations = meta.annotations.clone();
        annotations.remove(LAST_APPLIED);
        PodSpec {
            uid,
            namespace: if meta.namespace.is_empty() {
                "default".to_owned()
            } else {
                meta.namespace.clone()
            },
            name: meta.name.clone(),
            labels: meta.labels.clone(),
            annotations,
            deletion_grace_seconds: meta.deletion_timestamp.as_ref().map(|_| {
                self.seconds(
                    "metadata.deletionGracePeriodSeconds",
                    meta.deletion_grace_period_seconds,
                )
            }),
            restart_policy: self.restart_policy(spec.restart_policy.as_deref()),
            termination_grace_seconds: self.seconds(
                "spec.terminationGracePeriodSeconds",
                spec.termination_grace_period_seconds,
            ),
            hostname: hostname(&spec.hostname, &meta.name),
            security,
            containers,
            volumes,
        }
    }

    /// What only the server reads: where the Pod may run.
    fn placement(&mut self, spec: &manifest::PodSpec) {
        if !spec.node_name.is_empty() && NodeName::parse(&spec.node_name).is_err() {
            let why =
                "a node's name is at most 23 lower case letters, digits or '-', with no '-' at either end";
            self.causes
                .push(Cause::invalid("spec.nodeName", &spec.node_name, why));
        }
        check::labels("spec.nodeSelector", &spec.node_selector, &mut self.causes);
    }

    fn seconds(&mut self, field: &str, value: Option<i64>) -> u32 {
        match value {
            None => GRACE_SECONDS,
            Some(value) => u32::try_from(value).unwrap_or_else(|_| {
                self.causes
                    .push(Cause::invalid(field, value, "must be greater than or equal to 0"));
                0
            }),
        }
    }

    fn restart_policy(&mut self, value: Option<&str>) -> RestartPolicy {
        match value {
            None | Some("Always") => RestartPolicy::Always,
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            Some(other) => {
                self.causes.push(Cause::not_supported(
                    "spec.restartPolicy",
                    other,
                    &["Always", "OnFailure", "Never"],
                ));
                RestartPolicy::Always
            }
        }
    }

    fn id(&mut self, field: &str, value: Option<i64>) -> Option<u32> {
        let value = value?;
        let id = u32::try_from(value).ok().filter(|id| i32::try_from(*id).is_ok());
        if id.is_none() {
            self.causes.push(Cause::invalid(
                field,
                value,
                "must be between 0 and 2147483647, inclusive",
            ));
        }
        id
    }

    fn seccomp(&mut self, field: &str, profile: Option<&manifest::SeccompProfile>) -> Option<Seccomp> {
        match profile?.kind.as_str() {
            "RuntimeDefault" => Some(Seccomp::RuntimeDefault),
            "Unconfined" => Some(Seccomp::Unconfined),
            other => {
                let field = format!("{field}.seccompProfile.type");
                self.causes.push(Cause::not_supported(
                    field,
                    other,
                    &["RuntimeDefault", "Unconfined"],
                ));
                None
            }
        }
    }

    fn pod_security(&mut self, from: &manifest::PodSecurityContext) -> PodSecurity {
        let at = "spec.securityContext";
        let groups = from.supplemental_groups.iter().enumerate();
        PodSecurity {
            run_as_user: self.id(&format!("{at}.runAsUser"), from.run_as_user),
            run_as_group: self.id(&format!("{at}.runAsGroup"), from.run_as_group),
            run_as_non_root: from.run_as_non_root.unwrap_or(false),
            supplemental_groups: groups
                .filter_map(|(n, group)| self.id(&format!("{at}.supplementalGroups[{n}]"), Some(*group)))
                .collect(),
            seccomp: self.seccomp(at, from.seccomp_profile.as_ref()),
        }
    }

    fn security(&mut self, path: &str, from: &manifest::SecurityContext, pod: &PodSecurity) -> Security {
        let path = format!("{path}.securityContext");
        let strip = |names: &[String]| {
            names
                .iter()
                .map(|n| n.strip_prefix("CAP_").unwrap_or(n).to_owned())
                .collect()
        };
        Security {
            run_as_user: self
                .id(&format!("{path}.runAsUser"), from.run_as_user)
                .or(pod.run_as_user),
            run_as_group: self
                .id(&format!("{path}.runAsGroup"), from.run_as_group)
                .or(pod.run_as_group),
            run_as_non_root: from.run_as_non_root.unwrap_or(pod.run_as_non_root),
            read_only_root: from.read_only_root_filesystem,
            allow_privilege_escalation: from.allow_privilege_escalation == Some(true),
            add_capabilities: strip(&from.capabilities.add),
            drop_capabilities: strip(&from.capabilities.drop),
            seccomp: self.seccomp(&path, from.seccomp_profile.as_ref()).or(pod.seccomp),
        }
    }

    fn container(&mut self, path: &str, from: &manifest::Container, pod: &PodSecurity) -> Container {
        Container {
            name: from.name.clone(),
            image: from.image.clone(),
            pull_policy: self.pull_policy(path, from),
            command: from.command.clone(),
            args: from.args.clone(),
            working_dir: from.working_dir.clone(),
            env_from: from
                .env_from
                .iter()
                .enumerate()
                .map(|(at, it)| self.env_from(path, at, it))
                .collect(),
            env: from
                .env
                .iter()
                .enumerate()
                .map(|(at, it)| self.env(path, at, it))
                .collect(),
            ports: from
                .ports
                .iter()
                .enumerate()
                .map(|(at, it)| self.port(path, at, it))
                .collect(),
            resources: self.resources(path, &from.resources),
            mounts: from
                .volume_mounts
                .iter()
                .map(|it| Mount {
                    volume: it.name.clone(),
                    path: it.mount_path.clone(),
                    read_only: it.read_only,
                })
                .collect(),
            security: self.security(path, &from.security_context, pod),
        }
    }

    /// Source: Kubernetes documentation, "Images", default image pull policy.
    fn pull_policy(&mut self, path: &str, from: &manifest::Container) -> PullPolicy {
        match from.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            Some("Never") => PullPolicy::Never,
            Some(other) => {
                let supported = ["Always", "IfNotPresent", "Never"];
                self.causes.push(Cause::not_supported(
                    format!("{path}.imagePullPolicy"),
                    other,
                    &supported,
                ));
                PullPolicy::IfNotPresent
            }
            None => default_pull_policy(&from.image),
        }
    }

    fn env_from(&mut self, path: &str, at: usize, from: &manifest::EnvFromSource) -> EnvFrom {
        let (secret, source) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), None) => (false, map.clone()),
            (None, Some(secret)) => (true, secret.clone()),
            (none, _) => {
                let why = if none.is_none() {
                    "must specify one of: `configMapRef` or `secretRef`"
                } else {
                    "may not have more than one field specified at a time"
                };
                self.causes
                    .push(Cause::invalid(format!("{path}.envFrom[{at}]"), "", why));
                let stand_in = manifest::OptionalReference {
                    name: "none".to_owned(),
                    optional: true,
                };
                (false, stand_in)
            }
        };
        EnvFrom {
            prefix: from.prefix.clone(),
            secret,
            name: source.name,
            optional: source.optional,
        }
    }

    fn env(&mut self, path: &str, at: usize, from: &manifest::EnvVar) -> EnvVar {
        let path = format!("{path}.env[{at}]");
        let value = match (&from.value, &from.value_from) {
            (value, None) => Some(EnvValue::Literal(value.clone().unwrap_or_default())),
            (Some(value), Some(_)) if !value.is_empty() => {
                let why = "may not be specified when `value` is not empty";
                self.causes
                    .push(Cause::invalid(format!("{path}.valueFrom"), "", why));
                None
            }
            (_, Some(source)) => self.env_source(&format!("{path}.valueFrom"), source),
        };
        EnvVar {
            name: from.name.clone(),
            value: value.unwrap_or_else(|| EnvValue::Literal(String::new())),
        }
    }

    fn env_source(&mut self, path: &str, source: &manifest::EnvVarSource) -> Option<EnvValue> {
        let key = |secret, it: &manifest::KeySelector| EnvValue::Key {
            secret,
            name: it.name.clone(),
            key: it.key.clone(),
            optional: it.optional,
        };
        match (
            &source.field_ref,
            &source.config_map_key_ref,
            &source.secret_key_ref,
        ) {
            (Some(field), None, None) => self.field_path(path, &field.field_path).map(EnvValue::Field),
            (None, Some(map), None) => Some(key(false, map)),
            (None, None, Some(secret)) => Some(key(true, secret)),
            (None, None, None) => {
                let what = "must specify one of: `fieldRef`, `configMapKeyRef` or `secretKeyRef`";
                self.causes.push(Cause::invalid(path, "", what));
                None
            }
            _ => {
                self.causes.push(Cause::invalid(
                    path,
                    "",
                    "may not have more than one field specified at a time",
                ));
                None
            }
        }
    }

    fn field_path(&mut self, path: &str, text: &str) -> Option<FieldPath> {
        let keyed = |prefix: &str| Some(text.strip_prefix(prefix)?.strip_suffix("']")?.to_owned());
        let found = match text {
            "metadata.name" => Some(FieldPath::Name),
            "metadata.namespace" => Some(FieldPath::Namespace),
            "metadata.uid" => Some(FieldPath::Uid),
            "spec.nodeName" => Some(FieldPath::NodeName),
            "spec.serviceAccountName" => Some(FieldPath::ServiceAccountName),
            "status.hostIP" | "status.hostIPs" => Some(FieldPath::HostIp),
            "status.podIP" | "status.podIPs" => Some(FieldPath::PodIp),
            _ => keyed("metadata.labels['")
                .map(FieldPath::Label)
                .or_else(|| keyed("metadata.annotations['").map(FieldPath::Annotation)),
        };
        if found.is_none() {
            let supported = [
                "metadata.name",
                "metadata.namespace",
                "metadata.uid",
                "metadata.labels['KEY']",
                "metadata.annotations['KEY']",
                "spec.nodeName",
                "spec.serviceAccountName",
                "status.hostIP",
                "status.hostIPs",
                "status.podIP",
                "status.podIPs",
            ];
            self.causes.push(Cause::not_supported(
                format!("{path}.fieldRef.fieldPath"),
                text,
                &supported,
            ));
        }
        found
    }

    fn port(&mut self, path: &str, at: usize, from: &manifest::ContainerPort) -> Port {
        let path = format!("{path}.ports[{at}]");
        let range = "must be between 1 and 65535, inclusive";
        let container_port = u16::try_from(from.container_port).unwrap_or_else(|_| {
            self.causes.push(Cause::invalid(
                format!("{path}.containerPort"),
                from.container_port,
                range,
            ));
            0
        });
        let host_port = u16::try_from(from.host_port).unwrap_or_else(|_| {
            self.causes
                .push(Cause::invalid(format!("{path}.hostPort"), from.host_port, range));
            0
        });
        let protocol = match from.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(other) => {
                self.causes.push(Cause::not_supported(
                    format!("{path}.protocol"),
                    other,
                    &["SCTP", "TCP", "UDP"],
                ));
                Protocol::Tcp
            }
        };
        Port {
            name: from.name.clone(),
            container_port,
            host_port,
            host_ip: from.host_ip.clone(),
            protocol,
        }
    }

    fn resources(&mut self, path: &str, from: &manifest::ResourceRequirements) -> Resources {
        let path = format!("{path}.resources");
        let limits = self.quantities(&format!("{path}.limits"), &from.limits);
        let requests = self.quantities(&format!("{path}.requests"), &from.requests);
        for ((name, limit), request) in ["cpu", "memory"].iter().zip(limits).zip(requests) {
            if let (Some(limit), Some(request)) = (limit, request)
                && request > limit
            {
                let why = format!(
                    "must be less than or equal to {name} limit of {}",
                    from.limits[*name].0
                );
                self.causes.push(Cause::invalid(
                    format!("{path}.requests"),
                    &from.requests[*name].0,
                    why,
                ));
            }
        }
        let cpu = |it: Option<Quantity>| it.map(|it| it.milli().unsigned_abs());
        let memory = |it: Option<Quantity>| it.map(|it| it.value().unsigned_abs());
        Resources {
            cpu_limit: cpu(limits[0]),
            memory_limit: memory(limits[1]),
            cpu_request: cpu(requests[0].or(limits[0])),
            memory_request: memory(requests[1].or(limits[1])),
        }
    }

    /// `cpu` and `memory` of one map; anything else is refused, for nothing here would hold it.
    fn quantities(
        &mut self,
        path: &str,
        from: &BTreeMap<String, manifest::WrittenQuantity>,
    ) -> [Option<Quantity>; 2] {
        let mut out = [None, None];
        for (name, written) in from {
            let field = format!("{path}.{name}");
            let slot = match name.as_str() {
                "cpu" => &mut out[0],
                "memory" => &mut out[1],
                other => {
                    self.causes
                        .push(Cause::not_supported(field, other, &["cpu", "memory"]));
                    continue;
                }
            };
            let most = if name == "cpu" { MAX_CPUS } else { MAX_BYTES };
            *slot = self.amount(field, &written.0, most);
        }
        out
    }

    /// A quantity from 0 to `most`.
    fn amount(&mut self, field: String, written: &str, most: u64) -> Option<Quantity> {
        let why = match Quantity::parse(written) {
            Ok(value) if value < Quantity::ZERO => "must be greater than or equal to 0".to_owned(),
            // Rounded up and saturating, so what is above in any digit is above here.
            Ok(value) if value.value().unsigned_abs() > most => {
                format!("must be less than or equal to {most}")
            }
            Ok(value) => return Some(value),
            Err(error) => error.to_string(),
        };
        self.causes.push(Cause::invalid(field, written, why));
        None
    }

    fn volume(&mut self, path: &str, from: &manifest::Volume) -> Volume {
        let source = match (&from.empty_dir, &from.config_map, &from.secret) {
            (Some(dir), None, None) => self.empty_dir(path, dir),
            (None, Some(map), None) => {
                let path = format!("{path}.configMap");
                self.config(
                    &path,
                    false,
                    &map.name,
                    &map.items,
                    map.default_mode,
                    map.optional,
                )
            }
            (None, None, Some(secret)) => {
                let path = format!("{path}.secret");
                self.config(
                    &path,
                    true,
                    &secret.secret_name,
                    &secret.items,
                    secret.default_mode,
                    secret.optional,
                )
            }
            // A source that is known and refused has its own cause; this one is for none at all.
            (None, None, None) => EMPTY_DIR,
            _ => {
                self.causes
                    .push(Cause::forbidden(path, "may not specify more than 1 volume type"));
                EMPTY_DIR
            }
        };
        Volume {
            name: from.name.clone(),
            source,
        }
    }

    fn empty_dir(&mut self, path: &str, dir: &manifest::EmptyDir) -> VolumeSource {
        if !matches!(dir.medium.as_str(), "" | "Memory") {
            self.causes.push(Cause::not_supported(
                format!("{path}.emptyDir.medium"),
                &dir.medium,
                &["", "Memory"],
            ));
        }
        let field = format!("{path}.emptyDir.sizeLimit");
        let written = dir.size_limit.as_ref();
        let size_limit = written.and_then(|written| self.amount(field, &written.0, MAX_BYTES));
        VolumeSource::EmptyDir {
            memory: dir.medium == "Memory",
            size_limit: size_limit.map(|it| it.value().unsigned_abs()),
        }
    }

    fn config(
        &mut self,
        path: &str,
        secret: bool,
        name: &str,
        items: &[manifest::KeyToPath],
        default_mode: Option<i64>,
        optional: bool,
    ) -> VolumeSource {
        let default_mode = self
            .mode(&format!("{path}.defaultMode"), default_mode)
            .unwrap_or(0o644);
        let items = items.iter().enumerate().map(|(at, item)| KeyToPath {
            key: item.key.clone(),
            path: item.path.clone(),
            mode: self.mode(&format!("{path}.items[{at}].mode"), item.mode),
        });
        VolumeSource::Config {
            secret,
            name: name.to_owned(),
            items: items.collect(),
            default_mode,
            optional,
        }
    }

    fn mode(&mut self, field: &str, value: Option<i64>) -> Option<u16> {
        let value = value?;
        let mode = u16::try_from(value).ok().filter(|mode| *mode <= 0o777);
        if mode.is_none() {
            let why = "must be a number between 0 and 0777 (octal), both inclusive";
            self.causes.push(Cause::invalid(field, value, why));
        }
        mode
    }
}

/// `Always` for `:latest` or no tag, else `IfNotPresent`.
fn default_pull_policy(image: &str) -> PullPolicy {
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        _ if image.contains('@') => PullPolicy::IfNotPresent,
        None | Some((_, "latest")) => PullPolicy::Always,
        Some(_) => PullPolicy::IfNotPresent,
    }
}

fn hostname(written: &str, pod: &str) -> String {
    if written.is_empty() {
        default_hostname(pod).to_owned()
    } else {
        written.to_owned()
    }
}

/// The Pod's name, cut to what every resolver takes as one name.
pub(super) fn default_hostname(pod: &str) -> &str {
    let cut = pod
        .char_indices()
        .map(|(at, c)| at + c.len_utf8())
        .take_while(|end| *end <= 63)
        .last()
        .unwrap_or(0);
    pod[..cut].trim_end_matches(['-', '.'])
}
