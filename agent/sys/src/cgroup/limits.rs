//! Limits of a cgroup, in the units and files of either version, and how those of a running one are changed.
//!
//! Always holds: a limit whose controller is missing is an error that names it; a child is never allowed more than its parent
//! in between, because a parent is raised before its child and lowered after it.

use std::io;

use super::{Cgroups, Version, write};
use crate::config::{IoLimit, Limits};
use crate::error::{Doing, Result};

/// Weight that v1 gives who asks for none.
const DEFAULT_SHARES: u64 = 1024;

impl Cgroups {
    /// Sets the limits of a cgroup that exists; a limit of `None` is left as it is.
    ///
    /// # Errors
    /// When a limit has no controller, or the kernel refuses the value.
    pub fn set_limits(&self, path: &str, limits: &Limits) -> Result<()> {
        let v2 = self.version == Version::V2;
        if let Some(bytes) = limits.memory_bytes {
            self.set_memory(path, Some(bytes))?;
        }
        if let Some(shares) = limits.cpu_shares {
            self.set_shares(path, shares)?;
        }
        if limits.cpu_quota_us.is_some() {
            self.set_quota(path, limits)?;
        }
        if let Some(pids) = limits.pids {
            self.set("pids", path, "pids.max", &pids.to_string())?;
        }
        if v2 {
            self.set_protection(path, limits)?;
        }
        for &(size, bytes) in &limits.hugepages {
            let kind = if v2 { "max" } else { "limit_in_bytes" };
            let file = format!("hugetlb.{}.{kind}", page_name(size));
            self.set("hugetlb", path, &file, &bytes.to_string())?;
        }
        limits.io.iter().try_for_each(|limit| self.set_io(path, limit))
    }

    fn set_memory(&self, path: &str, bytes: Option<u64>) -> Result<()> {
        let (file, none) = if self.version == Version::V2 {
            ("memory.max", "max")
        } else {
            ("memory.limit_in_bytes", "-1")
        };
        let value = bytes.map_or_else(|| none.to_owned(), |bytes| bytes.to_string());
        self.set("memory", path, file, &value)
    }

    /// What v2 keeps for a cgroup, and from where on it slows it down; v1 has no such thing.
    fn set_protection(&self, path: &str, limits: &Limits) -> Result<()> {
        let values = [
            ("memory.min", limits.memory_min),
            ("memory.low", limits.memory_low),
            ("memory.high", limits.memory_high),
        ];
        for (file, value) in values {
            if let Some(bytes) = value {
                self.set("memory", path, file, &bytes.to_string())?;
            }
        }
        if limits.oom_group {
            self.set("memory", path, "memory.oom.group", "1")?;
        }
        Ok(())
    }

    fn set_shares(&self, path: &str, shares: u64) -> Result<()> {
        let shares = shares.clamp(2, 262_144);
        if self.version == Version::V2 {
            self.set("cpu", path, "cpu.weight", &weight(shares).to_string())
        } else {
            self.set("cpu", path, "cpu.shares", &shares.to_string())
        }
    }

    fn set_quota(&self, path: &str, limits: &Limits) -> Result<()> {
        let period = limits.cpu_period_us.unwrap_or(100_000);
        let quota = limits.cpu_quota_us;
        if self.version == Version::V2 {
            let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            return self.set("cpu", path, "cpu.max", &format!("{quota} {period}"));
        }
        // A new period with the old quota may be more than the parent has, and would be refused.
        self.set("cpu", path, "cpu.cfs_quota_us", "-1")?;
        self.set("cpu", path, "cpu.cfs_period_us", &period.to_string())?;
        match quota {
            Some(quota) => self.set("cpu", path, "cpu.cfs_quota_us", &quota.to_string()),
            None => Ok(()),
        }
    }

    fn set_io(&self, path: &str, limit: &IoLimit) -> Result<()> {
        let device = format!("{}:{}", limit.device.0, limit.device.1);
        let v1 = ["read_bps", "write_bps", "read_iops", "write_iops"];
        let v2 = ["rbps", "wbps", "riops", "wiops"];
        let values = [limit.read_bytes, limit.write_bytes, limit.reads, limit.writes];
        if self.version == Version::V2 {
            let keys: String = v2
                .iter()
                .zip(values)
                .filter_map(|(key, value)| Some(format!(" {key}={}", value?)))
                .collect();
            return self.set("io", path, "io.max", &format!("{device}{keys}"));
        }
        for (key, value) in v1.iter().zip(values) {
            if let Some(value) = value {
                let file = format!("blkio.throttle.{key}_device");
                self.set("blkio", path, &file, &format!("{device} {value}"))?;
            }
        }
        Ok(())
    }

    /// Gives a running cgroup other limits; those that it had and is not to have any more are lifted.
    ///
    /// # Errors
    /// As [`Cgroups::set_limits`]; `EBUSY` or `EINVAL` when memory in use, or a child's limit, is in the way.
    pub fn change_limits(&self, path: &str, old: &Limits, new: &Limits) -> Result<()> {
        let v2 = self.version == Version::V2;
        if old.memory_bytes.is_some() && new.memory_bytes.is_none() {
            self.set_memory(path, None)?;
        }
        if old.cpu_shares.is_some() && new.cpu_shares.is_none() {
            self.set_shares(path, DEFAULT_SHARES)?;
        }
        if old.cpu_quota_us.is_some() && new.cpu_quota_us.is_none() {
            self.set_quota(path, new)?;
        }
        if old.pids.is_some() && new.pids.is_none() {
            self.set("pids", path, "pids.max", "max")?;
        }
        let lifted = [
            ("memory.min", old.memory_min, new.memory_min, "0"),
            ("memory.low", old.memory_low, new.memory_low, "0"),
            ("memory.high", old.memory_high, new.memory_high, "max"),
        ];
        for (file, _, _, none) in lifted
            .into_iter()
            .filter(|(_, old, new, _)| v2 && old.is_some() && new.is_none())
        {
            self.set("memory", path, file, none)?;
        }
        if v2 && old.oom_group && !new.oom_group {
            self.set("memory", path, "memory.oom.group", "0")?;
        }
        self.set_limits(path, new)
    }

    /// Changes the limits of a cgroup and of the one above it: each given by path, as it is and as it is to be.
    ///
    /// # Errors
    /// As [`Cgroups::change_limits`]. The parent is then as wide as the wider of its limits.
    pub fn change_both(
        &self,
        parent: (&str, &Limits, &Limits),
        child: (&str, &Limits, &Limits),
    ) -> Result<()> {
        let (path, old, new) = parent;
        let wide = wider(old, new);
        self.change_limits(path, old, &wide)?;
        self.change_limits(child.0, child.1, child.2)?;
        self.change_limits(path, &wide, new)
    }

    pub(super) fn set(&self, controller: &str, path: &str, file: &str, value: &str) -> Result<()> {
        if !self.controllers.contains(controller) {
            let cause = io::Error::other(format!(
                "the {controller} controller is not available on this node"
            ));
            return Err(cause).doing("limit cgroup", path);
        }
        let file = self.dir(controller, path).join(file);
        write(&file, value).doing("set", format_args!("{} to {value}", file.display()))
    }
}

/// The wider of two sets of limits, field by field; no limit is the widest.
fn wider(a: &Limits, b: &Limits) -> Limits {
    let most = |a: Option<u64>, b: Option<u64>| Some(a?.max(b?));
    let (quota, period) = match (a.cpu_quota_us, b.cpu_quota_us) {
        (Some(_), Some(_)) if share(a) > share(b) => (a.cpu_quota_us, a.cpu_period_us),
        (Some(_), Some(_)) => (b.cpu_quota_us, b.cpu_period_us),
        _ => (None, None),
    };
    Limits {
        memory_bytes: most(a.memory_bytes, b.memory_bytes),
        pids: most(a.pids, b.pids),
        cpu_quota_us: quota,
        cpu_period_us: period,
        ..b.clone()
    }
}

/// Part of a core, in millionths, that a quota comes to.
fn share(limits: &Limits) -> u64 {
    let quota = limits.cpu_quota_us.unwrap_or(u64::MAX);
    quota.saturating_mul(1_000_000) / limits.cpu_period_us.unwrap_or(100_000).max(1)
}

/// v1's shares of 2 to 262 144 on v2's scale of 1 to 10 000: the curve through (2, 1), (1024, 100) and (262 144, 10 000)
/// in logarithms, so that what nobody asked for has the default weight.
///
/// Source: opencontainers/cgroups, pull request 20; crun and libcontainer have the same, and a container's first weight is
/// libcontainer's.
pub(super) fn weight(shares: u64) -> u64 {
    const MOST: f64 = 10_000.0;
    let shares = shares.clamp(2, 262_144);
    let log = (shares as f64).log2();
    if shares == 2 {
        // Whatever the last bit of the sum below says.
        return 1;
    }
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil().clamp(1.0, MOST) as u64
}

/// A page size as the kernel names its files: `64KB`, `2MB`, `1GB`.
fn page_name(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 => format!("{}GB", bytes >> 30),
        bytes if bytes >= 1 << 20 => format!("{}MB", bytes >> 20),
        bytes => format!("{}KB", bytes >> 10),
    }
}
