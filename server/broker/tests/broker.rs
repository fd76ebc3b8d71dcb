//! The embedded broker as clients see it: our own client, and Mosquitto's tools as independent ones.
//!
//! Always holds: what is refused stands beside what is allowed, over the same connection or with the same tool.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skiff_broker::{Attempt, Broker, Config, Credentials, Embedded, Role, Tls};
use skiff_pki::{FleetAuthority, Grant, Issued, SERVER_CN};
use skiff_protocol::enrol::JoinRequest;
use skiff_protocol::topic::NodeName;
use skiff_transport::tls::{Clock, Identity, client_config};
use skiff_transport::{
    BrokerUrl, Bytes, Client, Event, NodeKey, Options, ProtocolChoice, Qos, Transport, Why,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(10);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn name(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

/// Knows the nodes enrolled so far.
struct Enrolled {
    authority: Arc<FleetAuthority>,
    nodes: Mutex<Vec<NodeName>>,
}

impl Credentials for Enrolled {
    fn verify(&self, attempt: &Attempt<'_>) -> Option<Role> {
        let (user, password) = (attempt.username?, attempt.password?);
        if user == SERVER_CN {
            return self
                .authority
                .is_server_password(password)
                .then_some(Role::Server);
        }
        let node = self
            .nodes
            .lock()
            .unwrap()
            .iter()
            .find(|node| node.as_str() == user)?
            .clone();
        self.authority
            .is_broker_password(&node, 1, password)
            .then_some(Role::Node(node))
    }
}

/// A certificate, its key and a password.
#[derive(Clone)]
struct Papers {
    user: String,
    password: String,
    chain: String,
    key: String,
}

struct World {
    authority: Arc<FleetAuthority>,
    enrolled: Arc<Enrolled>,
    broker: Embedded,
}

impl World {
    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let authority = Arc::new(FleetAuthority::create("test", now(), 20).unwrap());
        let Issued { chain, key, .. } = authority
            .issue_server(&["127.0.0.1".into()], now(), 3600)
            .unwrap();
        let tls = Tls {
            chain,
            key,
            client_ca: authority.ca_certificate().to_owned(),
        };
        let mut config = Config::new(SocketAddr::from(([127, 0, 0, 1], 0)), tls);
        change(&mut config);
        let enrolled = Arc::new(Enrolled {
            authority: authority.clone(),
            nodes: Mutex::new(Vec::new()),
        });
        let broker = Embedded::start(config, enrolled.clone()).await.unwrap();
        Self {
            authority,
            enrolled,
            broker,
        }
    }

    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    fn server(&self) -> Papers {
        let Issued { chain, key, .. } = self.authority.issue_mqtt_client(now(), 3600).unwrap();
        Papers {
            user: SERVER_CN.to_owned(),
            password: self.authority.server_password(),
            chain,
            key,
        }
    }

    fn node(&self, node: &str) -> Papers {
        self.enrolled.nodes.lock().unwrap().push(name(node));
        papers(&self.authority, node)
    }

    fn options(&self, papers: &Papers, protocol: ProtocolChoice) -> Options {
        let url = BrokerUrl::parse(self.broker.url(), false).unwrap();
        let mut options = Options::new(url, &papers.user, Box::new(|| 0));
        let identity = Identity {
            certificates_pem: &papers.chain,
            key_pem: &papers.key,
        };
        let roots = self.authority.ca_certificate();
        options.tls = Some(client_config(roots, Some(identity), &Clock::system()).unwrap());
        options.credentials = Some((papers.user.clone(), papers.password.clone()));
        options.protocol = protocol;
        options
    }
}

fn papers(authority: &FleetAuthority, node: &str) -> Papers {
    let key = NodeKey::generate().unwrap();
    let urls = ["https://fleet.example".to_owned()];
    let (token, mut record) = authority.join_token(&name(node), &urls, now() + 60).unwrap();
    let payload = JoinRequest::payload(&token.node, &token.secret, &key.public_key());
    let request = JoinRequest::new(&token, &key.public_key(), &key.sign(&payload).unwrap());
    let grant = Grant {
        broker_url: "mqtts://x",
        server_urls: &urls,
        password_serial: 1,
        seconds: 3600,
    };
    let given = authority.join(&mut record, &request, grant, now()).unwrap();
    Papers {
        user: node.to_owned(),
        password: given.broker_password,
        chain: given.certificate,
        key: key.to_pem(),
    }
}

async fn event(client: &mut Client) -> Event {
    tokio::time::timeout(PATIENCE, client.next())
        .await
        .expect("an event in time")
}

async fn connected(options: Options) -> Client {
    let mut client = Client::new(options).unwrap();
    let told = event(&mut client).await;
    assert!(matches!(told, Event::Connected { .. }), "{told:?}");
    client
}

/// Why the first attempt fails.
async fn refused(options: Options) -> Why {
    match event(&mut Client::new(options).unwrap()).await {
        Event::Disconnected { why, .. } => why,
        other => panic!("not refused: {other:?}"),
    }
}

/// mosquitto_pub or mosquitto_sub with these papers.
fn tool(program: &str, world: &World, papers: &Papers, version: &str, more: &[&str]) -> (TempDir, Command) {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut command = Command::new(program);
    command
        .arg("--cafile")
        .arg(file("ca", world.authority.ca_certificate()))
        .arg("--cert")
        .arg(file("cert", &papers.chain))
        .arg("--key")
        .arg(file("key", &papers.key))
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &world.broker.address().port().to_string(),
        ])
        .args([
            "-i",
            &papers.user,
            "-u",
            &papers.user,
            "-P",
            &papers.password,
            "-V",
            version,
        ])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    (directory, command)
}

async fn run((directory, mut command): (TempDir, Command)) -> Output {
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap();
    drop(directory);
    output.expect("the tool does not start: install the Debian package 'mosquitto-clients'")
}

#[tokio::test]
async fn an_independent_client_is_held_to_the_table() {
    let world = World::new().await;
    let node = world.node("pump-1");
    world.node("pump-2");
    let (mine, other) = (name("pump-1").shard(), name("pump-2").shard());
    for version in ["mqttv5", "mqttv311"] {
        let publish = async |topic: &str, allowed: bool| {
            let before = world.broker.counters().publish_denied;
            let output = run(tool(
                "mosquitto_pub",
                &world,
                &node,
                version,
                &["-q", "1", "-t", topic, "-m", "x"],
            ))
            .await;
            let denied = world.broker.counters().publish_denied - before;
            assert_eq!(
                denied,
                u64::from(!allowed),
                "{version} publish {topic}: {output:?}"
            );
        };
        publish(&format!("skiff/u/{mine}/pump-1/hello"), true).await;
        publish(&format!("skiff/u/{other}/pump-2/hello"), false).await;
        publish("skiff/d/pump-1/spec", false).await;
        publish("skiff/d/pump-2/spec", false).await;
        publish("elsewhere", false).await;
        // -E ends after SUBACK; a refused filter makes an error of it.
        let subscribe = async |filter: &str, allowed: bool| {
            let before = world.broker.counters().subscribe_denied;
            let output = run(tool(
                "mosquitto_sub",
                &world,
                &node,
                version,
                &["-q", "1", "-E", "-t", filter],
            ))
            .await;
            let denied = world.broker.counters().subscribe_denied - before;
            let text = String::from_utf8_lossy(&output.stderr).to_lowercase();
            assert_eq!(
                text.contains("denied") || !output.status.success(),
                !allowed,
                "{version} {filter}: {output:?}"
            );
            // A filter that the library refuses before it asks (shared subscriptions) is refused all the same.
            assert!(
                denied == u64::from(!allowed) || filter.starts_with('$'),
                "{version} {filter}: {output:?}"
            );
        };
        subscribe("skiff/d/pump-1/#", true).await;
        for filter in [
            "#",
            "skiff/d/+/#",
            "skiff/d/pump-2/#",
            "skiff/u/#",
            "+/d/pump-1/#",
            "$SYS/#",
            "$share/g/skiff/d/pump-2/#",
        ] {
            subscribe(filter, false).await;
        }
    }
}

#[tokio::test]
async fn an_independent_client_gets_what_ours_sends_and_the_other_way_round() {
    let world = World::new().await;
    let (node, server_papers) = (world.node("pump-1"), world.server());
    for (version, protocol) in [("mqttv5", ProtocolChoice::V311), ("mqttv311", ProtocolChoice::V5)] {
        let mut options = world.options(&server_papers, protocol);
        options.subscriptions = vec!["skiff/u/+/+/#".to_owned()];
        let mut server = connected(options).await;
        let up = format!("skiff/u/{}/pump-1/hello", name("pump-1").shard());
        let arguments = [
            "-q",
            "1",
            "-C",
            "1",
            "-W",
            "10",
            "-t",
            "skiff/d/pump-1/#",
            "-F",
            "%t %p",
        ];
        // Counted before it begins: on a busy machine it may be there before this task goes on.
        let before = world.broker.counters();
        let listening = tokio::spawn(run(tool("mosquitto_sub", &world, &node, version, &arguments)));
        let there = async {
            while world.broker.counters().connected == before.connected {
                assert!(
                    !listening.is_finished(),
                    "mosquitto_sub ended before it was connected"
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.unwrap();
        // It is there once the broker counts it; then it still has to subscribe.
        tokio::time::sleep(Duration::from_millis(200)).await;
        server
            .try_publish(
                1,
                "skiff/d/pump-1/spec",
                Bytes::from_static(b"desired"),
                Qos::AtLeastOnce,
            )
            .unwrap();
        assert_eq!(event(&mut server).await, Event::Acked { id: 1 });
        let heard = tokio::time::timeout(PATIENCE, listening).await.unwrap().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&heard.stdout),
            "skiff/d/pump-1/spec desired\n",
            "{heard:?}"
        );

        let sent = run(tool(
            "mosquitto_pub",
            &world,
            &node,
            version,
            &["-q", "1", "-t", &up, "-m", "hello"],
        ))
        .await;
        assert!(sent.status.success(), "{sent:?}");
        match event(&mut server).await {
            Event::Message { topic, payload, ack } => {
                assert_eq!((topic, payload), (up, Bytes::from_static(b"hello")));
                assert!(server.ack(ack));
                // Also writes the ack, or the next round would get the message again.
                server.disconnect().await;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_retained_message_is_dropped_and_counted() {
    let world = World::new().await;
    let server = world.server();
    let node = world.node("pump-1");
    let arguments = ["-q", "1", "-r", "-t", "skiff/d/pump-1/spec", "-m", "stale"];
    let sent = run(tool("mosquitto_pub", &world, &server, "mqttv311", &arguments)).await;
    assert_eq!(world.broker.counters().retain_dropped, 1, "{sent:?}");
    let arguments = ["-W", "1", "-t", "skiff/d/pump-1/#"];
    let heard = run(tool("mosquitto_sub", &world, &node, "mqttv311", &arguments)).await;
    assert!(heard.stdout.is_empty(), "{heard:?}");
    // A last will cannot be retained either, nor be on another's topic.
    for will in [
        &[
            "--will-retain",
            "--will-topic",
            "skiff/u/1/pump-1/bye",
            "--will-payload",
            "x",
        ][..],
        &["--will-topic", "skiff/d/pump-1/spec", "--will-payload", "x"],
    ] {
        let arguments = [&["-q", "1", "-t", "t", "-m", "x"], will].concat();
        let output = run(tool("mosquitto_pub", &world, &node, "mqttv5", &arguments)).await;
        assert!(!output.status.success(), "{will:?}: {output:?}");
    }
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says() {
    let world = World::new().await;
    let (one, two, server) = (world.node("pump-1"), world.node("pump-2"), world.server());
    let foreign = Arc::new(FleetAuthority::create("test", now(), 20).unwrap());
    for protocol in [ProtocolChoice::V5, ProtocolChoice::V311] {
        connected(world.options(&one, protocol)).await;
        connected(world.options(&server, protocol)).await;
        let check = async |what: &str, papers: Papers, client_id: &str| {
            let before = world.broker.counters().refused;
            let mut options = world.options(&papers, protocol);
            options.client_id = client_id.to_owned();
            let why = refused(options).await;
            assert!(matches!(why, Why::Refused(_)), "{what}: {why:?}");
            assert_eq!(world.broker.counters().refused, before + 1, "{what}");
        };
        let password = |password: &str| Papers {
            password: password.to_owned(),
            ..one.clone()
        };
        check("wrong password", password("wrong"), "pump-1").await;
        check("another's password", password(&two.password), "pump-1").await;
        check(
            "another's certificate",
            Papers {
                chain: two.chain.clone(),
                key: two.key.clone(),
                ..one.clone()
            },
            "pump-1",
        )
        .await;
        check("another's client id", one.clone(), "pump-2").await;
        check("the server's client id", one.clone(), SERVER_CN).await;
        check(
            "the server's name and password",
            Papers {
                chain: one.chain.clone(),
                key: one.key.clone(),
                ..server.clone()
            },
            SERVER_CN,
        )
        .await;
        check("the server as a node", server.clone(), "pump-1").await;
        check("never enrolled", papers(&world.authority, "pump-9"), "pump-9").await;

        let before = world.broker.counters().tls_failed;
        let why = refused(world.options(&papers(&foreign, "pump-1"), protocol)).await;
        assert!(
            matches!(why, Why::Tls(_) | Why::HungUp(_)),
            "another CA's certificate: {why:?}"
        );
        assert_eq!(world.broker.counters().tls_failed, before + 1);
        let mut bare = world.options(&one, protocol);
        bare.tls = Some(client_config(world.authority.ca_certificate(), None, &Clock::system()).unwrap());
        let why = refused(bare).await;
        assert!(
            matches!(why, Why::Tls(_) | Why::HungUp(_)),
            "no certificate: {why:?}"
        );
        assert_eq!(world.broker.counters().tls_failed, before + 2);
        let mut plain = world.options(&one, protocol);
        let url = world.broker.url().replace("mqtts", "mqtt");
        plain.url = BrokerUrl::parse(&url, true).unwrap();
        refused(plain).await;
        assert_eq!(world.broker.counters().tls_failed, before + 3, "plain text");
    }
    // Enrolled a moment later: no restart. Removed: refused, and its connection can be closed.
    let late = world.node("pump-9");
    let mut client = connected(world.options(&late, ProtocolChoice::V5)).await;
    world
        .enrolled
        .nodes
        .lock()
        .unwrap()
        .retain(|node| node.as_str() != "pump-9");
    world.broker.disconnect(&name("pump-9")).await;
    let told = event(&mut client).await;
    assert!(matches!(told, Event::Disconnected { .. }), "{told:?}");
    let told = event(&mut client).await;
    assert!(
        matches!(
            told,
            Event::Disconnected {
                why: Why::Refused(_),
                ..
            }
        ),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_replica_of_the_server_has_a_client_id_of_its_own() {
    let world = World::new().await;
    let server = world.server();
    for id in [SERVER_CN, "skiff.server-b"] {
        let mut options = world.options(&server, ProtocolChoice::V5);
        options.client_id = id.to_owned();
        connected(options).await;
    }
    let mut options = world.options(&server, ProtocolChoice::V5);
    options.client_id = "skiff.serverx".to_owned();
    assert!(matches!(refused(options).await, Why::Refused(_)));
}

#[tokio::test]
async fn a_packet_above_the_limit_closes_its_connection_and_no_other() {
    let world = World::new().await;
    let (one, two) = (world.node("pump-1"), world.node("pump-2"));
    let mut bystander = connected(world.options(&two, ProtocolChoice::V5)).await;
    let mut options = world.options(&one, ProtocolChoice::V311);
    // 3.1.1 cannot say the broker's limit, so this client sends what the broker must refuse.
    options.max_payload = 1024 * 1024;
    let mut client = connected(options).await;
    let topic = format!("skiff/u/{}/pump-1/status", name("pump-1").shard());
    client
        .try_publish(1, &topic, Bytes::from(vec![0; 120 * 1024]), Qos::AtLeastOnce)
        .unwrap();
    assert_eq!(event(&mut client).await, Event::Acked { id: 1 });
    client
        .try_publish(2, &topic, Bytes::from(vec![0; 200 * 1024]), Qos::AtLeastOnce)
        .unwrap();
    let told = event(&mut client).await;
    assert!(matches!(told, Event::Disconnected { .. }), "{told:?}");
    // With MQTT 5 the limit is known, and the client refuses by itself.
    let mut options = world.options(&one, ProtocolChoice::V5);
    options.max_payload = 1024 * 1024;
    let mut client = connected(options).await;
    let refused = client.try_publish(3, &topic, Bytes::from(vec![0; 200 * 1024]), Qos::AtLeastOnce);
    assert!(
        matches!(refused, Err(skiff_transport::PublishError::TooLarge { limit, .. }) if limit < 128 * 1024)
    );
    assert!(
        tokio::time::timeout(Duration::from_millis(200), bystander.next())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn clients_above_the_limit_are_closed_and_counted() {
    let world = World::with(|config| config.max_clients = 2).await;
    let one = world.node("pump-1");
    let first = connected(world.options(&one, ProtocolChoice::V5)).await;
    // A connection in its handshake takes a slot too.
    let silent = TcpStream::connect(world.broker.address()).await.unwrap();
    while world.broker.counters().open < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut third = TcpStream::connect(world.broker.address()).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, third.read(&mut [0; 1]))
        .await
        .unwrap();
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(world.broker.counters().over_limit, 1);
    drop((first, silent));
    while world.broker.counters().open > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    connected(world.options(&one, ProtocolChoice::V5)).await;
}

#[tokio::test]
async fn the_queue_of_a_client_that_is_away_is_bounded() {
    let world = World::with(|config| config.max_queued = 20).await;
    let (node, server) = (world.node("pump-1"), world.server());
    let subscribed = |protocol| {
        let mut options = world.options(&node, protocol);
        options.subscriptions = vec!["skiff/d/pump-1/#".to_owned()];
        options
    };
    drop(connected(subscribed(ProtocolChoice::V5)).await);
    let mut server = connected(world.options(&server, ProtocolChoice::V5)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    for id in 0..100u64 {
        let payload = Bytes::from(id.to_be_bytes().to_vec());
        server
            .try_publish(id, "skiff/d/pump-1/sync", payload, Qos::AtLeastOnce)
            .unwrap();
        assert_eq!(event(&mut server).await, Event::Acked { id });
    }
    let mut client = connected(subscribed(ProtocolChoice::V5)).await;
    let mut kept = Vec::new();
    while let Ok(Event::Message { payload, ack, .. }) =
        tokio::time::timeout(Duration::from_millis(500), client.next()).await
    {
        kept.push(u64::from_be_bytes(payload[..].try_into().unwrap()));
        assert!(client.ack(ack));
    }
    assert_eq!(kept, (80..100).collect::<Vec<_>>(), "the newest twenty, in order");
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_idle_clients_fit_in_their_memory() {
    let world = World::new().await;
    let ready = Arc::new(AtomicU64::new(0));
    let all: Vec<_> = (0..200).map(|n| (n, world.node(&format!("pump-{n}")))).collect();
    let idle = |batch: &[(usize, Papers)]| {
        for (n, papers) in batch {
            let mut options = world.options(papers, ProtocolChoice::V5);
            options.subscriptions = vec![format!("skiff/d/pump-{n}/#")];
            let ready = ready.clone();
            tokio::spawn(async move {
                let mut client = Client::new(options).unwrap();
                loop {
                    if let Event::Connected { .. } = client.next().await {
                        ready.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    };
    let wait = async |count: u64| {
        while ready.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    idle(&all[..50]);
    tokio::time::timeout(PATIENCE * 3, wait(50)).await.unwrap();
    let before = resident_kib();
    idle(&all[50..]);
    tokio::time::timeout(PATIENCE * 3, wait(200)).await.unwrap();
    let each = resident_kib().saturating_sub(before) / 150;
    println!("{each} KiB resident for one idle client and its connection in the broker");
    assert_eq!(world.broker.counters().connected, 200);
    // Both ends of the connection are in this process: client, broker, and two TLS sessions.
    assert!(each < 200, "{each} KiB");
}
