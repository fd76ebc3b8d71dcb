//! Binds that libcontainer's own mounting does not cover: a part of a volume, read-only all the way down, such that see
//! later mounts of the host, or show theirs, and such that show the ids of the container's user namespace.
//!
//! Always holds: such a mount is copied by descriptor from the host's tree before this process leaves it, and put beside the
//! bundle in the container's tree only, from where libcontainer binds it; a part of a volume is looked up by the kernel,
//! beneath the volume, and bound as it was found, so no link and no rename leads out.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::mount::MsFlags;
use nix::sys::stat::Mode;

use crate::config::{ContainerConfig, IDS, Mount, MountKind, Propagation, RecursiveReadOnly};
use crate::error::{Doing, Result};
use crate::fs::{Resolve, Root};
use crate::tree::Tree;
use crate::users::Namespace;

/// Directory in the bundle where the copies are put.
const DIR: &str = "mounts";

/// The copies of one container, by the index of their mount.
#[derive(Debug)]
pub(super) struct Staged {
    dir: PathBuf,
    copies: Vec<Copy>,
    shared: bool,
}

#[derive(Debug)]
struct Copy {
    index: usize,
    tree: Tree,
    is_dir: bool,
    propagation: Propagation,
}

impl Staged {
    /// Copies what has to be. In the host's mount namespace.
    pub(super) fn take(config: &ContainerConfig, users: Option<&Namespace>) -> Result<Self> {
        let mut copies = Vec::new();
        for (index, mount) in config.mounts.iter().enumerate() {
            if needs_copy(mount) {
                copies.push(copy(index, mount, users)?);
            }
        }
        Ok(Self {
            dir: config.bundle.join(DIR),
            copies,
            shared: config
                .mounts
                .iter()
                .any(|mount| mount.propagation == Propagation::Bidirectional),
        })
    }

    /// Puts the copies where [`Staged::source`] says. In the container's mount namespace.
    pub(super) fn put(&self) -> Result<()> {
        for copy in &self.copies {
            let target = self.path(copy.index);
            if copy.is_dir {
                fs::create_dir_all(&target).doing_path("make", &target)?;
            } else {
                fs::create_dir_all(&self.dir).doing_path("make", &self.dir)?;
                fs::write(&target, "").doing_path("make", &target)?;
            }
            copy.tree.put(&target)?;
            // By path, which is ours alone here: mount_setattr(2) would ask for Linux 5.12.
            let flags = match copy.propagation {
                Propagation::Private => MsFlags::MS_PRIVATE,
                Propagation::HostToContainer => MsFlags::MS_SLAVE,
                // The copy of a shared mount is its peer.
                Propagation::Bidirectional => continue,
            };
            let none = None::<&str>;
            nix::mount::mount(none, &target, none, MsFlags::MS_REC | flags, none)
                .doing_path("set the propagation of", &target)?;
        }
        Ok(())
    }

    /// What libcontainer binds for a mount.
    pub(super) fn source(&self, index: usize) -> Option<PathBuf> {
        let copied = self.copies.iter().any(|copy| copy.index == index);
        copied.then(|| self.path(index))
    }

    /// Whether a mount is to show the container's later mounts to the host.
    pub(super) fn shared(&self) -> bool {
        self.shared
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(index.to_string())
    }
}

fn needs_copy(mount: &Mount) -> bool {
    mount.kind == MountKind::Bind
        && (shows_ids(mount)
            || mount.sub_path.is_some()
            || mount.propagation != Propagation::Private
            || (mount.read_only && mount.recursive_read_only != RecursiveReadOnly::Disabled))
}

fn shows_ids(mount: &Mount) -> bool {
    mount.options.iter().any(|it| it == IDS)
}

fn copy(index: usize, mount: &Mount, users: Option<&Namespace>) -> Result<Copy> {
    let (tree, is_dir) = match &mount.sub_path {
        Some(part) => {
            let found = open_part(&mount.source, part)?;
            let is_dir = fs::File::from(found.try_clone().doing_path("open", part)?)
                .metadata()
                .doing_path("look at", part)?
                .is_dir();
            (Tree::of_opened(found.as_fd())?, is_dir)
        }
        None => {
            let metadata = fs::metadata(&mount.source).doing_path("look at", &mount.source)?;
            (Tree::of(&mount.source)?, metadata.is_dir())
        }
    };
    if mount.read_only {
        match (mount.recursive_read_only, tree_read_only(mount, &tree)) {
            (RecursiveReadOnly::IfPossible, Err(error)) if error.is(libc::ENOSYS) => {}
            (_, result) => result?,
        }
    }
    if shows_ids(mount) {
        let what = "map the ids of (hostUsers: false)";
        let users = users.ok_or_else(|| std::io::Error::other("the container has no user namespace"));
        let users = users.doing_path(what, &mount.destination)?;
        tree.map_ids(users.as_fd()).doing_path(what, &mount.destination)?;
    }
    Ok(Copy {
        index,
        tree,
        is_dir,
        propagation: mount.propagation,
    })
}

fn tree_read_only(mount: &Mount, tree: &Tree) -> Result<()> {
    match mount.recursive_read_only {
        // libcontainer makes the mount itself read-only.
        RecursiveReadOnly::Disabled => Ok(()),
        RecursiveReadOnly::IfPossible | RecursiveReadOnly::Enabled => tree.make_read_only(),
    }
}

/// Opens a part of a volume, making directories that are missing with the volume's own mode, as a kubelet does.
fn open_part(volume: &Path, part: &Path) -> Result<OwnedFd> {
    let root = Root::open(volume)?;
    let mode = fs::metadata(volume).doing_path("look at", volume)?.mode() & 0o7777;
    let mut parent = root.open_at(
        Path::new("."),
        libc::O_PATH | libc::O_DIRECTORY,
        0,
        Resolve::Beneath,
    )?;
    let mut so_far = PathBuf::new();
    for component in part.components() {
        let name = match component {
            Component::CurDir => continue,
            Component::Normal(name) => name,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                let cause = std::io::Error::from_raw_os_error(libc::EXDEV);
                return Err(cause).doing_path("mount the part", part);
            }
        };
        so_far.push(name);
        parent = match root.open_at(&so_far, libc::O_PATH, 0, Resolve::Beneath) {
            Err(error) if error.is(libc::ENOENT) => {
                let before = nix::sys::stat::umask(Mode::empty());
                let made = nix::sys::stat::mkdirat(
                    Some(parent.as_raw_fd()),
                    name,
                    Mode::from_bits_retain(mode as libc::mode_t),
                );
                nix::sys::stat::umask(before);
                made.doing_path("make", &volume.join(&so_far))?;
                root.open_at(&so_far, libc::O_PATH, 0, Resolve::Beneath)?
            }
            found => found?,
        };
    }
    Ok(parent.into())
}
