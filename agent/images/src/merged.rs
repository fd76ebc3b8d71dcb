//! Looks a file up in stacked layers as overlayfs would show it, without mounting.
//!
//! Always holds: nothing outside the layers is opened. Each component is opened by itself and without following, links
//! are resolved against the merged root by hand, and `..` never goes above it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::limits::MAX_SYMLINKS;
use crate::unpack::OPAQUE_XATTR;

/// The directories that one merged directory consists of, uppermost first.
type Merged = Rc<Vec<OwnedFd>>;

enum Found {
    Absent,
    Directory(Merged),
    Link(Vec<u8>),
    /// The layer's directory that holds it.
    File(Merged, usize),
}

/// Opens layers (bottom first) as one merged root.
fn root(layers: &[PathBuf]) -> io::Result<Merged> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |layer: &PathBuf| rustix::fs::open(layer, flags, Mode::empty()).map_err(io::Error::from);
    Ok(Rc::new(layers.iter().rev().map(open).collect::<io::Result<_>>()?))
}

/// Reads the regular file at the absolute `path`, up to `limit` bytes. `None` if there is none.
pub(crate) fn read(layers: &[PathBuf], path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut stack = vec![root(layers)?];
    let mut pending: VecDeque<Vec<u8>> = components(path.as_bytes());
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == b".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let here = stack.last().expect("the root is never popped").clone();
        match look_up(&here, &name)? {
            Found::Absent => return Ok(None),
            Found::Directory(directory) => stack.push(directory),
            Found::Link(target) => {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(Errno::LOOP.into());
                }
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                for component in components(&target).into_iter().rev() {
                    pending.push_front(component);
                }
            }
            Found::File(directories, layer) if pending.is_empty() => {
                return open_regular(&directories[layer], &name, limit).map(Some);
            }
            Found::File(..) => return Ok(None),
        }
    }
    Err(Errno::ISDIR.into())
}

fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    let kept = path
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".");
    kept.map(<[u8]>::to_vec).collect()
}

fn look_up(here: &Merged, name: &[u8]) -> io::Result<Found> {
    let mut directories = Vec::new();
    for (index, layer) in here.iter().enumerate() {
        let stat = match statat(layer, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = openat(layer, name, flags, Mode::empty())?;
                let opaque = is_opaque(&directory)?;
                directories.push(directory);
                if opaque {
                    break;
                }
            }
            // What lies over a directory hides what lies under it, whatever it is.
            _ if !directories.is_empty() => break,
            FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(Found::Absent),
            FileType::Symlink => return Ok(Found::Link(readlinkat(layer, name, Vec::new())?.into_bytes())),
            _ => return Ok(Found::File(here.clone(), index)),
        }
    }
    Ok(if directories.is_empty() {
        Found::Absent
    } else {
        Found::Directory(Rc::new(directories))
    })
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    let mut value = [0_u8; 4];
    match rustix::fs::fgetxattr(directory, OPAQUE_XATTR, &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn open_regular(directory: &OwnedFd, name: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    // A FIFO would otherwise block, and a device act on being opened.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let file = File::from(openat(directory, name, flags, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {limit} bytes"),
        ));
    }
    Ok(bytes)
}
