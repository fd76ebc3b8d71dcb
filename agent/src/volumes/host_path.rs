//! Paths of the node: what must be there, and what is made where it is missing.
//!
//! Source: Kubernetes documentation, "Volumes", hostPath volume types. Always holds: nothing that is there is changed.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use skiff_protocol::wire::spec::HostPathType;

/// Modes of what is made, as a kubelet makes it.
const DIRECTORY: u32 = 0o755;
const FILE: u32 = 0o644;

/// Checks a path against its type.
///
/// # Errors
/// In a kubelet's words.
pub(crate) fn prepare(path: &Path, kind: HostPathType) -> Result<(), String> {
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let Some(found) = found else {
        let made = match kind {
            // What a container runtime does with the source of a bind mount that nobody asked to be checked.
            HostPathType::Unchecked | HostPathType::DirectoryOrCreate => directory(path),
            HostPathType::FileOrCreate => file(path),
            _ => return Err(failed(path, kind)),
        };
        return made.map_err(|error| format!("{}: {error}", path.display()));
    };
    if is(&found, kind) {
        Ok(())
    } else {
        Err(failed(path, kind))
    }
}

fn is(found: &Metadata, kind: HostPathType) -> bool {
    match kind {
        HostPathType::Unchecked => true,
        HostPathType::DirectoryOrCreate | HostPathType::Directory => found.is_dir(),
        HostPathType::FileOrCreate | HostPathType::File => !found.is_dir(),
        HostPathType::Socket => found.file_type().is_socket(),
        HostPathType::CharDevice => found.file_type().is_char_device(),
        HostPathType::BlockDevice => found.file_type().is_block_device(),
    }
}

fn failed(path: &Path, kind: HostPathType) -> String {
    let what = match kind {
        HostPathType::Unchecked | HostPathType::DirectoryOrCreate | HostPathType::Directory => "a directory",
        HostPathType::FileOrCreate | HostPathType::File => "a file",
        HostPathType::Socket => "a socket file",
        HostPathType::CharDevice => "a character device",
        HostPathType::BlockDevice => "a block device",
    };
    format!("hostPath type check failed: {} is not {what}", path.display())
}

/// Makes the directory and those above it, whatever the umask.
fn directory(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|it| !it.exists()) {
        directory(parent)?;
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(DIRECTORY))
}

/// Makes the file; the directory that it lies in is not made, as documented.
fn file(path: &Path) -> io::Result<()> {
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE)
        .open(path)?;
    made.set_permissions(Permissions::from_mode(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn each_type_checks_and_makes_what_is_documented() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "kept").unwrap();
        symlink("dir", at("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let null = Path::new("/dev/null").to_owned();
        let block = fs::read_dir("/dev").unwrap().find_map(|it| {
            let it = it.unwrap();
            it.file_type().unwrap().is_block_device().then(|| it.path())
        });
        let mut cases = vec![
            (HostPathType::Unchecked, at("dir"), None),
            (HostPathType::Unchecked, at("file"), None),
            (HostPathType::Unchecked, at("new-unchecked/deep"), None),
            (HostPathType::Directory, at("dir"), None),
            (HostPathType::Directory, at("link"), None),
            (HostPathType::Directory, at("file"), Some("a directory")),
            (HostPathType::Directory, at("no"), Some("a directory")),
            (HostPathType::DirectoryOrCreate, at("new-dir/deep"), None),
            (HostPathType::DirectoryOrCreate, at("file"), Some("a directory")),
            (HostPathType::File, at("file"), None),
            (HostPathType::File, at("dir"), Some("a file")),
            (HostPathType::File, at("no"), Some("a file")),
            (HostPathType::FileOrCreate, at("new-file"), None),
            (HostPathType::FileOrCreate, at("dir"), Some("a file")),
            (HostPathType::Socket, at("socket"), None),
            (HostPathType::Socket, at("file"), Some("a socket file")),
            (HostPathType::CharDevice, null.clone(), None),
            (HostPathType::CharDevice, at("dir"), Some("a character device")),
            (HostPathType::BlockDevice, null, Some("a block device")),
        ];
        cases.extend(block.map(|path| (HostPathType::BlockDevice, path, None)));
        for (kind, path, expected) in cases {
            let expected =
                expected.map(|what| format!("hostPath type check failed: {} is not {what}", path.display()));
            assert_eq!(
                prepare(&path, kind).err(),
                expected,
                "{kind:?} {}",
                path.display()
            );
        }
        let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o7777;
        for name in ["new-dir", "new-dir/deep", "new-unchecked"] {
            assert_eq!(mode(name), 0o755, "{name}");
        }
        assert_eq!(mode("new-file"), 0o644);
        assert_eq!(fs::read(at("file")).unwrap(), b"kept");
        let error = prepare(&at("no/file"), HostPathType::FileOrCreate).unwrap_err();
        assert!(
            error.ends_with("No such file or directory (os error 2)"),
            "{error}"
        );
    }
}
