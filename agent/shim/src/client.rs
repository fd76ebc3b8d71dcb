//! A blocking client of a shim, for tests and tools. The agent uses the frame functions of [`crate::protocol`] on its own
//! runtime.
//!
//! Always holds: events that arrive while a reply is awaited are kept, in order, up to [`MAX_EVENTS`].

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::protocol::{
    self, Event, FrameError, LENGTH_BYTES, OLDEST, Reply, ReplyBody, Request, RequestBody, ShimError,
    ToClient, VERSION,
};

/// Events kept for [`Client::next_event`]; the oldest goes first.
pub const MAX_EVENTS: usize = 1024;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed or the shim is gone.
    #[error("shim socket: {0}")]
    Io(io::Error),
    /// The shim speaks differently.
    #[error("shim protocol: {0}")]
    Frame(#[from] FrameError),
    /// The shim refused.
    #[error(transparent)]
    Shim(ShimError),
    /// No answer in time.
    #[error("no answer from the shim within {0:?}")]
    Timeout(Duration),
}

/// How long a shim may take to answer in a version that it knows.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection to one shim.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    version: u8,
    next_id: u64,
    received: Vec<u8>,
    events: VecDeque<Event>,
}

impl Client {
    /// Connects to `shim.sock` in the Pod's directory, and finds the newest version that the shim speaks.
    ///
    /// # Errors
    /// When nothing listens there, or what does knows none of our versions.
    pub fn connect(pod_dir: &Path) -> Result<Self, ClientError> {
        let socket = pod_dir.join(crate::SOCKET_NAME);
        let mut version = VERSION;
        loop {
            let mut client = Self {
                stream: UnixStream::connect(&socket).map_err(ClientError::Io)?,
                version,
                next_id: 1,
                received: Vec::new(),
                events: VecDeque::new(),
            };
            match client.call(RequestBody::State, ANSWER) {
                Err(ClientError::Io(error)) if hung_up(&error) && version > OLDEST => version -= 1,
                // It answers, and it may have refused.
                Ok(_) | Err(ClientError::Shim(_)) => return Ok(client),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends one request and waits for its reply.
    ///
    /// # Errors
    /// When the shim refuses, is gone, or does not answer within `timeout`.
    pub fn call(&mut self, body: RequestBody, timeout: Duration) -> Result<ReplyBody, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let frame = protocol::encode(self.version, &Request { id, body })?;
        self.stream.write_all(&frame).map_err(ClientError::Io)?;
        let deadline = Instant::now() + timeout;
        loop {
            match self.receive(deadline)?.ok_or(ClientError::Timeout(timeout))? {
                ToClient::Reply(Reply { id: of, result }) if of == id => {
                    return result.map_err(ClientError::Shim);
                }
                ToClient::Reply(_) => {}
                ToClient::Event(event) => {
                    if self.events.len() == MAX_EVENTS {
                        self.events.pop_front();
                    }
                    self.events.push_back(event);
                }
            }
        }
    }

    /// The next event, if one comes within `timeout`.
    ///
    /// # Errors
    /// When the shim is gone.
    pub fn next_event(&mut self, timeout: Duration) -> Result<Option<Event>, ClientError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        let deadline = Instant::now() + timeout;
        loop {
            match self.receive(deadline)? {
                None => return Ok(None),
                Some(ToClient::Event(event)) => return Ok(Some(event)),
                Some(ToClient::Reply(_)) => {}
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Option<ToClient>, ClientError> {
        loop {
            if let Some(message) = take_frame(&mut self.received)? {
                return Ok(Some(message));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream
                .set_read_timeout(Some(left))
                .map_err(ClientError::Io)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ClientError::Io(error)),
            }
        }
    }
}

/// Whether the other end closed the connection, as one does that does not know the version of a frame.
#[must_use]
pub fn hung_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Takes one whole frame off the front of what has been received.
fn take_frame(received: &mut Vec<u8>) -> Result<Option<ToClient>, FrameError> {
    let Some((length, rest)) = received.split_first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = protocol::decode_length(*length)?;
    let Some(body) = rest.get(..length) else {
        return Ok(None);
    };
    let (_, message) = protocol::decode(body)?;
    received.drain(..LENGTH_BYTES + length);
    Ok(Some(message))
}
