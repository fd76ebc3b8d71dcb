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

/// Cuts the board's power so often, at moments that `seed` chooses, and looks each time whether something was lost.
pub(crate) fn cuts(workspace: &Workspace, count: &str, seed: Option<&str>) -> Result<()> {
    for (what, text) in [("--cuts", Some(count)), ("--seed", seed)] {
        if text.is_some_and(|it| it.parse::<u64>().is_err()) {
            bail!("{what} takes a number");
        }
    }
    println!("==> setting up");
    setup::packages(&setup::missing(setup::TEST))?;
    setup::rust(workspace)?;
    setup::nextest(workspace)?;
    println!("==> building");
    test::build(workspace)?;
    super::prepare(workspace)?;
    let filter = [
        "--package",
        "skiff-tests",
        "--test",
        "board",
        "--run-ignored",
        "only",
        "--no-capture",
        "--",
        "as_many_cuts_as_asked_for",
    ];
    let more = [("SKIFF_BOARD_CUTS", Some(count)), ("SKIFF_BOARD_SEED", seed)];
    let more: Vec<(&str, &str)> = more
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    let filter: Vec<String> = filter.iter().map(ToString::to_string).collect();
    let (passed, _) = test::nextest(workspace, &filter, &more)?;
    if !passed {
        bail!("the run of cuts failed");
    }
    Ok(())
}
