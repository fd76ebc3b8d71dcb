//! Which node a Pod runs on.
//!
//! [`place`] is pure: a Pod's needs and the nodes as they are, in; a node's name or the reason why there is none, out.
//! [`run`] is the task around it: it keeps what it needs of the store's Pods and Nodes, binds, and tries again
//! whenever either changes. It waits for nothing else: no timers.
//!
//! What always holds: a Pod that names its node is never touched; a binding is written over the very version it was
//! decided on or not at all; what was bound counts against its node at once.

mod task;

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_protocol::quantity::Quantity;

pub(crate) use task::run;

/// What a Pod takes, or a node gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory: i64,
    /// Pods.
    pub pods: i64,
}

impl Amount {
    /// Both together, saturating.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory: self.memory.saturating_add(other.memory),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    /// This without the other, saturating.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory: self.memory.saturating_sub(other.memory),
            pods: self.pods.saturating_sub(other.pods),
        }
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The sum of its containers' requests, and one Pod.
    pub amount: Amount,
    selector: BTreeMap<String, String>,
    tolerations: Vec<Toleration>,
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
    allocatable: Amount,
}

impl Needs {
    /// Reads a Pod's document.
    #[must_use]
    pub fn of(pod: &Value) -> Self {
        let tolerations = pod["spec"]["tolerations"].as_array().into_iter().flatten();
        Self {
            amount: requests(pod),
            selector: strings(&pod["spec"]["nodeSelector"]),
            tolerations: tolerations
                .map(|it| Toleration {
                    key: word(it, "key"),
                    exists: it["operator"] == "Exists",
                    value: word(it, "value"),
                    effect: word(it, "effect"),
                })
                .collect(),
        }
    }
}

impl Node {
    /// Reads a Node's document.
    #[must_use]
    pub fn of(node: &Value) -> Self {
        let conditions = node["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let allocatable = &node["status"]["allocatable"];
        let taints = node["spec"]["taints"].as_array().into_iter().flatten();
        Self {
            name: word(&node["metadata"], "name"),
            ready: conditions.any(|it| it["type"] == "Ready" && it["status"] == "True"),
            unschedulable: node["spec"]["unschedulable"] == true,
            labels: strings(&node["metadata"]["labels"]),
            taints: taints
                .map(|it| Taint {
                    key: word(it, "key"),
                    value: word(it, "value"),
                    effect: word(it, "effect"),
                })
                .filter(|it| it.effect != "PreferNoSchedule")
                .collect(),
            allocatable: Amount {
                cpu_milli: quantity(&allocatable["cpu"]).map_or(0, Quantity::milli),
                memory: quantity(&allocatable["memory"]).map_or(0, Quantity::value),
                pods: quantity(&allocatable["pods"]).map_or(0, Quantity::value),
            },
        }
    }

    /// Why the Pod cannot run here; nothing when it can.
    fn against(&self, needs: &Needs, used: Amount) -> Vec<String> {
        if self.unschedulable {
            return vec!["node(s) were unschedulable".into()];
        }
        if !self.ready {
            return vec!["node(s) were not ready".into()];
        }
        if let Some(taint) = self
            .taints
            .iter()
            .find(|taint| !needs.tolerations.iter().any(|it| it.covers(taint)))
        {
            return vec![format!(
                "node(s) had untolerated taint {{{}: {}}}",
                taint.key, taint.value
            )];
        }
        if needs
            .selector
            .iter()
            .any(|(key, value)| self.labels.get(key) != Some(value))
        {
            return vec!["node(s) didn't match Pod's node affinity/selector".into()];
        }
        let total = used.plus(needs.amount);
        // What a Pod does not ask for cannot be what the node lacks.
        let lacks = |asked: i64, total: i64, has: i64| asked > 0 && total > has;
        let (asked, has) = (needs.amount, self.allocatable);
        [
            (
                lacks(asked.cpu_milli, total.cpu_milli, has.cpu_milli),
                "Insufficient cpu",
            ),
            (
                lacks(asked.memory, total.memory, has.memory),
                "Insufficient memory",
            ),
            (lacks(asked.pods, total.pods, has.pods), "Too many pods"),
        ]
        .into_iter()
        .filter(|(lacks, _)| *lacks)
        .map(|(_, why)| why.to_owned())
        .collect()
    }
}

impl Toleration {
    fn covers(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key == taint.key || (self.key.is_empty() && self.exists))
            && (self.exists || self.value == taint.value)
    }
}

/// The first node by name that the Pod fits on. `used` is what the Pods bound to each node take together.
///
/// # Errors
/// Why there is none, in the words of Kubernetes' scheduler.
pub fn place(
    needs: &Needs,
    nodes: &BTreeMap<String, Node>,
    used: &BTreeMap<String, Amount>,
) -> Result<String, String> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (name, node) in nodes {
        let against = node.against(needs, used.get(name).copied().unwrap_or_default());
        if against.is_empty() {
            return Ok(name.clone());
        }
        for reason in against {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".into());
    }
    let mut reasons: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    reasons.sort();
    Err(format!(
        "0/{} nodes are available: {}.",
        nodes.len(),
        reasons.join(", ")
    ))
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

fn requests(pod: &Value) -> Amount {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let sum = containers.fold(Amount::default(), |sum, container| {
        let resources = &container["resources"];
        let asked =
            |name: &str| quantity(&resources["requests"][name]).or(quantity(&resources["limits"][name]));
        sum.plus(Amount {
            cpu_milli: asked("cpu").map_or(0, Quantity::milli),
            memory: asked("memory").map_or(0, Quantity::value),
            pods: 0,
        })
    });
    sum.plus(Amount {
        pods: 1,
        ..Amount::default()
    })
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
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
