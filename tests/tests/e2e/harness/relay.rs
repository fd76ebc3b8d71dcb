//! A link for TCP that counts what it carries, breaks connections and stands still, as a test wants it.
//!
//! Always holds: what was carried to the client when a connection is cut has reached it; nothing is changed on the way.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// No bound.
const NONE: u64 = u64::MAX;

#[derive(Debug)]
struct State {
    /// Bytes carried to clients.
    carried: AtomicU64,
    /// Connections made.
    connections: AtomicU64,
    /// Bytes to the client after which a connection is cut.
    cut_after: AtomicU64,
    /// Bytes to clients after which nothing moves any more.
    still_at: AtomicU64,
    /// Bytes a second that a connection carries to its client.
    rate: AtomicU64,
}

/// The link. Its threads end with the connections and with the test's process.
#[derive(Debug)]
pub(crate) struct Relay {
    address: SocketAddr,
    state: Arc<State>,
}

impl Relay {
    /// A link to `target` on a port of its own.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            carried: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            cut_after: AtomicU64::new(NONE),
            still_at: AtomicU64::new(NONE),
            rate: AtomicU64::new(NONE),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let state = shared.clone();
                std::thread::spawn(move || {
                    // Either end may go at any moment.
                    let _ = carry(&state, &client, target);
                });
            }
        });
        Self { address, state }
    }

    /// Where clients connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes carried to clients so far.
    pub(crate) fn carried(&self) -> u64 {
        self.state.carried.load(Ordering::Relaxed)
    }

    /// Connections made so far.
    pub(crate) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Each connection is cut after so many bytes to its client.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.state.cut_after.store(bytes, Ordering::Relaxed);
    }

    /// Each connection carries no more than so many bytes a second.
    pub(crate) fn throttle(&self, bytes_per_second: u64) {
        self.state.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Once so many bytes were carried to clients, nothing moves until [`Self::go_on`].
    pub(crate) fn stand_still_at(&self, bytes: u64) {
        self.state.still_at.store(bytes, Ordering::Relaxed);
    }

    /// It moves again.
    pub(crate) fn go_on(&self) {
        self.stand_still_at(NONE);
    }
}

fn carry(state: &State, client: &TcpStream, target: SocketAddr) -> std::io::Result<()> {
    let server = TcpStream::connect(target)?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let up = std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Both);
    });
    let (mut from_server, mut to_client) = (&server, client);
    let (mut buffer, mut sent) = ([0; 16_384], 0_u64);
    let cut = state.cut_after.load(Ordering::Relaxed);
    while sent < cut {
        let room = usize::try_from(cut - sent).map_or(buffer.len(), |it| it.min(buffer.len()));
        let count = from_server.read(&mut buffer[..room])?;
        if count == 0 {
            break;
        }
        while state.carried.load(Ordering::Relaxed) >= state.still_at.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let lasts = count as f64 / state.rate.load(Ordering::Relaxed) as f64;
        std::thread::sleep(Duration::from_secs_f64(lasts));
        to_client.write_all(&buffer[..count])?;
        sent += count as u64;
        state.carried.fetch_add(count as u64, Ordering::Relaxed);
    }
    // The client has read all its answers or is in the middle of one: what was written reaches it before the end does.
    client.shutdown(Shutdown::Write)?;
    server.shutdown(Shutdown::Both)?;
    let _ = up.join();
    Ok(())
}
