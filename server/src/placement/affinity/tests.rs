//! Tables for what Pods want of nodes and of each other.

use serde_json::json;

use super::super::volumes::tests::Bed;
use super::super::{Amount, Needs, place};
use super::*;
use crate::api::resources;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Three nodes in two zones, and one that says of no zone.
fn nodes() -> BTreeMap<String, Node> {
    let node = |name: &str, zone: Option<&str>, rank: &str| {
        let mut node = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "rank": rank } },
            "spec": {},
            "status": {
                "allocatable": { "cpu": "4", "memory": "4Gi", "pods": "100" },
                "conditions": [{ "type": "Ready", "status": "True" }],
            },
        });
        if let Some(zone) = zone {
            node["metadata"]["labels"]["zone"] = zone.into();
        }
        (name.to_owned(), Node::of(&node))
    };
    BTreeMap::from([
        node("a", Some("north"), "1"),
        node("b", Some("north"), "2"),
        node("c", Some("south"), "3"),
        node("d", None, "low"),
    ])
}

fn pod(namespace: &str, labels: &Value, spec: &Value) -> Value {
    let mut pod =
        json!({ "metadata": { "namespace": namespace, "labels": labels }, "spec": { "containers": [{}] } });
    for (field, value) in spec.as_object().unwrap() {
        pod["spec"][field] = value.clone();
    }
    pod
}

/// Who is where: node, namespace, labels, and more of the spec.
fn neighbours(who: &[(&str, &str, Value, Value)]) -> Neighbours {
    let mut out = Neighbours::default();
    out.namespace("default", Some(Labels::new()));
    out.namespace("ops", Some(Labels::from([("team".to_owned(), "ops".to_owned())])));
    for (at, (node, namespace, labels, spec)) in who.iter().enumerate() {
        let key = Key {
            resource: "pods".to_owned(),
            namespace: (*namespace).to_owned(),
            name: at.to_string(),
        };
        out.put(&key, node, &pod(namespace, labels, spec));
    }
    out
}

fn placed(pod: &Value, others: &Neighbours) -> Result<String, String> {
    place(&Needs::of(pod), &nodes(), &BTreeMap::new(), others)
}

fn near(labels: &Value, key: &str) -> Value {
    json!({ "labelSelector": { "matchLabels": labels }, "topologyKey": key })
}

/// `in` of `affinity`, with this one term required.
fn wants(kind: &str, term: &Value) -> Value {
    json!({ "affinity": { kind: { REQUIRED: [term] } } })
}

#[test]
fn affinity_to_nodes() {
    let of = |key: &str, operator: &str, values: &[&str]| json!({ "key": key, "operator": operator, "values": values });
    let by_labels = |all: &[Value]| json!({ "matchExpressions": all });
    let name = |name: &str| json!({ "matchFields": [of("metadata.name", "In", &[name])] });
    for (terms, expected) in [
        (
            json!([by_labels(&[of("zone", "In", &["south", "east"])])]),
            Some("c"),
        ),
        (
            json!([by_labels(&[of("zone", "NotIn", &["north", "south"])])]),
            Some("d"),
        ),
        (json!([by_labels(&[of("zone", "DoesNotExist", &[])])]), Some("d")),
        (
            json!([by_labels(&[of("zone", "Exists", &[]), of("rank", "Gt", &["2"])])]),
            Some("c"),
        ),
        (json!([by_labels(&[of("rank", "Lt", &["2"])])]), Some("a")),
        (json!([name("b")]), Some("b")),
        // Terms are alternatives, what stands in one holds together, and an empty one means no node.
        (json!([{}, name("d")]), Some("d")),
        (json!([{}]), None),
        (
            json!([by_labels(&[
                of("zone", "In", &["north"]),
                of("rank", "In", &["3"])
            ])]),
            None,
        ),
    ] {
        let spec = json!({ "affinity": { "nodeAffinity": { REQUIRED: { "nodeSelectorTerms": terms } } } });
        let found = placed(&pod("default", &json!({}), &spec), &Neighbours::default());
        let expected = expected.map(str::to_owned).ok_or_else(|| {
            "0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector.".to_owned()
        });
        assert_eq!(found, expected, "{terms}");
    }
    let prefers = |weights: [(i64, &str); 2]| {
        let terms = weights.map(|(weight, node)| json!({ "weight": weight, "preference": name(node) }));
        let spec = json!({ "affinity": { "nodeAffinity": { PREFERRED: terms } } });
        placed(&pod("default", &json!({}), &spec), &Neighbours::default()).unwrap()
    };
    assert_eq!(prefers([(10, "b"), (20, "c")]), "c");
    assert_eq!(prefers([(20, "b"), (10, "c")]), "b");
    assert_eq!(prefers([(20, "x"), (10, "y")]), "a");
}

#[test]
fn pods_keep_their_distance_from_both_sides() {
    let web = json!({ "app": "web" });
    let apart = |key: &str| wants("podAntiAffinity", &near(&web, key));
    let host = "kubernetes.io/hostname";
    let check =
        |spec: &Value, labels: &Value, who: &[(&str, &str, Value, Value)], expected: Result<&str, &str>| {
            let found = placed(&pod("default", labels, spec), &neighbours(who));
            let expected = expected
                .map(str::to_owned)
                .map_err(|why| format!("0/4 nodes are available: {why}."));
            assert_eq!(found, expected, "{spec} {who:?}");
        };
    let there = |node: &'static str, namespace: &'static str| (node, namespace, web.clone(), json!({}));
    check(&apart(host), &web, &[], Ok("a"));
    check(&apart(host), &web, &[there("a", "default")], Ok("b"));
    check(&apart("zone"), &web, &[there("a", "default")], Ok("c"));
    // A node without the label is in no zone, so nobody is there.
    check(
        &apart("zone"),
        &web,
        &[there("a", "default"), there("c", "default")],
        Ok("d"),
    );
    check(&apart(host), &web, &[there("a", "ops")], Ok("a"));
    let all = ["a", "b", "c", "d"].map(|node| there(node, "default"));
    check(
        &apart(host),
        &web,
        &all,
        Err("4 node(s) didn't match pod anti-affinity rules"),
    );
    // Those that are there say so, and the new one says nothing.
    let hermits = ["a", "b", "c", "d"].map(|node| (node, "default", json!({}), apart(host)));
    check(
        &json!({}),
        &web,
        &hermits,
        Err("4 node(s) didn't satisfy existing pods anti-affinity rules"),
    );
    check(&json!({}), &json!({ "app": "db" }), &hermits, Ok("a"));
}

#[test]
fn pods_seek_company() {
    let db = json!({ "app": "db" });
    let with = |term: Value| wants("podAffinity", &term);
    let there = |node: &'static str, namespace: &'static str| (node, namespace, db.clone(), json!({}));
    let found = |spec: &Value, labels: &Value, who: &[(&str, &str, Value, Value)]| {
        placed(&pod("default", labels, spec), &neighbours(who))
    };
    let alone = Err("0/4 nodes are available: 4 node(s) didn't match pod affinity rules.".to_owned());
    let zone = with(near(&db, "zone"));
    assert_eq!(found(&zone, &json!({}), &[]), alone);
    assert_eq!(found(&zone, &json!({}), &[there("c", "default")]), Ok("c".into()));
    assert_eq!(found(&zone, &json!({}), &[there("b", "default")]), Ok("a".into()));
    assert_eq!(found(&zone, &json!({}), &[there("c", "ops")]), alone);
    // The first of its kind waits for nobody, where the label is.
    assert_eq!(found(&zone, &db, &[]), Ok("a".into()));
    assert_eq!(found(&zone, &db, &[there("c", "default")]), Ok("c".into()));
    for (field, value, reaches) in [
        ("namespaces", json!(["ops"]), true),
        ("namespaces", json!(["dev"]), false),
        ("namespaceSelector", json!({}), true),
        (
            "namespaceSelector",
            json!({ "matchLabels": { "team": "ops" } }),
            true,
        ),
        (
            "namespaceSelector",
            json!({ "matchLabels": { "team": "dev" } }),
            false,
        ),
    ] {
        let mut term = near(&db, "zone");
        term[field] = value;
        let expected = if reaches { Ok("c".into()) } else { alone.clone() };
        assert_eq!(
            found(&with(term.clone()), &json!({}), &[there("c", "ops")]),
            expected,
            "{term}"
        );
    }
    for (keys, version, reaches) in [
        ("matchLabelKeys", "1", true),
        ("matchLabelKeys", "2", false),
        ("mismatchLabelKeys", "1", false),
        ("mismatchLabelKeys", "2", true),
    ] {
        let mut term = near(&db, "zone");
        term[keys] = json!(["version", "absent"]);
        let who = [("c", "default", json!({ "app": "db", "version": "1" }), json!({}))];
        let expected = if reaches { Ok("c".into()) } else { alone.clone() };
        assert_eq!(
            found(&with(term), &json!({ "version": version }), &who),
            expected,
            "{keys} {version}"
        );
    }
    let both = json!({ "affinity": { "podAffinity": { REQUIRED: [
        near(&db, "zone"), near(&json!({ "tier": "1" }), "kubernetes.io/hostname"),
    ] } } });
    let one_of_each = [
        there("c", "default"),
        ("a", "default", json!({ "tier": "1" }), json!({})),
    ];
    assert_eq!(
        found(&both, &json!({}), &one_of_each),
        alone,
        "one Pod must be meant by all terms"
    );
    let whole = [("b", "default", json!({ "app": "db", "tier": "1" }), json!({}))];
    assert_eq!(found(&both, &json!({}), &whole), Ok("b".into()));
}

#[test]
fn what_is_preferred_decides_where_both_fit() {
    let db = json!({ "app": "db" });
    let prefers = |kind: &str| {
        let term = json!({ "weight": 50, "podAffinityTerm": near(&db, "zone") });
        json!({ "affinity": { kind: { PREFERRED: [term] } } })
    };
    let who = [("c", "default", db.clone(), json!({}))];
    let found = |spec: &Value, labels: &Value, who: &[_]| {
        placed(&pod("default", labels, spec), &neighbours(who)).unwrap()
    };
    assert_eq!(found(&prefers("podAffinity"), &json!({}), &who), "c");
    let who = [
        ("a", "default", db.clone(), json!({})),
        ("d", "default", db.clone(), json!({})),
    ];
    assert_eq!(found(&prefers("podAntiAffinity"), &json!({}), &who), "c");
    // Those that are there have their preferences too.
    let fond = [("c", "default", json!({}), prefers("podAffinity"))];
    assert_eq!(found(&json!({}), &db, &fond), "c");
    assert_eq!(found(&json!({}), &json!({}), &fond), "a");
}

#[test]
fn pods_spread() {
    let web = json!({ "app": "web" });
    let rule = |more: &Value| {
        let mut rule = json!({
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": web },
        });
        for (field, value) in more.as_object().unwrap() {
            rule[field] = value.clone();
        }
        json!({ "topologySpreadConstraints": [rule] })
    };
    let there = |node: &'static str| (node, "default", web.clone(), json!({}));
    let found = |spec: &Value, who: &[_]| placed(&pod("default", &web, spec), &neighbours(who));
    let hard = rule(&json!({}));
    assert_eq!(found(&hard, &[]), Ok("a".into()));
    assert_eq!(found(&hard, &[there("a")]), Ok("c".into()));
    assert_eq!(found(&hard, &[there("a"), there("c")]), Ok("a".into()));
    assert_eq!(
        found(&rule(&json!({ "maxSkew": 2 })), &[there("a")]),
        Ok("a".into())
    );
    // With too few domains, none may have more than the skew.
    let three = rule(&json!({ "minDomains": 3 }));
    let text = "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
                3 node(s) didn't match pod topology spread constraints.";
    assert_eq!(found(&three, &[there("a"), there("c")]), Err(text.into()));
    // Zones that its own selector excludes do not count, unless it says so.
    let mut south = rule(&json!({}));
    south["nodeSelector"] = json!({ "zone": "north" });
    assert_eq!(found(&south, &[there("a")]), Ok("a".into()));
    let mut ignoring = rule(&json!({ "nodeAffinityPolicy": "Ignore" }));
    ignoring["nodeSelector"] = json!({ "zone": "north" });
    assert!(found(&ignoring, &[there("a")]).is_err());
    // Others do not count: of another namespace, without the label, on their way out.
    let mut leaving = neighbours(&[
        ("a", "ops", web.clone(), json!({})),
        ("a", "default", json!({}), json!({})),
    ]);
    let mut ending = pod("default", &web, &json!({}));
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let key = |name: &str| Key {
        resource: "pods".into(),
        namespace: "default".into(),
        name: name.into(),
    };
    assert!(leaving.put(&key("ending"), "a", &ending));
    assert!(
        !leaving.put(&key("ending"), "a", &ending),
        "nothing of it has changed"
    );
    assert_eq!(placed(&pod("default", &web, &hard), &leaving), Ok("a".into()));
    assert!(leaving.put(&key("ending"), "a", &pod("default", &web, &json!({}))));
    assert_eq!(placed(&pod("default", &web, &hard), &leaving), Ok("c".into()));
    leaving.remove(&key("ending"));
    assert_eq!(placed(&pod("default", &web, &hard), &leaving), Ok("a".into()));
    let soft = rule(&json!({ "whenUnsatisfiable": "ScheduleAnyway" }));
    assert_eq!(found(&soft, &[there("a")]), Ok("c".into()));
    assert_eq!(
        found(&soft, &[there("a"), there("c"), there("c")]),
        Ok("a".into())
    );
}

#[test]
fn of_nodes_that_fit_the_best_is_taken() {
    let mut nodes = nodes();
    let needs = Needs::of(&pod(
        "default",
        &json!({}),
        &json!({ "containers": [{ "resources": { "requests": { "cpu": "1", "memory": "1Gi" } } }] }),
    ));
    let amount = |milli| Amount {
        cpu_milli: milli,
        ..Amount::default()
    };
    let used = BTreeMap::from([("a".to_owned(), amount(2000)), ("b".to_owned(), amount(1000))]);
    let others = Neighbours::default();
    assert_eq!(
        place(&needs, &nodes, &used, &others),
        Ok("c".into()),
        "the emptiest, the first by name"
    );
    for name in ["c", "d"] {
        let mut document = json!({ "metadata": { "name": name, "labels": {} }, "spec": { "taints": [
            { "key": "slow", "effect": "PreferNoSchedule" } ] }, "status": {
            "allocatable": { "cpu": "4", "memory": "4Gi", "pods": "100" },
            "conditions": [{ "type": "Ready", "status": "True" }] } });
        document["metadata"]["labels"]["kubernetes.io/hostname"] = name.into();
        nodes.insert(name.to_owned(), Node::of(&document));
    }
    assert_eq!(
        place(&needs, &nodes, &used, &others),
        Ok("b".into()),
        "rather not where it is slow"
    );
}

/// The task around it: what was decided at first is decided anew when others come and go.
#[tokio::test]
async fn pods_wait_for_others_to_come_and_to_go() {
    let bed = Bed::new().await;
    let host = "kubernetes.io/hostname";
    let create = async |name: &str, labels: Value, spec: Value| {
        let key = resources::pods().key("default", name);
        let mut pod = pod("default", &labels, &spec);
        pod["metadata"]["name"] = name.into();
        pod["status"] = json!({ "phase": "Pending" });
        bed.create(&key, pod).await;
        key
    };
    let node_of = async |key: &Key| {
        let is_placed = |it: Option<&Value>| it.is_some_and(|it| it["spec"]["nodeName"].is_string());
        let pod = bed.wait(key, "placed", is_placed).await;
        pod["spec"]["nodeName"].as_str().unwrap().to_owned()
    };
    let waits = async |key: &Key, why: &str| {
        let is = |it: Option<&Value>| it.is_some_and(|it| it["status"]["conditions"][0]["message"] == why);
        bed.wait(key, why, is).await;
    };
    let guest = create(
        "guest",
        json!({}),
        wants("podAffinity", &near(&json!({ "app": "web" }), host)),
    )
    .await;
    waits(
        &guest,
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules.",
    )
    .await;
    let web = json!({ "app": "web" });
    let apart = wants("podAntiAffinity", &near(&web, host));
    let first = create("first", web.clone(), apart.clone()).await;
    assert_eq!(node_of(&guest).await, node_of(&first).await);
    let second = create("second", web.clone(), apart.clone()).await;
    assert_ne!(node_of(&second).await, node_of(&first).await);
    let third = create("third", web, apart).await;
    waits(
        &third,
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.",
    )
    .await;
    let free = node_of(&second).await;
    bed.delete(&second).await;
    assert_eq!(node_of(&third).await, free);
}

#[tokio::test]
async fn a_pod_that_is_given_less_makes_room() {
    let bed = Bed::new().await;
    let asks =
        |cpu: &str| json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] });
    let create = async |name: &str, cpu: &str| {
        let key = resources::pods().key("default", name);
        let mut pod = pod("default", &json!({}), &asks(cpu));
        pod["metadata"]["name"] = name.into();
        pod["status"] = json!({ "phase": "Pending" });
        bed.create(&key, pod).await;
        key
    };
    let placed = |it: Option<&Value>| it.is_some_and(|it| it["spec"]["nodeName"].is_string());
    for name in ["one", "two"] {
        let key = create(name, "800m").await;
        bed.wait(&key, "placed", placed).await;
    }
    let waiting = create("waiting", "500m").await;
    let told = |it: Option<&Value>| it.is_some_and(|it| it["status"]["conditions"][0]["status"] == "False");
    bed.wait(&waiting, "told why not", told).await;
    let one = resources::pods().key("default", "one");
    bed.change(&one, |it| {
        it["spec"]["containers"] = asks("100m")["containers"].clone();
    })
    .await;
    bed.wait(&waiting, "placed", placed).await;
}
