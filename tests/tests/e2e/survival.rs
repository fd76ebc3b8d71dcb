//! An agent that is killed, stopped, or finds its journal damaged: what runs goes on.
//!
//! Always holds: a container is told by its first process's id and start time, so that one that was restarted is
//! never taken for the one before.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::pods::{IDLE, NUMBERS, numbers};
use crate::harness::wait::stays;
use crate::harness::{Cluster, Init, Setup, kernel, pod, programs, shell, until, wait};

fn start() -> (Cluster, BTreeSet<Init>) {
    let cluster = Cluster::busybox();
    let second = json!({ "restartPolicy": "Always" });
    cluster.run(&pod("numbers", &shell(NUMBERS), second));
    cluster.run(&pod("idle", &shell(IDLE), Value::Null));
    let inits = cluster.node.inits();
    assert_eq!(inits.len(), 2, "{inits:?}");
    (cluster, inits)
}

/// The same containers run, nothing was counted as a restart, and the log is whole and goes on.
#[track_caller]
fn nothing_happened(cluster: &Cluster, inits: &BTreeSet<Init>, numbers_before: usize) {
    cluster.is_ready();
    for name in ["numbers", "idle"] {
        let pod = cluster.running(name);
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!(status["restartCount"], 0, "{name}: {status}");
        assert!(status["lastState"]["terminated"].is_null(), "{name}: {status}");
    }
    assert_eq!(cluster.node.inits(), *inits, "other processes than before");
    let log = wait("the log to go on", 20, || {
        let log = numbers(&cluster.kubectl(&["logs", "numbers"]).ok());
        if log.len() > numbers_before + 3 {
            Ok(log)
        } else {
            Err(format!("{} lines", log.len()))
        }
    });
    assert_eq!(
        log,
        (1..=log.len() as u64).collect::<Vec<_>>(),
        "a gap or a repetition"
    );
}

fn lines(cluster: &Cluster) -> usize {
    numbers(&cluster.logs(&["numbers"])).len()
}

#[test]
fn containers_outlive_their_agent() {
    let (mut cluster, inits) = start();
    for turn in 0..3 {
        cluster.logs_say(&["numbers"], "n 3\n");
        let before = lines(&cluster);
        cluster.node.kill();
        // What is written meanwhile must not be lost either.
        stays(2, || {
            assert_eq!(cluster.node.inits(), inits, "turn {turn}: without the agent");
        });
        cluster.node.start();
        nothing_happened(&cluster, &inits, before + 8);
    }
    let before = lines(&cluster);
    cluster.node.stop();
    assert_eq!(cluster.node.inits(), inits, "after an orderly stop");
    cluster.node.start();
    nothing_happened(&cluster, &inits, before);

    an_exit_while_the_agent_is_away_counts_once(&mut cluster);
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=2"])
        .ok();
    cluster.is_empty();
}

/// The shim keeps what ended; the agent learns it when it comes back, and acts on it then.
fn an_exit_while_the_agent_is_away_counts_once(cluster: &mut Cluster) {
    let script =
        "trap 'exit 0' TERM; while [ ! -f /stop/now ]; do sleep 0.1; done; echo the last words; exit 7";
    let mut container = shell(script);
    container["volumeMounts"] = json!([{ "name": "stop", "mountPath": "/stop" }]);
    container["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    let more = json!({ "restartPolicy": "Never", "volumes": [{ "name": "stop", "emptyDir": {} }] });
    let running = cluster.run(&pod("ends", &container, more));
    let uid = running["metadata"]["uid"].as_str().unwrap().to_owned();
    let init = cluster.node.init_of(&uid);
    cluster.node.kill();
    fs::write(format!("/proc/{}/root/stop/now", init.pid), "").unwrap();
    until("the container to end", 10, || {
        !cluster.node.inits().contains(&init)
    });
    cluster.node.start();
    let ended = cluster.phase("ends", "Failed");
    let end = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(end["exitCode"], 7, "{ended}");
    assert_eq!(end["message"], "the last words\n", "{ended}");
}

#[test]
fn a_damaged_journal_stops_the_agent_and_touches_nothing() {
    let (mut cluster, inits) = start();
    cluster.node.stop();
    let segment = ruling_segment(&cluster.node.state.join("journal"));
    let whole = fs::read(&segment).unwrap();
    let mut damaged = whole.clone();
    // The payload of the first frame; what was committed after it is whole, so this is no torn write.
    for byte in &mut damaged[FRAMES + 20..FRAMES + 24] {
        *byte ^= 0xff;
    }
    fs::write(&segment, &damaged).unwrap();

    cluster.node.launch();
    let status = cluster.node.process().ends(20);
    assert_eq!(status.code(), Some(1));
    let log = cluster.node.log();
    let words = log
        .lines()
        .rfind(|line| line.starts_with("skiff-agent: "))
        .unwrap();
    for part in [
        "journal",
        "nothing that runs is touched",
        &segment.display().to_string(),
    ] {
        assert!(words.contains(part), "no {part:?} in {words:?}");
    }
    assert_eq!(cluster.node.inits(), inits, "with a damaged journal");
    assert_eq!(fs::read(&segment).unwrap(), damaged, "it is not written to");

    fs::write(&segment, &whole).unwrap();
    cluster.node.start();
    nothing_happened(&cluster, &inits, 0);
}

/// Pods that run while their agent is replaced.
const CROWD: usize = 50;

/// A new binary over the old, as a package manager puts it there: of the next version, which speaks otherwise to shims and
/// to servers that know it. Then the old one is put back, as by a device that does not trust its update.
#[test]
fn an_upgrade_of_the_agent_touches_no_pod() {
    let mut cluster = Cluster::start(&Setup {
        images: &["busybox"],
        // Shims begin in the agent's cgroup, and those of a build for tests are ten times as large as a release's.
        agent: "agent_memory = 0\n",
        ..Setup::default()
    });
    cluster.node.stop();
    let installed = cluster.dir().join("skiff-agent");
    fs::copy(programs::agent(), &installed).unwrap();
    cluster.node.program.clone_from(&installed);
    cluster.node.start();
    for number in 0..CROWD {
        cluster.apply(&pod(&format!("n{number}"), &shell(COUNTS), Value::Null));
    }
    for number in 0..CROWD {
        cluster.running(&format!("n{number}"));
    }
    let inits = cluster.node.inits();
    assert_eq!(inits.len(), CROWD);

    // The version that an agent of this file runs as is told by the file's length.
    let first = fs::read(&installed).unwrap();
    let mut second = fs::read(programs::next_agent()).unwrap();
    second.resize(second.len().max(first.len() + 1), 0);
    let file = |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).unwrap().len();
    let of = |cluster: &Cluster, bytes: &[u8]| {
        let shims = kernel::processes(&cluster.node.run.join("node/pods"));
        let (these, others): (Vec<_>, Vec<_>) = shims
            .iter()
            .partition(|(pid, _)| file(*pid) == bytes.len() as u64);
        (these.len(), others.len())
    };
    install(&mut cluster, &installed, &second);
    assert_eq!(
        file(cluster.node.process().pid()),
        second.len() as u64,
        "the new agent runs"
    );
    assert_eq!(of(&cluster, &first), (CROWD, 0), "the old shims go on");
    untouched(&cluster, &inits);
    // And it does its work: what it adopted ends, and what is new begins in shims of its own.
    let late = cluster.run(&pod("late", &shell(COUNTS), Value::Null));
    assert_eq!(of(&cluster, &second), (1, CROWD));
    cluster.kubectl(&["delete", "pod", "n0", "--grace-period=1"]).ok();
    let gone = |cluster: &Cluster| cluster.node.inits().len() == CROWD;
    until("the first Pod to go", 20, || gone(&cluster));
    let inits = cluster.node.inits();
    let uid = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap().to_owned();
    let old = cluster.running("n1");
    assert!(
        speaks_next(&cluster, &uid(&late)),
        "the control: the next version is another"
    );
    assert!(
        !speaks_next(&cluster, &uid(&old)),
        "the control: the old shims know one version"
    );

    install(&mut cluster, &installed, &first);
    assert_eq!(file(cluster.node.process().pid()), first.len() as u64);
    untouched(&cluster, &inits);
    let log = numbers(&cluster.logs(&["late"]));
    assert_eq!(log, (1..=log.len() as u64).collect::<Vec<_>>(), "late");
    assert_eq!(of(&cluster, &second), (1, CROWD - 1));
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

/// Writes a number each second.
const COUNTS: &str =
    "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo \"n $i\"; sleep 1 & wait $!; done";

/// Another file under the same name, as a package manager does it, and the agent started anew.
fn install(cluster: &mut Cluster, installed: &Path, bytes: &[u8]) {
    let next = installed.with_extension("new");
    fs::write(&next, bytes).unwrap();
    fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&next, installed).unwrap();
    cluster.node.stop();
    cluster.node.start();
    cluster.is_ready();
}

/// Every Pod of the crowd that is there runs as before, and none of its log is lost.
#[track_caller]
fn untouched(cluster: &Cluster, inits: &BTreeSet<Init>) {
    assert_eq!(cluster.node.inits(), *inits, "other processes than before");
    let names = cluster.kubectl(&["get", "pods", "-o", "name"]).ok();
    assert_eq!(names.lines().count(), inits.len(), "{names}");
    for name in names.lines().filter_map(|line| line.strip_prefix("pod/")) {
        let status = &cluster.running(name)["status"]["containerStatuses"][0];
        assert_eq!(status["restartCount"], 0, "{name}: {status}");
        let log = numbers(&cluster.logs(&[name]));
        assert_eq!(log, (1..=log.len() as u64).collect::<Vec<_>>(), "{name}");
    }
}

/// Whether a Pod's shim answers a question for its state in frames of version 2.
fn speaks_next(cluster: &Cluster, uid: &str) -> bool {
    let socket = cluster.node.run.join("node/pods").join(uid).join("shim.sock");
    let mut shim = UnixStream::connect(socket).unwrap();
    shim.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    shim.write_all(&[0, 0, 0, 3, 2, !0, !5]).unwrap();
    let mut answer = [0; 5];
    shim.read_exact(&mut answer).is_ok() && answer[4] == 2
}

#[test]
fn a_service_manager_hears_how_the_agent_is() {
    let (mut cluster, inits) = start();
    cluster.node.stop();
    let socket = cluster.dir().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let hears = || -> String {
        let mut bytes = [0; 512];
        let count = manager.recv(&mut bytes).expect("a word within 20 s");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    cluster.node.environment = vec![
        ("NOTIFY_SOCKET", socket.display().to_string()),
        ("WATCHDOG_USEC", "2000000".to_owned()),
    ];
    cluster.node.start();
    assert_eq!(hears(), "READY=1\n");
    // The first sign of life comes with it.
    assert_eq!(hears(), "WATCHDOG=1\n");
    assert_eq!(hears(), "STATUS=2 Pods, not connected; Pods run on\n");
    let (mut alive, mut connected) = (0, false);
    while alive < 4 || !connected {
        match hears().as_str() {
            "WATCHDOG=1\n" => alive += 1,
            "STATUS=2 Pods, connected\n" => connected = true,
            other => panic!("{other:?}"),
        }
    }
    // What the agent starts is nothing that the manager knows.
    cluster.run(&pod("late", &shell(IDLE), Value::Null));
    let shims = kernel::processes(&cluster.node.run.join("node/pods"));
    assert!(!shims.is_empty());
    for (pid, line) in shims {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("NOTIFY_SOCKET"), "{line}: {environment}");
    }
    cluster.node.stop();
    while hears() != "STOPPING=1\nSTATUS=stopping; Pods run on\n" {}
    assert!(cluster.node.inits().is_superset(&inits));
    cluster.node.environment.clear();
    cluster.node.start();
}

/// Where a segment's frames begin.
const FRAMES: usize = 8192;

/// The segment with the higher epoch in its header.
fn ruling_segment(dir: &Path) -> PathBuf {
    let epoch = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        u64::from_le_bytes(bytes[24..32].try_into().unwrap())
    };
    let segments = [0, 1].map(|number| dir.join(format!("journal.{number}")));
    segments.into_iter().max_by_key(epoch).unwrap()
}
