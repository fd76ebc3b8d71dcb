//! Mounts by descriptor: a copy of a part of the tree that is nowhere yet, its attributes, and where it is put.
//!
//! Always holds: what is mounted is what was opened, whatever has been renamed meanwhile; a copy that is never put anywhere
//! goes with its descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Doing, Result, check};

const OPEN_TREE_CLONE: libc::c_uint = 1;
const AT_RECURSIVE: libc::c_int = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A copy of a mount and those below it.
#[derive(Debug)]
pub(crate) struct Tree(OwnedFd);

impl Tree {
    /// Copies what is mounted at a path.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(io::Error::from)
            .doing_path("copy the mounts of", path)?;
        open_tree(libc::AT_FDCWD, &name, 0).doing_path("copy the mounts of", path)
    }

    /// Copies what stands at an opened file or directory.
    pub(crate) fn of_opened(opened: BorrowedFd<'_>) -> Result<Self> {
        let raw = opened.as_raw_fd();
        open_tree(raw, c"", libc::AT_EMPTY_PATH as libc::c_uint).doing("copy the mounts of descriptor", raw)
    }

    /// Makes all of it read-only; `ENOSYS` before Linux 5.12.
    pub(crate) fn make_read_only(&self) -> Result<()> {
        let attributes = Attributes {
            set: MOUNT_ATTR_RDONLY,
            ..Attributes::default()
        };
        mount_setattr(self.0.as_raw_fd(), AT_RECURSIVE, &attributes).doing("make read-only", "mounts")
    }

    /// Shows what is mounted with a user namespace's ids; what is mounted below with them too, where that can be, else as
    /// nobody's. `EINVAL` when the file system cannot do it, `ENOSYS` before Linux 5.12.
    pub(crate) fn map_ids(&self, users: BorrowedFd<'_>) -> io::Result<()> {
        let attributes = Attributes {
            set: MOUNT_ATTR_IDMAP,
            user_namespace: users.as_raw_fd() as u64,
            ..Attributes::default()
        };
        let raw = self.0.as_raw_fd();
        match mount_setattr(raw, AT_RECURSIVE, &attributes) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => {
                mount_setattr(raw, 0, &attributes)
            }
            result => result,
        }
    }

    /// Puts it on a file or directory.
    pub(crate) fn put(&self, target: &Path) -> Result<()> {
        let name = CString::new(target.as_os_str().as_bytes())
            .map_err(io::Error::from)
            .doing_path("mount on", target)?;
        // SAFETY: both names are NUL-terminated and outlive the call; the descriptor is open.
        check(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                name.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        })
        .doing_path("mount on", target)
        .map(drop)
    }
}

fn open_tree(at: i32, name: &std::ffi::CStr, flags: libc::c_uint) -> io::Result<Tree> {
    let flags = flags | OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | AT_RECURSIVE as libc::c_uint;
    // SAFETY: the name is NUL-terminated and outlives the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_open_tree, at, name.as_ptr(), flags) })?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(Tree(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

fn mount_setattr(fd: i32, flags: libc::c_int, attributes: &Attributes) -> io::Result<()> {
    // SAFETY: the attributes have the kernel's layout and their size is given; they outlive the call, as does the name.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            attributes,
            size_of::<Attributes>(),
        )
    })
    .map(drop)
}

/// Whether the kernel can make mounts read-only together with those below them.
pub(crate) fn recursive_read_only() -> bool {
    let attributes = Attributes {
        set: MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    // No mount is named: a kernel that knows the call says so.
    mount_setattr(-1, AT_RECURSIVE, &attributes).is_err_and(|error| error.raw_os_error() == Some(libc::EBADF))
}
