//! What this machine is and has, and its conditions.
//!
//! Always holds: what cannot be read is left empty and said in a condition, never made up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use skiff_protocol::limits::TEXT;
use skiff_protocol::quantity;
use skiff_protocol::wire::{NodeCondition, NodeInfo, feature};
use skiff_sys::cgroup::{Cgroups, Version};
use skiff_sys::doctor;
use tracing::info;

use crate::config::Config;
use crate::devices::Devices;
use crate::doctor::Layers;
use crate::pressure::{self, Watch};
use crate::shims::Place;

/// The machine, as far as it does not change.
pub(crate) struct Node {
    memory: u64,
    cpu_milli: u64,
    kernel: String,
    address: String,
    bounding: Vec<String>,
    /// The kernel's own name of the machine.
    hostname: String,
    /// Bytes of the state directory's file system.
    storage: u64,
    /// Huge pages that Pods may ask for: the size of one, and the bytes in all of that size.
    hugepages: Vec<(u64, u64)>,
    /// Their sizes.
    hugepage_sizes: Vec<u64>,
    /// Bytes of memory that are set aside as huge pages, and so for nothing else.
    set_aside: u64,
    features: BTreeSet<String>,
    /// The devices that Pods may ask for.
    pub(crate) devices: Devices,
    /// What the node is short of.
    pub(crate) watch: Watch,
    journal_error: Option<String>,
    network_error: Option<String>,
    /// What is wrong with the directory of static Pods.
    statics: Vec<String>,
    /// The certificate ends soon and could not be renewed.
    certificate: Option<String>,
    /// A condition changed since it was last told.
    changed: bool,
}

impl Node {
    /// Looks at the machine. Called inside the runtime.
    #[must_use]
    pub(crate) fn look(config: &Config, cgroups: &Cgroups, users: Result<(), String>) -> Self {
        let pages = hugepages();
        // Without their controller no container could be kept to what it asked for.
        let limited = cgroups.controllers().contains("hugetlb");
        let hugepages = if limited { pages.clone() } else { Vec::new() };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let bounding = skiff_sys::cap::bounding()
            .map(skiff_sys::cap::names)
            .unwrap_or_default();
        Self {
            memory: meminfo("MemTotal:").unwrap_or(0),
            cpu_milli: cpus as u64 * 1000,
            kernel: line("/proc/sys/kernel/osrelease"),
            address: address(),
            bounding: bounding.into_iter().map(str::to_owned).collect(),
            hostname: line("/proc/sys/kernel/hostname"),
            storage: 0,
            hugepage_sizes: hugepages.iter().map(|(size, _)| *size).collect(),
            set_aside: pages.iter().map(|(_, bytes)| bytes).sum(),
            hugepages,
            features: features(config, users),
            devices: Devices::look(config, &config.run_dir.join("pods")),
            watch: Watch::new(),
            journal_error: None,
            network_error: None,
            statics: Vec::new(),
            certificate: None,
            changed: false,
        }
    }

    /// Bytes of memory.
    #[must_use]
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }

    /// Its own address; empty where it has none.
    #[must_use]
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Thousandths of a CPU that the node has.
    #[must_use]
    pub(crate) fn cpu_milli(&self) -> u64 {
        self.cpu_milli
    }

    /// The kernel's own name of the machine: what those see that share its network.
    #[must_use]
    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Sizes of huge pages that there are any of, and that can be limited.
    #[must_use]
    pub(crate) fn hugepage_sizes(&self) -> &[u64] {
        &self.hugepage_sizes
    }

    /// What this node can do or allows, of [`feature::ALL`].
    #[must_use]
    pub(crate) fn features(&self) -> &BTreeSet<String> {
        &self.features
    }

    /// Extended resources and huge pages: how much there is of each.
    #[must_use]
    pub(crate) fn extended(&self) -> BTreeMap<String, u64> {
        let pages = self.hugepages.iter();
        let pages = pages.map(|(size, bytes)| (quantity::hugepages(*size), *bytes));
        self.devices.extended().chain(pages).collect()
    }

    /// Bytes of disk that Pods may request.
    #[must_use]
    pub(crate) fn allocatable_storage(&self, config: &Config) -> u64 {
        self.storage.saturating_sub(config.reserved_storage)
    }

    /// The capabilities that `ALL` means here.
    #[must_use]
    pub(crate) fn bounding(&self) -> &[String] {
        &self.bounding
    }

    /// Bytes of memory that Pods may request: the budget, or what is not reserved.
    #[must_use]
    pub(crate) fn allocatable_memory(&self, config: &Config) -> u64 {
        let free = self.memory.saturating_sub(self.set_aside);
        let free = free.saturating_sub(config.reserved_memory);
        if config.memory_budget == 0 {
            free
        } else {
            config.memory_budget.min(free)
        }
    }

    /// Thousandths of a CPU that Pods may request.
    #[must_use]
    pub(crate) fn allocatable_cpu(&self, config: &Config) -> u64 {
        let free = self.cpu_milli.saturating_sub(config.reserved_cpu_milli);
        if config.cpu_budget_milli == 0 {
            free
        } else {
            config.cpu_budget_milli.min(free)
        }
    }

    /// Notes whether the journal could be written.
    pub(crate) fn journal_answered(&mut self, error: Option<&anyhow::Error>) {
        self.changed |= error.is_some() != self.journal_error.is_some();
        self.journal_error = error.map(|error| format!("{error:#}"));
    }

    /// Notes why the kernel does not lead ports of the node to Pods, if it does not.
    pub(crate) fn network_answered(&mut self, error: Option<String>) {
        self.changed = true;
        self.network_error = error;
    }

    /// Notes what is wrong with the directory of static Pods.
    pub(crate) fn statics(&mut self, broken: &[String]) {
        self.changed |= self.statics != broken;
        self.statics = broken.to_vec();
    }

    /// Notes that the certificate ends soon, or that it does not.
    pub(crate) fn certificate(&mut self, expiring: Option<String>) {
        self.changed |= expiring.is_some() != self.certificate.is_some();
        self.certificate = expiring;
    }

    /// Looks again at what may change: memory, disk, processes, devices.
    pub(crate) fn look_again(&mut self, config: &Config, now: Instant) {
        self.changed |= self.watch.look(config, now);
        self.changed |= self.devices.refresh(config);
        if self.storage == 0 {
            self.storage = skiff_sys::fs::space(&config.state_dir).map_or(0, |space| space.total);
        }
    }

    /// Whether a condition changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Everything about the node that the server shows.
    #[must_use]
    pub(crate) fn info(&mut self, config: &Config, place: &Place) -> NodeInfo {
        self.address = address();
        NodeInfo {
            agent_version: format!("v{}", env!("CARGO_PKG_VERSION")),
            architecture: skiff_images::pull::Platform::host().architecture,
            kernel: self.kernel.clone(),
            os_image: os_image(),
            machine_id: line("/etc/machine-id"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            address: self.address.clone(),
            cpu_milli: self.cpu_milli(),
            memory: self.memory,
            storage: self.storage,
            allocatable_cpu_milli: self.allocatable_cpu(config),
            allocatable_memory: self.allocatable_memory(config),
            allocatable_storage: self.allocatable_storage(config),
            extended: self.extended().into_iter().collect(),
            features: self.features().iter().cloned().collect(),
            pods: config.max_pods,
            labels: config
                .labels
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            conditions: self.conditions(place),
        }
    }

    fn conditions(&self, place: &Place) -> Vec<NodeCondition> {
        let mut out = self.watch.conditions();
        let mut bad = |kind: &str, reason: &str, mut message: String| {
            while message.len() > TEXT {
                message.pop();
            }
            out.push(NodeCondition {
                kind: kind.to_owned(),
                status: true,
                reason: reason.to_owned(),
                message,
            });
        };
        if let Some(error) = &self.journal_error {
            bad("JournalUnwritable", "JournalError", error.clone());
        }
        if !self.devices.broken().is_empty() {
            let message = self.devices.broken().join("; ");
            bad("DeviceSpecsUnusable", "InvalidCdiSpec", message);
        }
        if let Some(error) = &self.network_error {
            bad("HostPortsDegraded", "KernelLacks", error.clone());
        }
        if !self.statics.is_empty() {
            bad("StaticPodsUnusable", "InvalidManifest", self.statics.join("; "));
        }
        if let Some(message) = &self.certificate {
            bad("CertificateExpiring", "RenewalFailed", message.clone());
        }
        let lacking = lacking(&place.cgroups).into_iter().chain(blind());
        for (kind, message) in lacking.chain(layers(&place.layers)) {
            bad(kind, "KernelLacks", message);
        }
        out
    }
}

/// What the policy allows and the kernel can; `users` is what came of trying a user namespace.
fn features(config: &Config, users: Result<(), String>) -> BTreeSet<String> {
    let mut out = config.policy.allow.clone();
    // Who may have everything may have a part.
    if out.contains(feature::PRIVILEGED) {
        out.insert(feature::CAPABILITIES.to_owned());
    }
    let users = users.inspect_err(|why| info!(why, "Pods cannot have user namespaces"));
    let can = [
        (feature::USER_NAMESPACES, users.is_ok()),
        (feature::APPARMOR, doctor::apparmor()),
        (feature::RECURSIVE_READ_ONLY, doctor::recursive_read_only()),
    ];
    out.extend(can.into_iter().filter(|it| it.1).map(|it| it.0.to_owned()));
    out
}

/// Whether an AppArmor profile of this name is loaded.
#[must_use]
pub(crate) fn apparmor_profile(name: &str) -> bool {
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    // `name (enforce)`, a line each; a name may hold spaces.
    let mut names = loaded.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0));
    names.any(|it| it == name)
}

/// The kernel's huge pages: the size of one, and the bytes in all of that size.
#[must_use]
pub(crate) fn hugepages() -> Vec<(u64, u64)> {
    hugepages_in(Path::new("/sys/kernel/mm/hugepages"))
}

/// Sizes and bytes of a directory as `/sys/kernel/mm/hugepages` is one; sizes without any pages are left out.
fn hugepages_in(dir: &Path) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let size = name.to_str().and_then(|it| it.strip_prefix("hugepages-"));
        let size = size.and_then(|it| it.strip_suffix("kB")?.parse::<u64>().ok());
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok();
        let count = count.and_then(|it| it.trim().parse::<u64>().ok());
        if let (Some(kib), Some(count @ 1..)) = (size, count) {
            out.push((kib << 10, count.saturating_mul(kib << 10)));
        }
    }
    out.sort_unstable();
    out
}

/// What the kernel lacks for keeping limits, with the fix.
#[must_use]
pub(crate) fn lacking(cgroups: &Cgroups) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let mut need = |controller: &str, kind, fix: &str| {
        if !cgroups.controllers().contains(controller) {
            out.push((
                kind,
                format!(
                    "the kernel has no {controller} cgroup controller, so such limits of Pods are not kept; {fix}"
                ),
            ));
        }
    };
    need(
        "memory",
        "MemoryLimitsUnavailable",
        "add cgroup_enable=memory cgroup_memory=1 to the kernel's command line",
    );
    need(
        "cpu",
        "CpuLimitsUnavailable",
        "use a kernel with CONFIG_CFS_BANDWIDTH",
    );
    need(
        "pids",
        "PidLimitsUnavailable",
        "use a kernel with CONFIG_CGROUP_PIDS",
    );
    if cgroups.version() != Version::V2 && !cgroups.controllers().contains("devices") {
        out.push((
            "DeviceRulesUnavailable",
            "the kernel has no devices cgroup controller; use one with CONFIG_CGROUP_DEVICE".to_owned(),
        ));
    }
    if cgroups.version() != Version::V2 {
        out.push((
            "CgroupV1",
            "control groups are version 1: memory.min, memory.high and memory.oom.group are not to be had; add \
             cgroup_no_v1=all to the kernel's command line"
                .to_owned(),
        ));
    }
    out
}

/// What the state directory's file system or the kernel lacks for containers' writable layers, with the fix.
pub(crate) fn layers(layers: &Layers) -> Option<(&'static str, String)> {
    let (why, fix) = layers.lacking.as_ref()?;
    Some(("OverlayUnavailable", format!("{why}; {fix}")))
}

/// What the kernel does not tell of shortages, with the fix.
pub(crate) fn blind() -> Option<(&'static str, String)> {
    let fix = || {
        format!(
            "the kernel has no pressure stall information, so shortages of memory are noticed every {} s at best; add \
             psi=1 to the kernel's command line",
            pressure::EASE.as_secs()
        )
    };
    (!Path::new(pressure::PSI).exists()).then(|| ("PressureStallUnavailable", fix()))
}

/// A field of `/proc/meminfo`, in bytes.
#[must_use]
pub(crate) fn meminfo(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(field))?;
    value
        .split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

fn line(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn os_image() -> String {
    let text = fs::read_to_string(Path::new("/etc/os-release")).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_default()
}

/// The address that packets to the outside carry. Nothing is sent: a UDP socket only looks up the route.
fn address() -> String {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|it| it.connect("192.0.2.1:9").map(|()| it));
    let address = socket.and_then(|it| it.local_addr()).map(|it| it.ip());
    address
        .ok()
        .filter(|ip| !ip.is_unspecified())
        .map(|ip| ip.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_counted_in_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in [
            ("hugepages-2048kB", "3\n"),
            ("hugepages-1048576kB", "0\n"),
            ("hugepages-64kB", "16\n"),
            ("other", "1\n"),
        ] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("nr_hugepages"), count).unwrap();
        }
        assert_eq!(
            hugepages_in(dir.path()),
            [(64 << 10, 1 << 20), (2 << 20, 6 << 20)]
        );
        assert_eq!(hugepages_in(Path::new("/no/such")), []);
    }

    #[test]
    fn who_allows_everything_allows_a_part() {
        let of = |allow: &str| {
            let config: Config = toml::from_str(&format!("policy.allow = [{allow}]")).unwrap();
            features(&config, Ok(())).contains(feature::CAPABILITIES)
        };
        assert!(of("\"capabilities\"") && of("\"privileged\""));
        assert!(!of("") && !of("\"host-path\""));
    }

    #[tokio::test]
    async fn what_is_reserved_is_not_allocatable_and_what_is_allowed_is_a_feature() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "memory pids cpu").unwrap();
        let cgroups = Cgroups::detect(dir.path()).unwrap();
        let text = format!(
            "state_dir = {0:?}\nrun_dir = {0:?}\ncgroup_root = {0:?}\ncdi_dirs = [{0:?}]\nreserved_storage = 4096\n\
             policy.allow = [\"host-path\"]\ndevices = [{{name = \"a.b/c\", paths = [\"/dev/null\"]}}]",
            dir.path()
        );
        let config: Config = toml::from_str(&text).unwrap();
        let mut node = Node::look(&config, &cgroups, Err("not tried".to_owned()));
        node.look_again(&config, Instant::now());
        let place = Place {
            run: dir.path().to_owned(),
            state: dir.path().to_owned(),
            layers: Layers::default(),
            executable: dir.path().to_owned(),
            cgroups,
            own: Default::default(),
        };
        let info = node.info(&config, &place);
        assert_eq!(info.allocatable_storage, info.storage - 4096);
        let kept = config.reserved_memory + node.set_aside;
        assert_eq!(info.allocatable_memory, info.memory - kept);
        assert_eq!(info.extended, [("a.b/c".to_owned(), 1)]);
        let allowed = |name: &str| info.features.iter().any(|it| it == name);
        assert!(
            allowed("host-path") && !allowed("privileged"),
            "{:?}",
            info.features
        );
        let kinds: Vec<&str> = info.conditions.iter().map(|it| it.kind.as_str()).collect();
        assert_eq!(kinds[..3], ["MemoryPressure", "DiskPressure", "PIDPressure"]);
        assert!(!kinds.contains(&"DeviceSpecsUnusable"));
        // A vendor's generator has gone wrong meanwhile.
        node.take_changed();
        fs::write(dir.path().join("bad.json"), "{").unwrap();
        node.look_again(&config, Instant::now());
        assert!(node.take_changed());
        let info = node.info(&config, &place);
        let bad = info.conditions.iter().find(|it| it.kind == "DeviceSpecsUnusable");
        assert!(
            bad.is_some_and(|it| it.message.contains("bad.json: EOF")),
            "{bad:?}"
        );
    }
}
