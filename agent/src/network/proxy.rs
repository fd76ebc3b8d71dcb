//! TCP ports of the node, served by this process where the kernel has no NAT.
//!
//! Always holds: one listener a port, kept while its port is wanted; connections are bounded; a listener that goes leaves
//! the connections that it took.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use skiff_sys::nft::{self, HostPort};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tracing::warn;

/// Connections through all ports at a time: each costs two sockets and two buffers of 8 KiB.
const CONNECTIONS: usize = 256;

/// The ports that are served.
pub(super) struct Proxy {
    listeners: BTreeMap<HostPort, AbortHandle>,
    room: Arc<Semaphore>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            listeners: BTreeMap::new(),
            room: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

impl Proxy {
    /// Serves these ports, as far as they are TCP, and no others.
    pub(super) fn serve(&mut self, ports: &[HostPort]) {
        let wanted = |it: &&HostPort| it.protocol == nft::TCP;
        self.listeners.retain(|port, task| {
            let keep = ports.contains(port) && !task.is_finished();
            if !keep {
                task.abort();
            }
            keep
        });
        for port in ports.iter().filter(wanted) {
            let room = self.room.clone();
            self.listeners
                .entry(*port)
                .or_insert_with(|| tokio::spawn(listen(*port, room)).abort_handle());
        }
    }
}

async fn listen(port: HostPort, room: Arc<Semaphore>) {
    let address = SocketAddr::from((port.address.unwrap_or(Ipv4Addr::UNSPECIFIED), port.port));
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%address, %error, "the node's port cannot be served");
            return;
        }
    };
    loop {
        // Whoever finds no room waits in the kernel's queue.
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((mut client, _)) => {
                tokio::spawn(async move {
                    let _place = place;
                    // Either end may break off at any time; both are closed then.
                    if let Ok(mut pod) = TcpStream::connect((port.to, port.to_port)).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
                    }
                });
            }
            Err(error) => {
                warn!(%address, %error, "no connection can be taken");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_port_is_served_while_it_is_wanted() {
        let pod = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let SocketAddr::V4(to) = pod.local_addr().unwrap() else {
            panic!("not IPv4")
        };
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let port = HostPort {
            protocol: nft::TCP,
            address: Some(Ipv4Addr::LOCALHOST),
            port: free.port(),
            to: *to.ip(),
            to_port: to.port(),
        };
        let mut proxy = Proxy::default();
        proxy.serve(&[port]);
        let mut client = loop {
            match TcpStream::connect(free).await {
                Ok(client) => break client,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        };
        let (mut server, _) = pod.accept().await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        server.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        proxy.serve(&[]);
        // What was taken goes on; what is new is refused.
        server.write_all(b"pong").await.unwrap();
        client.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");
        let refused = async {
            while TcpStream::connect(free).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), refused)
            .await
            .unwrap();
    }
}
