//! Who this node is: its key, its certificate, whom it trusts.
//!
//! Always holds: the private key never leaves the node; files are mode 0600 and written by rename, so a power cut
//! leaves the old identity or the new one.

use std::fs;
use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ring::rand::{SecureRandom, SystemRandom};
use skiff_protocol::enrol::{self, JoinRequest, JoinResponse, JoinToken};
use skiff_protocol::topic::NodeName;
use skiff_transport::{NodeKey, tls};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What enrolment left behind.
#[derive(Clone)]
pub(crate) struct Identity {
    /// The node's name.
    pub node: NodeName,
    /// The node's key, PKCS#8 PEM.
    pub key_pem: String,
    /// Everything that the server said at enrolment.
    pub joined: JoinResponse,
    /// The server's Ed25519 public key.
    pub server_key: Vec<u8>,
}

fn dir(state: &Path) -> PathBuf {
    state.join("identity")
}

impl Identity {
    /// Reads the identity.
    ///
    /// # Errors
    /// When the node has not joined, or a file is damaged.
    pub(crate) fn load(state: &Path) -> Result<Self> {
        let path = dir(state).join("joined.json");
        if !path.exists() {
            bail!(
                "this node has not joined a fleet: {} is not there; run `skiff node enrol NAME` where the server \
                 is, and the `skiff-agent join` command that it prints here",
                path.display()
            );
        }
        let read =
            |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let joined: JoinResponse = serde_json::from_str(&read(&path)?)
            .with_context(|| format!("{} is damaged; join again", path.display()))?;
        let node = NodeName::parse(&joined.node).with_context(|| format!("{}", path.display()))?;
        let server_key = enrol::from_base64(&joined.signing_key)
            .with_context(|| format!("{}: signing_key is damaged; join again", path.display()))?;
        Ok(Self {
            node,
            key_pem: read(&dir(state).join("node.key"))?,
            joined,
            server_key,
        })
    }

    /// The TLS identity for broker and server.
    #[must_use]
    pub(crate) fn tls(&self) -> tls::Identity<'_> {
        tls::Identity {
            certificates_pem: &self.joined.certificate,
            key_pem: &self.key_pem,
        }
    }
}

/// Joins a fleet: makes a key, asks the server for a certificate over it, keeps both.
///
/// # Errors
/// When the token is not one, no server answers, or the server refuses.
pub(crate) fn join(state: &Path, token: &str, broker: Option<&str>) -> Result<NodeName> {
    let token = JoinToken::parse(token)?;
    let key = NodeKey::generate()?;
    let public = key.public_key();
    let payload = JoinRequest::payload(&token.node, &token.secret, &public);
    let request = JoinRequest::new(&token, &public, &key.sign(&payload)?);
    let mut joined = ask(&token, &request)?;
    if joined.node != token.node.as_str() {
        bail!(
            "the server answered for node {:?}, the token is for {:?}",
            joined.node,
            token.node.as_str()
        );
    }
    if let Some(broker) = broker {
        joined.broker_url = broker.to_owned();
    }
    let dir = dir(state);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("cannot make {}", dir.display()))?;
    // A journal that was sealed when this node joined before must still open.
    if !dir.join("seal.key").exists() {
        let mut seal = [0; 32];
        let filled = SystemRandom::new().fill(&mut seal);
        filled.map_err(|_| anyhow::anyhow!("the system gives no randomness for a key"))?;
        write(&dir.join("seal.key"), &seal)?;
    }
    write(&dir.join("node.key"), key.to_pem().as_bytes())?;
    write(&dir.join("joined.json"), &serde_json::to_vec_pretty(&joined)?)?;
    Ok(token.node)
}

/// Asks each server of the token in turn.
fn ask(token: &JoinToken, request: &JoinRequest) -> Result<JoinResponse> {
    let body = serde_json::to_vec(request)?;
    let mut errors = Vec::new();
    for url in &token.server_urls {
        match ask_one(token, url, &body) {
            Ok(joined) => return Ok(joined),
            Err(error) => errors.push(format!("{url}: {error:#}")),
        }
    }
    bail!("no server took the join token: {}", errors.join("; "))
}

fn ask_one(token: &JoinToken, url: &str, body: &[u8]) -> Result<JoinResponse> {
    let root = fetch_root(token, url)?;
    let url = format!("{url}/skiff/v1/join");
    let mut answer = http(&root)
        .post(&url)
        .content_type("application/json")
        .send(body)?;
    let status = answer.status();
    let text = answer
        .body_mut()
        .with_config()
        .limit(enrol::MAX_MESSAGE as u64)
        .read_to_string()?;
    if !status.is_success() {
        bail!("{status}: {}", reason(&text));
    }
    serde_json::from_str(&text).context("the server's answer is not what this version understands")
}

/// The fleet's root certificate out of the server's chain, recognised by the digest in the token. Nothing is sent to
/// a server that cannot show it.
fn fetch_root(token: &JoinToken, url: &str) -> Result<Vec<u8>> {
    let uri: http::Uri = url.parse().context("not a URL")?;
    let host = uri.host().context("no host")?.trim_matches(['[', ']']);
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).context("not a host name")?;
    let config = tls::pinned_client_config(
        token.ca_sha256,
        &tls::Clock::at_least(Arc::new(AtomicU64::new(crate::BUILT as u64))),
    )?;
    let mut connection = rustls::ClientConnection::new(config, name)?;
    let address = (host, uri.port_u16().unwrap_or(443))
        .to_socket_addrs()?
        .next()
        .context("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let chain = connection.peer_certificates().unwrap_or_default();
    let root = chain
        .iter()
        .find(|it| skiff_protocol::sha256(it) == token.ca_sha256);
    Ok(root
        .context("the server does not show the certificate that the token names")?
        .to_vec())
}

/// The message of a Kubernetes `Status`, or the text itself.
fn reason(text: &str) -> String {
    let status: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let message = status.as_ref().and_then(|it| it["message"].as_str());
    message.unwrap_or(text).chars().take(512).collect()
}

/// An HTTP client that trusts only `root` (DER), and gives error answers back instead of hiding them.
fn http(root: &[u8]) -> ureq::Agent {
    let root = ureq::tls::Certificate::from_der(root).to_owned();
    let tls = ureq::tls::TlsConfig::builder()
        .provider(ureq::tls::TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(ureq::tls::RootCerts::new_with_certs(&[root]))
        .build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .new_agent()
}

/// Writes a file of mode 0600 so that a power cut leaves the old content or the new.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .with_context(failed)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(failed)?;
    fs::rename(&new, path).with_context(failed)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(parent)
        .and_then(|dir| dir.sync_all())
        .with_context(failed)
}
