//! What a Pod shares with its containers, and with the host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use std::fs;

use common::{Pod, TIMEOUT};
use skiff_shim::client::ClientError;
use skiff_shim::protocol::{RequestBody, ShimError};
use skiff_sys::SandboxConfig;

fn pod_with(subnet: u8, change: impl FnOnce(&mut SandboxConfig)) -> Pod {
    let mut pod = Pod::new(subnet);
    change(&mut pod.sandbox);
    pod.client
        .call(RequestBody::MakeSandbox(pod.sandbox.clone()), TIMEOUT)
        .unwrap();
    pod
}

#[test]
fn containers_that_share_processes_see_each_other_and_a_harmless_first_one() {
    let mut pod = pod_with(61, |sandbox| sandbox.share_pid = true);
    pod.run(pod.shell(
        "other",
        "sleep 4321 & sleep 4322 & (setsid sleep 0.2 &); exec sleep 60",
    ))
    .unwrap();
    let script = "until ps -o args | grep -q '^sleep 4321'; do sleep 0.1; done; sleep 0.5; \
                  tr -d '\\0' < /proc/1/cmdline; echo; grep -E '^(Name|Uid|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status; \
                  ps -o stat,args | grep -c ^Z; ls /proc/1/root/ 2>&1; tr -d '\\0' < /proc/1/environ | wc -c; kill -9 1; echo $$ | grep -vc '^1$'";
    let mut config = pod.shell("app", script);
    // Even one that may trace finds nothing behind it.
    config.capabilities.push("CAP_SYS_PTRACE".into());
    let (code, text) = pod.output(config);
    let expected = "pause\nName:\tpause\nUid:\t65535\t65535\t65535\t65535\nCapBnd:\t0000000000000000\n\
                    NoNewPrivs:\t1\nSeccomp:\t2\n0\n";
    assert!(text.starts_with(expected), "{code} {text}");
    // No file, no variable, and it cannot be killed.
    assert_eq!(&text[expected.len()..], "0\n1\n", "{text}");
    // A container's end leaves no process of it in the shared namespace.
    let group = format!("{}/other", pod.sandbox.cgroup.path());
    pod.call(RequestBody::Signal {
        container: "other".into(),
        signal: 9,
    })
    .unwrap();
    assert_eq!(pod.exit().exit_code, 137);
    common::wait_until("the end of what it started", || {
        pod.cgroups().pids(&group).unwrap().is_empty()
    });
    pod.shut_down();
}

#[test]
fn sysctls_are_the_pods_own() {
    let host = fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap();
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut pod = pod_with(62, |sandbox| {
        sandbox.sysctls = vec![
            setting("net.ipv4.ip_default_ttl", "77"),
            setting("kernel.shm_rmid_forced", "1"),
            setting("net.ipv4.conf.eth0.rp_filter", "2"),
        ];
    });
    let files = "/proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/conf/eth0/rp_filter";
    assert_eq!(
        pod.output(pod.shell("app", &format!("cat {files}"))).1,
        "77\n1\n2\n"
    );
    assert_eq!(
        fs::read_to_string("/proc/sys/net/ipv4/ip_default_ttl").unwrap(),
        host
    );
    pod.shut_down();
}

#[test]
fn a_sandbox_that_would_change_the_host_is_refused() {
    let check = |change: &dyn Fn(&mut SandboxConfig), expected: &str| {
        let mut pod = Pod::new(63);
        change(&mut pod.sandbox);
        let made = pod.call(RequestBody::MakeSandbox(pod.sandbox.clone()));
        let Err(ClientError::Shim(ShimError::Sandbox(reason))) = made else {
            panic!("{made:?}")
        };
        assert!(reason.contains(expected), "{reason}");
        pod.assert_gone();
    };
    check(
        &|sandbox| sandbox.sysctls = vec![("kernel.panic".into(), "1".into())],
        "cannot set sysctl kernel.panic: it belongs to no namespace",
    );
    check(
        &|sandbox| {
            sandbox.host_network = true;
            sandbox.sysctls = vec![("net.ipv4.ip_forward".into(), "1".into())];
        },
        "it belongs to the network namespace, which is the host's",
    );
}

#[test]
fn the_hosts_namespaces_are_shared_when_asked() {
    let own = |kind: &str| {
        fs::read_link(format!("/proc/self/ns/{kind}"))
            .unwrap()
            .display()
            .to_string()
    };
    let mut pod = pod_with(64, |sandbox| {
        sandbox.host_network = true;
        sandbox.host_ipc = true;
        sandbox.host_pid = true;
    });
    let script =
        "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; test $$ -gt 1 && echo pid";
    let (_, text) = pod.output(pod.shell("app", script));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], [own("net"), own("ipc"), own("uts"), own("pid")]);
    assert_ne!(lines[4], own("mnt"));
    assert_eq!(lines[5], "pid");
    pod.shut_down();
}
