//! What the node says to the server over HTTPS: the join, and the renewal of its certificate.
//!
//! Always holds: runs in short processes of its own, never in the running agent; nothing is sent to a server that does
//! not prove to be the fleet's; certificates are checked against the latest time that is known to have passed, so that
//! a board without a clock can join.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use skiff_protocol::enrol::{self, JoinRequest, JoinResponse, JoinToken, RenewRequest};
use skiff_protocol::sha256;
use skiff_protocol::topic::NodeName;
use skiff_transport::{NodeKey, tls};

use crate::identity::Identity;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Joins a fleet: makes a key, asks the server for a certificate over it, keeps both.
///
/// # Errors
/// When the token is not one, no server answers, or the server refuses.
pub(crate) fn join(state: &std::path::Path, token: &str, broker: Option<&str>) -> Result<NodeName> {
    let token = JoinToken::parse(token)?;
    let key = NodeKey::generate()?;
    let public = key.public_key();
    let payload = JoinRequest::payload(&token.node, &token.secret, &public);
    let request = JoinRequest::new(&token, &public, &key.sign(&payload)?);
    let client = skiff_images::https(tls::pinned_client_config(token.ca_sha256, &clock(0))?, PATIENCE);
    let joined: JoinResponse = first(&token.server_urls, |url| {
        post(&client, &format!("{url}/skiff/v1/join"), Some(&request))
    })
    .context("no server took the join token")?;
    if joined.node != token.node.as_str() {
        bail!(
            "the server answered for node {:?}, the token is for {:?}",
            joined.node,
            token.node.as_str()
        );
    }
    Identity::make(state, &key.to_pem(), joined, broker)?;
    Ok(token.node)
}

/// The `renew` role: `skiff-agent renew STATE_DIR SECONDS` gets a new certificate over the node's key and keeps it.
/// `SECONDS`, since 1970, are known to have passed.
#[must_use]
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let state = arguments.next().map(PathBuf::from);
    let known = arguments.next().and_then(|it| it.to_str()?.parse().ok());
    let renewed = match (state, known) {
        (Some(state), Some(known)) => renew(&state, known),
        _ => Err(anyhow::anyhow!(
            "renew: the state directory and the time are missing"
        )),
    };
    match renewed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn renew(state: &std::path::Path, known: u64) -> Result<()> {
    let identity = Identity::load(state)?;
    let key = NodeKey::from_pem(&identity.key_pem)?;
    let clock = clock(known.max(identity.joined.server_time));
    // No certificate of ours: it may have ended, and the signature over the nonce says who asks.
    let client = skiff_images::https(
        tls::client_config(&identity.joined.ca_certificate, None, &clock)?,
        PATIENCE,
    );
    let old = tls::certificates("the node's certificate", &identity.joined.certificate)?;
    let old = old.first().context("the node's certificate is not there")?;
    let renewed: JoinResponse = first(&identity.joined.server_urls, |url| {
        let nonce: Nonce = post(&client, &format!("{url}/skiff/v1/nonce"), None::<&()>)?;
        let bytes = enrol::from_base64(&nonce.nonce).and_then(|it| it.try_into().ok());
        let bytes: [u8; 32] = bytes.context("the server's nonce is none")?;
        let payload = RenewRequest::payload(&identity.node, &bytes, &sha256(old));
        let request = RenewRequest {
            version: enrol::VERSION,
            node: identity.node.to_string(),
            certificate: identity.joined.certificate.clone(),
            nonce: nonce.nonce,
            signature: enrol::to_base64(&key.sign(&payload)?),
        };
        post(&client, &format!("{url}/skiff/v1/renew"), Some(&request))
    })
    .context("no server renewed the certificate")?;
    accept(&identity, &renewed)?;
    identity.renew(state, renewed)
}

/// What a renewal may not change, and what it must bring.
fn accept(identity: &Identity, renewed: &JoinResponse) -> Result<()> {
    let joined = &identity.joined;
    ensure!(
        renewed.node == joined.node,
        "the server answered for node {:?}",
        renewed.node
    );
    // Both were pinned when the node joined, and only a person may change that.
    ensure!(
        renewed.signing_key == joined.signing_key && renewed.ca_certificate == joined.ca_certificate,
        "the server has other keys than when this node joined; join again"
    );
    ensure!(
        renewed.not_after > renewed.server_time,
        "the server gave a certificate that has ended already"
    );
    let shown = tls::Identity {
        certificates_pem: &renewed.certificate,
        key_pem: &identity.key_pem,
    };
    tls::client_config(&renewed.ca_certificate, Some(shown), &clock(0))
        .context("the server gave a certificate that this node cannot use")?;
    Ok(())
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

/// The system's clock, but not before this program was built, nor before `known`.
fn clock(known: u64) -> tls::Clock {
    let built = u64::try_from(crate::BUILT).unwrap_or(0);
    tls::Clock::at_least(Arc::new(AtomicU64::new(built.max(known))))
}

/// What the first server says that does as asked.
fn first<T>(urls: &[String], ask: impl Fn(&str) -> Result<T>) -> Result<T> {
    let mut errors = Vec::new();
    for url in urls {
        match ask(url.trim_end_matches('/')) {
            Ok(answer) => return Ok(answer),
            Err(error) => errors.push(format!("{url}: {error:#}")),
        }
    }
    bail!("{}", errors.join("; "))
}

fn post<T: DeserializeOwned>(
    client: &ureq::Agent,
    url: &str,
    body: Option<&impl serde::Serialize>,
) -> Result<T> {
    let request = client.post(url).content_type("application/json");
    let sent = match body {
        Some(body) => request.send(serde_json::to_vec(body)?),
        None => request.send_empty(),
    };
    let mut answer = sent.map_err(hint)?;
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

/// The error, and in words where rustls has only a name.
fn hint(error: ureq::Error) -> anyhow::Error {
    let text = error.to_string();
    let error = anyhow::Error::new(error);
    if text.contains("UnknownIssuer") {
        error.context("the server is not of the fleet whose certificate this node was told")
    } else {
        error
    }
}

/// The message of a Kubernetes `Status`, or the text itself.
fn reason(text: &str) -> String {
    let status: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let message = status.as_ref().and_then(|it| it["message"].as_str());
    message.unwrap_or(text).chars().take(512).collect()
}
