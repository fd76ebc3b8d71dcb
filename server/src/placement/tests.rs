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
    let none = &Amount::default();
    let half = Amount {
        cpu_milli: 100,
        memory: 700 << 20,
        pods: 3,
        ..Amount::default()
    };
    let check = |spec: Value, nodes: Vec<(String, Node)>, on_first: &Amount, expected: Result<&str, &str>| {
        let nodes: BTreeMap<String, Node> = nodes.into_iter().collect();
        let used = nodes
            .keys()
            .take(1)
            .map(|name| (name.clone(), on_first.clone()))
            .collect();
        let got = place(&pod(&spec), &nodes, &used, &Neighbours::default());
        assert_eq!(got.as_deref().map_err(String::as_str), expected, "{spec}");
    };
    check(json!({}), vec![node("b", plain), node("a", plain)], none, Ok("a"));
    check(
        json!({}),
        vec![node("a", plain), node("b", plain)],
        &half,
        Ok("b"),
    );
    check(
        json!({}),
        vec![node("a", plain)],
        &half,
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
        ..Amount::default()
    };
    check(nothing.clone(), vec![node("a", plain)], &full, Ok("a"));
    let full = Amount { pods: 10, ..full };
    check(
        nothing,
        vec![node("a", plain)],
        &full,
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
        ..Amount::default()
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

#[test]
fn init_containers_count_by_their_most_and_sidecars_with_the_rest() {
    let asks = |milli: i64| json!({ "requests": { "cpu": format!("{milli}m") } });
    let check = |init: Value, whole: Value, expected: i64| {
        let pod = json!({ "spec": { "resources": whole, "initContainers": init,
            "containers": [{ "resources": asks(100) }, { "resources": asks(200) }] } });
        assert_eq!(taken(&pod).cpu_milli, expected, "{pod}");
    };
    let sidecar = |milli: i64| json!({ "restartPolicy": "Always", "resources": asks(milli) });
    check(json!([]), json!({}), 300);
    check(json!([{ "resources": asks(250) }]), json!({}), 300);
    check(
        json!([{ "resources": asks(900) }, { "resources": asks(800) }]),
        json!({}),
        900,
    );
    check(json!([sidecar(50)]), json!({}), 350);
    check(json!([sidecar(50), { "resources": asks(800) }]), json!({}), 850);
    check(json!([{ "resources": asks(800) }, sidecar(50)]), json!({}), 800);
    check(json!([sidecar(50)]), asks(120), 120);
    let pages = json!({ "limits": { "hugepages-2Mi": "4Mi", "example.com/x": 1 } });
    let pod = json!({ "spec": { "resources": pages, "containers": [{ "resources": { "limits": { "hugepages-2Mi": "2Mi" } } }] } });
    assert_eq!(
        taken(&pod).others,
        BTreeMap::from([("hugepages-2Mi".to_owned(), 4 << 20)])
    );
}

#[test]
fn features_devices_storage_pages_and_ports() {
    let able = |it: &mut Value| {
        it["metadata"]["annotations"] = json!({ "skiff.io/features": "host-network,privileged" });
        for (name, amount) in [
            ("ephemeral-storage", "1Gi"),
            ("nvidia.com/gpu", "1"),
            ("hugepages-2Mi", "4Mi"),
        ] {
            it["status"]["allocatable"][name] = amount.into();
        }
    };
    let first = |spec: Value| requests(&json!({ "spec": spec }));
    let port = |ip: &str| json!([{ "containerPort": 80, "hostPort": 8080, "hostIP": ip }]);
    let of = |field: &str, value: Value| {
        let mut container = json!({ "name": "a" });
        container[field] = value;
        json!({ "containers": [container] })
    };
    let limits = |name: &str, amount: &str| of("resources", json!({ "limits": { name: amount } }));
    let none = Amount::default();
    let check = |spec: Value, used: &Amount, expected: Result<&str, &str>| {
        let nodes = BTreeMap::from([node("a", able)]);
        let got = place(
            &pod(&spec),
            &nodes,
            &BTreeMap::from([("a".to_owned(), used.clone())]),
            &Neighbours::default(),
        );
        let expected = expected.map_err(|why| format!("0/1 nodes are available: 1 {why}."));
        assert_eq!(got, expected.map(str::to_owned), "{spec}");
    };
    check(json!({ "hostNetwork": true }), &none, Ok("a"));
    check(
        json!({ "hostPID": true }),
        &none,
        Err("node(s) didn't have feature host-pid"),
    );
    check(
        of("securityContext", json!({ "privileged": true })),
        &none,
        Ok("a"),
    );
    for (name, fits, too_much) in [
        ("ephemeral-storage", "1Gi", "2Gi"),
        ("nvidia.com/gpu", "1", "2"),
        ("hugepages-2Mi", "4Mi", "6Mi"),
        ("x.io/nothing", "0", "1"),
    ] {
        let lacks = format!("Insufficient {name}");
        check(limits(name, fits), &none, Ok("a"));
        check(limits(name, too_much), &none, Err(&lacks));
        if fits != "0" {
            check(limits(name, fits), &first(limits(name, fits)), Err(&lacks));
        }
    }
    let taken = "node(s) didn't have free ports for the requested pod ports";
    let used = first(of("ports", port("")));
    check(of("ports", port("")), &used, Err(taken));
    check(of("ports", port("10.0.0.1")), &used, Err(taken));
    check(
        of(
            "ports",
            json!([{ "containerPort": 80, "hostPort": 8080, "protocol": "UDP" }]),
        ),
        &used,
        Ok("a"),
    );
    check(
        of("ports", port("10.0.0.2")),
        &first(of("ports", port("10.0.0.1"))),
        Ok("a"),
    );
    let mut host = of("ports", json!([{ "containerPort": 8080 }]));
    host["hostNetwork"] = true.into();
    check(host, &used, Err(taken));
    assert_eq!(used.minus(&used).ports, BTreeMap::new());
}

#[test]
fn claims_bind_pods_to_nodes() {
    let nodes = || BTreeMap::from([node("a", |_| {}), node("b", |_| {})]);
    let check = |volumes: Vec<VolumeNeed>, kept: usize, expected: Result<&str, &str>| {
        let mut nodes = nodes();
        nodes.values_mut().for_each(|it| it.volumes = kept);
        let got = place(
            &pod(&json!({})).with(volumes),
            &nodes,
            &BTreeMap::new(),
            &Neighbours::default(),
        );
        let expected = expected.map_err(|why| format!("0/2 nodes are available: {why}."));
        assert_eq!(got, expected.map(str::to_owned));
    };
    let on = |node: &str| VolumeNeed::On(node.to_owned());
    let any = |make, node: &str| VolumeNeed::Any {
        nodes: BTreeSet::from([node.to_owned()]),
        make,
    };
    check(vec![on("b")], 0, Ok("b"));
    check(vec![on("b"), any(true, "a")], 0, Ok("b"));
    check(
        vec![on("a"), on("b")],
        0,
        Err("2 node(s) had volume node affinity conflict"),
    );
    check(vec![any(false, "b")], 0, Ok("b"));
    check(
        vec![any(false, "c")],
        0,
        Err("2 node(s) didn't find available persistent volumes to bind"),
    );
    check(
        vec![any(true, "c")],
        VOLUMES,
        Err("2 node(s) exceed max volume count"),
    );
    check(vec![any(true, "b")], VOLUMES, Ok("b"));
}

#[test]
fn a_node_that_is_short_of_something_takes_no_more() {
    let short = |kind: &str| {
        let kind = kind.to_owned();
        node("a", move |it| {
            let conditions = it["status"]["conditions"].as_array_mut().unwrap();
            conditions.insert(0, json!({ "type": kind, "status": "True" }));
        })
    };
    let check = |kind: &str, spec: Value, expected: Result<&str, &str>| {
        let nodes = BTreeMap::from([short(kind)]);
        let got = place(&pod(&spec), &nodes, &BTreeMap::new(), &Neighbours::default());
        let why = |key: &str| {
            format!(
                "0/1 nodes are available: 1 node(s) had untolerated taint {{node.kubernetes.io/{key}: }}."
            )
        };
        assert_eq!(got, expected.map(str::to_owned).map_err(why), "{kind} {spec}");
    };
    let nothing = json!({ "containers": [{}] });
    check("DiskPressure", json!({}), Err("disk-pressure"));
    check("PIDPressure", nothing.clone(), Err("pid-pressure"));
    check("MemoryPressure", nothing, Err("memory-pressure"));
    check("MemoryPressure", json!({}), Ok("a"));
    check("KernelLacks", json!({}), Ok("a"));
    let tolerates =
        json!({ "tolerations": [{ "key": "node.kubernetes.io/disk-pressure", "operator": "Exists" }] });
    check("DiskPressure", tolerates, Ok("a"));
}
