//! What becomes of variables, commands, capabilities and quantities.

use super::*;

#[test]
fn variables_expand_as_kubernetes_documents_it() {
    let variables: BTreeMap<String, String> = [("A".to_owned(), "1".to_owned())].into();
    for (text, expected) in [
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$$(A)", "$(A)"),
        ("$(B)", "$(B)"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("$$", "$"),
        ("100$", "100$"),
    ] {
        assert_eq!(expand(text, &variables), expected, "{text}");
    }
}

#[test]
fn command_and_args_replace_as_documented() {
    let image = ImageConfig {
        entrypoint: vec!["/ep".into()],
        cmd: vec!["c1".into()],
        ..Default::default()
    };
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (command, given, expected) in [
        ("", "", "/ep c1"),
        ("", "a b", "/ep a b"),
        ("cmd", "", "cmd"),
        ("cmd", "a", "cmd a"),
    ] {
        let spec = container_of(words(command), words(given));
        assert_eq!(args(&spec, &image, &[]).unwrap(), words(expected));
    }
    assert!(
        args(
            &container_of(Vec::new(), Vec::new()),
            &ImageConfig::default(),
            &[]
        )
        .is_err()
    );
}

fn container_of(command: Vec<String>, args: Vec<String>) -> Container {
    Container {
        name: "c".into(),
        image: "i".into(),
        pull_policy: skiff_protocol::wire::spec::PullPolicy::Always,
        command,
        args,
        working_dir: String::new(),
        env_from: Vec::new(),
        env: Vec::new(),
        ports: Vec::new(),
        resources: Default::default(),
        mounts: Vec::new(),
        security: Default::default(),
        ..Default::default()
    }
}

const NONE: NodeLimits<'static> = NodeLimits {
    pids: 7,
    allocatable_memory: 1000 << 20,
    hugepages: &[],
    unified: false,
    memory_qos: false,
    block_device: &|path| match path.to_str() {
        Some("/dev/x") => Ok((8, 16)),
        _ => Err(format!("device {}: not found", path.display())),
    },
};

fn asks(cpu: Option<u64>, memory: Option<u64>) -> Container {
    let mut spec = container_of(Vec::new(), Vec::new());
    spec.resources = skiff_protocol::wire::spec::Resources {
        cpu_limit: cpu,
        memory_limit: memory,
        cpu_request: cpu,
        memory_request: memory,
        ..Default::default()
    };
    spec
}

fn sidecar(it: Container) -> Container {
    Container { sidecar: true, ..it }
}

/// A node may hear of larger quantities than a server of this version passes on.
#[test]
fn huge_quantities_saturate() {
    let huge = Some(u64::MAX);
    for (containers, quota, shares, memory) in [
        (vec![asks(Some(250), Some(1))], Some(25_000), 256, Some(1)),
        (
            vec![asks(Some(250), Some(1)), asks(Some(250), Some(2))],
            Some(50_000),
            512,
            Some(3),
        ),
        (vec![asks(Some(250), Some(1)), asks(None, None)], None, 256, None),
        (
            vec![asks(Some(1), Some(1))],
            Some(1000),
            limits::LEAST_SHARES,
            Some(1),
        ),
        (
            vec![asks(huge, huge)],
            Some(u64::MAX / 1000),
            u64::MAX / 1000,
            huge,
        ),
        (
            vec![asks(huge, huge), asks(huge, huge)],
            Some(u64::MAX / 1000),
            u64::MAX / 1000,
            huge,
        ),
    ] {
        let pod = pod_of(containers);
        let whole = limits::pod_limits(&pod, &NONE);
        assert_eq!(
            (whole.cpu_quota_us, whole.cpu_shares, whole.memory_bytes),
            (quota, Some(shares), memory)
        );
        if let [one] = &pod.containers[..] {
            let one = limits(&pod, one, &NONE).unwrap();
            assert_eq!(
                (one.cpu_quota_us, one.cpu_shares, one.memory_bytes),
                (quota, Some(shares), memory)
            );
        }
    }
    let pod = pod_of(vec![asks(huge, huge)]);
    assert_eq!(limits::oom_score_adj(&pod, &pod.containers[0], 1), -997);
}

#[test]
fn init_containers_count_one_at_a_time_and_sidecars_beside_all() {
    let one = |milli: u64| asks(Some(milli), Some(milli));
    for (init, containers, expected) in [
        (vec![], vec![one(100)], 100),
        (vec![one(500), one(300)], vec![one(100), one(100)], 500),
        (vec![sidecar(one(50))], vec![one(100)], 150),
        (vec![sidecar(one(50)), one(500)], vec![one(100)], 550),
        (vec![one(500), sidecar(one(50))], vec![one(100)], 500),
    ] {
        let mut pod = pod_of(containers);
        pod.init_containers = init;
        let whole = limits::pod_limits(&pod, &NONE);
        assert_eq!(whole.memory_bytes, Some(expected));
        assert_eq!(whole.cpu_quota_us, Some(expected * 100));
    }
    let mut pod = pod_of(vec![asks(Some(100), Some(1 << 20))]);
    pod.init_containers = vec![asks(None, None)];
    assert_eq!(
        limits::pod_limits(&pod, &NONE).memory_bytes,
        None,
        "one has no limit"
    );
}

#[test]
fn the_pods_own_resources_bound_it_and_containers_without_their_own() {
    let mut pod = pod_of(vec![asks(None, None), asks(Some(100), Some(1 << 20))]);
    pod.resources = asks(Some(500), Some(8 << 20)).resources;
    pod.resources.hugepages = vec![(2 << 20, 4 << 20)];
    let whole = limits::pod_limits(&pod, &NONE);
    assert_eq!(
        (
            whole.memory_bytes,
            whole.cpu_quota_us,
            whole.cpu_shares,
            whole.hugepages
        ),
        (Some(8 << 20), Some(50_000), Some(512), vec![(2 << 20, 4 << 20)])
    );
    for (at, memory, quota, shares) in [(0, 8 << 20, 50_000, 2), (1, 1 << 20, 10_000, 102)] {
        let one = limits(&pod, &pod.containers[at], &NONE).unwrap();
        assert_eq!(
            (one.memory_bytes, one.cpu_quota_us, one.cpu_shares, one.pids),
            (Some(memory), Some(quota), Some(shares), Some(7))
        );
    }
}

#[test]
fn memory_qos_and_oom_group_are_for_v2_alone() {
    const V2: NodeLimits<'static> = NodeLimits {
        unified: true,
        ..NONE
    };
    const QOS: NodeLimits<'static> = NodeLimits {
        memory_qos: true,
        ..V2
    };
    const OLD: NodeLimits<'static> = NodeLimits {
        memory_qos: true,
        ..NONE
    };
    let both = |request: u64, limit: Option<u64>| {
        let mut it = asks(None, limit.map(|it| it << 20));
        it.resources.memory_request = Some(request << 20).filter(|it| *it > 0);
        it
    };
    let mib = |amount: Option<u64>| amount.map(|it| it << 20);
    for (what, node, container, min, high, group) in [
        ("v1", &OLD, both(10, Some(20)), None, None, false),
        ("off", &V2, both(10, Some(20)), None, None, true),
        ("on", &QOS, both(10, Some(20)), Some(10), Some(19), true),
        ("guaranteed", &QOS, both(10, Some(10)), Some(10), None, true),
        ("best effort", &QOS, both(0, None), None, Some(900), true),
    ] {
        let pod = pod_of(vec![container]);
        let found = limits(&pod, &pod.containers[0], node).unwrap();
        assert_eq!(found.memory_min, mib(min), "{what}");
        let near = |it: u64| it.next_multiple_of(1 << 20);
        assert_eq!(found.memory_high.map(near), mib(high), "{what}");
        assert_eq!(found.oom_group, group, "{what}");
        assert_eq!(limits::pod_limits(&pod, node).memory_min, mib(min), "{what}");
    }
}

#[test]
fn huge_pages_that_were_not_asked_for_are_denied() {
    const NODE: NodeLimits<'static> = NodeLimits {
        hugepages: &[2 << 20, 1 << 30],
        ..NONE
    };
    let mut asking = asks(Some(1), None);
    asking.resources.hugepages = vec![(2 << 20, 6 << 20)];
    let pod = pod_of(vec![asking, asks(Some(1), None)]);
    let found = |at: usize, node| limits(&pod, &pod.containers[at], node).unwrap().hugepages;
    assert_eq!(found(0, &NODE), [(2 << 20, 6 << 20), (1 << 30, 0)]);
    assert_eq!(found(1, &NODE), [(2 << 20, 0), (1 << 30, 0)]);
    assert_eq!(found(1, &NONE), []);
    assert_eq!(limits::pod_limits(&pod, &NODE).hugepages, [(2 << 20, 6 << 20)]);
}

#[test]
fn io_is_bounded_by_annotation() {
    for (annotations, expected) in [
        (vec![], Ok(vec![])),
        (
            vec![("skiff.io/io-max", "device=/dev/x,rbps=1Mi,wiops=10")],
            Ok(vec![(Some(1 << 20), None, None, Some(10))]),
        ),
        (
            vec![
                ("skiff.io/io-max", "device=/dev/x,rbps=1"),
                ("skiff.io/io-max.c", "device=/dev/x, wbps=2, riops=3"),
            ],
            Ok(vec![(None, Some(2), Some(3), None)]),
        ),
        (
            vec![("skiff.io/io-max", "device=/dev/x,rbps=1;device=/dev/x,wbps=2")],
            Ok(vec![(Some(1), None, None, None), (None, Some(2), None, None)]),
        ),
        (vec![("skiff.io/io-max.other", "?")], Ok(vec![])),
        (
            vec![("skiff.io/io-max", "rbps=1")],
            Err("annotation skiff.io/io-max: device= is missing"),
        ),
        (
            vec![("skiff.io/io-max.c", "device=/dev/y")],
            Err("annotation skiff.io/io-max.c: device /dev/y: not found"),
        ),
        (
            vec![("skiff.io/io-max", "device=/dev/x,rbps=fast")],
            Err("annotation skiff.io/io-max: rbps: \"fast\" must be a quantity above 0"),
        ),
        (
            vec![("skiff.io/io-max", "device=/dev/x,bps=1")],
            Err("annotation skiff.io/io-max: \"bps\" must be one of device, rbps, wbps, riops, wiops"),
        ),
        (
            vec![("skiff.io/io-max", "fast")],
            Err("annotation skiff.io/io-max: \"fast\" must be name=value"),
        ),
    ] {
        let mut pod = pod_of(vec![asks(None, None)]);
        let given = annotations
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        pod.annotations = given.collect();
        let found = limits(&pod, &pod.containers[0], &NONE).map(|it| {
            assert!(it.io.iter().all(|it| it.device == (8, 16)));
            let each = it
                .io
                .iter()
                .map(|it| (it.read_bytes, it.write_bytes, it.reads, it.writes));
            each.collect::<Vec<_>>()
        });
        assert_eq!(found, expected.map_err(str::to_owned), "{annotations:?}");
    }
}

#[test]
fn who_dies_first_when_memory_runs_out() {
    let burstable = |request: u64| {
        let mut it = asks(None, None);
        it.resources.memory_request = Some(request);
        it
    };
    let storage = || {
        let mut it = asks(None, None);
        it.resources.storage_limit = Some(1);
        it
    };
    for (what, init, containers, expected) in [
        ("best effort", vec![], vec![asks(None, None)], 1000),
        ("storage says nothing", vec![], vec![storage()], 1000),
        ("guaranteed", vec![], vec![asks(Some(1), Some(1))], -997),
        (
            "an init container without limits",
            vec![asks(None, None)],
            vec![asks(Some(1), Some(1))],
            999,
        ),
        ("a fourth", vec![], vec![burstable(250)], 750),
        ("next to nothing", vec![], vec![burstable(0), burstable(1)], 999),
        ("all of it", vec![], vec![burstable(1000)], 2),
    ] {
        let mut pod = pod_of(containers);
        pod.init_containers = init;
        assert_eq!(
            limits::oom_score_adj(&pod, &pod.containers[0], 1000),
            expected,
            "{what}"
        );
    }
    let mut pod = pod_of(vec![burstable(400)]);
    pod.init_containers = vec![sidecar(burstable(10))];
    assert_eq!(limits::oom_score_adj(&pod, &pod.init_containers[0], 1000), 600);
    // The 200 that nobody asked for by itself are everybody's.
    let mut pod = pod_of(vec![burstable(100), burstable(100)]);
    pod.resources.memory_request = Some(400);
    assert_eq!(limits::oom_score_adj(&pod, &pod.containers[0], 1000), 800);
}

fn pod_of(containers: Vec<Container>) -> PodSpec {
    PodSpec {
        namespace: "default".into(),
        name: "p".into(),
        termination_grace_seconds: 30,
        hostname: "p".into(),
        containers,
        ..Default::default()
    }
}

#[test]
fn capabilities_add_and_drop() {
    let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let capabilities = |add: &str, drop: &str, bounding: &str| {
        let mut spec = asks(None, None);
        spec.security.add_capabilities = names(add);
        spec.security.drop_capabilities = names(drop);
        security::capabilities(&spec, &names(bounding))
    };
    let default = skiff_sys::default_capabilities();
    assert_eq!(capabilities("", "", "").len(), default.len());
    assert_eq!(capabilities("", "ALL", ""), Vec::<String>::new());
    assert_eq!(capabilities("NET_ADMIN", "ALL", ""), ["CAP_NET_ADMIN"]);
    assert_eq!(
        capabilities("ALL", "SYS_ADMIN", "CAP_SYS_ADMIN CAP_CHOWN"),
        ["CAP_CHOWN"]
    );
    assert!(
        capabilities("", "NET_RAW", "")
            .iter()
            .all(|it| it != "CAP_NET_RAW")
    );
}

#[test]
fn groups_are_merged_unless_the_policy_is_strict() {
    for (strict, supplemental, fs_group, expected) in [
        (false, vec![], None, vec![10, 20]),
        (false, vec![30, 10], Some(40), vec![10, 20, 30, 40]),
        (true, vec![30], Some(30), vec![30]),
        (true, vec![], None, vec![]),
    ] {
        let mut pod = pod_of(Vec::new());
        pod.security.strict_groups = strict;
        pod.security.supplemental_groups = supplemental;
        pod.security.fs_group = fs_group;
        assert_eq!(security::groups(&pod, vec![10, 20]), expected);
    }
}

/// An image without any files: users are numbers.
fn image() -> Image {
    let digest = skiff_protocol::image_ref::Digest::from_sha256([0; 32]);
    Image {
        digest,
        repo_digest: digest,
        layers: Vec::new(),
        config: ImageConfig {
            cmd: vec!["/run".into()],
            ..Default::default()
        },
        size_bytes: 0,
    }
}

fn planned(
    pod: &PodSpec,
    apparmor: Option<&dyn Fn(&str) -> bool>,
    edits: Edits,
) -> Result<ContainerConfig, String> {
    let facts = Facts {
        node: "n",
        host_ip: "192.0.2.9",
        pod_ip: None,
        hostname: "host",
        node_cpu_milli: 4000,
        node_memory: 1000,
        node_storage: 1,
        limits: &NONE,
        seccomp_dir: Path::new("/profiles"),
        apparmor,
        pod_cgroup: "skiff/p".into(),
        run: Path::new("/run/p"),
        state: Path::new("/state/p"),
        bounding: &["CAP_CHOWN".to_owned(), "CAP_SYS_ADMIN".to_owned()],
        namespaces: Namespaces::default(),
    };
    container(pod, &pod.containers[0], 0, &image(), &facts, edits, &|_, _| None)
}

#[test]
fn what_the_security_context_says_reaches_the_runtime() {
    use skiff_protocol::wire::spec::{AppArmor, Seccomp as Wanted, Security};
    use skiff_sys::Seccomp;
    type Change = fn(&mut Security);
    let loaded = |name: &str| name == "web" || name == APPARMOR_DEFAULT;
    let bare = |_: &str| false;
    let on: Option<&dyn Fn(&str) -> bool> = Some(&loaded);
    let without: Option<&dyn Fn(&str) -> bool> = Some(&bare);
    // Privileged, no new privileges, unmasked, filter, profile.
    let cases: [(&str, Change, _, _); 12] = [
        (
            "default",
            |_| {},
            None,
            (false, true, false, Seccomp::RuntimeDefault, None),
        ),
        (
            "default with AppArmor",
            |_| {},
            on,
            (
                false,
                true,
                false,
                Seccomp::RuntimeDefault,
                Some(APPARMOR_DEFAULT),
            ),
        ),
        (
            "no profile of ours",
            |_| {},
            without,
            (false, true, false, Seccomp::RuntimeDefault, None),
        ),
        (
            "privileged",
            |it| it.privileged = true,
            on,
            (true, false, false, Seccomp::Unconfined, None),
        ),
        (
            "privileged with a filter",
            |it| (it.privileged, it.seccomp) = (true, Some(Wanted::RuntimeDefault)),
            None,
            (true, false, false, Seccomp::Unconfined, None),
        ),
        (
            "escalation",
            |it| it.allow_privilege_escalation = true,
            None,
            (false, false, false, Seccomp::RuntimeDefault, None),
        ),
        (
            "CAP_SYS_ADMIN",
            |it| it.add_capabilities = vec!["SYS_ADMIN".into()],
            None,
            (false, false, false, Seccomp::RuntimeDefault, None),
        ),
        (
            "procMount",
            |it| it.unmasked_proc = true,
            None,
            (false, true, true, Seccomp::RuntimeDefault, None),
        ),
        (
            "Unconfined",
            |it| (it.seccomp, it.apparmor) = (Some(Wanted::Unconfined), Some(AppArmor::Unconfined)),
            on,
            (false, true, false, Seccomp::Unconfined, None),
        ),
        (
            "seccomp Localhost",
            |it| it.seccomp = Some(Wanted::Localhost("a/b.json".into())),
            None,
            (
                false,
                true,
                false,
                Seccomp::Profile("/profiles/a/b.json".into()),
                None,
            ),
        ),
        (
            "AppArmor Localhost",
            |it| it.apparmor = Some(AppArmor::Localhost("web".into())),
            on,
            (false, true, false, Seccomp::RuntimeDefault, Some("web")),
        ),
        (
            "RuntimeDefault without AppArmor",
            |it| it.apparmor = Some(AppArmor::RuntimeDefault),
            None,
            (false, true, false, Seccomp::RuntimeDefault, None),
        ),
    ];
    for (what, change, apparmor, expected) in cases {
        let mut pod = pod_of(vec![asks(None, None)]);
        change(&mut pod.containers[0].security);
        let it = planned(&pod, apparmor, Edits::default()).unwrap();
        assert_eq!(
            (
                it.privileged,
                it.no_new_privileges,
                it.unmasked_proc,
                it.seccomp,
                it.apparmor.as_deref()
            ),
            expected,
            "{what}"
        );
        if it.privileged {
            assert_eq!(it.capabilities, ["CAP_CHOWN", "CAP_SYS_ADMIN"]);
        }
    }
    for (apparmor, expected) in [
        (
            None,
            "Cannot enforce AppArmor: AppArmor is not enabled on the host",
        ),
        (on, "apparmor profile not found other"),
    ] {
        let mut pod = pod_of(vec![asks(None, None)]);
        pod.containers[0].security.apparmor = Some(AppArmor::Localhost("other".into()));
        assert_eq!(planned(&pod, apparmor, Edits::default()).unwrap_err(), expected);
    }
}

#[test]
fn root_is_refused_where_it_is_not_wanted() {
    for (uid, expected) in [
        (
            None,
            Some("container has runAsNonRoot and image will run as root"),
        ),
        (Some(0), Some("container's runAsUser breaks non-root policy")),
        (Some(1), None),
    ] {
        let mut pod = pod_of(vec![asks(None, None)]);
        pod.containers[0].security.run_as_non_root = true;
        pod.containers[0].security.run_as_user = uid;
        let found = planned(&pod, None, Edits::default()).map(|it| it.user.uid);
        match expected {
            None => assert_eq!(found.ok(), uid),
            Some(expected) => {
                let expected = format!(
                    "{expected} (pod: \"p_default(00000000-0000-0000-0000-000000000000)\", container: c)"
                );
                assert_eq!(found.unwrap_err(), expected);
            }
        }
    }
}

#[test]
fn terminal_and_devices_reach_the_runtime() {
    let mut pod = pod_of(vec![asks(None, None)]);
    pod.host_network = true;
    pod.containers[0].tty = true;
    pod.containers[0].stdin = true;
    pod.containers[0].env = vec![skiff_protocol::wire::spec::EnvVar {
        name: "IP".into(),
        value: EnvValue::Field(FieldPath::PodIp),
    }];
    let edits = Edits {
        env: vec!["TERM=vt100".into()],
        gids: vec![44],
        ..Default::default()
    };
    let it = planned(&pod, None, edits).unwrap();
    assert!(it.tty && it.stdin);
    for expected in ["TERM=vt100", "HOSTNAME=host", "IP=192.0.2.9"] {
        assert!(it.env.iter().any(|it| it == expected), "{expected}: {:?}", it.env);
    }
    assert!(!it.env.iter().any(|it| it == "TERM=xterm"));
    assert_eq!(it.user.additional_gids, [44]);
}

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
