//! Fields of a Pod that need nothing but themselves to be seen: each with a value that is not the default.

use serde_json::{Value, json};

use crate::harness::pods::{IDLE, shell_with};
use crate::harness::{Cluster, Setup, pod};

/// What a server of gRPC's health protocol says, `SERVING` with 1 and `NOT_SERVING` with 2, to the first request of a
/// connection: SETTINGS and their ack; then, in stream 1, headers, one message and trailers.
fn health(status: u8) -> String {
    format!(
        "cat >/health <<'X'\n#!/bin/sh\n\
         printf '\\0\\0\\0\\4\\0\\0\\0\\0\\0\\0\\0\\0\\4\\1\\0\\0\\0\\0'\nsleep 0.5\n\
         printf '\\0\\0\\024\\1\\4\\0\\0\\0\\1\\210\\017\\020\\020application/grpc'\n\
         printf '\\0\\0\\7\\0\\0\\0\\0\\0\\1\\0\\0\\0\\0\\2\\010\\{status}'\n\
         printf '\\0\\0\\017\\1\\5\\0\\0\\0\\1\\0\\013grpc-status\\0010'\nsleep 1\nX\n\
         chmod +x /health; exec nc -ll -p 9001 -e /health"
    )
}

/// Answers well to requests with a header alone.
const HEADER: &str = "cat >/answer <<'X'\n#!/bin/sh\ncode=500\n\
                      while read line; do line=${line%?}; test -z \"$line\" && break; \
                      case $line in X-Asked:*yes) code=200;; esac; done\n\
                      printf \"HTTP/1.1 $code X\\r\\nContent-Length: 0\\r\\n\\r\\n\"\nX\n\
                      chmod +x /answer; exec nc -ll -p 8081 -e /answer";

#[test]
fn fields_mean_what_they_say() {
    let mut cluster = Cluster::start(&Setup {
        images: &["busybox"],
        agent: "[policy]\nallow = [\"host-path\"]\n",
        ..Setup::default()
    });
    probes_reach_servers_of_every_kind(&cluster);
    what_a_process_finds_is_as_asked(&cluster);
    mounts_are_read_only_all_the_way_down(&cluster);
    a_group_is_given_once(&cluster);
    a_container_may_have_to_restart_to_be_resized(&mut cluster);
    cluster.is_empty();
}

fn probes_reach_servers_of_every_kind(cluster: &Cluster) {
    let api = cluster.api().port();
    let header = json!([{ "name": "X-Asked", "value": "yes" }]);
    for (name, script, probe, ready) in [
        ("serves", health(1), json!({ "grpc": { "port": 9001 } }), true),
        ("refuses", health(2), json!({ "grpc": { "port": 9001 } }), false),
        (
            "asked",
            HEADER.to_owned(),
            json!({ "httpGet": { "port": 8081, "httpHeaders": header } }),
            true,
        ),
        (
            "unasked",
            HEADER.to_owned(),
            json!({ "httpGet": { "port": 8081 } }),
            false,
        ),
        (
            "tls",
            IDLE.to_owned(),
            json!({ "httpGet": { "scheme": "HTTPS", "host": "127.0.0.1", "port": api, "path": "/livez" } }),
            true,
        ),
        (
            "plain",
            IDLE.to_owned(),
            json!({ "httpGet": { "host": "127.0.0.1", "port": api, "path": "/livez" } }),
            false,
        ),
    ] {
        let mut probe = probe;
        (probe["periodSeconds"], probe["timeoutSeconds"]) = (1.into(), 5.into());
        let container = shell_with(&script, &json!({ "readinessProbe": probe }));
        cluster.apply(&pod(
            name,
            &container,
            json!({ "terminationGracePeriodSeconds": 1 }),
        ));
        if ready {
            cluster.until(name, "to be ready", 30, |it| {
                it["status"]["containerStatuses"][0]["ready"] == true
            });
        } else {
            cluster.running(name);
            crate::harness::wait("the probe's failure to be told", 30, || {
                let text = cluster.kubectl(&["describe", "pod", name]).ok();
                if text.contains("Readiness probe failed") {
                    Ok(())
                } else {
                    Err(text)
                }
            });
            let it = cluster.get(name).unwrap();
            assert_eq!(it["status"]["containerStatuses"][0]["ready"], false, "{it}");
        }
        cluster.delete(name);
    }
}

/// What a Pod with one container printed by its end.
#[track_caller]
fn told(cluster: &Cluster, name: &str, script: &str, container: &Value, mut spec: Value) -> (Value, String) {
    spec["restartPolicy"] = "Never".into();
    cluster.ends(&pod(name, &shell_with(script, container), spec), 40)
}

/// `workingDir`, optional sources of variables, the class of service and what follows from it.
fn what_a_process_finds_is_as_asked(cluster: &Cluster) {
    let limits = json!({ "limits": { "cpu": "100m", "memory": "32Mi" } });
    let requests = json!({ "requests": { "memory": "1Mi" } });
    // Nobody may lower it without CAP_SYS_RESOURCE, so a Guaranteed Pod's is not looked at.
    for (name, resources, class, score) in [
        ("best", json!({}), "BestEffort", Some(1000..=1000)),
        ("burst", requests, "Burstable", Some(3..=999)),
        ("sure", limits, "Guaranteed", None),
    ] {
        let container = json!({
            "resources": resources, "workingDir": "/made/here",
            "env": [
                { "name": "A", "valueFrom": { "configMapKeyRef": { "name": "nowhere", "key": "k", "optional": true } } },
                { "name": "B", "valueFrom": { "secretKeyRef": { "name": "nowhere", "key": "k", "optional": true } } },
            ],
            "envFrom": [{ "prefix": "P_", "secretRef": { "name": "nowhere", "optional": true } }],
        });
        let script = "cat /proc/self/oom_score_adj; pwd; env | grep -E '^(A|B|P_)' | wc -l";
        let (ended, said) = told(cluster, name, script, &container, json!({}));
        assert_eq!(ended["status"]["qosClass"], class, "{ended}");
        let (found, rest) = said.split_once('\n').unwrap();
        assert_eq!(rest, "/made/here\n0\n", "{name}");
        let found: i32 = found.parse().unwrap();
        assert!(score.is_none_or(|it| it.contains(&found)), "{name}: {found}");
    }
}

fn mounts_are_read_only_all_the_way_down(cluster: &Cluster) {
    let dir = cluster.dir().join("tree");
    std::fs::create_dir_all(dir.join("below")).unwrap();
    skiff_sys::mount::tmpfs(&dir.join("below"), 1 << 20, 0o777).unwrap();
    let volumes = json!({ "volumes": [{ "name": "h", "hostPath": { "path": dir } }] });
    let script = "touch /h/below/file 2>&1 | sed 's/.*: //'; ls /h/below";
    for (name, down, expected) in [
        ("down", "Enabled", "Read-only file system\n"),
        ("not-down", "Disabled", "file\n"),
    ] {
        let container = json!({ "volumeMounts": [
            { "name": "h", "mountPath": "/h", "readOnly": true, "recursiveReadOnly": down } ] });
        assert_eq!(
            told(cluster, name, script, &container, volumes.clone()).1,
            expected,
            "{down}"
        );
    }
    skiff_sys::mount::detach(&dir.join("below")).unwrap();
}

/// `fsGroupChangePolicy`: a volume whose root has the group already is left alone, or gone through all the same.
fn a_group_is_given_once(cluster: &Cluster) {
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "grouped" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } },
    }));
    let container = json!({ "volumeMounts": [{ "name": "d", "mountPath": "/d" }] });
    for (name, policy, script, expected) in [
        (
            "first",
            "Always",
            "touch /d/f; chgrp 7 /d/f; stat -c %g /d /d/f",
            "2000\n7\n",
        ),
        ("again", "OnRootMismatch", "stat -c %g /d /d/f", "2000\n7\n"),
        ("always", "Always", "stat -c %g /d /d/f", "2000\n2000\n"),
    ] {
        let spec = json!({
            "securityContext": { "fsGroup": 2000, "fsGroupChangePolicy": policy },
            "volumes": [{ "name": "d", "persistentVolumeClaim": { "claimName": "grouped" } }],
        });
        assert_eq!(
            told(cluster, name, script, &container, spec).1,
            expected,
            "{name}"
        );
    }
    cluster.kubectl(&["delete", "pvc", "grouped"]).ok();
}

/// `resizePolicy: RestartContainer`: memory is changed by a restart, cpu beside it without one.
fn a_container_may_have_to_restart_to_be_resized(cluster: &mut Cluster) {
    let container = shell_with(
        IDLE,
        &json!({
            "resources": { "limits": { "cpu": "200m", "memory": "32Mi" } },
            "resizePolicy": [{ "resourceName": "memory", "restartPolicy": "RestartContainer" }],
        }),
    );
    cluster.run(&pod("resized", &container, json!({})));
    for (limits, restarts) in [
        (json!({ "cpu": "300m", "memory": "32Mi" }), 0),
        (json!({ "cpu": "300m", "memory": "48Mi" }), 1),
    ] {
        let patch = json!({ "spec": { "containers": [{ "name": "main", "resources": {
            "limits": limits, "requests": limits } }] } });
        cluster
            .kubectl(&[
                "patch",
                "pod",
                "resized",
                "--subresource",
                "resize",
                "--patch",
                &patch.to_string(),
            ])
            .ok();
        let what = format!("to be resized with {restarts} restarts");
        cluster.until("resized", &what, 30, |it| {
            let status = &it["status"]["containerStatuses"][0];
            status["resources"]["limits"] == limits
                && status["restartCount"] == restarts
                && !status["state"]["running"].is_null()
        });
    }
    cluster.delete("resized");
}
