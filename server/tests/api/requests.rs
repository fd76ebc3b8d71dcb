//! Requests by hand: each group of cases against one server.

use serde_json::{Value, json};
use skiff_server::api::{self, Happening};

use crate::harness::{ADMIN, NODE, STRANGER, Server, config_map, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn create_bound(server: &Server, name: &str, node: &str) {
    server.call("POST", PODS, &pod(name)).expect(201);
    let binding =
        json!({ "apiVersion": "v1", "kind": "Binding", "target": { "kind": "Node", "name": node } });
    server
        .call("POST", &format!("{PODS}/{name}/binding"), &binding)
        .expect(201);
}

#[test]
fn who_may_do_what() {
    let server = Server::start();
    let check = |token: Option<&str>, path: &str, code: u16| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer
            .iter()
            .map(|bearer| ("authorization", bearer.as_str()))
            .collect();
        let answer = server.send("GET", path, &headers, b"");
        assert_eq!(answer.code, code, "{token:?} {path}: {}", answer.text);
        if code >= 400 {
            assert_eq!(answer.json()["kind"], "Status", "{path}");
        }
        answer.text
    };
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        check(None, path, 200);
    }
    for path in ["/api", "/api/v1/pods", "/nothing", "/openapi/v3"] {
        check(None, path, 401);
        check(Some("wrong"), path, 401);
        check(Some(NODE), path, 403);
    }
    check(Some(ADMIN), "/api/v1/pods", 200);
    check(Some(ADMIN), "/nothing", 404);
    check(Some(STRANGER), "/api", 200);
    let text = check(Some(STRANGER), PODS, 403);
    assert!(
        text.contains("User \\\"stranger\\\" cannot list resource \\\"pods\\\""),
        "{text}"
    );
    assert_eq!(check(None, "/extra", 200), "nobody");
    assert_eq!(check(Some(NODE), "/extra", 200), "system:node:n1");
}

#[test]
fn discovery_names_what_is_served() {
    let server = Server::start();
    let list = server.get("/api/v1").expect(200);
    let names: Vec<&str> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["name"].as_str())
        .collect();
    for name in [
        "pods",
        "pods/log",
        "pods/status",
        "pods/binding",
        "nodes/status",
        "events",
        "secrets",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    for path in [
        "/apis",
        "/apis/coordination.k8s.io",
        "/apis/coordination.k8s.io/v1",
        "/openapi/v3/api/v1",
    ] {
        server.get(path).expect(200);
    }
    for path in ["/apis/none", "/api/v2", "/openapi/v3/none"] {
        server.get(path).expect(404);
    }
    let token = format!("Bearer {ADMIN}");
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let answer = server.send(
        "GET",
        "/api",
        &[("authorization", &token), ("accept", accept)],
        b"",
    );
    assert_eq!(answer.json()["kind"], "APIGroupDiscoveryList");
    assert_eq!(
        answer.media_type,
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
}

#[test]
fn pods_get_their_defaults() {
    let server = Server::start();
    let created = server.call("POST", PODS, &pod("a")).expect(201);
    for (pointer, expected) in [
        ("/spec/restartPolicy", json!("Always")),
        ("/spec/terminationGracePeriodSeconds", json!(30)),
        ("/spec/dnsPolicy", json!("ClusterFirst")),
        ("/spec/schedulerName", json!("default-scheduler")),
        ("/spec/enableServiceLinks", json!(true)),
        ("/spec/containers/0/imagePullPolicy", json!("IfNotPresent")),
        (
            "/spec/containers/0/terminationMessagePath",
            json!("/dev/termination-log"),
        ),
        ("/status/phase", json!("Pending")),
        ("/status/qosClass", json!("BestEffort")),
        ("/metadata/namespace", json!("default")),
    ] {
        assert_eq!(created.pointer(pointer), Some(&expected), "{pointer}");
    }
}

#[test]
fn refusals_have_reason_code_and_causes() {
    let server = Server::start();
    let check = |path: &str, body: Value, code: u16, reason: &str, part: &str| {
        let status = server.call("POST", path, &body).expect(code);
        assert_eq!(status["reason"], reason, "{status}");
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
        status
    };
    let with = |pointer: &str, value: Value| {
        let mut pod = pod("a");
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[field] = value;
        pod
    };
    let missing = with("/spec/containers/0/image", Value::Null);
    let status = check(
        PODS,
        missing,
        422,
        "Invalid",
        "Pod \"a\" is invalid: spec.containers[0].image: Required value",
    );
    assert_eq!(
        status["details"]["causes"][0]["field"],
        "spec.containers[0].image"
    );
    assert_eq!(status["details"]["causes"][0]["reason"], "FieldValueRequired");
    let strict = format!("{PODS}?fieldValidation=Strict");
    let unknown = with("/spec/containers/0/images", json!("x"));
    let wanted =
        "strict decoding error: unknown field \"spec.containers[0].images\" (did you mean \"image\"?)";
    check(&strict, unknown, 400, "BadRequest", wanted);
    let number = with("/spec/containers/0/env", json!([{ "name": "A", "value": 1 }]));
    check(
        PODS,
        number,
        400,
        "BadRequest",
        "spec.containers[0].env[0].value: expected a string",
    );
    check(
        PODS,
        with("/kind", json!("pod")),
        400,
        "BadRequest",
        "does not match the expected kind",
    );
    check(
        PODS,
        with("/metadata/name", json!("A")),
        422,
        "Invalid",
        "lowercase RFC 1123 subdomain",
    );
    check(
        PODS,
        with("/metadata/resourceVersion", json!("5")),
        400,
        "BadRequest",
        "resourceVersion",
    );
    check(
        PODS,
        with("/metadata/namespace", json!("other")),
        400,
        "BadRequest",
        "does not match the namespace",
    );
    check(
        PODS,
        with("/metadata/name", Value::Null),
        422,
        "Invalid",
        "name or generateName is required",
    );
    check(
        "/api/v1/namespaces/none/pods",
        pod("a"),
        404,
        "NotFound",
        "namespaces \"none\" not found",
    );
    check(PODS, json!([]), 400, "BadRequest", "apiVersion");
    let key = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "a b": "" } });
    check(MAPS, key, 422, "Invalid", "data[a b]");
    let data =
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "a" }, "data": { "a": "!" } });
    check(SECRETS, data, 422, "Invalid", "stringData");
    assert_eq!(
        server.get(PODS).expect(200)["items"],
        json!([]),
        "nothing refused was stored"
    );
}

#[test]
fn bodies_are_bounded_and_typed() {
    let server = Server::start();
    let token = format!("Bearer {ADMIN}");
    let check = |media_type: &str, body: &[u8], code: u16| {
        let headers = [("authorization", token.as_str()), ("content-type", media_type)];
        let answer = server.send("POST", MAPS, &headers, body);
        assert_eq!(answer.code, code, "{media_type}: {}", answer.text);
    };
    check("application/json", b"{", 400);
    check("application/json", "[".repeat(200).as_bytes(), 400);
    check(
        "application/json",
        format!("{}1{}", "{\"a\":".repeat(120), "}".repeat(120)).as_bytes(),
        400,
    );
    check("application/json", &vec![b' '; (3 << 20) + 1], 413);
    check("application/yaml", b"a: b", 415);
    check("application/vnd.kubernetes.protobuf", b"{}", 400);
    let envelope =
        b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0f\x0a\x06\x0a\x04from\x12\x05\x0a\x01k\x12\x00";
    check("application/vnd.kubernetes.protobuf", envelope, 201);
    assert_eq!(
        server.get(&format!("{MAPS}/from")).expect(200)["data"],
        json!({ "k": "" })
    );
    let answer = server.send(
        "GET",
        MAPS,
        &[("authorization", &token), ("accept", "application/yaml")],
        b"",
    );
    assert_eq!(answer.code, 406, "{}", answer.text);
}

#[test]
fn warnings_name_what_is_ignored() {
    let server = Server::start();
    let mut unknown = pod("a");
    unknown["spec"]["nodename"] = "x".into();
    let answer = server.call("POST", PODS, &unknown);
    answer.expect(201);
    assert_eq!(
        answer.warnings,
        ["299 - \"unknown field \\\"spec.nodename\\\" (did you mean \\\"nodeName\\\"?)\""]
    );
    assert!(
        answer.json()["spec"].get("nodename").is_none(),
        "an unknown field is not kept"
    );
    let mut later = pod("b");
    later["spec"]["runtimeClassName"] = "kata".into();
    let answer = server.call("POST", PODS, &later);
    assert!(answer.warnings[0].contains("spec.runtimeClassName"), "{answer:?}");
    let answer = server.call(
        "PATCH",
        &format!("{PODS}/b"),
        &json!({ "metadata": { "labels": { "a": "b" } } }),
    );
    assert_eq!(
        answer.warnings,
        Vec::<String>::new(),
        "an old warning is not repeated"
    );
    let ignored = server.call("POST", &format!("{MAPS}?fieldValidation=Ignore"), &{
        let mut map = config_map("c");
        map["datas"] = json!({});
        map
    });
    assert_eq!((ignored.code, ignored.warnings.len()), (201, 0));
}

#[test]
fn changes_and_their_conflicts() {
    let server = Server::start();
    let path = format!("{MAPS}/a");
    let created = server.call("POST", MAPS, &config_map("a")).expect(201);
    server.call("POST", MAPS, &config_map("a")).expect(409);
    let mut changed = created.clone();
    changed["data"]["k"] = "w".into();
    let updated = server.call("PUT", &path, &changed).expect(200);
    assert_ne!(
        updated["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );
    let status = server.call("PUT", &path, &changed).expect(409);
    assert_eq!(status["reason"], "Conflict");
    changed["metadata"]["resourceVersion"] = Value::Null;
    let same = server.call("PUT", &path, &changed).expect(200);
    assert_eq!(
        same["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"],
        "no change, no version"
    );
    server.call("PUT", &format!("{MAPS}/other"), &changed).expect(404);
    changed["metadata"]["name"] = "b".into();
    server.call("PUT", &path, &changed).expect(400);
    let stale = json!({ "metadata": { "resourceVersion": created["metadata"]["resourceVersion"] } });
    server.call("PATCH", &path, &stale).expect(409);
    let check = |media_type: &str, patch: Value, code: u16| {
        server.call_as("PATCH", &path, media_type, &patch).expect(code)
    };
    let strategic = "application/strategic-merge-patch+json";
    check(
        "application/merge-patch+json",
        json!({ "data": { "a": "1" } }),
        200,
    );
    check(
        "application/json-patch+json",
        json!([{ "op": "test", "path": "/data/a", "value": "2" }]),
        400,
    );
    check(
        "application/json-patch+json",
        json!([{ "op": "remove", "path": "/data/a" }]),
        200,
    );
    check(strategic, json!({ "metadata": { "finalizers": ["x/y"] } }), 200);
    check("application/apply-patch+yaml", json!({}), 415);
    check(strategic, json!({ "immutable": true }), 200);
    let frozen = check(strategic, json!({ "data": { "k": "z" } }), 422);
    assert_eq!(frozen["details"]["causes"][0]["field"], "data");
    assert_eq!(server.get(&path).expect(200)["data"], json!({ "k": "w" }));
}

#[test]
fn finalizers_hold_an_object_back() {
    let server = Server::start();
    let path = format!("{MAPS}/a");
    let mut map = config_map("a");
    map["metadata"]["finalizers"] = json!(["x/y"]);
    server.call("POST", MAPS, &map).expect(201);
    let held = server.call("DELETE", &path, &Value::Null).expect(200);
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    server.get(&path).expect(200);
    server
        .call("PATCH", &path, &json!({ "metadata": { "finalizers": null } }))
        .expect(200);
    server.get(&path).expect(404);
}

#[test]
fn a_spec_stays_what_the_node_was_told() {
    let server = Server::start();
    server.call("POST", PODS, &pod("a")).expect(201);
    let path = format!("{PODS}/a");
    let strategic =
        |patch: Value| server.call_as("PATCH", &path, "application/strategic-merge-patch+json", &patch);
    let image = json!({ "spec": { "containers": [{ "name": "app", "image": "nginx:2" }] } });
    assert_eq!(
        strategic(image).expect(200)["spec"]["containers"][0]["image"],
        "nginx:2"
    );
    let command = json!({ "spec": { "containers": [{ "name": "app", "command": ["x"] }] } });
    let status = strategic(command).expect(422);
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("pod updates may not change fields other than")
            && message.contains("containers[0].command")
    );
    let status = json!({ "status": { "phase": "Running" } });
    assert_eq!(
        strategic(status.clone()).expect(200)["status"]["phase"],
        "Pending",
        "status has a path of its own"
    );
    let shown = server
        .call("PATCH", &format!("{path}/status"), &status)
        .expect(200);
    assert_eq!(shown["status"]["phase"], "Running");
    assert_eq!(
        server.get(&format!("{path}/status")).expect(200)["status"]["phase"],
        "Running"
    );
}

#[test]
fn pods_are_placed_once() {
    let server = Server::start();
    create_bound(&server, "a", "n1");
    let placed = server.get(&format!("{PODS}/a")).expect(200);
    assert_eq!(placed["spec"]["nodeName"], "n1");
    assert_eq!(placed["status"]["conditions"][0]["type"], "PodScheduled");
    let binding = |node: &str| json!({ "apiVersion": "v1", "kind": "Binding", "target": { "kind": "Node", "name": node } });
    server
        .call("POST", &format!("{PODS}/a/binding"), &binding("n1"))
        .expect(201);
    server
        .call("POST", &format!("{PODS}/a/binding"), &binding("n2"))
        .expect(409);
    server
        .call("POST", &format!("{PODS}/b/binding"), &binding("n2"))
        .expect(404);
    server
        .call(
            "POST",
            &format!("{PODS}/a/binding"),
            &json!({ "target": { "kind": "Pod" } }),
        )
        .expect(400);
}

#[test]
fn the_pod_that_is_placed_is_the_one_that_was_meant() {
    let server = Server::start();
    let created = server.call("POST", PODS, &pod("a")).expect(201);
    let (uid, version) = (
        &created["metadata"]["uid"],
        &created["metadata"]["resourceVersion"],
    );
    let patched = json!({ "metadata": { "labels": { "a": "b" } } });
    let patched = server.call("PATCH", &format!("{PODS}/a"), &patched).expect(200);
    let check = |metadata: Value, code: u16| {
        let binding = json!({ "metadata": metadata, "target": { "kind": "Node", "name": "n1" } });
        let answer = server
            .call("POST", &format!("{PODS}/a/binding"), &binding)
            .expect(code);
        let placed = server.get(&format!("{PODS}/a")).expect(200)["spec"]["nodeName"] == "n1";
        assert_eq!(placed, code == 201, "{answer}");
    };
    check(json!({ "uid": "of-another" }), 409);
    check(json!({ "uid": uid, "resourceVersion": version }), 409);
    check(json!({ "resourceVersion": "x" }), 400);
    let key = skiff_server::store::Key::new("pods", "default", "a");
    let seen = api::Seen {
        uid: uid.as_str().map(str::to_owned),
        revision: version.as_str().unwrap().parse().ok(),
    };
    let stale = server.block_on(api::bind(&*server.store, &key, &seen, "n1"));
    assert_eq!(stale.unwrap_err().code, 409);
    let stale = server.block_on(api::mark_unschedulable(&*server.store, &key, &seen, "no room"));
    assert_eq!(stale.unwrap_err().code, 409);
    check(
        json!({ "uid": uid, "resourceVersion": patched["metadata"]["resourceVersion"] }),
        201,
    );
}

#[test]
fn a_status_is_an_object() {
    let server = Server::start();
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n" } });
    server.call("POST", "/api/v1/namespaces", &namespace).expect(201);
    server.call("POST", PODS, &pod("a")).expect(201);
    for path in ["/api/v1/namespaces/n", &format!("{PODS}/a")] {
        for odd in [json!("x"), json!(["x"]), json!(1)] {
            let status = server
                .call("PATCH", &format!("{path}/status"), &json!({ "status": odd }))
                .expect(400);
            let message = status["message"].as_str().unwrap();
            assert!(message.contains("status: expected an object"), "{message}");
        }
    }
    // What an earlier version let in: with it, the namespace ends all the same.
    let key = skiff_server::store::Key::cluster("namespaces", "n");
    server.block_on(async {
        let stored = server.store.get(&key).await.unwrap().unwrap();
        let mut value = stored.value.clone();
        value["status"] = "x".into();
        server.store.replace(&key, stored.revision, value).await.unwrap();
    });
    let ending = server
        .call("DELETE", "/api/v1/namespaces/n", &Value::Null)
        .expect(200);
    assert_eq!(ending["status"]["phase"], "Terminating");
}

#[test]
fn deletions_wait_for_the_node() {
    let server = Server::start();
    server.call("POST", PODS, &pod("unplaced")).expect(201);
    server
        .call("DELETE", &format!("{PODS}/unplaced"), &Value::Null)
        .expect(200);
    server.get(&format!("{PODS}/unplaced")).expect(404);

    create_bound(&server, "a", "n1");
    let path = format!("{PODS}/a");
    let wrong = json!({ "preconditions": { "uid": "other" } });
    server.call("DELETE", &path, &wrong).expect(409);
    server
        .call("DELETE", &format!("{path}?dryRun=All"), &Value::Null)
        .expect(200);
    assert_eq!(
        server.get(&path).expect(200)["metadata"].get("deletionTimestamp"),
        None
    );
    let marked = server.call("DELETE", &path, &Value::Null).expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let longer = server
        .call("DELETE", &path, &json!({ "gracePeriodSeconds": 60 }))
        .expect(200);
    assert_eq!(
        longer["metadata"]["deletionGracePeriodSeconds"], 30,
        "a deletion can only be hastened"
    );
    let shorter = server
        .call("DELETE", &path, &json!({ "gracePeriodSeconds": 5 }))
        .expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    server.get(&path).expect(200);
    server
        .call("DELETE", &path, &json!({ "gracePeriodSeconds": 0 }))
        .expect(200);
    server.get(&path).expect(404);
    server.call("DELETE", &path, &Value::Null).expect(404);
    server
        .call("DELETE", &path, &json!({ "kind": "Pod" }))
        .expect(400);

    let gone = server.call("POST", MAPS, &config_map("m")).expect(201);
    let status = server
        .call("DELETE", &format!("{MAPS}/m"), &Value::Null)
        .expect(200);
    assert_eq!(
        (&status["status"], &status["details"]["uid"]),
        (&json!("Success"), &gone["metadata"]["uid"])
    );
}

#[test]
fn collections_are_deleted_by_selector() {
    let server = Server::start();
    for (name, app) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({ "app": app });
        server.call("POST", MAPS, &map).expect(201);
    }
    let gone = server
        .call("DELETE", &format!("{MAPS}?labelSelector=app%3Dx"), &Value::Null)
        .expect(200);
    assert_eq!(gone["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        server.get(MAPS).expect(200)["items"].as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_namespace_ends_with_its_contents() {
    let server = Server::start();
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n" } });
    let created = server.call("POST", "/api/v1/namespaces", &namespace).expect(201);
    assert_eq!(created["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    server
        .call("POST", "/api/v1/namespaces/n/configmaps", &config_map("a"))
        .expect(201);
    server
        .call("POST", "/api/v1/namespaces/n/pods", &pod("p"))
        .expect(201);
    let binding =
        json!({ "apiVersion": "v1", "kind": "Binding", "target": { "kind": "Node", "name": "n1" } });
    server
        .call("POST", "/api/v1/namespaces/n/pods/p/binding", &binding)
        .expect(201);
    let ending = server
        .call("DELETE", "/api/v1/namespaces/n", &Value::Null)
        .expect(200);
    assert_eq!(ending["status"]["phase"], "Terminating");
    let status = server
        .call("POST", "/api/v1/namespaces/n/configmaps", &config_map("b"))
        .expect(403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("is being terminated"),
        "{status}"
    );
    let wait = |path: &str, code: u16| {
        let begun = std::time::Instant::now();
        while server.get(path).code != code {
            assert!(begun.elapsed().as_secs() < 20, "{path} never became {code}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    wait("/api/v1/namespaces/n/configmaps/a", 404);
    // The pod waits for its node, and the namespace for the pod.
    let begun = std::time::Instant::now();
    loop {
        let pod = server.get("/api/v1/namespaces/n/pods/p").expect(200);
        if pod["metadata"]["deletionTimestamp"].is_string() {
            break;
        }
        assert!(begun.elapsed().as_secs() < 20, "it was never marked: {pod}");
    }
    server.get("/api/v1/namespaces/n").expect(200);
    server
        .call(
            "DELETE",
            "/api/v1/namespaces/n/pods/p?gracePeriodSeconds=0",
            &Value::Null,
        )
        .expect(200);
    wait("/api/v1/namespaces/n", 404);
    server
        .call("DELETE", "/api/v1/namespaces/default", &Value::Null)
        .expect(403);
}

#[test]
fn secrets_fold_their_texts() {
    let server = Server::start();
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "k": "v" } });
    let created = server.call("POST", SECRETS, &secret).expect(201);
    assert_eq!(
        (&created["data"], &created["type"]),
        (&json!({ "k": "dg==" }), &json!("Opaque"))
    );
    assert_eq!(created.get("stringData"), None);
    server
        .call("PATCH", &format!("{SECRETS}/s"), &json!({ "type": "other" }))
        .expect(422);
}

#[test]
fn lists_select_and_continue() {
    let server = Server::start();
    for at in 0..5 {
        let mut map = config_map(&format!("m{at}"));
        map["metadata"]["labels"] = json!({ "odd": (at % 2 == 1).to_string() });
        server.call("POST", MAPS, &map).expect(201);
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let check = |query: &str, expected: &[&str]| {
        assert_eq!(
            names(&server.get(&format!("{MAPS}?{query}")).expect(200)),
            expected,
            "{query}"
        );
    };
    check("labelSelector=odd%3Dtrue", &["m1", "m3"]);
    check("fieldSelector=metadata.name%3Dm2", &["m2"]);
    check("fieldSelector=metadata.name%3Dm2,metadata.namespace%3Dother", &[]);
    server
        .get(&format!("{MAPS}?fieldSelector=data.k%3Dv"))
        .expect(400);
    server.get(&format!("{MAPS}?labelSelector=%3D")).expect(400);
    for query in ["limit=2", "limit=2&labelSelector=odd"] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        for page in 0..3 {
            let list = server
                .get(&format!("{MAPS}?{query}&continue={token}"))
                .expect(200);
            seen.extend(names(&list));
            token = list["metadata"]["continue"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            assert_eq!(token.is_empty(), page == 2, "{query}, page {page}");
        }
        assert_eq!(seen, ["m0", "m1", "m2", "m3", "m4"], "{query}");
    }
    server.get(&format!("{MAPS}?continue=forged")).expect(400);
    server
        .get(&format!(
            "{MAPS}?resourceVersion=99999&resourceVersionMatch=Exact"
        ))
        .expect(410);
}

#[test]
fn names_are_generated_and_dry_runs_store_nothing() {
    let server = Server::start();
    let mut map = config_map("a");
    map["metadata"] = json!({ "generateName": "m-" });
    let (one, two) = (
        server.call("POST", MAPS, &map).expect(201),
        server.call("POST", MAPS, &map).expect(201),
    );
    assert_ne!(one["metadata"]["name"], two["metadata"]["name"]);
    let shown = server
        .call("POST", &format!("{MAPS}?dryRun=All"), &config_map("dry"))
        .expect(201);
    assert!(shown["metadata"]["uid"].is_string());
    server.get(&format!("{MAPS}/dry")).expect(404);
    server
        .call(
            "POST",
            "/api/v1/namespaces/none/configmaps?dryRun=All",
            &config_map("dry"),
        )
        .expect(404);
    let name = one["metadata"]["name"].as_str().unwrap();
    let patch = json!({ "data": { "k": "other" } });
    let shown = server
        .call("PATCH", &format!("{MAPS}/{name}?dryRun=All"), &patch)
        .expect(200);
    assert_eq!(shown["data"]["k"], "other");
    assert_eq!(
        server.get(&format!("{MAPS}/{name}")).expect(200)["data"]["k"],
        "v"
    );
}

#[test]
fn logs_choose_their_container() {
    let server = Server::start();
    create_bound(&server, "one", "n1");
    let mut two = pod("two");
    two["spec"]["containers"] = json!([{ "name": "a", "image": "x:1" }, { "name": "b", "image": "x:1" }]);
    two["spec"]["nodeName"] = "n1".into();
    server.call("POST", PODS, &two).expect(201);
    server.call("POST", PODS, &pod("unplaced")).expect(201);
    let check = |path: &str, code: u16, part: &str| {
        let answer = server.get(&format!("{PODS}/{path}"));
        assert_eq!(answer.code, code, "{path}: {}", answer.text);
        assert!(answer.text.contains(part), "{path}: {}", answer.text);
    };
    check("one/log", 200, "app of one on n1");
    check("one/log?container=app&follow=true", 200, "later");
    check("two/log?container=b", 200, "b of two on n1");
    check(
        "two/log",
        400,
        "a container name must be specified for pod two, choose one of: [a b]",
    );
    check("two/log?container=c", 400, "container c is not valid for pod two");
    check("unplaced/log", 400, "pod unplaced does not have a host assigned");
    check("one/log?previous=true", 400, "previous terminated container");
    check("none/log", 404, "not found");
    check("one/log?tailLines=-1", 422, "tailLines");
    check("one/log?tailLines=x", 400, "tailLines");
    check(
        "one/log?sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z",
        422,
        "at most one of",
    );
    check(
        "one/log?tailLines=3&sinceSeconds=9&timestamps=true&limitBytes=7",
        200,
        "app",
    );
    let asked = server.asked();
    let numbers = (
        asked.tail_lines,
        asked.since_seconds,
        asked.timestamps,
        asked.limit_bytes,
    );
    assert_eq!(numbers, (Some(3), Some(9), true, Some(7)));
}

#[test]
fn tables_show_columns_of_the_kind() {
    let server = Server::start();
    server.call("POST", PODS, &pod("a")).expect(201);
    let token = format!("Bearer {ADMIN}");
    let check = |path: &str, expected: &[&str]| {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        let answer = server.send("GET", path, &[("authorization", &token), ("accept", accept)], b"");
        let table = answer.expect(200);
        assert_eq!(table["kind"], "Table");
        let columns = table["columnDefinitions"].as_array().unwrap().iter();
        let names: Vec<&str> = columns.filter_map(|column| column["name"].as_str()).collect();
        assert_eq!(names, expected, "{path}");
        let rows = table["rows"].as_array().unwrap();
        assert!(
            rows.iter()
                .all(|row| row["cells"].as_array().map(Vec::len) == Some(names.len())),
            "{table}"
        );
    };
    let pods = [
        "Name",
        "Ready",
        "Status",
        "Restarts",
        "Age",
        "IP",
        "Node",
        "Nominated Node",
        "Readiness Gates",
    ];
    check(PODS, &pods);
    check(&format!("{PODS}/a"), &pods);
    check("/api/v1/namespaces", &["Name", "Status", "Age"]);
    check(MAPS, &["Name", "Data", "Age"]);
    check(SECRETS, &["Name", "Type", "Data", "Age"]);
}

#[test]
fn the_same_event_counts_and_old_ones_go() {
    let server = Server::start();
    let pod = server.call("POST", PODS, &pod("a")).expect(201);
    let record = |message: &str| {
        let what = Happening {
            kind: "Warning",
            reason: "BackOff",
            message,
            component: "skiff-agent",
            host: "n1",
            field_path: "spec.containers{app}",
        };
        server
            .block_on(api::record_event(&*server.store, &pod, what))
            .unwrap();
    };
    record("again");
    record("again");
    record("once");
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let path = "/api/v1/namespaces/default/events";
    let selected = format!("{path}?fieldSelector=involvedObject.name%3Da,involvedObject.uid%3D{uid}");
    let counts = || -> Vec<(String, i64)> {
        let list = server.get(&selected).expect(200);
        let items = list["items"].as_array().unwrap().iter();
        let pairs = items.map(|it| {
            (
                it["message"].as_str().unwrap().to_owned(),
                it["count"].as_i64().unwrap(),
            )
        });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort();
        pairs
    };
    assert_eq!(counts(), [("again".to_owned(), 2), ("once".to_owned(), 1)]);
    let old = server.get(&selected).expect(200)["items"][0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let patch = json!({ "lastTimestamp": "2020-01-01T00:00:00Z" });
    server.call("PATCH", &format!("{path}/{old}"), &patch).expect(200);
    assert_eq!(server.block_on(api::sweep_events(&*server.store)).unwrap(), 1);
    assert_eq!(counts().len(), 1);
}

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const CLASSES: &str = "/apis/storage.k8s.io/v1/storageclasses";

fn claim(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } })
}

#[test]
fn claims_volumes_and_classes() {
    let server = Server::start();
    let class = server.get(&format!("{CLASSES}/node-local")).expect(200);
    assert_eq!(class["provisioner"], "skiff.io/node-local");
    let created = server.call("POST", CLAIMS, &claim("data")).expect(201);
    for (pointer, expected) in [
        ("/spec/storageClassName", json!("node-local")),
        ("/spec/volumeMode", json!("Filesystem")),
        ("/status/phase", json!("Pending")),
        ("/metadata/finalizers", json!(["kubernetes.io/pvc-protection"])),
    ] {
        assert_eq!(created.pointer(pointer), Some(&expected), "{pointer}");
    }
    let refused = |path: &str, body: Value, part: &str| {
        let method = if path.ends_with("/data") { "PATCH" } else { "POST" };
        let status = server.call(method, path, &body).expect(422);
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    };
    let mut block = claim("b");
    block["spec"]["volumeMode"] = "Block".into();
    refused(CLAIMS, block, "spec.volumeMode: Unsupported value: \"Block\"");
    let mut source = claim("b");
    source["spec"]["dataSource"] = json!({ "kind": "PersistentVolumeClaim", "name": "x" });
    refused(
        CLAIMS,
        source,
        "spec.dataSource: Forbidden: not supported by this version of Skiff",
    );
    let data = format!("{CLAIMS}/data");
    refused(
        &data,
        json!({ "spec": { "accessModes": ["ReadOnlyMany"] } }),
        "spec: Forbidden: spec is immutable after creation",
    );
    let volume = json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "v" },
        "spec": { "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" }, "local": { "path": "/x" } } });
    refused(
        VOLUMES,
        volume,
        "spec.local: Forbidden: a PersistentVolume here is a directory that its node makes",
    );
    let class = json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "c" },
        "provisioner": "ebs.csi.aws.com" });
    refused(
        CLASSES,
        class,
        "provisioner: Unsupported value: \"ebs.csi.aws.com\"",
    );
    // Nobody uses it, so nothing holds it back.
    server.call("DELETE", &data, &Value::Null).expect(200);
    for _ in 0..200 {
        if server.get(&data).code == 404 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{}", server.get(&data).text);
}

#[test]
fn pods_are_resized_through_their_own_path_only() {
    let server = Server::start();
    let mut pod = pod("a");
    pod["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": "100m" }, "limits": { "cpu": "200m" } });
    server.call("POST", PODS, &pod).expect(201);
    let patch = |cpu: &str| json!({ "spec": { "containers": [{ "name": "app", "resources": { "limits": { "cpu": cpu } } }] } });
    let send = |path: &str, body: &Value| {
        let path = format!("{PODS}/a{path}");
        server.call_as("PATCH", &path, "application/strategic-merge-patch+json", body)
    };
    let status = send("", &patch("300m")).expect(422);
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("pod updates may not change fields other than"),
        "{message}"
    );
    let resized = send("/resize", &patch("300m")).expect(200);
    let resources = &resized["spec"]["containers"][0]["resources"];
    assert_eq!(
        *resources,
        json!({ "requests": { "cpu": "100m" }, "limits": { "cpu": "300m" } })
    );
    let status = send("/resize", &patch("50m")).expect(422);
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("must be less than or equal to cpu limit of 50m"),
        "{message}"
    );
    server.get(&format!("{PODS}/a/resize")).expect(200);
}

#[test]
fn what_no_node_has_is_said_when_it_is_applied() {
    let server = Server::start();
    let asking = |name: &str, node: &str| {
        let mut pod = pod(name);
        pod["spec"]["securityContext"] = json!({ "appArmorProfile": { "type": "RuntimeDefault" } });
        pod["spec"]["containers"][0]["resources"] = json!({ "limits": { "x.io/arm": "1" } });
        pod["spec"]["nodeName"] = node.into();
        server.call("POST", PODS, &pod)
    };
    let warned = |answer: &crate::harness::Answer, part: &str| {
        assert_eq!(answer.code, 201, "{}", answer.text);
        assert!(
            answer.warnings.iter().any(|it| it.contains(part)),
            "{:?}",
            answer.warnings
        );
    };
    let none = asking("a", "");
    warned(
        &none,
        "spec.securityContext.appArmorProfile: no node has or allows it (apparmor)",
    );
    warned(&none, "no node has x.io/arm");
    warned(&asking("b", "n"), "there is no node \\\"n\\\" yet");
    let node = |features: &str| {
        json!({ "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "n", "annotations": { "skiff.io/features": features } },
            "status": { "allocatable": { "x.io/arm": "2" } } })
    };
    server
        .call("POST", "/api/v1/nodes", &node("host-pid"))
        .expect(201);
    let status = asking("c", "n").expect(422);
    assert_eq!(
        status["details"]["causes"][0]["field"],
        "spec.securityContext.appArmorProfile"
    );
    server
        .call("PUT", "/api/v1/nodes/n", &node("apparmor"))
        .expect(200);
    let answer = asking("d", "n");
    assert_eq!(answer.code, 201, "{}", answer.text);
    assert!(
        !answer.warnings.iter().any(|it| it.contains("node")),
        "{:?}",
        answer.warnings
    );
}
