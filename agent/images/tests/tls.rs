//! A pull over TLS with certificates on both sides, from a node whose clock may be wrong.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::fixture::{Request, honest, serve};
use common::{Layout, request, run, usual_config, usual_layers};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use skiff_images::pull::{Source, SourceKind};

#[test]
fn role() {
    common::role();
}

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Valid in these years only.
fn valid(params: &mut CertificateParams, years: (i32, i32)) {
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
}

impl Authority {
    fn new(name: &str, years: (i32, i32)) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        valid(&mut params, years);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
        }
    }

    fn issue(&self, name: &str, years: (i32, i32)) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        valid(&mut params, years);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// An HTTPS server that asks for a certificate of `authority` and serves the layout.
fn start(authority: &Authority, years: (i32, i32), layout: &Layout) -> String {
    let (certificate, key) = authority.issue("127.0.0.1", years);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.issuer.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let (config, handler) = (Arc::new(config), Arc::new(honest(layout.dir.path().to_owned())));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, handler) = (config.clone(), handler.clone());
            thread::spawn(move || {
                let connection = ServerConnection::new(config).unwrap();
                let stream = Mutex::new(StreamOwned::new(connection, stream.unwrap()));
                let log: Mutex<Vec<Request>> = Mutex::new(Vec::new());
                serve(Locked(&stream), Locked(&stream), &log, &*handler);
            });
        }
    });
    format!("https://{address}")
}

/// Reads and writes one stream by turns.
struct Locked<'a, T>(&'a Mutex<T>);

impl<T: std::io::Read> std::io::Read for Locked<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl<T: std::io::Write> std::io::Write for Locked<'_, T> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(buffer)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap().flush()
    }
}

fn source(url: &str, trusted: &Authority, node: Option<&(rcgen::Certificate, KeyPair)>) -> Source {
    Source {
        ca_pem: Some(trusted.issuer.pem()),
        client_cert_pem: node.map(|(certificate, _)| certificate.pem()),
        client_key_pem: node.map(|(_, key)| key.serialize_pem()),
        ..Source::new(SourceKind::Server, url)
    }
}

fn usual() -> Layout {
    let mut layout = Layout::new();
    let image = layout.image(("amd64", None), &usual_config(), &usual_layers());
    layout.tag("v1", &image);
    layout
}

const NOW: (i32, i32) = (2000, 2200);

#[test]
fn both_ends_show_certificates() {
    let layout = usual();
    let (authority, stranger) = (Authority::new("ours", NOW), Authority::new("theirs", NOW));
    let url = start(&authority, NOW, &layout);
    let (node, other) = (authority.issue("node-1", NOW), stranger.issue("node-1", NOW));
    let mixed = Source {
        client_key_pem: Some(other.1.serialize_pem()),
        ..source(&url, &authority, Some(&node))
    };
    let table = [
        (
            source(&url, &stranger, Some(&node)),
            "RegistryUnavailable",
            "UnknownIssuer",
        ),
        (
            source(&url, &authority, None),
            "RegistryUnavailable",
            "CertificateRequired",
        ),
        (source(&url, &authority, Some(&other)), "RegistryUnavailable", ""),
        (mixed, "ErrImagePull", "TLS: "),
    ];
    let store = tempfile::tempdir().unwrap();
    for (source, reason, words) in table {
        let (got, message) = run(&request("app:v1", vec![source], store.path())).error();
        assert_eq!(got, reason, "{message}");
        assert!(
            message.to_lowercase().contains(&words.to_lowercase()),
            "{message}"
        );
    }
    run(&request(
        "app:v1",
        vec![source(&url, &authority, Some(&node))],
        store.path(),
    ))
    .ok();
}

/// The certificates begin in 2100: to a clock of today they are what today's are to a clock of 1970.
#[test]
fn a_known_time_counts_where_the_clock_is_behind() {
    let layout = usual();
    let authority = Authority::new("ours", NOW);
    let url = start(&authority, (2100, 2110), &layout);
    let node = authority.issue("node-1", NOW);
    let store = tempfile::tempdir().unwrap();
    let mut request = request(
        "app:v1",
        vec![source(&url, &authority, Some(&node))],
        store.path(),
    );
    let (_, message) = run(&request).error();
    assert!(
        message.contains("NotValidYet") || message.contains("not valid yet"),
        "{message}"
    );
    let year = Duration::from_secs(31_556_952);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    request.not_before_unix = (year * 131).max(now).as_secs();
    run(&request).ok();
}
