//! A broker and a server that go away and come back.
//!
//! Always holds: no container is restarted by it, and what was asked for meanwhile is done afterwards.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::pods::{IDLE, NUMBERS, numbers};
use crate::harness::wait::stays;
use crate::harness::{Cluster, Init, Setup, pod, shell};

/// How long an outage lasts, in seconds; the long form is for nights.
fn outage() -> u64 {
    std::env::var("SKIFF_OUTAGE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10)
}

#[track_caller]
fn run_on(cluster: &Cluster, inits: &BTreeSet<Init>) {
    let now = cluster.node.inits();
    assert!(now.is_superset(inits), "{inits:?} were running, now {now:?}");
}

#[track_caller]
fn never_restarted(cluster: &Cluster, pods: &[&str]) {
    for name in pods {
        let pod = cluster.running(name);
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{name}");
    }
}

#[test]
fn broker_and_server_may_go_away_and_come_back() {
    let mut cluster = Cluster::start(&Setup {
        mosquitto: true,
        images: &["busybox"],
        ..Setup::default()
    });
    cluster.run(&pod("numbers", &shell(NUMBERS), Value::Null));
    cluster.run(&pod("goes", &shell(IDLE), Value::Null));
    let ends = pod(
        "ends",
        &shell("sleep 5; exit 3"),
        json!({ "restartPolicy": "Never" }),
    );
    cluster.run(&ends);
    let all = cluster.node.inits();
    let uid = |name: &str| {
        cluster.get(name).unwrap()["metadata"]["uid"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let numbers_init = BTreeSet::from([cluster.node.init_of(&uid("numbers"))]);
    assert_eq!(all.len(), 3, "{all:?}");

    cluster.kill_broker();
    // Asked for while nobody can tell the node.
    cluster.apply(&pod("late", &shell(IDLE), Value::Null));
    cluster
        .kubectl(&["delete", "pod", "goes", "--wait=false", "--grace-period=1"])
        .ok();
    stays(outage(), || run_on(&cluster, &numbers_init));
    assert_eq!(cluster.get("late").unwrap()["status"]["phase"], "Pending");
    cluster.start_broker();

    cluster.running("late");
    let ended = cluster.phase("ends", "Failed");
    assert_eq!(
        ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3,
        "{ended}"
    );
    cluster
        .kubectl(&["wait", "--for=delete", "pod/goes", "--timeout=20s"])
        .ok();
    run_on(&cluster, &numbers_init);
    never_restarted(&cluster, &["numbers", "late"]);

    the_server_goes_away(&mut cluster);
    both_go_away(&mut cluster);
    the_server_is_killed(&mut cluster);
    let log = numbers(&cluster.logs(&["numbers"]));
    assert_eq!(log, (1..=log.len() as u64).collect::<Vec<_>>());
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=2"])
        .ok();
    cluster.is_empty();
}

fn the_server_goes_away(cluster: &mut Cluster) {
    let ends = pod(
        "ends-2",
        &shell("sleep 3; exit 4"),
        json!({ "restartPolicy": "Never" }),
    );
    cluster.run(&ends);
    let uid = cluster.get("numbers").unwrap()["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    let inits = BTreeSet::from([cluster.node.init_of(&uid)]);
    cluster.stop_server();
    stays(outage(), || run_on(cluster, &inits));
    cluster.start_server();
    // What happened meanwhile is known, and what comes now is done.
    let ended = cluster.phase("ends-2", "Failed");
    assert_eq!(
        ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 4,
        "{ended}"
    );
    cluster.run(&pod("later", &shell(IDLE), Value::Null));
    run_on(cluster, &inits);
    never_restarted(cluster, &["numbers", "late", "later"]);
    cluster.is_ready();
}

/// The node starts without anybody to talk to, and finds its Pods as they were.
fn both_go_away(cluster: &mut Cluster) {
    let inits = cluster.node.inits();
    cluster.stop_server();
    cluster.kill_broker();
    cluster.node.kill();
    cluster.node.start();
    assert_eq!(cluster.node.inits(), inits);
    let pods = cluster.node.ask("pods").unwrap();
    let running = pods
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["phase"] == "Running");
    assert_eq!(running.count(), 3, "{pods}");
    cluster.start_server();
    cluster.start_broker();
    cluster.is_ready();
    assert_eq!(cluster.node.inits(), inits);
    never_restarted(cluster, &["numbers", "late", "later"]);
}

/// What `kubectl apply` has acknowledged outlives a server that is killed in the next moment.
fn the_server_is_killed(cluster: &mut Cluster) {
    let inits = cluster.node.inits();
    for turn in 0..3 {
        let name = format!("acknowledged-{turn}");
        cluster.apply(&pod(&name, &shell(IDLE), Value::Null));
        cluster.kill_server();
        run_on(cluster, &inits);
        cluster.start_server();
        cluster.running(&name);
    }
    run_on(cluster, &inits);
    never_restarted(cluster, &["numbers", "late", "later"]);
}
