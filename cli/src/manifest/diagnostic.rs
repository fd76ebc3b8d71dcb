//! What is wrong, where, and the line of the file that shows it.

use std::sync::Arc;

use skiff_protocol::manifest::{Cause, Reason};

use super::source::Source;
use crate::style::{Colours, Tone};
use skiff_yaml::{Mark, Spot};

/// Characters of a source line that are shown; a minified file has one line.
const LINE: usize = 120;

/// A complaint about one place in one file.
#[derive(Clone, Debug)]
pub(crate) struct Diagnostic {
    source: Arc<Source>,
    mark: Mark,
    field: String,
    message: String,
}

impl Diagnostic {
    /// A complaint about a place.
    pub(crate) fn new(source: &Arc<Source>, mark: Mark, field: &str, message: &str) -> Self {
        Self {
            source: source.clone(),
            mark,
            field: field.to_owned(),
            message: message.to_owned(),
        }
    }

    /// A complaint about a field; one that is missing is looked for in what should hold it.
    pub(crate) fn of_cause(source: &Arc<Source>, spot: &Spot, cause: &Cause) -> Self {
        let about_key = cause.reason == Reason::Unknown;
        // The path stands before the message already.
        let message = cause
            .message
            .replacen(&format!("unknown field {:?}", cause.field), "unknown field", 1);
        Self::of_field(source, spot, &cause.field, about_key, &message)
    }

    /// As [`of_cause`](Self::of_cause), for a field named by the server.
    pub(crate) fn of_field(
        source: &Arc<Source>,
        spot: &Spot,
        field: &str,
        about_key: bool,
        message: &str,
    ) -> Self {
        let found = spot.find(field);
        let mark = match (found.whole, about_key) {
            (true, false) => found.spot.value,
            (true, true) => found.spot.key_or_value(),
            // The object in which the field is missing begins with its first key.
            (false, _) => found.spot.key_or_value(),
        };
        Self::new(source, mark, field, message)
    }

    /// What to sort by.
    pub(super) fn place(&self) -> (usize, usize) {
        (self.mark.line, self.mark.column)
    }

    /// `file:line:column: field: message`.
    pub(crate) fn line(&self) -> String {
        let colon = if self.field.is_empty() { "" } else { ": " };
        format!("{} {}{colon}{}", self.position(), self.field, self.message)
    }

    fn position(&self) -> String {
        format!("{}:{}:{}:", self.source.name, self.mark.line, self.mark.column)
    }

    /// The line above, the line of the file, and a caret under what is meant.
    pub(crate) fn render(&self, colours: Colours) -> String {
        let colon = if self.field.is_empty() { "" } else { ": " };
        let head = format!(
            "{} {}{colon}{}",
            colours.paint(Tone::Place, &self.position()),
            self.field,
            self.message
        );
        let text = self.source.line(self.mark.line);
        if text.trim().is_empty() {
            return head;
        }
        // Tabs and control characters would move the caret, or the terminal.
        let clean: Vec<char> = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let column = self.mark.column.saturating_sub(1).min(clean.len());
        let from = if column < LINE { 0 } else { column - LINE / 2 };
        let shown: String = clean.iter().skip(from).take(LINE).collect();
        let width = self
            .mark
            .width
            .min(shown.chars().count().saturating_sub(column - from))
            .max(1);
        let number = self.mark.line.to_string();
        let margin = " ".repeat(number.len());
        format!(
            "{head}\n  {} {shown}\n  {} {}{}",
            colours.paint(Tone::Margin, &format!("{number} |")),
            colours.paint(Tone::Margin, &format!("{margin} |")),
            " ".repeat(column - from),
            colours.paint(Tone::Error, &"^".repeat(width)),
        )
    }
}
