//! A fleet for tests: an authority, a broker (a real Mosquitto, or the embedded one), and clients for both.
//!
//! Always holds: brokers listen on loopback, on a port of their own; a Mosquitto dies with its value.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use skiff_broker::{
    Attempt, Broker, Config, Credentials, Embedded, Role, Tls, mosquitto_acl, mosquitto_conf,
};
use skiff_pki::{FleetAuthority, Grant, Issued, SERVER_CN};
use skiff_protocol::enrol::JoinRequest;
use skiff_protocol::topic::NodeName;
use skiff_transport::tls::{Clock, Identity, client_config};
use skiff_transport::{
    BrokerUrl, Bytes, Client, Event, LastWill, NodeKey, Options, Protocol, ProtocolChoice, Qos, Transport,
};
use tempfile::TempDir;

pub(crate) const NODE: &str = "pump-1";
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub(crate) struct Fleet {
    pub(crate) authority: Arc<FleetAuthority>,
    broker: Issued,
    server: Issued,
}

/// Lets in whoever has the right password.
struct Passwords(Arc<FleetAuthority>);

impl Credentials for Passwords {
    fn verify(&self, attempt: &Attempt<'_>) -> Option<Role> {
        let password = attempt.password?;
        if attempt.username? == SERVER_CN {
            return self.0.is_server_password(password).then_some(Role::Server);
        }
        let node = NodeName::parse(attempt.username?).ok()?;
        self.0
            .is_broker_password(&node, 1, password)
            .then_some(Role::Node(node))
    }
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let authority = FleetAuthority::create("test", now(), 20).unwrap();
        let broker = authority
            .issue_server(&["127.0.0.1".into(), "localhost".into()], now(), 3600)
            .unwrap();
        let server = authority.issue_mqtt_client(now(), 3600).unwrap();
        Self {
            authority: Arc::new(authority),
            broker,
            server,
        }
    }

    pub(crate) async fn embedded(&self) -> Embedded {
        let tls = Tls {
            chain: self.broker.chain.clone(),
            key: self.broker.key.clone(),
            client_ca: self.authority.ca_certificate().to_owned(),
        };
        let config = Config::new(SocketAddr::from(([127, 0, 0, 1], 0)), tls);
        Embedded::start(config, Arc::new(Passwords(self.authority.clone())))
            .await
            .unwrap()
    }

    fn options(&self, url: &str, name: &str, password: String, cert: &str, key: &str) -> Options {
        let mut seed = u64::from(std::process::id()) | 1;
        let random = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 20
        };
        let mut options = Options::new(BrokerUrl::parse(url, false).unwrap(), name, Box::new(random));
        let identity = Identity {
            certificates_pem: cert,
            key_pem: key,
        };
        let roots = self.authority.ca_certificate();
        options.tls = Some(client_config(roots, Some(identity), &Clock::system()).unwrap());
        options.credentials = Some((name.to_owned(), password));
        options.keepalive = Duration::from_secs(5);
        options.backoff_cap = Duration::from_secs(2);
        options
    }

    pub(crate) fn server(&self, url: &str, protocol: ProtocolChoice) -> Options {
        let password = self.authority.server_password();
        let mut options = self.options(url, SERVER_CN, password, &self.server.chain, &self.server.key);
        options.protocol = protocol;
        options.subscriptions = vec!["skiff/u/+/+/#".to_owned()];
        options
    }

    pub(crate) fn node(&self, url: &str, protocol: ProtocolChoice) -> Options {
        let node = NodeName::parse(NODE).unwrap();
        let key = NodeKey::generate().unwrap();
        let urls = ["https://fleet.example".to_owned()];
        let (token, mut record) = self.authority.join_token(&node, &urls, now() + 60).unwrap();
        let payload = JoinRequest::payload(&node, &token.secret, &key.public_key());
        let request = JoinRequest::new(&token, &key.public_key(), &key.sign(&payload).unwrap());
        let grant = Grant {
            broker_url: url,
            server_urls: &urls,
            password_serial: 1,
            seconds: 3600,
        };
        let given = self.authority.join(&mut record, &request, grant, now()).unwrap();
        let mut options = self.options(
            url,
            NODE,
            given.broker_password,
            &given.certificate,
            &key.to_pem(),
        );
        options.protocol = protocol;
        options.subscriptions = vec![format!("skiff/d/{NODE}/#")];
        options.last_will = Some(LastWill {
            topic: up("bye"),
            payload: Bytes::from_static(b"gone"),
        });
        options
    }
}

/// The topic of a kind from the node.
pub(crate) fn up(kind: &str) -> String {
    format!("skiff/u/{}/{NODE}/{kind}", NodeName::parse(NODE).unwrap().shard())
}

/// The topic of a kind to the node.
pub(crate) fn down(kind: &str) -> String {
    format!("skiff/d/{NODE}/{kind}")
}

pub(crate) struct Mosquitto {
    child: Child,
    port: u16,
    directory: TempDir,
}

impl Mosquitto {
    pub(crate) fn start(fleet: &Fleet) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = skiff_tests::port::free().port();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let acl = file("acl", &mosquitto_acl(SERVER_CN));
        let conf = mosquitto_conf(
            port,
            &file("ca.pem", fleet.authority.ca_certificate()),
            &file("broker.pem", &fleet.broker.chain),
            &file("broker.key", &fleet.broker.key),
            &acl,
        );
        // As root it would change to a user that cannot read these files.
        file("mosquitto.conf", &format!("user root\n{conf}"));
        let child = Self::spawn(&directory, port);
        Self {
            child,
            port,
            directory,
        }
    }

    fn spawn(directory: &TempDir, port: u16) -> Child {
        let child = Command::new("mosquitto")
            .arg("-c")
            .arg(directory.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto does not start: install the Debian package 'mosquitto'");
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < deadline,
                "mosquitto does not listen on port {port}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtts://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = Self::spawn(&self.directory, self.port);
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _already_dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Runs `check` against a Mosquitto and against the embedded broker, with both protocols.
pub(crate) async fn everywhere<F, Fut>(check: F)
where
    F: Fn(Arc<Fleet>, String, ProtocolChoice) -> Fut,
    Fut: Future<Output = ()>,
{
    for protocol in [ProtocolChoice::V5, ProtocolChoice::V311] {
        let fleet = Arc::new(Fleet::new());
        let mosquitto = Mosquitto::start(&fleet);
        println!("mosquitto, {protocol:?}");
        check(fleet.clone(), mosquitto.url(), protocol).await;
        drop(mosquitto);
        let embedded = fleet.embedded().await;
        println!("embedded, {protocol:?}");
        check(fleet.clone(), embedded.url().to_owned(), protocol).await;
        embedded.shutdown().await;
        assert_eq!(embedded.counters().open, 0, "connections left after shutdown");
    }
}

pub(crate) async fn event(client: &mut Client) -> Event {
    event_within(client, PATIENCE).await
}

pub(crate) async fn event_within(client: &mut Client, patience: Duration) -> Event {
    tokio::time::timeout(patience, client.next())
        .await
        .expect("an event in time")
}

/// A client that is connected, and whether its session was kept.
pub(crate) async fn connected(options: Options) -> (Client, bool) {
    let expected = match options.protocol {
        ProtocolChoice::V311 => Protocol::V311,
        _ => Protocol::V5,
    };
    let mut client = Client::new(options).unwrap();
    match event(&mut client).await {
        Event::Connected {
            session_present,
            protocol,
            ..
        } => {
            assert_eq!(protocol, expected);
            (client, session_present)
        }
        other => panic!("not connected: {other:?}"),
    }
}

/// Publishes and waits until the broker has it.
pub(crate) async fn publish(client: &mut Client, topic: &str, payload: Bytes) {
    client
        .try_publish(u64::MAX, topic, payload, Qos::AtLeastOnce)
        .unwrap();
    loop {
        match event(client).await {
            Event::Acked { id: u64::MAX } => return,
            // A last will may come between; nobody here waits for one after publishing.
            Event::Message { topic, .. } if topic == up("bye") => {}
            other => panic!("not acked: {other:?}"),
        }
    }
}

/// The next message; acks it if asked to. Acks of publishes may come between.
pub(crate) async fn message(client: &mut Client, ack: bool) -> (String, Bytes) {
    loop {
        match event(client).await {
            Event::Message {
                topic,
                payload,
                ack: token,
            } => {
                assert!(!ack || client.ack(token));
                return (topic, payload);
            }
            Event::Acked { .. } => {}
            other => panic!("no message: {other:?}"),
        }
    }
}
