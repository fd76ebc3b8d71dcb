//! Whether a Pod may run on this node: the kubelet's own checks, with its reasons, and the node's policy.
//!
//! Always holds: what is refused is named by the field or the resource, with what there is of it.

use std::collections::BTreeMap;

use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::feature;
use skiff_protocol::wire::spec::{AppArmor, Container, PodSpec, Port, RecursiveReadOnly, VolumeSource};

use crate::event::Pressure;
use crate::machine::Config;
use crate::requests::{Qos, Requests};
use crate::state::PodState;

/// Reason and message.
type Refusal = (String, String);

/// What a Pod has of the node when it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing yet.
    New,
    /// Nothing yet, and it is the node's own: a shortage does not keep it out.
    Static,
    /// A place from before this start of the agent: what the node has of something may not be there yet (a device whose
    /// description is made at each boot), and must not end it for good.
    Kept,
    /// Containers that run: nothing is asked.
    Running,
}

/// Why `pod` cannot run beside `others`, as reason and message; `None` when it can.
pub(crate) fn refuse(
    config: &Config,
    others: &BTreeMap<Uid, PodState>,
    pressure: &Pressure,
    pod: &Pod,
    standing: Standing,
) -> Option<Refusal> {
    if standing == Standing::Running {
        return None;
    }
    let is_new = matches!(standing, Standing::New | Standing::Static);
    let others: Vec<&PodState> = others
        .values()
        .filter(|it| it.uid != pod.uid && holds_resources(it))
        .collect();
    (standing == Standing::New)
        .then(|| pressed(pressure, pod))
        .flatten()
        .or_else(|| lacks_feature(config, pod))
        .or_else(|| is_new.then(|| no_room(config, &others, pod)).flatten())
        .or_else(|| port_taken(&others, pod))
}

/// Whether it has a share of the node: a Pod whose work is over, or that never got a place, has none.
pub(crate) fn holds_resources(pod: &PodState) -> bool {
    pod.rejected.is_none() && (pod.any_alive() || !(pod.over() || pod.failed.is_some()))
}

/// A node that is short of something takes no Pod that would make it shorter.
fn pressed(pressure: &Pressure, pod: &Pod) -> Option<Refusal> {
    let conditions = [
        (pressure.disk.is_some(), "DiskPressure"),
        (pressure.memory.is_some(), "MemoryPressure"),
        (pressure.pids.is_some(), "PIDPressure"),
    ];
    let met: Vec<&str> = conditions.iter().filter(|it| it.0).map(|it| it.1).collect();
    if met.is_empty() || (met == ["MemoryPressure"] && Qos::of(pod) != Qos::BestEffort) {
        return None;
    }
    let message = format!("The node had condition: [{}]. ", met.join(" "));
    Some(("Evicted".to_owned(), message))
}

fn no_room(config: &Config, others: &[&PodState], pod: &Pod) -> Option<Refusal> {
    if others.len() >= config.max_pods {
        let message = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {}, capacity: {}",
            others.len(),
            config.max_pods
        );
        return Some(("OutOfpods".to_owned(), message));
    }
    let wanted = Requests::of(pod);
    let used = used(others.iter().copied());
    let (what, wanted, used, capacity) = wanted.first_short(&used, &Requests::allocatable(config))?;
    let message = format!(
        "Node didn't have enough resource: {what}, requested: {wanted}, used: {used}, capacity: {capacity}"
    );
    Some((format!("OutOf{what}"), message))
}

/// What these Pods have together.
pub(crate) fn used<'a>(pods: impl Iterator<Item = &'a PodState>) -> Requests {
    let mut sum = Requests::default();
    for pod in pods.filter_map(|it| it.pod.as_ref()) {
        sum.add(&Requests::of(pod));
    }
    sum
}

/// The ports of the host that a Pod takes: those of its sidecars and regular containers.
fn host_ports(pod: &PodSpec) -> impl Iterator<Item = (u16, &Port)> {
    let sidecars = pod.init_containers.iter().filter(|it| it.sidecar);
    let ports = sidecars.chain(&pod.containers).flat_map(|it| &it.ports);
    ports.filter_map(|port| match port.host_port {
        0 if pod.host_network => Some((port.container_port, port)),
        0 => None,
        number => Some((number, port)),
    })
}

fn port_taken(others: &[&PodState], pod: &Pod) -> Option<Refusal> {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0";
    let meet = |(number, port): &(u16, &Port), (other, taken): (u16, &Port)| {
        *number == other
            && port.protocol == taken.protocol
            && (any(&port.host_ip) || any(&taken.host_ip) || port.host_ip == taken.host_ip)
    };
    let others = || others.iter().filter_map(|it| it.pod.as_ref());
    let taken = |mine: &(u16, &Port)| others().any(|it| host_ports(it).any(|port| meet(mine, port)));
    let (number, _) = host_ports(pod).find(taken)?;
    let message = format!(
        "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports: {number} is taken"
    );
    Some(("NodePorts".to_owned(), message))
}

/// What the Pod asks of the node that the node has not, or does not allow.
fn lacks_feature(config: &Config, pod: &Pod) -> Option<Refusal> {
    let (feature, field) = asked_features(pod)
        .into_iter()
        .find(|(feature, _)| !config.features.contains(*feature))?;
    let message = match feature {
        feature::APPARMOR => {
            let message = format!("Cannot enforce AppArmor: AppArmor is not enabled on the host ({field})");
            return Some(("AppArmor".to_owned(), message));
        }
        feature::USER_NAMESPACES => {
            format!(
                "{field}: this node's kernel or file systems have no user namespaces with idmapped mounts"
            )
        }
        feature::RECURSIVE_READ_ONLY => {
            format!("{field}: this node's kernel has no recursive read-only mounts; they need Linux 5.12")
        }
        _ => format!(
            "{field}: this node does not allow it; to allow it, add {feature:?} to policy.allow in the node's configuration"
        ),
    };
    Some(("PodFeatureUnsupported".to_owned(), message))
}

/// The features that a Pod asks for, each with the field that does.
fn asked_features(pod: &PodSpec) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let mut ask = |asked: bool, feature: &'static str, field: &str| {
        if asked {
            out.push((feature, field.to_owned()));
        }
    };
    ask(pod.host_network, feature::HOST_NETWORK, "spec.hostNetwork");
    ask(pod.host_pid, feature::HOST_PID, "spec.hostPID");
    ask(pod.host_ipc, feature::HOST_IPC, "spec.hostIPC");
    ask(
        pod.user_namespace,
        feature::USER_NAMESPACES,
        "spec.hostUsers: false",
    );
    let enforced = |profile: &Option<AppArmor>| {
        matches!(profile, Some(AppArmor::RuntimeDefault | AppArmor::Localhost(_)))
    };
    let profile = "spec.securityContext.appArmorProfile";
    ask(enforced(&pod.security.apparmor), feature::APPARMOR, profile);
    for volume in &pod.volumes {
        let host = matches!(volume.source, VolumeSource::HostPath { .. });
        ask(
            host,
            feature::HOST_PATH,
            &format!("spec.volumes[{}].hostPath", volume.name),
        );
    }
    for (list, containers) in [
        ("initContainers", &pod.init_containers),
        ("containers", &pod.containers),
    ] {
        for it in containers {
            container_features(it, &format!("spec.{list}[{}]", it.name), &enforced, &mut ask);
        }
    }
    out
}

fn container_features(
    it: &Container,
    path: &str,
    enforced: &impl Fn(&Option<AppArmor>) -> bool,
    ask: &mut impl FnMut(bool, &'static str, &str),
) {
    let field = |name: &str| format!("{path}.{name}");
    if it.security.privileged {
        ask(true, feature::PRIVILEGED, &field("securityContext.privileged"));
    }
    if let Some(name) = it
        .security
        .add_capabilities
        .iter()
        .find(|it| feature::is_uncommon(it))
    {
        let name = format!("securityContext.capabilities.add[{name}]");
        ask(true, feature::CAPABILITIES, &field(&name));
    }
    if enforced(&it.security.apparmor) {
        ask(true, feature::APPARMOR, &field("securityContext.appArmorProfile"));
    }
    for mount in &it.mounts {
        if mount.recursive_read_only == RecursiveReadOnly::Enabled {
            let name = format!("volumeMounts[{}].recursiveReadOnly", mount.volume);
            ask(true, feature::RECURSIVE_READ_ONLY, &field(&name));
        }
    }
}
