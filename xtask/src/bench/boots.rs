//! How long the agent takes until what ran is in its hands again: after an upgrade, and after a reboot without any link.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command;
use crate::fleet::Fleet;

use super::table::{Row, Spread};

/// SPECIFICATION's numbers.
mod promise {
    pub(super) const ADOPTION_MS: f64 = 200.0;
    pub(super) const COLD_MS: f64 = 1000.0;
}

/// Pods that are taken over.
pub(super) const ADOPTED: usize = 50;

/// Pods that a cold boot starts.
pub(super) const BOOTED: usize = 20;

const ROUNDS: usize = 5;

/// What the agent writes to its log once it has found the shims: microseconds since its start.
const MARK: &str = "adopted_us=";

/// How long all Pods may take to run.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures on a fleet whose Pods are `stay-0`, `stay-1` and so on. Its server is stopped afterwards.
pub(super) fn rows(fleet: &mut Fleet, pods: usize) -> Result<Vec<Row>> {
    keep(fleet, pods, ADOPTED)?;
    let adopted = (0..ROUNDS)
        .map(|_| adoption(fleet))
        .collect::<Result<Vec<f64>>>()?;
    keep(fleet, ADOPTED, BOOTED)?;
    fleet.stop("server");
    let booted = (0..ROUNDS)
        .map(|_| cold_boot(fleet))
        .collect::<Result<Vec<f64>>>()?;
    let row = |what: String, bound, figures: &[f64]| -> Result<Row> {
        let spread = Spread::of(figures).context("nothing was measured")?;
        let note = format!("{spread} of {}", figures.len());
        Ok(Row::at_most(&what, "ms", bound, spread.median, &note))
    };
    Ok(vec![
        row(
            format!("agent start -> {ADOPTED} running pods taken over, median"),
            promise::ADOPTION_MS,
            &adopted,
        )?,
        row(
            format!("agent start without a link -> {BOOTED} pods of the journal run, median"),
            promise::COLD_MS,
            &booted,
        )?,
    ])
}

/// Deletes those from `to` on.
fn keep(fleet: &Fleet, from: usize, to: usize) -> Result<()> {
    let names: Vec<String> = (to..from).map(|it| format!("stay-{it}")).collect();
    let mut words = vec![
        "delete",
        "pods",
        "--wait=true",
        "--timeout=60s",
        "--grace-period=1",
    ];
    words.extend(names.iter().map(String::as_str));
    command::quiet(&mut fleet.kubectl(&words))
}

/// The agent ends and starts again over running Pods.
fn adoption(fleet: &mut Fleet) -> Result<f64> {
    fleet.stop("agent");
    fleet.start_agent()?;
    let figure = fleet.wait("the agent to find the Pods", PATIENCE, |fleet| {
        let log = fleet.agent_log()?;
        let Some((before, rest)) = log.split_once(MARK) else {
            return Ok(None);
        };
        if !before.contains(&format!("pods={ADOPTED} ")) {
            bail!("the agent did not find {ADOPTED} pods: {log}");
        }
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse::<f64>().ok())
    })?;
    let running = fleet.wait("the Pods to run", PATIENCE, |fleet| Ok(ask(fleet.run_dir())))?;
    if restarts(&running) > 0 || count_running(&running) != ADOPTED {
        bail!("taking over restarted something: {running}");
    }
    Ok(figure / 1e3)
}

/// Nothing is left but the journal and the images, and nobody is there to talk to.
fn cold_boot(fleet: &mut Fleet) -> Result<f64> {
    fleet.stop("agent");
    fleet.end_pods()?;
    let begun = Instant::now();
    fleet.start_agent()?;
    let run = fleet.run_dir().to_owned();
    while begun.elapsed() < PATIENCE {
        if ask(&run).is_some_and(|pods| count_running(&pods) == BOOTED) {
            return Ok(begun.elapsed().as_secs_f64() * 1e3);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bail!(
        "{BOOTED} pods do not run {} s after the start: {}",
        PATIENCE.as_secs(),
        fleet.agent_log()?
    )
}

/// What `skiff-agent pods --json` asks, without a process for each question.
fn ask(run: &Path) -> Option<Value> {
    let mut stream = UnixStream::connect(run.join("agent.sock")).ok()?;
    stream.write_all(b"pods\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn containers(pods: &Value) -> impl Iterator<Item = &Value> {
    let pods = pods.as_array().into_iter().flatten();
    pods.flat_map(|pod| pod["containers"].as_array().into_iter().flatten())
}

fn count_running(pods: &Value) -> usize {
    containers(pods).filter(|it| it["state"] == "Running").count()
}

fn restarts(pods: &Value) -> u64 {
    containers(pods)
        .filter_map(|it| it["restartCount"].as_u64())
        .sum()
}
