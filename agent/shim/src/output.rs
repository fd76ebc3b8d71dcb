//! A container's output: two pipes, or a terminal, read without waiting, cut into lines, written to its ring; and the other
//! end of its input.
//!
//! Always holds: one wake-up reads at most [`MAX_ROUND`] bytes of a stream, so a chatty container cannot starve the others;
//! the big buffer lives for one wake-up only, because an idle shim is to be small.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use skiff_sys::container::Stdio;
use skiff_sys::{KernelError, process, terminal};

use crate::lines::Lines;
use crate::protocol::LogState;
use crate::ring::{RingError, Stream, Writer};

/// Bytes of a stream that are read in one go. Large enough for the allocator to give it back to the kernel at once.
const BUFFER: usize = 256 * 1024;

/// Bytes of a stream that are read in one wake-up.
const MAX_ROUND: usize = 1 << 20;

/// Attempts whose rings are kept: this one and, for `logs --previous`, the one before.
const KEPT_ATTEMPTS: u32 = 2;

/// Why a container's output has nowhere to go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("log directory {path}: {cause}")]
    Directory { path: String, cause: io::Error },
}

/// The shim's side of a container's output.
#[derive(Debug)]
pub(crate) struct Output {
    streams: [Option<File>; 2],
    lines: [Lines; 2],
    writer: Writer,
    /// Over which the terminal comes when the container has made it.
    console: Option<UnixStream>,
    /// The container's end of its terminal: while it is open, ours can be read.
    slave: Option<OwnedFd>,
    /// The other end of its standard input, for whoever attaches.
    stdin: Option<OwnedFd>,
}

/// What a container's streams are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    /// A terminal instead of pipes.
    pub(crate) tty: bool,
    /// An input that stays open, instead of nothing.
    pub(crate) stdin: bool,
    /// Whose they are: programs that are not root reopen them as `/dev/stdout`.
    pub(crate) uid: u32,
}

/// Index of each stream.
const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl Output {
    /// Makes the ring `<dir>/<attempt>.ring` and the streams.
    pub(crate) fn create(
        dir: &Path,
        attempt: u32,
        capacity: u64,
        wanted: Streams,
    ) -> Result<(Self, Stdio), OutputError> {
        let directory = |cause| OutputError::Directory {
            path: dir.display().to_string(),
            cause,
        };
        std::fs::create_dir_all(dir).map_err(directory)?;
        remove_old(dir, attempt).map_err(directory)?;
        let writer = Writer::create(&dir.join(format!("{attempt}.ring")), capacity)?;
        let null = || File::options().read(true).write(true).open("/dev/null");
        let mut output = Self {
            streams: [None, None],
            lines: Default::default(),
            writer,
            console: None,
            slave: None,
            stdin: None,
        };
        let mut stdio = Stdio {
            stdin: null().map_err(directory)?.into(),
            stdout: null().map_err(directory)?.into(),
            stderr: null().map_err(directory)?.into(),
            console: None,
        };
        if wanted.tty {
            let (ours, theirs) = UnixStream::pair().map_err(directory)?;
            ours.set_nonblocking(true).map_err(directory)?;
            output.console = Some(ours);
            stdio.console = Some(theirs.into());
            return Ok((output, stdio));
        }
        if wanted.stdin {
            let (theirs, ours) = process::pipe()?;
            process::set_nonblocking(&ours)?;
            fchown(&theirs, Some(wanted.uid), None).map_err(directory)?;
            (output.stdin, stdio.stdin) = (Some(ours), theirs);
        }
        for (ours, theirs) in output
            .streams
            .iter_mut()
            .zip([&mut stdio.stdout, &mut stdio.stderr])
        {
            let (reader, writer) = process::unbreakable_pipe()?;
            fchown(&writer, Some(wanted.uid), None).map_err(directory)?;
            (*ours, *theirs) = (Some(File::from(reader)), writer);
        }
        Ok((output, stdio))
    }

    /// Takes the terminal, if it has come.
    fn take_terminal(&mut self) {
        let Some(console) = &self.console else { return };
        match terminal::receive(console.as_fd()) {
            Ok(None) => {}
            Ok(Some(terminal)) => {
                self.streams[0] = Some(File::from(terminal.master));
                self.slave = Some(terminal.slave);
                self.console = None;
            }
            // The start has failed, which is told elsewhere.
            Err(_) => self.console = None,
        }
    }

    /// Descriptors that have output when they are readable.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let console = self.console.iter().map(AsFd::as_fd);
        self.streams.iter().flatten().map(AsFd::as_fd).chain(console)
    }

    /// Writes what has come to the ring.
    pub(crate) fn drain(&mut self) {
        self.read(MAX_ROUND);
    }

    /// The container has ended: reads all that it left in the pipes, and closes them.
    pub(crate) fn finish(&mut self) {
        // A pipe holds at most what the kernel lets a user set; what outlives the container cannot keep us here.
        self.read(8 * MAX_ROUND);
        self.streams = [None, None];
        (self.console, self.slave, self.stdin) = (None, None, None);
        let now = process::unix_ns();
        for (stream, lines) in STREAMS.iter().zip(&mut self.lines) {
            lines.finish(&mut |bytes, partial| self.writer.append(*stream, now, partial, bytes));
        }
        self.writer.flush();
    }

    fn read(&mut self, limit: usize) {
        self.take_terminal();
        let mut buffer = vec![0; BUFFER];
        let Self {
            streams,
            lines,
            writer,
            ..
        } = self;
        for ((stream, end), lines) in STREAMS.iter().zip(streams).zip(lines) {
            let mut left = limit;
            while left > 0 {
                let Some(file) = end else { break };
                match file.read(&mut buffer) {
                    Ok(0) => *end = None,
                    Ok(n) => {
                        let now = process::unix_ns();
                        lines.feed(&buffer[..n], &mut |bytes, partial| {
                            writer.append(*stream, now, partial, bytes);
                        });
                        left = left.saturating_sub(n);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        }
        writer.flush();
    }

    /// Position of the ring.
    pub(crate) fn state(&self) -> LogState {
        let bounds = self.writer.bounds();
        LogState {
            path: self.writer.path().to_owned(),
            oldest: bounds.oldest,
            end: bounds.end,
            dropped_records: bounds.dropped_records,
        }
    }
}

/// Removes rings of attempts that nobody asks for any more.
fn remove_old(dir: &Path, attempt: u32) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_suffix(".ring")?.parse::<u32>().ok());
        if number.is_some_and(|number| number.saturating_add(KEPT_ATTEMPTS) <= attempt) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
