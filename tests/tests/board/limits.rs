//! cgroup v2 for real: what a Pod asks for is what the kernel holds it to.
//!
//! Always holds: limits are read from the kernel's files, and each is also reached by a Pod that wants more.

use serde_json::{Value, json};

use crate::harness::pods::{IDLE, shell_with};
use crate::harness::{pod, shell, wait};
use crate::node::{Board, NAME, PATIENCE, Wanted};

/// The board's disk has these numbers: the first of virtio's.
const DISK: &str = "254:0";

const AGENT: &str = "memory_qos = true\npids_per_container = 24\n\
    [policy]\nallow = [\"privileged\"]\n\
    [eviction]\nmemory_available = \"60Mi\"\nhold_seconds = 5\n\
    [[devices]]\nname = \"skiff.io/fuse\"\npaths = [\"/dev/fuse\"]";

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn never() -> Value {
    json!({ "restartPolicy": "Never" })
}

impl Board {
    /// Files of a cgroup with what they hold.
    #[track_caller]
    fn files(&mut self, cgroup: &str, expected: &[(&str, &str)]) {
        for (file, content) in expected {
            let found = self.ok(&format!("cat {cgroup}/{file}"));
            assert_eq!(found, *content, "{cgroup}/{file}");
        }
    }
}

#[test]
fn budgets_hold_on_cgroup_v2() {
    let mut board = Board::start(&Wanted {
        agent: AGENT,
        before: "echo 4 >/proc/sys/vm/nr_hugepages",
        ..Wanted::default()
    });
    assert_eq!(
        board.ok("ls /sys/fs/cgroup/cpu 2>/dev/null; head -1 /proc/self/cgroup"),
        "0::/"
    );
    what_is_asked_for_is_what_the_kernel_has(&mut board);
    limits_change_without_a_restart(&mut board);
    who_wants_more_is_held(&mut board);
    devices_are_closed_by_a_program(&board);
    a_pod_has_users_of_its_own(&board);
    a_command_is_held_with_its_container(&mut board);
    a_node_short_of_memory_evicts(&mut board);
    board
        .control
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    wait("the Pods' cgroups to be gone", PATIENCE, || {
        let left = board.ok("find /sys/fs/cgroup/skiff -mindepth 1 -type d");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn what_is_asked_for_is_what_the_kernel_has(board: &mut Board) {
    let asked = json!({ "resources": {
        "requests": { "cpu": "100m", "memory": "16Mi" },
        "limits": { "cpu": "200m", "memory": "32Mi", "hugepages-2Mi": "4Mi" },
    } });
    let mut object = pod("asks", &shell_with(IDLE, &asked), json!({}));
    object["metadata"]["annotations"] = json!({ "skiff.io/io-max": "device=/dev/vda,wbps=4Mi,riops=200" });
    board.control.apply(&object);
    let asks = board.running("asks");
    let container = board.cgroup(&uid(&asks));
    board.files(
        &container,
        &[
            ("cpu.max", "20000 100000"),
            // 102 shares of 1024, on the curve that crun and runc take.
            ("cpu.weight", "17"),
            ("memory.max", "33554432"),
            ("memory.min", "16777216"),
            // The request and nine tenths of what lies between, in whole pages.
            ("memory.high", "31875072"),
            ("memory.oom.group", "1"),
            ("pids.max", "24"),
            ("hugetlb.2MB.max", "4194304"),
            (
                "io.max",
                &format!("{DISK} rbps=max wbps=4194304 riops=200 wiops=max"),
            ),
        ],
    );
    let whole = format!("/sys/fs/cgroup/skiff/{}", uid(&asks));
    board.files(
        &whole,
        &[
            ("cpu.max", "20000 100000"),
            ("cpu.weight", "17"),
            ("memory.max", "33554432"),
            ("memory.min", "16777216"),
            ("hugetlb.2MB.max", "4194304"),
        ],
    );
    board.control.delete("asks");
    // Of a Pod as a whole; its container has no limit of its own and no huge page.
    let own = json!({ "resources": { "requests": { "memory": "8Mi" }, "limits": { "cpu": "500m", "memory": "48Mi" } } });
    board.control.apply(&pod("whole", &shell(IDLE), own));
    let object = board.running("whole");
    let (container, whole) = (
        board.cgroup(&uid(&object)),
        format!("/sys/fs/cgroup/skiff/{}", uid(&object)),
    );
    board.files(&whole, &[("cpu.max", "50000 100000"), ("memory.max", "50331648")]);
    board.files(
        &container,
        &[("memory.max", "50331648"), ("hugetlb.2MB.max", "0")],
    );
    board.control.delete("whole");
    // The agent is held to what it promises of itself.
    let own = board.ok("sed 's/^0:://' /proc/$(cat /run/agent.pid)/cgroup");
    board.files(&format!("/sys/fs/cgroup{own}"), &[("memory.max", "67108864")]);
}

fn limits_change_without_a_restart(board: &mut Board) {
    let asked = json!({ "resources": {
        "requests": { "cpu": "100m", "memory": "16Mi" }, "limits": { "cpu": "200m", "memory": "64Mi" },
    } });
    board
        .control
        .apply(&pod("resized", &shell_with(IDLE, &asked), json!({})));
    let before = board.running("resized");
    let cgroup = board.cgroup(&uid(&before));
    let first = board.ok(&format!("head -1 {cgroup}/cgroup.procs"));
    // Less memory, more of the processor.
    let patch = json!({ "spec": { "containers": [{ "name": "main", "resources": {
        "requests": { "cpu": "150m", "memory": "16Mi" }, "limits": { "cpu": "300m", "memory": "32Mi" },
    } }] } });
    let patch = patch.to_string();
    let resize = ["patch", "pod", "resized", "--subresource", "resize", "-p", &patch];
    board.control.kubectl(&resize).ok();
    board
        .control
        .until("resized", "to show what is in force", PATIENCE, |it| {
            it["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] == "32Mi"
        });
    let expected = [
        ("cpu.max", "30000 100000"),
        ("memory.max", "33554432"),
        ("memory.high", "31875072"),
    ];
    board.files(&cgroup, &expected);
    board.files(&format!("/sys/fs/cgroup/skiff/{}", uid(&before)), &expected[..2]);
    assert_eq!(board.ok(&format!("head -1 {cgroup}/cgroup.procs")), first);
    board.control.delete("resized");
}

fn who_wants_more_is_held(board: &mut Board) {
    // Memory: all of the container ends, also the part that is innocent.
    let script = "sleep 3600 & echo begun; tail -c 64m </dev/zero; echo survived; wait";
    let asked = json!({ "resources": { "limits": { "memory": "24Mi" } } });
    let (ended, log) = board
        .control
        .ends(&pod("eats", &shell_with(script, &asked), never()), PATIENCE);
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&state["reason"], &state["exitCode"]),
        (&json!("OOMKilled"), &json!(137)),
        "{state}"
    );
    assert_eq!(log, "begun\n");
    // Processes.
    let script = "i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; echo $i";
    let (ended, log) = board
        .control
        .ends(&pod("forks", &shell(script), never()), PATIENCE);
    assert_ne!(ended["status"]["phase"], "Succeeded", "{log}");
    assert!(
        log.contains("can't fork: Resource temporarily unavailable"),
        "{log}"
    );
    // The processor.
    let asked = json!({ "resources": { "limits": { "cpu": "100m" } } });
    board.control.apply(&pod(
        "spins",
        &shell_with("while :; do :; done", &asked),
        json!({}),
    ));
    let spins = board.running("spins");
    let cgroup = board.cgroup(&uid(&spins));
    wait("the busy loop to be throttled", PATIENCE, || {
        let stat = board.ok(&format!("cat {cgroup}/cpu.stat"));
        let count = stat.lines().find_map(|it| it.strip_prefix("nr_throttled "));
        if count.is_some_and(|it| it != "0") {
            Ok(())
        } else {
            Err(stat)
        }
    });
    board.control.delete("spins");
}

fn devices_are_closed_by_a_program(board: &Board) {
    let disk = "mknod /tmp/disk b 254 0; head -c 1 /tmp/disk >/dev/null 2>/tmp/why && echo read; sed 's/.*: //' /tmp/why";
    for (name, more, script, expected) in [
        ("closed", json!({}), disk, "Operation not permitted\n"),
        (
            "open",
            json!({ "securityContext": { "privileged": true } }),
            disk,
            "read\n",
        ),
        (
            "given",
            json!({ "resources": { "limits": { "skiff.io/fuse": 1 } } }),
            // Only one that is open can answer so.
            "head -c 1 /dev/fuse 2>&1 | sed 's/.*: //'",
            "Input/output error\n",
        ),
    ] {
        let (_, log) = board
            .control
            .ends(&pod(name, &shell_with(script, &more), never()), PATIENCE);
        assert_eq!(log, expected, "{name}");
    }
}

/// `spec.hostUsers: false`, with ext4 and tmpfs below it.
fn a_pod_has_users_of_its_own(board: &Board) {
    let look = "id -u; awk '{print $1, $3}' /proc/self/uid_map; for d in / /d /m /bin/busybox; do stat -c '%u %n' $d; done; \
                touch /d/new /m/new && stat -c '%u %n' /d/new /m/new; mount -t tmpfs none /tmp && echo mounted";
    let more = json!({
        "securityContext": { "capabilities": { "add": ["SYS_ADMIN"] } },
        "volumeMounts": [{ "name": "d", "mountPath": "/d" }, { "name": "m", "mountPath": "/m" }],
    });
    let spec = json!({
        "restartPolicy": "Never", "hostUsers": false,
        "volumes": [{ "name": "d", "emptyDir": {} }, { "name": "m", "emptyDir": { "medium": "Memory" } }],
    });
    let (_, log) = board
        .control
        .ends(&pod("users", &shell_with(look, &more), spec), PATIENCE);
    assert_eq!(
        log,
        "0\n0 65536\n0 /\n0 /d\n0 /m\n0 /bin/busybox\n0 /d/new\n0 /m/new\nmounted\n"
    );
}

fn a_command_is_held_with_its_container(board: &mut Board) {
    let probe = json!({ "readinessProbe": {
        "exec": { "command": ["sleep", "987"] }, "timeoutSeconds": 600,
    } });
    board
        .control
        .apply(&pod("probed", &shell_with(IDLE, &probe), json!({})));
    let probed = board.running("probed");
    let cgroup = board.cgroup(&uid(&probed));
    let lines =
        format!("for pid in $(cat {cgroup}/cgroup.procs); do tr '\\0' ' ' </proc/$pid/cmdline; echo; done");
    wait("the probe's command in the container's cgroup", PATIENCE, || {
        let found = board.run(&lines).out;
        if found.lines().any(|it| it.trim() == "sleep 987") {
            Ok(())
        } else {
            Err(found)
        }
    });
    board.control.delete("probed");
}

fn a_node_short_of_memory_evicts(board: &mut Board) {
    board.control.apply(&pod("calm", &shell(IDLE), json!({})));
    let calm = board.running("calm");
    let cgroup = board.cgroup(&uid(&calm));
    let first = board.ok(&format!("head -1 {cgroup}/cgroup.procs"));
    // 6 MiB at a time, so that the node is short before the kernel has to act.
    let script = "i=0; while [ $i -lt 25 ]; do dd if=/dev/zero of=/m/$i bs=1M count=6 2>/dev/null; i=$((i+1)); sleep 0.5; done; sleep 3600";
    let volume = json!({ "volumes": [{ "name": "m", "emptyDir": { "medium": "Memory" } }] });
    let mounts = json!({ "volumeMounts": [{ "name": "m", "mountPath": "/m" }] });
    board
        .control
        .apply(&pod("hog", &shell_with(script, &mounts), volume));
    let evicted = board.control.until("hog", "to be evicted", PATIENCE, |it| {
        it["status"]["phase"] == "Failed"
    });
    assert_eq!(evicted["status"]["reason"], "Evicted", "{}", evicted["status"]);
    let message = evicted["status"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("The node was low on resource: memory. "),
        "{message}"
    );
    let condition = |board: &Board, status: &str| {
        let path = "jsonpath={.status.conditions[?(@.type==\"MemoryPressure\")].status}";
        wait(&format!("MemoryPressure to be {status}"), PATIENCE, || {
            let said = board.control.kubectl(&["get", "node", NAME, "-o", path]).ok();
            (said == status).then_some(()).ok_or(said)
        });
    };
    condition(board, "False");
    assert_eq!(
        board.ok(&format!("head -1 {cgroup}/cgroup.procs")),
        first,
        "who had little goes on"
    );
}
