//! The pull role as a real process, against real registries: Debian's `docker-registry`, filled by skopeo.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::fixture::{Fixture, Reply};
use common::registry::{Registry, htpasswd};
use common::{Compression, Layout, Outcome, request, run, tar, usual_config, usual_layers};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::json;
use skiff_images::pull::{PullReport, Source, SourceKind};
use skiff_images::{Store, User};
use skiff_protocol::image_ref::ImageRef;

#[test]
fn role() {
    common::role();
}

fn plain(address: &str) -> Source {
    Source {
        plain_http: true,
        ..Source::new(SourceKind::Registry, format!("http://{address}"))
    }
}

fn with_password(source: Source, username: &str, password: &str) -> Source {
    Source {
        username: Some(username.to_owned()),
        password: Some(password.to_owned()),
        ..source
    }
}

fn usual_layout() -> Layout {
    let mut layout = Layout::new();
    let image = layout.image(("amd64", None), &usual_config(), &usual_layers());
    layout.tag("v1", &image);
    layout
}

/// The usual image as overlayfs would stack it.
fn check_usual(store: &Path, reference: &str) {
    let store = Store::open(store).unwrap();
    let image = store
        .resolve(&ImageRef::parse(reference).unwrap())
        .unwrap()
        .expect("the image is in the store");
    assert_eq!(image.layers.len(), 3);
    let content = |layer: usize, path: &str| fs::read_to_string(image.layers[layer].join(path)).unwrap();
    assert_eq!(
        (content(0, "bin/app"), content(2, "bin/app")),
        ("old".to_owned(), "new".to_owned())
    );
    let config = &image.config;
    assert_eq!(
        (config.entrypoint.as_slice(), config.cmd.len()),
        (["/bin/app".to_owned()].as_slice(), 0)
    );
    assert_eq!(config.env, ["PATH=/bin", "A=b"]);
    assert_eq!(
        (config.user.as_str(), config.working_dir.as_str()),
        ("app", "/srv")
    );
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(
        (config.exposed_ports.as_slice(), config.volumes.as_slice()),
        (["80/tcp".to_owned()].as_slice(), ["/data".to_owned()].as_slice())
    );
    assert_eq!(config.architecture, "amd64");
    let user = User {
        uid: 1000,
        gid: 1000,
        additional_gids: vec![29, 44],
        home: "/var/lib/app".to_owned(),
    };
    assert_eq!(image.resolve_user(&config.user).unwrap(), user);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn an_image_comes_from_a_registry_and_comes_once() {
    let registry = Registry::start("", &[]);
    registry.push(&usual_layout(), "v1", "team/app:v1", None);
    let store = tempfile::tempdir().unwrap();
    let reference = format!("{}/team/app:v1", registry.address);
    // The registry's own address comes from the reference.
    let source = Source {
        plain_http: true,
        ..Source::new(SourceKind::Registry, "")
    };
    let request = request(&reference, vec![source], store.path());
    let first = run(&request);
    let digest = first.ok();
    let progressed = |report: &PullReport| matches!(report, PullReport::Progress(p) if p.done == p.total);
    assert_eq!(
        first.reports.iter().filter(|report| progressed(report)).count(),
        3,
        "{:?}",
        first.reports
    );
    check_usual(store.path(), &reference);
    let before = Store::open(store.path()).unwrap().inventory_digest().unwrap();
    let again = run(&request);
    assert_eq!(again.ok(), digest);
    let wrote = |outcome: &Outcome| match &outcome.reports[outcome.reports.len() - 2] {
        PullReport::Wrote(wrote) => wrote.syncs,
        other => panic!("{other:?}"),
    };
    assert!(
        wrote(&first) >= 7,
        "three layers, the image and the reference: {:?}",
        first.reports
    );
    assert_eq!(
        (wrote(&again), again.reports.len()),
        (0, 3),
        "nothing is transferred or written twice"
    );
    let after = Store::open(store.path()).unwrap().inventory_digest().unwrap();
    assert_eq!(before, after);
    assert_eq!(
        fs::read_dir(store.path().join("tmp")).unwrap().count(),
        0,
        "a pull leaves nothing behind"
    );
}

#[test]
fn what_a_registry_does_not_have_is_told_in_its_words() {
    let registry = Registry::start("", &[]);
    registry.push(&usual_layout(), "v1", "team/app:v1", None);
    let store = tempfile::tempdir().unwrap();
    let pinned = format!("team/app@sha256:{}", "0".repeat(64));
    for (name, word) in [
        ("team/app:v2", "manifest unknown"),
        ("team/none:v1", "manifest unknown"),
        (&pinned, "manifest unknown"),
    ] {
        let (reason, message) = run(&request(name, vec![plain(&registry.address)], store.path())).error();
        assert_eq!(reason, "ErrImagePull", "{message}");
        assert!(
            message.contains(word) && message.contains("404") && message.contains(&registry.address),
            "{message}"
        );
    }
}

#[test]
fn sources_are_asked_in_order() {
    let registry = Registry::start("", &[]);
    registry.push(&usual_layout(), "v1", "library/app:v1", None);
    let store = tempfile::tempdir().unwrap();
    let dead = Source {
        kind: SourceKind::Mirror,
        ..plain("127.0.0.1:1")
    };
    let (reason, message) = run(&request("app:v1", vec![dead.clone(), dead.clone()], store.path())).error();
    assert_eq!(reason, "RegistryUnavailable", "{message}");
    assert_eq!(message.matches("refused").count(), 2, "{message}");
    let empty = Registry::start("", &[]);
    let (reason, message) = run(&request(
        "app:v1",
        vec![dead.clone(), plain(&empty.address)],
        store.path(),
    ))
    .error();
    assert_eq!(reason, "ErrImagePull", "one of them answered: {message}");
    assert!(
        message.contains("mirror http://127.0.0.1:1: ") && message.contains("manifest unknown"),
        "{message}"
    );
    run(&request(
        "app:v1",
        vec![dead, plain(&empty.address), plain(&registry.address)],
        store.path(),
    ))
    .ok();
    check_usual(store.path(), "docker.io/library/app:v1");
}

#[test]
fn names_and_policies_fail_before_any_network() {
    let store = tempfile::tempdir().unwrap();
    let table = [
        ("Bad Name", "InvalidImageName", "couldn't parse image name"),
        ("UPPER", "InvalidImageName", "lowercase"),
        (
            "app:v1",
            "ErrImageNeverPull",
            "docker.io/library/app:v1 is not present",
        ),
    ];
    for (name, reason, words) in table {
        let (got, message) = run(&request(name, Vec::new(), store.path())).error();
        assert_eq!(got, reason);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn basic_authentication() {
    let auth = "auth:\n  htpasswd:\n    realm: test\n    path: {dir}/htpasswd\n";
    let registry = Registry::start(auth, &[("htpasswd", &htpasswd("node", "s3cret:x"))]);
    registry.push(&usual_layout(), "v1", "team/app:v1", Some("node:s3cret:x"));
    let store = tempfile::tempdir().unwrap();
    let refused = [
        plain(&registry.address),
        with_password(plain(&registry.address), "node", "wrong"),
    ];
    for source in refused {
        let (reason, message) = run(&request("team/app:v1", vec![source], store.path())).error();
        assert_eq!(reason, "ErrImagePull");
        assert!(
            message.contains("authentication required") && message.contains("401"),
            "{message}"
        );
        assert!(!message.contains("wrong"), "no password in a message: {message}");
    }
    let source = with_password(plain(&registry.address), "node", "s3cret:x");
    run(&request("team/app:v1", vec![source], store.path())).ok();
    check_usual(store.path(), "team/app:v1");
}

/// A token service as the distribution project describes it: a signed JWT with the access that was asked for.
fn token_service() -> (Fixture, String) {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let der = rustls_pki_types::PrivatePkcs8KeyDer::from(pkcs8.as_ref());
    let pair = rcgen::KeyPair::try_from(&der).unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["issuer".to_owned()])
        .unwrap()
        .self_signed(&pair)
        .unwrap();
    assert_eq!(key.public_key().as_ref().len(), 65);
    let chain = STANDARD.encode(certificate.der());
    let fixture = Fixture::start(move |request| {
        let expected = format!("Basic {}", STANDARD.encode("node:pw"));
        if request.header("authorization") != Some(expected.as_str()) {
            return Reply::new(
                401,
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you"}]}"#,
            );
        }
        assert!(request.path.contains("service=test-registry"), "{}", request.path);
        let scope = request
            .path
            .split(['?', '&'])
            .find_map(|pair| pair.strip_prefix("scope="))
            .unwrap_or_default();
        let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let parts: Vec<&str> = scope.split(':').collect();
        let access = match parts.as_slice() {
            [kind, name, actions] => {
                json!([{ "type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>() }])
            }
            _ => json!([]),
        };
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [chain] });
        let claims = json!({
            "iss": "test-issuer", "sub": "node", "aud": "test-registry", "jti": "1",
            "nbf": now - 60, "iat": now - 60, "exp": now + 600, "access": access,
        });
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = key
            .sign(&ring::rand::SystemRandom::new(), signed.as_bytes())
            .unwrap();
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
        Reply::new(200, json!({ "token": token }).to_string()).header("content-type", "application/json")
    });
    (fixture, certificate.pem())
}

#[test]
fn token_authentication() {
    let (service, certificate) = token_service();
    let auth = format!(
        "auth:\n  token:\n    realm: {}/token\n    service: test-registry\n    issuer: test-issuer\n    \
         rootcertbundle: {{dir}}/issuer.pem\n",
        service.url()
    );
    let registry = Registry::start(&auth, &[("issuer.pem", &certificate)]);
    registry.push(&usual_layout(), "v1", "team/app:v1", Some("node:pw"));
    let store = tempfile::tempdir().unwrap();
    let (reason, message) = run(&request(
        "team/app:v1",
        vec![plain(&registry.address)],
        store.path(),
    ))
    .error();
    assert_eq!(reason, "ErrImagePull");
    assert!(
        message.contains("token from http://") && message.contains("who are you"),
        "{message}"
    );
    let before = service.requests().len();
    let source = with_password(plain(&registry.address), "node", "pw");
    run(&request("team/app:v1", vec![source], store.path())).ok();
    check_usual(store.path(), "team/app:v1");
    let asked = &service.requests()[before..];
    assert_eq!(asked.len(), 1, "one token serves the whole pull");
    assert!(
        asked[0].path.contains("scope=repository%3Ateam%2Fapp%3Apull"),
        "{}",
        asked[0].path
    );
}

#[test]
fn an_index_gives_each_node_its_own() {
    let registry = Registry::start("", &[]);
    let mut layout = Layout::new();
    let platforms = [
        ("amd64", None),
        ("arm", Some("v6")),
        ("arm", Some("v7")),
        ("arm64", Some("v8")),
    ];
    let manifests: Vec<_> = platforms
        .iter()
        .map(|platform| {
            let content = format!("{}{}", platform.0, platform.1.unwrap_or_default());
            layout.image(
                *platform,
                &json!({}),
                &[(tar(&[("arch", &content)]), Compression::Gzip)],
            )
        })
        .collect();
    let index = layout.index(&manifests);
    layout.tag("multi", &index);
    registry.push(&layout, "multi", "multi:v1", None);
    let only_arm64 = layout.image(
        ("arm64", None),
        &json!({}),
        &[(tar(&[("a", "")]), Compression::Gzip)],
    );
    layout.tag("arm64", &only_arm64);
    registry.push(&layout, "arm64", "arm64:v1", None);
    let table = [
        ("multi", "amd64", None, Ok("amd64")),
        ("multi", "arm64", None, Ok("arm64v8")),
        ("multi", "arm64", Some("v8"), Ok("arm64v8")),
        ("multi", "arm", None, Ok("armv7")),
        ("multi", "arm", Some("v7"), Ok("armv7")),
        ("multi", "arm", Some("v6"), Ok("armv6")),
        (
            "multi",
            "arm",
            Some("v5"),
            Err(
                "no image for platform linux/arm/v5; there is linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64/v8",
            ),
        ),
        (
            "multi",
            "riscv64",
            None,
            Err("no image for platform linux/riscv64"),
        ),
        (
            "arm64",
            "amd64",
            None,
            Err("no image for platform linux/amd64; there is linux/arm64"),
        ),
    ];
    for (name, architecture, variant, expected) in table {
        let store = tempfile::tempdir().unwrap();
        let reference = format!("{}/{name}:v1", registry.address);
        let mut request = request(&reference, vec![plain(&registry.address)], store.path());
        request.platform.architecture = architecture.to_owned();
        request.platform.variant = variant.map(str::to_owned);
        let outcome = run(&request);
        match expected {
            Ok(content) => {
                outcome.ok();
                let store = Store::open(store.path()).unwrap();
                let image = store
                    .resolve(&ImageRef::parse(&request.reference).unwrap())
                    .unwrap()
                    .unwrap();
                assert_eq!(fs::read_to_string(image.layers[0].join("arch")).unwrap(), content);
                assert_eq!(image.repo_digest.to_string(), index["digest"].as_str().unwrap());
                assert_ne!(image.digest, image.repo_digest);
            }
            Err(words) => assert!(outcome.error().1.contains(words), "{:?}", outcome.error()),
        }
    }
}
