//! `cargo xtask bench`: SPECIFICATION's promises as figures of this machine, beside what others cost here.
//!
//! Compare within one run only. A figure that could not be had is a row that says why, never a blank.

mod boots;
mod own;
mod peers;
mod table;
mod whole;

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::dist;
use crate::fleet::{Binaries, Fleet, Interrupt};
use crate::images;
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

use table::{Row, Verdict};

/// Starts measured for every median.
const ROUNDS: usize = 25;
/// The Pods of SPECIFICATION's memory promise.
const PODS: usize = 20;
/// Pods of the promise about a full node.
const MANY: usize = 100;
/// The idle time of SPECIFICATION's promise about flash.
const IDLE: u64 = 600;

/// What the command line may change.
pub(crate) struct Options {
    /// Install crun's and podman's packages when they are missing.
    install_peers: bool,
    /// Measure the peers and nothing of ours.
    peers_only: bool,
    /// Measure single parts of the agent, and nothing else.
    parts: bool,
    /// Seconds over which the idle node is watched.
    idle: Duration,
}

impl Options {
    /// Reads `--peers`, `--peers-only`, `--parts` and `--idle SECONDS`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self {
            install_peers: false,
            peers_only: false,
            parts: false,
            idle: Duration::from_secs(IDLE),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--peers" => options.install_peers = true,
                "--peers-only" => options.peers_only = true,
                "--parts" => options.parts = true,
                "--idle" => {
                    let value = words.next().context("--idle needs a number of seconds")?;
                    let seconds = value
                        .parse()
                        .with_context(|| format!("--idle: {value} is not a number of seconds"))?;
                    options.idle = Duration::from_secs(seconds);
                }
                other => {
                    bail!("`bench` takes --peers, --peers-only, --parts and --idle SECONDS, not {other}")
                }
            }
        }
        Ok(options)
    }
}

/// Measures everything and prints one table.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    println!("==> setting up");
    setup::packages(&setup::missing(setup::FLEET))?;
    setup::rust(workspace)?;
    if options.parts {
        return parts(workspace);
    }
    if options.install_peers && crate::command::find("podman").is_none() {
        setup::packages(&["podman"])?;
    }
    images::build(workspace)?;
    let interrupt = Interrupt::catch()?;
    println!("==> peers: {ROUNDS} starts each");
    let peers = peers::measure(workspace, &interrupt)?;
    if options.peers_only {
        return Ok(());
    }
    let kubectl = setup::kubectl(workspace)?;
    println!("==> building the release agent and the server");
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let target = dist::Target::named(&target).context("there is no recipe for this machine")?;
    let agent = dist::agent(workspace, target)?;
    test::build(workspace)?;

    let mut rows = vec![size_row(&agent)?];

    println!("==> server and node");
    let binaries = Binaries {
        cli: workspace.binaries("debug").join("skiff"),
        agent,
        kubectl,
    };
    let mut fleet = Fleet::start(
        &workspace.target().join("bench/fleet"),
        "bench",
        binaries,
        interrupt,
    )?;
    fleet.import(&workspace.images().join("busybox.tar"))?;
    rows.extend(own::measure(&mut fleet, &peers, options.idle)?);
    fleet.finish()?;

    println!();
    table::print(&rows);
    println!("\nbeside it, from start to the first byte that the container's process writes:");
    for peer in &peers {
        println!("  {peer}");
    }
    match rows
        .iter()
        .filter(|row| matches!(row.verdict, Verdict::Missed))
        .count()
    {
        0 => Ok(()),
        missed => bail!("{missed} of {} promises missed", rows.len()),
    }
}

/// What the crates measure of themselves: tests that are ignored else, built as a release is, one after the other.
fn parts(workspace: &Workspace) -> Result<()> {
    setup::nextest(workspace)?;
    images::build(workspace)?;
    let words = ["--release", "--run-ignored", "only", "--no-capture"];
    let crates = ["--package", "skiff-shim", "--package", "skiff-agent"];
    let words: Vec<String> = words.iter().chain(&crates).map(ToString::to_string).collect();
    match test::nextest(workspace, &words, &[])? {
        (true, _) => Ok(()),
        (false, line) => bail!("a part does not keep its promise: {}", line.unwrap_or_default()),
    }
}

fn size_row(agent: &std::path::Path) -> Result<Row> {
    let bytes = agent
        .metadata()
        .with_context(|| format!("cannot stat {}", agent.display()))?
        .len();
    Ok(Row::at_most(
        "agent binary",
        "MB",
        dist::MAX_BYTES as f64 / 1e6,
        bytes as f64 / 1e6,
        "",
    ))
}
