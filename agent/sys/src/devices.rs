//! Which devices a container may use: one list, enforced by the devices controller on v1 and by a BPF program on v2.
//!
//! Always holds: what is not on the list is refused, reading and writing alike; making a node is allowed, because it is
//! opening it that is checked.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use serde_json::Value;

use crate::config::{ContainerConfig, Device};
use crate::error::{Doing, Result, check};

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

const BLOCK: u32 = 1;
const CHAR: u32 = 2;

/// One allowed set of devices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    kind: u32,
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

const fn device(kind: u32, major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
    Rule {
        kind,
        major,
        minor,
        access,
    }
}

/// What every container may use.
const DEFAULT: [Rule; 11] = [
    device(CHAR, None, None, MKNOD),
    device(BLOCK, None, None, MKNOD),
    device(CHAR, Some(1), Some(3), ALL), // null
    device(CHAR, Some(1), Some(5), ALL), // zero
    device(CHAR, Some(1), Some(7), ALL), // full
    device(CHAR, Some(1), Some(8), ALL), // random
    device(CHAR, Some(1), Some(9), ALL), // urandom
    device(CHAR, Some(5), Some(0), ALL), // tty
    device(CHAR, Some(5), Some(1), ALL), // console
    device(CHAR, Some(5), Some(2), ALL), // ptmx
    device(CHAR, Some(136), None, ALL),  // pts/*
];

/// A node in a container, as an entry of `linux.devices`, and the rule that lets it be used.
#[derive(Clone, Debug)]
struct Node {
    entry: Value,
    rule: Rule,
}

/// What one container may use.
#[derive(Clone, Debug)]
pub(crate) struct Allowed(Vec<Node>);

impl Allowed {
    /// Looks at the host's nodes that the container is to have besides the default ones; the error names the device.
    pub(crate) fn of(config: &ContainerConfig) -> std::result::Result<Self, String> {
        let owner = config.host_owner();
        let nodes = config.devices.iter().map(|device| node(device, owner));
        nodes.collect::<std::result::Result<_, _>>().map(Self)
    }

    /// The nodes besides the default ones.
    pub(crate) fn nodes(&self) -> Vec<Value> {
        self.0.iter().map(|node| node.entry.clone()).collect()
    }

    /// The default list and what the nodes need.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        DEFAULT
            .into_iter()
            .chain(self.0.iter().map(|node| node.rule))
            .collect()
    }

    /// Attaches the list to a v2 cgroup. It holds until the cgroup is removed.
    ///
    /// # Errors
    /// As the kernel has them for loading, and `EINVAL` when `dir` is no v2 cgroup.
    pub(crate) fn attach(&self, dir: &Path) -> Result<()> {
        attach(&self.rules(), dir)
    }
}

fn node(device: &Device, owner: (u32, u32)) -> std::result::Result<Node, String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let host = device.host_path.display();
    if !device.path.starts_with("/dev") {
        return Err(format!("devices: {}: not below /dev", device.path.display()));
    }
    let metadata =
        std::fs::metadata(&device.host_path).map_err(|error| format!("devices: {host}: {error}"))?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => CHAR,
        kind if kind.is_block_device() => BLOCK,
        _ => return Err(format!("devices: {host}: not a device")),
    };
    let access = device.access.chars().try_fold(0, |access, letter| match letter {
        'r' => Ok(access | READ),
        'w' => Ok(access | WRITE),
        'm' => Ok(access | MKNOD),
        _ => Err(format!(
            "devices: {host}: access {:?}: of r, w and m only",
            device.access
        )),
    })?;
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    let (uid, gid) = device.owner.unwrap_or(owner);
    Ok(Node {
        entry: serde_json::json!({
            "path": device.path, "type": if kind == CHAR { "c" } else { "b" }, "major": major, "minor": minor,
            "fileMode": device.mode.unwrap_or(metadata.mode()) & 0o7777, "uid": uid, "gid": gid,
        }),
        rule: self::device(kind, Some(major), Some(minor), access),
    })
}

impl Rule {
    /// As an entry of `linux.resources.devices` of the OCI runtime specification.
    pub(crate) fn to_oci(self) -> Value {
        let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(bit, _)| self.access & bit != 0)
            .map(|(_, c)| *c)
            .collect();
        let mut rule = serde_json::json!({
            "allow": true, "type": if self.kind == CHAR { "c" } else { "b" }, "access": access,
        });
        if let Some(major) = self.major {
            rule["major"] = major.into();
        }
        if let Some(minor) = self.minor {
            rule["minor"] = minor.into();
        }
        rule
    }
}

/// One instruction of extended BPF, in the kernel's layout.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the low four bits, source in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Opcodes of extended BPF, <linux/bpf.h>: class | operation | source.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_SET: u8 = 0x45;
const EXIT: u8 = 0x95;

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: source << 4 | destination,
        offset,
        immediate,
    }
}

/// The list as a program on `struct bpf_cgroup_dev_ctx { access << 16 | kind, major, minor }`.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(AND, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        // Each test jumps over the rest of its rule: the tests after it, and the two instructions that allow.
        let mut tests = vec![(JUMP_NOT_EQUAL, 2, rule.kind)];
        if rule.access != ALL {
            tests.push((JUMP_SET, 3, ALL & !rule.access));
        }
        tests.extend(rule.major.map(|major| (JUMP_NOT_EQUAL, 4, major)));
        tests.extend(rule.minor.map(|minor| (JUMP_NOT_EQUAL, 5, minor)));
        for (i, &(test, register, value)) in tests.iter().enumerate() {
            let rest = tests.len() - i - 1 + 2;
            code.push(op(test, register, 0, rest as i16, value as i32));
        }
        code.extend([op(MOVE, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
    }
    code.extend([op(MOVE, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    code
}

/// `BPF_PROG_LOAD` and its arguments, as far as they are used.
const PROG_LOAD: libc::c_long = 5;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;

#[repr(C)]
#[derive(Default)]
struct LoadArguments {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `BPF_PROG_ATTACH` and its arguments.
const PROG_ATTACH: libc::c_long = 8;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const FLAG_ALLOW_MULTI: u32 = 2;

#[repr(C)]
struct AttachArguments {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads the default list as a program, to see whether the kernel can.
///
/// # Errors
/// `EPERM` without CAP_BPF, `ENOSYS` or `EINVAL` when the kernel lacks CONFIG_CGROUP_BPF.
pub(crate) fn probe() -> Result<OwnedFd> {
    load(&DEFAULT)
}

/// Loads a list as a program; the kernel checks it.
fn load(rules: &[Rule]) -> Result<OwnedFd> {
    let code = program(rules);
    let arguments = LoadArguments {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadArguments::default()
    };
    // SAFETY: the arguments have the kernel's layout and their size is given; the instructions and the licence that
    // they point to outlive the call.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &arguments, size_of::<LoadArguments>()) })
            .doing("load", "the device program")?;
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn attach(rules: &[Rule], dir: &Path) -> Result<()> {
    let program = load(rules)?;
    let cgroup = File::open(dir).doing_path("open", dir)?;
    let raw = |fd: &dyn AsFd| -> io::Result<u32> {
        u32::try_from(fd.as_fd().as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
    };
    let arguments = AttachArguments {
        target: raw(&cgroup).doing_path("open", dir)?,
        program: raw(&program).doing_path("open", dir)?,
        kind: ATTACH_CGROUP_DEVICE,
        flags: FLAG_ALLOW_MULTI,
    };
    // SAFETY: the arguments have the kernel's layout and their size is given; both descriptors outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &arguments,
            size_of::<AttachArguments>(),
        )
    })
    .doing_path("restrict the devices of", dir)
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    #[test]
    fn the_list_reads_as_the_specification_has_it() {
        assert_eq!(
            DEFAULT[0].to_oci(),
            serde_json::json!({"allow": true, "type": "c", "access": "m"})
        );
        let null = serde_json::json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
        assert_eq!(DEFAULT[2].to_oci(), null);
    }

    #[test]
    fn the_kernel_takes_the_program_and_enforces_it() {
        // On a hybrid node the v2 hierarchy is there too, and device programs work on it.
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let root = roots
            .iter()
            .map(Path::new)
            .find(|root| root.join("cgroup.controllers").exists());
        let group = root
            .expect("a v2 hierarchy")
            .join(format!("skiff-test-dev-{}", std::process::id()));
        let devices = tempfile::tempdir().unwrap();
        fs::create_dir(&group).unwrap();
        attach(&DEFAULT, &group).unwrap();
        let script = format!(
            "echo $$ > {group}/cgroup.procs; cd {dir}; \
             mknod mem c 1 1 && echo made; cat mem >/dev/null 2>&1 && echo read-mem; \
             mknod loop b 7 0 && echo made; (exec 3<loop) 2>/dev/null && echo open-loop; \
             head -c1 /dev/zero >/dev/null && echo zero; echo x > /dev/null && echo null",
            group = group.display(),
            dir = devices.path().display()
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        fs::remove_dir(&group).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "made\nmade\nzero\nnull\n",
            "{output:?}"
        );
    }
}
