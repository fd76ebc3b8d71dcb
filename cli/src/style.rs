//! What goes to people's eyes: colours, and the words before errors and warnings.
//!
//! Always holds: colours only where a terminal shows them and `NO_COLOR` is not set; standard output is for results,
//! standard error for everything else, and an error of writing to the latter is nobody's concern.

use std::io::{IsTerminal as _, Write as _};

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const BOLD: &str = "\x1b[1m";
const BLUE: &str = "\x1b[34m";
const RESET: &str = "\x1b[0m";

/// What a piece of text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Error,
    Warning,
    Place,
    Margin,
}

/// Colours for one stream, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Colours(bool);

impl Colours {
    /// As standard error is.
    pub(crate) fn of_stderr() -> Self {
        // https://no-color.org: set and not empty.
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self(wanted && !dumb && std::io::stderr().is_terminal())
    }

    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(false)
    }

    /// The text in its colour.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.0 {
            return text.to_owned();
        }
        let colour = match tone {
            Tone::Error => RED,
            Tone::Warning => YELLOW,
            Tone::Place => BOLD,
            Tone::Margin => BLUE,
        };
        format!("{colour}{text}{RESET}")
    }
}

/// Prints to standard error as it is.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints an error.
pub(crate) fn error(text: &str) {
    tell(&format!(
        "{} {text}",
        Colours::of_stderr().paint(Tone::Error, "error:")
    ));
}

/// Prints a warning.
pub(crate) fn warning(text: &str) {
    tell(&format!(
        "{} {text}",
        Colours::of_stderr().paint(Tone::Warning, "warning:")
    ));
}
