//! What volumes need of the kernel: memory, an image's files, and walks over trees that containers write to.
//!
//! Always holds: a walk leaves its root by no symbolic link and no mount, whatever is exchanged under it meanwhile.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, fchown, fchownat};

use crate::error::{Doing, Result};
use crate::fs::{Resolve, Root, remove_dir_all};
use crate::mount::{MAX_MOUNT_DATA, common_parent, push_path, unmount_all_under};
use crate::users;

/// Mounts a tmpfs of at most `bytes` that anybody may write to and run files from.
///
/// # Errors
/// When the kernel refuses.
pub fn memory(target: &Path, bytes: u64) -> Result<()> {
    let data = format!("size={bytes},mode=1777");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(data.as_str()))
        .doing_path("mount a tmpfs on", target)
}

/// Mounts the layers of an image, the bottom one first, as one read-only tree that nothing is run from.
/// An empty directory, `.empty`, is made beside `target`: the kernel wants two layers. The files show the ids of the user
/// namespace that is pinned at `users`, where there is one.
///
/// # Errors
/// When a layer is missing, a path holds a `:` or `,`, or there are too many layers for one page of options; when the
/// layers' file system cannot map ids.
pub fn image(layers: &[PathBuf], target: &Path, users: Option<&Path>) -> Result<()> {
    let Some(users) = users else {
        return image_of(layers, target);
    };
    let users = File::open(users).doing_path("open", users)?;
    let mut name = std::ffi::OsString::from(".layers-");
    name.push(target.file_name().unwrap_or_default());
    // The overlay keeps what it needs of them.
    let staged = target.with_file_name(name);
    let mounted = users::stage(layers, &staged, users.as_fd()).and_then(|layers| image_of(&layers, target));
    let unmounted = unmount_all_under(&staged).and_then(|()| remove_dir_all(&staged));
    mounted.and(unmounted)
}

fn image_of(layers: &[PathBuf], target: &Path) -> Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let what = "mount an image on";
    if layers.is_empty() {
        return mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some("size=4k")).doing_path(what, target);
    }
    for layer in layers {
        fs::metadata(layer).doing_path("use as a layer", layer)?;
    }
    let empty = target.with_file_name(".empty");
    fs::create_dir_all(&empty).doing_path("make", &empty)?;
    let overlay = |data: &[u8]| mount(Some("overlay"), target, Some("overlay"), flags, Some(data));
    let whole = lower_only(layers, &empty, None).doing_path(what, target)?;
    if whole.len() < MAX_MOUNT_DATA {
        return overlay(&whole).doing_path(what, target);
    }
    let base = common_parent(layers).unwrap_or_else(|| PathBuf::from("/"));
    let short = lower_only(layers, &empty, Some(&base)).doing_path(what, target)?;
    if short.len() >= MAX_MOUNT_DATA {
        let why = format!("{} layers do not fit into one page of options", layers.len());
        return Err(io::Error::other(why)).doing_path(what, target);
    }
    // Relative layers are resolved against the working directory, which all threads share but for one that says otherwise.
    let there = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(&base)?;
        overlay(&short)
    };
    let done = std::thread::scope(|scope| scope.spawn(there).join());
    done.unwrap_or(Err(nix::Error::EFAULT)).doing_path(what, target)
}

/// `lowerdir=top:…:bottom:empty`, with layers below `base` relative to it.
fn lower_only(layers: &[PathBuf], empty: &Path, base: Option<&Path>) -> io::Result<Vec<u8>> {
    let mut data = b"lowerdir=".to_vec();
    for layer in layers.iter().rev() {
        let short = base.and_then(|base| layer.strip_prefix(base).ok());
        push_path(&mut data, short.unwrap_or(layer))?;
        data.push(b':');
    }
    push_path(&mut data, empty)?;
    Ok(data)
}

/// When a directory is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Directories {
    /// Before what is in it.
    First,
    /// After everything else, the root last.
    Last,
}

/// A file that a walk came to.
#[derive(Debug)]
pub struct Found<'a> {
    /// Relative to the root; empty for the root itself.
    pub path: &'a Path,
    /// Of the file itself, also where it is a symbolic link.
    pub metadata: &'a Metadata,
    /// A directory, or the one that holds the file.
    directory: &'a File,
    /// The file's name; `None` for a directory.
    name: Option<&'a OsStr>,
}

impl Found<'_> {
    /// Gives the file to a group and sets its mode; a symbolic link has no mode.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_group(&self, gid: u32, mode: u32) -> Result<()> {
        let group = Some(Gid::from_raw(gid));
        let fd = self.directory.as_raw_fd();
        let what = "change the group of";
        let Some(name) = self.name else {
            fchown(fd, None, group).doing_path(what, self.path)?;
            return self
                .directory
                .set_permissions(Permissions::from_mode(mode))
                .doing_path("change the mode of", self.path);
        };
        fchownat(Some(fd), name, None, group, AtFlags::AT_SYMLINK_NOFOLLOW).doing_path(what, self.path)?;
        if self.metadata.is_symlink() {
            return Ok(());
        }
        // Of a file that is opened without leave to read or write, the mode is changed through its descriptor's name.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let raw = openat(Some(fd), name, flags, Mode::empty()).doing_path("open", self.path)?;
        let file = owned(raw);
        let now = file.metadata().doing_path("look at", self.path)?;
        if now.is_symlink() {
            return Ok(());
        }
        let through = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::set_permissions(through, Permissions::from_mode(mode)).doing_path("change the mode of", self.path)
    }
}

fn owned(raw: i32) -> File {
    use std::os::fd::FromRawFd;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    unsafe { File::from_raw_fd(raw) }
}

/// Shows everything in `root`, and `root` itself, on its own file system, up to `most` files. Says whether that was all.
/// What vanishes meanwhile is passed over.
///
/// # Errors
/// With the first error of `visit`, or when a directory cannot be read.
pub fn walk(
    root: &Path,
    most: usize,
    order: Directories,
    mut visit: impl FnMut(&Found<'_>) -> Result<()>,
) -> Result<bool> {
    let top = Root::open(root)?;
    let device = fs::metadata(root).doing_path("look at", root)?.dev();
    let mut pending = vec![PathBuf::new()];
    let mut later = Vec::new();
    let mut seen = 0;
    while let Some(path) = pending.pop() {
        let Some(directory) = open_dir(&top, &path)? else {
            continue;
        };
        if order == Directories::First {
            show_dir(&path, &directory, &mut visit)?;
        }
        let entries = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        for entry in entries.doing_path("read", &root.join(&path))? {
            let entry = entry.doing_path("read", &root.join(&path))?;
            let name = entry.file_name();
            let Some(metadata) = there(entry.metadata()).doing_path("look at", &path.join(&name))? else {
                continue;
            };
            seen += 1;
            if seen > most {
                return Ok(false);
            }
            if !metadata.is_dir() {
                visit(&Found {
                    path: &path.join(&name),
                    metadata: &metadata,
                    directory: &directory,
                    name: Some(&name),
                })?;
            } else if metadata.dev() == device {
                pending.push(path.join(name));
            }
        }
        if order == Directories::Last {
            later.push(path);
        }
    }
    for path in later.iter().rev() {
        if let Some(directory) = open_dir(&top, path)? {
            show_dir(path, &directory, &mut visit)?;
        }
    }
    Ok(true)
}

fn show_dir(path: &Path, directory: &File, visit: &mut impl FnMut(&Found<'_>) -> Result<()>) -> Result<()> {
    visit(&Found {
        path,
        metadata: &directory.metadata().doing_path("look at", path)?,
        directory,
        name: None,
    })
}

/// The directory, if it is still there and still one.
fn open_dir(top: &Root, path: &Path) -> Result<Option<File>> {
    let path = if path == Path::new("") {
        Path::new(".")
    } else {
        path
    };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    match top.open_at(path, flags, 0, Resolve::Beneath) {
        Err(error)
            if [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::EXDEV]
                .iter()
                .any(|it| error.is(*it)) =>
        {
            Ok(None)
        }
        found => found.map(Some),
    }
}

fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::unmount_all_under;
    use std::os::unix::fs::symlink;

    fn layers(dir: &Path, count: usize, deep: &str) -> Vec<PathBuf> {
        let make = |at: usize| {
            let layer = dir.join(deep).join(format!("layer-{at}"));
            fs::create_dir_all(&layer).unwrap();
            fs::write(layer.join("top"), at.to_string()).unwrap();
            fs::write(layer.join(format!("only-{at}")), "").unwrap();
            layer
        };
        (0..count).map(make).collect()
    }

    #[test]
    fn an_image_is_its_merged_layers_and_cannot_be_written_to() {
        let long = "a-directory-with-a-long-name-so-that-forty-of-them-do-not-fit-into-one-page-of-options";
        for (count, deep) in [(0, ""), (1, ""), (2, ""), (40, long)] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("volumes/v");
            fs::create_dir_all(&target).unwrap();
            let before = std::env::current_dir().unwrap();
            image(&layers(dir.path(), count, deep), &target, None).unwrap();
            let names = fs::read_dir(&target).unwrap().count();
            let top = fs::read_to_string(target.join("top")).ok();
            let refused = fs::write(target.join("new"), "").unwrap_err();
            unmount_all_under(dir.path()).unwrap();
            assert_eq!(names, if count == 0 { 0 } else { count + 1 }, "{count}");
            assert_eq!(top, count.checked_sub(1).map(|it| it.to_string()), "{count}");
            assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{count}");
            assert_eq!(std::env::current_dir().unwrap(), before, "{count}");
        }
    }

    #[test]
    fn a_walk_stays_inside_and_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("mounted")).unwrap();
        fs::write(root.join("a/b/file"), "1").unwrap();
        fs::create_dir_all(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "1").unwrap();
        symlink("../outside", root.join("link")).unwrap();
        symlink(dir.path().join("outside/secret"), root.join("file-link")).unwrap();
        memory(&root.join("mounted"), 1 << 20).unwrap();
        fs::write(root.join("mounted/in"), "1").unwrap();
        let seen = |order, most| {
            let mut paths = Vec::new();
            let all = walk(&root, most, order, |found| {
                paths.push(found.path.display().to_string());
                Ok(())
            });
            (paths, all.unwrap())
        };
        let (mut first, all) = seen(Directories::First, 100);
        let (last, _) = seen(Directories::Last, 100);
        let (_, cut) = seen(Directories::First, 2);
        unmount_all_under(dir.path()).unwrap();
        assert_eq!(first.first().map(String::as_str), Some(""));
        assert_eq!(last.last().map(String::as_str), Some(""));
        first.sort();
        assert_eq!(first, ["", "a", "a/b", "a/b/file", "file-link", "link"]);
        assert!(all && !cut);
        let at = |name: &str| last.iter().position(|it| it == name).unwrap();
        assert!(at("a/b/file") < at("a/b") && at("a/b") < at("a"));
    }

    #[test]
    fn a_group_is_given_to_links_and_not_through_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("d")).unwrap();
        let outside = dir.path().join("outside");
        for file in [&root.join("d/f"), &outside] {
            fs::write(file, "").unwrap();
            fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
        }
        symlink(&outside, root.join("link")).unwrap();
        walk(&root, 100, Directories::Last, |found| {
            found.set_group(4242, (found.metadata.mode() & 0o7777) | 0o060)
        })
        .unwrap();
        let of = |path: &Path| {
            let it = fs::symlink_metadata(path).unwrap();
            (it.gid(), it.mode() & 0o777)
        };
        assert_eq!(of(&root.join("d/f")), (4242, 0o660));
        assert_eq!(of(&root.join("link")).0, 4242);
        assert_eq!(of(&outside), (0, 0o600), "what a link points to is not ours");
        assert_eq!(of(&root).0, 4242);
    }
}
