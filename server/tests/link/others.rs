//! What stands beside the link: images over HTTPS, and a broker that somebody else runs.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use skiff_protocol::wire::Down;
use skiff_server::BrokerConfig;

use crate::harness::{Fleet, pod};
use crate::{PODS, in_step, ready_is, resync};

fn sha256(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// An OCI layout with one image of one layer, as an archive; and the layer.
fn archive() -> (Vec<u8>, Vec<u8>) {
    let layer = vec![0; 1024];
    let config = json!({
        "architecture": "arm64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [sha256(&layer)] },
    });
    let config = config.to_string().into_bytes();
    let described = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", &config),
        "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [described("application/vnd.oci.image.manifest.v1+json", &manifest)],
    });
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#);
    add("index.json".into(), index.to_string().as_bytes());
    for blob in [&layer, &config, &manifest] {
        add(sha256(blob).replacen("sha256:", "blobs/sha256/", 1), blob);
    }
    (tar.into_inner().unwrap(), layer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_come_from_administrators_and_go_to_nodes() {
    let fleet = Fleet::start().await;
    let (archive, layer) = archive();
    let path = "/skiff/v1/images?name=registry.example/team/app:1";
    let (code, body) = fleet.api.send("POST", path, archive).await;
    assert_eq!(code, 201, "{}", String::from_utf8_lossy(&body));
    let image = serde_json::from_slice::<Value>(&body).unwrap()["images"][0].clone();
    assert_eq!(
        (&image["reference"], &image["layers"]),
        (&json!("registry.example/team/app:1"), &json!(1))
    );
    let listed = fleet.api.call("GET", "/skiff/v1/images", None).await;
    assert_eq!(listed["images"][0]["digest"], image["digest"]);

    let node = fleet.node("rover-7").await;
    let pull = node.api();
    let manifest = "/v2/team/app/manifests/1?ns=registry.example";
    let got = pull.call("GET", manifest, None).await;
    let blob = format!(
        "/v2/team/app/blobs/{}",
        got["layers"][0]["digest"].as_str().unwrap()
    );
    assert_eq!(pull.send("GET", &blob, Vec::new()).await, (200, layer));
    // A node pulls, and that is all it may.
    for (method, path) in [
        ("GET", "/skiff/v1/images"),
        ("POST", "/skiff/v1/images"),
        ("GET", PODS),
    ] {
        assert_eq!(
            pull.send(method, path, Vec::new()).await.0,
            403,
            "{method} {path}"
        );
    }
    fleet.api.call("DELETE", "/skiff/v1/nodes/rover-7", None).await;
    assert_eq!(
        pull.send("GET", manifest, Vec::new()).await.0,
        403,
        "it is no member any more"
    );
}

/// A Mosquitto of the test's own; it ends with its value.
struct Mosquitto(Child);

impl Mosquitto {
    fn start(conf: &std::path::Path) -> Self {
        let mut command = Command::new("mosquitto");
        command
            .arg("-c")
            .arg(conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(
            command
                .spawn()
                .expect("mosquitto runs: Debian has it in the package mosquitto"),
        )
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_carries_the_same_and_may_go_away() {
    let port = skiff_tests::port::free().port();
    let url = format!("mqtts://127.0.0.1:{port}");
    let fleet = Fleet::start_with(|config, _| {
        config.broker = BrokerConfig::External {
            url: url.clone(),
            credentials: None,
        };
    });
    let fleet = fleet.await;
    // The server wrote what the broker needs; Mosquitto gives up root unless it is told not to.
    let conf = fleet.dir.path().join("broker/mosquitto.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("user root\n{text}")).unwrap();
    let broker = Mosquitto::start(&conf);

    let mut node = fleet.node("rover-7").await;
    assert_eq!(node.joined.broker_url, url);
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.connect(&url).await;
    // The server comes to the broker when it tries again; then it asks those whom it knows, and hears the hellos of others.
    let nodes = "/api/v1/nodes/rover-7";
    let answer = |down: &Down| resync(down).map(|()| None).or(in_step(down).map(Some));
    if node.hello_until("an answer", answer).await.is_none() {
        node.hello().await;
    }
    fleet.api.until(nodes, |it| ready_is(it, "True")).await;
    fleet.api.call("POST", PODS, Some(pod("web"))).await;
    node.apply_until(|it| it.pod("web").is_some()).await;

    // The broker goes and comes back; the server asks, and everything is as it was.
    node.drop_connection();
    drop(broker);
    let _broker = Mosquitto::start(&conf);
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.connect(&url).await;
    let generation = node.generation;
    node.hello().await;
    // Whichever of the two comes back last sees to it: the server by asking, the node by its hello.
    let held = match node.expect("an answer", answer).await {
        Some(held) => held,
        None => {
            node.hello().await;
            node.expect("InStep", in_step).await
        }
    };
    assert_eq!(held, generation);
    fleet.api.until(nodes, |it| ready_is(it, "True")).await;
}
