//! Parts that die in the middle of their work: the agent while Pods start and end, a shim, a whole machine.
//!
//! Always holds: whatever was cut short is finished or undone by the next start; nothing runs twice and nothing stays.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::kernel;
use crate::harness::pods::{IDLE, NUMBERS};
use crate::harness::wait::stays;
use crate::harness::{Cluster, Said, pod, shell, until, wait};

const PODS: usize = 8;

fn names() -> Vec<String> {
    (0..PODS).map(|number| format!("many-{number}")).collect()
}

fn all() -> Value {
    let items: Vec<Value> = names()
        .iter()
        .map(|name| pod(name, &shell(IDLE), Value::Null))
        .collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

#[test]
fn an_agent_killed_while_it_works_finishes_later() {
    let mut cluster = Cluster::busybox();
    cluster.run(&pod("bystander", &shell(NUMBERS), Value::Null));
    let bystander = cluster.node.inits();
    for (running_at_kill, millis) in [(0, 0), (0, 7), (0, 15), (0, 30), (0, 60), (1, 0), (3, 0), (6, 0)] {
        // Killed at another moment each time: when so many of them run, and so much later.
        cluster.apply(&all());
        until("some Pods to run", 30, || {
            cluster.node.inits().len() > running_at_kill
        });
        std::thread::sleep(std::time::Duration::from_millis(millis));
        cluster.node.kill();
        cluster.node.start();
        let addresses: BTreeSet<String> = names()
            .iter()
            .map(|name| {
                let pod = cluster.running(name);
                assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
                pod["status"]["podIP"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(addresses.len(), PODS, "an address was given twice: {addresses:?}");
        assert_eq!(cluster.node.inits().len(), PODS + 1, "something runs twice");

        let list = names();
        let mut words = vec!["delete", "pod", "--wait=false", "--grace-period=1"];
        words.extend(list.iter().map(String::as_str));
        cluster.kubectl(&words).ok();
        until("some Pods to be gone", 30, || {
            cluster.node.inits().len() < PODS + 1 - running_at_kill
        });
        cluster.node.kill();
        cluster.node.start();
        only_the_bystander_is_left(&cluster);
        assert_eq!(cluster.node.inits(), bystander);
    }
    cluster.delete("bystander");
    cluster.is_empty();
}

fn only_the_bystander_is_left(cluster: &Cluster) {
    wait("the others to be gone", 40, || {
        let pods = cluster.kubectl(&["get", "pods", "-o", "name"]).ok();
        let directories = fs::read_dir(cluster.node.run.join("node/pods")).unwrap().count();
        if pods.trim() == "pod/bystander" && directories == 1 {
            Ok(())
        } else {
            Err(format!("{directories} directories, {pods}"))
        }
    });
}

/// The shim of a Pod, by its command line.
fn shim_of(cluster: &Cluster, uid: &str) -> i32 {
    let all = kernel::processes(&cluster.node.run.join("node/pods").join(uid));
    let shims: Vec<i32> = all
        .iter()
        .filter(|(_, line)| line.contains(" shim "))
        .map(|(pid, _)| *pid)
        .collect();
    assert_eq!(shims.len(), 1, "{all:?}");
    shims[0]
}

#[test]
fn a_pod_whose_shim_is_killed_starts_anew_and_leaves_nothing() {
    let mut cluster = Cluster::busybox();
    cluster.run(&pod("bystander", &shell(NUMBERS), Value::Null));
    let bystander = cluster.node.inits();
    let running = cluster.run(&pod("struck", &shell(IDLE), Value::Null));
    let uid = running["metadata"]["uid"].as_str().unwrap().to_owned();
    for with_agent in [true, false] {
        let before = cluster.node.init_of(&uid);
        let shim = nix::unistd::Pid::from_raw(shim_of(&cluster, &uid));
        if !with_agent {
            cluster.node.kill();
        }
        nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
        if !with_agent {
            cluster.node.start();
        }
        wait("another container in its place", 60, || {
            let now = cluster.node.inits();
            let new: Vec<_> = now.difference(&bystander).collect();
            if new.len() == 1 && *new[0] != before {
                Ok(())
            } else {
                Err(format!("{now:?}, with_agent {with_agent}"))
            }
        });
        cluster.running("struck");
        assert!(cluster.node.inits().is_superset(&bystander));
    }
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

#[test]
fn a_machine_that_boots_alone_runs_its_pods() {
    let mut cluster = Cluster::busybox();
    cluster
        .kubectl(&["create", "configmap", "settings", "--from-literal=mode=edge"])
        .ok();
    cluster
        .kubectl(&[
            "create",
            "secret",
            "generic",
            "key",
            "--from-literal=word=sesame-3141",
        ])
        .ok();
    let script = "echo \"mode $(cat /settings/mode) word $WORD file $(cat /key/word)\"; ".to_owned() + IDLE;
    let mut container = shell(&script);
    // Asked for anew at every start, and yet the node must start without anybody to ask.
    container["imagePullPolicy"] = json!("Always");
    container["env"] =
        json!([{ "name": "WORD", "valueFrom": { "secretKeyRef": { "name": "key", "key": "word" } } }]);
    container["volumeMounts"] = json!([
        { "name": "settings", "mountPath": "/settings" },
        { "name": "key", "mountPath": "/key" },
    ]);
    let more = json!({ "volumes": [
        { "name": "settings", "configMap": { "name": "settings" } },
        { "name": "key", "secret": { "secretName": "key" } },
    ] });
    cluster.run(&pod("sovereign", &container, more));
    let expected = "mode edge word sesame-3141 file sesame-3141\n";
    assert_eq!(cluster.logs_say(&["sovereign"], "word"), expected);
    no_secret_lies_on_disk(&cluster);

    // The power goes, and with it everything that is not on disk; then nobody is there.
    cluster.stop_server();
    cluster.node.stop();
    cluster.node.agent(&["stop"]).ok();
    fs::remove_dir_all(cluster.node.run.join("node")).unwrap();
    fs::create_dir(cluster.node.run.join("node")).unwrap();
    cluster.node.start();
    wait("the Pod to run without a server", 60, || {
        let pods = cluster.node.ask("pods")?;
        if pods[0]["phase"] == "Running" && pods[0]["containers"][0]["state"] == "Running" {
            Ok(())
        } else {
            Err(pods.to_string())
        }
    });
    cluster.start_server();
    cluster.is_ready();
    cluster.running("sovereign");
    assert_eq!(cluster.logs_say(&["sovereign"], "word"), expected);
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

/// Under the state directory the word stands nowhere in plain; on the tmpfs it does, or the search is blind.
fn no_secret_lies_on_disk(cluster: &Cluster) {
    let search = |dir: &Path| {
        let said = Said::of(
            Path::new("grep"),
            &["-rlaF", "sesame-3141", &dir.display().to_string()],
            &[],
            "",
        );
        said.out
    };
    assert_ne!(search(&cluster.node.run), "", "the search finds nothing at all");
    assert_eq!(search(&cluster.node.state), "", "a Secret lies on disk");
}

#[test]
fn a_node_that_idles_writes_nothing() {
    let cluster = Cluster::busybox();
    for number in 0..20 {
        cluster.apply(&pod(&format!("idle-{number}"), &shell(IDLE), Value::Null));
    }
    for number in 0..20 {
        cluster.running(&format!("idle-{number}"));
    }
    let written = || {
        let text = fs::read_to_string(format!("/proc/{}/io", cluster.node.figure("/pid"))).unwrap();
        let line = text.lines().find_map(|it| it.strip_prefix("write_bytes: "));
        line.unwrap().to_owned()
    };
    // The last statuses may still be on their way to the journal; from some moment on nothing follows.
    let mut before = written();
    wait("the node to come to rest", 20, || {
        stays(1, || {});
        let now = written();
        let rests = now == before;
        before.clone_from(&now);
        rests.then_some(()).ok_or(now)
    });
    let journal = cluster.node.figure("/journal/bytesWritten");
    stays(10, || assert_eq!(written(), before, "bytes written while idle"));
    assert_eq!(cluster.node.figure("/journal/bytesWritten"), journal);
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}
