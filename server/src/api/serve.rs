//! The listener: TLS, who is on the other end, HTTP/1.1 and HTTP/2.
//!
//! What always holds: connections are counted and bounded; a peer that stalls in its handshake or its headers is cut
//! off; on shutdown every connection may finish its answer, for [`limits::DRAIN`] at most.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::identity::{Identity, Peer};
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
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            break;
        };
        // Cancelling accept loses no connection: it stays in the listen queue.
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        // Finished connections leave, so that the set stays as small as the number of open ones.
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
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

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, app: Router, mut stop: watch::Receiver<bool>) {
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
    let peer = Peer {
        identity: certificate.and_then(Identity::of_certificate).map(Arc::new),
    };
    let app = app.layer(axum::Extension(peer));
    let service = TowerToHyperService::new(app);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADERS);
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
    // Neither arm is lost: serving goes on below after the request to finish.
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = stopped => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}
