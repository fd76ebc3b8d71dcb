//! Processes: those that run beside the test with their output in a file, and those that answer.
//!
//! Always holds: a [`Process`] does not outlive its value, and only its own id is signalled.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::wait;

/// How long a process may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(15);

/// Seconds that a command may take before it is ended as hung.
const COMMAND_SECONDS: &str = "90";

/// A process that runs beside the test.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it with its output appended to `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let out = File::options().create(true).append(true).open(log);
        let out = out.unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let err = out.try_clone().unwrap();
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            child,
            log: log.to_owned(),
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// What it has said so far.
    pub(crate) fn text(&self) -> String {
        read(&self.log)
    }

    /// Waits until it has said `part`.
    #[track_caller]
    pub(crate) fn says(&self, part: &str, seconds: u64) {
        wait(&format!("{part:?} in {}", self.log.display()), seconds, || {
            let text = self.text();
            text.contains(part).then_some(()).ok_or(text)
        });
    }

    /// Whether it runs.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub(crate) fn ends(&mut self, seconds: u64) -> ExitStatus {
        wait("a process to end", seconds, || {
            self.child
                .try_wait()
                .unwrap()
                .ok_or_else(|| tail(&read(&self.log), 20))
        })
    }

    /// SIGTERM, and SIGKILL to one that does not listen; says whether it did.
    pub(crate) fn stop(mut self) -> bool {
        self.end()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn end(&mut self) -> bool {
        if !self.runs() {
            return true;
        }
        // Not waited for yet, so the number is still this child's.
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).ok();
        let deadline = Instant::now() + PATIENCE;
        while self.runs() {
            if Instant::now() > deadline {
                self.child.kill().ok();
                self.child.wait().ok();
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    /// The command line.
    pub(crate) line: String,
    /// Its exit status; 124 when it hung.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Said {
    /// Runs a command to its end, with `input` on its standard input.
    #[track_caller]
    pub(crate) fn of(program: &Path, arguments: &[&str], environment: &[(&str, &Path)], input: &str) -> Self {
        let mut command = Command::new("timeout");
        command.arg(COMMAND_SECONDS).arg(program).args(arguments);
        command.envs(environment.iter().copied());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        // A program that refuses its arguments reads no input.
        stdin.write_all(input.as_bytes()).ok();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        Self {
            line: format!("{} {}", program.display(), arguments.join(" ")),
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its standard output, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self}");
        self.out
    }

    /// Checks that it failed as `code` and that its words hold all `parts`.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self}");
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in {self}");
        }
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, code, out, err } = self;
        write!(f, "`{line}` ended with {code}\n--- out\n{out}\n--- err\n{err}")
    }
}

/// A file as text; empty where there is none.
pub(crate) fn read(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The last lines.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
