//! Pulls that go on with what an earlier one had got, and pulls that need the same layer.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::fixture::{Fixture, Request, honest};
use common::{
    Compression, Layout, compress, content, noise, one_layer, request, run, sha256, source, spawn, tar,
    usual_config,
};
use serde_json::json;
use skiff_images::Store;
use skiff_images::pull::PullRequest;

#[test]
fn role() {
    common::role();
}

/// The ranges that a layer was asked for in, and how many bytes of it went over the wire.
struct Wire {
    layer: String,
    /// Bytes of each answer, at most; nothing is all.
    most: Mutex<Option<usize>>,
    /// What a connection does after them: it stays open and says nothing.
    hangs: bool,
    served: Mutex<u64>,
}

impl Wire {
    fn new(layer: &str, most: usize, hangs: bool) -> Arc<Self> {
        Arc::new(Self {
            layer: layer.to_owned(),
            most: Mutex::new(Some(most)),
            hangs,
            served: Mutex::default(),
        })
    }

    fn fixture(self: &Arc<Self>, layout: &Layout) -> Fixture {
        let (serve, wire) = (honest(layout.dir.path().to_owned()), self.clone());
        Fixture::start(move |request| {
            let mut reply = serve(request);
            if request.path.contains(&wire.layer) {
                let most = *wire.most.lock().unwrap();
                let length = most.unwrap_or(usize::MAX).min(reply.body.len());
                *wire.served.lock().unwrap() += length as u64;
                reply.cut = most.map(|_| length);
                reply.hangs = wire.hangs && most.is_some();
            }
            reply
        })
    }

    /// From now on the link is good.
    fn mend(&self) {
        *self.most.lock().unwrap() = None;
    }

    fn ranges(&self, fixture: &Fixture) -> Vec<u64> {
        let start = |request: &Request| {
            let range = request.header("range").unwrap_or("bytes=0-");
            range
                .trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse()
                .unwrap()
        };
        let requests = fixture.requests();
        let of_layer = requests.iter().filter(|it| it.path.contains(&self.layer));
        of_layer.map(start).collect()
    }
}

/// Bytes of a block of what is kept: what SIGKILL costs at most.
const BLOCK: u64 = 64 << 10;

/// A request that waits longer than a test takes for a link that hangs.
fn patient(tag: &str, fixture: &Fixture, store: &Path) -> PullRequest {
    let mut pull = request(&format!("a/b:{tag}"), vec![source(fixture)], store);
    pull.limits.stall_timeout_seconds = 60;
    pull
}

fn kept(store: &Path) -> usize {
    fs::read_dir(store.join("partial")).unwrap().count()
}

/// A pull that gives up leaves what it has got to the next one.
#[test]
fn the_next_pull_goes_on_where_the_last_one_gave_up() {
    let text = noise(1 << 20);
    let (layout, layer) = one_layer(&[("big", &text)], Compression::Gzip);
    let size = layout.size(&layer);
    let wire = Wire::new(&layer, 60_000, false);
    let fixture = wire.fixture(&layout);
    let store = tempfile::tempdir().unwrap();
    let pull = request("a/b:v1", vec![source(&fixture)], store.path());
    let stop = wire.clone();
    std::thread::spawn(move || {
        // However fast this machine is, it is stopped before the end.
        while *stop.served.lock().unwrap() < 300_000 {
            std::thread::sleep(Duration::from_millis(1));
        }
        *stop.most.lock().unwrap() = Some(0);
    });
    let (reason, _) = run(&pull).error();
    assert_eq!(reason, "RegistryUnavailable");
    assert_eq!(kept(store.path()), 1);
    let first = *wire.served.lock().unwrap();
    assert!((300_000..size).contains(&first), "{first} of {size}");
    wire.mend();
    let before = wire.ranges(&fixture).len();
    run(&pull).ok();
    assert_eq!(content(store.path(), "a/b:v1", 0, "big"), text);
    assert_eq!(
        wire.ranges(&fixture)[before..],
        [first],
        "nothing was fetched twice"
    );
    assert_eq!(*wire.served.lock().unwrap(), size);
    assert_eq!(kept(store.path()), 0, "what is whole is kept once");
}

/// SIGKILL costs a block at most.
#[test]
fn a_pull_that_was_killed_goes_on() {
    let text = noise(2 << 20);
    let (layout, layer) = one_layer(&[("big", &text)], Compression::Gzip);
    let size = layout.size(&layer);
    let wire = Wire::new(&layer, 250_000, true);
    let fixture = wire.fixture(&layout);
    let store = tempfile::tempdir().unwrap();
    let pull = patient("v1", &fixture, store.path());
    for kill in 1..=3_u64 {
        let mut child = spawn(&pull);
        // All that this connection gives has come when the file holds all whole blocks of it.
        let file = || fs::read_dir(store.path().join("partial")).ok()?.next()?.ok();
        let length = || file().and_then(|it| it.metadata().ok()).map_or(0, |it| it.len());
        let deadline = Instant::now() + Duration::from_secs(20);
        while length() < kill * 250_000 - kill * BLOCK {
            assert!(Instant::now() < deadline, "kill {kill}: {} bytes", length());
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        drop(Store::open(store.path()).unwrap());
        assert_eq!(kept(store.path()), 1, "a start of the agent keeps it");
    }
    wire.mend();
    run(&pull).ok();
    assert_eq!(content(store.path(), "a/b:v1", 0, "big"), text);
    let ranges = wire.ranges(&fixture);
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert!(ranges.is_sorted() && ranges[3] > 500_000, "{ranges:?}");
    let served = *wire.served.lock().unwrap();
    assert!(
        (size..=size + 3 * BLOCK).contains(&served),
        "{served} bytes for {size}"
    );
    println!("{served} bytes over the wire for {size}, with 3 kills; asked from {ranges:?}");
}

/// Whatever the file of an earlier pull holds, the image is right, and nothing of it is believed for its own sake.
#[test]
fn what_was_kept_wrong_is_fetched_anew() {
    let text = noise(300_000);
    let (layout, layer) = one_layer(&[("big", &text)], Compression::Gzip);
    let (other, other_layer) = one_layer(&[("big", &noise(300_001))], Compression::Gzip);
    let honest = |layout: &Layout| Fixture::start(honest(layout.dir.path().to_owned()));
    // A file as a pull of another layer leaves it, which checks and is another's.
    let strange = tempfile::tempdir().unwrap();
    let wire = Wire::new(&other_layer, 150_000, true);
    let fixture = wire.fixture(&other);
    let mut child = spawn(&patient("v1", &fixture, strange.path()));
    let from = strange
        .path()
        .join("partial")
        .join(other_layer.trim_start_matches("sha256:"));
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::metadata(&from).map_or(0, |it| it.len()) < 2 * BLOCK {
        assert!(Instant::now() < deadline, "nothing came");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let store = tempfile::tempdir().unwrap();
    drop(Store::open(store.path()).unwrap());
    let path = store
        .path()
        .join("partial")
        .join(layer.trim_start_matches("sha256:"));
    fs::copy(&from, &path).unwrap();
    let fixture = honest(&layout);
    let pull = request("a/b:v1", vec![source(&fixture)], store.path());
    run(&pull).ok();
    assert_eq!(content(store.path(), "a/b:v1", 0, "big"), text);
    assert_eq!(kept(store.path()), 0);

    // Rubbish is nothing, and costs nothing.
    let store = tempfile::tempdir().unwrap();
    drop(Store::open(store.path()).unwrap());
    let path = store.path().join("partial").join(path.file_name().unwrap());
    fs::write(&path, noise(100_000)).unwrap();
    run(&request("a/b:v1", vec![source(&fixture)], store.path())).ok();
    assert_eq!(content(store.path(), "a/b:v1", 0, "big"), text);
}

/// Two images of one layer, pulled at once: it crosses the link once.
#[test]
fn two_pulls_fetch_a_layer_once() {
    let text = noise(400_000);
    let mut layout = Layout::new();
    let layers = [(tar(&[("big", &text)]), Compression::Gzip)];
    let layer = sha256(&compress(&layers[0].0, Compression::Gzip).0);
    for name in ["v1", "v2"] {
        let mut config = usual_config();
        config["Env"] = json!([format!("NAME={name}")]);
        let image = layout.image(("amd64", None), &config, &layers);
        layout.tag(name, &image);
    }
    let wire = Wire::new(&layer, 100_000, true);
    let fixture = wire.fixture(&layout);
    let store = tempfile::tempdir().unwrap();
    let [first, second] = ["v1", "v2"].map(|name| {
        let child = spawn(&patient(name, &fixture, store.path()));
        std::thread::sleep(Duration::from_millis(700));
        child
    });
    // The first hangs in the middle of the layer, and the second waits for it; then the first is killed.
    assert_eq!(wire.ranges(&fixture), [0]);
    wire.mend();
    let mut first = first;
    first.kill().unwrap();
    first.wait().unwrap();
    let output = second.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(content(store.path(), "a/b:v2", 0, "big"), text);
    let ranges = wire.ranges(&fixture);
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(ranges[1] > 0, "{ranges:?}");
}

/// Pulls that share a limit are together sent no more than it.
#[test]
fn pulls_keep_to_a_limit_together() {
    const LIMIT: u64 = 200_000;
    let dir = tempfile::tempdir().unwrap();
    let pace = skiff_images::Pace {
        file: dir.path().join("node"),
        bytes_per_second: LIMIT,
    };
    let mut sum = 0;
    let began = Instant::now();
    let mut pulls = Vec::new();
    for number in 0..2 {
        let (layout, layer) = one_layer(&[("own", &noise(150_000 + number))], Compression::Gzip);
        let fixture = Fixture::start(honest(layout.dir.path().to_owned()));
        let store = tempfile::tempdir().unwrap();
        let mut pull = request("a/b:v1", vec![source(&fixture)], store.path());
        pull.sources[0].paces = vec![pace.clone()];
        sum += layout.size(&layer);
        pulls.push((spawn(&pull), layout, fixture, store));
    }
    for (child, ..) in &mut pulls {
        assert!(child.wait().unwrap().success());
    }
    // Once what comes at once after a pause is taken from it.
    let least = Duration::from_secs_f64((sum - LIMIT / 10) as f64 / LIMIT as f64);
    assert!(
        sum > LIMIT && began.elapsed() >= least,
        "{sum} bytes in {:?}",
        began.elapsed()
    );
    for (mut child, ..) in pulls {
        let mut said = String::new();
        std::io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let fetched = said.lines().rev().find(|it| it.contains("fetched")).unwrap();
        assert!(
            fetched.contains("\"registry\":1") && fetched.contains("\"server\":0"),
            "{fetched}"
        );
    }
}
