//! The listener: TLS, who is on the other end, HTTP/1.1 and HTTP/2.
//!
//! What always holds: connections are counted and bounded; a peer that stalls in its handshake or its headers, or that
//! holds a connection without asking anything, is cut off; on shutdown every connection may finish its answer, for
//! [`limits::DRAIN`] at most.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::Response;
use axum::middleware::{self, Next};
use hyper::body::{Frame, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::identity::Peer;
use super::{ApiState, housekeeping, limits, router};
use crate::store::StoreError;

/// Serves the API until `shutdown` completes, beside the paths of `extra`, which sees the caller as
/// `Option<Extension<Identity>>` and does its own authorization.
///
/// `tls` decides about client certificates: with an optional verifier both certificates and tokens work.
///
/// # Errors
/// Only when the first namespaces cannot be stored.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    mut state: ApiState,
    extra: Router,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), StoreError> {
    housekeeping::make_namespaces(&*state.store).await?;
    let (stop, stopped) = watch::channel(false);
    state.stop = stopped.clone();
    let mut tls = (*tls).clone();
    if tls.alpn_protocols.is_empty() {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let housekeeping = tokio::spawn(housekeeping::run(state.store.clone(), stopped.clone()));
    let app = router(state, extra);
    let slots = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let mut connections = listen(&listener, &slots, &acceptor, &app, &stopped, shutdown).await;
    // Nobody listening is fine: then there is nothing to stop.
    let _ = stop.send(true);
    let drained = tokio::time::timeout(limits::DRAIN, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::debug!(open = connections.len(), "connections cut off at shutdown");
        connections.shutdown().await;
    }
    if let Err(error) = housekeeping.await {
        tracing::error!(%error, "housekeeping failed");
    }
    Ok(())
}

/// Takes connections until `shutdown`; gives back those that are still open.
async fn listen(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    acceptor: &TlsAcceptor,
    app: &Router,
    stopped: &watch::Receiver<bool>,
    shutdown: impl Future<Output = ()> + Send,
) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            // Cancelling it loses no connection: what is not accepted stays in the listen queue.
            accepted = accept(listener, slots) => accepted,
            () = &mut shutdown => return connections,
        };
        // Finished connections leave, so that the set stays as small as the number of open ones.
        while connections.try_join_next().is_some() {}
        let (stream, slot) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors is the usual cause; trying again at once would spin.
                tokio::time::sleep(limits::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, app, stopped) = (acceptor.clone(), app.clone(), stopped.clone());
        connections.spawn(async move {
            connection(stream, acceptor, app, stopped).await;
            drop(slot);
        });
    }
}

/// The next connection, once there is a slot for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, slot))
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, app: Router, stop: watch::Receiver<bool>) {
    // A watch's lines are small and must not wait for a full segment.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let stream = match tokio::time::timeout(limits::HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let peer = certificate.map(Peer::of_certificate).unwrap_or_default();
    exchange(stream, app.layer(axum::Extension(peer)), stop, PATIENCE).await;
}

/// How long a connection may be silent.
#[derive(Clone, Copy)]
struct Patience {
    /// Until its first request, and over the headers of each.
    headers: Duration,
    /// Between two requests.
    idle: Duration,
    /// Over its goodbye.
    drain: Duration,
}

const PATIENCE: Patience = Patience {
    headers: limits::HEADERS,
    idle: limits::IDLE,
    drain: limits::DRAIN,
};

/// Requests and answers, until the peer, the server's end or silence ends them.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    app: Router,
    mut stop: watch::Receiver<bool>,
    patience: Patience,
) {
    let (requests, open) = watch::channel(0);
    let app = app.layer(middleware::from_fn_with_state(requests, counted));
    let service = TowerToHyperService::new(app);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION)
        .keep_alive_interval(limits::KEEPALIVE)
        .keep_alive_timeout(limits::KEEPALIVE);
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let stopped = async move {
        // An error means that the server is gone, which is the same here.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    // No arm is lost: serving goes on below after the request to finish.
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stopped => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = silence(open, patience) => {
            serving.as_mut().graceful_shutdown();
            // Nothing is under way, so a peer that does not take its leave in this time loses nothing.
            tokio::time::timeout(patience.drain, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Completes when the first request has not come in time, or when there has been none for long.
async fn silence(mut open: watch::Receiver<usize>, patience: Patience) {
    let mut long = patience.headers;
    loop {
        // The sender lives as long as the service, which outlives this future; were it gone, so were the connection.
        let busy = *open.borrow_and_update() > 0;
        let changed = if busy {
            open.changed().await
        } else {
            match tokio::time::timeout(long, open.changed()).await {
                Ok(changed) => changed,
                Err(_) => return,
            }
        };
        if changed.is_err() {
            return;
        }
        long = patience.idle;
    }
}

/// Counts the request as open until its answer has left, or was given up.
async fn counted(
    State(requests): State<watch::Sender<usize>>,
    request: Request,
    next: Next,
) -> Response<Body> {
    let open = Open::new(requests);
    let response = next.run(request).await;
    response.map(|body| Body::new(Counted { body, _open: open }))
}

struct Open(watch::Sender<usize>);

impl Open {
    fn new(requests: watch::Sender<usize>) -> Self {
        requests.send_modify(|open| *open += 1);
        Self(requests)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// An answer's body, which holds its request open.
struct Counted {
    body: Body,
    _open: Open,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
