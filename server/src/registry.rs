//! Images over HTTPS: nodes pull them, administrators bring them.
//!
//! | path | who | what |
//! | --- | --- | --- |
//! | `GET /v2/…` | nodes and administrators | the pull side of the OCI distribution API |
//! | `GET /skiff/v1/images` | administrators | what is there |
//! | `POST /skiff/v1/images?name=…` | administrators | imports the archive in the body |
//!
//! What always holds: files are read and written outside the tasks that serve others; an upload that breaks off leaves
//! nothing behind; a few uploads run at once and the rest wait.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{Response, StatusCode, header};
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use skiff_image_store::{ImageStore, Imported, limits, registry};
use skiff_protocol::image_ref::ImageRef;
use skiff_protocol::topic::NodeName;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

use crate::api::identity::{NODES, Peer};
use crate::api::{ApiError, ApiResult, Identity};
use crate::enrol::{admin, respond};
use crate::fleet::{Fleet, key_sha256};

/// Uploads at once: each writes to the disk as fast as it may.
const UPLOADS: usize = 2;
/// Bytes of a blob read at once, and held in memory for each download.
const CHUNK: usize = 128 * 1024;

/// What the paths of this module work with.
pub(crate) struct Registry {
    images: ImageStore,
    fleet: Arc<Fleet>,
    /// Where uploads lie until they are imported.
    uploads: PathBuf,
    slots: Semaphore,
    count: AtomicU64,
}

type Shared = State<Arc<Registry>>;
type Caller = Option<Extension<Identity>>;

impl Registry {
    /// Opens the images under `data`, and clears what uploads left there when the server was cut off.
    pub(crate) fn open(data: &std::path::Path, fleet: Arc<Fleet>) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let uploads = data.join("uploads");
        match std::fs::remove_dir_all(&uploads) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot clear {}", uploads.display()));
            }
            _ => crate::fleet::private_dir(&uploads)?,
        }
        let images = ImageStore::open(data.join("images"))?;
        Ok(Self {
            images,
            fleet,
            uploads,
            slots: Semaphore::new(UPLOADS),
            count: AtomicU64::new(0),
        })
    }
}

/// The paths of this module.
pub(crate) fn router(state: Arc<Registry>) -> Router {
    use axum::routing::{any, get};
    Router::new()
        .route("/v2", any(pull))
        .route("/v2/", any(pull))
        .route("/v2/{*rest}", any(pull))
        .route("/skiff/v1/images", get(list).post(upload))
        .with_state(state)
}

async fn pull(
    State(state): Shared,
    caller: Caller,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Response<Body> {
    let key = peer.as_ref().map_or(&[][..], |peer| &peer.0.key);
    if let Err(error) = state.may_pull(caller.as_ref().map(|it| &it.0), key, request.uri().path()) {
        return error.into_response();
    }
    let (parts, _) = request.into_parts();
    let answer = tokio::task::spawn_blocking(move || {
        let range = parts
            .headers
            .get(header::RANGE)
            .and_then(|value| value.to_str().ok());
        let uri = &parts.uri;
        registry::answer(
            &state.images,
            parts.method.as_str(),
            uri.path(),
            uri.query(),
            range,
        )
    });
    match answer.await {
        Ok(answer) => response(answer),
        Err(error) => ApiError::internal(error).into_response(),
    }
}

impl Registry {
    /// `key` is the public key of the caller's certificate: one of the node's name is not enough, for what joined
    /// under that name before may have a valid one still.
    fn may_pull(&self, caller: Option<&Identity>, key: &[u8], path: &str) -> ApiResult<()> {
        let identity = caller.ok_or_else(ApiError::unauthorized)?;
        let node = NodeName::parse(&identity.user).ok();
        let member =
            node.is_some_and(|node| identity.in_group(NODES) && self.fleet.holds(&node, &key_sha256(key)));
        if identity.is_admin() || member {
            Ok(())
        } else {
            Err(ApiError::forbidden_path(&identity.user, "get", path))
        }
    }
}

fn response(answer: registry::Answer) -> Response<Body> {
    let body = match answer.body {
        registry::Body::Empty => Body::empty(),
        registry::Body::Bytes(bytes) => Body::from(bytes),
        registry::Body::File { file, offset, length } => file_body(file, offset, length),
    };
    let mut builder = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        builder = builder.header(name, value);
    }
    builder
        .body(body)
        .unwrap_or_else(|error| ApiError::internal(error).into_response())
}

/// Reads piece by piece, each in a thread that may wait for the disk, and only when the one before was sent.
fn file_body(file: std::fs::File, offset: u64, length: u64) -> Body {
    let state = Some((file, offset, length));
    Body::from_stream(futures_util::stream::try_unfold(state, |state| async move {
        let Some((mut file, offset, left)) = state.filter(|(_, _, left)| *left > 0) else {
            return Ok(None);
        };
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<_> {
            let want = left.min(CHUNK as u64);
            let mut bytes = vec![0; want as usize];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            Ok((Bytes::from(bytes), Some((file, offset + want, left - want))))
        });
        read.await.map_err(std::io::Error::other)?.map(Some)
    }))
}

async fn list(State(state): Shared, caller: Caller) -> Response<Body> {
    if let Err(error) = admin(caller, "get", "/skiff/v1/images") {
        return error.into_response();
    }
    let listed = tokio::task::spawn_blocking(move || state.images.list()).await;
    respond(match listed {
        Ok(Ok(images)) => Ok(json!({
            "images": images
                .iter()
                .map(|it| json!({ "reference": it.reference.to_string(), "digest": it.digest.to_string(), "bytes": it.bytes }))
                .collect::<Vec<Value>>()
        })),
        Ok(Err(error)) => Err(ApiError::internal(error)),
        Err(error) => Err(ApiError::internal(error)),
    })
}

async fn upload(
    State(state): Shared,
    caller: Caller,
    RawQuery(query): RawQuery,
    body: Body,
) -> Response<Body> {
    if let Err(error) = admin(caller, "create", "/skiff/v1/images") {
        return error.into_response();
    }
    let result = state.upload(query.as_deref().unwrap_or_default(), body).await;
    let mut response = respond(result);
    if response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::CREATED;
    }
    response
}

/// The file of an upload; it goes with its value.
struct Upload(PathBuf);

impl Drop for Upload {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %error, "an upload's file stays until the next start");
        }
    }
}

impl Registry {
    async fn upload(self: Arc<Self>, query: &str, body: Body) -> ApiResult<Value> {
        let mut name = None;
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*key {
                "name" => {
                    let parsed = ImageRef::parse(&value);
                    name = Some(parsed.map_err(|error| ApiError::bad_request(format!("name: {error}")))?);
                }
                other => return Err(ApiError::bad_request(format!("unknown parameter {other:?}"))),
            }
        }
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        let upload = self.receive(body).await?;
        let state = self.clone();
        let imported = tokio::task::spawn_blocking(move || {
            let imported = state.images.import(&upload.0, name.as_ref(), &mut |_| {});
            drop(upload);
            imported
        });
        match imported.await.map_err(ApiError::internal)? {
            Ok(images) => Ok(json!({ "images": images.iter().map(shown).collect::<Vec<Value>>() })),
            Err(error @ skiff_image_store::Error::Io { .. }) => {
                tracing::error!(%error, "an image could not be imported");
                Err(ApiError::internal(error))
            }
            Err(error) => Err(ApiError::bad_request(error.to_string())),
        }
    }

    async fn receive(&self, body: Body) -> ApiResult<Upload> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let upload = Upload(self.uploads.join(format!("{number}.archive")));
        let failed = |error: std::io::Error| {
            tracing::error!(path = %upload.0.display(), %error, "an upload could not be written");
            ApiError::unavailable(format!("the upload could not be written: {error}"))
        };
        let mut file = tokio::fs::File::create(&upload.0).await.map_err(failed)?;
        let mut stream = body.into_data_stream();
        let mut bytes = 0;
        while let Some(chunk) = stream.next().await {
            let chunk =
                chunk.map_err(|error| ApiError::bad_request(format!("the upload broke off: {error}")))?;
            bytes += chunk.len() as u64;
            if bytes > limits::MAX_IMPORT_BYTES {
                return Err(ApiError::bad_request(format!(
                    "the upload has more than {} bytes",
                    limits::MAX_IMPORT_BYTES
                )));
            }
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        drop(file);
        Ok(upload)
    }
}

fn shown(image: &Imported) -> Value {
    json!({
        "reference": image.reference.to_string(),
        "digest": image.digest.to_string(),
        "layers": image.layers,
        "bytes": image.bytes,
    })
}
