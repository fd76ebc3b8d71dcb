//! Where images come from: imported archives and layouts, a registry, a mirror; and what is said when they do not.
//!
//! Always holds: the registry is Docker's own, filled by skopeo.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::cluster::listens;
use crate::harness::pods::IDLE;
use crate::harness::{Cluster, Process, Said, Setup, pod, programs, shell};

/// A name that no machine has: only the mirror can answer for it.
const REMOTE: &str = "registry.invalid/team/tool:1";

pub(crate) fn registry(dir: &Path) -> (Process, String) {
    registry_with(dir, "")
}

/// The same with more of its configuration.
pub(crate) fn registry_with(dir: &Path, more: &str) -> (Process, String) {
    let address = skiff_tests::port::free();
    let config = dir.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{more}",
        dir.join("blobs").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(programs::docker_registry());
    command.arg("serve").arg(&config);
    let mut process = Process::start(command, &dir.join("registry.log"));
    listens(address, &mut process);
    (process, address.to_string())
}

pub(crate) fn push(address: &str, image: &str, name: &str) {
    push_as(address, &programs::archive(image), name, None);
}

/// Pushes an archive, as whoever the credentials name.
pub(crate) fn push_as(address: &str, archive: &Path, name: &str, credentials: Option<&str>) {
    push_like(address, archive, name, credentials, &[]);
}

/// The same with more words for skopeo.
pub(crate) fn push_like(address: &str, archive: &Path, name: &str, credentials: Option<&str>, more: &[&str]) {
    let source = format!("docker-archive:{}", archive.display());
    let target = format!("docker://{address}/{name}");
    let credentials = credentials.map(|it| format!("--dest-creds={it}"));
    let mut arguments = vec!["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
    arguments.extend(credentials.as_deref());
    arguments.extend(more);
    arguments.extend([source.as_str(), target.as_str()]);
    Said::of(&programs::skopeo(), &arguments, &[], "").ok();
}

fn using(image: &str, policy: &str) -> Value {
    let mut container = shell(IDLE);
    container["image"] = json!(image);
    container["imagePullPolicy"] = json!(policy);
    container
}

fn waiting(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]["waiting"]
}

#[test]
fn images_come_from_archives_layouts_registries_and_mirrors() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, address) = registry(dir.path());
    push(&address, "busybox", "team/tool:1");
    let config = format!(
        "[registries.\"registry.invalid\"]\nmirrors = [\"http://{address}\"]\nplain_http = true\n\
         [registries.\"{address}\"]\nplain_http = true\n"
    );
    let cluster = Cluster::start(&Setup {
        agent: &config,
        ..Setup::default()
    });
    imports(&cluster);
    pulls(&cluster, &address);
    refuses(&cluster, &address);

    // What is on the node runs without anybody to ask.
    drop(registry);
    cluster.run(&pod("offline", &using(REMOTE, "IfNotPresent"), Value::Null));
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

fn imports(cluster: &Cluster) {
    let archive = programs::archive("busybox").display().to_string();
    let layout = programs::layout("hello").display().to_string();
    let said = cluster.skiff(&["image", "import", &archive]).ok();
    assert!(said.contains("busybox:latest imported"), "{said}");
    cluster.skiff(&["image", "import", &layout]).ok();
    let named = cluster
        .skiff(&["image", "import", &archive, "--name", "example.org/own/name:7"])
        .ok();
    assert!(named.contains("example.org/own/name:7"), "{named}");
    let list = cluster.skiff(&["image", "ls"]).ok();
    for image in ["busybox:latest", "hello:1.1.1", "example.org/own/name:7"] {
        assert!(list.contains(image), "no {image} in {list}");
    }
    for (name, image) in [
        ("archive", "busybox"),
        ("layout", "hello:1.1.1"),
        ("renamed", "example.org/own/name:7"),
    ] {
        cluster.run(&pod(name, &using(image, "Always"), Value::Null));
    }
    let nonsense = cluster.dir().join("nonsense.tar");
    std::fs::write(&nonsense, "not an archive").unwrap();
    let said = cluster.skiff(&["image", "import", &nonsense.display().to_string()]);
    assert_eq!(said.code, 1, "{said}");
    assert_eq!(cluster.skiff(&["image", "ls"]).ok(), list);
}

fn pulls(cluster: &Cluster, address: &str) {
    cluster.run(&pod("mirrored", &using(REMOTE, "Always"), Value::Null));
    let direct = format!("{address}/team/tool:1");
    let running = cluster.run(&pod("direct", &using(&direct, "IfNotPresent"), Value::Null));
    let id = running["status"]["containerStatuses"][0]["imageID"]
        .as_str()
        .unwrap();
    assert!(id.contains("sha256:"), "{id}");
    // The same by its digest.
    let digest = id.rsplit_once("sha256:").unwrap().1;
    let pinned = format!("{address}/team/tool@sha256:{digest}");
    cluster.run(&pod("pinned", &using(&pinned, "IfNotPresent"), Value::Null));
}

fn refuses(cluster: &Cluster, address: &str) {
    let missing = format!("{address}/team/none:1");
    cluster.apply(&pod("none", &using(&missing, "IfNotPresent"), Value::Null));
    cluster.apply(&pod("never", &using("not-here:1", "Never"), Value::Null));
    let none = cluster.until("none", "to back off", 60, |it| {
        waiting(it)["reason"] == "ImagePullBackOff"
    });
    let message = waiting(&none)["message"].as_str().unwrap();
    for part in [missing.as_str(), "manifest unknown"] {
        assert!(message.contains(part), "no {part:?} in {message:?}");
    }
    let never = cluster.until("never", "to be refused", 30, |it| {
        waiting(it)["reason"] == "ErrImageNeverPull"
    });
    let message = waiting(&never)["message"].as_str().unwrap();
    assert!(message.contains("not-here:1"), "{message}");
    // It comes, and the Pod starts at the next attempt.
    push(address, "busybox", "team/none:1");
    cluster.running("none");
}

/// What a registry's configuration says when it asks for a password.
pub(crate) fn account(dir: &Path, user: &str, password: &str) -> String {
    let hashed = Said::of(
        Path::new("htpasswd"),
        &["-nbB", "-C", "4", user, password],
        &[],
        "",
    );
    let file = dir.join("htpasswd");
    std::fs::write(&file, hashed.ok()).unwrap();
    format!(
        "auth:\n  htpasswd:\n    realm: depot\n    path: {}\n",
        file.display()
    )
}

/// What a registry asks for, as `kubectl create secret docker-registry` gives it.
#[test]
fn a_registry_that_asks_for_a_password_is_given_the_pods() {
    let dir = tempfile::tempdir().unwrap();
    let password = "s3cret: with a colon";
    let auth = account(dir.path(), "rover", password);
    let (_registry, address) = registry_with(dir.path(), &auth);
    push_as(
        &address,
        &programs::archive("busybox"),
        "team/tool:1",
        Some(&format!("rover:{password}")),
    );
    let cluster = Cluster::start(&Setup {
        agent: &format!("[registries.\"{address}\"]\nplain_http = true\n"),
        ..Setup::default()
    });
    let image = format!("{address}/team/tool:1");
    let with = |secret: &str| json!({ "imagePullSecrets": [{ "name": secret }] });
    let login = |name: &str, password: &str| {
        let words = [
            "create",
            "secret",
            "docker-registry",
            name,
            &format!("--docker-server={address}"),
            "--docker-username=rover",
            &format!("--docker-password={password}"),
        ];
        cluster.kubectl(&words).ok();
    };
    login("wrong", "guessed");
    let said = cluster.apply(&pod("later", &using(&image, "Always"), with("regcred")));
    assert!(!said.contains("Warning"), "{said}");
    cluster.apply(&pod("nobody", &using(&image, "Always"), Value::Null));
    cluster.apply(&pod("guesses", &using(&image, "Always"), with("wrong")));
    for name in ["later", "nobody", "guesses"] {
        let waits = cluster.until(name, "to back off", 60, |it| {
            waiting(it)["reason"] == "ImagePullBackOff"
        });
        let message = waiting(&waits)["message"].as_str().unwrap();
        for part in [image.as_str(), "authentication required"] {
            assert!(message.contains(part), "no {part:?} in {message:?}");
        }
        assert!(!message.contains("guessed"), "{message}");
    }
    let events = cluster
        .kubectl(&["get", "events", "--field-selector", "involvedObject.name=later"])
        .ok();
    let missing = "Unable to retrieve some image pull secrets (regcred)";
    assert!(
        events.contains("FailedToRetrieveImagePullSecret") && events.contains(missing),
        "{events}"
    );

    login("regcred", password);
    cluster.running("later");
    let stays = cluster.get("nobody").unwrap();
    assert_eq!(waiting(&stays)["reason"], "ImagePullBackOff", "{stays}");
    // A Secret that is corrected is as good as a new one.
    cluster.kubectl(&["delete", "secret", "wrong"]).ok();
    login("wrong", password);
    cluster.running("guesses");
    let nonsense = cluster.kubectl(&[
        "create",
        "secret",
        "generic",
        "nonsense",
        "--type=kubernetes.io/dockerconfigjson",
        "--from-literal=.dockerconfigjson=hunter2",
    ]);
    assert_eq!(nonsense.code, 1, "{nonsense}");
    assert!(
        nonsense
            .err
            .contains("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\""),
        "{nonsense}"
    );
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}
