//! How nodes come into the fleet, stay in it, and go: the paths of enrolment.
//!
//! | path | who | what |
//! | --- | --- | --- |
//! | `POST /skiff/v1/nodes/NAME/enrol` | administrators | makes a join token; `{"ttlSeconds": …}` may say for how long |
//! | `DELETE /skiff/v1/nodes/NAME` | administrators | takes the node out |
//! | `POST /skiff/v1/join` | whoever has a token | `JoinRequest` → `JoinResponse` |
//! | `POST /skiff/v1/nonce` | anybody | a nonce for a renewal |
//! | `POST /skiff/v1/renew` | the node's key | `RenewRequest` → `JoinResponse` |
//!
//! What always holds: the record of a used token and the member are on disk before the node gets its certificate;
//! joins go one after the other, so a token is used once.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::Response;
use axum::{Extension, Json, Router};
use ring::hmac;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use skiff_broker::Broker;
use skiff_pki::{Grant, JoinError, TokenRecord};
use skiff_protocol::enrol::{JoinRequest, MAX_MESSAGE, PUBLIC_KEY, RenewRequest, fixed, to_base64};
use skiff_protocol::topic::NodeName;
use tokio::sync::{Mutex, Notify};

use crate::api::{ApiError, ApiResult, Identity, in_time};
use crate::fleet::{Fleet, key_sha256};
use crate::link::Link;
use crate::store::Store;

/// The bucket of the key-value table that holds the join tokens' records, by node.
const TOKENS: &str = "tokens";
/// How long a nonce is good, in seconds: a slow link's round trips, and a TLS handshake.
const NONCE_AGE: u64 = 120;
/// How long after its end a certificate can still be renewed, in seconds: a node may have been off for a season.
const RENEWAL_GRACE: u64 = 180 * 24 * 3600;
/// Longest life of a join token, in seconds.
const TOKEN_TTL: u64 = 90 * 24 * 3600;

/// What enrolment works with.
pub(crate) struct Enrolment {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) link: Link,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) server_urls: Vec<String>,
    pub(crate) node_seconds: u64,
    pub(crate) token_seconds: u64,
    /// Makes nonces that need not be remembered; of this process only.
    pub(crate) nonce_key: hmac::Key,
    /// Rung when a node was removed, for what it leaves.
    pub(crate) removed: Arc<Notify>,
    /// Held while a token is used.
    pub(crate) joins: Mutex<()>,
}

type Caller = Option<Extension<Identity>>;
type Shared = State<Arc<Enrolment>>;

/// The paths of this module.
pub(crate) fn router(enrolment: Arc<Enrolment>) -> Router {
    use axum::routing::{delete, post};
    Router::new()
        .route("/skiff/v1/nodes/{name}/enrol", post(enrol))
        .route("/skiff/v1/nodes/{name}", delete(remove))
        .route("/skiff/v1/join", post(join))
        .route("/skiff/v1/nonce", post(nonce))
        .route("/skiff/v1/renew", post(renew))
        .with_state(enrolment)
}

/// Lets administrators pass.
pub(crate) fn admin(caller: Caller, verb: &str, path: &str) -> ApiResult<()> {
    match caller {
        None => Err(ApiError::unauthorized()),
        Some(Extension(identity)) if identity.is_admin() => Ok(()),
        Some(Extension(identity)) => Err(ApiError::forbidden_path(&identity.user, verb, path)),
    }
}

/// An answer, or the error as Kubernetes shows it.
pub(crate) fn respond(result: ApiResult<serde_json::Value>) -> Response<Body> {
    use axum::response::IntoResponse as _;
    match result {
        Ok(value) => Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct EnrolRequest {
    ttl_seconds: Option<u64>,
}

async fn enrol(State(state): Shared, caller: Caller, Path(name): Path<String>, body: Body) -> Response<Body> {
    respond(state.enrol(caller, &name, body).await)
}

async fn remove(State(state): Shared, caller: Caller, Path(name): Path<String>) -> Response<Body> {
    respond(state.remove(caller, &name).await)
}

async fn join(State(state): Shared, body: Body) -> Response<Body> {
    respond(state.join(body).await)
}

async fn nonce(State(state): Shared) -> Response<Body> {
    respond(Ok(json!({ "nonce": to_base64(&state.nonce_at(now())) })))
}

async fn renew(State(state): Shared, body: Body) -> Response<Body> {
    respond(state.renew(body).await)
}

impl Enrolment {
    async fn enrol(&self, caller: Caller, name: &str, body: Body) -> ApiResult<serde_json::Value> {
        admin(caller, "enrol", "/skiff/v1/nodes")?;
        let node = node_name(name)?;
        let request: EnrolRequest = parse(&read(body).await?)?;
        let seconds = request.ttl_seconds.unwrap_or(self.token_seconds);
        if seconds == 0 || seconds > TOKEN_TTL {
            return Err(ApiError::bad_request(format!(
                "ttlSeconds: must be between 1 and {TOKEN_TTL}"
            )));
        }
        let expires = now() + seconds;
        let made = self.fleet.authority.join_token(&node, &self.server_urls, expires);
        let (token, record) = made.map_err(ApiError::internal)?;
        let text = token.to_text().map_err(ApiError::internal)?;
        let _one = self.joins.lock().await;
        self.keep(&node, &record).await?;
        Ok(
            json!({ "node": node.as_str(), "token": text, "expires": expires, "serverUrls": self.server_urls }),
        )
    }

    async fn remove(&self, caller: Caller, name: &str) -> ApiResult<serde_json::Value> {
        admin(caller, "delete", "/skiff/v1/nodes")?;
        let node = node_name(name)?;
        let _one = self.joins.lock().await;
        let failed = |error| ApiError::unavailable(format!("node {name}: {error}"));
        self.store
            .kv_delete(TOKENS, node.as_str())
            .await
            .map_err(failed)?;
        let was = self.fleet.remove(&node).await.map_err(failed)?;
        self.broker.disconnect(&node).await;
        self.link.forget(&node).await;
        self.removed.notify_one();
        Ok(json!({ "node": node.as_str(), "removed": was }))
    }

    async fn join(&self, body: Body) -> ApiResult<serde_json::Value> {
        let request: JoinRequest = parse(&read(body).await?)?;
        let node = node_name(&request.node)?;
        let refused = |error: &JoinError| {
            tracing::warn!(%node, %error, "a node could not join");
            refusal(error)
        };
        let key: [u8; PUBLIC_KEY] =
            fixed("publicKey", &request.public_key).map_err(|error| refused(&error.into()))?;
        let _one = self.joins.lock().await;
        let failed = |error| ApiError::unavailable(format!("node {node}: {error}"));
        let record = self.store.kv_get(TOKENS, node.as_str()).await.map_err(failed)?;
        let record = record.ok_or_else(|| refused(&JoinError::Secret))?;
        let mut record: TokenRecord = serde_json::from_slice(&record).map_err(ApiError::internal)?;
        let member = self.fleet.joining(&node, &key_sha256(&key));
        let response = self
            .fleet
            .authority
            .join(&mut record, &request, self.grant(member.serial), now())
            .map_err(|error| refused(&error))?;
        self.keep(&node, &record).await?;
        self.fleet.admit(&node, member).await.map_err(failed)?;
        // Whatever spoke in the node's name before does so no more.
        self.broker.disconnect(&node).await;
        self.link.forget(&node).await;
        tracing::info!(%node, "a node has joined");
        serde_json::to_value(&response).map_err(ApiError::internal)
    }

    async fn renew(&self, body: Body) -> ApiResult<serde_json::Value> {
        let request: RenewRequest = parse(&read(body).await?)?;
        let node = node_name(&request.node)?;
        let refused = |error: &JoinError| {
            tracing::warn!(%node, %error, "a node could not renew its certificate");
            refusal(error)
        };
        let at = now();
        let nonce: [u8; 32] = fixed("nonce", &request.nonce).map_err(|error| refused(&error.into()))?;
        if !self.is_nonce(&nonce, at) {
            return Err(refused(&JoinError::Nonce));
        }
        let member = self.fleet.member(&node);
        let member =
            member.ok_or_else(|| refused(&JoinError::Certificate("the node is no member".into())))?;
        let grant = self.grant(member.serial);
        let renewal = self
            .fleet
            .authority
            .renew(&request, &nonce, grant, at, RENEWAL_GRACE);
        let renewal = renewal.map_err(|error| refused(&error))?;
        // The key is the old certificate's; it must be the one that joined last.
        if certified_key(&renewal.response.certificate).as_deref() != Some(&member.key_sha256) {
            return Err(refused(&JoinError::Certificate(
                "the node has joined with another key since".into(),
            )));
        }
        serde_json::to_value(&renewal.response).map_err(ApiError::internal)
    }

    fn grant(&self, password_serial: u64) -> Grant<'_> {
        Grant {
            broker_url: self.broker.url(),
            server_urls: &self.server_urls,
            password_serial,
            seconds: self.node_seconds,
        }
    }

    async fn keep(&self, node: &NodeName, record: &TokenRecord) -> ApiResult<()> {
        let value = serde_json::to_vec(record).map_err(ApiError::internal)?;
        let kept = self.store.kv_put(TOKENS, node.as_str(), &value).await;
        kept.map_err(|error| ApiError::unavailable(format!("node {node}: {error}")))
    }

    /// The time, and a MAC over it.
    fn nonce_at(&self, at: u64) -> [u8; 32] {
        let mut nonce = [0; 32];
        let tag = hmac::sign(&self.nonce_key, &at.to_be_bytes());
        nonce[..8].copy_from_slice(&at.to_be_bytes());
        nonce[8..].copy_from_slice(&tag.as_ref()[..24]);
        nonce
    }

    fn is_nonce(&self, nonce: &[u8; 32], now: u64) -> bool {
        let mut at = [0; 8];
        at.copy_from_slice(&nonce[..8]);
        let at = u64::from_be_bytes(at);
        // Comparing in any time is fine: a nonce is public, and good for nothing without the node's key.
        at <= now && now - at <= NONCE_AGE && self.nonce_at(at) == *nonce
    }
}

fn refusal(error: &JoinError) -> ApiError {
    let code = if matches!(error, JoinError::Pki(_)) {
        500
    } else {
        403
    };
    let reason = if code == 500 { "InternalError" } else { "Forbidden" };
    ApiError {
        code,
        reason,
        message: error.public().to_owned(),
        details: None,
    }
}

/// SHA-256 of the public key of a certificate in PEM, base64url.
fn certified_key(pem: &str) -> Option<String> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    Some(key_sha256(&certificate.public_key().subject_public_key.data))
}

fn node_name(name: &str) -> ApiResult<NodeName> {
    NodeName::parse(name).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// Reads a body; whoever is on the other end may be anybody, so not for ever.
async fn read(body: Body) -> ApiResult<Vec<u8>> {
    let bytes = in_time(axum::body::to_bytes(body, MAX_MESSAGE)).await?;
    let bytes = bytes.map_err(|_| ApiError::too_large(MAX_MESSAGE))?;
    Ok(bytes.to_vec())
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(format!("the body: {error}")))
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
