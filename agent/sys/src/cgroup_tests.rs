//! Tests of [`super`]: v2 on a directory that looks like its file system, and the node's own hierarchies.

use super::limits::weight;
use super::*;

/// A directory with the files that a v2 kernel would show.
fn fake_v2(paths: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("cgroup.controllers"),
        "cpuset cpu io memory pids\n",
    )
    .unwrap();
    for path in [""].iter().chain(paths) {
        let group = dir.path().join(path);
        fs::create_dir_all(&group).unwrap();
        for file in [
            "cgroup.subtree_control",
            "cgroup.procs",
            "memory.max",
            "cpu.max",
            "cpu.weight",
            "pids.max",
        ] {
            fs::write(group.join(file), "").unwrap();
        }
    }
    dir
}

#[test]
fn v2_limits_are_written_in_its_own_units() {
    let dir = fake_v2(&["skiff", "skiff/pod"]);
    let cgroups = Cgroups::detect(dir.path()).unwrap();
    assert_eq!(cgroups.version(), Version::V2);
    assert!(cgroups.controllers().contains("memory"));
    let limits = Limits {
        memory_bytes: Some(1 << 20),
        cpu_quota_us: Some(50_000),
        cpu_period_us: None,
        cpu_shares: Some(1024),
        pids: Some(7),
        ..Default::default()
    };
    cgroups.ensure_parent("skiff", &Limits::default()).unwrap();
    cgroups
        .ensure_pod(&PodCgroup {
            parent: "skiff".into(),
            pod: "pod".into(),
            limits,
        })
        .unwrap();
    let check = |file: &str, expected: &str| {
        assert_eq!(
            fs::read_to_string(dir.path().join(file)).unwrap(),
            expected,
            "{file}"
        );
    };
    check("skiff/pod/memory.max", "1048576");
    check("skiff/pod/cpu.max", "50000 100000");
    check("skiff/pod/cpu.weight", "100");
    check("skiff/pod/pids.max", "7");
    check("skiff/memory.max", "");
    // Each controller is enabled by a write of its own; a file keeps the last.
    check("skiff/cgroup.subtree_control", "+pids");
    cgroups.join("skiff/pod", 42).unwrap();
    check("skiff/pod/cgroup.procs", "42");
}

#[test]
fn v2_takes_what_only_it_has() {
    let dir = fake_v2(&["skiff"]);
    let group = dir.path().join("skiff");
    fs::write(
        dir.path().join("cgroup.controllers"),
        "cpu io memory pids hugetlb\n",
    )
    .unwrap();
    for file in [
        "memory.min",
        "memory.low",
        "memory.high",
        "memory.oom.group",
        "io.max",
        "hugetlb.2MB.max",
    ] {
        fs::write(group.join(file), "").unwrap();
    }
    let cgroups = Cgroups::detect(dir.path()).unwrap();
    let limits = Limits {
        memory_min: Some(1),
        memory_low: Some(2),
        memory_high: Some(3),
        oom_group: true,
        hugepages: vec![(2 << 20, 4 << 20)],
        io: vec![crate::config::IoLimit {
            device: (8, 16),
            read_bytes: Some(7),
            writes: Some(9),
            ..Default::default()
        }],
        ..Default::default()
    };
    cgroups.set_limits("skiff", &limits).unwrap();
    let check = |file: &str, expected: &str| {
        assert_eq!(fs::read_to_string(group.join(file)).unwrap(), expected, "{file}");
    };
    check("memory.min", "1");
    check("memory.low", "2");
    check("memory.high", "3");
    check("memory.oom.group", "1");
    check("hugetlb.2MB.max", "4194304");
    check("io.max", "8:16 rbps=7 wiops=9");
    cgroups
        .change_limits("skiff", &limits, &Limits::default())
        .unwrap();
    check("memory.min", "0");
    check("memory.high", "max");
    check("memory.oom.group", "0");
}

#[test]
fn v2_limits_are_changed_and_lifted() {
    let dir = fake_v2(&["pod", "pod/c"]);
    let cgroups = Cgroups::detect(dir.path()).unwrap();
    let limits = |memory| Limits {
        memory_bytes: memory,
        cpu_quota_us: memory,
        pids: memory,
        cpu_shares: memory,
        ..Default::default()
    };
    let (old, new) = (limits(Some(1000)), limits(None));
    cgroups
        .change_both(
            ("pod", &limits(Some(5000)), &limits(Some(4000))),
            ("pod/c", &old, &new),
        )
        .unwrap();
    for (file, expected) in [
        ("pod/memory.max", "4000"),
        ("pod/c/memory.max", "max"),
        ("pod/c/cpu.max", "max 100000"),
        ("pod/c/pids.max", "max"),
        ("pod/c/cpu.weight", "100"),
    ] {
        assert_eq!(
            fs::read_to_string(dir.path().join(file)).unwrap(),
            expected,
            "{file}"
        );
    }
}

#[test]
fn a_parent_is_raised_before_its_child_and_lowered_after_it() {
    let cgroups = Cgroups::detect(Path::new(ROOT)).unwrap();
    let parent = format!("skiff-test-change-{}", std::process::id());
    let child = format!("{parent}/c");
    let limits = |memory: u64, quota: u64, period: u64| Limits {
        memory_bytes: Some(memory << 20),
        cpu_quota_us: Some(quota),
        cpu_period_us: Some(period),
        ..Default::default()
    };
    let steps = [
        limits(64, 20_000, 100_000),
        limits(128, 80_000, 50_000),
        limits(32, 10_000, 100_000),
    ];
    cgroups.create(&parent, &steps[0]).unwrap();
    cgroups.create(&child, &steps[0]).unwrap();
    // On v1 the kernel refuses a child's part of a core that is more than its parent's, in any order but this.
    for pair in steps.windows(2) {
        let (old, new) = (&pair[0], &pair[1]);
        cgroups
            .change_both((&parent, old, new), (&child, old, new))
            .unwrap();
    }
    let file = if cgroups.version() == Version::V2 {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    let found = fs::read_to_string(cgroups.dir("memory", &child).join(file)).unwrap();
    assert_eq!(found.trim(), (32 << 20).to_string());
    cgroups.remove(&parent, Duration::ZERO).unwrap();
}

#[test]
fn v2_gives_a_command_a_cgroup_of_its_own() {
    let dir = fake_v2(&["pod", "pod/c"]);
    let cgroups = Cgroups::detect(dir.path()).unwrap();
    // The kernel makes this file with the cgroup.
    fs::create_dir(dir.path().join("pod/c/exec-3")).unwrap();
    let list = dir.path().join("pod/c/exec-3/cgroup.procs");
    fs::write(&list, "").unwrap();
    let membership = cgroups.membership(1, "pod/c", "pod/c/exec-3").unwrap();
    assert!(membership.unified().is_some());
    membership.join().unwrap();
    assert_eq!(fs::read_to_string(list).unwrap(), "0");
    let gone = cgroups.membership(1, "pod/gone", "pod/gone/exec-0").unwrap_err();
    assert!(gone.is(libc::ENOENT), "{gone}");
}

#[test]
fn v2_counters_are_read() {
    let dir = fake_v2(&["a"]);
    let put = |file: &str, text: &str| fs::write(dir.path().join("a").join(file), text).unwrap();
    put("memory.current", "5000\n");
    put("memory.stat", "anon 100\ninactive_file 2000\n");
    put("cpu.stat", "usage_usec 12\nuser_usec 7\n");
    put("pids.current", "3\n");
    put("memory.events", "low 0\noom 4\noom_kill 2\noom_group_kill 0\n");
    let cgroups = Cgroups::detect(dir.path()).unwrap();
    assert_eq!(
        cgroups.usage("a"),
        Usage {
            memory_bytes: 3000,
            cpu_ns: 12_000,
            pids: 3
        }
    );
    assert_eq!(cgroups.oom_kills("a"), 2);
    assert_eq!(cgroups.oom_kills("missing"), 0);
}

#[test]
fn a_limit_without_its_controller_is_an_error() {
    let dir = fake_v2(&["skiff"]);
    fs::write(dir.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
    let cgroups = Cgroups::detect(dir.path()).unwrap();
    let limits = Limits {
        memory_bytes: Some(1),
        ..Limits::default()
    };
    let error = cgroups.ensure_parent("skiff", &limits).unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot limit cgroup skiff: the memory controller is not available on this node"
    );
}

#[test]
fn nothing_mounted_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        Cgroups::detect(dir.path())
            .unwrap_err()
            .to_string()
            .contains("no cgroup file system")
    );
}

#[test]
fn shares_become_weights() {
    for (shares, expected) in [
        (0, 1),
        (2, 1),
        (3, 2),
        (102, 17),
        (1024, 100),
        (2048, 174),
        (262_144, 10_000),
    ] {
        assert_eq!(weight(shares), expected);
    }
}

#[test]
fn the_nodes_own_hierarchies_hold_limit_and_kill() {
    let cgroups = Cgroups::detect(Path::new(ROOT)).unwrap();
    let parent = format!("skiff-test-{}", std::process::id());
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        cpu_quota_us: Some(20_000),
        pids: Some(50),
        ..Limits::default()
    };
    let pod = PodCgroup {
        parent: parent.clone(),
        pod: "pod".into(),
        limits,
    };
    cgroups.ensure_parent(&parent, &Limits::default()).unwrap();
    cgroups.ensure_pod(&pod).unwrap();
    let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    cgroups.join(&pod.path(), sleeper.id() as i32).unwrap();
    assert_eq!(cgroups.pids(&parent).unwrap(), [sleeper.id() as i32]);
    assert_eq!(
        cgroups.children(&parent).unwrap().into_iter().collect::<Vec<_>>(),
        ["pod"]
    );
    assert!(
        cgroups
            .remove(&parent, Duration::ZERO)
            .unwrap_err()
            .is(libc::EBUSY)
    );
    // A zombie stays in the list of a v1 cgroup, so somebody has to wait for it meanwhile.
    let reaper = std::thread::spawn(move || sleeper.wait().unwrap());
    cgroups.kill_all(&parent, Duration::from_secs(5)).unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&reaper.join().unwrap()),
        Some(libc::SIGKILL)
    );
    cgroups.remove(&parent, Duration::from_secs(5)).unwrap();
    cgroups.remove(&parent, Duration::ZERO).unwrap();
    assert!(cgroups.children(&parent).unwrap().is_empty());
}
