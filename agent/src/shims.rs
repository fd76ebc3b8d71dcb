//! One task a Pod: it starts the Pod's shim or finds it running, passes requests on and turns answers into events.
//!
//! Always holds: a task answers each effect with exactly one event, also when the shim is lost; the shim outlives it.

mod connection;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use skiff_core::{
    ContainerRef, Event, Exit, ObservedContainer, ObservedPhase, ObservedPod, StartError, Urgency,
};
use skiff_protocol::uid::Uid;
use skiff_shim::protocol::{
    self, Phase, Reply, ReplyBody, Request, RequestBody, RunRequest, ShimError, ToClient,
};
use skiff_sys::cgroup::Cgroups;
use skiff_sys::{RunError, SandboxConfig};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::input::Input;
use connection::{Connection, next};

/// Requests that may wait for one Pod: a few for each of its containers.
const QUEUE: usize = 4 * skiff_protocol::limits::CONTAINERS;

/// How long a shim may take to listen. A cold card reads the binary first.
const SHIM_START: Duration = Duration::from_secs(20);

/// How long a shim may take for everything at the end: ten seconds of killing, as many of removing.
const SHUTDOWN: Duration = Duration::from_secs(40);

/// How long a shim that is busy is left alone before it is asked to end again.
const SHUTDOWN_AGAIN: Duration = Duration::from_millis(50);

const SIGKILL: i32 = 9;

/// What a task is asked for.
pub(crate) enum Command {
    /// Make the sandbox.
    MakeSandbox(Box<SandboxConfig>),
    /// Start a container. What the shim does not keep is kept in a file beside it.
    Run {
        /// Which.
        container: ContainerRef,
        /// How.
        request: Box<RunRequest>,
        /// For the next agent.
        note: Note,
    },
    /// Send a signal to a container.
    Stop {
        /// Which.
        container: ContainerRef,
        /// How.
        urgency: Urgency,
        /// The signal for [`Urgency::Ask`].
        signal: i32,
    },
    /// End everything and remove it.
    Remove,
}

/// What must be known of a running container after a restart of the agent.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Note {
    /// The image it runs from.
    pub image_id: String,
    /// [`skiff_core::Core::spec_digest`] of its spec.
    pub spec_digest: u64,
}

/// Where Pods' files are, and who runs the shims.
#[derive(Clone)]
pub(crate) struct Place {
    /// `<run>/pods`.
    pub run: PathBuf,
    /// `<state>/pods`.
    pub state: PathBuf,
    /// The read-only copy of this program.
    pub executable: PathBuf,
    /// The node's cgroups.
    pub cgroups: Cgroups,
}

impl Place {
    /// A Pod's directory on tmpfs.
    #[must_use]
    pub(crate) fn run_of(&self, uid: Uid) -> PathBuf {
        self.run.join(uid.to_string())
    }

    /// A Pod's directory on disk.
    #[must_use]
    pub(crate) fn state_of(&self, uid: Uid) -> PathBuf {
        self.state.join(uid.to_string())
    }
}

/// `containerID`.
#[must_use]
pub(crate) fn container_id(pod: Uid, container: &str) -> String {
    format!("skiff://{pod}_{container}")
}

/// The tasks of all Pods.
pub(crate) struct Shims {
    place: Place,
    inputs: mpsc::Sender<Input>,
    tasks: BTreeMap<Uid, mpsc::Sender<Command>>,
}

impl Shims {
    /// No tasks yet.
    #[must_use]
    pub(crate) fn new(place: Place, inputs: mpsc::Sender<Input>) -> Self {
        Self {
            place,
            inputs,
            tasks: BTreeMap::new(),
        }
    }

    /// Finds the shims that run, and clears what is left of those that do not.
    ///
    /// # Errors
    /// When the directory of Pods cannot be read.
    pub(crate) async fn find(&mut self) -> io::Result<Vec<ObservedPod>> {
        std::fs::create_dir_all(&self.place.run)?;
        std::fs::create_dir_all(&self.place.state)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.place.run)? {
            let entry = entry?;
            let Some(uid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<Uid>().ok())
            else {
                continue;
            };
            match Connection::adopt(&entry.path()).await {
                Ok((connection, state)) => {
                    found.push(observe(uid, &entry.path(), &state));
                    self.spawn(uid, Some((connection, state)));
                }
                Err(error) => {
                    info!(pod = %uid, %error, "no shim runs for this Pod; clearing what is left of it");
                    let place = self.place.clone();
                    if let Err(error) = clear(&place, uid, true).await {
                        warn!(pod = %uid, error, "what is left of the Pod cannot be cleared yet");
                    }
                }
            }
        }
        Ok(found)
    }

    /// Passes a command on, to a new task where the Pod has none.
    pub(crate) fn send(&mut self, uid: Uid, command: Command) {
        if !self.tasks.contains_key(&uid) {
            self.spawn(uid, None);
        }
        if let Some(task) = self.tasks.get(&uid)
            && task.try_send(command).is_err()
        {
            error!(pod = %uid, "the Pod's queue of requests is full; a request is lost");
        }
    }

    /// Forgets the task of a Pod that is gone.
    pub(crate) fn forget(&mut self, uid: Uid) {
        self.tasks.remove(&uid);
    }

    fn spawn(&mut self, uid: Uid, adopted: Option<(Connection, protocol::State)>) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let (connection, state) = adopted.map_or((None, None), |(connection, state)| {
            (Some(connection), Some(state))
        });
        let task = Task {
            uid,
            place: self.place.clone(),
            inputs: self.inputs.clone(),
            connection,
            next_request: 1,
            pending: BTreeMap::new(),
            // An exit that the shim told in its state may come again as an event; the core knows it already.
            attempts: state
                .iter()
                .flat_map(|it| &it.containers)
                .map(|it| (it.id.clone(), reference(uid, it)))
                .collect(),
        };
        self.tasks.insert(uid, sender);
        tokio::spawn(task.run(commands));
    }
}

fn reference(uid: Uid, container: &protocol::ContainerState) -> ContainerRef {
    ContainerRef {
        pod: uid,
        name: container.name.clone(),
        attempt: container.attempt,
    }
}

fn note_path(pod_dir: &Path, container: &str) -> PathBuf {
    pod_dir.join("notes").join(container)
}

fn observe(uid: Uid, dir: &Path, state: &protocol::State) -> ObservedPod {
    let ip = state
        .sandbox
        .as_ref()
        .and_then(|it| it.network.as_ref())
        .and_then(|it| match it.address.address {
            std::net::IpAddr::V4(ip) => Some(ip),
            std::net::IpAddr::V6(_) => None,
        });
    // Of a container that was restarted the shim may still know the attempt before; the latest counts.
    let mut latest: BTreeMap<&str, &protocol::ContainerState> = BTreeMap::new();
    for container in &state.containers {
        let newer = latest
            .get(container.name.as_str())
            .is_none_or(|it| it.attempt <= container.attempt);
        if newer {
            latest.insert(&container.name, container);
        }
    }
    let containers = latest.into_values().filter_map(|it| {
        let note = std::fs::read(note_path(dir, &it.id))
            .ok()
            .and_then(|bytes| postcard::from_bytes::<Note>(&bytes).ok());
        let note = note.unwrap_or(Note {
            image_id: String::new(),
            spec_digest: 0,
        });
        let phase = match &it.phase {
            Phase::Starting => return None,
            Phase::Running { started_at, .. } => ObservedPhase::Running(started_at.unix_ns / 1_000_000_000),
            Phase::Exited(exit) => ObservedPhase::Exited(exit_of(exit)),
        };
        Some(ObservedContainer {
            name: it.name.clone(),
            attempt: it.attempt,
            container_id: container_id(uid, &it.id),
            image_id: note.image_id,
            spec_digest: note.spec_digest,
            phase,
        })
    });
    ObservedPod {
        uid,
        sandbox: state.sandbox.is_some(),
        ip,
        containers: containers.collect(),
    }
}

fn exit_of(exit: &protocol::Exit) -> Exit {
    Exit {
        exit_code: exit.exit_code,
        signal: exit.signal.unwrap_or(0),
        oom_killed: exit.oom_killed,
        started_at: exit.started_at.unix_ns / 1_000_000_000,
        finished_at: exit.finished_at.unix_ns / 1_000_000_000,
    }
}

/// What a request was for.
enum Pending {
    Sandbox,
    Run(ContainerRef, String),
    Quiet,
    Shutdown,
}

struct Task {
    uid: Uid,
    place: Place,
    inputs: mpsc::Sender<Input>,
    connection: Option<Connection>,
    next_request: u64,
    pending: BTreeMap<u64, Pending>,
    attempts: BTreeMap<String, ContainerRef>,
}

impl Task {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                // Receiving from a channel loses nothing when cancelled.
                command = commands.recv() => match command {
                    Some(Command::Remove) => {
                        self.remove().await;
                    }
                    Some(command) => self.command(command).await,
                    None => return,
                },
                // Bytes read so far stay in the connection's buffer.
                message = next(&mut self.connection) => match message {
                    Ok(message) => self.message(message).await,
                    Err(error) => self.lost(&error).await,
                },
            }
        }
    }

    async fn tell(&self, event: Event) {
        // The driver is gone only when the agent ends.
        let _ = self.inputs.send(Input::Core(Box::new(event))).await;
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::MakeSandbox(config) => {
                if let Err(message) = self.make_sandbox(*config).await {
                    self.tell(Event::SandboxFailed(self.uid, message)).await;
                }
            }
            Command::Run {
                container,
                request,
                note,
            } => {
                let id = request.config.id.clone();
                self.forget_older(&container).await;
                let bytes = postcard::to_allocvec(&note).unwrap_or_default();
                let path = note_path(&self.place.run_of(self.uid), &id);
                let kept = path
                    .parent()
                    .map_or(Ok(()), std::fs::create_dir_all)
                    .and_then(|()| std::fs::write(&path, bytes));
                if let Err(error) = kept {
                    warn!(path = %path.display(), %error, "cannot keep what the next agent must know");
                }
                self.attempts.insert(id.clone(), container.clone());
                let pending = Pending::Run(container.clone(), container_id(self.uid, &id));
                if self.ask(RequestBody::Run(request), pending).await.is_err() {
                    let error = StartError::Failed {
                        exit_code: 128,
                        message: "the Pod's shim is gone".to_owned(),
                    };
                    self.tell(Event::StartFailed { container, error }).await;
                }
            }
            Command::Stop {
                container,
                urgency,
                signal,
            } => {
                let id = format!("{}-{}", container.name, container.attempt);
                let body = match urgency {
                    Urgency::Ask => RequestBody::Signal {
                        container: id,
                        signal,
                    },
                    Urgency::Kill => RequestBody::KillAll { container: Some(id) },
                };
                // A container that cannot be told has ended or is lost; either is told by an event of its own.
                let _ = self.ask(body, Pending::Quiet).await;
            }
            Command::Remove => {}
        }
    }

    /// Removes what the shim and the disk keep of the container's earlier attempts, but for the last one's log.
    async fn forget_older(&mut self, container: &ContainerRef) {
        let older = self
            .attempts
            .iter()
            .filter(|(_, it)| it.name == container.name && it.attempt < container.attempt);
        let older: Vec<String> = older.map(|(id, _)| id.clone()).collect();
        for id in older {
            self.attempts.remove(&id);
            let _ = self
                .ask(
                    RequestBody::Delete {
                        container: id.clone(),
                    },
                    Pending::Quiet,
                )
                .await;
            let _ = std::fs::remove_file(note_path(&self.place.run_of(self.uid), &id));
            let disk = self.place.state_of(self.uid).join("containers").join(&id);
            if let Err(error) = tokio::fs::remove_dir_all(&disk).await
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(path = %disk.display(), %error, "cannot remove an ended container's files");
            }
        }
    }

    async fn make_sandbox(&mut self, config: SandboxConfig) -> Result<(), String> {
        let dir = self.place.run_of(self.uid);
        if self.connection.is_none() {
            let failed = |error: io::Error| format!("{}: {error}", dir.display());
            std::fs::create_dir_all(&dir).map_err(failed)?;
            let started = tokio::time::timeout(SHIM_START, start_shim(&self.place.executable, &dir)).await;
            let connection = started.map_err(|_| "the shim did not start in time".to_owned())??;
            self.connection = Some(connection);
        }
        let asked = self.ask(RequestBody::MakeSandbox(config), Pending::Sandbox).await;
        asked.map_err(|error| format!("the shim is gone: {error}"))
    }

    async fn ask(&mut self, body: RequestBody, pending: Pending) -> io::Result<()> {
        let id = self.next_request;
        self.next_request += 1;
        let connection = self.connection.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        connection.send(&Request { id, body }).await?;
        self.pending.insert(id, pending);
        Ok(())
    }

    async fn message(&mut self, message: ToClient) {
        match message {
            ToClient::Event(protocol::Event::Exited(exit)) => {
                if let Some(container) = self.attempts.get(&exit.container) {
                    let event = Event::Exited {
                        container: container.clone(),
                        exit: exit_of(&exit),
                    };
                    self.tell(event).await;
                }
            }
            ToClient::Reply(Reply { id, result }) => {
                if let Some(pending) = self.pending.remove(&id) {
                    self.reply(pending, result).await;
                }
            }
        }
    }

    async fn reply(&mut self, pending: Pending, result: Result<ReplyBody, ShimError>) {
        let event = match (pending, result) {
            (Pending::Sandbox, Ok(_)) => Event::SandboxReady(self.uid),
            (Pending::Sandbox, Err(error)) => Event::SandboxFailed(self.uid, error.to_string()),
            (Pending::Run(container, container_id), Ok(_)) => Event::Started {
                container,
                container_id,
            },
            (Pending::Run(container, _), Err(ShimError::Run(RunError::Network { reason, .. }))) => {
                let error = StartError::Config(reason.clone());
                self.tell(Event::StartFailed { container, error }).await;
                self.reset(reason).await;
                return;
            }
            (Pending::Run(container, _), Err(error)) => Event::StartFailed {
                container,
                error: StartError::Failed {
                    exit_code: code(&error),
                    message: error.to_string(),
                },
            },
            (Pending::Quiet | Pending::Shutdown, _) => return,
        };
        self.tell(event).await;
    }

    /// The shim ended without being asked: what it owned is killed, then the core hears of it.
    async fn lost(&mut self, why: &io::Error) {
        error!(pod = %self.uid, %why, "the Pod's shim is gone");
        self.connection = None;
        if let Err(error) = clear(&self.place, self.uid, false).await {
            warn!(pod = %self.uid, error, "what is left of the Pod cannot be cleared yet");
        }
        self.attempts.clear();
        let pending = std::mem::take(&mut self.pending);
        let sandbox = pending.into_values().any(|it| matches!(it, Pending::Sandbox));
        if sandbox {
            self.tell(Event::SandboxFailed(self.uid, "the shim ended".to_owned()))
                .await;
        }
        self.tell(Event::ShimLost(self.uid)).await;
    }

    async fn remove(&mut self) {
        self.end_shim().await;
        self.pending.clear();
        self.attempts.clear();
        let event = match clear(&self.place, self.uid, true).await {
            Ok(()) => Event::Removed(self.uid),
            Err(message) => Event::RemoveFailed(self.uid, message),
        };
        self.tell(event).await;
    }

    /// The Pod's network failed: its sandbox is of no use and is made anew, after the core's back-off.
    async fn reset(&mut self, reason: String) {
        let starting = std::mem::take(&mut self.pending).into_values();
        for pending in starting {
            if let Pending::Run(container, _) = pending {
                let error = StartError::Config(reason.clone());
                self.tell(Event::StartFailed { container, error }).await;
            }
        }
        self.end_shim().await;
        self.attempts.clear();
        if let Err(error) = clear(&self.place, self.uid, false).await {
            warn!(pod = %self.uid, error, "what is left of the Pod cannot be cleared yet");
        }
        self.tell(Event::SandboxFailed(self.uid, reason)).await;
    }

    /// Ends the shim and all that it owns, whether it wants to or not.
    async fn end_shim(&mut self) {
        if self.connection.is_none() {
            return;
        }
        let pid = self.connection.as_ref().and_then(Connection::pid);
        let ended = tokio::time::timeout(SHUTDOWN, self.shut_down()).await;
        if let Err(why) = ended.unwrap_or_else(|_| Err("it did not answer in time".to_owned())) {
            warn!(pod = %self.uid, why, "the shim could not end the Pod; it is killed");
            if let Some(pid) = pid {
                // Its containers are killed by their cgroup right after.
                let _ = skiff_sys::process::kill(pid, SIGKILL);
            }
        }
        self.connection = None;
    }

    /// Has the shim end everything; waits for its answer, and meanwhile passes on nothing: the Pod is at its end.
    async fn shut_down(&mut self) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        self.ask(RequestBody::Shutdown, Pending::Shutdown)
            .await
            .map_err(text)?;
        loop {
            match next(&mut self.connection).await {
                Ok(ToClient::Reply(Reply { id, result })) => {
                    if !matches!(self.pending.remove(&id), Some(Pending::Shutdown)) {
                        continue;
                    }
                    let Err(why) = result else { return Ok(()) };
                    // An operation is under way; the caller's deadline bounds how often this is said.
                    info!(pod = %self.uid, %why, "the shim is not ready to end");
                    tokio::time::sleep(SHUTDOWN_AGAIN).await;
                    self.ask(RequestBody::Shutdown, Pending::Shutdown)
                        .await
                        .map_err(text)?;
                }
                Ok(ToClient::Event(_)) => {}
                Err(error) => return Err(text(error)),
            }
        }
    }
}

/// Kubernetes' exit code of a container that did not start.
fn code(error: &ShimError) -> i32 {
    match error {
        ShimError::Run(RunError::Exec { errno, .. }) if *errno == nix_enoent() => 127,
        ShimError::Run(RunError::Exec { .. }) => 126,
        _ => 128,
    }
}

/// `ENOENT`, which is 2 on every Linux.
const fn nix_enoent() -> i32 {
    2
}

/// Kills and removes what a Pod without a shim left: processes, mounts, devices, cgroups, and with `files` its files.
async fn clear(place: &Place, uid: Uid, files: bool) -> Result<(), String> {
    let (cgroups, run, state) = (place.cgroups.clone(), place.run_of(uid), place.state_of(uid));
    let work = move || {
        if files {
            return clear_now(&cgroups, &run, &state);
        }
        // Volumes and logs stay for the containers that follow.
        let _ = std::fs::remove_file(run.join(skiff_shim::SOCKET_NAME));
        destroy(&cgroups, &run)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())?
}

fn destroy(cgroups: &Cgroups, run: &Path) -> Result<(), String> {
    let sandbox = std::fs::read(run.join(skiff_shim::SANDBOX_FILE)).ok();
    match sandbox.and_then(|it| postcard::from_bytes::<SandboxConfig>(&it).ok()) {
        Some(config) => skiff_sys::sandbox::destroy(&config, cgroups).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

/// Removes all that is left of a Pod whose shim is gone: what the kernel holds, and its two directories.
///
/// # Errors
/// What could not be removed.
pub(crate) fn clear_now(cgroups: &Cgroups, run: &Path, state: &Path) -> Result<(), String> {
    destroy(cgroups, run)?;
    for dir in [run, state] {
        skiff_sys::mount::unmount_all_under(dir).map_err(|error| error.to_string())?;
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("{}: {error}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn start_shim(executable: &Path, dir: &Path) -> Result<Connection, String> {
    let failed = |what: &str, error: io::Error| format!("{what} {}: {error}", executable.display());
    let mut child = tokio::process::Command::new(executable)
        .arg("shim")
        .arg("--pod-dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed("cannot run", error))?;
    let mut ready = [0; 1];
    let mut stdout = child.stdout.take().ok_or("the shim has no output")?;
    stdout
        .read_exact(&mut ready)
        .await
        .map_err(|error| failed("the shim ended at once:", error))?;
    // Dropping the child neither kills it nor leaves a zombie: the runtime reaps it when it ends.
    drop(child);
    Connection::open(dir)
        .await
        .map_err(|error| failed("cannot reach the shim of", error))
}
