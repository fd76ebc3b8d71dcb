//! The agent's configuration: a TOML file, every field with a default, unknown fields refused.
//!
//! Always holds: a [`Config`] is in bounds; what is not is an error that names the field and the file.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The agent's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// What must survive a reboot: journal, identity, images, Pods' files.
    pub state_dir: PathBuf,
    /// What must not: sockets, namespaces, logs. On tmpfs.
    pub run_dir: PathBuf,
    /// Name of the cgroup of ours directly under the root.
    pub cgroup: String,
    /// Root of the cgroup file systems.
    pub cgroup_root: PathBuf,
    /// Bytes of memory that all Pods together may use; 0 means what the node has less `reserved_memory`.
    pub memory_budget: u64,
    /// Thousandths of a CPU that all Pods together may use; 0 means no limit.
    pub cpu_budget_milli: u64,
    /// Bytes of memory kept for the system and the agent.
    pub reserved_memory: u64,
    /// Thousandths of a CPU kept for the system and the agent.
    pub reserved_cpu_milli: u64,
    /// Pods at once.
    pub max_pods: u32,
    /// Processes in one container.
    pub pids_per_container: u64,
    /// The bridge that Pods are joined to. At most 15 bytes.
    pub bridge: String,
    /// The Pods' network, as `10.88.0.0/16`.
    pub pod_cidr: String,
    /// Have the kernel pass packets on between Pods and other machines (`net.ipv4.ip_forward`). Without it Pods reach
    /// only this node, and ports of the node only its own processes.
    pub ip_forward: bool,
    /// Bytes of log kept for one container.
    pub log_bytes: u64,
    /// Bytes of one journal segment; there are two.
    pub journal_segment_bytes: u64,
    /// MQTT keepalive, in seconds, 5 to 1100.
    pub keepalive_seconds: u64,
    /// `auto`, `5` or `3.1.1`.
    pub mqtt_version: String,
    /// A broker other than the one that enrolment named.
    pub broker_url: Option<String>,
    /// The longest wait between two attempts to reach the broker, in seconds.
    pub reconnect_cap_seconds: u64,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// Registries, by name.
    pub registries: BTreeMap<String, Registry>,
    /// Whether nodes ask the server for images before any registry.
    pub images_from_server: bool,
}

/// How to reach a registry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Registry {
    /// Mirrors to ask first, in order: `https://host[:port]`.
    pub mirrors: Vec<String>,
    /// Speak plain HTTP with this registry and its mirrors.
    pub plain_http: bool,
    /// A CA to trust beside the system's, a PEM file.
    pub ca: Option<PathBuf>,
    /// User name for this registry.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/skiff"),
            run_dir: PathBuf::from("/run/skiff"),
            cgroup: "skiff".to_owned(),
            cgroup_root: PathBuf::from("/sys/fs/cgroup"),
            memory_budget: 0,
            cpu_budget_milli: 0,
            reserved_memory: 64 << 20,
            reserved_cpu_milli: 0,
            max_pods: 110,
            pids_per_container: 1024,
            bridge: "skiff0".to_owned(),
            pod_cidr: "10.88.0.0/16".to_owned(),
            ip_forward: true,
            log_bytes: 1 << 20,
            journal_segment_bytes: 4 << 20,
            keepalive_seconds: 60,
            mqtt_version: "auto".to_owned(),
            broker_url: None,
            reconnect_cap_seconds: 300,
            labels: BTreeMap::new(),
            registries: BTreeMap::new(),
            images_from_server: true,
        }
    }
}

impl Config {
    /// Reads `path`; without one, `/etc/skiff/agent.toml` if it is there, else the defaults.
    ///
    /// # Errors
    /// When the file cannot be read, does not parse, or a value is out of bounds.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self> {
        let standard = Path::new("/etc/skiff/agent.toml");
        let path = match path {
            Some(path) => path,
            None if standard.exists() => standard,
            None => return Ok(Self::default()),
        };
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self = toml::from_str(&text).with_context(|| format!("{}", path.display()))?;
        config.check().with_context(|| format!("{}", path.display()))?;
        Ok(config)
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// Names the field.
    pub(crate) fn check(&self) -> Result<()> {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        ensure!(
            !self.cgroup.is_empty() && self.cgroup.chars().all(name),
            "cgroup: {:?} must be a name of letters, digits, '-' and '_'",
            self.cgroup
        );
        ensure!(
            (1..=15).contains(&self.bridge.len()) && self.bridge.chars().all(name),
            "bridge: {:?} must be an interface name of 1 to 15 letters, digits, '-' and '_'",
            self.bridge
        );
        ensure!(
            (1..=skiff_protocol::limits::PODS as u32).contains(&self.max_pods),
            "max_pods: must be 1 to {}",
            skiff_protocol::limits::PODS
        );
        ensure!(
            (5..=1100).contains(&self.keepalive_seconds),
            "keepalive_seconds: must be 5 to 1100"
        );
        ensure!(
            matches!(self.mqtt_version.as_str(), "auto" | "5" | "3.1.1"),
            "mqtt_version: {:?} must be \"auto\", \"5\" or \"3.1.1\"",
            self.mqtt_version
        );
        ensure!(
            (1 << 20..=64 << 20).contains(&self.log_bytes),
            "log_bytes: must be 1 MiB to 64 MiB"
        );
        self.pods().map(drop)
    }

    /// The Pods' network and its prefix length.
    ///
    /// # Errors
    /// When `pod_cidr` is not an IPv4 network of 8 to 30 bits.
    pub(crate) fn pods(&self) -> Result<(Ipv4Addr, u8)> {
        let bad = || {
            format!(
                "pod_cidr: {:?} must be an IPv4 network such as 10.88.0.0/16",
                self.pod_cidr
            )
        };
        let (address, prefix) = self.pod_cidr.split_once('/').with_context(bad)?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|it| (8..=30).contains(it))
            .with_context(bad)?;
        let address: u32 = address.parse::<Ipv4Addr>().ok().with_context(bad)?.into();
        Ok((
            Ipv4Addr::from(address & (u32::MAX << (32 - u32::from(prefix)))),
            prefix,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_named() {
        for (text, expected) in [
            ("cgroup = \"a/b\"", "cgroup: "),
            ("bridge = \"much-too-long-a-name\"", "bridge: "),
            ("max_pods = 0", "max_pods: "),
            ("keepalive_seconds = 2", "keepalive_seconds: "),
            ("mqtt_version = \"4\"", "mqtt_version: "),
            ("pod_cidr = \"10.88.0.0\"", "pod_cidr: "),
            ("pod_cidr = \"10.88.0.0/31\"", "pod_cidr: "),
            ("log_bytes = 1", "log_bytes: "),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        assert!(
            toml::from_str::<Config>("stat_dir = \"x\"")
                .unwrap_err()
                .to_string()
                .contains("stat_dir")
        );
        assert_eq!(
            Config::default().pods().unwrap(),
            (Ipv4Addr::new(10, 88, 0, 0), 16)
        );
    }
}
