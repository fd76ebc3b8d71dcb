//! `cargo xtask test`: every check there is, in the order in which a mistake is cheapest to find.
//!
//! A step that fails does not stop those that do not need it; the summary names each, and nextest's line ends it.

use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::board;
use crate::command;
use crate::images;
use crate::setup::{self, TestPrograms};
use crate::tidy;
use crate::workspace::Workspace;

/// The steps, in order.
pub(crate) const STEPS: [&str; 9] = [
    "setup", "fmt", "clippy", "deny", "tidy", "images", "build", "board", "nextest",
];

/// How long the advisory database may take to answer before its check is left out.
const ADVISORIES_SECONDS: &str = "60";

enum Outcome {
    Passed,
    Failed,
}

/// Runs every step, or `only` one of them; `filter` goes to nextest.
pub(crate) fn all(workspace: &Workspace, only: Option<&str>, filter: &[String]) -> Result<()> {
    if let Some(name) = only
        && !STEPS.contains(&name)
    {
        bail!("no step `{name}`; there are: {}", STEPS.join(", "));
    }
    let begun = Instant::now();
    let mut done: Vec<(&str, Outcome, Duration)> = Vec::new();
    let mut last_line = None;
    for step in STEPS
        .into_iter()
        .filter(|step| only.is_none_or(|name| name == *step))
    {
        println!("\n==> {step} (at {})", minutes(begun.elapsed()));
        let started = Instant::now();
        let result = match step {
            "nextest" => nextest(workspace, filter, &[]).map(|(passed, line)| {
                last_line = line;
                passed
            }),
            other => one(workspace, other).map(|()| true),
        };
        let outcome = match result {
            Ok(true) => Outcome::Passed,
            Ok(false) => Outcome::Failed,
            Err(error) => {
                eprintln!("error: {step}: {error:#}");
                Outcome::Failed
            }
        };
        let stop = matches!(outcome, Outcome::Failed) && ["setup", "build", "board"].contains(&step);
        done.push((step, outcome, started.elapsed()));
        if stop {
            break;
        }
    }
    summary(&done, begun.elapsed(), last_line.as_deref())
}

fn summary(done: &[(&str, Outcome, Duration)], total: Duration, last_line: Option<&str>) -> Result<()> {
    println!("\n==> summary (at {})", minutes(total));
    for (step, outcome, took) in done {
        let word = match outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
        };
        println!("  {step:<8} {word}  {}", minutes(*took));
    }
    if let Some(line) = last_line {
        println!("{line}");
    }
    let failed: Vec<&str> = done
        .iter()
        .filter(|(_, outcome, _)| matches!(outcome, Outcome::Failed))
        .map(|(step, _, _)| *step)
        .collect();
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("failed: {}", failed.join(", "))
    }
}

fn one(workspace: &Workspace, step: &str) -> Result<()> {
    let root = workspace.root();
    match step {
        "setup" => {
            setup::packages(&setup::missing(setup::TEST))?;
            setup::rust(workspace)?;
            setup::nextest(workspace)?;
            setup::deny(workspace)?;
            TestPrograms::prepare(workspace).map(drop)
        }
        "fmt" => command::run(command::at(root, "cargo").args(["fmt", "--all", "--check"])),
        "clippy" => command::run(command::at(root, "cargo").args([
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ])),
        "deny" => deny(workspace),
        "tidy" => tidy::check(workspace),
        "images" => images::build(workspace).map(drop),
        "build" => build_next(workspace).and_then(|()| build(workspace)),
        "board" => board::prepare(workspace).map(drop),
        other => bail!("no step `{other}`"),
    }
}

/// The binaries that end-to-end tests and the demo start.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    command::run(command::at(workspace.root(), "cargo").args([
        "build",
        "--locked",
        "--package",
        "skiff",
        "--package",
        "skiff-agent",
    ]))
}

/// The agent as the release after this one may be, for tests of an upgrade. [`build`] comes after it: cargo puts both in one
/// place.
fn build_next(workspace: &Workspace) -> Result<()> {
    command::run(command::at(workspace.root(), "cargo").args([
        "build",
        "--locked",
        "--package",
        "skiff-agent",
        "--features",
        "next-version",
    ]))?;
    let built = workspace.binaries("debug").join("skiff-agent");
    let kept = workspace.next();
    std::fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
    // A copy: cargo replaces the file that it has built, and must not replace this one.
    std::fs::copy(&built, kept.join("skiff-agent"))
        .with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(())
}

fn deny(workspace: &Workspace) -> Result<()> {
    let path = setup::path(workspace)?;
    let cargo_deny = |args: &[&str]| {
        let mut command = command::at(workspace.root(), "cargo");
        command
            .env("PATH", &path)
            .args(["deny", "--log-level", "error"])
            .args(args);
        command
    };
    command::run(&mut cargo_deny(&["check", "bans", "licenses", "sources"]))?;
    let mut fetch = command::at(workspace.root(), "timeout");
    fetch.env("PATH", &path).args([
        ADVISORIES_SECONDS,
        "cargo",
        "deny",
        "--log-level",
        "error",
        "fetch",
        "db",
    ]);
    if command::succeeds(&mut fetch) {
        command::run(&mut cargo_deny(&["check", "--disable-fetch", "advisories"]))
    } else {
        println!("  advisories: skipped, their database cannot be reached from here");
        Ok(())
    }
}

/// Runs the tests, with `more` in their environment; gives back whether all passed, and nextest's own summary line.
pub(crate) fn nextest(
    workspace: &Workspace,
    filter: &[String],
    more: &[(&str, &str)],
) -> Result<(bool, Option<String>)> {
    let programs = TestPrograms::prepare(workspace)?;
    let mut command = command::at(workspace.root(), "cargo");
    command
        .args(["nextest", "run", "--locked"])
        // A filter that names packages builds only those.
        .args(if names_package(filter) {
            &[][..]
        } else {
            &["--workspace"][..]
        })
        .args(if std::io::stderr().is_terminal() {
            &["--color", "always"][..]
        } else {
            &[]
        })
        .args(filter)
        .env("PATH", setup::path(workspace)?)
        .env("SKIFF_IMAGES", workspace.images())
        .env("SKIFF_BIN_DIR", workspace.binaries("debug"))
        .env("SKIFF_NEXT_DIR", workspace.next())
        .env("SKIFF_BOARD", board::dir(workspace))
        .envs(programs.environment())
        .envs(more.iter().copied())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", command::line(&command)))?;
    let mut last = None;
    let mut boards = Boards::default();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line.context("cannot read what nextest says")?;
            eprintln!("{line}");
            boards.hear(&line, Instant::now());
            if line.contains("Summary") {
                last = Some(line);
            }
        }
    }
    let status = child.wait().context("cannot wait for nextest")?;
    if let Some(took) = boards.took() {
        println!("the emulated boards: {} tests in {}", boards.count, minutes(took));
    }
    Ok((status.success(), last))
}

/// From the start of the first test on an emulated board to the end of the last.
#[derive(Default)]
struct Boards {
    span: Option<(Instant, Instant)>,
    count: usize,
}

impl Boards {
    /// Takes note of a line of nextest's: `PASS [   1.234s] ( 1/22) skiff-tests::board …`.
    fn hear(&mut self, line: &str, now: Instant) {
        let ended = ["PASS", "FAIL", "TIMEOUT"]
            .iter()
            .any(|it| line.trim_start().starts_with(it));
        let seconds = line
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once("s]")?.0.trim().parse::<f64>().ok());
        let Some(seconds) = seconds.filter(|_| ended && line.contains(" skiff-tests::board ")) else {
            return;
        };
        let began = now.checked_sub(Duration::from_secs_f64(seconds)).unwrap_or(now);
        let first = self.span.map_or(began, |(first, _)| first.min(began));
        self.span = Some((first, now));
        self.count += 1;
    }

    fn took(&self) -> Option<Duration> {
        self.span.map(|(first, last)| last.duration_since(first))
    }
}

fn names_package(filter: &[String]) -> bool {
    filter
        .iter()
        .any(|word| word == "-p" || word.starts_with("--package"))
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boards_are_timed_from_the_first_start_to_the_last_end() {
        let mut boards = Boards::default();
        assert!(boards.took().is_none());
        let start = Instant::now() + Duration::from_secs(100);
        for (at, line) in [
            (
                10,
                "        PASS [  10.000s] ( 7/916) skiff-tests::board limits::a",
            ),
            (12, "        PASS [   1.000s] ( 8/916) skiff-tests::e2e wire::b"),
            (40, "        SLOW [> 30.000s] (───) skiff-tests::board power::c"),
            (
                50,
                "        PASS [  45.000s] (  9/916) skiff-tests::board power::c",
            ),
            (90, "        PASS [   5.000s] ( 10/916) skiff-tests::e2e wire::d"),
        ] {
            boards.hear(line, start + Duration::from_secs(at));
        }
        assert_eq!((boards.count, boards.took()), (2, Some(Duration::from_secs(50))));
    }
}
