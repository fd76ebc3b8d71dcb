//! A Pod's managed files: `hosts`, `hostname`, `resolv.conf`.
//!
//! Source: Kubernetes documentation, "DNS for Services and Pods" and "Adding entries to Pod /etc/hosts with HostAliases".
//! Always holds: what the files say is computed purely from the Pod and the node's own files; they are made once, for they
//! belong to the containers then.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use skiff_protocol::wire::spec::{DnsConfig, DnsPolicy, HostAlias, PodSpec};

use crate::plan::{self, domain};

/// Name servers that a resolver asks.
const NAMESERVERS: usize = 3;

/// Search domains, and bytes of all of them, that Kubernetes passes on.
const SEARCHES: usize = 32;
const SEARCH_BYTES: usize = 2048;

/// Where systemd-resolved says whom it asks itself.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Where systemd-resolved listens, on the node's loopback device and no other.
const RESOLVED_STUB: &str = "127.0.0.53";

/// Writes the files, once. `name` is the hostname that the Pod's processes see.
///
/// # Errors
/// When they cannot be written.
pub(crate) fn write(pod: &PodSpec, name: &str, ip: Option<Ipv4Addr>, run: &Path) -> Result<(), String> {
    let dir = plan::etc_path(run);
    if dir.join("hosts").exists() {
        return Ok(());
    }
    let hosts = hosts(pod, ip, &read("/etc/hosts"));
    let resolv = resolv(
        pod,
        &read("/etc/resolv.conf"),
        fs::read_to_string(RESOLVED).ok().as_deref(),
    );
    files(&dir, &format!("{name}\n"), &hosts, &resolv)
        .map_err(|error| format!("cannot write the Pod's files in {}: {error}", dir.display()))
}

fn read(path: &str) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn files(dir: &Path, hostname: &str, hosts: &str, resolv: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    // The last of the three tells that all are there.
    let new = dir.join(".hosts");
    for (path, text) in [
        (&dir.join("hostname"), hostname),
        (&dir.join("resolv.conf"), resolv),
        (&new, hosts),
    ] {
        fs::write(path, text)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    fs::rename(new, dir.join("hosts"))
}

/// `/etc/hosts`, as a kubelet writes it.
fn hosts(pod: &PodSpec, ip: Option<Ipv4Addr>, nodes: &str) -> String {
    let mut out = if pod.host_network {
        format!("# Kubernetes-managed hosts file (host network).\n{nodes}")
    } else {
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned()
    };
    if let Some(ip) = ip.filter(|_| !pod.host_network) {
        out += &match domain(pod) {
            Some(domain) => format!("{ip}\t{0}.{domain}\t{0}\n", pod.hostname),
            None => format!("{ip}\t{}\n", pod.hostname),
        };
    }
    if !pod.host_aliases.is_empty() {
        out += "\n# Entries added by HostAliases.\n";
    }
    for HostAlias { ip, hostnames } in &pod.host_aliases {
        out += &format!("{ip}\t{}\n", hostnames.join("\t"));
    }
    out
}

/// `/etc/resolv.conf`. The fleet serves no DNS yet, so that `ClusterFirst` means the node's, as on a kubelet without a
/// cluster DNS.
fn resolv(pod: &PodSpec, nodes: &str, resolved: Option<&str>) -> String {
    let base = match pod.dns_policy {
        DnsPolicy::None => DnsConfig::default(),
        DnsPolicy::ClusterFirst | DnsPolicy::ClusterFirstWithHostNet | DnsPolicy::Default => {
            let own = parse(nodes);
            // Nobody listens on that address of the Pod's own loopback device.
            let stub = !pod.host_network && own.nameservers.iter().any(|it| it == RESOLVED_STUB);
            resolved.filter(|_| stub).map_or(own, parse)
        }
    };
    let all = merge(base, &pod.dns);
    let mut out = String::new();
    if !all.searches.is_empty() {
        out += &format!("search {}\n", all.searches.join(" "));
    }
    for server in &all.nameservers {
        out += &format!("nameserver {server}\n");
    }
    let option = |(name, value): &(String, String)| {
        if value.is_empty() {
            name.clone()
        } else {
            format!("{name}:{value}")
        }
    };
    if !all.options.is_empty() {
        let options: Vec<String> = all.options.iter().map(option).collect();
        out += &format!("options {}\n", options.join(" "));
    }
    out
}

/// The lines of a `resolv.conf` that Kubernetes takes over. Of several `search` lines the last counts.
fn parse(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.nameservers.extend(words.next().map(str::to_owned)),
            Some("search") => out.searches = words.map(str::to_owned).collect(),
            Some("options") => {
                let option = |word: &str| {
                    let (name, value) = word.split_once(':').unwrap_or((word, ""));
                    (name.to_owned(), value.to_owned())
                };
                out.options.extend(words.map(option));
            }
            _ => {}
        }
    }
    out
}

/// Adds what `dnsConfig` says, without what is there already; an option of the same name gets the new value.
fn merge(mut base: DnsConfig, more: &DnsConfig) -> DnsConfig {
    let add = |to: &mut Vec<String>, from: &[String]| {
        let mut out: Vec<String> = Vec::new();
        for it in to.iter().chain(from) {
            if !out.contains(it) {
                out.push(it.clone());
            }
        }
        *to = out;
    };
    add(&mut base.nameservers, &more.nameservers);
    add(&mut base.searches, &more.searches);
    for (name, value) in &more.options {
        base.options.retain(|(it, _)| it != name);
        base.options.push((name.clone(), value.clone()));
    }
    base.nameservers.truncate(NAMESERVERS);
    base.searches.truncate(SEARCHES);
    let mut bytes = 0;
    base.searches.retain(|it| {
        bytes += it.len() + 1;
        bytes <= SEARCH_BYTES
    });
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodSpec {
        PodSpec {
            name: "p".into(),
            namespace: "ns".into(),
            hostname: "p".into(),
            ..Default::default()
        }
    }

    const TOP: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";

    #[test]
    fn hosts_are_as_a_kubelet_writes_them() {
        let aliases = vec![
            HostAlias {
                ip: "1.2.3.4".into(),
                hostnames: vec!["a".into(), "b".into()],
            },
            HostAlias {
                ip: "::5".into(),
                hostnames: vec!["c".into()],
            },
        ];
        let ip = Some(Ipv4Addr::new(10, 88, 0, 2));
        let added = "\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n::5\tc\n";
        for (subdomain, host_network, host_aliases, expected) in [
            ("", false, vec![], format!("{TOP}10.88.0.2\tp\n")),
            (
                "sub",
                false,
                vec![],
                format!("{TOP}10.88.0.2\tp.sub.ns.svc.cluster.local\tp\n"),
            ),
            ("", false, aliases.clone(), format!("{TOP}10.88.0.2\tp\n{added}")),
            (
                "",
                true,
                aliases,
                format!("# Kubernetes-managed hosts file (host network).\n127.0.1.1 me\n{added}"),
            ),
        ] {
            let pod = PodSpec {
                subdomain: subdomain.into(),
                host_network,
                host_aliases,
                ..pod()
            };
            assert_eq!(hosts(&pod, ip, "127.0.1.1 me\n"), expected);
        }
        assert_eq!(hosts(&pod(), None, ""), TOP);
    }

    const NODES: &str =
        "# comment\nsearch old\nsearch lan home\nnameserver 192.0.2.1\noptions edns0 ndots:2 ; no\n";

    #[test]
    fn resolv_conf_follows_policy_and_config() {
        let config = DnsConfig {
            nameservers: ["192.0.2.1", "9.9.9.9", "8.8.8.8", "1.1.1.1"]
                .map(str::to_owned)
                .to_vec(),
            searches: vec!["home".into(), "corp".into()],
            options: vec![("ndots".into(), "5".into()), ("debug".into(), String::new())],
        };
        let nodes = "search lan home\nnameserver 192.0.2.1\noptions edns0 ndots:2\n";
        let merged = "search lan home corp\nnameserver 192.0.2.1\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n\
            options edns0 ndots:5 debug\n";
        let only = "search home corp\nnameserver 192.0.2.1\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n\
            options ndots:5 debug\n";
        for (policy, dns, expected) in [
            (DnsPolicy::Default, DnsConfig::default(), nodes),
            (DnsPolicy::ClusterFirst, DnsConfig::default(), nodes),
            (DnsPolicy::ClusterFirstWithHostNet, config.clone(), merged),
            (DnsPolicy::Default, config.clone(), merged),
            (DnsPolicy::None, config, only),
        ] {
            let pod = PodSpec {
                dns_policy: policy,
                dns,
                ..pod()
            };
            assert_eq!(resolv(&pod, NODES, None), expected, "{policy:?}");
        }
    }

    #[test]
    fn a_stub_of_the_node_is_no_use_in_a_pod() {
        let stub = "nameserver 127.0.0.53\n";
        let real = Some("nameserver 192.0.2.9\n");
        for (host_network, nodes, resolved, expected) in [
            (false, stub, real, "nameserver 192.0.2.9\n"),
            (true, stub, real, "nameserver 127.0.0.53\n"),
            (false, stub, None, "nameserver 127.0.0.53\n"),
            (false, "nameserver 1.1.1.1\n", real, "nameserver 1.1.1.1\n"),
        ] {
            let pod = PodSpec {
                host_network,
                ..pod()
            };
            assert_eq!(resolv(&pod, nodes, resolved), expected);
        }
    }

    #[test]
    fn search_domains_are_bounded() {
        let searches: Vec<String> = (0..40).map(|at| format!("domain-{at}")).collect();
        let long = vec!["a".repeat(1500), "b".repeat(1500)];
        for (searches, expected) in [(searches, 32), (long, 1)] {
            let more = DnsConfig {
                searches,
                ..Default::default()
            };
            assert_eq!(merge(DnsConfig::default(), &more).searches.len(), expected);
        }
    }

    #[test]
    fn the_files_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        write(&pod(), "p", Some(Ipv4Addr::new(10, 88, 0, 2)), dir.path()).unwrap();
        let etc = plan::etc_path(dir.path());
        assert_eq!(fs::read_to_string(etc.join("hostname")).unwrap(), "p\n");
        for name in ["hosts", "hostname", "resolv.conf"] {
            let mode = fs::metadata(etc.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o644, "{name}");
        }
        fs::write(etc.join("hosts"), "changed").unwrap();
        write(&pod(), "p", Some(Ipv4Addr::new(10, 88, 0, 2)), dir.path()).unwrap();
        assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), "changed");
    }
}
