//! Control groups of both versions: the parent cgroup of ours, one per Pod, and what is read from a container's.
//!
//! Always holds: nothing outside the named path is changed, but for `cgroup.subtree_control` of its ancestors on v2; a
//! limit whose controller is missing is an error that names the controller, never ignored; removing what is not there is
//! not an error.
//!
//! Paths are relative to the root of a hierarchy: `skiff/pod/container`. On v1 the same path exists in each controller's
//! hierarchy.

mod limits;
mod membership;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::config::{Limits, PodCgroup};
use crate::error::{Doing, Result};
use crate::process;
pub(crate) use membership::Membership;

/// Where cgroups are mounted by convention.
pub const ROOT: &str = "/sys/fs/cgroup";

/// Controllers that we enable for children on v2, and whose v1 hierarchies we use.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// v1 hierarchies in which a process list is looked for, best first.
const V1_TRACKING: [&str; 5] = ["freezer", "pids", "memory", "cpu", "devices"];

/// v1 hierarchies that need no set-up before a process joins.
const V1_JOINED: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "freezer", "blkio"];

/// How long processes may take to stand still before they are killed. The signals are repeated, so nothing depends on it.
const FREEZE_TIMEOUT: Duration = Duration::from_millis(50);

/// Pause between looks at a cgroup that is being emptied.
const POLL: Duration = Duration::from_millis(2);

/// What the node mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The single hierarchy.
    V2,
    /// Controllers on v1, with a v2 hierarchy that has none.
    Hybrid,
}

/// The node's cgroup file systems.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
    version: Version,
    controllers: BTreeSet<String>,
}

/// What a cgroup uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Memory without inactive page cache, bytes: what Kubernetes calls the working set.
    pub memory_bytes: u64,
    /// CPU time used so far, nanoseconds.
    pub cpu_ns: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Cgroups {
    /// Looks at what is mounted at `root`, usually [`ROOT`].
    ///
    /// # Errors
    /// When no cgroup file system is there.
    pub fn detect(root: &Path) -> Result<Self> {
        if let Ok(list) = fs::read_to_string(root.join("cgroup.controllers")) {
            let controllers = list.split_ascii_whitespace().map(str::to_owned).collect();
            return Ok(Self {
                root: root.to_owned(),
                version: Version::V2,
                controllers,
            });
        }
        let mut controllers = BTreeSet::new();
        for entry in fs::read_dir(root).doing_path("list", root)? {
            let entry = entry.doing_path("list", root)?;
            if entry.path().join("cgroup.procs").exists()
                && let Some(name) = entry.file_name().to_str()
            {
                controllers.extend(name.split(',').map(str::to_owned));
            }
        }
        let unified = controllers.remove("unified");
        controllers.remove("systemd");
        if controllers.is_empty() {
            return Err(io::Error::other("no cgroup file system is mounted")).doing_path("use", root);
        }
        let version = if unified { Version::Hybrid } else { Version::V1 };
        Ok(Self {
            root: root.to_owned(),
            version,
            controllers,
        })
    }

    /// What the node mounts.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Available controllers, by name.
    #[must_use]
    pub fn controllers(&self) -> &BTreeSet<String> {
        &self.controllers
    }

    /// Directory of a cgroup in the hierarchy of a controller.
    #[must_use]
    pub fn dir(&self, controller: &str, path: &str) -> PathBuf {
        match self.version {
            Version::V2 => self.root.join(path),
            Version::V1 | Version::Hybrid => self.v1_mount(controller).join(path),
        }
    }

    fn v1_mount(&self, controller: &str) -> PathBuf {
        let own = self.root.join(controller);
        if own.exists() || !matches!(controller, "cpu" | "cpuacct") {
            return own;
        }
        self.root.join("cpu,cpuacct")
    }

    /// What a container sees of its own cgroup: each directory on the host, and where it belongs under `/sys/fs/cgroup`.
    #[must_use]
    pub fn view(&self, path: &str) -> Vec<(PathBuf, PathBuf)> {
        let root = Path::new(ROOT);
        match self.version {
            Version::V2 => vec![(self.root.join(path), root.to_owned())],
            Version::V1 | Version::Hybrid => {
                let shown = V1_JOINED.iter().filter(|name| self.controllers.contains(**name));
                shown
                    .map(|name| (self.dir(name, path), root.join(name)))
                    .collect()
            }
        }
    }

    /// Makes the cgroup under which everything of ours lives, with its own budget.
    ///
    /// # Errors
    /// When it cannot be made, or a limit has no controller.
    pub fn ensure_parent(&self, name: &str, budget: &Limits) -> Result<()> {
        self.create(name, budget)
    }

    /// Makes a Pod's cgroup below its parent.
    ///
    /// # Errors
    /// When it cannot be made, or a limit has no controller.
    pub fn ensure_pod(&self, pod: &PodCgroup) -> Result<()> {
        self.create(&pod.path(), &pod.limits)
    }

    /// Makes a cgroup, and its ancestors, and sets its limits. One that exists keeps its processes.
    ///
    /// # Errors
    /// When it cannot be made, or a limit has no controller.
    pub fn create(&self, path: &str, limits: &Limits) -> Result<()> {
        match self.version {
            Version::V2 => {
                self.enable_on_ancestors(path)?;
                let dir = self.root.join(path);
                fs::create_dir_all(&dir).doing_path("make cgroup", &dir)?;
            }
            Version::V1 | Version::Hybrid => {
                for controller in &self.controllers {
                    let dir = self.dir(controller, path);
                    fs::create_dir_all(&dir).doing_path("make cgroup", &dir)?;
                    if controller == "memory" {
                        // Only kernels before 5.11 know the other value.
                        let _ = fs::write(dir.join("memory.use_hierarchy"), "1");
                    }
                }
            }
        }
        self.set_limits(path, limits)
    }

    fn enable_on_ancestors(&self, path: &str) -> Result<()> {
        let mut dir = self.root.clone();
        for part in Path::new(path) {
            for controller in CONTROLLERS
                .iter()
                .filter(|name| self.controllers.contains(**name))
            {
                let file = dir.join("cgroup.subtree_control");
                // A parent that lacks one (a container's view of the host) shows when a limit is set.
                let _ = write(&file, &format!("+{controller}"));
            }
            dir.push(part);
            if !dir.exists() {
                fs::create_dir(&dir).doing_path("make cgroup", &dir)?;
            }
        }
        Ok(())
    }

    /// Moves a process into a cgroup.
    ///
    /// # Errors
    /// When there is no such cgroup or process.
    pub fn join(&self, path: &str, pid: i32) -> Result<()> {
        let hierarchies: Vec<PathBuf> = match self.version {
            Version::V2 => vec![self.root.join(path)],
            Version::V1 | Version::Hybrid => {
                let ours = V1_JOINED.iter().filter(|name| self.controllers.contains(**name));
                ours.map(|name| self.dir(name, path)).collect()
            }
        };
        for dir in hierarchies {
            let file = dir.join("cgroup.procs");
            write(&file, &pid.to_string()).doing_path("write", &file)?;
        }
        Ok(())
    }

    /// Has [`Cgroups::warm_up`] done by a process of its own. Nobody waits for its report, but whoever adopts it for its end.
    pub fn warm_up_meanwhile(&self) {
        let _ = process::fork_child(|| self.warm_up());
    }

    /// Makes the next move of a process into a cgroup fast.
    ///
    /// The first move takes a lock for which the kernel waits a whole RCU grace period, 13 ms on the machine where it was
    /// measured; another one soon after does not. A process that moves itself to where it is already takes that lock
    /// too, so one that is forked for this early lets the wait pass while a sandbox or a root filesystem is made.
    /// Nothing comes of it when it fails.
    pub fn warm_up(&self) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let tracking = V1_TRACKING
            .iter()
            .find(|name| self.controllers.contains(**name))
            .copied();
        let wanted = if self.version == Version::V2 {
            Some("")
        } else {
            tracking
        };
        let path = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted
                .filter(|wanted| controllers.split(',').any(|name| name == *wanted))
                .map(|_| path)
        });
        if let (Some(controller), Some(path)) = (wanted, path) {
            let _ = write(
                &self
                    .dir(controller, path.trim_start_matches('/'))
                    .join("cgroup.procs"),
                "0",
            );
        }
    }

    /// All processes of a cgroup and those below it.
    ///
    /// # Errors
    /// When the cgroup exists but cannot be read.
    pub fn pids(&self, path: &str) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        if let Some(dir) = self.tracking_dir(path) {
            walk(&dir, &mut |dir| {
                let file = dir.join("cgroup.procs");
                match fs::read_to_string(&file) {
                    Ok(list) => pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok())),
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(error).doing_path("read", &file),
                }
                Ok(())
            })?;
        }
        // 0 stands for a process of another PID namespace, which no signal of ours reaches.
        pids.retain(|&pid| pid > 0);
        Ok(pids)
    }

    fn tracking_dir(&self, path: &str) -> Option<PathBuf> {
        match self.version {
            Version::V2 => Some(self.root.join(path)),
            Version::V1 | Version::Hybrid => {
                let name = V1_TRACKING
                    .iter()
                    .find(|name| self.controllers.contains(**name))?;
                Some(self.dir(name, path))
            }
        }
    }

    /// Kills every process of a cgroup and those below it, and waits until none is left but zombies.
    ///
    /// # Errors
    /// `ETIMEDOUT` when some are left.
    pub fn kill_all(&self, path: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut alive = self.pids(path)?;
            // A zombie runs nothing; whose child it was may never wait for it.
            alive.retain(|&pid| !process::is_zombie(pid));
            if alive.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let cause = io::Error::from_raw_os_error(libc::ETIMEDOUT);
                return Err(cause).doing("kill", format_args!("the processes {alive:?} of cgroup {path}"));
            }
            self.kill_frozen(path, FREEZE_TIMEOUT)?;
            std::thread::sleep(POLL);
        }
    }

    /// Sends SIGKILL to every process of a cgroup and those below it, without waiting.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub fn kill_once(&self, path: &str) -> Result<()> {
        self.kill_frozen(path, Duration::ZERO)
    }

    /// The same, waiting for so long until all of them stand still: one that is forking right now is then seen with its
    /// child.
    fn kill_frozen(&self, path: &str, patience: Duration) -> Result<()> {
        // Linux 5.14 kills a v2 cgroup at once, forks in flight included.
        if self.version == Version::V2 && write(&self.root.join(path).join("cgroup.kill"), "1").is_ok() {
            return Ok(());
        }
        // A frozen process cannot fork away from the signal, which it gets when it is thawed.
        self.freeze(path, true);
        let deadline = Instant::now() + patience;
        while !self.is_frozen(path) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        let killed = self.pids(path).and_then(|pids| {
            pids.into_iter()
                .try_for_each(|pid| process::ignore_gone(process::kill(pid, libc::SIGKILL)))
        });
        self.freeze(path, false);
        killed
    }

    fn is_frozen(&self, path: &str) -> bool {
        match self.version {
            Version::V2 => fs::read_to_string(self.root.join(path).join("cgroup.events"))
                .is_ok_and(|text| field(&text, "frozen") == Some(1)),
            // Without a freezer there is nothing to wait for.
            Version::V1 | Version::Hybrid => {
                fs::read_to_string(self.dir("freezer", path).join("freezer.state"))
                    .is_ok_and(|state| state.trim() == "FROZEN")
                    || !self.controllers.contains("freezer")
            }
        }
    }

    /// Best effort: without a freezer the signals are repeated until nothing is left.
    fn freeze(&self, path: &str, frozen: bool) {
        let (file, value) = match self.version {
            Version::V2 => (
                self.root.join(path).join("cgroup.freeze"),
                if frozen { "1" } else { "0" },
            ),
            Version::V1 | Version::Hybrid => {
                let state = if frozen { "FROZEN" } else { "THAWED" };
                (self.dir("freezer", path).join("freezer.state"), state)
            }
        };
        let _ = write(&file, value);
    }

    /// What a cgroup uses; a controller that is missing counts as 0.
    #[must_use]
    pub fn usage(&self, path: &str) -> Usage {
        let number = |controller: &str, file: &str| -> u64 {
            let text = fs::read_to_string(self.dir(controller, path).join(file)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let keyed = |controller: &str, file: &str, key: &str| {
            let text = fs::read_to_string(self.dir(controller, path).join(file)).unwrap_or_default();
            field(&text, key).unwrap_or(0)
        };
        let (memory, inactive, cpu_ns) = if self.version == Version::V2 {
            let cpu = keyed("cpu", "cpu.stat", "usage_usec").saturating_mul(1000);
            (
                number("memory", "memory.current"),
                keyed("memory", "memory.stat", "inactive_file"),
                cpu,
            )
        } else {
            let inactive = keyed("memory", "memory.stat", "total_inactive_file");
            (
                number("memory", "memory.usage_in_bytes"),
                inactive,
                number("cpuacct", "cpuacct.usage"),
            )
        };
        Usage {
            memory_bytes: memory.saturating_sub(inactive),
            cpu_ns,
            pids: number("pids", "pids.current"),
        }
    }

    /// Processes of this cgroup that the kernel has killed for want of memory; 0 before Linux 4.13.
    #[must_use]
    pub fn oom_kills(&self, path: &str) -> u64 {
        fs::read_to_string(self.oom_file(path))
            .ok()
            .and_then(|text| field(&text, "oom_kill"))
            .unwrap_or(0)
    }

    /// The file that counts them.
    #[must_use]
    pub fn oom_file(&self, path: &str) -> PathBuf {
        let file = if self.version == Version::V2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        self.dir("memory", path).join(file)
    }

    /// Names of the cgroups directly below `path`.
    ///
    /// # Errors
    /// When the cgroup exists but cannot be read.
    pub fn children(&self, path: &str) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for dir in self.all_dirs(path) {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error).doing_path("list", &dir),
            };
            for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
                names.extend(entry.file_name().to_str().map(str::to_owned));
            }
        }
        Ok(names)
    }

    /// Removes a cgroup and those below it from all hierarchies. It must be empty of processes; ones that are just
    /// ending are waited for, for at most `timeout`.
    ///
    /// # Errors
    /// `EBUSY` when it has processes.
    pub fn remove(&self, path: &str, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        for dir in self.all_dirs(path) {
            loop {
                match remove_tree(&dir) {
                    Err(error) if error.is(libc::EBUSY) && Instant::now() < deadline => {
                        std::thread::sleep(POLL);
                    }
                    result => break result?,
                }
            }
        }
        Ok(())
    }

    /// The cgroup's directories in all hierarchies. libcontainer makes them in each that is mounted, so hierarchies
    /// that we do not use are looked at too.
    fn all_dirs(&self, path: &str) -> Vec<PathBuf> {
        match self.version {
            Version::V2 => vec![self.root.join(path)],
            Version::V1 | Version::Hybrid => self
                .controllers
                .iter()
                .map(|controller| self.dir(controller, path))
                .collect(),
        }
    }
}

/// The value after `key` in lines of `key value`.
pub(crate) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(file)?
        .write_all(value.as_bytes())
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Calls `visit` for a directory and those below it, the deepest last.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    visit(dir)?;
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error).doing_path("list", dir),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit)?;
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> Result<()> {
    let mut dirs = Vec::new();
    walk(dir, &mut |dir| {
        dirs.push(dir.to_owned());
        Ok(())
    })?;
    for dir in dirs.iter().rev() {
        match fs::remove_dir(dir) {
            Err(error) if !is_gone(&error) => return Err(error).doing_path("remove cgroup", dir),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
