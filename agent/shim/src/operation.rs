//! Work that a forked child does while the shim goes on: everything that may wait, or that libcontainer has a hand in.
//!
//! Always holds: each has a deadline; a child that misses it is killed, and what it had begun is undone by another one.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use skiff_sys::cgroup::Cgroups;
use skiff_sys::container::{self, Exec, Execution, Remains, Stdio};
use skiff_sys::process::{self, Child, Report};
use skiff_sys::{ContainerConfig, KernelError, Limits, Result, RunError, SandboxConfig, Started, sandbox};

/// How long the kernel may take to end and remove what is there.
pub(crate) const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a sandbox may take.
pub(crate) const SANDBOX_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the kernel may take to change limits: a v1 one frees memory meanwhile.
pub(crate) const UPDATE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a command in a container may take beyond its own timeout: to be entered, killed and cleared away.
const EXEC_MARGIN: Duration = Duration::from_secs(15);

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
    /// A command in a container, in this place among those that run at once.
    Exec {
        container: String,
        place: usize,
        group: String,
    },
    /// Ending what a command has left whose operation is lost.
    EndExec {
        place: usize,
    },
    Update(Box<Update>),
    Shutdown,
}

/// Limits of a container, and of its Pod, as they are and as they are to be.
#[derive(Debug)]
pub(crate) struct Update {
    /// `None` changes the Pod's limits only.
    pub(crate) container: Option<String>,
    pub(crate) old: Limits,
    pub(crate) new: Limits,
    pub(crate) old_pod: Limits,
    pub(crate) new_pod: Limits,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Started(Started),
    Executed(Execution),
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
    kind: Kind,
}

/// What its report looks like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Run,
    Exec,
    Plain,
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
            kind: Kind::Run,
        })
    }

    /// Runs a command in a container.
    pub(crate) fn exec(exec: &Exec<'_>, cgroups: &Cgroups, place: usize, asker: Asker) -> Result<Self> {
        let child = process::fork_child(|| container::exec(exec, cgroups))?;
        let purpose = Purpose::Exec {
            container: exec.container.id.clone(),
            place,
            group: exec.group.clone(),
        };
        Ok(Self {
            purpose,
            asker,
            deadline: Instant::now() + exec.timeout + EXEC_MARGIN,
            child,
            kind: Kind::Exec,
        })
    }

    /// Kills and clears away what a command has left.
    pub(crate) fn end_exec(group: &str, place: usize, cgroups: &Cgroups, asker: Asker) -> Result<Self> {
        Self::plain(Purpose::EndExec { place }, asker, REMOVE_TIMEOUT, || {
            let killed = cgroups.kill_all(group, REMOVE_TIMEOUT);
            // Zombies may keep it; the next command in this place takes it as it is.
            let _ = cgroups.remove(group, Duration::ZERO);
            killed
        })
    }

    /// Changes limits.
    pub(crate) fn update(
        update: Update,
        paths: (&str, Option<&str>),
        cgroups: &Cgroups,
        asker: Asker,
    ) -> Result<Self> {
        let (old, new, old_pod, new_pod) = (
            update.old.clone(),
            update.new.clone(),
            update.old_pod.clone(),
            update.new_pod.clone(),
        );
        Self::plain(Purpose::Update(Box::new(update)), asker, UPDATE_TIMEOUT, || {
            let (pod, container) = paths;
            match container {
                Some(container) => cgroups.change_both((pod, &old_pod, &new_pod), (container, &old, &new)),
                None => cgroups.change_limits(pod, &old_pod, &new_pod),
            }
        })
    }

    /// Ends it at once; it makes no report any more.
    pub(crate) fn abort(&self) {
        let _ = process::kill(self.child.pid, 9);
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
            kind: Kind::Plain,
        })
    }

    /// Whether a container comes of it.
    pub(crate) fn is_start(&self) -> bool {
        matches!(self.purpose, Purpose::Run { .. })
    }

    /// Whether nothing but the one who asked waits for it: a command in a container, or the end of one.
    pub(crate) fn is_exec(&self) -> bool {
        matches!(self.purpose, Purpose::Exec { .. } | Purpose::EndExec { .. })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.pid
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.child.report_fd()
    }

    /// How it ended, if it has. Past its deadline it is killed.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Outcome> {
        let report = match self.kind {
            Kind::Run => self.outcome(Outcome::Started, Outcome::RunFailed),
            Kind::Exec => self.outcome(Outcome::Executed, Outcome::RunFailed),
            Kind::Plain => self.outcome(|()| Outcome::Done, Outcome::Failed),
        };
        if report.is_none() && now >= self.deadline {
            let _ = process::kill(self.child.pid, 9);
            return Some(Outcome::Lost { timed_out: true });
        }
        report
    }

    fn outcome<T: DeserializeOwned, E: DeserializeOwned>(
        &mut self,
        done: impl FnOnce(T) -> Outcome,
        failed: impl FnOnce(E) -> Outcome,
    ) -> Option<Outcome> {
        match self.child.poll::<std::result::Result<T, E>>() {
            Report::Pending => None,
            Report::Done(Ok(value)) => Some(done(value)),
            Report::Done(Err(error)) => Some(failed(error)),
            Report::Lost => Some(Outcome::Lost { timed_out: false }),
        }
    }
}
