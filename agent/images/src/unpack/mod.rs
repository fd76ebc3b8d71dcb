//! Writes one layer's tar archive as a directory that overlayfs takes as it is.
//!
//! What always holds:
//! - Nothing is written or linked outside the layer's root ([`tree`]).
//! - A whiteout hides only what lies in layers below: what the layer itself has under that name stays (OCI image
//!   specification, "Whiteouts"). So whiteouts are made after the last entry.
//! - Bytes, entries and remembered names are counted against [`UnpackOptions`] and [`crate::limits`] before they are
//!   kept.
//!
//! Absent on purpose: device nodes unless asked for, sockets, sparse files, and extended attributes that would speak
//! to the host's overlayfs or security modules.

mod archive;
mod tree;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Timespec};

use crate::error::UnpackError;
use crate::limits::MAX_REMEMBERED_BYTES;
use archive::{Entry, Kind, Reader};
use tree::{Attributes, Tree};

/// Overlayfs' mark of a directory that hides everything below it.
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Other names of aufs' own bookkeeping, without a meaning for a layer.
const AUFS: &[u8] = b".wh..wh.";

/// What becomes of block and character devices in a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceNodes {
    /// They are left out and counted: a container's `/dev` is made by the runtime.
    #[default]
    Skip,
    /// They are made; but never 0/0, which would be a whiteout.
    Create,
}

/// Bounds and choices of one unpack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpackOptions {
    /// Most bytes of the tar stream, headers included.
    pub max_bytes: u64,
    /// Most entries.
    pub max_entries: u64,
    /// What becomes of device nodes.
    pub devices: DeviceNodes,
    /// Bytes that stay free on the file system: what runs there needs them.
    pub keep_free: u64,
}

/// Bytes of the stream between two looks at what is free.
const LOOK_EVERY: u64 = 1 << 20;

/// What an unpack did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the archive, whiteouts included.
    pub entries: u64,
    /// Bytes of regular files.
    pub file_bytes: u64,
    /// Bytes of the tar stream, to its end.
    pub stream_bytes: u64,
    /// Device nodes that were left out.
    pub skipped_devices: u64,
    /// Extended attributes that were left out.
    pub skipped_xattrs: u64,
}

/// Unpacks the tar archive `stream` into the empty directory `root`, and reads `stream` to its end.
///
/// # Errors
/// [`UnpackError`] names the entry that is refused or cannot be written. `root` then holds a part of the layer.
pub fn unpack_layer(
    stream: impl Read,
    root: BorrowedFd<'_>,
    options: &UnpackOptions,
) -> Result<Unpacked, UnpackError> {
    let mut bounded = Bounded {
        inner: stream,
        root,
        left: options.max_bytes,
        keep_free: options.keep_free,
        look_at: 0,
        exceeded: false,
        full: false,
        count: 0,
    };
    let result = Unpack::new(root, options).and_then(|unpack| unpack.run(&mut bounded));
    match result {
        // The archive reader sees only a failed read; this is why it failed.
        Err(_) if bounded.exceeded => Err(UnpackError::Limit {
            what: "the unpacked size",
            limit: options.max_bytes,
        }),
        Err(_) if bounded.full => Err(UnpackError::Full {
            keep_free: options.keep_free,
        }),
        Err(error) => Err(error),
        Ok(unpacked) => Ok(Unpacked {
            stream_bytes: bounded.count,
            ..unpacked
        }),
    }
}

struct Unpack<'a> {
    tree: Tree,
    options: &'a UnpackOptions,
    done: Unpacked,
    /// Paths that the layer removes from those below it.
    whiteouts: Vec<Vec<Vec<u8>>>,
    /// Directories' times: writing into a directory changes them, so they come last.
    times: BTreeMap<Vec<Vec<u8>>, Timespec>,
    remembered: usize,
}

impl<'a> Unpack<'a> {
    fn new(root: BorrowedFd<'_>, options: &'a UnpackOptions) -> Result<Self, UnpackError> {
        let tree = Tree::new(root)?;
        let (whiteouts, times) = (Vec::new(), BTreeMap::new());
        Ok(Self {
            tree,
            options,
            done: Unpacked::default(),
            whiteouts,
            times,
            remembered: 0,
        })
    }

    fn run<R: Read>(mut self, stream: &mut R) -> Result<Unpacked, UnpackError> {
        let mut archive = tar::Archive::new(&mut *stream);
        let mut reader = Reader::new(&mut archive)?;
        while let Some(mut entry) = reader.next()? {
            self.done.entries += 1;
            self.entry(&mut entry)?;
            // One short entry may imply hundreds of directories, so these count too.
            if self.done.entries + self.tree.implied() > self.options.max_entries {
                let limit = self.options.max_entries;
                return Err(UnpackError::Limit {
                    what: "the number of entries",
                    limit,
                });
            }
        }
        // The digest covers what follows the archive's end, too.
        io::copy(stream, &mut io::sink()).map_err(UnpackError::Archive)?;
        self.finish()
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        let Some(name) = entry.path.last().cloned() else {
            return self.root_entry(entry);
        };
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&entry.path, &name);
        }
        let attributes = Attributes {
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            mtime: entry.mtime,
            xattrs: std::mem::take(&mut entry.xattrs),
        };
        match &entry.kind {
            Kind::Directory => {
                self.done.skipped_xattrs += self.tree.directory(&entry.path, &attributes)?;
                self.remember(&entry.path)?;
                self.times.insert(entry.path.clone(), entry.mtime);
            }
            Kind::File => {
                let (bytes, skipped) =
                    self.tree
                        .file(&entry.path, &attributes, &mut entry.data, entry.size)?;
                self.done.file_bytes += bytes;
                self.done.skipped_xattrs += skipped;
            }
            Kind::Symlink(target) => self.tree.symlink(&entry.path, &attributes, target)?,
            Kind::HardLink(target) => self.tree.hard_link(&entry.path, target)?,
            Kind::Fifo => self.tree.node(&entry.path, &attributes, FileType::Fifo, 0)?,
            Kind::Device { .. } if self.options.devices == DeviceNodes::Skip => {
                self.done.skipped_devices += 1;
            }
            Kind::Device {
                major: 0, minor: 0, ..
            } => {
                return Err(tree::refused(&entry.path, "a device 0/0 would be a whiteout"));
            }
            Kind::Device { block, major, minor } => {
                let kind = if *block {
                    FileType::BlockDevice
                } else {
                    FileType::CharacterDevice
                };
                self.tree.node(
                    &entry.path,
                    &attributes,
                    kind,
                    rustix::fs::makedev(*major, *minor),
                )?;
            }
        }
        Ok(())
    }

    /// `./`: the attributes of the container's `/`.
    fn root_entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        if !matches!(entry.kind, Kind::Directory) {
            return Err(tree::refused(
                &entry.path,
                "the layer's root can only be a directory",
            ));
        }
        let xattrs = std::mem::take(&mut entry.xattrs);
        let attributes = Attributes {
            uid: entry.uid,
            gid: entry.gid,
            mode: entry.mode,
            mtime: entry.mtime,
            xattrs,
        };
        self.done.skipped_xattrs += self.tree.root_attributes(&attributes)?;
        self.times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    fn whiteout(&mut self, path: &[Vec<u8>], name: &[u8]) -> Result<(), UnpackError> {
        let directory = &path[..path.len() - 1];
        if name == OPAQUE_WHITEOUT {
            return self.tree.opaque(directory);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(tree::refused(path, "a whiteout must name what it removes"));
        }
        let mut hidden_path = directory.to_vec();
        hidden_path.push(hidden.to_vec());
        self.remember(&hidden_path)?;
        self.whiteouts.push(hidden_path);
        Ok(())
    }

    fn remember(&mut self, path: &[Vec<u8>]) -> Result<(), UnpackError> {
        // A vector's own three words weigh more than most names.
        self.remembered += path.iter().map(|part| part.len() + 24).sum::<usize>() + 48;
        if self.remembered > MAX_REMEMBERED_BYTES {
            let limit = MAX_REMEMBERED_BYTES as u64;
            return Err(UnpackError::Limit {
                what: "the length of all directory names and whiteouts",
                limit,
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Unpacked, UnpackError> {
        for path in &self.whiteouts {
            self.tree.whiteout(path)?;
        }
        for (path, mtime) in self.times.iter().rev() {
            self.tree.directory_time(path, *mtime)?;
        }
        Ok(self.done)
    }
}

/// Counts, and fails where the limit is passed or the disk has no more to spare.
struct Bounded<'a, R> {
    inner: R,
    root: BorrowedFd<'a>,
    left: u64,
    keep_free: u64,
    /// Of `count`, when to look at the disk next.
    look_at: u64,
    count: u64,
    exceeded: bool,
    full: bool,
}

impl<R> Bounded<'_, R> {
    /// Whether the file system has less free than must stay so. One that cannot be asked is asked by writing.
    fn is_full(&mut self) -> bool {
        if self.count < self.look_at {
            return false;
        }
        self.look_at = self.count + LOOK_EVERY;
        let disk = rustix::fs::fstatvfs(self.root);
        disk.is_ok_and(|it| it.f_bavail.saturating_mul(it.f_frsize) < self.keep_free)
    }
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_full() {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = self.inner.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                self.exceeded = true;
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    "the limit of unpacked bytes",
                ));
            }
        }
        self.count += count as u64;
        Ok(count)
    }
}
