//! MQTT 3.1.1 over the library: its options, its events as [`Packet`]s, its errors as [`Why`]s.
//!
//! Always holds: as in the MQTT 5 half. What 3.1.1 cannot say (limits, reasons) is left at the client's own bounds.

use bytes::Bytes;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions, NetworkOptions,
    QoS, StateError, SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport, mqttbytes,
};

use crate::api::Why;
use crate::driver::{Granted, Packet, Submit, Wire};
use crate::options::{Options, Qos};
use crate::v5::sent;

pub(crate) fn open(options: &Options, clean: bool, channel: usize) -> (Sender, Receiver) {
    let mut mqtt = MqttOptions::new(&options.client_id, options.url.host(), options.url.port());
    mqtt.set_keep_alive(options.keepalive);
    mqtt.set_clean_session(clean);
    mqtt.set_manual_acks(true);
    mqtt.set_max_packet_size(options.max_packet(), options.max_packet());
    // One more than the client's own window, or a full window would hold back acks too.
    mqtt.set_inflight(options.inflight + 1);
    if let Some((user, password)) = &options.credentials {
        mqtt.set_credentials(user, password);
    }
    if let Some(will) = &options.last_will {
        mqtt.set_last_will(LastWill::new(
            &will.topic,
            will.payload.to_vec(),
            QoS::AtLeastOnce,
            false,
        ));
    }
    if let Some(tls) = options.tls.as_ref().filter(|_| options.url.is_tls()) {
        mqtt.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls.clone())));
    }
    let (client, mut event_loop) = AsyncClient::new(mqtt, channel);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(options.connect_timeout.as_secs().max(1));
    event_loop.set_network_options(network);
    (
        Sender(client),
        Receiver {
            event_loop,
            connected: false,
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
            .map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
        self.0.try_subscribe_many(filters).is_ok()
    }

    fn ack(&self, pkid: u16) -> bool {
        let mut publish = rumqttc::Publish::new("", QoS::AtLeastOnce, Vec::new());
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
    fn incoming(&mut self, incoming: rumqttc::Packet) -> Result<Packet, Why> {
        match incoming {
            rumqttc::Packet::ConnAck(ack) => {
                self.connected = true;
                Ok(Packet::Connected(Granted {
                    session_present: ack.session_present,
                    ..Granted::default()
                }))
            }
            rumqttc::Packet::Publish(publish) if publish.qos == QoS::ExactlyOnce => {
                Err(Why::Protocol("the broker sent a message at QoS 2".to_owned()))
            }
            rumqttc::Packet::Publish(publish) => Ok(Packet::Message {
                topic: publish.topic,
                payload: publish.payload,
                pkid: publish.pkid,
            }),
            rumqttc::Packet::SubAck(ack) => {
                let refused = ack
                    .return_codes
                    .iter()
                    .position(|code| *code == SubscribeReasonCode::Failure);
                Ok(Packet::Subscribed { refused })
            }
            rumqttc::Packet::PubAck(ack) => Ok(Packet::Acked {
                pkid: ack.pkid,
                refused: None,
            }),
            _ => Ok(Packet::Heard),
        }
    }
}

fn why(error: ConnectionError, connected: bool) -> Why {
    match error {
        ConnectionError::ConnectionRefused(ConnectReturnCode::RefusedProtocolVersion) => Why::ProtocolVersion,
        ConnectionError::ConnectionRefused(code) => Why::Refused(format!("{code:?}")),
        ConnectionError::NetworkTimeout => Why::NoAnswer,
        ConnectionError::FlushTimeout => Why::Stalled,
        ConnectionError::Io(e) => Why::Unreachable(e.to_string()),
        ConnectionError::Tls(e) => Why::tls(&e),
        ConnectionError::MqttState(state) => match state {
            StateError::AwaitPingResp => Why::Silent,
            StateError::ConnectionAborted => Why::hung_up(connected),
            // Some brokers say DISCONNECT, which 3.1.1 does not let them.
            StateError::WrongPacket if connected => {
                Why::Kicked("without a reason that MQTT 3.1.1 knows".to_owned())
            }
            StateError::Io(e) | StateError::Deserialization(mqttbytes::Error::Io(e)) => {
                Why::broken(&e, connected)
            }
            StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded(_)) => Why::Oversize,
            other => Why::Protocol(other.to_string()),
        },
        other => Why::Protocol(other.to_string()),
    }
}
