//! A whole server on loopback, and a node made of nothing but the wire.
//!
//! The node is the other end as `SPEC.md` describes it, over the real transport, TLS and broker; what it is told it
//! verifies as a real one does.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::ClientConfig;
use serde_json::{Value, json};
use skiff_protocol::enrol::{JoinRequest, JoinResponse, JoinToken, PUBLIC_KEY, from_base64};
use skiff_protocol::topic::{NodeName, Topic, UpKind};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::{self, Desired, Index};
use skiff_protocol::wire::spec::{Object, ObjectKey};
use skiff_protocol::wire::status::{ContainerState, ContainerStatus, Phase, PodStatus};
use skiff_protocol::wire::{self, Assembler, Down, Hello, NodeInfo, Up, decode_down, encode_up, frames};
use skiff_protocol::{limits, sha256};
use skiff_server::{Config, Server};
use skiff_transport::{BrokerUrl, Bytes, Client, Event, LastWill, Options, Qos, Transport, tls};
use tokio::time::{sleep, timeout};

/// Far above anything that should take time here, for the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server in a directory of its own.
pub(crate) struct Fleet {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: Option<Server>,
    pub(crate) api: Api,
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// A fleet whose configuration `change` has changed; it is told the data directory.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config, &Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (server, api) = start(dir.path(), |config| change(config, dir.path())).await;
        Self {
            dir,
            server: Some(server),
            api,
        }
    }

    /// Stops the server; the next one listens elsewhere, and keeps all else.
    pub(crate) async fn stop(&mut self) {
        self.server.take().unwrap().stop().await.unwrap();
    }

    pub(crate) async fn start_again(&mut self, change: impl FnOnce(&mut Config)) {
        let (server, api) = start(self.dir.path(), change).await;
        self.server = Some(server);
        self.api = api;
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Enrols a node over HTTPS and connects it.
    pub(crate) async fn node(&self, name: &str) -> SimNode {
        let answer = self
            .api
            .call("POST", &format!("/skiff/v1/nodes/{name}/enrol"), Some(json!({})))
            .await;
        let token = JoinToken::parse(answer["token"].as_str().unwrap()).unwrap();
        let (request, key) = join_request(&token);
        // As a real node: it trusts nothing but the digest in the token.
        let tls = tls::pinned_client_config(token.ca_sha256, &tls::Clock::system()).unwrap();
        let stranger = Api {
            url: token.server_urls[0].clone(),
            token: None,
            tls,
        };
        let joined = stranger
            .call(
                "POST",
                "/skiff/v1/join",
                Some(serde_json::to_value(request).unwrap()),
            )
            .await;
        SimNode::new(serde_json::from_value(joined).unwrap(), key)
    }
}

async fn start(dir: &Path, change: impl FnOnce(&mut Config)) -> (Server, Api) {
    let mut config = Config::local(dir);
    change(&mut config);
    let server = Server::start(config).await.unwrap();
    let token = std::fs::read_to_string(dir.join("admin.token")).unwrap();
    let text = std::fs::read_to_string(&server.token_kubeconfig_path).unwrap();
    assert!(
        text.contains(token.trim()) && text.contains(&server.api_url),
        "{text}"
    );
    let ca = text
        .split("certificate-authority-data: ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    let ca = String::from_utf8(STANDARD.decode(ca).unwrap()).unwrap();
    let tls = tls::client_config(&ca, None, &tls::Clock::system()).unwrap();
    let api = Api {
        url: server.api_url.clone(),
        token: Some(token.trim().to_owned()),
        tls,
    };
    (server, api)
}

/// A join request with a new key, and the key as PEM.
pub(crate) fn join_request(token: &JoinToken) -> (JoinRequest, String) {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    let public: [u8; PUBLIC_KEY] = pair.public_key().as_ref().try_into().unwrap();
    let signature = pair
        .sign(
            &random,
            &JoinRequest::payload(&token.node, &token.secret, &public),
        )
        .unwrap();
    let request = JoinRequest::new(token, &public, signature.as_ref());
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(pkcs8.as_ref())
    );
    (request, pem)
}

/// An HTTPS client of the API.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) url: String,
    pub(crate) token: Option<String>,
    pub(crate) tls: Arc<ClientConfig>,
}

impl Api {
    /// One request on a connection of its own; the answer's body is not read yet.
    pub(crate) async fn open(
        &self,
        method: &str,
        path: &str,
        body: Vec<u8>,
    ) -> hyper::Response<hyper::body::Incoming> {
        let address = self.url.strip_prefix("https://").unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let host = address.rsplit_once(':').unwrap().0.to_owned();
        let tls = tokio_rustls::TlsConnector::from(self.tls.clone());
        let stream = tls.connect(host.try_into().unwrap(), stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", address);
        request = request.header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        sender
            .send_request(request.body(axum::body::Body::from(body)).unwrap())
            .await
            .unwrap()
    }

    /// Status code and body.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let answer = timeout(PATIENCE, async {
            let answer = self.open(method, path, body).await;
            let code = answer.status().as_u16();
            (
                code,
                axum::body::to_bytes(axum::body::Body::new(answer.into_body()), 64 << 20)
                    .await
                    .unwrap()
                    .to_vec(),
            )
        });
        answer
            .await
            .unwrap_or_else(|_| panic!("{method} {path}: no answer"))
    }

    /// The answer's JSON; the call must succeed.
    pub(crate) async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let body = body.map(|it| it.to_string().into_bytes()).unwrap_or_default();
        let (code, body) = self.send(method, path, body).await;
        assert!(
            (200..300).contains(&code),
            "{method} {path}: {code} {}",
            String::from_utf8_lossy(&body)
        );
        serde_json::from_slice(&body).unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Option<Value> {
        let (code, body) = self.send("GET", path, Vec::new()).await;
        (code == 200).then(|| serde_json::from_slice(&body).unwrap())
    }

    /// Asks until the answer is as wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(Option<&Value>) -> bool) -> Option<Value> {
        let mut last = None;
        let found = timeout(PATIENCE, async {
            loop {
                last = self.get(path).await;
                if wanted(last.as_ref()) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(found.await.is_ok(), "{path} stayed {last:?}");
        last
    }
}

/// A node.
pub(crate) struct SimNode {
    pub(crate) name: NodeName,
    pub(crate) joined: JoinResponse,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) generation: u64,
    pub(crate) index: Index,
    pub(crate) objects: BTreeMap<ObjectKey, Object>,
    pub(crate) allocatable_memory: u64,
    pub(crate) address: String,
    key: String,
    client: Option<Client>,
    assembler: Assembler,
    came: VecDeque<Down>,
    sent: u64,
}

impl SimNode {
    /// Its key as PEM.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    pub(crate) fn new(joined: JoinResponse, key: String) -> Self {
        Self {
            name: NodeName::parse(&joined.node).unwrap(),
            joined,
            epoch: 1,
            sequence: 0,
            generation: 0,
            index: Index::default(),
            objects: BTreeMap::new(),
            allocatable_memory: 1 << 30,
            address: "10.1.2.3".into(),
            key,
            client: None,
            assembler: Assembler::default(),
            came: VecDeque::new(),
            sent: 0,
        }
    }

    /// The API as this node may use it: by its certificate.
    pub(crate) fn api(&self) -> Api {
        let identity = tls::Identity {
            certificates_pem: &self.joined.certificate,
            key_pem: &self.key,
        };
        let tls =
            tls::client_config(&self.joined.ca_certificate, Some(identity), &tls::Clock::system()).unwrap();
        Api {
            url: self.joined.server_urls[0].clone(),
            token: None,
            tls,
        }
    }

    pub(crate) fn server_key(&self) -> Vec<u8> {
        from_base64(&self.joined.signing_key).unwrap()
    }

    /// Connects to the broker that it was told, or to another.
    pub(crate) async fn connect(&mut self, broker: &str) {
        let identity = tls::Identity {
            certificates_pem: &self.joined.certificate,
            key_pem: &self.key,
        };
        let tls =
            tls::client_config(&self.joined.ca_certificate, Some(identity), &tls::Clock::system()).unwrap();
        let mut options = Options::new(
            BrokerUrl::parse(broker, false).unwrap(),
            self.name.as_str(),
            Box::new(|| 7),
        );
        options.credentials = Some((
            self.joined.broker_username.clone(),
            self.joined.broker_password.clone(),
        ));
        options.tls = Some(tls);
        options.subscriptions = vec![Topic::node_filter(&self.name)];
        let bye = frames(wire::OLDEST, &encode_up(&Up::Bye { epoch: self.epoch }), 0)
            .unwrap()
            .remove(0);
        let topic = Topic::up(&self.name, UpKind::Bye).to_string();
        options.last_will = Some(LastWill {
            topic,
            payload: bye.into(),
        });
        let mut client = Client::new(options).unwrap();
        let up = timeout(PATIENCE, async {
            loop {
                match client.next().await {
                    Event::Connected { .. } => return,
                    Event::Disconnected { why, .. } => panic!("{why}"),
                    _ => {}
                }
            }
        });
        up.await.unwrap();
        self.client = Some(client);
        self.came.clear();
    }

    /// The connection breaks without a word.
    pub(crate) fn drop_connection(&mut self) {
        self.client = None;
    }

    pub(crate) fn info(&self) -> NodeInfo {
        NodeInfo {
            agent_version: "v0.1.0".into(),
            architecture: "arm64".into(),
            kernel: "6.1.0".into(),
            os_image: "Debian GNU/Linux 12".into(),
            address: self.address.clone(),
            cpu_milli: 4000,
            memory: 2 << 30,
            storage: 8 << 30,
            allocatable_cpu_milli: 3800,
            allocatable_memory: self.allocatable_memory,
            pods: 110,
            labels: vec![("site".into(), "north".into())],
            ..NodeInfo::default()
        }
    }

    pub(crate) async fn hello(&mut self) {
        let hello = Hello {
            epoch: self.epoch,
            versions: (wire::OLDEST, wire::VERSION),
            max_frame: limits::FRAME as u32,
            generation: self.generation,
            desired_digest: self.index.digest(),
            inventory_digest: [0; 32],
            node: self.info(),
        };
        self.send(UpKind::Hello, &Up::Hello(hello)).await;
    }

    pub(crate) async fn send(&mut self, kind: UpKind, up: &Up) {
        let sid = match up {
            Up::StreamData { sid, .. } | Up::StreamEnd { sid, .. } => Some(*sid),
            _ => None,
        };
        let topic = Topic::Up {
            node: self.name.clone(),
            kind,
            sid,
        }
        .to_string();
        self.sent += 1;
        for payload in frames(wire::OLDEST, &encode_up(up), self.sent as u32).unwrap() {
            self.publish(&topic, payload).await;
        }
    }

    /// Publishes anything anywhere, and waits until the broker has it.
    pub(crate) async fn publish(&mut self, topic: &str, payload: Vec<u8>) {
        self.sent += 1;
        let id = self.sent << 32;
        self.client
            .as_mut()
            .unwrap()
            .try_publish(id, topic, Bytes::from(payload), Qos::AtLeastOnce)
            .unwrap();
        timeout(PATIENCE, async { while !self.step(id).await {} })
            .await
            .unwrap();
    }

    /// One event of the connection; whether it was the ack of `id`.
    async fn step(&mut self, id: u64) -> bool {
        let client = self.client.as_mut().unwrap();
        match client.next().await {
            Event::Message { topic, payload, ack } => {
                assert!(
                    matches!(Topic::parse(&topic), Ok(Topic::Down { node, .. }) if node == self.name),
                    "{topic}"
                );
                let whole = self.assembler.push(&payload).unwrap();
                self.came.extend(whole.map(|it| decode_down(&it).unwrap()));
                client.ack(ack);
                false
            }
            Event::Acked { id: acked } | Event::Refused { id: acked, .. } => acked == id,
            Event::Disconnected { why, .. } => panic!("the node lost its connection: {why}"),
            Event::Connected { .. } => false,
        }
    }

    /// The next message that `pick` takes; those before it are put by.
    pub(crate) async fn expect<T>(&mut self, what: &str, pick: impl FnMut(&Down) -> Option<T>) -> T {
        let picked = self.within(PATIENCE, pick).await;
        picked.unwrap_or_else(|| panic!("{} waited in vain for {what}", self.name))
    }

    /// Says hello, and again while nobody answers, as an agent does.
    pub(crate) async fn hello_until<T>(&mut self, what: &str, mut pick: impl FnMut(&Down) -> Option<T>) -> T {
        for _ in 0..PATIENCE.as_secs() {
            self.hello().await;
            if let Some(picked) = self.within(Duration::from_secs(1), &mut pick).await {
                return picked;
            }
        }
        panic!("{} waited in vain for {what}", self.name);
    }

    async fn within<T>(&mut self, patience: Duration, mut pick: impl FnMut(&Down) -> Option<T>) -> Option<T> {
        let picked = timeout(patience, async {
            loop {
                while let Some(down) = self.came.pop_front() {
                    if let Some(picked) = pick(&down) {
                        return picked;
                    }
                }
                self.step(u64::MAX).await;
            }
        });
        picked.await.ok()
    }

    /// Nothing that `pick` takes comes for a while.
    pub(crate) async fn expect_none(&mut self, what: &str, pick: impl Fn(&Down) -> bool) {
        let wait = timeout(Duration::from_millis(300), async {
            loop {
                self.step(u64::MAX).await;
            }
        });
        let _elapsed: Result<(), _> = wait.await;
        assert!(!self.came.iter().any(pick), "{what}: {:?}", self.came);
    }

    /// The next desired state, as it came.
    pub(crate) async fn desired(&mut self) -> Desired {
        self.expect("a desired state", |down| match down {
            Down::Desired(desired) => Some(desired.clone()),
            _ => None,
        })
        .await
    }

    /// Takes desired states as an agent does, asking for what is missing, until `done`.
    pub(crate) async fn apply_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            let desired = self.desired().await;
            self.apply(&desired).await;
        }
    }

    pub(crate) async fn apply(&mut self, desired: &Desired) {
        let key = self.server_key();
        let index = desired::verify(&self.name, &key, self.generation, &self.index, desired).unwrap();
        let mut came = desired.objects.clone();
        loop {
            for bytes in came.drain(..) {
                let object: Object = postcard::from_bytes(&bytes).unwrap();
                assert_eq!(
                    index.0.get(&object.key()),
                    Some(&sha256(&bytes)),
                    "an object that was not announced"
                );
                self.objects.insert(object.key(), object);
            }
            let missing = |it: &(&ObjectKey, &skiff_protocol::Digest)| {
                let held = self
                    .objects
                    .get(it.0)
                    .map(|object| sha256(&postcard::to_allocvec(object).unwrap()));
                held.as_ref() != Some(it.1)
            };
            let keys: Vec<ObjectKey> = index
                .0
                .iter()
                .filter(missing)
                .map(|(key, _)| key.clone())
                .collect();
            if keys.is_empty() {
                break;
            }
            let generation = desired.generation;
            self.send(UpKind::Hello, &Up::Need { generation, keys }).await;
            came = self
                .expect("objects", |down| match down {
                    Down::Objects {
                        generation: of,
                        objects,
                    } if *of == generation => Some(objects.clone()),
                    _ => None,
                })
                .await;
        }
        self.objects.retain(|key, _| index.0.contains_key(key));
        self.generation = desired.generation;
        self.index = index;
        let digest = self.index.digest();
        self.send(
            UpKind::Hello,
            &Up::Applied {
                generation: self.generation,
                digest,
            },
        )
        .await;
    }

    pub(crate) fn pods(&self) -> Vec<&wire::spec::PodSpec> {
        let pods = self.objects.values().filter_map(|it| match it {
            Object::Pod(pod) => Some(pod),
            _ => None,
        });
        pods.collect()
    }

    pub(crate) fn pod(&self, name: &str) -> Option<&wire::spec::PodSpec> {
        self.pods().into_iter().find(|pod| pod.name == name)
    }

    pub(crate) async fn status(&mut self, pods: Vec<PodStatus>) {
        self.sequence += 1;
        let (epoch, sequence) = (self.epoch, self.sequence);
        self.send(
            UpKind::Status,
            &Up::Status {
                epoch,
                sequence,
                pods,
            },
        )
        .await;
    }
}

/// A Pod of one container that runs.
pub(crate) fn running(uid: Uid) -> PodStatus {
    PodStatus {
        uid,
        phase: Phase::Running,
        reason: String::new(),
        message: String::new(),
        pod_ip: "10.88.0.5".into(),
        start_time: Some(1_790_000_000),
        ready_since: Some(1_790_000_002),
        initialized_since: Some(1_790_000_000),
        containers: vec![ContainerStatus {
            name: "app".into(),
            state: ContainerState::Running {
                started_at: 1_790_000_001,
            },
            last: None,
            ready: true,
            started: true,
            restart_count: 0,
            image_id: "sha256:00".into(),
            container_id: "abc".into(),
            ..Default::default()
        }],
        gone: false,
        ..Default::default()
    }
}

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "app", "image": "busybox:1" }] },
    })
}
