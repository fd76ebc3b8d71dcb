//! What has come of a layer so far, for the pull that goes on with it: after a broken link, an agent restart or a reboot.
//!
//! ```text
//! partial/<digest as transferred>
//!   | length u32 LE, 1 to 65536 | CRC-32 u32 LE of (first byte's offset u64 LE, bytes) | bytes |  …
//! ```
//!
//! Always holds: one pull at a time has the file of a digest. The first block that does not check ends the file, whatever
//! comes after it: a power cut may have left anything there. The bytes are as the source gave them, so what is made of them is
//! believed for its digest and not for this file's sake.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::error::Error;
use crate::store::count_sync;

/// Bytes of a block, and so what a SIGKILL costs at most.
const BLOCK: usize = 64 << 10;

/// Bytes before a block's own.
const HEADER: usize = 8;

/// How often what has come is made durable, and so what a power cut costs at most. A layer that is faster than this costs the
/// flash nothing, for its file is gone before it is written.
const DURABLE_EVERY: Duration = Duration::from_secs(2);

/// How long nobody may have gone on with it.
const LIFE: Duration = Duration::from_secs(7 * 86_400);

/// What has come of one layer. First it is read to its end, then it is added to.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    /// Where the next block begins in the file.
    end: u64,
    /// Bytes of the layer in all blocks up to there.
    bytes: u64,
    /// The block that is being read, and how far.
    block: Vec<u8>,
    read: usize,
    /// The end was reached: `block` is what is added from now on.
    adding: bool,
    /// Nothing is added.
    stopped: bool,
    durable_at: Instant,
    /// Some of it has been made durable, by this pull or one before.
    durable: bool,
}

impl Partial {
    /// The file for a digest, made where there is none; nothing while another pull has it.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, Error> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
        let length = file.metadata().map_err(Error::io("look at", path))?.len();
        // Whoever had it may have removed it between the two calls; the next try makes it anew.
        let ours = fs::symlink_metadata(path).is_ok_and(|it| is_same(&it, &file));
        Ok(ours.then(|| Self {
            path: path.to_owned(),
            file,
            end: 0,
            bytes: 0,
            block: Vec::new(),
            read: 0,
            adding: false,
            stopped: false,
            durable_at: Instant::now(),
            durable: length > 0,
        }))
    }

    /// The next bytes of what has come; 0 at its end, from where on it is added to.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.adding {
            return Ok(0);
        }
        if self.read == self.block.len() && !self.next_block()? {
            self.adding = true;
            self.block = Vec::with_capacity(BLOCK);
            self.file.set_len(self.end)?;
            return Ok(0);
        }
        let count = buffer.len().min(self.block.len() - self.read);
        buffer[..count].copy_from_slice(&self.block[self.read..self.read + count]);
        self.read += count;
        Ok(count)
    }

    /// Reads the next block that checks.
    fn next_block(&mut self) -> io::Result<bool> {
        let mut header = [0; HEADER];
        self.file.seek(SeekFrom::Start(self.end))?;
        if !is_whole(self.file.read_exact(&mut header))? {
            return Ok(false);
        }
        let [a, b, c, d, sum @ ..] = header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if !(1..=BLOCK).contains(&length) {
            return Ok(false);
        }
        self.block.resize(length, 0);
        self.read = length;
        if !is_whole(self.file.read_exact(&mut self.block))?
            || checksum(self.bytes, &self.block) != u32::from_le_bytes(sum)
        {
            return Ok(false);
        }
        self.read = 0;
        self.end += (HEADER + length) as u64;
        self.bytes += length as u64;
        Ok(true)
    }

    /// Adds what came next.
    pub(crate) fn add(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.stopped {
            return Ok(());
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == BLOCK {
                self.write_block()?;
            }
        }
        if self.durable_at.elapsed() >= DURABLE_EVERY {
            self.write_block()?;
            self.file.sync_data()?;
            count_sync();
            self.durable_at = Instant::now();
            self.durable = true;
        }
        Ok(())
    }

    /// Writes what is still in memory, so that the end of this process costs nothing.
    pub(crate) fn keep(&mut self) -> io::Result<()> {
        if self.adding { self.write_block() } else { Ok(()) }
    }

    /// What comes is not added any more: there is no room for it.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    fn write_block(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let mut whole = Vec::with_capacity(HEADER + self.block.len());
        whole.extend_from_slice(&(self.block.len() as u32).to_le_bytes());
        whole.extend_from_slice(&checksum(self.bytes, &self.block).to_le_bytes());
        whole.extend_from_slice(&self.block);
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(&whole)?;
        self.end += whole.len() as u64;
        self.bytes += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    /// Whether some of it has cost the flash already, so that it may as well stay until the layer is safe.
    pub(crate) fn is_durable(&self) -> bool {
        self.durable
    }

    /// Nobody needs it any more.
    pub(crate) fn remove(self) -> Result<(), Error> {
        // Unlocked after that, so nobody goes on with a file that has no name.
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &self.path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Removes what no living pull has: of everything where room is needed, else of what nobody has gone on with for a week.
/// Gives back how many bytes that were.
pub(crate) fn clear(directory: &Path, all: bool) -> Result<u64, Error> {
    let mut cleared = 0;
    for path in crate::store::entries(directory)? {
        // A clock that went back makes nothing old.
        let modified = fs::symlink_metadata(&path).and_then(|it| it.modified());
        let age = modified
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        if all || age.is_some_and(|age| age > LIFE) {
            cleared += remove(&path)?.unwrap_or(0);
        }
    }
    Ok(cleared)
}

/// Removes what has come of one layer, and gives its bytes; nothing while a pull is at it.
pub(crate) fn remove(path: &Path) -> Result<Option<u64>, Error> {
    let Ok(file) = File::open(path) else {
        return Ok(None);
    };
    let Ok(metadata) = file.metadata() else {
        return Ok(None);
    };
    if file.try_lock().is_err() {
        return Ok(None);
    }
    fs::remove_file(path).map_err(Error::io("remove", path))?;
    Ok(Some(metadata.len()))
}

fn is_same(named: &fs::Metadata, file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata()
        .is_ok_and(|it| (it.dev(), it.ino()) == (named.dev(), named.ino()))
}

/// Whether all was read; an early end is the end of the file.
fn is_whole(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn checksum(at: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&at.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(path: &Path) -> Vec<u8> {
        let mut partial = Partial::open(path).unwrap().unwrap();
        read(&mut partial)
    }

    fn read(partial: &mut Partial) -> Vec<u8> {
        let (mut out, mut buffer) = (Vec::new(), [0; 1000]);
        loop {
            match partial.read(&mut buffer).unwrap() {
                0 => return out,
                count => out.extend_from_slice(&buffer[..count]),
            }
        }
    }

    fn made(path: &Path, bytes: &[u8]) {
        let mut partial = Partial::open(path).unwrap().unwrap();
        assert_eq!(read(&mut partial), b"");
        partial.add(bytes).unwrap();
        partial.keep().unwrap();
    }

    fn sample() -> Vec<u8> {
        (0..2 * BLOCK + 5000).map(|at| (at % 251) as u8).collect()
    }

    #[test]
    fn what_came_is_there_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let bytes = sample();
        made(&path, &bytes[..BLOCK + 100]);
        let mut partial = Partial::open(&path).unwrap().unwrap();
        assert_eq!(read(&mut partial), bytes[..BLOCK + 100]);
        partial.add(&bytes[BLOCK + 100..]).unwrap();
        // Killed here, it has lost what makes no whole block.
        drop(partial);
        assert_eq!(all(&path), bytes[..2 * BLOCK + 100]);
    }

    #[test]
    fn what_came_is_made_durable_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let mut partial = Partial::open(&path).unwrap().unwrap();
        assert_eq!(read(&mut partial), b"");
        partial.add(b"some").unwrap();
        assert!(!partial.is_durable(), "a fast layer costs no write");
        partial.durable_at = Instant::now().checked_sub(DURABLE_EVERY).unwrap();
        partial.add(b" more").unwrap();
        assert!(partial.is_durable());
        // What is in no whole block is there too.
        drop(partial);
        assert_eq!(all(&path), b"some more");
    }

    #[test]
    fn one_pull_at_a_time_has_it_and_whoever_waited_gets_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let first = Partial::open(&path).unwrap().unwrap();
        assert!(Partial::open(&path).unwrap().is_none());
        assert_eq!(clear(dir.path(), true).unwrap(), 0);
        assert!(path.exists(), "what is in use stays");
        first.remove().unwrap();
        assert!(Partial::open(&path).unwrap().is_some());
    }

    #[test]
    fn whatever_a_power_cut_leaves_ends_it_and_nothing_wrong_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let bytes = sample();
        made(&path, &bytes);
        let whole = fs::read(&path).unwrap();
        let block = HEADER + BLOCK;
        // Each byte of the headers and some of each block, lost or changed.
        let places = (0..HEADER)
            .flat_map(|at| [at, block + at, 2 * block + at])
            .chain((0..whole.len()).step_by(9973));
        for at in places {
            let expected = &bytes[..at / block * BLOCK];
            for damage in 0..3 {
                let mut bytes = whole.clone();
                match damage {
                    0 => bytes[at] ^= 0x10,
                    1 => bytes.truncate(at),
                    _ => bytes[at..].fill(0),
                }
                // A zero that was one changes nothing.
                if damage == 2 && bytes == whole {
                    continue;
                }
                fs::write(&path, &bytes).unwrap();
                let got = all(&path);
                assert!(got == *expected, "{damage} at {at}: {} bytes", got.len());
            }
        }
        // A block that was written for another place is none of this one's.
        let moved = [&whole[..block], &whole[..block]].concat();
        fs::write(&path, moved).unwrap();
        assert_eq!(all(&path), bytes[..BLOCK]);
        assert_eq!(fs::metadata(&path).unwrap().len(), block as u64, "it is cut off");
    }

    #[test]
    fn what_nobody_goes_on_with_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
        for path in [&old, &new] {
            made(path, b"some");
        }
        let past = SystemTime::now() - LIFE - Duration::from_secs(1);
        File::options()
            .write(true)
            .open(&old)
            .unwrap()
            .set_modified(past)
            .unwrap();
        clear(dir.path(), false).unwrap();
        assert_eq!((old.exists(), new.exists()), (false, true));
        assert_eq!(clear(dir.path(), true).unwrap(), 4 + HEADER as u64);
        assert!(!new.exists());
    }
}
