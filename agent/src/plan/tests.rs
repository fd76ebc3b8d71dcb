//! What becomes of variables, commands, capabilities and quantities.

use super::*;

mod resources;
mod sandboxes;

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

pub(super) const NONE: NodeLimits<'static> = NodeLimits {
    pids: 7,
    allocatable_memory: 1000 << 20,
    hugepages: &[],
    unified: false,
    memory_qos: false,
    lacks: Lacks {
        memory: false,
        cpu: false,
        pids: false,
    },
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
    // Whoever asks for what everybody has needs no leave, and for anything more does.
    let common = skiff_protocol::wire::feature::COMMON_CAPABILITIES.map(|it| format!("CAP_{it}"));
    assert_eq!(default, common);
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
        layers: Path::new("/state/p/containers"),
        bounding: &["CAP_CHOWN".to_owned(), "CAP_SYS_ADMIN".to_owned()],
        namespaces: Namespaces::default(),
        volumes: Path::new("/state/volumes"),
        claim: &|_| None,
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
