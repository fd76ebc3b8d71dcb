//! Loopback ports for programs that must be told theirs beforehand, and that must find it again after a restart.
//!
//! Always holds: the port is outside of the range from which the kernel serves connections, so none made meanwhile, by
//! this test or by one beside it, can take it; and tests that run at the same time look for theirs in different places.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports that are given out, up to where the kernel's own range begins as it comes.
const FIRST: u16 = 10_000;
const COUNT: u32 = 22_000;

/// How many a process tries before another's begin.
const BLOCK: u32 = 16;

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// A port of 127.0.0.1 that nobody listens on now, and that nobody is given by chance.
///
/// # Panics
/// When a whole range is in use.
pub fn free() -> SocketAddr {
    let block = std::process::id() % (COUNT / BLOCK) * BLOCK;
    for _ in 0..COUNT {
        let offset = (block + TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = FIRST + u16::try_from(offset).unwrap_or_default();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("no port from {FIRST} on is free");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_passed_over_and_none_comes_twice() {
        let first = free();
        let next = SocketAddr::from((Ipv4Addr::LOCALHOST, first.port() + 1));
        let held = TcpListener::bind(next);
        let second = free();
        assert_ne!(first, second);
        assert!(held.is_err() || second != next);
    }

    #[test]
    fn the_kernel_serves_connections_from_elsewhere() {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
        let lowest: u32 = text.split_whitespace().next().unwrap().parse().unwrap();
        assert!(lowest >= u32::from(FIRST) + COUNT, "{text}");
    }
}
