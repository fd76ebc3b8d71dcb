//! TCP connections, with errors in the words that a kubelet's runtime has for them.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;

/// `host:port`, with the brackets that an IPv6 address needs.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Connects; to each address of a name in turn.
///
/// # Errors
/// `dial tcp 10.0.0.2:80: connect: connection refused`.
pub(super) async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = match plain.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, port)],
        Err(_) => {
            let found = tokio::net::lookup_host((plain, port)).await;
            found
                .map_err(|_| format!("dial tcp: lookup {plain}: no such host"))?
                .collect()
        }
    };
    let mut why = format!("dial tcp: lookup {plain}: no such host");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => why = format!("dial tcp {address}: connect: {}", word(&error)),
        }
    }
    Err(why)
}

/// The kernel's word, as POSIX has it and not as a C library does.
pub(super) fn word(error: &io::Error) -> String {
    let known = match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::ConnectionReset => "connection reset by peer",
        ErrorKind::HostUnreachable => "no route to host",
        ErrorKind::NetworkUnreachable => "network is unreachable",
        ErrorKind::TimedOut => "connection timed out",
        ErrorKind::BrokenPipe => "broken pipe",
        ErrorKind::AddrNotAvailable => "cannot assign requested address",
        ErrorKind::UnexpectedEof => "EOF",
        _ => return error.to_string(),
    };
    known.to_owned()
}
