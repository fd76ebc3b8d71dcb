//! The pull role against a registry that cuts, lies, redirects and overdoes it, and against `SIGKILL`.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::fixture::{Fixture, Reply, Request, honest};
use common::{
    Compression, Layout, Outcome, content, noise, one_layer, request, run, sha256, source, spawn, tar,
    usual_config, usual_layers,
};
use serde_json::json;
use skiff_images::Store;
use skiff_images::pull::{PullReport, Source, SourceKind};
use skiff_protocol::image_ref::ImageRef;

#[test]
fn role() {
    common::role();
}

#[test]
fn a_cut_transfer_goes_on_where_it_broke() {
    let text = noise(1 << 20);
    let (layout, layer) = one_layer(&[("big", &text)], Compression::Gzip);
    let serve = honest(layout.dir.path().to_owned());
    let (cuts, wanted) = (AtomicUsize::new(0), layer.clone());
    let fixture = Fixture::start(move |request| {
        let mut reply = serve(request);
        if request.path.contains(&wanted) && cuts.fetch_add(1, Ordering::Relaxed) < 3 {
            reply.cut = Some(200_000);
        }
        reply
    });
    let store = tempfile::tempdir().unwrap();
    run(&request("a/b:v1", vec![source(&fixture)], store.path())).ok();
    assert_eq!(content(store.path(), "a/b:v1", 0, "big"), text);
    let asked: Vec<_> = fixture
        .requests()
        .into_iter()
        .filter(|request| request.path.contains(&layer))
        .collect();
    let ranges: Vec<_> = asked
        .iter()
        .map(|request| request.header("range").map(str::to_owned))
        .collect();
    let expected = [
        None,
        Some("bytes=200000-"),
        Some("bytes=400000-"),
        Some("bytes=600000-"),
    ];
    assert_eq!(ranges, expected.map(|range| range.map(str::to_owned)));
}

#[test]
fn a_registry_without_ranges_is_read_again_up_to_there() {
    let text = noise(500_000);
    let (layout, layer) = one_layer(&[("big", &text)], Compression::Plain);
    let serve = honest(layout.dir.path().to_owned());
    let (cuts, wanted) = (AtomicUsize::new(0), layer.clone());
    let fixture = Fixture::start(move |request| {
        let mut reply = serve(&Request {
            headers: Vec::new(),
            ..request.clone()
        });
        if request.path.contains(&wanted) && cuts.fetch_add(1, Ordering::Relaxed) == 0 {
            reply.cut = Some(123_456);
        }
        reply
    });
    let store = tempfile::tempdir().unwrap();
    run(&request("a/b:v1", vec![source(&fixture)], store.path())).ok();
    assert_eq!(content(store.path(), "a/b:v1", 0, "big"), text);
}

#[test]
fn a_link_that_never_holds_is_given_up() {
    let (layout, layer) = one_layer(&[("big", &noise(100_000))], Compression::Plain);
    let serve = honest(layout.dir.path().to_owned());
    let wanted = layer.clone();
    let fixture = Fixture::start(move |request| {
        let mut reply = serve(request);
        if request.path.contains(&wanted) {
            reply.cut = Some(if request.header("range").is_some() {
                0
            } else {
                40_000
            });
        }
        reply
    });
    let store = tempfile::tempdir().unwrap();
    let (reason, message) = run(&request("a/b:v1", vec![source(&fixture)], store.path())).error();
    assert_eq!(reason, "RegistryUnavailable");
    assert!(
        message.contains(&format!("layer {layer}: broken off at 40000 of")),
        "{message}"
    );
    let asked = fixture
        .requests()
        .iter()
        .filter(|request| request.path.contains(&layer))
        .count();
    assert_eq!(asked, 6, "one try and five retries");
}

/// A registry whose answers for paths that contain `part` are changed.
fn lying(layout: &Layout, part: &str, change: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Fixture {
    let (serve, part) = (honest(layout.dir.path().to_owned()), part.to_owned());
    Fixture::start(move |request| {
        let reply = serve(request);
        if request.path.contains(&part) {
            change(reply)
        } else {
            reply
        }
    })
}

fn refused(fixture: &Fixture, reference: &str, words: &str) {
    let store = tempfile::tempdir().unwrap();
    let (reason, message) = run(&request(reference, vec![source(fixture)], store.path())).error();
    assert_eq!(reason, "ErrImagePull", "{message}");
    assert!(message.contains(words), "expected {words:?} in: {message}");
    let opened = Store::open(store.path()).unwrap();
    assert_eq!(
        opened.resolve(&ImageRef::parse(reference).unwrap()).unwrap(),
        None
    );
    for directory in ["layers", "images", "refs", "tmp"] {
        let left = fs::read_dir(store.path().join(directory)).unwrap().count();
        assert_eq!(left, 0, "{words}: {directory} holds something");
    }
}

#[test]
fn what_is_not_what_its_digest_says_is_refused() {
    let (mut layout, layer) = one_layer(&[("a", "A")], Compression::Gzip);
    let other = common::compress(&tar(&[("a", "B")]), Compression::Gzip).0;
    refused(
        &lying(&layout, &layer, move |_| Reply::new(200, other.clone())),
        "a/b:v1",
        "digest mismatch",
    );
    let flip = |mut reply: Reply| {
        let last = reply.body.len() - 1;
        reply.body[last] ^= 1;
        reply
    };
    refused(&lying(&layout, &layer, flip), "a/b:v1", "digest mismatch");
    refused(
        &lying(&layout, &layer, |_| Reply::new(200, vec![b'x'; 500])),
        "a/b:v1",
        "digest mismatch",
    );
    // The tag's answer says which digest it is of.
    refused(
        &lying(&layout, "/manifests/v1", flip),
        "a/b:v1",
        "digest mismatch",
    );
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.dir.path().join("index.json")).unwrap()).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let changed = lying(&layout, &manifest, move |mut reply| {
        reply.headers.clear();
        reply.body.push(b' ');
        reply
    });
    refused(&changed, &format!("a/b@{manifest}"), "digest mismatch");
    let document: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.blob_path(&manifest)).unwrap()).unwrap();
    let config = document["config"]["digest"].as_str().unwrap().to_owned();
    refused(
        &lying(&layout, &config, flip),
        "a/b:v1",
        "image configuration: digest mismatch",
    );
    // The layer is what the manifest says, but not what the configuration says.
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [sha256(b"something else")] },
    });
    let image = layout.manifest(("amd64", None), &config, &[document["layers"][0].clone()]);
    layout.tag("diff", &image);
    refused(
        &Fixture::start(honest(layout.dir.path().to_owned())),
        "a/b:diff",
        "uncompressed: digest mismatch",
    );
}

#[test]
fn what_no_image_is_is_refused() {
    let (mut layout, _) = one_layer(&[("a", "A")], Compression::Gzip);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.dir.path().join("index.json")).unwrap()).unwrap();
    let good = index["manifests"][0].clone();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.blob_path(good["digest"].as_str().unwrap())).unwrap())
            .unwrap();
    let layer = manifest["layers"][0].clone();
    let variant = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        changed.to_string()
    };
    let mut config_of_two: serde_json::Value = serde_json::from_slice(
        &fs::read(layout.blob_path(manifest["config"]["digest"].as_str().unwrap())).unwrap(),
    )
    .unwrap();
    config_of_two["rootfs"]["diff_ids"] = json!([sha256(b"1"), sha256(b"2")]);
    let two = config_of_two.to_string();
    let two_digest = layout.blob(two.as_bytes());
    let table: Vec<(&str, String, &str)> = vec![
        ("json", "{".to_owned(), "manifest json: "),
        (
            "nothing",
            "{}".to_owned(),
            "neither an index nor an image manifest",
        ),
        ("html", "<html>".to_owned(), "manifest html: "),
        (
            "schema1",
            json!({ "schemaVersion": 1, "fsLayers": [] }).to_string(),
            "schema 1",
        ),
        (
            "both",
            variant(&|m| m["manifests"] = json!([])),
            "both an index and a manifest",
        ),
        (
            "type",
            variant(&|m| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json")),
            "calls itself",
        ),
        ("none", variant(&|m| m["layers"] = json!([])), "without layers"),
        (
            "many",
            variant(&|m| m["layers"] = json!(vec![layer.clone(); 129])),
            "129 layers, at most 128",
        ),
        (
            "helm",
            variant(&|m| m["layers"][0]["mediaType"] = json!("application/vnd.helm.chart")),
            "not a file system",
        ),
        (
            "sha512",
            variant(&|m| m["layers"][0]["digest"] = json!("sha512:00")),
            "unsupported digest algorithm",
        ),
        (
            "escape",
            variant(&|m| m["layers"][0]["digest"] = json!("sha256:../../x")),
            "digest",
        ),
        ("huge", " ".repeat((4 << 20) + 1), "larger than 4194304 bytes"),
        (
            "config",
            variant(&|m| m["config"]["size"] = json!(5 << 20)),
            "larger than 4194304 bytes",
        ),
        (
            "diffs",
            variant(&|m| m["config"]["digest"] = json!(two_digest)),
            "2 diff IDs for 1 layers",
        ),
    ];
    for (tag, bytes, words) in table {
        let digest = layout.blob(bytes.as_bytes());
        layout.tag(tag, &json!({ "digest": digest, "size": bytes.len() }));
        refused(
            &Fixture::start(honest(layout.dir.path().to_owned())),
            &format!("a/b:{tag}"),
            words,
        );
    }
    let nested = layout.index(&[good]);
    let mut descriptor = layout.index(&[nested]);
    descriptor["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    layout.tag("nested", &descriptor);
    refused(
        &Fixture::start(honest(layout.dir.path().to_owned())),
        "a/b:nested",
        "an index within an index",
    );
}

#[test]
fn a_bomb_ends_at_the_limit() {
    let zeros = "\0".repeat(8 << 20);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let (layout, layer) = one_layer(&[("zeros", &zeros)], compression);
        let fixture = Fixture::start(honest(layout.dir.path().to_owned()));
        let store = tempfile::tempdir().unwrap();
        let mut request = request("a/b:v1", vec![source(&fixture)], store.path());
        request.limits.max_unpacked_bytes = 4 << 20;
        let (reason, message) = run(&request).error();
        assert_eq!(reason, "ErrImagePull");
        let words = format!("layer {layer}: the unpacked size is over the limit of 4194304");
        assert!(message.contains(&words), "{message}");
        request.limits.max_unpacked_bytes = 9 << 20;
        run(&request).ok();
    }
}

#[test]
fn memory_does_not_grow_with_the_layer() {
    let measure = |megabytes: usize| {
        let text = noise(megabytes << 20);
        let (layout, _) = one_layer(&[("big", &text)], Compression::Gzip);
        let fixture = Fixture::start(honest(layout.dir.path().to_owned()));
        let store = tempfile::tempdir().unwrap();
        let outcome = run(&request("a/b:v1", vec![source(&fixture)], store.path()));
        outcome.ok();
        outcome.peak_kib
    };
    let (small, large) = (measure(1), measure(48));
    println!("peak of a pull: {small} KiB for 1 MiB, {large} KiB for 48 MiB");
    assert!(
        large < small + 4096,
        "{small} KiB for 1 MiB, {large} KiB for 48 MiB"
    );
}

#[test]
fn credentials_stay_with_the_registry_that_asked_for_them() {
    let (layout, layer) = one_layer(&[("a", "A")], Compression::Gzip);
    let storage = Fixture::start(honest(layout.dir.path().to_owned()));
    let (serve, elsewhere, wanted) = (honest(layout.dir.path().to_owned()), storage.url(), layer.clone());
    let registry = Fixture::start(move |request| {
        if request.header("authorization").is_none() {
            return Reply::new(401, "").header("www-authenticate", "Basic realm=\"r\"");
        }
        if request.path.contains(&wanted) {
            return Reply::new(307, "").header("location", format!("{elsewhere}{}", request.path));
        }
        serve(request)
    });
    let store = tempfile::tempdir().unwrap();
    let credentials = Source {
        username: Some("node".to_owned()),
        password: Some("pw".to_owned()),
        ..source(&registry)
    };
    run(&request("a/b:v1", vec![credentials], store.path())).ok();
    let stored = storage.requests();
    assert_eq!(stored.len(), 1, "{stored:?}");
    assert!(
        stored[0].path.contains(&layer) && stored[0].header("authorization").is_none(),
        "{stored:?}"
    );
}

#[test]
fn redirects_in_a_circle_end() {
    let (layout, layer) = one_layer(&[("a", "A")], Compression::Gzip);
    let circle = lying(&layout, &layer, |_| {
        Reply::new(302, "").header("location", "/v2/again/blobs/x")
    });
    let again = lying(&layout, "/", |_| {
        Reply::new(302, "").header("location", "/v2/again")
    });
    refused(&again, "a/b:v1", "redirects more than 5 times");
    refused(&circle, "a/b:v1", "blob unknown");
}

#[test]
fn mirrors_are_told_which_registry_is_meant() {
    let (layout, _) = one_layer(&[("a", "A")], Compression::Gzip);
    let fixture = Fixture::start(honest(layout.dir.path().to_owned()));
    let store = tempfile::tempdir().unwrap();
    let mirror = Source {
        kind: SourceKind::Mirror,
        ..source(&fixture)
    };
    run(&request("r.example:5000/a/b:v1", vec![mirror], store.path())).ok();
    for request in fixture.requests() {
        assert!(
            request.path.starts_with("/v2/a/b/") && request.path.ends_with("?ns=r.example%3A5000"),
            "{request:?}"
        );
    }
}

#[test]
fn sources_that_cannot_be_used_are_named() {
    let store = tempfile::tempdir().unwrap();
    let table = [
        (
            Source::new(SourceKind::Registry, "http://127.0.0.1:1"),
            "plain HTTP is not allowed",
        ),
        (
            Source::new(SourceKind::Registry, "ftp://127.0.0.1:1"),
            "must begin with https://",
        ),
        (Source::new(SourceKind::Mirror, ""), "URL"),
        (
            Source::new(SourceKind::Registry, "https://u:p@127.0.0.1:1"),
            "neither query nor credentials",
        ),
        (
            Source {
                ca_pem: Some("x".to_owned()),
                ..Source::new(SourceKind::Server, "https://127.0.0.1:1")
            },
            "CA certificates",
        ),
        (
            Source {
                client_cert_pem: Some(String::new()),
                ..Source::new(SourceKind::Server, "https://127.0.0.1:1")
            },
            "given together",
        ),
        (
            Source {
                username: Some("u".to_owned()),
                ..Source::new(SourceKind::Server, "https://127.0.0.1:1")
            },
            "given together",
        ),
    ];
    for (source, words) in table {
        let (reason, message) = run(&request("a/b:v1", vec![source], store.path())).error();
        assert_eq!(reason, "ErrImagePull");
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn the_message_is_bounded_and_printable() {
    let words = "\\u001b[31m".to_owned() + &"long ".repeat(3000);
    let body = format!(r#"{{"errors":[{{"code":"DENIED","message":"{words}"}}]}}"#);
    let fixture = Fixture::start(move |_| Reply::new(403, body.clone()));
    let store = tempfile::tempdir().unwrap();
    let (_, message) = run(&request("a/b:v1", vec![source(&fixture)], store.path())).error();
    assert!(
        message.len() <= 4096 && message.ends_with('…'),
        "{}",
        message.len()
    );
    assert!(!message.contains('\u{1b}'), "{message}");
    let quiet = Fixture::start(|_| Reply::new(503, "<html>"));
    let (reason, message) = run(&request("a/b:v1", vec![source(&quiet)], store.path())).error();
    assert_eq!(reason, "RegistryUnavailable");
    assert!(message.contains("Service Unavailable (HTTP 503)"), "{message}");
}

/// Killed at any moment, the store opens, believes nothing that is not whole, and the next pull succeeds.
#[test]
fn sigkill_leaves_a_store_that_is_right() {
    let mut layout = Layout::new();
    let texts: Vec<String> = (0..6).map(|n| format!("{n}{}", noise(300_000))).collect();
    let layers: Vec<_> = texts
        .iter()
        .map(|text| (tar(&[("a", text), ("b/c", text)]), Compression::Gzip))
        .collect();
    let image = layout.image(("amd64", None), &usual_config(), &layers);
    layout.tag("v1", &image);
    let older = layout.image(("amd64", None), &usual_config(), &usual_layers());
    layout.tag("v0", &older);
    let fixture = Fixture::start(honest(layout.dir.path().to_owned()));
    let reference = ImageRef::parse("a/b:v1").unwrap();
    let pull = |store: &Path| request("a/b:v1", vec![source(&fixture)], store);

    let (mut unfinished, mut partial) = (0, 0);
    for round in 0..24_u32 {
        let store = tempfile::tempdir().unwrap();
        run(&request("a/b:v0", vec![source(&fixture)], store.path())).ok();
        let mut child = spawn(&pull(store.path()));
        // Each layer reports its first bytes and its end, so the kills spread over all of the pull.
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        let mut reports = 0;
        while reports < round / 2 && output.read_line(&mut line).unwrap() > 0 {
            reports += u32::from(line.contains("{\"progress"));
            line.clear();
        }
        std::thread::sleep(Duration::from_millis(u64::from(round % 2) * 4));
        child.kill().unwrap();
        child.wait().unwrap();
        let opened = Store::open(store.path()).unwrap();
        let layers = fs::read_dir(store.path().join("layers")).unwrap().count() - 3;
        partial += usize::from(layers > 0 && layers < 6);
        let names = opened.list().unwrap().len();
        match opened.resolve(&reference).unwrap() {
            None => {
                assert_eq!(names, 1, "the older image stays");
                unfinished += 1;
            }
            Some(image) => assert_eq!((image.layers.len(), names), (6, 2)),
        }
        assert_eq!(fs::read_dir(store.path().join("tmp")).unwrap().count(), 0);
        // Layers that have their name are whole, whatever the moment.
        for layer in fs::read_dir(store.path().join("layers")).unwrap() {
            let path = layer.unwrap().path();
            if path.join("b").exists() {
                assert_eq!(
                    fs::read(path.join("a")).unwrap(),
                    fs::read(path.join("b/c")).unwrap()
                );
                assert_eq!(fs::read(path.join("a")).unwrap().len(), 300_001);
            }
        }
        run(&pull(store.path())).ok();
        for (layer, text) in texts.iter().enumerate() {
            assert_eq!(&content(store.path(), "a/b:v1", layer, "b/c"), text);
        }
    }
    println!("24 kills: {unfinished} before the end, {partial} with some of the layers");
    assert!(
        unfinished >= 6 && partial >= 1,
        "{unfinished} {partial}: the kills missed the pull"
    );
}

#[test]
fn a_reader_that_goes_away_ends_the_pull() {
    let (layout, _) = one_layer(&[("big", &noise(1 << 20))], Compression::Plain);
    let gate = Arc::new(AtomicUsize::new(0));
    let (serve, opened) = (honest(layout.dir.path().to_owned()), gate.clone());
    let fixture = Fixture::start(move |request| {
        while opened.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        serve(request)
    });
    let store = tempfile::tempdir().unwrap();
    let mut child = spawn(&request("a/b:v1", vec![source(&fixture)], store.path()));
    drop(child.stdout.take());
    gate.store(1, Ordering::Relaxed);
    child.wait().unwrap();
    let opened = Store::open(store.path()).unwrap();
    assert_eq!(opened.resolve(&ImageRef::parse("a/b:v1").unwrap()).unwrap(), None);
}

#[test]
fn damage_on_disk_is_told_and_repaired() {
    let (layout, _) = one_layer(&[("a", "A")], Compression::Gzip);
    let fixture = Fixture::start(honest(layout.dir.path().to_owned()));
    let reference = ImageRef::parse("a/b:v1").unwrap();
    let only = |directory: &Path| fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
    let store = tempfile::tempdir().unwrap();
    let pull = || -> Outcome { run(&request("a/b:v1", vec![source(&fixture)], store.path())) };
    pull().ok();
    let opened = Store::open(store.path()).unwrap();
    type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>, &'a str);
    let table: Vec<Damage<'_>> = vec![
        (
            "an empty record",
            Box::new(|| fs::write(only(&store.path().join("images")), "").unwrap()),
            "damaged",
        ),
        (
            "an empty reference",
            Box::new(|| fs::write(only(&store.path().join("refs")), "").unwrap()),
            "damaged",
        ),
        (
            "a record of another format",
            Box::new(|| {
                let path = only(&store.path().join("images"));
                let text = fs::read_to_string(&path)
                    .unwrap()
                    .replace("\"format\":1", "\"format\":9");
                fs::write(path, text).unwrap();
            }),
            "format 9",
        ),
        (
            "no layer",
            Box::new(|| fs::remove_dir_all(only(&store.path().join("layers"))).unwrap()),
            "layer sha256:",
        ),
        (
            "no record",
            Box::new(|| fs::remove_file(only(&store.path().join("images"))).unwrap()),
            "image sha256:",
        ),
    ];
    for (name, damage, words) in table {
        damage();
        let error = opened.resolve(&reference).expect_err(name);
        assert!(
            error.to_string().contains(words) && error.is_repaired_by_pull(),
            "{name}: {error}"
        );
        let reports = pull().reports;
        assert!(
            matches!(reports.last(), Some(PullReport::Ok(_))),
            "{name}: {reports:?}"
        );
        assert!(opened.resolve(&reference).unwrap().is_some(), "{name}");
    }
}

/// That the server or a mirror lacks an image says nothing of a registry that cannot be reached.
#[test]
fn a_stand_in_that_lacks_the_image_does_not_hide_that_the_registry_is_unreachable() {
    use SourceKind::{Mirror, Registry, Server};
    let answers = |status| Fixture::start(move |_| Reply::new(status, "{}"));
    let (none, denied) = (answers(404), answers(403));
    let from = |kind, url: String| Source {
        plain_http: true,
        ..Source::new(kind, url)
    };
    let (lacks, denies) = (|kind| from(kind, none.url()), |kind| from(kind, denied.url()));
    let dead = |kind| from(kind, "http://127.0.0.1:1".to_owned());
    for (sources, expected) in [
        (vec![lacks(Server), dead(Registry)], "RegistryUnavailable"),
        (
            vec![lacks(Server), lacks(Mirror), dead(Registry)],
            "RegistryUnavailable",
        ),
        (
            vec![dead(Server), lacks(Mirror), dead(Registry)],
            "RegistryUnavailable",
        ),
        (vec![dead(Server), dead(Registry)], "RegistryUnavailable"),
        (vec![lacks(Server), lacks(Registry)], "ErrImagePull"),
        (vec![dead(Server), lacks(Registry)], "ErrImagePull"),
        (vec![denies(Server), dead(Registry)], "ErrImagePull"),
        (vec![lacks(Server), lacks(Mirror)], "ErrImagePull"),
    ] {
        let store = tempfile::tempdir().unwrap();
        let shown = format!("{sources:?}");
        let (reason, message) = run(&request("a/b:v1", sources, store.path())).error();
        assert_eq!(reason, expected, "{shown}: {message}");
    }
}
