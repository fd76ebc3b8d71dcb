//! Which node a Pod runs on.
//!
//! [`place`] is pure: a Pod's needs and the nodes as they are, in; a node's name or the reason why there is none, out.
//! [`run`] is the task around it: it keeps what it needs of the store's Pods, Nodes, namespaces, claims, volumes and classes,
//! binds, and tries again whenever one of them changes. It waits for nothing else: no timers, but after a failure of the store.
//!
//! What always holds: a Pod that names its node is never touched, and its claims are bound to volumes of that node; a binding is written over the very version it was
//! decided on or not at all; what was bound counts against its node at once.

mod affinity;
mod score;
mod task;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use skiff_protocol::quantity::Quantity;

use crate::api::{self, quantity};

pub use affinity::Neighbours;
use affinity::{Outlook, Wants};
pub(crate) use task::run;

/// A node that has so many PersistentVolumes gets no further one.
const VOLUMES: usize = skiff_protocol::limits::PERSISTENT_VOLUMES;

/// Conditions under which a node takes no Pod, or (the first) none without requests, and the taints that Kubernetes gives
/// it then.
///
/// Source: Kubernetes documentation, "Node-pressure Eviction" and "Taints and Tolerations".
const PRESSURES: [(&str, &str); 3] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

/// What a Pod takes, or a node gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Pods.
    pub pods: i64,
    /// `ephemeral-storage`, `hugepages-…` and extended resources, each in whole units.
    pub others: BTreeMap<String, i64>,
    /// Ports of the node, each with how many Pods have it: more than one only by somebody's own binding.
    ports: BTreeMap<HostPort, i64>,
}

impl Amount {
    /// Both together, saturating.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory: self.memory.saturating_add(other.memory),
            pods: self.pods.saturating_add(other.pods),
            others: merge(&self.others, &other.others, i64::saturating_add),
            ports: merge(&self.ports, &other.ports, i64::saturating_add),
        }
    }

    /// This without the other, saturating.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory: self.memory.saturating_sub(other.memory),
            pods: self.pods.saturating_sub(other.pods),
            others: merge(&self.others, &other.others, i64::saturating_sub),
            ports: merge(&self.ports, &other.ports, i64::saturating_sub),
        }
    }

    /// The greater of each.
    fn most(&self, other: &Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.max(other.cpu_milli),
            memory: self.memory.max(other.memory),
            pods: self.pods.max(other.pods),
            others: merge(&self.others, &other.others, i64::max),
            ports: merge(&self.ports, &other.ports, i64::max),
        }
    }
}

fn merge<K: Ord + Clone>(
    left: &BTreeMap<K, i64>,
    right: &BTreeMap<K, i64>,
    with: fn(i64, i64) -> i64,
) -> BTreeMap<K, i64> {
    let mut out = left.clone();
    for (key, value) in right {
        let at = out.entry(key.clone()).or_default();
        *at = with(*at, *value);
    }
    out.retain(|_, value| *value != 0);
    out
}

/// A port of a node: protocol, number, and the address, which is empty for all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HostPort {
    protocol: String,
    port: i64,
    ip: String,
}

impl HostPort {
    fn meets(&self, other: &Self) -> bool {
        let any = self.ip.is_empty() || other.ip.is_empty();
        self.protocol == other.protocol && self.port == other.port && (any || self.ip == other.ip)
    }
}

/// `spec.tolerations[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Toleration {
    key: String,
    exists: bool,
    value: String,
    effect: String,
}

/// What a Pod wants of its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needs {
    /// The sum of its containers' requests, and one Pod.
    pub amount: Amount,
    selector: BTreeMap<String, String>,
    tolerations: Vec<Toleration>,
    wants: Wants,
    /// What of `skiff_protocol::wire::feature` it asks for.
    features: BTreeSet<&'static str>,
    volumes: Vec<VolumeNeed>,
}

/// Where a Pod's claim lets it run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum VolumeNeed {
    /// Its volume is of this node.
    On(String),
    /// There are volumes for it on these nodes, and one can be made on every other when `make`.
    Any {
        /// Nodes with a volume that fits.
        nodes: BTreeSet<String>,
        /// Whether its class makes volumes.
        make: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Taint {
    key: String,
    value: String,
    effect: String,
}

/// A node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    ready: bool,
    unschedulable: bool,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    /// Those that would rather not (`PreferNoSchedule`).
    soft_taints: Vec<Taint>,
    allocatable: Amount,
    features: BTreeSet<String>,
    /// PersistentVolumes that it keeps.
    volumes: usize,
}

impl Needs {
    /// Reads a Pod's document.
    #[must_use]
    pub fn of(pod: &Value) -> Self {
        let tolerations = pod["spec"]["tolerations"].as_array().into_iter().flatten();
        let amount = requests(pod);
        let promised = amount.cpu_milli > 0 || amount.memory > 0;
        let of_memory = promised.then(|| Toleration {
            key: PRESSURES[0].1.to_owned(),
            exists: true,
            ..Toleration::default()
        });
        Self {
            amount,
            selector: strings(&pod["spec"]["nodeSelector"]),
            tolerations: tolerations
                .map(|it| Toleration {
                    key: word(it, "key"),
                    exists: it["operator"] == "Exists",
                    value: word(it, "value"),
                    effect: word(it, "effect"),
                })
                .chain(of_memory)
                .collect(),
            wants: Wants::of(pod),
            features: api::wanted_features(pod).into_iter().map(|(_, it)| it).collect(),
            volumes: Vec::new(),
        }
    }
}

impl Needs {
    fn tolerates(&self, taint: &Taint) -> bool {
        self.tolerations.iter().any(|it| it.covers(taint))
    }

    /// The same, where the Pod's claims let it run.
    fn with(mut self, volumes: Vec<VolumeNeed>) -> Self {
        self.volumes = volumes;
        self
    }
}

impl Node {
    /// Reads a Node's document.
    #[must_use]
    pub fn of(node: &Value) -> Self {
        let conditions = node["status"]["conditions"].as_array();
        let is_so = |kind: &str| {
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|it| it["type"] == kind && it["status"] == "True")
        };
        let pressures = PRESSURES.iter().filter(|it| is_so(it.0)).map(|(_, key)| Taint {
            key: (*key).to_owned(),
            value: String::new(),
            effect: "NoSchedule".to_owned(),
        });
        let allocatable = &node["status"]["allocatable"];
        let taints = node["spec"]["taints"].as_array().into_iter().flatten();
        let taints = taints.map(|it| Taint {
            key: word(it, "key"),
            value: word(it, "value"),
            effect: word(it, "effect"),
        });
        let (soft_taints, taints) = taints
            .chain(pressures)
            .partition(|it| it.effect == "PreferNoSchedule");
        Self {
            name: word(&node["metadata"], "name"),
            ready: is_so("Ready"),
            unschedulable: node["spec"]["unschedulable"] == true,
            labels: strings(&node["metadata"]["labels"]),
            taints,
            soft_taints,
            allocatable: Amount {
                cpu_milli: quantity(&allocatable["cpu"]).map_or(0, Quantity::milli),
                memory: quantity(&allocatable["memory"]).map_or(0, Quantity::value),
                pods: quantity(&allocatable["pods"]).map_or(0, Quantity::value),
                others: others(allocatable),
                ports: BTreeMap::new(),
            },
            features: api::node_features(node),
            volumes: 0,
        }
    }

    /// Why the Pod cannot run here; nothing when it can.
    fn against(&self, needs: &Needs, used: &Amount) -> Vec<String> {
        if self.unschedulable {
            return vec!["node(s) were unschedulable".into()];
        }
        if !self.ready {
            return vec!["node(s) were not ready".into()];
        }
        if let Some(taint) = self.taints.iter().find(|it| !needs.tolerates(it)) {
            return vec![format!(
                "node(s) had untolerated taint {{{}: {}}}",
                taint.key, taint.value
            )];
        }
        if !self.is_selected(needs) {
            return vec!["node(s) didn't match Pod's node affinity/selector".into()];
        }
        if let Some(feature) = needs.features.iter().find(|it| !self.features.contains(**it)) {
            return vec![format!("node(s) didn't have feature {feature}")];
        }
        let taken = |port: &HostPort| {
            used.ports
                .iter()
                .any(|(other, count)| *count > 0 && port.meets(other))
        };
        if needs.amount.ports.keys().any(taken) {
            return vec!["node(s) didn't have free ports for the requested pod ports".into()];
        }
        let lacks = self.lacks(&needs.amount, used);
        if !lacks.is_empty() {
            return lacks;
        }
        self.against_volumes(needs).into_iter().collect()
    }

    /// Whether the Pod's own words about nodes mean this one.
    fn is_selected(&self, needs: &Needs) -> bool {
        let mut selector = needs.selector.iter();
        selector.all(|(key, value)| self.labels.get(key) == Some(value)) && needs.wants.takes(self)
    }

    /// How many of its taints would rather have the Pod elsewhere.
    fn avoids(&self, needs: &Needs) -> i64 {
        let taints = self.soft_taints.iter().filter(|it| !needs.tolerates(it));
        i64::try_from(taints.count()).unwrap_or(i64::MAX)
    }

    /// What of CPU and memory would be left with the Pod, in hundredths of what there is.
    fn room(&self, needs: &Needs, used: &Amount) -> i64 {
        let total = used.plus(&needs.amount);
        let free = |has: i64, taken: i64| {
            let left = i128::from(has.saturating_sub(taken).max(0)) * 100 / i128::from(has.max(1));
            i64::try_from(left).unwrap_or(100)
        };
        let (cpu, memory) = (
            free(self.allocatable.cpu_milli, total.cpu_milli),
            free(self.allocatable.memory, total.memory),
        );
        i64::midpoint(cpu, memory)
    }

    /// What there is too little of.
    fn lacks(&self, asked: &Amount, used: &Amount) -> Vec<String> {
        let total = used.plus(asked);
        // What a Pod does not ask for cannot be what the node lacks.
        let lacks = |asked: i64, total: i64, has: i64| asked > 0 && total > has;
        let has = &self.allocatable;
        let mut out = Vec::new();
        if lacks(asked.cpu_milli, total.cpu_milli, has.cpu_milli) {
            out.push("Insufficient cpu".to_owned());
        }
        if lacks(asked.memory, total.memory, has.memory) {
            out.push("Insufficient memory".to_owned());
        }
        if lacks(asked.pods, total.pods, has.pods) {
            out.push("Too many pods".to_owned());
        }
        for (name, asked) in &asked.others {
            let of = |amount: &Amount| amount.others.get(name).copied().unwrap_or(0);
            if lacks(*asked, of(&total), of(has)) {
                out.push(format!("Insufficient {name}"));
            }
        }
        out
    }

    fn against_volumes(&self, needs: &Needs) -> Option<String> {
        let mut new = 0;
        for need in &needs.volumes {
            match need {
                VolumeNeed::On(node) if *node != self.name => {
                    return Some("node(s) had volume node affinity conflict".into());
                }
                VolumeNeed::On(_) => {}
                VolumeNeed::Any { nodes, .. } if nodes.contains(&self.name) => {}
                VolumeNeed::Any { make: false, .. } => {
                    return Some("node(s) didn't find available persistent volumes to bind".into());
                }
                VolumeNeed::Any { .. } => new += 1,
            }
        }
        (self.volumes + new > VOLUMES && new > 0).then(|| "node(s) exceed max volume count".into())
    }
}

impl Toleration {
    fn covers(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key == taint.key || (self.key.is_empty() && self.exists))
            && (self.exists || self.value == taint.value)
    }
}

/// The best node that the Pod fits on. `used` is what the Pods bound to each node take together.
///
/// # Errors
/// Why there is none, in the words of Kubernetes' scheduler.
pub fn place(
    needs: &Needs,
    nodes: &BTreeMap<String, Node>,
    used: &BTreeMap<String, Amount>,
    neighbours: &Neighbours,
) -> Result<String, String> {
    let outlook = Outlook::of(&needs.wants, neighbours, nodes, |rule, node| {
        let is_honoured =
            |policy: &Option<String>, default: bool| policy.as_deref().map_or(default, |it| it == "Honor");
        (!is_honoured(&rule.node_affinity_policy, true) || node.is_selected(needs))
            && (!is_honoured(&rule.node_taints_policy, false)
                || node.taints.iter().all(|it| needs.tolerates(it)))
    });
    let nothing = Amount::default();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut candidates = Vec::new();
    for (name, node) in nodes {
        let used = used.get(name).unwrap_or(&nothing);
        let mut against = node.against(needs, used);
        if against.is_empty() {
            against.extend(outlook.against(node));
        }
        if against.is_empty() {
            candidates.push((node, used));
        }
        for reason in against {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    if let Some(best) = score::best(needs, &outlook, &candidates) {
        return Ok(best.name.clone());
    }
    let mut reasons: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    reasons.sort();
    Err(unplaceable(nodes.len(), &reasons.join(", ")))
}

/// Why a Pod fits on none of so many nodes.
fn unplaceable(nodes: usize, why: &str) -> String {
    if nodes == 0 {
        "no nodes available to schedule pods".into()
    } else {
        format!("0/{nodes} nodes are available: {why}.")
    }
}

/// What a Pod takes of its node: nothing once it has ended.
#[must_use]
pub fn taken(pod: &Value) -> Amount {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        Amount::default()
    } else {
        requests(pod)
    }
}

/// What a Pod asks for: its containers and sidecars together, or an init container with the sidecars before it where
/// that is more (Kubernetes documentation, "Resource sharing within containers"); of cpu, memory and huge pages what the Pod
/// as a whole asks for, where it says so; and one Pod.
fn requests(pod: &Value) -> Amount {
    let list = |field: &str| pod["spec"][field].as_array().into_iter().flatten();
    let (mut sidecars, mut most) = (Amount::default(), Amount::default());
    for container in list("initContainers") {
        let asked = asked(container, &pod["spec"]);
        if container["restartPolicy"] == "Always" {
            sidecars = sidecars.plus(&asked);
            most = most.most(&sidecars);
        } else {
            most = most.most(&sidecars.plus(&asked));
        }
    }
    let all = list("containers").fold(sidecars, |sum, it| sum.plus(&asked(it, &pod["spec"])));
    let mut sum = all.most(&most);
    let whole = resources(&pod["spec"]["resources"]);
    for (whole, part) in [
        (whole.cpu_milli, &mut sum.cpu_milli),
        (whole.memory, &mut sum.memory),
    ] {
        if whole > 0 {
            *part = whole;
        }
    }
    let pages = whole.others.into_iter();
    sum.others
        .extend(pages.filter(|(name, _)| name.starts_with("hugepages-")));
    sum.pods = 1;
    sum
}

/// What one container asks for, the node's ports included.
fn asked(container: &Value, spec: &Value) -> Amount {
    let ports = container["ports"].as_array().into_iter().flatten();
    let ports = ports.filter_map(|it| {
        let number = it["hostPort"].as_i64().filter(|port| *port > 0);
        // With the node's network every port is the node's.
        let port = number.or(it["containerPort"]
            .as_i64()
            .filter(|_| spec["hostNetwork"] == true))?;
        let ip = word(it, "hostIP");
        let protocol = it["protocol"].as_str().unwrap_or("TCP").to_owned();
        let ip = if ip == "0.0.0.0" || ip == "::" {
            String::new()
        } else {
            ip
        };
        Some((HostPort { protocol, port, ip }, 1))
    });
    Amount {
        ports: ports.collect(),
        ..resources(&container["resources"])
    }
}

/// `resources`: a limit counts where no request is.
fn resources(resources: &Value) -> Amount {
    let mut all = resources["limits"].as_object().cloned().unwrap_or_default();
    all.extend(resources["requests"].as_object().cloned().unwrap_or_default());
    let all = Value::Object(all);
    Amount {
        cpu_milli: quantity(&all["cpu"]).map_or(0, Quantity::milli),
        memory: quantity(&all["memory"]).map_or(0, Quantity::value),
        others: others(&all),
        ..Amount::default()
    }
}

/// What has no field of its own in [`Amount`].
fn others(resources: &Value) -> BTreeMap<String, i64> {
    let all = resources.as_object().into_iter().flatten();
    all.filter(|(name, _)| !matches!(name.as_str(), "cpu" | "memory" | "pods"))
        .filter_map(|(name, value)| Some((name.clone(), quantity(value)?.value())))
        .filter(|(_, value)| *value != 0)
        .collect()
}

fn word(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let entries = value.as_object().into_iter().flatten();
    entries
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests;
