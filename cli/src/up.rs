//! `skiff up`: a server in this process and one node beside it, to try things out.
//!
//! ```text
//! server starts ─▶ enrol ─▶ skiff-agent join - ─▶ skiff-agent run ─▶ (Ctrl-C) ─▶ SIGTERM ─▶ skiff-agent stop ─▶ server stops
//! ```
//!
//! Always holds: the agent runs no longer than this process, and the Pods that it ran are ended with it; what server
//! and node have stored stays for the next time.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use skiff_protocol::topic::NodeName;
use skiff_server::{BrokerConfig, Config};
use tokio::io::AsyncWriteExt as _;
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

    let joined = agent.has_joined(&name, args)?;
    let mut ended = Ok(());
    // The server answers when this is polled first, and stops when it completes.
    let node = async { ended = beside(&agent, &name, &kubeconfig, joined).await };
    let served = skiff_server::run(config, node).await;
    ended?;
    Ok(served?)
}

/// Runs the node until Ctrl-C.
async fn beside(agent: &Agent, name: &NodeName, kubeconfig: &Path, joined: bool) -> Outcome {
    let target = Target {
        kubeconfig: Some(kubeconfig.to_owned()),
        ..Target::default()
    };
    let server = target.server().await?;
    if !joined {
        let token = node::token(&server, name.as_str(), TOKEN_SECONDS).await?;
        agent.join(&token.text).await?;
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
    let stopped = agent.end(&mut child).await;
    if let (Err(_), Err(error)) = (&until, &stopped) {
        // What came first is the reason; this is only what followed.
        style::warning(&format!("{error:#}"));
    }
    until?;
    Ok(stopped?)
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

    /// Whether the node has an identity from the time before that leads to this server. One that is not whole, or that
    /// names other addresses, is made anew.
    fn has_joined(&self, name: &NodeName, args: &UpArgs) -> anyhow::Result<bool> {
        let identity = self.state.join("identity");
        // A join writes this file last.
        let Ok(text) = std::fs::read(identity.join("joined.json")) else {
            return Ok(false);
        };
        let Ok(joined) = serde_json::from_slice::<Joined>(&text) else {
            return Ok(false);
        };
        if joined.node != name.as_str() {
            bail!(
                "{} holds node {:?}, and --node says {:?}: use --node {}, or another --data directory",
                self.state.display(),
                joined.node,
                name.as_str(),
                joined.node
            );
        }
        let whole = ["node.key", "seal.key"]
            .iter()
            .all(|file| identity.join(file).is_file());
        let api = joined
            .server_urls
            .iter()
            .any(|url| leads_to(url, "https", args.listen));
        Ok(whole && api && leads_to(&joined.broker_url, "mqtts", args.broker_listen))
    }

    /// Joins with the token. It goes over standard input: a command line is for all to see.
    async fn join(&self, token: &str) -> anyhow::Result<()> {
        let program = || self.program.display().to_string();
        let mut child = self
            .command(["join", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .with_context(program)?;
        if let Some(mut input) = child.stdin.take() {
            // An agent that ends before it has read this says why.
            let _ = input.write_all(format!("{token}\n").as_bytes()).await;
        }
        let joined = child.wait().await.with_context(program)?;
        if !joined.success() {
            bail!("{} join: {joined}; its words stand above", program());
        }
        Ok(())
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

/// What a node's `joined.json` says of the ways to its server.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Joined {
    node: String,
    broker_url: String,
    server_urls: Vec<String>,
}

/// Whether a URL is that of somebody who listens there. A port that is chosen at each start is never the same.
fn leads_to(url: &str, scheme: &str, listen: SocketAddr) -> bool {
    let authority = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://"));
    authority.is_some_and(|authority| {
        if listen.ip().is_unspecified() {
            // The name is this machine's, whatever that is now.
            listen.port() != 0 && authority.ends_with(&format!(":{}", listen.port()))
        } else {
            listen.port() != 0 && authority == listen.to_string()
        }
    })
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command as Asked};

    fn args(words: &[&str]) -> UpArgs {
        match Cli::parse_from(["skiff", "up"].iter().chain(words)).command {
            Asked::Up(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_identity_is_used_again_where_it_leads_to_this_server() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent {
            program: PathBuf::new(),
            state: dir.path().to_owned(),
            run: PathBuf::new(),
        };
        let identity = dir.path().join("identity");
        std::fs::create_dir(&identity).unwrap();
        let check = |words: &[&str], expected: Result<bool, &str>| {
            let args = args(words);
            let found = agent.has_joined(&NodeName::parse(&args.node).unwrap(), &args);
            let found = found.map_err(|error| error.to_string());
            match (found, expected) {
                (Err(said), Err(part)) => assert!(said.contains(part), "{said}"),
                (found, expected) => assert_eq!(found, expected.map_err(str::to_owned), "{words:?}"),
            }
        };
        let put = |name: &str, text: &str| std::fs::write(identity.join(name), text).unwrap();
        check(&[], Ok(false));
        put("seal.key", "x");
        check(&[], Ok(false));
        put("node.key", "x");
        put("joined.json", "{");
        check(&[], Ok(false));
        put(
            "joined.json",
            r#"{"node": "local", "brokerUrl": "mqtts://127.0.0.1:8883", "serverUrls": ["https://127.0.0.1:6443"],
                "notAfter": 1}"#,
        );
        check(&[], Ok(true));
        check(
            &["--node", "other"],
            Err("holds node \"local\", and --node says \"other\""),
        );
        check(&["--broker-listen", "127.0.0.1:8884"], Ok(false));
        check(&["--broker-listen", "127.0.0.1:0"], Ok(false));
        check(&["--broker-listen", "0.0.0.0:8883"], Ok(true));
        check(&["--listen", "[::1]:6443"], Ok(false));
        check(&["--listen", "127.0.0.1:644"], Ok(false));
        std::fs::remove_file(identity.join("seal.key")).unwrap();
        check(&[], Ok(false));
    }
}
