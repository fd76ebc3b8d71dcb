//! The link to the nodes: the one part of the server that speaks MQTT.
//!
//! ```text
//! store ──watch──▶ World ──▶ Node (what it shall have) ──▶ sign ──▶ Outbox ──▶ broker ──▶ node
//! store ◀── Writes ◀── Node (order, epoch) ◀── Ingest ◀──────────────────────── broker ◀── node
//! API   ──logs──▶ Streams ◀──▶ …
//! ```
//!
//! One task owns all of it ([`task`]); the API sends it commands. [`compile`], [`node`], [`status`] and [`nodes`] are
//! pure.
//!
//! What always holds: nothing here polls; every queue has a bound in [`limits`]; nothing that comes from a node can
//! touch what is another node's, nor stop the task.

mod compile;
mod ingest;
pub(crate) mod lease;
pub mod limits;
mod node;
mod nodes;
pub(crate) mod statics;
mod status;
mod streams;
mod task;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use rustls::ClientConfig;
use skiff_protocol::topic::NodeName;
use skiff_protocol::wire::LogRequest;
use skiff_transport::{BrokerUrl, OptionsError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use ingest::{Counters, Wrong};

use crate::api::{LogError, LogOptions, LogStream, Nodes, PodRef};
use crate::events::Recorder;
use crate::store::Store;
use streams::Reader;

/// What the link asks of the fleet.
pub trait Fleet: Send + Sync {
    /// Signs a desired state with the key that the nodes pinned (Ed25519).
    fn sign(&self, message: &[u8]) -> [u8; 64];

    /// Whether the node has joined, and has not been removed.
    fn is_member(&self, node: &NodeName) -> bool;

    /// Whether the node had joined and was removed since. One that never joined may still come.
    fn was_removed(&self, node: &NodeName) -> bool;
}

/// How to reach the broker, and how long to wait for nodes.
pub struct Options {
    /// The broker.
    pub broker: BrokerUrl,
    /// The client id.
    pub client_id: String,
    /// User name and password.
    pub credentials: Option<(String, String)>,
    /// TLS, with the server's client certificate.
    pub tls: Option<Arc<ClientConfig>>,
    /// How long a node may take to say hello when it is asked, before it counts as Unknown.
    pub grace: Duration,
}

enum Command {
    OpenLog {
        node: NodeName,
        request: LogRequest,
        reply: oneshot::Sender<Result<Reader, LogError>>,
    },
    Forget(NodeName),
}

/// The API's handle on the link.
#[derive(Clone)]
pub struct Link {
    commands: mpsc::Sender<Command>,
    counters: Arc<Counters>,
}

impl Link {
    /// Starts the link's task. It runs until `stop` is set; it mends its connection by itself.
    ///
    /// # Errors
    /// When an option is out of its bounds.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        events: Recorder,
        fleet: Arc<dyn Fleet>,
        options: Options,
        stop: watch::Receiver<bool>,
    ) -> Result<(Self, JoinHandle<()>), OptionsError> {
        let (commands, waiting) = mpsc::channel(limits::COMMANDS);
        let counters = Arc::new(Counters::default());
        let task = task::Task::new(store, events, fleet, options, counters.clone())?;
        let handle = tokio::spawn(task.run(waiting, stop));
        Ok((Self { commands, counters }, handle))
    }

    /// How often each kind of wrong message was seen.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The node has joined anew, or was removed: its epoch and what it held say nothing any more.
    pub async fn forget(&self, node: &NodeName) {
        // A link that has ended knows nothing either.
        let _ended = self.commands.send(Command::Forget(node.clone())).await;
    }
}

#[async_trait]
impl Nodes for Link {
    async fn logs(&self, pod: PodRef, options: LogOptions) -> Result<LogStream, LogError> {
        let unreachable = || LogError::Unreachable {
            node: pod.node.clone(),
        };
        let node = NodeName::parse(&pod.node).map_err(|_| unreachable())?;
        let (reply, answer) = oneshot::channel();
        let (follow, container) = (options.follow, options.container.clone());
        let request = request(&pod, options);
        let command = Command::OpenLog { node, request, reply };
        self.commands.send(command).await.map_err(|_| unreachable())?;
        let reader = answer.await.map_err(|_| unreachable())??;
        let patience = if follow {
            limits::FIRST_PIECE
        } else {
            limits::STREAM_SILENCE
        };
        let silent = LogError::Timeout {
            node: pod.node.clone(),
            seconds: limits::STREAM_SILENCE.as_secs(),
        };
        match timeout(patience, reader.ready()).await {
            Ok(Some(Err(LogError::Failed { node, cause }))) => return Err(refused(&container, node, cause)),
            Ok(Some(Err(error))) => return Err(error),
            Err(_) if !follow => return Err(silent),
            Ok(_) | Err(_) => {}
        }
        if follow {
            return Ok(Box::pin(reader));
        }
        let pieces = futures_util::stream::unfold(Some(reader), move |reader| {
            let silent = silent.clone();
            async move {
                let mut reader = reader?;
                match timeout(limits::STREAM_SILENCE, reader.next()).await {
                    Ok(piece) => Some((piece?, Some(reader))),
                    Err(_) => Some((Err(silent), None)),
                }
            }
        });
        Ok(Box::pin(pieces))
    }
}

/// What a node says before it sends anything, as the error that Kubernetes has for it.
fn refused(container: &str, node: String, cause: String) -> LogError {
    let container = container.to_owned();
    if cause.starts_with("previous terminated container") {
        return LogError::NoPrevious { container };
    }
    match cause.split_once(" is waiting to start: ") {
        Some((_, reason)) => LogError::Waiting {
            container,
            reason: reason.to_owned(),
        },
        None => LogError::Failed { node, cause },
    }
}

fn request(pod: &PodRef, options: LogOptions) -> LogRequest {
    let ago = |seconds: u64| {
        let now = jiff::Timestamp::now().as_nanosecond();
        now - i128::from(seconds) * 1_000_000_000
    };
    let since = options
        .since_time
        .map(jiff::Timestamp::as_nanosecond)
        .or(options.since_seconds.map(ago));
    LogRequest {
        uid: pod.uid.parse().ok(),
        container: options.container,
        follow: options.follow,
        previous: options.previous,
        timestamps: options.timestamps,
        tail_lines: options.tail_lines,
        since: since.map(|at| i64::try_from(at).unwrap_or(0)),
        limit_bytes: options.limit_bytes,
    }
}
