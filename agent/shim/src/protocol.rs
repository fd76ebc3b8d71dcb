//! What the agent and a shim say to each other over `shim.sock`.
//!
//! A frame is `[length: u32, big endian][version: u8][postcard]`; the length counts the version byte and the body and is at
//! most [`MAX_FRAME`]. The client sends [`Request`]s, the shim sends [`ToClient`]s. Replies carry the request's id and may
//! come out of order, because operations on containers take time; events have no id and go to every client.
//! A frame of an unknown version or past the bound ends the connection.
//!
//! Both ends are one binary in all but an upgrade. A shim answers in the version of the client's last frame, and tells
//! nothing to a client that has said nothing yet. A client cannot know how old a shim is that it finds: it asks in the newest
//! version, and where the shim hangs up, on a new connection in the one before, down to [`OLDEST`]. So an agent takes over
//! shims of an older one, and one that is put back those of a newer.
//!
//! Version 2 is what the next one will be to this build: the feature `next-version` speaks it, with the bytes of the body
//! turned over, for tests of an upgrade. Nothing that is released has it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use skiff_sys::{ContainerConfig, ExecConfig, KernelError, Limits, RunError, SandboxConfig, Started};

/// The newest version that this build speaks.
pub const VERSION: u8 = if cfg!(feature = "next-version") { 2 } else { 1 };

/// The oldest version that this build speaks.
pub const OLDEST: u8 = 1;

/// See the module: spoken under a feature for tests alone.
const NEXT: u8 = 2;

/// Bytes after the length: an environment of the size that `execve(2)` takes by default fits.
pub const MAX_FRAME: usize = 1 << 20;

/// Bytes of the length field.
pub const LENGTH_BYTES: usize = 4;

/// One request of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the client, repeated in the reply.
    pub id: u64,
    /// What is asked.
    pub body: RequestBody,
}

/// What a client can ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of it at a time, and it is encoded at once"
)]
pub enum RequestBody {
    /// Makes the Pod's namespaces, network and cgroup; nothing happens when the same one exists.
    MakeSandbox(SandboxConfig),
    /// Creates and starts a container. Its id must not be that of a running one.
    Run(Box<RunRequest>),
    /// Sends a signal to the container's init.
    Signal {
        /// The container.
        container: String,
        /// Signal number.
        signal: i32,
    },
    /// Kills every process of the container, or of all containers.
    KillAll {
        /// The container; `None` is all.
        container: Option<String>,
    },
    /// Forgets an exited container: its cgroup, state and exit record. Its log rings stay until the sandbox goes.
    Delete {
        /// The container.
        container: String,
    },
    /// Everything the shim knows.
    State,
    /// Kills all, destroys the sandbox and ends the shim after the reply.
    Shutdown,
    /// Runs a command in a running container and waits for its end.
    Exec(ExecRequest),
    /// Gives the Pod other limits, and a running container with it. Answered at once where they are what they were.
    Update {
        /// The container; `None` changes the Pod's only.
        container: Option<String>,
        /// All of the container's limits.
        limits: Limits,
        /// All of the Pod's.
        pod: Limits,
    },
}

/// A command in a running container, for a probe or a hook. At its end, and at its timeout, everything that it started is
/// killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The container.
    pub container: String,
    /// The command.
    pub config: ExecConfig,
    /// Milliseconds until it is killed.
    pub timeout_ms: u64,
    /// Bytes of its output, both streams together, that the answer carries; the first ones. At most [`MAX_EXEC_OUTPUT`].
    pub output: u32,
}

/// Most bytes of output that an answer carries: what a kubelet keeps of a probe's.
pub const MAX_EXEC_OUTPUT: u32 = 10 * 1024;

/// How a command in a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// What it exited with; 128 + signal when a signal killed it; `None` when it was killed at its timeout.
    pub exit_code: Option<i32>,
    /// The beginning of its output.
    pub output: Vec<u8>,
}

/// A container to run, with where its output goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRequest {
    /// The container; its `id` is what the other requests name.
    pub config: ContainerConfig,
    /// Name of the container in the Pod: the directory of its log rings.
    pub name: String,
    /// How often this container has been started before; names the ring file and appears in the exit record.
    pub attempt: u32,
    /// Bounds of the log ring.
    pub log: LogConfig,
    /// Milliseconds until the start is given up and undone.
    pub timeout_ms: u64,
}

/// Bounds of a log ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// Bytes of records that are kept; rounded up to whole blocks, see [`crate::ring`].
    pub capacity: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { capacity: 1 << 20 }
    }
}

/// What a shim sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of it at a time, and it is encoded at once"
)]
pub enum ToClient {
    /// The answer to one request.
    Reply(Reply),
    /// Something that happened.
    Event(Event),
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// What came of it.
    pub result: Result<ReplyBody, ShimError>,
}

/// Answers, by request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of it at a time, and it is encoded at once"
)]
pub enum ReplyBody {
    /// `MakeSandbox`, `Signal`, `KillAll`, `Delete`, `Shutdown`, `Update`.
    Done,
    /// `Run`.
    Started(Started),
    /// `State`.
    State(State),
    /// `Exec`.
    Executed(Executed),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ShimError {
    /// The container did not start.
    #[error(transparent)]
    Run(RunError),
    /// No such container.
    #[error("container {0:?} is not known here")]
    NotFound(String),
    /// A container of this id exists.
    #[error("container {0:?} exists already")]
    Exists(String),
    /// The container's state does not allow it.
    #[error("container {container:?} {state}")]
    WrongState {
        /// The container.
        container: String,
        /// `is still running`, `has exited`, ….
        state: String,
    },
    /// The sandbox could not be made or destroyed.
    #[error("sandbox: {0}")]
    Sandbox(String),
    /// A bound of the shim is reached.
    #[error("{what}: at most {max}")]
    TooMany {
        /// What there is too much of.
        what: String,
        /// The bound.
        max: u64,
    },
    /// The kernel refused.
    #[error("{0}")]
    Kernel(String),
}

impl From<KernelError> for ShimError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error.to_string())
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A container's init has exited and its output has been read as far as it was written by then.
    Exited(Exit),
}

/// How a container ended. Mirrored to `exits/<container>` in the Pod's directory until the container is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The container's id.
    pub container: String,
    /// Its name in the Pod.
    pub name: String,
    /// The attempt.
    pub attempt: u32,
    /// What it exited with; 128 + signal when a signal killed it.
    pub exit_code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// The kernel killed a process of it for want of memory; not necessarily its first one.
    pub oom_killed: bool,
    /// When it started.
    pub started_at: Stamp,
    /// When it exited.
    pub finished_at: Stamp,
}

/// A moment on both clocks: the wall clock may jump, the boot clock does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Nanoseconds since 1970 by the system clock.
    pub unix_ns: i64,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
}

/// Everything a shim knows: an agent that restarts learns all that it missed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The shim's own process.
    pub pid: i32,
    /// Whether the sandbox stands, and how it was asked for.
    pub sandbox: Option<SandboxConfig>,
    /// All containers, by id.
    pub containers: Vec<ContainerState>,
    /// An operation is under way: something is being started or removed.
    pub busy: bool,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// The container's id.
    pub id: String,
    /// Its name in the Pod.
    pub name: String,
    /// The attempt.
    pub attempt: u32,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its log ring.
    pub log: LogState,
    /// Processes killed for want of memory so far.
    pub oom_kills: u64,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Being created.
    Starting,
    /// Its init runs.
    Running {
        /// The process.
        process: Started,
        /// When it started.
        started_at: Stamp,
    },
    /// Its init has exited.
    Exited(Exit),
}

/// Position of a log ring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// The ring's file.
    pub path: PathBuf,
    /// Offset of the oldest record that is kept.
    pub oldest: u64,
    /// Offset after the newest record.
    pub end: u64,
    /// Records dropped so far.
    pub dropped_records: u64,
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("frame of {0} bytes; at most {MAX_FRAME} are taken")]
    TooLong(usize),
    /// No room for a version.
    #[error("empty frame")]
    Empty,
    /// Another version.
    #[error("frame of version {0}; this build speaks {OLDEST} to {VERSION}")]
    Version(u8),
    /// Not what the version says.
    #[error("malformed frame: {0}")]
    Body(postcard::Error),
}

/// A whole frame, length included, in a version that this build speaks.
///
/// # Errors
/// When the message is longer than [`MAX_FRAME`].
pub fn encode<T: Serialize>(version: u8, message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; LENGTH_BYTES];
    frame.push(version);
    let mut frame = postcard::to_extend(message, frame).map_err(FrameError::Body)?;
    if version == NEXT {
        frame[LENGTH_BYTES + 1..]
            .iter_mut()
            .for_each(|byte| *byte = !*byte);
    }
    let length = frame.len() - LENGTH_BYTES;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    frame[..LENGTH_BYTES].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

/// The number of bytes that follow a length field.
///
/// # Errors
/// When it is zero or more than [`MAX_FRAME`].
pub fn decode_length(length: [u8; LENGTH_BYTES]) -> Result<usize, FrameError> {
    match u32::from_be_bytes(length) as usize {
        0 => Err(FrameError::Empty),
        length if length > MAX_FRAME => Err(FrameError::TooLong(length)),
        length => Ok(length),
    }
}

/// The version of the bytes after the length field, and the message in them.
///
/// # Errors
/// When the version is unknown, or the body is malformed or longer than its message.
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<(u8, T), FrameError> {
    let (&version, body) = frame.split_first().ok_or(FrameError::Empty)?;
    if !(OLDEST..=VERSION).contains(&version) {
        return Err(FrameError::Version(version));
    }
    let turned: Vec<u8>;
    let body = if version == NEXT {
        turned = body.iter().map(|byte| !byte).collect();
        &turned
    } else {
        body
    };
    match postcard::take_from_bytes(body).map_err(FrameError::Body)? {
        (message, []) => Ok((version, message)),
        _ => Err(FrameError::Body(postcard::Error::DeserializeBadEncoding)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64, body: RequestBody) -> Request {
        Request { id, body }
    }

    #[test]
    fn frames_are_these_bytes() {
        let check = |message: Request, golden: &[u8]| {
            let frame = encode(OLDEST, &message).unwrap();
            assert_eq!(frame, golden);
            let (length, body) = frame.split_first_chunk().unwrap();
            assert_eq!(decode_length(*length).unwrap(), body.len());
            assert_eq!(decode::<Request>(body).unwrap(), (OLDEST, message));
        };
        check(request(7, RequestBody::State), &[0, 0, 0, 3, 1, 7, 5]);
        let signal = RequestBody::Signal {
            container: "a".into(),
            signal: 15,
        };
        check(request(300, signal), &[0, 0, 0, 7, 1, 0xac, 2, 2, 1, b'a', 30]);
        check(request(0, RequestBody::Shutdown), &[0, 0, 0, 3, 1, 0, 6]);
        let exec = RequestBody::Exec(ExecRequest {
            container: "a".into(),
            config: ExecConfig {
                args: vec!["b".into()],
            },
            timeout_ms: 300,
            output: 10,
        });
        check(
            request(1, exec),
            &[0, 0, 0, 11, 1, 1, 7, 1, b'a', 1, 1, b'b', 0xac, 2, 10],
        );
        let update = RequestBody::Update {
            container: Some("a".into()),
            limits: Limits {
                memory_bytes: Some(9),
                oom_group: true,
                ..Limits::default()
            },
            pod: Limits {
                pids: Some(7),
                ..Limits::default()
            },
        };
        check(
            request(1, update),
            &[
                0, 0, 0, 30, 1, 1, 8, 1, 1, b'a', 1, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0,
                0, 0, 0, 0,
            ],
        );
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let check = |body: &[u8], expected: &str| {
            assert_eq!(
                decode::<Request>(body).unwrap_err().to_string().split(':').next(),
                Some(expected)
            );
        };
        check(&[], "empty frame");
        check(
            &[9, 7, 5],
            &format!("frame of version 9; this build speaks 1 to {VERSION}"),
        );
        check(&[1, 7], "malformed frame");
        check(&[1, 7, 5, 0], "malformed frame");
        check(&[1, 7, 99], "malformed frame");
        assert!(decode_length([0; 4]).is_err());
        assert!(decode_length((MAX_FRAME as u32 + 1).to_be_bytes()).is_err());
        let name = "x".repeat(MAX_FRAME);
        assert!(encode(VERSION, &request(1, RequestBody::Delete { container: name })).is_err());
    }

    #[test]
    fn every_version_is_read_and_no_other() {
        let message = request(7, RequestBody::State);
        for version in OLDEST..=VERSION {
            let frame = encode(version, &message).unwrap();
            let read = decode::<Request>(&frame[LENGTH_BYTES..]).unwrap();
            assert_eq!(read, (version, message.clone()));
        }
        for version in [OLDEST - 1, VERSION + 1] {
            let frame = encode(version, &message).unwrap();
            let refused = decode::<Request>(&frame[LENGTH_BYTES..]);
            assert!(
                matches!(refused, Err(FrameError::Version(it)) if it == version),
                "{refused:?}"
            );
        }
    }
}
