//! A medium that forgets: what was written and not synced is lost, kept or torn when the power goes.
//!
//! Always holds: what a sync reported stays, unless the medium was made to lie; each operation can be the last one.

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use skiff_journal::{Presence, Segment, SegmentSize, Storage};
use skiff_tests::rng::Rng;

/// What a medium writes as one.
const SECTOR: usize = 512;

/// What goes wrong, by the number of the operation; 0 is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fault {
    /// So many operations fail, from this one on.
    pub(crate) errors: (u64, u64),
    /// The power goes in the middle of this one.
    pub(crate) power: u64,
}

#[derive(Clone, Default)]
struct Disk {
    segments: [Vec<u8>; 2],
    synced: [Vec<u8>; 2],
    /// Sectors that a power cut may or may not find written, in order.
    loose: [Vec<(usize, Vec<u8>)>; 2],
    published: bool,
    operations: u64,
    dead: bool,
}

/// A handle; clones share the medium.
#[derive(Clone)]
pub(crate) struct Medium {
    disk: Rc<RefCell<Disk>>,
    fault: Fault,
    lies: bool,
}

impl Medium {
    pub(crate) fn new(fault: Fault, lies: bool) -> Self {
        Self {
            disk: Rc::default(),
            fault,
            lies,
        }
    }

    pub(crate) fn operations(&self) -> u64 {
        self.disk.borrow().operations
    }

    /// What is found when the power is back; nothing goes wrong from then on.
    pub(crate) fn after_the_cut(&self, rng: &mut Rng) -> Self {
        let mut disk = self.disk.borrow().clone();
        for at in 0..2 {
            let kept = rng.below(3);
            for (offset, bytes) in std::mem::take(&mut disk.loose[at]) {
                let keep = match kept {
                    0 => false,
                    1 => true,
                    _ => rng.percent(50),
                };
                if keep {
                    disk.synced[at][offset..offset + bytes.len()].copy_from_slice(&bytes);
                }
            }
            disk.segments[at] = disk.synced[at].clone();
        }
        disk.dead = false;
        Self {
            disk: Rc::new(RefCell::new(disk)),
            fault: Fault::default(),
            lies: false,
        }
    }

    fn operation(&self) -> io::Result<()> {
        let mut disk = self.disk.borrow_mut();
        if disk.dead {
            return Err(io::ErrorKind::NotConnected.into());
        }
        disk.operations += 1;
        let now = disk.operations;
        let Fault {
            errors: (from, count),
            power,
        } = self.fault;
        disk.dead = now == power;
        if now == power || (from..from + count).contains(&now) {
            return Err(io::Error::other("the medium failed"));
        }
        Ok(())
    }
}

impl Storage for Medium {
    fn presence(&mut self) -> io::Result<Presence> {
        if self.disk.borrow().published {
            Ok(Presence::Whole)
        } else {
            Ok(Presence::Absent)
        }
    }

    fn create(&mut self) -> io::Result<SegmentSize> {
        self.operation()?;
        let size = SegmentSize::new(16 * 1024).map_err(io::Error::other)?;
        let zeros = vec![0; size.bytes() as usize];
        let mut disk = self.disk.borrow_mut();
        disk.segments = [zeros.clone(), zeros.clone()];
        disk.synced = [zeros.clone(), zeros];
        Ok(size)
    }

    fn publish(&mut self) -> io::Result<()> {
        self.operation()?;
        self.disk.borrow_mut().published = true;
        Ok(())
    }

    fn len(&mut self, segment: Segment) -> io::Result<u64> {
        Ok(self.disk.borrow().segments[segment.index()].len() as u64)
    }

    fn read_at(&mut self, segment: Segment, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let disk = self.disk.borrow();
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = disk.segments[segment.index()].get(offset..offset + into.len());
        into.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, segment: Segment, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let alive = !self.disk.borrow().dead;
        let result = self.operation();
        if alive {
            let mut disk = self.disk.borrow_mut();
            let (at, offset) = (
                segment.index(),
                usize::try_from(offset).map_err(io::Error::other)?,
            );
            // A write that fails may have gone half way.
            let done = if result.is_ok() {
                bytes.len()
            } else {
                bytes.len() / 2
            };
            disk.segments[at][offset..offset + done].copy_from_slice(&bytes[..done]);
            let first = offset / SECTOR * SECTOR;
            for sector in (first..offset + done).step_by(SECTOR) {
                let end = (sector + SECTOR).min(disk.segments[at].len());
                let content = disk.segments[at][sector..end].to_vec();
                disk.loose[at].push((sector, content));
            }
        }
        result
    }

    fn sync(&mut self, segment: Segment) -> io::Result<()> {
        self.operation()?;
        if !self.lies {
            let mut disk = self.disk.borrow_mut();
            let at = segment.index();
            disk.synced[at] = disk.segments[at].clone();
            disk.loose[at].clear();
        }
        Ok(())
    }

    fn nonce(&mut self) -> io::Result<u64> {
        Ok(42)
    }

    fn path(&self, segment: Segment) -> PathBuf {
        format!("medium/journal.{}", segment.index()).into()
    }
}
