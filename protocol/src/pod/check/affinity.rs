//! Where a Pod wants to be: `affinity` and `topologySpreadConstraints`.
//!
//! Always holds: what passes can be decided for any node and any Pod; no selector is left that means nothing.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{is_label, is_name_part, is_qualified, label_rule, labels};
use crate::limits;
use crate::manifest::{
    Affinity, Cause, LabelSelector, NodeSelectorTerm, PodAffinity, PodAffinityTerm, SelectorRequirement,
    TopologySpreadConstraint,
};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// The one field of a node that `matchFields` knows.
const NODE_NAME: &str = "metadata.name";

const OPERATOR: &str = "not a valid selector operator";
const QUALIFIED: &str = "a label's key is [prefix/]name, a name at most 63 letters, digits, '-', '_' or '.', with a letter \
     or digit at both ends";

/// Checks `spec.affinity`.
pub(in super::super) fn affinity(given: &Affinity, out: &mut Vec<Cause>) {
    let at = "spec.affinity.nodeAffinity";
    if let Some(required) = &given.node_affinity.required {
        let at = format!("{at}.{REQUIRED}.nodeSelectorTerms");
        if required.node_selector_terms.is_empty() {
            out.push(Cause::required(&at, "must have at least one node selector term"));
        }
        bounded(&at, required.node_selector_terms.len(), out);
        for (n, term) in required.node_selector_terms.iter().enumerate() {
            node_term(&format!("{at}[{n}]"), term, out);
        }
    }
    bounded(
        &format!("{at}.{PREFERRED}"),
        given.node_affinity.preferred.len(),
        out,
    );
    for (n, preferred) in given.node_affinity.preferred.iter().enumerate() {
        let at = format!("{at}.{PREFERRED}[{n}]");
        weight(&at, preferred.weight, out);
        node_term(&format!("{at}.preference"), &preferred.preference, out);
    }
    for (name, given) in [
        ("podAffinity", &given.pod_affinity),
        ("podAntiAffinity", &given.pod_anti_affinity),
    ] {
        pods(&format!("spec.affinity.{name}"), given, out);
    }
}

/// Checks `spec.topologySpreadConstraints`.
pub(in super::super) fn spread(given: &[TopologySpreadConstraint], out: &mut Vec<Cause>) {
    bounded("spec.topologySpreadConstraints", given.len(), out);
    for (n, one) in given.iter().enumerate() {
        let at = format!("spec.topologySpreadConstraints[{n}]");
        if one.max_skew < 1 {
            let why = "must be greater than zero";
            out.push(Cause::invalid(format!("{at}.maxSkew"), one.max_skew, why));
        }
        topology_key(&at, &one.topology_key, out);
        let at_when = format!("{at}.whenUnsatisfiable");
        match one.when_unsatisfiable.as_str() {
            "DoNotSchedule" | "ScheduleAnyway" => {}
            "" => out.push(Cause::required(at_when, "")),
            other => out.push(Cause::not_supported(
                at_when,
                other,
                &["DoNotSchedule", "ScheduleAnyway"],
            )),
        }
        if let Some(least) = one.min_domains {
            let at = format!("{at}.minDomains");
            if least < 1 {
                out.push(Cause::invalid(&at, least, "must be greater than zero"));
            }
            if one.when_unsatisfiable == "ScheduleAnyway" {
                let why = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
                out.push(Cause::invalid(at, least, why));
            }
        }
        for (name, policy) in [
            ("nodeAffinityPolicy", &one.node_affinity_policy),
            ("nodeTaintsPolicy", &one.node_taints_policy),
        ] {
            if let Some(policy) = policy
                && !matches!(policy.as_str(), "Honor" | "Ignore")
            {
                out.push(Cause::not_supported(
                    format!("{at}.{name}"),
                    policy,
                    &["Honor", "Ignore"],
                ));
            }
        }
        let twice = given[..n].iter().any(|before| {
            before.topology_key == one.topology_key && before.when_unsatisfiable == one.when_unsatisfiable
        });
        if twice {
            let value = format!("{{{}, {}}}", one.topology_key, one.when_unsatisfiable);
            out.push(Cause::duplicate(
                format!("{at}.{{topologyKey, whenUnsatisfiable}}"),
                value,
            ));
        }
        if let Some(selector) = &one.label_selector {
            label_selector(&format!("{at}.labelSelector"), selector, out);
        }
        keys(
            &at,
            "matchLabelKeys",
            &one.match_label_keys,
            one.label_selector.as_ref(),
            out,
        );
    }
}

fn pods(at: &str, given: &PodAffinity, out: &mut Vec<Cause>) {
    bounded(&format!("{at}.{REQUIRED}"), given.required.len(), out);
    for (n, term) in given.required.iter().enumerate() {
        pod_term(&format!("{at}.{REQUIRED}[{n}]"), term, out);
    }
    bounded(&format!("{at}.{PREFERRED}"), given.preferred.len(), out);
    for (n, preferred) in given.preferred.iter().enumerate() {
        let at = format!("{at}.{PREFERRED}[{n}]");
        weight(&at, preferred.weight, out);
        pod_term(
            &format!("{at}.podAffinityTerm"),
            &preferred.pod_affinity_term,
            out,
        );
    }
}

fn pod_term(at: &str, term: &PodAffinityTerm, out: &mut Vec<Cause>) {
    if let Some(selector) = &term.label_selector {
        label_selector(&format!("{at}.labelSelector"), selector, out);
    }
    if let Some(selector) = &term.namespace_selector {
        label_selector(&format!("{at}.namespaceSelector"), selector, out);
    }
    bounded(&format!("{at}.namespaces"), term.namespaces.len(), out);
    for (n, name) in term.namespaces.iter().enumerate() {
        if !is_label(name) {
            out.push(Cause::invalid(
                format!("{at}.namespaces[{n}]"),
                name,
                label_rule(name),
            ));
        }
    }
    topology_key(at, &term.topology_key, out);
    for (name, given) in [
        ("matchLabelKeys", &term.match_label_keys),
        ("mismatchLabelKeys", &term.mismatch_label_keys),
    ] {
        keys(at, name, given, term.label_selector.as_ref(), out);
    }
    for (n, key) in term.mismatch_label_keys.iter().enumerate() {
        if term.match_label_keys.contains(key) {
            let why = "exists in both matchLabelKeys and mismatchLabelKeys";
            out.push(Cause::invalid(format!("{at}.mismatchLabelKeys[{n}]"), key, why));
        }
    }
}

/// Keys whose values are those of the Pod's own labels: they need a selector to belong to.
fn keys(at: &str, name: &str, given: &[String], selector: Option<&LabelSelector>, out: &mut Vec<Cause>) {
    bounded(&format!("{at}.{name}"), given.len(), out);
    if !given.is_empty() && selector.is_none() {
        out.push(Cause::forbidden(
            format!("{at}.{name}"),
            "must not be specified when labelSelector is not set",
        ));
    }
    for (n, key) in given.iter().enumerate() {
        if !is_qualified(key) {
            out.push(Cause::invalid(format!("{at}.{name}[{n}]"), key, QUALIFIED));
        }
    }
}

fn node_term(at: &str, term: &NodeSelectorTerm, out: &mut Vec<Cause>) {
    for (n, one) in term.match_expressions.iter().enumerate() {
        let at = format!("{at}.matchExpressions[{n}]");
        requirement(&at, one, true, out);
        if !is_qualified(&one.key) {
            out.push(Cause::invalid(format!("{at}.key"), &one.key, QUALIFIED));
        }
    }
    bounded(
        &format!("{at}.matchExpressions"),
        term.match_expressions.len(),
        out,
    );
    for (n, one) in term.match_fields.iter().enumerate() {
        let at = format!("{at}.matchFields[{n}]");
        if one.key != NODE_NAME {
            out.push(Cause::invalid(
                format!("{at}.key"),
                &one.key,
                "not a valid field selector key",
            ));
        }
        if !matches!(one.operator.as_str(), "In" | "NotIn") {
            out.push(Cause::invalid(format!("{at}.operator"), &one.operator, OPERATOR));
        } else if one.values.len() != 1 {
            let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            out.push(Cause::required(format!("{at}.values"), why));
        }
    }
}

fn label_selector(at: &str, selector: &LabelSelector, out: &mut Vec<Cause>) {
    labels(&format!("{at}.matchLabels"), &selector.match_labels, out);
    bounded(
        &format!("{at}.matchExpressions"),
        selector.match_expressions.len(),
        out,
    );
    for (n, one) in selector.match_expressions.iter().enumerate() {
        let at = format!("{at}.matchExpressions[{n}]");
        requirement(&at, one, false, out);
        if !is_qualified(&one.key) {
            out.push(Cause::invalid(format!("{at}.key"), &one.key, QUALIFIED));
        }
        for (n, value) in one.values.iter().enumerate() {
            if !value.is_empty() && !is_name_part(value) {
                let why = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                           alphanumeric character, at most 63";
                out.push(Cause::invalid(format!("{at}.values[{n}]"), value, why));
            }
        }
    }
}

fn requirement(at: &str, one: &SelectorRequirement, of_node: bool, out: &mut Vec<Cause>) {
    let values = format!("{at}.values");
    bounded(&values, one.values.len(), out);
    match one.operator.as_str() {
        "In" | "NotIn" if one.values.is_empty() => {
            out.push(Cause::required(
                values,
                "must be specified when `operator` is 'In' or 'NotIn'",
            ));
        }
        "In" | "NotIn" => {}
        "Exists" | "DoesNotExist" if !one.values.is_empty() => out.push(Cause::forbidden(
            values,
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "Exists" | "DoesNotExist" => {}
        "Gt" | "Lt" if of_node => match &one.values[..] {
            [value] if value.parse::<i64>().is_err() => {
                out.push(Cause::invalid(
                    values,
                    value,
                    "must be an integer for `operator` 'Gt' or 'Lt'",
                ));
            }
            [_] => {}
            _ => out.push(Cause::required(
                values,
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            )),
        },
        other => out.push(Cause::invalid(format!("{at}.operator"), other, OPERATOR)),
    }
}

fn weight(at: &str, weight: i64, out: &mut Vec<Cause>) {
    if !(1..=100).contains(&weight) {
        out.push(Cause::invalid(
            format!("{at}.weight"),
            weight,
            "must be in the range 1-100",
        ));
    }
}

fn topology_key(at: &str, key: &str, out: &mut Vec<Cause>) {
    let at = format!("{at}.topologyKey");
    if key.is_empty() {
        out.push(Cause::required(at, "can not be empty"));
    } else if !is_qualified(key) {
        out.push(Cause::invalid(at, key, QUALIFIED));
    }
}

fn bounded(at: &str, count: usize, out: &mut Vec<Cause>) {
    if count > limits::ITEMS {
        out.push(Cause::too_long(at, limits::ITEMS, "items"));
    }
}
