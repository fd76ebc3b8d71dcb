//! How a server runs: where it keeps what, where it listens, what it calls itself.
//!
//! What always holds: reads nothing; the defaults run one server on one machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use skiff_pki::Validity;

/// Which broker carries the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerConfig {
    /// One in this process.
    Embedded {
        /// Where it listens; port 0 takes a free one.
        listen: SocketAddr,
        /// The host that nodes are told; the first of [`Config::names`], or the listening address, if none.
        advertise: Option<String>,
    },
    /// One that somebody else runs. Its certificate must be signed by the fleet's CA; what it needs is written to
    /// `broker/` in the data directory.
    External {
        /// `mqtts://host:port`, for server and nodes alike.
        url: String,
        /// User name and password of the server, where the broker wants other ones than the fleet's.
        credentials: Option<(String, String)>,
    },
}

/// How a server runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything lies that outlives the process.
    pub data_dir: PathBuf,
    /// The fleet's name, as its CA and its kubeconfig show it.
    pub fleet: String,
    /// Where the API listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Further DNS names and IP addresses of this machine, for the certificates.
    pub names: Vec<String>,
    /// Where nodes and people reach the API, in the order to try: `https://host:port`. Made from `names` and `listen`
    /// if empty.
    pub urls: Vec<String>,
    /// The broker.
    pub broker: BrokerConfig,
    /// How long certificates are valid.
    pub validity: Validity,
    /// How long the CA is valid, in years.
    pub ca_years: u16,
    /// How long a node may take to say hello when it is asked, before it counts as Unknown.
    pub node_grace: Duration,
    /// How long a join token is accepted, unless it is made for another time.
    pub token_ttl: Duration,
}

impl Config {
    /// The defaults, with everything on loopback at free ports' usual numbers.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            data_dir: data_dir.to_owned(),
            fleet: "skiff".to_owned(),
            listen: SocketAddr::new(loopback, 6443),
            names: Vec::new(),
            urls: Vec::new(),
            broker: BrokerConfig::Embedded {
                listen: SocketAddr::new(loopback, 8883),
                advertise: None,
            },
            validity: Validity::default(),
            ca_years: 20,
            node_grace: Duration::from_secs(40),
            token_ttl: Duration::from_secs(24 * 3600),
        }
    }

    /// The same at free ports, as tests and trials want it.
    #[must_use]
    pub fn local(data_dir: &Path) -> Self {
        let free = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self {
            listen: free,
            broker: BrokerConfig::Embedded {
                listen: free,
                advertise: None,
            },
            ..Self::new(data_dir)
        }
    }

    /// The names that the server's certificates carry: what was configured, and what this machine surely is.
    pub(crate) fn certificate_names(&self, hostname: &str) -> Vec<String> {
        let mut names = self.names.clone();
        let hosts = self.urls.iter().filter_map(|url| host_of(url));
        names.extend(hosts.map(str::to_owned));
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        if let BrokerConfig::Embedded { listen, advertise } = &self.broker {
            names.extend(advertise.clone());
            if !listen.ip().is_unspecified() {
                names.push(listen.ip().to_string());
            }
        }
        for name in [
            hostname,
            "localhost",
            "127.0.0.1",
            "::1",
            "kubernetes",
            "kubernetes.default.svc",
        ] {
            names.push(name.to_owned());
        }
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
        names
    }

    /// The API's URLs, once it listens at `address`.
    pub(crate) fn api_urls(&self, address: SocketAddr, hostname: &str) -> Vec<String> {
        if !self.urls.is_empty() {
            return self.urls.clone();
        }
        let port = address.port();
        if !self.names.is_empty() {
            let names = self.names.iter().take(skiff_protocol::enrol::MAX_URLS);
            return names
                .map(|name| format!("https://{}:{port}", bracketed(name)))
                .collect();
        }
        if address.ip().is_unspecified() && !hostname.is_empty() {
            return vec![format!("https://{hostname}:{port}")];
        }
        vec![local_url(address)]
    }
}

/// Where the API is for somebody on this machine.
pub(crate) fn local_url(address: SocketAddr) -> String {
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip.to_string(),
        IpAddr::V4(_) => "127.0.0.1".to_owned(),
        IpAddr::V6(_) => "::1".to_owned(),
    };
    format!("https://{}:{}", bracketed(&host), address.port())
}

fn bracketed(host: &str) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// The host of `https://host[:port]`, without brackets.
fn host_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let rest = rest.split('/').next()?;
    match rest.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map(|(host, _)| host),
        None => rest.split(':').next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_follow_names_and_listening_address() {
        let check = |change: fn(&mut Config), expected: &[&str]| {
            let mut config = Config::new(Path::new("/d"));
            change(&mut config);
            assert_eq!(config.api_urls(config.listen, "host-1"), expected);
        };
        check(|_| {}, &["https://127.0.0.1:6443"]);
        check(|it| it.listen = "[::1]:7".parse().unwrap(), &["https://[::1]:7"]);
        check(
            |it| it.listen = "0.0.0.0:7".parse().unwrap(),
            &["https://host-1:7"],
        );
        check(
            |it| it.names = vec!["a.example".into(), "fd00::1".into()],
            &["https://a.example:6443", "https://[fd00::1]:6443"],
        );
        check(
            |it| it.urls = vec!["https://b.example".into()],
            &["https://b.example"],
        );
    }

    #[test]
    fn certificates_name_every_way_to_reach_the_server_once() {
        let mut config = Config::new(Path::new("/d"));
        config.names = vec!["a.example".into()];
        config.urls = vec!["https://[fd00::1]:1/x".into(), "https://a.example:9".into()];
        let names = config.certificate_names("host-1");
        let count = |name: &str| names.iter().filter(|it| *it == name).count();
        for name in ["a.example", "fd00::1", "host-1", "localhost", "127.0.0.1", "::1"] {
            assert_eq!(count(name), 1, "{name} in {names:?}");
        }
    }
}
