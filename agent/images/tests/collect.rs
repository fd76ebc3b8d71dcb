//! What is taken out of the store, and what stays whatever is asked.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use common::fixture::{Fixture, honest};
use common::{Compression, Layout, content, noise, request, run, source, spawn, tar, usual_config};
use skiff_images::collect::{CollectRequest, Keep, collect};
use skiff_images::{Error, Store};
use skiff_protocol::image_ref::ImageRef;

#[test]
fn role() {
    common::role();
}

/// Images that share their lowest layer: each has a file of its own name beside it.
struct Shop {
    layout: Layout,
    store: tempfile::TempDir,
}

const NAMES: [&str; 4] = ["a/b:1", "a/b:2", "a/c:1", "a/d:1"];

impl Shop {
    /// A store with all of [`NAMES`], the first the longest unused.
    fn new() -> Self {
        let shop = Self {
            layout: layout(),
            store: tempfile::tempdir().unwrap(),
        };
        let fixture = Fixture::start(honest(shop.layout.dir.path().to_owned()));
        for (at, name) in NAMES.iter().enumerate() {
            let mut pull = request(name, vec![source(&fixture)], shop.store.path());
            pull.reference = format!("{name}-{at}");
            run(&pull).ok();
            shop.used(&pull.reference, 1000 - at as u64);
        }
        shop
    }

    fn open(&self) -> Store {
        Store::open(self.store.path()).unwrap()
    }

    /// It was last used so many seconds ago.
    fn used(&self, name: &str, ago: u64) {
        let store = self.open();
        let image = store.resolve(&parse(name)).unwrap().unwrap();
        let at = SystemTime::now() - Duration::from_secs(ago);
        store.note_used(&image.digest, at).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let listed = self.open().list().unwrap();
        let tag = |it: &ImageRef| it.to_string().rsplit('/').next().unwrap().to_owned();
        listed.iter().map(|it| tag(&it.reference)).collect()
    }

    fn layers(&self) -> usize {
        fs::read_dir(self.store.path().join("layers")).unwrap().count()
    }

    fn ask(&self, keep: Keep) -> CollectRequest {
        CollectRequest {
            store: self.store.path().to_owned(),
            keep,
            until_free: None,
            min_age_seconds: 0,
        }
    }

    /// What went, in order.
    fn collect(&self, ask: &CollectRequest) -> Result<Vec<String>, Error> {
        let mut gone = Vec::new();
        collect(ask, &mut |it| gone.push(it.what))?;
        Ok(gone)
    }
}

fn parse(name: &str) -> ImageRef {
    ImageRef::parse(name).unwrap()
}

/// An image for each of [`NAMES`], under a tag that says which.
fn layout() -> Layout {
    let mut layout = Layout::new();
    let base = tar(&[("base", &noise(5000))]);
    for (at, name) in NAMES.iter().enumerate() {
        let own = tar(&[("own", &format!("{name} {}", noise(3000)))]);
        let layers = [(base.clone(), Compression::Gzip), (own, Compression::Gzip)];
        let image = layout.image(("amd64", None), &usual_config(), &layers);
        let tag = name.rsplit_once(':').unwrap().1;
        layout.tag(&format!("{tag}-{at}"), &image);
    }
    layout
}

fn keep(names: &[&str]) -> Keep {
    Keep {
        references: names.iter().map(|it| parse(it)).collect(),
        ..Keep::default()
    }
}

#[test]
fn what_is_named_or_run_or_good_stays_whole_and_the_rest_goes_oldest_first() {
    let shop = Shop::new();
    assert_eq!(shop.layers(), 5, "four, and the one that they share");
    let store = shop.open();
    let of = |name: &str| store.resolve(&parse(name)).unwrap().unwrap();
    let (run, good) = (of("a/b:2-1").digest, of("a/c:1-2").digest);
    store.note_good("docker.io/a/c", &of("a/d:1-3").digest).unwrap();
    // Of a repository the last one counts.
    store.note_good("docker.io/a/c", &good).unwrap();
    let noted = store.good().unwrap();
    assert_eq!(noted, [("docker.io/a/c".to_owned(), good)].into());
    let stays = Keep {
        images: [run, noted["docker.io/a/c"]].into(),
        ..keep(&["a/d:1-3"])
    };
    assert_eq!(
        shop.collect(&shop.ask(stays.clone())).unwrap(),
        ["image docker.io/a/b:1-0"]
    );
    assert_eq!(shop.names(), ["b:2-1", "c:1-2", "d:1-3"]);
    assert_eq!(shop.layers(), 4);
    // What stays is whole, the shared layer too.
    for name in ["a/b:2-1", "a/c:1-2", "a/d:1-3"] {
        assert!(
            content(shop.store.path(), name, 0, "base").len() == 5000,
            "{name}"
        );
        assert!(
            content(shop.store.path(), name, 1, "own").contains("a/"),
            "{name}"
        );
    }
    let not_good = Keep {
        images: [run].into(),
        ..stays
    };
    assert_eq!(
        shop.collect(&shop.ask(not_good)).unwrap(),
        ["image docker.io/a/c:1-2"]
    );
    shop.used("a/b:2-1", 10);
    shop.used("a/d:1-3", 20);
    assert_eq!(
        shop.collect(&shop.ask(Keep::default())).unwrap(),
        ["image docker.io/a/d:1-3", "image docker.io/a/b:2-1"],
        "the longest unused first"
    );
    assert_eq!(shop.layers(), 0);
    assert_eq!(fs::read_dir(shop.store.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn nothing_goes_while_enough_is_free_or_before_its_time() {
    let shop = Shop::new();
    let enough = CollectRequest {
        until_free: Some(1),
        ..shop.ask(Keep::default())
    };
    let tmp = shop.store.path().join("tmp");
    let written = || fs::metadata(&tmp).unwrap().modified().unwrap();
    let before = written();
    assert_eq!(shop.collect(&enough).unwrap(), [""; 0]);
    assert_eq!(written(), before, "where nothing goes, nothing is written");
    let young = CollectRequest {
        min_age_seconds: 999,
        ..shop.ask(Keep::default())
    };
    assert_eq!(
        shop.collect(&young).unwrap(),
        ["image docker.io/a/b:1-0", "image docker.io/a/b:2-1"]
    );
    assert_eq!(shop.names(), ["c:1-2", "d:1-3"]);
}

/// An image is kept by any of the names that a Pod may use for it.
#[test]
fn a_digest_keeps_what_it_names() {
    let shop = Shop::new();
    let store = shop.open();
    let image = store.resolve(&parse("a/b:1-0")).unwrap().unwrap();
    let by_digest = format!("a/b@{}", image.digest);
    shop.collect(&shop.ask(keep(&[&by_digest]))).unwrap();
    assert_eq!(shop.names(), ["b:1-0"]);
    assert!(store.resolve(&parse(&by_digest)).unwrap().is_some());
}

/// A collection that a power cut ended anywhere leaves only less to do.
#[test]
fn what_a_power_cut_leaves_is_less_to_do() {
    for step in 0..3 {
        let shop = Shop::new();
        let store = shop.open();
        let victim = store.resolve(&parse("a/b:1-0")).unwrap().unwrap();
        let only_of = |directory: &str, text: &str| {
            let mut all = fs::read_dir(shop.store.path().join(directory)).unwrap();
            all.find_map(|it| {
                let path = it.unwrap().path();
                fs::read_to_string(&path).unwrap().contains(text).then_some(path)
            })
        };
        fs::remove_file(only_of("refs", "b:1-0").unwrap()).unwrap();
        if step > 0 {
            fs::remove_file(
                shop.store
                    .path()
                    .join(format!("images/{}.json", victim.digest.hex())),
            )
            .unwrap();
        }
        if step > 1 {
            let stage = shop.store.path().join("tmp/1-0");
            fs::create_dir(&stage).unwrap();
            fs::rename(&victim.layers[1], stage.join("half")).unwrap();
        }
        // Nobody takes it for an image, and the others are as they were.
        let names = ["b:2-1", "c:1-2", "d:1-3"];
        assert_eq!(shop.names(), names, "{step}");
        let rest = keep(&["a/b:2-1", "a/c:1-2", "a/d:1-3"]);
        shop.collect(&shop.ask(rest)).unwrap();
        assert_eq!(
            (shop.names(), shop.layers()),
            (names.map(str::to_owned).to_vec(), 4),
            "{step}"
        );
        assert!(!victim.layers[1].exists(), "{step}");
    }
}

/// An image that cannot be read is no image; but what runs from one needs layers that are then not known.
#[test]
fn of_an_image_that_cannot_be_read_nothing_is_guessed() {
    let shop = Shop::new();
    let image = shop.open().resolve(&parse("a/b:1-0")).unwrap().unwrap();
    let record = shop
        .store
        .path()
        .join(format!("images/{}.json", image.digest.hex()));
    fs::write(&record, "{").unwrap();
    let runs = Keep {
        images: [image.digest].into(),
        ..keep(&["a/b:2-1", "a/c:1-2", "a/d:1-3"])
    };
    let refused = shop.collect(&shop.ask(runs.clone())).unwrap_err().to_string();
    assert!(refused.contains("metadata is damaged"), "{refused}");
    assert_eq!(shop.layers(), 5);
    let unused = Keep {
        images: BTreeSet::new(),
        ..runs
    };
    shop.collect(&shop.ask(unused)).unwrap();
    assert_eq!((record.exists(), shop.layers()), (false, 4));
}

/// A pull that has found a layer here does not lose it before its image is named; nor what it has fetched.
#[test]
fn a_pull_under_way_keeps_what_it_needs() {
    let shop = Shop::new();
    let own = shop.open().resolve(&parse("a/b:2-1")).unwrap().unwrap();
    shop.collect(&shop.ask(keep(&["a/b:1-0"]))).unwrap();
    assert!(!own.layers[1].exists());
    let hangs = Arc::new(AtomicBool::new(true));
    let (serve, stop) = (honest(shop.layout.dir.path().to_owned()), hangs.clone());
    let fixture = Fixture::start(move |request| {
        let mut reply = serve(request);
        // The layer alone is larger than this.
        if reply.body.len() > 2000 && stop.load(Ordering::SeqCst) && request.path.contains("/blobs/") {
            reply.cut = Some(1000);
            reply.hangs = true;
        }
        reply
    });
    let mut pull = request("a/b:2-1", vec![source(&fixture)], shop.store.path());
    pull.limits.stall_timeout_seconds = 3;
    let mut child = spawn(&pull);
    // It has claimed its layers once something of the missing one has come.
    let partial = shop.store.path().join("partial");
    while fs::read_dir(&partial).unwrap().count() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    shop.collect(&shop.ask(Keep::default())).unwrap();
    assert_eq!(shop.names(), [""; 0]);
    assert_eq!(shop.layers(), 1, "the shared one");
    assert_eq!(fs::read_dir(&partial).unwrap().count(), 1);
    hangs.store(false, Ordering::SeqCst);
    assert!(child.wait().unwrap().success());
    assert_eq!(content(shop.store.path(), "a/b:2-1", 0, "base").len(), 5000);
    assert_eq!(shop.layers(), 2);
}

/// What is on the device from the start is used in place: nothing of it is fetched, and nothing of it goes.
#[test]
fn what_came_with_the_device_is_used_and_stays() {
    let shop = Shop::new();
    let own = tempfile::tempdir().unwrap();
    let with = |dir: &Path| Store::open(own.path()).unwrap().with_preloaded(Some(dir));
    let store = with(shop.store.path());
    let image = store.resolve(&parse("a/b:1-0")).unwrap().unwrap();
    assert!(image.layers[0].starts_with(shop.store.path()));
    assert_eq!(store.list().unwrap().iter().filter(|it| it.preloaded).count(), 4);
    // A new image fetches what is new of it.
    let mut layout = layout();
    let layers = [
        (tar(&[("base", &noise(5000))]), Compression::Gzip),
        (tar(&[("own", "new")]), Compression::Gzip),
    ];
    let new = layout.image(("amd64", None), &usual_config(), &layers);
    layout.tag("new", &new);
    let fixture = Fixture::start(honest(layout.dir.path().to_owned()));
    let mut pull = request("a/b:new", vec![source(&fixture)], own.path());
    pull.preloaded = Some(shop.store.path().to_owned());
    run(&pull).ok();
    let asked = fixture.requests();
    let blobs = asked.iter().filter(|it| it.path.contains("/blobs/")).count();
    assert_eq!(blobs, 2, "its configuration and one layer");
    let image = store.resolve(&parse("a/b:new")).unwrap().unwrap();
    assert!(image.layers[0].starts_with(shop.store.path()));
    assert!(image.layers[1].starts_with(own.path()));
    let ask = CollectRequest {
        store: own.path().to_owned(),
        ..shop.ask(Keep::default())
    };
    assert_eq!(shop.collect(&ask).unwrap(), ["image docker.io/a/b:new"]);
    assert_eq!((shop.names().len(), shop.layers()), (4, 5));
    // Without it, what is not here is not here.
    let none = with(Path::new("/no/such"));
    assert_eq!(none.resolve(&parse("a/b:1-0")).unwrap(), None);
    assert!(none.list().unwrap().is_empty());
}

/// A pull that would leave the node with less than it keeps free says how much it needs, and fetches nothing.
#[test]
fn a_pull_leaves_what_the_node_keeps_free() {
    let layout = layout();
    let fixture = Fixture::start(honest(layout.dir.path().to_owned()));
    let store = tempfile::tempdir().unwrap();
    let mut pull = request("a/b:1-0", vec![source(&fixture)], store.path());
    pull.limits.keep_free_bytes = 1 << 60;
    let outcome = run(&pull);
    let (reason, message) = outcome.error();
    assert_eq!(reason, "ErrImagePull");
    assert!(message.contains("are free; free some"), "{message}");
    let skiff_images::pull::PullReport::Error(error) = outcome.last() else {
        panic!("{message}")
    };
    let beside = error.needed_bytes.unwrap() - (1 << 60);
    assert!((1000..20_000).contains(&beside), "{beside}");
    let layers = fixture.requests();
    assert!(
        layers
            .iter()
            .all(|it| !it.path.contains("/blobs/") || it.header("range").is_none())
    );
    assert_eq!(fs::read_dir(store.path().join("partial")).unwrap().count(), 0);
}
