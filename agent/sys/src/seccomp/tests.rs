//! Tests of [`super`]: filters evaluated by an interpreter of classic BPF, and one that the kernel enforces.

use super::rule::{ALLOW, AND, JUMP_GT};
use super::table::Row;
use super::*;
use crate::config::default_capabilities;

const EPERM: u32 = errno(libc::EPERM);
const ENOSYS: u32 = errno(libc::ENOSYS);

/// Evaluates a filter as the kernel does; it panics on what the kernel's checker would refuse.
pub(super) fn evaluate(filter: &[Instruction], arch: Arch, number: u32, argument: u64) -> u32 {
    let load = |offset: u32| match offset {
        0 => number,
        4 => arch.audit(),
        16 => argument as u32,
        20 => (argument >> 32) as u32,
        _ => panic!("offset {offset}"),
    };
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = filter[at];
        let take = |condition: bool| usize::from(if condition { jt } else { jf });
        at += 1;
        match code {
            LOAD => accumulator = load(k),
            AND => accumulator &= k,
            JUMP => at += k as usize,
            JUMP_EQ => at += take(accumulator == k),
            JUMP_GE => at += take(accumulator >= k),
            JUMP_GT => at += take(accumulator > k),
            RETURN => return k,
            _ => panic!("code {code:#x}"),
        }
    }
}

fn default_set() -> u64 {
    cap::parse(&default_capabilities()).unwrap()
}

const ALL: [Arch; 4] = [Arch::X86_64, Arch::I386, Arch::Aarch64, Arch::Arm];

fn number(arch: Arch, name: &str) -> u32 {
    let row = TABLE
        .iter()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("{name} is not listed"));
    row.numbers[arch.column()]
}

#[test]
fn every_listed_call_gets_its_verdict_on_every_architecture() {
    for capabilities in [0, default_set(), u64::MAX] {
        let filter = compile(&ALL, capabilities);
        assert!(filter.len() <= MAX_INSTRUCTIONS, "{}", filter.len());
        for arch in ALL {
            for row in TABLE.iter().filter(|row| row.numbers[arch.column()] != NO) {
                if let Verdict::Return(expected) = row.rule.verdict(capabilities) {
                    let found = evaluate(&filter, arch, row.numbers[arch.column()], 0);
                    assert_eq!(found, expected, "{} on {arch:?}", row.name);
                }
            }
        }
    }
}

#[test]
fn every_number_that_is_not_listed_is_refused() {
    let filter = compile(&ALL, u64::MAX);
    for arch in ALL {
        let listed = |number| TABLE.iter().any(|row| row.numbers[arch.column()] == number);
        for number in (0..2000).filter(|&number| !listed(number)) {
            let expected = if number <= NEWEST { EPERM } else { ENOSYS };
            assert_eq!(
                evaluate(&filter, arch, number, 0),
                expected,
                "{number} on {arch:?}"
            );
        }
    }
}

#[test]
fn the_table_is_sorted_and_names_no_number_twice() {
    let key = |row: &Row| row.name.trim_start_matches('_').to_owned();
    assert!(TABLE.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])));
    for arch in ALL {
        let mut numbers: Vec<_> = TABLE
            .iter()
            .map(|row| row.numbers[arch.column()])
            .filter(|&n| n != NO)
            .collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all, "{arch:?}");
        assert!(numbers.iter().all(|&number| number <= NEWEST));
    }
}

#[test]
fn numbers_agree_with_the_c_library_of_this_build() {
    let arch = Arch::native()[if cfg!(target_arch = "arm") { 1 } else { 0 }];
    let check =
        |name: &str, expected: libc::c_long| assert_eq!(number(arch, name), expected as u32, "{name}");
    check("read", libc::SYS_read);
    check("openat", libc::SYS_openat);
    check("openat2", libc::SYS_openat2);
    check("clone", libc::SYS_clone);
    check("clone3", libc::SYS_clone3);
    check("socket", libc::SYS_socket);
    check("personality", libc::SYS_personality);
    check("mount", libc::SYS_mount);
    check("unshare", libc::SYS_unshare);
    check("bpf", libc::SYS_bpf);
    check("futex_waitv", libc::SYS_futex_waitv);
    check("statx", libc::SYS_statx);
    check("execve", libc::SYS_execve);
}

#[test]
fn arguments_decide() {
    let plain = compile(&ALL, default_set());
    let admin = compile(&ALL, default_set() | cap::SYS_ADMIN);
    let check = |filter: &[Instruction], name: &str, argument: u64, expected: u32| {
        for arch in ALL {
            let number = number(arch, name);
            if number != NO {
                assert_eq!(
                    evaluate(filter, arch, number, argument),
                    expected,
                    "{name}({argument:#x}) on {arch:?}"
                );
            }
        }
    };
    const NEWUSER: u64 = 0x1000_0000;
    check(&plain, "clone", 17, ALLOW);
    check(&plain, "clone", NEWUSER | 17, EPERM);
    check(&plain, "clone", 0x0002_0000, EPERM);
    check(&admin, "clone", NEWUSER | 17, ALLOW);
    check(&plain, "clone3", 0, ENOSYS);
    check(&admin, "clone3", 0, ALLOW);
    check(&plain, "socket", 2, ALLOW);
    check(&plain, "socket", 1, ALLOW);
    check(&plain, "socket", 38, EPERM);
    check(&plain, "socket", 40, EPERM);
    // The kernel takes an int: upper bits must not make another domain of it.
    check(&plain, "socket", 40 | 1 << 32, EPERM);
    check(&plain, "socketcall", 1, ENOSYS);
    check(&plain, "socketcall", 3, ALLOW);
    check(&plain, "personality", 0, ALLOW);
    check(&plain, "personality", 0xffff_ffff, ALLOW);
    check(&plain, "personality", 0x0004_0000, EPERM);
    check(&plain, "mount", 0, EPERM);
    check(&admin, "mount", 0, ALLOW);
    check(&plain, "chroot", 0, ALLOW);
    check(&plain, "bpf", 0, EPERM);
}

#[test]
fn other_architectures_are_killed_and_x32_does_not_exist() {
    let filter = compile(&[Arch::X86_64, Arch::I386], u64::MAX);
    assert_eq!(evaluate(&filter, Arch::Aarch64, 0, 0), KILL);
    assert_eq!(evaluate(&filter, Arch::X86_64, X32, 0), ENOSYS);
    assert_eq!(evaluate(&filter, Arch::X86_64, u32::MAX, 0), ENOSYS);
    let arm = compile(&[Arch::Aarch64, Arch::Arm], 0);
    assert_eq!(evaluate(&arm, Arch::Arm, 0xf_0005, 0), ALLOW);
    assert_eq!(evaluate(&arm, Arch::Arm, 0xf_0004, 0), ENOSYS);
    assert_eq!(evaluate(&arm, Arch::Aarch64, 0xf_0005, 0), ENOSYS);
}

#[test]
fn the_kernel_enforces_it() {
    // Filters belong to a thread, so the test process is left as it is.
    let seen = std::thread::spawn(|| {
        nix::sys::prctl::set_no_new_privs().unwrap();
        install(&default_filter(&default_capabilities())).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS);
        // SAFETY: no such call exists; the filter answers.
        let newer = unsafe { libc::syscall(1_000_000) };
        (
            status,
            unshared,
            newer,
            std::io::Error::last_os_error().raw_os_error(),
        )
    });
    let (status, unshared, newer, error) = seen.join().unwrap();
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
    assert_eq!(unshared, Err(nix::Error::EPERM), "root may, but for the filter");
    assert_eq!((newer, error), (-1, Some(libc::ENOSYS)));
}
