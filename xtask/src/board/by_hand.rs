//! The board for people: a console on this terminal beside a server to talk to, and the long run of power cuts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::fleet::{Binaries, Fleet, Interrupt};
use crate::setup;
use crate::test;
use crate::workspace::Workspace;

/// How the guest finds this machine's loopback (QEMU's user network).
const HOST: &str = "10.0.2.2";

/// The node's name.
const NODE: &str = "board";

/// Starts a server here and the board as its node, with the board's console on this terminal.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    println!("==> setting up");
    setup::packages(&setup::missing(setup::TEST))?;
    setup::rust(workspace)?;
    let kubectl = setup::kubectl(workspace)?;
    println!("==> building");
    test::build(workspace)?;
    let board = super::prepare(workspace)?;
    let binaries = Binaries {
        cli: workspace.binaries("debug").join("skiff"),
        agent: workspace.binaries("debug").join("skiff-agent"),
        kubectl: kubectl.clone(),
    };
    println!("==> starting a server");
    let dir = board.dir.join("by-hand");
    let fleet = Fleet::server(&dir, "board", binaries, Interrupt::catch()?, HOST)?;
    fleet.import(&board.dir.join("images/busybox.tar"))?;
    let token = fleet.token(NODE)?;
    let disk = disk(&dir)?;
    println!(
        "\nThe board boots on this terminal. Its agent's log is /run/agent.log; Ctrl-A x cuts its power.\n\
         In another terminal:\n\n    export KUBECONFIG={}\n    {} get nodes -w\n",
        fleet.kubeconfig().display(),
        kubectl.display()
    );
    let words = format!(
        "console=ttyAMA0,115200 panic=5 quiet loglevel=4 board.token={}",
        token.trim()
    );
    let status = Command::new(board.dir.join("start"))
        .args([
            "-chardev",
            "stdio,id=s0,mux=on,signal=off",
            "-serial",
            "chardev:s0",
        ])
        .args(["-mon", "chardev=s0", "-append", &words])
        .arg("-drive")
        .arg(format!("file={},if=none,id=d0,format=raw", disk.display()))
        .args(["-device", "virtio-blk-pci,drive=d0"])
        .status()
        .context("cannot start QEMU")?;
    println!("\n==> the board is off ({status})");
    fleet.finish()
}

/// An empty ext4 file system in a file.
fn disk(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("data.img");
    command::quiet(Command::new("truncate").args(["-s", "1G"]).arg(&path))?;
    command::quiet(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&path))?;
    Ok(path)
}

/// What of the board takes long, or is a figure: tests that are ignored else.
pub(crate) enum Long<'a> {
    /// Cuts its power so often, at moments that the seed chooses, and looks each time whether something was lost.
    Cuts(&'a str, Option<&'a str>),
    /// The same while images are on their way.
    Pulls(&'a str, Option<&'a str>),
    /// Leaves it alone for so many seconds, in which nothing may be written.
    Idle(&'a str),
    /// Measures how long it takes from the agent's start until all runs.
    Boots,
}

/// Runs it to its end.
pub(crate) fn long(workspace: &Workspace, what: &Long<'_>) -> Result<()> {
    let (test, numbers) = match what {
        Long::Cuts(count, seed) => (
            "as_many_cuts_as_asked_for",
            vec![
                ("--cuts", "SKIFF_BOARD_CUTS", Some(*count)),
                ("--seed", "SKIFF_BOARD_SEED", *seed),
            ],
        ),
        Long::Pulls(count, seed) => (
            "as_many_pulls_as_asked_for",
            vec![
                ("--pulls", "SKIFF_BOARD_PULLS", Some(*count)),
                ("--seed", "SKIFF_BOARD_SEED", *seed),
            ],
        ),
        Long::Idle(seconds) => (
            "as_long_as_asked_for",
            vec![("--idle", "SKIFF_BOARD_IDLE", Some(*seconds))],
        ),
        Long::Boots => ("a_cold_boot_beside_a_bare_start", Vec::new()),
    };
    let mut more = Vec::new();
    for (option, name, value) in numbers {
        let Some(value) = value else { continue };
        if value.parse::<u64>().is_err() {
            bail!("{option} takes a number, not {value}");
        }
        more.push((name, value));
    }
    println!("==> setting up");
    setup::packages(&setup::missing(setup::TEST))?;
    setup::rust(workspace)?;
    setup::nextest(workspace)?;
    println!("==> building");
    test::build(workspace)?;
    super::prepare(workspace)?;
    let board = ["--package", "skiff-tests", "--test", "board"];
    let one = ["--run-ignored", "only", "--no-capture", "--", test];
    let filter: Vec<String> = board.iter().chain(&one).map(ToString::to_string).collect();
    match test::nextest(workspace, &filter, &more)? {
        (true, _) => Ok(()),
        (false, _) => bail!("it did not come out as it has to"),
    }
}
