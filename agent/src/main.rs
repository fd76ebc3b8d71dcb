//! The agent: runs Kubernetes Pods on a small, far away machine.
//!
//! One binary, several roles. Always holds: `shim`, `pull`, `collect`, `renew` and `manifests` are processes of their own that this one starts; `run`
//! has one thread for its work, never forks and never calls libcontainer.

mod config;
mod devices;
mod doctor;
mod driver;
mod enrol;
mod hooks;
mod identity;
mod images;
mod input;
mod ledger;
mod link;
mod local;
mod logs;
mod manifests;
mod network;
mod node;
mod own;
mod plan;
mod pressure;
mod probes;
mod renewal;
mod role;
mod shims;
mod show;
mod statics;
mod stop;
mod volumes;
mod watchdog;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use skiff_core::Core;
use skiff_journal::Outcome;
use skiff_sys::Limits;
use skiff_sys::cgroup::Cgroups;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Inputs that may wait for the driver: a few for each Pod of a full node.
const INPUTS: usize = 1024;

/// The part of the memory that sockets, logs and volumes in memory may take, where `run_dir` is not on a tmpfs already.
const RUN_SHARE: u64 = 4;

/// How long the journal's lock may be held by what an agent before this one left behind.
const LOCK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// When this program was built, in seconds since 1970: no moment in which it runs is earlier, whatever the clock says.
const BUILT: i64 = match i64::from_str_radix(env!("SKIFF_BUILT"), 10) {
    Ok(seconds) => seconds,
    Err(_) => panic!("SKIFF_BUILT is no number of seconds"),
};

/// Runs Kubernetes Pods on a small, far away machine.
#[derive(Parser)]
#[command(name = "skiff-agent", version)]
struct Arguments {
    /// The configuration [default: /etc/skiff/agent.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What must survive a reboot: journal, identity, images [default: /var/lib/skiff]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Sockets, namespaces and logs, on tmpfs [default: /run/skiff]
    #[arg(long, global = true, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run this node's Pods
    Run,
    /// Join a fleet with the token that `skiff node enrol` printed
    Join {
        /// The token, or - to read it from standard input, where no other user of this machine sees it
        token: String,
        /// A broker other than the one that the server names, mqtts://HOST[:PORT]
        #[arg(long, value_name = "URL")]
        broker: Option<String>,
    },
    /// Show how the running agent is
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the agent's figures in Prometheus' text format
    Metrics,
    /// Show the Pods of this node
    Pods {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the images of this node, and why each stays
    Images {
        #[command(subcommand)]
        command: Option<ImagesCommand>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check whether this machine can run Pods, and say what to do where it cannot
    Doctor,
    /// Check manifests of static Pods as the running agent would, without one
    Check {
        /// YAML or JSON, one Pod each
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// End every Pod of this node and remove what was made for it; the agent must not be running
    Stop,
    /// Own the containers of one Pod (started by the agent)
    #[command(hide = true)]
    Shim,
    /// Pull one image (started by the agent)
    #[command(hide = true)]
    Pull,
    /// Take images out of the store (started by the agent)
    #[command(hide = true)]
    Collect,
    /// Renew this node's certificate (started by the agent)
    #[command(hide = true)]
    Renew,
    /// Read the manifests of static Pods (started by the agent)
    #[command(hide = true)]
    Manifests,
}

#[derive(Subcommand)]
enum ImagesCommand {
    /// Remove every image that no Pod names, nothing runs from and nothing pins, and what has come of others
    Prune {
        /// Those too that last ran well of their repository
        #[arg(long)]
        all: bool,
    },
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // The roles that must stay small are told apart before anything else is set up.
    match arguments.next().as_deref().and_then(|it| it.to_str()) {
        Some("shim") => return skiff_shim::main(arguments),
        Some("pull") => return skiff_images::pull::main(),
        Some("collect") => return skiff_images::collect::main(),
        Some("renew") => return enrol::main(arguments),
        Some("manifests") => return manifests::main(arguments),
        _ => {}
    }
    match command() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skiff-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut config = config::Config::load(arguments.config.as_deref())?;
    if let Some(dir) = arguments.state_dir {
        config.state_dir = dir;
    }
    if let Some(dir) = arguments.run_dir {
        config.run_dir = dir;
    }
    match arguments.command {
        Command::Run => {
            logging();
            // While there is one thread.
            let users = doctor::user_namespaces(&config);
            let layers = doctor::layers(&config).unwrap_or_default();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(2)
                .thread_stack_size(256 * 1024)
                .thread_keep_alive(std::time::Duration::from_secs(1))
                .build()?;
            runtime.block_on(run(config, users, layers))?;
        }
        Command::Join { token, broker } => {
            let token = read_token(token)?;
            let node = enrol::join(&config.state_dir, &token, broker.as_deref())?;
            println!("joined as node {node}; start it with: skiff-agent run");
        }
        Command::Status { json } => show::status(&local::ask(&config.run_dir, "status")?, json),
        Command::Metrics => print!("{}", show::metrics(&local::ask(&config.run_dir, "status")?)),
        Command::Pods { json } => show::pods(&local::ask(&config.run_dir, "pods")?, json),
        Command::Images { command: None, json } => {
            let ask = |what| local::ask(&config.run_dir, what);
            show::images(&ask("images")?, &ask("pulls")?, json)?;
        }
        Command::Images {
            command: Some(ImagesCommand::Prune { all }),
            json,
        } => show::pruned(&local::prune(&config.run_dir, all)?, json)?,
        Command::Doctor => return Ok(doctor::run(&config)),
        Command::Check { files } => {
            // Where images are made there is no identity; the name of a node decides about nothing that is checked.
            let node = identity::Identity::load_or_alone(&config).map(|it| it.node);
            let node = node.or_else(|_| skiff_protocol::topic::NodeName::parse("node"))?;
            return Ok(manifests::check(&files, &node));
        }
        Command::Stop => stop::run(&config)?,
        Command::Shim | Command::Pull | Command::Collect | Command::Renew | Command::Manifests => {
            unreachable!("told apart in main")
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The token itself, from standard input where the argument says so.
fn read_token(argument: String) -> Result<String> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut token = String::new();
    let input = std::io::Read::take(
        std::io::stdin().lock(),
        skiff_protocol::enrol::MAX_TOKEN as u64 * 2,
    );
    std::io::BufRead::read_line(&mut std::io::BufReader::new(input), &mut token)
        .context("cannot read the token from standard input")?;
    anyhow::ensure!(!token.trim().is_empty(), "there is no token on standard input");
    Ok(token)
}

fn logging() {
    let level = std::env::var("SKIFF_LOG").ok().and_then(|it| it.parse().ok());
    let level = level.unwrap_or(tracing_subscriber::filter::LevelFilter::INFO);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .init();
}

async fn run(config: config::Config, users: Result<(), String>, layers: doctor::Layers) -> Result<()> {
    let began = std::time::Instant::now();
    let config = Arc::new(config);
    let identity = Arc::new(identity::Identity::load_or_alone(&config)?);
    if !identity.has_joined() {
        identity::Identity::ensure_seal(&config.state_dir)?;
        info!(node = %identity.node, "this node has not joined a fleet: it runs its static Pods alone");
    }
    let (ledger, recovered, outcome) = open_ledger(&config, &identity)
        .await
        .context("the journal cannot be used, so nothing is started and nothing that runs is touched")?;
    match outcome {
        Outcome::Empty => info!("a new journal"),
        Outcome::Clean => info!(
            generation = recovered.generation,
            objects = recovered.objects.len(),
            "journal read"
        ),
        Outcome::TornTail { dropped_bytes } => {
            warn!(
                dropped_bytes,
                "the journal's last write was cut off; it had not been acknowledged"
            );
        }
    }
    let floor = Arc::new(AtomicU64::new(0));
    link::raise(&floor, recovered.time.max(BUILT));
    let cgroups = Cgroups::detect(&config.cgroup_root)?;
    let mut node = node::Node::look(&config, &cgroups, users);
    let place = prepare(&config, &node, cgroups, layers)?;
    node.look_again(&config, std::time::Instant::now());
    let (network, prefix) = config.pods()?;
    let core = Core::new(
        skiff_core::Config {
            node: identity.node.clone(),
            server_key: identity.server_key.clone(),
            network,
            prefix,
            allocatable_cpu_milli: node.allocatable_cpu(&config),
            allocatable_memory: node.allocatable_memory(&config),
            allocatable_storage: node.allocatable_storage(&config),
            extended: node.extended(),
            features: node.features().clone(),
            max_pods: config.max_pods as usize,
        },
        recovered,
    );
    let (sender, inputs) = mpsc::channel(INPUTS);
    let link = link::Link::new(&config, &identity, core.epoch(), floor.clone())?;
    let images = images::Images::open(
        config.clone(),
        identity.clone(),
        place.executable.clone(),
        place.own.clone(),
        sender.clone(),
    )?;
    let shims = shims::Shims::new(place.clone(), sender.clone());
    let probes = probes::Probes::new(sender);
    let queries = local::listen(&config.run_dir)?;
    let streams = logs::Streams::default();
    let driver = driver::Driver::new(
        config, identity, node, core, ledger, link, images, shims, probes, streams, place, floor, inputs,
        began,
    );
    driver.run(queries, stopped()).await
}

/// Opens the journal. A process that a killed agent was just about to start holds its lock for a moment more.
async fn open_ledger(
    config: &config::Config,
    identity: &identity::Identity,
) -> Result<(ledger::Ledger, skiff_core::Recovered, Outcome)> {
    let until = std::time::Instant::now() + LOCK_PATIENCE;
    loop {
        let opened = ledger::Ledger::open(&config.state_dir, config.journal_segment_bytes, &identity.node);
        let locked = opened
            .as_ref()
            .err()
            .and_then(|error| error.downcast_ref::<skiff_journal::Error>());
        if !matches!(locked, Some(skiff_journal::Error::Locked { .. })) || std::time::Instant::now() >= until
        {
            return opened;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Directories, the parent cgroup with its budget, and the copy of this program that shims run from.
fn prepare(
    config: &config::Config,
    node: &node::Node,
    cgroups: Cgroups,
    layers: doctor::Layers,
) -> Result<shims::Place> {
    let make =
        |dir: &Path| std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()));
    make(&config.run_dir)?;
    make(&config.state_dir)?;
    if !skiff_sys::fs::is_tmpfs(&config.run_dir)? {
        // Secrets and logs must not reach the disk, and what is of this boot must not outlive it.
        skiff_sys::mount::tmpfs(&config.run_dir, node.memory() / RUN_SHARE, 0o700)?;
    }
    // Secrets, environments and setuid files lie below: nobody but root may walk there.
    make(&config.state_dir.join("pods"))?;
    for dir in [&config.run_dir, &config.state_dir.join("pods")] {
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .with_context(|| format!("cannot protect {}", dir.display()))?;
    }
    let cpu = node.allocatable_cpu(config);
    let budget = Limits {
        memory_bytes: cgroups
            .controllers()
            .contains("memory")
            .then(|| node.allocatable_memory(config)),
        cpu_quota_us: (config.cpu_budget_milli > 0).then_some(cpu * 100),
        cpu_period_us: (config.cpu_budget_milli > 0).then_some(100_000),
        cpu_shares: None,
        pids: None,
        ..Default::default()
    };
    cgroups.ensure_parent(&config.cgroup, &budget)?;
    let own = own::Own::enter(config, &cgroups);
    let lacking = node::lacking(&cgroups).into_iter().chain(node::blind());
    for (_, message) in lacking.chain(node::layers(&layers)) {
        warn!("{message}");
    }
    let bin = config.run_dir.join("bin");
    make(&bin)?;
    let executable = skiff_sys::process::seal_self(&bin)?;
    Ok(shims::Place {
        run: config.run_dir.join("pods"),
        state: config.state_dir.join("pods"),
        layers,
        executable,
        cgroups,
        own,
    })
}

/// Done when the agent is asked to end.
async fn stopped() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        // A signal that is cancelled is seen at the next call.
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
