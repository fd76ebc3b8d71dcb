//! Volumes as a Pod sees them: what is in them, who owns them, what reaches them later, and what outlives the Pod.
//!
//! Always holds: each row is read from within a container, and beside each refusal stands what is allowed.

use serde_json::{Value, json};

use crate::harness::pods::IDLE;
use crate::harness::wait::stays;
use crate::harness::{Cluster, Setup, pod, shell, wait};

fn cluster() -> Cluster {
    Cluster::start(&Setup {
        images: &["busybox", "hello"],
        agent: "[policy]\nallow = [\"host-path\", \"privileged\"]\n",
        ..Setup::default()
    })
}

/// Runs a script to its end with these volumes, each mounted at `/<name>`; gives what it printed.
#[track_caller]
fn told(cluster: &Cluster, name: &str, script: &str, volumes: &Value, more: &Value) -> String {
    let mut container = shell(script);
    let mounts = volumes.as_array().unwrap().iter().map(|it| {
        let name = it["name"].as_str().unwrap();
        json!({ "name": name, "mountPath": format!("/{name}") })
    });
    container["volumeMounts"] = mounts.collect();
    if let Some(Value::Object(more)) = more.get("container") {
        container.as_object_mut().unwrap().extend(more.clone());
    }
    let mut spec = json!({ "restartPolicy": "Never", "volumes": volumes });
    if let Some(Value::Object(more)) = more.get("spec") {
        spec.as_object_mut().unwrap().extend(more.clone());
    }
    cluster.ends(&pod(name, &container, spec), 40).1
}

#[test]
fn volumes_hold_what_the_pod_asked_for() {
    let cluster = cluster();
    for object in [
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" }, "data": { "a": "1", "b": "2" } }),
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys" }, "stringData": { "k": "s3" } }),
    ] {
        cluster.apply(&object);
    }
    host_paths_are_checked(&cluster);
    files_are_projected(&cluster);
    groups_own_what_they_share(&cluster);
    parts_of_volumes_are_mounted(&cluster);
    memory_is_bounded(&cluster);
    images_are_mounted(&cluster);
    propagation_is_as_asked(&cluster);
    cluster.is_empty();
}

fn host_paths_are_checked(cluster: &Cluster) {
    let dir = cluster.dir().join("host");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("file"), "from the node\n").unwrap();
    let at = |path: &str, kind: &str| json!([{ "name": "h", "hostPath": { "path": dir.join(path), "type": kind } }]);
    assert_eq!(
        told(cluster, "dir", "cat /h/file", &at("", "Directory"), &json!({})),
        "from the node\n"
    );
    told(
        cluster,
        "made",
        "echo x > /h/y",
        &at("new/deep", "DirectoryOrCreate"),
        &json!({}),
    );
    assert_eq!(std::fs::read_to_string(dir.join("new/deep/y")).unwrap(), "x\n");
    told(
        cluster,
        "touched",
        "echo x > /h",
        &at("touched", "FileOrCreate"),
        &json!({}),
    );
    assert_eq!(std::fs::read_to_string(dir.join("touched")).unwrap(), "x\n");
    // What is something else keeps the Pod waiting, with the reason.
    let mut container = shell(IDLE);
    container["volumeMounts"] = json!([{ "name": "h", "mountPath": "/h" }]);
    cluster.apply(&pod(
        "wrong",
        &container,
        json!({ "volumes": at("file", "Directory") }),
    ));
    wait("the check's word", 30, || {
        let text = cluster.kubectl(&["describe", "pod", "wrong"]).ok();
        if text.contains("hostPath type check failed") {
            Ok(())
        } else {
            Err(text)
        }
    });
    cluster.delete("wrong");
}

fn files_are_projected(cluster: &Cluster) {
    let volumes = json!([
        { "name": "all", "projected": { "defaultMode": 0o440, "sources": [
            { "configMap": { "name": "settings", "items": [{ "key": "a", "path": "conf/a" }] } },
            { "secret": { "name": "keys" } },
            { "downwardAPI": { "items": [
                { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
                { "path": "cpu", "mode": 0o400, "resourceFieldRef": { "containerName": "main", "resource": "limits.cpu", "divisor": "1m" } },
            ] } },
        ] } },
        { "name": "down", "downwardAPI": { "items": [{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
    ]);
    let more = json!({ "container": { "resources": { "limits": { "cpu": "250m", "memory": "32Mi" } } } });
    let script = "cd /all; cat conf/a; echo; cat k; echo; cat labels; echo; cat cpu; echo; stat -Lc %a k cpu; cat /down/name";
    assert_eq!(
        told(cluster, "projected", script, &volumes, &more),
        "1\ns3\napp=\"projected\"\n250\n440\n400\nprojected"
    );
    let mut variable = shell("echo $MEM $CPU");
    variable["resources"] = json!({ "limits": { "cpu": "1", "memory": "32Mi" } });
    variable["env"] = json!([
        { "name": "MEM", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
        { "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "requests.cpu" } } },
    ]);
    cluster.apply(&pod("variables", &variable, json!({ "restartPolicy": "Never" })));
    cluster.phase("variables", "Succeeded");
    assert_eq!(cluster.logs(&["variables"]), "32 1\n");
    cluster.delete("variables");
}

fn groups_own_what_they_share(cluster: &Cluster) {
    let volumes = json!([
        { "name": "e", "emptyDir": {} },
        { "name": "s", "secret": { "secretName": "keys", "defaultMode": 0o400 } },
    ]);
    let more =
        json!({ "spec": { "securityContext": { "runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000 } } });
    let script = "id -G; stat -c %g /e; touch /e/f && stat -c %g /e/f; cat /s/k";
    assert_eq!(
        told(cluster, "grouped", script, &volumes, &more),
        "3000 2000\n2000\n2000\ns3"
    );
}

fn parts_of_volumes_are_mounted(cluster: &Cluster) {
    let dir = cluster.dir().join("parts");
    std::fs::create_dir_all(dir.join("in")).unwrap();
    std::fs::write(dir.join("in/x"), "inside\n").unwrap();
    std::os::unix::fs::symlink("/etc", dir.join("out")).unwrap();
    let part = |sub: &str| {
        json!({ "container": {
            "env": [{ "name": "WHICH", "value": "in" }],
            "volumeMounts": [{ "name": "h", "mountPath": "/h", sub.split('=').next().unwrap(): sub.split('=').nth(1).unwrap() }],
        } })
    };
    let volumes = json!([{ "name": "h", "hostPath": { "path": dir } }]);
    assert_eq!(
        told(cluster, "sub", "cat /h/x", &volumes, &part("subPath=in")),
        "inside\n"
    );
    assert_eq!(
        told(
            cluster,
            "expr",
            "cat /h/x",
            &volumes,
            &part("subPathExpr=$(WHICH)")
        ),
        "inside\n"
    );
    // A link out of the volume leads nowhere.
    let mut container = shell("ls /h");
    container["volumeMounts"] = json!([{ "name": "h", "mountPath": "/h", "subPath": "out" }]);
    let more = json!({ "volumes": volumes, "restartPolicy": "Never" });
    cluster.apply(&pod("escapes", &container, more));
    let ended = cluster.until("escapes", "to be stopped", 30, |it| {
        let state = &it["status"]["containerStatuses"][0]["state"];
        !state["terminated"].is_null() || state["waiting"]["reason"] == "CreateContainerConfigError"
    });
    let state = &ended["status"]["containerStatuses"][0]["state"];
    assert_ne!(state["terminated"]["exitCode"], 0, "{ended}");
    cluster.delete("escapes");
}

fn memory_is_bounded(cluster: &Cluster) {
    let volumes = json!([{ "name": "m", "emptyDir": { "medium": "Memory", "sizeLimit": "4Mi" } }]);
    let script = "grep ' /m ' /proc/mounts | cut -d' ' -f3; dd if=/dev/zero of=/m/x bs=1M count=8 2>&1 | grep -c 'No space'";
    assert_eq!(
        told(cluster, "memory", script, &volumes, &json!({})),
        "tmpfs\n1\n"
    );
    // On disk, more than the limit has the Pod evicted.
    let volumes = json!([{ "name": "d", "emptyDir": { "sizeLimit": "1Mi" } }]);
    let mut container = shell(&format!(
        "dd if=/dev/zero of=/d/x bs=1M count=4 2>/dev/null; sync; {IDLE}"
    ));
    container["volumeMounts"] = json!([{ "name": "d", "mountPath": "/d" }]);
    cluster.apply(&pod("greedy", &container, json!({ "volumes": volumes })));
    let evicted = cluster.phase("greedy", "Failed");
    assert_eq!(evicted["status"]["reason"], "Evicted", "{evicted}");
    let message = evicted["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("Usage of EmptyDir volume \"d\" exceeds the limit"),
        "{message}"
    );
    cluster.delete("greedy");
}

fn images_are_mounted(cluster: &Cluster) {
    let volumes = json!([{ "name": "i", "image": { "reference": "hello:1.1.1" } }]);
    let script = "test -x /i/bin/busybox && echo there; touch /i/x 2>&1 | grep -c Read-only";
    assert_eq!(told(cluster, "image", script, &volumes, &json!({})), "there\n1\n");
}

fn propagation_is_as_asked(cluster: &Cluster) {
    let dir = cluster.dir().join("shared");
    std::fs::create_dir_all(&dir).unwrap();
    let volumes = json!([{ "name": "h", "hostPath": { "path": dir } }]);
    let mut container = shell("grep ' /h ' /proc/self/mountinfo | cut -d' ' -f7 | cut -d: -f1");
    container["volumeMounts"] =
        json!([{ "name": "h", "mountPath": "/h", "mountPropagation": "HostToContainer" }]);
    cluster.apply(&pod(
        "slave",
        &container,
        json!({ "volumes": volumes, "restartPolicy": "Never" }),
    ));
    cluster.phase("slave", "Succeeded");
    let said = cluster.logs(&["slave"]);
    assert!(said.starts_with("master") || said.starts_with('-'), "{said}");
    cluster.delete("slave");
}

#[test]
fn changes_reach_mounted_files() {
    let cluster = cluster();
    let map = |value: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "live" }, "data": { "a": value } });
    cluster.apply(&map("one"));
    let script = "while :; do echo \"$(cat /v/a) $(cat /part)\"; sleep 0.2; done";
    let mut container = shell(script);
    container["volumeMounts"] = json!([
        { "name": "v", "mountPath": "/v" },
        { "name": "v", "mountPath": "/part", "subPath": "a" },
    ]);
    let more = json!({ "volumes": [{ "name": "v", "configMap": { "name": "live" } }] });
    let before = cluster.run(&pod("reads", &container, more));
    cluster.logs_say(&["reads"], "one one");
    cluster.apply(&map("two"));
    // The mounted directory follows; a file that is mounted by itself does not, as documented.
    cluster.logs_say(&["reads"], "two one");
    let after = cluster.get("reads").unwrap();
    assert_eq!(
        before["status"]["containerStatuses"][0]["containerID"],
        after["status"]["containerStatuses"][0]["containerID"]
    );
    // One that is immutable stays as it is.
    let fixed = |value: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "fixed" }, "immutable": true, "data": { "a": value } });
    cluster.apply(&fixed("one"));
    let said = cluster.kubectl_with(&["apply", "-f", "-"], &fixed("two").to_string());
    assert_eq!(said.code, 1, "{said}");
    assert!(said.err.contains("immutable"), "{said}");
    // A Pod waits for what it reads, and starts when it comes.
    let more = json!({ "volumes": [{ "name": "v", "configMap": { "name": "to-come" } }] });
    let mut waits = shell(&format!("cat /v/a; {IDLE}"));
    waits["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
    cluster.apply(&pod("waits", &waits, more));
    wait("what it waits for", 30, || {
        let text = cluster.kubectl(&["describe", "pod", "waits"]).ok();
        if text.contains("configmap \"to-come\" not found") {
            Ok(())
        } else {
            Err(text)
        }
    });
    cluster.apply(&json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "to-come" }, "data": { "a": "came\n" } }));
    cluster.logs_say(&["waits"], "came");
    for name in ["reads", "waits"] {
        cluster.delete(name);
    }
    cluster.is_empty();
}

#[test]
fn claims_outlive_their_pods() {
    let mut cluster = cluster();
    let claim = |name: &str, class: &str| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
            "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": { "requests": { "storage": "1Mi" } } },
        })
    };
    cluster.apply(&json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "keep" },
        "provisioner": "skiff.io/node-local", "reclaimPolicy": "Retain", "volumeBindingMode": "WaitForFirstConsumer",
    }));
    for (name, class) in [("data", "node-local"), ("kept", "keep")] {
        cluster.apply(&claim(name, class));
        let table = cluster.kubectl(&["get", "pvc", name]).ok();
        assert!(table.contains("Pending"), "{table}");
    }
    let writes = |pod_name: &str, script: &str| {
        let mut container = shell(script);
        container["volumeMounts"] = json!([
            { "name": "d", "mountPath": "/d" }, { "name": "k", "mountPath": "/k" },
        ]);
        let more = json!({ "restartPolicy": "Never", "volumes": [
            { "name": "d", "persistentVolumeClaim": { "claimName": "data" } },
            { "name": "k", "persistentVolumeClaim": { "claimName": "kept" } },
        ] });
        pod(pod_name, &container, more)
    };
    cluster.apply(&writes("writer", "echo mine > /d/x; echo ours > /k/x"));
    cluster.phase("writer", "Succeeded");
    let table = cluster.kubectl(&["get", "pvc,pv"]).ok();
    assert!(table.matches("Bound").count() >= 4, "{table}");
    cluster.delete("writer");
    // Over a restart of the agent as well.
    cluster.node.stop();
    cluster.node.start();
    cluster.is_ready();
    cluster.apply(&writes("reader", "cat /d/x /k/x"));
    cluster.phase("reader", "Succeeded");
    assert_eq!(cluster.logs(&["reader"]), "mine\nours\n");
    cluster.delete("reader");
    let volumes = cluster.node.state.join("volumes");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&volumes).into_iter().flatten().flatten();
        let names = entries.map(|it| it.file_name().into_string().unwrap());
        names.filter(|it| volumes.join(it).join("x").exists()).collect()
    };
    assert_eq!(names().len(), 2, "{:?}", names());
    // While its node does not hear, the volume that is to go with its files waits for it.
    cluster.node.stop();
    cluster.kubectl(&["delete", "pvc", "data", "kept"]).ok();
    wait("the volume to wait for its node", 20, || {
        let table = cluster.kubectl(&["get", "pv"]).ok();
        let waits = table.contains("Terminating") && table.contains("Released");
        waits.then_some(()).ok_or(table)
    });
    stays(1, || assert_eq!(names().len(), 2, "files went unheard of"));
    cluster.node.start();
    wait("one volume's files to be gone and the other's kept", 20, || {
        let left = names();
        let one =
            left.len() == 1 && std::fs::read_to_string(volumes.join(&left[0]).join("x")).unwrap() == "ours\n";
        if one { Ok(()) } else { Err(left.join(" ")) }
    });
    wait("only the volume to be left that is kept", 20, || {
        let table = cluster.kubectl(&["get", "pv", "--no-headers"]).ok();
        let one = table.contains("Released") && table.lines().count() == 1;
        one.then_some(()).ok_or(table)
    });
    cluster.is_empty();
}
