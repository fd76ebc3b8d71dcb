//! The board as a node of a fleet whose server and broker are on this machine.
//!
//! Always holds: the agent on it is the one that `cargo xtask dist` builds, and everything that it keeps is on the disk that
//! loses what was not flushed.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::disk::{Account, Cut};
use crate::harness::cluster::Control;
use crate::harness::process::{Said, tail};
use crate::harness::{Setup, programs, wait};
use crate::machine::{Boot, Machine};

/// How the board finds this machine's loopback.
const HOST: &str = "10.0.2.2";

/// Its name in the fleet.
pub(crate) const NAME: &str = "board";

/// How long things may take on an emulated machine that is busy.
pub(crate) const PATIENCE: u64 = 120;

/// Succeeds while there is an agent.
const ALIVE: &str = "kill -0 $(cat /run/agent.pid)";

/// A file that the board is made of.
pub(crate) fn file(name: &str) -> PathBuf {
    programs::find("SKIFF_BOARD", "board", "cargo xtask test --only board").join(name)
}

/// What a test wants of its board.
#[derive(Default)]
pub(crate) struct Wanted<'a> {
    /// More of the agent's configuration.
    pub(crate) agent: &'a str,
    /// How it boots for the first time.
    pub(crate) boot: Boot,
    /// What is done on the board before the agent joins.
    pub(crate) before: &'a str,
    /// What the agent is started through.
    pub(crate) through: &'a str,
    /// Bytes of its disk; 0 is 1 GiB.
    pub(crate) disk: u64,
}

/// A board that has joined a fleet.
pub(crate) struct Board {
    /// It is off between [`Board::cut`] and [`Board::boot`].
    machine: Option<Machine>,
    /// The server, its broker, and kubectl.
    pub(crate) control: Control,
    image: PathBuf,
    through: String,
}

impl Board {
    /// A new disk, a new fleet, and the node is Ready.
    #[track_caller]
    pub(crate) fn start(wanted: &Wanted<'_>) -> Self {
        let control = Control::start(&Setup {
            server: &["--advertise", HOST],
            ..Setup::default()
        });
        control.import(&file("images/busybox.tar"));
        let image = control.dir().join("disk.img");
        format(&image, if wanted.disk == 0 { 1 << 30 } else { wanted.disk });
        let mut board = Self {
            machine: None,
            control,
            image,
            through: wanted.through.to_owned(),
        };
        board.boot(&wanted.boot);
        let config = format!(
            "state_dir = \"/data/skiff\"\nreserved_memory = 33554432\nreconnect_cap_seconds = 2\nkeepalive_seconds = 5\n{}",
            wanted.agent
        );
        for line in config.lines() {
            board.ok(&format!("echo '{line}' >>/data/agent.toml"));
        }
        if !wanted.before.is_empty() {
            board.ok(wanted.before);
        }
        board.ok("sync");
        let token = board.control.token(NAME);
        board.ok(&format!(
            "echo '{token}' | skiff-agent join - --config /data/agent.toml"
        ));
        board.run_agent();
        board.is_ready();
        board
    }

    /// Switches it on. The agent is not started.
    #[track_caller]
    pub(crate) fn boot(&mut self, boot: &Boot) {
        let dir = self.control.dir().to_owned();
        self.machine = Some(Machine::boot(&dir, &self.image, boot));
    }

    /// Starts the agent, which goes on beside the console.
    #[track_caller]
    pub(crate) fn run_agent(&mut self) {
        let through = self.through.clone();
        self.ok(&format!(
            "{through} skiff-agent run --config /data/agent.toml >>/run/agent.log 2>&1 </dev/null & echo $! >/run/agent.pid"
        ));
    }

    /// SIGKILL to the agent alone.
    #[track_caller]
    pub(crate) fn kill_agent(&mut self) {
        self.ok("kill -9 $(cat /run/agent.pid)");
    }

    /// Waits until there is no agent any more, whoever ends it.
    #[track_caller]
    pub(crate) fn agent_ends(&mut self) {
        wait("the agent to end", PATIENCE, || {
            let said = self.run(ALIVE);
            if said.code == 0 {
                Err(said.to_string())
            } else {
                Ok(())
            }
        });
    }

    /// The board.
    #[track_caller]
    pub(crate) fn machine(&mut self) -> &mut Machine {
        self.machine.as_mut().expect("the board is on")
    }

    /// Runs a command on its console that succeeds.
    #[track_caller]
    pub(crate) fn ok(&mut self, command: &str) -> String {
        self.machine().ok(command)
    }

    /// Runs a command on its console.
    #[track_caller]
    pub(crate) fn run(&mut self, command: &str) -> Said {
        self.machine().run(command)
    }

    /// The power goes.
    #[track_caller]
    pub(crate) fn cut(&mut self, how: Cut) -> Account {
        self.machine.take().expect("the board is on").cut(how)
    }

    /// The board resets itself.
    #[track_caller]
    pub(crate) fn resets(&mut self, seconds: u64) {
        self.machine.take().expect("the board is on").resets(seconds);
    }

    /// Waits until the server has heard of the node since.
    #[track_caller]
    pub(crate) fn is_ready(&self) {
        self.control.is_ready(NAME, PATIENCE);
    }

    /// `skiff-agent status --json` or `skiff-agent pods --json`, on the board.
    pub(crate) fn ask(&mut self, what: &str) -> Result<Value, String> {
        let said = self.run(&format!("skiff-agent {what} --json"));
        serde_json::from_str(&said.out).map_err(|error| format!("{error}: {said}"))
    }

    /// The same, once the agent answers.
    #[track_caller]
    pub(crate) fn answer(&mut self, what: &str) -> Value {
        wait("the agent to answer", PATIENCE, || {
            let value = self.ask(what)?;
            if value.get("error").is_some() {
                return Err(value.to_string());
            }
            Ok(value)
        })
    }

    /// The same, unless the agent has ended.
    pub(crate) fn try_answer(&mut self, what: &str) -> Result<Value, String> {
        for _ in 0..PATIENCE * 4 {
            if let Ok(value) = self.ask(what)
                && value.get("error").is_none()
            {
                return Ok(value);
            }
            if self.run(ALIVE).code != 0 {
                return Err(format!(
                    "the agent ended: {}",
                    self.run("tail -n 5 /run/agent.log").out
                ));
            }
            std::thread::sleep(std::time::Duration::from_millis(250));
        }
        Err("the agent does not answer".to_owned())
    }

    /// Waits until a Pod runs with all its containers.
    #[track_caller]
    pub(crate) fn running(&self, pod: &str) -> Value {
        self.control.until(pod, "to run", PATIENCE, |it| {
            let containers = it["status"]["containerStatuses"].as_array();
            it["status"]["phase"] == "Running"
                && containers.is_some_and(|all| all.iter().all(|one| !one["state"]["running"].is_null()))
        })
    }

    /// SIGKILL to the first process of a Pod's only container.
    pub(crate) fn crash(&mut self, uid: &str) {
        let procs = format!("/sys/fs/cgroup/skiff/{uid}/main-*/cgroup.procs");
        self.run(&format!("kill -9 $(head -qn 1 {procs})"));
    }

    /// The cgroup of a Pod's only container, on the board.
    #[track_caller]
    pub(crate) fn cgroup(&mut self, uid: &str) -> String {
        self.ok(&format!(
            "find /sys/fs/cgroup/skiff -type d | grep -F {uid} | awk '{{ print length, $0 }}' | sort -n | tail -1 | cut -d' ' -f2"
        ))
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(machine) = &mut self.machine
        {
            // The console may be what failed.
            let log = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                machine.run("tail -n 60 /run/agent.log; dmesg | tail -n 15").out
            }));
            if let Ok(log) = log {
                eprintln!("=== the agent on the board, then its kernel\n{}", tail(&log, 80));
            }
            eprintln!(
                "=== events\n{}",
                tail(&self.control.kubectl(&["get", "events"]).out, 30)
            );
        }
    }
}

/// An empty ext4 file system, sparse.
#[track_caller]
pub(crate) fn format(image: &Path, bytes: u64) {
    let file = std::fs::File::create(image).unwrap();
    file.set_len(bytes).unwrap();
    let image = image.display().to_string();
    let options = "lazy_itable_init=0,lazy_journal_init=0";
    Said::of(
        Path::new("mkfs.ext4"),
        &["-q", "-F", "-E", options, &image],
        &[],
        "",
    )
    .ok();
    Command::new("sync").status().ok();
}
