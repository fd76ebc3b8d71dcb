//! The everyday commands against a real server, which runs in this process.

#![allow(clippy::unwrap_used, reason = "a test says by its line what failed")]

mod skiff;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use skiff::Told;
use skiff_protocol::image_ref::Digest;
use skiff_protocol::sha256;
use skiff_server::{Config, Server};

/// A server in a directory of its own, and the program told where it is.
struct Fixture {
    kubeconfig: String,
    token_kubeconfig: String,
    dir: tempfile::TempDir,
    server: Server,
}

impl Fixture {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(Config::local(&dir.path().join("data")))
            .await
            .unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        Self {
            kubeconfig: text(&server.kubeconfig_path),
            token_kubeconfig: text(&server.token_kubeconfig_path),
            dir,
            server,
        }
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Told {
        let arguments: Vec<String> = ["--kubeconfig", &self.kubeconfig]
            .iter()
            .chain(arguments)
            .map(ToString::to_string)
            .collect();
        let input = input.to_owned();
        let run = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            skiff::skiff(&arguments, &input)
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// The command does well, and says exactly this on standard output.
    async fn check(&self, arguments: &[&str], input: &str, out: &str) -> Told {
        let told = self.run(arguments, input).await;
        assert_eq!(
            (told.status, told.out.as_str()),
            (0, out),
            "{arguments:?}\n{told:?}"
        );
        told
    }

    /// The command fails, and says this among other things.
    async fn check_fails(&self, arguments: &[&str], input: &str, err: &str) {
        let told = self.run(arguments, input).await;
        assert!(
            told.status == 1 && told.err.contains(err),
            "{arguments:?} lacks {err:?}\n{told:?}"
        );
    }

    async fn json(&self, arguments: &[&str]) -> Value {
        let told = self.run(&[arguments, &["-o", "json"]].concat(), "").await;
        serde_json::from_str(&told.out).unwrap_or_else(|error| panic!("{error}: {told:?}"))
    }
}

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - {name: a, image: 'nginx:1', env: [{name: A, value: x && y}]}
";

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: '1', b: '2'}\n";

#[tokio::test(flavor = "multi_thread")]
async fn apply_get_and_delete() {
    let it = Fixture::start().await;
    let both = format!("{POD}---\n{MAP}");
    it.check(
        &["apply", "-f", "-", "--dry-run"],
        &both,
        "pod/web created (dry run)\nconfigmap/settings created (dry run)\n",
    )
    .await;
    it.check(&["get", "cm", "-o", "name"], "", "").await;
    it.check(
        &["apply", "-f", "-"],
        &both,
        "pod/web created\nconfigmap/settings created\n",
    )
    .await;
    it.check(
        &["apply", "-f", "-"],
        &both,
        "pod/web unchanged\nconfigmap/settings unchanged\n",
    )
    .await;

    // What was taken out of the file goes, what somebody else added stays.
    let changed = MAP.replace("a: '1', b: '2'", "a: '3'");
    it.check(&["apply", "-f", "-"], &changed, "configmap/settings configured\n")
        .await;
    assert_eq!(it.json(&["get", "cm/settings"]).await["data"], json!({"a": "3"}));
    let labelled = POD.replace("app: web", "app: web, tier: front");
    it.check(&["apply", "-f", "-"], &labelled, "pod/web configured\n")
        .await;
    it.check(&["apply", "-f", "-"], POD, "pod/web configured\n").await;
    assert_eq!(
        it.json(&["get", "pod", "web"]).await["metadata"]["labels"],
        json!({"app": "web"})
    );

    // What `get -o yaml` gives, `apply` takes.
    let yaml = it.run(&["get", "cm", "settings", "-o", "yaml"], "").await.out;
    it.check(&["apply", "-f", "-"], &yaml, "configmap/settings configured\n")
        .await;

    let table = it.run(&["get", "pods"], "").await.out;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(lines[1][..4], ["web", "0/1", "Pending", "0"]);
    let wide = it.run(&["get", "po", "-A", "-o", "wide"], "").await.out;
    assert!(
        wide.starts_with("NAMESPACE   NAME") && wide.contains("NODE"),
        "{wide}"
    );
    it.check(&["get", "pods", "-l", "app=web", "-o", "name"], "", "pod/web\n")
        .await;
    let none = it.check(&["get", "pods", "-l", "app!=web"], "", "").await;
    assert_eq!(none.err, "No resources found in default namespace.\n");
    it.check_fails(
        &["get", "pod", "nothing"],
        "",
        "error: pods \"nothing\" not found",
    )
    .await;
    it.check_fails(&["logs", "web"], "", "does not have a host assigned")
        .await;

    it.check_fails(
        &["delete", "cm/nothing", "cm/settings"],
        "",
        "configmaps \"nothing\" not found",
    )
    .await;
    it.check_fails(&["get", "cm", "settings"], "", "not found").await;
    it.check(&["delete", "cm/settings", "--ignore-not-found"], "", "")
        .await;
    it.check(&["delete", "-f", "-", "--now"], POD, "pod \"web\" deleted\n")
        .await;
    it.check(&["get", "pods", "-o", "name"], "", "").await;
    it.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_shown_in_the_file_and_nothing_is_stored() {
    let it = Fixture::start().await;
    it.check(&["apply", "-f", "-"], POD, "pod/web created\n").await;
    // A Pod's containers cannot change but for their images: only the server knows what there was.
    let file = it.dir.path().join("two.yaml");
    let changed = POD.replace("value: x && y", "value: z");
    std::fs::write(&file, format!("{MAP}---\n{changed}")).unwrap();
    let told = it.run(&["apply", "-f", file.to_str().unwrap()], "").await;
    assert_eq!((told.status, told.out.as_str()), (1, ""), "{told:?}");
    assert!(told.err.contains(&format!("{}:", file.display())), "{told:?}");
    assert!(
        told.err
            .contains("spec: Forbidden: pod updates may not change fields other than"),
        "{told:?}"
    );
    assert!(told.err.ends_with("error: nothing was stored\n"), "{told:?}");
    it.check_fails(&["get", "cm", "settings"], "", "not found").await;

    it.check_fails(
        &["apply", "-n", "nowhere", "-f", "-"],
        MAP,
        "namespaces \"nowhere\" not found",
    )
    .await;
    // A namespace may come with what is in it.
    let inside = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: new}}\n---\n{}",
        MAP.replace("name: settings", "name: settings, namespace: new")
    );
    it.check(
        &["apply", "-f", "-"],
        &inside,
        "namespace/new created\nconfigmap/settings created\n",
    )
    .await;
    it.check(
        &["delete", "-f", "-"],
        &inside,
        "configmap \"settings\" deleted\nnamespace \"new\" deleted\n",
    )
    .await;
    it.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_what_changes() {
    let it = Fixture::start().await;
    it.check(&["apply", "-f", "-"], MAP, "configmap/settings created\n")
        .await;
    let mut child = skiff::command(&["--kubeconfig", &it.kubeconfig, "get", "cm", "-w", "-o", "name"])
        .spawn()
        .unwrap();
    let mut lines = lines(child.stdout.take().unwrap());
    let mut next = async || {
        tokio::time::timeout(Duration::from_secs(20), lines.recv())
            .await
            .unwrap()
    };
    assert_eq!(next().await.as_deref(), Some("configmap/settings"));
    it.check(
        &["apply", "-f", "-"],
        &MAP.replace("settings", "other"),
        "configmap/other created\n",
    )
    .await;
    assert_eq!(next().await.as_deref(), Some("configmap/other"));
    child.kill().unwrap();
    child.wait().unwrap();
    it.server.stop().await.unwrap();
}

/// Lines of a child's output as they come.
fn lines(mut out: impl std::io::Read + Send + 'static) -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (sender, lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut line = Vec::new();
        let mut byte = [0];
        while out.read_exact(&mut byte).is_ok() {
            if byte[0] == b'\n' {
                let _ = sender.send(String::from_utf8(std::mem::take(&mut line)).unwrap());
            } else {
                line.push(byte[0]);
            }
        }
    });
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_its_server() {
    let mut it = Fixture::start().await;
    it.check(&["apply", "-f", "-"], MAP, "configmap/settings created\n")
        .await;
    let mut child = skiff::command(&["--kubeconfig", &it.kubeconfig, "get", "cm", "-w", "-o", "name"])
        .spawn()
        .unwrap();
    let mut out = lines(child.stdout.take().unwrap());
    let mut err = lines(child.stderr.take().unwrap());
    let next = async |lines: &mut tokio::sync::mpsc::UnboundedReceiver<String>| {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.recv()).await;
        line.unwrap()
    };
    assert_eq!(next(&mut out).await.as_deref(), Some("configmap/settings"));
    let mut config = Config::local(&it.dir.path().join("data"));
    config.listen = it
        .server
        .api_url
        .strip_prefix("https://")
        .unwrap()
        .parse()
        .unwrap();
    it.server.stop().await.unwrap();
    // Away for longer than one attempt.
    let said = next(&mut err).await.unwrap();
    assert!(
        said.starts_with("warning: ") && said.ends_with("; trying again"),
        "{said}"
    );
    tokio::time::sleep(Duration::from_secs(2)).await;
    it.server = Server::start(config).await.unwrap();
    it.check(
        &["apply", "-f", "-"],
        &MAP.replace("settings", "other"),
        "configmap/other created\n",
    )
    .await;
    // A server that has forgotten the version has all of it shown anew.
    while let Some(line) = next(&mut out).await
        && line != "configmap/other"
    {
        assert_eq!(line, "configmap/settings");
    }
    assert!(err.try_recv().is_err(), "one warning an outage");
    child.kill().unwrap();
    child.wait().unwrap();
    it.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_fails_says_whose_fault_it_is_and_never_hangs() {
    let it = Fixture::start().await;
    let dir = it.dir.path().join("layout");
    layout(&dir);
    let arguments = ["image", "import", dir.to_str().unwrap(), "--name", "a:1"];
    // Reading this file fails, for root too.
    let blob = dir.join("blobs/sha256/unreadable");
    std::os::unix::fs::symlink("/proc/self/mem", &blob).unwrap();
    let told = it.run(&arguments, "").await;
    assert_eq!(told.status, 1, "{told:?}");
    assert!(told.err.contains(blob.to_str().unwrap()), "{told:?}");
    assert!(!told.err.contains("cannot reach"), "{told:?}");

    // Nobody may upload with a wrong token, and standard input stays open.
    let text = std::fs::read_to_string(&it.token_kubeconfig).unwrap();
    let at = text.find("token: ").unwrap() + "token: ".len() + 4;
    let wrong = it.dir.path().join("wrong");
    std::fs::write(&wrong, format!("{}AAAA{}", &text[..at], &text[at + 4..])).unwrap();
    let arguments = ["--kubeconfig", wrong.to_str().unwrap(), "image", "import", "-"];
    let mut child = skiff::command(&arguments).spawn().unwrap();
    let input = child.stdin.take().unwrap();
    let mut err = lines(child.stderr.take().unwrap());
    let ended = tokio::task::spawn_blocking(move || {
        for _ in 0..200 {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        None
    });
    let status = ended.await.unwrap().expect("it waits for standard input");
    drop(input);
    let said = err.recv().await.unwrap_or_default();
    assert!(
        status.code() == Some(1) && said.contains("Unauthorized"),
        "{status}: {said}"
    );
    it.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_enrolled_and_credentials_are_asked_for() {
    let it = Fixture::start().await;
    let token = it
        .run(&["node", "enrol", "rover-7", "--token-only"], "")
        .await
        .out;
    let token = skiff_protocol::enrol::JoinToken::parse(&token).unwrap();
    assert_eq!(token.node.as_str(), "rover-7");
    assert_eq!(token.server_urls, it.server.server_urls);
    let told = it
        .run(&["node", "enrol", "rover-7", "--valid-for", "1h"], "")
        .await;
    assert!(told.out.contains("\n  skiff-agent join skiff1."), "{told:?}");
    assert!(
        told.err.contains("only this machine can reach the server"),
        "{told:?}"
    );
    it.check_fails(
        &["node", "enrol", "rover-7", "--valid-for", "3000d"],
        "",
        "ttlSeconds",
    )
    .await;
    it.check(&["node", "ls"], "", "").await;

    // The other kubeconfig has a token instead of a certificate; a wrong token is nobody's.
    let text = std::fs::read_to_string(&it.token_kubeconfig).unwrap();
    let at = text.find("token: ").unwrap() + "token: ".len() + 4;
    let wrong = it.dir.path().join("wrong");
    std::fs::write(&wrong, format!("{}AAAA{}", &text[..at], &text[at + 4..])).unwrap();
    let run = |kubeconfig: String| {
        tokio::task::spawn_blocking(move || {
            skiff::skiff(
                &["--kubeconfig", &kubeconfig, "get", "ns", "default", "-o", "name"],
                "",
            )
        })
    };
    assert_eq!(
        run(it.token_kubeconfig.clone()).await.unwrap().out,
        "namespace/default\n"
    );
    let told = run(wrong.to_str().unwrap().to_owned()).await.unwrap();
    assert!(
        told.status == 1 && told.err.contains("Unauthorized; the credentials"),
        "{told:?}"
    );
    it.server.stop().await.unwrap();
}

/// The smallest OCI layout with a layer: an archive of nothing.
fn layout(dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::from_sha256(sha256(bytes));
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let layer = vec![0; 1024];
    let (layer, layer_size) = put(&layer);
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer]}, "config": {},
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
    });
    let (manifest, size) = put(manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size}],
    });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_imported_from_a_layout_and_listed() {
    let it = Fixture::start().await;
    let dir = it.dir.path().join("layout");
    layout(&dir);
    let dir = dir.to_str().unwrap();
    let told = it
        .run(&["image", "import", dir, "--name", "team/app:1"], "")
        .await;
    assert!(
        told.status == 0 && told.out.starts_with("docker.io/team/app:1 imported (sha256:"),
        "{told:?}"
    );
    let told = it.run(&["image", "ls"], "").await;
    assert!(told.out.contains("docker.io/team/app:1   sha256:"), "{told:?}");
    // By token too, for the upload has a connection of its own.
    let arguments = [
        "--kubeconfig",
        &it.token_kubeconfig,
        "image",
        "import",
        dir,
        "--name",
        "team/app:2",
    ];
    let arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
    let told = tokio::task::spawn_blocking(move || {
        skiff::skiff(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), "")
    });
    let told = told.await.unwrap();
    assert!(
        told.status == 0 && told.out.contains("team/app:2 imported"),
        "{told:?}"
    );

    it.check_fails(&["image", "import", dir], "", "name").await;
    let rubbish = it.dir.path().join("rubbish.tar");
    std::fs::write(&rubbish, vec![7; 300_000]).unwrap();
    it.check_fails(
        &["image", "import", rubbish.to_str().unwrap(), "--name", "a:1"],
        "",
        "error: ",
    )
    .await;
    it.server.stop().await.unwrap();
}
