//! GETs against real servers, and what they say of them.

use std::sync::Arc;
use std::time::Duration;

use skiff_core::ProbeOutcome::{self, Success, Unknown};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::tests::{closed, failure, outcome, say, serve};
use super::super::{Action, PROBE_AGENT};
use super::*;

const SOON: Duration = Duration::from_secs(20);

fn to(port: u16, path: &str) -> Get {
    Get {
        https: false,
        host: "127.0.0.1".to_owned(),
        port,
        path: path.to_owned(),
        headers: Vec::new(),
        agent: PROBE_AGENT,
    }
}

async fn probe(get: Get) -> ProbeOutcome {
    outcome(Action::Http(get), SOON).await
}

/// `PORT` in what is expected stands for the server's.
async fn check(answer: &'static str, expected: ProbeOutcome) {
    let port = say(answer).await;
    let expected = match expected {
        ProbeOutcome::Failure(text) => failure(text.replace("PORT", &port.to_string())),
        other => other,
    };
    assert_eq!(probe(to(port, "/health?x=1#y")).await, expected, "{answer:?}");
}

#[tokio::test]
async fn answers_are_judged_by_their_status() {
    check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Success).await;
    check("HTTP/1.0 200 OK\r\n\r\nto the end", Success).await;
    check("HTTP/1.1 204 No Content\r\n\r\n", Success).await;
    check("HTTP/1.1 399 Odd\r\nContent-Length: 0\r\n\r\n", Success).await;
    check(
        "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        Success,
    )
    .await;
    check("HTTP/1.1 200\nContent-Length: 0\n\n", Success).await;
    let statuscode = |code| failure(format!("HTTP probe failed with statuscode: {code}"));
    check(
        "HTTP/1.1 400 Bad\r\nContent-Length: 3\r\n\r\nbad",
        statuscode(400),
    )
    .await;
    check("HTTP/1.1 500 Internal Server Error\r\n\r\nboom", statuscode(500)).await;
    check("HTTP/1.1 199 Odd\r\n\r\n", {
        failure("Get \"http://127.0.0.1:PORT/health?x=1\": EOF")
    })
    .await;
}

#[tokio::test]
async fn bodies_are_taken_as_they_are_framed() {
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
        Success,
    )
    .await;
    let unknown = |text: &str| Unknown(text.to_owned());
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        unknown("unexpected EOF"),
    )
    .await;
    let chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    check(chunk, unknown("invalid byte in chunk length")).await;
}

#[tokio::test]
async fn what_is_not_http_is_told() {
    let get = "Get \"http://127.0.0.1:PORT/health?x=1\"";
    let broken = format!("{get}: net/http: HTTP/1.x transport connection broken: ");
    check("", failure(format!("{get}: EOF"))).await;
    check(
        "hello\n",
        failure(format!("{broken}malformed HTTP response \"hello\"")),
    )
    .await;
    check(
        "SSH-2.0-x y\r\n",
        failure(format!("{broken}malformed HTTP response \"SSH-2.0-x y\"")),
    )
    .await;
    check(
        "HTTP/1.1 okay\r\n\r\n",
        failure(format!("{broken}malformed HTTP status code \"okay\"")),
    )
    .await;
    check("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", {
        failure(format!("{broken}malformed MIME header line: no colon"))
    })
    .await;
    let port = serve(|mut stream, _| async move {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
        let _ = stream.write_all(long.as_bytes()).await;
    })
    .await;
    let text = "net/http: server response headers exceeded 16384 bytes; aborted";
    let text = format!("Get \"http://127.0.0.1:{port}/\": {text}");
    assert_eq!(probe(to(port, "/")).await, failure(text));
    let port = closed();
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    let text = format!("Get \"http://127.0.0.1:{port}/\": {refused}");
    assert_eq!(probe(to(port, "/")).await, failure(text));
}

#[tokio::test]
async fn a_body_without_end_is_not_waited_for() {
    for framing in [
        "X: y",
        "Transfer-Encoding: chunked",
        "Content-Length: 99999999999",
    ] {
        let port = serve(move |mut stream, _| async move {
            let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let piece = format!("400\r\n{}\r\n", "x".repeat(1024));
            while stream.write_all(piece.as_bytes()).await.is_ok() {}
        })
        .await;
        assert_eq!(probe(to(port, "/")).await, Success, "{framing}");
    }
}

#[tokio::test]
async fn a_slow_server_has_until_the_timeout() {
    let within = Duration::from_millis(300);
    let port = serve(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    let text = format!("Get \"http://127.0.0.1:{port}/\": {late}");
    let began = Instant::now();
    assert_eq!(outcome(Action::Http(to(port, "/")), within).await, failure(text));
    assert!(began.elapsed() >= within && began.elapsed() < SOON / 2);
    // With the head alone nothing is known yet.
    let port = serve(|mut stream, _| async move {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        stream.write_all(head).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let late = "context deadline exceeded (Client.Timeout or context cancellation while reading body)";
    let tried = outcome(Action::Http(to(port, "/")), within).await;
    assert_eq!(tried, Unknown(late.to_owned()));
}

#[tokio::test]
async fn the_server_sees_these_heads() {
    let (heads, mut seen) = mpsc::channel(1);
    let port = serve(move |mut stream, head| {
        let heads = heads.clone();
        async move {
            heads.send(head).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 OK\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let mut check = async |path: &str, headers: &[(&str, &str)], expected: &str| {
        let mut get = to(port, path);
        let owned = |it: &(&str, &str)| (it.0.to_owned(), it.1.to_owned());
        get.headers = headers.iter().map(owned).collect();
        assert_eq!(probe(get).await, Success);
        let seen = seen.recv().await.unwrap();
        let lines: Vec<&str> = seen.trim_end().split("\r\n").collect();
        let shown = lines.join("|").replace(&port.to_string(), "PORT");
        assert_eq!(shown.replace(env!("CARGO_PKG_VERSION"), "V"), expected);
    };
    let usual = "Host: 127.0.0.1:PORT|User-Agent: kube-probe/V|Accept: */*|Connection: close";
    check("/", &[], &format!("GET / HTTP/1.1|{usual}")).await;
    check("/a?b=c#d", &[], &format!("GET /a?b=c HTTP/1.1|{usual}")).await;
    check("/\u{fc}", &[], &format!("GET /%C3%BC HTTP/1.1|{usual}")).await;
    check(
        "/",
        &[
            ("host", "web.example"),
            ("USER-AGENT", "me"),
            ("accept", ""),
            ("X-A", "1"),
            ("X-A", "2"),
        ],
        "GET / HTTP/1.1|Host: web.example|USER-AGENT: me|X-A: 1|X-A: 2|Connection: close",
    )
    .await;
    check(
        "/",
        &[("Content-Length", "5"), ("Accept", "text/html")],
        "GET / HTTP/1.1|Host: 127.0.0.1:PORT|User-Agent: kube-probe/V|Accept: text/html|Connection: close",
    )
    .await;
}

#[tokio::test]
async fn redirects_stay_with_the_host() {
    let port = serve(|mut stream, head| async move {
        let path = head.split(' ').nth(1).unwrap();
        let to = |where_to: &str| {
            format!("HTTP/1.1 302 Found\r\nLocation: {where_to}\r\nContent-Length: 0\r\n\r\n")
        };
        let answer = match path {
            "/to-well" => to("/well"),
            "/a/to-sibling" => to("well?x"),
            "/to-elsewhere" => to("http://elsewhere.invalid/"),
            "/to-ftp" => to("ftp://127.0.0.1/"),
            "/to-ill" => to("/ill"),
            "/for-ever" => to("/for-ever"),
            "/nowhere" => "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "/well" | "/a/well?x" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
            _ => "HTTP/1.1 503 Ill\r\nContent-Length: 0\r\n\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    for path in [
        "/to-well",
        "/a/to-sibling",
        "/to-elsewhere",
        "/to-ftp",
        "/nowhere",
    ] {
        assert_eq!(probe(to(port, path)).await, Success, "{path}");
    }
    let ill = failure("HTTP probe failed with statuscode: 503");
    assert_eq!(probe(to(port, "/to-ill")).await, ill);
    let text = format!("Get \"http://127.0.0.1:{port}/for-ever\": stopped after 10 redirects");
    assert_eq!(probe(to(port, "/for-ever")).await, failure(text));
}

#[test]
fn where_a_location_leads() {
    let from = Url::of(&to(8080, "/a/b?c"));
    let check = |location: &str, expected: Option<&str>| {
        let got = from
            .join(location)
            .map(|it| format!("{} {} {}", it.text(), it.host, it.port));
        assert_eq!(got.as_deref(), expected, "{location}");
    };
    check("/x", Some("http://127.0.0.1:8080/x 127.0.0.1 8080"));
    check("x", Some("http://127.0.0.1:8080/a/x 127.0.0.1 8080"));
    check("?x", Some("http://127.0.0.1:8080/a/b?x 127.0.0.1 8080"));
    check(
        "/x?to=http://y/",
        Some("http://127.0.0.1:8080/x?to=http://y/ 127.0.0.1 8080"),
    );
    check("https://h", Some("https://h/ h 443"));
    check("//u@h:9?q", Some("http://h:9/?q h 9"));
    check("HTTP://[::1]:9/x", Some("http://[::1]:9/x ::1 9"));
    check("http://[::1]/x", Some("http://[::1]/x ::1 80"));
    check("ftp://h/", None);
    check("http://h:port/", None);
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let made = rcgen::generate_simple_self_signed(vec!["elsewhere.example".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.clone_key())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = [0; 5];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"GET /");
            stream
                .write_all(b"HTTP/1.1 418 Tea\r\n\r\nclosed without notice")
                .await
                .unwrap();
            stream.flush().await.unwrap();
        });
        let get = Get {
            https: true,
            ..to(port, "/")
        };
        let status = failure("HTTP probe failed with statuscode: 418");
        assert_eq!(probe(get).await, status, "{version:?}");
    }
    let plain = say_at_once("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let over_plain = Get {
        https: true,
        ..to(plain, "/")
    };
    let text = "tls: first record does not look like a TLS handshake";
    let text = format!("Get \"https://127.0.0.1:{plain}/\": {text}");
    assert_eq!(probe(over_plain).await, failure(text));
}

/// A server that speaks first.
async fn say_at_once(text: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    });
    port
}
