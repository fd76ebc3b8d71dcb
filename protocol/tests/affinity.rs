//! Where a Pod wants to be: what is taken, and each complaint in Kubernetes' wording.

use serde_json::{Value, json};
use skiff_protocol::limits;
use skiff_protocol::manifest::{self, Cause};
use skiff_protocol::pod::Pod;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn pod(field: &str, value: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "labels": { "app": "p" } },
        "spec": { field: value, "containers": [{ "name": "c", "image": "i:1" }] },
    })
}

/// Every complaint, as `field: message`.
fn complaints(field: &str, value: &Value) -> Vec<String> {
    match Pod::parse(&pod(field, value)) {
        Ok(parsed) => {
            assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
            let inspected = manifest::inspect("Pod", &pod(field, value));
            texts(&inspected.unknown)
        }
        Err(causes) => texts(&causes),
    }
}

fn texts(causes: &[Cause]) -> Vec<String> {
    let texts = causes.iter().map(|it| format!("{}: {}", it.field, it.message));
    texts.collect()
}

fn selector(operator: &str, values: &[&str]) -> Value {
    json!({ "matchExpressions": [{ "key": "app", "operator": operator, "values": values }] })
}

#[test]
fn every_part_is_taken() {
    let term = json!({
        "labelSelector": { "matchLabels": { "app": "p" }, "matchExpressions": [
            { "key": "app", "operator": "In", "values": ["p"] }, { "key": "x", "operator": "DoesNotExist" },
        ] },
        "topologyKey": "kubernetes.io/hostname", "namespaces": ["default"], "namespaceSelector": {},
        "matchLabelKeys": ["version"], "mismatchLabelKeys": ["tenant"],
    });
    let pods = json!({ REQUIRED: [term], PREFERRED: [{ "weight": 100, "podAffinityTerm": term }] });
    let node = json!({
        "matchExpressions": [
            { "key": "example.com/zone", "operator": "NotIn", "values": ["a", "b"] },
            { "key": "rank", "operator": "Gt", "values": ["3"] },
        ],
        "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["rover"] }],
    });
    let affinity = json!({
        "nodeAffinity": {
            REQUIRED: { "nodeSelectorTerms": [node] }, PREFERRED: [{ "weight": 1, "preference": node }],
        },
        "podAffinity": pods, "podAntiAffinity": pods,
    });
    assert_eq!(complaints("affinity", &affinity), [""; 0]);
    let spread = json!([
        { "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {},
          "minDomains": 2, "nodeAffinityPolicy": "Ignore", "nodeTaintsPolicy": "Honor", "matchLabelKeys": ["v"] },
        { "maxSkew": 9, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway" },
    ]);
    assert_eq!(complaints("topologySpreadConstraints", &spread), [""; 0]);
}

#[test]
fn what_cannot_be_decided_is_refused() {
    let node = |term: Value| json!({ "nodeAffinity": { REQUIRED: { "nodeSelectorTerms": [term] } } });
    let pods = |term: Value| json!({ "podAffinity": { REQUIRED: [term] } });
    let at_node = format!("spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms");
    let at_pods = format!("spec.affinity.podAffinity.{REQUIRED}[0]");
    let many = vec![json!({ "topologyKey": "k" }); limits::ITEMS + 1];
    for (affinity, expected) in [
        (
            json!({ "nodeAffinity": { REQUIRED: { "nodeSelectorTerms": [] } } }),
            format!("{at_node}: Required value: must have at least one node selector term"),
        ),
        (
            node(selector("In", &[])),
            format!(
                "{at_node}[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or \
                 'NotIn'"
            ),
        ),
        (
            node(selector("Exists", &["a"])),
            format!(
                "{at_node}[0].matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or \
                 'DoesNotExist'"
            ),
        ),
        (
            node(selector("Gt", &["1", "2"])),
            format!(
                "{at_node}[0].matchExpressions[0].values: Required value: must be specified single value when `operator` \
                 is 'Lt' or 'Gt'"
            ),
        ),
        (
            node(selector("Lt", &["low"])),
            format!(
                "{at_node}[0].matchExpressions[0].values: Invalid value: \"low\": must be an integer for `operator` 'Gt' or \
                 'Lt'"
            ),
        ),
        (
            node(selector("Like", &["a"])),
            format!(
                "{at_node}[0].matchExpressions[0].operator: Invalid value: \"Like\": not a valid selector operator"
            ),
        ),
        (
            node(json!({ "matchFields": [{ "key": "spec.name", "operator": "In", "values": ["a"] }] })),
            format!(
                "{at_node}[0].matchFields[0].key: Invalid value: \"spec.name\": not a valid field selector key"
            ),
        ),
        (
            pods(json!({ "labelSelector": selector("Gt", &["1"]), "topologyKey": "k" })),
            format!(
                "{at_pods}.labelSelector.matchExpressions[0].operator: Invalid value: \"Gt\": not a valid selector operator"
            ),
        ),
        (
            pods(json!({ "labelSelector": {} })),
            format!("{at_pods}.topologyKey: Required value: can not be empty"),
        ),
        (
            pods(json!({ "topologyKey": "k", "matchLabelKeys": ["v"] })),
            format!(
                "{at_pods}.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"
            ),
        ),
        (
            pods(json!({ "topologyKey": "k", "namespaces": ["A"] })),
            format!("{at_pods}.namespaces[0]: Invalid value: \"A\": "),
        ),
        (
            pods(json!({ "topologyKey": "k", "labelSelectors": {} })),
            format!("{at_pods}.labelSelectors: "),
        ),
        (
            json!({ "podAntiAffinity": { REQUIRED: many } }),
            format!("spec.affinity.podAntiAffinity.{REQUIRED}: Too long"),
        ),
        (
            json!({ "podAffinity": { PREFERRED: [{ "weight": 0, "podAffinityTerm": { "topologyKey": "k" } }] } }),
            format!(
                "spec.affinity.podAffinity.{PREFERRED}[0].weight: Invalid value: 0: must be in the range 1-100"
            ),
        ),
    ] {
        let found = complaints("affinity", &affinity);
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "{affinity}: {found:?}, not {expected:?}"
        );
    }
}

#[test]
fn a_spread_says_how_much_over_what_and_what_else() {
    let good = json!({ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule" });
    let with = |field: &str, value: Value| {
        let mut out = good.clone();
        out[field] = value;
        out
    };
    let at = "spec.topologySpreadConstraints[0]";
    for (one, expected) in [
        (
            with("maxSkew", json!(0)),
            format!("{at}.maxSkew: Invalid value: 0: must be greater than zero"),
        ),
        (
            with("topologyKey", json!("")),
            format!("{at}.topologyKey: Required value: can not be empty"),
        ),
        (
            with("whenUnsatisfiable", json!("Never")),
            format!("{at}.whenUnsatisfiable: Unsupported value: \"Never\""),
        ),
        (
            with("minDomains", json!(0)),
            format!("{at}.minDomains: Invalid value: 0: must be greater than zero"),
        ),
        (
            with("nodeTaintsPolicy", json!("Maybe")),
            format!("{at}.nodeTaintsPolicy: Unsupported value: \"Maybe\""),
        ),
    ] {
        let found = complaints("topologySpreadConstraints", &json!([one]));
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "{one}: {found:?}"
        );
    }
    let found = complaints("topologySpreadConstraints", &json!([good, good]));
    let expected = "spec.topologySpreadConstraints[1].{topologyKey, whenUnsatisfiable}: Duplicate value: \
                    \"{zone, DoNotSchedule}\"";
    assert_eq!(found, [expected]);
}
