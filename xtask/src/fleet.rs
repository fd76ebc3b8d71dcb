//! A server and one node on this machine, in a directory of their own: what the demo and the benchmark run.
//!
//! Dropping a [`Fleet`] ends every process it started and takes away what they left: mounts, namespaces, cgroup,
//! bridge. Nothing outside its directory, its cgroup and its bridge is touched.

mod leftovers;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command;
use crate::files;

/// The words that our binaries understand, in one place.
mod words {
    use super::{Layout, SocketAddr};

    pub(super) fn server(
        layout: &Layout,
        api: SocketAddr,
        broker: SocketAddr,
        advertise: Option<&str>,
    ) -> Vec<String> {
        let mut words = vec![
            "server".into(),
            "--data".into(),
            layout.server.display().to_string(),
            "--listen".into(),
            api.to_string(),
            "--broker-listen".into(),
            broker.to_string(),
        ];
        words.extend(
            advertise
                .map(|it| ["--advertise".to_owned(), it.to_owned()])
                .into_iter()
                .flatten(),
        );
        words
    }

    pub(super) fn enrol(layout: &Layout, node: &str) -> Vec<String> {
        let mut words = with_server(layout);
        words.extend(["node".into(), "enrol".into(), node.into(), "--token-only".into()]);
        words
    }

    pub(super) fn import(layout: &Layout, image: &std::path::Path) -> Vec<String> {
        let mut words = with_server(layout);
        words.extend(["image".into(), "import".into(), image.display().to_string()]);
        words
    }

    /// The token comes over standard input: a command line is for all to see.
    pub(super) fn join(layout: &Layout) -> Vec<String> {
        vec![
            "join".into(),
            "-".into(),
            "--config".into(),
            layout.config.display().to_string(),
        ]
    }

    pub(super) fn run(layout: &Layout) -> Vec<String> {
        vec![
            "run".into(),
            "--config".into(),
            layout.config.display().to_string(),
        ]
    }

    pub(super) fn stop(layout: &Layout) -> Vec<String> {
        vec![
            "stop".into(),
            "--config".into(),
            layout.config.display().to_string(),
        ]
    }

    fn with_server(layout: &Layout) -> Vec<String> {
        vec!["--kubeconfig".into(), layout.kubeconfig.display().to_string()]
    }
}

/// The binaries to run.
pub(crate) struct Binaries {
    /// `skiff`.
    pub(crate) cli: PathBuf,
    /// `skiff-agent`.
    pub(crate) agent: PathBuf,
    /// `kubectl`.
    pub(crate) kubectl: PathBuf,
}

/// Where the parts of a fleet keep their files, and the names it takes on this machine.
struct Layout {
    dir: PathBuf,
    server: PathBuf,
    kubeconfig: PathBuf,
    config: PathBuf,
    state: PathBuf,
    run: PathBuf,
    cgroup: String,
    bridge: String,
}

impl Layout {
    fn new(dir: &Path, name: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            server: dir.join("server"),
            kubeconfig: dir.join("server/admin.kubeconfig"),
            config: dir.join("agent.toml"),
            state: dir.join("node"),
            run: PathBuf::from(format!("/run/skiff-{name}")),
            cgroup: format!("skiff-{name}"),
            bridge: format!("skiff-{name}"),
        }
    }

    fn write_config(&self) -> Result<()> {
        let text = format!(
            "state_dir = {:?}\nrun_dir = {:?}\ncgroup = {:?}\nbridge = {:?}\npod_cidr = \"10.213.0.0/16\"\nip_forward = false\n",
            self.state.display().to_string(),
            self.run.display().to_string(),
            self.cgroup,
            self.bridge,
        );
        files::write(&self.config, text)
    }
}

/// Set by Ctrl-C or SIGTERM; every wait looks at it.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches SIGINT and SIGTERM from now on.
    pub(crate) fn catch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot catch signals")?;
        }
        Ok(Self(flag))
    }

    /// Whether the user wants to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Asks `probe` until it has an answer, `timeout` passes or the user wants to stop.
    pub(crate) fn wait<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut probe: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(answer) = probe()? {
                return Ok(answer);
            }
            if self.is_set() {
                bail!("interrupted while waiting for {what}");
            }
            if begun.elapsed() > timeout {
                bail!("waited {} s in vain for {what}", timeout.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A process of ours with its output in a file.
struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it in a process group of its own, so that Ctrl-C reaches us and we end it in order.
    fn start(name: &'static str, program: &Path, words: &[String], log: PathBuf) -> Result<Self> {
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let err = out
            .try_clone()
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(program);
        command
            .args(words)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", command::line(&command)))?;
        Ok(Self { name, child, log })
    }

    /// Fails with the end of its log when it has ended.
    fn check(&mut self) -> Result<()> {
        if let Some(status) = self
            .child
            .try_wait()
            .with_context(|| format!("cannot wait for the {}", self.name))?
        {
            let said = files::read(&self.log).unwrap_or_default();
            bail!(
                "the {} ended ({status}); the end of {}:\n{}",
                self.name,
                self.log.display(),
                command::tail(&said, 20)
            );
        }
        Ok(())
    }

    /// SIGTERM, and SIGKILL to one that takes more than ten seconds.
    fn stop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else {
            return;
        };
        if !matches!(self.child.try_wait(), Ok(None)) || kill(Pid::from_raw(pid), Signal::SIGTERM).is_err() {
            return;
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if self.child.kill().is_ok() {
            drop(self.child.wait());
        }
    }
}

/// A running server and node.
pub(crate) struct Fleet {
    binaries: Binaries,
    layout: Layout,
    interrupt: Interrupt,
    processes: Vec<Process>,
}

impl Fleet {
    /// The node's name.
    pub(crate) const NODE: &'static str = "here";

    /// Starts server and node in `dir`, emptied first, and waits until the node is Ready.
    ///
    /// `name` (at most eight bytes) keeps two fleets on one machine apart.
    pub(crate) fn start(dir: &Path, name: &str, binaries: Binaries, interrupt: Interrupt) -> Result<Self> {
        let mut fleet = Self::empty(dir, name, binaries, interrupt)?;
        fleet.start_server(None)?;
        fleet.start_node()?;
        Ok(fleet)
    }

    /// The same without a node: one that is elsewhere, and finds this machine as `advertise`.
    pub(crate) fn server(
        dir: &Path,
        name: &str,
        binaries: Binaries,
        interrupt: Interrupt,
        advertise: &str,
    ) -> Result<Self> {
        let mut fleet = Self::empty(dir, name, binaries, interrupt)?;
        fleet.start_server(Some(advertise))?;
        Ok(fleet)
    }

    fn empty(dir: &Path, name: &str, binaries: Binaries, interrupt: Interrupt) -> Result<Self> {
        let layout = Layout::new(dir, name);
        // What a run that was killed left behind would keep the directory from being emptied.
        leftovers::sweep(&layout.dir, &layout.run, &layout.cgroup, &layout.bridge);
        files::remove(&layout.dir)?;
        for dir in [&layout.dir, &layout.server, &layout.state, &layout.run] {
            files::make_dir(dir)?;
        }
        layout.write_config()?;
        Ok(Self {
            binaries,
            layout,
            interrupt,
            processes: Vec::new(),
        })
    }

    fn start_server(&mut self, advertise: Option<&str>) -> Result<()> {
        let words = words::server(&self.layout, free_port()?, free_port()?, advertise);
        let log = self.layout.dir.join("server.log");
        self.processes
            .push(Process::start("server", &self.binaries.cli, &words, log)?);
        self.wait("the server to answer", Duration::from_secs(30), |fleet| {
            let mut version = fleet.kubectl(&["get", "--raw", "/version"]);
            Ok((fleet.layout.kubeconfig.is_file() && command::succeeds(&mut version)).then_some(()))
        })
    }

    fn start_node(&mut self) -> Result<()> {
        let token = self.token(Self::NODE)?;
        let mut join = Command::new(&self.binaries.agent);
        command::quiet_with(join.args(words::join(&self.layout)), &token)?;
        self.start_agent()?;
        self.wait("the node to be Ready", Duration::from_secs(30), |fleet| {
            let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            let said = command::output(&mut fleet.kubectl(&["get", "node", Self::NODE, "-o", path]));
            Ok(said.is_ok_and(|text| text == "True").then_some(()))
        })
    }

    /// Starts the agent, with a log of its own.
    pub(crate) fn start_agent(&mut self) -> Result<()> {
        let log = self.layout.dir.join("agent.log");
        let (program, words) = (&self.binaries.agent, words::run(&self.layout));
        self.processes
            .push(Process::start("agent", program, &words, log)?);
        Ok(())
    }

    /// SIGTERM to one of our processes; Pods go on without their agent.
    pub(crate) fn stop(&mut self, name: &str) {
        if let Some(at) = self.processes.iter().position(|it| it.name == name) {
            self.processes.remove(at).stop();
        }
    }

    /// Ends every Pod of the node and removes what a reboot would; the agent must not be running.
    pub(crate) fn end_pods(&self) -> Result<()> {
        command::quiet(Command::new(&self.binaries.agent).args(words::stop(&self.layout)))
    }

    /// A join token for a node.
    pub(crate) fn token(&self, node: &str) -> Result<String> {
        command::output(Command::new(&self.binaries.cli).args(words::enrol(&self.layout, node)))
    }

    /// Gives one image archive or layout to the server.
    pub(crate) fn import(&self, image: &Path) -> Result<()> {
        command::quiet(Command::new(&self.binaries.cli).args(words::import(&self.layout, image)))
    }

    /// kubectl with this fleet's kubeconfig.
    pub(crate) fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.kubectl);
        command
            .arg("--kubeconfig")
            .arg(&self.layout.kubeconfig)
            .args(words);
        command
    }

    /// Waits like [`Interrupt::wait`], and fails at once when one of our processes has ended.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut probe: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let interrupt = self.interrupt.clone();
        let logs = self.layout.dir.clone();
        interrupt
            .wait(what, timeout, || {
                for process in &mut self.processes {
                    process.check()?;
                }
                probe(self)
            })
            .with_context(|| format!("logs are in {}", logs.display()))
    }

    /// The agent's process id.
    pub(crate) fn agent_pid(&self) -> Result<u32> {
        let agent = self.processes.iter().find(|process| process.name == "agent");
        agent
            .map(|process| process.child.id())
            .context("the agent was not started")
    }

    /// The kubeconfig that the server wrote.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.layout.kubeconfig
    }

    /// The node's run directory.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.layout.run
    }

    /// What the agent has said so far.
    pub(crate) fn agent_log(&self) -> Result<String> {
        files::read(&self.layout.dir.join("agent.log"))
    }

    /// Whether the user wants to stop.
    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Ends the fleet and removes its directory, when all went well: logs of a failure are for somebody to read.
    pub(crate) fn finish(self) -> Result<()> {
        let dir = self.layout.dir.clone();
        drop(self);
        files::remove(&dir)
    }

    /// Deletes every Pod and waits until they are gone, so that the node itself takes them down.
    pub(crate) fn delete_pods(&self) -> Result<()> {
        command::quiet(&mut self.kubectl(&[
            "delete",
            "pods",
            "--all",
            "--wait=true",
            "--timeout=45s",
            "--grace-period=2",
        ]))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let has = |name: &str| self.processes.iter().any(|it| it.name == name);
        let (server, agent) = (has("server"), has("agent"));
        if server
            && agent
            && let Err(error) = self.delete_pods()
        {
            eprintln!("warning: pods were not deleted in order: {error:#}");
        }
        // The agent before the server: it says goodbye over the server's broker.
        for process in self.processes.iter_mut().rev() {
            process.stop();
        }
        // Pods outlive their agent by design: this ends those that could not be deleted.
        if agent && let Err(error) = self.end_pods() {
            eprintln!("warning: {error:#}");
        }
        leftovers::sweep(
            &self.layout.dir,
            &self.layout.run,
            &self.layout.cgroup,
            &self.layout.bridge,
        );
    }
}

/// A port that nobody listens on now. The kernel does not give it out again soon.
pub(crate) fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    listener.local_addr().context("cannot tell our own port")
}
