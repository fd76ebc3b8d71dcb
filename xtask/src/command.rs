//! Runs other programs, so that a failure names the program, its arguments and what it said.
//!
//! Nothing here goes through a shell, and no child outlives a call that did not ask for it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Lines of a failed program's output that are worth repeating.
const TAIL_LINES: usize = 40;

/// Runs `command` with our own stdout and stderr and fails unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs `command` silently; its output is shown only when it fails.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// The same with `input` on its standard input, which no error repeats.
pub(crate) fn quiet_with(command: &mut Command, input: &str) -> Result<()> {
    use std::io::Write as _;
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.with_context(|| cannot_start(command))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading it says why.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for `{}`", line(command)))?;
    text_of(command, output).map(drop)
}

/// Runs `command` and returns its stdout; stderr is part of the error when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = capture(command)?;
    text_of(command, output)
}

fn text_of(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!(
            "`{}` failed: {}\n{}",
            line(command),
            output.status,
            tail(&said, TAIL_LINES)
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something not UTF-8", line(command)))
}

/// Runs `command` with its output captured, whatever its exit status.
pub(crate) fn capture(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))
}

/// Whether `command` starts and exits with 0; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    capture(command).is_ok_and(|output| output.status.success())
}

/// The program's path when it is in `PATH` or in the directories that `PATH` of a plain user leaves out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| is_executable(candidate))
}

/// A `Command` in the repository's root.
pub(crate) fn at(dir: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(dir);
    command
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", line(command))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = output(Command::new("sh").args(["-c", "echo because >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("because") && text.contains("exit status: 3"),
            "{text}"
        );
    }

    #[test]
    fn what_a_program_reads_is_in_no_failure() {
        quiet_with(Command::new("grep").args(["-q", "secret"]), "secret\n").unwrap();
        let error = quiet_with(Command::new("grep").args(["-q", "other"]), "secret\n").unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("grep -q other") && !text.contains("secret"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert!(
            format!("{error:#}").contains("cannot start `no-such-program-here`"),
            "{error:#}"
        );
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\n", 5), "a");
    }
}
