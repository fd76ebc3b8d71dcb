//! `skiff up`: a server in this process and one node beside it, to try things out.
//!
//! ```text
//! server starts ─▶ enrol ─▶ skiff-agent join ─▶ skiff-agent run ─▶ (Ctrl-C) ─▶ SIGTERM ─▶ skiff-agent stop ─▶ server stops
//! ```
//!
//! Always holds: the agent runs no longer than this process, and the Pods that it ran are ended with it; what server
//! and node have stored stays for the next time.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skiff_protocol::topic::NodeName;
use skiff_server::{BrokerConfig, Config};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::args::UpArgs;
use crate::connect::{Ask, Server, Target};
use crate::failure::{Failure, Outcome};
use crate::kinds;
use crate::node;
use crate::server::{self, KUBECONFIG};
use crate::style;

/// How long the agent may take to stop; its Pods run on meanwhile.
const STOP: Duration = Duration::from_secs(20);

/// How long the node may take until the server sees it as Ready.
const READY: Duration = Duration::from_secs(60);

/// How long the token is good that the node uses at once.
const TOKEN_SECONDS: u64 = 600;

/// The program of the node.
const AGENT: &str = "skiff-agent";

/// The node's program and directories.
struct Agent {
    program: PathBuf,
    state: PathBuf,
    run: PathBuf,
}

pub(crate) async fn run(args: &UpArgs) -> Outcome {
    let name = NodeName::parse(&args.node)?;
    let data = std::path::absolute(&args.data)?;
    let agent = Agent {
        program: find(args.agent.as_deref())?,
        state: data.join("node"),
        run: PathBuf::from(format!("/run/skiff-up-{name}")),
    };
    server::log("warn");
    let mut config = Config::new(&data.join("server"));
    config.listen = args.listen;
    config.broker = BrokerConfig::Embedded {
        listen: args.broker_listen,
        advertise: None,
    };
    let kubeconfig = data.join("server").join(KUBECONFIG);

    let mut ended = Ok(());
    // The server answers when this is polled first, and stops when it completes.
    let node = async { ended = beside(&agent, &name, &kubeconfig).await };
    let served = skiff_server::run(config, node).await;
    ended?;
    Ok(served?)
}

/// Runs the node until Ctrl-C.
async fn beside(agent: &Agent, name: &NodeName, kubeconfig: &Path) -> Outcome {
    let target = Target {
        kubeconfig: Some(kubeconfig.to_owned()),
        ..Target::default()
    };
    let server = target.server().await?;
    if !agent.has_joined() {
        let token = node::token(&server, name.as_str(), TOKEN_SECONDS).await?;
        let joined = agent
            .command(["join", &token.text])
            .stdout(Stdio::null())
            .status()
            .await;
        let joined = joined.with_context(|| agent.program.display().to_string())?;
        if !joined.success() {
            return Err(anyhow!("{} join: {joined}", agent.program.display()).into());
        }
    }
    let mut child = agent.start()?;
    let until = tokio::select! {
        // Cancelled, a signal is caught by nobody else: the process is stopping in every branch.
        () = server::stopped() => Ok(()),
        // Cancelling a wait leaves the child to be waited for again.
        ended = child.wait() => Err(agent.ended(ended)),
        // Cancelling leaves a greeting unsaid.
        failed = greet(&server, name, kubeconfig) => Err(failed),
    };
    style::tell("stopping");
    agent.end(&mut child).await?;
    until
}

/// Says how to go on once the node is Ready; never completes after that.
async fn greet(server: &Server, name: &NodeName, kubeconfig: &Path) -> Failure {
    if let Err(failure) = ready(server, name).await {
        return failure;
    }
    style::tell(&format!(
        "A server and node {name} are up. In another terminal:

  export KUBECONFIG={}
  kubectl apply -f examples/nginx.yaml    # or: skiff apply -f ...
  kubectl get pods -w

Ctrl-C ends both.",
        kubeconfig.display()
    ));
    std::future::pending().await
}

async fn ready(server: &Server, name: &NodeName) -> Outcome {
    let path = kinds::by_word("nodes")?.object("", name.as_str());
    let look = async {
        loop {
            let found = server.json(Ask::new(Method::GET, path.clone())).await;
            let is_ready = found.is_ok_and(|node| {
                let conditions = node["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                conditions
                    .iter()
                    .any(|it| it["type"] == "Ready" && it["status"] == "True")
            });
            if is_ready {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(READY, look).await.is_err() {
        let seconds = READY.as_secs();
        return Err(anyhow!(
            "node {name} is not Ready after {seconds} s; `skiff-agent doctor` tells what this machine lacks"
        )
        .into());
    }
    Ok(())
}

impl Agent {
    fn command<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--run-dir")
            .arg(&self.run);
        // Ctrl-C reaches this process only, which stops the agent in its turn.
        command
            .args(arguments)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        if std::env::var_os("SKIFF_LOG").is_none() {
            command.env("SKIFF_LOG", "warn");
        }
        command
    }

    /// Whether the node has an identity from the time before.
    fn has_joined(&self) -> bool {
        let entries = std::fs::read_dir(self.state.join("identity"));
        entries.is_ok_and(|mut entries| entries.next().is_some())
    }

    fn start(&self) -> anyhow::Result<Child> {
        self.command(["run"])
            .spawn()
            .with_context(|| self.program.display().to_string())
    }

    fn ended(&self, status: std::io::Result<std::process::ExitStatus>) -> Failure {
        let program = self.program.display();
        match status {
            Ok(status) => anyhow!("{program} ended: {status}; its words stand above").into(),
            Err(error) => anyhow!("{program}: {error}").into(),
        }
    }

    /// Stops the agent, and then ends what it ran.
    async fn end(&self, child: &mut Child) -> anyhow::Result<()> {
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // Not waited for yet, so the number is still this child's.
            kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| self.program.display().to_string())?;
            if timeout(STOP, child.wait()).await.is_err() {
                style::warning(&format!("{} does not stop; it is killed", self.program.display()));
                child.kill().await?;
            }
        }
        let ended = self.command(["stop"]).stdout(Stdio::null()).status().await;
        let ended = ended.with_context(|| self.program.display().to_string())?;
        if !ended.success() {
            bail!(
                "{} stop: {ended}; Pods may be left: run it again",
                self.program.display()
            );
        }
        // Empty by now; if it is not, what is in it is for somebody to look at.
        let _ = std::fs::remove_dir(&self.run);
        Ok(())
    }
}

/// The agent's program: as told, beside this one, or on PATH.
fn find(told: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(program) = told {
        if !program.is_file() {
            bail!("--agent {}: no such file", program.display());
        }
        return Ok(std::path::absolute(program)?);
    }
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(AGENT));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| directory.join(AGENT));
    let found = beside
        .into_iter()
        .chain(on_path)
        .find(|program| program.is_file());
    found.ok_or_else(|| anyhow!("no {AGENT} beside this program or on PATH: name it with --agent FILE"))
}
