//! The agent's configuration: a TOML file, every field with a default, unknown fields refused.
//!
//! Always holds: a [`Config`] is in bounds; what is not is an error that names the field and the file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::images::window::Window;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use skiff_protocol::image_ref::ImageRef;
use skiff_protocol::manifest::nearest;
use skiff_protocol::quantity::Quantity;
use skiff_protocol::wire::feature;

/// How many ids a Pod's user namespace has, and the first that no user of the node has.
pub(crate) const USER_IDS: u32 = 65_536;

/// What the agent needs for one large message beside what it holds: an object of 1.5 MiB is held several times.
const LEAST_AGENT_MEMORY: u64 = 16 << 20;

/// What a pull needs for the largest window of a zstd frame that it takes, and some.
const LEAST_PULL_MEMORY: u64 = 96 << 20;

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
    /// Bytes of the state directory's file system kept for the system, images and the journal.
    pub reserved_storage: u64,
    /// Bytes of memory that the agent may use, in a cgroup of its own; 0 leaves it where it was started.
    pub agent_memory: u64,
    /// Bytes of memory that all image pulls together may use, in a cgroup of their own.
    pub pull_memory: u64,
    /// `memory.min` and `memory.high` from requests and limits, as a kubelet's MemoryQoS sets them; cgroup v2 only.
    pub memory_qos: bool,
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
    /// The directory of static Pods: manifests that run with or without a server; empty for none.
    pub static_pods_dir: PathBuf,
    /// The name of a node that has not joined a fleet and has static Pods; without it the machine's own.
    pub node_name: Option<String>,
    /// Registries, by name.
    pub registries: BTreeMap<String, Registry>,
    /// Whether nodes ask the server for images before any registry.
    pub images_from_server: bool,
    /// The image store.
    pub images: ImageStore,
    /// Where the profiles of `seccompProfile.localhostProfile` are; without it `seccomp/` in `state_dir`.
    pub seccomp_dir: Option<PathBuf>,
    /// Directories of CDI specifications; a later one's devices hide those of an earlier one.
    pub cdi_dirs: Vec<PathBuf>,
    /// The first id of the host that a Pod with `hostUsers: false` may be given; each has 65,536 of them.
    pub user_ids_base: u32,
    /// The kernel ends an agent whose loop has not turned for so many seconds, so that what started it starts it again; Pods
    /// are not touched. 10 to 3600, or 0 for never.
    pub watchdog_seconds: u32,
    /// A watchdog device, `/dev/watchdog`: the machine is reset when no agent has answered for twice `watchdog_seconds`.
    pub watchdog_device: Option<PathBuf>,
    /// What Pods may ask of this node that reaches beyond them.
    pub policy: Policy,
    /// When the node is short of something.
    pub eviction: Eviction,
    /// Devices of this node that Pods may ask for as extended resources.
    pub devices: Vec<DeviceSpec>,
}

/// `[policy]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Policy {
    /// Of [`POLICIES`].
    pub allow: BTreeSet<String>,
}

/// What a policy can allow.
pub(crate) const POLICIES: [&str; 6] = [
    feature::HOST_NETWORK,
    feature::HOST_PID,
    feature::HOST_IPC,
    feature::PRIVILEGED,
    feature::CAPABILITIES,
    feature::HOST_PATH,
];

/// `[eviction]`: below these the node is short.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Eviction {
    /// `memory.available`; without it a kubelet's 100 MiB, but at most a twentieth of the memory.
    pub memory_available: Option<Threshold>,
    /// `nodefs.available`, of the state directory's file system.
    pub disk_available: Threshold,
    /// `nodefs.inodesFree`, of the same.
    pub inodes_free: Threshold,
    /// `pid.available`.
    pub pid_available: Threshold,
    /// How long a condition stays after the node was last short, so that it does not flap.
    pub hold_seconds: u64,
}

impl Default for Eviction {
    fn default() -> Self {
        Self {
            memory_available: None,
            disk_available: Threshold::Percent(5),
            inodes_free: Threshold::Percent(5),
            pid_available: Threshold::Percent(10),
            hold_seconds: 30,
        }
    }
}

/// `[images]`: the image store.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ImageStore {
    /// When so many hundredths of the disk are used, unused images go, the longest unused first; 100 means never.
    pub gc_high_percent: u8,
    /// Until no more than so many hundredths are used.
    pub gc_low_percent: u8,
    /// Seconds for which an image stays after it was last used, or came.
    pub gc_min_age_seconds: u64,
    /// Images that never go: references, or the beginnings of some with a `*` at their end.
    pub pinned: Vec<String>,
    /// A store that came with the device and is used in place.
    pub preloaded: Option<PathBuf>,
    /// Pulls at once, 1 to 8.
    pub parallel_pulls: u8,
    /// Bytes that all pulls together may be sent in a second; 0 is no limit.
    pub max_bytes_per_second: u64,
    /// When images may be pulled, in UTC: `01:00-05:00`. At any time without one, and while the clock was never set.
    pub pull_windows: Vec<Window>,
}

impl Default for ImageStore {
    /// A kubelet's.
    fn default() -> Self {
        Self {
            gc_high_percent: 85,
            gc_low_percent: 80,
            gc_min_age_seconds: 120,
            pinned: Vec::new(),
            preloaded: None,
            parallel_pulls: 2,
            max_bytes_per_second: 0,
            pull_windows: Vec::new(),
        }
    }
}

impl ImageStore {
    fn check(&self) -> Result<()> {
        ensure!(
            self.gc_high_percent <= 100,
            "images.gc_high_percent: must be 0 to 100"
        );
        ensure!(
            self.gc_low_percent < self.gc_high_percent || self.gc_high_percent == 100,
            "images.gc_low_percent: must be less than gc_high_percent, which is {}",
            self.gc_high_percent
        );
        ensure!(
            (1..=8).contains(&self.parallel_pulls),
            "images.parallel_pulls: must be 1 to 8"
        );
        for (at, it) in self.pinned.iter().enumerate() {
            // The beginning of a name may be anything.
            if !it.ends_with('*') {
                ImageRef::parse(it).with_context(|| format!("images.pinned[{at}]"))?;
            }
        }
        Ok(())
    }

    /// Bytes that are to be free, of a disk of so many, where so many are free now: nothing where it is not too full.
    #[must_use]
    pub(crate) fn until_free(&self, total: u64, available: u64) -> Option<u64> {
        let free = |used: u8| (u128::from(total) * u128::from(100 - used.min(100)) / 100) as u64;
        let is_full = self.gc_high_percent < 100 && available < free(self.gc_high_percent);
        is_full.then(|| free(self.gc_low_percent))
    }
}

/// An amount, or a part of what there is: `50Mi`, `5%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Threshold {
    /// In the signal's unit: bytes, inodes, processes.
    Amount(u64),
    /// Hundredths of the capacity.
    Percent(u64),
}

impl Threshold {
    /// The amount, of a capacity.
    #[must_use]
    pub(crate) fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Percent(percent) => (u128::from(capacity) * u128::from(percent) / 100) as u64,
        }
    }
}

impl TryFrom<String> for Threshold {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let percent = text.strip_suffix('%').map(str::parse::<u64>);
        match percent {
            Some(Ok(percent @ 0..=99)) => return Ok(Self::Percent(percent)),
            Some(_) => return Err(format!("{text:?} must be a quantity such as 50Mi, or 0% to 99%")),
            None => {}
        }
        let amount = Quantity::parse(&text).ok().filter(|it| *it >= Quantity::ZERO);
        let amount = amount.map(|it| it.value().unsigned_abs());
        amount
            .map(Self::Amount)
            .ok_or_else(|| format!("{text:?} must be a quantity such as 50Mi, or 0% to 99%"))
    }
}

/// `[[devices]]`: device nodes as an extended resource.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DeviceSpec {
    /// The resource, such as `skiff.io/ttyusb`.
    pub name: String,
    /// Device nodes. Each is one of the resource and is held by one Pod at a time, unless `count` is given.
    pub paths: Vec<PathBuf>,
    /// So many Pods may hold all of `paths` together at once.
    pub count: Option<u32>,
    /// Of `r`, `w` and `m`.
    pub access: Option<String>,
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
    /// Bytes that this registry and its mirrors may send in a second, all pulls together; 0 is no limit.
    pub max_bytes_per_second: u64,
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
            static_pods_dir: PathBuf::from("/etc/skiff/manifests"),
            node_name: None,
            labels: BTreeMap::new(),
            registries: BTreeMap::new(),
            images_from_server: true,
            images: ImageStore::default(),
            reserved_storage: 0,
            agent_memory: 64 << 20,
            pull_memory: 128 << 20,
            memory_qos: false,
            seccomp_dir: None,
            cdi_dirs: vec![PathBuf::from("/etc/cdi"), PathBuf::from("/var/run/cdi")],
            user_ids_base: USER_IDS,
            watchdog_seconds: 60,
            watchdog_device: None,
            policy: Policy::default(),
            eviction: Eviction::default(),
            devices: Vec::new(),
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
        ensure!(
            self.agent_memory == 0 || self.agent_memory >= LEAST_AGENT_MEMORY,
            "agent_memory: must be 0, for no limit, or at least 16 MiB"
        );
        ensure!(
            self.pull_memory >= LEAST_PULL_MEMORY,
            "pull_memory: must be at least 96 MiB: a compressed layer's window takes up to 64"
        );
        ensure!(
            self.user_ids_base >= USER_IDS,
            "user_ids_base: must be at least 65536: the ids below are the node's own"
        );
        ensure!(
            self.watchdog_seconds == 0 || (10..=3600).contains(&self.watchdog_seconds),
            "watchdog_seconds: must be 10 to 3600, or 0 for none"
        );
        ensure!(
            self.watchdog_device.is_none() || self.watchdog_seconds > 0,
            "watchdog_device: needs watchdog_seconds, whose double is its time"
        );
        self.images.check()?;
        self.check_policy()?;
        self.check_devices()?;
        self.pods().map(drop)
    }

    fn check_policy(&self) -> Result<()> {
        for name in &self.policy.allow {
            if !POLICIES.contains(&name.as_str()) {
                let near = nearest(name, POLICIES.into_iter());
                let near = near.map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"));
                bail!(
                    "policy.allow: {name:?} is not one of {}{near}",
                    POLICIES.map(|it| format!("{it:?}")).join(", ")
                );
            }
        }
        Ok(())
    }

    fn check_devices(&self) -> Result<()> {
        for (at, it) in self.devices.iter().enumerate() {
            let field = format!("devices[{at}]");
            let part = |text: &str| {
                let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                (1..=63).contains(&text.len()) && text.chars().all(inner)
            };
            let named = it.name.split_once('/').is_some_and(|(a, b)| part(a) && part(b));
            ensure!(
                named && !it.name.contains("kubernetes.io/"),
                "{field}.name: {:?} must be an extended resource such as skiff.io/ttyusb",
                it.name
            );
            ensure!(
                self.devices[..at].iter().all(|other| other.name != it.name),
                "{field}.name: {:?} is given twice",
                it.name
            );
            ensure!(
                !it.paths.is_empty() && it.paths.iter().all(|path| path.is_absolute()),
                "{field}.paths: must name at least one device node, by absolute paths"
            );
            ensure!(
                it.count.is_none_or(|count| (1..=1000).contains(&count)),
                "{field}.count: must be 1 to 1000"
            );
            let access = it.access.as_deref().unwrap_or("rw");
            ensure!(
                !access.is_empty() && access.chars().all(|c| "rwm".contains(c)),
                "{field}.access: {access:?} must be made of 'r', 'w' and 'm'"
            );
        }
        Ok(())
    }

    /// Where the profiles of `seccompProfile.localhostProfile` are.
    #[must_use]
    pub(crate) fn seccomp_profiles(&self) -> PathBuf {
        let own = || self.state_dir.join("seccomp");
        self.seccomp_dir.clone().unwrap_or_else(own)
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
    fn the_readme_shows_the_defaults_and_devices_that_can_be() {
        let readme = include_str!("../../README.md");
        let mut blocks = readme.split("```toml\n").skip(1);
        let mut next = || -> Config {
            let (text, _) = blocks.next().unwrap().split_once("```").unwrap();
            let config: Config = toml::from_str(text).unwrap();
            config.check().unwrap();
            config
        };
        assert_eq!(format!("{:?}", next()), format!("{:?}", Config::default()));
        let with_devices = next();
        assert_eq!(with_devices.devices.len(), 2);
        assert!(with_devices.policy.allow.is_empty());
        let registry = &next().registries["registry.example.org"];
        assert_eq!(
            (registry.mirrors.len(), registry.max_bytes_per_second),
            (1, 50_000)
        );
    }

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
            ("agent_memory = 1", "agent_memory: "),
            ("pull_memory = 1", "pull_memory: "),
            ("user_ids_base = 1000", "user_ids_base: "),
            ("watchdog_seconds = 9", "watchdog_seconds: "),
            (
                "watchdog_seconds = 0\nwatchdog_device = \"/dev/watchdog\"",
                "watchdog_device: ",
            ),
            (
                "policy.allow = [\"host-netwrok\"]",
                "policy.allow: \"host-netwrok\" is not one of \"host-network\", \"host-pid\", \"host-ipc\", \
                 \"privileged\", \"capabilities\", \"host-path\" (did you mean \"host-network\"?)",
            ),
            ("images.gc_high_percent = 101", "images.gc_high_percent: "),
            ("images.gc_low_percent = 85", "images.gc_low_percent: "),
            ("images.parallel_pulls = 0", "images.parallel_pulls: "),
            ("images.pinned = [\"a\", \"B\"]", "images.pinned[1]"),
            ("devices = [{}]", "devices[0].name: "),
            ("devices = [{name = \"kubernetes.io/x\"}]", "devices[0].name: "),
            ("devices = [{name = \"a.b/c\"}]", "devices[0].paths: "),
            (
                "devices = [{name = \"a.b/c\", paths = [\"dev\"]}]",
                "devices[0].paths: ",
            ),
            (
                "devices = [{name = \"a.b/c\", paths = [\"/d\"], count = 0}]",
                "devices[0].count: ",
            ),
            (
                "devices = [{name = \"a.b/c\", paths = [\"/d\"], access = \"x\"}]",
                "devices[0].access: ",
            ),
            (
                "devices = [{name = \"a.b/c\", paths = [\"/d\"]}, {name = \"a.b/c\", paths = [\"/e\"]}]",
                "devices[1].name: ",
            ),
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
        let error = toml::from_str::<Config>("[eviction]\nmemory_available = \"5x\"").unwrap_err();
        assert!(error.to_string().contains("memory_available"), "{error}");
        Config::default().check().unwrap();
        assert_eq!(
            Config::default().pods().unwrap(),
            (Ipv4Addr::new(10, 88, 0, 0), 16)
        );
    }

    #[test]
    fn thresholds_are_amounts_or_parts() {
        for (text, expected) in [
            ("50Mi", Some(Threshold::Amount(50 << 20))),
            ("100", Some(Threshold::Amount(100))),
            ("5%", Some(Threshold::Percent(5))),
            ("0%", Some(Threshold::Percent(0))),
            ("100%", None),
            ("-1", None),
            ("x%", None),
            ("", None),
        ] {
            assert_eq!(Threshold::try_from(text.to_owned()).ok(), expected, "{text}");
        }
        assert_eq!(Threshold::Percent(5).of(1000), 50);
        assert_eq!(Threshold::Amount(7).of(1000), 7);
    }
}
