//! A server on a loopback port with its own authority, and clients for it.
//!
//! What always holds: each server has a directory, a port and keys of its own, and ends with its handle.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use skiff_server::api::{
    self, ApiState, Identity, LogError, LogOptions, LogStream, Nodes, PodRef, StaticTokens,
};
use skiff_server::store::{SqliteStore, Store};
use tokio::sync::oneshot;

/// The token of an administrator.
pub(crate) const ADMIN: &str = "admin-token";
/// The token of somebody with no rights.
pub(crate) const STRANGER: &str = "stranger-token";
/// The token of a node.
pub(crate) const NODE: &str = "node-token";

/// A node that writes what it was asked into its log.
#[derive(Default)]
pub(crate) struct Echo {
    asked: Mutex<Vec<LogOptions>>,
}

#[async_trait::async_trait]
impl Nodes for Echo {
    async fn logs(&self, pod: PodRef, options: LogOptions) -> Result<LogStream, LogError> {
        self.asked.lock().unwrap().push(options.clone());
        if options.previous {
            return Err(LogError::NoPrevious {
                container: options.container,
            });
        }
        let first = Bytes::from(format!("{} of {} on {}\n", options.container, pod.name, pod.node));
        let mut lines = vec![(0, first)];
        if options.follow {
            lines.push((200, Bytes::from_static(b"later\n")));
        }
        let lines = futures_util::stream::iter(lines).then(|(delay, line)| async move {
            tokio::time::sleep(Duration::from_millis(delay)).await;
            Ok(line)
        });
        Ok(Box::pin(lines))
    }
}

/// A running server.
pub(crate) struct Server {
    pub address: SocketAddr,
    pub store: Arc<dyn Store>,
    runtime: tokio::runtime::Runtime,
    pub nodes: Arc<Echo>,
    directory: tempfile::TempDir,
    authority: CertificateDer<'static>,
    client: (String, String),
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

impl Server {
    /// Starts one in a new directory.
    pub(crate) fn start() -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let keys = Keys::make();
        let tls = keys.server_config();
        let path = directory.path().join("skiff.db");
        let nodes = Arc::new(Echo::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, store) = runtime.block_on(async {
            let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).await.unwrap());
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let identity = |user: &str, groups: &[&str]| Identity {
                user: user.into(),
                groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            };
            let tokens = StaticTokens::default()
                .with(ADMIN, identity("admin", &["system:masters"]))
                .with(STRANGER, identity("stranger", &[]))
                .with(NODE, identity("system:node:n1", &["system:nodes"]));
            let state = ApiState::new(store.clone(), nodes.clone(), Arc::new(tokens));
            let extra = axum::Router::new().route("/extra", axum::routing::get(extra));
            // Made before the listener answers, so that a test's first request finds them.
            api::make_namespaces(&*store).await.unwrap();
            let stopped = async { drop(stopped.await) };
            tokio::spawn(async move { api::serve(listener, tls, state, extra, stopped).await.unwrap() });
            (address, store)
        });
        let (authority, client) = (keys.authority, keys.client);
        Self {
            address,
            store,
            runtime,
            nodes,
            directory,
            authority,
            client,
            stop: Mutex::new(Some(stop)),
        }
    }

    /// What the node was asked last.
    pub(crate) fn asked(&self) -> LogOptions {
        self.nodes.asked.lock().unwrap().last().cloned().unwrap()
    }

    /// Runs something on the server's own runtime.
    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Asks the server to stop.
    pub(crate) fn stop(&self) {
        drop(self.stop.lock().unwrap().take());
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn agent(&self) -> ureq::Agent {
        let authority = ureq::tls::Certificate::from_der(&self.authority).to_owned();
        let roots = ureq::tls::RootCerts::new_with_certs(&[authority]);
        let config = ureq::tls::TlsConfig::builder().root_certs(roots).build();
        let agent = ureq::Agent::config_builder()
            .tls_config(config)
            .http_status_as_error(false);
        agent.timeout_global(Some(Duration::from_secs(30))).build().into()
    }

    /// Sends a request and reads the whole answer.
    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("https://127.0.0.1:{}{path}", self.address.port()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent = self.agent();
        let request = agent
            .configure_request(request.body(body.to_vec()).unwrap())
            .allow_non_standard_methods(true);
        let mut answer = agent.run(request.build()).unwrap();
        let headers = answer.headers();
        let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap().to_owned();
        let warnings = headers.get_all("warning").iter().map(text).collect();
        let media_type = headers.get("content-type").map(text).unwrap_or_default();
        let code = answer.status().as_u16();
        let text = answer
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_to_string()
            .unwrap();
        Answer {
            code,
            warnings,
            media_type,
            text,
        }
    }

    /// Sends a request as the administrator; a body is JSON unless it is null.
    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Answer {
        let media_type = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        self.call_as(method, path, media_type, body)
    }

    /// The same with a media type.
    pub(crate) fn call_as(&self, method: &str, path: &str, media_type: &str, body: &Value) -> Answer {
        let token = format!("Bearer {ADMIN}");
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let mut headers = vec![("authorization", token.as_str())];
        if !body.is_empty() {
            headers.push(("content-type", media_type));
        }
        self.send(method, path, &headers, &body)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &Value::Null)
    }

    /// The lines of a stream, as they come.
    pub(crate) fn stream(&self, path: &str) -> impl Iterator<Item = String> + use<> {
        let request = self
            .agent()
            .get(format!("https://127.0.0.1:{}{path}", self.address.port()));
        let answer = request
            .header("authorization", format!("Bearer {ADMIN}"))
            .call()
            .unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        BufReader::new(answer.into_body().into_reader())
            .lines()
            .map(Result::unwrap)
    }

    /// The events of a watch, as (type, object).
    pub(crate) fn watch(&self, path: &str) -> impl Iterator<Item = (String, Value)> + use<> {
        self.stream(path).map(|line| {
            let mut event: Value = serde_json::from_str(&line).unwrap();
            (event["type"].as_str().unwrap().to_owned(), event["object"].take())
        })
    }

    /// A kubeconfig with the administrator's certificate.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let pem = |name: &str, text: &str| {
            let path = self.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let authority = pem("ca.pem", &pem_of("CERTIFICATE", &self.authority));
        let (certificate, key) = (
            pem("client.pem", &self.client.0),
            pem("client.key", &self.client.1),
        );
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "skiff",
            "clusters": [{ "name": "skiff", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.address.port()), "certificate-authority": authority } }],
            "users": [{ "name": "admin", "user": { "client-certificate": certificate, "client-key": key } }],
            "contexts": [{ "name": "skiff", "context": { "cluster": "skiff", "user": "admin" } }],
        });
        pem("kubeconfig", &config.to_string())
    }
}

async fn extra(identity: Option<axum::Extension<Identity>>) -> String {
    identity.map_or_else(|| "nobody".into(), |identity| identity.0.user)
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub code: u16,
    pub warnings: Vec<String>,
    pub media_type: String,
    pub text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The JSON of an answer that must have this code.
    pub(crate) fn expect(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.json()
    }
}

struct Keys {
    authority: CertificateDer<'static>,
    server: (CertificateDer<'static>, PrivateKeyDer<'static>),
    client: (String, String),
}

impl Keys {
    fn make() -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority
            .distinguished_name
            .push(DnType::CommonName, "skiff test authority");
        let certificate = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let mut server = CertificateParams::default();
        server.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let server = server.signed_by(&key, &issuer).unwrap();
        let server = (
            server.der().clone(),
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        );
        let key = KeyPair::generate().unwrap();
        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::CommonName, "admin");
        client
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        let client = (
            client.signed_by(&key, &issuer).unwrap().pem(),
            key.serialize_pem(),
        );
        Self {
            authority: certificate.der().clone(),
            server,
            client,
        }
    }

    fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots));
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let config = rustls::ServerConfig::builder().with_client_cert_verifier(verifier);
        Arc::new(
            config
                .with_single_cert(vec![self.server.0.clone()], self.server.1.clone_key())
                .unwrap(),
        )
    }
}

fn pem_of(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// A Pod that passes validation.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "containers": [{ "name": "app", "image": "nginx:1.14.2" }] },
    })
}

/// A ConfigMap.
pub(crate) fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": "v" } })
}
