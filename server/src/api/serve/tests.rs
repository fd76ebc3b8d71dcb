//! Connections that ask nothing, with less patience than the server has.

use axum::routing::get;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{Instant, sleep, timeout};

use super::*;

const SHORT: Patience = Patience {
    headers: Duration::from_millis(300),
    idle: Duration::from_millis(600),
    drain: Duration::from_millis(300),
};
/// Longer than any of these, and than a busy machine may be late.
const LONG: Duration = Duration::from_secs(20);

fn app() -> Router {
    let slow = || async {
        sleep(3 * SHORT.idle).await;
        "late"
    };
    Router::new()
        .route("/", get(|| async { "here" }))
        .route("/slow", get(slow))
}

/// A connection, and the sender that must outlive it.
fn connect() -> (DuplexStream, watch::Sender<bool>) {
    let (client, server) = duplex(64 << 10);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(exchange(server, app(), stopped, SHORT));
    (client, stop)
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    for said in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n"] {
        let (mut client, _stop) = connect();
        client.write_all(said.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let closed = timeout(LONG, client.read_to_end(&mut bytes)).await;
        assert!(closed.is_ok(), "after {said:?} the connection stays open");
    }
}

/// What happens to an HTTP/2 connection whose client answers every probe.
#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let (client, _stop) = connect();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let ask = |path: &str| {
        hyper::Request::builder()
            .uri(format!("http://skiff{path}"))
            .body(Body::empty())
            .unwrap()
    };
    let answer = sender.send_request(ask("/")).await.unwrap();
    drop(answer);
    // A request that takes longer than any patience, as a watch does.
    let answer = sender.send_request(ask("/slow")).await.unwrap();
    let body = axum::body::to_bytes(Body::new(answer.into_body()), 16).await;
    assert_eq!(body.unwrap(), "late");
    let begun = Instant::now();
    timeout(LONG, connection)
        .await
        .expect("the connection stays open")
        .unwrap()
        .unwrap();
    assert!(begun.elapsed() >= SHORT.idle, "after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_without_a_free_slot_stops() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let (_stop, stopped) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(0));
    let app = app();
    let shutdown = std::future::ready(());
    let listening = listen(&listener, &slots, &acceptor, &app, &stopped, shutdown);
    timeout(Duration::from_secs(5), listening)
        .await
        .expect("the shutdown waits for a slot");
}
