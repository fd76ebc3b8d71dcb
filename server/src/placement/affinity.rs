//! Where other Pods let a Pod run: affinity, anti-affinity and topology spread, between the Pods that have a node.
//!
//! [`Neighbours`] is what is known of those; [`Outlook`] is what one Pod that waits makes of them, counted once, so that
//! a node is judged without looking at any Pod again.
//!
//! Always holds: what a Pod requires is counted against Pods that have a node and have not ended; a node without the label
//! that a term counts by is in no domain of it.
//!
//! Source: Kubernetes documentation, "Assigning Pods to Nodes" and "Pod Topology Spread Constraints".

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use skiff_protocol::manifest::{
    Affinity, LabelSelector, NodeSelectorTerm, PodAffinityTerm, SelectorRequirement, TopologySpreadConstraint,
};

use super::{Node, strings, word};
use crate::store::Key;

type Labels = BTreeMap<String, String>;

/// A label of nodes and one of its values.
type Domain = (String, String);

/// What a Pod says of where it wants to be, and what others may say of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wants {
    namespace: String,
    labels: Labels,
    affinity: Affinity,
    spread: Vec<TopologySpreadConstraint>,
}

impl Wants {
    /// Reads a Pod's document, which was checked when it was stored.
    pub(super) fn of(pod: &Value) -> Self {
        let spec = &pod["spec"];
        Self {
            namespace: word(&pod["metadata"], "namespace"),
            labels: strings(&pod["metadata"]["labels"]),
            affinity: serde_json::from_value(spec["affinity"].clone()).unwrap_or_default(),
            spread: serde_json::from_value(spec["topologySpreadConstraints"].clone()).unwrap_or_default(),
        }
    }

    /// Whether a Pod that gets a node can be what this one waits for.
    pub(super) fn awaits_others(&self) -> bool {
        !self.spread.is_empty() || !self.affinity.pod_affinity.required.is_empty()
    }

    /// Whether the node is one of those that `nodeAffinity` requires.
    pub(super) fn takes(&self, node: &Node) -> bool {
        let required = self.affinity.node_affinity.required.as_ref();
        required.is_none_or(|it| it.node_selector_terms.iter().any(|term| matches_node(term, node)))
    }

    /// The sum of the weights of what the node has of `nodeAffinity` preferred.
    pub(super) fn likes(&self, node: &Node) -> i64 {
        let preferred = self.affinity.node_affinity.preferred.iter();
        preferred
            .filter(|it| !is_empty(&it.preference) && matches_node(&it.preference, node))
            .map(|it| it.weight)
            .sum()
    }
}

fn is_empty(term: &NodeSelectorTerm) -> bool {
    term.match_expressions.is_empty() && term.match_fields.is_empty()
}

/// A term without requirements selects nothing.
fn matches_node(term: &NodeSelectorTerm, node: &Node) -> bool {
    !is_empty(term)
        && term
            .match_expressions
            .iter()
            .all(|it| holds(it, node.labels.get(&it.key).map(String::as_str)))
        && term.match_fields.iter().all(|it| holds(it, Some(&node.name)))
}

fn holds(requirement: &SelectorRequirement, value: Option<&str>) -> bool {
    let listed = |value: &str| requirement.values.iter().any(|it| it == value);
    let number = |text: Option<&str>| text.and_then(|it| it.parse::<i64>().ok());
    let bound = number(requirement.values.first().map(String::as_str));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value).zip(bound).is_some_and(|(has, bound)| has > bound),
        "Lt" => number(value).zip(bound).is_some_and(|(has, bound)| has < bound),
        _ => false,
    }
}

/// Whether a selector takes these labels. None takes nothing, an empty one everything.
fn selects(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    selector.is_some_and(|it| {
        it.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && it
                .match_expressions
                .iter()
                .all(|it| holds(it, labels.get(&it.key).map(String::as_str)))
    })
}

/// `matchLabelKeys`, or with `same` off `mismatchLabelKeys`: as `own` has it. Keys that it has no label for are passed over.
fn alike(keys: &[String], own: &Labels, labels: &Labels, same: bool) -> bool {
    keys.iter()
        .filter_map(|key| own.get(key).map(|value| (key, value)))
        .all(|(key, value)| (labels.get(key) == Some(value)) == same)
}

/// A Pod that has a node.
#[derive(Debug, PartialEq)]
struct Neighbour {
    node: String,
    wants: Wants,
    ending: bool,
}

/// The Pods that have a node and have not ended, and the labels of the namespaces.
#[derive(Debug, Default)]
pub struct Neighbours {
    pods: BTreeMap<Key, Neighbour>,
    namespaces: BTreeMap<String, Labels>,
}

impl Neighbours {
    /// Takes a namespace's labels; `None` when it is gone.
    pub(super) fn namespace(&mut self, name: &str, labels: Option<Labels>) {
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
    }

    /// Takes a Pod that has a node. Whether anything of it matters to others that did not before.
    pub(super) fn put(&mut self, key: &Key, node: &str, pod: &Value) -> bool {
        let neighbour = Neighbour {
            node: node.to_owned(),
            wants: Wants::of(pod),
            ending: !pod["metadata"]["deletionTimestamp"].is_null(),
        };
        let changed = self.pods.get(key) != Some(&neighbour);
        self.pods.insert(key.clone(), neighbour);
        changed
    }

    /// The Pod is gone, or has ended.
    pub(super) fn remove(&mut self, key: &Key) {
        self.pods.remove(key);
    }

    /// Whether the term of a Pod (`of`) means a Pod of these labels in this namespace.
    fn means(&self, term: &PodAffinityTerm, of: &Wants, other: &Wants) -> bool {
        let own_namespace = term.namespaces.is_empty() && term.namespace_selector.is_none();
        let nothing = Labels::new();
        let labels = self.namespaces.get(&other.namespace).unwrap_or(&nothing);
        let is_there = if own_namespace {
            of.namespace == other.namespace
        } else {
            term.namespaces.contains(&other.namespace) || selects(term.namespace_selector.as_ref(), labels)
        };
        is_there
            && selects(term.label_selector.as_ref(), &other.labels)
            && alike(&term.match_label_keys, &of.labels, &other.labels, true)
            && alike(&term.mismatch_label_keys, &of.labels, &other.labels, false)
    }
}

/// What a Pod makes of its neighbours.
#[derive(Debug, Default)]
pub(super) struct Outlook<'a> {
    /// Where a Pod that is there does not want it.
    barred: BTreeSet<Domain>,
    /// Where it does not want to be for a Pod that is there.
    shunned: BTreeSet<Domain>,
    /// Labels by which it must be with others, and where those are.
    keys: Vec<&'a str>,
    company: BTreeSet<Domain>,
    /// Nobody that it must be with is anywhere, but it is such a Pod itself.
    first: bool,
    liked: BTreeMap<Domain, i64>,
    spread: Vec<Spread<'a>>,
}

/// One constraint, and the Pods that count, by the label's value.
#[derive(Debug)]
struct Spread<'a> {
    rule: &'a TopologySpreadConstraint,
    counts: BTreeMap<String, i64>,
    /// Whether the Pod itself counts.
    own: i64,
}

impl<'a> Outlook<'a> {
    /// Counts. `counted` says whether a node counts for a constraint.
    pub(super) fn of(
        wants: &'a Wants,
        neighbours: &Neighbours,
        nodes: &BTreeMap<String, Node>,
        counted: impl Fn(&TopologySpreadConstraint, &Node) -> bool,
    ) -> Self {
        let mut out = Self::default();
        let domain = |key: &str, neighbour: &Neighbour| -> Option<Domain> {
            let value = nodes.get(&neighbour.node)?.labels.get(key)?;
            Some((key.to_owned(), value.clone()))
        };
        let (near, far) = (&wants.affinity.pod_affinity, &wants.affinity.pod_anti_affinity);
        out.keys = near.required.iter().map(|it| it.topology_key.as_str()).collect();
        for neighbour in neighbours.pods.values() {
            let theirs = &neighbour.wants;
            let they_mean = |term: &PodAffinityTerm| neighbours.means(term, theirs, wants);
            let it_means = |term: &PodAffinityTerm| neighbours.means(term, wants, theirs);
            let (their_near, their_far) = (&theirs.affinity.pod_affinity, &theirs.affinity.pod_anti_affinity);
            let barring = their_far.required.iter().filter(|it| they_mean(it));
            out.barred
                .extend(barring.filter_map(|it| domain(&it.topology_key, neighbour)));
            let shunning = far.required.iter().filter(|it| it_means(it));
            out.shunned
                .extend(shunning.filter_map(|it| domain(&it.topology_key, neighbour)));
            // A neighbour is company if all terms mean it.
            if !near.required.is_empty() && near.required.iter().all(it_means) {
                let found = near.required.iter();
                out.company
                    .extend(found.filter_map(|it| domain(&it.topology_key, neighbour)));
            }
            let mut like = |sign: i64, weight: i64, term: &PodAffinityTerm| {
                if let Some(domain) = domain(&term.topology_key, neighbour) {
                    *out.liked.entry(domain).or_default() += sign * weight;
                }
            };
            for (sign, own, other) in [(1, near, their_near), (-1, far, their_far)] {
                for it in own.preferred.iter().filter(|it| it_means(&it.pod_affinity_term)) {
                    like(sign, it.weight, &it.pod_affinity_term);
                }
                for it in other
                    .preferred
                    .iter()
                    .filter(|it| they_mean(&it.pod_affinity_term))
                {
                    like(sign, it.weight, &it.pod_affinity_term);
                }
            }
            // As the scheduler has it, who must be with such a Pod likes it a little.
            for it in their_near.required.iter().filter(|it| they_mean(it)) {
                like(1, 1, it);
            }
        }
        out.first = out.company.is_empty()
            && near
                .required
                .iter()
                .all(|term| neighbours.means(term, wants, wants));
        out.spread = wants
            .spread
            .iter()
            .map(|rule| Spread::of(rule, wants, neighbours, nodes, &counted))
            .collect();
        out
    }

    /// Why the Pod cannot run on the node for the sake of others.
    pub(super) fn against(&self, node: &Node) -> Option<String> {
        let is_in = |domains: &BTreeSet<Domain>| {
            domains
                .iter()
                .any(|(key, value)| node.labels.get(key) == Some(value))
        };
        for spread in self.spread.iter().filter(|it| it.is_hard()) {
            if let Some(why) = spread.against(node) {
                return Some(why.to_owned());
            }
        }
        let with_company = self.keys.iter().all(|key| {
            let value = node.labels.get(*key);
            value.is_some_and(|it| self.first || self.company.contains(&((*key).to_owned(), it.clone())))
        });
        if !with_company {
            Some("node(s) didn't match pod affinity rules".to_owned())
        } else if is_in(&self.shunned) {
            Some("node(s) didn't match pod anti-affinity rules".to_owned())
        } else if is_in(&self.barred) {
            Some("node(s) didn't satisfy existing pods anti-affinity rules".to_owned())
        } else {
            None
        }
    }

    /// How much the Pod likes the node for the sake of others.
    pub(super) fn likes(&self, node: &Node) -> i64 {
        let found = self.liked.iter();
        found
            .filter(|((key, value), _)| node.labels.get(key) == Some(value))
            .map(|(_, weight)| weight)
            .sum()
    }

    /// How many Pods that it would rather be apart from are in the node's domains; `None` where it is in none.
    pub(super) fn crowd(&self, node: &Node) -> Option<i64> {
        let mut soft = self.spread.iter().filter(|it| !it.is_hard());
        soft.try_fold(0, |sum: i64, it| {
            let value = node.labels.get(&it.rule.topology_key)?;
            Some(sum.saturating_add(it.counts.get(value).copied().unwrap_or(0)))
        })
    }
}

impl<'a> Spread<'a> {
    fn of(
        rule: &'a TopologySpreadConstraint,
        wants: &Wants,
        neighbours: &Neighbours,
        nodes: &BTreeMap<String, Node>,
        counted: &impl Fn(&TopologySpreadConstraint, &Node) -> bool,
    ) -> Self {
        let counts_in = |node: &Node| {
            // A node that lacks a label of any constraint of the kind is in no domain at all.
            let labelled = wants
                .spread
                .iter()
                .filter(|it| it.when_unsatisfiable == rule.when_unsatisfiable)
                .all(|it| node.labels.contains_key(&it.topology_key));
            (labelled && counted(rule, node)).then(|| node.labels[&rule.topology_key].clone())
        };
        let alike = |labels: &Labels| {
            selects(rule.label_selector.as_ref(), labels)
                && alike(&rule.match_label_keys, &wants.labels, labels, true)
        };
        let mut counts: BTreeMap<String, i64> =
            nodes.values().filter_map(counts_in).map(|it| (it, 0)).collect();
        for neighbour in neighbours.pods.values() {
            let theirs = &neighbour.wants;
            let counts_it = theirs.namespace == wants.namespace && !neighbour.ending && alike(&theirs.labels);
            if let Some(count) = nodes
                .get(&neighbour.node)
                .filter(|_| counts_it)
                .and_then(counts_in)
                .and_then(|value| counts.get_mut(&value))
            {
                *count += 1;
            }
        }
        Self {
            rule,
            counts,
            own: i64::from(alike(&wants.labels)),
        }
    }

    fn is_hard(&self) -> bool {
        self.rule.when_unsatisfiable != "ScheduleAnyway"
    }

    fn against(&self, node: &Node) -> Option<&'static str> {
        let Some(value) = node.labels.get(&self.rule.topology_key) else {
            return Some("node(s) didn't match pod topology spread constraints (missing required label)");
        };
        let domains = i64::try_from(self.counts.len()).unwrap_or(i64::MAX);
        let least = if domains < self.rule.min_domains.unwrap_or(1) {
            0
        } else {
            self.counts.values().min().copied().unwrap_or(0)
        };
        let here = self.counts.get(value).copied().unwrap_or(0);
        let skew = here.saturating_add(self.own).saturating_sub(least);
        (skew > self.rule.max_skew).then_some("node(s) didn't match pod topology spread constraints")
    }
}

#[cfg(test)]
mod tests;
