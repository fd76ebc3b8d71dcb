//! Where a command that is run in a container belongs: with the container's first process in each hierarchy, and in a
//! cgroup of its own in the one by which processes are found and killed.
//!
//! Always holds: the container's limits hold for the command; what it starts is found in its own cgroup.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::{Cgroups, Version};
use crate::error::{Doing, Result};

/// The files that a process is written to, opened while the host's are in reach.
#[derive(Debug)]
pub(crate) struct Membership {
    files: Vec<(PathBuf, File)>,
    unified: Option<File>,
}

impl Membership {
    /// The v2 cgroup, into which a process can be cloned.
    pub(crate) fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves the calling process.
    pub(crate) fn join(&self) -> Result<()> {
        for (path, mut file) in self.files.iter().map(|(path, file)| (path, file)) {
            file.write_all(b"0").doing_path("write", path)?;
        }
        Ok(())
    }
}

impl Cgroups {
    /// Makes `group`, a cgroup directly below that of a container, for a command that is to run with the process `init`.
    ///
    /// # Errors
    /// When the container's cgroup is gone, or the first process is not in it.
    pub(crate) fn membership(&self, init: i32, container: &str, group: &str) -> Result<Membership> {
        let own = self
            .tracking_dir(group)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
            .doing("make cgroup", group)?;
        match fs::create_dir(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).doing_path("make cgroup", &own);
            }
            _ => {}
        }
        let mut files = vec![open_list(&own)?];
        let unified = match self.version {
            Version::V2 => Some(File::open(&own).doing_path("open", &own)?),
            Version::V1 | Version::Hybrid => {
                let tracking = self.tracking_dir(container);
                let others = self.dirs_of(init, container)?;
                let others = others.iter().filter(|dir| Some(*dir) != tracking.as_ref());
                for dir in others {
                    files.push(open_list(dir)?);
                }
                None
            }
        };
        Ok(Membership { files, unified })
    }

    /// The directories of the v1 hierarchies in which a process is in this cgroup.
    fn dirs_of(&self, pid: i32, path: &str) -> Result<Vec<PathBuf>> {
        let file = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&file).doing("read", &file)?;
        let mut dirs = Vec::new();
        for line in text.lines() {
            let Some((controllers, at)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':'))
            else {
                continue;
            };
            if at.trim_start_matches('/') != path.trim_start_matches('/') {
                continue;
            }
            let together = self.root.join(controllers);
            let first = controllers.split(',').next().unwrap_or_default();
            let mount = match first.strip_prefix("name=") {
                Some(name) => self.root.join(name),
                None if together.exists() => together,
                None => self.v1_mount(first),
            };
            dirs.push(mount.join(path.trim_start_matches('/')));
        }
        Ok(dirs)
    }
}

fn open_list(dir: &Path) -> Result<(PathBuf, File)> {
    let path = dir.join("cgroup.procs");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .doing_path("open", &path)?;
    Ok((path, file))
}
