//! System call filters: a table of calls, or a profile, compiled to classic BPF, without any C library.
//!
//! Always holds of the default filter: an architecture that the filter does not know is killed; x86's x32 calls do not exist; a call newer than
//! the table answers ENOSYS, so that libraries use what they used before it; every other call that is not listed answers
//! EPERM. One filter covers all architectures that a kernel can run: a 64-bit ARM kernel runs 32-bit programs too.
//!
//! ```text
//! load arch ─▶ one of ours? ─no─▶ kill
//!                 │ yes
//! load number ─▶ binary search over ranges of equal verdict ─▶ return, or look at the arguments and return
//! ```

mod others;
mod profile;
mod rule;
mod table;

pub(crate) use profile::profile;
pub use rule::Instruction;
use rule::{JUMP, JUMP_EQ, JUMP_GE, KILL, LOAD, Leaf, RETURN, Rule, Verdict, errno, instruction, jump};
use table::{ARM_PRIVATE, NEWEST, NO, TABLE};

use crate::cap;
use crate::error::{Doing, Result, check};

/// Instructions that the kernel takes at most.
const MAX_INSTRUCTIONS: usize = 4096;

/// First number of the x32 calls.
const X32: u32 = 0x4000_0000;

/// `SECCOMP_SET_MODE_FILTER` and its flag that leaves speculative store bypass as it is.
const SET_MODE_FILTER: libc::c_uint = 1;
const FLAG_SPEC_ALLOW: libc::c_ulong = 4;

/// An architecture as the kernel's audit names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    I386,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM, EABI.
    Arm,
}

impl Arch {
    /// `AUDIT_ARCH_*`.
    #[must_use]
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The architectures of programs that this build's kernel can run.
    #[must_use]
    pub fn native() -> &'static [Self] {
        if cfg!(target_arch = "x86_64") {
            &[Self::X86_64, Self::I386]
        } else {
            // A 32-bit build may run on a 64-bit kernel.
            &[Self::Aarch64, Self::Arm]
        }
    }

    fn column(self) -> usize {
        match self {
            Self::X86_64 => 0,
            Self::I386 => 1,
            Self::Aarch64 => 2,
            Self::Arm => 3,
        }
    }
}

/// The default filter for a container with these capabilities (`CAP_…`; unknown names count as not held).
#[must_use]
pub fn default_filter(capabilities: &[String]) -> Vec<Instruction> {
    let held = capabilities
        .iter()
        .filter_map(|name| cap::parse([name]).ok())
        .fold(0, |set, bit| set | bit);
    compile(Arch::native(), held)
}

/// The default filter for these architectures and capabilities.
fn compile(arches: &[Arch], capabilities: u64) -> Vec<Instruction> {
    assemble(arches, |arch| ranges(arch, capabilities))
}

/// A filter of ranges of numbers by architecture: see [`search`].
fn assemble<T: Leaf>(arches: &[Arch], ranges: impl Fn(Arch) -> Vec<(u32, T)>) -> Vec<Instruction> {
    // Offset 4 of `struct seccomp_data` is the architecture, offset 0 the number.
    let mut filter = vec![instruction(LOAD, 4)];
    for &arch in arches {
        let mut body = vec![instruction(LOAD, 0)];
        search(&ranges(arch), &mut body);
        // The body may be longer than a conditional jump reaches.
        filter.push(jump(JUMP_EQ, arch.audit(), 1, 0));
        filter.push(instruction(JUMP, body.len() as u32));
        filter.append(&mut body);
    }
    filter.push(instruction(RETURN, KILL));
    filter
}

/// A filter as bytes, for a file that only this node reads.
pub(crate) fn to_bytes(filter: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(filter.len() * 8);
    for Instruction { code, jt, jf, k } in filter {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[*jt, *jf]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    bytes
}

/// The filter of such bytes; `None` when they are none.
pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Vec<Instruction>> {
    let (whole, rest) = bytes.as_chunks::<8>();
    (rest.is_empty() && !whole.is_empty()).then(|| {
        let decode = |&[a, b, jt, jf, c, d, e, f]: &[u8; 8]| Instruction {
            code: u16::from_ne_bytes([a, b]),
            jt,
            jf,
            k: u32::from_ne_bytes([c, d, e, f]),
        };
        whole.iter().map(decode).collect()
    })
}

/// The whole range of numbers, cut where the verdict changes: (first number, verdict until the next).
fn ranges(arch: Arch, capabilities: u64) -> Vec<(u32, Verdict)> {
    let mut calls: Vec<(u32, Verdict)> = TABLE
        .iter()
        .filter(|row| row.numbers[arch.column()] != NO)
        .map(|row| (row.numbers[arch.column()], row.rule.verdict(capabilities)))
        .collect();
    if arch == Arch::Arm {
        calls.extend(ARM_PRIVATE.map(|number| (number, Rule::Allow.verdict(0))));
    }
    calls.sort_unstable_by_key(|&(number, _)| number);
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut push = |first: u32, verdict: Verdict| {
        if ranges.last().is_none_or(|&(_, last)| last != verdict) {
            ranges.push((first, verdict));
        }
    };
    let mut next = 0;
    for (number, verdict) in calls {
        if number > next {
            gap(next, number, &mut push);
        }
        push(number, verdict);
        next = number + 1;
    }
    gap(next, u32::MAX, &mut push);
    ranges
}

/// Numbers that are not listed: refused when they are old, unknown when they are new.
fn gap(first: u32, end: u32, push: &mut impl FnMut(u32, Verdict)) {
    const {
        assert!(
            NEWEST < X32,
            "x32 calls are above the newest, so they answer ENOSYS"
        );
    };
    if first <= NEWEST {
        push(first, Verdict::Return(errno(libc::EPERM)));
    }
    if end > NEWEST + 1 {
        push(first.max(NEWEST + 1), Verdict::Return(errno(libc::ENOSYS)));
    }
}

/// Binary search over (first number, what holds until the next); the number is in the accumulator.
fn search<T: Leaf>(ranges: &[(u32, T)], code: &mut Vec<Instruction>) {
    match ranges {
        [] => code.push(instruction(RETURN, KILL)),
        [(_, leaf)] => code.extend(leaf.code()),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let mut below = Vec::new();
            search(low, &mut below);
            let pivot = high[0].0;
            if let Ok(distance) = u8::try_from(below.len()) {
                code.push(jump(JUMP_GE, pivot, distance, 0));
            } else {
                code.push(jump(JUMP_GE, pivot, 0, 1));
                code.push(instruction(JUMP, below.len() as u32));
            }
            code.append(&mut below);
            search(high, code);
        }
    }
}

/// Filters this thread and what it executes, for good. CAP_SYS_ADMIN or `no_new_privs` must be held.
///
/// # Errors
/// `EACCES` without either, `EINVAL` when the kernel has no filters.
pub fn install(filter: &[Instruction]) -> Result<()> {
    let length = u16::try_from(filter.len())
        .ok()
        .filter(|&length| usize::from(length) <= MAX_INSTRUCTIONS);
    let length = length
        .ok_or_else(|| std::io::Error::from_raw_os_error(libc::E2BIG))
        .doing("install", "seccomp filter")?;
    let program = libc::sock_fprog {
        len: length,
        filter: filter.as_ptr().cast_mut(),
    };
    let set = |flags: libc::c_ulong| {
        // SAFETY: `program` points to `length` instructions that outlive the call; the kernel only reads them.
        check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &program) })
    };
    match set(FLAG_SPEC_ALLOW) {
        // Kernels before 4.17 do not know the flag.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => set(0),
        result => result,
    }
    .doing("install", "seccomp filter")
    .map(drop)
}

#[cfg(test)]
mod tests;
