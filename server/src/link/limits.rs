//! Every bound of the link that the protocol does not already state, each with the reason for its number.

use std::time::Duration;

use skiff_protocol::limits;

/// Nodes the server keeps state of; each costs a few KiB beside its objects.
pub const NODES: usize = 100_000;

/// Bytes of objects sent along with an index, so that one change never holds up the other nodes' messages for long;
/// the node asks for the rest.
pub const INLINE: usize = 256 * 1024;

/// Bytes of objects in one answer to a node's request; more go into the next one.
pub const OBJECTS_MESSAGE: usize = 256 * 1024;

/// Largest object: what a message carries less its own fields.
pub const OBJECT: usize = limits::MESSAGE - 1024;

/// Generations reserved in the store at once. A change costs a disk write only when a block is used up.
pub const GENERATION_BLOCK: u64 = 64;

/// The highest generation that is believed, of a node or of the store: at a million changes a second it takes 146,000
/// years to get there, and above it as many are left.
pub const GENERATION: u64 = 1 << 62;

/// How often a node's Lease is renewed at most, however often the node speaks: Kubernetes' own `leaseDurationSeconds`.
pub const LEASE: Duration = Duration::from_secs(40);

/// Messages and bytes of control that wait for the broker, over all nodes.
pub const CONTROL_MESSAGES: usize = 16 * 1024;
/// See [`CONTROL_MESSAGES`].
pub const CONTROL_BYTES: usize = 64 << 20;

/// Messages and bytes of streams that wait for the broker: opening, credit and closing are a few bytes each.
pub const STREAM_MESSAGES: usize = 4096;
/// See [`STREAM_MESSAGES`].
pub const STREAM_BYTES: usize = 4 << 20;

/// Log streams open at once over all nodes; each holds up to [`limits::STREAM_WINDOW`] bytes.
pub const STREAMS: usize = 1024;

/// Bytes taken by the reader before the node is told: a fourth of the window, so that credit costs little.
pub const CREDIT: u32 = limits::STREAM_WINDOW / 4;

/// How long a log's first piece may take before the client gets its headers anyway.
pub const FIRST_PIECE: Duration = Duration::from_millis(700);

/// How long a log that is not followed may be silent.
pub const STREAM_SILENCE: Duration = Duration::from_secs(30);

/// How long a node may take to apply a desired state, or to answer a request to say hello, before it is asked again;
/// doubled each time up to [`RETRY_CAP`].
pub const RETRY: Duration = Duration::from_secs(15);
/// See [`RETRY`].
pub const RETRY_CAP: Duration = Duration::from_secs(600);

/// Requests from the API that wait for the link.
pub const COMMANDS: usize = 256;

/// Writes of node and pod state under way at once, over all nodes; the store batches them into few transactions.
pub const WRITES: usize = 64;

/// Events that a node may tell of at once: a full message for each of a few Pods.
pub const EVENT_BURST: u32 = 4 * limits::EVENTS as u32;

/// Events a second that a node may tell of for long, so that no node fills the store: 14,400 within the hour that they
/// are kept.
pub const EVENT_RATE: u32 = 4;

/// Labels that a node may bring.
pub const LABELS: usize = 64;

/// Extended resources and sizes of huge pages that a node may bring.
pub const EXTENDED: usize = 64;

/// Conditions that a node may bring.
pub const CONDITIONS: usize = 32;

const _: () = assert!(INLINE + OBJECT / 2 < limits::MESSAGE);
const _: () = assert!(CREDIT <= limits::STREAM_WINDOW);
