//! Capabilities by name and as bit sets.
//!
//! Always holds: a set has one bit per capability of `<linux/capability.h>`, the lowest for CAP_CHOWN.

use std::io;

use crate::error::{Doing, Result, check};

/// Names by bit.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

macro_rules! bits {
    ($($name:ident = $bit:literal),* $(,)?) => {
        $(pub(crate) const $name: u64 = 1 << $bit;)*
    };
}

bits! {
    DAC_READ_SEARCH = 2, SETPCAP = 8, NET_ADMIN = 12, SYS_MODULE = 16, SYS_RAWIO = 17, SYS_CHROOT = 18, SYS_PTRACE = 19,
    SYS_PACCT = 20, SYS_ADMIN = 21, SYS_BOOT = 22, SYS_NICE = 23, SYS_RESOURCE = 24, SYS_TIME = 25, SYS_TTY_CONFIG = 26, SYSLOG = 34, PERFMON = 38, BPF = 39,
}

/// All that are known here.
pub(crate) const ALL: u64 = (1 << NAMES.len()) - 1;

/// Whether a set holds all of `wanted`.
#[must_use]
pub(crate) fn holds(set: u64, wanted: u64) -> bool {
    set & wanted == wanted
}

/// The set of these names; the first unknown one is the error.
pub(crate) fn parse<'a>(names: impl IntoIterator<Item = &'a String>) -> std::result::Result<u64, &'a str> {
    names.into_iter().try_fold(0, |set, name| {
        let bit = NAMES
            .iter()
            .position(|known| known == name)
            .ok_or(name.as_str())?;
        Ok(set | 1 << bit)
    })
}

/// Names of a set, by bit.
#[must_use]
pub fn names(set: u64) -> Vec<&'static str> {
    NAMES
        .iter()
        .enumerate()
        .filter(|(bit, _)| set & (1 << bit) != 0)
        .map(|(_, name)| *name)
        .collect()
}

/// This process's bounding set: no process that it starts can hold more.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn bounding() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").doing("read", "/proc/self/status")?;
    let field = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    field
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        .doing("parse", "/proc/self/status")
}

/// Takes from this thread, for good, what is not in the set: nothing that it executes can get it back. CAP_SETPCAP must be
/// held; what the thread holds already it keeps.
pub(crate) fn drop_bounding(set: u64) -> Result<()> {
    for bit in 0..NAMES.len() as u32 {
        if set & (1 << bit) == 0 {
            // SAFETY: PR_CAPBSET_DROP takes one integer. EINVAL: the kernel is older than this capability.
            let dropped = check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, bit, 0, 0, 0) }.into());
            if let Err(error) = dropped
                && error.raw_os_error() != Some(libc::EINVAL)
            {
                return Err(error).doing("drop", NAMES[bit as usize]);
            }
        }
    }
    Ok(())
}

/// Leaves this thread with exactly these capabilities, permitted and effective; inheritable and ambient are emptied.
pub(crate) fn hold(set: u64) -> Result<()> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let half = |word: u64| Data {
        effective: word as u32,
        permitted: word as u32,
        inheritable: 0,
    };
    let data = [half(set), half(set >> 32)];
    // SAFETY: header and data have the kernel's layout for version 3, which takes two data elements.
    let done = unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) };
    check(done).doing("set", "capabilities").map(drop)
}

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits_agree() {
        let check = |name: &str, bit: u64| {
            assert_eq!(parse([&name.to_owned()]), Ok(bit), "{name}");
            assert_eq!(names(bit), [name]);
        };
        check("CAP_SYS_ADMIN", SYS_ADMIN);
        check("CAP_SETPCAP", SETPCAP);
        check("CAP_BPF", BPF);
        check("CAP_PERFMON", PERFMON);
        check("CAP_SYSLOG", SYSLOG);
        check("CAP_SYS_TTY_CONFIG", SYS_TTY_CONFIG);
        assert_eq!(parse([&"CAP_NO_SUCH".to_owned()]), Err("CAP_NO_SUCH"));
        assert!(holds(bounding().unwrap(), SYS_ADMIN));
    }

    #[test]
    fn every_default_capability_has_a_name() {
        let defaults = crate::config::default_capabilities();
        assert_eq!(parse(&defaults).unwrap().count_ones() as usize, defaults.len());
    }
}
