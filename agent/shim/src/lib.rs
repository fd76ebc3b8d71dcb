//! One process per Pod that owns its containers: their parent's duty to wait, their output and the record of their end.
//!
//! Always holds: a shim has one thread, no async runtime and no network; it outlives the agent; it never calls libcontainer
//! itself (a forked child does, with a deadline); it takes requests from root only.
//!
//! ```text
//! <pod dir>/shim.sock          requests and events, see [`protocol`]
//! <pod dir>/sandbox            how the sandbox was asked for, for whoever collects after a crash
//! <pod dir>/exits/<id>         how containers ended, until they are deleted
//! <pod dir>/logs/<name>/<n>.ring   the output of attempt n, see [`ring`]
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use skiff_sys::cgroup::{self, Cgroups};

pub mod client;
mod connection;
mod execs;
mod lines;
mod operation;
mod output;
mod pod;
pub mod protocol;
mod requests;
pub mod ring;
mod server;
mod updates;

pub use pod::{Leftover, collect};

/// The socket's name in the Pod's directory.
pub const SOCKET_NAME: &str = "shim.sock";
/// Directory of the log rings in the Pod's directory.
pub const LOG_DIR: &str = "logs";
/// Directory of the exit records in the Pod's directory.
pub const EXIT_DIR: &str = "exits";
/// The sandbox's record in the Pod's directory.
pub const SANDBOX_FILE: &str = "sandbox";
/// What a shim writes to its standard output when it serves.
pub const READY: &str = "ready\n";

/// The shim's role: `--pod-dir DIR`. Writes [`READY`] to standard output when it serves, then closes its standard streams;
/// until then errors go to standard error.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match start(args) {
        Ok(mut server) => match server.serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(reason) => {
            let _ = writeln!(io::stderr(), "skiff-agent shim: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: impl IntoIterator<Item = OsString>) -> Result<server::Server, String> {
    let pod_dir = pod_dir(args)?;
    let cgroups = Cgroups::detect(Path::new(cgroup::ROOT)).map_err(|error| error.to_string())?;
    let server = server::Server::start(&pod_dir, cgroups).map_err(|error| error.to_string())?;
    leave_stdio().map_err(|error| format!("standard streams: {error}"))?;
    Ok(server)
}

fn pod_dir(args: impl IntoIterator<Item = OsString>) -> Result<PathBuf, String> {
    let mut args = args.into_iter();
    match (args.next(), args.next(), args.next()) {
        (Some(flag), Some(dir), None) if flag == "--pod-dir" => {
            let dir = PathBuf::from(dir);
            if dir.is_absolute() {
                Ok(dir)
            } else {
                Err(format!("--pod-dir {}: not absolute", dir.display()))
            }
        }
        _ => Err("usage: skiff-agent shim --pod-dir DIR".to_owned()),
    }
}

/// Says that we serve, and lets go of the agent's streams: whoever reads them sees their end.
fn leave_stdio() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for fd in 0..=2 {
        nix::unistd::dup2(null.as_raw_fd(), fd)?;
    }
    Ok(())
}
