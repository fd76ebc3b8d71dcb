//! The agent's own cgroups, beside that of the Pods: what the agent and its pulls use is bounded and is not the Pods'.
//!
//! ```text
//!   <cgroup>           Pods; all together at most what is allocatable
//!   <cgroup>-agent
//!     agent            this process: agent_memory
//!     pull             all image pulls: pull_memory
//!     shims            no bound: a shim that is killed takes its Pod with it
//! ```
//!
//! Always holds: memory alone is bounded; where that cannot be, everything stays where it was started, and the log says why.

use std::path::PathBuf;

use skiff_sys::Limits;
use skiff_sys::cgroup::Cgroups;
use tracing::warn;

use crate::config::Config;

/// Where a process of ours belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The agent itself.
    Agent,
    /// Image pulls.
    Pull,
    /// Shims.
    Shims,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Pull => "pull",
            Self::Shims => "shims",
        }
    }
}

/// The agent's own cgroups; none where memory is not bounded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// Directory of `<cgroup>-agent` in the hierarchy of the memory controller.
    dir: Option<PathBuf>,
}

/// The cgroup above the agent's own ones.
#[must_use]
pub(crate) fn parent(config: &Config) -> String {
    format!("{}-agent", config.cgroup)
}

impl Own {
    /// Makes the cgroups and moves this process into its own.
    #[must_use]
    pub(crate) fn enter(config: &Config, cgroups: &Cgroups) -> Self {
        if config.agent_memory == 0 || !cgroups.controllers().contains("memory") {
            return Self::default();
        }
        let parent = parent(config);
        let parts = [
            (Part::Shims, None),
            (Part::Pull, Some(config.pull_memory)),
            (Part::Agent, Some(config.agent_memory)),
        ];
        for (part, memory_bytes) in parts {
            let limits = Limits {
                memory_bytes,
                ..Default::default()
            };
            if let Err(error) = cgroups.create(&format!("{parent}/{}", part.name()), &limits) {
                warn!(%error, "the agent's own memory is not bounded");
                return Self::default();
            }
        }
        let own = Self {
            dir: Some(cgroups.dir("memory", &parent)),
        };
        own.take(Part::Agent, std::process::id());
        own
    }

    /// Moves a process. The kernel may take some milliseconds for it.
    pub(crate) fn take(&self, part: Part, pid: u32) {
        let Some(dir) = &self.dir else { return };
        let file = dir.join(part.name()).join("cgroup.procs");
        if let Err(error) = std::fs::write(&file, pid.to_string())
            // It has ended meanwhile.
            && error.raw_os_error() != Some(ESRCH)
        {
            warn!(path = %file.display(), %error, "a process of ours stays in another cgroup");
        }
    }

    /// The same on another thread; done when it is moved.
    pub(crate) fn take_beside(&self, part: Part, pid: Option<u32>) -> tokio::task::JoinHandle<()> {
        let own = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Some(pid) = pid {
                own.take(part, pid);
            }
        })
    }
}

/// "No such process" on every Linux.
const ESRCH: i32 = 3;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    /// A hierarchy of v2 in plain files.
    fn hierarchy(controllers: &str) -> (tempfile::TempDir, Cgroups) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        for part in ["agent", "pull", "shims"] {
            let dir = dir.path().join("skiff-agent").join(part);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("memory.max"), "max").unwrap();
            std::fs::write(dir.join("cgroup.procs"), "").unwrap();
        }
        let cgroups = Cgroups::detect(dir.path()).unwrap();
        (dir, cgroups)
    }

    #[test]
    fn the_agent_and_its_pulls_are_bounded_and_shims_are_not() {
        for (controllers, text, expected) in [
            (
                "memory cpu",
                "",
                [Some("67108864"), Some("134217728"), Some("max")],
            ),
            (
                "memory",
                "agent_memory = 20000000\npull_memory = 100000000",
                [Some("20000000"), Some("100000000"), Some("max")],
            ),
            ("memory", "agent_memory = 0", [None; 3]),
            ("cpu", "", [None; 3]),
        ] {
            let (dir, cgroups) = hierarchy(controllers);
            let own = Own::enter(&config(text), &cgroups);
            let read = |part: &str, file: &str| {
                std::fs::read_to_string(dir.path().join("skiff-agent").join(part).join(file)).unwrap()
            };
            let bounded = expected[0].is_some();
            for (part, limit) in ["agent", "pull", "shims"].into_iter().zip(expected) {
                assert_eq!(read(part, "memory.max"), limit.unwrap_or("max"), "{text}: {part}");
            }
            let here = read("agent", "cgroup.procs");
            let pid = std::process::id().to_string();
            assert_eq!(here, if bounded { pid.as_str() } else { "" }, "{text}");
            own.take(Part::Shims, 7);
            assert_eq!(read("shims", "cgroup.procs"), if bounded { "7" } else { "" });
        }
    }

    /// The cgroup of a process in the hierarchy of the memory controller.
    fn memory_cgroup(pid: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let of = |list: &str| list == "memory" || list.is_empty();
        let mut lines = text.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let v1 = lines.clone().find(|it| it[1] == "memory");
        let line = v1.or_else(|| lines.find(|it| of(it[1]))).unwrap();
        line[2].to_owned()
    }

    #[test]
    fn this_kernel_moves_processes_there_and_forgets_the_rest() {
        let cgroups = Cgroups::detect(Path::new(skiff_sys::cgroup::ROOT)).unwrap();
        let before = memory_cgroup("self");
        let mut config = config("agent_memory = 536870912");
        config.cgroup = format!("skiff-own-{}", std::process::id());
        let own = Own::enter(&config, &cgroups);
        let here = memory_cgroup("self");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        own.take(Part::Shims, child.id());
        let there = memory_cgroup(&child.id().to_string());
        child.kill().unwrap();
        child.wait().unwrap();
        // One that has ended is no cause for alarm.
        own.take(Part::Pull, child.id());
        let back = cgroups.dir("memory", before.trim_start_matches('/'));
        std::fs::write(back.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        cgroups
            .remove(&parent(&config), std::time::Duration::from_secs(5))
            .unwrap();
        let parent = parent(&config);
        assert!(here.ends_with(&format!("/{parent}/agent")), "{here}");
        assert!(there.ends_with(&format!("/{parent}/shims")), "{there}");
    }
}
