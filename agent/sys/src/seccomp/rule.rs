//! When a system call is let through, and the classic BPF that decides it.
//!
//! Always holds: each body ends in a return; arguments are compared by their low 32 bits only, because the kernel itself
//! truncates these arguments to `int`, so that set upper bits cannot slip past.

use crate::cap::{self, SYS_ADMIN};

/// One classic BPF instruction, in the kernel's layout.
pub type Instruction = libc::sock_filter;

// Opcodes of classic BPF, <linux/bpf_common.h>.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQ: u16 = 0x15;
pub(super) const JUMP_GT: u16 = 0x25;
pub(super) const JUMP_GE: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// SECCOMP_RET_ALLOW.
pub(super) const ALLOW: u32 = 0x7fff_0000;
/// SECCOMP_RET_KILL_PROCESS.
pub(super) const KILL: u32 = 0x8000_0000;
/// SECCOMP_RET_ERRNO.
const ERRNO: u32 = 0x0005_0000;

/// Flags of `clone(2)` that make a namespace.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
/// Domains that are refused: VSOCK reaches the hypervisor, ALG the kernel's crypto.
const REFUSED_DOMAINS: [u32; 2] = [40, 38];
/// The first call of `socketcall(2)`, which opens a socket: its arguments are in memory, where a filter cannot look.
const SOCKETCALL_SOCKET: u32 = 1;
/// Linux, uname 2.6, both with 32-bit addresses as well, and the query.
const PERSONALITIES: [u32; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// When a system call is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Always.
    Allow,
    /// When the container holds one of these capabilities.
    Needs(u64),
    /// Without flags that make namespaces, unless it holds CAP_SYS_ADMIN.
    Clone,
    /// Its flags are in memory, so it "does not exist", and libraries fall back to `clone`; unless CAP_SYS_ADMIN.
    Clone3,
    /// Not for the refused domains.
    Socket,
    /// Not to open sockets.
    SocketCall,
    /// Only harmless ones.
    Personality,
}

/// What happens to a system call number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same for all arguments.
    Return(u32),
    /// It depends on the arguments.
    Check(Rule),
}

/// Refusal with an error number.
pub(super) const fn errno(number: i32) -> u32 {
    ERRNO | number as u32
}

impl Rule {
    /// What it comes to for a container with these capabilities.
    pub(super) fn verdict(self, capabilities: u64) -> Verdict {
        let admin = cap::holds(capabilities, SYS_ADMIN);
        match self {
            Self::Allow => Verdict::Return(ALLOW),
            Self::Needs(any) if capabilities & any != 0 => Verdict::Return(ALLOW),
            Self::Needs(_) => Verdict::Return(errno(libc::EPERM)),
            Self::Clone | Self::Clone3 if admin => Verdict::Return(ALLOW),
            Self::Clone3 => Verdict::Return(errno(libc::ENOSYS)),
            Self::Clone | Self::Socket | Self::SocketCall | Self::Personality => Verdict::Check(self),
        }
    }

    /// The instructions that look at the arguments.
    pub(super) fn body(self) -> Vec<Instruction> {
        match self {
            Self::Clone => vec![
                load_argument(0),
                instruction(AND, CLONE_NAMESPACES),
                jump(JUMP_EQ, 0, 0, 1),
                instruction(RETURN, ALLOW),
                instruction(RETURN, errno(libc::EPERM)),
            ],
            Self::Socket => one_of(&REFUSED_DOMAINS, errno(libc::EPERM), ALLOW),
            Self::SocketCall => one_of(&[SOCKETCALL_SOCKET], errno(libc::ENOSYS), ALLOW),
            Self::Personality => one_of(&PERSONALITIES, ALLOW, errno(libc::EPERM)),
            Self::Allow | Self::Needs(_) | Self::Clone3 => vec![instruction(RETURN, errno(libc::EPERM))],
        }
    }
}

/// Returns `found` when the first argument is one of `values`, else `other`.
fn one_of(values: &[u32], found: u32, other: u32) -> Vec<Instruction> {
    let mut body = vec![load_argument(0)];
    for (i, &value) in values.iter().enumerate() {
        let to_found = (values.len() - i) as u8;
        body.push(jump(JUMP_EQ, value, to_found, 0));
    }
    body.push(instruction(RETURN, other));
    body.push(instruction(RETURN, found));
    body
}

pub(super) const fn instruction(code: u16, k: u32) -> Instruction {
    jump(code, k, 0, 0)
}

pub(super) const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

impl Leaf for Verdict {
    fn code(&self) -> Vec<Instruction> {
        match self {
            Self::Return(value) => vec![instruction(RETURN, *value)],
            Self::Check(rule) => rule.body(),
        }
    }
}

/// What a search ends in: instructions that return.
pub(super) trait Leaf {
    /// The instructions.
    fn code(&self) -> Vec<Instruction>;
}

/// Low half of an argument in `struct seccomp_data`; all architectures here are little-endian.
const fn load_argument(index: u32) -> Instruction {
    instruction(LOAD, 16 + 8 * index)
}
