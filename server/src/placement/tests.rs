//! Tables for placement.

use serde_json::json;

use super::*;

fn node(name: &str, change: impl FnOnce(&mut Value)) -> (String, Node) {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "arch": "arm64" } },
        "spec": {},
        "status": {
            "allocatable": { "cpu": "2", "memory": "1Gi", "pods": "10" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    change(&mut node);
    (name.to_owned(), Node::of(&node))
}

fn pod(spec: &Value) -> Needs {
    let mut pod = json!({ "spec": { "containers": [{ "resources": { "requests": { "cpu": "500m", "memory": "512Mi" } } }] } });
    for (field, value) in spec.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    Needs::of(&pod)
}

#[test]
fn pods_go_where_they_fit_or_hear_why_not() {
    let plain = |_: &mut Value| {};
    let unready = |it: &mut Value| it["status"]["conditions"][0]["status"] = "Unknown".into();
    let cordoned = |it: &mut Value| it["spec"]["unschedulable"] = true.into();
    let tainted = |it: &mut Value| {
        it["spec"]["taints"] = json!([{ "key": "gpu", "value": "yes", "effect": "NoSchedule" }]);
    };
    let preferred =
        |it: &mut Value| it["spec"]["taints"] = json!([{ "key": "gpu", "effect": "PreferNoSchedule" }]);
    let small = |it: &mut Value| {
        it["status"]["allocatable"] = json!({ "cpu": "0.1", "memory": "128Mi", "pods": "0" });
    };
    let none = Amount::default();
    let half = Amount {
        cpu_milli: 100,
        memory: 700 << 20,
        pods: 3,
    };
    let check = |spec: Value, nodes: Vec<(String, Node)>, on_first: Amount, expected: Result<&str, &str>| {
        let nodes: BTreeMap<String, Node> = nodes.into_iter().collect();
        let used = nodes
            .keys()
            .take(1)
            .map(|name| (name.clone(), on_first))
            .collect();
        let got = place(&pod(&spec), &nodes, &used);
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{spec}");
    };
    check(json!({}), vec![node("b", plain), node("a", plain)], none, Ok("a"));
    check(json!({}), vec![node("a", plain), node("b", plain)], half, Ok("b"));
    check(
        json!({}),
        vec![node("a", plain)],
        half,
        Err("0/1 nodes are available: 1 Insufficient memory."),
    );
    check(
        json!({}),
        vec![],
        none,
        Err("no nodes available to schedule pods"),
    );
    check(
        json!({}),
        vec![
            node("a", small),
            node("b", unready),
            node("c", cordoned),
            node("d", tainted),
        ],
        none,
        Err(
            "0/4 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, \
             1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were not ready, 1 node(s) were unschedulable.",
        ),
    );
    check(json!({}), vec![node("a", preferred)], none, Ok("a"));
    check(
        json!({ "nodeSelector": { "arch": "arm64" } }),
        vec![node("a", plain)],
        none,
        Ok("a"),
    );
    check(
        json!({ "nodeSelector": { "arch": "amd64" } }),
        vec![node("a", plain), node("b", plain)],
        none,
        Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."),
    );
    for (toleration, fits) in [
        (
            json!({ "key": "gpu", "value": "yes", "effect": "NoSchedule" }),
            true,
        ),
        (json!({ "key": "gpu", "operator": "Exists" }), true),
        (json!({ "operator": "Exists" }), true),
        (json!({ "key": "gpu", "value": "no" }), false),
        (
            json!({ "key": "gpu", "value": "yes", "effect": "NoExecute" }),
            false,
        ),
    ] {
        let expected = if fits {
            Ok("a")
        } else {
            Err("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}.")
        };
        check(
            json!({ "tolerations": [toleration] }),
            vec![node("a", tainted)],
            none,
            expected,
        );
    }
    // A Pod that asks for nothing is never short of it, but is still one more.
    let nothing = json!({ "containers": [{}] });
    let full = Amount {
        cpu_milli: 9000,
        memory: 9 << 30,
        pods: 9,
    };
    check(nothing.clone(), vec![node("a", plain)], full, Ok("a"));
    let full = Amount { pods: 10, ..full };
    check(
        nothing,
        vec![node("a", plain)],
        full,
        Err("0/1 nodes are available: 1 Too many pods."),
    );
}

#[test]
fn a_limit_counts_where_no_request_is_and_an_ended_pod_takes_nothing() {
    let mut pod = json!({ "spec": { "containers": [
        { "resources": { "limits": { "cpu": 1, "memory": "64Mi" } } },
        { "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "250m" } } },
    ] } });
    let amount = Amount {
        cpu_milli: 1250,
        memory: 64 << 20,
        pods: 1,
    };
    assert_eq!(taken(&pod), amount);
    for (phase, expected) in [
        ("Running", amount),
        ("Succeeded", Amount::default()),
        ("Failed", Amount::default()),
    ] {
        pod["status"] = json!({ "phase": phase });
        assert_eq!(taken(&pod), expected, "{phase}");
    }
}
