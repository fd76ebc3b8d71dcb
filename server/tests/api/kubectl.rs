//! The programs that people use: every `kubectl` named in `SKIFF_KUBECTL` (separated by colons), or the one on PATH.
//!
//! Nothing of kubectl is assumed: it is given a kubeconfig and its output is read.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::Server;

/// The programs to test with; says so where there is none.
fn programs() -> Vec<PathBuf> {
    let list = std::env::var("SKIFF_KUBECTL").unwrap_or_default();
    let named: Vec<PathBuf> = list
        .split(':')
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .collect();
    if !named.is_empty() {
        return named;
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths)
        .map(|path| path.join("kubectl"))
        .find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: no kubectl; set SKIFF_KUBECTL to one or several, separated by ':'");
    }
    found.into_iter().collect()
}

struct Kubectl<'a> {
    server: &'a Server,
    program: &'a Path,
    config: PathBuf,
}

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command
            .arg("--kubeconfig")
            .arg(&self.config)
            .arg("--cache-dir")
            .arg(self.server.path().join("cache"));
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it; gives back whether it succeeded, and all that it said.
    fn run(&self, arguments: &[&str], input: &Value) -> (bool, String) {
        let mut child = self.command(arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// Runs it and checks its success and that it says every one of `parts`.
    fn check(&self, arguments: &str, input: &Value, success: bool, parts: &[&str]) {
        let (succeeded, text) = self.run(&arguments.split(' ').collect::<Vec<_>>(), input);
        assert_eq!(succeeded, success, "kubectl {arguments}: {text}");
        for part in parts {
            assert!(text.contains(part), "kubectl {arguments}: no {part:?} in {text}");
        }
    }

    fn ok(&self, arguments: &str, parts: &[&str]) {
        self.check(arguments, &Value::Null, true, parts);
    }

    fn refused(&self, arguments: &str, parts: &[&str]) {
        self.check(arguments, &Value::Null, false, parts);
    }
}

fn each(check: impl Fn(&Kubectl<'_>)) {
    for program in programs() {
        let server = Server::start();
        let config = server.kubeconfig();
        check(&Kubectl {
            server: &server,
            program: &program,
            config,
        });
    }
}

fn manifest() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "app", "image": "nginx:1", "env": [{ "name": "A", "value": "1" }] }] },
    })
}

#[test]
fn everyday_verbs() {
    each(|kubectl| {
        kubectl.ok("version", &["v1."]);
        kubectl.ok("api-resources", &["configmaps", "pods", "po", "leases"]);
        kubectl.ok("cluster-info", &["is running at"]);
        kubectl.ok("auth can-i create pods", &["yes"]);
        kubectl.ok("create namespace team", &["namespace/team created"]);
        kubectl.ok(
            "create configmap c -n team --from-literal=a=b",
            &["configmap/c created"],
        );
        kubectl.ok(
            "create secret generic s -n team --from-literal=p=q",
            &["secret/s created"],
        );
        kubectl.ok("get configmap,secret -n team", &["configmap/c", "Opaque"]);
        kubectl.ok(
            "run tool -n team --image=busybox --restart=Never -- sleep 5",
            &["pod/tool created"],
        );
        kubectl.ok("label pod tool -n team tier=back", &["pod/tool labeled"]);
        kubectl.ok("annotate pod tool -n team why=because", &["pod/tool annotated"]);
        kubectl.ok(
            "get pods -n team -l tier=back -o wide",
            &["NOMINATED NODE", "tool", "Pending"],
        );
        kubectl.ok(
            "get pod tool -n team -o jsonpath={.spec.containers[0].image}",
            &["busybox"],
        );
        kubectl.ok("get pod tool -n team -o yaml", &["restartPolicy: Never"]);
        kubectl.ok("describe pod tool -n team", &["tier=back", "QoS Class", "Events"]);
        kubectl.ok("describe namespace team", &["Active"]);
        kubectl.ok(
            "get pods -n team --field-selector=status.phase=Pending",
            &["tool"],
        );
        kubectl.ok("delete pod tool -n team", &["pod \"tool\" deleted"]);
        kubectl.ok("delete namespace team", &["namespace \"team\" deleted"]);
        kubectl.refused("get namespace team", &["NotFound"]);
        kubectl.refused("delete namespace default", &["Forbidden"]);
    });
}

#[test]
fn apply_merges() {
    each(|kubectl| {
        let mut pod = manifest();
        let apply =
            |pod: &Value, success: bool, parts: &[&str]| kubectl.check("apply -f -", pod, success, parts);
        apply(&pod, true, &["pod/web created"]);
        apply(&pod, true, &["pod/web unchanged"]);
        pod["spec"]["containers"][0]["image"] = "nginx:2".into();
        pod["metadata"]["labels"] = json!({ "tier": "front" });
        kubectl.check(
            "apply --dry-run=server -f -",
            &pod,
            true,
            &["pod/web configured (server dry run)"],
        );
        apply(&pod, true, &["pod/web configured"]);
        kubectl.ok(
            "get pod web -o jsonpath={.metadata.labels}",
            &["{\"tier\":\"front\"}"],
        );
        kubectl.ok(
            "get pod web -o jsonpath={.spec.containers[*].image}",
            &["nginx:2"],
        );
        pod["spec"]["containers"][0]["command"] = json!(["sh"]);
        apply(&pod, false, &["pod updates may not change fields other than"]);
        let mut later = manifest();
        later["metadata"]["name"] = "later".into();
        later["spec"]["runtimeClassName"] = "kata".into();
        apply(
            &later,
            true,
            &["Warning: spec.runtimeClassName", "pod/later created"],
        );
    });
}

#[test]
fn refusals_name_the_field() {
    each(|kubectl| {
        let apply = |change: &dyn Fn(&mut Value), parts: &[&str]| {
            let mut pod = manifest();
            change(&mut pod);
            kubectl.check("apply -f -", &pod, false, parts);
        };
        let image = |pod: &mut Value| {
            let container = pod["spec"]["containers"][0].as_object_mut().unwrap();
            let image = container.remove("image").unwrap();
            container.insert("images".into(), image);
            pod["kind"] = "pod".into();
        };
        apply(&image, &["kind", "Pod"]);
        apply(
            &|pod| pod["spec"]["containers"][0]["env"][0]["value"] = 1.into(),
            &["env[0].value", "quotes"],
        );
        apply(
            &|pod| pod["spec"]["containers"][0]["image"] = Value::Null,
            &["spec.containers[0].image: Required value"],
        );
        apply(
            &|pod| pod["metadata"]["name"] = "A".into(),
            &["metadata.name: Invalid value"],
        );
        kubectl.ok("get pods", &["No resources found"]);
    });
}

#[test]
fn a_placed_pod() {
    each(|kubectl| {
        kubectl.check("apply -f -", &manifest(), true, &["created"]);
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" }, "status": {
            "conditions": [{ "type": "Ready", "status": "True" }], "nodeInfo": { "kubeletVersion": "v0" } } });
        kubectl.check("create -f -", &node, true, &["node/n1 created"]);
        kubectl.ok("get nodes -o wide", &["n1", "Ready", "v0"]);
        let mut watch = kubectl.command(&["get", "pods", "-w"]).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        assert!(lines.next().unwrap().starts_with("NAME"));
        assert!(lines.next().unwrap().contains("Pending"));
        let pods = "/api/v1/namespaces/default/pods/web";
        let binding =
            json!({ "apiVersion": "v1", "kind": "Binding", "target": { "kind": "Node", "name": "n1" } });
        kubectl
            .server
            .call("POST", &format!("{pods}/binding"), &binding)
            .expect(201);
        let running = json!({ "status": { "phase": "Running", "containerStatuses": [
            { "name": "app", "ready": true, "restartCount": 0, "image": "nginx:1", "imageID": "", "state": { "running": {} } }] } });
        kubectl
            .server
            .call("PATCH", &format!("{pods}/status"), &running)
            .expect(200);
        assert!(
            lines.any(|line| line.contains("1/1") && line.contains("Running")),
            "the watch ended"
        );
        watch.kill().unwrap();
        watch.wait().unwrap();
        kubectl.ok("describe node n1", &["Non-terminated Pods", "web"]);
        kubectl.ok("logs web", &["app of web on n1"]);
        kubectl.ok(
            "logs web -f --tail=3 --since=5m --timestamps -c app",
            &["app of web on n1", "later"],
        );
        kubectl.refused("logs web --previous", &["previous terminated container"]);
        kubectl.refused("logs web -c none", &["container none is not valid for pod web"]);
        kubectl.ok("delete pod web --wait=false", &["deleted"]);
        kubectl.ok("get pods", &["Terminating"]);
        kubectl.ok("delete pod web --force --grace-period=0", &["force deleted"]);
        kubectl.ok("get pods", &["No resources found"]);
    });
}

#[test]
fn storage_as_kubectl_prints_it() {
    each(|kubectl| {
        kubectl.ok(
            "get sc",
            &[
                "node-local (default)",
                "skiff.io/node-local",
                "WaitForFirstConsumer",
                "true",
            ],
        );
        let claim = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
        kubectl.check(
            "apply -f -",
            &claim,
            true,
            &["persistentvolumeclaim/data created"],
        );
        let volume = json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "old" },
            "spec": { "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": { "storage": "2Gi" },
                "storageClassName": "by-hand", "csi": { "driver": "skiff.io/node-local", "volumeHandle": "old" },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"] } ] }] } } } });
        kubectl.check("apply -f -", &volume, true, &["persistentvolume/old created"]);
        kubectl.ok(
            "get pvc,pv,sc",
            &[
                "persistentvolumeclaim/data",
                "persistentvolume/old",
                "RWO,ROX",
                "Retain",
                "storageclass.storage.k8s.io/node-local",
            ],
        );
        kubectl.ok("describe pvc data", &["node-local", "Pending"]);
        kubectl.ok(
            "describe pv old",
            &["skiff.io/node-local", "kubernetes.io/hostname in [n1]"],
        );
        // kubectl waits until nothing holds it back any more.
        kubectl.ok("delete pvc data", &["deleted"]);
        kubectl.ok("delete pv old", &["deleted"]);
    });
}
