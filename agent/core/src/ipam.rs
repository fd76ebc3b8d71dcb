//! Pod addresses out of the node's prefix.
//!
//! Always holds: an address is given to one Pod at a time; network, gateway and broadcast are never given.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use skiff_protocol::uid::Uid;

/// The addresses of one node.
#[derive(Clone, Debug)]
pub(crate) struct Ipam {
    first: u32,
    last: u32,
    next: u32,
    given: BTreeMap<u32, Uid>,
}

impl Ipam {
    /// Addresses of `network/prefix` after its first one, which is the gateway.
    pub(crate) fn new(network: Ipv4Addr, prefix: u8) -> Self {
        let size = 1u64 << (32 - u32::from(prefix.clamp(8, 30)));
        let base = u64::from(u32::from(network)) & !(size - 1);
        let first = (base + 2) as u32;
        Self {
            first,
            last: (base + size - 2) as u32,
            next: first,
            given: BTreeMap::new(),
        }
    }

    /// An address for `pod`: the one it has, else the one unused for longest.
    pub(crate) fn assign(&mut self, pod: Uid) -> Option<Ipv4Addr> {
        if let Some((address, _)) = self.given.iter().find(|(_, owner)| **owner == pod) {
            return Some(Ipv4Addr::from(*address));
        }
        let span = self.last - self.first + 1;
        let start = self.next - self.first;
        let address = (0..span)
            .map(|step| self.first + (start + step) % span)
            .find(|it| !self.given.contains_key(it))?;
        self.next = if address == self.last {
            self.first
        } else {
            address + 1
        };
        self.given.insert(address, pod);
        Some(Ipv4Addr::from(address))
    }

    /// Notes that `pod` already has `address`.
    pub(crate) fn adopt(&mut self, pod: Uid, address: Ipv4Addr) {
        let address = u32::from(address);
        self.given.insert(address, pod);
        if (self.first..self.last).contains(&address) && address >= self.next {
            self.next = address + 1;
        }
    }

    /// Takes back what `pod` had.
    pub(crate) fn release(&mut self, pod: Uid) {
        self.given.retain(|_, owner| *owner != pod);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_and_come_back() {
        let mut ipam = Ipam::new(Ipv4Addr::new(10, 88, 7, 9), 29);
        let pod = |n| Uid([n; 16]);
        let given: Vec<_> = (0..6)
            .map(|n| ipam.assign(pod(n)).map(|it| it.octets()[3]))
            .collect();
        assert_eq!(given, [Some(10), Some(11), Some(12), Some(13), Some(14), None]);
        assert_eq!(
            ipam.assign(pod(0)).map(|it| it.octets()[3]),
            Some(10),
            "a Pod keeps its address"
        );
        ipam.release(pod(2));
        assert_eq!(ipam.assign(pod(9)).map(|it| it.octets()[3]), Some(12));
        let mut ipam = Ipam::new(Ipv4Addr::new(10, 88, 0, 0), 16);
        ipam.adopt(pod(1), Ipv4Addr::new(10, 88, 0, 2));
        assert_eq!(ipam.assign(pod(2)), Some(Ipv4Addr::new(10, 88, 0, 3)));
    }
}
