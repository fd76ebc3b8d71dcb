//! The link end to end: a real server with its embedded broker on loopback, and nodes that speak the wire.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends with the first thing that goes wrong"
)]

mod contact;
mod harness;
mod others;
mod statics;

use std::time::{Duration, Instant};

use harness::{Fleet, join_request, pod, running};
use serde_json::json;
use skiff_protocol::enrol::JoinToken;
use skiff_protocol::topic::UpKind;
use skiff_protocol::wire::desired::Change;
use skiff_protocol::wire::spec::ObjectKey;
use skiff_protocol::wire::status::Phase;
use skiff_protocol::wire::{self, Down, StreamEnd, StreamOpen, Up};
use skiff_server::link::Wrong;

const PODS: &str = "/api/v1/namespaces/default/pods";

fn in_step(down: &Down) -> Option<u64> {
    match down {
        Down::InStep { generation } => Some(*generation),
        _ => None,
    }
}

fn resync(down: &Down) -> Option<()> {
    matches!(down, Down::Resync).then_some(())
}

fn ready_is(node: Option<&serde_json::Value>, status: &str) -> bool {
    let conditions = node.and_then(|it| it["status"]["conditions"].as_array());
    conditions
        .into_iter()
        .flatten()
        .any(|it| it["type"] == "Ready" && it["status"] == status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_all_the_way_and_back() {
    let mut fleet = Fleet::start().await;
    let mut node = fleet.node("rover-7").await;
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    node.expect("InStep", in_step).await;
    let shown = fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "True"))
        .await
        .unwrap();
    assert_eq!(shown["status"]["allocatable"]["cpu"], "3800m");
    assert_eq!(shown["metadata"]["labels"]["site"], "north");
    assert_eq!(shown["metadata"]["labels"]["kubernetes.io/arch"], "arm64");

    // A Pod that names nobody, and reads a ConfigMap and a Secret.
    let api = fleet.api.clone();
    let maps = "/api/v1/namespaces/default/configmaps";
    api.call("POST", maps, Some(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "k": "v" } }))).await;
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "k": "hush" } });
    api.call("POST", "/api/v1/namespaces/default/secrets", Some(secret))
        .await;
    let mut web = pod("web");
    web["spec"]["containers"][0]["envFrom"] =
        json!([{ "configMapRef": { "name": "c" } }, { "secretRef": { "name": "s" } }]);
    api.call("POST", PODS, Some(web)).await;
    let desired = node.desired().await;
    assert!(
        matches!(desired.change, Change::Delta { base: 0, .. }),
        "{:?}",
        desired.change
    );
    assert_eq!(desired.objects.len(), 3, "Pod, ConfigMap and Secret come along");
    node.apply(&desired).await;
    let uid = node.pod("web").unwrap().uid;
    assert!(
        node.objects
            .contains_key(&ObjectKey::Secret("default".into(), "s".into()))
    );

    node.status(vec![running(uid)]).await;
    let shown = api
        .until(&format!("{PODS}/web"), |it| {
            it.is_some_and(|it| it["status"]["phase"] == "Running")
        })
        .await;
    let status = &shown.unwrap()["status"];
    assert_eq!(status["podIP"], "10.88.0.5");
    assert_eq!(status["hostIP"], "10.1.2.3");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["containerStatuses"][0]["containerID"], "skiff://abc");
    let ready = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["type"] == "Ready")
        .unwrap();
    assert_eq!(
        (&ready["status"], &ready["lastTransitionTime"]),
        (&json!("True"), &json!("2026-09-21T14:13:22Z"))
    );

    let event = wire::Event {
        uid,
        container: Some("app".into()),
        warning: false,
        reason: "Started".into(),
        message: "Started container app".into(),
        at: 1_790_000_001,
    };
    node.send(
        UpKind::Event,
        &Up::Events {
            lost: 0,
            events: vec![event],
        },
    )
    .await;
    let told = |list: Option<&serde_json::Value>, reason: &str| {
        let items = list.and_then(|it| it["items"].as_array());
        items
            .into_iter()
            .flatten()
            .any(|it| it["reason"] == reason && it["involvedObject"]["uid"] == uid.to_string())
    };
    let events = "/api/v1/namespaces/default/events";
    api.until(events, |it| told(it, "Started") && told(it, "Scheduled"))
        .await;

    // A change of the ConfigMap alone goes as a delta; so does the end of the Pod.
    api.call("PUT", &format!("{maps}/c"), Some(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }, "data": { "k": "w" } }))).await;
    let desired = node.desired().await;
    assert!(
        matches!(&desired.change, Change::Delta { remove, put, .. } if remove.is_empty() && put.len() == 1)
    );
    node.apply(&desired).await;
    api.call("DELETE", &format!("{PODS}/web"), None).await;
    node.apply_until(|it| {
        it.pod("web")
            .is_some_and(|pod| pod.deletion_grace_seconds == Some(30))
    })
    .await;
    let mut end = running(uid);
    end.phase = Phase::Succeeded;
    end.gone = true;
    node.status(vec![end.clone()]).await;
    api.until(&format!("{PODS}/web"), |it| it.is_none()).await;
    node.apply_until(|it| it.objects.is_empty()).await;
    // Said again, as QoS 1 may: nothing comes of it.
    node.status(vec![end]).await;
    node.expect_none("a message", |_| true).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_deletion_and_a_pod_that_fits_nowhere() {
    let fleet = Fleet::start().await;
    let mut node = fleet.node("rover-7").await;
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    let mut large = pod("large");
    large["spec"]["containers"][0]["resources"] = json!({ "requests": { "memory": "2Gi" } });
    fleet.api.call("POST", PODS, Some(large)).await;
    let condition = |it: Option<&serde_json::Value>, message: &str| {
        let conditions = it.and_then(|it| it["status"]["conditions"].as_array());
        conditions
            .into_iter()
            .flatten()
            .any(|it| it["type"] == "PodScheduled" && it["message"] == message)
    };
    let path = format!("{PODS}/large");
    fleet
        .api
        .until(&path, |it| condition(it, "no nodes available to schedule pods"))
        .await;
    node.hello().await;
    fleet
        .api
        .until(&path, |it| {
            condition(it, "0/1 nodes are available: 1 Insufficient memory.")
        })
        .await;
    // The node grows: that alone places the Pod.
    node.allocatable_memory = 4 << 30;
    let info = node.info();
    node.send(UpKind::Status, &Up::Node(info)).await;
    node.apply_until(|it| it.pod("large").is_some()).await;
    fleet
        .api
        .call("DELETE", &format!("{path}?gracePeriodSeconds=0"), None)
        .await;
    node.apply_until(|it| it.objects.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_counted_and_touches_nothing() {
    let fleet = Fleet::start().await;
    let (mut one, mut two) = (fleet.node("one").await, fleet.node("two").await);
    for node in [&mut one, &mut two] {
        let broker = node.joined.broker_url.clone();
        node.connect(&broker).await;
        node.hello().await;
        node.expect("InStep", in_step).await;
    }
    let mut web = pod("web");
    web["spec"]["nodeName"] = "one".into();
    fleet.api.call("POST", PODS, Some(web)).await;
    one.apply_until(|it| it.pod("web").is_some()).await;
    let uid = one.pod("web").unwrap().uid;
    one.status(vec![running(uid)]).await;
    let path = format!("{PODS}/web");
    let before = fleet
        .api
        .until(&path, |it| {
            it.is_some_and(|it| it["status"]["phase"] == "Running")
        })
        .await;

    // Another node speaks of the Pod.
    let mut lie = running(uid);
    lie.phase = Phase::Failed;
    lie.gone = true;
    two.status(vec![lie.clone()]).await;
    let event = wire::Event {
        uid,
        container: None,
        warning: true,
        reason: "Lie".into(),
        message: String::new(),
        at: 0,
    };
    two.send(
        UpKind::Event,
        &Up::Events {
            lost: 0,
            events: vec![event],
        },
    )
    .await;
    // Rubbish on its own topics.
    let topic = format!("skiff/u/{}/two/status", two.name.shard());
    for payload in [
        vec![],
        vec![1],
        vec![1, 0, 0xff, 0xff],
        vec![9, 0, 1],
        vec![1; 40_000],
        vec![1, 0, 8, 1],
    ] {
        two.publish(&topic, payload).await;
    }
    // On the other's topic: the broker itself drops it.
    let theirs = format!("skiff/u/{}/one/status", one.name.shard());
    let said = Up::Status {
        epoch: 1,
        sequence: 2,
        pods: vec![lie],
    };
    two.publish(
        &theirs,
        wire::frames(wire::OLDEST, &wire::encode_up(&said), 1)
            .unwrap()
            .remove(0),
    )
    .await;
    // A stale repetition, then a gap: the gap is asked about, what came with it counts.
    let stale = Up::Status {
        epoch: 1,
        sequence: 1,
        pods: vec![running(uid)],
    };
    one.send(UpKind::Status, &stale).await;
    one.expect_none("a question", |down| resync(down).is_some()).await;
    let after = fleet.api.get(&path).await;
    assert_eq!(after, before, "nothing of that may be seen");
    one.sequence = 4;
    let mut not_ready = running(uid);
    not_ready.containers[0].ready = false;
    one.status(vec![not_ready]).await;
    one.expect("Resync", resync).await;
    let ready = |it: &serde_json::Value| it["status"]["containerStatuses"][0]["ready"] == true;
    fleet.api.until(&path, |it| it.is_some_and(|it| !ready(it))).await;

    let counters = fleet.server().link().counters();
    let seen: Vec<_> = Wrong::ALL
        .iter()
        .map(|it| (*it, counters.get(*it)))
        .filter(|it| it.1 > 0)
        .collect();
    let expected = [
        (Wrong::Version, 1),
        (Wrong::Malformed, 3),
        (Wrong::TooLong, 1),
        (Wrong::Kind, 1),
        (Wrong::NotItsPod, 2),
        (Wrong::Epoch, 1),
    ];
    assert_eq!(seen, expected);
    assert_eq!(fleet.server().broker().counters().publish_denied, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_keeps_generations_and_asks_its_nodes() {
    let mut fleet = Fleet::start().await;
    let (mut node, lost) = (fleet.node("rover-7").await, fleet.node("rover-8").await);
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "True"))
        .await;
    fleet.api.call("POST", PODS, Some(pod("web"))).await;
    node.apply_until(|it| it.pod("web").is_some()).await;
    let (generation, key) = (node.generation, node.server_key());
    drop(lost);
    node.drop_connection();
    fleet.stop().await;

    fleet
        .start_again(|config| config.node_grace = Duration::from_secs(1))
        .await;
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "Unknown"))
        .await;
    assert!(
        fleet.api.get(&format!("{PODS}/web")).await.is_some(),
        "its Pods are left alone"
    );
    let broker = fleet.server().broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    assert_eq!(
        node.expect("InStep", in_step).await,
        generation,
        "nothing has changed, so nothing is sent"
    );
    assert_eq!(node.server_key(), key);
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "True"))
        .await;
    fleet.api.call("POST", PODS, Some(pod("more"))).await;
    let desired = node.desired().await;
    assert!(desired.generation > generation);
    assert!(matches!(desired.change, Change::Delta { base, .. } if base == generation));
    node.apply(&desired).await;

    // The database is older than the node, as after a restore: the node's generation is what counts.
    node.generation += 1000;
    node.index.0.clear();
    node.objects.clear();
    node.hello().await;
    let before = node.generation;
    node.apply_until(|it| it.pods().len() == 2).await;
    assert!(node.generation > before);

    // The agent starts anew; then the connection breaks, and the broker says so.
    node.epoch = 2;
    node.drop_connection();
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "Unknown"))
        .await;
    node.connect(&broker).await;
    node.hello().await;
    assert_eq!(node.expect("InStep", in_step).await, node.generation);
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "True"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_flow_at_the_readers_pace_and_say_what_is_missing() {
    let fleet = Fleet::start().await;
    let mut node = fleet.node("rover-7").await;
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "True"))
        .await;
    fleet.api.call("POST", PODS, Some(pod("web"))).await;
    node.apply_until(|it| it.pod("web").is_some()).await;
    let uid = node.pod("web").unwrap().uid;

    let ask = |query: &'static str| {
        let api = fleet.api.clone();
        tokio::spawn(async move {
            api.send("GET", &format!("{PODS}/web/log{query}"), Vec::new())
                .await
        })
    };
    let open = |down: &Down| match down {
        Down::StreamOpen(StreamOpen::Logs { sid, request }) => Some((*sid, request.clone())),
        _ => None,
    };
    let reader = ask("?tailLines=5&timestamps=true");
    let (sid, request) = node.expect("StreamOpen", open).await;
    assert_eq!(
        (request.uid, request.tail_lines, request.timestamps),
        (Some(uid), Some(5), true)
    );
    // Three windows: more than may be on its way without credit.
    let (piece, total) = (vec![b'x'; 16 * 1024], 12u64);
    let mut window = u64::from(skiff_protocol::limits::STREAM_WINDOW);
    for at in 0..total {
        while window < piece.len() as u64 {
            let credit = |down: &Down| match down {
                Down::StreamCredit { sid: of, bytes } if *of == sid => Some(u64::from(*bytes)),
                _ => None,
            };
            window += node.expect("credit", credit).await;
        }
        window -= piece.len() as u64;
        let offset = at * piece.len() as u64;
        node.send(
            UpKind::Stream,
            &Up::StreamData {
                sid,
                offset,
                bytes: piece.clone(),
            },
        )
        .await;
    }
    node.send(
        UpKind::Stream,
        &Up::StreamEnd {
            sid,
            end: StreamEnd::Complete,
        },
    )
    .await;
    let (code, body) = reader.await.unwrap();
    assert_eq!((code, body.len()), (200, piece.len() * total as usize));

    // What the node refuses is an error of its own kind.
    for (said, code) in [
        ("previous terminated container \"app\" in pod x not found", 400),
        (
            "container \"app\" in pod x is waiting to start: ContainerCreating",
            400,
        ),
        ("the disk is gone", 500),
    ] {
        let reader = ask("");
        let (sid, _) = node.expect("StreamOpen", open).await;
        node.send(
            UpKind::Stream,
            &Up::StreamEnd {
                sid,
                end: StreamEnd::Failed(said.into()),
            },
        )
        .await;
        assert_eq!(reader.await.unwrap().0, code, "{said}");
    }

    // Another node cannot speak into the stream; a hole in it ends it.
    let mut stranger = fleet.node("stranger").await;
    stranger.connect(&broker).await;
    let api = fleet.api.clone();
    let reader = tokio::spawn(async move {
        use futures_util::StreamExt as _;
        let answer = api
            .open("GET", &format!("{PODS}/web/log?follow=true"), Vec::new())
            .await;
        let mut body = axum::body::Body::new(answer.into_body()).into_data_stream();
        let mut text = Vec::new();
        // It ends with an error, after the words.
        while let Some(Ok(bytes)) = body.next().await {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    });
    let (sid, request) = node.expect("StreamOpen", open).await;
    assert!(request.follow);
    stranger
        .send(
            UpKind::Stream,
            &Up::StreamData {
                sid,
                offset: 0,
                bytes: b"lie".to_vec(),
            },
        )
        .await;
    node.send(
        UpKind::Stream,
        &Up::StreamData {
            sid,
            offset: 0,
            bytes: b"one\n".to_vec(),
        },
    )
    .await;
    node.send(
        UpKind::Stream,
        &Up::StreamData {
            sid,
            offset: 9,
            bytes: b"two\n".to_vec(),
        },
    )
    .await;
    let close = |down: &Down| matches!(down, Down::StreamClose { sid: of } if *of == sid).then_some(());
    node.expect("StreamClose", close).await;
    let text = reader.await.unwrap();
    assert!(
        text.starts_with("one\nskiff: the log ends here: ") && text.contains("5 bytes"),
        "{text}"
    );
    assert_eq!(fleet.server().link().counters().get(Wrong::Stream), 1);

    // A reader that goes closes the stream; without the node there is no log.
    let gone = ask("?follow=true");
    let (sid, _) = node.expect("StreamOpen", open).await;
    node.send(
        UpKind::Stream,
        &Up::StreamData {
            sid,
            offset: 0,
            bytes: b"x".to_vec(),
        },
    )
    .await;
    node.drop_connection();
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "Unknown"))
        .await;
    let (code, _) = ask("").await.unwrap();
    assert_eq!(code, 503);
    gone.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_one_key_in_and_a_removed_node_stays_out() {
    let fleet = Fleet::start().await;
    let answer = fleet
        .api
        .call(
            "POST",
            "/skiff/v1/nodes/rover-7/enrol",
            Some(json!({ "ttlSeconds": 60 })),
        )
        .await;
    let token = JoinToken::parse(answer["token"].as_str().unwrap()).unwrap();
    let join = |request: &skiff_protocol::enrol::JoinRequest| {
        let (api, body) = (fleet.api.clone(), serde_json::to_vec(request).unwrap());
        async move { api.send("POST", "/skiff/v1/join", body).await }
    };
    let (first, _) = join_request(&token);
    let (other, _) = join_request(&token);
    assert_eq!(join(&first).await.0, 200);
    assert_eq!(join(&first).await.0, 200, "an answer can get lost");
    assert_eq!(join(&other).await.0, 403);
    let mut wrong = token.clone();
    wrong.secret = [0; 24];
    let (code, body) = join(&join_request(&wrong).0).await;
    assert_eq!(code, 403);
    assert!(String::from_utf8_lossy(&body).contains("\"kind\":\"Status\""));
    for (method, path) in [
        ("POST", "/skiff/v1/nodes/x/enrol"),
        ("GET", "/v2/"),
        ("GET", "/skiff/v1/images"),
    ] {
        let stranger = harness::Api {
            token: None,
            ..fleet.api.clone()
        };
        assert_eq!(stranger.send(method, path, Vec::new()).await.0, 401, "{path}");
    }
    assert_eq!(
        fleet
            .api
            .send("POST", "/skiff/v1/nodes/Bad_Name/enrol", Vec::new())
            .await
            .0,
        400
    );
    assert_eq!(fleet.api.call("GET", "/v2/", None).await, json!({}));
    assert_eq!(
        fleet.api.call("GET", "/skiff/v1/images", None).await,
        json!({ "images": [] })
    );
    assert_eq!(
        fleet
            .api
            .send("POST", "/skiff/v1/images", b"rubbish".to_vec())
            .await
            .0,
        400
    );
    assert_eq!(
        std::fs::read_dir(fleet.dir.path().join("uploads"))
            .unwrap()
            .count(),
        0
    );

    let mut node = fleet.node("rover-8").await;
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    fleet
        .api
        .until("/api/v1/nodes/rover-8", |it| ready_is(it, "True"))
        .await;
    assert_eq!(
        fleet.api.call("DELETE", "/skiff/v1/nodes/rover-8", None).await["removed"],
        true
    );
    fleet
        .api
        .until("/api/v1/nodes/rover-8", |it| ready_is(it, "Unknown"))
        .await;
    node.drop_connection();
    let refused = tokio::spawn(async move { node.connect(&broker).await }).await;
    assert!(refused.is_err(), "the broker must not let it in again");
}

/// From the API's answer to the desired state at the node: printed, and far below what a person notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_the_node_at_once() {
    let fleet = Fleet::start().await;
    let mut node = fleet.node("rover-7").await;
    let broker = node.joined.broker_url.clone();
    node.connect(&broker).await;
    node.hello().await;
    fleet
        .api
        .until("/api/v1/nodes/rover-7", |it| ready_is(it, "True"))
        .await;
    let mut took = Vec::new();
    for number in 0..20 {
        let mut pod = pod(&format!("p{number}"));
        pod["spec"]["nodeName"] = "rover-7".into();
        fleet.api.call("POST", PODS, Some(pod)).await;
        let answered = Instant::now();
        let desired = node.desired().await;
        took.push(answered.elapsed());
        node.apply(&desired).await;
    }
    took.sort();
    println!(
        "answer of the API → desired state at the node: median {:?}, worst {:?}",
        took[10], took[19]
    );
    assert!(took[10] < Duration::from_millis(250), "{took:?}");
}
