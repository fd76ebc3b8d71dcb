//! A connection to one shim, on the agent's runtime.
//!
//! Always holds: bytes that were read stay in the connection until they make a whole message, so receiving can be
//! cancelled at any moment.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use skiff_shim::client::hung_up;
use skiff_shim::protocol::{
    self, LENGTH_BYTES, OLDEST, Reply, ReplyBody, Request, RequestBody, ToClient, VERSION,
};
use skiff_sys::process::PidFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::Place;
use crate::own::{Own, Part};

/// How long a shim may take to tell its state: it has one thread, which waits for nothing.
const ANSWER: Duration = Duration::from_secs(10);

/// How long an operation of a shim may last: a start and its undoing.
const BUSY: Duration = Duration::from_secs(90);

/// When a Pod's first containers have been started, as a rule.
const BEGUN: Duration = Duration::from_secs(2);

/// How often a busy shim is asked.
const AGAIN: Duration = Duration::from_millis(20);

/// A connection to a shim.
pub(super) struct Connection {
    stream: UnixStream,
    /// The version that it is spoken to in.
    version: u8,
    received: Vec<u8>,
    /// The shim's process; held open, so that no other can be meant.
    pub(super) pid: Option<PidFd>,
}

impl Connection {
    /// Connects to the shim of a Pod's directory, which speaks `version`.
    pub(super) async fn open(dir: &Path, version: u8) -> io::Result<Self> {
        let stream = UnixStream::connect(dir.join(skiff_shim::SOCKET_NAME)).await?;
        let pid = stream
            .peer_cred()?
            .pid()
            .and_then(|pid| PidFd::open(pid, None).ok());
        Ok(Self {
            stream,
            version,
            received: Vec::new(),
            pid,
        })
    }

    /// Connects to a shim that is found running, and asks it for its state in the newest version that it speaks.
    pub(super) async fn adopt(dir: &Path) -> io::Result<(Self, protocol::State)> {
        let until = Instant::now() + BUSY;
        let mut versions = (OLDEST..=VERSION).rev().cycle();
        loop {
            let version = versions.next().unwrap_or(OLDEST);
            let adopted = Self::adopt_once(dir, version, until).await;
            // One that does not know the version lets go, and so does one at its end; which of them it was, and whether
            // it is gone, only another connection tells.
            if !adopted.as_ref().is_err_and(hung_up) || Instant::now() >= until {
                return adopted;
            }
            if version > OLDEST {
                continue;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn adopt_once(dir: &Path, version: u8, until: Instant) -> io::Result<(Self, protocol::State)> {
        let mut connection = Self::open(dir, version).await?;
        loop {
            let state = tokio::time::timeout(ANSWER, connection.state()).await;
            let state = state.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            // What is being started or ended can be neither taken over nor asked for again.
            if let Some(state) = state.filter(|it| !it.busy) {
                return Ok((connection, state));
            }
            if Instant::now() >= until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "it is busy with something that does not end",
                ));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// The shim's state; nothing while it is being shut down, when it answers no question.
    async fn state(&mut self) -> io::Result<Option<protocol::State>> {
        let body = RequestBody::State;
        self.send(&Request { id: 0, body }).await?;
        loop {
            if let ToClient::Reply(Reply { id: 0, result }) = self.receive().await? {
                return match result {
                    Ok(ReplyBody::State(state)) => Ok(Some(state)),
                    Ok(_) => Err(io::ErrorKind::InvalidData.into()),
                    Err(_) => Ok(None),
                };
            }
        }
    }

    /// Sends a request.
    pub(super) async fn send(&mut self, request: &Request) -> io::Result<()> {
        let frame = protocol::encode(self.version, request).map_err(io::Error::other)?;
        self.stream.write_all(&frame).await
    }

    /// The next message. Cancel-safe: what was read so far stays in `received`.
    async fn receive(&mut self) -> io::Result<ToClient> {
        loop {
            if let Some((length, rest)) = self.received.split_first_chunk::<LENGTH_BYTES>() {
                let length = protocol::decode_length(*length).map_err(io::Error::other)?;
                if let Some(body) = rest.get(..length) {
                    let message = protocol::decode(body)
                        .map(|(_, message)| message)
                        .map_err(io::Error::other);
                    self.received.drain(..LENGTH_BYTES + length);
                    if self.received.is_empty() {
                        self.received = Vec::new();
                    }
                    return message;
                }
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// The next message of a connection; pending for ever where there is none.
pub(super) async fn next(connection: &mut Option<Connection>) -> io::Result<ToClient> {
    match connection {
        Some(connection) => connection.receive().await,
        None => std::future::pending().await,
    }
}

/// Starts a shim for the Pod in `dir`, and waits until it listens.
pub(super) async fn start_shim(place: &Place, dir: &Path) -> Result<Connection, String> {
    let executable = &place.executable;
    let failed = |what: &str, error: io::Error| format!("{what} {}: {error}", executable.display());
    let mut command = tokio::process::Command::new(executable);
    command
        .arg("shim")
        .arg("--pod-dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    crate::watchdog::keep_from(&mut command);
    let mut child = command.spawn().map_err(|error| failed("cannot run", error))?;
    let mut ready = [0; 1];
    let mut stdout = child.stdout.take().ok_or("the shim has no output")?;
    stdout
        .read_exact(&mut ready)
        .await
        .map_err(|error| failed("the shim ended at once:", error))?;
    tokio::spawn(move_later(place.own.clone(), child));
    Connection::open(dir, VERSION)
        .await
        .map_err(|error| failed("cannot reach the shim of", error))
}

/// Moves a shim out of the agent's cgroup, whose bound of memory is no bound of the shims', once its Pod has begun: on v1 a
/// move holds a lock for milliseconds that the start of a container takes too.
async fn move_later(own: Own, child: tokio::process::Child) {
    tokio::time::sleep(BEGUN).await;
    // While the child is held it is not waited for, so its number names no other process.
    let _ = own.take_beside(Part::Shims, child.id()).await;
    // Dropping the child neither kills it nor leaves a zombie: the runtime reaps it when it ends.
    drop(child);
}
