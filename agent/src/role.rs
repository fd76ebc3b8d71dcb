//! Runs another role of this program to its end, as a process of its own.
//!
//! Always holds: it is killed when it takes too long or nobody waits for it any more; what it said of its failure is the error.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// Characters of what a process said that are told.
const SAID: usize = 1024;

/// What it wrote to its standard output.
///
/// # Errors
/// When it cannot be run, takes longer than `patience`, or fails.
pub(crate) async fn run(
    executable: &Path,
    role: &str,
    arguments: &[&OsStr],
    patience: Duration,
) -> Result<Vec<u8>> {
    let mut command = Command::new(executable);
    command.arg(role).args(arguments).stdin(Stdio::null());
    crate::watchdog::keep_from(&mut command);
    let output = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(patience, output)
        .await
        .with_context(|| format!("no answer within {} s", patience.as_secs()))?
        .with_context(|| format!("cannot run {} {role}", executable.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(SAID).collect();
        bail!(
            "{}",
            if said.is_empty() {
                output.status.to_string()
            } else {
                said
            }
        );
    }
    Ok(output.stdout)
}
