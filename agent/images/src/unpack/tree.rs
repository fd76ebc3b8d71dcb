//! Files made beneath one directory, and nowhere else.
//!
//! Always holds: every path is walked one component at a time with `O_NOFOLLOW`; symbolic links in the middle of a
//! path are resolved by hand against the root, as `chroot` would; what is created is created with `O_EXCL` or its
//! like, after what was there before is gone. Only this process writes here, so nothing changes between two steps.
//! Walking by hand rather than by `openat2(RESOLVE_IN_ROOT)` serves kernels before 5.6 by the same code, and makes
//! parents that an archive leaves out.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, Dev, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat,
    fchmod, fchown, fsetxattr, futimens, linkat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::UnpackError;
use crate::limits::{MAX_DEPTH, MAX_SYMLINKS};
use crate::unpack::OPAQUE_XATTR;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const COPY_BUFFER: usize = 64 << 10;

/// Owner, mode, time and extended attributes of an entry.
pub(crate) struct Attributes {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The twelve permission bits.
    pub(crate) mode: u32,
    pub(crate) mtime: Timespec,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }

    fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.mode)
    }

    fn times(&self) -> Timestamps {
        times(self.mtime)
    }
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: mtime,
        last_modification: mtime,
    }
}

/// An entry is refused; its name is escaped.
pub(crate) fn refused(path: &[Vec<u8>], reason: &str) -> UnpackError {
    UnpackError::Refused {
        name: display(path),
        reason: reason.to_owned(),
    }
}

fn display(path: &[Vec<u8>]) -> String {
    path.join(&b'/').escape_ascii().to_string()
}

fn write_error(action: &'static str, path: &[Vec<u8>]) -> impl FnOnce(Errno) -> UnpackError {
    let name = display(path);
    move |errno| UnpackError::Write {
        action,
        name,
        source: errno.into(),
    }
}

/// The directory that is being filled.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    /// The parent that was used last: archives are in directory order.
    last: Option<(Vec<Vec<u8>>, Rc<OwnedFd>)>,
    buffer: Vec<u8>,
    /// Directories that were made because the archive left them out.
    implied: u64,
}

impl Tree {
    pub(crate) fn new(root: BorrowedFd<'_>) -> Result<Self, UnpackError> {
        let root = root.try_clone_to_owned().map_err(|source| UnpackError::Write {
            action: "open",
            name: "/".to_owned(),
            source,
        })?;
        Ok(Self {
            root: Rc::new(root),
            last: None,
            buffer: vec![0; COPY_BUFFER],
            implied: 0,
        })
    }

    /// How many directories were made that have no entry of their own.
    pub(crate) fn implied(&self) -> u64 {
        self.implied
    }

    /// Makes the directory, or gives the one that is there these attributes.
    pub(crate) fn directory(
        &mut self,
        path: &[Vec<u8>],
        attributes: &Attributes,
    ) -> Result<u64, UnpackError> {
        let (parent, name) = self.parent(path, true)?;
        let is_directory = file_type(&parent, name).map_err(write_error("look at", path))?;
        if is_directory != Some(FileType::Directory) {
            self.make_room(&parent, name, path)?;
            mkdirat(&*parent, name, Mode::RWXU).map_err(write_error("create the directory", path))?;
        }
        let directory =
            openat(&*parent, name, DIRECTORY, Mode::empty()).map_err(write_error("open", path))?;
        apply(&directory, path, attributes)
    }

    /// The attributes of the layer's root.
    pub(crate) fn root_attributes(&mut self, attributes: &Attributes) -> Result<u64, UnpackError> {
        apply(&self.root, &[], attributes)
    }

    /// Writes a regular file of exactly `size` bytes. Returns them, and the attributes that were skipped.
    pub(crate) fn file(
        &mut self,
        path: &[Vec<u8>],
        attributes: &Attributes,
        data: &mut impl Read,
        size: u64,
    ) -> Result<(u64, u64), UnpackError> {
        let (parent, name) = self.parent(path, true)?;
        self.make_room(&parent, name, path)?;
        let fd = openat(&*parent, name, NEW_FILE, Mode::RUSR | Mode::WUSR)
            .map_err(write_error("create the file", path))?;
        let mut file = File::from(fd);
        let mut written = 0_u64;
        loop {
            let count = match data.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(UnpackError::Archive(error)),
            };
            file.write_all(&self.buffer[..count])
                .map_err(|source| UnpackError::Write {
                    action: "write",
                    name: display(path),
                    source,
                })?;
            written += count as u64;
        }
        if written != size {
            return Err(UnpackError::Archive(io::ErrorKind::UnexpectedEof.into()));
        }
        let skipped = apply(&file, path, attributes)?;
        Ok((written, skipped))
    }

    /// Makes a symbolic link. Its target is only text: nothing here ever follows it out of the root.
    pub(crate) fn symlink(
        &mut self,
        path: &[Vec<u8>],
        attributes: &Attributes,
        target: &[u8],
    ) -> Result<(), UnpackError> {
        let (parent, name) = self.parent(path, true)?;
        self.make_room(&parent, name, path)?;
        symlinkat(target, &*parent, name).map_err(write_error("create the symbolic link", path))?;
        let (uid, gid) = attributes.owner();
        chownat(&*parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(write_error("change the owner of", path))?;
        utimensat(&*parent, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(write_error("set the time of", path))
    }

    /// Makes a hard link to a file that this layer already has.
    pub(crate) fn hard_link(&mut self, path: &[Vec<u8>], target: &[Vec<u8>]) -> Result<(), UnpackError> {
        if target.is_empty() {
            return Err(refused(path, "a hard link to the layer's root"));
        }
        let missing = || {
            refused(
                path,
                &format!("its hard link's target {} is not in the layer", display(target)),
            )
        };
        let (from, from_name) = match self.parent(target, false) {
            Ok(found) => found,
            Err(UnpackError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(missing());
            }
            Err(error) => return Err(error),
        };
        let stat = match statat(&*from, from_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(missing()),
            Err(errno) => return Err(write_error("look at", target)(errno)),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused(path, "a hard link to a directory"));
        }
        let (parent, name) = self.parent(path, true)?;
        if let Ok(old) = statat(&*parent, name, AtFlags::SYMLINK_NOFOLLOW)
            && (old.st_dev, old.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        self.make_room(&parent, name, path)?;
        linkat(&*from, from_name, &*parent, name, AtFlags::empty())
            .map_err(write_error("create the hard link", path))
    }

    /// Makes a FIFO or a device node.
    pub(crate) fn node(
        &mut self,
        path: &[Vec<u8>],
        attributes: &Attributes,
        kind: FileType,
        device: Dev,
    ) -> Result<(), UnpackError> {
        let (parent, name) = self.parent(path, true)?;
        self.make_room(&parent, name, path)?;
        mknodat(&*parent, name, kind, Mode::RUSR, device).map_err(write_error("create the node", path))?;
        let (uid, gid) = attributes.owner();
        chownat(&*parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(write_error("change the owner of", path))?;
        // The node was made a moment ago, so this follows no link.
        chmodat(&*parent, name, attributes.mode(), AtFlags::empty())
            .map_err(write_error("change the mode of", path))?;
        utimensat(&*parent, name, &attributes.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(write_error("set the time of", path))
    }

    /// Marks a directory so that overlayfs shows nothing of it from below.
    pub(crate) fn opaque(&mut self, path: &[Vec<u8>]) -> Result<(), UnpackError> {
        let directory = self.walk(path, true)?;
        fsetxattr(&*directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(write_error("mark as opaque", path))
    }

    /// Hides `path` of the layers below, unless this layer has something there itself.
    pub(crate) fn whiteout(&mut self, path: &[Vec<u8>]) -> Result<(), UnpackError> {
        let (parent, name) = self.parent(path, true)?;
        match file_type(&parent, name).map_err(write_error("look at", path))? {
            // A directory of its own takes the place of the one below, so it must not merge with it.
            Some(FileType::Directory) => self.opaque(path),
            Some(_) => Ok(()),
            None => mknodat(&*parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(write_error("create the whiteout", path)),
        }
    }

    /// Sets a directory's time, if it is still one.
    pub(crate) fn directory_time(&mut self, path: &[Vec<u8>], mtime: Timespec) -> Result<(), UnpackError> {
        match self.walk(path, false) {
            Ok(directory) => {
                futimens(&*directory, &times(mtime)).map_err(write_error("set the time of", path))
            }
            // A later entry put something else in its place.
            Err(UnpackError::Write { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(UnpackError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn parent<'p>(
        &mut self,
        path: &'p [Vec<u8>],
        create: bool,
    ) -> Result<(Rc<OwnedFd>, &'p [u8]), UnpackError> {
        let Some((name, parents)) = path.split_last() else {
            return Err(refused(path, "an empty path"));
        };
        if let Some((known, fd)) = &self.last
            && known == parents
        {
            return Ok((fd.clone(), name));
        }
        let fd = self.walk(parents, create)?;
        self.last = Some((parents.to_vec(), fd.clone()));
        Ok((fd, name))
    }

    /// Opens the directory `path`, beneath the root whatever links it goes through.
    fn walk(&mut self, path: &[Vec<u8>], create: bool) -> Result<Rc<OwnedFd>, UnpackError> {
        let mut stack = vec![self.root.clone()];
        let mut pending: VecDeque<Vec<u8>> = path.iter().cloned().collect();
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            if stack.len() > MAX_DEPTH {
                return Err(refused(path, "its directories are nested deeper than 256"));
            }
            let here = stack.last().expect("the root is never popped").clone();
            match openat(&*here, &name, DIRECTORY, Mode::empty()) {
                Ok(fd) => stack.push(Rc::new(fd)),
                Err(Errno::NOENT) if create => {
                    let mode = Mode::from_raw_mode(0o755);
                    self.implied += 1;
                    mkdirat(&*here, &name, mode).map_err(write_error("create the directory of", path))?;
                    let fd = openat(&*here, &name, DIRECTORY, Mode::empty());
                    let fd = fd.map_err(write_error("open the directory of", path))?;
                    // What the umask took away.
                    fchmod(&fd, mode).map_err(write_error("change the mode of the directory of", path))?;
                    stack.push(Rc::new(fd));
                }
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(refused(path, "its path goes through more than 40 symbolic links"));
                    }
                    let target = readlinkat(&*here, &name, Vec::new()).map_err(|errno| match errno {
                        Errno::INVAL => refused(path, "a part of its path is not a directory in this layer"),
                        errno => write_error("read a link in the path of", path)(errno),
                    })?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let parts = target.split(|byte| *byte == b'/');
                    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
                    for part in parts.rev() {
                        pending.push_front(part.to_vec());
                    }
                }
                Err(errno) => return Err(write_error("open the directory of", path)(errno)),
            }
        }
        Ok(stack.pop().expect("the root is never popped"))
    }

    /// Removes what an earlier entry made under this name.
    fn make_room(&mut self, parent: &OwnedFd, name: &[u8], path: &[Vec<u8>]) -> Result<(), UnpackError> {
        let there = file_type(parent, name).map_err(write_error("look at", path))?;
        if there.is_some() {
            // The way to the remembered parent may lead through what goes away.
            self.last = None;
        }
        match there {
            None => Ok(()),
            Some(FileType::Directory) => {
                remove_directory(parent, name).map_err(write_error("replace the directory", path))
            }
            Some(_) => unlinkat(parent, name, AtFlags::empty()).map_err(write_error("replace", path)),
        }
    }
}

fn file_type(parent: &OwnedFd, name: &[u8]) -> Result<Option<FileType>, Errno> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Removes a directory with all that is in it, never following a link. Its depth is bounded by the longest path.
fn remove_directory(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let directory = openat(parent, name, DIRECTORY, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if matches!(child, b"." | b"..") {
            continue;
        }
        if file_type(&directory, child)? == Some(FileType::Directory) {
            remove_directory(&directory, child)?;
        } else {
            unlinkat(&directory, child, AtFlags::empty())?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Owner first: changing it clears set-user-ID bits and file capabilities.
fn apply(fd: &impl AsFd, path: &[Vec<u8>], attributes: &Attributes) -> Result<u64, UnpackError> {
    let (uid, gid) = attributes.owner();
    fchown(fd, uid, gid).map_err(write_error("change the owner of", path))?;
    fchmod(fd, attributes.mode()).map_err(write_error("change the mode of", path))?;
    let mut skipped = 0;
    for (name, value) in &attributes.xattrs {
        if !may_set(name) {
            skipped += 1;
            continue;
        }
        match fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A file system without them; a program's capabilities are then missed where it is run, as elsewhere.
            Err(Errno::OPNOTSUPP) => skipped += 1,
            Err(errno) => return Err(write_error("set an extended attribute of", path)(errno)),
        }
    }
    futimens(fd, &attributes.times()).map_err(write_error("set the time of", path))?;
    Ok(skipped)
}

/// File capabilities and users' own attributes. `trusted.overlay.*` and `user.overlay.*` would redirect overlayfs,
/// `security.selinux` and `security.ima` belong to the host.
fn may_set(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};
    use std::time::{Duration, Instant, SystemTime};

    /// A time of 32 bits ends in January 2038.
    #[test]
    fn times_beyond_2038_are_times() {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
        let file = tempfile::tempfile().unwrap();
        file.set_modified(then).unwrap();
        assert_eq!(file.metadata().unwrap().modified().unwrap(), then, "2100-01-01");
        let stat = rustix::fs::fstat(&file).unwrap();
        assert_eq!(i128::from(stat.st_mtime), 4_102_444_800);
    }

    /// Where the clock and the kernel's call for waiting take times to have different sizes, a wait ends too soon.
    #[test]
    fn a_wait_is_as_long_as_asked_for() {
        let (mutex, condition) = (Mutex::new(()), Condvar::new());
        let (begun, asked) = (Instant::now(), Duration::from_millis(1200));
        let mut guard = mutex.lock().unwrap();
        loop {
            let (again, result) = condition.wait_timeout(guard, asked).unwrap();
            if result.timed_out() {
                break;
            }
            guard = again;
        }
        assert!(begun.elapsed() >= asked, "{:?}", begun.elapsed());
    }
}
