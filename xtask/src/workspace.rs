//! Where things are: the repository's root and the directories under `target/` that xtask owns.
//!
//! Nothing outside `target/` is ever written by a command of this crate.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The repository, found from the place where this crate was compiled.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// Finds the repository: cargo says where when it runs us; else from the current directory upwards.
    pub(crate) fn find() -> Result<Self> {
        let start = match std::env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::current_dir().context("cannot tell the current directory")?,
        };
        let root = start
            .ancestors()
            .find(|dir| dir.join("rust-toolchain.toml").is_file() && dir.join("Cargo.lock").is_file())
            .with_context(|| format!("{} is not inside the repository", start.display()))?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// The directory of the workspace's `Cargo.toml`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `target/`, or what `CARGO_TARGET_DIR` says.
    pub(crate) fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// Programs that were fetched or built for us.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target().join("tools")
    }

    /// The stand-in images.
    pub(crate) fn images(&self) -> PathBuf {
        self.target().join("images")
    }

    /// The binaries of one profile, for the host.
    pub(crate) fn binaries(&self, profile: &str) -> PathBuf {
        self.target().join(profile)
    }

    /// Binaries of the release after this one, for tests of an upgrade.
    pub(crate) fn next(&self) -> PathBuf {
        self.target().join("next")
    }

    /// `path` as it reads from the root, for messages.
    pub(crate) fn shorten<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}
