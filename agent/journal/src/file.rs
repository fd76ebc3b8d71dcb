//! Segments as two files in a directory of their own.
//!
//! Always holds: the directory is locked as long as the storage lives; a file gets its final name only when
//! its content and the directory were synced; file lengths never change after that.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::storage::{Presence, Segment, SegmentSize, Storage};

/// A journal's directory on a real file system.
#[derive(Debug)]
pub struct FileStorage {
    dir: PathBuf,
    /// The open directory; it carries the lock and is synced after renames.
    handle: File,
    size: SegmentSize,
    files: [Option<File>; 2],
}

impl FileStorage {
    /// Opens and locks `dir`, which is made (mode 0700) if it does not exist. `size` is that of a new
    /// journal; an existing one keeps its own.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process, or another storage of this one, has it.
    pub fn open(dir: impl Into<PathBuf>, size: SegmentSize) -> Result<Self, Error> {
        let dir = dir.into();
        let failed = |action| {
            let path = dir.clone();
            move |source| Error::Io { action, path, source }
        };
        make_dir(&dir).map_err(failed("creating the directory"))?;
        let handle = File::open(&dir).map_err(failed("opening the directory"))?;
        match handle.try_lock() {
            Ok(()) => Ok(Self {
                dir,
                handle,
                size,
                files: [None, None],
            }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: dir }),
            Err(TryLockError::Error(source)) => Err(failed("locking the directory")(source)),
        }
    }

    fn new_path(&self, segment: Segment) -> PathBuf {
        self.dir.join(format!("journal.{}.new", segment.index()))
    }

    /// Gives a finished file its name, durably.
    fn name(&self, segment: Segment) -> io::Result<()> {
        fs::rename(self.new_path(segment), self.path(segment))?;
        self.handle.sync_all()
    }

    fn file(&self, segment: Segment) -> io::Result<&File> {
        self.files[segment.index()]
            .as_ref()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn create_file(&self, segment: Segment) -> io::Result<File> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let path = self.new_path(segment);
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        // Written, not merely allocated: an unwritten extent would cost a metadata write at each first use.
        let mut left = self.size.bytes() as usize;
        while left > 0 {
            let len = left.min(ZEROS.len());
            file.write_all(&ZEROS[..len])?;
            left -= len;
        }
        file.sync_all()?;
        Ok(file)
    }

    fn create_files(&mut self) -> io::Result<()> {
        for segment in Segment::ALL {
            self.files[segment.index()] = Some(self.create_file(segment)?);
        }
        self.handle.sync_all()
    }
}

impl Storage for FileStorage {
    fn presence(&mut self) -> io::Result<Presence> {
        let exists = [
            self.path(Segment::Zero).try_exists()?,
            self.path(Segment::One).try_exists()?,
        ];
        match exists {
            [false, false] => return Ok(Presence::Absent),
            [true, false] => {
                return Ok(Presence::Partial {
                    missing: Segment::One,
                });
            }
            [false, true] if self.new_path(Segment::Zero).try_exists()? => self.name(Segment::Zero)?,
            [false, true] => {
                return Ok(Presence::Partial {
                    missing: Segment::Zero,
                });
            }
            // The renames may be those of a process that was killed before it had synced them.
            [true, true] => self.handle.sync_all()?,
        }
        for segment in Segment::ALL {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.path(segment))?;
            self.files[segment.index()] = Some(file);
        }
        Ok(Presence::Whole)
    }

    fn create(&mut self) -> io::Result<SegmentSize> {
        self.create_files().inspect_err(|_| {
            // On a full disk the room is given back; what cannot be removed is truncated by the next attempt.
            for segment in Segment::ALL {
                let _ = fs::remove_file(self.new_path(segment));
            }
        })?;
        Ok(self.size)
    }

    fn publish(&mut self) -> io::Result<()> {
        self.name(Segment::One)?;
        self.name(Segment::Zero)
    }

    fn len(&mut self, segment: Segment) -> io::Result<u64> {
        Ok(self.file(segment)?.metadata()?.len())
    }

    fn read_at(&mut self, segment: Segment, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file(segment)?.read_exact_at(into, offset)
    }

    fn write_at(&mut self, segment: Segment, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(segment)?.write_all_at(bytes, offset)
    }

    fn sync(&mut self, segment: Segment) -> io::Result<()> {
        self.file(segment)?.sync_data()
    }

    fn nonce(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn path(&self, segment: Segment) -> PathBuf {
        self.dir.join(format!("journal.{}", segment.index()))
    }
}

/// Makes the directory and syncs its parent, so that the directory itself survives.
fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    match dir.parent() {
        Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}
