//! An image over a link that breaks, and past ends of the agent: no byte of it crosses the link twice.
//!
//! Always holds: the registry is Docker's own, which asks for a password, and everything from it comes over a link that
//! counts; the Pod looks at each file of its image itself.

use std::path::Path;

use serde_json::json;
use skiff_tests::rng::Rng;

use crate::harness::pods::IDLE;
use crate::harness::relay::Relay;
use crate::harness::{Cluster, Setup, payload, pod, programs, shell, until};
use crate::images::{account, push_as, registry_with};

/// Files of the image, and bytes of each: 30 MB that do not compress.
const SIZE: (usize, usize) = (6, 5_000_001);

/// Bytes after which the link breaks each connection.
const CUT: u64 = 200_000;

/// Bytes of a block of what is kept: what the sudden end of a pull costs at most.
const BLOCK: u64 = 64 << 10;

/// When the agent is killed, in bytes over the link.
const KILLS: [u64; 2] = [5_000_000, 17_000_000];

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
