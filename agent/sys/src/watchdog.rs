//! What ends or resets a process or a machine that no longer answers: an alarm of the kernel's, and `/dev/watchdog`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};

#[allow(missing_docs, reason = "what the macro makes has none")]
mod ioctl {
    // linux/watchdog.h: WATCHDOG_IOCTL_BASE is 'W'; the kernel gives back what it granted.
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
}

/// Has the kernel end this process with SIGALRM unless this is called again within so many seconds; 0 calls it off.
///
/// A process that is started by this one has no such alarm (alarm(2)).
pub fn end_me_after(seconds: u32) {
    match seconds {
        0 => nix::unistd::alarm::cancel(),
        seconds => nix::unistd::alarm::set(seconds),
    };
}

/// A watchdog device: it resets the machine when it is not fed.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
    seconds: u32,
}

impl Device {
    /// Opens it, which starts it, and asks for so many seconds. What it grants may be less: [`Device::seconds`].
    ///
    /// # Errors
    /// When it is not there, or somebody else has it (`EBUSY`).
    pub fn open(path: &Path, seconds: u32) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .open(path)
            .doing_path("open", path)?;
        let mut granted = i32::try_from(seconds).unwrap_or(i32::MAX);
        // SAFETY: WDIOC_SETTIMEOUT reads and writes one integer, which outlives the call.
        unsafe { ioctl::set_timeout(file.as_raw_fd(), &mut granted) }
            .doing_path("set the timeout of", path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            seconds: u32::try_from(granted).unwrap_or(seconds),
        })
    }

    /// After so many seconds without [`Device::feed`] it resets the machine.
    #[must_use]
    pub fn seconds(&self) -> u32 {
        self.seconds
    }

    /// Says that all is well.
    ///
    /// # Errors
    /// When the device does not take it.
    pub fn feed(&mut self) -> Result<()> {
        self.file.write_all(b".").doing_path("feed", &self.path)
    }

    /// Stops it, where the kernel lets it be stopped (not with `nowayout`).
    ///
    /// # Errors
    /// When the device does not take the word for it.
    pub fn stop(mut self) -> Result<()> {
        // The "magic close" of Documentation/watchdog/watchdog-api.rst.
        self.file.write_all(b"V").doing_path("stop", &self.path)
    }
}
