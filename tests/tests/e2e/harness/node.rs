//! One node: its agent, and everything that it takes of this machine.
//!
//! Always holds: when a node is dropped, its Pods are ended by `skiff-agent stop`, and what is left after that fails
//! the test before it is swept away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::kernel::{self, Init};
use super::process::{Process, Said, read, tail};
use super::programs;
use super::wait::wait;

/// Tells the nodes of one test process apart.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A node.
pub(crate) struct Node {
    /// Its name in the fleet.
    pub(crate) name: String,
    /// Its configuration.
    pub(crate) config: PathBuf,
    /// What survives a reboot.
    pub(crate) state: PathBuf,
    /// What does not; a tmpfs of its own.
    pub(crate) run: PathBuf,
    /// The cgroup above its Pods.
    pub(crate) cgroup: String,
    bridge: String,
    log: PathBuf,
    /// The agent that is started.
    pub(crate) program: PathBuf,
    /// More of the agent's environment.
    pub(crate) environment: Vec<(&'static str, String)>,
    process: Option<Process>,
    joined: bool,
}

impl Node {
    /// A node that has not joined. `extra` is more of its configuration.
    pub(crate) fn new(dir: &Path, name: &str, extra: &str) -> Self {
        let pid = std::process::id();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let run = PathBuf::from(format!("/run/skiff-test-{pid}-{count}"));
        fs::create_dir_all(&run).unwrap();
        mount(
            Some("tmpfs"),
            &run,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=700"),
        )
        .unwrap();
        let node = Self {
            name: name.to_owned(),
            config: dir.join(format!("{name}.toml")),
            state: dir.join(name),
            run,
            cgroup: format!("skiff-e2e-{pid}-{count}"),
            bridge: format!("ske{}-{count}", pid % 1_000_000),
            log: dir.join(format!("{name}.log")),
            program: programs::agent(),
            environment: Vec::new(),
            process: None,
            joined: false,
        };
        let (second, third) = (90 + pid % 100, (pid / 100 + count) % 256);
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\ncgroup = {:?}\nbridge = {:?}\n\
             pod_cidr = \"10.{second}.{third}.0/24\"\nip_forward = false\nreconnect_cap_seconds = 2\n\
             keepalive_seconds = 5\nstatic_pods_dir = {:?}\n{extra}",
            node.state,
            node.run.join("node"),
            node.cgroup,
            node.bridge,
            node.manifests(),
        );
        fs::create_dir_all(node.run.join("node")).unwrap();
        fs::write(&node.config, text).unwrap();
        node
    }

    /// The directory of static Pods, which is not there before somebody makes it.
    pub(crate) fn manifests(&self) -> PathBuf {
        self.config.with_extension("manifests")
    }

    /// A command of `skiff-agent` with this node's configuration.
    #[track_caller]
    pub(crate) fn agent(&self, arguments: &[&str]) -> Said {
        let config = self.config.display().to_string();
        let all: Vec<&str> = arguments.iter().copied().chain(["--config", &config]).collect();
        Said::of(&programs::agent(), &all, &[], "")
    }

    /// A command of `skiff-agent` with another state directory, as another node would run it.
    #[track_caller]
    pub(crate) fn agent_in(&self, state: &Path, arguments: &[&str]) -> Said {
        let state = state.display().to_string();
        let other: Vec<&str> = arguments.iter().copied().chain(["--state-dir", &state]).collect();
        self.agent(&other)
    }

    /// Joins the fleet.
    #[track_caller]
    pub(crate) fn join(&mut self, token: &str) {
        self.agent(&["join", token]).ok();
        self.joined = true;
    }

    /// Starts the agent and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.launch();
        wait("the agent to answer", 30, || {
            let process = self.process.as_mut().unwrap();
            assert!(process.runs(), "the agent ended: {}", tail(&process.text(), 20));
            self.ask("status").map(drop)
        });
    }

    /// Starts the agent, come what may.
    pub(crate) fn launch(&mut self) {
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(&self.config);
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        self.process = Some(Process::start(command, &self.log));
    }

    /// The agent's process.
    #[track_caller]
    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent was started")
    }

    /// SIGTERM to the agent; its Pods run on.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        assert!(
            self.process.take().unwrap().stop(),
            "the agent does not stop on SIGTERM"
        );
    }

    /// SIGKILL to the agent; its Pods run on.
    pub(crate) fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    /// What the agent has said.
    pub(crate) fn log(&self) -> String {
        read(&self.log)
    }

    /// `skiff-agent status --json` or `skiff-agent pods --json`.
    pub(crate) fn ask(&self, what: &str) -> Result<Value, String> {
        let said = self.agent(&[what, "--json"]);
        if said.code != 0 {
            return Err(said.err);
        }
        serde_json::from_str(&said.out).map_err(|error| format!("{error}: {}", said.out))
    }

    /// A figure of `skiff-agent status --json`.
    #[track_caller]
    pub(crate) fn figure(&self, pointer: &str) -> u64 {
        let status = self.ask("status").unwrap();
        let value = status.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no {pointer} in {status}"))
    }

    /// The containers' first processes, as the kernel knows them.
    pub(crate) fn inits(&self) -> BTreeSet<Init> {
        kernel::inits(&self.cgroup).into_keys().collect()
    }

    /// The first process of the only container of a Pod.
    #[track_caller]
    pub(crate) fn init_of(&self, uid: &str) -> Init {
        let all: BTreeMap<Init, String> = kernel::inits(&self.cgroup);
        let found: Vec<Init> = all
            .iter()
            .filter(|(_, cgroup)| cgroup.contains(uid))
            .map(|(init, _)| *init)
            .collect();
        match found[..] {
            [one] => one,
            _ => panic!("not one container of {uid}: {all:?}"),
        }
    }

    /// What the kernel still holds for Pods; empty when none is left. `skiff-agent` itself may still run.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (init, cgroup) in kernel::inits(&self.cgroup) {
            left.push(format!("process {} in {cgroup}", init.pid));
        }
        let nested = |path: &PathBuf| {
            path.parent().is_some_and(|it| {
                it.components()
                    .any(|part| part.as_os_str() == self.cgroup.as_str())
            })
        };
        left.extend(
            kernel::cgroups(&self.cgroup)
                .iter()
                .filter(|it| nested(it))
                .map(|it| format!("cgroup {}", it.display())),
        );
        for dir in [self.run.join("node/pods"), self.state.join("pods")] {
            left.extend(kernel::mounts(&dir).iter().map(|it| format!("mount {it}")));
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            left.extend(entries.map(|it| format!("directory {}", it.path().display())));
        }
        left.extend(
            kernel::ports(&self.bridge)
                .iter()
                .map(|it| format!("interface {it}")),
        );
        let shims = kernel::processes(&self.run.join("node/pods"));
        left.extend(shims.iter().map(|(pid, line)| format!("process {pid}: {line}")));
        left
    }

    /// The cgroup of the agent itself, its pulls and its shims.
    fn own_cgroup(&self) -> String {
        format!("{}-agent", self.cgroup)
    }

    /// What is left once the node was stopped for good.
    fn remains(&self, interfaces: &BTreeSet<String>) -> Vec<String> {
        let mut left = self.leftovers();
        left.extend(
            kernel::cgroups(&self.cgroup)
                .iter()
                .chain(&kernel::cgroups(&self.own_cgroup()))
                .map(|it| format!("cgroup {}", it.display())),
        );
        let tables = Command::new("nft").args(["list", "tables"]).output();
        let tables = tables.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
        let ours = self.table();
        left.extend(
            tables
                .unwrap_or_default()
                .lines()
                .filter(|it| it.ends_with(&ours))
                .map(str::to_owned),
        );
        let mounts = [&self.state, &self.run]
            .into_iter()
            .flat_map(|dir| kernel::mounts(dir));
        let own = self.run.display().to_string();
        left.extend(
            mounts
                .filter(|point| *point != own)
                .map(|it| format!("mount {it}")),
        );
        let all = interfaces.iter().chain([&self.bridge]);
        left.extend(
            all.filter(|name| kernel::has_interface(name))
                .map(|it| format!("interface {it}")),
        );
        for dir in [&self.state, &self.run, &self.config] {
            let processes = kernel::processes(dir);
            left.extend(
                processes
                    .iter()
                    .map(|(pid, line)| format!("process {pid}: {line}")),
            );
        }
        left.sort();
        left.dedup();
        left
    }

    /// The node's table in the packet filter.
    fn table(&self) -> String {
        format!("skiff_{}", self.bridge)
    }

    /// Removes what should not be there. Only what carries this node's names is touched.
    fn sweep(&self) {
        let members = kernel::cgroups(&self.cgroup)
            .into_iter()
            .flat_map(|dir| lines_of(&dir.join("cgroup.procs")));
        let named = kernel::processes(&self.run).into_iter().map(|(pid, _)| pid);
        for pid in members.chain(named) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        let mut mounts = kernel::mounts(&self.state);
        mounts.extend(kernel::mounts(&self.run));
        mounts.sort_by_key(|it| std::cmp::Reverse(it.len()));
        for point in mounts {
            umount2(point.as_str(), MntFlags::MNT_DETACH).ok();
        }
        let mut cgroups = kernel::cgroups(&self.cgroup);
        cgroups.extend(kernel::cgroups(&self.own_cgroup()));
        cgroups.sort_by_key(|it| std::cmp::Reverse(it.as_os_str().len()));
        for _ in 0..40 {
            if cgroups
                .iter()
                .all(|it| fs::remove_dir(it).is_ok() || !it.exists())
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Command::new("nft")
            .args(["delete", "table", &self.table()])
            .output()
            .ok();
        if kernel::has_interface(&self.bridge) {
            Command::new("ip")
                .args(["link", "delete", &self.bridge])
                .status()
                .ok();
        }
        fs::remove_dir_all(&self.run).ok();
    }
}

fn lines_of(path: &Path) -> Vec<i32> {
    read(path).lines().filter_map(|it| it.parse().ok()).collect()
}

impl Drop for Node {
    fn drop(&mut self) {
        let interfaces = kernel::ports(&self.bridge);
        if let Some(process) = self.process.take() {
            process.stop();
        }
        let mut wrong = Vec::new();
        if self.joined {
            let said = self.agent(&["stop"]);
            if said.code != 0 {
                wrong.push(said.to_string());
            }
            wrong.extend(self.remains(&interfaces));
        }
        let failed = std::thread::panicking();
        if failed || !wrong.is_empty() {
            eprintln!("=== the log of agent {}\n{}", self.name, tail(&self.log(), 80));
        }
        self.sweep();
        if !wrong.is_empty() {
            let text = format!("node {} left behind:\n  {}", self.name, wrong.join("\n  "));
            // A second panic would abort the test and hide the first.
            if failed {
                eprintln!("{text}");
            } else {
                panic!("{text}");
            }
        }
    }
}
