//! Small file operations whose errors name the path.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};

/// Reads a text file.
pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Makes a directory and its parents.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Removes a file or a whole directory; one that is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes `bytes` so that a reader sees the old content or the new one, never a part of it.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let put = || -> std::io::Result<()> {
        let mut file = fs::File::create(&new)?;
        file.write_all(bytes.as_ref())?;
        drop(file);
        fs::rename(&new, path)
    };
    put().with_context(|| format!("cannot write {}", path.display()))
}

/// Writes an executable file.
pub(crate) fn write_program(path: &Path, text: &str) -> Result<()> {
    write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot make {} executable", path.display()))
}

/// Makes `link` point to `target`, replacing what stood there.
pub(crate) fn link(target: &Path, link: &Path) -> Result<()> {
    remove(link)?;
    symlink(target, link).with_context(|| format!("cannot link {} to {}", link.display(), target.display()))
}

/// Copies one file with its mode.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// How long ago `path` was written; `None` when it is not there or lies in the future.
pub(crate) fn age(path: &Path) -> Option<std::time::Duration> {
    path.metadata().ok()?.modified().ok()?.elapsed().ok()
}
