//! From a Pod and its address to its sandbox: namespaces, network, name, ids and cgroup.
//!
//! Always holds: pure, and the same for the same Pod and address, before and after a restart of the agent.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use skiff_protocol::wire::spec::PodSpec;
use skiff_sys::{IdRange, IpNet, NetworkConfig, PodCgroup, SandboxConfig};

use super::limits::{NodeLimits, pod_limits};
use crate::config::{Config, USER_IDS};

/// Bytes of a Pod's `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;

/// What a fully qualified name of a Pod ends with, as Kubernetes has it by default.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// The longest name that the kernel takes: `HOST_NAME_MAX`.
const LONGEST_NAME: usize = 64;

/// The lowest port that takes no capability.
const FIRST_FREE_PORT: &str = "net.ipv4.ip_unprivileged_port_start";

/// What a sandbox needs to know beside the Pod.
pub(crate) struct SandboxFacts<'a> {
    /// The agent's configuration.
    pub config: &'a Config,
    /// The node's hostname.
    pub node: &'a str,
    /// Where the namespaces are pinned.
    pub ns_dir: PathBuf,
    /// What of the node decides about limits.
    pub limits: &'a NodeLimits<'a>,
}

/// The sandbox of a Pod.
///
/// # Errors
/// What the node cannot give, in a kubelet's words.
pub(crate) fn sandbox(
    pod: &PodSpec,
    ip: Option<Ipv4Addr>,
    facts: &SandboxFacts<'_>,
) -> Result<SandboxConfig, String> {
    let config = facts.config;
    Ok(SandboxConfig {
        pod_uid: pod.uid.to_string(),
        hostname: hostname(pod, facts.node)?,
        ns_dir: facts.ns_dir.clone(),
        host_network: pod.host_network,
        network: if pod.host_network {
            None
        } else {
            Some(network(pod, address(ip, config)?, config)?)
        },
        cgroup: PodCgroup {
            parent: config.cgroup.clone(),
            pod: pod.uid.to_string(),
            limits: pod_limits(pod, facts.limits),
        },
        shm_bytes: SHM_BYTES,
        host_ipc: pod.host_ipc,
        host_pid: pod.host_pid,
        share_pid: pod.share_process_namespace,
        users: if pod.user_namespace {
            Some(ids(address(ip, config)?, config)?)
        } else {
            None
        },
        sysctls: sysctls(pod),
    })
}

/// Those that the Pod asks for, and that whoever a container runs as may listen on any port of the Pod's own network, as
/// containerd and Docker have it.
fn sysctls(pod: &PodSpec) -> Vec<(String, String)> {
    let mut all = pod.security.sysctls.clone();
    let asked = all
        .iter()
        .any(|(name, _)| name.replace('/', ".") == FIRST_FREE_PORT);
    if !pod.host_network && !asked {
        all.push((FIRST_FREE_PORT.to_owned(), "0".to_owned()));
    }
    all
}

/// The name that the Pod's processes see: of the node where they share its network, else the Pod's, whole with its domain
/// where that is asked for.
///
/// # Errors
/// When the whole name is too long for the kernel.
fn hostname(pod: &PodSpec, node: &str) -> Result<String, String> {
    if pod.host_network {
        return Ok(node.to_owned());
    }
    let Some(domain) = domain(pod).filter(|_| pod.hostname_is_fqdn) else {
        return Ok(pod.hostname.clone());
    };
    let name = format!("{}.{domain}", pod.hostname);
    if name.len() > LONGEST_NAME {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long ({LONGEST_NAME} \
             characters is the max, {} characters requested)",
            name.len()
        ));
    }
    Ok(name)
}

/// What follows the hostname in the Pod's whole name; there is one where the Pod has a `subdomain`.
pub(crate) fn domain(pod: &PodSpec) -> Option<String> {
    (!pod.subdomain.is_empty()).then(|| format!("{}.{}.svc.{CLUSTER_DOMAIN}", pod.subdomain, pod.namespace))
}

fn address(ip: Option<Ipv4Addr>, config: &Config) -> Result<Ipv4Addr, String> {
    ip.ok_or_else(|| format!("no address is free in {}", config.pod_cidr))
}

fn network(pod: &PodSpec, ip: Ipv4Addr, config: &Config) -> Result<NetworkConfig, String> {
    let (network, prefix) = config.pods().map_err(|error| format!("{error:#}"))?;
    let gateway = Ipv4Addr::from(u32::from(network) + 1);
    // The uid's last bytes are random, and 15 bytes are what an interface's name may have.
    let tail: String = pod
        .uid
        .to_string()
        .chars()
        .rev()
        .take(10)
        .filter(|c| *c != '-')
        .collect();
    Ok(NetworkConfig {
        bridge: config.bridge.clone(),
        bridge_address: IpNet {
            address: gateway.into(),
            prefix,
        },
        address: IpNet {
            address: ip.into(),
            prefix,
        },
        gateway: gateway.into(),
        mtu: 0,
        host_veth: format!("sk{tail}"),
    })
}

/// The ids of a Pod's user namespace: no two Pods have the same address at once, so none have the same ids.
fn ids(ip: Ipv4Addr, config: &Config) -> Result<IdRange, String> {
    let (network, _) = config.pods().map_err(|error| format!("{error:#}"))?;
    // The first address is the network's and the second the gateway's.
    let slot = u32::from(ip).saturating_sub(u32::from(network)).saturating_sub(2);
    let first = u64::from(config.user_ids_base) + u64::from(slot) * u64::from(USER_IDS);
    let last = first + u64::from(USER_IDS) - 1;
    // The last id of all means "none" to the kernel.
    match u32::try_from(first) {
        Ok(first) if last < u64::from(u32::MAX) => Ok(IdRange {
            first,
            count: USER_IDS,
        }),
        _ => Err(format!(
            "no user ids are left for address {ip}: set a lower user_ids_base or a longer pod_cidr"
        )),
    }
}
