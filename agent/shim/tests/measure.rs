//! Promises in numbers, for `cargo xtask bench --parts`: they say something only on a quiet machine and in a release build,
//! which `SKIFF_SHIM` may name.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Pod, TIMEOUT};
use skiff_shim::protocol::{ExecRequest, RequestBody};
use skiff_sys::ExecConfig;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
#[ignore = "a measurement"]
fn sandbox_and_first_container() {
    let mut sandbox = Vec::new();
    let mut first = Vec::new();
    let mut next = Vec::new();
    let mut shim = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        let mut pod = Pod::new(31);
        shim.push(begun.elapsed());
        let begun = Instant::now();
        pod.client
            .call(RequestBody::MakeSandbox(pod.sandbox.clone()), TIMEOUT)
            .unwrap();
        sandbox.push(begun.elapsed());
        let begun = Instant::now();
        pod.run(pod.command("first", &["sleep", "60"])).unwrap();
        first.push(begun.elapsed());
        let begun = Instant::now();
        pod.run(pod.command("next", &["sleep", "60"])).unwrap();
        next.push(begun.elapsed());
        pod.shut_down();
    }
    let [shim, sandbox, first, next] = [shim, sandbox, first, next].map(median);
    println!(
        "shim {shim:?} (with the test's own image), sandbox {sandbox:?}, first container {first:?}, next {next:?}"
    );
    assert!(sandbox + first < Duration::from_millis(200));
}

#[test]
#[ignore = "a measurement"]
fn a_command_in_a_container() {
    let mut pod = Pod::sandboxed(34);
    pod.run(pod.command("app", &["sleep", "60"])).unwrap();
    let mut times = Vec::new();
    for pause in [0, 200] {
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(pause));
            let begun = Instant::now();
            let request = ExecRequest {
                container: "app".into(),
                config: ExecConfig {
                    args: vec!["true".into()],
                },
                timeout_ms: 10_000,
                output: 1024,
            };
            pod.call(RequestBody::Exec(request)).unwrap();
            times.push(begun.elapsed());
        }
    }
    let (busy, idle) = times.split_at(50);
    println!(
        "exec of true: {:?} one after the other, {:?} now and then",
        median(busy.to_vec()),
        median(idle.to_vec())
    );
    pod.shut_down();
}

#[test]
#[ignore = "a measurement"]
fn memory_of_an_idle_shim() {
    let mut pod = Pod::sandboxed(32);
    pod.run(pod.shell(
        "app",
        "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done; exec sleep 60",
    ))
    .unwrap();
    pod.wait_for_log("app", "line 999");
    std::thread::sleep(Duration::from_millis(500));
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", pod.shim.id())).unwrap();
    for key in ["Rss:", "Pss:", "Private_Dirty:"] {
        println!("{}", rollup.lines().find(|line| line.starts_with(key)).unwrap());
    }
    pod.shut_down();
}

#[test]
#[ignore = "a measurement"]
fn a_million_lines() {
    let mut pod = Pod::sandboxed(33);
    let cpu = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // utime and stime are fields 14 and 15; what follows the name begins with field 3.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
        [ticks(14), ticks(15)].map(|ticks| Duration::from_millis(ticks * 10))
    };
    let line = "x".repeat(99);
    let before = cpu(pod.shim.id());
    let begun = Instant::now();
    pod.run(pod.shell("app", &format!("yes {line} | head -n 1000000")))
        .unwrap();
    let exit = pod.exit();
    let [user, system] = cpu(pod.shim.id());
    println!(
        "{:?}, shim CPU {:?} user, {:?} system",
        begun.elapsed(),
        user - before[0],
        system - before[1]
    );
    assert_eq!(exit.exit_code, 0);
    let log = pod.state().containers[0].log.clone();
    assert!(
        log.end >= 1_000_000 * 124 && log.dropped_records > 900_000,
        "{log:?}"
    );
    pod.shut_down();
}
