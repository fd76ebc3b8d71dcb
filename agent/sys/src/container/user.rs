//! Whom a container's processes run as: its user and groups, with its capabilities, in its user namespace.
//!
//! Always holds: whoever has become the user holds the container's capabilities and, until the filter is in place, those
//! that installing it takes: see [`super::payload`].

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use nix::unistd::{Gid, Uid};

use super::Privileges;
use crate::cap;
use crate::config::{ContainerConfig, User};
use crate::error::{Doing, Result, check};
use crate::users::Entrance;

/// Bytes of `/etc/passwd` that are looked through for a home directory.
const MAX_PASSWD: u64 = 1 << 20;

/// Ids and capabilities to be taken on.
#[derive(Clone)]
pub(super) struct Become {
    user: User,
    privileges: Privileges,
    no_new_privileges: bool,
}

impl Become {
    pub(super) fn of(config: &ContainerConfig, privileges: &Privileges) -> Self {
        Self {
            user: config.user.clone(),
            privileges: *privileges,
            no_new_privileges: config.no_new_privileges,
        }
    }

    /// Ids and capabilities as the container's first process has them until its filter is in place.
    pub(super) fn now(&self) -> Result<()> {
        let keep = |on: libc::c_long| {
            // SAFETY: PR_SET_KEEPCAPS takes one integer.
            check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, on, 0, 0, 0) }.into())
                .doing("keep", "capabilities")
                .map(drop)
        };
        let Privileges {
            capabilities,
            until_filter,
            ..
        } = self.privileges;
        if until_filter == capabilities {
            // Else it is done with the filter: see `payload`.
            cap::drop_bounding(capabilities)?;
        }
        keep(1)?;
        let user = &self.user;
        let groups: Vec<Gid> = user.additional_gids.iter().copied().map(Gid::from_raw).collect();
        nix::unistd::setgroups(&groups).doing("set", "supplementary groups")?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        nix::unistd::setresgid(gid, gid, gid).doing("become group", user.gid)?;
        nix::unistd::setresuid(uid, uid, uid).doing("become user", user.uid)?;
        keep(0)?;
        cap::hold(until_filter)?;
        if self.no_new_privileges {
            nix::sys::prctl::set_no_new_privs().doing("set", "no_new_privs")?;
        }
        Ok(())
    }
}

/// A container's first process on its way into the user namespace. It comes as the host's root: libcontainer has made all
/// mounts as such, whose sources the Pod's own root could not reach.
#[derive(Clone)]
pub(super) struct Entry {
    entrance: Entrance,
    inside: Become,
}

impl Entry {
    pub(super) fn of(config: &ContainerConfig, privileges: &Privileges, entrance: Entrance) -> Self {
        Self {
            entrance,
            inside: Become::of(config, privileges),
        }
    }

    /// The directory of whom it is to become: libcontainer knows of root alone.
    pub(super) fn home(&self) -> Option<String> {
        home(self.inside.user.uid)
    }

    pub(super) fn enter(&self) -> Result<()> {
        self.entrance.enter()?;
        self.inside.now()
    }
}

/// The user's directory by the container's `/etc/passwd`, as for the first process.
pub(super) fn home(uid: u32) -> Option<String> {
    let passwd = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open("/etc/passwd")
        .ok()?;
    let mut text = Vec::new();
    let _ = passwd.take(MAX_PASSWD).read_to_end(&mut text);
    String::from_utf8_lossy(&text).lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let of_user = fields.next()?.parse() == Ok(uid);
        fields.nth(2).filter(|_| of_user).map(str::to_owned)
    })
}
