//! The node's packet filter: ports of the node that lead to Pods, and addresses of Pods that stay inside the node.
//!
//! ```text
//! table ip <name>
//!   guard        filter, raw     of or to 127.0.0.0/8, and not by way of lo ▶ drop
//!   prerouting   nat, dstnat     to an address of this node ▶ ports
//!   output       nat, dstnat     to an address of this node ▶ ports        (for the node's own processes)
//!   ports        <proto> dport <port> [to <address>] ▶ dnat to the Pod
//!   postrouting  nat, srcnat     out of the Pods' network ▶ masquerade
//!                                a Pod to itself or another through a port of the node ▶ masquerade
//!                                127.0.0.0/8 to a Pod ▶ masquerade
//! ```
//!
//! A bridge that passes on what 127.0.0.0/8 sends would let Pods that write packets of their own reach what listens on
//! the node's loopback only; the guard stands before all of it.
//!
//! Always holds: the table is ours alone and is replaced whole, in one transaction: no packet meets half of it. Nothing of
//! other tables is read or changed. Source of numbers and layouts: `linux/netfilter/nf_tables.h`, nfnetlink(7).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::error::{Doing, Result};

/// Seconds until a kernel that does not answer is given up.
const TIMEOUT_S: i64 = 5;

/// Bytes of the largest transaction: some thousand rules.
const SEND_BUFFER: usize = 1 << 20;

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;
/// `IPPROTO_SCTP`.
pub const SCTP: u8 = 132;

/// A port of the node that leads to a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// [`TCP`], [`UDP`] or [`SCTP`].
    pub protocol: u8,
    /// Only at this address of the node; `None` means all of them.
    pub address: Option<Ipv4Addr>,
    /// The node's port.
    pub port: u16,
    /// The Pod's address.
    pub to: Ipv4Addr,
    /// The Pod's port.
    pub to_port: u16,
}

/// Everything that the table holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The table's name, unique on this machine.
    pub table: String,
    /// The Pods' network and its prefix length.
    pub pods: (Ipv4Addr, u8),
    /// Ports of the node.
    pub ports: Vec<HostPort>,
}

/// Makes the table what `rules` say.
///
/// # Errors
/// `ENOENT` or `EOPNOTSUPP` where the kernel lacks nf_tables, NAT, `fib` or `masquerade`; `EPERM` without
/// `CAP_NET_ADMIN`.
pub fn apply(rules: &Rules) -> Result<()> {
    send(&replace(rules)).doing("replace the nftables table", &rules.table)
}

/// Removes the table, if it is there.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(table: &str) -> Result<()> {
    let mut batch = Batch::begin();
    // Made first, so that one that is missing is no error.
    batch.table(NEW_TABLE, table);
    batch.table(DELETE_TABLE, table);
    send(&batch.end()).doing("remove the nftables table", table)
}

fn send((bytes, last): &(Vec<u8>, u32)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let fd = socket.as_fd();
    let timeout = nix::sys::time::TimeVal::new(TIMEOUT_S as _, 0);
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::SndBufForce, &SEND_BUFFER)?;
    socket.send(bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for (sequence, code) in answers(&answer) {
            match code {
                0 if sequence == *last => return Ok(()),
                0 => {}
                code => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
    }
}

/// Sequence number and code of each `NLMSG_ERROR` in a datagram.
fn answers(datagram: &[u8]) -> Vec<(u32, i32)> {
    let word = |at: usize| -> Option<[u8; 4]> { datagram.get(at..at + 4)?.try_into().ok() };
    let (mut at, mut out) = (0, Vec::new());
    while let Some(length) = word(at).map(|it| u32::from_ne_bytes(it) as usize)
        && length >= HEADER
    {
        let kind = u16::from_ne_bytes([datagram[at + 4], datagram[at + 5]]);
        if i32::from(kind) == libc::NLMSG_ERROR
            && let (Some(code), Some(sequence)) = (word(at + HEADER), word(at + 8))
        {
            out.push((u32::from_ne_bytes(sequence), i32::from_ne_bytes(code)));
        }
        at += length.next_multiple_of(4);
    }
    out
}

const HEADER: usize = 16;
const IPV4: u8 = libc::NFPROTO_IPV4 as u8;

// Messages of the subsystem.
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

// Registers: a verdict, and two of 16 bytes.
const VERDICT: u32 = 0;
const FIRST: u32 = 1;
const SECOND: u32 = 2;

// Where the bytes of a packet are counted from.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;

/// Kinds of chains, their hooks and priorities (`NF_INET_*`, `NF_IP_PRI_RAW`, `NF_IP_PRI_NAT_*`).
const CHAINS: [(&str, Hook); 4] = [
    ("guard", ("filter", 0, -300)),
    ("prerouting", ("nat", 0, -100)),
    ("output", ("nat", 3, -100)),
    ("postrouting", ("nat", 4, 100)),
];

type Hook = (&'static str, u32, i32);

/// Addresses that no packet on a wire has.
const LOOPBACK: (Ipv4Addr, u8) = (Ipv4Addr::new(127, 0, 0, 0), 8);

fn replace(rules: &Rules) -> (Vec<u8>, u32) {
    let table = rules.table.as_str();
    let mut batch = Batch::begin();
    // Made, removed and made again: whatever was in it is gone, whether it was there or not.
    batch.table(NEW_TABLE, table);
    batch.table(DELETE_TABLE, table);
    batch.table(NEW_TABLE, table);
    batch.chain(table, "ports", None);
    for (name, hook) in CHAINS {
        batch.chain(table, name, Some(hook));
    }
    for offset in [SOURCE, DESTINATION] {
        let rule = [
            from_outside(),
            network(offset, LOOPBACK, EQUAL),
            verdict(DROP, None),
        ];
        batch.rule(table, "guard", &rule.concat());
    }
    for name in ["prerouting", "output"] {
        batch.rule(
            table,
            name,
            &[
                local_destination(),
                compare(EQUAL, &RTN_LOCAL.to_ne_bytes()),
                verdict(JUMP, Some("ports")),
            ]
            .concat(),
        );
    }
    for port in &rules.ports {
        batch.rule(table, "ports", &lead_to_pod(port));
    }
    let inside = |offset, op| network(offset, rules.pods, op);
    let from_pods = inside(SOURCE, EQUAL);
    let to_pods = inside(DESTINATION, EQUAL);
    let masquerade = expression("masq", &[]);
    let out = [
        from_pods.clone(),
        inside(DESTINATION, UNEQUAL),
        masquerade.clone(),
    ];
    let back_in = [from_pods, to_pods.clone(), translated(), masquerade.clone()];
    let from_self = [network(SOURCE, LOOPBACK, EQUAL), to_pods, masquerade];
    batch.rule(table, "postrouting", &out.concat());
    batch.rule(table, "postrouting", &back_in.concat());
    batch.rule(table, "postrouting", &from_self.concat());
    batch.end()
}

const RTN_LOCAL: u32 = 2;

/// `meta iifname != "lo"`.
fn from_outside() -> Vec<u8> {
    const NAME_OF_INPUT: u32 = 6;
    let mut name = [0; libc::IFNAMSIZ];
    name[..2].copy_from_slice(b"lo");
    let mut out = expression("meta", &[(1, FIRST.into()), (2, NAME_OF_INPUT.into())]);
    out.extend(compare(UNEQUAL, &name));
    out
}

/// `fib daddr type`: what kind of address the destination is to this node.
fn local_destination() -> Vec<u8> {
    const RESULT_ADDRESS_TYPE: u32 = 3;
    const OF_DESTINATION: u32 = 1 << 1;
    expression(
        "fib",
        &[
            (1, FIRST.into()),
            (2, RESULT_ADDRESS_TYPE.into()),
            (3, OF_DESTINATION.into()),
        ],
    )
}

fn lead_to_pod(port: &HostPort) -> Vec<u8> {
    const L4_PROTOCOL: u32 = 16;
    const DESTINATION_PORT: u32 = 2;
    const TO_DESTINATION: u32 = 1;
    let mut out = expression("meta", &[(1, FIRST.into()), (2, L4_PROTOCOL.into())]);
    out.extend(compare(EQUAL, &[port.protocol]));
    out.extend(payload(TRANSPORT, DESTINATION_PORT, 2));
    out.extend(compare(EQUAL, &port.port.to_be_bytes()));
    if let Some(address) = port.address {
        out.extend(payload(NETWORK, DESTINATION, 4));
        out.extend(compare(EQUAL, &address.octets()));
    }
    out.extend(immediate(FIRST, &port.to.octets()));
    out.extend(immediate(SECOND, &port.to_port.to_be_bytes()));
    let nat = [
        (1, TO_DESTINATION.into()),
        (2, u32::from(IPV4).into()),
        (3, FIRST.into()),
        (5, SECOND.into()),
    ];
    out.extend(expression("nat", &nat));
    out
}

/// Whether an address of the packet is in a network, or is not.
fn network(offset: u32, (address, prefix): (Ipv4Addr, u8), op: u32) -> Vec<u8> {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
    let mask_bytes = mask.to_be_bytes();
    let base = (u32::from(address) & mask).to_be_bytes();
    let mut out = payload(NETWORK, offset, 4);
    let masked = [
        (1, FIRST.into()),
        (2, FIRST.into()),
        (3, 4.into()),
        (4, Value::Nested(attribute(1, &mask_bytes))),
        (5, Value::Nested(attribute(1, &[0; 4]))),
    ];
    out.extend(expression("bitwise", &masked));
    out.extend(compare(op, &base));
    out
}

/// Whether the connection came through a port of the node (`ct status dnat`).
fn translated() -> Vec<u8> {
    const STATUS: u32 = 2;
    const DESTINATION_TRANSLATED: u32 = 1 << 5;
    let bit = DESTINATION_TRANSLATED.to_ne_bytes();
    let mut out = expression("ct", &[(1, FIRST.into()), (2, STATUS.into())]);
    let masked = [
        (1, FIRST.into()),
        (2, FIRST.into()),
        (3, 4.into()),
        (4, Value::Nested(attribute(1, &bit))),
        (5, Value::Nested(attribute(1, &[0; 4]))),
    ];
    out.extend(expression("bitwise", &masked));
    out.extend(compare(UNEQUAL, &[0; 4]));
    out
}

fn payload(base: u32, offset: u32, length: u32) -> Vec<u8> {
    let parts = [
        (1, FIRST.into()),
        (2, base.into()),
        (3, offset.into()),
        (4, length.into()),
    ];
    expression("payload", &parts)
}

fn compare(op: u32, with: &[u8]) -> Vec<u8> {
    let data = Value::Nested(attribute(1, with));
    expression("cmp", &[(1, FIRST.into()), (2, op.into()), (3, data)])
}

fn immediate(register: u32, value: &[u8]) -> Vec<u8> {
    let data = Value::Nested(attribute(1, value));
    expression("immediate", &[(1, register.into()), (2, data)])
}

/// `NF_DROP` and `NFT_JUMP`.
const DROP: i32 = 0;
const JUMP: i32 = -3;

fn verdict(code: i32, chain: Option<&str>) -> Vec<u8> {
    let mut verdict = attribute(1, &code.to_be_bytes());
    if let Some(chain) = chain {
        verdict.extend(attribute(2, &text(chain)));
    }
    let data = Value::Nested(nested(2, &verdict));
    expression("immediate", &[(1, VERDICT.into()), (2, data)])
}

/// A value of an attribute.
enum Value {
    Word(u32),
    Nested(Vec<u8>),
}

impl From<u32> for Value {
    fn from(word: u32) -> Self {
        Self::Word(word)
    }
}

/// One expression of a rule, as an element of its list.
fn expression(name: &str, parts: &[(u16, Value)]) -> Vec<u8> {
    let mut data = Vec::new();
    for (kind, value) in parts {
        data.extend(match value {
            Value::Word(word) => attribute(*kind, &word.to_be_bytes()),
            Value::Nested(bytes) => nested(*kind, bytes),
        });
    }
    let mut out = attribute(1, &text(name));
    out.extend(nested(2, &data));
    nested(1, &out)
}

fn text(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn nested(kind: u16, content: &[u8]) -> Vec<u8> {
    attribute(kind | libc::NLA_F_NESTED as u16, content)
}

/// Length, type, content, and zeros up to a multiple of four.
fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = (4 + content.len()) as u16;
    let mut out = Vec::with_capacity(usize::from(length).next_multiple_of(4));
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// One transaction.
struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the latest message begins.
    latest: usize,
}

impl Batch {
    fn begin() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            sequence: 0,
            latest: 0,
        };
        batch.bound(libc::NFNL_MSG_BATCH_BEGIN as u16);
        batch
    }

    /// The bytes, and the sequence number of the message whose answer says that all is well.
    fn end(mut self) -> (Vec<u8>, u32) {
        let last = self.sequence - 1;
        let flags = self.latest + 6;
        self.bytes[flags] |= libc::NLM_F_ACK as u8;
        self.bound(libc::NFNL_MSG_BATCH_END as u16);
        (self.bytes, last)
    }

    fn bound(&mut self, kind: u16) {
        self.message(kind, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u16, &[]);
    }

    fn table(&mut self, message: u16, name: &str) {
        self.ours(message, &attribute(1, &text(name)));
    }

    fn chain(&mut self, table: &str, name: &str, hook: Option<Hook>) {
        let mut body = attribute(1, &text(table));
        body.extend(attribute(3, &text(name)));
        if let Some((kind, number, priority)) = hook {
            let mut hook = attribute(1, &number.to_be_bytes());
            hook.extend(attribute(2, &priority.to_be_bytes()));
            body.extend(nested(4, &hook));
            body.extend(attribute(7, &text(kind)));
        }
        self.ours(NEW_CHAIN, &body);
    }

    fn rule(&mut self, table: &str, chain: &str, expressions: &[u8]) {
        let mut body = attribute(1, &text(table));
        body.extend(attribute(2, &text(chain)));
        body.extend(nested(4, expressions));
        self.ours(NEW_RULE, &body);
    }

    fn ours(&mut self, message: u16, body: &[u8]) {
        let append = if message == NEW_RULE {
            libc::NLM_F_APPEND
        } else {
            0
        };
        let create = if message == DELETE_TABLE {
            0
        } else {
            libc::NLM_F_CREATE
        };
        let kind = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | message;
        self.message(kind, (create | append) as u16, IPV4, 0, body);
    }

    fn message(&mut self, kind: u16, flags: u16, family: u8, resource: u16, body: &[u8]) {
        self.latest = self.bytes.len();
        let length = (HEADER + 4 + body.len()) as u32;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes
            .extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
        self.sequence += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_count_their_content() {
        assert_eq!(
            attribute(1, b"abc\0d"),
            [9, 0, 1, 0, b'a', b'b', b'c', 0, b'd', 0, 0, 0]
        );
        assert_eq!(nested(2, &[1, 2, 3, 4])[..4], [8, 0, 2, 0x80]);
    }

    #[test]
    fn answers_are_read_and_cut_ones_are_none() {
        let mut error = Vec::new();
        error.extend(36_u32.to_ne_bytes());
        error.extend((libc::NLMSG_ERROR as u16).to_ne_bytes());
        error.extend([0; 2]);
        error.extend(7_u32.to_ne_bytes());
        error.extend([0; 4]);
        error.extend((-2_i32).to_ne_bytes());
        error.extend([0; 16]);
        assert_eq!(answers(&error), [(7, -2)]);
        assert_eq!(answers(&error[..10]), []);
        assert_eq!(answers(&[0; 64]), []);
    }

    /// What the kernel made of it, in nft's words. In a network namespace of the test's own.
    #[test]
    fn the_kernel_reads_the_table_as_it_is_meant() {
        let rules = Rules {
            table: "skiff_test".to_owned(),
            pods: (Ipv4Addr::new(10, 88, 7, 9), 16),
            ports: vec![
                HostPort {
                    protocol: 6,
                    address: None,
                    port: 8080,
                    to: Ipv4Addr::new(10, 88, 0, 5),
                    to_port: 80,
                },
                HostPort {
                    protocol: 17,
                    address: Some(Ipv4Addr::new(192, 0, 2, 1)),
                    port: 53,
                    to: Ipv4Addr::new(10, 88, 0, 6),
                    to_port: 5353,
                },
            ],
        };
        let worker = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            apply(&rules).unwrap();
            // A second time it is the same, not twice as much.
            apply(&rules).unwrap();
            let list = || {
                let out = std::process::Command::new("nft")
                    .args(["list", "ruleset"])
                    .output()
                    .unwrap();
                assert!(out.status.success(), "{out:?}");
                String::from_utf8(out.stdout).unwrap()
            };
            let full = list();
            remove(&rules.table).unwrap();
            remove(&rules.table).unwrap();
            (full, list())
        });
        let (full, empty) = worker.join().unwrap();
        assert_eq!(empty, "");
        let lines: Vec<&str> = full.lines().map(str::trim).filter(|it| !it.is_empty()).collect();
        assert_eq!(
            lines,
            [
                "table ip skiff_test {",
                "chain ports {",
                "tcp dport 8080 dnat to 10.88.0.5:80",
                "udp dport 53 ip daddr 192.0.2.1 dnat to 10.88.0.6:5353",
                "}",
                "chain guard {",
                "type filter hook prerouting priority raw; policy accept;",
                "iifname != \"lo\" ip saddr 127.0.0.0/8 drop",
                "iifname != \"lo\" ip daddr 127.0.0.0/8 drop",
                "}",
                "chain prerouting {",
                "type nat hook prerouting priority dstnat; policy accept;",
                "fib daddr type local jump ports",
                "}",
                "chain output {",
                "type nat hook output priority -100; policy accept;",
                "fib daddr type local jump ports",
                "}",
                "chain postrouting {",
                "type nat hook postrouting priority srcnat; policy accept;",
                "ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 masquerade",
                "ip saddr 10.88.0.0/16 ip daddr 10.88.0.0/16 ct status dnat masquerade",
                "ip saddr 127.0.0.0/8 ip daddr 10.88.0.0/16 masquerade",
                "}",
                "}",
            ]
        );
    }

    /// A Pod that routes 127.0.0.1 to its gateway, as one with `CAP_NET_ADMIN` can and one with `CAP_NET_RAW` does by hand.
    #[test]
    fn the_nodes_loopback_is_its_own() {
        use std::time::Duration;
        let ip = |words: &str| {
            let out = std::process::Command::new("ip")
                .args(words.split(' '))
                .output()
                .unwrap();
            assert!(out.status.success(), "ip {words}: {out:?}");
        };
        let unshare = || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let route_localnet = |interface: &str| {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet"), "1").unwrap();
        };
        let node = std::thread::spawn(move || {
            unshare();
            let (said, hears) = std::sync::mpsc::channel();
            let (asks, asked) = std::sync::mpsc::channel::<(u16, Duration)>();
            let (tells, told) = std::sync::mpsc::channel();
            let pod = std::thread::spawn(move || {
                unshare();
                said.send(nix::unistd::gettid()).unwrap();
                let mut first = true;
                for (port, patience) in asked {
                    if std::mem::take(&mut first) {
                        ip("address add 10.88.0.5/16 dev inside");
                        ip("link set inside up");
                        // What comes back is taken, as a raw socket takes it.
                        route_localnet("inside");
                        ip("route add 127.0.0.1 via 10.88.0.1 dev inside");
                    }
                    let to = std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                    tells
                        .send(std::net::TcpStream::connect_timeout(&to, patience).is_ok())
                        .unwrap();
                }
            });
            ip("link set lo up");
            ip("link add outside type veth peer name inside");
            ip(&format!("link set inside netns {}", hears.recv().unwrap()));
            ip("address add 10.88.0.1/16 dev outside");
            ip("link set outside up");
            route_localnet("outside");
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let reaches = |patience| {
                asks.send((listener.local_addr().unwrap().port(), patience))
                    .unwrap();
                told.recv().unwrap()
            };
            // A busy machine may lose the first packets to the neighbour's address.
            let open = reaches(Duration::from_secs(10));
            let rules = Rules {
                table: "skiff_test".to_owned(),
                pods: (Ipv4Addr::new(10, 88, 0, 0), 16),
                ports: vec![],
            };
            apply(&rules).unwrap();
            let guarded = reaches(Duration::from_millis(500));
            drop(asks);
            pod.join().unwrap();
            (open, guarded)
        });
        let (open, guarded) = node.join().unwrap();
        assert!(open, "without the table there is nothing to guard against");
        assert!(!guarded);
    }
}
