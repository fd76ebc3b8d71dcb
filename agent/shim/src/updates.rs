//! Other limits for a running container, and for its Pod with it.
//!
//! Always holds: what is remembered of limits is what the kernel has taken; one change at a time is under way.

use skiff_sys::{Limits, SandboxConfig};

use crate::SANDBOX_FILE;
use crate::operation::{Asker, Operation, Outcome, Purpose, Update};
use crate::pod::{self, Life};
use crate::protocol::{ReplyBody, ShimError};
use crate::requests::{Answer, describe, wrong_state};
use crate::server::Server;

impl Server {
    /// Begins to change a container's limits, and the Pod's by as much.
    pub(crate) fn update(&mut self, asker: Asker, id: String, limits: Limits) -> Answer {
        let container = self
            .containers
            .get(&id)
            .ok_or_else(|| ShimError::NotFound(id.clone()))?;
        match container.life {
            Life::Running { .. } => {}
            Life::Starting => return Err(wrong_state(&id, "is still being started")),
            Life::Exited(_) => return Err(wrong_state(&id, "has exited")),
        }
        let old = container.config.resources.clone();
        let old_pod = self.pod_limits();
        let new_pod = with_change(&old_pod, &old, &limits);
        let path = container.remains.cgroup_path.clone();
        let update = Update {
            container: Some(id),
            old,
            new: limits,
            old_pod,
            new_pod,
        };
        self.begin(asker, update, Some(&path))
    }

    /// The limits that a sandbox is asked for which stands already but for them.
    pub(crate) fn other_pod_limits(&self, config: &SandboxConfig) -> Option<Limits> {
        let mut standing = self.sandbox.clone()?;
        standing.cgroup.limits = config.cgroup.limits.clone();
        (&standing == config).then_some(standing.cgroup.limits)
    }

    /// Begins to change the Pod's limits.
    pub(crate) fn update_pod(&mut self, asker: Asker, limits: Limits) -> Answer {
        let update = Update {
            container: None,
            old: Limits::default(),
            new: Limits::default(),
            old_pod: self.pod_limits(),
            new_pod: limits,
        };
        self.begin(asker, update, None)
    }

    fn pod_limits(&self) -> Limits {
        let sandbox = self.sandbox.as_ref();
        sandbox.map_or_else(Limits::default, |sandbox| sandbox.cgroup.limits.clone())
    }

    fn begin(&mut self, asker: Asker, update: Update, container: Option<&str>) -> Answer {
        let under_way = |operation: &Operation| matches!(operation.purpose, Purpose::Update(_));
        if self.operations.iter().any(under_way) {
            return Err(ShimError::TooMany {
                what: "changes of limits".to_owned(),
                max: 1,
            });
        }
        let Some(sandbox) = &self.sandbox else {
            return Err(ShimError::Sandbox("does not exist yet".to_owned()));
        };
        let pod = sandbox.cgroup.path();
        let operation = Operation::update(update, (&pod, container), &self.cgroups, asker)?;
        self.operations.push(operation);
        Ok(None)
    }

    /// Remembers what the kernel has taken.
    pub(crate) fn updated(&mut self, update: Update, outcome: Outcome) -> Answer {
        if !matches!(outcome, Outcome::Done) {
            return Err(ShimError::Kernel(describe(outcome)));
        }
        let container = update.container.and_then(|id| self.containers.get_mut(&id));
        if let Some(container) = container {
            container.config.resources = update.new;
        }
        if let Some(sandbox) = &mut self.sandbox {
            sandbox.cgroup.limits = update.new_pod;
            let file = self.pod_dir.join(SANDBOX_FILE);
            pod::store(&file, sandbox)
                .map_err(|error| ShimError::Sandbox(format!("{}: {error}", file.display())))?;
        }
        Ok(Some(ReplyBody::Done))
    }
}

/// The Pod's limits when those of one of its containers change. A Pod without a limit has none afterwards either; one with a
/// container that has none any more has none.
fn with_change(pod: &Limits, old: &Limits, new: &Limits) -> Limits {
    let moved = |pod: Option<u64>, old: Option<u64>, new: Option<u64>| match (old, new) {
        (Some(old), Some(new)) => Some(pod?.saturating_sub(old).saturating_add(new)),
        (Some(_), None) => None,
        (None, _) => pod,
    };
    let period = pod.cpu_period_us.unwrap_or(100_000);
    let quota = |limits: &Limits| {
        let own = limits.cpu_period_us.unwrap_or(100_000).max(1);
        limits
            .cpu_quota_us
            .map(|quota| quota.saturating_mul(period) / own)
    };
    Limits {
        memory_bytes: moved(pod.memory_bytes, old.memory_bytes, new.memory_bytes),
        cpu_quota_us: moved(pod.cpu_quota_us, quota(old), quota(new)),
        cpu_shares: match (pod.cpu_shares, old.cpu_shares, new.cpu_shares) {
            (Some(pod), Some(old), Some(new)) => Some(pod.saturating_sub(old).saturating_add(new)),
            (pod, _, _) => pod,
        },
        ..pod.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_limits_follow_its_containers() {
        let limits = |memory, quota, shares| Limits {
            memory_bytes: memory,
            cpu_quota_us: quota,
            cpu_shares: shares,
            ..Limits::default()
        };
        let pod = limits(Some(100), Some(50_000), Some(512));
        let check = |old: Limits, new: Limits, expected: Limits| {
            assert_eq!(with_change(&pod, &old, &new), expected, "{old:?} {new:?}");
        };
        let old = limits(Some(40), Some(20_000), Some(256));
        check(
            old.clone(),
            limits(Some(60), Some(10_000), Some(128)),
            limits(Some(120), Some(40_000), Some(384)),
        );
        check(old, Limits::default(), limits(None, None, Some(512)));
        check(Limits::default(), limits(Some(60), None, None), pod.clone());
        assert_eq!(with_change(&Limits::default(), &pod, &pod), Limits::default());
    }
}
