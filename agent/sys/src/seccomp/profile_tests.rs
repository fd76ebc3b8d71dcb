//! Tests of [`super`]: what profiles come to, evaluated by an interpreter of classic BPF.

use super::super::tests::evaluate;
use super::*;

const X86: &[Arch] = &[Arch::X86_64, Arch::I386];

fn compiled(text: &str, capabilities: &[&str]) -> Vec<Instruction> {
    parse(text.as_bytes(), X86, capabilities, (5, 10)).unwrap()
}

fn verdict(filter: &[Instruction], name: &str, argument: u64) -> u32 {
    evaluate(
        filter,
        Arch::X86_64,
        number(name, Arch::X86_64).unwrap(),
        argument,
    )
}

#[test]
fn names_actions_and_errors_are_the_profiles() {
    let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": null},
            {"name": "mkdir", "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["io_uring_setup"], "action": "SCMP_ACT_LOG"},
            {"names": ["kexec_load"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["swapon"], "action": "SCMP_ACT_TRAP"}]}"#;
    let filter = compiled(text, &[]);
    for (name, expected) in [
        ("read", ALLOW),
        ("mkdir", errno(13)),
        ("write", errno(38)),
        ("io_uring_setup", LOG),
        ("kexec_load", KILL),
        ("swapon", TRAP),
    ] {
        assert_eq!(verdict(&filter, name, 0), expected, "{name}");
    }
    let read = number("read", Arch::I386).unwrap();
    assert_eq!(evaluate(&filter, Arch::I386, read, 0), ALLOW);
    assert_eq!(evaluate(&filter, Arch::Aarch64, 63, 0), KILL);
    let newer = evaluate(&filter, Arch::X86_64, NEWEST + 1, 0);
    assert_eq!(newer, errno(libc::ENOSYS));
}

#[test]
fn what_is_refused_by_name_cannot_be_had_by_another_number() {
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}"#;
    let filter = compiled(text, &[]);
    let mkdir = number("mkdir", Arch::X86_64).unwrap();
    assert_eq!(verdict(&filter, "mkdir", 0), errno(libc::EPERM));
    assert_eq!(
        evaluate(&filter, Arch::X86_64, X32 + mkdir, 0),
        errno(libc::ENOSYS)
    );
    // The profile does not list it, so its programs do not run at all.
    assert_eq!(evaluate(&filter, Arch::I386, 39, 0), KILL);
    assert_eq!(evaluate(&filter, Arch::X86_64, NEWEST + 9, 0), ALLOW);
}

#[test]
fn arguments_are_compared_with_all_their_bits() {
    const BIG: u64 = 5 << 32 | 7;
    let check = |op: &str, value: u64, two: u64, cases: &[(u64, bool)]| {
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                "args": [{{"index": 0, "op": "SCMP_CMP_{op}", "value": {value}, "valueTwo": {two}}}]}}]}}"#
        );
        let filter = compiled(&text, &[]);
        for &(argument, allowed) in cases {
            let expected = if allowed { ALLOW } else { errno(libc::EPERM) };
            assert_eq!(
                verdict(&filter, "personality", argument),
                expected,
                "{op} {value:#x} {argument:#x}"
            );
        }
    };
    check("EQ", BIG, 0, &[(BIG, true), (7, false), (5 << 32, false)]);
    check("NE", BIG, 0, &[(BIG, false), (7, true), (5 << 32, true)]);
    check(
        "GT",
        BIG,
        0,
        &[
            (BIG, false),
            (BIG + 1, true),
            (6 << 32, true),
            (u64::from(u32::MAX), false),
        ],
    );
    check(
        "GE",
        BIG,
        0,
        &[
            (BIG, true),
            (BIG - 1, false),
            (6 << 32, true),
            (4 << 32 | 9, false),
        ],
    );
    check(
        "LT",
        BIG,
        0,
        &[
            (BIG, false),
            (BIG - 1, true),
            (6 << 32, false),
            (4 << 32 | 9, true),
        ],
    );
    check(
        "LE",
        BIG,
        0,
        &[(BIG, true), (BIG + 1, false), (6 << 32, false), (0, true)],
    );
    check(
        "MASKED_EQ",
        0x7e02_0000,
        0,
        &[(17, true), (0x1000_0000, false), (1 << 40, true)],
    );
}

#[test]
fn conditions_of_one_entry_all_hold_and_entries_are_tried_in_order() {
    let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": [
            {"index": 0, "op": "SCMP_CMP_GE", "value": 10}, {"index": 0, "op": "SCMP_CMP_LT", "value": 20}]},
        {"names": ["personality"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "op": "SCMP_CMP_EQ", "value": 30}]},
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW"}]}"#;
    let filter = compiled(text, &[]);
    for (argument, expected) in [(9, ALLOW), (10, errno(5)), (19, errno(5)), (20, ALLOW), (30, LOG)] {
        assert_eq!(verdict(&filter, "personality", argument), expected, "{argument}");
    }
}

#[test]
fn entries_are_for_some_capabilities_machines_and_kernels() {
    let check = |condition: &str, capabilities: &[&str], allowed: bool| {
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls":
                [{{"names": ["mount"], "action": "SCMP_ACT_ALLOW", {condition}}}]}}"#
        );
        let expected = if allowed { ALLOW } else { errno(libc::EPERM) };
        assert_eq!(
            verdict(&compiled(&text, capabilities), "mount", 0),
            expected,
            "{condition} {capabilities:?}"
        );
    };
    check(
        r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#,
        &["CAP_SYS_ADMIN"],
        true,
    );
    check(
        r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#,
        &["CAP_CHOWN"],
        false,
    );
    check(
        r#""excludes": {"caps": ["CAP_SYS_ADMIN"]}"#,
        &["CAP_SYS_ADMIN"],
        false,
    );
    check(r#""includes": {"minKernel": "4.8"}, "excludes": {}"#, &[], true);
    check(r#""includes": {"minKernel": "5.11"}"#, &[], false);
    check(r#""includes": {"arches": ["s390x"]}"#, &[], false);
}

#[test]
fn an_error_names_the_place() {
    let check = |text: &str, expected: &str| {
        let error = parse(text.as_bytes(), X86, &[], (5, 10)).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    check("{\n  \"defaultAction\": 5}", "line 2");
    check(
        r#"{"defaultAction": "SCMP_ACT_TRACE"}"#,
        "defaultAction: SCMP_ACT_TRACE: nobody",
    );
    check(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_X"}]}"#,
        r#"syscalls[0].action: "SCMP_ACT_X" is unknown"#,
    );
    check(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
        "syscalls[0].args[0].index: 6",
    );
    let error = profile(Path::new("/no/such/profile.json"), &[]).unwrap_err();
    assert!(error.starts_with("seccomp: /no/such/profile.json: "), "{error}");
}

#[test]
fn the_tables_name_each_call_once() {
    for (name, numbers) in OTHERS {
        assert!(TABLE.iter().all(|row| row.name != *name), "{name}");
        for (column, number) in numbers.iter().enumerate().filter(|(_, number)| **number != NO) {
            assert!(
                TABLE.iter().all(|row| row.numbers[column] != *number),
                "{name} {number}"
            );
        }
    }
}
