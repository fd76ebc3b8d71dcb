//! What this machine is and has, and its conditions.
//!
//! Always holds: what cannot be read is left empty and said in a condition, never made up.

use std::fs;
use std::path::Path;

use skiff_protocol::wire::{NodeCondition, NodeInfo};
use skiff_sys::cgroup::{Cgroups, Version};

use crate::config::Config;
use crate::shims::Place;

/// The machine, as far as it does not change.
pub(crate) struct Node {
    memory: u64,
    cpu_milli: u64,
    kernel: String,
    address: String,
    bounding: Vec<String>,
    journal_error: Option<String>,
    /// The certificate ends soon and could not be renewed.
    certificate: Option<String>,
    /// Low on memory, low on disk, as last looked at.
    pressure: (bool, bool),
    /// A condition changed since it was last told.
    changed: bool,
}

impl Node {
    /// Looks at the machine.
    #[must_use]
    pub(crate) fn look() -> Self {
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
            journal_error: None,
            certificate: None,
            pressure: (false, false),
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

    /// The capabilities that `ALL` means here.
    #[must_use]
    pub(crate) fn bounding(&self) -> &[String] {
        &self.bounding
    }

    /// Bytes of memory that Pods may request: the budget, or what is not reserved.
    #[must_use]
    pub(crate) fn allocatable_memory(&self, config: &Config) -> u64 {
        let free = self.memory.saturating_sub(config.reserved_memory);
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

    /// Notes that the certificate ends soon, or that it does not.
    pub(crate) fn certificate(&mut self, expiring: Option<String>) {
        self.changed |= expiring.is_some() != self.certificate.is_some();
        self.certificate = expiring;
    }

    /// Looks at memory and disk again.
    pub(crate) fn look_again(&mut self, config: &Config) {
        let now = (self.memory_is_low(), disk_is_low(config));
        self.changed |= now != self.pressure;
        self.pressure = now;
    }

    /// Whether a condition changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn memory_is_low(&self) -> bool {
        meminfo("MemAvailable:").is_some_and(|available| available < self.memory / 20)
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
            cpu_milli: self.cpu_milli,
            memory: self.memory,
            storage: skiff_sys::fs::space(&config.state_dir).map_or(0, |space| space.total),
            allocatable_cpu_milli: self.allocatable_cpu(config),
            allocatable_memory: self.allocatable_memory(config),
            pods: config.max_pods,
            labels: config
                .labels
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            conditions: self.conditions(config, place),
        }
    }

    fn conditions(&self, config: &Config, place: &Place) -> Vec<NodeCondition> {
        let mut out = Vec::new();
        let mut add = |kind: &str, bad: bool, reason: &str, message: String| {
            out.push(NodeCondition {
                kind: kind.to_owned(),
                status: bad,
                reason: reason.to_owned(),
                message,
            });
        };
        let available = meminfo("MemAvailable:").unwrap_or(self.memory);
        let low = self.memory_is_low();
        let text = format!(
            "{} MiB of {} MiB of memory are available",
            available >> 20,
            self.memory >> 20
        );
        add(
            "MemoryPressure",
            low,
            if low {
                "NodeHasInsufficientMemory"
            } else {
                "NodeHasSufficientMemory"
            },
            text,
        );
        if let Ok(space) = skiff_sys::fs::space(&config.state_dir) {
            let low = disk_is_low(config);
            let text = format!(
                "{} MiB are free in {}",
                space.available >> 20,
                config.state_dir.display()
            );
            add(
                "DiskPressure",
                low,
                if low {
                    "NodeHasDiskPressure"
                } else {
                    "NodeHasNoDiskPressure"
                },
                text,
            );
        }
        if let Some(error) = &self.journal_error {
            add("JournalUnwritable", true, "JournalError", error.clone());
        }
        if let Some(message) = &self.certificate {
            add("CertificateExpiring", true, "RenewalFailed", message.clone());
        }
        for (kind, message) in lacking(&place.cgroups) {
            add(kind, true, "KernelLacks", message);
        }
        out
    }
}

fn disk_is_low(config: &Config) -> bool {
    skiff_sys::fs::space(&config.state_dir).is_ok_and(|space| space.available < space.total / 20)
}

/// What the kernel lacks for keeping limits, with the fix.
#[must_use]
pub(crate) fn lacking(cgroups: &Cgroups) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let mut need = |controller: &str, kind, fix: &str| {
        if !cgroups.controllers().contains(controller) {
            out.push((
                kind,
                format!("the kernel has no {controller} cgroup controller; {fix}"),
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
    out
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
