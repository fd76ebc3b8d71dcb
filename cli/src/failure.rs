//! Why a command did not do what was asked, and the exit status that says so: the one place where errors end.
//!
//! Exit status: 0 done, 1 refused or failed, 2 wrong usage (clap's). A reader that has gone away
//! (`skiff get pods | head`) is no failure.

use std::io;
use std::process::ExitCode;

use crate::style;

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong; the chain of causes is for the user.
    Failed(anyhow::Error),
    /// What is wrong has been printed already.
    Told,
}

/// The result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// A failure that is only words.
pub(crate) fn failed<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Failure::Failed(anyhow::Error::msg(message.into())))
}

/// Prints what is left to print, and gives the exit status.
pub(crate) fn end(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::FAILURE,
        Err(Failure::Failed(error)) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            style::error(&words(&error));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |io: &io::Error| io.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(broken)
}

/// The chain of causes in one line; a cause that the words before it already say is left out.
fn words(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !out.contains(&text) {
            if !out.is_empty() {
                out.push_str(": ");
            }
            out.push_str(&text);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_cause_is_said_once() {
        let error = Err::<(), _>(io::Error::other("no such host")).context("GET https://a: no such host");
        assert_eq!(words(&error.unwrap_err()), "GET https://a: no such host");
        let error = Err::<(), _>(io::Error::other("no such host")).context("GET https://a");
        assert_eq!(words(&error.unwrap_err()), "GET https://a: no such host");
    }
}
