//! From a typed manifest to the wire's Pod: defaults filled in, text turned into numbers.
//!
//! Always holds: indices are kept, so that a later check names the field the user wrote. What cannot be converted
//! leaves a stand-in and a cause, and a Pod with a cause is never used.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::check;
use crate::manifest::{self, Cause};
use crate::topic::NodeName;
use crate::uid::Uid;
use crate::wire::spec::{
    Container, DnsConfig, DnsPolicy, EnvFrom, EnvValue, EnvVar, HostAlias, Mount, PodSecurity, PodSpec, Port,
    Propagation, Protocol, PullPolicy, RecursiveReadOnly, RestartPolicy, SubPath,
};

mod probe;
mod resources;
mod security;
mod value;
mod volume;

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const GRACE_SECONDS: u32 = 30;

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
        let mut all = |list: &str, from: &[manifest::Container]| -> Vec<Container> {
            let from = from.iter().enumerate();
            from.map(|(at, it)| self.container(&format!("spec.{list}[{at}]"), it, spec, &security))
                .collect()
        };
        let init_containers = all("initContainers", &spec.init_containers);
        let containers = all("containers", &spec.containers);
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
            active_deadline_seconds: self.active_deadline(spec.active_deadline_seconds),
            hostname: hostname(&spec.hostname, &meta.name),
            subdomain: spec.subdomain.clone(),
            hostname_is_fqdn: spec.set_hostname_as_fqdn,
            host_aliases: spec
                .host_aliases
                .iter()
                .map(|it| HostAlias {
                    ip: it.ip.clone(),
                    hostnames: it.hostnames.clone(),
                })
                .collect(),
            dns_policy: self.dns_policy(spec.dns_policy.as_deref()),
            dns: DnsConfig {
                nameservers: spec.dns_config.nameservers.clone(),
                searches: spec.dns_config.searches.clone(),
                options: spec
                    .dns_config
                    .options
                    .iter()
                    .map(|it| (it.name.clone(), it.value.clone().unwrap_or_default()))
                    .collect(),
            },
            host_network: spec.host_network,
            host_pid: spec.host_pid,
            host_ipc: spec.host_ipc,
            user_namespace: spec.host_users == Some(false),
            share_process_namespace: spec.share_process_namespace,
            service_account: service_account(spec).to_owned(),
            resources: self.pod_resources(&spec.resources),
            security,
            init_containers,
            containers,
            volumes,
            image_pull_secrets: spec.image_pull_secrets.iter().map(|it| it.name.clone()).collect(),
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
        check::affinity::affinity(&spec.affinity, &mut self.causes);
        check::affinity::spread(&spec.topology_spread_constraints, &mut self.causes);
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

    fn active_deadline(&mut self, value: Option<i64>) -> Option<u32> {
        let value = value?;
        let seconds = u32::try_from(value)
            .ok()
            .filter(|it| (1..=i32::MAX as u32).contains(it));
        if seconds.is_none() {
            let why = "must be between 1 and 2147483647, inclusive";
            self.causes
                .push(Cause::invalid("spec.activeDeadlineSeconds", value, why));
        }
        seconds
    }

    fn dns_policy(&mut self, value: Option<&str>) -> DnsPolicy {
        const ALL: [(&str, DnsPolicy); 4] = [
            ("ClusterFirst", DnsPolicy::ClusterFirst),
            ("ClusterFirstWithHostNet", DnsPolicy::ClusterFirstWithHostNet),
            ("Default", DnsPolicy::Default),
            ("None", DnsPolicy::None),
        ];
        self.one_of("spec.dnsPolicy", value, &ALL)
    }

    /// The choice that `value` names; the first where there is no value.
    fn one_of<T: Copy>(&mut self, field: &str, value: Option<&str>, choices: &[(&str, T)]) -> T {
        let first = choices[0].1;
        let Some(value) = value else { return first };
        let found = choices.iter().find(|(name, _)| *name == value);
        found.map_or_else(
            || {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                self.causes.push(Cause::not_supported(field, value, &names));
                first
            },
            |(_, choice)| *choice,
        )
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

    fn container(
        &mut self,
        path: &str,
        from: &manifest::Container,
        pod: &manifest::PodSpec,
        security: &PodSecurity,
    ) -> Container {
        Container {
            name: from.name.clone(),
            image: from.image.clone(),
            pull_policy: self.pull_policy(
                &format!("{path}.imagePullPolicy"),
                from.image_pull_policy.as_deref(),
                &from.image,
            ),
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
                .map(|(at, it)| self.port(path, at, it, pod.host_network))
                .collect(),
            resources: self.resources(path, &from.resources),
            resize: self.resize(path, &from.resize_policy),
            sidecar: self.sidecar(path, from.restart_policy.as_deref()),
            mounts: from
                .volume_mounts
                .iter()
                .enumerate()
                .map(|(at, it)| self.mount(&format!("{path}.volumeMounts[{at}]"), it))
                .collect(),
            security: self.security(path, &from.security_context, security),
            liveness: self.probe(&format!("{path}.livenessProbe"), from.liveness_probe.as_ref()),
            readiness: self.probe(&format!("{path}.readinessProbe"), from.readiness_probe.as_ref()),
            startup: self.probe(&format!("{path}.startupProbe"), from.startup_probe.as_ref()),
            post_start: self.hook(path, "postStart", from.lifecycle.as_ref(), |it| {
                it.post_start.as_ref()
            }),
            pre_stop: self.hook(path, "preStop", from.lifecycle.as_ref(), |it| {
                it.pre_stop.as_ref()
            }),
            stop_signal: self.stop_signal(path, from.lifecycle.as_ref()),
            termination_message_path: from
                .termination_message_path
                .clone()
                .filter(|it| !it.is_empty())
                .unwrap_or_else(|| "/dev/termination-log".to_owned()),
            termination_message_from_log: self.one_of(
                &format!("{path}.terminationMessagePolicy"),
                from.termination_message_policy.as_deref(),
                &[("File", false), ("FallbackToLogsOnError", true)],
            ),
            stdin: from.stdin,
            stdin_once: from.stdin_once,
            tty: from.tty,
        }
    }

    /// `restartPolicy` of a container: `Always`, for a sidecar. Which container may have it is checked later.
    fn sidecar(&mut self, path: &str, value: Option<&str>) -> bool {
        match value {
            None => false,
            Some("Always") => true,
            Some(other) => {
                let field = format!("{path}.restartPolicy");
                self.causes.push(Cause::not_supported(field, other, &["Always"]));
                false
            }
        }
    }

    fn mount(&mut self, path: &str, from: &manifest::VolumeMount) -> Mount {
        let sub_path = match (from.sub_path.as_str(), from.sub_path_expr.as_str()) {
            ("", "") => SubPath::None,
            (path, "") => SubPath::Path(path.to_owned()),
            ("", expr) => SubPath::Expr(expr.to_owned()),
            (_, expr) => {
                let why = "subPathExpr and subPath are mutually exclusive";
                self.causes
                    .push(Cause::invalid(format!("{path}.subPathExpr"), expr, why));
                SubPath::None
            }
        };
        Mount {
            volume: from.name.clone(),
            path: from.mount_path.clone(),
            read_only: from.read_only,
            recursive_read_only: self.one_of(
                &format!("{path}.recursiveReadOnly"),
                from.recursive_read_only.as_deref(),
                &[
                    ("Disabled", RecursiveReadOnly::Disabled),
                    ("IfPossible", RecursiveReadOnly::IfPossible),
                    ("Enabled", RecursiveReadOnly::Enabled),
                ],
            ),
            propagation: self.one_of(
                &format!("{path}.mountPropagation"),
                from.mount_propagation.as_deref(),
                &[
                    ("None", Propagation::None),
                    ("HostToContainer", Propagation::HostToContainer),
                    ("Bidirectional", Propagation::Bidirectional),
                ],
            ),
            sub_path,
        }
    }

    /// Source: Kubernetes documentation, "Images", default image pull policy.
    fn pull_policy(&mut self, field: &str, value: Option<&str>, image: &str) -> PullPolicy {
        const ALL: [(&str, PullPolicy); 3] = [
            ("Always", PullPolicy::Always),
            ("IfNotPresent", PullPolicy::IfNotPresent),
            ("Never", PullPolicy::Never),
        ];
        match value {
            Some(_) => self.one_of(field, value, &ALL),
            None => default_pull_policy(image),
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

    fn port(&mut self, path: &str, at: usize, from: &manifest::ContainerPort, host_network: bool) -> Port {
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
        let mut host_port = u16::try_from(from.host_port).unwrap_or_else(|_| {
            self.causes
                .push(Cause::invalid(format!("{path}.hostPort"), from.host_port, range));
            0
        });
        // With the host's network the container's port is the node's.
        if host_network && host_port == 0 {
            host_port = container_port;
        }
        if host_network && host_port != container_port {
            let why = "must match `containerPort` when `hostNetwork` is true";
            self.causes
                .push(Cause::invalid(format!("{path}.hostPort"), host_port, why));
        }
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

/// The old name of the field counts where the new one is not given.
fn service_account(spec: &manifest::PodSpec) -> &str {
    let written = [&spec.service_account_name, &spec.service_account];
    written
        .into_iter()
        .find(|it| !it.is_empty())
        .map_or("default", |it| it)
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
