//! The one error of the plain system call wrappers: what was being done, to what, and the kernel's word.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// A system call that failed. The cause is in the message, once; there is no `source`.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {subject}: {cause}")]
pub struct KernelError {
    /// What was being done, as a verb.
    pub action: &'static str,
    /// What it was done to: a path, a pid, a device.
    pub subject: String,
    /// The kernel's word.
    pub cause: io::Error,
}

/// Result of a system call wrapper.
pub type Result<T> = std::result::Result<T, KernelError>;

impl KernelError {
    /// Whether the kernel answered with this error number.
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        self.cause.raw_os_error() == Some(errno)
    }
}

/// Attaches to an error what was being done.
pub(crate) trait Doing<T> {
    /// `cannot <action> <subject>: <cause>`.
    fn doing(self, action: &'static str, subject: impl Display) -> Result<T>;
    /// The same for a path.
    fn doing_path(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, action: &'static str, subject: impl Display) -> Result<T> {
        self.map_err(|cause| KernelError {
            action,
            subject: subject.to_string(),
            cause: cause.into(),
        })
    }

    fn doing_path(self, action: &'static str, path: &Path) -> Result<T> {
        self.doing(action, path.display())
    }
}

/// Turns a C return value into a result: -1 means `errno`.
pub(crate) fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}
