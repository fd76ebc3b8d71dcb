//! The client against a real Mosquitto and the embedded broker, over mutual TLS, with MQTT 5 and 3.1.1.
//!
//! Always holds: every wait has a bound; what a test expects to happen, happens, and a message that must not come is
//! waited for.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

mod support;

use std::time::{Duration, Instant};

use skiff_broker::Broker as _;
use skiff_transport::{Bytes, Client, Event, Protocol, ProtocolChoice, PublishError, Qos, Transport, Why};
use support::{Fleet, Mosquitto, connected, down, event, event_within, everywhere, message, publish, up};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn messages_pass_both_ways_and_are_acked_in_a_window() {
    everywhere(|fleet, url, protocol| async move {
        let (mut server, _) = connected(fleet.server(&url, protocol)).await;
        let (mut node, _) = connected(fleet.node(&url, protocol)).await;
        publish(&mut server, &down("spec"), Bytes::from_static(b"desired")).await;
        assert_eq!(
            message(&mut node, true).await,
            (down("spec"), Bytes::from_static(b"desired"))
        );

        // More than the window, as fast as it opens; each is acked once and in order.
        let total = 200u64;
        let (mut next, mut acked, mut full, mut arrived) = (0, Vec::new(), 0, Vec::new());
        while arrived.len() < total as usize || acked.len() < total as usize {
            while next < total {
                let payload = Bytes::from(next.to_be_bytes().to_vec());
                match node.try_publish(next, &up("status"), payload, Qos::AtLeastOnce) {
                    Ok(()) => next += 1,
                    Err(PublishError::Full(back)) => {
                        assert_eq!(back[..], next.to_be_bytes());
                        full += 1;
                        break;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            // Both arms are cancelled all the time: this is the claim of cancel safety at work.
            tokio::select! {
                told = event(&mut node) => match told {
                    Event::Acked { id } => acked.push(id),
                    other => panic!("{other:?}"),
                },
                (topic, payload) = message(&mut server, true) => {
                    assert_eq!(topic, up("status"));
                    arrived.push(u64::from_be_bytes(payload[..].try_into().unwrap()));
                }
            }
        }
        assert!(full > 0, "the window never filled");
        let all: Vec<u64> = (0..total).collect();
        assert_eq!((acked, arrived), (all.clone(), all));
        node.try_publish(7, &up("log"), Bytes::from_static(b"q0"), Qos::AtMostOnce)
            .unwrap();
        assert_eq!(
            event(&mut node).await,
            Event::Acked { id: 7 },
            "QoS 0 is acked when written"
        );
        assert_eq!(message(&mut server, true).await.1, "q0");
    })
    .await;
}

#[tokio::test]
async fn an_unacked_message_comes_again_and_an_old_ack_is_worthless() {
    everywhere(|fleet, url, protocol| async move {
        let (mut server, _) = connected(fleet.server(&url, protocol)).await;
        let (mut node, kept) = connected(fleet.node(&url, protocol)).await;
        assert!(!kept);
        publish(&mut server, &down("spec"), Bytes::from_static(b"once")).await;
        let stale = match event(&mut node).await {
            Event::Message { ack, .. } => ack,
            other => panic!("{other:?}"),
        };
        drop(node);
        assert_eq!(
            message(&mut server, true).await,
            (up("bye"), Bytes::from_static(b"gone")),
            "the last will"
        );
        publish(&mut server, &down("spec"), Bytes::from_static(b"while away")).await;

        let (mut node, kept) = connected(fleet.node(&url, protocol)).await;
        assert!(kept, "the session outlives the connection");
        assert_eq!(message(&mut node, true).await.1, "once");
        assert_eq!(message(&mut node, true).await.1, "while away");
        let mut other = Client::new(fleet.node(&url, protocol)).unwrap();
        assert!(!other.ack(stale), "not connected: nothing to ack");
    })
    .await;
}

#[tokio::test]
async fn a_polite_goodbye_is_not_a_last_will() {
    everywhere(|fleet, url, protocol| async move {
        let (mut server, _) = connected(fleet.server(&url, protocol)).await;
        let (mut node, _) = connected(fleet.node(&url, protocol)).await;
        node.disconnect().await;
        assert_eq!(
            event(&mut node).await,
            Event::Disconnected {
                why: Why::Requested,
                retry_in: None
            }
        );
        let silence = Duration::from_millis(500);
        assert!(
            tokio::time::timeout(silence, node.next()).await.is_err(),
            "it stays disconnected"
        );
        assert!(
            tokio::time::timeout(silence, server.next()).await.is_err(),
            "no last will"
        );
        assert!(matches!(
            node.try_publish(1, &up("status"), Bytes::new(), Qos::AtLeastOnce),
            Err(PublishError::Offline(_))
        ));
    })
    .await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_here_and_the_connection_stays() {
    everywhere(|fleet, url, protocol| async move {
        let (mut server, _) = connected(fleet.server(&url, protocol)).await;
        let (mut node, _) = connected(fleet.node(&url, protocol)).await;
        let large = Bytes::from(vec![1; 64 * 1024 + 1]);
        match node
            .try_publish(1, &up("status"), large.clone(), Qos::AtLeastOnce)
            .unwrap_err()
        {
            PublishError::TooLarge { payload, limit, .. } => {
                assert_eq!((payload, limit), (large, 64 * 1024));
            }
            other => panic!("{other}"),
        }
        for topic in ["", "a/+", "a/#", "a\0b", &"x".repeat(257)] {
            let refused = node.try_publish(1, topic, Bytes::new(), Qos::AtLeastOnce);
            assert!(matches!(refused, Err(PublishError::Topic { .. })), "{topic:?}");
        }
        let largest = Bytes::from(vec![2; 64 * 1024]);
        node.try_publish(2, &up("status"), largest.clone(), Qos::AtLeastOnce)
            .unwrap();
        assert_eq!(event(&mut node).await, Event::Acked { id: 2 });
        assert_eq!(message(&mut server, true).await, (up("status"), largest));
    })
    .await;
}

#[tokio::test]
async fn a_message_above_the_nodes_limit_does_not_poison_its_session() {
    everywhere(|fleet, url, protocol| async move {
        let mut options = fleet.server(&url, protocol);
        options.max_payload = 100 * 1024;
        let (mut server, _) = connected(options).await;
        let (mut node, _) = connected(fleet.node(&url, protocol)).await;
        let large = Bytes::from(vec![1; 90 * 1024]);
        publish(&mut server, &down("spec"), large).await;
        if protocol == ProtocolChoice::V311 {
            // MQTT 5 told the broker the limit, so it drops the message; 3.1.1 could not.
            match event(&mut node).await {
                Event::Disconnected {
                    why: Why::Oversize,
                    retry_in: Some(_),
                } => {}
                other => panic!("{other:?}"),
            }
            match event(&mut node).await {
                Event::Connected {
                    session_present: false,
                    ..
                } => {}
                other => panic!("{other:?}"),
            }
        }
        publish(&mut server, &down("spec"), Bytes::from_static(b"small")).await;
        assert_eq!(message(&mut node, true).await.1, "small");
    })
    .await;
}

#[tokio::test]
async fn a_killed_broker_is_found_again_and_subscribed_anew() {
    for protocol in [ProtocolChoice::V5, ProtocolChoice::V311] {
        let fleet = Fleet::new();
        let mut mosquitto = Mosquitto::start(&fleet);
        let url = mosquitto.url();
        let (mut server, _) = connected(fleet.server(&url, protocol)).await;
        let (mut node, _) = connected(fleet.node(&url, protocol)).await;
        // In flight when the broker dies: forgotten here, the outbox's to repeat.
        mosquitto.signal("-STOP");
        node.try_publish(5, &up("status"), Bytes::from_static(b"lost"), Qos::AtLeastOnce)
            .unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(200), node.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        mosquitto.kill();
        for client in [&mut server, &mut node] {
            let told = event(client).await;
            assert!(
                matches!(
                    told,
                    Event::Disconnected {
                        why: Why::Lost(_),
                        ..
                    }
                ),
                "{told:?}"
            );
        }
        mosquitto.restart();
        for client in [&mut server, &mut node] {
            loop {
                match event(client).await {
                    Event::Connected {
                        session_present: false,
                        ..
                    } => break,
                    Event::Disconnected {
                        why: Why::Unreachable(_),
                        ..
                    } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        publish(&mut server, &down("spec"), Bytes::from_static(b"again")).await;
        assert_eq!(message(&mut node, true).await.1, "again");
    }
}

#[tokio::test]
async fn a_stopped_broker_is_noticed_within_one_and_a_half_keepalives() {
    let fleet = Fleet::new();
    let mosquitto = Mosquitto::start(&fleet);
    let (mut v5, _) = connected(fleet.node(&mosquitto.url(), ProtocolChoice::V5)).await;
    let (mut v311, _) = connected(fleet.server(&mosquitto.url(), ProtocolChoice::V311)).await;
    mosquitto.signal("-STOP");
    let stopped = Instant::now();
    let watch = async |client: &mut Client| {
        let told = event_within(client, Duration::from_secs(20)).await;
        (told, stopped.elapsed())
    };
    let (first, second) = tokio::join!(watch(&mut v5), watch(&mut v311));
    mosquitto.signal("-CONT");
    for (told, after) in [first, second] {
        assert!(
            matches!(told, Event::Disconnected { why: Why::Silent, .. }),
            "{told:?}"
        );
        assert!(after < Duration::from_millis(7_700), "{after:?}");
    }
}

/// Passes bytes on until told to stop, and then keeps the connections open and reads nothing.
async fn relay(to: std::net::SocketAddr, open: tokio::sync::watch::Receiver<bool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let mut open = open.clone();
            held.push(tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = async { drop(open.wait_for(|open| !open).await) } => {}
                }
                std::future::pending::<()>().await;
            }));
        }
    });
    port
}

/// Resets the first `count` connections in the middle of their TLS handshake, and passes on those after.
async fn hiccups(to: std::net::SocketAddr, count: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut seen = 0;
        while let Ok((mut near, _)) = listener.accept().await {
            seen += 1;
            if seen <= count {
                // Closing with something unread resets the connection.
                near.readable().await.unwrap();
                drop(near);
                continue;
            }
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
            });
        }
    });
    port
}

#[tokio::test]
async fn a_network_that_breaks_before_connect_says_nothing_of_the_version() {
    let fleet = Fleet::new();
    let embedded = fleet.embedded().await;
    let port = hiccups(embedded.address(), 3).await;
    let mut options = fleet.node(&format!("mqtts://127.0.0.1:{port}"), ProtocolChoice::Auto);
    options.backoff_cap = Duration::from_secs(1);
    let mut node = Client::new(options).unwrap();
    for _ in 0..3 {
        let told = event(&mut node).await;
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
    let told = event(&mut node).await;
    assert!(
        matches!(
            told,
            Event::Connected {
                protocol: Protocol::V5,
                ..
            }
        ),
        "{told:?}"
    );
    embedded.shutdown().await;
}

#[tokio::test]
async fn a_black_hole_under_a_busy_writer_is_noticed_too() {
    for protocol in [ProtocolChoice::V5, ProtocolChoice::V311] {
        let fleet = Fleet::new();
        let embedded = fleet.embedded().await;
        let (shut, open) = tokio::sync::watch::channel(true);
        let port = relay(embedded.address(), open).await;
        let (mut node, _) = connected(fleet.node(&format!("mqtts://127.0.0.1:{port}"), protocol)).await;
        shut.send(false).unwrap();
        let begun = Instant::now();
        // QoS 0 has no window of acks, so this fills every buffer until a write stalls.
        let payload = Bytes::from(vec![0; 60 * 1024]);
        let mut id = 0;
        let told = loop {
            while node
                .try_publish(id, &up("log"), payload.clone(), Qos::AtMostOnce)
                .is_ok()
            {
                id += 1;
            }
            match event_within(&mut node, Duration::from_secs(20)).await {
                Event::Acked { .. } => {}
                other => break other,
            }
        };
        let after = begun.elapsed();
        assert!(
            matches!(
                told,
                Event::Disconnected {
                    why: Why::Stalled | Why::Silent,
                    ..
                }
            ),
            "{told:?}"
        );
        // The stall begins once the buffers are full, so up to a keepalive later.
        assert!(after < Duration::from_secs(13), "{after:?} for {protocol:?}");
    }
}

#[tokio::test]
async fn who_is_not_let_in_hears_why() {
    let fleet = Fleet::new();
    let stranger = Fleet::new();
    let embedded = fleet.embedded().await;
    let mosquitto = Mosquitto::start(&fleet);
    for url in [embedded.url().to_owned(), mosquitto.url()] {
        for protocol in [ProtocolChoice::V5, ProtocolChoice::V311] {
            let why = async |options| {
                let mut client = Client::new(options).unwrap();
                match event(&mut client).await {
                    Event::Disconnected {
                        why,
                        retry_in: Some(_),
                    } => why,
                    other => panic!("{other:?}"),
                }
            };
            // Another fleet's node does not trust this broker.
            let foreign = why(stranger.node(&url, protocol)).await;
            assert!(
                matches!(&foreign, Why::Tls(text) if text.contains("invalid peer certificate")),
                "{foreign:?}"
            );
            // Our certificate and a wrong password. Mosquitto, set up as here, goes by the certificate alone.
            let mut options = stranger.node(&url, protocol);
            options.tls = fleet.node(&url, protocol).tls;
            let mut wrong_password = options;
            wrong_password.credentials = Some((support::NODE.to_owned(), "wrong".to_owned()));
            if url == embedded.url() {
                let refused = why(wrong_password).await;
                assert!(matches!(refused, Why::Refused(_)), "{refused:?}");
            }
            // No certificate: the broker's alert comes back.
            let roots = fleet.authority.ca_certificate();
            let clock = skiff_transport::tls::Clock::system();
            let mut nobody = fleet.node(&url, protocol);
            nobody.tls = Some(skiff_transport::tls::client_config(roots, None, &clock).unwrap());
            let refused = why(nobody).await;
            assert!(matches!(refused, Why::Tls(_) | Why::HungUp(_)), "{refused:?}");
        }
    }
    // Subscribing to what is not ours.
    let mut options = fleet.node(embedded.url(), ProtocolChoice::V5);
    options.subscriptions = vec!["skiff/d/other/#".to_owned()];
    let told = event(&mut Client::new(options).unwrap()).await;
    let Event::Disconnected {
        why: Why::SubscriptionRefused(filter),
        ..
    } = told
    else {
        panic!("{told:?}")
    };
    assert_eq!(filter, "skiff/d/other/#");
}

#[tokio::test]
async fn a_refused_publish_is_told_and_the_window_moves_on() {
    let fleet = Fleet::new();
    let embedded = fleet.embedded().await;
    let mosquitto = Mosquitto::start(&fleet);
    for url in [embedded.url().to_owned(), mosquitto.url()] {
        let (mut node, _) = connected(fleet.node(&url, ProtocolChoice::V5)).await;
        for id in 0..40 {
            node.try_publish(id, &down("spec"), Bytes::new(), Qos::AtLeastOnce)
                .unwrap();
            let told = event(&mut node).await;
            assert!(
                matches!(
                    &told,
                    Event::Refused { id: i, reason, passing: false } if *i == id && reason == "NotAuthorized"
                ),
                "{told:?}"
            );
        }
        node.try_publish(99, &up("hello"), Bytes::new(), Qos::AtLeastOnce)
            .unwrap();
        assert_eq!(event(&mut node).await, Event::Acked { id: 99 });
    }
    assert_eq!(embedded.counters().publish_denied, 40);
}

#[tokio::test]
async fn a_second_client_with_the_same_name_takes_over() {
    everywhere(|fleet, url, protocol| async move {
        let (mut first, _) = connected(fleet.node(&url, protocol)).await;
        let (_second, kept) = connected(fleet.node(&url, protocol)).await;
        assert!(kept);
        let told = event(&mut first).await;
        // Mosquitto does not always say why.
        let expected = matches!(
            told,
            Event::Disconnected {
                why: Why::TakenOver | Why::Lost(_) | Why::Kicked(_),
                ..
            }
        );
        assert!(expected, "{told:?}");
    })
    .await;
}
