//! Ports of the node that lead to Pods, and the Pods' way out of the node.
//!
//! Always holds: the kernel's table is what the Pods that have an address ask for, and is written only when that changes;
//! it outlives the agent, so a restart cuts no connection. The node's loopback is opened towards the bridge only behind
//! the table that guards it. Where the kernel cannot (no nf_tables, or no NAT in it), TCP ports are served by this
//! process, and the node says so in a condition.

mod proxy;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use skiff_core::Core;
use skiff_protocol::wire::spec::{PodSpec, Protocol};
use skiff_sys::nft::{self, HostPort, Rules};
use tracing::{info, warn};

use crate::config::Config;
use proxy::Proxy;

/// What was done last.
#[derive(Default)]
pub(crate) struct Network {
    applied: Option<Rules>,
    proxy: Proxy,
    /// Why the kernel does not do it.
    error: Option<String>,
    /// What the bridge was last told to pass on.
    open: Option<Way>,
}

impl Network {
    /// Has the ports be those of the Pods that `core` knows now. Gives the text of the condition when it changed: why the
    /// kernel does not serve them, or nothing.
    pub(crate) fn refresh(&mut self, core: &Core, config: &Config) -> Option<Option<String>> {
        let rules = match rules(core, config) {
            Ok(rules) => rules,
            Err(error) => {
                warn!(%error, "the Pods' network is not known");
                return None;
            }
        };
        if self.applied.as_ref() == Some(&rules) && self.error.is_none() {
            self.open(config, Way::Guarded);
            return None;
        }
        let error = nft::apply(&rules).err().map(|error| error.to_string());
        // A table that could not be replaced is the one before it, or none.
        let way = if error.is_none() {
            Way::Guarded
        } else {
            Way::Unguarded
        };
        self.open(config, way);
        if let Some(error) = &error {
            self.proxy.serve(&rules.ports);
            info!(error, "the kernel cannot lead ports to Pods; this process does");
        } else {
            self.proxy.serve(&[]);
        }
        let text = error.map(|error| condition(&error, &rules.ports));
        self.applied = Some(rules);
        let changed = text != self.error;
        self.error.clone_from(&text);
        changed.then_some(text)
    }

    /// Until there is a bridge, which comes with the first Pod, each time anew.
    fn open(&mut self, config: &Config, way: Way) {
        if self.open != Some(way) {
            self.open = open_the_way(config, way).then_some(way);
        }
    }
}

/// Whether packets of 127.0.0.0/8 that come by the bridge are dropped by the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Guarded,
    Unguarded,
}

/// Removes what outlives the agent, when the node is stopped for good.
pub(crate) fn remove(config: &Config) {
    if let Err(error) = nft::remove(&table(config)) {
        info!(%error, "no table to remove");
    }
}

fn table(config: &Config) -> String {
    format!("skiff_{}", config.bridge)
}

fn condition(error: &str, ports: &[HostPort]) -> String {
    let others = ports.iter().filter(|it| it.protocol != nft::TCP).count();
    let lost = if others == 0 {
        String::new()
    } else {
        format!(", and {others} ports of other protocols are not served")
    };
    format!(
        "{error}: TCP ports of the node are served by the agent itself{lost}, and Pods reach other machines only if those \
         know the way back; a kernel with NF_TABLES, NFT_NAT, NFT_MASQ and NFT_FIB_IPV4 does without"
    )
}

fn rules(core: &Core, config: &Config) -> anyhow::Result<Rules> {
    let mut ports = BTreeSet::new();
    for (pod, status) in core.statuses() {
        // The next Pod of a finished one has its ports, while the finished one is still here.
        if let (Some(pod), Ok(to)) = (pod, status.pod_ip.parse())
            && core.holds_resources(status.uid)
        {
            ports.extend(ports_of(pod, to));
        }
    }
    Ok(Rules {
        table: table(config),
        pods: config.pods()?,
        ports: ports.into_iter().collect(),
    })
}

/// The node's ports that lead to this Pod. With the host's network a Pod has them by itself.
fn ports_of(pod: &PodSpec, to: Ipv4Addr) -> Vec<HostPort> {
    if pod.host_network {
        return Vec::new();
    }
    let ports = pod.all_containers().flat_map(|it| &it.ports);
    ports
        .filter(|it| it.host_port != 0)
        .map(|it| HostPort {
            protocol: match it.protocol {
                Protocol::Tcp => nft::TCP,
                Protocol::Udp => nft::UDP,
                Protocol::Sctp => nft::SCTP,
            },
            address: it
                .host_ip
                .parse()
                .ok()
                .filter(|it: &Ipv4Addr| !it.is_unspecified()),
            port: it.host_port,
            to,
            to_port: it.container_port,
        })
        .collect()
}

/// The kernel passes packets on: of this node's loopback to Pods, where the table guards the way back, and, unless the
/// configuration forbids it, between Pods and other machines. Whether there was a bridge to do it for.
fn open_the_way(config: &Config, way: Way) -> bool {
    let ipv4 = PathBuf::from("/proc/sys/net/ipv4");
    let bridge = ipv4.join("conf").join(&config.bridge);
    let loopback = if way == Way::Guarded { "1" } else { "0" };
    let mut switches = vec![
        (bridge.join("route_localnet"), loopback),
        (bridge.join("forwarding"), "1"),
    ];
    if config.ip_forward {
        switches.push((ipv4.join("ip_forward"), "1"));
    }
    for (switch, value) in switches {
        let is_so = std::fs::read_to_string(&switch).is_ok_and(|it| it.trim() == value);
        if !is_so
            && switch.exists()
            && let Err(error) = std::fs::write(&switch, value)
        {
            warn!(path = %switch.display(), value, %error, "cannot be written");
        }
    }
    bridge.exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_protocol::wire::spec::{Container, Port};

    #[test]
    fn only_ports_of_the_node_lead_to_a_pod() {
        let port = |host_port, host_ip: &str, protocol| Port {
            name: String::new(),
            container_port: 80,
            host_port,
            host_ip: host_ip.to_owned(),
            protocol,
        };
        let mut pod = PodSpec {
            containers: vec![Container {
                ports: vec![
                    port(0, "", Protocol::Tcp),
                    port(8080, "0.0.0.0", Protocol::Tcp),
                    port(53, "192.0.2.1", Protocol::Udp),
                ],
                ..Container::default()
            }],
            ..PodSpec::default()
        };
        let to = Ipv4Addr::new(10, 88, 0, 5);
        let expected = |protocol, address, port| HostPort {
            protocol,
            address,
            port,
            to,
            to_port: 80,
        };
        assert_eq!(
            ports_of(&pod, to),
            [
                expected(6, None, 8080),
                expected(17, Some(Ipv4Addr::new(192, 0, 2, 1)), 53)
            ]
        );
        pod.host_network = true;
        assert_eq!(ports_of(&pod, to), []);
    }
}
