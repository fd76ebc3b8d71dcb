//! What a shim knows of its Pod, and where it writes it down.
//!
//! Always holds: records are written beside and renamed, so a reader sees the old one or the new one; they lie in the Pod's
//! directory, which is on tmpfs and goes with the boot, as the processes do.
//!
//! ```text
//!              Run                 operation succeeded           init exited
//!  (unknown) ──────▶ Starting ─────────────────────────▶ Running ───────────▶ Exited ──Delete──▶ (unknown)
//!                       └── operation failed ─▶ undone ─▶ (unknown)
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use skiff_sys::container::Remains;
use skiff_sys::process::{self, Ended};
use skiff_sys::{ContainerConfig, SandboxConfig, Started};

use crate::output::Output;
use crate::protocol::{ContainerState, Exit, Phase, Stamp};
use crate::{EXIT_DIR, SANDBOX_FILE};

/// One container of the Pod.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) attempt: u32,
    /// As it was asked for, without what only a start needs.
    pub(crate) config: Box<ContainerConfig>,
    pub(crate) remains: Remains,
    pub(crate) output: Output,
    pub(crate) life: Life,
}

/// Where it is in its life.
#[derive(Debug)]
pub(crate) enum Life {
    Starting,
    Running { process: Started, started_at: Stamp },
    Exited(Exit),
}

impl Container {
    /// How the protocol shows it.
    pub(crate) fn state(&self, id: &str, oom_kills: u64) -> ContainerState {
        ContainerState {
            id: id.to_owned(),
            name: self.name.clone(),
            attempt: self.attempt,
            phase: match &self.life {
                Life::Starting => Phase::Starting,
                Life::Running { process, started_at } => Phase::Running {
                    process: *process,
                    started_at: *started_at,
                },
                Life::Exited(exit) => Phase::Exited(exit.clone()),
            },
            log: self.output.state(),
            oom_kills,
        }
    }

    /// The record of its end.
    pub(crate) fn exit(&self, id: &str, started_at: Stamp, ended: Ended, oom_killed: bool) -> Exit {
        Exit {
            container: id.to_owned(),
            name: self.name.clone(),
            attempt: self.attempt,
            exit_code: ended.code(),
            signal: ended.signal(),
            oom_killed,
            started_at,
            finished_at: now(),
        }
    }
}

/// This moment on both clocks.
pub(crate) fn now() -> Stamp {
    Stamp {
        unix_ns: process::unix_ns(),
        boot_ns: process::boot_ns(),
    }
}

/// Whether a name can be that of a file of ours: no path, nothing hidden, not long.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.bytes().all(plain)
}

/// Writes a record as a whole.
pub(crate) fn store<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = postcard::to_extend(value, Vec::new()).map_err(io::Error::other)?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes)?;
    fs::rename(&fresh, path)
}

fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    postcard::from_bytes(&fs::read(path).ok()?).ok()
}

/// Where an exit is recorded.
pub(crate) fn exit_file(pod_dir: &Path, container: &str) -> PathBuf {
    pod_dir.join(EXIT_DIR).join(container)
}

/// A Pod's directory whose shim is gone.
#[derive(Debug)]
pub struct Leftover {
    /// The directory.
    pub pod_dir: PathBuf,
    /// The sandbox that the shim had made, if it had.
    pub sandbox: Option<SandboxConfig>,
    /// Exits that it had recorded.
    pub exits: Vec<Exit>,
}

/// Finds the Pods below `pods_dir` that no shim answers for.
///
/// # Errors
/// When the directory cannot be listed; a missing one has no Pods.
pub fn collect(pods_dir: &Path) -> io::Result<Vec<Leftover>> {
    let entries = match fs::read_dir(pods_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let pod_dir = entry?.path();
        if !pod_dir.is_dir()
            || std::os::unix::net::UnixStream::connect(pod_dir.join(crate::SOCKET_NAME)).is_ok()
        {
            continue;
        }
        let mut exits: Vec<Exit> = fs::read_dir(pod_dir.join(EXIT_DIR))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                entry
                    .path()
                    .extension()
                    .is_none_or(|extension| extension != "new")
            })
            .filter_map(|entry| load(&entry.path()))
            .collect();
        exits.sort_by(|a, b| a.container.cmp(&b.container));
        found.push(Leftover {
            sandbox: load(&pod_dir.join(SANDBOX_FILE)),
            pod_dir,
            exits,
        });
    }
    found.sort_by(|a, b| a.pod_dir.cmp(&b.pod_dir));
    Ok(found)
}

impl Leftover {
    /// Kills what is left of the Pod and removes its sandbox, mounts and directory.
    ///
    /// # Errors
    /// With the first step that failed; it can be repeated.
    pub fn remove(&self) -> skiff_sys::Result<()> {
        if let Some(sandbox) = &self.sandbox {
            let cgroups = skiff_sys::cgroup::Cgroups::detect(Path::new(skiff_sys::cgroup::ROOT))?;
            skiff_sys::sandbox::destroy(sandbox, &cgroups)?;
        }
        skiff_sys::mount::unmount_all_under(&self.pod_dir)?;
        skiff_sys::fs::remove_dir_all(&self.pod_dir)
    }
}
