//! `fsGroup`: whose a volume's files are.
//!
//! Source: Kubernetes documentation, "Configure a Security Context", volume permission and ownership change policy.
//! Always holds: the root of a volume comes last, so that one whose root matches was done whole.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use skiff_sys::volume::{Directories, walk};

/// The group may read and write.
const FILES: u32 = 0o660;

/// And go through directories, in which what is new is the group's.
const DIRECTORIES: u32 = 0o2770;

/// Whether the root of a volume is already as the group needs it.
#[must_use]
pub(crate) fn matches(root: &Path, group: u32) -> bool {
    fs::metadata(root).is_ok_and(|it| it.gid() == group && it.mode() & DIRECTORIES == DIRECTORIES)
}

/// Gives everything in the volume to the group, if that is at most `most` files. Says whether it was.
///
/// # Errors
/// What could not be changed.
pub(crate) fn give(root: &Path, group: u32, most: usize) -> Result<bool, String> {
    let whole = walk(root, most, Directories::Last, |found| {
        let mode = found.metadata.mode() & 0o7777;
        let wanted = mode
            | if found.metadata.is_dir() {
                DIRECTORIES
            } else {
                FILES
            };
        // What is right already costs no write.
        if found.metadata.gid() == group && (wanted == mode || found.metadata.is_symlink()) {
            return Ok(());
        }
        found.set_group(group, wanted)
    });
    whole.map_err(|error| format!("{}: {error}", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn everything_is_the_groups_the_root_last() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("v");
        fs::create_dir_all(root.join("sub")).unwrap();
        for (path, mode) in [("sub/f", 0o600), ("run", 0o4755)] {
            fs::write(root.join(path), "").unwrap();
            fs::set_permissions(root.join(path), Permissions::from_mode(mode)).unwrap();
        }
        symlink("sub/f", root.join("link")).unwrap();
        assert!(!matches(&root, 4242));
        assert!(!give(&root, 4242, 1).unwrap(), "more than it may");
        assert!(!matches(&root, 4242), "the root is last");
        assert!(give(&root, 4242, 100).unwrap());
        assert!(matches(&root, 4242) && !matches(&root, 1));
        for (path, mode) in [("", 0o2775), ("sub", 0o2775), ("sub/f", 0o660), ("run", 0o4775)] {
            let found = fs::metadata(root.join(path)).unwrap();
            assert_eq!((found.gid(), found.mode() & 0o7777), (4242, mode), "{path}");
        }
        assert_eq!(root.join("link").symlink_metadata().unwrap().gid(), 4242);
    }
}
