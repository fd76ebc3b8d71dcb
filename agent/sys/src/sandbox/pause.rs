//! The first process of a PID namespace that the containers of a Pod share: it waits for orphans, and for its end.
//!
//! Always holds: it is a fork of its caller, so it costs a few pages; it can see and do nothing: its root is an empty file
//! system that nobody can write, it has no descriptor, no capability and no user's rights, and the default filter. A
//! container that may trace it finds no way to the host through it.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid};

use crate::cgroup::Cgroups;
use crate::config::{Limits, SandboxConfig};
use crate::error::{Doing, Result, check};
use crate::{cap, mount, process, seccomp};

/// Its cgroup below the Pod's.
const GROUP: &str = "pause";

/// Its root, in the Pod's directory; what is mounted there only it sees.
const ROOT: &str = "root";

/// Its user and group, as those of the usual pause image.
const NOBODY: u32 = 65535;

/// As a kubelet has it: without it the Pod ends, so nearly anything else goes first.
const OOM_SCORE: i32 = -998;

/// What it says when it is ready; anything else is why it is not.
const READY: &str = "ready";

/// Starts the process and gives its id; it becomes the caller's parent's child when the caller ends.
pub(super) fn start(config: &SandboxConfig, cgroups: &Cgroups) -> Result<i32> {
    let group = format!("{}/{GROUP}", config.cgroup.path());
    cgroups.create(&group, &Limits::default())?;
    let root = config.ns_dir.join(ROOT);
    fs::create_dir_all(&root).doing_path("make", &root)?;
    unshare(CloneFlags::CLONE_NEWPID).doing("make the PID namespace of pod", &config.pod_uid)?;
    let (status, sender) = process::pipe()?;
    // SAFETY: `create` is called in a process with one thread (see `fork_child`); the child never returns.
    match unsafe { nix::unistd::fork() }.doing("fork", "the first process of a PID namespace")? {
        ForkResult::Child => {
            drop(status);
            become_pause(cgroups, &group, &root, sender)
        }
        ForkResult::Parent { child } => {
            drop(sender);
            let mut said = String::new();
            fs::File::from(status)
                .read_to_string(&mut said)
                .doing("start", "the first process of a PID namespace")?;
            if said == READY {
                return Ok(child.as_raw());
            }
            let _ = process::kill(child.as_raw(), libc::SIGKILL);
            let _ = waitpid(child, None);
            Err(io::Error::other(said)).doing("start", "the first process of a PID namespace")
        }
    }
}

fn become_pause(cgroups: &Cgroups, group: &str, root: &Path, status: OwnedFd) -> ! {
    let raw = status.as_raw_fd();
    let said = match prepare(cgroups, group, root, raw) {
        Ok(()) => READY.to_owned(),
        Err(error) => error.to_string(),
    };
    // SAFETY: the text outlives the call; the descriptor is open, and is closed here once: its owner is never dropped.
    unsafe {
        libc::write(raw, said.as_ptr().cast(), said.len());
        libc::close(raw);
    }
    if said == READY {
        wait_for_orphans();
    }
    // SAFETY: ends the process at once; there is nothing to unwind to.
    unsafe { libc::_exit(1) }
}

fn prepare(cgroups: &Cgroups, group: &str, root: &Path, status: RawFd) -> Result<()> {
    let filter = seccomp::default_filter(&[]);
    cgroups.join(group, 0)?;
    match process::set_oom_score_adj(OOM_SCORE) {
        Err(error) if error.is(libc::EACCES) => {}
        result => result?,
    }
    process::set_title("pause");
    nix::unistd::setsid().doing("start", "a session")?;
    leave_files(root)?;
    // SAFETY: whoever owns the descriptors in this process is never dropped: it waits until it is killed.
    unsafe {
        if status > 0 {
            libc::syscall(libc::SYS_close_range, 0, status - 1, 0);
        }
        check(libc::syscall(
            libc::SYS_close_range,
            status + 1,
            libc::c_uint::MAX,
            0,
        ))
    }
    .doing("close", "the host's descriptors")?;
    cap::drop_bounding(0)?;
    nix::unistd::setgroups(&[]).doing("clear", "supplementary groups")?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    nix::unistd::setresgid(gid, gid, gid).doing("become group", NOBODY)?;
    nix::unistd::setresuid(uid, uid, uid).doing("become user", NOBODY)?;
    cap::hold(0)?;
    // SAFETY: PR_SET_DUMPABLE takes one integer.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into()).doing("protect", "a process")?;
    nix::sys::prctl::set_no_new_privs().doing("set", "no_new_privs")?;
    seccomp::install(&filter)
}

/// Makes an empty file system that cannot be written the only one.
fn leave_files(root: &Path) -> Result<()> {
    const NONE: Option<&str> = None;
    mount::private_namespace()?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    nix::mount::mount(Some("tmpfs"), root, Some("tmpfs"), flags, Some("size=4k"))
        .doing_path("mount a tmpfs on", root)?;
    nix::unistd::chdir(root).doing_path("enter", root)?;
    nix::unistd::pivot_root(".", ".").doing_path("make the root of", root)?;
    // The old root lies on top of the new one.
    nix::mount::mount(NONE, ".", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .doing("leave", "the host's files")?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH).doing("leave", "the host's files")?;
    nix::unistd::chdir("/").doing("enter", "/")
}

fn wait_for_orphans() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    // Blocked, so that the signal of a child that ends between two looks waits.
    if signals.thread_block().is_err() {
        return;
    }
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        if signals.wait().is_err() {
            return;
        }
    }
}
