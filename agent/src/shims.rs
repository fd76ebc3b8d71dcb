//! One task a Pod: it starts the Pod's shim or finds it running, passes requests on and turns answers into events.
//!
//! Always holds: a task answers each effect with exactly one event, also when the shim is lost; the shim outlives it.

mod connection;
pub(crate) mod last_words;
mod observe;
mod remains;
mod starts;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use skiff_core::{ContainerRef, Event, ObservedPod, Probed, StartError, Urgency};
use skiff_protocol::uid::Uid;
use skiff_shim::protocol::{
    self, ExecRequest, Executed, MAX_EXEC_OUTPUT, Reply, ReplyBody, Request, RequestBody, RunRequest,
    ShimError, ToClient,
};
use skiff_sys::cgroup::Cgroups;
use skiff_sys::{ExecConfig, Limits, RunError, SandboxConfig};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::doctor::Layers;
use crate::input::Input;
use crate::own::Own;
use connection::{Connection, next, start_shim};
use observe::{
    exit_of, is_absence, keep_probed, note_path, observe, pods_in, probed_path, read_note, reference,
};
use remains::clear;
pub(crate) use remains::clear_now;
use starts::Start;

/// How long a shim may take to listen. A cold card reads the binary first.
const SHIM_START: Duration = Duration::from_secs(20);

/// How long a shim may take for everything at the end: ten seconds of killing, as many of removing.
const SHUTDOWN: Duration = Duration::from_secs(40);

/// How long a shim that is busy is left alone before it is asked to end again.
const SHUTDOWN_AGAIN: Duration = Duration::from_millis(50);

/// The same on every Linux.
const ENOENT: i32 = 2;
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
    /// Run a command in a container and wait for its end.
    Exec {
        /// Which.
        container: ContainerRef,
        /// Command and arguments.
        command: Vec<String>,
        /// When it is killed.
        until: Instant,
        /// Who asks; dropped where the shim is lost.
        answer: oneshot::Sender<Result<Executed, String>>,
    },
    /// Give a running container other limits, and the Pod with it.
    Update {
        /// Which.
        container: ContainerRef,
        /// All of the container's.
        limits: Box<Limits>,
        /// All of the Pod's.
        pod: Box<Limits>,
    },
    /// Give the Pod these limits, where it has others.
    PodLimits(Box<Limits>),
    /// End everything and remove it.
    Remove,
}

/// Counts up whenever the same spec would give another digest, so that an upgrade takes no spec for a changed one.
pub(crate) const NOTE_FORMAT: u32 = 2;

/// What must be known of a running container after a restart of the agent.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Note {
    /// [`NOTE_FORMAT`] of the agent that wrote it.
    pub(crate) format: u32,
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
    /// Where containers' writable layers can lie.
    pub layers: Layers,
    /// The read-only copy of this program.
    pub executable: PathBuf,
    /// The node's cgroups.
    pub cgroups: Cgroups,
    /// The agent's own cgroups.
    pub own: Own,
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

    /// The directory of its containers' writable layers; within one of the two.
    #[must_use]
    pub(crate) fn layers_of(&self, uid: Uid) -> PathBuf {
        if self.layers.in_memory {
            self.run_of(uid).join("layers")
        } else {
            self.state_of(uid).join("containers")
        }
    }
}

/// `containerID`.
#[must_use]
pub(crate) fn container_id(pod: Uid, container: &str) -> String {
    format!("skiff://{pod}_{container}")
}

/// What the shim calls a container.
fn id_of(container: &ContainerRef) -> String {
    format!("{}-{}", container.name, container.attempt)
}

/// The tasks of all Pods.
pub(crate) struct Shims {
    place: Place,
    inputs: mpsc::Sender<Input>,
    tasks: BTreeMap<Uid, mpsc::UnboundedSender<Command>>,
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

    /// Finds the shims that run, and clears what is left of those that do not. Of a Pod that is `wanted` the volumes
    /// stay, as when its shim is lost under a running agent.
    ///
    /// # Errors
    /// When the directory of Pods cannot be read, or a shim is there and does not answer: what it owns may be healthy,
    /// so it is neither ended nor started again.
    pub(crate) async fn find(&mut self, wanted: &BTreeSet<Uid>) -> io::Result<Vec<ObservedPod>> {
        std::fs::create_dir_all(&self.place.run)?;
        std::fs::create_dir_all(&self.place.state)?;
        let mut found = Vec::new();
        for uid in pods_in(&self.place.run)? {
            let dir = self.place.run_of(uid);
            match Connection::adopt(&dir).await {
                Ok((connection, state)) => {
                    found.push(observe(uid, &dir, &state));
                    self.spawn(uid, Some((connection, state)));
                }
                Err(error) if is_absence(&error) => {
                    info!(pod = %uid, "no shim runs for this Pod; clearing what is left of it");
                    if let Err(error) = clear(&self.place, uid, !wanted.contains(&uid)).await {
                        warn!(pod = %uid, error, "what is left of the Pod cannot be cleared yet");
                    }
                }
                Err(error) => {
                    let text = format!("the shim of pod {uid} is there and does not answer: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        // A Pod whose removal was cut off by the end of the power has files and nothing else.
        let kept = |uid: &Uid| wanted.contains(uid) || self.tasks.contains_key(uid);
        for uid in pods_in(&self.place.state)?.into_iter().filter(|uid| !kept(uid)) {
            if let Err(error) = clear(&self.place, uid, true).await {
                warn!(pod = %uid, error, "what is left of the Pod cannot be cleared yet");
            }
        }
        Ok(found)
    }

    /// Passes a command on, to a new task where the Pod has none. A command that was dropped would be waited for for ever,
    /// so the queue has no bound of its own: the core has few things under way for each container, and no more than one
    /// question of each kind.
    pub(crate) fn send(&mut self, uid: Uid, command: Command) {
        if !self.tasks.contains_key(&uid) {
            self.spawn(uid, None);
        }
        if let Some(task) = self.tasks.get(&uid)
            && task.send(command).is_err()
        {
            error!(pod = %uid, "the Pod's task has ended; a request is lost");
        }
    }

    /// Where commands for a Pod's task go, for those who wait for its answer.
    pub(crate) fn commands(&mut self, uid: Uid) -> mpsc::UnboundedSender<Command> {
        if let Some(task) = self.tasks.get(&uid) {
            return task.clone();
        }
        // Without a task there is no shim, and nobody who would answer.
        mpsc::unbounded_channel().0
    }

    /// Keeps what the next agent must know of a container's probes.
    pub(crate) fn note(&self, container: &ContainerRef, probed: Probed) {
        keep_probed(&self.place.run_of(container.pod), &id_of(container), probed);
    }

    /// Forgets the task of a Pod that is gone.
    pub(crate) fn forget(&mut self, uid: Uid) {
        self.tasks.remove(&uid);
    }

    fn spawn(&mut self, uid: Uid, adopted: Option<(Connection, protocol::State)>) {
        let (sender, commands) = mpsc::unbounded_channel();
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

/// What a request was for.
enum Pending {
    Sandbox,
    Run(Start),
    /// The shim's state, for a start that an earlier agent began and did not live to see.
    Begun(Start),
    /// A command in a container, and who waits for its end.
    Exec(oneshot::Sender<Result<Executed, String>>),
    Update(ContainerRef),
    PodLimits,
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
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
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
                let stale = read_note(&path).is_some_and(|it| it.spec_digest != note.spec_digest);
                let kept = path
                    .parent()
                    .map_or(Ok(()), std::fs::create_dir_all)
                    .and_then(|()| std::fs::write(&path, bytes));
                if let Err(error) = kept {
                    warn!(path = %path.display(), %error, "cannot keep what the next agent must know");
                }
                if !probed_path(&self.place.run_of(self.uid), &id).exists() {
                    // Nothing is known of it yet, which is not the same as a note that was never kept.
                    keep_probed(&self.place.run_of(self.uid), &id, Probed::default());
                }
                self.attempts.insert(id.clone(), container.clone());
                let start = Start { container, id, stale };
                self.begin(RequestBody::Run(request), start, Pending::Run).await;
            }
            Command::Stop {
                container,
                urgency,
                signal,
            } => {
                let id = id_of(&container);
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
            Command::Exec {
                container,
                command,
                until,
                answer,
            } => self.exec(&container, command, until, answer).await,
            Command::PodLimits(pod) => {
                let body = RequestBody::Update {
                    container: None,
                    limits: Limits::default(),
                    pod: *pod,
                };
                // A shim that is gone is told by an event of its own.
                let _ = self.ask(body, Pending::PodLimits).await;
            }
            Command::Update {
                container,
                limits,
                pod,
            } => {
                let body = RequestBody::Update {
                    container: Some(id_of(&container)),
                    limits: *limits,
                    pod: *pod,
                };
                if self.ask(body, Pending::Update(container.clone())).await.is_err() {
                    let result = Err("the Pod's shim is gone".to_owned());
                    self.tell(Event::Resized { container, result }).await;
                }
            }
            Command::Remove => {}
        }
    }

    async fn exec(
        &mut self,
        container: &ContainerRef,
        command: Vec<String>,
        until: Instant,
        answer: oneshot::Sender<Result<Executed, String>>,
    ) {
        let left = until.saturating_duration_since(Instant::now());
        let request = ExecRequest {
            container: id_of(container),
            config: ExecConfig { args: command },
            // A time that has run out while the command waited here is told as that, by the shim.
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1),
            output: MAX_EXEC_OUTPUT,
        };
        // Who asked sees its end of the answer dropped where the shim is gone.
        let _ = self.ask(RequestBody::Exec(request), Pending::Exec(answer)).await;
    }

    async fn make_sandbox(&mut self, config: SandboxConfig) -> Result<(), String> {
        let dir = self.place.run_of(self.uid);
        if self.connection.is_none() {
            let failed = |error: io::Error| format!("{}: {error}", dir.display());
            std::fs::create_dir_all(&dir).map_err(failed)?;
            // One may be there that was too late last time.
            let connection = match Connection::adopt(&dir).await {
                Ok((connection, _)) => connection,
                Err(_) => {
                    let started = tokio::time::timeout(SHIM_START, start_shim(&self.place, &dir)).await;
                    started.map_err(|_| "the shim did not start in time".to_owned())??
                }
            };
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
            (Pending::Run(start), Err(ShimError::Exists(_))) => {
                self.begin(RequestBody::State, start, Pending::Begun).await;
                return;
            }
            (Pending::Begun(start), Ok(ReplyBody::State(state))) => {
                self.begun(start, &state).await;
                return;
            }
            (Pending::Run(start) | Pending::Begun(start), Ok(_)) => self.started(&start),
            (Pending::Run(start), Err(ShimError::Run(RunError::Network { reason, .. }))) => {
                let (container, error) = (start.container, StartError::Config(reason.clone()));
                self.tell(Event::StartFailed { container, error }).await;
                self.reset(reason).await;
                return;
            }
            (Pending::Run(start) | Pending::Begun(start), Err(error)) => {
                start.failed(code(&error), error.to_string())
            }
            (Pending::Exec(answer), result) => {
                // Who asked has lost patience where nobody listens.
                let _ = answer.send(match result {
                    Ok(ReplyBody::Executed(executed)) => Ok(executed),
                    Ok(_) => Err("the shim answered something else".to_owned()),
                    Err(error) => Err(error.to_string()),
                });
                return;
            }
            (Pending::Update(container), result) => Event::Resized {
                container,
                result: result.map(drop).map_err(|error| error.to_string()),
            },
            (Pending::PodLimits, Err(error)) => {
                warn!(pod = %self.uid, %error, "the Pod keeps the limits that it has");
                return;
            }
            (Pending::PodLimits | Pending::Quiet | Pending::Shutdown, _) => return,
        };
        self.tell(event).await;
    }

    /// The shim ended without being asked: what it owned is killed, then the core hears of it.
    async fn lost(&mut self, why: &io::Error) {
        error!(pod = %self.uid, %why, "the Pod's shim is gone");
        if let Some(pid) = self.connection.take().and_then(|it| it.pid) {
            // One that still lives, and speaks what nobody understands, must not go on owning what is made anew.
            let _ = pid.signal(SIGKILL);
        }
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
            if let Pending::Run(Start { container, .. }) | Pending::Begun(Start { container, .. }) = pending {
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
        let ended = tokio::time::timeout(SHUTDOWN, self.shut_down()).await;
        let pid = self.connection.take().and_then(|it| it.pid);
        if let Err(why) = ended.unwrap_or_else(|_| Err("it did not answer in time".to_owned())) {
            warn!(pod = %self.uid, why, "the shim could not end the Pod; it is killed");
            if let Some(pid) = pid {
                // Its containers are killed by their cgroup right after.
                let _ = pid.signal(SIGKILL);
            }
        }
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
        ShimError::Run(RunError::Exec { errno, .. }) if *errno == ENOENT => 127,
        ShimError::Run(RunError::Exec { .. }) => 126,
        _ => 128,
    }
}
