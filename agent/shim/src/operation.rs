//! Work that a forked child does while the shim goes on: everything that may wait, or that libcontainer has a hand in.
//!
//! Always holds: each has a deadline; a child that misses it is killed, and what it had begun is undone by another one.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use skiff_sys::cgroup::Cgroups;
use skiff_sys::container::{self, Remains, Stdio};
use skiff_sys::process::{self, Child, Report};
use skiff_sys::{ContainerConfig, KernelError, Result, RunError, SandboxConfig, Started, sandbox};

/// How long the kernel may take to end and remove what is there.
pub(crate) const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a sandbox may take.
pub(crate) const SANDBOX_TIMEOUT: Duration = Duration::from_secs(20);

/// Who is to be told about the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) client: u64,
    pub(crate) request: u64,
}

/// What is being done.
#[derive(Debug)]
pub(crate) enum Purpose {
    MakeSandbox(Box<SandboxConfig>),
    Run {
        container: String,
        timeout: Duration,
    },
    /// Removing what a failed start left; then the error is told.
    Undo {
        container: String,
        error: RunError,
    },
    Delete {
        container: String,
    },
    Shutdown,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Started(Started),
    Done,
    RunFailed(RunError),
    Failed(String),
    /// It missed its deadline, or died without a word.
    Lost {
        timed_out: bool,
    },
}

/// One child at work.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) purpose: Purpose,
    pub(crate) asker: Asker,
    pub(crate) deadline: Instant,
    child: Child,
    runs: bool,
}

impl Operation {
    /// Creates and starts a container.
    pub(crate) fn run(
        config: &ContainerConfig,
        stdio: Stdio,
        cgroups: &Cgroups,
        timeout: Duration,
        asker: Asker,
    ) -> Result<Self> {
        let child = process::fork_child(|| container::run(config, stdio, cgroups))?;
        let purpose = Purpose::Run {
            container: config.id.clone(),
            timeout,
        };
        Ok(Self {
            purpose,
            asker,
            deadline: Instant::now() + timeout,
            child,
            runs: true,
        })
    }

    /// Removes containers.
    pub(crate) fn remove(
        purpose: Purpose,
        remains: &[Remains],
        cgroups: &Cgroups,
        asker: Asker,
    ) -> Result<Self> {
        Self::plain(purpose, asker, REMOVE_TIMEOUT, || {
            remains
                .iter()
                .try_for_each(|remains| container::remove(remains, cgroups, REMOVE_TIMEOUT))
        })
    }

    /// Makes the sandbox.
    pub(crate) fn make_sandbox(config: SandboxConfig, cgroups: &Cgroups, asker: Asker) -> Result<Self> {
        let making = config.clone();
        Self::plain(
            Purpose::MakeSandbox(Box::new(config)),
            asker,
            SANDBOX_TIMEOUT,
            || sandbox::create(&making, cgroups),
        )
    }

    /// Removes containers and the sandbox, and with it all of the Pod that the kernel knows.
    pub(crate) fn shut_down(
        remains: &[Remains],
        sandbox: Option<&SandboxConfig>,
        exits: &Path,
        cgroups: &Cgroups,
        asker: Asker,
    ) -> Result<Self> {
        Self::plain(Purpose::Shutdown, asker, REMOVE_TIMEOUT + SANDBOX_TIMEOUT, || {
            let removed = remains
                .iter()
                .map(|remains| container::remove(remains, cgroups, REMOVE_TIMEOUT))
                .fold(Ok(()), Result::and);
            let destroyed = sandbox.map_or(Ok(()), |sandbox| sandbox::destroy(sandbox, cgroups));
            removed
                .and(destroyed)
                .and_then(|()| skiff_sys::fs::remove_dir_all(exits))
        })
    }

    fn plain(
        purpose: Purpose,
        asker: Asker,
        timeout: Duration,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let child = process::fork_child(|| work().map_err(|error: KernelError| error.to_string()))?;
        Ok(Self {
            purpose,
            asker,
            deadline: Instant::now() + timeout,
            child,
            runs: false,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.pid
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.child.report_fd()
    }

    /// How it ended, if it has. Past its deadline it is killed.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Outcome> {
        let report = if self.runs {
            match self.child.poll::<std::result::Result<Started, RunError>>() {
                Report::Pending => None,
                Report::Done(Ok(started)) => Some(Outcome::Started(started)),
                Report::Done(Err(error)) => Some(Outcome::RunFailed(error)),
                Report::Lost => Some(Outcome::Lost { timed_out: false }),
            }
        } else {
            match self.child.poll::<std::result::Result<(), String>>() {
                Report::Pending => None,
                Report::Done(Ok(())) => Some(Outcome::Done),
                Report::Done(Err(error)) => Some(Outcome::Failed(error)),
                Report::Lost => Some(Outcome::Lost { timed_out: false }),
            }
        };
        if report.is_none() && now >= self.deadline {
            let _ = process::kill(self.child.pid, 9);
            return Some(Outcome::Lost { timed_out: true });
        }
        report
    }
}
