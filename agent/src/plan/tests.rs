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

/// A node may hear of larger quantities than a server of this version passes on.
#[test]
fn huge_quantities_saturate() {
    let asks = |cpu, memory| {
        let mut spec = container_of(Vec::new(), Vec::new());
        spec.resources = skiff_protocol::wire::spec::Resources {
            cpu_limit: cpu,
            memory_limit: memory,
            cpu_request: cpu,
            memory_request: memory,
            ..Default::default()
        };
        spec
    };
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
        (vec![asks(Some(1), Some(1))], Some(1000), LEAST_SHARES, Some(1)),
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
        let mut pod = pod_of(containers);
        let whole = pod_limits(&pod);
        assert_eq!(
            (whole.cpu_quota_us, whole.cpu_shares, whole.memory_bytes),
            (quota, Some(shares), memory)
        );
        if pod.containers.len() == 1 {
            let one = limits(&pod.containers.remove(0), 1);
            assert_eq!(
                (one.cpu_quota_us, one.cpu_shares, one.memory_bytes),
                (quota, Some(shares), memory)
            );
        }
    }
    let pod = pod_of(vec![asks(huge, huge)]);
    assert_eq!(oom_score_adj(&pod, &pod.containers[0], 1), -997);
}

fn pod_of(containers: Vec<Container>) -> PodSpec {
    PodSpec {
        uid: skiff_protocol::uid::Uid([0; 16]),
        namespace: "default".into(),
        name: "p".into(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        deletion_grace_seconds: None,
        restart_policy: skiff_protocol::wire::spec::RestartPolicy::Always,
        termination_grace_seconds: 30,
        hostname: "p".into(),
        security: Default::default(),
        containers,
        volumes: Vec::new(),
        ..Default::default()
    }
}

#[test]
fn capabilities_add_and_drop() {
    let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(capabilities(&[], &[], &[]).len(), default_capabilities().len());
    assert_eq!(capabilities(&[], &names("ALL"), &[]), Vec::<String>::new());
    assert_eq!(
        capabilities(&names("NET_ADMIN"), &names("ALL"), &[]),
        ["CAP_NET_ADMIN"]
    );
    let bounding = names("CAP_SYS_ADMIN CAP_CHOWN");
    assert_eq!(
        capabilities(&names("ALL"), &names("SYS_ADMIN"), &bounding),
        ["CAP_CHOWN"]
    );
    assert!(
        capabilities(&[], &names("NET_RAW"), &[])
            .iter()
            .all(|it| it != "CAP_NET_RAW")
    );
}

#[test]
fn downward_files_quote_as_go_does() {
    for (text, expected) in [
        ("plain", r#""plain""#),
        ("it's \"so\"\\", r#""it's \"so\"\\""#),
        ("a\nb\tc\r", r#""a\nb\tc\r""#),
        ("\u{0}\u{7}\u{7f}", r#""\x00\a\x7f""#),
        ("gr\u{fc}n", "\"gr\u{fc}n\""),
        ("\u{200b}\u{e0001}", r#""\u200b\U000e0001""#),
    ] {
        assert_eq!(go_quoted(text), expected);
    }
}
