//! What it costs others here to start a process in a container: a bare clone and exec, crun, podman.
//!
//! The clock runs from starting the program to the first byte that the contained process writes to its stdout.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::command;
use crate::debian::Suite;
use crate::files;
use crate::fleet::Interrupt;
use crate::workspace::Workspace;

use super::ROUNDS;
use super::table::Spread;

/// One peer's figure, or why there is none.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) outcome: Result<Spread, String>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Ok(spread) => write!(f, "{:<28} {spread}", self.name),
            Err(why) => write!(f, "{:<28} not measured: {why}", self.name),
        }
    }
}

/// Measures every peer that can be had here; one that cannot says why.
pub(crate) fn measure(workspace: &Workspace, interrupt: &Interrupt) -> Result<Vec<Peer>> {
    let dir = workspace.target().join("bench");
    files::make_dir(&dir)?;
    let rootfs = rootfs(workspace, &dir)?;
    let found = vec![
        peer("clone + exec with namespaces", bare(&rootfs, interrupt)),
        peer(
            "crun run",
            without_hybrid(|| crun(workspace, &dir, &rootfs, interrupt)),
        ),
        peer(
            "podman run, no network",
            without_hybrid(|| podman(workspace, &dir, interrupt)),
        ),
    ];
    if interrupt.is_set() {
        bail!("interrupted");
    }
    for peer in &found {
        println!("  {peer}");
    }
    Ok(found)
}

fn peer(name: &'static str, outcome: Result<Spread>) -> Peer {
    Peer {
        name,
        outcome: outcome.map_err(|error| format!("{error:#}")),
    }
}

/// The busybox image's files, as a root directory.
fn rootfs(workspace: &Workspace, dir: &Path) -> Result<PathBuf> {
    let rootfs = dir.join("rootfs");
    files::remove(&rootfs)?;
    files::make_dir(&rootfs)?;
    let layout = workspace.images().join("busybox");
    let index = json_file(&layout.join("index.json"))?;
    let manifest = json_file(&blob(&layout, &index["manifests"][0])?)?;
    let layer = blob(&layout, &manifest["layers"][0])?;
    let file = std::fs::File::open(&layer).with_context(|| format!("cannot open {}", layer.display()))?;
    tar::Archive::new(flate2::read::GzDecoder::new(file))
        .unpack(&rootfs)
        .with_context(|| format!("cannot unpack {}", layer.display()))?;
    Ok(rootfs)
}

fn json_file(path: &Path) -> Result<Value> {
    serde_json::from_str(&files::read(path)?).with_context(|| format!("{} is not JSON", path.display()))
}

fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    let hex = digest
        .strip_prefix("sha256:")
        .with_context(|| format!("not a digest: {digest:?}"))?;
    Ok(layout.join("blobs/sha256").join(hex))
}

/// util-linux's `unshare` and `chroot`: the kernel's work and two execs, no runtime.
fn bare(rootfs: &Path, interrupt: &Interrupt) -> Result<Spread> {
    rounds(interrupt, |_| {
        let mut command = Command::new("unshare");
        command.args([
            "--fork",
            "--pid",
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            "--kill-child",
            "chroot",
        ]);
        command.arg(rootfs).args(["/bin/echo", "x"]);
        command
    })
}

/// Runs `measure` where a hybrid cgroup hierarchy looks like plain v1, in a mount namespace of one thread.
///
/// crun refuses a hybrid one whose v2 root has controllers, which is none of its fault nor ours.
fn without_hybrid<T: Send>(measure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.join("cgroup.procs").exists() {
        return measure();
    }
    let in_thread = || {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        let none: Option<&Path> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("cannot make mounts private")?;
        umount2(unified, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", unified.display()))?;
        measure()
    };
    std::thread::scope(|scope| match scope.spawn(in_thread).join() {
        Ok(outcome) => outcome,
        Err(_) => bail!("the measuring thread panicked"),
    })
}

fn crun(workspace: &Workspace, dir: &Path, rootfs: &Path, interrupt: &Interrupt) -> Result<Spread> {
    let program = workspace.tools().join("bin/crun");
    Suite::of_system(workspace)?
        .unpack(&["crun"])?
        .expose("/usr/bin/crun", &program)?;
    let bundle = dir.join("bundle");
    files::remove(&bundle)?;
    files::make_dir(&bundle)?;
    command::quiet(Command::new(&program).arg("spec").current_dir(&bundle))?;
    let path = bundle.join("config.json");
    let mut spec = json_file(&path)?;
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/bin/echo", "x"]);
    spec["root"] = json!({"path": rootfs.display().to_string(), "readonly": true});
    files::write(&path, spec.to_string())?;
    let state = dir.join("crun-state");
    rounds(interrupt, |round| {
        let mut command = Command::new(&program);
        command
            .arg("--root")
            .arg(&state)
            .args(["--cgroup-manager", "cgroupfs", "run", "--bundle"]);
        command.arg(&bundle).arg(format!("skiff-bench-{round}"));
        command
    })
}

fn podman(workspace: &Workspace, dir: &Path, interrupt: &Interrupt) -> Result<Spread> {
    let program = command::find("podman").context("podman is not installed (`--peers` installs it)")?;
    let storage = dir.join("podman");
    let base = || {
        let mut command = Command::new(&program);
        command
            .arg("--root")
            .arg(storage.join("root"))
            .arg("--runroot")
            .arg(storage.join("run"));
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        command
    };
    command::quiet(
        base()
            .arg("load")
            .arg("--quiet")
            .arg("--input")
            .arg(workspace.images().join("busybox.tar")),
    )?;
    let measured = rounds(interrupt, |_| {
        let mut command = base();
        // Its default limits are above what a process without CAP_SYS_RESOURCE may set.
        command.args([
            "run",
            "--rm",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
            "--network",
            "none",
            "docker.io/library/busybox:latest",
            "echo",
            "x",
        ]);
        command
    });
    // Layers belong to podman until it lets go of them.
    command::quiet(base().args(["system", "reset", "--force"]))?;
    files::remove(&storage)?;
    measured
}

fn rounds(interrupt: &Interrupt, mut command: impl FnMut(usize) -> Command) -> Result<Spread> {
    let mut figures = Vec::new();
    // The first two warm the caches.
    for round in 0..ROUNDS + 2 {
        if interrupt.is_set() {
            bail!("interrupted");
        }
        let took = first_byte(&mut command(round))?;
        if round >= 2 {
            figures.push(took.as_secs_f64() * 1e3);
        }
    }
    Spread::of(&figures).context("nothing was measured")
}

/// From starting `command` to the first byte of its stdout.
fn first_byte(command: &mut Command) -> Result<Duration> {
    let line = command::line(command);
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut stdout = child.stdout.take().context("a child without stdout")?;
    let mut byte = [0];
    let read = stdout
        .read(&mut byte)
        .with_context(|| format!("cannot read from `{line}`"))?;
    let took = begun.elapsed();
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for `{line}`"))?;
    if read == 0 || !output.status.success() {
        bail!(
            "`{line}` failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(took)
}
