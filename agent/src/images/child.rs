//! A role of this program as a process of its own that reads one request and writes lines: a pull, a collection.
//!
//! Always holds: it is killed when it has said nothing for the patience; its memory counts as a pull's.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::warn;

use crate::own::{Own, Part};

/// Bytes of one line that such a process may write.
const LINE: u64 = 64 * 1024;

/// How such a process ended.
pub(super) enum End {
    /// By itself.
    Ended(ExitStatus),
    /// It said nothing for too long, and was killed.
    Stuck,
}

/// Runs the role to its end, and has each of its lines heard.
pub(super) async fn run<R: DeserializeOwned>(
    executable: &Path,
    role: &str,
    own: &Own,
    request: &impl Serialize,
    patience: Duration,
    mut hear: impl FnMut(R),
) -> Result<End> {
    let mut command = Command::new(executable);
    command
        .arg(role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    crate::watchdog::keep_from(&mut command);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {} {role}", executable.display()))?;
    // Before it has anything to do: what it uses counts where it is when it begins.
    own.take_beside(Part::Pull, child.id()).await?;
    let mut stdin = child.stdin.take().context("the process has no input")?;
    let request = serde_json::to_vec(request)?;
    let Ok(written) = timeout(patience, stdin.write_all(&request)).await else {
        return Ok(kill(child, role).await);
    };
    written?;
    drop(stdin);
    let stdout = child.stdout.take().context("the process has no output")?;
    let mut lines = BufReader::new(stdout);
    let mut line = String::new();
    loop {
        line.clear();
        // What a line that is given up has read so far is given up with the process.
        let Ok(read) = timeout(patience, (&mut lines).take(LINE).read_line(&mut line)).await else {
            return Ok(kill(child, role).await);
        };
        if read? == 0 {
            break;
        }
        hear(serde_json::from_str(&line)?);
    }
    match timeout(patience, child.wait()).await {
        Ok(status) => Ok(End::Ended(status?)),
        Err(_) => Ok(kill(child, role).await),
    }
}

async fn kill(mut child: Child, role: &str) -> End {
    if let Err(error) = child.kill().await {
        warn!(role, %error, "a process that is stuck cannot be killed");
    }
    End::Stuck
}
