//! Tables for statuses.

use std::net::Ipv4Addr;

use serde_json::json;
use skiff_protocol::uid::Uid;

use super::*;

const HOST: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)));
const NOW: &str = "2026-06-01T00:00:00Z";
const AT: UnixSeconds = 1_780_000_000;
const AT_TEXT: &str = "2026-05-28T20:26:40Z";

fn said(phase: Phase, containers: Vec<ContainerStatus>) -> PodStatus {
    PodStatus {
        uid: Uid([0; 16]),
        phase,
        reason: String::new(),
        message: String::new(),
        pod_ip: "10.88.0.5".into(),
        start_time: Some(AT),
        ready_since: Some(AT),
        containers,
        gone: false,
        ..Default::default()
    }
}

fn container(name: &str, state: ContainerState, ready: bool) -> ContainerStatus {
    ContainerStatus {
        name: name.into(),
        state,
        last: None,
        ready,
        restart_count: 0,
        image_id: String::new(),
        container_id: String::new(),
        ..Default::default()
    }
}

fn running(name: &str) -> ContainerStatus {
    container(name, ContainerState::Running { started_at: AT }, true)
}

fn ended(exit_code: i32, signal: i32) -> Terminated {
    Terminated {
        exit_code,
        signal,
        reason: "Error".into(),
        message: String::new(),
        started_at: AT,
        finished_at: AT,
        container_id: "abc".into(),
    }
}

fn pod() -> Value {
    json!({
        "spec": { "containers": [{ "name": "app", "image": "x:1" }, { "name": "side", "image": "y:1" }] },
        "status": { "phase": "Pending", "qosClass": "Burstable", "somebodyElses": 1 },
    })
}

fn condition<'a>(pod: &'a Value, kind: &str) -> (&'a str, &'a str, &'a str) {
    let list = pod["status"]["conditions"].as_array().unwrap();
    let found = list.iter().find(|it| it["type"] == kind).unwrap();
    (
        text(found, "/status"),
        text(found, "/reason"),
        text(found, "/message"),
    )
}

#[test]
fn phases_become_conditions() {
    let waiting = |name| {
        container(
            name,
            ContainerState::Waiting {
                reason: "ImagePullBackOff".into(),
                message: String::new(),
            },
            false,
        )
    };
    let over = |name, code| container(name, ContainerState::Terminated(ended(code, 0)), false);
    let check = |said: PodStatus, ready: (&str, &str, &str), initialized: (&str, &str, &str)| {
        let mut pod = pod();
        apply(&mut pod, &said, HOST, NOW);
        assert_eq!(pod["status"]["phase"], said.phase.as_str());
        assert_eq!(condition(&pod, "Ready"), ready);
        assert_eq!(condition(&pod, "ContainersReady"), ready);
        assert_eq!(condition(&pod, "Initialized"), initialized);
        assert_eq!(condition(&pod, "PodScheduled"), ("True", "", ""));
        assert_eq!(
            (&pod["status"]["qosClass"], &pod["status"]["somebodyElses"]),
            (&json!("Burstable"), &json!(1))
        );
    };
    let yes = ("True", "", "");
    check(
        said(Phase::Running, vec![running("app"), running("side")]),
        yes,
        yes,
    );
    let unready = (
        "False",
        "ContainersNotReady",
        "containers with unready status: [side]",
    );
    check(
        said(Phase::Running, vec![running("app"), waiting("side")]),
        unready,
        yes,
    );
    // A container that the node does not speak of is not ready.
    check(said(Phase::Running, vec![running("app")]), unready, yes);
    let both = (
        "False",
        "ContainersNotReady",
        "containers with unready status: [app side]",
    );
    check(said(Phase::Pending, vec![]), both, yes);
    let completed = ("False", "PodCompleted", "");
    check(
        said(Phase::Succeeded, vec![over("app", 0), over("side", 0)]),
        completed,
        ("True", "PodCompleted", ""),
    );
    check(
        said(Phase::Failed, vec![over("app", 1), over("side", 0)]),
        ("False", "PodFailed", ""),
        yes,
    );
}

#[test]
fn a_status_in_kubernetes_shape() {
    let mut app = running("app");
    app.restart_count = 2;
    app.image_id = "sha256:00".into();
    app.container_id = "abc".into();
    app.last = Some(ended(137, 9));
    let mut pod = pod();
    // A container that the spec does not have is nobody's.
    apply(
        &mut pod,
        &said(Phase::Running, vec![app, running("stranger")]),
        HOST,
        NOW,
    );
    let status = &pod["status"];
    assert_eq!(status["containerStatuses"].as_array().unwrap().len(), 1);
    assert_eq!(
        status["containerStatuses"][0],
        json!({
            "name": "app", "image": "x:1", "imageID": "sha256:00", "containerID": "skiff://abc",
            "ready": true, "started": true, "restartCount": 2,
            "state": { "running": { "startedAt": AT_TEXT } },
            "lastState": { "terminated": {
                "exitCode": 137, "signal": 9, "reason": "Error", "startedAt": AT_TEXT, "finishedAt": AT_TEXT,
                "containerID": "skiff://abc",
            } },
        })
    );
    assert_eq!(
        (&status["podIP"], &status["podIPs"]),
        (&json!("10.88.0.5"), &json!([{ "ip": "10.88.0.5" }]))
    );
    assert_eq!(
        (&status["hostIP"], &status["startTime"]),
        (&json!("10.1.2.3"), &json!(AT_TEXT))
    );
}

#[test]
fn the_same_word_again_changes_nothing() {
    let mut pod = pod();
    let word = said(
        Phase::Running,
        vec![
            running("app"),
            container("side", ContainerState::Running { started_at: 0 }, false),
        ],
    );
    apply(&mut pod, &word, HOST, NOW);
    let first = pod.clone();
    apply(&mut pod, &word, HOST, "2026-07-01T00:00:00Z");
    assert_eq!(pod, first, "not even the times of a node without a clock");
    assert_eq!(
        first["status"]["containerStatuses"][1]["state"]["running"]["startedAt"],
        NOW
    );
}

#[test]
fn a_hostile_status_is_cut_to_size() {
    let mut word = said(Phase::Failed, vec![]);
    word.message = "ä".repeat(limits::TEXT);
    word.pod_ip = "<script>".into();
    word.start_time = Some(UnixSeconds::MAX);
    let mut pod = pod();
    apply(&mut pod, &word, None, NOW);
    assert!(text(&pod, "/status/message").len() <= limits::TEXT);
    assert_eq!(
        (pod["status"].get("podIP"), &pod["status"]["startTime"]),
        (None, &json!(NOW))
    );
}

#[test]
fn out_of_contact_nobody_relies_on_a_pod_until_its_node_speaks() {
    let lost = ("False", "NodeNotReady", "Node is not ready");
    let yes = ("True", "", "");
    let word = said(Phase::Running, vec![running("app"), running("side")]);
    let mut pod = pod();
    out_of_contact(&mut pod, NOW);
    assert!(
        pod["status"].get("conditions").is_none(),
        "nobody ever relied on it"
    );
    apply(&mut pod, &word, HOST, NOW);
    out_of_contact(&mut pod, "2026-07-01T00:00:00Z");
    assert_eq!(condition(&pod, "Ready"), lost);
    assert_eq!(condition(&pod, "ContainersReady"), yes);
    assert_eq!(pod["status"]["phase"], "Running");
    let once = pod.clone();
    out_of_contact(&mut pod, "2026-08-01T00:00:00Z");
    assert_eq!(pod, once);
    apply(&mut pod, &word, HOST, NOW);
    assert_eq!(condition(&pod, "Ready"), yes);
    // What is not ready anyway keeps its own reason.
    let mut unready = word;
    unready.containers[0].ready = false;
    apply(&mut pod, &unready, HOST, NOW);
    let before = pod.clone();
    out_of_contact(&mut pod, NOW);
    assert_eq!(pod, before);
}

#[test]
fn what_people_wrote_into_a_status_stops_nobody() {
    let word = said(Phase::Running, vec![running("app")]);
    for odd in [
        json!("x"),
        json!([1]),
        json!({ "conditions": "x" }),
        json!({ "conditions": ["x", { "type": 1 }], "containerStatuses": 7, "startTime": {} }),
    ] {
        let mut pod = pod();
        pod["status"] = odd;
        out_of_contact(&mut pod, NOW);
        apply(&mut pod, &word, HOST, NOW);
        leave(&mut pod, NOW);
        assert!(has_left(&pod));
        assert_eq!(pod["status"]["phase"], "Running");
    }
}
