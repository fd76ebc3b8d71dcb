//! libcontainer's own account of an error, which the errors it returns do not carry.
//!
//! Always holds: lines go to an anonymous file that the operation's process, the intermediate one and the container's first
//! process share, never to the container's standard error; the file is close-on-exec and at most [`MAX_BYTES`] long.

use std::fmt::{Debug, Write};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::cgroup;
use crate::error::{Doing, Result, check};

/// Bytes that are kept.
const MAX_BYTES: u64 = 16 * 1024;

/// Reads what [`install`]ed processes have written.
pub(super) struct Trace {
    file: File,
}

impl Trace {
    /// What errors said, the first (innermost) first.
    pub(super) fn errors(&self) -> impl Iterator<Item = String> {
        self.lines().into_iter().filter(|line| line != OUT_OF_MEMORY)
    }

    /// Whether the kernel had killed processes of the container for want of memory by the time of the last error.
    pub(super) fn out_of_memory(&self) -> bool {
        self.lines().iter().any(|line| line == OUT_OF_MEMORY)
    }

    fn lines(&self) -> Vec<String> {
        let mut bytes = vec![0; MAX_BYTES as usize];
        let n = self.file.read_at(&mut bytes, 0).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..n])
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

const OUT_OF_MEMORY: &str = "oom_kill";

/// Collects errors of this process and those that it forks from now on. `oom_file` is looked at whenever an error comes,
/// because libcontainer removes the cgroup, and with it the counter, before it returns.
pub(super) fn install(oom_file: &Path) -> Result<Trace> {
    // SAFETY: the name is NUL-terminated and outlives the call.
    let fd = check(unsafe { libc::memfd_create(c"skiff-trace".as_ptr(), libc::MFD_CLOEXEC) }.into())
        .doing("make", "an anonymous file")?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    let collector = Collector {
        file: file.try_clone().doing("share", "an anonymous file")?,
        oom: File::open(oom_file).ok(),
    };
    tracing::subscriber::set_global_default(collector)
        .map_err(io::Error::other)
        .doing("collect", "errors")?;
    Ok(Trace { file })
}

struct Collector {
    file: File,
    oom: Option<File>,
}

impl Collector {
    fn append(&self, mut line: String) {
        line = line.replace('\n', " ");
        line.push('\n');
        // Both handles and those of forked processes share one position, so nobody overwrites another's line.
        if self
            .file
            .metadata()
            .is_ok_and(|file| file.len() + line.len() as u64 <= MAX_BYTES)
        {
            let _ = io::Write::write_all(&mut &self.file, line.as_bytes());
        }
    }

    fn out_of_memory(&self) -> bool {
        let mut text = [0; 512];
        let read = self
            .oom
            .as_ref()
            .and_then(|file| file.read_at(&mut text, 0).ok())
            .unwrap_or(0);
        cgroup::field(&String::from_utf8_lossy(&text[..read]), "oom_kill").is_some_and(|count| count > 0)
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::ERROR)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.append(line.message + &line.fields);
        if self.out_of_memory() {
            self.append(OUT_OF_MEMORY.to_owned());
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
