//! Nodes that go: out of contact, or out of the fleet.

use crate::harness::{Fleet, SimNode, pod, running};
use crate::{PODS, in_step, ready_is};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_removed_node_held_is_worth_nothing_to_its_successor() {
    let fleet = Fleet::start().await;
    let stolen = fleet.node("rover-7").await;
    let broker = stolen.joined.broker_url.clone();
    let pull = |node: &SimNode| {
        let api = node.api();
        async move { api.send("GET", "/v2/", Vec::new()).await.0 }
    };
    assert_eq!(pull(&stolen).await, 200);
    fleet.api.call("DELETE", "/skiff/v1/nodes/rover-7", None).await;
    let mut node = fleet.node("rover-7").await;
    assert_eq!(pull(&node).await, 200);
    assert_eq!(
        pull(&stolen).await,
        403,
        "its certificate is valid still, its key is not the member's"
    );
    node.connect(&broker).await;
    node.hello().await;
    node.expect("InStep", in_step).await;
    // Even with the new password, the old certificate opens nothing.
    for password in [&stolen.joined.broker_password, &node.joined.broker_password] {
        let mut joined = stolen.joined.clone();
        joined.broker_password.clone_from(password);
        let mut again = SimNode::new(joined, stolen.key().to_owned());
        let url = broker.clone();
        let refused = tokio::spawn(async move { again.connect(&url).await }).await;
        assert!(refused.is_err(), "the broker must not let it in");
    }
    assert!(fleet.server().broker().counters().refused >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_lost_node_are_not_ready_until_it_speaks() {
    let fleet = Fleet::start().await;
    let mut node = fleet.node("rover-7").await;
    node.address = "<b>10.1.2.3</b>".into();
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    let nodes = "/api/v1/nodes/rover-7";
    fleet.api.until(nodes, |it| ready_is(it, "True")).await;
    fleet.api.call("POST", PODS, Some(pod("web"))).await;
    node.apply_until(|it| it.pod("web").is_some()).await;
    let uid = node.pod("web").unwrap().uid;
    node.status(vec![running(uid)]).await;
    let path = format!("{PODS}/web");
    let shown = fleet.api.until(&path, |it| ready_is(it, "True")).await.unwrap();
    assert_eq!(shown["status"].get("hostIP"), None, "{shown}");

    node.drop_connection();
    fleet.api.until(nodes, |it| ready_is(it, "Unknown")).await;
    let shown = fleet.api.until(&path, |it| ready_is(it, "False")).await.unwrap();
    let conditions = shown["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|it| it["type"] == "Ready").unwrap();
    assert_eq!(ready["reason"], "NodeNotReady");
    assert_eq!(shown["status"]["phase"], "Running", "it is left alone otherwise");

    node.address = "10.1.2.3".into();
    node.connect(&broker).await;
    node.hello().await;
    node.status(vec![running(uid)]).await;
    let shown = fleet.api.until(&path, |it| ready_is(it, "True")).await.unwrap();
    assert_eq!(shown["status"]["hostIP"], "10.1.2.3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_a_lease_and_takes_its_pods_along() {
    let fleet = Fleet::start().await;
    let mut node = fleet.node("rover-7").await;
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/rover-7";
    let shown = fleet.api.until(lease, |it| it.is_some()).await.unwrap();
    assert_eq!(shown["spec"]["holderIdentity"], "rover-7");
    assert_eq!(shown["metadata"]["ownerReferences"][0]["kind"], "Node");
    let renewed = shown["spec"]["renewTime"].as_str().unwrap();
    assert_eq!(renewed.len(), "2026-01-01T00:00:00.000000Z".len(), "{renewed}");
    fleet.api.call("POST", PODS, Some(pod("web"))).await;
    node.apply_until(|it| it.pod("web").is_some()).await;
    // Often heard of, and written once.
    assert_eq!(fleet.api.get(lease).await.unwrap(), shown);

    fleet.api.call("DELETE", "/skiff/v1/nodes/rover-7", None).await;
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "Unknown"))
        .await;
    assert!(
        fleet.api.get(&format!("{PODS}/web")).await.is_some(),
        "its Node object is there"
    );
    fleet.api.call("DELETE", "/api/v1/nodes/rover-7", None).await;
    fleet.api.until(&format!("{PODS}/web"), |it| it.is_none()).await;
    fleet.api.until(lease, |it| it.is_none()).await;
}
