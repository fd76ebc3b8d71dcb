//! `skiff`: the server, and everything that people do with a fleet.
//!
//! Always holds: results go to standard output, everything else to standard error; [`failure::end`] gives the exit
//! status, and nothing else ends the process.

mod apply;
mod args;
mod connect;
mod delete;
mod failure;
mod get;
mod image;
mod kinds;
mod logs;
mod manifest;
mod node;
mod out;
mod server;
mod style;
mod time;
mod up;
mod upload;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Command, ImageCommand, NodeCommand};
use failure::Outcome;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The one provider of cryptography; a second call would be the only error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failure::end(Err(error.into())),
    };
    failure::end(runtime.block_on(run(cli)))
}

async fn run(cli: Cli) -> Outcome {
    let target = &cli.target;
    match &cli.command {
        Command::Apply(args) => apply::run(target, args).await,
        Command::Get(args) => get::run(target, args).await,
        Command::Logs(args) => logs::run(target, args).await,
        Command::Delete(args) => delete::run(target, args).await,
        Command::Node(NodeCommand::Ls { wide }) => get::nodes(target, *wide).await,
        Command::Completion { shell } => completion(*shell),
        Command::Node(NodeCommand::Enrol {
            name,
            valid_for,
            token_only,
        }) => node::enrol(target, name, *valid_for, *token_only).await,
        Command::Node(NodeCommand::Images { name }) => node::images(target, name).await,
        Command::Node(NodeCommand::Remove { name }) => node::remove(target, name).await,
        Command::Image(ImageCommand::Import { file, name }) => {
            image::import(target, file, name.as_deref()).await
        }
        Command::Image(ImageCommand::Ls) => image::list(target).await,
        Command::Server(args) => server::run(args).await,
        Command::Up(args) => up::run(args).await,
    }
}

fn completion(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "skiff", &mut script);
    let mut out = out::Out::new();
    out.bytes(&script)?;
    out.flush()
}
