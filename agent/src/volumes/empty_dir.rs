//! emptyDir volumes: a directory on disk, or memory.
//!
//! Always holds: what is whole is not touched again, for it belongs to the containers; what is there half made is
//! finished.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

/// For everybody, as Kubernetes has it.
const MODE: u32 = 0o777;

/// What makes new files belong to the directory's group.
const SETGID: u32 = 0o2000;

/// A directory that anybody may write to, of the group where there is one.
pub(crate) fn on_disk(path: &Path, group: Option<u32>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    // A volume's name has no dot, so this is no other volume. With the rename it is there and open to all at once.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}"));
    fs::create_dir_all(&new)?;
    own(&new, MODE, group)?;
    fs::rename(new, path)
}

/// A directory with a tmpfs on it; one without is not yet the volume.
pub(crate) fn in_memory(path: &Path, bytes: u64, group: Option<u32>) -> Result<(), String> {
    let (path, new) = super::mount_once(path, |path| skiff_sys::volume::memory(path, bytes))?;
    if !new {
        return Ok(());
    }
    own(&path, MODE | 0o1000, group).map_err(|error| format!("{}: {error}", path.display()))
}

fn own(path: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    let setgid = if group.is_some() {
        chown(path, None, group)?;
        SETGID
    } else {
        0
    };
    fs::set_permissions(path, Permissions::from_mode(mode | setgid))
}

/// Bytes of memory that the volume may take: what it asks for, but no more than the Pod's own limit or what all Pods of
/// the node may use. To the kernel 0 would mean no bound.
///
/// Source: Kubernetes documentation, "Volumes", emptyDir: without a size it is sized to the node's allocatable memory.
#[must_use]
pub(crate) fn memory_size(asked: Option<u64>, pod_limit: Option<u64>, allocatable: u64) -> u64 {
    [asked, pod_limit]
        .into_iter()
        .flatten()
        .filter(|bytes| *bytes > 0)
        .fold(allocatable.max(1), u64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_half_made_directory_is_finished_and_a_whole_one_left_alone() {
        for (group, expected) in [(None, 0o777), (Some(4242), 0o2777)] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("volumes/v");
            // Made, but not open to all yet.
            fs::create_dir_all(dir.path().join("volumes/.v")).unwrap();
            on_disk(&path, group).unwrap();
            assert_eq!(mode(&path), expected);
            assert_eq!(fs::metadata(&path).unwrap().gid(), group.unwrap_or(0));
            assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 1);
            // From now on its mode is the containers' choice.
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            on_disk(&path, group).unwrap();
            assert_eq!(mode(&path), 0o700);
        }
    }

    #[test]
    fn a_directory_without_its_tmpfs_is_no_memory_volume() {
        for (group, expected) in [(None, 0o1777), (Some(4242), 0o3777)] {
            let dir = tempfile::tempdir().unwrap();
            let real = dir.path().join("real");
            let path = real.join("v");
            fs::create_dir_all(&path).unwrap();
            let through = dir.path().join("link");
            symlink(&real, &through).unwrap();
            in_memory(&path, 1 << 20, group).unwrap();
            let found = (skiff_sys::fs::is_tmpfs(&path).unwrap(), mode(&path));
            fs::write(path.join("kept"), "1").unwrap();
            let too_much = fs::write(path.join("big"), vec![0; 2 << 20]).is_err();
            for again in [&path, &through.join("v")] {
                in_memory(again, 1 << 20, group).unwrap();
            }
            let (mounts, kept) = (
                skiff_sys::mount::mounts_under(dir.path()),
                path.join("kept").exists(),
            );
            skiff_sys::mount::unmount_all_under(dir.path()).unwrap();
            assert_eq!(found, (true, expected));
            assert_eq!(mounts.unwrap(), [path]);
            assert!(kept, "what is in it stays visible");
            assert!(too_much, "its size is bounded");
        }
    }

    #[test]
    fn memory_is_bounded_by_the_least_of_all() {
        for (asked, pod, expected) in [
            (None, None, 100),
            (Some(0), None, 100),
            (Some(10), None, 10),
            (Some(1000), None, 100),
            (None, Some(50), 50),
            (Some(10), Some(50), 10),
            (Some(70), Some(50), 50),
            (None, Some(0), 100),
        ] {
            assert_eq!(memory_size(asked, pod, 100), expected, "{asked:?} {pod:?}");
        }
    }
}
