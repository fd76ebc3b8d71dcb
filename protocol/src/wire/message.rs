//! The messages: two closed enums, one a direction, postcard-encoded.
//!
//! Always holds: variants are only appended; a message decodes whole or not at all.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::desired::Desired;
use super::frame::Unreadable;
use super::spec::ObjectKey;
use super::status::{PodStatus, UnixSeconds};
use crate::Digest;
use crate::uid::Uid;

/// Server to node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Down {
    /// A desired state; topic kind `spec`.
    Desired(Desired),
    /// Objects that the node asked for; topic kind `spec`.
    Objects {
        /// The generation whose index names them.
        generation: u64,
        /// Postcard of [`super::spec::Object`] each.
        objects: Vec<Vec<u8>>,
    },
    /// The desired state that hello told of is the current one; topic kind `sync`.
    InStep {
        /// Its generation.
        generation: u64,
    },
    /// Say hello and send every status anew; topic kind `sync`.
    Resync,
    /// A stream begins; topic kind `stream`.
    StreamOpen(StreamOpen),
    /// The reader has taken `bytes` more; topic kind `stream`.
    StreamCredit {
        /// The stream.
        sid: u32,
        /// Bytes taken since the last credit.
        bytes: u32,
    },
    /// The reader has gone; topic kind `stream`.
    StreamClose {
        /// The stream.
        sid: u32,
    },
    /// Static Pods that the server does not know yet; topic kind `spec`.
    NeedStatics {
        /// Which, of those that the node told of; none asks which there are.
        uids: Vec<Uid>,
    },
}

/// What a stream shall carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum StreamOpen {
    /// A container's log.
    Logs {
        /// The stream.
        sid: u32,
        /// What of it.
        request: LogRequest,
    },
}

/// Which part of a container's log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// The Pod.
    pub uid: Option<Uid>,
    /// The container's name.
    pub container: String,
    /// Go on as the container writes.
    pub follow: bool,
    /// The instance before the current one.
    pub previous: bool,
    /// Each line with its time in front, RFC 3339.
    pub timestamps: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines since this time, in nanoseconds since 1970.
    pub since: Option<i64>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
}

/// Node to server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Up {
    /// The first word after every connect; topic kind `hello`.
    Hello(Hello),
    /// Objects of the announced index that are missing; topic kind `hello`.
    Need {
        /// The generation whose index names them.
        generation: u64,
        /// Which.
        keys: Vec<ObjectKey>,
    },
    /// A desired state stands in the journal; topic kind `hello`.
    Applied {
        /// Its generation.
        generation: u64,
        /// The digest of its index.
        digest: Digest,
    },
    /// Statuses that changed; topic kind `status`.
    Status {
        /// The epoch of hello.
        epoch: u64,
        /// Counts the status messages of an epoch, from 1; a gap means that one was lost.
        sequence: u64,
        /// Each whole.
        pods: Vec<PodStatus>,
    },
    /// The node's own state changed; topic kind `status`.
    Node(NodeInfo),
    /// Things that happened; topic kind `event`.
    Events {
        /// Events that were dropped before these for want of room.
        lost: u64,
        /// In order.
        events: Vec<Event>,
    },
    /// A piece of a stream; topic kind `stream`.
    StreamData {
        /// The stream.
        sid: u32,
        /// Bytes of the stream before this piece.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// A stream is over; topic kind `stream`.
    StreamEnd {
        /// The stream.
        sid: u32,
        /// How it ended.
        end: StreamEnd,
    },
    /// The connection is over; topic kind `bye`, sent as the last will or on a clean stop.
    Bye {
        /// The epoch of hello.
        epoch: u64,
    },
    /// The static Pods of the node, all of them: after a hello if there are any, when they change, and when asked;
    /// topic kind `hello`.
    Statics {
        /// Which.
        uids: Vec<Uid>,
    },
    /// A static Pod that the server asked for; topic kind `hello`.
    StaticPod {
        /// Which.
        uid: Uid,
        /// A Kubernetes manifest, as JSON.
        manifest: Vec<u8>,
    },
    /// The images that the node has, the largest: once after the agent's start, and when they change; topic kind `status`.
    Images {
        /// At most [`crate::limits::NODE_IMAGES`].
        images: Vec<NodeImage>,
    },
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamEnd {
    /// Everything was sent.
    Complete,
    /// It could not be served, or not to its end.
    Failed(String),
}

/// The first word of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Counts the starts of this node's agent; it never goes back.
    pub epoch: u64,
    /// The lowest and highest wire version that the node speaks.
    pub versions: (u8, u8),
    /// The largest MQTT payload it takes, in bytes.
    pub max_frame: u32,
    /// The generation held; 0 means none.
    pub generation: u64,
    /// The digest of the index held.
    pub desired_digest: Digest,
    /// The digest of the images held.
    pub inventory_digest: Digest,
    /// What the node is.
    pub node: NodeInfo,
}

/// What a node is and has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The agent's version.
    pub agent_version: String,
    /// As in OCI platforms: `amd64`, `arm64`, `arm`.
    pub architecture: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of `/etc/os-release`.
    pub os_image: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The node's own address, empty where it has none.
    pub address: String,
    /// Capacity: thousandths of a CPU.
    pub cpu_milli: u64,
    /// Capacity: bytes of memory.
    pub memory: u64,
    /// Capacity: bytes of the state directory's file system.
    pub storage: u64,
    /// Allocatable: thousandths of a CPU.
    pub allocatable_cpu_milli: u64,
    /// Allocatable: bytes of memory.
    pub allocatable_memory: u64,
    /// Allocatable: bytes of `ephemeral-storage`.
    pub allocatable_storage: u64,
    /// Extended resources and `hugepages-…`, with what there is of each: capacity and allocatable alike.
    pub extended: Vec<(String, u64)>,
    /// What this node can do or allows beyond the common; see [`super::feature`].
    pub features: Vec<String>,
    /// Pods that it takes.
    pub pods: u32,
    /// Labels of its configuration.
    pub labels: Vec<(String, String)>,
    /// Conditions beside Ready.
    pub conditions: Vec<NodeCondition>,
}

/// An image that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeImage {
    /// Its names: with digests, then with tags; at most [`crate::limits::IMAGE_NAMES`].
    pub names: Vec<String>,
    /// `sizeBytes`: as it was transferred.
    pub size_bytes: u64,
}

/// A node condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCondition {
    /// `type`.
    pub kind: String,
    /// `status`.
    pub status: bool,
    /// `reason`.
    pub reason: String,
    /// `message`, with the fix in words.
    pub message: String,
}

/// Something that happened to a Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The Pod.
    pub uid: Uid,
    /// The container, where it is about one.
    pub container: Option<String>,
    /// `Warning` rather than `Normal`.
    pub warning: bool,
    /// `reason`.
    pub reason: String,
    /// `message`.
    pub message: String,
    /// When.
    pub at: UnixSeconds,
}

/// Encodes a message to a node.
///
/// # Panics
/// Never: encoding into memory cannot fail.
#[must_use]
pub fn encode_down(message: &Down) -> Vec<u8> {
    postcard::to_allocvec(message).expect("postcard encodes into memory without fail")
}

/// Encodes a message from a node.
///
/// # Panics
/// Never: encoding into memory cannot fail.
#[must_use]
pub fn encode_up(message: &Up) -> Vec<u8> {
    postcard::to_allocvec(message).expect("postcard encodes into memory without fail")
}

/// Decodes a message to a node.
///
/// # Errors
/// When it is cut short, or goes on after its end.
pub fn decode_down(bytes: &[u8]) -> Result<Down, Unreadable> {
    whole(postcard::take_from_bytes(bytes))
}

/// Decodes a message from a node.
///
/// # Errors
/// When it is cut short, or goes on after its end.
pub fn decode_up(bytes: &[u8]) -> Result<Up, Unreadable> {
    whole(postcard::take_from_bytes(bytes))
}

fn whole<T>(taken: postcard::Result<(T, &[u8])>) -> Result<T, Unreadable> {
    match taken {
        Ok((message, [])) => Ok(message),
        _ => Err(Unreadable::Malformed),
    }
}
