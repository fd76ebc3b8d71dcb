//! Joining and renewing, the server's half. The wire types are `skiff_protocol::enrol`.
//!
//! ```text
//! token ──▶ unused ── join by key K ──▶ used by K ── join by K again ──▶ the same answer anew
//!              │                            │
//!              └──── expired ◀──────────────┘ (nobody joins)      join by another key: refused
//! ```
//!
//! The same key may join again until the token expires: an answer can get lost on the way, and the node would be
//! stranded with a spent token.
//!
//! Always holds: the record keeps no secret, only its MAC; every comparison of secrets is in constant time; nothing is
//! issued before the node has shown that it holds its key.

use ring::{hmac, rand::SecureRandom, signature};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use skiff_protocol::enrol::{
    EnrolError, JoinRequest, JoinResponse, JoinToken, PUBLIC_KEY, RenewRequest, SECRET, VERSION, fixed,
    from_base64, to_base64,
};
use skiff_protocol::topic::NodeName;
use std::sync::Arc;
use std::time::Duration;

use crate::authority::{FleetAuthority, sha256};
use crate::error::PkiError;
use crate::issue::NODES;
use crate::subject::subject;

/// Why a node does not get a certificate. What the node is told is only [`JoinError::public`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The request is malformed.
    #[error(transparent)]
    Request(#[from] EnrolError),
    /// The name is not the token's.
    #[error("the token is for node {token}, not {request:?}")]
    Name {
        /// The token's node.
        token: String,
        /// The request's.
        request: String,
    },
    /// The secret is wrong.
    #[error("the token's secret is wrong")]
    Secret,
    /// The token has expired.
    #[error("the token expired at {0} (seconds since 1970)")]
    Expired(u64),
    /// Another key has used the token.
    #[error("the token has been used by another key")]
    Used,
    /// The signature does not show that the node holds the key.
    #[error("the signature does not verify with the public key")]
    Possession,
    /// The old certificate is not one of ours, not this node's, or too long past its end.
    #[error("the certificate to renew: {0}")]
    Certificate(String),
    /// The nonce is not the one that was given.
    #[error("the nonce is not the one that was given")]
    Nonce,
    /// The certificate cannot be issued.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl JoinError {
    /// What to tell the node: enough to act on, nothing that helps to guess a token.
    #[must_use]
    pub fn public(&self) -> &'static str {
        match self {
            Self::Request(_) => "the request is malformed, or from another version",
            Self::Expired(_) => "the join token has expired; make a new one",
            Self::Used => "the join token has been used; make a new one",
            Self::Name { .. } | Self::Secret => "the join token is not valid",
            Self::Possession | Self::Certificate(_) | Self::Nonce => {
                "the node could not show that it holds its key"
            }
            Self::Pki(_) => "the certificate could not be issued",
        }
    }
}

/// What the server keeps of a join token. Store it under the node's name, and write it back with compare-and-swap
/// after [`FleetAuthority::join`], before the answer goes out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenRecord {
    /// The node.
    pub node: String,
    /// MAC of the secret, base64url.
    pub secret_mac: String,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
    /// SHA-256 of the public key that has used it, base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
}

/// What a node is granted beside its certificate.
#[derive(Debug, Clone, Copy)]
pub struct Grant<'a> {
    /// `mqtts://host:port`.
    pub broker_url: &'a str,
    /// The API's URLs.
    pub server_urls: &'a [String],
    /// The serial of the node's broker password.
    pub password_serial: u64,
    /// How long the certificate is valid, in seconds.
    pub seconds: u64,
}

/// A renewed certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// Whose.
    pub node: NodeName,
    /// The whole answer, as after a join.
    pub response: JoinResponse,
}

impl FleetAuthority {
    /// Makes a token for `node`, valid until `expires`, and the record to keep.
    ///
    /// # Errors
    /// When a URL is not `https://`, or there is no randomness.
    pub fn join_token(
        &self,
        node: &NodeName,
        server_urls: &[String],
        expires: u64,
    ) -> Result<(JoinToken, TokenRecord), JoinError> {
        let mut secret = [0u8; SECRET];
        self.random.fill(&mut secret).map_err(|_| PkiError::Random)?;
        let token = JoinToken {
            server_urls: server_urls.to_vec(),
            ca_sha256: self.ca_sha256(),
            node: node.clone(),
            secret,
            expires,
        };
        // Fails now, where the administrator sees it, and not at the node.
        token.to_text()?;
        let mac = hmac::sign(&self.token_key, &secret_message(node, &secret));
        let record = TokenRecord {
            node: node.to_string(),
            secret_mac: to_base64(mac.as_ref()),
            expires,
            used_by: None,
        };
        Ok((token, record))
    }

    /// Lets a node join: checks the token and the possession of the key, marks the record as used, and answers.
    ///
    /// # Errors
    /// Says why not; the record is then unchanged.
    pub fn join(
        &self,
        record: &mut TokenRecord,
        request: &JoinRequest,
        grant: Grant<'_>,
        now: u64,
    ) -> Result<JoinResponse, JoinError> {
        if request.version != VERSION {
            return Err(EnrolError::Version(request.version).into());
        }
        if request.node != record.node {
            return Err(JoinError::Name {
                token: record.node.clone(),
                request: request.node.chars().take(64).collect(),
            });
        }
        let node = NodeName::parse(&request.node).map_err(EnrolError::Node)?;
        let secret: [u8; SECRET] = fixed("secret", &request.secret)?;
        let public_key: [u8; PUBLIC_KEY] = fixed("publicKey", &request.public_key)?;
        let signature = from_base64(&request.signature).ok_or(EnrolError::Base64("signature"))?;
        let mac = from_base64(&record.secret_mac).ok_or(EnrolError::Base64("secretMac"))?;
        hmac::verify(&self.token_key, &secret_message(&node, &secret), &mac)
            .map_err(|_| JoinError::Secret)?;
        if now > record.expires {
            return Err(JoinError::Expired(record.expires));
        }
        let key_digest = to_base64(&sha256(&public_key));
        if record
            .used_by
            .as_ref()
            .is_some_and(|used_by| *used_by != key_digest)
        {
            return Err(JoinError::Used);
        }
        possesses(
            &public_key,
            &JoinRequest::payload(&node, &secret, &public_key),
            &signature,
        )?;
        let response = self.answer(&node, &public_key, grant, now)?;
        record.used_by = Some(key_digest);
        Ok(response)
    }

    /// A new certificate over the same key. The old one must be ours, for this node, and not more than `grace` seconds
    /// past its end; the signature must cover the `nonce` that the server gave.
    ///
    /// # Errors
    /// Says why not.
    pub fn renew(
        &self,
        request: &RenewRequest,
        nonce: &[u8; 32],
        grant: Grant<'_>,
        now: u64,
        grace: u64,
    ) -> Result<Renewal, JoinError> {
        if request.version != VERSION {
            return Err(EnrolError::Version(request.version).into());
        }
        let node = NodeName::parse(&request.node).map_err(EnrolError::Node)?;
        if fixed::<32>("nonce", &request.nonce)? != *nonce {
            return Err(JoinError::Nonce);
        }
        let signature = from_base64(&request.signature).ok_or(EnrolError::Base64("signature"))?;
        let bad = |why: String| JoinError::Certificate(why);
        let old =
            CertificateDer::from_pem_slice(request.certificate.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let named = subject(&old)?;
        if named.common_name != node.as_str() || named.organizations != [NODES] {
            return Err(bad(format!(
                "is for {:?} of {:?}",
                named.common_name, named.organizations
            )));
        }
        let end = u64::try_from(named.not_after).unwrap_or(0);
        if now > end.saturating_add(grace) {
            return Err(bad(format!(
                "ended at {end} (seconds since 1970), more than {grace} s ago"
            )));
        }
        self.is_ours(&old, now.min(end)).map_err(|e| bad(e.to_string()))?;
        let public_key = public_key_of(&old)?;
        possesses(
            &public_key,
            &RenewRequest::payload(&node, nonce, &sha256(&old)),
            &signature,
        )?;
        let response = self.answer(&node, &public_key, grant, now)?;
        Ok(Renewal { node, response })
    }

    fn answer(
        &self,
        node: &NodeName,
        public_key: &[u8; PUBLIC_KEY],
        grant: Grant<'_>,
        now: u64,
    ) -> Result<JoinResponse, JoinError> {
        let (certificate, not_after) = self.issue_node(node, public_key, now, grant.seconds)?;
        Ok(JoinResponse {
            version: VERSION,
            node: node.to_string(),
            ca_certificate: self.ca_certificate().to_owned(),
            certificate,
            signing_key: to_base64(&self.signing_public_key()),
            broker_url: grant.broker_url.to_owned(),
            broker_username: node.to_string(),
            broker_password: self.broker_password(node, grant.password_serial),
            server_urls: grant.server_urls.to_vec(),
            server_time: now,
            not_after,
        })
    }

    /// Whether this CA signed the client certificate, as seen at `at`.
    fn is_ours(&self, certificate: &CertificateDer<'_>, at: u64) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_client_cert(
                certificate,
                &[],
                UnixTime::since_unix_epoch(Duration::from_secs(at)),
            )
            .map(|_| ())
    }
}

fn secret_message(node: &NodeName, secret: &[u8; SECRET]) -> Vec<u8> {
    let mut message = b"skiff-token-v1\0".to_vec();
    message.extend_from_slice(secret);
    message.extend_from_slice(node.as_str().as_bytes());
    message
}

fn possesses(public_key: &[u8; PUBLIC_KEY], payload: &[u8], signature: &[u8]) -> Result<(), JoinError> {
    signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, public_key)
        .verify(payload, signature)
        .map_err(|_| JoinError::Possession)
}

fn public_key_of(certificate: &[u8]) -> Result<[u8; PUBLIC_KEY], JoinError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|e| JoinError::Certificate(e.to_string()))?;
    let key = parsed.public_key().subject_public_key.data.as_ref();
    key.try_into()
        .map_err(|_| JoinError::Certificate("its key is not an uncompressed P-256 point".to_owned()))
}
