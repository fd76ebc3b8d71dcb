//! One running server: what it starts, in which order, and how it stops.
//!
//! ```text
//! lock ─▶ authority ─▶ store ─▶ fleet ─▶ broker ─▶ link ─▶ placement ─▶ API          stop: from right to left
//! ```
//!
//! What always holds: two servers never share a data directory; a server that says it has started answers; whatever is
//! in the data directory survives a stop at any moment.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use skiff_broker::{Broker, Embedded, External};
use skiff_pki::{Issued, MASTERS, SERVER_CN, User, kubeconfig};
use skiff_protocol::enrol::to_base64;
use skiff_protocol::limits as bounds;
use skiff_transport::{BrokerUrl, tls};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinHandle;

use crate::api::{self, ApiState, Identity, StaticTokens};
use crate::config::{BrokerConfig, Config, local_url};
use crate::enrol::{self, Enrolment, now};
use crate::events::Recorder;
use crate::fleet::{self, Fleet, private_dir, write_secret};
use crate::link::{self, Link};
use crate::orphans;
use crate::placement;
use crate::registry::{self, Registry};
use crate::store::{SqliteStore, Store};

/// A server that runs until [`Server::stop`].
pub struct Server {
    /// The administrator's kubeconfig, with a client certificate. Its URL is for this machine.
    pub kubeconfig_path: PathBuf,
    /// The same with a bearer token.
    pub token_kubeconfig_path: PathBuf,
    /// Where the API is for this machine: `https://host:port`.
    pub api_url: String,
    /// Where the API is for nodes, in the order to try.
    pub server_urls: Vec<String>,
    /// Where the broker is.
    pub broker_url: String,
    link: Link,
    broker: Arc<dyn Broker>,
    stop_api: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    api: JoinHandle<anyhow::Result<()>>,
    others: Vec<JoinHandle<()>>,
    _lock: File,
}

/// Runs a server until `shutdown` completes, or until its API fails.
///
/// # Errors
/// When it cannot start, with the file or address that is in the way.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut server = Server::start(config).await?;
    tokio::select! {
        // Either way everything is stopped in order below.
        () = shutdown => server.stop().await,
        ended = &mut server.api => {
            let ended = ended.context("the API's task")?;
            server.halt().await;
            ended
        }
    }
}

impl Server {
    /// Starts a server; it answers when this returns.
    ///
    /// # Errors
    /// When it cannot, with the file or address that is in the way.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let data = config.data_dir.clone();
        private_dir(&data)?;
        let lock = lock(&data.join("server.lock"))?;
        let authority = fleet::authority(&data.join("fleet.json"), &config.fleet, now(), config.ca_years)?;
        let store = SqliteStore::open(&data.join("skiff.db"))
            .await
            .context("the store")?;
        let store: Arc<dyn Store> = Arc::new(store);
        let fleet = Arc::new(Fleet::open(authority, store.clone()).await?);
        let names = config.certificate_names(&hostname());
        let certificate = fleet
            .authority
            .issue_server(&names, now(), config.validity.server)?;

        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
        let address = listener.local_addr().context("the API's address")?;
        let server_urls = config.api_urls(address, &hostname());
        let broker = broker(&config, &fleet, &certificate).await?;

        let (stop, stopped) = watch::channel(false);
        let (events, recorder) = Recorder::start(store.clone());
        let (link, link_task) = start_link(
            &config,
            &fleet,
            &*broker,
            store.clone(),
            events.clone(),
            stopped.clone(),
        )?;
        let placing = tokio::spawn(placement::run(store.clone(), events, stopped.clone()));
        let removed = Arc::new(Notify::new());
        let collecting = tokio::spawn(orphans::run(
            store.clone(),
            fleet.clone(),
            removed.clone(),
            stopped,
        ));

        let paths = Kubeconfigs::write(&data, &config, &fleet, &local_url(address))?;
        let nonce_key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let enrolment = Enrolment {
            fleet: fleet.clone(),
            store: store.clone(),
            link: link.clone(),
            broker: broker.clone(),
            server_urls: server_urls.clone(),
            node_seconds: config.validity.node,
            token_seconds: config.token_ttl.as_secs(),
            nonce_key: nonce_key.map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?,
            removed,
            joins: Mutex::new(()),
        };
        let registry = Registry::open(&data, fleet.clone())?;
        let extra = enrol::router(Arc::new(enrolment)).merge(registry::router(Arc::new(registry)));
        let state = ApiState::new(store, Arc::new(link.clone()), Arc::new(paths.tokens));
        let tls = Arc::new(api_tls(fleet.authority.ca_certificate(), &certificate)?);
        let (stop_api, mut api_stopped) = watch::channel(false);
        let api = tokio::spawn(async move {
            let shutdown = async move {
                // An error means that the server was dropped, which is to stop too.
                let _dropped = api_stopped.wait_for(|stop| *stop).await;
            };
            api::serve(listener, tls, state, extra, shutdown)
                .await
                .context("the API")
        });
        tracing::info!(%address, "API listens");
        Ok(Self {
            kubeconfig_path: paths.certificate,
            token_kubeconfig_path: paths.token,
            api_url: local_url(address),
            server_urls,
            broker_url: broker.url().to_owned(),
            link,
            broker,
            stop_api,
            stop,
            api,
            others: vec![link_task, placing, collecting, recorder],
            _lock: lock,
        })
    }

    /// The link to the nodes.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The broker, for its counters.
    #[must_use]
    pub fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    /// Stops: answers under way are finished, what nodes said is stored.
    ///
    /// # Errors
    /// When the API had failed before.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        // Receivers that are gone have stopped already.
        let _stopped = self.stop_api.send(true);
        let ended = (&mut self.api).await.context("the API's task")?;
        self.halt().await;
        ended
    }

    async fn halt(self) {
        let _stopped = self.stop.send(true);
        drop(self.link);
        for task in self.others {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the server panicked");
            }
        }
        self.broker.shutdown().await;
    }
}

/// Holds the file's lock for as long as the value lives.
fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!(
                "{} is locked: another server runs on this data directory",
                path.display()
            )
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    // The kernel's default says nothing, and a certificate takes no rubbish.
    let good = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
    if name == "(none)" || !good {
        String::new()
    } else {
        name.to_owned()
    }
}

async fn broker(
    config: &Config,
    fleet: &Arc<Fleet>,
    certificate: &Issued,
) -> anyhow::Result<Arc<dyn Broker>> {
    match &config.broker {
        BrokerConfig::Embedded { listen, advertise } => {
            let tls = skiff_broker::Tls {
                chain: certificate.chain.clone(),
                key: certificate.key.clone(),
                client_ca: fleet.authority.ca_certificate().to_owned(),
            };
            let mut broker = skiff_broker::Config::new(*listen, tls);
            broker.advertise = advertise.clone().or(config.names.first().cloned());
            if broker.advertise.is_none() && listen.ip().is_unspecified() {
                broker.advertise = Some(hostname()).filter(|name| !name.is_empty());
            }
            // The largest message, and what may come while a slow node takes it.
            broker.max_queued_bytes = 2 * bounds::MESSAGE;
            Ok(Arc::new(Embedded::start(broker, fleet.clone()).await?))
        }
        BrokerConfig::External { url, .. } => {
            let parsed = BrokerUrl::parse(url, false).context("the broker's URL")?;
            external_files(config, fleet, &parsed)?;
            Ok(Arc::new(External::new(url)))
        }
    }
}

/// What an external broker needs to keep the fleet's promises: a certificate of the fleet's CA, and who may do what.
fn external_files(config: &Config, fleet: &Fleet, url: &BrokerUrl) -> anyhow::Result<()> {
    let dir = config.data_dir.join("broker");
    private_dir(&dir)?;
    let mut names = config.certificate_names(&hostname());
    names.insert(0, url.host().to_owned());
    let issued = fleet
        .authority
        .issue_server(&names, now(), config.validity.server)?;
    let path = |name: &str| dir.join(name);
    let text = |name: &str| path(name).display().to_string();
    let configuration = skiff_broker::mosquitto_conf(
        url.port(),
        &text("ca.crt"),
        &text("broker.crt"),
        &text("broker.key"),
        &text("acl"),
    );
    for (name, content) in [
        ("ca.crt", fleet.authority.ca_certificate()),
        ("broker.crt", &issued.chain),
        ("broker.key", &issued.key),
        ("acl", &skiff_broker::mosquitto_acl(SERVER_CN)),
        ("mosquitto.conf", &configuration),
    ] {
        write_secret(&path(name), content.as_bytes())?;
    }
    tracing::info!(path = %dir.display(), "wrote what an external broker needs");
    Ok(())
}

fn start_link(
    config: &Config,
    fleet: &Arc<Fleet>,
    broker: &dyn Broker,
    store: Arc<dyn Store>,
    events: Recorder,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<(Link, JoinHandle<()>)> {
    let authority = &fleet.authority;
    let client = authority.issue_mqtt_client(now(), config.validity.server)?;
    let identity = tls::Identity {
        certificates_pem: &client.chain,
        key_pem: &client.key,
    };
    let tls = tls::client_config(authority.ca_certificate(), Some(identity), &tls::Clock::system())?;
    let own = (SERVER_CN.to_owned(), authority.server_password());
    let (url, credentials) = match &config.broker {
        // Its own address, for the advertised one may lead through somebody else's NAT.
        BrokerConfig::Embedded { listen, .. } => (loopback(broker.url(), *listen)?, own),
        BrokerConfig::External { url, credentials } => {
            (BrokerUrl::parse(url, false)?, credentials.clone().unwrap_or(own))
        }
    };
    let options = link::Options {
        broker: url,
        client_id: SERVER_CN.to_owned(),
        credentials: Some(credentials),
        tls: Some(tls),
        grace: config.node_grace,
    };
    Ok(Link::start(store, events, fleet.clone(), options, stop)?)
}

/// The embedded broker from inside: the port of its URL at the address it listens on.
fn loopback(url: &str, listen: SocketAddr) -> anyhow::Result<BrokerUrl> {
    let port = BrokerUrl::parse(url, false)?.port();
    let local = local_url(SocketAddr::new(listen.ip(), port));
    Ok(BrokerUrl::parse(&local.replacen("https", "mqtts", 1), false)?)
}

/// TLS of the API: a client may show a certificate of the fleet's CA, or none and a token.
fn api_tls(ca: &str, issued: &Issued) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).context("the CA's certificate")?)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("the CA's certificate")?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(issued.chain.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).context("the API's key")?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("TLS versions")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.context("the API's certificate")?, key)
        .context("the API's certificate")?;
    Ok(config)
}

struct Kubeconfigs {
    certificate: PathBuf,
    token: PathBuf,
    tokens: StaticTokens,
}

impl Kubeconfigs {
    /// Writes both files anew, with a fresh certificate; the token is made once.
    fn write(data: &Path, config: &Config, fleet: &Fleet, url: &str) -> anyhow::Result<Self> {
        let secret_path = data.join("admin.token");
        let secret = match std::fs::read_to_string(&secret_path) {
            Ok(secret) => secret.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = [0; 32];
                let filled = SystemRandom::new().fill(&mut bytes);
                filled.map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
                let secret = to_base64(&bytes);
                write_secret(&secret_path, secret.as_bytes())?;
                secret
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", secret_path.display()));
            }
        };
        if secret.len() < 32 {
            bail!(
                "{} is damaged: remove it, and a new token is made",
                secret_path.display()
            );
        }
        let (certificate, token) = (data.join("admin.kubeconfig"), data.join("admin-token.kubeconfig"));
        let issued = fleet
            .authority
            .issue_admin("admin", now(), config.validity.admin)?;
        let user = User::Certificate {
            chain: &issued.chain,
            key: &issued.key,
        };
        let ca = fleet.authority.ca_certificate();
        write_secret(&certificate, kubeconfig(&config.fleet, url, ca, user).as_bytes())?;
        write_secret(
            &token,
            kubeconfig(&config.fleet, url, ca, User::Token(&secret)).as_bytes(),
        )?;
        let admin = Identity {
            user: "admin".to_owned(),
            groups: vec![MASTERS.to_owned()],
        };
        Ok(Self {
            certificate,
            token,
            tokens: StaticTokens::default().with(&secret, admin),
        })
    }
}
