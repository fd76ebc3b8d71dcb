//! Every bound of the protocol, each with the reason for its number.
//!
//! Always holds: what one end may send, the other can hold. The assertions at the end are checked
//! by the compiler.

/// Longest node name. It is the MQTT client id, and 23 bytes is what every 3.1.1 broker must take.
pub const NODE_NAME: usize = 23;

/// Longest name of a Pod, ConfigMap or Secret: a DNS subdomain, as in Kubernetes.
pub const OBJECT_NAME: usize = 253;

/// Longest name of a container, volume, port or namespace: a DNS label (RFC 1123).
pub const LABEL: usize = 63;

/// Largest MQTT payload we send. AWS IoT Core takes 128 KB, Azure Event Grid 64 KB retained; half of
/// the smaller leaves room for topic and properties, and keeps one message short on a slow link.
pub const FRAME: usize = 32 * 1024;

/// Payload bytes in one chunk of a larger message: a frame less its header.
pub const CHUNK: usize = FRAME - 64;

/// Largest message after reassembly. A ConfigMap or Secret may hold 1 MiB; a Pod and its index fit beside it.
pub const MESSAGE: usize = 1_536 * 1024;

/// Messages that may be in reassembly at once from one peer; each may cost [`MESSAGE`] bytes.
pub const REASSEMBLIES: usize = 2;

/// Containers in one Pod. A kubelet's default of 110 pods on a node has about as many containers.
pub const CONTAINERS: usize = 32;

/// Volumes in one Pod: each is at least one mount a container.
pub const VOLUMES: usize = 64;

/// Mounts in one container, the node's own among them.
pub const MOUNTS: usize = 64;

/// Environment variables written in one container's spec.
pub const ENV: usize = 512;

/// Bytes of all arguments and environment values of one container: a fourth of Linux's `MAX_ARG_STRLEN` × 64.
pub const ARGS_BYTES: usize = 256 * 1024;

/// Ports listed in one container.
pub const PORTS: usize = 64;

/// Items of one list in a Pod that is neither containers, volumes, mounts nor ports: headers, aliases, sysctls, sources, ….
/// Kubernetes bounds few of them; 64 is more than any manifest that a person wrote.
pub const ITEMS: usize = 64;

/// Pods on one node: twice a kubelet's default; each costs about 300 KiB.
pub const PODS: usize = 250;

/// PersistentVolumes of one node: as many as Pods, so that they leave room for what Pods read.
pub const PERSISTENT_VOLUMES: usize = PODS;

/// Objects (Pods, ConfigMaps, Secrets, PersistentVolumes) in one node's desired state.
pub const OBJECTS: usize = 1_000;

/// Bytes of all keys and values of one ConfigMap or Secret, as in Kubernetes.
pub const CONFIG_BYTES: usize = 1024 * 1024;

/// Bytes of all annotations of one object, as in Kubernetes.
pub const ANNOTATION_BYTES: usize = 256 * 1024;

/// Bytes of a reason's or condition's free text on its way up: a kubelet's termination message.
pub const TEXT: usize = 4_096;

/// Statuses in one status message; more go into the next one.
pub const STATUSES: usize = 64;

/// Most images that a node tells of, the largest: a kubelet's `nodeStatusMaxImages`.
pub const NODE_IMAGES: usize = 50;

/// Most names of one image that a node tells of.
pub const IMAGE_NAMES: usize = 16;

/// Events in one event message, and the most that wait for the link; older ones are counted as lost.
pub const EVENTS: usize = 64;

/// Bytes of a static Pod's manifest, as JSON: a few times what people write by hand.
pub const STATIC_MANIFEST: usize = 32 * 1024;

/// Static Pods that a server asks for at once, so that the answers find room in a node's outbox.
pub const STATICS_AT_ONCE: usize = 4;

/// Log streams open at once on one node.
pub const STREAMS: usize = 64;

/// Bytes a stream's sender may be ahead of its reader.
pub const STREAM_WINDOW: u32 = 64 * 1024;

/// Bytes of one piece of a stream, so that control traffic never waits behind a large one.
pub const STREAM_PIECE: usize = 16 * 1024;

/// Shards that upward topics are spread over, so that servers can share the work.
pub const SHARDS: u16 = 64;

/// Longest topic: `skiff/u/63/<node>/stream/<sid>`.
pub const TOPIC: usize = 64;

const _: () = assert!(CHUNK + 64 <= FRAME);
const _: () = assert!(STREAM_PIECE + 64 <= FRAME);
const _: () = assert!(STREAM_PIECE as u32 <= STREAM_WINDOW);
const _: () = assert!(CONFIG_BYTES < MESSAGE);
const _: () = assert!(MESSAGE.div_ceil(CHUNK) <= u16::MAX as usize);
const _: () = assert!("skiff/u/63/".len() + NODE_NAME + "/stream/4294967295".len() <= TOPIC);
