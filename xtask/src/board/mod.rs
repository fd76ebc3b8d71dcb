//! The emulated board: QEMU's 64-bit ARM machine with Debian's kernel, cgroup v2 alone and a minimal root with the agent.
//!
//! Everything is under `target/board`: `vmlinuz`, `root.cpio` and `start`, a script that is the machine. The tests of
//! `tests/tests/board` add a disk and a console to it, and so does `cargo xtask board` for people.

mod by_hand;
mod kernel;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::debian::{Suite, Unpacked};
use crate::dist;
use crate::files;
use crate::images::{self, Layer};
use crate::setup;
use crate::workspace::Workspace;

pub(crate) use by_hand::{Long, long, run};
use kernel::Kernel;

/// The suite whose kernel is used.
const SUITE: &str = "trixie";

/// Debian's name of the board's architecture.
const ARCHITECTURE: &str = "arm64";

/// What the agent is built for.
const TARGET: &str = "aarch64-unknown-linux-musl";

/// A board that can be started.
pub(crate) struct Board {
    /// The directory with `start`, and images for the board under `images`.
    pub(crate) dir: PathBuf,
}

/// Where the board is.
pub(crate) fn dir(workspace: &Workspace) -> PathBuf {
    workspace.target().join("board")
}

/// Fetches and builds all that the board is made of; what is there already is kept.
pub(crate) fn prepare(workspace: &Workspace) -> Result<Board> {
    let dir = dir(workspace);
    files::make_dir(&dir)?;
    let foreign = Suite::foreign(workspace, SUITE, ARCHITECTURE)?;
    let kernel = Kernel::of(&foreign.unpack(&["linux-image-cloud-arm64"])?)?;
    let busybox = foreign.unpack(&["busybox-static"])?;
    let qemu = setup::emulator(workspace)?;
    let target = dist::Target::named(TARGET).context("there is no recipe for the board")?;
    let agent = dist::agent(workspace, target)?;
    let unsynced = dist::build(workspace, target, "skiff-tests", "unsynced")?;
    // What busybox can do, asked of this machine's own: the foreign one does not run here.
    let applets = images::applets(&Suite::named(workspace, SUITE)?.unpack(&["busybox-static"])?)?;
    let mut root = root(&kernel, &busybox, &applets)?;
    root.copy("bin/skiff-agent", &agent)?;
    root.copy("bin/unsynced", &unsynced)?;
    files::copy(kernel.image(), &dir.join("vmlinuz"))?;
    files::write(&dir.join("root.cpio"), root.to_cpio()?)?;
    files::write_program(&dir.join("start"), &start(&qemu, &dir))?;
    images::for_board(&dir.join("images"), &busybox, &applets)?;
    Ok(Board { dir })
}

/// The root file system without programs of ours: busybox, the modules and process 1.
fn root(kernel: &Kernel, busybox: &Unpacked, applets: &[String]) -> Result<Layer> {
    let mut root = Layer::default();
    for dir in ["dev", "proc", "sys", "new", "run", "tmp", "root"] {
        root.dir(dir, 0o755, 0);
    }
    root.copy("bin/busybox", &busybox.resolve("/bin/busybox")?)?;
    for applet in applets.iter().filter(|it| *it != "busybox") {
        root.link(&format!("bin/{applet}"), "busybox");
    }
    root.link("sbin", "bin");
    root.script("init", include_str!("init.sh"));
    root.script("up", include_str!("up.sh"));
    root.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    root.text("etc/group", "root:x:0:\n");
    // The prompt parts what a command printed from what it is answered with.
    root.text("etc/profile", "export PATH=/bin\nPS1='board# '\n");
    let modules = kernel
        .modules()
        .context("cannot collect the board's kernel modules")?;
    let mut order = String::new();
    for (name, bytes) in modules {
        order.push_str(&name);
        order.push('\n');
        root.file(&format!("lib/modules/{name}.ko"), 0o644, bytes);
    }
    root.text("lib/modules/order", &order);
    Ok(root)
}

/// The machine as a script; the caller adds disk, console and kernel words.
fn start(qemu: &Path, dir: &Path) -> String {
    format!(
        "#!/bin/sh\n\
         # The emulated board. Memory as a small Pi has it; everything that differs between starts is in the arguments.\n\
         exec '{qemu}' -nodefaults -display none -M virt -cpu cortex-a72 -accel tcg,thread=multi \\\n    \
         -m \"${{BOARD_MEMORY:-256M}}\" -smp 2 -kernel '{dir}/vmlinuz' -initrd '{dir}/root.cpio' \\\n    \
         -netdev user,id=n0 -device virtio-net-pci,netdev=n0,romfile= \"$@\"\n",
        qemu = qemu.display(),
        dir = dir.display(),
    )
}
