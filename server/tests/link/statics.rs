//! Static Pods: what nodes tell of them, how the API shows them, and what a node that lies gets.

use serde_json::{Value, json};
use skiff_protocol::topic::UpKind;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::{Down, Up};
use skiff_server::link::Wrong;

use crate::harness::{Fleet, SimNode, pod, running};
use crate::{PODS, in_step};

const ONE: Uid = Uid([1; 16]);

fn manifest(name: &str, namespace: &str) -> Vec<u8> {
    let mut pod = pod(name);
    pod["metadata"]["namespace"] = namespace.into();
    pod["metadata"]["uid"] = ONE.to_string().into();
    pod["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "Node", "name": "x", "uid": "y" }]);
    pod["spec"]["nodeName"] = "rover-8".into();
    pod["status"] = json!({ "phase": "Running" });
    pod.to_string().into_bytes()
}

fn need(down: &Down) -> Option<Vec<Uid>> {
    match down {
        Down::NeedStatics { uids } => Some(uids.clone()),
        _ => None,
    }
}

async fn node(fleet: &Fleet) -> SimNode {
    let mut node = fleet.node("rover-7").await;
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    node.expect("InStep", in_step).await;
    node
}

async fn tell(node: &mut SimNode, uids: &[Uid]) {
    let uids = uids.to_vec();
    node.send(UpKind::Hello, &Up::Statics { uids }).await;
}

async fn show(node: &mut SimNode, uid: Uid, manifest: Vec<u8>) {
    node.send(UpKind::Hello, &Up::StaticPod { uid, manifest }).await;
}

fn is_running(pod: Option<&Value>) -> bool {
    pod.is_some_and(|it| it["status"]["phase"] == "Running")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_pod_has_a_mirror_as_long_as_its_node_tells_of_it() {
    let fleet = Fleet::start().await;
    let mut node = node(&fleet).await;
    let path = format!("{PODS}/web-rover-7");
    tell(&mut node, &[ONE]).await;
    assert_eq!(node.expect("to be asked", need).await, [ONE]);
    // Its status overtakes its manifest.
    node.status(vec![running(ONE)]).await;
    show(&mut node, ONE, manifest("web-rover-7", "default")).await;
    let mirror = fleet.api.until(&path, is_running).await.unwrap();
    assert_eq!(
        mirror["spec"]["nodeName"], "rover-7",
        "whatever the manifest says"
    );
    assert_eq!(
        mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"],
        ONE.to_string()
    );
    assert!(mirror["metadata"]["ownerReferences"].is_null(), "{mirror}");
    assert_ne!(mirror["metadata"]["uid"], ONE.to_string());
    // It is no part of what the node shall have.
    node.expect_none("a desired state", |down| matches!(down, Down::Desired(_)))
        .await;

    // Deleted, it is gone at once, and asked for again.
    fleet.api.call("DELETE", &path, None).await;
    assert_eq!(node.expect("to be asked again", need).await, [ONE]);
    show(&mut node, ONE, manifest("web-rover-7", "default")).await;
    node.status(vec![running(ONE)]).await;
    fleet.api.until(&path, is_running).await.unwrap();

    // A new start of the agent that says nothing of static Pods is asked, and what it has no more goes.
    node.epoch += 1;
    node.hello().await;
    assert_eq!(node.expect("to be asked which there are", need).await, []);
    fleet.api.until(&path, |it| it.is_some()).await;
    tell(&mut node, &[]).await;
    fleet.api.until(&path, |it| it.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_can_show_nothing_but_its_own() {
    let fleet = Fleet::start().await;
    let mut node = node(&fleet).await;
    let counters = fleet.server().link().counters();
    show(&mut node, ONE, manifest("web-rover-7", "default")).await;
    tell(&mut node, &vec![ONE; 1000]).await;
    tell(&mut node, &[ONE]).await;
    node.expect("to be asked", need).await;
    assert_eq!(counters.get(Wrong::NotAsked), 1, "nobody had asked");
    assert_eq!(counters.get(Wrong::TooMany), 1);
    for (name, namespace, what) in [
        ("web-rover-8", "default", "another node's name"),
        ("rover-7", "default", "no name"),
        ("web-rover-7", "no-such", "a namespace that is not there"),
        ("Web-rover-7", "default", "a name that is none"),
    ] {
        show(&mut node, ONE, manifest(name, namespace)).await;
        // It is asked for again only when the node tells anew.
        node.expect_none(what, |down| need(down).is_some()).await;
        tell(&mut node, &[ONE]).await;
        node.expect("to be asked", need).await;
    }
    show(&mut node, ONE, b"nonsense".to_vec()).await;
    node.expect_none("it is asked for once", |down| need(down).is_some())
        .await;
    let pods = fleet.api.get("/api/v1/pods").await.unwrap();
    assert_eq!(pods["items"], json!([]));
}
