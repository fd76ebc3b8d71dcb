//! Takes away what a node leaves when it did not end in order: processes, mounts, cgroups, the bridge.
//!
//! Only what carries this fleet's own directories and names is touched; whatever cannot be removed is reported.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command;
use crate::files;

/// Removes everything that a node with these directories and names may have left.
pub(super) fn sweep(dir: &Path, run: &Path, cgroup: &str, bridge: &str) {
    let mut cgroups = cgroup_dirs(cgroup);
    // The agent's own, beside that of its Pods.
    cgroups.extend(cgroup_dirs(&format!("{cgroup}-agent")));
    let mut left: BTreeSet<i32> = members(&cgroups);
    left.extend(processes_naming(&[dir, run]));
    if !left.is_empty() {
        eprintln!(
            "warning: ending {} processes that outlived their node",
            left.len()
        );
    }
    for pid in &left {
        // One that has ended by itself meanwhile is fine.
        kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
    }
    if !left.is_empty() {
        std::thread::sleep(Duration::from_millis(300));
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts_under(&table, &[dir, run]).iter().rev() {
        if let Err(error) = umount2(mount, MntFlags::MNT_DETACH) {
            eprintln!("warning: cannot unmount {}: {error}", mount.display());
        }
    }
    for cgroup in cgroups.iter().rev() {
        if let Err(error) = std::fs::remove_dir(cgroup) {
            eprintln!("warning: cannot remove the cgroup {}: {error}", cgroup.display());
        }
    }
    if Path::new("/sys/class/net").join(bridge).exists()
        && let Err(error) = command::quiet(Command::new("ip").args(["link", "delete", bridge]))
    {
        eprintln!("warning: {error:#}");
    }
    if let Err(error) = files::remove(run) {
        eprintln!("warning: {error:#}");
    }
}

/// The cgroups named `name` under each hierarchy's root and all below them, parents first.
fn cgroup_dirs(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut tops = vec![root.join(name)];
    if let Ok(entries) = std::fs::read_dir(root) {
        tops.extend(
            entries
                .filter_map(Result::ok)
                // Links such as `cpu` lead to a hierarchy that is listed under its own name too.
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path().join(name)),
        );
    }
    let mut found = Vec::new();
    for top in tops.into_iter().filter(|top| top.is_dir()) {
        add_tree(top, &mut found);
    }
    found
}

fn add_tree(dir: PathBuf, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(&dir);
    found.push(dir);
    for entry in entries.into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_tree(entry.path(), found);
        }
    }
}

fn members(cgroups: &[PathBuf]) -> BTreeSet<i32> {
    let texts = cgroups
        .iter()
        .filter_map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).ok());
    texts
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

/// Processes other than this one and its ancestors with one of `dirs` in an argument.
fn processes_naming(dirs: &[&Path]) -> Vec<i32> {
    let mine = ancestors();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| !mine.contains(pid))
        .filter(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // Only our own programs are ever ended: an editor on a file in there names it too.
            let program = words.split(|byte| *byte == 0).next().unwrap_or_default();
            let ours = String::from_utf8_lossy(program);
            let ours = ours.rsplit('/').next().unwrap_or_default();
            ours.starts_with("skiff") && dirs.iter().any(|dir| names(&words, dir))
        })
        .collect()
}

/// Whether a word of the command line is `dir`, or a path below it; behind `--option=` too.
fn names(cmdline: &[u8], dir: &Path) -> bool {
    let dir = dir.as_os_str().as_encoded_bytes();
    let below = |text: &[u8]| {
        text.strip_prefix(dir)
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
    };
    cmdline.split(|byte| *byte == 0).any(|word| {
        let value = word.iter().position(|byte| *byte == b'=');
        below(word) || value.is_some_and(|at| below(&word[at + 1..]))
    })
}

fn ancestors() -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut pid = i32::try_from(std::process::id()).unwrap_or_default();
    while pid > 0 && found.insert(pid) {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name is in parentheses and may hold anything; the parent is the second word after it.
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1))
            .and_then(|w| w.parse().ok());
        pid = parent.unwrap_or_default();
    }
    found
}

/// Mount points at or below `dirs` in a mountinfo table, in the order in which they were mounted.
fn mounts_under(mountinfo: &str, dirs: &[&Path]) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(unescape)
        .filter(|point| dirs.iter().any(|dir| point.starts_with(dir)))
        .collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    PathBuf::from(
        text.replace("\\040", " ")
            .replace("\\011", "\t")
            .replace("\\012", "\n")
            .replace("\\134", "\\"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_fleet_are_taken() {
        let table = "1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:5 / /run/skiff-demo rw - tmpfs t rw\n\
                     3 2 0:6 / /run/skiff-demo/a\\040b rw - tmpfs t rw\n4 1 0:7 / /run/skiff-demonstration rw - tmpfs t rw\n";
        let found = mounts_under(table, &[Path::new("/run/skiff-demo")]);
        assert_eq!(
            found,
            [
                PathBuf::from("/run/skiff-demo"),
                PathBuf::from("/run/skiff-demo/a b")
            ]
        );
    }

    #[test]
    fn arguments_are_searched_for_the_directory() {
        assert!(names(
            b"skiff-agent\0shim\0--dir=/t/demo/x\0",
            Path::new("/t/demo")
        ));
        for (line, expected) in [
            (&b"skiff-agent\0run\0/t/demo\0"[..], true),
            (b"skiff-agent\0run\0/t/dem\0", false),
            (b"skiff-agent\0run\0/t/demonstration/x\0", false),
            (b"skiff-agent\0--dir=/t/demo2\0", false),
            (b"skiff-agent\0/mnt/t/demo/x\0", false),
        ] {
            assert_eq!(
                names(line, Path::new("/t/demo")),
                expected,
                "{}",
                line.escape_ascii()
            );
        }
    }

    #[test]
    fn this_process_is_its_own_first_ancestor() {
        let found = ancestors();
        assert!(found.contains(&i32::try_from(std::process::id()).unwrap()));
        assert!(found.len() > 1, "{found:?}");
    }
}
