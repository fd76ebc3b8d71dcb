//! A simulated medium behind a volatile cache.
//!
//! Always holds: at a power cut each 512-byte sector independently becomes any version of itself written
//! since the last successful sync, or the one synced then. One seed replays a whole run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use skiff_journal::{Presence, Segment, SegmentSize, Storage};

const SECTOR: usize = 512;
pub(crate) const NONCE: u64 = 0x0123_4567_89ab_cdef;

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// What happens to the n-th operation, counted from 1 over writes, syncs, creations and publications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power goes; every later operation fails too.
    PowerOff,
    /// The operation fails, tearing what it wrote; the next one works.
    Once(i32),
    /// This operation and every later one fails.
    Always(i32),
}

/// What becomes of unsynced sectors at a power cut.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    DropAll,
    KeepAll,
    Random(u64),
    /// As `Random`, but one unsynced sector turns to noise: more than the format promises to bear.
    Garble(u64),
}

#[derive(Clone, Default)]
struct File {
    durable: Vec<u8>,
    cache: Vec<u8>,
    /// Versions of each sector since the last successful sync.
    unsynced: BTreeMap<usize, Vec<Vec<u8>>>,
}

#[derive(Clone)]
struct State {
    files: [File; 2],
    published: bool,
    publishing: bool,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    stuck: Option<i32>,
    off: bool,
    sync_lies: bool,
    rng: Rng,
}

/// A handle; clones share the medium, [`fork`](Self::fork) copies it.
#[derive(Clone)]
pub(crate) struct Medium(Rc<RefCell<State>>);

impl Medium {
    pub(crate) fn new(faults: impl IntoIterator<Item = (u64, Fault)>) -> Self {
        Self(Rc::new(RefCell::new(State {
            files: [File::default(), File::default()],
            published: false,
            publishing: false,
            operations: 0,
            faults: faults.into_iter().collect(),
            stuck: None,
            off: false,
            sync_lies: false,
            rng: Rng(7),
        })))
    }

    /// One whose syncs succeed and do nothing.
    pub(crate) fn lying(faults: impl IntoIterator<Item = (u64, Fault)>) -> Self {
        let medium = Self::new(faults);
        medium.0.borrow_mut().sync_lies = true;
        medium
    }

    /// A published journal with exactly these bytes.
    pub(crate) fn holding(files: [Vec<u8>; 2]) -> Self {
        let medium = Self::new([]);
        let file = |bytes: Vec<u8>| File {
            cache: bytes.clone(),
            durable: bytes,
            unsynced: BTreeMap::new(),
        };
        medium.0.borrow_mut().files = files.map(file);
        medium.0.borrow_mut().published = true;
        medium
    }

    pub(crate) fn fork(&self) -> Self {
        Self(Rc::new(RefCell::new(self.0.borrow().clone())))
    }

    pub(crate) fn operations(&self) -> u64 {
        self.0.borrow().operations
    }

    pub(crate) fn is_off(&self) -> bool {
        self.0.borrow().off
    }

    /// What a read gives now.
    pub(crate) fn files(&self) -> [Vec<u8>; 2] {
        self.0.borrow().files.clone().map(|file| file.cache)
    }

    /// From now on: these faults (counted from the next operation), and power.
    pub(crate) fn rearm(&self, faults: impl IntoIterator<Item = (u64, Fault)>) {
        let mut state = self.0.borrow_mut();
        let done = state.operations;
        state.faults = faults.into_iter().map(|(n, fault)| (done + n, fault)).collect();
        state.stuck = None;
        state.off = false;
    }

    /// Kills the process instead: the cache stays. A publication that was under way was `done` or not.
    pub(crate) fn kill(&self, done: bool) {
        self.rearm([]);
        let mut state = self.0.borrow_mut();
        state.published |= state.publishing && done;
        state.publishing = false;
    }

    /// Cuts the power and brings it back: the cache is gone, no fault is armed.
    pub(crate) fn cut(&self, cut: Cut) {
        self.rearm([]);
        let mut state = self.0.borrow_mut();
        let mut rng = match cut {
            Cut::Random(seed) | Cut::Garble(seed) => Rng(seed),
            Cut::DropAll | Cut::KeepAll => Rng(0),
        };
        if state.publishing {
            state.published = match cut {
                Cut::DropAll => false,
                Cut::KeepAll => true,
                Cut::Random(_) | Cut::Garble(_) => rng.below(2) == 1,
            };
            state.publishing = false;
        }
        let dirty = state
            .files
            .iter()
            .map(|file| file.unsynced.len())
            .sum::<usize>()
            .max(1);
        let mut until_noise = if matches!(cut, Cut::Garble(_)) {
            rng.below(dirty)
        } else {
            usize::MAX
        };
        for file in &mut state.files {
            for (sector, versions) in std::mem::take(&mut file.unsynced) {
                let chosen = match cut {
                    Cut::DropAll => None,
                    Cut::KeepAll => versions.last().cloned(),
                    Cut::Random(_) | Cut::Garble(_) => versions.get(rng.below(versions.len() + 1)).cloned(),
                };
                let chosen = if until_noise == 0 {
                    Some(rng.bytes(SECTOR))
                } else {
                    chosen
                };
                until_noise = until_noise.wrapping_sub(1);
                if let Some(bytes) = chosen {
                    file.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&bytes);
                }
            }
            file.cache = file.durable.clone();
        }
    }
}

impl State {
    /// Counts an operation, and says how it goes.
    fn operation(&mut self) -> Result<(), i32> {
        const EIO: i32 = 5;
        if self.off {
            return Err(EIO);
        }
        if let Some(errno) = self.stuck {
            return Err(errno);
        }
        self.operations += 1;
        match self.faults.get(&self.operations) {
            None => Ok(()),
            Some(Fault::PowerOff) => {
                self.off = true;
                Err(EIO)
            }
            Some(Fault::Once(errno)) => Err(*errno),
            Some(Fault::Always(errno)) => {
                self.stuck = Some(*errno);
                Err(*errno)
            }
        }
    }
}

impl File {
    fn write(&mut self, offset: usize, bytes: &[u8], mut keep: impl FnMut() -> bool) {
        assert!(
            offset + bytes.len() <= self.cache.len(),
            "a write past the end of the segment"
        );
        if bytes.is_empty() {
            return;
        }
        for sector in offset / SECTOR..=(offset + bytes.len() - 1) / SECTOR {
            if !keep() {
                continue;
            }
            let from = offset.max(sector * SECTOR);
            let to = (offset + bytes.len()).min((sector + 1) * SECTOR);
            self.cache[from..to].copy_from_slice(&bytes[from - offset..to - offset]);
            let version = self.cache[sector * SECTOR..][..SECTOR].to_vec();
            self.unsynced.entry(sector).or_default().push(version);
        }
    }

    fn sync(&mut self) {
        for (sector, versions) in std::mem::take(&mut self.unsynced) {
            let last = &versions[versions.len() - 1];
            self.durable[sector * SECTOR..][..SECTOR].copy_from_slice(last);
        }
    }

    /// A failed sync on Linux: some pages reach the medium, all count as clean, and reads give what was
    /// written.
    fn sync_failed(&mut self, rng: &mut Rng) {
        for (sector, versions) in std::mem::take(&mut self.unsynced) {
            if let Some(version) = versions.get(rng.below(versions.len() + 1)) {
                self.durable[sector * SECTOR..][..SECTOR].copy_from_slice(version);
            }
        }
    }
}

impl Storage for Medium {
    fn presence(&mut self) -> io::Result<Presence> {
        let state = self.0.borrow();
        Ok(if state.published {
            Presence::Whole
        } else {
            Presence::Absent
        })
    }

    fn create(&mut self) -> io::Result<SegmentSize> {
        let mut state = self.0.borrow_mut();
        state.operation().map_err(io::Error::from_raw_os_error)?;
        let size = SegmentSize::new(16 * 1024).map_err(io::Error::other)?;
        let zeros = vec![0; size.bytes() as usize];
        let file = File {
            durable: zeros.clone(),
            cache: zeros,
            unsynced: BTreeMap::new(),
        };
        state.files = [file.clone(), file];
        Ok(size)
    }

    fn publish(&mut self) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let result = state.operation();
        state.publishing = state.off;
        result.map_err(io::Error::from_raw_os_error)?;
        state.published = true;
        Ok(())
    }

    fn len(&mut self, segment: Segment) -> io::Result<u64> {
        Ok(self.0.borrow().files[segment.index()].cache.len() as u64)
    }

    fn read_at(&mut self, segment: Segment, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let state = self.0.borrow();
        let bytes = state.files[segment.index()]
            .cache
            .get(offset as usize..)
            .and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, segment: Segment, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let was_off = state.off;
        let result = state.operation();
        let State { files, rng, off, .. } = &mut *state;
        if !was_off {
            // A write that the power cut hit may reach the medium whole: the cut itself tears it.
            let torn = result.is_err() && !*off;
            files[segment.index()].write(offset as usize, bytes, || !torn || rng.below(2) == 0);
        }
        result.map_err(io::Error::from_raw_os_error)
    }

    fn sync(&mut self, segment: Segment) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        let result = state.operation();
        let State {
            files,
            rng,
            off,
            sync_lies,
            ..
        } = &mut *state;
        match result {
            Ok(()) if !*sync_lies => files[segment.index()].sync(),
            Err(_) if !*off => files[segment.index()].sync_failed(rng),
            Ok(()) | Err(_) => {}
        }
        result.map_err(io::Error::from_raw_os_error)
    }

    fn nonce(&mut self) -> io::Result<u64> {
        Ok(NONCE)
    }

    fn path(&self, segment: Segment) -> PathBuf {
        format!("medium/journal.{}", segment.index()).into()
    }
}
