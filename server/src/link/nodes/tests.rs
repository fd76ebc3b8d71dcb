//! Tables for Node objects.

use super::*;

const NOW: &str = "2026-06-01T00:00:00Z";

fn described(info: &NodeInfo) -> Value {
    let name = NodeName::parse("rover-7").unwrap();
    let mut node = new_node(&name);
    describe(&mut node, &name, info, NOW);
    node
}

#[test]
fn a_node_brings_only_labels_that_are_its_own_to_bring() {
    let check = |key: &str, value: &str, kept: bool| {
        let info = NodeInfo {
            labels: vec![(key.into(), value.into())],
            ..NodeInfo::default()
        };
        let node = described(&info);
        assert_eq!(node["metadata"]["labels"][key] == value, kept, "{key}={value}");
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "rover-7");
    };
    check("site", "north", true);
    check("example.com/site", "", true);
    check("topology.kubernetes.io/zone", "z1", true);
    check("kubernetes.io/hostname", "other", false);
    check("node-role.kubernetes.io/control-plane", "", false);
    check("a/b/c", "x", false);
    check("/a", "x", false);
    check("a b", "x", false);
    check("", "x", false);
    check("site", "-x", false);
    check("site", &"x".repeat(64), false);
}

#[test]
fn images_are_shown_as_far_as_they_are_bounded() {
    let mut node = described(&NodeInfo::default());
    let image = |names: usize| NodeImage {
        names: (0..names).map(|at| format!("a/b:{at}")).collect(),
        size_bytes: 7,
    };
    set_images(&mut node, &[image(2)]);
    let shown = &node["status"]["images"];
    assert_eq!(*shown, json!([{ "names": ["a/b:0", "a/b:1"], "sizeBytes": 7 }]));
    // A node that says more than it may is not believed that far.
    set_images(&mut node, &vec![image(1000); 1000]);
    let shown = node["status"]["images"].as_array().unwrap();
    assert_eq!(shown.len(), skiff_protocol::limits::NODE_IMAGES);
    let names = shown[0]["names"].as_array().unwrap();
    assert_eq!(names.len(), skiff_protocol::limits::IMAGE_NAMES);
    // What it says of itself later leaves them as they are.
    let name = NodeName::parse("rover-7").unwrap();
    describe(&mut node, &name, &NodeInfo::default(), NOW);
    assert_eq!(node["status"]["images"].as_array().unwrap().len(), 50);
}

#[test]
fn labels_of_people_stay_and_those_the_node_dropped_go() {
    let name = NodeName::parse("rover-7").unwrap();
    let mut info = NodeInfo {
        labels: vec![("site".into(), "north".into())],
        ..NodeInfo::default()
    };
    let mut node = described(&info);
    node["metadata"]["labels"]["mine"] = "yes".into();
    node["spec"]["unschedulable"] = true.into();
    info.labels = vec![("rack".into(), "1".into())];
    describe(&mut node, &name, &info, NOW);
    let labels = &node["metadata"]["labels"];
    assert_eq!(
        (&labels["mine"], &labels["rack"], labels.get("site")),
        (&json!("yes"), &json!("1"), None)
    );
    assert_eq!(node["spec"]["unschedulable"], true);
}

#[test]
fn liveness_becomes_conditions() {
    let info = NodeInfo {
        conditions: vec![skiff_protocol::wire::NodeCondition {
            kind: "DiskPressure".into(),
            status: false,
            reason: "Enough".into(),
            message: String::new(),
        }],
        ..NodeInfo::default()
    };
    let mut node = described(&info);
    let check = |node: &Value, kind: &str, expected: (&str, &str)| {
        let list = node["status"]["conditions"].as_array().unwrap();
        let found = list.iter().find(|it| it["type"] == kind).unwrap();
        assert_eq!(
            (
                found["status"].as_str().unwrap(),
                found["reason"].as_str().unwrap()
            ),
            expected,
            "{kind}"
        );
    };
    set_liveness(&mut node, &Liveness::Ready, NOW);
    check(&node, "Ready", ("True", "AgentReady"));
    check(&node, "DiskPressure", ("False", "Enough"));
    assert_eq!(node["status"]["conditions"][0]["lastHeartbeatTime"], NOW);
    set_liveness(&mut node, &Liveness::Unknown, "2026-06-01T01:00:00Z");
    check(&node, "Ready", ("Unknown", "NodeStatusUnknown"));
    check(&node, "DiskPressure", ("Unknown", "NodeStatusUnknown"));
    assert_eq!(
        node["status"]["conditions"][0]["lastHeartbeatTime"], NOW,
        "its last word was then"
    );
    set_liveness(&mut node, &Liveness::Incompatible { versions: (2, 3) }, NOW);
    check(&node, "Ready", ("False", "IncompatibleAgent"));
}

#[test]
fn capacities_and_addresses() {
    let info = NodeInfo {
        address: "10.1.2.3".into(),
        cpu_milli: 4000,
        allocatable_cpu_milli: 3800,
        memory: 2 << 30,
        pods: 110,
        ..NodeInfo::default()
    };
    let node = described(&info);
    let status = &node["status"];
    assert_eq!(
        (&status["capacity"]["cpu"], &status["allocatable"]["cpu"]),
        (&json!("4"), &json!("3800m"))
    );
    assert_eq!(
        (&status["capacity"]["memory"], &status["capacity"]["pods"]),
        (&json!("2097152Ki"), &json!("110"))
    );
    assert_eq!(address(&node), Some(IpAddr::from([10, 1, 2, 3])));
    let nonsense = NodeInfo {
        address: "nonsense".into(),
        ..info
    };
    assert_eq!(address(&described(&nonsense)), None);
}

#[test]
fn what_people_wrote_into_a_status_stops_nobody() {
    let name = NodeName::parse("rover-7").unwrap();
    for odd in [
        json!("x"),
        json!({ "conditions": ["x", 1, null, {}] }),
        json!({ "conditions": {}, "addresses": ["x"] }),
    ] {
        let mut node = new_node(&name);
        node["status"] = odd;
        assert_eq!(address(&node), None);
        describe(&mut node, &name, &NodeInfo::default(), NOW);
        for liveness in [Liveness::Ready, Liveness::Unknown] {
            set_liveness(&mut node, &liveness, NOW);
        }
    }
}

#[test]
fn what_a_node_has_and_can_do() {
    let info = NodeInfo {
        storage: 4 << 30,
        allocatable_storage: 3 << 30,
        extended: vec![
            ("nvidia.com/gpu".into(), 2),
            ("hugepages-2Mi".into(), 4 << 20),
            ("hugepages-many".into(), 1),
            ("cpu".into(), 99),
            ("kubernetes.io/batch-cpu".into(), 1),
            ("a b/c".into(), 1),
        ],
        features: vec!["host-network".into(), "apparmor".into(), "to-fly".into()],
        ..NodeInfo::default()
    };
    let node = described(&info);
    let capacity = |storage: &str| {
        json!({ "cpu": "0", "memory": "0Ki", "ephemeral-storage": storage, "pods": "0",
            "nvidia.com/gpu": "2", "hugepages-2Mi": "4096Ki" })
    };
    assert_eq!(node["status"]["capacity"], capacity("4194304Ki"));
    assert_eq!(node["status"]["allocatable"], capacity("3145728Ki"));
    assert_eq!(node["metadata"]["annotations"][FEATURES], "host-network,apparmor");
}
