//! Bad input: what is refused at once, and what fails later with words that help.
//!
//! Always holds: after a refusal nothing is stored and nothing runs.

use serde_json::{Value, json};

use crate::harness::pods::IDLE;
use crate::harness::{Cluster, Setup, pod, shell};

const REFUSED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/manifests/refused");

const PODS: &str = "/api/v1/namespaces/default/pods";

#[track_caller]
fn nothing_is_stored(cluster: &Cluster) {
    let said = cluster.kubectl(&["get", "pods,configmaps", "-o", "name"]).ok();
    assert_eq!(said, "", "something was stored");
}

#[test]
fn what_is_wrong_is_refused_by_name_and_not_stored() {
    let cluster = Cluster::busybox();
    manifests_are_refused(&cluster);
    raw_requests_get_a_status(&cluster);
    strangers_are_refused(&cluster);
    unknown_fields_are_as_field_validation_says(&cluster);
    what_fails_later_says_why(&cluster);
    a_missing_config_map_is_waited_for(&cluster);
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

fn manifests_are_refused(cluster: &Cluster) {
    for (file, line, kubectl, skiff) in [
        (
            "env-value-not-a-string.yaml",
            11,
            // kubectl's own words for what it cannot decode, or ours.
            &["value"][..],
            &["spec.containers[0].env[0].value", "string"][..],
        ),
        ("kind-case-and-images.yaml", 2, &["pod"], &["kind", "Pod"]),
        ("kind-case-and-images.yaml", 7, &["pod"], &["images", "image"]),
        (
            "port-conflict-in-pod.yaml",
            16,
            &["spec.containers[1].ports[0].hostPort", "8080"],
            &["spec.containers[1].ports[0].hostPort", "8080"],
        ),
        (
            "wrong-api-version-key.yaml",
            1,
            &["apiVersion"],
            &["apiVersion1", "apiVersion"],
        ),
    ] {
        let path = format!("{REFUSED}/{file}");
        cluster.kubectl(&["apply", "-f", &path]).fails(1, kubectl);
        let said = cluster.skiff(&["apply", "-f", &path]);
        let place = format!("{path}:{line}:");
        let parts: Vec<&str> = skiff.iter().copied().chain([place.as_str()]).collect();
        said.fails(1, &parts);
        nothing_is_stored(cluster);
    }
    // Nothing of a file is stored when a later document of it is wrong.
    let good = pod("good", &shell(IDLE), Value::Null);
    let bad = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Bad_Name\nspec:\n  containers: []\n";
    let both = format!("{good}\n---\n{bad}");
    cluster
        .skiff_with(&["apply", "-f", "-"], &both)
        .fails(1, &["metadata.name", "spec.containers"]);
    nothing_is_stored(cluster);
}

fn raw_requests_get_a_status(cluster: &Cluster) {
    let env = |value: Value| {
        let mut container = shell(IDLE);
        container["env"] = json!([{ "name": "A", "value": value }]);
        pod("refused", &container, Value::Null)
    };
    let two_on_one_port = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "refused" },
        "spec": { "containers": [
            { "name": "a", "image": "x", "ports": [{ "containerPort": 80, "hostPort": 80 }] },
            { "name": "b", "image": "x", "ports": [{ "containerPort": 80, "hostPort": 80 }] },
        ] },
    });
    let mut no_image = pod("refused", &shell(IDLE), Value::Null);
    no_image["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .remove("image");
    let wrong_kind = json!({ "apiVersion": "v1", "kind": "pod", "metadata": { "name": "refused" } });
    for (body, code, reason, fields, words) in [
        (
            env(json!(123_456)).to_string(),
            400,
            "BadRequest",
            &[][..],
            "spec.containers[0].env[0].value",
        ),
        (
            two_on_one_port.to_string(),
            422,
            "Invalid",
            &["spec.containers[1].ports[0].hostPort"],
            "80",
        ),
        (
            no_image.to_string(),
            422,
            "Invalid",
            &["spec.containers[0].image"],
            "image",
        ),
        (
            pod("Not_A_Name", &shell(IDLE), Value::Null).to_string(),
            422,
            "Invalid",
            &["metadata.name"],
            "Not_A_Name",
        ),
        (wrong_kind.to_string(), 400, "BadRequest", &[], "pod"),
        ("{ not json".to_owned(), 400, "BadRequest", &[], ""),
    ] {
        let (got, status) = cluster.http("POST", PODS, &body);
        assert_eq!(got, code, "{body}: {status}");
        assert_eq!(status["kind"], "Status", "{body}: {status}");
        assert_eq!(status["status"], "Failure", "{body}: {status}");
        assert_eq!(status["code"], code, "{body}: {status}");
        assert_eq!(status["reason"], reason, "{body}: {status}");
        let causes = status["details"]["causes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for field in fields {
            assert!(
                causes.iter().any(|it| it["field"] == **field),
                "{field}: {status}"
            );
        }
        assert!(
            status["message"].as_str().unwrap().contains(words),
            "{words}: {status}"
        );
    }
    nothing_is_stored(cluster);
}

/// Nobody without a name, with a wrong one, or with a node's name gets at the API; a join token works once.
fn strangers_are_refused(cluster: &Cluster) {
    for credentials in [
        "",
        "Authorization: Bearer wrong-wrong-wrong-wrong-wrong-wrong-wrong-wrong",
    ] {
        let (code, status) = cluster.request(&["-H", credentials], "GET", PODS, "");
        assert_eq!(
            (code, &status["reason"]),
            (401, &json!("Unauthorized")),
            "{credentials:?}: {status}"
        );
    }
    let joined = crate::harness::process::read(&cluster.node.state.join("identity/joined.json"));
    let joined: Value = serde_json::from_str(&joined).unwrap();
    let certificate = cluster.dir().join("node.crt");
    std::fs::write(&certificate, joined["certificate"].as_str().unwrap()).unwrap();
    let (certificate, key) = (
        certificate.display().to_string(),
        cluster.node.state.join("identity/node.key").display().to_string(),
    );
    let as_node = ["--cert", &certificate, "--key", &key];
    for (method, path) in [("GET", PODS), ("GET", "/api/v1/secrets"), ("POST", PODS)] {
        let (code, status) = cluster.request(&as_node, method, path, "{}");
        assert_eq!(
            (code, &status["reason"]),
            (403, &json!("Forbidden")),
            "{path}: {status}"
        );
    }
    let token = cluster.token("second");
    let join = || {
        cluster
            .node
            .agent_in(&cluster.dir().join("second"), &["join", &token])
    };
    join().ok();
    join().fails(1, &["token"]);
    let forged = format!("{}AAAA", &token[..token.len() - 4]);
    cluster
        .node
        .agent_in(&cluster.dir().join("third"), &["join", &forged])
        .fails(1, &["token"]);
    cluster
        .kubectl(&["delete", "node", "second", "--ignore-not-found"])
        .ok();
}

fn unknown_fields_are_as_field_validation_says(cluster: &Cluster) {
    let mut strange = pod("strange", &shell(IDLE), Value::Null);
    strange["spec"]["containers"][0]["imagePullPolic"] = json!("Never");
    let text = strange.to_string();
    let create = |how: &str| {
        let validate = format!("--validate={how}");
        cluster.kubectl_with(&["create", "-f", "-", &validate, "--dry-run=server"], &text)
    };
    create("strict").fails(1, &["spec.containers[0].imagePullPolic"]);
    let warned = create("warn");
    assert_eq!(warned.code, 0, "{warned}");
    assert!(
        warned.err.contains("Warning") && warned.err.contains("imagePullPolic"),
        "{warned}"
    );
    let ignored = create("ignore");
    assert_eq!((ignored.code, ignored.err.as_str()), (0, ""), "{ignored}");
    nothing_is_stored(cluster);
    let (code, status) = cluster.http("POST", &format!("{PODS}?fieldValidation=Strict"), &text);
    assert_eq!((code, &status["reason"]), (400, &json!("BadRequest")), "{status}");
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("imagePullPolic") && message.contains("imagePullPolicy"),
        "no likely meaning: {message}"
    );
    nothing_is_stored(cluster);
}

fn first(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// The end of the first start that failed, whether the container waits for another or not.
fn failed_start(pod: &Value) -> Option<&Value> {
    let status = first(pod);
    [&status["state"]["terminated"], &status["lastState"]["terminated"]]
        .into_iter()
        .find(|it| it["reason"] == "StartError")
}

fn what_fails_later_says_why(cluster: &Cluster) {
    let mut no_command = shell(IDLE);
    no_command["command"] = json!(["/no/such/program"]);
    let mut small = shell(IDLE);
    small["resources"] = json!({ "limits": { "memory": "4Ki" } });
    let mut missing = shell(IDLE);
    missing["image"] = json!("no-such-image:1");
    let never = || json!({ "restartPolicy": "Never" });
    cluster.apply(&pod("no-command", &no_command, never()));
    cluster.apply(&pod("small", &small, never()));
    cluster.apply(&pod("missing", &missing, Value::Null));

    for (name, words, code) in [
        ("no-command", &["/no/such/program", "no such file"][..], 127),
        ("small", &["memory"], 128),
    ] {
        let failed = cluster.until(name, "to fail its start", 30, |it| failed_start(it).is_some());
        let end = failed_start(&failed).unwrap();
        let message = end["message"].as_str().unwrap().to_lowercase();
        for word in words {
            assert!(message.contains(word), "{name}: no {word:?} in {message:?}");
        }
        assert_eq!(end["exitCode"], code, "{name}: {end}");
        assert_eq!(failed["status"]["phase"], "Failed", "{name}");
    }
    let waiting = cluster.until("missing", "to back off", 60, |it| {
        first(it)["state"]["waiting"]["reason"] == "ImagePullBackOff"
    });
    let message = first(&waiting)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("no-such-image:1"), "{message}");
    let table = cluster.kubectl(&["get", "pods"]).ok();
    assert!(
        table.contains("ImagePullBackOff") && table.contains("StartError"),
        "{table}"
    );
}

fn a_missing_config_map_is_waited_for(cluster: &Cluster) {
    let mut container = shell(
        "echo \"got $GREETING\"; echo \"file $(cat /c/greeting)\"; trap 'exit 0' TERM; sleep 3600 & wait $!",
    );
    container["env"] = json!([{
        "name": "GREETING",
        "valueFrom": { "configMapKeyRef": { "name": "late", "key": "greeting" } },
    }]);
    container["volumeMounts"] = json!([{ "name": "c", "mountPath": "/c" }]);
    let more = json!({ "volumes": [{ "name": "c", "configMap": { "name": "late" } }] });
    cluster.apply(&pod("waits", &container, more));
    let waiting = cluster.until("waits", "to wait for its ConfigMap", 30, |it| {
        first(it)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let message = first(&waiting)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("configmap \"late\" not found"), "{message}");
    cluster
        .kubectl(&["create", "configmap", "late", "--from-literal=greeting=hello"])
        .ok();
    cluster.running("waits");
    assert_eq!(cluster.logs_say(&["waits"], "file"), "got hello\nfile hello\n");
}

#[test]
fn a_pod_that_fits_nowhere_waits_and_says_so() {
    let cluster = Cluster::start(&Setup {
        images: &["busybox"],
        agent: "max_pods = 2\n",
        ..Setup::default()
    });
    let mut greedy = shell(IDLE);
    greedy["resources"] = json!({ "requests": { "memory": "900Gi" } });
    cluster.apply(&pod("greedy", &greedy, Value::Null));
    let waiting = cluster.until("greedy", "to be unschedulable", 20, |it| {
        it["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|it| it["type"] == "PodScheduled" && it["reason"] == "Unschedulable")
    });
    assert!(waiting.to_string().contains("memory"), "{waiting}");
    cluster.run(&pod("one", &shell(IDLE), Value::Null));
    cluster.run(&pod("two", &shell(IDLE), Value::Null));
    cluster.apply(&pod("three", &shell(IDLE), Value::Null));
    cluster.until("three", "to be unschedulable", 20, |it| {
        it.to_string().contains("Unschedulable")
    });
    // Room that comes free is used.
    cluster.delete("one");
    cluster.running("three");
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}
