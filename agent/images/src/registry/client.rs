//! One source as an HTTP client: its TLS, its credentials, its redirects, its errors.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, WWW_AUTHENTICATE};
use ureq::http::{Response, Uri};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector, TcpConnector};
use ureq::{Agent, Body};

use skiff_protocol::image_ref::{Digest, ImageRef};

use super::RegistryError;
use super::auth::{self, Challenge, TokenAnswer};
use super::tls::{self, TlsConnector};
use crate::digest::sha256;
use crate::limits::{Limits, MAX_ERROR_BODY_BYTES, MAX_MANIFEST_BYTES, MAX_REDIRECTS, MAX_TOKEN_BYTES};
use crate::pace::Meter;
use crate::pull::{Source, SourceKind};

/// The media types of manifests that are understood, in the order of preference.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A source, for one repository.
pub(crate) struct Client {
    own: Agent,
    foreign: Agent,
    /// `https://host[:port][/prefix]`
    base: Uri,
    base_text: String,
    repository: String,
    /// `?ns=<registry>`, or nothing.
    query: String,
    credentials: Option<(String, String)>,
    authorization: Option<String>,
    /// What counts and limits what comes.
    pub(super) meter: Meter,
}

impl Client {
    pub(crate) fn new(
        source: &Source,
        base_url: &str,
        reference: &ImageRef,
        limits: &Limits,
        not_before: u64,
    ) -> Result<Self, RegistryError> {
        let base_text = base_url.trim_end_matches('/').to_owned();
        let configuration = |text: String| RegistryError::Configuration(text);
        let base: Uri = base_text
            .parse()
            .map_err(|error| configuration(format!("not a URL: {error}")))?;
        match base.scheme_str() {
            Some("https") => {}
            Some("http") if source.plain_http => {}
            Some("http") => {
                return Err(configuration(
                    "plain HTTP is not allowed for this source".to_owned(),
                ));
            }
            _ => return Err(configuration("the URL must begin with https://".to_owned())),
        }
        if base.query().is_some()
            || base
                .authority()
                .is_none_or(|authority| authority.as_str().contains('@'))
        {
            return Err(configuration(
                "the URL must have a host, and neither query nor credentials".to_owned(),
            ));
        }
        let credentials = match (&source.username, &source.password) {
            (Some(username), Some(password)) => Some((username.clone(), password.clone())),
            (None, None) => None,
            _ => {
                return Err(configuration(
                    "user name and password must be given together".to_owned(),
                ));
            }
        };
        let query = match source.kind {
            SourceKind::Registry => String::new(),
            SourceKind::Server | SourceKind::Mirror => format!("?ns={}", auth::encode(reference.registry())),
        };
        Ok(Self {
            own: agent(tls::own(source, not_before)?, limits),
            foreign: agent(tls::foreign(source, not_before)?, limits),
            base,
            base_text,
            repository: reference.repository().to_owned(),
            query,
            credentials,
            authorization: None,
            meter: Meter::new(source.kind, &source.paces),
        })
    }

    /// The manifest or index under a tag or digest, and its digest.
    pub(crate) fn manifest(&mut self, reference: &str) -> Result<(Vec<u8>, Digest), RegistryError> {
        let what = format!("manifest {reference}");
        let url = format!(
            "{}/v2/{}/manifests/{reference}{}",
            self.base_text, self.repository, self.query
        );
        let response = self.get(&url, &what, Some(MANIFEST_TYPES), None)?;
        if response.status() != 200 {
            return Err(refusal(&what, response));
        }
        let told = response.headers().get("docker-content-digest").cloned();
        let bytes = read_bounded(response, &what, MAX_MANIFEST_BYTES)?;
        self.meter.came(bytes.len());
        let got = sha256(&bytes);
        let expected = Digest::parse(reference).ok();
        let told = told
            .as_ref()
            .and_then(|value| value.to_str().ok())
            .and_then(|text| Digest::parse(text).ok());
        match expected.or(told) {
            Some(expected) if expected != got => Err(RegistryError::Mismatch { what, expected, got }),
            _ => Ok((bytes, got)),
        }
    }

    /// A small blob, whole and verified.
    pub(crate) fn small_blob(&mut self, digest: &Digest, what: &str) -> Result<Vec<u8>, RegistryError> {
        let response = self.blob(digest, what, 0)?;
        if response.status() != 200 {
            return Err(refusal(what, response));
        }
        let bytes = read_bounded(response, what, MAX_MANIFEST_BYTES)?;
        self.meter.came(bytes.len());
        let got = sha256(&bytes);
        if got != *digest {
            return Err(RegistryError::Mismatch {
                what: what.to_owned(),
                expected: *digest,
                got,
            });
        }
        Ok(bytes)
    }

    /// Asks for a blob from `offset` on. The caller judges the status.
    pub(crate) fn blob(
        &mut self,
        digest: &Digest,
        what: &str,
        offset: u64,
    ) -> Result<Response<Body>, RegistryError> {
        let url = format!(
            "{}/v2/{}/blobs/{digest}{}",
            self.base_text, self.repository, self.query
        );
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        self.get(&url, what, None, range.as_deref())
    }

    /// Follows redirects and answers one challenge; gives whatever answer is left.
    fn get(
        &mut self,
        url: &str,
        what: &str,
        accept: Option<&str>,
        range: Option<&str>,
    ) -> Result<Response<Body>, RegistryError> {
        let mut url: Uri = url
            .parse()
            .map_err(|error| RegistryError::malformed(what, error))?;
        let mut challenged = false;
        let mut redirects = 0;
        loop {
            let is_own = same_origin(&url, &self.base);
            let agent = if is_own { &self.own } else { &self.foreign };
            let mut request = agent.get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            if let (true, Some(authorization)) = (is_own, &self.authorization) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = request.call().map_err(unavailable)?;
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => {
                    redirects += 1;
                    if redirects > MAX_REDIRECTS {
                        return Err(RegistryError::malformed(what, "it redirects more than 5 times"));
                    }
                    url = redirect(&url, &response).ok_or_else(|| {
                        RegistryError::malformed(what, "it redirects to no URL, or from https to http")
                    })?;
                }
                401 if is_own && !challenged => {
                    challenged = true;
                    self.authorize(what, response)?;
                }
                _ => return Ok(response),
            }
        }
    }

    /// Makes the `Authorization` that a 401 asks for.
    fn authorize(&mut self, what: &str, response: Response<Body>) -> Result<(), RegistryError> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = auth::choose(headers.filter_map(|value| value.to_str().ok()));
        match (challenge, &self.credentials) {
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                _,
            ) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                let token = self.token(&realm, service.as_deref(), &scope)?;
                self.authorization = Some(format!("Bearer {token}"));
                Ok(())
            }
            (Some(Challenge::Basic), Some((username, password))) => {
                self.authorization = Some(auth::basic(username, password));
                Ok(())
            }
            _ => Err(refusal(what, response)),
        }
    }

    fn token(&self, realm: &str, service: Option<&str>, scope: &str) -> Result<String, RegistryError> {
        let what = format!("token from {realm}");
        let separator = if realm.contains('?') { '&' } else { '?' };
        let mut url = format!("{realm}{separator}scope={}", auth::encode(scope));
        if let Some(service) = service {
            url.push_str(&format!("&service={}", auth::encode(service)));
        }
        let url: Uri = url
            .parse()
            .map_err(|error| RegistryError::malformed(&what, error))?;
        if url.scheme_str() != Some("https") && self.base.scheme_str() == Some("https") {
            return Err(RegistryError::malformed(&what, "the token service is not https"));
        }
        let agent = if same_origin(&url, &self.base) {
            &self.own
        } else {
            &self.foreign
        };
        let mut request = agent.get(url);
        if let Some((username, password)) = &self.credentials {
            request = request.header(AUTHORIZATION, auth::basic(username, password));
        }
        let response = request.call().map_err(unavailable)?;
        if response.status() != 200 {
            return Err(refusal(&what, response));
        }
        let bytes = read_bounded(response, &what, MAX_TOKEN_BYTES)?;
        let answer: TokenAnswer =
            serde_json::from_slice(&bytes).map_err(|error| RegistryError::malformed(&what, error))?;
        answer
            .into_token()
            .ok_or_else(|| RegistryError::malformed(&what, "the answer has no token"))
    }
}

fn agent(tls: std::sync::Arc<rustls::ClientConfig>, limits: &Limits) -> Agent {
    let stall = Duration::from_secs(limits.stall_timeout_seconds.max(1));
    let connect = Duration::from_secs(limits.connect_timeout_seconds.max(1));
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")))
        // Layers are compressed as such; a transfer encoding would change the bytes that the digest is of.
        .accept_encoding("identity")
        .timeout_resolve(Some(connect))
        .timeout_connect(Some(connect))
        .timeout_recv_response(Some(stall))
        .timeout_per_read(Some(stall))
        .timeout_per_write(Some(stall))
        .max_idle_connections(2)
        .build();
    let connector =
        ().chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(TlsConnector { config: tls });
    Agent::with_parts(config, connector, DefaultResolver::default())
}

/// A client for requests of the node's own, whose TLS the caller has set up. An answer that is an error is an answer;
/// nothing is redirected.
#[must_use]
pub fn https(tls: std::sync::Arc<rustls::ClientConfig>, patience: Duration) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(patience))
        .build();
    let connector =
        ().chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(TlsConnector { config: tls });
    Agent::with_parts(config, connector, DefaultResolver::default())
}

fn port(url: &Uri) -> u16 {
    url.port_u16()
        .unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 })
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let host = |url: &Uri| url.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Where a redirect leads, absolute. Never from TLS to no TLS.
fn redirect(from: &Uri, response: &Response<Body>) -> Option<Uri> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let absolute = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        location.to_owned()
    };
    let url: Uri = absolute.parse().ok()?;
    match (scheme, url.scheme_str()?) {
        (_, "https") | ("http", "http") => url.host().is_some().then_some(url),
        _ => None,
    }
}

fn unavailable(error: ureq::Error) -> RegistryError {
    match error {
        ureq::Error::Timeout(which) => RegistryError::Unavailable(format!("no answer in time ({which})")),
        other => RegistryError::Unavailable(other.to_string()),
    }
}

fn read_bounded(response: Response<Body>, what: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
    let read = reader.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|error| RegistryError::Unavailable(format!("{what}: {error}")))?;
    if bytes.len() as u64 > limit {
        return Err(RegistryError::TooLarge {
            what: what.to_owned(),
            limit,
        });
    }
    Ok(bytes)
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The registry's own words for an answer that is no success. Its 5xx and 429 count as "not now".
pub(crate) fn refusal(what: &str, response: Response<Body>) -> RegistryError {
    let status = response.status();
    let mut bytes = Vec::new();
    // Half an error text says more than none.
    let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
    let _ = reader.take(MAX_ERROR_BODY_BYTES).read_to_end(&mut bytes);
    let from_body = serde_json::from_slice::<ErrorBody>(&bytes).ok().map(|body| {
        let words =
            body.errors
                .into_iter()
                .map(|entry| match (entry.message.is_empty(), entry.code.is_empty()) {
                    (false, _) => entry.message,
                    (true, false) => entry.code.to_ascii_lowercase().replace('_', " "),
                    (true, true) => "unspecified error".to_owned(),
                });
        words.collect::<Vec<_>>().join(", ")
    });
    let words = from_body.filter(|words| !words.is_empty());
    let words = words.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given").to_owned());
    if status.is_server_error() || status.as_u16() == 429 {
        return RegistryError::Unavailable(format!("{what}: {words} (HTTP {})", status.as_u16()));
    }
    RegistryError::Answer {
        what: what.to_owned(),
        status: status.as_u16(),
        words,
    }
}
