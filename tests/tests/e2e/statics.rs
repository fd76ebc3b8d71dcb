//! Static Pods: manifests on the device, with and without a server, and their mirrors.
//!
//! Always holds: what the API shows is compared with the processes that the kernel has.

use std::fs;

use serde_json::{Value, json};

use crate::harness::node::Node;
use crate::harness::pods::{IDLE, numbers};
use crate::harness::wait::stays;
use crate::harness::{Cluster, pod, shell, wait};
use crate::images::{push, registry};

/// A manifest as people write one by hand.
const COUNTER: &str = r#"# runs with or without a fleet
apiVersion: v1
kind: Pod
metadata:
  name: counter
  labels: {app: counter}
spec:
  terminationGracePeriodSeconds: 3
  containers:
  - name: main
    image: busybox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c]
    args:
    - |
      trap 'exit 0' TERM; i=0
      while :; do i=$((i+1)); echo "n $i"; sleep 0.2 & wait $!; done
    env: [{name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
"#;

const MIRROR: &str = "counter-rover";

fn put(node: &Node, file: &str, text: &str) {
    fs::create_dir_all(node.manifests()).unwrap();
    // As editors and package managers do it.
    let new = node.manifests().join(format!(".{file}.new"));
    fs::write(&new, text).unwrap();
    fs::rename(&new, node.manifests().join(file)).unwrap();
}

/// The static Pod's uid, by which its node knows it.
fn uid_on_node(mirror: &Value) -> String {
    let annotations = &mirror["metadata"]["annotations"];
    annotations["kubernetes.io/config.mirror"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// What the agent says of its Pods: name and phase.
fn local(node: &Node) -> Vec<(String, String)> {
    let pods = node.ask("pods").unwrap();
    let pods = pods.as_array().unwrap().iter();
    pods.map(|it| {
        (
            it["name"].as_str().unwrap().to_owned(),
            it["phase"].as_str().unwrap().to_owned(),
        )
    })
    .collect()
}

#[test]
fn manifests_of_the_device_run_and_are_mirrored() {
    let mut cluster = Cluster::busybox();
    // The image is there from then on.
    cluster.run(&pod("first", &shell(IDLE), Value::Null));
    put(&cluster.node, "counter.yaml", COUNTER);
    let mirror = cluster.running(MIRROR);
    assert_eq!(mirror["spec"]["nodeName"], "rover", "{mirror}");
    assert_eq!(mirror["metadata"]["labels"]["app"], "counter");
    assert_eq!(
        mirror["metadata"]["annotations"]["kubernetes.io/config.source"],
        "file"
    );
    let id = uid_on_node(&mirror);
    let init = cluster.node.init_of(&id);
    let log = numbers(&cluster.logs_say(&[MIRROR], "n 3\n"));
    assert_eq!(log[0], 1);
    let own = mirror["metadata"]["uid"].as_str().unwrap();
    assert_ne!(own, id, "the mirror is an object of its own");

    a_mirror_changes_nothing_on_the_node(&cluster, own);
    assert_eq!(cluster.node.init_of(&id), init, "the Pod was touched");

    // Neither the agent's end nor the server's ends it.
    cluster.node.kill();
    cluster.node.start();
    cluster.is_ready();
    cluster.running(MIRROR);
    cluster.stop_server();
    put(&cluster.node, "idle.json", &static_idle("idle").to_string());
    wait("the second one to run without a server", 30, || {
        let pods = local(&cluster.node);
        let running = |name: &str| pods.contains(&(name.to_owned(), "Running".to_owned()));
        if running("idle-rover") && running(MIRROR) {
            Ok(())
        } else {
            Err(format!("{pods:?}"))
        }
    });
    cluster.start_server();
    cluster.is_ready();
    cluster.running("idle-rover");
    assert_eq!(cluster.node.init_of(&id), init, "the Pod was touched");

    a_file_that_is_damaged_ends_nothing(&cluster);
    assert_eq!(cluster.node.init_of(&id), init, "the Pod was touched");

    // Another manifest is another Pod, after the first has ended.
    put(
        &cluster.node,
        "counter.yaml",
        &COUNTER.replace("echo \"n $i\"", "echo \"n $((i+1000))\""),
    );
    let changed = cluster.until(MIRROR, "to be another", 40, |it| {
        uid_on_node(it) != id && it["status"]["phase"] == "Running"
    });
    assert_eq!(changed["status"]["containerStatuses"][0]["restartCount"], 0);
    let log = numbers(&cluster.logs_say(&[MIRROR], "n 1001\n"));
    assert_eq!(log[0], 1001);
    // The files go, and the Pods and mirrors with them.
    fs::remove_file(cluster.node.manifests().join("counter.yaml")).unwrap();
    fs::remove_file(cluster.node.manifests().join("idle.json")).unwrap();
    wait("the mirrors to go", 40, || {
        let names = cluster.kubectl(&["get", "pods", "-o", "name"]).ok();
        if names == "pod/first\n" {
            Ok(())
        } else {
            Err(names)
        }
    });
    cluster.delete("first");
    cluster.is_empty();
}

fn static_idle(name: &str) -> Value {
    let mut pod = pod(name, &shell(IDLE), json!({ "terminationGracePeriodSeconds": 3 }));
    pod["metadata"]["namespace"] = "default".into();
    pod
}

/// Kubernetes documentation, "Static Pods": the Pods are visible on the API server and cannot be controlled from there.
fn a_mirror_changes_nothing_on_the_node(cluster: &Cluster, own: &str) {
    cluster.kubectl(&["delete", "pod", MIRROR, "--timeout=20s"]).ok();
    let again = cluster.running(MIRROR);
    assert_ne!(again["metadata"]["uid"], own, "it was not deleted");
    let annotation = "kubernetes.io/config.mirror=11111111-1111-4111-8111-111111111111";
    let said = cluster.kubectl(&["annotate", "pod", "first", annotation]);
    assert!(said.code != 0 && said.err.contains("only nodes set it"), "{said}");
    let mut forged = static_idle("forged-rover");
    forged["metadata"]["annotations"] =
        json!({ "kubernetes.io/config.mirror": "11111111-1111-4111-8111-111111111111" });
    let said = cluster.kubectl_with(&["create", "-f", "-"], &forged.to_string());
    assert!(said.code != 0 && said.err.contains("only nodes set it"), "{said}");
}

/// A file that says nothing any more leaves its Pod as it is, and is named where people look.
fn a_file_that_is_damaged_ends_nothing(cluster: &Cluster) {
    put(
        &cluster.node,
        "counter.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {\n",
    );
    put(
        &cluster.node,
        "bad.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {contaners: []}\n",
    );
    let path = "jsonpath={.status.conditions[?(@.type==\"StaticPodsUnusable\")].message}";
    let said = wait("the condition", 30, || {
        let said = cluster.kubectl(&["get", "node", "rover", "-o", path]).ok();
        if said.contains("counter.yaml: line 4") {
            Ok(said)
        } else {
            Err(said)
        }
    });
    assert!(said.contains("bad.yaml: line 4: spec.contaners"), "{said}");
    stays(3, || {
        assert!(
            local(&cluster.node).iter().any(|it| it.0 == MIRROR),
            "{:?}",
            local(&cluster.node)
        );
    });
    let checked = cluster.node.agent(&[
        "check",
        &cluster.node.manifests().join("bad.yaml").display().to_string(),
    ]);
    assert!(
        checked.code != 0 && checked.err.contains("did you mean \"containers\""),
        "{checked}"
    );
    put(&cluster.node, "counter.yaml", COUNTER);
    fs::remove_file(cluster.node.manifests().join("bad.yaml")).unwrap();
    wait("the condition to go", 30, || {
        let said = cluster.kubectl(&["get", "node", "rover", "-o", path]).ok();
        if said.is_empty() { Ok(()) } else { Err(said) }
    });
}

/// A device that belongs to no fleet: no identity, no server, no broker.
#[test]
fn a_device_without_a_fleet_runs_its_own_pods() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, address) = registry(dir.path());
    push(&address, "busybox", "busybox:latest");
    let extra = format!("node_name = \"lonely\"\n[registries.\"{address}\"]\nplain_http = true\n");
    let mut node = Node::new(dir.path(), "rover", &extra);
    put(
        &node,
        "counter.yaml",
        &COUNTER.replace("busybox:latest", &format!("{address}/busybox:latest")),
    );
    node.start();
    let runs = |node: &Node, seconds: u64| {
        wait("the Pod to run", seconds, || {
            let pods = local(node);
            let wanted = ("counter-lonely".to_owned(), "Running".to_owned());
            if pods == [wanted] {
                Ok(())
            } else {
                Err(format!("{pods:?}"))
            }
        });
    };
    runs(&node, 40);
    let inits = node.inits();
    assert_eq!(inits.len(), 1, "{inits:?}");
    node.kill();
    node.start();
    runs(&node, 10);
    assert_eq!(node.inits(), inits, "the Pod was touched");
    // A reboot, without the registry: everything is ended and begins again.
    drop(registry);
    node.stop();
    node.agent(&["stop"]).ok();
    node.start();
    runs(&node, 20);
    assert_ne!(node.inits(), inits);
    fs::remove_file(node.manifests().join("counter.yaml")).unwrap();
    wait("it to end", 30, || {
        let (pods, left) = (local(&node), node.leftovers());
        if pods.is_empty() && left.is_empty() {
            Ok(())
        } else {
            Err(format!("{pods:?} {left:?}"))
        }
    });
}
