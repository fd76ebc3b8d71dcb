//! Where volumes are, and how they are mounted.

use super::*;
use skiff_protocol::wire::spec::{HostPathType, PersistentVolume, PullPolicy};

/// Facts about a Pod whose one claim, `claim`, is bound.
pub(crate) fn facts<'a>(run: &'a Path, state: &'a Path, volumes: &'a Path) -> Facts<'a> {
    Facts {
        node: "node",
        host_ip: "192.0.2.1",
        pod_ip: Some([10, 88, 0, 7].into()),
        node_cpu_milli: 4000,
        node_memory: 1 << 30,
        node_storage: 1 << 40,
        hostname: "host",
        limits: &super::super::tests::NONE,
        seccomp_dir: Path::new("/"),
        apparmor: None,
        pod_cgroup: "skiff/p".to_owned(),
        run,
        state,
        layers: state,
        bounding: &[],
        namespaces: Default::default(),
        volumes,
        claim: &|name| (name == "claim").then(persistent),
    }
}

fn persistent() -> PersistentVolume {
    PersistentVolume {
        name: "pvc-1".into(),
        claim: ("default".into(), "claim".into()),
        capacity: 1,
        drop: false,
    }
}

fn planned(source: VolumeSource, mount: spec::Mount) -> Result<Mount, String> {
    let (pod, spec) = pod_with(source, mount);
    let facts = facts(Path::new("/run/p"), Path::new("/state/p"), Path::new("/state/v"));
    let variables = [
        ("POD".to_owned(), "p-0".to_owned()),
        ("EMPTY".to_owned(), String::new()),
        ("UP".to_owned(), "../x".to_owned()),
        ("ROOT".to_owned(), "/x".to_owned()),
    ];
    let all = mounts(&pod, &spec, "c-0", &variables, &facts)?;
    Ok(all.into_iter().next_back().unwrap())
}

fn pod_with(source: VolumeSource, mount: spec::Mount) -> (PodSpec, Container) {
    let volume = Volume {
        name: "v".into(),
        source,
    };
    let pod = PodSpec {
        volumes: vec![volume],
        ..Default::default()
    };
    let spec = Container {
        name: "c".into(),
        mounts: vec![spec::Mount {
            volume: "v".into(),
            path: if mount.path.is_empty() {
                "/data".into()
            } else {
                mount.path.clone()
            },
            ..mount
        }],
        ..Default::default()
    };
    (pod, spec)
}

fn disk() -> VolumeSource {
    VolumeSource::EmptyDir {
        memory: false,
        size_limit: None,
    }
}

#[test]
fn each_source_has_its_place_and_its_mode() {
    let config = |secret| VolumeSource::Config {
        secret,
        name: "n".into(),
        items: Vec::new(),
        default_mode: 0o644,
        optional: false,
    };
    let memory = VolumeSource::EmptyDir {
        memory: true,
        size_limit: None,
    };
    let host = VolumeSource::HostPath {
        path: "/srv".into(),
        kind: HostPathType::Unchecked,
    };
    let projected = VolumeSource::Projected {
        sources: Vec::new(),
        default_mode: 0o644,
    };
    let image = VolumeSource::Image {
        reference: "i".into(),
        pull_policy: PullPolicy::Never,
    };
    let claim = |read_only| VolumeSource::Claim {
        name: "claim".into(),
        read_only,
    };
    for (source, expected, read_only) in [
        (disk(), "/state/p/volumes/v", false),
        (memory, "/run/p/volumes/v", false),
        (config(false), "/run/p/volumes/v", true),
        (config(true), "/run/p/volumes/v", true),
        (projected, "/run/p/volumes/v", true),
        (image, "/run/p/volumes/v", true),
        (host, "/srv", false),
        (claim(false), "/state/v/pvc-1", false),
        (claim(true), "/state/v/pvc-1", true),
    ] {
        let mount = planned(source.clone(), Default::default()).unwrap();
        assert_eq!(
            (mount.source.to_str().unwrap(), mount.read_only),
            (expected, read_only),
            "{source:?}"
        );
        let noexec = mount.options.iter().any(|it| it == "noexec");
        assert_eq!(noexec, matches!(source, VolumeSource::Image { .. }), "{source:?}");
    }
    let other = VolumeSource::Claim {
        name: "other".into(),
        read_only: false,
    };
    assert_eq!(
        planned(other, Default::default()).unwrap_err(),
        "persistentvolumeclaim \"other\" not found"
    );
}

#[test]
fn sub_paths_are_whole_and_stay_inside() {
    let path = |text: &str| SubPath::Path(text.into());
    let expr = |text: &str| SubPath::Expr(text.into());
    for (sub_path, expected) in [
        (SubPath::None, Ok(None)),
        (path(""), Ok(None)),
        (path("a/b"), Ok(Some("a/b"))),
        (path("$(POD)"), Ok(Some("$(POD)"))),
        (expr("logs/$(POD)"), Ok(Some("logs/p-0"))),
        (expr("$$(POD)"), Ok(Some("$(POD)"))),
        (expr("$(NO)/$(EMPTY)/$(POD)"), Err("missing value for EMPTY, NO")),
        (
            expr("a/$(UP)"),
            Err("unable to provision SubPath `a/../x`: must not contain '..'"),
        ),
        (
            expr("$(ROOT)"),
            Err("error SubPath `/x` must not be an absolute path"),
        ),
    ] {
        let mount = spec::Mount {
            sub_path: sub_path.clone(),
            ..Default::default()
        };
        let found = planned(disk(), mount).map(|it| it.sub_path);
        let expected = expected.map(|it| it.map(PathBuf::from)).map_err(str::to_owned);
        assert_eq!(found, expected, "{sub_path:?}");
    }
}

#[test]
fn propagation_and_recursion_pass_through() {
    let mount = spec::Mount {
        read_only: true,
        recursive_read_only: RecursiveReadOnly::IfPossible,
        propagation: Propagation::HostToContainer,
        ..Default::default()
    };
    let mount = planned(disk(), mount).unwrap();
    assert!(mount.read_only);
    assert_eq!(
        mount.recursive_read_only,
        skiff_sys::RecursiveReadOnly::IfPossible
    );
    assert_eq!(mount.propagation, skiff_sys::Propagation::HostToContainer);
}

#[test]
fn files_of_ours_give_way_and_the_last_words_have_a_place() {
    let (run, state) = (Path::new("/run/p"), Path::new("/state/p"));
    let facts = facts(run, state, state);
    for (mounted, words, expected) in [
        (
            "/data",
            "",
            "/etc/hosts /etc/hostname /etc/resolv.conf /dev/termination-log /data",
        ),
        (
            "/etc/hosts",
            "/tmp/end",
            "/etc/hostname /etc/resolv.conf /tmp/end /etc/hosts",
        ),
    ] {
        let mount = spec::Mount {
            path: mounted.into(),
            ..Default::default()
        };
        let (pod, mut spec) = pod_with(disk(), mount);
        spec.termination_message_path = words.into();
        spec.security.read_only_root = mounted == "/data";
        let all = mounts(&pod, &spec, "c-3", &[], &facts).unwrap();
        let fixed = all
            .iter()
            .filter(|it| it.read_only && it.source.starts_with("/run/p/files/etc"));
        let fixed: Vec<_> = fixed.map(|it| it.destination.to_str().unwrap()).collect();
        let etc: &[&str] = if mounted == "/data" {
            &["/etc/hostname", "/etc/resolv.conf"]
        } else {
            &[]
        };
        assert_eq!(fixed, etc);
        let places: Vec<_> = all.iter().map(|it| it.destination.to_str().unwrap()).collect();
        assert_eq!(places.join(" "), expected);
        let term = all
            .iter()
            .find(|it| it.source == termination_path(run, "c-3"))
            .unwrap();
        assert!(!term.read_only);
    }
}
