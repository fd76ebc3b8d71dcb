//! Other limits for a running container, and for its Pod with it.
//!
//! Always holds: what is remembered of limits is what the kernel has taken; one change at a time is under way, and the others
//! wait in the order in which they came.

use skiff_sys::Limits;

use crate::SANDBOX_FILE;
use crate::operation::{Asker, Operation, Outcome, Purpose, Update};
use crate::pod::{self, Life};
use crate::protocol::{ReplyBody, ShimError};
use crate::requests::{Answer, describe, wrong_state};
use crate::server::Server;

/// Changes that may wait: more than a Pod has containers.
const WAITING: usize = 64;

/// A change that is asked for.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) asker: Asker,
    /// `None` changes the Pod's limits only.
    pub(crate) container: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) pod: Limits,
}

impl Server {
    /// Begins a change, or has it wait for the one that is under way.
    pub(crate) fn update(&mut self, change: Change) -> Answer {
        if !self.changes_limits() {
            return self.change(change);
        }
        if self.changes.len() >= WAITING {
            return Err(ShimError::TooMany {
                what: "changes of limits".to_owned(),
                max: WAITING as u64,
            });
        }
        self.changes.push_back(change);
        Ok(None)
    }

    /// Begins those that waited, as far as they need no more waiting.
    pub(crate) fn next_change(&mut self) {
        while !self.changes_limits()
            && let Some(change) = self.changes.pop_front()
        {
            let asker = change.asker;
            if let Some(result) = self.change(change).transpose() {
                self.reply(asker, result);
            }
        }
    }

    fn changes_limits(&self) -> bool {
        let is_change = |operation: &Operation| matches!(operation.purpose, Purpose::Update(_));
        self.operations.iter().any(is_change)
    }

    fn change(&mut self, change: Change) -> Answer {
        let Change {
            asker,
            container,
            limits,
            pod,
        } = change;
        let Some(sandbox) = &self.sandbox else {
            return Err(ShimError::Sandbox("does not exist yet".to_owned()));
        };
        let (old_pod, pod_path) = (sandbox.cgroup.limits.clone(), sandbox.cgroup.path());
        let (mut old, mut path) = (limits.clone(), None);
        if let Some(id) = &container {
            let found = self.containers.get(id);
            let found = found.ok_or_else(|| ShimError::NotFound(id.clone()))?;
            match found.life {
                Life::Running { .. } => {}
                Life::Starting => return Err(wrong_state(id, "is still being started")),
                Life::Exited(_) => return Err(wrong_state(id, "has exited")),
            }
            old = found.config.resources.clone();
            path = Some(found.remains.cgroup_path.clone());
        }
        if old == limits && old_pod == pod {
            return Ok(Some(ReplyBody::Done));
        }
        let update = Update {
            container,
            old,
            new: limits,
            old_pod,
            new_pod: pod,
        };
        let paths = (pod_path.as_str(), path.as_deref());
        let operation = Operation::update(update, paths, &self.cgroups, asker)?;
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
