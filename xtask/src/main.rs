//! `cargo xtask <command>`: the commands that README names. Plain code, few dependencies: it compiles before all else.
//!
//! A command sets up by itself what it needs, says what it does, and ends with an error that a person can act on.

mod command;
mod debian;
mod elf;
mod files;
mod images;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;

fn main() -> ExitCode {
    match real() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn real() -> Result<()> {
    let workspace = workspace::Workspace::find()?;
    images::build(&workspace)?;
    Ok(())
}
