//! A disk with a volatile write cache, as an NBD server: what was not flushed when the power went is lost, or torn.
//!
//! QEMU is the client (newstyle negotiation and simple replies of the NBD protocol). Always holds: what a flush covered,
//! and what was written with FUA, is in the file; everything else is in memory alone until then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use skiff_tests::rng::Rng;

/// The unit in which a write is torn: what a drive writes whole.
const SECTOR: usize = 512;

/// What the server can: flags, flush, FUA, trim, write zeroes.
const FLAGS: u16 = 1 | 4 | 8 | 32 | 64;

/// The largest request that the protocol lets a client make unasked.
const LARGEST: usize = 32 << 20;

/// What becomes of what was not flushed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// All of it is lost.
    Clean,
    /// All of it is there.
    Whole,
    /// Each request is kept, lost, or torn between its sectors, as the seed has it.
    Torn(u64),
}

/// How the disk behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Health {
    /// As it should.
    #[default]
    Good,
    /// Every write and flush is answered with an I/O error.
    Failing,
}

/// One thing that was asked of a disk and changes it.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// These bytes are written there; `through` the cache where the client asked for it.
    Write {
        /// Byte of the disk.
        at: u64,
        /// Whole sectors.
        bytes: Vec<u8>,
        /// With FUA.
        through: bool,
    },
    /// What was written before is durable.
    Flush,
}

pub(crate) struct State {
    file: File,
    size: u64,
    /// By sector: the request that wrote it, and its content.
    cache: BTreeMap<u64, (u64, [u8; SECTOR])>,
    requests: u64,
    flushes: u64,
    written: u64,
    health: Health,
    /// The power goes at the so many-th write or flush from now on.
    fuse: Option<u64>,
    /// The power is off.
    off: bool,
    /// All requests since somebody began to record them.
    record: Option<Vec<Request>>,
}

/// The disk, from when it is plugged in until its power is cut.
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
}

/// What the disk has done, and what went with the power.
#[derive(Debug)]
pub(crate) struct Account {
    /// Bytes that were written to it.
    pub(crate) written: u64,
    /// Flushes.
    pub(crate) flushes: u64,
    /// Sectors that no flush had covered.
    pub(crate) unflushed: usize,
    /// Of those, how many are there all the same.
    pub(crate) kept: usize,
}

impl Disk {
    /// Serves `image` on `socket`.
    pub(crate) fn plug(image: &Path, socket: &Path) -> Self {
        let file = File::options().read(true).write(true).open(image).unwrap();
        let state = Arc::new(Mutex::new(State::new(file)));
        std::fs::remove_file(socket).ok();
        let listener = UnixListener::bind(socket).unwrap();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            // One client: QEMU. It connects once.
            if let Ok((stream, _)) = listener.accept() {
                // The end of the connection is the end of the machine.
                serve(stream, &shared).ok();
            }
        });
        Self {
            state,
            socket: socket.to_owned(),
        }
    }

    /// Where QEMU finds it.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// From now on it behaves so.
    pub(crate) fn set(&self, health: Health) {
        lock(&self.state).health = health;
    }

    /// The power goes while it deals with the so many-th write or flush from now on, whenever that comes.
    pub(crate) fn cut_at(&self, request: u64) {
        lock(&self.state).fuse = Some(request);
    }

    /// Whether the power has gone by itself.
    pub(crate) fn is_off(&self) -> bool {
        lock(&self.state).off
    }

    /// Bytes written to it so far.
    pub(crate) fn written(&self) -> u64 {
        lock(&self.state).written
    }

    /// Makes everything durable, copies the disk to `base`, and records what it is asked for from then on.
    pub(crate) fn record(&self, base: &Path) {
        let mut state = lock(&self.state);
        state.flush().unwrap();
        let mut from = &state.file;
        from.rewind().unwrap();
        let mut to = File::create(base).unwrap();
        std::io::copy(&mut from, &mut to).unwrap();
        state.record = Some(Vec::new());
    }

    /// Requests recorded so far.
    pub(crate) fn recorded(&self) -> usize {
        lock(&self.state).record.as_ref().map_or(0, Vec::len)
    }

    /// The requests that were recorded; no more are.
    pub(crate) fn take_record(&self) -> Vec<Request> {
        lock(&self.state).record.take().unwrap_or_default()
    }

    /// The power goes: no later request is honoured.
    pub(crate) fn cut(self, how: Cut) -> Account {
        let mut state = lock(&self.state);
        state.off = true;
        let kept = state.keep(how, &state.file).unwrap();
        let cache = std::mem::take(&mut state.cache);
        state.file.sync_data().unwrap();
        std::fs::remove_file(&self.socket).ok();
        Account {
            written: state.written,
            flushes: state.flushes,
            unflushed: cache.len(),
            kept,
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl State {
    pub(crate) fn new(file: File) -> Self {
        Self {
            size: file.metadata().unwrap().len(),
            file,
            cache: BTreeMap::new(),
            requests: 0,
            flushes: 0,
            written: 0,
            health: Health::Good,
            fuse: None,
            off: false,
            record: None,
        }
    }

    /// Does what it was asked for once.
    pub(crate) fn repeat(&mut self, request: &Request) -> std::io::Result<()> {
        match request {
            Request::Write { at, bytes, through } => self.write(*at, bytes, *through),
            Request::Flush => self.flush(),
        }
    }

    /// Sectors that no flush has covered.
    pub(crate) fn unflushed(&self) -> usize {
        self.cache.len()
    }

    /// Writes to `file`, which holds what is durable, what is there besides when the power goes so. Gives back how many
    /// sectors that are.
    pub(crate) fn keep(&self, how: Cut, file: &File) -> std::io::Result<usize> {
        let mut rng = match how {
            Cut::Clean => return Ok(0),
            Cut::Whole => None,
            Cut::Torn(seed) => Some(Rng::new(seed)),
        };
        let requests: BTreeSet<u64> = self.cache.values().map(|(request, _)| *request).collect();
        // Of a hundred: how many of the request's sectors are kept.
        let mut fate = |_: &u64| match &mut rng {
            None => 100,
            Some(rng) => match rng.below(10) {
                0..4 => 100,
                4 => rng.below(100),
                _ => 0,
            },
        };
        let fates: BTreeMap<u64, u64> = requests.iter().map(|it| (*it, fate(it))).collect();
        let mut kept = 0;
        for (sector, (request, content)) in &self.cache {
            if rng.as_mut().map_or(0, |rng| rng.below(100)) < fates[request] {
                file.write_all_at(content, sector * SECTOR as u64)?;
                kept += 1;
            }
        }
        Ok(kept)
    }

    /// Whether the fuse ends with this request.
    fn burns(&mut self, kind: u64) -> bool {
        if !matches!(kind, 1 | 3 | 6) || self.off {
            return false;
        }
        match &mut self.fuse {
            Some(left) => {
                *left = left.saturating_sub(1);
                *left == 0
            }
            None => false,
        }
    }

    fn read(&self, at: u64, length: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at)?;
        let first = at / SECTOR as u64;
        let behind = first + (length / SECTOR) as u64;
        for (sector, (_, content)) in self.cache.range(first..behind) {
            let from = usize::try_from(sector - first).unwrap() * SECTOR;
            bytes[from..from + SECTOR].copy_from_slice(content);
        }
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8], through: bool) -> std::io::Result<()> {
        self.requests += 1;
        self.written += bytes.len() as u64;
        if let Some(record) = &mut self.record {
            let bytes = bytes.to_vec();
            record.push(Request::Write { at, bytes, through });
        }
        let first = at / SECTOR as u64;
        if through {
            self.file.write_all_at(bytes, at)?;
            for number in 0..bytes.len() / SECTOR {
                self.cache.remove(&(first + number as u64));
            }
            return Ok(());
        }
        for (number, content) in bytes.chunks_exact(SECTOR).enumerate() {
            let sector = [0; SECTOR];
            let entry = self.cache.entry(first + number as u64).or_insert((0, sector));
            entry.0 = self.requests;
            entry.1.copy_from_slice(content);
        }
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.flushes += 1;
        self.record.iter_mut().for_each(|it| it.push(Request::Flush));
        for (sector, (_, content)) in std::mem::take(&mut self.cache) {
            self.file.write_all_at(&content, sector * SECTOR as u64)?;
        }
        Ok(())
    }
}

fn number<const N: usize>(stream: &mut UnixStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The handshake, then requests until the client or the power goes.
fn serve(mut stream: UnixStream, state: &Mutex<State>) -> std::io::Result<()> {
    negotiate(&mut stream, lock(state).size)?;
    loop {
        let header: [u8; 28] = number(&mut stream)?;
        let field = |from: usize, to: usize| {
            header[from..to]
                .iter()
                .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let (flags, kind) = (field(4, 6), field(6, 8));
        let (at, length) = (field(16, 24), usize::try_from(field(24, 28)).unwrap());
        if length > LARGEST {
            return Err(std::io::Error::other("a request that is too large"));
        }
        let mut data = vec![0; if kind == 1 { length } else { 0 }];
        stream.read_exact(&mut data)?;
        let (error, answer) = {
            let mut state = lock(state);
            if state.burns(kind) {
                // In the cache at most, and never answered: who waits for it waits until the machine is off.
                if kind == 1 {
                    state.write(at, &data, false)?;
                }
                state.off = true;
            }
            if state.off {
                continue;
            }
            let through = flags & 1 != 0;
            let failing = state.health == Health::Failing;
            let done = match kind {
                0 => state.read(at, length),
                1 | 3 | 6 if failing => Err(std::io::Error::other("a failing disk")),
                1 => state.write(at, &data, through).map(|()| Vec::new()),
                6 => state.write(at, &vec![0; length], through).map(|()| Vec::new()),
                3 => state.flush().map(|()| Vec::new()),
                // A drive may keep what is trimmed.
                4 => Ok(Vec::new()),
                _ => return Ok(()),
            };
            match done {
                Ok(answer) => (0_u32, answer),
                Err(_) => (5, Vec::new()),
            }
        };
        let mut reply = Vec::with_capacity(16 + answer.len());
        reply.extend_from_slice(&0x6744_6698_u32.to_be_bytes());
        reply.extend_from_slice(&error.to_be_bytes());
        reply.extend_from_slice(&header[8..16]);
        reply.extend_from_slice(&answer);
        stream.write_all(&reply)?;
    }
}

/// Fixed newstyle: QEMU asks with GO for the one export there is.
fn negotiate(stream: &mut UnixStream, size: u64) -> std::io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let _client_flags: [u8; 4] = number(stream)?;
    loop {
        let _magic: [u8; 8] = number(stream)?;
        let option = u32::from_be_bytes(number(stream)?);
        let length = u32::from_be_bytes(number(stream)?);
        let mut data = vec![0; usize::try_from(length).unwrap().min(4096)];
        stream.read_exact(&mut data)?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
            bytes.extend_from_slice(&option.to_be_bytes());
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(data);
            stream.write_all(&bytes)
        };
        match option {
            // INFO and GO: size and flags, then the block sizes.
            6 | 7 => {
                let mut export = 0_u16.to_be_bytes().to_vec();
                export.extend_from_slice(&size.to_be_bytes());
                export.extend_from_slice(&FLAGS.to_be_bytes());
                reply(3, &export)?;
                let mut blocks = 3_u16.to_be_bytes().to_vec();
                for value in [SECTOR, 4096, LARGEST] {
                    blocks.extend_from_slice(&u32::try_from(value).unwrap().to_be_bytes());
                }
                reply(3, &blocks)?;
                reply(1, &[])?;
                if option == 7 {
                    return Ok(());
                }
            }
            2 => {
                reply(1, &[])?;
                return Err(std::io::Error::other("the client gave up"));
            }
            _ => reply(0x8000_0001, &[])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * SECTOR as u64).unwrap();
        State::new(file)
    }

    fn disk(state: State) -> (Disk, Arc<Mutex<State>>) {
        let state = Arc::new(Mutex::new(state));
        let socket = PathBuf::from("/nonexistent");
        (
            Disk {
                state: Arc::clone(&state),
                socket,
            },
            state,
        )
    }

    #[test]
    fn only_what_was_flushed_is_there_after_a_cut() {
        let mut state = state();
        state.write(0, &[1; 2 * SECTOR], false).unwrap();
        state.flush().unwrap();
        state.write(0, &[2; SECTOR], false).unwrap();
        state.write(4 * SECTOR as u64, &[3; SECTOR], true).unwrap();
        assert_eq!(state.read(0, 2 * SECTOR).unwrap()[..SECTOR + 1], {
            let mut expected = vec![2; SECTOR];
            expected.push(1);
            expected
        });
        let (disk, state) = disk(state);
        let account = disk.cut(Cut::Clean);
        assert_eq!((account.unflushed, account.kept), (1, 0));
        let state = lock(&state);
        assert_eq!(state.read(0, SECTOR).unwrap(), [1; SECTOR]);
        assert_eq!(state.read(4 * SECTOR as u64, SECTOR).unwrap(), [3; SECTOR]);
    }

    #[test]
    fn a_torn_cut_keeps_some_loses_some_and_repeats_by_seed() {
        let outcome = |seed| {
            let mut state = state();
            for number in 0..8_u8 {
                state
                    .write(u64::from(number) * SECTOR as u64, &[number + 1; SECTOR], false)
                    .unwrap();
            }
            let (disk, state) = disk(state);
            disk.cut(Cut::Torn(seed));
            let all = lock(&state).read(0, 8 * SECTOR).unwrap();
            all.chunks(SECTOR).map(|it| it[0]).collect::<Vec<u8>>()
        };
        let all: Vec<Vec<u8>> = (0..20).map(outcome).collect();
        assert_eq!(all[3], outcome(3));
        let kept = |it: &Vec<u8>| it.iter().filter(|byte| **byte != 0).count();
        assert!(
            all.iter().any(|it| kept(it) > 0) && all.iter().any(|it| kept(it) < 8),
            "{all:?}"
        );
    }
}
