//! File system calls that the standard library lacks: whole-filesystem sync, free space, and path resolution that cannot
//! leave a root.
//!
//! Always holds: a path given to [`Root`] is resolved by the kernel inside that root, symbolic links included; a hostile
//! image layer cannot make it point elsewhere.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::sys::stat::Mode;

use crate::error::{Doing, Result, check};

/// `RESOLVE_*` flags of `openat2(2)`.
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_BENEATH: u64 = 0x08;
const RESOLVE_IN_ROOT: u64 = 0x10;

/// Writes everything of the filesystem that holds `fd` to its medium.
///
/// # Errors
/// When the medium fails.
pub fn syncfs(fd: &impl AsFd) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for the duration of the call.
    check(unsafe { libc::syncfs(raw) }.into())
        .doing("sync the filesystem of descriptor", raw)
        .map(drop)
}

/// Room on a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that an unprivileged process may still use.
    pub available: u64,
    /// Files (inodes) in all; 0 where the filesystem has no fixed number.
    pub files: u64,
    /// Files that may still be made.
    pub files_free: u64,
    /// Nothing can be written there, whatever room there is.
    pub read_only: bool,
}

/// Room on the filesystem that holds `path`.
///
/// # Errors
/// When there is no such path.
pub fn space(path: &Path) -> Result<Space> {
    let stat = nix::sys::statvfs::statvfs(path).doing_path("measure the filesystem of", path)?;
    let unit = stat.fragment_size() as u64;
    Ok(Space {
        total: stat.blocks() as u64 * unit,
        available: stat.blocks_available() as u64 * unit,
        files: stat.files() as u64,
        files_free: stat.files_available() as u64,
        read_only: stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
    })
}

/// Whether `path` lies on a tmpfs: in memory, gone at the next boot.
///
/// # Errors
/// When there is no such path.
pub fn is_tmpfs(path: &Path) -> Result<bool> {
    let stat = nix::sys::statfs::statfs(path).doing_path("look at the filesystem of", path)?;
    Ok(stat.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

/// Removes a directory with all that is in it; a missing one is not an error. Symbolic links are not followed.
///
/// # Errors
/// `EBUSY` when something in it is mounted.
pub fn remove_dir_all(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing_path("remove", dir),
        _ => Ok(()),
    }
}

/// How a path that points outside is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// As the container would see it: `/` and `..` end at the root.
    InRoot,
    /// As an error: `EXDEV`.
    Beneath,
}

/// A directory that resolution cannot leave.
#[derive(Debug)]
pub struct Root(OwnedFd);

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

impl Root {
    /// Opens the directory.
    ///
    /// # Errors
    /// When it is not a directory.
    pub fn open(path: &Path) -> Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
            .open(path)
            .doing_path("open", path)?;
        Ok(Self(file.into()))
    }

    /// Opens `path` under the root with `open(2)` flags; close-on-exec is added. `mode` is for files that are created.
    ///
    /// # Errors
    /// `EXDEV` when [`Resolve::Beneath`] would leave the root; `ENOSYS` before Linux 5.6.
    pub fn open_at(&self, path: &Path, flags: i32, mode: u32, resolve: Resolve) -> Result<File> {
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(io::Error::from)
            .doing_path("open", path)?;
        let creates = flags & (libc::O_CREAT | libc::O_TMPFILE) != 0;
        let how = OpenHow {
            flags: (flags | libc::O_CLOEXEC) as u64,
            mode: if creates { mode.into() } else { 0 },
            resolve: RESOLVE_NO_MAGICLINKS
                | match resolve {
                    Resolve::InRoot => RESOLVE_IN_ROOT,
                    Resolve::Beneath => RESOLVE_BENEATH,
                },
        };
        // The kernel answers EAGAIN when a rename elsewhere raced with the lookup; three tries, as the man page advises.
        for _ in 0..2 {
            match self.openat2(&name, &how) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result.doing_path("open", path),
            }
        }
        self.openat2(&name, &how).doing_path("open", path)
    }

    /// Makes a directory and its parents under the root, mode 0755, as the container would see the path. What is made
    /// belongs to the user and group `owner`, or to this process's.
    ///
    /// # Errors
    /// `ENOTDIR` when a part of it is a file.
    pub fn create_dir_all(&self, path: &Path, owner: Option<u32>) -> Result<()> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let mut parent = self.open_at(Path::new("/"), flags, 0, Resolve::InRoot)?;
        let mut so_far = PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            so_far.push(name);
            parent = match self.open_at(&so_far, flags, 0, Resolve::InRoot) {
                Err(error) if error.is(libc::ENOENT) => {
                    let made = nix::sys::stat::mkdirat(
                        Some(parent.as_raw_fd()),
                        name,
                        Mode::from_bits_retain(0o755),
                    );
                    made.doing_path("make", &so_far)?;
                    let made = self.open_at(&so_far, flags, 0, Resolve::InRoot)?;
                    if owner.is_some() {
                        std::os::unix::fs::chown(format!("/proc/self/fd/{}", made.as_raw_fd()), owner, owner)
                            .doing_path("own", &so_far)?;
                    }
                    made
                }
                found => found?,
            };
        }
        Ok(())
    }

    fn openat2(&self, name: &CString, how: &OpenHow) -> io::Result<File> {
        // SAFETY: `name` is NUL-terminated, `how` has the kernel's layout and its size is given; both outlive the call.
        let fd = check(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                self.0.as_raw_fd(),
                name.as_ptr(),
                how,
                size_of::<OpenHow>(),
            )
        })?;
        // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
        Ok(unsafe { File::from_raw_fd(fd as i32) })
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    #[test]
    fn resolution_stays_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/passwd"), "inside").unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        symlink("/etc/passwd", root.join("absolute")).unwrap();
        symlink("../../../secret", root.join("up")).unwrap();
        symlink("etc/passwd", root.join("relative")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let root = Root::open(&root).unwrap();
        let check = |path: &str, resolve, expected: std::result::Result<&str, i32>| {
            let found = root.open_at(Path::new(path), libc::O_RDONLY, 0, resolve);
            match (found, expected) {
                (Ok(mut file), Ok(text)) => {
                    let mut content = String::new();
                    file.read_to_string(&mut content).unwrap();
                    assert_eq!(content, text, "{path}");
                }
                (Err(error), Err(errno)) => assert!(error.is(errno), "{path}: {error}"),
                (found, expected) => panic!("{path} {resolve:?}: {found:?}, expected {expected:?}"),
            }
        };
        check("etc/passwd", Resolve::Beneath, Ok("inside"));
        check("relative", Resolve::Beneath, Ok("inside"));
        check("absolute", Resolve::Beneath, Err(libc::EXDEV));
        check("absolute", Resolve::InRoot, Ok("inside"));
        check("up", Resolve::Beneath, Err(libc::EXDEV));
        check("up", Resolve::InRoot, Err(libc::ENOENT));
        check("../secret", Resolve::Beneath, Err(libc::EXDEV));
        check("../secret", Resolve::InRoot, Err(libc::ENOENT));
        check("magic", Resolve::InRoot, Err(libc::ENOENT));
    }

    #[test]
    fn directories_are_made_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        fs::create_dir_all(path.join("data")).unwrap();
        symlink("/data", path.join("link")).unwrap();
        symlink("../..", path.join("up")).unwrap();
        let root = Root::open(&path).unwrap();
        for (wanted, found) in [
            ("/a/b/c", "a/b/c"),
            ("/link/x", "data/x"),
            ("/up/y", "y"),
            ("/", ""),
            ("/a", "a"),
        ] {
            root.create_dir_all(Path::new(wanted), None).unwrap();
            assert!(path.join(found).is_dir(), "{wanted}");
        }
        assert!(!dir.path().join("y").exists());
        fs::write(path.join("file"), "").unwrap();
        assert!(
            root.create_dir_all(Path::new("/file/x"), None)
                .unwrap_err()
                .is(libc::ENOTDIR)
        );
    }

    #[test]
    fn space_and_sync_answer() {
        let dir = tempfile::tempdir().unwrap();
        let space = space(dir.path()).unwrap();
        assert!(space.total >= space.available && space.available > 0);
        syncfs(&File::open(dir.path()).unwrap()).unwrap();
        assert!(
            super::space(Path::new("/no/such/path"))
                .unwrap_err()
                .to_string()
                .contains("/no/such/path")
        );
    }
}
