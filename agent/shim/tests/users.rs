//! `spec.hostUsers: false`: the Pod's ids are the host's of a range, and its mounts show it the ids that they have for
//! others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use common::{Pod, TIMEOUT};
use skiff_shim::client::ClientError;
use skiff_shim::protocol::{ExecRequest, ReplyBody, RequestBody, ShimError};
use skiff_sys::{ContainerConfig, ExecConfig, Hook, IDS, IdRange, Mount, SandboxConfig, User};

const RANGE: IdRange = IdRange {
    first: 1_000_000,
    count: 65_536,
};

fn pod_with(subnet: u8, change: impl FnOnce(&mut SandboxConfig)) -> Pod {
    let mut pod = Pod::new(subnet);
    pod.sandbox.users = Some(RANGE);
    change(&mut pod.sandbox);
    pod.client
        .call(RequestBody::MakeSandbox(pod.sandbox.clone()), TIMEOUT)
        .unwrap();
    pod
}

fn user(uid: u32, gid: u32) -> User {
    User {
        uid,
        gid,
        additional_gids: vec![gid + 1],
    }
}

/// Runs a script to its end; nothing of it may fail.
#[track_caller]
fn says(pod: &mut Pod, config: ContainerConfig, expected: &str) {
    let (code, text) = pod.output(config);
    assert_eq!((code, text.as_str()), (0, expected));
}

#[test]
fn ids_inside_are_others_outside() {
    let mut pod = pod_with(81, |_| {});
    for (id, uid, groups) in [("root", 0, "0 1"), ("app", 1000, "1000 1001")] {
        let mut config = pod.shell(
            id,
            "id -u; id -G; awk '{print $1, $2, $3}' /proc/self/uid_map; sleep 60",
        );
        config.user = user(uid, uid);
        let started = pod.run(config).unwrap();
        pod.wait_for_log(id, "65536");
        assert_eq!(
            pod.log(id, 0),
            format!("{uid}\n{groups}\n0 1000000 65536\n"),
            "{id}"
        );
        let proc = format!("/proc/{}", started.pid);
        assert_eq!(fs::metadata(&proc).unwrap().uid(), RANGE.host(uid), "{id}");
        for kind in ["user", "mnt", "net", "uts"] {
            let found = fs::read_link(format!("{proc}/ns/{kind}")).unwrap();
            let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            assert_ne!(found, host, "{id}: {kind}");
        }
    }
    pod.shut_down();
}

/// The image's files, those of volumes, and what is made, belong to whom the container takes them to belong.
#[test]
fn files_have_the_ids_that_they_have_elsewhere() {
    let mut pod = pod_with(82, |_| {});
    let volume = pod.root().join("volume");
    fs::create_dir_all(volume.join("part")).unwrap();
    fs::write(volume.join("apps"), "secret\n").unwrap();
    fs::set_permissions(volume.join("apps"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(volume.join("apps"), Some(1000), Some(1000)).unwrap();
    chown(volume.join("part"), Some(1000), Some(1000)).unwrap();
    let mount = |to: &str, part: Option<&str>| Mount {
        source: volume.clone(),
        destination: to.into(),
        sub_path: part.map(Into::into),
        options: vec![IDS.to_owned()],
        ..Mount::default()
    };
    let mut config = pod.shell(
        "app",
        "touch /tmp/new; stat -c '%u %g %n' / /bin/busybox /made /made/way /v /v/apps /made/way/part /dev /tmp/new; cat /v/apps; \
         echo x > /made/way/part/written; echo to > /dev/stdout; echo y > /etc/new; stat -c %u /etc/new",
    );
    config.mounts = vec![mount("/v", None), mount("/made/way/part", Some("part"))];
    says(
        &mut pod,
        config,
        "0 0 /\n0 0 /bin/busybox\n0 0 /made\n0 0 /made/way\n0 0 /v\n1000 1000 /v/apps\n1000 1000 /made/way/part\n0 0 /dev\n\
         0 0 /tmp/new\nsecret\nto\n0\n",
    );
    assert_eq!(fs::metadata(volume.join("part/written")).unwrap().uid(), 0);

    // And one who may not read it does not, whose number it is outside or inside.
    let mut config = pod.shell("other", "cat /v/apps");
    config.user = user(1001, 1001);
    config.mounts = vec![mount("/v", None)];
    assert_eq!(
        pod.output(config),
        (1, "!cat: can't open '/v/apps': Permission denied\n".to_owned())
    );
    pod.shut_down();
}

/// Root inside has its capabilities over what is the Pod's, and none over the node.
#[test]
fn capabilities_end_at_the_pod() {
    let mut pod = pod_with(83, |sandbox| {
        sandbox.sysctls = vec![
            ("kernel.shm_rmid_forced".into(), "1".into()),
            ("net.ipv4.ping_group_range".into(), "0 65535".into()),
            ("net.ipv4.conf.eth0.rp_filter".into(), "2".into()),
        ];
    });
    let config = pod.shell(
        "plain",
        "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ping_group_range /proc/sys/net/ipv4/conf/eth0/rp_filter; \
         hostname; grep -c 00000000a80425fb /proc/self/status; mount -t tmpfs none /tmp 2>&1",
    );
    let (code, text) = pod.output(config);
    assert_eq!(
        (code, text.as_str()),
        (
            1,
            "1\n0\t65535\n2\npod-name\n3\nmount: permission denied (are you root?)\n"
        )
    );

    let mut config = pod.shell(
        "admin",
        "ip link set lo mtu 1400 && mount -t tmpfs none /tmp && hostname other && echo done; \
         umount /proc/interrupts; echo 0 > /proc/sys/kernel/panic; mknod /tmp/node b 7 0; date -s @0 >/dev/null",
    );
    for name in ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_TIME"] {
        config.capabilities.push(name.into());
    }
    let (_, text) = pod.output(config);
    assert!(text.starts_with("done\n"), "{text}");
    for refused in [
        "umount: can't unmount /proc/interrupts: Invalid argument",
        "can't create /proc/sys/kernel/panic",
        "mknod: /tmp/node: Operation not permitted",
        "date: can't set date: Operation not permitted",
    ] {
        assert!(text.contains(refused), "{refused}: {text}");
    }
    pod.shut_down();
}

#[test]
fn a_command_gets_what_the_container_has() {
    let mut pod = pod_with(84, |sandbox| sandbox.share_pid = true);
    let volume = pod.root().join("volume");
    fs::create_dir_all(&volume).unwrap();
    let mut config = pod.shell("app", "echo up; sleep 60");
    config.user = user(1000, 1000);
    config.no_new_privileges = true;
    config.mounts = vec![Mount {
        source: volume.clone(),
        destination: "/v".into(),
        options: vec![IDS.to_owned()],
        ..Mount::default()
    }];
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    let started = pod.run(config).unwrap();
    pod.wait_for_log("app", "up");
    let script = "id -u; id -G; readlink /proc/self/ns/user | cmp - /v/user; touch /v/made; \
                  grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; echo again > /dev/stdout; \
                  kill -9 1; tr '\\0' ' ' < /proc/1/cmdline";
    let own = fs::read_link(format!("/proc/{}/ns/user", started.pid)).unwrap();
    fs::write(volume.join("user"), format!("{}\n", own.display())).unwrap();
    let request = ExecRequest {
        container: "app".into(),
        config: ExecConfig {
            args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        },
        timeout_ms: 10_000,
        output: 4096,
    };
    let ReplyBody::Executed(ended) = pod.call(RequestBody::Exec(request)).unwrap() else {
        panic!("no answer to an exec")
    };
    let text = String::from_utf8_lossy(&ended.output).into_owned();
    assert_eq!(
        text.trim_end(),
        "1000\n1000 1001\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\nagain\n\
         sh: can't kill pid 1: Operation not permitted\npause"
    );
    assert_eq!(fs::metadata(volume.join("made")).unwrap().uid(), 1000);
    pod.shut_down();
}

/// `privileged` gives everything over the Pod and nothing over the node; a terminal is the container's own.
#[test]
fn the_strongest_container_is_the_pods_still() {
    let mut pod = pod_with(86, |_| {});
    let mut config = pod.shell(
        "strong",
        "mount -t tmpfs none /tmp && mount -o remount,rw /sys/fs/cgroup 2>/dev/null; echo mounted; \
         grep CapEff /proc/self/status; echo 1 > /proc/sys/kernel/sysrq; head -c 1 /dev/kmsg; \
         cat /proc/1/uid_map | awk '{print $3}'; kill -9 1; echo still",
    );
    config.privileged = true;
    let (_, text) = pod.output(config);
    assert!(text.contains("mounted\nCapEff:\t000001ffffffffff\n"), "{text}");
    for refused in ["can't create /proc/sys/kernel/sysrq", "/dev/kmsg: "] {
        assert!(text.contains(refused), "{refused}: {text}");
    }
    assert!(text.ends_with("65536\nstill\n"), "{text}");

    let mut config = pod.shell(
        "shown",
        "echo $HOME; tty; stat -c '%u %g' $(tty); echo typed > /dev/tty; sleep 1",
    );
    config.user = user(1000, 1000);
    config.tty = true;
    let (_, text) = pod.output(config);
    let text = text.replace('\r', "");
    assert!(text.contains("/app\n/dev/pts/0\n1000 5\ntyped"), "{text}");
    pod.shut_down();
}

#[test]
fn what_does_not_go_with_it_is_named() {
    let mut pod = pod_with(85, |_| {});
    let mut config = pod.shell("hooked", "true");
    config.hooks = vec![Hook {
        stage: "startContainer".into(),
        path: "/bin/true".into(),
        args: vec!["true".into()],
        env: vec![],
        timeout: None,
    }];
    let error = pod.run(config).unwrap_err().to_string();
    assert!(
        error.contains("hooks: one of startContainer does not go with a user namespace (hostUsers: false)"),
        "{error}"
    );
    let mut config = pod.shell("app", "true");
    config.mounts = vec![Mount {
        source: "/proc/sys".into(),
        destination: "/settings".into(),
        options: vec![IDS.to_owned()],
        ..Mount::default()
    }];
    let Err(ClientError::Shim(ShimError::Run(error))) = pod.run(config) else {
        panic!("it runs")
    };
    assert_eq!(
        error.to_string(),
        "container app: cannot create: cannot map the ids of (hostUsers: false) /settings: Invalid argument (os error 22)"
    );
    pod.shut_down();
}
