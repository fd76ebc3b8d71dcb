//! An image over a link that breaks, and past ends of the agent: no byte of it crosses the link twice.
//!
//! Always holds: the registry is Docker's own, which asks for a password, and everything from it comes over a link that
//! counts; the Pod looks at each file of its image itself.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use serde_json::json;
use skiff_tests::rng::Rng;

use crate::harness::pods::IDLE;
use crate::harness::relay::Relay;
use crate::harness::{Cluster, Said, Setup, payload, pod, programs, shell, until};
use crate::images::{account, push_as, push_like, registry_with};

/// Files of the image, and bytes of each: 30 MB that do not compress.
const SIZE: (usize, usize) = (6, 5_000_001);

/// Bytes after which the link breaks each connection.
const CUT: u64 = 200_000;

/// Bytes of a block of what is kept: what the sudden end of a pull costs at most.
const BLOCK: u64 = 64 << 10;

/// When the agent is killed, in bytes over the link.
const KILLS: [u64; 2] = [5_000_000, 17_000_000];

/// Bytes a second of a link that is slow and does not break: 30 MB take most of a minute.
const SLOW: u64 = 800_000;

/// Who may pull, and the same as an HTTP header has it.
const ACCOUNT: &str = "rover:secret";
const BASIC: &str = "cm92ZXI6c2VjcmV0";

/// Bytes of all that the registry holds.
fn held(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.metadata().unwrap() {
        it if it.is_dir() => held(&entry.path()),
        it => it.len(),
    });
    sizes.sum()
}

#[test]
fn an_image_comes_once_over_a_link_that_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, registry) = registry_with(dir.path(), &account(dir.path(), "rover", "secret"));
    let archive = payload::write(
        &programs::archive("busybox"),
        dir.path(),
        "payload:1",
        SIZE,
        &mut Rng::new(5),
    );
    push_as(&registry, &archive, "team/payload:1", Some("rover:secret"));
    let size = held(&dir.path().join("blobs/docker/registry/v2/blobs"));
    assert!(size > 30_000_000, "{size} bytes");
    let link = Relay::start(registry.parse().unwrap());
    link.cut_after(CUT);
    let address = link.address();
    let mut cluster = Cluster::start(&Setup {
        agent: &format!(
            "[registries.\"{address}\"]\nplain_http = true\nusername = \"rover\"\npassword = \"secret\"\n"
        ),
        ..Setup::default()
    });
    let mut container = shell(&format!("{}; {IDLE}", payload::CHECK));
    container["image"] = json!(format!("{address}/team/payload:1"));
    link.stand_still_at(KILLS[0]);
    cluster.apply(&pod("payload", &container, json!({})));
    for (number, kill) in KILLS.into_iter().enumerate() {
        until("so much of the image to come", 120, || link.carried() >= kill);
        // The link stands still, as before a reboot that nobody planned.
        cluster.node.kill();
        match KILLS.get(number + 1) {
            Some(next) => link.stand_still_at(*next),
            None => link.go_on(),
        }
        cluster.node.start();
    }
    cluster.running("payload");
    cluster.logs_say(&["payload"], "whole\n");
    let carried = link.carried();
    println!(
        "{carried} bytes over the link for {size}, in {} connections and with {} kills: {:.4}",
        link.connections(),
        KILLS.len(),
        carried as f64 / size as f64
    );
    let most = size + size / 50 + KILLS.len() as u64 * BLOCK;
    assert!((size..=most).contains(&carried), "{carried} bytes for {size}");
    assert!(link.connections() > size / CUT, "the link did not break");
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

/// Puts an index under a name, of which one image is for this machine.
fn put_index(registry: &str, repository: &str, tag: &str, image: &str) {
    let target = format!("docker://{registry}/{repository}:{image}");
    let account = format!("--creds={ACCOUNT}");
    let words = ["inspect", "--raw", "--tls-verify=false", &account, &target];
    let manifest = Said::of(&programs::skopeo(), &words, &[], "").ok();
    let entry = |digest: &str, architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{digest}"),
            "size": manifest.len(), "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let here = skiff_images::pull::Platform::host().architecture;
    let digest = payload::digest(manifest.as_bytes());
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(&digest, "riscv64"), entry(&digest, &here)],
    })
    .to_string();
    let mut stream = TcpStream::connect(registry).unwrap();
    write!(
        stream,
        "PUT /v2/{repository}/manifests/{tag} HTTP/1.0\r\nHost: {registry}\r\nAuthorization: Basic {BASIC}\r\n\
         Content-Type: application/vnd.oci.image.index.v1+json\r\nContent-Length: {}\r\n\r\n{index}",
        index.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 201 Created"), "{answer}");
}

#[test]
fn images_of_every_kind_come_over_a_slow_link_which_says_how_far_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (_registry, registry) = registry_with(dir.path(), &account(dir.path(), "rover", "secret"));
    let busybox = programs::archive("busybox");
    let push = |archive: &Path, name: &str, like: &[&str]| {
        push_like(&registry, archive, name, Some(ACCOUNT), like);
    };
    push(&busybox, "team/small:docker", &["--format=v2s2"]);
    push(&busybox, "team/small:oci", &["--format=oci"]);
    push(
        &busybox,
        "team/small:zstd",
        &["--format=oci", "--dest-compress-format=zstd"],
    );
    put_index(&registry, "team/small", "index", "oci");
    let large = payload::write(&busybox, dir.path(), "payload:2", SIZE, &mut Rng::new(6));
    push(&large, "team/large:1", &["--format=v2s2"]);
    let link = Relay::start(registry.parse().unwrap());
    link.throttle(SLOW);
    let address = link.address();
    let cluster = Cluster::start(&Setup {
        agent: &format!(
            "[registries.\"{address}\"]\nplain_http = true\nusername = \"rover\"\npassword = \"secret\"\n"
        ),
        ..Setup::default()
    });
    let mut container = shell(&format!("{}; {IDLE}", payload::CHECK));
    container["image"] = json!(format!("{address}/team/large:1"));
    cluster.apply(&pod("large", &container, json!({})));
    for kind in ["docker", "oci", "zstd", "index"] {
        let mut container = shell(IDLE);
        container["image"] = json!(format!("{address}/team/small:{kind}"));
        cluster.run(&pod(kind, &container, json!({})));
    }
    let shown = cluster.node.agent(&["images"]).ok();
    let line = format!("pulling {address}/team/large:1: ");
    assert!(shown.contains(&line), "{shown}");
    until("an event that says how far it is", 60, || {
        let events = cluster.kubectl(&["get", "events"]).ok();
        events.contains(&format!("Pulling image \"{address}/team/large:1\": "))
    });
    cluster.running("large");
    cluster.logs_say(&["large"], "whole\n");
    // Counted as the link has it, but for the heads of answers.
    let metrics = cluster.node.agent(&["metrics"]).ok();
    let figure = "skiff_image_received_bytes_total{source=\"registry\"} ";
    let line = metrics.lines().find_map(|it| it.strip_prefix(figure)).unwrap();
    let (counted, carried) = (line.parse::<u64>().unwrap(), link.carried());
    println!("{counted} bytes of images, {carried} over the link");
    assert!(
        (carried - carried / 50..=carried).contains(&counted),
        "{counted} of {carried}"
    );
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}
