//! A connection to one shim, on the agent's runtime.
//!
//! Always holds: bytes that were read stay in the connection until they make a whole message, so receiving can be
//! cancelled at any moment.

use std::io;
use std::path::Path;
use std::time::Duration;

use skiff_shim::protocol::{self, LENGTH_BYTES, Reply, ReplyBody, Request, RequestBody, ToClient};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A connection to a shim.
pub(super) struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Connection {
    /// Connects to the shim of a Pod's directory.
    pub(super) async fn open(dir: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(dir.join(skiff_shim::SOCKET_NAME)).await?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// Connects to a shim that is found running, and asks it for its state.
    pub(super) async fn adopt(dir: &Path) -> io::Result<(Self, protocol::State)> {
        let mut connection = Self::open(dir).await?;
        connection
            .send(&Request {
                id: 0,
                body: RequestBody::State,
            })
            .await?;
        let answer = async {
            loop {
                if let ToClient::Reply(Reply {
                    id: 0,
                    result: Ok(ReplyBody::State(state)),
                }) = connection.receive().await?
                {
                    return Ok(state);
                }
            }
        };
        let state = tokio::time::timeout(Duration::from_secs(10), answer).await;
        let state = state.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        state.map(|state| (connection, state))
    }

    /// Sends a request.
    pub(super) async fn send(&mut self, request: &Request) -> io::Result<()> {
        let frame = protocol::encode(request).map_err(io::Error::other)?;
        self.stream.write_all(&frame).await
    }

    /// The shim's process, as the kernel says.
    pub(super) fn pid(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid()
    }

    /// The next message. Cancel-safe: what was read so far stays in `received`.
    async fn receive(&mut self) -> io::Result<ToClient> {
        loop {
            if let Some((length, rest)) = self.received.split_first_chunk::<LENGTH_BYTES>() {
                let length = protocol::decode_length(*length).map_err(io::Error::other)?;
                if let Some(body) = rest.get(..length) {
                    let message = protocol::decode(body).map_err(io::Error::other);
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
