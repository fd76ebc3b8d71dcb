//! A body that is sent as it is read: an archive, or a directory made into one on the way.
//!
//! Always holds: memory is bounded by the channel between the thread that reads and the task that sends; an error of
//! reading ends the request, so that the server sees a broken upload and never a short one, and is what is told, with
//! the file's name; nothing waits for the thread that reads, which may never hear from standard input again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tower::{BoxError, ServiceBuilder, ServiceExt as _};

use crate::connect::{Server, refusal, unreachable};
use crate::failure::{Failure, Outcome};

/// Bytes of one piece.
const PIECE: usize = 128 << 10;

/// Pieces between reading and sending.
const AHEAD: usize = 8;

/// Bytes of the server's answer.
const ANSWER: usize = 1 << 20;

/// What is uploaded.
#[derive(Debug)]
pub(crate) enum Content {
    /// A file, its path, and its size.
    File(File, PathBuf, u64),
    /// Standard input.
    Stdin,
    /// The files of a directory, to be sent as a tar archive, and their size altogether.
    Directory(PathBuf, Vec<PathBuf>, u64),
}

impl Content {
    /// Bytes altogether, where that is known; of a directory, without the archive's headers.
    pub(crate) fn size(&self) -> Option<u64> {
        match self {
            Self::File(_, _, size) | Self::Directory(_, _, size) => Some(*size),
            Self::Stdin => None,
        }
    }

    /// Reads everything, each piece going to `tell` and on its way; `failed` hears what could not be read.
    fn read(
        self,
        sender: mpsc::Sender<io::Result<Bytes>>,
        tell: &dyn Fn(u64),
        failed: oneshot::Sender<io::Error>,
    ) {
        let mut pipe = Pipe {
            sender,
            tell,
            closed: false,
        };
        let read = match self {
            Self::File(file, path, _) => copy(file, &path, &mut pipe),
            Self::Stdin => copy(io::stdin().lock(), Path::new("standard input"), &mut pipe),
            Self::Directory(root, files, _) => archive(&root, &files, &mut pipe),
        };
        let Err(error) = read else { return };
        // Where the request has ended, it has its own error.
        if !pipe.closed {
            let broken = io::Error::from(error.kind());
            // Told before the request breaks for it.
            let _ = failed.send(error);
            let _ = pipe.sender.blocking_send(Err(broken));
        }
    }
}

fn copy(mut from: impl Read, name: &Path, to: &mut Pipe<'_>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).map_err(|error| naming(name, &error))? {
            0 => return Ok(()),
            count => to.write_all(&piece[..count])?,
        }
    }
}

fn naming(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn archive(root: &Path, files: &[PathBuf], to: &mut Pipe<'_>) -> io::Result<()> {
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(PIECE, to));
    builder.mode(tar::HeaderMode::Deterministic);
    for file in files {
        let path = root.join(file);
        builder
            .append_path_with_name(&path, file)
            .map_err(|error| naming(&path, &error))?;
    }
    builder.into_inner()?.flush()
}

/// What is written here goes to the request.
struct Pipe<'a> {
    sender: mpsc::Sender<io::Result<Bytes>>,
    tell: &'a dyn Fn(u64),
    /// The request has ended.
    closed: bool,
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.sender.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        if sent.is_err() {
            self.closed = true;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        (self.tell)(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Sent = Pin<Box<dyn http_body::Body<Data = Bytes, Error = io::Error> + Send>>;

/// Posts `content` to `path`, telling how many bytes went each time; gives the server's JSON.
pub(crate) async fn post(
    server: &Server,
    path: &str,
    content: Content,
    tell: impl Fn(u64) + Send + 'static,
) -> Outcome<Value> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (failed, mut failure) = oneshot::channel();
    // A thread of its own, and not the runtime's, which would wait for it at the end.
    std::thread::spawn(move || content.read(sender, &tell, failed));
    let frames = stream::unfold(receiver, |mut receiver| async move {
        let piece: io::Result<Bytes> = receiver.recv().await?;
        Some((piece.map(http_body::Frame::data), receiver))
    });
    let body: Sent = Box::pin(StreamBody::new(frames));
    let answer = exchange(server, path, body).await;
    match failure.try_recv() {
        Ok(error) if answer.is_err() => Err(error.into()),
        _ => answer,
    }
}

async fn exchange(server: &Server, path: &str, body: Sent) -> Outcome<Value> {
    let origin = server.origin();
    let connector = server
        .config
        .rustls_https_connector()
        .with_context(|| origin.to_owned())?;
    let client = Client::builder(TokioExecutor::new()).build::<_, Sent>(connector);
    // kube's layers know its own body only; ours takes its place behind them.
    let body = Arc::new(Mutex::new(Some(body)));
    let send = tower::service_fn(move |request: Request<Body>| {
        let (parts, _) = request.into_parts();
        let body = body.lock().unwrap_or_else(PoisonError::into_inner).take();
        let sent = body.map(|body| client.request(Request::from_parts(parts, body)));
        async move {
            match sent {
                Some(sent) => sent.await.map_err(BoxError::from),
                None => Err(BoxError::from("an upload is sent once")),
            }
        }
    });
    let auth = server.config.auth_layer().with_context(|| origin.to_owned())?;
    let layers = ServiceBuilder::new()
        .layer(server.config.base_uri_layer())
        .option_layer(auth);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/x-tar")
        .body(Body::empty())?;
    let response = layers
        .map_err(BoxError::from)
        .service(send)
        .oneshot(request)
        .await;
    let response = response.map_err(|error| anyhow!("{}", unreachable(origin, &*error)))?;
    answer(origin, response).await
}

async fn answer(origin: &str, response: Response<hyper::body::Incoming>) -> Outcome<Value> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER).collect().await;
    let body = body.map_err(|error| anyhow!("{origin}: {error}"))?.to_bytes();
    if !status.is_success() {
        return Err(Failure::from(refusal(status, &body)));
    }
    Ok(serde_json::from_slice(&body).with_context(|| format!("{origin}: the answer is not JSON"))?)
}
