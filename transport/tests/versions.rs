//! Falling back from MQTT 5 to 3.1.1, against the three ways in which brokers refuse a version.
//!
//! Always holds: the broker here is a few bytes over plain TCP, since no installed broker refuses MQTT 5.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::time::Duration;

use skiff_transport::{
    BrokerUrl, Bytes, Client, Event, Options, Protocol, ProtocolChoice, Qos, Transport, Why,
};
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
    // One hang-up may be chance, and an answer in the old format that is too short for the new one looks like one.
    for (refusal, attempts) in [
        (Refusal::OldFormat, 2),
        (Refusal::NewFormat, 1),
        (Refusal::HangUp, 2),
    ] {
        let mut client = client(broker(refusal).await, ProtocolChoice::Auto);
        for _ in 0..attempts {
            let told = event(&mut client).await;
            assert!(
                matches!(told, Event::Disconnected { .. }),
                "{refusal:?}: {told:?}"
            );
        }
        let told = event(&mut client).await;
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

async fn event(client: &mut Client) -> Event {
    tokio::time::timeout(Duration::from_secs(5), client.next())
        .await
        .expect("an event in time")
}

/// The version of the next connection that comes to be; attempts that fail before it are passed over.
async fn connected(client: &mut Client) -> Protocol {
    for _ in 0..10 {
        if let Event::Connected { protocol, .. } = event(client).await {
            return protocol;
        }
    }
    panic!("never connected")
}

/// What a broker says to each packet of a connection, by the connection's number from 0; `None` hangs up.
type Answer = fn(usize, &[u8]) -> Option<Vec<u8>>;

/// A broker that answers as told.
async fn scripted(answer: Answer) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = [0; 512];
                while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                    let Some(answer) = answer(number, &bytes[..read]) else {
                        return;
                    };
                    stream.write_all(&answer).await.ok();
                }
            });
            number += 1;
        }
    });
    port
}

const CONNECT: u8 = 0x10;
const PUBLISH: u8 = 0x32;
const SUBSCRIBE: u8 = 0x82;
const PINGREQ: u8 = 0xc0;

/// What a broker that speaks both versions says to CONNECT, SUBSCRIBE and PINGREQ.
fn willing(packet: &[u8], v5: bool) -> Vec<u8> {
    match (packet[0], v5) {
        (CONNECT, true) => vec![0x20, 3, 0, 0, 0],
        (CONNECT, false) => vec![0x20, 2, 0, 0],
        (SUBSCRIBE, true) => vec![0x90, 4, packet[2], packet[3], 0, 1],
        (SUBSCRIBE, false) => vec![0x90, 3, packet[2], packet[3], 1],
        (PINGREQ, _) => vec![0xd0, 0],
        _ => Vec::new(),
    }
}

/// The level in CONNECT: behind the fixed header (2) and the protocol's name (6).
fn is_v5(connect: &[u8]) -> bool {
    connect[8] == 5
}

#[tokio::test]
async fn one_hang_up_does_not_cost_the_newer_version() {
    let port = scripted(|number, packet| (number > 0).then(|| willing(packet, true))).await;
    let mut client = client(port, ProtocolChoice::Auto);
    assert_eq!(connected(&mut client).await, Protocol::V5);
}

#[tokio::test]
async fn the_newer_version_is_tried_again_once_an_older_connection_has_ended() {
    // Connections 0 and 1 meet a broker that is just starting; 2 speaks 3.1.1 and is cut off by a PUBLISH.
    let port = scripted(|number, packet| match number {
        0 | 1 => None,
        2 if packet[0] == PUBLISH => None,
        2 => Some(willing(packet, false)),
        _ if packet[0] == CONNECT && !is_v5(packet) => None,
        _ => Some(willing(packet, true)),
    })
    .await;
    let mut client = client(port, ProtocolChoice::Auto);
    assert_eq!(connected(&mut client).await, Protocol::V311);
    client
        .try_publish(1, "a", Bytes::new(), Qos::AtLeastOnce)
        .unwrap();
    assert_eq!(connected(&mut client).await, Protocol::V5);
}

#[tokio::test]
async fn a_broker_of_the_older_version_alone_is_served_after_each_reconnect() {
    let port = scripted(|_, packet| match packet[0] {
        CONNECT if is_v5(packet) => None,
        PUBLISH => None,
        _ => Some(willing(packet, false)),
    })
    .await;
    let mut client = client(port, ProtocolChoice::Auto);
    for id in 0..3 {
        assert_eq!(connected(&mut client).await, Protocol::V311);
        client
            .try_publish(id, "a", Bytes::new(), Qos::AtLeastOnce)
            .unwrap();
    }
}

#[tokio::test]
async fn a_server_keepalive_of_zero_is_no_order_to_ping_all_the_time() {
    static PINGS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let port = scripted(|_, packet| {
        Some(match packet[0] {
            // Property 0x13 is Server Keep Alive.
            CONNECT => vec![0x20, 6, 0, 0, 3, 0x13, 0, 0],
            PINGREQ => {
                PINGS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                willing(packet, true)
            }
            _ => willing(packet, true),
        })
    })
    .await;
    let mut client = client(port, ProtocolChoice::V5);
    assert_eq!(connected(&mut client).await, Protocol::V5);
    let quiet = tokio::time::timeout(Duration::from_secs(2), client.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // The first one is due before the library can be told.
    let pings = PINGS.load(std::sync::atomic::Ordering::Relaxed);
    assert!(pings <= 1, "{pings} pings in 2 s");
}

#[tokio::test]
async fn a_session_that_shall_begin_clean_does_so_even_after_an_attempt_in_vain() {
    static CLEAN: std::sync::Mutex<Vec<bool>> = std::sync::Mutex::new(Vec::new());
    let port = scripted(|number, packet| {
        if packet[0] == CONNECT {
            // The flags stand behind the level.
            CLEAN.lock().unwrap().push(packet[9] & 2 != 0);
        }
        match (number, packet[0]) {
            // The head of a PUBLISH of 2 MiB.
            (0, SUBSCRIBE) => Some([willing(packet, false), vec![0x30, 0xff, 0xff, 0x7f]].concat()),
            (1, _) => None,
            _ => Some(willing(packet, false)),
        }
    })
    .await;
    let mut client = client(port, ProtocolChoice::V311);
    connected(&mut client).await;
    assert_eq!(*CLEAN.lock().unwrap(), [false, true, true]);
}

#[tokio::test]
async fn a_refusal_that_may_pass_is_told_from_one_that_does_not() {
    for (reason, expected) in [
        (0x97u8, true),
        (0x80, true),
        (0x83, true),
        (0x87, false),
        (0x90, false),
    ] {
        // The topic says which reason the broker shall have.
        let port = scripted(|_, packet| {
            Some(match packet[0] {
                // Behind the topic (2 + 2) of two hexadecimal digits stands the packet id.
                PUBLISH => {
                    let topic = std::str::from_utf8(&packet[4..6]).unwrap();
                    let reason = u8::from_str_radix(topic, 16).unwrap();
                    vec![0x40, 4, packet[6], packet[7], reason, 0]
                }
                _ => willing(packet, true),
            })
        })
        .await;
        let mut client = client(port, ProtocolChoice::V5);
        connected(&mut client).await;
        let topic = format!("{reason:02x}");
        client
            .try_publish(7, &topic, Bytes::new(), Qos::AtLeastOnce)
            .unwrap();
        let told = event(&mut client).await;
        assert!(
            matches!(told, Event::Refused { id: 7, passing, .. } if passing == expected),
            "{reason:#x}: {told:?}"
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
