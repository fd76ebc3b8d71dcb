//! Containers from start to exit, through a real shim: what runs, how it ends, and who learns of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Pod, TIMEOUT, start_shim, wait_until};
use skiff_shim::client::{Client, ClientError};
use skiff_shim::protocol::{
    self, Event, LogConfig, Phase, ReplyBody, RequestBody, RunRequest, ShimError, ToClient,
};
use skiff_sys::{Limits, RunError, process};

fn run_error(error: ClientError) -> RunError {
    match error {
        ClientError::Shim(ShimError::Run(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn output_exit_code_and_environment() {
    let mut pod = Pod::sandboxed(1);
    let script = "echo out; echo err >&2; hostname; echo $COLOUR $HOME; pwd; cat; printf no-newline; exit 3";
    let mut config = pod.shell("app", script);
    config.cwd = "/made/for/us".into();
    let (code, text) = pod.output(config);
    assert_eq!(code, 3);
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "!err",
            "/made/for/us",
            "blue /root",
            "no-newline",
            "out",
            "pod-name"
        ]
    );
    let exit = &pod.state().containers[0];
    let Phase::Exited(exit) = &exit.phase else {
        panic!("{exit:?}")
    };
    assert_eq!(
        (exit.exit_code, exit.signal, exit.oom_killed, exit.attempt),
        (3, None, false, 0)
    );
    assert!(
        exit.finished_at.boot_ns >= exit.started_at.boot_ns
            && exit.finished_at.unix_ns > 1_600_000_000_000_000_000
    );
    pod.call(RequestBody::Delete {
        container: "app".into(),
    })
    .unwrap();
    assert!(pod.state().containers.is_empty());
    pod.shut_down();
}

#[test]
fn signals_reach_init_and_name_the_exit() {
    let mut pod = Pod::sandboxed(2);
    let started = pod
        .run(pod.shell(
            "app",
            "trap 'echo caught; exit 7' TERM; echo up; while :; do sleep 0.01; done",
        ))
        .unwrap();
    assert!(process::is_alive(started.pid, started.start_time));
    pod.wait_for_log("app", "up");
    let error = pod
        .call(RequestBody::Delete {
            container: "app".into(),
        })
        .unwrap_err()
        .to_string();
    assert_eq!(error, "container \"app\" is still running");
    pod.call(RequestBody::Signal {
        container: "app".into(),
        signal: 15,
    })
    .unwrap();
    assert_eq!(pod.exit().exit_code, 7);
    assert_eq!(pod.log("app", 0), "up\ncaught\n");
    pod.run(pod.command("kill", &["sleep", "60"])).unwrap();
    pod.call(RequestBody::KillAll {
        container: Some("kill".into()),
    })
    .unwrap();
    let exit = pod.exit();
    assert_eq!((exit.exit_code, exit.signal), (137, Some(9)));
    assert!(
        pod.call(RequestBody::Signal {
            container: "none".into(),
            signal: 15
        })
        .unwrap_err()
        .to_string()
        .contains("none")
    );
    pod.shut_down();
}

#[test]
fn exec_errors_say_what_and_why() {
    let mut pod = Pod::sandboxed(3);
    let mut check = |args: &[&str], errno: i32, expected: &str| {
        let config = pod.command("app", args);
        let error = run_error(pod.run(config).unwrap_err());
        assert_eq!(error.to_string(), expected);
        assert!(
            matches!(error, RunError::Exec { errno: found, .. } if found == errno),
            "{error:?}"
        );
        assert!(
            pod.state().containers.is_empty(),
            "a failed start leaves nothing in its way"
        );
        let rings = std::fs::read_dir(pod.dir.join("logs/app")).unwrap().count();
        assert_eq!(rings, 0, "nobody waits for the end of a log that nobody writes");
    };
    check(
        &["no-such"],
        libc_enoent(),
        "exec \"no-such\": executable file not found in $PATH (/bin)",
    );
    check(
        &["/no/such"],
        libc_enoent(),
        "exec \"/no/such\": no such file or directory",
    );
    check(
        &["/etc"],
        13,
        "exec \"/etc\": permission denied (it is a directory)",
    );
    check(
        &["/etc/passwd"],
        13,
        "exec \"/etc/passwd\": permission denied (it is not executable)",
    );
    check(
        &["/proc/self/exe"],
        13,
        "exec \"/proc/self/exe\": this is the node agent's own binary",
    );
    pod.shut_down();
}

fn libc_enoent() -> i32 {
    2
}

#[test]
fn configurations_that_cannot_be_are_refused() {
    let mut pod = Pod::sandboxed(4);
    let mut check = |change: &dyn Fn(&mut skiff_sys::ContainerConfig), expected: &str| {
        let mut config = pod.shell("app", "true");
        change(&mut config);
        let error = run_error(pod.run(config).unwrap_err()).to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&|config| config.args.clear(), "args: no command");
    check(
        &|config| config.capabilities.push("CAP_FLY".into()),
        "CAP_FLY is unknown",
    );
    check(
        &|config| config.rootfs.lower = vec!["/no/layer".into()],
        "/no/layer: No such file or directory",
    );
    check(&|config| config.id = "../app".into(), "cannot be a file's name");
    check(
        &|config| config.namespaces.net = Some("/no/netns".into()),
        "/no/netns",
    );
    pod.run(pod.command("app", &["sleep", "60"])).unwrap();
    let again = pod.command("app", &["true"]);
    assert!(pod.run(again).unwrap_err().to_string().contains("exists already"));
    pod.shut_down();
}

#[test]
fn out_of_memory_is_told() {
    let mut pod = Pod::sandboxed(5);
    let mut config = pod.shell("app", "head -c 200m /dev/zero | tail");
    config.resources = Limits {
        memory_bytes: Some(32 << 20),
        ..Limits::default()
    };
    pod.run(config).unwrap();
    let exit = pod.exit();
    assert!(exit.oom_killed, "{exit:?}");
    assert!(pod.state().containers[0].oom_kills > 0);
    pod.shut_down();
}

#[test]
fn too_little_memory_to_start_is_an_error_and_not_a_hang() {
    let mut pod = Pod::sandboxed(6);
    let mut refused = 0;
    for kib in [4, 64, 256, 512, 1024, 4096] {
        let mut config = pod.shell("app", "true");
        config.resources.memory_bytes = Some(kib << 10);
        let begun = Instant::now();
        match pod.run_attempt(config, 0, Duration::from_secs(5)) {
            Err(error) => {
                let error = run_error(error);
                let expected = format!("the memory limit of {} bytes is too small to start", kib << 10);
                assert!(error.to_string().contains(&expected), "{error}");
                refused += 1;
            }
            Ok(_) => {
                // Enough to be executed; whether it is enough to run is another matter.
                let exit = pod.exit();
                assert!(exit.exit_code == 0 || exit.oom_killed, "{exit:?}");
                pod.call(RequestBody::Delete {
                    container: "app".into(),
                })
                .unwrap();
            }
        }
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{kib} KiB: {:?}",
            begun.elapsed()
        );
        assert!(pod.state().containers.is_empty());
    }
    assert!(refused > 0, "4 KiB are not enough on any kernel");
    pod.shut_down();
}

#[test]
fn containers_of_a_pod_share_its_network_and_memory() {
    let mut pod = Pod::sandboxed(7);
    pod.run(pod.shell(
        "server",
        "echo shared > /dev/shm/note; echo up; while echo hello | nc -l -p 8080; do :; done",
    ))
    .unwrap();
    pod.wait_for_log("server", "up");
    let script = "for i in 1 2 3 4 5 6 7 8 9; do nc 127.0.0.1 8080 </dev/null && break; sleep 0.1; done; cat /dev/shm/note; \
                  ip -o -4 addr show eth0 | awk '{print $4}'; ip route show default | grep -c 'default via 10.213.7.1 dev eth0'; ping -c1 -W2 10.213.7.1 >/dev/null && echo gateway";
    let client = pod.shell("client", script);
    let (code, text) = pod.output(client);
    assert_eq!(
        (code, text.as_str()),
        (0, "hello\nshared\n10.213.7.2/24\n1\ngateway\n")
    );
    // The host reaches the Pod over the bridge.
    let reached = std::net::TcpStream::connect_timeout(&"10.213.7.2:8080".parse().unwrap(), TIMEOUT);
    assert!(reached.is_ok(), "{reached:?}");
    pod.shut_down();
}

#[test]
fn a_shim_outlives_its_client_and_the_next_one_learns_all() {
    let mut pod = Pod::sandboxed(8);
    let started = pod.run(pod.shell("stays", "echo on; sleep 60")).unwrap();
    pod.run(pod.shell("goes", "echo gone; sleep 0.2; exit 42"))
        .unwrap();
    pod.client = Client::connect(&pod.dir).unwrap();
    wait_until("the exit", || {
        pod.state()
            .containers
            .iter()
            .any(|c| matches!(c.phase, Phase::Exited(_)))
    });
    let state = pod.state();
    let [goes, stays] = &state.containers[..] else {
        panic!("{state:?}")
    };
    assert!(
        matches!(&goes.phase, Phase::Exited(exit) if exit.exit_code == 42),
        "{goes:?}"
    );
    assert!(
        matches!(&stays.phase, Phase::Running { process, .. } if *process == started),
        "{stays:?}"
    );
    assert_eq!(state.sandbox.as_ref(), Some(&pod.sandbox));
    assert_eq!(pod.log("goes", 0), "gone\n");
    assert!(goes.log.end > 0 && goes.log.path.ends_with("logs/goes/0.ring"));
    pod.shut_down();
}

#[test]
fn attempts_keep_the_log_of_the_one_before() {
    let mut pod = Pod::sandboxed(9);
    for attempt in 0..3 {
        let config = pod.shell("app", &format!("echo attempt {attempt}"));
        pod.run_attempt(config, attempt, TIMEOUT).unwrap();
        assert_eq!(pod.exit().attempt, attempt);
        pod.call(RequestBody::Delete {
            container: "app".into(),
        })
        .unwrap();
    }
    assert_eq!(pod.log("app", 2), "attempt 2\n");
    assert_eq!(pod.log("app", 1), "attempt 1\n");
    assert!(!pod.dir.join("logs/app/0.ring").exists());
    pod.shut_down();
}

#[test]
fn what_a_killed_shim_leaves_is_found_and_removed() {
    let mut pod = Pod::sandboxed(10);
    let started = pod
        .run(pod.shell(
            "app",
            "while echo on; do sleep 0.01; done; echo broken > /dev/shm/note",
        ))
        .unwrap();
    pod.run(pod.shell("gone", "exit 5")).unwrap();
    pod.exit();
    let pods = pod.dir.parent().unwrap().to_owned();
    assert!(
        skiff_shim::collect(&pods).unwrap().is_empty(),
        "a living shim's Pod is no leftover"
    );
    pod.shim.kill().unwrap();
    pod.shim.wait().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        process::is_alive(started.pid, started.start_time),
        "no SIGPIPE without a reader"
    );
    let found = skiff_shim::collect(&pods).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].sandbox.as_ref(), Some(&pod.sandbox));
    assert_eq!(
        found[0]
            .exits
            .iter()
            .map(|exit| exit.exit_code)
            .collect::<Vec<_>>(),
        [5]
    );
    found[0].remove().unwrap();
    assert!(!process::is_alive(started.pid, started.start_time));
    assert!(!pod.dir.exists());
    pod.assert_gone();
}

#[test]
fn a_second_shim_for_the_same_pod_is_refused() {
    let pod = Pod::sandboxed(11);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_skiff-shim"))
        .arg("--pod-dir")
        .arg(&pod.dir)
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("another shim serves"),
        "{output:?}"
    );
    pod.shut_down();
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    use std::io::{Read, Write};
    let mut pod = Pod::sandboxed(12);
    let frames: [&[u8]; 4] = [
        &[0, 0, 0, 0],
        &[0xff; 8],
        &[0, 0, 0, 2, 9, 0],
        &[0, 0, 0, 3, 1, 0xff, 0xff],
    ];
    for frame in frames {
        let mut stream = UnixStream::connect(pod.dir.join("shim.sock")).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(frame).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as an end.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
    assert_eq!(pod.state().containers.len(), 0);
    pod.shut_down();
}

#[test]
fn a_shim_can_be_started_anew_after_a_shutdown() {
    let pod = Pod::sandboxed(13);
    let (dir, sandbox) = (pod.dir.clone(), pod.sandbox.clone());
    let mut pod = pod;
    pod.call(RequestBody::Shutdown).unwrap();
    wait_until("the shim's end", || pod.shim.try_wait().unwrap().is_some());
    let (shim, mut client) = start_shim(&dir);
    client.call(RequestBody::MakeSandbox(sandbox), TIMEOUT).unwrap();
    (pod.shim, pod.client) = (shim, client);
    let config = pod.shell("app", "echo again");
    assert_eq!(pod.output(config), (0, "again\n".to_owned()));
    pod.shut_down();
}

#[test]
fn a_start_is_answered_before_its_exit_is_told() {
    let pod = Pod::sandboxed(40);
    let shim = i32::try_from(pod.shim.id()).unwrap();
    let mut socket = UnixStream::connect(pod.dir.join(skiff_shim::SOCKET_NAME)).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    for n in 0..3 {
        let container = format!("short{n}");
        let run = RunRequest {
            config: pod.command(&container, &["true"]),
            name: container.clone(),
            attempt: 0,
            log: LogConfig::default(),
            timeout_ms: TIMEOUT.as_millis() as u64,
        };
        for (id, body) in [(n, RequestBody::Run(Box::new(run))), (100, RequestBody::State)] {
            let request = protocol::encode(protocol::VERSION, &protocol::Request { id, body }).unwrap();
            socket.write_all(&request).unwrap();
        }
        // The start is under way when the state is told. A shim that stands still until all is over learns of the
        // start and of the end at once.
        let state = next_frame(&mut socket);
        process::kill(shim, SIGSTOP).unwrap();
        assert!(matches!(&state, ToClient::Reply(it) if it.id == 100), "{state:?}");
        std::thread::sleep(Duration::from_millis(500));
        process::kill(shim, SIGCONT).unwrap();
        let told: Vec<_> = std::iter::repeat_with(|| next_frame(&mut socket))
            .take(2)
            .collect();
        let [ToClient::Reply(reply), ToClient::Event(Event::Exited(exit))] = told.as_slice() else {
            panic!("of {container}: {told:?}")
        };
        assert!(matches!(reply.result, Ok(ReplyBody::Started(_))), "{reply:?}");
        assert_eq!((reply.id, &exit.container, exit.exit_code), (n, &container, 0));
    }
    pod.shut_down();
}

const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

fn next_frame(socket: &mut UnixStream) -> ToClient {
    let mut length = [0; protocol::LENGTH_BYTES];
    socket.read_exact(&mut length).unwrap();
    let mut body = vec![0; protocol::decode_length(length).unwrap()];
    socket.read_exact(&mut body).unwrap();
    protocol::decode(&body).unwrap().1
}
