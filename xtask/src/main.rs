//! `cargo xtask <command>`: the commands that README names. Plain code, few dependencies: it compiles before all else.
//!
//! A command sets up by itself what it needs, says what it does, and ends with an error that a person can act on.

mod bench;
mod board;
mod command;
mod debian;
mod demo;
mod dist;
mod elf;
mod files;
mod fleet;
mod http;
mod images;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

use board::Long;
use workspace::Workspace;

const USAGE: &str = "\
usage: cargo xtask <command>

  demo [--once]                    server, broker and a node here: apply examples/, show pods, logs, an answer
  test [--only STEP] [-- FILTER…]  every check: fmt, clippy, deny, tidy, images, unit and end-to-end tests
  dist [--target TARGET | --all] [--unit-tests]
                                   the static agent under target/dist, checked and run; or its unit tests, run as that
                                   target's programs
  board                            an emulated ARM board as a node of a server here, its console on this terminal
  board --cuts N [--seed N]        cut its power so often; nothing that was acknowledged may be lost
  board --pulls N [--seed N]       the same while images are on their way
  board --idle SECONDS             leave it alone with 20 Pods for so long; nothing may be written
  board --boots                    cold boots with 20 Pods, beside a bare start of the same processes
  bench [--peers] [--peers-only | --parts] [--idle SECONDS]
                                   the promises as figures, beside crun, podman and a bare clone and exec;
                                   --peers installs podman, --peers-only leaves out our own figures;
                                   --parts measures single parts of the agent instead
  images                           the stand-in images under target/images
  tidy                             our own checks of the sources
  setup                            what `test` needs, without testing
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let workspace = Workspace::find()?;
    match words.as_slice() {
        ["images"] => {
            let dir = images::build(&workspace)?;
            println!("images are in {}", workspace.shorten(&dir).display());
            Ok(())
        }
        ["tidy"] => tidy::check(&workspace),
        ["setup"] => {
            setup::become_root()?;
            test::all(&workspace, Some("setup"), &[])
        }
        ["demo"] | ["demo", "--once"] => {
            setup::become_root()?;
            demo::run(&workspace, words.len() == 2)
        }
        ["board"] => {
            setup::become_root()?;
            board::run(&workspace)
        }
        ["board", "--cuts", count, seed @ ..] => {
            setup::become_root()?;
            board::long(&workspace, &Long::Cuts(count, seed_of(seed)?))
        }
        ["board", "--pulls", count, seed @ ..] => {
            setup::become_root()?;
            board::long(&workspace, &Long::Pulls(count, seed_of(seed)?))
        }
        ["board", "--idle", seconds] => {
            setup::become_root()?;
            board::long(&workspace, &Long::Idle(seconds))
        }
        ["board", "--boots"] => {
            setup::become_root()?;
            board::long(&workspace, &Long::Boots)
        }
        ["bench", rest @ ..] => {
            let options = bench::Options::parse(rest)?;
            setup::become_root()?;
            bench::run(&workspace, &options)
        }
        ["test", rest @ ..] => run_tests(&workspace, rest),
        ["dist", rest @ ..] => dist(&workspace, rest),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        [] => bail!("a command is missing\n\n{USAGE}"),
        [other, ..] => bail!("no command `{other}` with these arguments\n\n{USAGE}"),
    }
}

fn run_tests(workspace: &Workspace, rest: &[&str]) -> Result<()> {
    let (ours, filter) = match rest.iter().position(|word| *word == "--") {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, &[][..]),
    };
    let only = match ours {
        [] => None,
        ["--only", step] => Some(*step),
        _ => bail!("`test` takes --only STEP and -- FILTER…\n\n{USAGE}"),
    };
    if !matches!(
        only,
        Some("fmt" | "clippy" | "deny" | "tidy" | "images" | "build" | "board")
    ) {
        setup::become_root()?;
    }
    let filter: Vec<String> = filter.iter().map(ToString::to_string).collect();
    test::all(workspace, only, &filter)
}

fn dist(workspace: &Workspace, rest: &[&str]) -> Result<()> {
    let known = || dist::TARGETS.map(|it| it.name).join(", ");
    let (tests, rest) = match rest {
        [before @ .., "--unit-tests"] => (true, before),
        rest => (false, rest),
    };
    let targets: Vec<&dist::Target> = match rest {
        ["--all"] | [] => dist::TARGETS.iter().collect(),
        ["--target", name] => match dist::Target::named(name) {
            Some(target) => vec![target],
            None => bail!("no recipe for {name}; there is one for {}", known()),
        },
        _ => bail!("`dist` takes --target TARGET or --all, and --unit-tests\n\n{USAGE}"),
    };
    setup::packages(&setup::missing(setup::BUILD))?;
    for target in targets {
        if tests {
            dist::unit_tests(workspace, target)?;
            continue;
        }
        let agent = dist::agent(workspace, target)?;
        dist::prove(workspace, &agent, target)?;
    }
    Ok(())
}

/// The seed of a run that is left to chance, where one is given.
fn seed_of<'a>(words: &[&'a str]) -> Result<Option<&'a str>> {
    match words {
        [] => Ok(None),
        ["--seed", seed] => Ok(Some(seed)),
        _ => bail!("after the number only --seed N is understood"),
    }
}
