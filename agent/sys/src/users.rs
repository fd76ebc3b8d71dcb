//! User namespaces (`hostUsers: false`): one for a Pod, made with the namespaces that belong to it, and mounts that show its
//! ids.
//!
//! Always holds: nothing here leaves this process in a user namespace but [`Namespace::enter`]; ids that the range does not
//! cover are nobody's inside.
//!
//! ```text
//! this process ──fork──▶ maker: unshares the user namespace, says so, waits
//!      │  writes uid_map and gid_map, answers
//!      │                  becomes root inside, unshares the others, works, says what came of it, waits
//!      │  opens the user namespace, joins the others, answers; the maker ends
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use serde::{Serialize, de::DeserializeOwned};

use crate::config::{IdRange, Overlay};
use crate::error::{Doing, Result};
use crate::mount;
use crate::process::{self, PidFd};
use crate::tree::Tree;

/// How long the maker and this process wait for each other.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of what the maker says.
const MAX_WORD: usize = 16 * 1024;

/// A user namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
    range: IdRange,
}

impl Namespace {
    /// The one that is pinned at a path.
    pub(crate) fn open(path: &Path, range: IdRange) -> Result<Self> {
        let fd = File::open(path).doing_path("open", path)?.into();
        Ok(Self { fd, range })
    }

    /// The host's id of one inside.
    pub(crate) fn host_id(&self, id: u32) -> u32 {
        self.range.host(id)
    }

    /// Enters it, with all capabilities over what belongs to it and none over anything else. Ids stay what they are.
    pub(crate) fn enter(namespace: BorrowedFd<'_>) -> Result<()> {
        setns(namespace, CloneFlags::CLONE_NEWUSER).doing("enter", "the user namespace")
    }

    /// Enters it as its root.
    pub(crate) fn become_root(&self) -> Result<()> {
        Self::enter(self.as_fd())?;
        become_root()
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a user namespace, and in it namespaces of these `kinds`, which this process is in afterwards; `inside` is done in
/// all of them by root of the user namespace. Called in a process with one thread.
///
/// # Errors
/// When the kernel has no room for it or does not allow it, or `inside` fails. Some of `kinds` may have been entered then.
pub(crate) fn make<T: Serialize + DeserializeOwned>(
    range: IdRange,
    kinds: CloneFlags,
    inside: impl FnOnce() -> Result<T>,
) -> Result<(Namespace, T)> {
    let what = "a user namespace";
    let pair = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    );
    let (ours, theirs) = pair.doing("make", what)?;
    let (ours, theirs) = (UnixDatagram::from(ours), UnixDatagram::from(theirs));
    for end in [&ours, &theirs] {
        end.set_read_timeout(Some(PATIENCE)).doing("make", what)?;
    }
    let maker = process::fork_child(move || {
        let made = unshare(CloneFlags::CLONE_NEWUSER).doing("make", what);
        if !say(&theirs, &made) || !hears(&theirs) {
            return;
        }
        let done = become_root()
            .and_then(|()| unshare(kinds).doing("make", "its namespaces"))
            .and_then(|()| inside());
        if say(&theirs, &done) {
            hears(&theirs);
        }
    })?;
    let made = (|| {
        hear::<()>(&ours)?;
        let of = |file: &str| format!("/proc/{}/{file}", maker.pid);
        for file in ["uid_map", "gid_map"] {
            let path = of(file);
            fs::write(&path, format!("0 {} {}", range.first, range.count)).doing("write", path)?;
        }
        answer(&ours)?;
        let done = hear(&ours)?;
        let namespace = Namespace::open(Path::new(&of("ns/user")), range)?;
        if !kinds.is_empty() {
            setns(PidFd::open(maker.pid, None)?.as_fd(), kinds).doing("enter", "its namespaces")?;
        }
        answer(&ours)?;
        Ok((namespace, done))
    })();
    if made.is_err() {
        let _ = process::kill(maker.pid, libc::SIGKILL);
    }
    nix::sys::wait::waitpid(Pid::from_raw(maker.pid), None).doing("wait for", maker.pid)?;
    made
}

/// Root of the user namespace that this process is in.
fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).doing("clear", "supplementary groups")?;
    setresgid(gid, gid, gid).doing("become", "root's group")?;
    setresuid(uid, uid, uid).doing("become", "root")
}

fn say<T: Serialize>(to: &UnixDatagram, result: &Result<T>) -> bool {
    let word = result.as_ref().map_err(ToString::to_string);
    postcard::to_extend(&word, Vec::new()).is_ok_and(|bytes| to.send(&bytes).is_ok())
}

fn hear<T: DeserializeOwned>(from: &UnixDatagram) -> Result<T> {
    let mut bytes = vec![0; MAX_WORD];
    let heard = from.recv(&mut bytes).and_then(|count| {
        let word = postcard::from_bytes::<std::result::Result<T, String>>(&bytes[..count]);
        word.map_err(|_| io::ErrorKind::UnexpectedEof.into())
    });
    heard
        .and_then(|word| word.map_err(io::Error::other))
        .doing("make", "a user namespace")
}

fn answer(to: &UnixDatagram) -> Result<()> {
    to.send(&[0]).doing("make", "a user namespace").map(drop)
}

fn hears(from: &UnixDatagram) -> bool {
    from.recv(&mut [0]).is_ok_and(|count| count == 1)
}

/// Mounts an overlay whose layers show a user namespace's ids; `staged` is a directory for their mounts. What is written
/// to it belongs to the host's ids. In the container's mount namespace.
///
/// # Errors
/// As [`mount::overlay`], and when the layers' file system cannot map ids, or the kernel is older than 5.19.
pub(crate) fn overlay(config: &Overlay, staged: &Path, users: &Namespace) -> Result<()> {
    let lower = stage(&config.lower, staged, users.as_fd())?;
    // The root of the whole is the upper directory.
    fs::create_dir_all(&config.upper).doing_path("make", &config.upper)?;
    let root = Some(users.host_id(0));
    chown(&config.upper, root, root).doing_path("own", &config.upper)?;
    mount::overlay(&Overlay {
        lower,
        ..config.clone()
    })
}

/// Mounts layers below `staged` so that they show a user namespace's ids; gives where.
pub(crate) fn stage(layers: &[PathBuf], staged: &Path, users: BorrowedFd<'_>) -> Result<Vec<PathBuf>> {
    let one = |(number, layer): (usize, &PathBuf)| {
        let target = staged.join(number.to_string());
        fs::create_dir_all(&target).doing_path("make", &target)?;
        let tree = Tree::of(layer)?;
        tree.map_ids(users).doing_path("map the ids of", layer)?;
        tree.put(&target)?;
        Ok(target)
    };
    layers.iter().enumerate().map(one).collect()
}

/// What the last steps of a container's first process need to go in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entrance(std::os::fd::RawFd);

impl Entrance {
    /// By a descriptor that the process inherits.
    pub(crate) fn by(namespace: &Namespace) -> Self {
        Self(namespace.fd.as_raw_fd())
    }

    /// Enters it, and makes the mounts as they are now its own: who has a capability inside can mount, and can undo none of
    /// them.
    pub(crate) fn enter(self) -> Result<()> {
        // SAFETY: whoever opened it in the operation's process left it open for the children that it forked.
        let namespace = unsafe { BorrowedFd::borrow_raw(self.0) };
        Namespace::enter(namespace)?;
        unshare(CloneFlags::CLONE_NEWNS).doing("make", "a mount namespace")
    }
}
