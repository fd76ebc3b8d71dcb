//! Falling back from MQTT 5 to 3.1.1, against the three ways in which brokers refuse a version.
//!
//! Always holds: the broker here is a few bytes over plain TCP, since no installed broker refuses MQTT 5.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::time::Duration;

use skiff_transport::{BrokerUrl, Client, Event, Options, Protocol, ProtocolChoice, Transport, Why};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// NATS: a CONNACK of 3.1.1, code 1.
    OldFormat,
    /// A CONNACK of MQTT 5, reason 0x84.
    NewFormat,
    /// No word.
    HangUp,
}

/// Answers CONNECT: refuses version 5, accepts version 4 and its SUBSCRIBE.
async fn broker(refusal: Refusal) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 512];
            let read = stream.read(&mut bytes).await.unwrap_or(0);
            // Fixed header 2, protocol name 6, level.
            if read > 8 && bytes[8] == 4 {
                stream.write_all(&[0x20, 2, 0, 0]).await.unwrap();
                let _subscribe = stream.read(&mut bytes).await.unwrap();
                stream.write_all(&[0x90, 3, bytes[2], bytes[3], 1]).await.unwrap();
                while stream.read(&mut bytes).await.unwrap_or(0) > 0 {}
                continue;
            }
            let answer: &[u8] = match refusal {
                Refusal::OldFormat => &[0x20, 2, 0, 1],
                Refusal::NewFormat => &[0x20, 3, 0, 0x84, 0],
                Refusal::HangUp => &[],
            };
            stream.write_all(answer).await.unwrap();
        }
    });
    port
}

fn client(port: u16, protocol: ProtocolChoice) -> Client {
    let url = BrokerUrl::parse(&format!("mqtt://127.0.0.1:{port}"), true).unwrap();
    let mut options = Options::new(url, "node-1", Box::new(|| 50_000));
    options.protocol = protocol;
    options.subscriptions = vec!["skiff/d/node-1/#".to_owned()];
    options.backoff_base = Duration::from_millis(100);
    Client::new(options).unwrap()
}

#[tokio::test]
async fn auto_ends_at_the_version_that_the_broker_speaks() {
    for refusal in [Refusal::OldFormat, Refusal::NewFormat, Refusal::HangUp] {
        let mut client = client(broker(refusal).await, ProtocolChoice::Auto);
        let told = tokio::time::timeout(Duration::from_secs(5), client.next())
            .await
            .unwrap();
        assert!(
            matches!(told, Event::Disconnected { .. }),
            "{refusal:?}: {told:?}"
        );
        let told = tokio::time::timeout(Duration::from_secs(5), client.next())
            .await
            .unwrap();
        assert!(
            matches!(
                told,
                Event::Connected {
                    protocol: Protocol::V311,
                    ..
                }
            ),
            "{refusal:?}: {told:?}"
        );
    }
}

#[tokio::test]
async fn a_fixed_version_stays_and_says_why() {
    let mut client = client(broker(Refusal::NewFormat).await, ProtocolChoice::V5);
    for _ in 0..3 {
        let told = tokio::time::timeout(Duration::from_secs(5), client.next())
            .await
            .unwrap();
        assert!(
            matches!(
                told,
                Event::Disconnected {
                    why: Why::ProtocolVersion,
                    ..
                }
            ),
            "{told:?}"
        );
    }
}

#[tokio::test]
async fn a_broker_that_says_nothing_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://127.0.0.1:{}", listener.local_addr().unwrap().port());
    for protocol in [ProtocolChoice::V5, ProtocolChoice::V311] {
        let mut options = Options::new(BrokerUrl::parse(&url, true).unwrap(), "node-1", Box::new(|| 0));
        options.protocol = protocol;
        options.connect_timeout = Duration::from_millis(500);
        let mut client = Client::new(options).unwrap();
        let told = tokio::time::timeout(Duration::from_secs(2), client.next())
            .await
            .unwrap();
        assert!(
            matches!(
                told,
                Event::Disconnected {
                    why: Why::NoAnswer,
                    ..
                }
            ),
            "{told:?}"
        );
    }
}

#[tokio::test]
async fn wake_cuts_the_wait() {
    let url = BrokerUrl::parse("mqtt://127.0.0.1:1", true).unwrap();
    let mut options = Options::new(url, "node-1", Box::new(|| 299_000_000));
    options.backoff_base = Duration::from_secs(300);
    let mut client = Client::new(options).unwrap();
    let told = client.next().await;
    let Event::Disconnected {
        why: Why::Unreachable(_),
        retry_in: Some(wait),
    } = told
    else {
        panic!("{told:?}")
    };
    assert!(wait > Duration::from_secs(200), "{wait:?}");
    client.wake();
    let told = tokio::time::timeout(Duration::from_secs(2), client.next())
        .await
        .expect("an attempt at once");
    assert!(
        matches!(
            told,
            Event::Disconnected {
                why: Why::Unreachable(_),
                ..
            }
        ),
        "{told:?}"
    );
}
