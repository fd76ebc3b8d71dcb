//! What the kernel says: which containers run, and what a node has left behind.
//!
//! Always holds: nothing here asks the product. Containers are found by their cgroups, leftovers by names of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::process::read;

/// The first process of a container: its id on the machine and its start time in clock ticks, which together name
/// one process for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Init {
    /// The process id.
    pub(crate) pid: i32,
    started: u64,
}

impl Init {
    /// A field of `/proc/<pid>/status`.
    #[track_caller]
    pub(crate) fn status(&self, field: &str) -> String {
        let text = read(Path::new(&format!("/proc/{}/status", self.pid)));
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("/proc/{}/status has no {field}: {text}", self.pid))
            .trim()
            .to_owned()
    }
}

/// Every hierarchy's root: each v1 controller's directory, and that of v2.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let mut roots: Vec<PathBuf> = children(&root);
    roots.push(root);
    roots
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|it| it.path()).filter(|it| it.is_dir()).collect()
}

fn descend(dir: &Path, out: &mut Vec<PathBuf>) {
    if dir.is_dir() {
        out.push(dir.to_owned());
        for child in children(dir) {
            descend(&child, out);
        }
    }
}

/// All cgroups under `name`, in every hierarchy.
pub(crate) fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for root in hierarchies() {
        descend(&root.join(name), &mut out);
    }
    out
}

/// The containers' first processes, by what `/proc/<pid>/cgroup` calls their cgroup.
pub(crate) fn inits(cgroup: &str) -> BTreeMap<Init, String> {
    let members = cgroups(cgroup)
        .into_iter()
        .flat_map(|dir| lines(&dir.join("cgroup.procs")));
    let pids: BTreeSet<i32> = members.filter_map(|line| line.parse().ok()).collect();
    pids.into_iter().filter_map(init).collect()
}

/// A limit of every cgroup of one Pod, by the name of its file on v1 and on v2.
pub(crate) fn limit(cgroup: &str, pod: &str, v1: &str, v2: &str) -> Vec<u64> {
    let ours = cgroups(cgroup)
        .into_iter()
        .filter(|dir| dir.to_string_lossy().contains(pod));
    let values = ours.flat_map(|dir| [v1, v2].map(|file| read(&dir.join(file))));
    values.filter_map(|text| text.trim().parse().ok()).collect()
}

/// The command lines of all processes in the cgroups of one Pod.
pub(crate) fn commands(cgroup: &str, pod: &str) -> Vec<String> {
    let ours = cgroups(cgroup)
        .into_iter()
        .filter(|dir| dir.to_string_lossy().contains(pod));
    let pids: BTreeSet<String> = ours.flat_map(|dir| lines(&dir.join("cgroup.procs"))).collect();
    pids.iter()
        .map(|pid| read(Path::new(&format!("/proc/{pid}/cmdline"))).replace('\0', " "))
        .collect()
}

fn lines(path: &Path) -> Vec<String> {
    read(path).lines().map(str::to_owned).collect()
}

/// `pid` as a container's first process, unless it is another process or has gone.
fn init(pid: i32) -> Option<(Init, String)> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let status = read(&proc.join("status"));
    let spaces: Vec<&str> = status
        .lines()
        .find_map(|it| it.strip_prefix("NSpid:"))?
        .split_whitespace()
        .collect();
    let is_first = spaces.len() > 1 && spaces.last() == Some(&"1");
    let stat = read(&proc.join("stat"));
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let started = fields.get(19)?.parse().ok()?;
    let is_zombie = fields.first() == Some(&"Z");
    let cgroup = read(&proc.join("cgroup"));
    (is_first && !is_zombie).then_some((Init { pid, started }, cgroup))
}

/// The interfaces joined to a bridge.
pub(crate) fn ports(bridge: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/sys/class/net/{bridge}/brif"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Whether an interface is there.
pub(crate) fn has_interface(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// Mount points at or under `dir`.
pub(crate) fn mounts(dir: &Path) -> Vec<String> {
    let table = read(Path::new("/proc/self/mountinfo"));
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| Path::new(point).starts_with(dir))
        .map(str::to_owned)
        .collect()
}

/// Processes whose command line names `dir`.
pub(crate) fn processes(dir: &Path) -> Vec<(i32, String)> {
    let dir = dir.display().to_string();
    let mut out = Vec::new();
    for path in children(Path::new("/proc")) {
        let pid = path
            .file_name()
            .and_then(|it| it.to_str())
            .and_then(|it| it.parse().ok());
        let Some(pid) = pid else { continue };
        let line = read(&path.join("cmdline")).replace('\0', " ");
        if line.contains(&dir) && pid != i32::try_from(std::process::id()).unwrap() {
            out.push((pid, line));
        }
    }
    out
}
