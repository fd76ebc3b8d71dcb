//! Calls against a real HTTP/2 server.

use skiff_core::ProbeOutcome::{self, Success};
use tokio::net::TcpListener;

use super::super::Action;
use super::super::tests::{closed, failure, outcome};
use super::*;

const SOON: Duration = Duration::from_secs(20);

/// What a server does with a call.
#[derive(Clone, Copy)]
enum Answer {
    /// A message, then trailers with these.
    Message(&'static [u8], &'static str),
    /// A head that has it all: HTTP's status, gRPC's, and its message.
    Head(u16, Option<(&'static str, &'static str)>),
    Nothing,
}

/// Serves calls; each must be for the service `a.b`.
async fn serve(answer: Answer) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(request.headers()["content-type"], "application/grpc");
                assert_eq!(request.headers()["te"], "trailers");
                assert_eq!(request.headers()["user-agent"], PROBE_AGENT);
                let data = request.into_body().data().await.unwrap().unwrap();
                assert_eq!(&data[..], b"\0\0\0\0\x05\x0a\x03a.b");
                let head = |status: u16| http::Response::builder().status(status);
                match answer {
                    Answer::Message(message, status) => {
                        let mut send = respond.send_response(head(200).body(()).unwrap(), false).unwrap();
                        send.send_data(Bytes::from_static(message), false).unwrap();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static(status));
                        send.send_trailers(trailers).unwrap();
                    }
                    Answer::Head(status, given) => {
                        let mut response = head(status);
                        if let Some((code, message)) = given {
                            response = response
                                .header("grpc-status", code)
                                .header("grpc-message", message);
                        }
                        respond.send_response(response.body(()).unwrap(), true).unwrap();
                    }
                    Answer::Nothing => std::future::pending().await,
                }
            });
        }
    });
    port
}

async fn probe(port: u16, within: Duration) -> ProbeOutcome {
    let action = Action::Grpc {
        host: "127.0.0.1".to_owned(),
        port,
        service: "a.b".to_owned(),
    };
    outcome(action, within).await
}

async fn check(answer: Answer, expected: ProbeOutcome) {
    assert_eq!(probe(serve(answer).await, SOON).await, expected);
}

#[tokio::test]
async fn health_is_what_the_service_says() {
    use Answer::{Head, Message};
    check(Message(b"\0\0\0\0\x02\x08\x01", "0"), Success).await;
    let unhealthy = |word: &str| failure(format!("service unhealthy (responded with \"{word}\")"));
    check(Message(b"\0\0\0\0\x02\x08\x02", "0"), unhealthy("NOT_SERVING")).await;
    check(Message(b"\0\0\0\0\0", "0"), unhealthy("UNKNOWN")).await;
    check(Message(b"\0\0\0\0\x02\x08\x07", "0"), unhealthy("7")).await;
    let rpc = |code: &str, why: &str| {
        failure(format!(
            "error: health rpc probe failed: rpc error: code = {code} desc = {why}"
        ))
    };
    check(
        Head(200, Some(("5", "unknown%20service"))),
        rpc("NotFound", "unknown service"),
    )
    .await;
    check(Head(200, Some(("99", "?"))), rpc("Code(99)", "?")).await;
    let garbled = rpc("Internal", "grpc: failed to unmarshal the received message");
    check(Message(b"\0\0\0\0\x03\x08\x01", "0"), garbled.clone()).await;
    check(Message(b"\x01\0\0\0\x02\x08\x01", "0"), garbled).await;
    let unimplemented = |why: &str| {
        let what = "this server does not implement the grpc health protocol (grpc.health.v1.Health)";
        failure(format!("error: {what}: {why}"))
    };
    check(
        Head(200, Some(("12", "no such method"))),
        unimplemented("no such method"),
    )
    .await;
    let not_found = "unexpected HTTP status code received from server: 404 (Not Found)";
    check(Head(404, None), unimplemented(not_found)).await;
}

#[tokio::test]
async fn a_service_that_cannot_be_asked_fails() {
    let port = closed();
    let dialing = "connection error: desc = \"transport: Error while dialing:";
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    let text = format!("error: failed to connect service at \"127.0.0.1:{port}\": {dialing} {refused}\"");
    assert_eq!(probe(port, SOON).await, failure(text));
    let port = serve(Answer::Nothing).await;
    let text = "timeout: health rpc did not complete within 1s";
    assert_eq!(probe(port, Duration::from_secs(1)).await, failure(text));
    // One that speaks HTTP/1.1.
    let port = super::super::tests::serve(|_, _| async {}).await;
    let ProbeOutcome::Failure(text) = probe(port, Duration::from_secs(1)).await else {
        panic!("not a failure")
    };
    assert!(text.starts_with("error: "), "{text}");
}

#[test]
fn durations_as_go_writes_them() {
    for (seconds, expected) in [(1, "1s"), (60, "1m0s"), (90, "1m30s"), (3661, "1h1m1s")] {
        assert_eq!(go_duration(Duration::from_secs(seconds)), expected);
    }
}

#[test]
fn messages_are_these_bytes() {
    assert_eq!(&encoded("")[..], b"\0\0\0\0\0");
    let long = "x".repeat(300);
    assert_eq!(&encoded(&long)[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
    let check = |bytes: &[u8], expected| assert_eq!(decoded(bytes), expected, "{bytes:?}");
    check(b"\0\0\0\0\x02\x08\x01", Some(1));
    // Fields that nobody knows yet are passed over.
    check(b"\0\0\0\0\x0a\x12\x01z\x1d....\x08\x01", Some(1));
    check(b"\0\0\0\0\x02\x0a\x09", None);
    check(b"\0\0\0\0\x01\x08", None);
    check(b"\0\0\0", None);
    check(&[&[0, 0, 0, 0, 12, 8][..], &[0xff; 11][..]].concat(), None);
}
