//! Our own figures, from a running server and node: start, apply, memory, idle writes.
//!
//! Memory is PSS from `smaps_rollup`, writes are `write_bytes` from `/proc/PID/io`: the kernel's figures, not ours.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::fleet::{Fleet, free_port};
use crate::http;

use super::peers::Peer;
use super::table::{Row, Spread};
use super::{MANY, PODS, ROUNDS, boots, whole};

/// SPECIFICATION's numbers.
pub(super) mod promise {
    pub(super) const START_MS: f64 = 20.0;
    pub(super) const APPLY_MS: f64 = 100.0;
    pub(super) const IDLE_PSS_MIB: f64 = 4.0;
    pub(super) const POD_PSS_MIB: f64 = 0.3;
    pub(super) const MANY_PSS_MIB: f64 = 6.0;
    pub(super) const MANY_CPU_PERCENT: f64 = 1.0;
    pub(super) const IDLE_BYTES: f64 = 0.0;
    pub(in super::super) const WHOLE_MS: f64 = 150.0;
}

/// What the agent writes to its log for each Pod: microseconds from receiving the spec to the first process.
const MARK: &str = "first_process_us=";
/// How long one Pod may take to be Running, or gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// After the last start, so that what start-up needed is given back.
const SETTLE: Duration = Duration::from_secs(5);
const PATH: &str = "/api/v1/namespaces/default/pods";

/// Measures one fleet that runs no Pod yet and has the busybox image.
pub(crate) fn measure(fleet: &mut Fleet, peers: &[Peer], idle: Duration) -> Result<Vec<Row>> {
    let agent = fleet.agent_pid()?;
    settle(fleet)?;
    let empty = pss_kib(agent)?;
    let anonymous = proc_number(agent, "smaps_rollup", "Pss_Anon:")?;
    let mapped = proc_number(agent, "smaps_rollup", "Pss_File:")?;
    let parts = format!("{anonymous} KiB anonymous, {mapped} KiB of the program's file");

    let mut api = Api::open(fleet)?;
    let mut applied = Vec::new();
    // The first pulls the image and is not counted.
    for round in 0..=ROUNDS {
        let name = format!("start-{round}");
        let took = api.run_pod(fleet, &name)?;
        if round > 0 {
            applied.push(took.as_secs_f64() * 1e3);
        }
        fleet.delete_pods()?;
    }
    let mut rows = vec![start_row(fleet, peers)?, apply_row(&applied)?];
    rows.push(whole::row(fleet, &mut api)?);

    for index in 0..PODS {
        api.run_pod(fleet, &format!("stay-{index}"))?;
    }
    settle(fleet)?;
    let shims = all_shims(fleet, PODS)?;
    let mut all = pss_kib(agent)?;
    for shim in &shims {
        all += pss_kib(*shim)?;
    }
    let note = format!("{empty} KiB idle, {all} KiB with {PODS} pods and their shims");
    rows.push(Row::at_most(
        "agent idle, connected over TLS, PSS",
        "MiB",
        promise::IDLE_PSS_MIB,
        mib(empty),
        &parts,
    ));
    let more = mib(all.saturating_sub(empty)) / PODS as f64;
    rows.push(Row::at_most(
        "each pod more, PSS",
        "MiB",
        promise::POD_PSS_MIB,
        more,
        &note,
    ));
    for index in PODS..MANY {
        api.run_pod(fleet, &format!("stay-{index}"))?;
    }
    drop(api);
    settle(fleet)?;
    let shims = all_shims(fleet, MANY)?;
    rows.push(Row::at_most(
        &format!("agent with {MANY} pods Running, PSS"),
        "MiB",
        promise::MANY_PSS_MIB,
        mib(pss_kib(agent)?),
        "",
    ));
    rows.extend(idle_rows(fleet, agent, &shims, idle)?);
    rows.extend(boots::rows(fleet, MANY)?);
    Ok(rows)
}

fn all_shims(fleet: &Fleet, pods: usize) -> Result<Vec<u32>> {
    let shims = shims(fleet.run_dir())?;
    if shims.len() != pods {
        bail!("{pods} pods are Running, but there are {} shims", shims.len());
    }
    Ok(shims)
}

fn start_row(fleet: &Fleet, peers: &[Peer]) -> Result<Row> {
    const WHAT: &str = "spec received -> first process, median";
    let log = fleet.agent_log()?;
    let figures = marked(&log);
    let crun = peers
        .iter()
        .find(|peer| peer.name.starts_with("crun"))
        .map(ToString::to_string)
        .unwrap_or_default();
    Ok(match Spread::of(figures.get(1..).unwrap_or_default()) {
        Some(spread) if figures.len() > ROUNDS => {
            let note = format!("{spread} of {}; {crun}", figures.len() - 1);
            Row::at_most(WHAT, "ms", promise::START_MS, spread.median, &note)
        }
        _ => {
            let why = format!("the agent's log has {} of {} `{MARK}`", figures.len(), ROUNDS + 1);
            Row::unknown(WHAT, "ms", promise::START_MS, &why)
        }
    })
}

/// The milliseconds that the agent's log gives, in order.
fn marked(log: &str) -> Vec<f64> {
    log.split(MARK)
        .skip(1)
        .filter_map(|rest| {
            rest.split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse::<f64>()
                .ok()
        })
        .map(|micros| micros / 1e3)
        .collect()
}

fn apply_row(figures: &[f64]) -> Result<Row> {
    let spread = Spread::of(figures).context("no pod was started")?;
    Ok(Row::at_most(
        "API create -> Running seen by watch, median",
        "ms",
        promise::APPLY_MS,
        spread.median,
        &format!("{spread} of {}", figures.len()),
    ))
}

fn idle_rows(fleet: &mut Fleet, agent: u32, shims: &[u32], idle: Duration) -> Result<[Row; 2]> {
    println!("==> {} s idle", idle.as_secs());
    let pids: Vec<u32> = std::iter::once(agent).chain(shims.iter().copied()).collect();
    let written = || pids.iter().map(|pid| write_bytes(*pid)).sum::<Result<u64>>();
    let (before, worked) = (written()?, cpu_seconds(agent)?);
    pause(fleet, idle)?;
    let bytes = written()?.saturating_sub(before);
    let worked = cpu_seconds(agent)? - worked;
    let note = format!("agent and {} shims, {} s", shims.len(), idle.as_secs());
    Ok([
        Row::at_most(
            "written while idle",
            "bytes",
            promise::IDLE_BYTES,
            bytes as f64,
            &note,
        ),
        Row::at_most(
            &format!("agent idle with {} pods, of a core", shims.len()),
            "%",
            promise::MANY_CPU_PERCENT,
            100.0 * worked / idle.as_secs_f64().max(1.0),
            &format!("{worked:.2} s of CPU in {} s", idle.as_secs()),
        ),
    ])
}

/// User and system time of a process so far.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let ticks = ticks(&text).with_context(|| format!("{path} has no times"))?;
    // USER_HZ, which is 100 on every Linux.
    Ok(ticks as f64 / 100.0)
}

fn ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn settle(fleet: &mut Fleet) -> Result<()> {
    pause(fleet, SETTLE)
}

/// Waits, but ends with an error when a process of the fleet ends or the user wants to stop.
fn pause(fleet: &mut Fleet, time: Duration) -> Result<()> {
    let begun = Instant::now();
    fleet.wait("time to pass", time + PATIENCE, |_| {
        Ok((begun.elapsed() >= time).then_some(()))
    })
}

/// The API behind `kubectl proxy`, and a watch on it whose events are stamped as they arrive.
pub(super) struct Api {
    proxy: Child,
    address: SocketAddr,
    events: Receiver<(Instant, Value)>,
}

impl Api {
    fn open(fleet: &mut Fleet) -> Result<Self> {
        let address = free_port()?;
        let proxy = fleet
            .kubectl(&["proxy", "--port", &address.port().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start `kubectl proxy`")?;
        let (send, events) = mpsc::channel();
        let api = Self {
            proxy,
            address,
            events,
        };
        let ready = |_: &Fleet| {
            let answer = http::request(address, "GET", PATH, "", Duration::from_secs(5));
            Ok(answer.ok().filter(|answer| answer.status == 200))
        };
        let list = fleet.wait("`kubectl proxy` to answer", Duration::from_secs(10), ready)?;
        let list: Value = serde_json::from_str(&list.body).context("cannot read the list of pods")?;
        let from = list["metadata"]["resourceVersion"].as_str().unwrap_or("0");
        let watch = format!("{PATH}?watch=1&resourceVersion={from}");
        let stream = http::lines(address, &watch, Duration::from_secs(3600))?;
        std::thread::spawn(move || {
            for line in stream.map_while(std::io::Result::ok) {
                let now = Instant::now();
                if let Ok(event) = serde_json::from_str(&line)
                    && send.send((now, event)).is_err()
                {
                    break;
                }
            }
        });
        Ok(api)
    }

    /// Creates a Pod; the time until the watch shows it Running.
    fn run_pod(&mut self, fleet: &Fleet, name: &str) -> Result<Duration> {
        self.create_and_wait(fleet, &pod(name), "Running", |it| {
            it["status"]["phase"] == "Running"
        })
    }

    /// Creates an object that the watch does not show.
    pub(super) fn create(&self, path: &str, object: &Value) -> Result<()> {
        let answer = http::request(self.address, "POST", path, &object.to_string(), PATIENCE)?;
        match answer.status {
            201 | 409 => Ok(()),
            status => bail!("creating {}: status {status}: {}", object["kind"], answer.body),
        }
    }

    /// Creates a Pod; the time until the watch shows it as it `is` to be.
    pub(super) fn create_and_wait(
        &mut self,
        fleet: &Fleet,
        pod: &Value,
        state: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Duration> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let body = pod.to_string();
        let begun = Instant::now();
        let answer = http::request(self.address, "POST", PATH, &body, PATIENCE)?;
        if answer.status != 201 {
            bail!(
                "creating the pod {name}: status {}: {}",
                answer.status,
                answer.body
            );
        }
        while begun.elapsed() < PATIENCE {
            if fleet.interrupt().is_set() {
                bail!("interrupted");
            }
            let Ok((at, event)) = self.events.recv_timeout(Duration::from_millis(200)) else {
                continue;
            };
            let object = &event["object"];
            if object["metadata"]["name"] == name && is(object) {
                return Ok(at.duration_since(begun));
            }
        }
        bail!(
            "the watch did not show the pod {name} {state} within {} s",
            PATIENCE.as_secs()
        )
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if self.proxy.kill().is_ok() {
            drop(self.proxy.wait());
        }
    }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": "docker.io/library/busybox:latest",
                "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"],
            }],
        },
    })
}

/// The shims of one node: their Pods' directories lie in its run directory. Other nodes may run on this machine.
fn shims(run_dir: &Path) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").context("cannot read /proc")?;
    let mut found: Vec<u32> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let words = command_line(*pid);
            let is_shim = words.get(1).is_some_and(|word| word == "shim");
            is_shim && words.iter().any(|word| Path::new(word).starts_with(run_dir))
        })
        .collect();
    found.sort_unstable();
    Ok(found)
}

fn command_line(pid: u32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn pss_kib(pid: u32) -> Result<u64> {
    proc_number(pid, "smaps_rollup", "Pss:")
}

fn write_bytes(pid: u32) -> Result<u64> {
    proc_number(pid, "io", "write_bytes:")
}

fn proc_number(pid: u32, file: &str, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    number(&text, key).with_context(|| format!("{path} has no {key}"))
}

fn number(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_from_the_log() {
        let log = "INFO pod started first_process_us=12500 pod=a\nother\nINFO first_process_us=9000\nfirst_process_us=x";
        assert_eq!(marked(log), [12.5, 9.0]);
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 5 0 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a"), None);
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
    }

    #[test]
    fn the_kernels_figures_are_found() {
        let rollup =
            "5600-7fff ---p 00000000 00:00 0 [rollup]\nRss:     3000 kB\nPss:     1234 kB\nPss_Dirty: 9 kB\n";
        assert_eq!(number(rollup, "Pss:"), Some(1234));
        assert_eq!(
            number(
                "rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 0\n",
                "write_bytes:"
            ),
            Some(4096)
        );
        assert_eq!(number("", "Pss:"), None);
        assert!(pss_kib(std::process::id()).unwrap() > 0);
    }
}
