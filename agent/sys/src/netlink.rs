//! Links, addresses and routes over rtnetlink: what a Pod's network needs and no more.
//!
//! Always holds: a socket talks to the network namespace in which it was opened; every request is acknowledged before the
//! call returns; a link is bound to be new unless the call says `ensure`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::config::IpNet;
use crate::error::{Doing, Result};

/// Answers longer than this are not expected to single requests.
const MAX_ANSWER: usize = 32 * 1024;

/// Seconds until a kernel that does not answer is given up.
const TIMEOUT_S: i64 = 5;

/// A socket into one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the caller's network namespace.
    ///
    /// # Errors
    /// When the kernel has no rtnetlink.
    pub fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).doing("open", "a netlink socket")?;
        socket.bind_auto().doing("bind", "a netlink socket")?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .doing("connect", "a netlink socket")?;
        let timeout = nix::sys::time::TimeVal::new(TIMEOUT_S as _, 0);
        let fd = socket.as_fd();
        nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)
            .doing("set the timeout of", "a netlink socket")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of a link, if there is one of that name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn link(&mut self, name: &str) -> Result<Option<u32>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(Some(RouteNetlinkMessage::NewLink(link))) => Ok(Some(link.header.index)),
            Ok(_) => Err(io::Error::from(io::ErrorKind::InvalidData)).doing("find link", name),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error).doing("find link", name),
        }
    }

    /// The index of a link that must exist.
    ///
    /// # Errors
    /// `ENODEV` when there is none of that name.
    pub fn index(&mut self, name: &str) -> Result<u32> {
        let missing = || io::Error::from_raw_os_error(libc::ENODEV);
        self.link(name)?.ok_or_else(missing).doing("find link", name)
    }

    /// The index of a bridge of that name and address, up; made when it is missing. Other Pods' shims may do the same at
    /// the same time.
    ///
    /// # Errors
    /// When something else has the name, or the kernel refuses.
    pub fn ensure_bridge(&mut self, name: &str, address: IpNet, mtu: u32) -> Result<u32> {
        let index = match self.link(name)? {
            Some(index) => index,
            None => {
                self.add_bridge(name, address, mtu)?;
                self.index(name)?
            }
        };
        self.add_address(index, address).or_else(|error| {
            if error.is(libc::EEXIST) {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        self.set_up(index)?;
        Ok(index)
    }

    fn add_bridge(&mut self, name: &str, address: IpNet, mtu: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            // Without one of its own a bridge takes its lowest port's hardware address, and changes it as Pods come and
            // go; neighbours would lose it for a while.
            LinkAttribute::Address(hardware_address(address.address)),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        if mtu > 0 {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        match self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result.doing("make bridge", name).map(drop),
        }
    }

    /// Makes a pair: `host` in this socket's namespace, up and a port of `bridge`; `peer` in the namespace `peer_ns`.
    ///
    /// # Errors
    /// `EEXIST` when the name is taken, `EOPNOTSUPP` without the veth module.
    pub fn add_veth(
        &mut self,
        host: &str,
        bridge: u32,
        peer: &str,
        peer_ns: &OwnedFd,
        mtu: u32,
    ) -> Result<()> {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::NetNsFd(peer_ns.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = vec![
            LinkAttribute::IfName(host.to_owned()),
            LinkAttribute::Controller(bridge),
        ];
        if mtu > 0 {
            other.attributes.push(LinkAttribute::Mtu(mtu));
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            .doing("make the pair of", host)
            .map(drop)
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .doing("bring up link", index)
            .map(drop)
    }

    /// Adds an address to a link.
    ///
    /// # Errors
    /// `EEXIST` when it has the address.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix;
        message.header.family = family(address.address);
        message.attributes = vec![AddressAttribute::Address(address.address)];
        if let IpAddr::V4(v4) = address.address {
            message.attributes.push(AddressAttribute::Local(address.address));
            message
                .attributes
                .push(AddressAttribute::Broadcast(broadcast(v4, address.prefix)));
        }
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .doing("add address", address)
        .map(drop)
    }

    /// Sets the default route of this namespace.
    ///
    /// # Errors
    /// `ENETUNREACH` when the gateway is on no link.
    pub fn set_default_route(&mut self, gateway: IpAddr, link: u32) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(gateway),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: RouteScope::Universe,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        let via = match gateway {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message.attributes = vec![RouteAttribute::Gateway(via), RouteAttribute::Oif(link)];
        self.request(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .doing("set the default route to", gateway)
        .map(drop)
    }

    /// Removes a link, and with one end of a pair the other. No such link is not an error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_link(&mut self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.request(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result.doing("remove link", name).map(drop),
        }
    }

    /// Sends one request and waits for its acknowledgement; gives the object that came before it, if one did.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answer = None;
        loop {
            let mut received = Vec::with_capacity(MAX_ANSWER);
            self.socket.recv(&mut received, 0)?;
            let mut rest = &received[..];
            while !rest.is_empty() {
                let part = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                let length = (part.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                if part.header.sequence_number != self.sequence {
                    continue;
                }
                match part.payload {
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answer),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    NetlinkPayload::InnerMessage(inner) => answer = Some(inner),
                    _ => {}
                }
            }
        }
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn broadcast(address: std::net::Ipv4Addr, prefix: u8) -> std::net::Ipv4Addr {
    let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    (u32::from(address) | host).into()
}

/// A locally administered hardware address made from the last four bytes of an address.
fn hardware_address(address: IpAddr) -> Vec<u8> {
    let tail = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    [&[0x0a, 0x58], &tail[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_addresses() {
        let check = |address: &str, prefix, expected: &str| {
            assert_eq!(broadcast(address.parse().unwrap(), prefix).to_string(), expected);
        };
        check("10.88.3.7", 16, "10.88.255.255");
        check("192.168.1.1", 24, "192.168.1.255");
        check("10.0.0.1", 32, "10.0.0.1");
        check("10.0.0.1", 0, "255.255.255.255");
    }

    #[test]
    fn a_bridge_is_ensured_twice_and_removed_twice() {
        // In a network namespace of this thread's own, so nothing of the host is touched.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let address = IpNet {
            address: "10.99.0.1".parse().unwrap(),
            prefix: 24,
        };
        let index = netlink.ensure_bridge("skiff-test0", address, 1400).unwrap();
        assert_eq!(
            netlink.ensure_bridge("skiff-test0", address, 1400).unwrap(),
            index
        );
        assert_eq!(netlink.link("skiff-test0").unwrap(), Some(index));
        netlink.delete_link("skiff-test0").unwrap();
        netlink.delete_link("skiff-test0").unwrap();
        assert_eq!(netlink.link("skiff-test0").unwrap(), None);
        let error = netlink.set_up(9999).unwrap_err();
        assert!(error.is(libc::ENODEV), "{error}");
    }
}
