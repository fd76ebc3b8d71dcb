//! `unsynced PROGRAM [ARGUMENT…]`: runs a program whose every sync says that it is done, and does nothing.
//!
//! The control of the board's power cuts: an agent that runs through this forgets to sync, and must be caught at it.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use skiff_sys::seccomp::{Instruction, install};

/// What makes written data durable. `fsync` of a directory is one of them.
const SYNCS: [libc::c_long; 5] = [
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
];

/// The system call's number (`seccomp_data.nr`) into the accumulator.
const LOAD_NUMBER: u16 = 0x20;
/// Jump by `jt` when the accumulator equals `k`, else by `jf`.
const JUMP_EQUAL: u16 = 0x15;
/// End with `k`.
const RETURN: u16 = 0x06;
/// `SECCOMP_RET_ALLOW`.
const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO` with no error: the call is left out and gives back 0.
const DONE: u32 = 0x0005_0000;

fn instruction(code: u16, jt: u8, k: u32) -> Instruction {
    Instruction { code, jt, jf: 0, k }
}

/// A filter that skips the calls of [`SYNCS`].
fn filter() -> Result<Vec<Instruction>, std::num::TryFromIntError> {
    let mut filter = vec![instruction(LOAD_NUMBER, 0, 0)];
    let mut behind = u8::try_from(SYNCS.len())?;
    for number in SYNCS {
        filter.push(instruction(JUMP_EQUAL, behind, u32::try_from(number)?));
        behind -= 1;
    }
    filter.push(instruction(RETURN, 0, ALLOW));
    filter.push(instruction(RETURN, 0, DONE));
    Ok(filter)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("usage: unsynced PROGRAM [ARGUMENT…]");
        return ExitCode::FAILURE;
    };
    let installed = filter()
        .map_err(|error| error.to_string())
        .and_then(|filter| install(&filter).map_err(|error| error.to_string()));
    if let Err(error) = installed {
        eprintln!("unsynced: {error}");
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("unsynced: {}: {error}", program.display());
    ExitCode::FAILURE
}
