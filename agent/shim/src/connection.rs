//! One client's connection: frames in and out, never waiting.
//!
//! Always holds: what a client has not read is at most [`MAX_BACKLOG`] long; a client that falls further behind, sends
//! something else than frames, or is not root is disconnected, and nothing else happens.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use crate::protocol::{self, LENGTH_BYTES, MAX_FRAME, Request, ToClient};

/// Bytes that wait for a client to read them.
const MAX_BACKLOG: usize = MAX_FRAME;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// The version of the client's last frame.
    version: Option<u8>,
    received: Vec<u8>,
    backlog: Vec<u8>,
}

/// The connection is of no more use.
#[derive(Debug)]
pub(crate) struct Disconnected;

impl Connection {
    /// Takes a new connection of root; `None` for anybody else.
    pub(crate) fn accept(stream: UnixStream) -> Option<Self> {
        // The socket's mode keeps others out already.
        let root = skiff_sys::process::peer_uid(&stream).is_ok_and(|uid| uid == 0);
        let ready = root && stream.set_nonblocking(true).is_ok();
        ready.then(|| Self {
            stream,
            version: None,
            received: Vec::new(),
            backlog: Vec::new(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether it waits for the client to read.
    pub(crate) fn wants_to_write(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Reads what has come and gives the requests in it.
    pub(crate) fn receive(&mut self) -> Result<Vec<Request>, Disconnected> {
        let mut chunk = [0; 8192];
        let mut requests = Vec::new();
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Disconnected),
                Ok(n) => {
                    self.received.extend_from_slice(&chunk[..n]);
                    self.take_requests(&mut requests)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(requests),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Disconnected),
            }
        }
    }

    fn take_requests(&mut self, requests: &mut Vec<Request>) -> Result<(), Disconnected> {
        loop {
            let Some((length, rest)) = self.received.split_first_chunk::<LENGTH_BYTES>() else {
                return Ok(());
            };
            let length = protocol::decode_length(*length).map_err(|_| Disconnected)?;
            let Some(body) = rest.get(..length) else {
                return Ok(());
            };
            let (version, request) = protocol::decode(body).map_err(|_| Disconnected)?;
            self.version = Some(version);
            requests.push(request);
            self.received.drain(..LENGTH_BYTES + length);
            if self.received.is_empty() {
                self.received = Vec::new();
            }
        }
    }

    /// Sends a message, or keeps it until the client reads. A client that has said nothing is told nothing: which version it
    /// reads is not known, and what it missed is in the state that it asks for.
    pub(crate) fn send(&mut self, message: &ToClient) -> Result<(), Disconnected> {
        let Some(version) = self.version else {
            return Ok(());
        };
        let frame = protocol::encode(version, message).map_err(|_| Disconnected)?;
        if self.backlog.len() + frame.len() > MAX_BACKLOG {
            return Err(Disconnected);
        }
        self.backlog.extend_from_slice(&frame);
        self.flush()
    }

    /// Writes as much of what waits as the client takes.
    pub(crate) fn flush(&mut self) -> Result<(), Disconnected> {
        let mut written = 0;
        while written < self.backlog.len() {
            match self.stream.write(&self.backlog[written..]) {
                Ok(0) => return Err(Disconnected),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Disconnected),
            }
        }
        self.backlog.drain(..written);
        if self.backlog.is_empty() {
            self.backlog = Vec::new();
        }
        Ok(())
    }
}
