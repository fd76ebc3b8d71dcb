//! Every bound of the API, each with the reason for its number.

use std::time::Duration;

/// Largest request body: Kubernetes' own bound.
pub const BODY_BYTES: usize = 3 << 20;

/// Connections at once; further ones wait in the listen queue.
pub const CONNECTIONS: usize = 4096;

/// Requests at once on one HTTP/2 connection.
pub const STREAMS_PER_CONNECTION: u32 = 250;

/// How long a peer may take over its TLS handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a peer may take over a request's headers, and until the first of them.
pub const HEADERS: Duration = Duration::from_secs(30);

/// How long a connection is kept that has had a request and now has none: long enough for a client's next poll.
pub const IDLE: Duration = Duration::from_secs(180);

/// How long a peer may take over a request's body.
pub const BODY: Duration = Duration::from_secs(60);

/// How often an HTTP/2 connection is probed, so that the watches of a vanished client end.
pub const KEEPALIVE: Duration = Duration::from_secs(30);

/// How long connections may finish their answers when the server stops.
pub const DRAIN: Duration = Duration::from_secs(5);

/// Longest life of a watch, whatever its client asks for; no client of Kubernetes asks for as much.
pub const WATCH_LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Shortest life of a watch whose client names none; up to twice this, spread so that clients do not return at once.
pub const WATCH: Duration = Duration::from_secs(1800);

/// How often a quiet watch gets a bookmark.
pub const BOOKMARK: Duration = Duration::from_secs(60);

/// Bytes gathered into one chunk of a watch, so that a burst costs few writes and a slow reader little memory.
pub const WATCH_CHUNK: usize = 64 << 10;

/// Objects of a collection deleted together, so that they share a transaction.
pub const DELETE_GROUP: usize = 64;

/// `Warning` headers on one answer, and the bytes of one.
pub const WARNINGS: usize = 16;
/// See [`WARNINGS`].
pub const WARNING_BYTES: usize = 512;

/// Operations in one JSON patch: Kubernetes' own bound.
pub const PATCH_OPERATIONS: usize = 10_000;

/// How deep a document may nest; serde_json's own bound of 128 keeps the parser's stack, this one ours.
pub const DEPTH: usize = 100;

/// Bytes of all annotations of an object together: Kubernetes' own bound.
pub const ANNOTATION_BYTES: usize = 256 << 10;

/// Names tried for `generateName` before the caller is asked to try again.
pub const GENERATED_NAMES: usize = 8;

/// How long events are kept: Kubernetes' own default.
pub const EVENT_AGE: Duration = Duration::from_secs(3600);

/// How often old events are looked for.
pub const EVENT_SWEEP: Duration = Duration::from_secs(300);

/// How often the namespaces that wait for their contents to go are looked at again.
pub const NAMESPACE_RETRY: Duration = Duration::from_secs(1);

/// How long the listener rests after it could not accept.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
