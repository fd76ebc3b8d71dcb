//! How to connect: where, as whom, with which bounds.
//!
//! Always holds: a [`BrokerUrl`] is well formed, and [`Options::check`] has passed before a client exists.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::ClientConfig;

/// Bytes that MQTT may add to a payload in one packet: fixed header, packet id, topic, properties.
pub(crate) const PACKET_HEADROOM: usize = 1024;
/// Topic filters of one client. EMQX Cloud allows 10, AWS IoT Core 8 a SUBSCRIBE; the node needs one.
pub(crate) const MAX_SUBSCRIPTIONS: usize = 4;
/// Un-acked publishes of one client. AWS IoT Core allows 100; 16 fill a slow link.
pub(crate) const MAX_INFLIGHT: u16 = 16;
/// The client library refuses less for MQTT 5.
pub(crate) const MIN_KEEPALIVE: Duration = Duration::from_secs(5);
/// Azure Event Grid allows 1160 s, AWS IoT Core 1200 s.
pub(crate) const MAX_KEEPALIVE: Duration = Duration::from_secs(1100);

/// A broker's address: `mqtts://host[:port]`, or `mqtt://host[:port]` where plain text was allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerUrl {
    host: String,
    port: u16,
    tls: bool,
}

impl BrokerUrl {
    /// Reads `text`. `mqtt://` is refused unless `allow_plain`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str, allow_plain: bool) -> Result<Self, OptionsError> {
        let bad = |why| OptionsError::Url {
            url: text.chars().take(256).collect(),
            why,
        };
        let (tls, rest) = match text.split_once("://") {
            Some(("mqtts", rest)) => (true, rest),
            Some(("mqtt", rest)) if allow_plain => (false, rest),
            Some(("mqtt", _)) => return Err(bad("plain text is not allowed here; use mqtts://")),
            _ => return Err(bad("must begin with mqtts://")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let default_port = if tls { 8883 } else { 1883 };
        let (host, port) = if let Some(v6) = rest.strip_prefix('[') {
            let (host, tail) = v6
                .split_once(']')
                .ok_or_else(|| bad("the IPv6 address has no closing bracket"))?;
            host.parse::<std::net::Ipv6Addr>()
                .map_err(|_| bad("not an IPv6 address"))?;
            match tail.strip_prefix(':') {
                Some(port) => (
                    host,
                    port.parse()
                        .map_err(|_| bad("the port is not a number up to 65535"))?,
                ),
                None if tail.is_empty() => (host, default_port),
                None => return Err(bad("something follows the IPv6 address that is not a port")),
            }
        } else {
            match rest.split_once(':') {
                Some((host, port)) => (
                    host,
                    port.parse()
                        .map_err(|_| bad("the port is not a number up to 65535"))?,
                ),
                None => (rest, default_port),
            }
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if host.is_empty() || host.len() > 253 || !host.chars().all(legal) {
            return Err(bad(
                "no host, or one with characters that a host name cannot have",
            ));
        }
        if port == 0 {
            return Err(bad("port 0"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            tls,
        })
    }

    /// The host's name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// The protocol in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 5.
    V5,
    /// MQTT 3.1.1.
    V311,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V5 => "MQTT 5",
            Self::V311 => "MQTT 3.1.1",
        })
    }
}

/// Which protocol to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProtocolChoice {
    /// MQTT 5 only.
    V5,
    /// MQTT 3.1.1 only.
    V311,
    /// MQTT 5, and 3.1.1 where the broker refuses 5 or hangs up on it.
    #[default]
    Auto,
}

/// Delivery guarantee. QoS 2 is not offered: several brokers lack it and the protocol does not need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// At most once; "acked" as soon as it is written to the connection.
    AtMostOnce,
    /// At least once; acked by the broker.
    AtLeastOnce,
}

/// What the broker publishes when the connection breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWill {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
}

/// How to connect. [`Options::new`] has the defaults.
pub struct Options {
    /// The broker.
    pub url: BrokerUrl,
    /// The client id: the node's name.
    pub client_id: String,
    /// User name and password, where the broker wants them.
    pub credentials: Option<(String, String)>,
    /// Which protocol to speak.
    pub protocol: ProtocolChoice,
    /// How often to ping, 5 s to 1100 s. A dead connection is noticed within one and a half times this.
    pub keepalive: Duration,
    /// Built once and shared, so that TLS sessions resume. Must be there when the URL is `mqtts://`.
    pub tls: Option<Arc<ClientConfig>>,
    /// The last will.
    pub last_will: Option<LastWill>,
    /// Topic filters, at most four, all at QoS 1.
    pub subscriptions: Vec<String>,
    /// The largest payload either way, in bytes. Packets may be 1 KiB larger.
    pub max_payload: usize,
    /// How long the broker keeps the session of a lost connection (MQTT 5; with 3.1.1 it is the broker's choice).
    pub session_expiry: Duration,
    /// Un-acked publishes, 1 to 16.
    pub inflight: u16,
    /// Bound on name resolution, TCP, TLS and CONNECT together.
    pub connect_timeout: Duration,
    /// Bound of the first reconnect's wait.
    pub backoff_base: Duration,
    /// Bound of every reconnect's wait.
    pub backoff_cap: Duration,
    /// A source of random numbers for the jitter; seeded in simulations.
    pub jitter: Box<dyn FnMut() -> u64 + Send>,
}

impl Options {
    /// The defaults for `client_id` at `url`; `jitter` gives random numbers.
    #[must_use]
    pub fn new(url: BrokerUrl, client_id: &str, jitter: Box<dyn FnMut() -> u64 + Send>) -> Self {
        Self {
            url,
            client_id: client_id.to_owned(),
            credentials: None,
            protocol: ProtocolChoice::Auto,
            keepalive: Duration::from_secs(60),
            tls: None,
            last_will: None,
            subscriptions: Vec::new(),
            max_payload: 64 * 1024,
            session_expiry: Duration::from_secs(600),
            inflight: MAX_INFLIGHT,
            connect_timeout: Duration::from_secs(30),
            backoff_base: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(300),
            jitter,
        }
    }

    /// Checks the bounds that the client library would panic on or silently change.
    ///
    /// # Errors
    /// Names the option.
    pub fn check(&self) -> Result<(), OptionsError> {
        let bad = |option, why| Err(OptionsError::Bound { option, why });
        if self.client_id.is_empty() || self.client_id.len() > 128 || self.client_id.starts_with(' ') {
            return bad("client_id", "must have 1 to 128 bytes and not begin with a space");
        }
        if self.url.is_tls() && self.tls.is_none() {
            return bad("tls", "an mqtts:// broker needs a TLS configuration");
        }
        if self.keepalive < MIN_KEEPALIVE || self.keepalive > MAX_KEEPALIVE {
            return bad("keepalive", "must be 5 s to 1100 s");
        }
        if self.subscriptions.len() > MAX_SUBSCRIPTIONS {
            return bad("subscriptions", "at most four topic filters");
        }
        if !self
            .subscriptions
            .iter()
            .all(|filter| filter.len() <= 256 && rumqttc::valid_filter(filter))
        {
            return bad("subscriptions", "not a topic filter, or longer than 256 bytes");
        }
        if self.inflight == 0 || self.inflight > MAX_INFLIGHT {
            return bad("inflight", "must be 1 to 16");
        }
        if self.max_payload == 0 || self.max_payload > 1024 * 1024 {
            return bad("max_payload", "must be 1 B to 1 MiB");
        }
        if self.session_expiry > Duration::from_secs(7 * 24 * 3600) {
            return bad("session_expiry", "at most a week");
        }
        if self.connect_timeout.is_zero() || self.connect_timeout > Duration::from_secs(300) {
            return bad("connect_timeout", "must be above 0 and at most 300 s");
        }
        if self.backoff_base.is_zero() || self.backoff_base > self.backoff_cap {
            return bad("backoff_base", "must be above 0 and at most backoff_cap");
        }
        if let Some(will) = &self.last_will
            && (!rumqttc::valid_topic(&will.topic)
                || will.topic.len() > 256
                || will.payload.len() > self.max_payload)
        {
            return bad(
                "last_will",
                "its topic is not one, or its payload is above max_payload",
            );
        }
        Ok(())
    }

    /// The largest packet this client accepts.
    pub(crate) fn max_packet(&self) -> usize {
        self.max_payload + PACKET_HEADROOM
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("url", &self.url)
            .field("client_id", &self.client_id)
            .field("protocol", &self.protocol)
            .field("keepalive", &self.keepalive)
            .finish_non_exhaustive()
    }
}

/// Options that no client can be made from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// The broker's URL.
    #[error("broker URL {url:?}: {why}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An option out of bounds.
    #[error("MQTT option {option}: {why}")]
    Bound {
        /// Its name.
        option: &'static str,
        /// What is allowed.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_urls() {
        let check = |text: &str, plain, expected: Option<&str>| {
            let got = BrokerUrl::parse(text, plain);
            assert_eq!(
                got.as_ref().ok().map(ToString::to_string).as_deref(),
                expected,
                "{text}: {got:?}"
            );
        };
        check("mqtts://fleet.example", false, Some("mqtts://fleet.example:8883"));
        check("mqtts://fleet.example:9/", false, Some("mqtts://fleet.example:9"));
        check("mqtt://10.0.0.1", true, Some("mqtt://10.0.0.1:1883"));
        check("mqtts://[::1]:8884", false, Some("mqtts://[::1]:8884"));
        check("mqtts://[::1]", false, Some("mqtts://[::1]:8883"));
        for bad in [
            "mqtt://10.0.0.1",
            "https://x",
            "fleet:8883",
            "mqtts://",
            "mqtts://a:0",
            "mqtts://a:65536",
            "mqtts://a b",
            "mqtts://user@host",
            "mqtts://[::1",
            "mqtts://[zz]:1",
            "mqtts://[::1]x",
            "mqtts://a/b",
        ] {
            check(bad, false, None);
        }
    }

    #[test]
    fn bounds_are_named() {
        let check = |option: &str, change: fn(&mut Options)| {
            let url = BrokerUrl::parse("mqtt://localhost", true).unwrap();
            let mut options = Options::new(url, "node-1", Box::new(|| 0));
            assert_eq!(options.check(), Ok(()));
            change(&mut options);
            let error = options.check().unwrap_err().to_string();
            assert!(error.starts_with(&format!("MQTT option {option}: ")), "{error}");
        };
        check("client_id", |o| o.client_id.clear());
        check("tls", |o| {
            o.url = BrokerUrl::parse("mqtts://localhost", false).unwrap();
        });
        check("keepalive", |o| o.keepalive = Duration::from_secs(4));
        check("keepalive", |o| o.keepalive = Duration::from_secs(1101));
        check("subscriptions", |o| o.subscriptions = vec!["a".into(); 5]);
        check("subscriptions", |o| o.subscriptions = vec!["a/#/b".into()]);
        check("inflight", |o| o.inflight = 0);
        check("inflight", |o| o.inflight = 17);
        check("max_payload", |o| o.max_payload = 0);
        check("connect_timeout", |o| o.connect_timeout = Duration::ZERO);
        check("backoff_base", |o| o.backoff_base = Duration::from_secs(301));
        check("last_will", |o| {
            o.last_will = Some(LastWill {
                topic: "a/+".into(),
                payload: Bytes::new(),
            });
        });
    }
}
