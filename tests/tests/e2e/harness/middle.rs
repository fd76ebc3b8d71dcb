//! A hostile broker: it stands between an agent and a real Mosquitto, passes everything on, and puts in what a test
//! makes up.
//!
//! Always holds: it speaks MQTT 3.1.1 and holds what a broker holds, which is the broker's certificate; nothing of the
//! agent is asked to believe it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use skiff_protocol::enrol::JoinResponse;
use skiff_transport::tls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::cluster::Cluster;
use super::process::read;

/// A publish that passed on its way to the agent.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Its topic.
    pub(crate) topic: String,
    /// Its payload.
    pub(crate) payload: Vec<u8>,
}

/// The broker in the middle; it ends with this value.
pub(crate) struct Middle {
    address: SocketAddr,
    inject: mpsc::UnboundedSender<Vec<u8>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Middle {
    /// Listens in front of the cluster's Mosquitto; the node has joined.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(server_tls(cluster)));
        let identity = cluster.node.state.join("identity");
        let joined: JoinResponse = serde_json::from_str(&read(&identity.join("joined.json"))).unwrap();
        let key = read(&identity.join("node.key"));
        let papers = tls::Identity {
            certificates_pem: &joined.certificate,
            key_pem: &key,
        };
        let client = tls::client_config(&joined.ca_certificate, Some(papers), &tls::Clock::system()).unwrap();
        let connector = TlsConnector::from(client);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (inject, injected) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let relay = Relay {
            acceptor,
            connector,
            broker: cluster.broker_address(),
            injected,
            seen: seen.clone(),
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                tokio::select! {
                    // The test is over: what is under way is dropped with the sockets.
                    _ = stopped => {}
                    () = relay.run(TcpListener::from_std(listener).unwrap()) => {}
                }
            });
        });
        Self {
            address,
            inject,
            seen,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Where the agent shall connect to.
    pub(crate) fn url(&self) -> String {
        format!("mqtts://{}", self.address)
    }

    /// Sends the agent a publish, between two packets of the real broker.
    pub(crate) fn publish(&self, topic: &str, payload: &[u8]) {
        self.inject.send(packet(topic, payload)).unwrap();
    }

    /// What the server has sent so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        // The thread is gone only when it has failed, which its join shows.
        self.stop.take().map(|stop| stop.send(()).ok());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the broker in the middle failed");
        }
    }
}

fn server_tls(cluster: &Cluster) -> ServerConfig {
    let dir = cluster.data().join("broker");
    let chain = CertificateDer::pem_file_iter(dir.join("broker.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("broker.key")).unwrap();
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap()
}

struct Relay {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    broker: SocketAddr,
    injected: mpsc::UnboundedReceiver<Vec<u8>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Relay {
    /// One connection after the other, as there is one agent.
    async fn run(mut self, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // An agent that goes away in the middle comes again.
            if let Err(error) = self.serve(stream).await {
                eprintln!("a connection in the middle ended: {error}");
            }
        }
    }

    async fn serve(&mut self, stream: TcpStream) -> std::io::Result<()> {
        let agent = self.acceptor.accept(stream).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let broker = self
            .connector
            .connect(name, TcpStream::connect(self.broker).await?)
            .await?;
        let (mut from_agent, mut to_agent) = tokio::io::split(agent);
        let (mut from_broker, mut to_broker) = tokio::io::split(broker);
        let mut buffer = Vec::new();
        let up = tokio::io::copy(&mut from_agent, &mut to_broker);
        tokio::pin!(up);
        loop {
            tokio::select! {
                // Polled until it ends, and the connection with it.
                ended = &mut up => return ended.map(drop),
                // What was read stays in the buffer.
                count = from_broker.read_buf(&mut buffer) => {
                    if count? == 0 {
                        return Ok(());
                    }
                    while let Some(length) = whole(&buffer) {
                        let packet: Vec<u8> = buffer.drain(..length).collect();
                        self.seen.lock().unwrap().extend(parse(&packet));
                        to_agent.write_all(&packet).await?;
                    }
                }
                // Receiving loses nothing when cancelled.
                Some(packet) = self.injected.recv() => to_agent.write_all(&packet).await?,
            }
            to_agent.flush().await?;
        }
    }
}

/// The length of the first packet, if all of it is there. Source: MQTT 3.1.1, section 2.2.3.
fn whole(buffer: &[u8]) -> Option<usize> {
    let (header, length) = remaining(buffer)?;
    (buffer.len() >= header + length).then_some(header + length)
}

/// The size of the fixed header, and how many bytes follow it.
fn remaining(buffer: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (at, byte) in buffer.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((at + 2, length));
        }
    }
    None
}

/// A PUBLISH taken apart. Source: MQTT 3.1.1, section 3.3.
fn parse(packet: &[u8]) -> Option<Seen> {
    if packet[0] >> 4 != 3 {
        return None;
    }
    let (header, _) = remaining(packet)?;
    let body = &packet[header..];
    let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let (topic, rest) = body[2..].split_at(length);
    let skip = if packet[0] & 0b110 == 0 { 0 } else { 2 };
    Some(Seen {
        topic: String::from_utf8(topic.to_vec()).unwrap(),
        payload: rest[skip..].to_vec(),
    })
}

/// A PUBLISH of QoS 0.
fn packet(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut left = 2 + topic.len() + payload.len();
    let mut out = vec![0x30];
    loop {
        let more = if left > 0x7f { 0x80 } else { 0 };
        out.push(u8::try_from(left & 0x7f).unwrap() | more);
        left >>= 7;
        if left == 0 {
            break;
        }
    }
    out.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
    out.extend(topic.as_bytes());
    out.extend(payload);
    out
}
