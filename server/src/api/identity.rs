//! Who a request comes from: a client certificate, or a bearer token.
//!
//! What always holds: an [`Identity`] was proved on this connection or by this request. A certificate has been
//! verified by the TLS layer before its subject is read here; a request that shows credentials that prove nothing is
//! nobody, never somebody else.

use std::sync::Arc;

use async_trait::async_trait;
use axum::http::{HeaderMap, header};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Members may do everything.
pub const MASTERS: &str = "system:masters";
/// Nodes: they may use the paths of the extra router, and nothing of the Kubernetes API.
pub const NODES: &str = "system:nodes";
/// Everybody who proved to be somebody.
pub const AUTHENTICATED: &str = "system:authenticated";

/// A user, as Kubernetes names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate's common name, or the token's user.
    pub user: String,
    /// The certificate's organisations, or the token's groups.
    pub groups: Vec<String>,
}

impl Identity {
    /// Whether the user is in the group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|name| name == group)
    }

    /// Whether the user may do everything.
    pub fn is_admin(&self) -> bool {
        self.in_group(MASTERS)
    }

    /// The subject of a certificate that the TLS layer has verified; nothing when it names no user.
    fn of_certificate(certificate: &X509Certificate<'_>) -> Option<Self> {
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|name| name.as_str().ok());
        let groups = groups.map(str::to_owned).collect();
        (!user.is_empty()).then_some(Self { user, groups })
    }
}

/// The bearer tokens that the server accepts.
#[async_trait]
pub trait Tokens: Send + Sync {
    /// Whose token this is. Implementations compare in constant time, or compare digests.
    async fn identify(&self, token: &str) -> Option<Identity>;
}

/// Tokens known when the server starts, kept as SHA-256 digests so that comparing them tells nothing of them.
#[derive(Default)]
pub struct StaticTokens {
    entries: Vec<([u8; 32], Identity)>,
}

impl StaticTokens {
    /// Accepts one more token.
    #[must_use]
    pub fn with(mut self, token: &str, identity: Identity) -> Self {
        self.entries
            .push((skiff_protocol::sha256(token.as_bytes()), identity));
        self
    }
}

#[async_trait]
impl Tokens for StaticTokens {
    async fn identify(&self, token: &str) -> Option<Identity> {
        let digest = skiff_protocol::sha256(token.as_bytes());
        self.entries
            .iter()
            .find(|(known, _)| *known == digest)
            .map(|(_, identity)| identity.clone())
    }
}

/// What the connection proved before any request on it; the listener puts it into each request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    pub(crate) identity: Option<Arc<Identity>>,
    /// The public key of the certificate (the bits of its SubjectPublicKeyInfo); empty where there is none.
    pub(crate) key: Arc<[u8]>,
}

impl Peer {
    /// What a certificate proves that the TLS layer has verified.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self::default();
        };
        Self {
            identity: Identity::of_certificate(&certificate).map(Arc::new),
            key: (*certificate.public_key().subject_public_key.data).into(),
        }
    }
}

/// Who sent a request: the connection's certificate first, as Kubernetes does, then the request's token.
pub(crate) async fn of_request(
    peer: Option<&Peer>,
    headers: &HeaderMap,
    tokens: &dyn Tokens,
) -> Option<Identity> {
    if let Some(identity) = peer.and_then(|peer| peer.identity.as_ref()) {
        return Some((**identity).clone());
    }
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    tokens.identify(token.trim()).await
}
