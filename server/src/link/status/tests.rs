//! Tables for statuses.

use std::net::Ipv4Addr;

use serde_json::json;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::status::InForce;

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
        initialized_since: Some(AT),
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
        started: ready,
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

#[test]
fn init_containers_and_sidecars() {
    let spec = || {
        let mut pod = pod();
        pod["spec"]["initContainers"] = json!([{ "name": "init", "image": "i:1" }, { "name": "proxy", "image": "p:1", "restartPolicy": "Always" }]);
        pod
    };
    let waiting = |name| {
        let reason = "PodInitializing".into();
        let message = String::new();
        container(name, ContainerState::Waiting { reason, message }, false)
    };
    let mut started = running("proxy");
    started.ready = false;
    let over = |code| container("init", ContainerState::Terminated(ended(code, 0)), code == 0);
    let check = |init: Vec<ContainerStatus>, since: Option<UnixSeconds>, initialized, ready| {
        let ok = since.is_some();
        let phase = if ok { Phase::Running } else { Phase::Pending };
        let make = |name| if ok { running(name) } else { waiting(name) };
        let mut said = said(phase, vec![make("app"), make("side")]);
        (said.init_containers, said.initialized_since) = (init.clone(), since);
        let mut pod = spec();
        apply(&mut pod, &said, HOST, NOW);
        assert_eq!(condition(&pod, "Initialized"), initialized);
        assert_eq!(condition(&pod, "ContainersReady"), ready);
        assert_eq!(condition(&pod, "PodReadyToStartContainers"), ("True", "", ""));
        assert_eq!(
            pod["status"]["initContainerStatuses"].as_array().unwrap().len(),
            init.len()
        );
    };
    let unready = |message| ("False", "ContainersNotReady", message);
    let not = |message| ("False", "ContainersNotInitialized", message);
    check(
        vec![
            container("init", ContainerState::Running { started_at: AT }, false),
            waiting("proxy"),
        ],
        None,
        not("containers with incomplete status: [init proxy]"),
        unready("containers with unready status: [proxy app side]"),
    );
    check(
        vec![over(1)],
        None,
        not("containers with unknown status: [proxy], containers with incomplete status: [init]"),
        unready("containers with unready status: [proxy app side]"),
    );
    check(
        vec![over(0), started],
        Some(AT),
        ("True", "", ""),
        unready("containers with unready status: [proxy]"),
    );
    check(
        vec![over(0), running("proxy")],
        Some(AT),
        ("True", "", ""),
        ("True", "", ""),
    );
}

#[test]
fn resources_in_force_and_what_is_not() {
    let mut app = running("app");
    app.resources = Some(InForce {
        cpu_limit: Some(1000),
        memory_limit: Some(96 << 20),
        cpu_request: Some(250),
        memory_request: None,
    });
    let mut pod = pod();
    pod["spec"]["containers"][0]["resources"] = json!({ "limits": { "cpu": "1.0", "memory": "64Mi" } });
    let check = |pod: &mut Value, resize: Option<(&str, &str)>, expected: &[(&str, &str)]| {
        let mut said = said(Phase::Running, vec![app.clone(), running("side")]);
        said.resize = resize.map(|(reason, message)| (reason.into(), message.into()));
        apply(pod, &said, HOST, NOW);
        let list = pod["status"]["conditions"].as_array().unwrap();
        let resizes = list
            .iter()
            .filter(|it| text(it, "/type").starts_with("PodResize"));
        let resizes: Vec<_> = resizes
            .map(|it| (text(it, "/type"), text(it, "/reason")))
            .collect();
        assert_eq!(resizes, expected);
    };
    check(
        &mut pod,
        Some(("Deferred", "later")),
        &[("PodResizePending", "Deferred")],
    );
    check(
        &mut pod,
        Some(("Infeasible", "never")),
        &[("PodResizePending", "Infeasible")],
    );
    check(
        &mut pod,
        Some(("Error", "no")),
        &[("PodResizeInProgress", "Error")],
    );
    check(&mut pod, None, &[]);
    let status = &pod["status"]["containerStatuses"];
    assert_eq!(
        (&status[0]["resources"], &status[0]["allocatedResources"]),
        (
            &json!({ "limits": { "cpu": "1.0", "memory": "96Mi" }, "requests": { "cpu": "250m" } }),
            &json!({ "cpu": "250m" }),
        )
    );
    assert_eq!(status[1].get("resources"), None);
}

#[test]
fn with_the_nodes_network_the_address_is_the_nodes() {
    let mut pod = pod();
    pod["spec"]["hostNetwork"] = true.into();
    let mut said = said(Phase::Running, vec![running("app")]);
    said.pod_ip = String::new();
    apply(&mut pod, &said, HOST, NOW);
    assert_eq!(pod["status"]["podIP"], "10.1.2.3");
    said.containers.clear();
    apply(&mut pod, &said, HOST, NOW);
    assert_eq!(pod["status"].get("podIP"), None, "not before something runs");
}
