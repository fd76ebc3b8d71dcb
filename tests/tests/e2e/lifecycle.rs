//! How containers end and begin again: exit codes, restart policies, back-off, memory, grace.
//!
//! Always holds: what the API shows of an end is what the kernel did, with Kubernetes' words for it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::pods::IDLE;
use crate::harness::{Cluster, pod, shell, wait};

fn policy(policy: &str) -> Value {
    json!({ "restartPolicy": policy })
}

fn first(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[test]
fn containers_end_and_begin_as_kubernetes_says() {
    let cluster = Cluster::busybox();
    restart_policies_are_kept(&cluster);
    a_loop_backs_off_and_shows_its_last_log(&cluster);
    a_former_log_is_kept(&cluster);
    memory_is_limited(&cluster);
    grace_is_given_and_ends(&cluster);
    deletion_by_force_is_at_once(&cluster);
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

fn restart_policies_are_kept(cluster: &Cluster) {
    for (name, script, when, phase, code) in [
        ("never-0", "exit 0", "Never", "Succeeded", 0),
        ("never-3", "exit 3", "Never", "Failed", 3),
        ("failure-0", "exit 0", "OnFailure", "Succeeded", 0),
    ] {
        cluster.apply(&pod(name, &shell(script), policy(when)));
        let ended = cluster.phase(name, phase);
        let status = first(&ended);
        assert_eq!(
            status["state"]["terminated"]["exitCode"], code,
            "{name}: {status}"
        );
        let reason = if code == 0 { "Completed" } else { "Error" };
        assert_eq!(
            status["state"]["terminated"]["reason"], reason,
            "{name}: {status}"
        );
        assert_eq!(status["restartCount"], 0, "{name}: {status}");
    }
    // The last line counts, whether it was ended or not.
    cluster.apply(&pod("unended", &shell("echo one; printf two"), policy("Never")));
    cluster.phase("unended", "Succeeded");
    assert_eq!(cluster.logs(&["unended"]), "one\ntwo");
    for (name, script, when) in [
        ("failure-3", "echo run; exit 3", "OnFailure"),
        ("always-0", "echo run; exit 0", "Always"),
    ] {
        cluster.apply(&pod(name, &shell(script), policy(when)));
        let restarted = cluster.until(name, "to be restarted", 40, |it| {
            first(it)["restartCount"].as_u64().is_some_and(|it| it >= 1)
        });
        let last = &first(&restarted)["lastState"]["terminated"];
        assert_eq!(
            last["exitCode"],
            i32::from(name == "failure-3") * 3,
            "{restarted}"
        );
    }
    // One that ended by a signal shows it.
    cluster.run(&pod("signalled", &shell("sleep 1000"), policy("Never")));
    let uid = uid(cluster, "signalled");
    let init = cluster.node.init_of(&uid);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(init.pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let ended = cluster.phase("signalled", "Failed");
    assert_eq!(first(&ended)["state"]["terminated"]["exitCode"], 137, "{ended}");
}

fn uid(cluster: &Cluster, pod: &str) -> String {
    cluster.get(pod).unwrap()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn a_loop_backs_off_and_shows_its_last_log(cluster: &Cluster) {
    let script = "echo \"boot $(cat /proc/sys/kernel/random/uuid)\"; exit 1";
    cluster.apply(&pod("loops", &shell(script), policy("Always")));
    let waiting = cluster.until("loops", "to back off", 60, |it| {
        first(it)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && first(it)["restartCount"].as_u64().is_some_and(|it| it >= 1)
    });
    let message = first(&waiting)["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("back-off"), "{waiting}");
    assert_eq!(waiting["status"]["phase"], "Running", "{waiting}");
    let table = cluster.kubectl(&["get", "pod", "loops"]).ok();
    assert!(table.contains("CrashLoopBackOff"), "{table}");
    // While it waits, both are the log of the run that ended last, as a kubelet has it.
    let (now, before) = wait("both logs of one moment", 30, || {
        let count = || cluster.get("loops").map(|it| first(&it)["restartCount"].clone());
        let begun = count()?;
        let (now, before) = (cluster.logs(&["loops"]), cluster.logs(&["loops", "--previous"]));
        if count()? == begun {
            Ok((now, before))
        } else {
            Err("restarted in between".to_owned())
        }
    });
    assert!(now.starts_with("boot ") && now.lines().count() == 1, "{now:?}");
    assert_eq!(now, before);
    let described = cluster.kubectl(&["describe", "pod", "loops"]).ok();
    assert!(described.contains("BackOff"), "{described}");
}

/// One that failed once and runs has two logs.
fn a_former_log_is_kept(cluster: &Cluster) {
    let script = format!("if mkdir /v/seen 2>/dev/null; then echo first; exit 1; fi; echo second; {IDLE}");
    let mut container = shell(&script);
    container["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    let more = json!({ "volumes": [{ "name": "v", "emptyDir": {} }] });
    cluster.apply(&pod("once", &container, more));
    let running = cluster.until("once", "to run again", 40, |it| {
        first(it)["restartCount"] == 1 && !first(it)["state"]["running"].is_null()
    });
    let last = &first(&running)["lastState"]["terminated"];
    assert_eq!(
        (&last["exitCode"], &last["reason"]),
        (&json!(1), &json!("Error")),
        "{running}"
    );
    assert_eq!(cluster.logs_say(&["once"], "second"), "second\n");
    assert_eq!(cluster.logs(&["once", "--previous"]), "first\n");
}

fn memory_is_limited(cluster: &Cluster) {
    let mut container = shell("x=a; while :; do x=$x$x; done");
    container["resources"] = json!({ "limits": { "memory": "24Mi" } });
    cluster.apply(&pod("hungry", &container, policy("Never")));
    let ended = cluster.phase("hungry", "Failed");
    let end = &first(&ended)["state"]["terminated"];
    assert_eq!(
        (&end["reason"], &end["exitCode"]),
        (&json!("OOMKilled"), &json!(137)),
        "{ended}"
    );
}

fn deletion(cluster: &Cluster, name: &str, words: &[&str]) -> Duration {
    let begun = Instant::now();
    let all: Vec<&str> = ["delete", "pod", name]
        .into_iter()
        .chain(words.iter().copied())
        .collect();
    cluster.kubectl(&all).ok();
    begun.elapsed()
}

fn grace_is_given_and_ends(cluster: &Cluster) {
    let willing = "trap 'echo bye; sleep 1; exit 0' TERM; echo up; while :; do sleep 3600 & wait $!; done";
    cluster.run(&pod("willing", &shell(willing), Value::Null));
    cluster.logs_say(&["willing"], "up");
    let follower = cluster.kubectl_beside("willing", &["logs", "-f", "willing"]);
    follower.says("up", 10);
    let took = deletion(cluster, "willing", &["--grace-period=20"]);
    assert!(
        took > Duration::from_secs(1) && took < Duration::from_secs(12),
        "{took:?}"
    );
    follower.says("bye", 10);

    let deaf = "trap '' TERM; echo up; while :; do sleep 1; done";
    cluster.run(&pod("deaf", &shell(deaf), Value::Null));
    cluster.logs_say(&["deaf"], "up");
    let took = deletion(cluster, "deaf", &["--grace-period=3"]);
    assert!(
        took > Duration::from_secs(3) && took < Duration::from_secs(15),
        "{took:?}"
    );
}

fn deletion_by_force_is_at_once(cluster: &Cluster) {
    let deaf = "trap '' TERM; while :; do sleep 1; done";
    cluster.run(&pod("forced", &shell(deaf), Value::Null));
    let init = cluster.node.init_of(&uid(cluster, "forced"));
    let took = deletion(cluster, "forced", &["--force", "--grace-period=0"]);
    assert!(took < Duration::from_secs(5), "{took:?}");
    wait("the container to be killed", 10, || {
        let left = cluster.node.inits();
        if left.contains(&init) {
            Err(format!("{left:?}"))
        } else {
            Ok(())
        }
    });
    // A name that is free again is taken by another Pod.
    let again = cluster.run(&pod("forced", &shell(IDLE), Value::Null));
    assert_eq!(first(&again)["restartCount"], 0);
}
