//! MQTT 5 over the library: its options, its events as [`Packet`]s, its errors as [`Why`]s.
//!
//! Always holds: no topic aliases, no QoS 2, manual acks, and a window that the library allocates for once.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as packet;
use rumqttc::v5::mqttbytes::{Error as CodecError, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{NetworkOptions, Outgoing, TlsConfiguration, Transport};

use crate::api::Why;
use crate::driver::{Granted, Packet, Refusal, Submit, Wire};
use crate::options::{Options, Qos};

pub(crate) fn open(options: &Options, clean: bool, channel: usize) -> (Sender, Receiver) {
    let mut mqtt = MqttOptions::new(&options.client_id, options.url.host(), options.url.port());
    mqtt.set_keep_alive(options.keepalive);
    mqtt.set_clean_start(clean);
    mqtt.set_manual_acks(true);
    mqtt.set_connection_timeout(options.connect_timeout.as_secs().max(1));
    // One more than the client's own window, or a full window would hold back acks too.
    mqtt.set_outgoing_inflight_upper_limit(options.inflight + 1);
    let mut properties = packet::ConnectProperties::new();
    properties.session_expiry_interval = u32::try_from(options.session_expiry.as_secs()).ok();
    properties.receive_maximum = Some(options.inflight);
    properties.max_packet_size = u32::try_from(options.max_packet()).ok();
    mqtt.set_connect_properties(properties);
    if let Some((user, password)) = &options.credentials {
        mqtt.set_credentials(user, password);
    }
    if let Some(will) = &options.last_will {
        let will = packet::LastWill::new(&will.topic, will.payload.to_vec(), QoS::AtLeastOnce, false, None);
        mqtt.set_last_will(will);
    }
    if let Some(tls) = options.tls.as_ref().filter(|_| options.url.is_tls()) {
        mqtt.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
    }
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    mqtt.set_network_options(network);
    let (client, event_loop) = AsyncClient::new(mqtt, channel);
    (
        Sender(client),
        Receiver {
            event_loop,
            connected: false,
            keepalive: options.keepalive,
        },
    )
}

pub(crate) struct Sender(AsyncClient);

impl Submit for Sender {
    fn publish(&self, topic: &str, payload: Bytes, qos: Qos) -> bool {
        let qos = match qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
        };
        self.0.try_publish(topic, qos, false, payload).is_ok()
    }

    fn subscribe(&self, filters: &[String]) -> bool {
        let filters = filters
            .iter()
            .map(|filter| packet::Filter::new(filter, QoS::AtLeastOnce));
        self.0.try_subscribe_many(filters).is_ok()
    }

    fn ack(&self, pkid: u16) -> bool {
        let mut publish = packet::Publish::new("", QoS::AtLeastOnce, Bytes::new(), None);
        publish.pkid = pkid;
        self.0.try_ack(&publish).is_ok()
    }

    fn disconnect(&self) -> bool {
        self.0.try_disconnect().is_ok()
    }
}

pub(crate) struct Receiver {
    event_loop: EventLoop,
    connected: bool,
    keepalive: Duration,
}

impl Wire for Receiver {
    async fn poll(&mut self) -> Result<Packet, Why> {
        match self.event_loop.poll().await {
            Ok(Event::Incoming(incoming)) => self.incoming(incoming),
            Ok(Event::Outgoing(outgoing)) => Ok(sent(&outgoing)),
            Err(error) => Err(why(error, self.connected)),
        }
    }
}

impl Receiver {
    fn incoming(&mut self, incoming: packet::Packet) -> Result<Packet, Why> {
        match incoming {
            packet::Packet::ConnAck(ack) => {
                self.connected = true;
                let granted = granted(&ack);
                if granted.keepalive.is_some_and(|it| it.is_zero()) {
                    // "No keepalive" leaves us free to ping (MQTT 5, 3.1.2.10), and without pings a dead connection
                    // is never noticed. The library would take it for "ping all the time".
                    self.event_loop.options.set_keep_alive(self.keepalive);
                }
                Ok(Packet::Connected(granted))
            }
            packet::Packet::Publish(publish) if publish.qos == QoS::ExactlyOnce => {
                Err(Why::Protocol("the broker sent a message at QoS 2".to_owned()))
            }
            packet::Packet::Publish(publish) => Ok(Packet::Message {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload,
                pkid: publish.pkid,
            }),
            packet::Packet::SubAck(ack) => {
                let good = |code: &packet::SubscribeReasonCode| {
                    matches!(
                        code,
                        packet::SubscribeReasonCode::Success(QoS::AtLeastOnce | QoS::AtMostOnce)
                    )
                };
                Ok(Packet::Subscribed {
                    refused: ack.return_codes.iter().position(|code| !good(code)),
                })
            }
            packet::Packet::PubAck(ack) => Ok(Packet::Acked {
                pkid: ack.pkid,
                refused: refusal(ack.reason),
            }),
            _ => Ok(Packet::Heard),
        }
    }
}

/// What PUBACK says against a publish (MQTT 5, 3.4.2.1).
fn refusal(reason: packet::PubAckReason) -> Option<Refusal> {
    use packet::PubAckReason as Reason;
    let passing = match reason {
        Reason::Success | Reason::NoMatchingSubscribers => return None,
        Reason::QuotaExceeded
        | Reason::UnspecifiedError
        | Reason::ImplementationSpecificError
        | Reason::PacketIdentifierInUse => true,
        Reason::NotAuthorized | Reason::TopicNameInvalid | Reason::PayloadFormatInvalid => false,
    };
    Some(Refusal {
        reason: format!("{reason:?}"),
        passing,
    })
}

fn granted(ack: &packet::ConnAck) -> Granted {
    let properties = ack.properties.as_ref();
    Granted {
        session_present: ack.session_present,
        keepalive: properties
            .and_then(|p| p.server_keep_alive)
            .map(|s| Duration::from_secs(s.into())),
        receive_maximum: properties.and_then(|p| p.receive_max),
        max_packet: properties
            .and_then(|p| p.max_packet_size)
            .and_then(|n| usize::try_from(n).ok()),
        at_most_qos0: properties.and_then(|p| p.max_qos) == Some(0),
    }
}

/// What the library wrote. Shared with 3.1.1, whose events are the same type.
pub(crate) fn sent(outgoing: &Outgoing) -> Packet {
    match outgoing {
        Outgoing::Publish(pkid) => Packet::Sent { pkid: *pkid },
        Outgoing::PingReq => Packet::Pinged,
        Outgoing::Disconnect => Packet::Disconnecting,
        _ => Packet::Wrote,
    }
}

fn why(error: ConnectionError, connected: bool) -> Why {
    use packet::ConnectReturnCode as Code;
    match error {
        ConnectionError::ConnectionRefused(
            Code::UnsupportedProtocolVersion | Code::RefusedProtocolVersion,
        ) => Why::ProtocolVersion,
        ConnectionError::ConnectionRefused(code) => Why::Refused(format!("{code:?}")),
        ConnectionError::Timeout(_) => Why::NoAnswer,
        ConnectionError::Io(e) => Why::Unreachable(e.to_string()),
        ConnectionError::Tls(e) => Why::tls(&e),
        ConnectionError::MqttState(state) => match state {
            StateError::AwaitPingResp => Why::Silent,
            StateError::ConnectionAborted => Why::hung_up(connected),
            StateError::ServerDisconnect {
                reason_code: packet::DisconnectReasonCode::SessionTakenOver,
                ..
            } => Why::TakenOver,
            StateError::ServerDisconnect {
                reason_code,
                reason_string,
            } => Why::Kicked(
                format!("{reason_code:?} {}", reason_string.unwrap_or_default())
                    .trim_end()
                    .to_owned(),
            ),
            StateError::Io(e) | StateError::Deserialization(CodecError::Io(e)) => Why::broken(&e, connected),
            StateError::Deserialization(CodecError::PayloadSizeLimitExceeded { .. })
            | StateError::IncomingPacketTooLarge { .. } => Why::Oversize,
            other => Why::Protocol(other.to_string()),
        },
        other => Why::Protocol(other.to_string()),
    }
}
