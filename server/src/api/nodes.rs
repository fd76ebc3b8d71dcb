//! What the API needs of the nodes: the logs of a container.
//!
//! The link to the nodes implements [`Nodes`]; the API chooses and checks the container before it asks.

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;

/// A pod on the node that runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRef {
    /// `spec.nodeName`.
    pub node: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// Which part of a container's log is wanted; the fields are those of Kubernetes' `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// The container, which exists in the pod's spec.
    pub container: String,
    /// Go on as new lines come.
    pub follow: bool,
    /// The container's previous instance.
    pub previous: bool,
    /// At most this many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only lines younger than this many seconds.
    pub since_seconds: Option<u64>,
    /// Only lines written at or after this time.
    pub since_time: Option<jiff::Timestamp>,
    /// Each line begins with its RFC 3339 time.
    pub timestamps: bool,
    /// End after this many bytes.
    pub limit_bytes: Option<u64>,
}

/// The log as it goes to the client. Dropping it ends the stream on the node.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<Bytes, LogError>> + Send>>;

/// Why there is no log, or no more of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The container has not started yet; the reason is its waiting reason.
    #[error("container {container:?} is waiting to start: {reason}")]
    Waiting {
        /// The container.
        container: String,
        /// As in `state.waiting.reason`.
        reason: String,
    },
    /// The container has no earlier instance.
    #[error("previous terminated container {container:?} not found")]
    NoPrevious {
        /// The container.
        container: String,
    },
    /// The node knows no such pod or container.
    #[error("node {node} does not have container {container:?}")]
    NotFound {
        /// The node.
        node: String,
        /// The container.
        container: String,
    },
    /// The node is not connected.
    #[error("node {node} is not connected")]
    Unreachable {
        /// The node.
        node: String,
    },
    /// The node did not answer in time.
    #[error("node {node} did not answer within {seconds} s")]
    Timeout {
        /// The node.
        node: String,
        /// How long the server waited.
        seconds: u64,
    },
    /// As many streams as the node carries are open.
    #[error("node {node} has too many open streams")]
    TooMany {
        /// The node.
        node: String,
    },
    /// Anything else, in the node's words.
    #[error("node {node}: {cause}")]
    Failed {
        /// The node.
        node: String,
        /// What the node said.
        cause: String,
    },
}

/// The nodes, as far as the API talks to them.
#[async_trait]
pub trait Nodes: Send + Sync {
    /// Opens a container's log.
    async fn logs(&self, pod: PodRef, options: LogOptions) -> Result<LogStream, LogError>;
}
