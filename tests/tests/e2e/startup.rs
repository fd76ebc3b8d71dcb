//! How the containers of a Pod begin and end together: init containers, sidecars, probes, hooks, deadlines.
//!
//! Always holds: what is in order is told from the containers' own words on a volume that they share, not from times.

use serde_json::{Value, json};

use crate::harness::pods::IDLE;
use crate::harness::{Cluster, Setup, pod, shell, wait};

#[test]
fn containers_begin_and_end_in_the_order_of_the_pod() {
    let cluster = Cluster::start(&Setup {
        images: &["busybox"],
        agent: "[policy]\nallow = [\"host-path\"]\n",
        ..Setup::default()
    });
    init_containers_come_first(&cluster);
    a_failed_init_container_ends_a_pod_that_never_restarts(&cluster);
    a_failed_init_container_is_tried_again(&cluster);
    a_sidecar_runs_as_long_as_the_pod(&cluster);
    a_sidecar_does_not_keep_a_finished_pod(&cluster);
    hooks_run_at_both_ends(&cluster);
    the_stop_signal_is_the_one_asked_for(&cluster);
    a_deadline_ends_the_pod(&cluster);
    the_container_says_why_it_ended(&cluster);
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

#[test]
fn probes_decide_over_ready_and_restart() {
    let cluster = Cluster::busybox();
    readiness_follows_its_probe(&cluster);
    liveness_restarts(&cluster);
    startup_gates_the_others(&cluster);
    an_exec_probe_runs_as_the_container_and_is_ended(&cluster);
    readiness_outlives_the_agent(cluster);
}

/// A container that shares the volume `v` at `/v`.
fn on_volume(name: &str, script: &str) -> Value {
    let mut container = shell(script);
    container["name"] = name.into();
    container["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    container
}

/// A directory of the machine, so that what was said is there when the Pod is gone.
fn volume(cluster: &Cluster, pod: &str) -> Value {
    json!([{ "name": "v", "hostPath": { "path": cluster.dir().join("said").join(pod), "type": "DirectoryOrCreate" } }])
}

/// What a file of that volume says once it holds `last`.
fn said(cluster: &Cluster, pod: &str, file: &str, last: &str) -> String {
    let path = cluster.dir().join("said").join(pod).join(file);
    wait(&format!("{last:?} in {file}"), 30, || {
        let text = std::fs::read_to_string(&path).map_err(|it| it.to_string())?;
        if text.contains(last) { Ok(text) } else { Err(text) }
    })
}

fn statuses<'a>(pod: &'a Value, list: &str) -> &'a Value {
    &pod["status"][list]
}

fn init_containers_come_first(cluster: &Cluster) {
    let main = on_volume("main", &format!("cat /v/said; echo main; {IDLE}"));
    let more = json!({
        "volumes": volume(cluster, "ordered"),
        "initContainers": [
            on_volume("first", "sleep 1; echo first >> /v/said"),
            on_volume("second", "echo second >> /v/said"),
        ],
    });
    cluster.apply(&pod("ordered", &main, more));
    let table = wait("an init container in the table", 20, || {
        let table = cluster.kubectl(&["get", "pod", "ordered"]).ok();
        if table.contains("Init:") || table.contains("Running") {
            Ok(table)
        } else {
            Err(table)
        }
    });
    assert!(table.contains("0/1") || table.contains("1/1"), "{table}");
    let running = cluster.running("ordered");
    let ended = statuses(&running, "initContainerStatuses");
    for (at, name) in ["first", "second"].iter().enumerate() {
        assert_eq!(ended[at]["name"], *name, "{running}");
        assert_eq!(
            ended[at]["state"]["terminated"]["reason"], "Completed",
            "{running}"
        );
        assert_eq!(ended[at]["ready"], true, "{running}");
    }
    let initialized = condition(&running, "Initialized");
    assert_eq!(initialized["status"], "True", "{running}");
    assert_eq!(cluster.logs_say(&["ordered"], "main"), "first\nsecond\nmain\n");
    cluster.delete("ordered");
}

fn condition(pod: &Value, kind: &str) -> Value {
    let all = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    all.into_iter().find(|it| it["type"] == kind).unwrap_or_default()
}

fn a_failed_init_container_ends_a_pod_that_never_restarts(cluster: &Cluster) {
    let more = json!({
        "restartPolicy": "Never", "volumes": volume(cluster, "init-fails"),
        "initContainers": [on_volume("bad", "exit 4")],
    });
    cluster.apply(&pod("init-fails", &on_volume("main", "echo never"), more));
    let failed = cluster.phase("init-fails", "Failed");
    let bad = &statuses(&failed, "initContainerStatuses")[0]["state"]["terminated"];
    assert_eq!(bad["exitCode"], 4, "{failed}");
    let main = &statuses(&failed, "containerStatuses")[0];
    assert!(main["state"]["running"].is_null(), "{failed}");
    cluster.delete("init-fails");
}

fn a_failed_init_container_is_tried_again(cluster: &Cluster) {
    let more = json!({
        "volumes": volume(cluster, "init-retries"),
        "initContainers": [on_volume("twice", "mkdir /v/seen && exit 1; exit 0")],
    });
    cluster.apply(&pod("init-retries", &on_volume("main", IDLE), more));
    let running = cluster.running("init-retries");
    let init = &statuses(&running, "initContainerStatuses")[0];
    assert_eq!(init["restartCount"], 1, "{running}");
    cluster.delete("init-retries");
}

fn a_sidecar_runs_as_long_as_the_pod(cluster: &Cluster) {
    let trap = "trap 'echo sidecar >> /v/ends; exit 0' TERM";
    let mut sidecar = on_volume(
        "sidecar",
        &format!("{trap}; touch /v/up; while :; do sleep 0.1; done"),
    );
    sidecar["restartPolicy"] = "Always".into();
    sidecar["startupProbe"] = json!({ "exec": { "command": ["test", "-e", "/v/up"] }, "periodSeconds": 1 });
    let main = on_volume(
        "main",
        "test -e /v/up && echo after; trap 'sleep 1; echo main >> /v/ends; exit 0' TERM; while :; do sleep 0.1; done",
    );
    let more = json!({
        "volumes": volume(cluster, "with-sidecar"), "initContainers": [sidecar], "terminationGracePeriodSeconds": 20,
    });
    cluster.apply(&pod("with-sidecar", &main, more));
    let running = cluster.running("with-sidecar");
    assert_eq!(
        cluster.logs_say(&["with-sidecar", "-c", "main"], "after"),
        "after\n"
    );
    let sidecar = &statuses(&running, "initContainerStatuses")[0];
    assert!(!sidecar["state"]["running"].is_null(), "{running}");
    assert_eq!(sidecar["started"], true, "{running}");
    let table = cluster.kubectl(&["get", "pod", "with-sidecar"]).ok();
    assert!(table.contains("2/2"), "{table}");
    // Of the two, the sidecar ends last: its word comes after the other's.
    cluster.kubectl(&["delete", "pod", "with-sidecar"]).ok();
    assert_eq!(
        said(cluster, "with-sidecar", "ends", "sidecar"),
        "main\nsidecar\n"
    );
}

fn a_sidecar_does_not_keep_a_finished_pod(cluster: &Cluster) {
    let mut sidecar = on_volume("sidecar", "trap 'exit 7' TERM; while :; do sleep 0.1; done");
    sidecar["restartPolicy"] = "Always".into();
    let more = json!({ "restartPolicy": "Never", "volumes": volume(cluster, "job-like"), "initContainers": [sidecar] });
    cluster.apply(&pod("job-like", &on_volume("main", "exit 0"), more));
    cluster.phase("job-like", "Succeeded");
    cluster.delete("job-like");
}

fn hooks_run_at_both_ends(cluster: &Cluster) {
    let mut main = on_volume(
        "main",
        "trap 'echo term >> /v/said; exit 0' TERM; while :; do sleep 0.1; done",
    );
    main["lifecycle"] = json!({
        "postStart": { "exec": { "command": ["sh", "-c", "echo post >> /v/said"] } },
        "preStop": { "exec": { "command": ["sh", "-c", "echo pre >> /v/said"] } },
    });
    cluster.run(&pod(
        "hooked",
        &main,
        json!({ "volumes": volume(cluster, "hooked") }),
    ));
    cluster.kubectl(&["delete", "pod", "hooked"]).ok();
    assert_eq!(said(cluster, "hooked", "said", "term"), "post\npre\nterm\n");
    // One that fails is told, and its container begins again.
    let mut fails = shell(IDLE);
    fails["lifecycle"] = json!({ "postStart": { "exec": { "command": ["false"] } } });
    cluster.apply(&pod("bad-hook", &fails, json!({})));
    wait("the hook's failure", 30, || {
        let text = cluster.kubectl(&["describe", "pod", "bad-hook"]).ok();
        if text.contains("FailedPostStartHook") {
            Ok(())
        } else {
            Err(text)
        }
    });
    cluster.delete("bad-hook");
}

fn the_stop_signal_is_the_one_asked_for(cluster: &Cluster) {
    let script = "trap 'echo usr1 > /v/by; exit 0' USR1; trap 'echo term > /v/by; exit 0' TERM; while :; do sleep 0.1; done";
    let mut main = on_volume("main", script);
    main["lifecycle"] = json!({ "stopSignal": "SIGUSR1" });
    let more = json!({ "volumes": volume(cluster, "signals"), "os": { "name": "linux" } });
    cluster.run(&pod("signals", &main, more));
    cluster.kubectl(&["delete", "pod", "signals"]).ok();
    assert_eq!(said(cluster, "signals", "by", "\n"), "usr1\n");
}

fn a_deadline_ends_the_pod(cluster: &Cluster) {
    cluster.apply(&pod("late", &shell(IDLE), json!({ "activeDeadlineSeconds": 3 })));
    let failed = cluster.phase("late", "Failed");
    assert_eq!(failed["status"]["reason"], "DeadlineExceeded", "{failed}");
    cluster.delete("late");
}

fn the_container_says_why_it_ended(cluster: &Cluster) {
    let mut file = shell("echo no disk > /dev/termination-log; exit 1");
    file["terminationMessagePath"] = "/dev/termination-log".into();
    cluster.apply(&pod("says", &file, json!({ "restartPolicy": "Never" })));
    let failed = cluster.phase("says", "Failed");
    let end = &statuses(&failed, "containerStatuses")[0]["state"]["terminated"];
    assert_eq!(end["message"], "no disk\n", "{failed}");
    let mut log = shell("echo the last line; exit 1");
    log["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    cluster.apply(&pod("logs-it", &log, json!({ "restartPolicy": "Never" })));
    let failed = cluster.phase("logs-it", "Failed");
    let end = &statuses(&failed, "containerStatuses")[0]["state"]["terminated"];
    assert_eq!(end["message"], "the last line\n", "{failed}");
    for name in ["says", "logs-it"] {
        cluster.delete(name);
    }
}

fn is_ready(cluster: &Cluster, name: &str, ready: bool) -> Value {
    let what = if ready { "to be ready" } else { "to be unready" };
    cluster.until(name, what, 30, |it| {
        condition(it, "Ready")["status"] == if ready { "True" } else { "False" }
            && it["status"]["containerStatuses"][0]["ready"] == ready
    })
}

fn readiness_follows_its_probe(cluster: &Cluster) {
    let script = "mkdir /www; cd /www; (sleep 2; echo ok > health) & httpd -f -p 8080 -h /www";
    let mut main = shell(script);
    main["ports"] = json!([{ "name": "web", "containerPort": 8080 }]);
    main["readinessProbe"] = json!({
        "httpGet": { "path": "/health", "port": "web" }, "periodSeconds": 1, "failureThreshold": 1,
    });
    cluster.run(&pod("web", &main, json!({})));
    is_ready(cluster, "web", false);
    let ready = is_ready(cluster, "web", true);
    assert_eq!(
        ready["status"]["containerStatuses"][0]["restartCount"], 0,
        "{ready}"
    );
    let described = cluster.kubectl(&["describe", "pod", "web"]).ok();
    assert!(
        described.contains("Readiness probe failed: HTTP probe failed with statuscode: 404")
            || described.contains("connection refused"),
        "{described}"
    );
    cluster.delete("web");
}

fn liveness_restarts(cluster: &Cluster) {
    let mut main = shell(&format!("touch /up; (sleep 2; rm /up) & {IDLE}"));
    main["livenessProbe"] = json!({
        "exec": { "command": ["cat", "/up"] }, "periodSeconds": 1, "failureThreshold": 2,
        "terminationGracePeriodSeconds": 1,
    });
    cluster.apply(&pod("dies", &main, json!({})));
    let again = cluster.until("dies", "to be restarted", 40, |it| {
        it["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
    });
    assert!(!again.is_null());
    let described = cluster.kubectl(&["describe", "pod", "dies"]).ok();
    for part in [
        "Unhealthy",
        "Liveness probe failed",
        "failed liveness probe, will be restarted",
    ] {
        assert!(described.contains(part), "no {part:?} in {described}");
    }
    cluster.delete("dies");
    // One that listens is alive.
    let mut listens = shell("httpd -f -p 9000");
    listens["livenessProbe"] =
        json!({ "tcpSocket": { "port": 9000 }, "periodSeconds": 1, "initialDelaySeconds": 1 });
    cluster.run(&pod("listens", &listens, json!({})));
    std::thread::sleep(std::time::Duration::from_secs(4));
    let pod = cluster.get("listens").unwrap();
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
    cluster.delete("listens");
}

fn startup_gates_the_others(cluster: &Cluster) {
    let mut main = shell(&format!("(sleep 3; touch /begun) & {IDLE}"));
    main["startupProbe"] = json!({
        "exec": { "command": ["test", "-e", "/begun"] }, "periodSeconds": 1, "failureThreshold": 30,
    });
    // Were it asked before the start-up is over, it would end the container at once.
    main["livenessProbe"] = json!({
        "exec": { "command": ["test", "-e", "/begun"] }, "periodSeconds": 1, "failureThreshold": 1,
    });
    cluster.run(&pod("slow", &main, json!({})));
    let ready = is_ready(cluster, "slow", true);
    let status = &ready["status"]["containerStatuses"][0];
    assert_eq!(
        (&status["started"], &status["restartCount"]),
        (&json!(true), &json!(0)),
        "{ready}"
    );
    cluster.delete("slow");
}

fn an_exec_probe_runs_as_the_container_and_is_ended(cluster: &Cluster) {
    let mut main = shell(IDLE);
    main["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    main["securityContext"] = json!({ "runAsUser": 1234, "runAsGroup": 4321 });
    main["readinessProbe"] = json!({
        "exec": { "command": ["sh", "-c", "id > /v/who; grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status > /v/how"] },
        "periodSeconds": 1,
    });
    let running = cluster.run(&pod(
        "who",
        &main,
        json!({ "volumes": [{ "name": "v", "emptyDir": {} }] }),
    ));
    is_ready(cluster, "who", true);
    let uid = running["metadata"]["uid"].as_str().unwrap();
    let volume = cluster.node.state.join(format!("pods/{uid}/volumes/v"));
    let who = std::fs::read_to_string(volume.join("who")).unwrap();
    assert!(who.starts_with("uid=1234 gid=4321"), "{who}");
    let init = cluster.node.init_of(uid);
    let status = std::fs::read_to_string(format!("/proc/{}/status", init.pid)).unwrap();
    let lines = |name: &str| status.lines().find(|it| it.starts_with(name)).unwrap().to_owned();
    let how = std::fs::read_to_string(volume.join("how")).unwrap();
    for name in ["Seccomp:", "NoNewPrivs:", "CapEff:"] {
        assert!(
            how.contains(&lines(name)),
            "{name}: {how} is not that of\n{status}"
        );
    }
    cluster.delete("who");
    // One that never ends, and forks, is wholly gone after its time.
    let mut bomb = shell(IDLE);
    bomb["livenessProbe"] = json!({
        "exec": { "command": ["sh", "-c", "for i in 1 2 3; do setsid sleep 4711 & done; sleep 4711"] },
        "periodSeconds": 2, "timeoutSeconds": 1, "failureThreshold": 100,
    });
    let running = cluster.run(&pod("bomb", &bomb, json!({})));
    wait("the probe's failure", 30, || {
        let text = cluster.kubectl(&["describe", "pod", "bomb"]).ok();
        if text.contains("timed out") {
            Ok(())
        } else {
            Err(text)
        }
    });
    let uid = running["metadata"]["uid"].as_str().unwrap().to_owned();
    wait("a moment between two tries without a process of one", 10, || {
        let left = crate::harness::kernel::commands(&cluster.node.cgroup, &uid);
        let left: Vec<_> = left.into_iter().filter(|it| it.contains("4711")).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("\n"))
        }
    });
    cluster.delete("bomb");
}

/// An agent that was killed finds a ready Pod ready: what its probe says from then on cannot make it so, and is too little
/// to make it otherwise. The server shows it not ready only while the node is out of contact.
fn readiness_outlives_the_agent(mut cluster: Cluster) {
    let mut main = shell(&format!("touch /up; {IDLE}"));
    let probe =
        json!({ "exec": { "command": ["cat", "/up"] }, "periodSeconds": 1, "failureThreshold": 1000 });
    main["readinessProbe"] = probe;
    let running = cluster.run(&pod("steady", &main, json!({})));
    is_ready(&cluster, "steady", true);
    let init = cluster.node.init_of(running["metadata"]["uid"].as_str().unwrap());
    std::fs::remove_file(format!("/proc/{}/root/up", init.pid)).unwrap();
    cluster.node.kill();
    cluster.node.start();
    cluster.is_ready();
    is_ready(&cluster, "steady", true);
    std::thread::sleep(std::time::Duration::from_secs(3));
    let pod = is_ready(&cluster, "steady", true);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
    cluster.delete("steady");
    cluster.is_empty();
}
