//! A container's terminal: made inside of the container, from its own devpts, and handed to whoever reads and writes it.
//!
//! Always holds: the command gets the terminal as its three standard streams and as the controlling terminal of its
//! session; both ends are sent, because a terminal whose last user end is closed cannot be read any more.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::error::{Doing, Result, check};

/// The multiplexer, as the container sees it.
const MULTIPLEXER: &str = "/dev/ptmx";

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Terminal {
    /// What the program writes is read here, and what is written here it reads.
    pub master: OwnedFd,
    /// The program's end.
    pub slave: OwnedFd,
}

/// Makes a terminal, makes it this process's own, and sends both ends over `socket`. The process leads a session that has
/// no terminal yet.
pub(crate) fn become_console(socket: RawFd) -> Result<()> {
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(MULTIPLEXER)
        .doing("open", MULTIPLEXER)?;
    let unlock: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one integer, which outlives the call.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock) }.into())
        .doing("unlock", MULTIPLEXER)?;
    // By descriptor, not by name: what stands under the name is the image's business.
    // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor, or -1.
    let slave = check(
        unsafe {
            libc::ioctl(
                master.as_raw_fd(),
                libc::TIOCGPTPEER,
                libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
            )
        }
        .into(),
    )
    .doing("open the other end of", MULTIPLEXER)?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    let slave = unsafe { File::from_raw_fd(slave as i32) };
    let ends = [master.as_raw_fd(), slave.as_raw_fd()];
    sendmsg::<()>(
        socket,
        &[IoSlice::new(&[0])],
        &[ControlMessage::ScmRights(&ends)],
        MsgFlags::empty(),
        None,
    )
    .doing("send", "the terminal")?;
    // SAFETY: TIOCSCTTY takes one integer; 0 does not take a terminal from another session.
    check(unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) }.into())
        .doing("take as controlling terminal", MULTIPLEXER)?;
    for stream in 0..=2 {
        nix::unistd::dup2(slave.as_raw_fd(), stream).doing("use as standard stream", MULTIPLEXER)?;
    }
    Ok(())
}

/// Takes the terminal that has been sent over a non-blocking socket; `None` when it has not come yet.
///
/// # Errors
/// When the other end was closed without one, or something else came.
pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<Terminal>> {
    let mut byte = [0; 1];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Err(nix::Error::EAGAIN) => return Ok(None),
        message => message.doing("receive", "the terminal")?,
    };
    let mut ends = Vec::new();
    for part in message.cmsgs().doing("receive", "the terminal")? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel has just put these descriptors into our table, and nothing else owns them.
            ends.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let mut ends = ends.into_iter();
    match (ends.next(), ends.next()) {
        (Some(master), Some(slave)) => Ok(Some(Terminal { master, slave })),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)).doing("receive", "the terminal"),
    }
}
