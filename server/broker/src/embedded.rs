//! The embedded broker: accepts, does TLS, and hands each connection to the MQTT library with a gate of its own.
//!
//! ```text
//! accept ── slot free? ──▶ task: TLS handshake (10 s) ──▶ gate(certificate's name) ──▶ library: CONNECT, session
//!              │ no                 │ failed: counted
//!              ▼ counted            ▼
//!            closed               closed
//! ```
//!
//! Always holds: each connection holds one of [`Config::max_clients`] slots from accept to close, so handshakes are
//! bounded too. Memory only.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::resource_monitor::{ResourceLimits, ResourceMonitor};
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::storage::{DynamicStorage, MemoryBackend, QueueLimits, StorageBackend};
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::tls_acceptor::TlsStreamWrapper;
use mqtt5::broker::transport::BrokerTransport;
use mqtt5::broker::{BrokerConfig, StorageConfig};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use skiff_protocol::topic::NodeName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::gate::{Gate, NoRetain, Tally, count};
use crate::{Broker, Counters, Credentials};

/// From accept to the end of the TLS handshake. A slow radio link needs a few seconds.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// How long a shutdown waits for connections to say goodbye.
const SHUTDOWN: Duration = Duration::from_secs(5);
/// How often expired sessions are swept.
const SWEEP: Duration = Duration::from_secs(60);
/// Pause after a failed accept: it fails for want of file descriptors, and would at once fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Messages on their way to one connected client. Each may be as large as a packet.
const CHANNEL: usize = 64;
/// Un-acked messages to one client, and from one.
const WINDOW: u16 = 32;
/// Topic filters of one client.
const SUBSCRIPTIONS: usize = 16;

/// The broker's TLS identity and whom it trusts, all PEM.
#[derive(Clone)]
pub struct Tls {
    /// The broker's certificate chain.
    pub chain: String,
    /// Its key.
    pub key: String,
    /// The fleet CA: every client must show a certificate that it signed.
    pub client_ca: String,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// How the embedded broker runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The host name or address that clients are told; the listening address if none.
    pub advertise: Option<String>,
    /// TLS.
    pub tls: Tls,
    /// Connections at once.
    pub max_clients: usize,
    /// Bytes of one packet.
    pub max_packet: usize,
    /// Messages kept for one client that is away or slow.
    pub max_queued: usize,
    /// Bytes of them.
    pub max_queued_bytes: usize,
    /// How long a session outlives its connection, at most.
    pub session_expiry: Duration,
}

impl Config {
    /// The defaults.
    #[must_use]
    pub fn new(listen: SocketAddr, tls: Tls) -> Self {
        Self {
            listen,
            advertise: None,
            tls,
            max_clients: 10_000,
            max_packet: 128 * 1024,
            max_queued: 1000,
            max_queued_bytes: 1024 * 1024,
            session_expiry: Duration::from_secs(600),
        }
    }
}

/// Why the embedded broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The address cannot be listened on.
    #[error("broker: cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// The TLS parts are wrong.
    #[error("broker: {what}: {why}")]
    Tls {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The library refuses to start.
    #[error("broker: {0}")]
    Library(String),
}

struct Shared {
    acceptor: TlsAcceptor,
    config: Arc<BrokerConfig>,
    router: Arc<MessageRouter>,
    storage: Arc<DynamicStorage>,
    stats: Arc<BrokerStats>,
    monitor: Arc<ResourceMonitor>,
    credentials: Arc<dyn Credentials>,
    tally: Arc<Tally>,
    stop: broadcast::Sender<()>,
}

/// The embedded broker. Dropping it stops accepting; [`Broker::shutdown`] also waits.
pub struct Embedded {
    url: String,
    address: SocketAddr,
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    max_clients: u32,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Embedded {
    /// Starts listening. `credentials` decides who may come in.
    ///
    /// # Errors
    /// When the address is taken or a certificate or key is unusable.
    pub async fn start(config: Config, credentials: Arc<dyn Credentials>) -> Result<Self, BrokerError> {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&config.tls)?));
        let listening = |source| BrokerError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listening)?;
        let address = listener.local_addr().map_err(listening)?;
        let host = config
            .advertise
            .clone()
            .unwrap_or_else(|| address.ip().to_string());
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };

        let tally = Arc::new(Tally::default());
        let limits = QueueLimits {
            max_messages: config.max_queued,
            max_bytes: config.max_queued_bytes,
        };
        let storage = Arc::new(DynamicStorage::Memory(MemoryBackend::with_queue_limits(limits)));
        let router = MessageRouter::with_storage(storage.clone())
            .with_fallback_queue_limits(limits)
            // Nothing is retained (see the gate); were something to slip through, it would be one message.
            .with_retained_limits(1, 0);
        router
            .initialize()
            .await
            .map_err(|e| BrokerError::Library(e.to_string()))?;
        let (stop, _) = broadcast::channel(1);
        let shared = Arc::new(Shared {
            acceptor,
            config: Arc::new(library_config(&config, tally.clone())),
            router: Arc::new(router),
            storage,
            stats: Arc::new(BrokerStats::new()),
            monitor: Arc::new(ResourceMonitor::new(resource_limits(&config))),
            credentials,
            tally,
            stop,
        });
        // A Tokio semaphore holds far more than any machine has sockets.
        let max_clients = u32::try_from(config.max_clients)
            .unwrap_or(u32::MAX / 16)
            .clamp(1, u32::MAX / 16);
        let slots = Arc::new(Semaphore::new(max_clients as usize));
        let tasks = vec![
            tokio::spawn(accept(listener, shared.clone(), slots.clone())),
            tokio::spawn(sweep(shared.clone())),
        ];
        let url = format!("mqtts://{host}:{}", address.port());
        info!(%address, url, "broker listens");
        Ok(Self {
            url,
            address,
            shared,
            slots,
            max_clients,
            tasks: Mutex::new(tasks),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn stop(&self) {
        // An error only says that no connection is there to hear it.
        let _nobody = self.shared.stop.send(());
        for task in self
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            task.abort();
        }
    }
}

#[async_trait]
impl Broker for Embedded {
    fn url(&self) -> &str {
        &self.url
    }

    fn counters(&self) -> Counters {
        self.shared.tally.counters()
    }

    async fn disconnect(&self, node: &NodeName) {
        self.shared.router.disconnect_client(node.as_str()).await;
    }

    async fn shutdown(&self) {
        self.stop();
        if timeout(SHUTDOWN, self.slots.acquire_many(self.max_clients))
            .await
            .is_err()
        {
            warn!(
                open = self.counters().open,
                "broker: connections still open after {SHUTDOWN:?}"
            );
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, slots: Arc<Semaphore>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => match slots.clone().try_acquire_owned() {
                Ok(slot) => {
                    tokio::spawn(connection(stream, peer, shared.clone(), slot));
                }
                Err(_) => count(&shared.tally.over_limit),
            },
            Err(error) => {
                warn!(%error, "broker: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, slot: OwnedSemaphorePermit) {
    let _slot = slot;
    let tally = shared.tally.clone();
    tally.open.fetch_add(1, Ordering::Relaxed);
    let mut stop = shared.stop.subscribe();
    let ready = tokio::select! {
        ready = timeout(HANDSHAKE, handshake(stream, &shared.acceptor)) => ready,
        // Nothing was promised to this client yet.
        _ = stop.recv() => return closed(&tally),
    };
    match ready {
        Ok(Ok((stream, client))) => {
            let gate = Gate {
                certificate_name: client.name,
                certificate_key: client.key,
                credentials: shared.credentials.clone(),
                tally: shared.tally.clone(),
                role: OnceLock::new(),
            };
            let handler = ClientHandler::new(
                BrokerTransport::tls(stream),
                peer,
                shared.config.clone(),
                shared.router.clone(),
                Arc::new(gate),
                Some(shared.storage.clone()),
                shared.stats.clone(),
                shared.monitor.clone(),
                stop,
            );
            if let Err(error) = handler.run().await {
                debug!(%peer, %error, "broker: connection ended");
            }
        }
        Ok(Err(why)) => {
            count(&tally.tls_failed);
            debug!(%peer, why, "broker: TLS handshake failed");
        }
        Err(_) => {
            count(&tally.tls_failed);
            debug!(%peer, "broker: no TLS handshake within {HANDSHAKE:?}");
        }
    }
    closed(&tally);
}

fn closed(tally: &Tally) {
    tally.open.fetch_sub(1, Ordering::Relaxed);
}

/// Whom a client's certificate names, and its key.
struct Certified {
    name: String,
    key: Vec<u8>,
}

/// The encrypted stream, and what the client's certificate says.
async fn handshake(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
) -> Result<(TlsStreamWrapper, Certified), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let stream = acceptor.accept(stream).await.map_err(|e| e.to_string())?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let client = certified(certificates.first().ok_or("no client certificate")?)?;
    Ok((TlsStreamWrapper::new(stream), client))
}

fn certified(certificate: &[u8]) -> Result<Certified, String> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|e| e.to_string())?;
    let mut names = certificate
        .subject()
        .iter_common_name()
        .map(x509_parser::x509::AttributeTypeAndValue::as_str);
    match (names.next(), names.next()) {
        (Some(Ok(name)), None) => Ok(Certified {
            name: name.to_owned(),
            key: certificate.public_key().subject_public_key.data.to_vec(),
        }),
        _ => Err("the client certificate has not exactly one common name".to_owned()),
    }
}

async fn sweep(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        if let Err(error) = shared.storage.cleanup_expired().await {
            warn!(%error, "broker: expired sessions were not swept");
        }
        shared.router.sweep_sessions().await;
        shared.monitor.cleanup_expired_windows().await;
    }
}

fn server_config(tls: &Tls) -> Result<ServerConfig, BrokerError> {
    let bad = |what, why: String| BrokerError::Tls { what, why };
    let certificates = |what, pem: &str| -> Result<Vec<CertificateDer<'static>>, BrokerError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        found.map_err(|e| bad(what, e.to_string()))
    };
    let mut roots = RootCertStore::empty();
    for root in certificates("client CA", &tls.client_ca)? {
        roots.add(root).map_err(|e| bad("client CA", e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|e| bad("client CA", e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes()).map_err(|e| bad("key", e.to_string()))?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("TLS versions", e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates("certificate", &tls.chain)?, key)
        .map_err(|e| bad("certificate and key", e.to_string()))
}

fn library_config(config: &Config, tally: Arc<Tally>) -> BrokerConfig {
    let mut library = BrokerConfig::new()
        .with_bind_addresses(Vec::new())
        .with_max_clients(config.max_clients)
        .with_session_expiry(config.session_expiry)
        .with_max_packet_size(config.max_packet)
        .with_maximum_qos(1)
        .with_retain_available(false)
        .with_max_subscriptions_per_client(SUBSCRIPTIONS)
        .with_max_retained_messages(1)
        .with_client_channel_capacity(CHANNEL)
        .with_max_outbound_inflight(WINDOW)
        .with_sys_topics_enabled(false)
        .with_storage(
            StorageConfig::new()
                .with_backend(mqtt5::broker::StorageBackendType::Memory)
                .with_max_queued_messages_per_client(config.max_queued)
                .with_max_queued_bytes_per_client(config.max_queued_bytes),
        );
    library.topic_alias_maximum = 0;
    library.shared_subscription_available = false;
    library.subscription_identifier_available = false;
    library.server_receive_maximum = Some(WINDOW);
    library.event_handler = Some(Arc::new(NoRetain(tally)));
    library
}

/// The slots bound connections and the transport bounds packets; the library must not add limits by address, behind
/// which a whole fleet may sit.
fn resource_limits(config: &Config) -> ResourceLimits {
    ResourceLimits {
        max_connections: config.max_clients,
        max_connections_per_ip: config.max_clients,
        max_message_rate_per_client: 0,
        max_bandwidth_per_client: 0,
        max_connection_rate: u32::MAX,
        rate_limit_window: Duration::from_secs(1),
    }
}
