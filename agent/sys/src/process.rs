//! Processes: forking from a single-threaded caller, reports over a pipe, pidfds, identity by start time, reaping.
//!
//! Always holds: [`fork_child`] refuses in a process with more than one thread, because the child allocates; the child never
//! returns into its caller's stack, it `_exit`s; descriptors made here are close-on-exec.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Doing, KernelError, Result, check};
use crate::mount;

/// Longest report that a child may send, bytes.
pub const MAX_REPORT: usize = 64 * 1024;

/// A forked child that owes a report. Dropping it does not kill the child.
#[derive(Debug)]
pub struct Child {
    /// Its process id; the caller reaps it.
    pub pid: i32,
    report: OwnedFd,
    received: Vec<u8>,
}

/// What is known of a child's report.
#[derive(Debug)]
pub enum Report<T> {
    /// It has not come yet.
    Pending,
    /// It came.
    Done(T),
    /// The child ended without one, or sent something else.
    Lost,
}

impl Child {
    /// Becomes readable when there is something for [`Child::poll`].
    #[must_use]
    pub fn report_fd(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Reads what has come, without waiting. The report is framed by its length, not by end of file, because
    /// descendants may hold the pipe open.
    pub fn poll<T: DeserializeOwned>(&mut self) -> Report<T> {
        let mut chunk = [0; 1024];
        loop {
            match nix::unistd::read(self.report.as_raw_fd(), &mut chunk) {
                Ok(0) => return Report::Lost,
                Ok(n) => {
                    self.received.extend_from_slice(&chunk[..n]);
                    if let Some(report) = self.parse() {
                        return report;
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Report::Pending,
                Err(_) => return Report::Lost,
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self) -> Option<Report<T>> {
        let (length, body) = self.received.split_first_chunk::<4>()?;
        let length = u32::from_ne_bytes(*length) as usize;
        if length > MAX_REPORT {
            return Some(Report::Lost);
        }
        let body = body.get(..length)?;
        Some(postcard::from_bytes(body).map_or(Report::Lost, Report::Done))
    }

    /// Waits for the report; `Pending` when `timeout` passes first.
    pub fn wait<T: DeserializeOwned>(&mut self, timeout: Duration) -> Report<T> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.poll() {
                Report::Pending => {}
                report => return report,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Report::Pending;
            }
            let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
            let mut fds = [PollFd::new(self.report.as_fd(), PollFlags::POLLIN)];
            let _ = nix::poll::poll(&mut fds, PollTimeout::from(millis));
        }
    }
}

/// Runs `work` in a forked child and has it report what `work` returns.
///
/// The child unblocks all signals, so that a signal mask of the caller does not end in a container. The caller reaps it.
///
/// # Errors
/// When this process has more than one thread, or the kernel has no room for a child.
pub fn fork_child<T: Serialize>(work: impl FnOnce() -> T) -> Result<Child> {
    let threads = fs::read_dir("/proc/self/task")
        .doing("list", "/proc/self/task")?
        .count();
    if threads != 1 {
        let cause = io::Error::other(format!("{threads} threads are running"));
        return Err(cause).doing("fork", "a process that is not single-threaded");
    }
    let (report, sender) = nix::unistd::pipe2(OFlag::O_CLOEXEC).doing("make", "a pipe")?;
    // SAFETY: the process has one thread (checked above), so no lock, the allocator's included, is held by a thread
    // that will not exist in the child; the child leaves by `_exit` and never returns from this function.
    match unsafe { nix::unistd::fork() }.doing("fork", "a child")? {
        ForkResult::Child => {
            drop(report);
            // A panic must not unwind into the caller's frames, which belong to the parent.
            let code = std::panic::catch_unwind(AssertUnwindSafe(|| run_child(work, sender))).unwrap_or(1);
            // SAFETY: `_exit` ends the process without running the parent's atexit handlers.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            drop(sender);
            set_nonblocking(&report)?;
            Ok(Child {
                pid: child.as_raw(),
                report,
                received: Vec::new(),
            })
        }
    }
}

fn run_child<T: Serialize>(work: impl FnOnce() -> T, sender: OwnedFd) -> i32 {
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
    // Rust programs ignore SIGPIPE, whoever started the agent may ignore more, and `execve` hands all that down.
    for number in 1..=31 {
        // SAFETY: no handler is installed, only the default disposition. It fails for SIGKILL and SIGSTOP.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let Ok(report) = postcard::to_extend(&work(), Vec::new()) else {
        return 1;
    };
    if report.len() > MAX_REPORT {
        return 1;
    }
    let mut frame = (report.len() as u32).to_ne_bytes().to_vec();
    frame.extend_from_slice(&report);
    match fs::File::from(sender).write_all(&frame) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// Makes reads and writes return instead of waiting.
///
/// # Errors
/// When the descriptor takes no flags.
pub fn set_nonblocking(fd: &impl AsFd) -> Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    let raw = fd.as_fd().as_raw_fd();
    let flags = fcntl(raw, FcntlArg::F_GETFL).doing("read the flags of descriptor", raw)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(raw, FcntlArg::F_SETFL(flags)).doing("set the flags of descriptor", raw)?;
    Ok(())
}

/// A pair of pipes' ends, close-on-exec: `(read, write)`.
///
/// # Errors
/// When descriptors run out.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).doing("make", "a pipe")
}

/// A pipe whose writing end does not break when the last reader goes: `(read, write)`, the read end non-blocking.
///
/// The writing end is open for reading too, so a container whose shim has died waits on a full pipe instead of being
/// killed by SIGPIPE. For the same reason its end of file is never seen: its process's exit is what counts.
///
/// # Errors
/// When descriptors run out.
pub fn unbreakable_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe()?;
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let both = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .doing("reopen", &path)?;
    set_nonblocking(&reader)?;
    Ok((reader, both.into()))
}

/// A process that cannot be mistaken for another one, whatever its number is reused for.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process `pid`; with `start_time`, only if it is still the one that started then.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process.
    pub fn open(pid: i32, start_time: Option<u64>) -> Result<Self> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor, or -1.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).doing("open process", pid)?;
        // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        if let Some(expected) = start_time
            && self::start_time(pid)? != expected
        {
            return Err(io::Error::from_raw_os_error(libc::ESRCH)).doing("open process", pid);
        }
        Ok(Self(fd))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `ESRCH` when the process has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let null = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open for as long as `self` lives; a null siginfo is allowed.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, null, 0) };
        check(sent).doing("send signal", signal).map(drop)
    }

    /// Whether the process has ended, waiting up to `timeout`.
    #[must_use]
    pub fn ended(&self, timeout: Duration) -> bool {
        let millis = u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        matches!(nix::poll::poll(&mut fds, PollTimeout::from(millis)), Ok(1..))
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
///
/// # Errors
/// `ENOENT` or `ESRCH` when there is no such process.
pub fn start_time(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).doing("read", &path)?;
    // The command's name may hold spaces and brackets, so the fields are counted after the last bracket.
    let field = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19));
    field
        .and_then(|value| value.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        .doing("parse", &path)
}

/// Whether the process `pid` that started at `start_time` is there and is not a zombie.
#[must_use]
pub fn is_alive(pid: i32, start_time: u64) -> bool {
    self::start_time(pid).is_ok_and(|now| now == start_time) && !is_zombie(pid)
}

pub(crate) fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}

/// Gives back the pages of this program's file that are mapped now: code, and data that is only read. Those that are used
/// are mapped again from the page cache as they are touched. A start touches several times what an idle program does.
///
/// # Errors
/// When `/proc` cannot be read, or the kernel refuses.
pub fn unmap_program() -> Result<()> {
    let maps = fs::read_to_string("/proc/self/smaps").doing("read", "/proc/self/smaps")?;
    let own = fs::read_link("/proc/self/exe").doing("read", "/proc/self/exe")?;
    for (start, end) in unchanged_parts(&maps, &own) {
        // SAFETY: the range is a mapping of a file that cannot be written through, and no page of it differs from the file:
        // the kernel counts none as anonymous. What is dropped comes back unchanged at the next touch, this very function
        // included.
        let done = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        check(done.into()).doing("unmap pages of", own.display())?;
    }
    Ok(())
}

/// The mappings of `program` in an `smaps` that cannot be written and have no page of their own (proc(5)).
fn unchanged_parts(smaps: &str, program: &Path) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        if first == "Anonymous:" {
            // Relocated data was written once and then protected: it would be lost.
            found.extend(candidate.take().filter(|_| second == "0"));
        } else if let Some((start, end)) = first.split_once('-') {
            let bounds = usize::from_str_radix(start, 16)
                .ok()
                .zip(usize::from_str_radix(end, 16).ok());
            let ours = matches!(second, "r-xp" | "r--p") && words.nth(3).map(Path::new) == Some(program);
            candidate = bounds.filter(|_| ours);
        }
    }
    found
}

/// Writes over this process's arguments, environment and name, as others see them. Best effort: it is for whoever looks.
pub(crate) fn set_title(title: &str) {
    let name = std::ffi::CString::new(title).unwrap_or_default();
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, which outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return;
    };
    // arg_start, arg_end, env_start and env_end are fields 48 to 51; what follows the name begins with field 3.
    let bounds: Vec<usize> = fields
        .split_ascii_whitespace()
        .skip(48 - 3)
        .map_while(|field| field.parse().ok())
        .collect();
    let [arguments, arguments_end, environment, environment_end, ..] = bounds[..] else {
        return;
    };
    for (start, end, text) in [
        (arguments, arguments_end, title),
        (environment, environment_end, ""),
    ] {
        if start == 0 || end <= start {
            continue;
        }
        // SAFETY: the kernel says that these bytes of our stack hold the arguments and the environment; they are ours to
        // write, nobody in this process looks at them any more, and no more than their length is written.
        unsafe {
            std::ptr::write_bytes(start as *mut u8, 0, end - start);
            std::ptr::copy_nonoverlapping(text.as_ptr(), start as *mut u8, text.len().min(end - start - 1));
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Signaled(i32),
}

impl Ended {
    /// The exit code as a shell and Kubernetes give it: 128 + signal for a signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }

    /// The signal, if one ended it.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Exited(_) => None,
            Self::Signaled(signal) => Some(signal),
        }
    }
}

/// How the process of a wait status ended; one that has not ended counts as 0.
pub(crate) fn ended(status: WaitStatus) -> Ended {
    match status {
        WaitStatus::Signaled(_, signal, _) => Ended::Signaled(signal as i32),
        WaitStatus::Exited(_, code) => Ended::Exited(code),
        _ => Ended::Exited(0),
    }
}

/// The next child that has ended, if any. Every child of the process is waited for: helpers, containers' first
/// processes and orphans that a subreaper is given.
pub fn reap() -> Option<(i32, Ended)> {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => return Some((pid.as_raw(), Ended::Exited(code))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                return Some((pid.as_raw(), Ended::Signaled(signal as i32)));
            }
            Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return None,
            Ok(_) | Err(_) => {}
        }
    }
}

/// Makes this process the parent of its orphaned descendants.
///
/// # Errors
/// Before Linux 3.4.
pub fn become_subreaper() -> Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes one integer.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    check(done.into()).doing("become", "a subreaper").map(drop)
}

/// Starts a session, so that no signal of the agent's terminal or group reaches us.
///
/// # Errors
/// When this process leads a group.
pub fn new_session() -> Result<()> {
    nix::unistd::setsid().doing("start", "a session").map(drop)
}

/// Sends a signal to a process that the caller knows not to have been reaped.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: kill takes two integers.
    check(unsafe { libc::kill(pid, signal) }.into())
        .doing("signal process", pid)
        .map(drop)
}

/// Sets this process's `oom_score_adj`. Lowering it needs CAP_SYS_RESOURCE.
///
/// # Errors
/// `EACCES` when it may not be lowered.
pub fn set_oom_score_adj(value: i32) -> Result<()> {
    fs::write("/proc/self/oom_score_adj", value.to_string()).doing("set", "/proc/self/oom_score_adj")
}

/// Resource limits by their names in the OCI runtime specification.
#[allow(clippy::unnecessary_cast, reason = "musl has them as signed numbers")]
const RLIMITS: [(&str, u32); 16] = [
    ("RLIMIT_AS", libc::RLIMIT_AS as u32),
    ("RLIMIT_CORE", libc::RLIMIT_CORE as u32),
    ("RLIMIT_CPU", libc::RLIMIT_CPU as u32),
    ("RLIMIT_DATA", libc::RLIMIT_DATA as u32),
    ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE as u32),
    ("RLIMIT_LOCKS", libc::RLIMIT_LOCKS as u32),
    ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK as u32),
    ("RLIMIT_MSGQUEUE", libc::RLIMIT_MSGQUEUE as u32),
    ("RLIMIT_NICE", libc::RLIMIT_NICE as u32),
    ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE as u32),
    ("RLIMIT_NPROC", libc::RLIMIT_NPROC as u32),
    ("RLIMIT_RSS", libc::RLIMIT_RSS as u32),
    ("RLIMIT_RTPRIO", libc::RLIMIT_RTPRIO as u32),
    ("RLIMIT_RTTIME", libc::RLIMIT_RTTIME as u32),
    ("RLIMIT_SIGPENDING", libc::RLIMIT_SIGPENDING as u32),
    ("RLIMIT_STACK", libc::RLIMIT_STACK as u32),
];

/// Sets a resource limit of this process.
///
/// # Errors
/// `EINVAL` for a name that is none, `EPERM` when the hard limit may not be raised.
pub(crate) fn set_rlimit(limit: &crate::config::Rlimit) -> Result<()> {
    let number = RLIMITS.iter().find(|(name, _)| *name == limit.kind);
    let &(_, number) = number
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
        .doing("set", &limit.kind)?;
    let value = libc::rlimit64 {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: prlimit64 reads one structure of its own layout, which outlives the call; 0 is this process.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, number, &raw const value, none) })
        .doing("set", &limit.kind)
        .map(drop)
}

/// Nanoseconds since 1970 by the system clock.
#[must_use]
pub fn unix_ns() -> i64 {
    clock(nix::time::ClockId::CLOCK_REALTIME)
}

/// Nanoseconds since boot, suspension included.
#[must_use]
pub fn boot_ns() -> u64 {
    clock(nix::time::ClockId::CLOCK_BOOTTIME).unsigned_abs()
}

fn clock(id: nix::time::ClockId) -> i64 {
    // Both clocks exist on every kernel we run on; 0 is what an unset clock shows as well.
    id.now().map_or(0, |time| {
        i64::try_from(Duration::from(time).as_nanos()).unwrap_or(i64::MAX)
    })
}

/// User id of the process at the other end of a unix socket, as it was when it connected.
///
/// # Errors
/// When the descriptor is no unix socket.
pub fn peer_uid(socket: &impl AsFd) -> Result<u32> {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let fd = socket.as_fd();
    Ok(getsockopt(&fd, PeerCredentials)
        .doing("read the peer of descriptor", fd.as_raw_fd())?
        .uid())
}

/// The executable from which shims are to be run: this process's own, on a read-only bind mount.
///
/// A process in a container can open `/proc/<pid>/exe` of a helper that enters the container, and with it overwrite
/// the node's binary (CVE-2019-5736). A sealed memfd per helper would stop it too, but each costs the binary's size in
/// memory; one read-only mount is shared by all shims through the page cache, costs nothing, and keeps the old file for
/// the old shims when an upgrade replaces it by rename. It is executable even where `bin_dir` is mounted `noexec`.
///
/// # Errors
/// When `bin_dir` cannot be written or bind-mounted.
pub fn seal_self(bin_dir: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let own = Path::new("/proc/self/exe");
    let target = bin_dir.join("skiff-agent");
    fs::create_dir_all(bin_dir).doing_path("make", bin_dir)?;
    if mount::is_mount_point(&target)? {
        let (ours, theirs) = (fs::metadata(own).doing_path("read", own)?, fs::metadata(&target));
        let same = |theirs: &fs::Metadata| (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino());
        if theirs.as_ref().is_ok_and(same) {
            return Ok(target);
        }
        mount::detach(&target)?;
    }
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&target)
        .doing_path("make", &target)?;
    mount::bind(own, &target, true)?;
    Ok(target)
}

/// Replaces the error of a process that is gone by `Ok`.
pub(crate) fn ignore_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(KernelError { cause, .. }) if cause.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_pid_and_start_time() {
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = sleeper.id() as i32;
        let started = start_time(pid).unwrap();
        assert!(is_alive(pid, started));
        assert!(!is_alive(pid, started + 1));
        assert!(PidFd::open(pid, Some(started + 1)).unwrap_err().is(libc::ESRCH));
        let handle = PidFd::open(pid, Some(started)).unwrap();
        assert!(!handle.ended(Duration::ZERO));
        handle.signal(libc::SIGKILL).unwrap();
        assert!(handle.ended(Duration::from_secs(5)));
        assert!(!is_alive(pid, started), "a zombie is not alive");
        sleeper.wait().unwrap();
        assert!(handle.signal(libc::SIGKILL).unwrap_err().is(libc::ESRCH));
    }

    #[test]
    fn forking_is_refused_while_there_are_threads() {
        // The test harness itself runs tests on a second thread.
        let error = fork_child(|| 0).unwrap_err();
        assert!(error.to_string().contains("threads are running"), "{error}");
    }

    #[test]
    fn the_sealed_copy_runs_and_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let sealed = seal_self(dir.path()).unwrap();
        assert_eq!(
            seal_self(dir.path()).unwrap(),
            sealed,
            "the second call finds the first one's mount"
        );
        assert_eq!(mount::mounts_under(dir.path()).unwrap().len(), 1);
        assert!(
            std::process::Command::new(&sealed)
                .arg("--list")
                .output()
                .unwrap()
                .status
                .success()
        );
        let refused = fs::OpenOptions::new().write(true).open(&sealed).unwrap_err();
        assert!(
            matches!(refused.raw_os_error(), Some(libc::EROFS | libc::ETXTBSY)),
            "{refused}"
        );
        mount::unmount_all_under(dir.path()).unwrap();
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        assert_eq!(Ended::Exited(3).code(), 3);
        assert_eq!(Ended::Signaled(9).code(), 137);
        assert_eq!(Ended::Signaled(9).signal(), Some(9));
    }
}

#[cfg(test)]
mod program_tests {
    use super::*;

    #[test]
    fn only_what_equals_the_file_is_given_back() {
        let part = |range: &str, mode: &str, file: &str, anonymous: u32| {
            format!(
                "{range} {mode} 00000000 fe:00 12 {file}\nSize: 4 kB\nAnonymous: {anonymous} kB\nVmFlags: rd\n"
            )
        };
        let smaps = [
            part("1000-2000", "r--p", "/bin/a", 0),
            part("2000-3000", "r-xp", "/bin/a", 0),
            part("3000-4000", "r--p", "/bin/a", 4),
            part("4000-5000", "rw-p", "/bin/a", 0),
            part("5000-6000", "r-xp", "/bin/b", 0),
            part("6000-7000", "r--p", "", 0),
        ]
        .concat();
        assert_eq!(
            unchanged_parts(&smaps, Path::new("/bin/a")),
            [(0x1000, 0x2000), (0x2000, 0x3000)]
        );
        unmap_program().unwrap();
    }
}
