//! Commands in running containers: they are confined as the container is, and nothing of them outlives them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Pod, TIMEOUT, wait_until};
use skiff_shim::client::{Client, ClientError};
use skiff_shim::protocol::{ExecRequest, Executed, ReplyBody, RequestBody, ShimError};
use skiff_sys::{ContainerConfig, ExecConfig, Rlimit, RunError, Seccomp, User};

fn request(container: &str, args: &[&str], timeout: Duration) -> RequestBody {
    RequestBody::Exec(ExecRequest {
        container: container.into(),
        config: ExecConfig {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        },
        timeout_ms: timeout.as_millis() as u64,
        output: 4096,
    })
}

fn exec(pod: &mut Pod, args: &[&str], timeout: Duration) -> Result<Executed, ClientError> {
    match pod.call(request("app", args, timeout))? {
        ReplyBody::Executed(executed) => Ok(executed),
        other => panic!("{other:?}"),
    }
}

/// Exit code and output of a script.
fn shell(pod: &mut Pod, script: &str) -> (Option<i32>, String) {
    let executed = exec(pod, &["sh", "-c", script], TIMEOUT).unwrap();
    (
        executed.exit_code,
        String::from_utf8_lossy(&executed.output).into_owned(),
    )
}

const STATUS: &str = "grep -E '^(Uid|Gid|Groups|Seccomp|NoNewPrivs|Cap...):' /proc/self/status; \
                      ulimit -n; pwd; echo $HOME $COLOUR $PATH; umask; cat /proc/self/oom_score_adj; \
                      hostname; grep -v freezer /proc/self/cgroup; ls -l /proc/self/ns | sed 's/.*-> //'";

#[test]
fn a_command_is_confined_as_its_container() {
    let mut pod = Pod::sandboxed(51);
    let profile = pod.root().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    fs::write(&profile, text).unwrap();
    let plain: &dyn Fn(&mut ContainerConfig) = &|_| {};
    let app: &dyn Fn(&mut ContainerConfig) = &|config| {
        config.user = User {
            uid: 1000,
            gid: 1001,
            additional_gids: vec![2000, 3000],
        };
        config.cwd = "/tmp".into();
        config.oom_score_adj = Some(500);
        config.no_new_privileges = true;
        config.rlimits = vec![Rlimit {
            kind: "RLIMIT_NOFILE".into(),
            soft: 100,
            hard: 200,
        }];
    };
    let profiled: &dyn Fn(&mut ContainerConfig) =
        &|config| config.seccomp = Seccomp::Profile(profile.clone());
    let privileged: &dyn Fn(&mut ContainerConfig) = &|config| config.privileged = true;
    for change in [plain, app, profiled, privileged] {
        let mut config = pod.shell(
            "app",
            &format!("({STATUS}) > /dev/shm/init; echo up; exec sleep 60"),
        );
        change(&mut config);
        pod.run(config).unwrap();
        pod.wait_for_log("app", "up");
        let (code, inside) = shell(&mut pod, STATUS);
        assert_eq!(code, Some(0), "{inside}");
        let init = shell(&mut pod, "cat /dev/shm/init; rm /dev/shm/init").1;
        assert!(init.contains("Seccomp:") && init.contains("net:["), "{init}");
        assert_eq!(inside, init);
        let made = shell(&mut pod, "mkdir /tmp/made-by-exec 2>&1").1;
        assert_eq!(
            made.contains("No space left"),
            init.contains("Seccomp:\t2") && made.contains("No space"),
            "{made}"
        );
        pod.call(RequestBody::KillAll { container: None }).unwrap();
        pod.exit();
        pod.call(RequestBody::Delete {
            container: "app".into(),
        })
        .unwrap();
    }
    pod.shut_down();
}

#[test]
fn a_localhost_profile_denies_with_its_errno() {
    let mut pod = Pod::sandboxed(52);
    let profile = pod.root().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#;
    fs::write(&profile, text).unwrap();
    let mut config = pod.shell(
        "app",
        "mkdir /a; echo > /b && grep Seccomp: /proc/self/status; exec sleep 60",
    );
    config.seccomp = Seccomp::Profile(profile.clone());
    pod.run(config).unwrap();
    pod.wait_for_log("app", "Seccomp:\t2");
    assert!(
        pod.log("app", 0)
            .contains("!mkdir: can't create directory '/a': No space left on device")
    );
    // The container keeps the filter that it was started with, and so does what is run in it.
    fs::write(&profile, r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    let (_, text) = shell(&mut pod, "mkdir /c 2>&1");
    assert!(text.contains("No space left on device"), "{text}");
    fs::write(&profile, "{\n \"defaultAction\": 7}").unwrap();
    let mut broken = pod.shell("broken", "true");
    broken.seccomp = Seccomp::Profile(profile.clone());
    let error = pod.run(broken).unwrap_err();
    let ClientError::Shim(ShimError::Run(RunError::Config { reason, .. })) = &error else {
        panic!("{error:?}")
    };
    assert!(
        reason.starts_with(&format!("seccomp: {}: ", profile.display())) && reason.contains("line 2"),
        "{reason}"
    );
    pod.shut_down();
}

#[test]
fn codes_output_and_what_cannot_be_executed() {
    let mut pod = Pod::sandboxed(53);
    let mut config = pod.shell("app", "exec sleep 60");
    config.user = User {
        uid: 1000,
        gid: 1000,
        additional_gids: vec![],
    };
    pod.run(config).unwrap();
    assert_eq!(
        shell(&mut pod, "echo out; echo err >&2; exit 3"),
        (Some(3), "out\nerr\n".into())
    );
    assert_eq!(shell(&mut pod, "kill -9 $$").0, Some(137));
    assert_eq!(shell(&mut pod, "cat; echo end"), (Some(0), "end\n".into()));
    assert_eq!(
        shell(&mut pod, "ls /proc/self/fd | wc -l; tty").1,
        "4\nnot a tty\n"
    );
    let (code, text) = shell(&mut pod, "yes | head -c 5000000");
    assert_eq!(
        (code, text.len()),
        (Some(0), 4096),
        "the rest is read and forgotten"
    );
    for (args, errno, expected) in [
        (
            &["no-such-command"][..],
            2,
            "exec \"no-such-command\": executable file not found in $PATH (/bin)",
        ),
        (&["/no/such"], 2, "exec \"/no/such\": no such file or directory"),
        (
            &["/etc/passwd"],
            13,
            "exec \"/etc/passwd\": permission denied (it is not executable)",
        ),
    ] {
        let error = exec(&mut pod, args, TIMEOUT).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(
            matches!(error, ClientError::Shim(ShimError::Run(RunError::Exec { errno: found, .. })) if found == errno)
        );
    }
    let missing = pod.call(request("none", &["true"], TIMEOUT)).unwrap_err();
    assert_eq!(missing.to_string(), "container \"none\" is not known here");
    pod.shut_down();
}

#[test]
fn nothing_of_a_command_outlives_its_timeout() {
    let mut pod = Pod::sandboxed(54);
    let mut config = pod.shell("app", "echo up; exec sleep 60");
    config.resources.pids = Some(200);
    let path = config.cgroup_path.clone();
    let started = pod.run(config).unwrap();
    pod.wait_for_log("app", "up");
    let alive = |pod: &Pod| -> Vec<i32> {
        let zombie = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
                || !fs::exists(format!("/proc/{pid}")).unwrap()
        };
        let mut pids = pod.cgroups().pids(&path).unwrap();
        pids.retain(|pid| !zombie(pid));
        pids
    };
    // A child that stays behind holds the output open, and goes all the same.
    let begun = Instant::now();
    let executed = exec(
        &mut pod,
        &["sh", "-c", "echo said; (setsid sleep 100 &); true"],
        TIMEOUT,
    );
    assert_eq!(executed.unwrap().output, b"said\n");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(alive(&pod), [started.pid]);
    // Each generation leaves its session and its parent. They are begun from a child: a shell
    // that cannot fork ends with a code of its own, and the command must be there at its timeout.
    let bomb = "f() { (setsid sh -c 'while :; do (sleep 100 &) ; (setsid sleep 100 &); done' &) ; }; \
                b() { b | b & }; (for i in 1 2 3 4; do f; done; b) & exec sleep 100";
    let begun = Instant::now();
    let executed = exec(&mut pod, &["sh", "-c", bomb], Duration::from_millis(700)).unwrap();
    assert_eq!(executed.exit_code, None);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(alive(&pod), [started.pid]);
    pod.shut_down();
}

#[test]
fn many_run_at_once_and_the_shim_goes_on() {
    let mut pod = Pod::sandboxed(55);
    pod.run(pod.shell("app", "exec sleep 60")).unwrap();
    let dir = pod.dir.clone();
    let workers: Vec<_> = (0..16)
        .map(|_| {
            let dir = dir.clone();
            std::thread::spawn(move || {
                // A connection takes its requests one by one, but the shim does not.
                let mut client = Client::connect(&dir)?;
                client.call(request("app", &["sleep", "1"], TIMEOUT), TIMEOUT)
            })
        })
        .collect();
    let mut refused = 0;
    std::thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    pod.state();
    assert!(
        begun.elapsed() < Duration::from_millis(300),
        "{:?}",
        begun.elapsed()
    );
    for worker in workers {
        match worker.join().unwrap() {
            Ok(ReplyBody::Executed(executed)) => assert_eq!(executed.exit_code, Some(0)),
            // Eight clients are what a shim takes.
            Err(ClientError::Io(_)) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused <= 9, "{refused}");
    pod.shut_down();
}

#[test]
fn a_pod_that_ends_does_not_wait_for_its_commands() {
    let mut pod = Pod::sandboxed(56);
    pod.run(pod.shell("app", "exec sleep 60")).unwrap();
    let dir = pod.dir.clone();
    let worker = std::thread::spawn(move || {
        let mut client = Client::connect(&dir).unwrap();
        client.call(request("app", &["sleep", "50"], TIMEOUT), TIMEOUT)
    });
    let group = format!("{}/app", pod.sandbox.cgroup.path());
    wait_until("the command", || pod.cgroups().pids(&group).unwrap().len() == 2);
    pod.shut_down();
    let error = worker.join().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "container \"app\" is being removed");
}
