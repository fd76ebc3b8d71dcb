//! What the shim does for each request, and when the operation behind it has ended.
//!
//! Always holds: `Ok(None)` means that an operation will answer; only one operation at a time works on a container, and
//! none while the sandbox is being made or destroyed; a start is answered before its end is told.

use std::time::{Duration, Instant};

use skiff_sys::{ContainerConfig, RunError, SandboxConfig, process};

use crate::execs::executed;
use crate::operation::{Asker, Operation, Outcome, Purpose};
use crate::output::{Output, Streams};
use crate::pod::{self, Container, Life};
use crate::protocol::{ReplyBody, RequestBody, RunRequest, ShimError, State};
use crate::server::Server;
use crate::updates::Change;
use crate::{EXIT_DIR, LOG_DIR, SANDBOX_FILE};

/// Containers of a Pod, exited ones included.
const MAX_CONTAINERS: usize = 64;

/// Longest that a start may take.
const MAX_RUN_TIMEOUT: Duration = Duration::from_secs(600);

pub(crate) type Answer = Result<Option<ReplyBody>, ShimError>;

impl Server {
    /// Does what can be done at once, and begins what cannot.
    pub(crate) fn handle(&mut self, asker: Asker, body: RequestBody) -> Answer {
        if self
            .operations
            .iter()
            .any(|operation| matches!(operation.purpose, Purpose::Shutdown))
        {
            return Err(ShimError::Sandbox("is being shut down".to_owned()));
        }
        match body {
            RequestBody::MakeSandbox(config) => self.make_sandbox(asker, config),
            RequestBody::Run(request) => self.run(asker, *request),
            RequestBody::Signal { container, signal } => self.signal(&container, signal),
            RequestBody::KillAll { container } => self.kill_all(container.as_deref()),
            RequestBody::Delete { container } => self.delete(asker, container),
            RequestBody::State => Ok(Some(ReplyBody::State(self.state()))),
            RequestBody::Shutdown => self.shut_down(asker),
            RequestBody::Exec(request) => self.exec(asker, &request),
            RequestBody::Update {
                container,
                limits,
                pod,
            } => self.update(Change {
                asker,
                container,
                limits,
                pod,
            }),
        }
    }

    fn make_sandbox(&mut self, asker: Asker, config: SandboxConfig) -> Answer {
        if self.sandbox.as_ref() == Some(&config) {
            return Ok(Some(ReplyBody::Done));
        }
        let making = self
            .operations
            .iter()
            .any(|operation| matches!(operation.purpose, Purpose::MakeSandbox(_)));
        if self.sandbox.is_some() || making {
            return Err(ShimError::Sandbox("exists already".to_owned()));
        }
        // Recorded before it is begun: whoever collects must find what a crash in between leaves.
        let file = self.pod_dir.join(SANDBOX_FILE);
        pod::store(&file, &config)
            .map_err(|error| ShimError::Sandbox(format!("{}: {error}", file.display())))?;
        let operation = Operation::make_sandbox(config, &self.cgroups, asker)?;
        self.operations.push(operation);
        Ok(None)
    }

    fn run(&mut self, asker: Asker, request: RunRequest) -> Answer {
        let RunRequest {
            config,
            name,
            attempt,
            log,
            timeout_ms,
        } = request;
        let id = config.id.clone();
        if self.sandbox.is_none() {
            return Err(ShimError::Sandbox("does not exist yet".to_owned()));
        }
        if let Some(value) = [&id, &name].into_iter().find(|value| !pod::is_plain_name(value)) {
            let reason = format!("{value:?} cannot be a file's name");
            return Err(ShimError::Run(RunError::Config {
                id: id.clone(),
                reason,
            }));
        }
        if self.containers.contains_key(&id) {
            return Err(ShimError::Exists(id));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(ShimError::TooMany {
                what: "containers".to_owned(),
                max: MAX_CONTAINERS as u64,
            });
        }
        let dir = self.pod_dir.join(LOG_DIR).join(&name);
        let streams = Streams {
            tty: config.tty,
            stdin: config.stdin,
            uid: config.host_owner().0,
        };
        let made = Output::create(&dir, attempt, log.capacity, streams);
        let (output, stdio) = made.map_err(|error| ShimError::Kernel(error.to_string()))?;
        let timeout = Duration::from_millis(timeout_ms).min(MAX_RUN_TIMEOUT);
        let begun = Operation::run(&config, stdio, &self.cgroups, timeout, asker);
        self.operations.push(begun.inspect_err(|_| forget_ring(&output))?);
        let container = Container {
            name,
            attempt,
            remains: skiff_sys::container::Remains::of(&config),
            config: Box::new(ContainerConfig {
                mounts: Vec::new(),
                devices: Vec::new(),
                hooks: Vec::new(),
                ..config
            }),
            output,
            life: Life::Starting,
        };
        self.containers.insert(id, container);
        Ok(None)
    }

    fn signal(&mut self, id: &str, signal: i32) -> Answer {
        let container = self
            .containers
            .get(id)
            .ok_or_else(|| ShimError::NotFound(id.to_owned()))?;
        match &container.life {
            // It has not been waited for, so its number still names it, even if it has just ended.
            Life::Running { process, .. } => process::kill(process.pid, signal)?,
            Life::Starting => return Err(wrong_state(id, "is still being started")),
            Life::Exited(_) => return Err(wrong_state(id, "has exited")),
        }
        Ok(Some(ReplyBody::Done))
    }

    fn kill_all(&mut self, id: Option<&str>) -> Answer {
        if let Some(id) = id
            && !self.containers.contains_key(id)
        {
            return Err(ShimError::NotFound(id.to_owned()));
        }
        let chosen = self
            .containers
            .iter()
            .filter(|(name, _)| id.is_none_or(|id| id == *name));
        for (_, container) in chosen {
            self.cgroups.kill_once(&container.remains.cgroup_path)?;
        }
        Ok(Some(ReplyBody::Done))
    }

    fn delete(&mut self, asker: Asker, id: String) -> Answer {
        let container = self
            .containers
            .get(&id)
            .ok_or_else(|| ShimError::NotFound(id.clone()))?;
        match container.life {
            Life::Exited(_) if !self.is_busy(&id) => {}
            Life::Exited(_) => return Err(wrong_state(&id, "is being deleted")),
            Life::Starting => return Err(wrong_state(&id, "is still being started")),
            Life::Running { .. } => return Err(wrong_state(&id, "is still running")),
        }
        let remains = container.remains.clone();
        let operation = Operation::remove(
            Purpose::Delete { container: id },
            &[remains],
            &self.cgroups,
            asker,
        );
        self.operations.push(operation?);
        Ok(None)
    }

    fn is_busy(&self, id: &str) -> bool {
        self.operations.iter().any(|operation| match &operation.purpose {
            Purpose::Run { container, .. }
            | Purpose::Undo { container, .. }
            | Purpose::Delete { container } => container == id,
            // A command in it ends when it ends.
            Purpose::Exec { .. }
            | Purpose::EndExec { .. }
            | Purpose::Update(_)
            | Purpose::MakeSandbox(_)
            | Purpose::Shutdown => false,
        })
    }

    fn state(&self) -> State {
        let show = |(id, container): (&String, &Container)| {
            container.state(id, self.cgroups.oom_kills(&container.remains.cgroup_path))
        };
        State {
            pid: std::process::id() as i32,
            sandbox: self.sandbox.clone(),
            containers: self.containers.iter().map(show).collect(),
            busy: self.operations.iter().any(|operation| !operation.is_exec()),
        }
    }

    fn shut_down(&mut self, asker: Asker) -> Answer {
        // A start or a sandbox in the making would outlive what is removed here.
        if self.operations.iter().any(|operation| !operation.is_exec()) {
            return Err(ShimError::Sandbox(
                "is busy; try again when the operations under way have ended".to_owned(),
            ));
        }
        self.abort_execs();
        let remains: Vec<_> = self
            .containers
            .values()
            .map(|container| container.remains.clone())
            .collect();
        let exits = self.pod_dir.join(EXIT_DIR);
        let operation = Operation::shut_down(&remains, self.sandbox.as_ref(), &exits, &self.cgroups, asker);
        self.operations.push(operation?);
        Ok(None)
    }

    /// Answers for the operations that have ended or are overdue.
    pub(crate) fn finish_operations(&mut self, now: Instant) {
        let mut ended = Vec::new();
        self.operations.retain_mut(|operation| match operation.poll(now) {
            None => true,
            Some(outcome) => {
                // The purpose moves out; what stays behind is dropped with the operation.
                let purpose = std::mem::replace(&mut operation.purpose, Purpose::Shutdown);
                ended.push((purpose, operation.asker, outcome));
                false
            }
        });
        for (purpose, asker, outcome) in ended {
            let begun = match (&purpose, &outcome) {
                (Purpose::Run { container, .. }, Outcome::Started(process)) => {
                    Some((container.clone(), process.pid))
                }
                _ => None,
            };
            if let Some(result) = self.finish(purpose, asker, outcome).transpose() {
                self.reply(asker, result);
            }
            // A short command may have ended before its start was reported; its end is told after its beginning.
            if let Some((container, pid)) = begun {
                self.tell_stray_exit(&container, pid);
            }
        }
        self.next_change();
    }

    fn finish(&mut self, purpose: Purpose, asker: Asker, outcome: Outcome) -> Answer {
        match (purpose, outcome) {
            (Purpose::Run { container, .. }, Outcome::Started(started)) => {
                self.started(&container, started);
                Ok(Some(ReplyBody::Started(started)))
            }
            (Purpose::Run { container, timeout }, outcome) => {
                let error = self.why_not_started(&container, timeout, outcome);
                self.undo(asker, &container, error)
            }
            (Purpose::Undo { container, error }, _) => {
                // What could not be removed stays in the Pod's cgroup and directory, and goes with the sandbox.
                self.forget_unstarted(&container);
                Err(ShimError::Run(error))
            }
            (Purpose::Delete { container }, Outcome::Done) => {
                self.containers.remove(&container);
                let _ = std::fs::remove_file(pod::exit_file(&self.pod_dir, &container));
                Ok(Some(ReplyBody::Done))
            }
            (Purpose::Delete { .. }, outcome) => Err(ShimError::Kernel(describe(outcome))),
            (Purpose::Exec { .. }, Outcome::Executed(execution)) => Ok(Some(executed(execution))),
            (Purpose::Exec { .. }, Outcome::RunFailed(error)) => Err(ShimError::Run(error)),
            (Purpose::Exec { place, group, .. }, outcome) => {
                self.end_exec(asker, &group, place);
                Err(ShimError::Kernel(describe(outcome)))
            }
            // It has been answered.
            (Purpose::EndExec { .. }, _) => Ok(None),
            (Purpose::Update(update), outcome) => self.updated(*update, outcome),
            (Purpose::MakeSandbox(config), Outcome::Done) => {
                self.sandbox = Some(*config);
                Ok(Some(ReplyBody::Done))
            }
            (Purpose::Shutdown, Outcome::Done) => {
                let _ = std::fs::remove_file(self.pod_dir.join(SANDBOX_FILE));
                self.finished = true;
                Ok(Some(ReplyBody::Done))
            }
            (Purpose::MakeSandbox(_) | Purpose::Shutdown, outcome) => {
                Err(ShimError::Sandbox(describe(outcome)))
            }
        }
    }

    fn started(&mut self, id: &str, process: skiff_sys::Started) {
        let started_at = pod::now();
        if let Some(container) = self.containers.get_mut(id) {
            container.life = Life::Running { process, started_at };
        }
    }

    fn tell_stray_exit(&mut self, id: &str, pid: i32) {
        let life = self.containers.get(id).map(|container| &container.life);
        if let Some(&Life::Running { started_at, .. }) = life
            && let Some(ended) = self.take_stray_exit(pid)
        {
            self.exited(id, started_at, ended);
        }
    }

    fn why_not_started(&self, id: &str, timeout: Duration, outcome: Outcome) -> RunError {
        let error = match outcome {
            Outcome::RunFailed(error) => return error,
            Outcome::Lost { timed_out: true } => RunError::Timeout {
                id: id.to_owned(),
                millis: timeout.as_millis() as u64,
            },
            outcome => RunError::Create {
                id: id.to_owned(),
                reason: describe(outcome),
            },
        };
        let container = self.containers.get(id);
        let killed = |container: &&Container| self.cgroups.oom_kills(&container.remains.cgroup_path) > 0;
        match container
            .filter(killed)
            .and_then(|container| container.config.resources.memory_bytes)
        {
            Some(limit) => RunError::OutOfMemory {
                id: id.to_owned(),
                limit,
                reason: error.to_string(),
            },
            None => error,
        }
    }

    /// Removes what a failed start has left; the error is told after that, so that a retry finds nothing in its way.
    fn undo(&mut self, asker: Asker, container: &str, error: RunError) -> Answer {
        let remains: Vec<_> = self
            .containers
            .get(container)
            .map(|c| c.remains.clone())
            .into_iter()
            .collect();
        let purpose = Purpose::Undo {
            container: container.to_owned(),
            error: error.clone(),
        };
        match Operation::remove(purpose, &remains, &self.cgroups, asker) {
            Ok(operation) => {
                self.operations.push(operation);
                Ok(None)
            }
            Err(_) => {
                self.forget_unstarted(container);
                Err(ShimError::Run(error))
            }
        }
    }

    fn forget_unstarted(&mut self, id: &str) {
        if let Some(container) = self.containers.remove(id) {
            forget_ring(&container.output);
        }
    }
}

/// Nothing ran, so nothing was said; a ring without an end would keep those waiting who follow it.
fn forget_ring(output: &Output) {
    let _ = std::fs::remove_file(output.state().path);
}

pub(crate) fn wrong_state(container: &str, state: &str) -> ShimError {
    ShimError::WrongState {
        container: container.to_owned(),
        state: state.to_owned(),
    }
}

pub(crate) fn describe(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed(reason) => reason,
        Outcome::RunFailed(error) => error.to_string(),
        Outcome::Lost { timed_out: true } => "no answer in time; the attempt was killed".to_owned(),
        Outcome::Lost { timed_out: false } => "the operation's process died".to_owned(),
        Outcome::Started(_) | Outcome::Executed(_) | Outcome::Done => "an unexpected answer".to_owned(),
    }
}
