//! What a container may not do, seen from inside and from the kernel's files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use std::fs;

use common::{Pod, TIMEOUT};
use skiff_shim::protocol::RequestBody;
use skiff_sys::cgroup::Version;
use skiff_sys::{ContainerConfig, Limits, Mount, MountKind, Rlimit, Seccomp, User};

/// Name, change of the plain configuration, script, expected output.
type Case<'a> = (&'a str, &'a dyn Fn(&mut ContainerConfig), &'a str, &'a str);

/// Runs scripts in one Pod, each in a container of its own, and compares what they print.
fn check_all(subnet: u8, cases: &[Case<'_>]) {
    let mut pod = Pod::sandboxed(subnet);
    for (name, change, script, expected) in cases {
        let mut config = pod.shell(name, script);
        change(&mut config);
        let (code, text) = pod.output(config);
        assert_eq!(text, *expected, "{name} (exit code {code})");
        pod.call(RequestBody::Delete {
            container: (*name).into(),
        })
        .unwrap();
    }
    pod.shut_down();
}

const STATUS: &str = "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapInh|CapAmb):' /proc/self/status";
const DEFAULT_CAPS: &str = "CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n";

#[test]
fn privileges() {
    let plain: &dyn Fn(&mut ContainerConfig) = &|_| {};
    let nnp: &dyn Fn(&mut ContainerConfig) = &|config| config.no_new_privileges = true;
    let unconfined: &dyn Fn(&mut ContainerConfig) = &|config| config.seccomp = Seccomp::Unconfined;
    let none: &dyn Fn(&mut ContainerConfig) = &|config| config.capabilities.clear();
    let app: &dyn Fn(&mut ContainerConfig) = &|config| {
        config.user = User {
            uid: 1000,
            gid: 1000,
            additional_gids: vec![2000, 3000],
        }
    };
    let privileged: &dyn Fn(&mut ContainerConfig) = &|config| config.privileged = true;
    let filtered = format!("{DEFAULT_CAPS}NoNewPrivs:\t0\nSeccomp:\t2\n");
    let no_new = format!("{DEFAULT_CAPS}NoNewPrivs:\t1\nSeccomp:\t2\n");
    let open = format!("{DEFAULT_CAPS}NoNewPrivs:\t0\nSeccomp:\t0\n");
    let dropped = "CapInh:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n\
                   NoNewPrivs:\t0\nSeccomp:\t2\n";
    let app_status = "CapInh:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n\
                      CapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n";
    let ids = "id -u; id -g; grep ^Groups: /proc/self/status; echo $HOME; umask; echo > /dev/stdout";
    check_all(
        21,
        &[
            ("default", plain, STATUS, &filtered),
            ("nnp", nnp, STATUS, &no_new),
            ("unconfined", unconfined, STATUS, &open),
            ("no-caps", none, STATUS, dropped),
            ("app", app, STATUS, app_status),
            (
                "ids",
                app,
                ids,
                "1000\n1000\nGroups:\t2000 3000 \n/home/app\n0022\n\n",
            ),
            (
                "root-groups",
                plain,
                "grep ^Groups: /proc/self/status",
                "Groups:\t \n",
            ),
            (
                "unshare",
                plain,
                "unshare -U true",
                "!unshare: unshare(0x10000000): Operation not permitted\n",
            ),
            ("unshare-open", unconfined, "unshare -U echo allowed", "allowed\n"),
            (
                "mount",
                plain,
                "mount -t tmpfs none /tmp",
                "!mount: permission denied (are you root?)\n",
            ),
            (
                "mount-privileged",
                privileged,
                "mount -t tmpfs none /tmp && grep Seccomp: /proc/self/status",
                "Seccomp:\t0\n",
            ),
            (
                "sigpipe",
                plain,
                "grep ^SigIgn: /proc/self/status | grep -c '0000000$'",
                "1\n",
            ),
            (
                "mask",
                plain,
                "grep ^SigBlk: /proc/self/status",
                "SigBlk:\t0000000000000000\n",
            ),
            ("fds", plain, "ls /proc/self/fd | grep -vcE '^[0-3]$'", "0\n"),
            (
                "session",
                plain,
                "echo $$; cat /proc/self/oom_score_adj",
                "1\n0\n",
            ),
        ],
    );
}

#[test]
fn files_and_devices() {
    let plain: &dyn Fn(&mut ContainerConfig) = &|_| {};
    let read_only: &dyn Fn(&mut ContainerConfig) = &|config| config.read_only_root = true;
    check_all(
        22,
        &[
            (
                "masked",
                plain,
                "wc -c < /proc/interrupts; wc -c < /proc/keys; ls /sys/firmware | wc -l",
                "0\n0\n0\n",
            ),
            (
                "proc-sys",
                plain,
                "echo 1 > /proc/sys/kernel/panic",
                "!sh: can't create /proc/sys/kernel/panic: Read-only file system\n",
            ),
            (
                "sys",
                plain,
                "{ mkdir /sys/x; for d in /sys/fs/cgroup/memory /sys/fs/cgroup; do test -f $d/cgroup.procs && mkdir $d/x; done; } 2>&1 \
                 | grep -c 'Read-only file system'",
                "2\n",
            ),
            (
                "root",
                read_only,
                "echo > /file",
                "!sh: can't create /file: Read-only file system\n",
            ),
            ("writable", plain, "echo text > /file && cat /file", "text\n"),
            (
                "null",
                plain,
                "echo > /dev/null; head -c2 /dev/zero | wc -c; head -c2 /dev/urandom | wc -c",
                "2\n2\n",
            ),
            (
                "mem",
                plain,
                "mknod /mem c 1 1 && head -c1 /mem",
                "!head: /mem: Operation not permitted\n",
            ),
            (
                "block",
                plain,
                "mknod /disk b 7 0 && head -c1 /disk",
                "!head: /disk: Operation not permitted\n",
            ),
            (
                "pts",
                plain,
                "test -c /dev/ptmx && ls -d /dev/pts /dev/shm /dev/mqueue",
                "/dev/mqueue\n/dev/pts\n/dev/shm\n",
            ),
            // The shell counts by itself, so that no process of a pipe is there or not yet.
            ("pids", plain, "set -- /proc/[0-9]*; echo $# $1", "1 /proc/1\n"),
        ],
    );
}

#[test]
fn mounts_are_as_asked_and_stay_inside() {
    let mut pod = Pod::sandboxed(23);
    let (data, note) = (pod.root().join("data"), pod.root().join("note"));
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("file"), "from the host\n").unwrap();
    fs::write(&note, "127.0.0.1 pod-name\n").unwrap();
    let bind = |source: &std::path::Path, destination: &str, read_only| Mount {
        source: source.to_owned(),
        destination: destination.into(),
        kind: MountKind::Bind,
        options: vec![],
        read_only,
        ..Default::default()
    };
    let script = "cat /data/file /etc/hosts; echo x > /data/new; echo x > /data/sub/new; echo x > /ro/file; \
                  echo x > /small/file; cat /dev/zero > /small/big 2>/dev/null; wc -c < /small/big; grep ' / ' /proc/self/mountinfo | wc -l";
    let mut config = pod.shell("app", script);
    config.mounts = vec![
        bind(&data.join("sub"), "/data/sub", true),
        bind(&data, "/data", false),
        bind(&note, "/etc/hosts", true),
        bind(&data, "/ro", true),
        Mount {
            source: "".into(),
            destination: "/small".into(),
            kind: MountKind::Tmpfs,
            options: vec!["size=64k".into()],
            read_only: false,
            ..Default::default()
        },
    ];
    let (_, text) = pod.output(config);
    let expected = "from the host\n127.0.0.1 pod-name\n61440\n\
                    !sh: can't create /data/sub/new: Read-only file system\n\
                    !sh: can't create /ro/file: Read-only file system\n";
    let mut lines: Vec<_> = text.lines().collect();
    assert!(lines.pop().is_some_and(|count| count.parse::<u32>().is_ok()));
    let (errors, plain): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.starts_with('!'));
    let seen: String = plain
        .iter()
        .chain(&errors)
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(seen, expected);
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "x\n");
    // The image's own link must not lead a mount point, or the working directory, to the host.
    let upper = pod.root().join("layers/link/upper");
    fs::create_dir_all(&upper).unwrap();
    fs::create_dir_all(upper.join("skiff-inner")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../../skiff-inner", upper.join("link")).unwrap();
    let mut config = pod.shell("link", "cat /link/mounted/file; pwd");
    config.mounts = vec![bind(&data, "/link/mounted", true)];
    config.cwd = "/link/work".into();
    let (code, text) = pod.output(config);
    assert!(text.contains("from the host"), "{code} {text}");
    assert!(upper.join("skiff-inner/work").is_dir());
    assert!(
        !std::path::Path::new("/skiff-inner").exists(),
        "nothing is made on the host"
    );
    pod.shut_down();
}

#[test]
fn limits_are_in_the_kernel() {
    let mut pod = Pod::sandboxed(24);
    let mut config = pod.shell(
        "app",
        "ulimit -n; i=0; while [ $i -lt 40 ]; do sleep 1 & i=$((i+1)); done; sleep 60",
    );
    config.resources = Limits {
        memory_bytes: Some(64 << 20),
        cpu_quota_us: Some(25_000),
        cpu_period_us: Some(50_000),
        cpu_shares: Some(512),
        pids: Some(16),
        ..Default::default()
    };
    config.rlimits = vec![Rlimit {
        kind: "RLIMIT_NOFILE".into(),
        soft: 100,
        hard: 200,
    }];
    let path = config.cgroup_path.clone();
    pod.run(config).unwrap();
    pod.wait_for_log("app", "fork");
    let cgroups = pod.cgroups();
    let read = |controller: &str, file: &str| {
        fs::read_to_string(cgroups.dir(controller, &path).join(file))
            .unwrap()
            .trim()
            .to_owned()
    };
    if cgroups.version() == Version::V2 {
        assert_eq!(read("memory", "memory.max"), (64 << 20).to_string());
        assert_eq!(read("cpu", "cpu.max"), "25000 50000");
    } else {
        assert_eq!(read("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(read("cpu", "cpu.cfs_quota_us"), "25000");
        assert_eq!(read("cpu", "cpu.cfs_period_us"), "50000");
        assert_eq!(read("cpu", "cpu.shares"), "512");
    }
    assert_eq!(read("pids", "pids.max"), "16");
    assert!(
        pod.log("app", 0).starts_with("100\n!sh: can't fork"),
        "{}",
        pod.log("app", 0)
    );
    let usage = cgroups.usage(&path);
    assert!(
        usage.pids <= 16 && usage.memory_bytes > 0 && usage.cpu_ns > 0,
        "{usage:?}"
    );
    pod.shut_down();
}

#[test]
fn the_pods_own_limit_holds_its_containers() {
    let mut pod = Pod::with(
        25,
        Limits {
            memory_bytes: Some(32 << 20),
            pids: Some(64),
            ..Limits::default()
        },
    );
    pod.client
        .call(RequestBody::MakeSandbox(pod.sandbox.clone()), TIMEOUT)
        .unwrap();
    let config = pod.shell("app", "head -c 200m /dev/zero | tail; echo survived");
    let (code, text) = pod.output(config);
    assert!(
        code == 137 || !text.contains("survived") || text.contains("Killed"),
        "{code} {text}"
    );
    pod.shut_down();
}
