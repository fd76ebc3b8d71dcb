//! `skiff server`: the server in this process, until it is told to stop.

use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::Context as _;
use skiff_server::{BrokerConfig, Config};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::args::ServerArgs;
use crate::failure::Outcome;
use crate::style;

/// The administrator's kubeconfig in a data directory.
pub(crate) const KUBECONFIG: &str = "admin.kubeconfig";

pub(crate) async fn run(args: &ServerArgs) -> Outcome {
    let config = config(args)?;
    log("info");
    let kubeconfig = std::path::absolute(args.data.join(KUBECONFIG))?;
    // Polled once the server answers, and not before.
    let shutdown = async {
        style::tell(&format!("\n  export KUBECONFIG={}\n", kubeconfig.display()));
        stopped().await;
    };
    Ok(skiff_server::run(config, shutdown).await?)
}

/// Log lines on standard error; `SKIFF_LOG` says which.
pub(crate) fn log(default: &str) {
    let filter = EnvFilter::try_from_env("SKIFF_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours);
    // It is set once in a process; were it set already, that one would do.
    let _ = subscriber.with_writer(std::io::stderr).try_init();
}

/// Completes when the process is told to stop, by Ctrl-C or by its supervisor.
pub(crate) async fn stopped() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals' defaults end the process.
        return std::future::pending().await;
    };
    tokio::select! {
        // Cancelling either loses nothing: the process is about to stop.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

fn config(args: &ServerArgs) -> anyhow::Result<Config> {
    let mut config = Config::new(&args.data);
    config.listen = args.listen;
    config.names.clone_from(&args.advertise);
    if let Some(seconds) = args.node_cert_life {
        config.validity.node = seconds;
    }
    config.broker = match &args.broker {
        None => BrokerConfig::Embedded {
            listen: args.broker_listen,
            advertise: None,
        },
        Some(url) => BrokerConfig::External {
            url: url.clone(),
            credentials: credentials(args)?,
        },
    };
    Ok(config)
}

fn credentials(args: &ServerArgs) -> anyhow::Result<Option<(String, String)>> {
    let Some(user) = &args.broker_user else {
        return Ok(None);
    };
    let password = args.broker_password_file.as_deref().map(password).transpose()?;
    Ok(Some((user.clone(), password.unwrap_or_default())))
}

/// The first line of a file: an editor's last newline is no part of a password.
fn password(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path);
    let text = text.with_context(|| format!("--broker-password-file {}", path.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
