//! TLS for the HTTP client: rustls with ring, checked against the latest time that the node can vouch for.
//!
//! A connector of our own and not the HTTP client's: that one takes no clock, and panics on a key that does not fit
//! its certificate.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport, TransportAdapter,
};

use super::RegistryError;
use crate::pull::Source;

/// The system clock, but never before a time that is known to have passed.
#[derive(Debug)]
struct Clock {
    not_before: UnixTime,
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = UnixTime::now();
        Some(if now.as_secs() < self.not_before.as_secs() {
            self.not_before
        } else {
            now
        })
    }
}

/// TLS towards the source itself: its authorities, and the node's certificate.
pub(crate) fn own(source: &Source, not_before: u64) -> Result<Arc<ClientConfig>, RegistryError> {
    let mut roots = RootCertStore::empty();
    match &source.ca_pem {
        Some(pem) => add_pem(&mut roots, pem)?,
        None => add_system(&mut roots),
    }
    let identity = match (&source.client_cert_pem, &source.client_key_pem) {
        (Some(certificate), Some(key)) => Some((certificate.as_str(), key.as_str())),
        (None, None) => None,
        _ => {
            return Err(configuration(
                "a client certificate and its key must be given together",
            ));
        }
    };
    build(roots, identity, not_before)
}

/// TLS towards another host that the source redirects to: the system's authorities too, and no certificate of ours.
pub(crate) fn foreign(source: &Source, not_before: u64) -> Result<Arc<ClientConfig>, RegistryError> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = &source.ca_pem {
        add_pem(&mut roots, pem)?;
    }
    add_system(&mut roots);
    build(roots, None, not_before)
}

fn configuration(text: &str) -> RegistryError {
    RegistryError::Configuration(text.to_owned())
}

fn add_pem(roots: &mut RootCertStore, pem: &str) -> Result<(), RegistryError> {
    let mut any = false;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| configuration(&format!("CA certificates: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| configuration(&format!("CA certificates: {error}")))?;
        any = true;
    }
    if any {
        Ok(())
    } else {
        Err(configuration("CA certificates: the PEM text has none"))
    }
}

/// What the system does not have or rustls cannot parse is left out: a connection then says that it trusts nobody.
fn add_system(roots: &mut RootCertStore) {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a certificate of the system is left out");
    }
    roots.add_parsable_certificates(found.certs);
}

fn build(
    roots: RootCertStore,
    identity: Option<(&str, &str)>,
    not_before: u64,
) -> Result<Arc<ClientConfig>, RegistryError> {
    let failed = |error: rustls::Error| configuration(&format!("TLS: {error}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clock = Arc::new(Clock {
        not_before: UnixTime::since_unix_epoch(Duration::from_secs(not_before)),
    });
    let builder = ClientConfig::builder_with_details(provider, clock)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
            let chain = chain.map_err(|error| configuration(&format!("client certificate: {error}")))?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|error| configuration(&format!("client key: {error}")))?;
            builder.with_client_auth_cert(chain, key).map_err(failed)?
        }
    };
    Ok(Arc::new(config))
}

/// Wraps the connection of an `https` URL in TLS.
pub(crate) struct TlsConnector {
    pub(crate) config: Arc<ClientConfig>,
}

impl std::fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsConnector").finish_non_exhaustive()
    }
}

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| ureq::Error::Tls("the host's name cannot be in a certificate"))?;
        let mut connection = ClientConnection::new(self.config.clone(), name)?;
        let boxed: Box<dyn Transport> = Box::new(transport);
        let mut socket = TransportAdapter::new(boxed, details.current_time.clone());
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        let buffers = LazyBuffers::new(
            details.config.input_buffer_size(),
            details.config.output_buffer_size(),
        );
        Ok(Some(Either::B(TlsTransport {
            buffers,
            stream: StreamOwned {
                conn: connection,
                sock: socket,
            },
        })))
    }
}

/// A TLS connection.
pub(crate) struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl std::fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        use std::io::Write;
        self.stream.sock.set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        use std::io::Read;
        self.stream.sock.set_timeout(timeout);
        let count = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.sock.get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
