//! Devices, terminals, hooks, mounts and limits of containers, seen from inside and from the kernel's files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{Pod, TIMEOUT};
use skiff_shim::client::Client;
use skiff_shim::client::ClientError;
use skiff_shim::protocol::{RequestBody, ShimError};
use skiff_sys::cgroup::Version;
use skiff_sys::{
    Device, Hook, IoLimit, Limits, Mount, MountKind, Propagation, RecursiveReadOnly, RunError, User, mount,
};

fn bind(source: &Path, destination: &str) -> Mount {
    Mount {
        source: source.to_owned(),
        destination: destination.into(),
        kind: MountKind::Bind,
        ..Default::default()
    }
}

#[test]
fn a_device_can_be_used_when_it_is_listed() {
    let mut pod = Pod::sandboxed(71);
    // The kernel's log: a device that no list has by default, and that every kernel has.
    let script = "mknod /tmp/kmsg c 1 11; (exec 3< /tmp/kmsg) 2>/dev/null && echo opened; \
                  test -c /dev/kmsg && stat -c '%a %u %g' /dev/kmsg; (exec 3> /tmp/kmsg) 2>/dev/null && echo written; true";
    let (_, text) = pod.output(pod.shell("without", script));
    assert_eq!(text, "");
    let mut config = pod.shell("with", script);
    config.capabilities.push("CAP_SYSLOG".into());
    config.devices = vec![Device {
        path: "/dev/kmsg".into(),
        host_path: "/dev/kmsg".into(),
        access: "r".into(),
        mode: Some(0o604),
        owner: Some((7, 8)),
    }];
    if Path::new("/dev/kmsg").exists() {
        assert_eq!(pod.output(config).1, "opened\n604 7 8\n");
    }
    let mut config = pod.shell(
        "loop",
        "stat -c '%a %u' /dev/mine; head -c 3 /dev/mine | wc -c; echo x > /dev/mine",
    );
    config.user = User {
        uid: 1000,
        gid: 1000,
        additional_gids: vec![],
    };
    config.devices = vec![Device {
        path: "/dev/mine".into(),
        host_path: "/dev/zero".into(),
        access: "rwm".into(),
        mode: None,
        owner: None,
    }];
    assert_eq!(pod.output(config).1, "666 1000\n3\n");
    let mut config = pod.shell("none", "true");
    config.devices = vec![Device {
        path: "/dev/none".into(),
        host_path: "/dev/no-such-device".into(),
        access: "r".into(),
        mode: None,
        owner: None,
    }];
    let error = pod.run(config).unwrap_err();
    assert!(
        matches!(&error, ClientError::Shim(ShimError::Run(RunError::Config { reason, .. })) if reason.contains("no-such-device")),
        "{error:?}"
    );
    pod.shut_down();
}

#[test]
fn a_privileged_container_has_what_the_host_has() {
    let mut pod = Pod::sandboxed(72);
    let script = "grep -E '^(CapEff|Seccomp):' /proc/self/status; mkdir -p /m && mount -t tmpfs none /m && echo mounted; \
                  test -w /proc/sys/kernel/panic && grep -c ' /proc/' /proc/mounts; \
                  grep ' /sys ' /proc/mounts | grep -c 'rw,'; ls /dev | grep -c '^full$'; mknod /tmp/kmsg c 1 11; (exec 3> /tmp/kmsg) && echo kmsg";
    let mut config = pod.shell("app", script);
    config.privileged = true;
    let (_, text) = pod.output(config);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .unwrap();
    assert_eq!(
        text,
        format!("CapEff:\t{own}\nSeccomp:\t0\nmounted\n0\n1\n1\nkmsg\n")
    );
    pod.shut_down();
}

#[test]
fn proc_is_unmasked_when_asked() {
    let mut pod = Pod::sandboxed(73);
    let script = "grep -c ' /proc/' /proc/mounts; test -w /proc/sys/kernel/panic && echo writable; grep -c ' /sys/firmware ' /proc/mounts";
    let mut config = pod.shell("app", script);
    config.unmasked_proc = true;
    assert_eq!(pod.output(config).1, "0\nwritable\n1\n");
    pod.shut_down();
}

#[test]
fn an_apparmor_profile_is_applied_or_refused() {
    let mut pod = Pod::sandboxed(74);
    let mut config = pod.shell("app", "echo ran");
    config.apparmor = Some("skiff-no-such-profile".into());
    let error = pod.run(config).unwrap_err().to_string();
    assert!(error.contains("skiff-no-such-profile"), "{error}");
    let mut config = pod.shell("open", "echo ran");
    config.apparmor = Some("unconfined".into());
    assert_eq!(pod.output(config).1, "ran\n");
    pod.shut_down();
}

#[test]
fn a_terminal_is_the_containers_own() {
    let mut pod = Pod::sandboxed(75);
    let script = "test -t 0 && test -t 1 && test -t 2 && echo terminal; tty; stat -c %u $(tty); \
                  echo to-stderr >&2; (exec 3<>/dev/tty) && echo controlling; printf unfinished";
    let mut config = pod.shell("app", script);
    config.tty = true;
    config.user = User {
        uid: 1000,
        gid: 1000,
        additional_gids: vec![],
    };
    let (code, text) = pod.output(config);
    assert_eq!(
        text, "terminal\r\n/dev/pts/0\r\n1000\r\nto-stderr\r\ncontrolling\r\nunfinished",
        "{code}"
    );
    let (_, text) = pod.output(pod.shell(
        "none",
        "test -t 1 || echo none; (exec 3<>/dev/tty) 2>/dev/null || echo none",
    ));
    assert_eq!(text, "none\nnone\n");
    pod.shut_down();
}

#[test]
fn an_open_input_waits_and_none_ends() {
    let mut pod = Pod::sandboxed(76);
    // Without the shell's word about the signal: its place among the lines of the other stream is not settled.
    let script = "exec 2>/dev/null; timeout 1 cat; echo $?; test -p /dev/stdin && echo pipe";
    let mut config = pod.shell("open", script);
    config.stdin = true;
    assert_eq!(pod.output(config).1, "143\npipe\n");
    assert_eq!(pod.output(pod.shell("closed", script)).1, "0\n");
    pod.shut_down();
}

#[test]
fn hooks_run_at_their_stages() {
    let mut pod = Pod::sandboxed(77);
    let notes = pod.root().join("notes");
    fs::create_dir_all(&notes).unwrap();
    let hook = |stage: &str, code: u8| Hook {
        stage: stage.into(),
        path: "/bin/sh".into(),
        args: vec![
            "sh".into(),
            "-c".into(),
            format!(
                "cat > {}/{stage}; echo $A >> {0}/{stage}; exit {code}",
                notes.display()
            ),
        ],
        env: vec!["A=variable".into(), "PATH=/bin:/usr/bin".into()],
        timeout: None,
    };
    let mut config = pod.shell("app", "true");
    config.hooks = ["createRuntime", "poststart", "poststop"]
        .map(|stage| hook(stage, 0))
        .to_vec();
    pod.output(config);
    pod.call(RequestBody::Delete {
        container: "app".into(),
    })
    .unwrap();
    for stage in ["createRuntime", "poststart", "poststop"] {
        let said = fs::read_to_string(notes.join(stage)).unwrap();
        assert!(
            said.contains("\"app\"") && said.ends_with("variable\n"),
            "{stage}: {said}"
        );
    }
    let mut config = pod.shell("failing", "true");
    config.hooks = vec![hook("createRuntime", 3)];
    let error = pod.run(config).unwrap_err().to_string();
    assert!(error.contains("hook"), "{error}");
    pod.shut_down();
}

#[test]
fn a_part_of_a_volume_stays_inside_of_it() {
    let mut pod = Pod::sandboxed(78);
    let (volume, secret) = (pod.root().join("volume"), pod.root().join("secret"));
    fs::create_dir_all(volume.join("real/deep")).unwrap();
    fs::create_dir_all(&secret).unwrap();
    fs::write(secret.join("key"), "of the host").unwrap();
    fs::write(volume.join("real/deep/file"), "inside\n").unwrap();
    symlink("real", volume.join("link")).unwrap();
    symlink(&secret, volume.join("absolute")).unwrap();
    symlink("../secret", volume.join("up")).unwrap();
    symlink("/proc/self/root", volume.join("magic")).unwrap();
    let part = |part: &str| Mount {
        sub_path: Some(part.into()),
        ..bind(&volume, "/part")
    };
    let mut check = |id: &str, path: &str, script: &str, expected: Result<&str, &str>| {
        let mut config = pod.shell(id, script);
        config.mounts = vec![part(path)];
        match expected {
            Ok(text) => assert_eq!(pod.output(config).1, text, "{path}"),
            Err(reason) => {
                let error = pod.run(config).unwrap_err().to_string();
                assert!(error.contains(reason), "{path}: {error}");
            }
        }
    };
    check("plain", "real/deep", "cat /part/file", Ok("inside\n"));
    check("link", "link/deep", "cat /part/file", Ok("inside\n"));
    check("file", "real/deep/file", "cat /part", Ok("inside\n"));
    check(
        "made",
        "new/dir",
        "echo text > /part/file; cat /part/file",
        Ok("text\n"),
    );
    check(
        "absolute",
        "absolute",
        "cat /part/key",
        Err("cannot open absolute"),
    );
    check("up", "up", "cat /part/key", Err("cannot open up"));
    check("magic", "magic/etc", "ls /part", Err("cannot open magic"));
    check(
        "dots",
        "real/../../secret",
        "cat /part/key",
        Err("cannot mount the part"),
    );
    assert_eq!(fs::read_to_string(volume.join("new/dir/file")).unwrap(), "text\n");
    pod.shut_down();
}

#[test]
fn read_only_goes_all_the_way_down() {
    assert!(skiff_sys::doctor::recursive_read_only(), "this kernel can");
    let mut pod = Pod::sandboxed(79);
    let volume = pod.root().join("volume");
    fs::create_dir_all(volume.join("below")).unwrap();
    mount::tmpfs(&volume.join("below"), 1 << 20, 0o777).unwrap();
    let script = "echo x > /v/file; echo x > /v/below/file && echo written";
    let both = "!sh: can't create /v/file: Read-only file system\n!sh: can't create /v/below/file: Read-only file system\n";
    let one = "!sh: can't create /v/file: Read-only file system\n";
    for (id, kind, expected) in [
        ("disabled", RecursiveReadOnly::Disabled, vec![one, "written\n"]),
        ("possible", RecursiveReadOnly::IfPossible, vec![both]),
        ("enabled", RecursiveReadOnly::Enabled, vec![both]),
    ] {
        let mut config = pod.shell(id, script);
        config.mounts = vec![Mount {
            read_only: true,
            recursive_read_only: kind,
            ..bind(&volume, "/v")
        }];
        let text = pod.output(config).1;
        assert!(expected.iter().all(|part| text.contains(part)), "{id}: {text}");
    }
    mount::detach(&volume.join("below")).unwrap();
    pod.shut_down();
}

#[test]
fn mounts_propagate_as_asked() {
    let mut pod = Pod::sandboxed(80);
    let volume = pod.root().join("volume");
    for dir in ["host", "container"] {
        fs::create_dir_all(volume.join(dir)).unwrap();
    }
    mount::bind(&volume, &volume, false).unwrap();
    let none = None::<&str>;
    nix::mount::mount(none, &volume, none, nix::mount::MsFlags::MS_SHARED, none).unwrap();
    let wait = "echo up; until test -e /go/go; do sleep 0.05; done; ls /v/host; mount -t tmpfs none /v/container && touch /v/container/inside; \
                touch /go/mounted; until test -e /go/end; do sleep 0.05; done";
    for (id, kind, seen, shown) in [
        ("private", Propagation::Private, false, false),
        ("slave", Propagation::HostToContainer, true, false),
        ("shared", Propagation::Bidirectional, true, true),
    ] {
        let go = pod.root().join("go").join(id);
        fs::create_dir_all(&go).unwrap();
        let mut config = pod.shell(id, wait);
        config.privileged = true;
        config.mounts = vec![
            Mount {
                propagation: kind,
                ..bind(&volume, "/v")
            },
            bind(&go, "/go"),
        ];
        pod.run(config).unwrap();
        pod.wait_for_log(id, "up");
        mount::tmpfs(&volume.join("host"), 1 << 20, 0o777).unwrap();
        fs::write(volume.join("host/later"), "").unwrap();
        fs::write(go.join("go"), "").unwrap();
        common::wait_until("the container's mount", || go.join("mounted").exists());
        assert_eq!(volume.join("container/inside").exists(), shown, "{id}");
        fs::write(go.join("end"), "").unwrap();
        pod.exit();
        assert_eq!(pod.log(id, 0).contains("later"), seen, "{id}: {}", pod.log(id, 0));
        mount::detach(&volume.join("host")).unwrap();
        mount::detach(&volume.join("container")).unwrap();
    }
    mount::detach(&volume).unwrap();
    pod.shut_down();
}

#[test]
fn limits_change_without_a_restart() {
    let limits = |memory: u64, quota: u64| Limits {
        memory_bytes: Some(memory << 20),
        cpu_quota_us: Some(quota),
        pids: Some(100),
        ..Limits::default()
    };
    let mut pod = Pod::with(81, limits(128, 50_000));
    pod.call(RequestBody::MakeSandbox(pod.sandbox.clone())).unwrap();
    let mut config = pod.shell("app", "echo up; exec sleep 60");
    config.resources = limits(64, 20_000);
    let path = config.cgroup_path.clone();
    let started = pod.run(config).unwrap();
    pod.wait_for_log("app", "up");
    let cgroups = pod.cgroups();
    let (memory, quota) = if cgroups.version() == Version::V2 {
        ("memory.max", "cpu.max")
    } else {
        ("memory.limit_in_bytes", "cpu.cfs_quota_us")
    };
    let read = |path: &str| {
        let read = |controller, file| fs::read_to_string(cgroups.dir(controller, path).join(file)).unwrap();
        let quota = read("cpu", quota);
        let quota = quota.split_ascii_whitespace().next().unwrap().to_owned();
        (read("memory", memory).trim().parse::<u64>().unwrap() >> 20, quota)
    };
    let update = |memory, quota, pod_memory, pod_quota| RequestBody::Update {
        container: Some("app".into()),
        limits: limits(memory, quota),
        pod: limits(pod_memory, pod_quota),
    };
    let pod_path = pod.sandbox.cgroup.path();
    // Above what the Pod had, and below it again.
    for (memory, quota, pod_memory, pod_quota) in [(200, 80_000, 264, 110_000), (32, 10_000, 96, 40_000)] {
        // The second time it is as it is to be.
        for _ in 0..2 {
            pod.call(update(memory, quota, pod_memory, pod_quota)).unwrap();
            assert_eq!(read(&path), (memory, quota.to_string()));
            assert_eq!(read(&pod_path), (pod_memory, pod_quota.to_string()));
        }
    }
    assert!(skiff_sys::process::is_alive(started.pid, started.start_time));
    let state = pod.state();
    assert_eq!(state.sandbox.unwrap().cgroup.limits.memory_bytes, Some(96 << 20));
    // The Pod's alone; and all at once, each in its turn, the one that cannot be among them.
    let of_pod = |memory, quota| RequestBody::Update {
        container: None,
        limits: Limits::default(),
        pod: limits(memory, quota),
    };
    pod.call(of_pod(150, 60_000)).unwrap();
    assert_eq!(read(&pod_path), (150, "60000".to_owned()));
    let nobody = RequestBody::Update {
        container: Some("none".into()),
        limits: limits(1, 1000),
        pod: limits(2, 1000),
    };
    let asked = [
        update(40, 20_000, 160, 70_000),
        nobody,
        update(41, 20_000, 161, 70_000),
        of_pod(170, 70_000),
    ];
    let threads = asked.map(|body| {
        let mut client = Client::connect(&pod.dir).unwrap();
        std::thread::spawn(move || client.call(body, TIMEOUT).map(drop).map_err(|it| it.to_string()))
    });
    let failed: Vec<String> = threads
        .into_iter()
        .filter_map(|it| it.join().unwrap().err())
        .collect();
    assert!(failed.len() == 1 && failed[0].contains("none"), "{failed:?}");
    assert!([40, 41].contains(&read(&path).0));
    assert!([160, 161, 170].contains(&read(&pod_path).0));
    pod.shut_down();
}

#[test]
fn input_and_output_are_throttled_on_v1() {
    let mut pod = Pod::sandboxed(82);
    let disk = fs::read_dir("/sys/block").unwrap().flatten().find_map(|entry| {
        let numbers = fs::read_to_string(entry.path().join("dev")).ok()?;
        let (major, minor) = numbers.trim().split_once(':')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    let (cgroups, Some(device)) = (pod.cgroups(), disk) else {
        pod.shut_down();
        return;
    };
    let mut config = pod.shell("app", "echo up; exec sleep 60");
    config.resources.io = vec![IoLimit {
        device,
        read_bytes: Some(1 << 20),
        writes: Some(50),
        ..Default::default()
    }];
    let path = config.cgroup_path.clone();
    let found = cgroups.version() != Version::V2
        && cgroups
            .dir("blkio", "")
            .join("blkio.throttle.read_bps_device")
            .exists();
    if found {
        pod.run_attempt(config, 0, TIMEOUT).unwrap();
        let read = |file: &str| fs::read_to_string(cgroups.dir("blkio", &path).join(file)).unwrap();
        let expected = format!("{}:{} {}\n", device.0, device.1, 1 << 20);
        assert_eq!(read("blkio.throttle.read_bps_device"), expected);
        assert_eq!(
            read("blkio.throttle.write_iops_device"),
            format!("{}:{} 50\n", device.0, device.1)
        );
    }
    pod.shut_down();
}
