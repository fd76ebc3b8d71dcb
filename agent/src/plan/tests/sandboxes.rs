//! What a Pod has for itself and what it shares with the node.

use super::*;

fn sandboxed(pod: &PodSpec, ip: Option<&str>, config: &str) -> Result<skiff_sys::SandboxConfig, String> {
    let config: crate::config::Config = toml::from_str(config).unwrap();
    let facts = SandboxFacts {
        config: &config,
        node: "host",
        ns_dir: "/ns".into(),
        limits: &NONE,
    };
    sandbox(pod, ip.map(|it| it.parse().unwrap()), &facts)
}

#[test]
fn what_a_pod_shares_with_the_node_reaches_its_sandbox() {
    type Change = fn(&mut PodSpec);
    type Case<'a> = (&'a str, Change, Option<&'a str>, Result<&'a str, &'a str>);
    let long = "a".repeat(60);
    let cases: [Case<'_>; 7] = [
        ("its own", |_| {}, Some("10.88.0.2"), Ok("p own-net")),
        (
            "no address",
            |_| {},
            None,
            Err("no address is free in 10.88.0.0/16"),
        ),
        (
            "hostNetwork",
            |it| it.host_network = true,
            None,
            Ok("host host-net"),
        ),
        (
            "hostPID, hostIPC",
            |it| (it.host_pid, it.host_ipc) = (true, true),
            Some("10.88.0.2"),
            Ok("p own-net host-pid host-ipc"),
        ),
        (
            "shareProcessNamespace",
            |it| it.share_process_namespace = true,
            Some("10.88.0.2"),
            Ok("p own-net share-pid"),
        ),
        (
            "setHostnameAsFQDN",
            |it| (it.hostname_is_fqdn, it.subdomain) = (true, "s".into()),
            Some("10.88.0.2"),
            Ok("p.s.default.svc.cluster.local own-net"),
        ),
        (
            "setHostnameAsFQDN without subdomain",
            |it| it.hostname_is_fqdn = true,
            Some("10.88.0.2"),
            Ok("p own-net"),
        ),
    ];
    for (what, change, ip, expected) in cases {
        let mut pod = pod_of(Vec::new());
        change(&mut pod);
        let found = sandboxed(&pod, ip, "").map(|it| {
            let mut out = it.hostname.clone();
            out += match (&it.network, it.host_network) {
                (Some(_), false) => " own-net",
                (None, true) => " host-net",
                _ => " ?",
            };
            for (set, name) in [
                (it.host_pid, " host-pid"),
                (it.host_ipc, " host-ipc"),
                (it.share_pid, " share-pid"),
            ] {
                out += if set { name } else { "" };
            }
            out
        });
        assert_eq!(
            found.as_deref(),
            expected.map_err(str::to_owned).as_deref(),
            "{what}"
        );
    }
    let mut pod = pod_of(Vec::new());
    (pod.hostname_is_fqdn, pod.subdomain, pod.hostname) = (true, "s".into(), long);
    let error = sandboxed(&pod, Some("10.88.0.2"), "").unwrap_err();
    assert!(
        error.contains("is too long (64 characters is the max, 88"),
        "{error}"
    );
}

#[test]
fn each_address_has_users_of_its_own() {
    let low = "";
    let high = "user_ids_base = 4294836224";
    for (ip, config, expected) in [
        ("10.88.0.2", low, Some(65_536)),
        ("10.88.0.3", low, Some(131_072)),
        ("10.88.255.254", low, Some(65_536 + 65_532 * 65_536)),
        ("10.88.0.2", high, Some(4_294_836_224)),
        ("10.88.0.3", high, None),
    ] {
        let mut pod = pod_of(Vec::new());
        pod.user_namespace = true;
        let found = sandboxed(&pod, Some(ip), config).map(|it| it.users.map(|it| (it.first, it.count)));
        match expected {
            Some(first) => assert_eq!(found, Ok(Some((first, 65_536))), "{ip}"),
            None => {
                let error = found.unwrap_err();
                assert!(
                    error.starts_with("no user ids are left for address 10.88.0.3"),
                    "{error}"
                );
            }
        }
    }
    assert_eq!(
        sandboxed(&pod_of(Vec::new()), Some("10.88.0.2"), "")
            .unwrap()
            .users,
        None
    );
}

#[test]
fn any_port_of_the_pods_own_network_is_free() {
    let free = |value: &str| ("net.ipv4.ip_unprivileged_port_start".to_owned(), value.to_owned());
    let of = |sysctls: Vec<(String, String)>, host_network| {
        let mut pod = pod_of(Vec::new());
        (pod.security.sysctls, pod.host_network) = (sysctls, host_network);
        sandboxed(&pod, Some("10.88.0.2"), "").unwrap().sysctls
    };
    assert_eq!(of(vec![], false), [free("0")]);
    assert_eq!(
        of(vec![free("81")], false),
        [free("81")],
        "the Pod's own word stands"
    );
    assert_eq!(of(vec![], true), [], "the node's is the node's");
}
