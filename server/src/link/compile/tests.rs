//! Tables for what nodes shall have.

use serde_json::json;
use skiff_protocol::wire::desired::Index;

use super::*;

fn object(resource: &str, name: &str, number: u8, value: Value) -> Arc<Object> {
    let uid = Uid::from_random([number; 16]).to_string();
    let mut value = value;
    value["metadata"]["name"] = name.into();
    value["metadata"]["namespace"] = "default".into();
    value["metadata"]["uid"] = uid.clone().into();
    if value["metadata"]["creationTimestamp"].is_null() {
        value["metadata"]["creationTimestamp"] = format!("2026-01-01T00:00:{:02}Z", number % 60).into();
    }
    Arc::new(Object {
        key: Key::new(resource, "default", name),
        uid,
        revision: u64::from(number),
        value,
    })
}

fn pod(name: &str, number: u8, change: impl FnOnce(&mut Value)) -> Arc<Object> {
    let mut value = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {},
        "spec": { "nodeName": "a", "containers": [{ "name": "app", "image": "x:1" }] },
        "status": { "phase": "Pending" },
    });
    change(&mut value);
    object("pods", name, number, value)
}

fn reads(kind: &str, name: &str) -> impl FnOnce(&mut Value) {
    let from = json!([{ kind: { "name": name } }]);
    move |it| it["spec"]["containers"][0]["envFrom"] = from
}

fn nodes(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn decoded(state: &NodeState) -> Vec<Wire> {
    let objects = state.objects.values();
    objects
        .map(|it| postcard::from_bytes(&it.bytes).unwrap())
        .collect()
}

#[test]
fn changes_concern_the_nodes_whose_desired_state_they_change() {
    let mut world = World::default();
    let web = pod("web", 1, reads("configMapRef", "c"));
    assert_eq!(world.put(&web), nodes(&["a"]));
    assert_eq!(
        world.put(&pod("idle", 2, |it| it["spec"]["nodeName"] = "".into())),
        nodes(&[])
    );
    let config = |value: &str| object("configmaps", "c", 3, json!({ "data": { "k": value } }));
    assert_eq!(world.put(&config("v")), nodes(&["a"]));
    assert_eq!(world.put(&config("v")), nodes(&[]), "the same data again");
    assert_eq!(world.put(&config("w")), nodes(&["a"]));
    assert_eq!(
        world.put(&object("configmaps", "d", 4, json!({ "data": {} }))),
        nodes(&[]),
        "nobody reads it"
    );
    let running = pod("web", 1, |it| {
        reads("configMapRef", "c")(it);
        it["status"] = json!({ "phase": "Running" });
    });
    assert_eq!(world.put(&running), nodes(&[]), "status alone");
    let moved = pod("web", 1, |it| {
        reads("configMapRef", "c")(it);
        it["spec"]["nodeName"] = "b".into();
    });
    assert_eq!(world.put(&moved), nodes(&["a", "b"]));
    assert!(world.desired("a", None).objects.is_empty());
    assert_eq!(world.desired("b", None).objects.len(), 2);
    assert_eq!(
        world.remove(&Key::new("configmaps", "default", "c")),
        nodes(&["b"])
    );
    assert_eq!(world.remove(&moved.key), nodes(&["b"]));
    assert_eq!(world.desired("b", None).index, Index::default());
    assert!(!world.knows(&moved.uid.parse().unwrap()));
}

#[test]
fn data_is_decoded_and_what_cannot_be_is_as_if_missing() {
    let mut world = World::default();
    world.put(&pod("web", 1, reads("secretRef", "s")));
    let secret = |data: Value| object("secrets", "s", 2, data);
    world.put(&secret(json!({ "data": { "k": "aHVzaA==" } })));
    let state = world.desired("a", None);
    let data: Vec<Vec<u8>> = decoded(&state)
        .into_iter()
        .filter_map(|it| match it {
            Wire::Secret(it) => Some(it.data["k"].clone()),
            _ => None,
        })
        .collect();
    assert_eq!(data, [b"hush".to_vec()]);
    for bad in [json!({ "data": { "k": "!" } }), json!({ "data": { "k": 1 } })] {
        world.put(&secret(bad));
        assert_eq!(world.desired("a", None).objects.len(), 1, "only the Pod");
    }
}

#[test]
fn pods_that_shall_not_run_are_left_out() {
    let check = |change: fn(&mut Value), wanted: bool, refused: Option<&str>| {
        let mut world = World::default();
        world.put(&pod("web", 1, change));
        let state = world.desired("a", None);
        assert_eq!(state.objects.len(), usize::from(wanted));
        assert_eq!(state.refused.first().map(|it| it.1.reason), refused);
    };
    fn deleted(it: &mut Value, grace: i64) {
        it["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        it["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    }
    check(|_| {}, true, None);
    check(|it| deleted(it, 30), true, None);
    check(|it| deleted(it, 0), false, None);
    check(|it| it["status"] = json!({ "phase": "Failed" }), false, None);
    check(
        |it| it["status"] = json!({ "phase": "Failed", "containerStatuses": [{}] }),
        true,
        None,
    );
    check(
        |it| it["spec"]["containers"] = json!([]),
        false,
        Some("InvalidPod"),
    );
    check(
        |it| {
            let arg = "x".repeat(250 * 1024);
            let containers =
                (0..7).map(|at| json!({ "name": format!("c{at}"), "image": "x:1", "args": [arg] }));
            it["spec"]["containers"] = containers.collect();
        },
        false,
        Some("TooLarge"),
    );
}

#[test]
fn the_grace_of_a_deletion_travels() {
    let mut world = World::default();
    world.put(&pod("web", 1, |it| {
        it["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        it["metadata"]["deletionGracePeriodSeconds"] = 7.into();
    }));
    let Some(Wire::Pod(spec)) = decoded(&world.desired("a", None)).pop() else {
        panic!("no Pod")
    };
    assert_eq!(spec.deletion_grace_seconds, Some(7));
}

/// One of many Pods, created at the second of its number.
fn numbered(number: usize, change: impl FnOnce(&mut Value)) -> Arc<Object> {
    let mut object = pod(&format!("p{number}"), 0, |it| {
        it["metadata"]["creationTimestamp"] =
            format!("2026-01-01T00:{:02}:{:02}Z", number / 60, number % 60).into();
        change(it);
    });
    // The uid of `pod` has only 256 values.
    let inner = Arc::get_mut(&mut object).unwrap();
    inner.uid = format!("00000000-0000-4000-8000-{number:012x}");
    inner.value["metadata"]["uid"] = inner.uid.clone().into();
    object
}

fn ended(it: &mut Value) {
    it["status"] = json!({
        "phase": "Succeeded", "startTime": "2026-01-01T00:00:00Z", "containerStatuses": [{}],
    });
}

#[test]
fn when_a_node_is_full_what_it_has_stays_and_then_the_earlier_have_precedence() {
    let started = |it: &mut Value| it["status"]["startTime"] = "2026-01-01T00:00:00Z".into();
    // Which of the Pods 0 to `PODS` its node was told of before the others came, and who is refused then.
    let check = |told: &[usize], accepted: &[usize], refused: usize| {
        let mut world = World::default();
        for number in told {
            world.put(&numbered(*number, |_| {}));
        }
        let announced = world.desired("a", None).index;
        for number in 0..=bounds::PODS {
            let accepted = accepted.contains(&number);
            world.put(&numbered(number, |it| {
                if accepted {
                    started(it);
                }
            }));
        }
        let state = world.desired("a", Some(&announced));
        assert_eq!(state.objects.len(), bounds::PODS);
        let refused = [(format!("p{refused}"), "OutOfpods")];
        let found: Vec<_> = state
            .refused
            .iter()
            .map(|(pod, why)| (pod.key.name.clone(), why.reason))
            .collect();
        assert_eq!(found, refused, "told {told:?}, accepted {accepted:?}");
    };
    let last = bounds::PODS;
    check(&[], &[], last);
    // An earlier Pod that is bound late does not push one out that was announced, or that the node told of.
    check(&[last], &[], last - 1);
    check(&[], &[last], last - 1);
    check(&[last], &[last - 1], last - 2);
}

#[test]
fn pods_that_have_ended_take_no_place_and_the_oldest_of_them_leave() {
    let mut world = World::default();
    for number in 0..bounds::PODS {
        world.put(&numbered(number, ended));
    }
    let state = world.desired("a", None);
    assert_eq!((state.objects.len(), state.surplus.len()), (bounds::PODS, 0));
    for number in bounds::PODS..bounds::PODS + 2 {
        world.put(&numbered(number, |_| {}));
    }
    let state = world.desired("a", None);
    assert!(state.refused.is_empty(), "{:?}", state.refused);
    assert_eq!(
        state.objects.len(),
        bounds::PODS + 2,
        "nobody leaves before it is marked"
    );
    let surplus =
        |state: &NodeState| -> Vec<String> { state.surplus.iter().map(|pod| pod.key.name.clone()).collect() };
    assert_eq!(surplus(&state), ["p1", "p0"]);
    for number in [0, 1] {
        let left = numbered(number, |it| {
            ended(it);
            crate::link::status::leave(it, "2026-01-01T00:00:00Z");
        });
        assert_eq!(world.put(&left), nodes(&["a"]));
    }
    let state = world.desired("a", None);
    assert_eq!((state.objects.len(), surplus(&state).len()), (bounds::PODS, 0));
    // There is room again, and they stay away all the same: they would run anew.
    world.remove(&numbered(bounds::PODS, |_| {}).key);
    assert_eq!(world.desired("a", None).objects.len(), bounds::PODS - 1);
}

#[test]
fn more_than_the_bound_that_have_not_ended_are_refused_whatever_has_ended() {
    let mut world = World::default();
    for number in 0..2 * bounds::PODS + 1 {
        if number < bounds::PODS {
            world.put(&numbered(number, ended));
        } else {
            world.put(&numbered(number, |_| {}));
        }
    }
    let state = world.desired("a", None);
    assert_eq!(state.refused.len(), 1);
    assert_eq!(
        state.surplus.len(),
        bounds::PODS,
        "the running ones have all the places"
    );
}

#[test]
fn a_node_has_its_volumes_and_no_other() {
    let volume = |name: &str, node: &str, change: fn(&mut Value)| {
        let mut value = json!({ "metadata": {}, "spec": {
            "capacity": { "storage": "1Gi" }, "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": { "namespace": "default", "name": "data", "uid": "u" },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] } ] }] } } },
            "status": { "phase": "Bound" } });
        change(&mut value);
        let object = object("persistentvolumes", name, 9, value);
        let key = Key::cluster("persistentvolumes", name);
        let object = Arc::try_unwrap(object).unwrap();
        Arc::new(Object { key, ..object })
    };
    let mut world = World::default();
    assert_eq!(world.put(&volume("v", "a", |_| {})), nodes(&["a"]));
    assert_eq!(world.put(&volume("v", "a", |_| {})), nodes(&[]), "the same again");
    assert_eq!(world.put(&volume("w", "b", |_| {})), nodes(&["b"]));
    let of = |world: &World, node: &str| decoded(&world.desired(node, None));
    let expected = |claim: (&str, &str), drop| {
        Wire::Volume(PersistentVolume {
            name: "v".into(),
            claim: (claim.0.into(), claim.1.into()),
            capacity: 1 << 30,
            drop,
        })
    };
    assert_eq!(of(&world, "a"), [expected(("default", "data"), false)]);
    let going = |it: &mut Value| it["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(
        world.put(&volume("v", "a", going)),
        nodes(&[]),
        "bound: its files stay"
    );
    assert_eq!(world.dropping_on("a"), []);
    let going = volume("v", "a", |it| {
        it["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        it["status"]["phase"] = "Released".into();
    });
    assert_eq!(world.put(&going), nodes(&["a"]));
    assert_eq!(
        of(&world, "a"),
        [expected(("default", "data"), true)],
        "with whose Pods must end first"
    );
    assert_eq!(world.dropping_on("a"), [Key::cluster("persistentvolumes", "v")]);
    assert_eq!(world.dropping_on("b"), []);
    let released = volume("v", "a", |it| {
        it["status"]["phase"] = "Released".into();
        it["spec"]["persistentVolumeReclaimPolicy"] = "Retain".into();
    });
    assert_eq!(world.put(&released), nodes(&["a"]));
    assert_eq!(of(&world, "a"), [expected(("", ""), false)]);
    assert_eq!(world.keys("persistentvolumes").len(), 2);
    assert_eq!(world.remove(&released.key), nodes(&["a"]));
    assert!(world.desired("a", None).objects.is_empty());
    assert_eq!(world.desired("b", None).objects.len(), 1);
}

#[test]
fn volumes_and_pods_leave_each_other_room() {
    let mut world = World::default();
    let volume = json!({ "metadata": {}, "spec": { "nodeAffinity": { "required": { "nodeSelectorTerms": [
        { "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": ["a"] }] } ] } } } });
    for number in 0..bounds::OBJECTS {
        let name = format!("v{number}");
        let object = Arc::try_unwrap(object("persistentvolumes", &name, 9, volume.clone())).unwrap();
        let key = Key::cluster("persistentvolumes", &name);
        world.put(&Arc::new(Object { key, ..object }));
    }
    world.put(&pod("web", 1, |_| {}));
    // One that is claimed has its place, whatever its name.
    let mut claimed = volume.clone();
    claimed["spec"]["claimRef"] = json!({ "namespace": "default", "name": "data", "uid": "u" });
    claimed["status"] = json!({ "phase": "Bound" });
    let object = Arc::try_unwrap(object("persistentvolumes", "zzz", 9, claimed)).unwrap();
    let key = Key::cluster("persistentvolumes", "zzz");
    world.put(&Arc::new(Object { key, ..object }));
    let state = world.desired("a", None);
    assert_eq!(
        (state.objects.len(), state.refused.len()),
        (bounds::PERSISTENT_VOLUMES + 1, 0)
    );
    assert!(state.objects.contains_key(&ObjectKey::Volume("zzz".into())));
}
