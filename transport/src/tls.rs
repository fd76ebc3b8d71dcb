//! TLS for both MQTT and the join request: rustls with ring, certificates checked by webpki against the fleet CA only.
//!
//! Always holds: no system root store, no process-wide provider, and the time of a check comes from a [`Clock`], so
//! that a node whose clock says 1970 can still tell a valid certificate.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// TLS sessions remembered for resumption. One broker, one server, a few tickets each.
const SESSIONS: usize = 8;

/// Why there is no TLS configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The PEM text holds no certificate, or a broken one.
    #[error("{what}: {why}")]
    Pem {
        /// Which text.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// rustls refuses the certificate, or the key does not belong to it.
    #[error("{what}: {why}")]
    Refused {
        /// Which part.
        what: &'static str,
        /// What rustls says.
        why: String,
    },
}

/// The time that certificates are checked against.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// A clock from a function that gives the seconds since 1970.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::new(system_seconds)
    }

    /// The system's clock, but never before `floor` (seconds since 1970): the larger of build time and the last time
    /// known to the journal. The caller raises it as it learns of later times.
    #[must_use]
    pub fn at_least(floor: Arc<AtomicU64>) -> Self {
        Self::new(move || system_seconds().max(floor.load(Ordering::Relaxed)))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn now(&self) -> u64 {
        (self.0)()
    }
}

fn system_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now())))
    }
}

/// A client's own certificate chain and key, both PEM.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    /// The certificate, and those between it and the root.
    pub certificates_pem: &'a str,
    /// Its key: PKCS#8, or SEC 1.
    pub key_pem: &'a str,
}

/// A configuration that trusts only `roots_pem` and shows `identity` where asked. Build it once and share the `Arc`:
/// tickets for resumption live in it.
///
/// # Errors
/// Names the PEM text that is wrong.
pub fn client_config(
    roots_pem: &str,
    identity: Option<Identity<'_>>,
    clock: &Clock,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates("root certificates", roots_pem)? {
        roots.add(root).map_err(|e| refused("root certificates", &e))?;
    }
    let builder = ClientConfig::builder_with_details(ring_provider(), Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()
        .map_err(|e| refused("TLS versions", &e))?
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = certificates("client certificate", identity.certificates_pem)?;
            let key =
                PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(|e| TlsError::Pem {
                    what: "client key",
                    why: e.to_string(),
                })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| refused("client certificate and key", &e))?
        }
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(Arc::new(config))
}

/// A configuration for joining: the node does not have the CA's certificate yet, only its SHA-256 from the token. The
/// server shows the CA's certificate in its chain; it is trusted when its digest is `ca_sha256`, and then everything
/// is checked as usual.
///
/// # Errors
/// When rustls refuses its own defaults.
pub fn pinned_client_config(ca_sha256: [u8; 32], clock: &Clock) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = ring_provider();
    let verifier = Arc::new(PinnedRoot {
        ca_sha256,
        provider: provider.clone(),
    });
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()
        .map_err(|e| refused("TLS versions", &e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The certificates in `pem`.
///
/// # Errors
/// When there is none, or one is broken; `what` names the text.
pub fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|e| TlsError::Pem {
        what,
        why: e.to_string(),
    })?;
    if found.is_empty() {
        return Err(TlsError::Pem {
            what,
            why: "no certificate in the text".to_owned(),
        });
    }
    Ok(found)
}

fn refused(what: &'static str, error: &rustls::Error) -> TlsError {
    TlsError::Refused {
        what,
        why: error.to_string(),
    }
}

fn ring_provider() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// Checks a server's chain against the one root whose digest is known.
#[derive(Debug)]
struct PinnedRoot {
    ca_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let root = intermediates
            .iter()
            .find(|cert| digest::digest(&digest::SHA256, cert).as_ref() == self.ca_sha256)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
