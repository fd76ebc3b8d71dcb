//! Manifests from files, checked before anything is sent.
//!
//! Data flow: `-f` arguments → [`source`] (bytes) → [`crate::yaml`] (values and places) → [`check`] (the one gate
//! that server and node use too) → [`Manifest`]s, or [`diagnostic::Diagnostic`]s that name file, line and column.
//!
//! Always holds: either every document of every file is good, or nothing is returned to be sent.

mod check;
mod diagnostic;
mod source;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::failure::{Failure, Outcome, failed};
use crate::kinds::Kind;
use crate::style::{self, Colours};
use skiff_yaml::{self as yaml, Spot};

pub(crate) use diagnostic::Diagnostic;
pub(crate) use source::Source;

/// One object of a manifest, good as far as that can be known without the server.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// The file that it is from.
    pub(crate) source: Arc<Source>,
    /// Where everything in it stands.
    pub(crate) spot: Spot,
    /// The object.
    pub(crate) value: Value,
    /// Its kind.
    pub(crate) kind: &'static Kind,
}

impl Manifest {
    /// `metadata.name`; empty where the server shall make one.
    pub(crate) fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// `metadata.namespace`, if written.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.value["metadata"]["namespace"]
            .as_str()
            .filter(|it| !it.is_empty())
    }
}

/// What the files hold, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) manifests: Vec<Manifest>,
    pub(crate) errors: Vec<Diagnostic>,
    pub(crate) warnings: Vec<Diagnostic>,
}

/// Reads and checks the files, directories or `-` named; prints what is wrong and warns of what is not honoured.
///
/// # Errors
/// When a file cannot be read, or anything in any of them is wrong: then nothing is to be sent.
pub(crate) fn load(files: &[impl AsRef<Path>]) -> Outcome<Vec<Manifest>> {
    let sources = source::read_all(files)?;
    let checked = check_all(sources);
    let colours = Colours::of_stderr();
    for warning in &checked.warnings {
        style::warning(&warning.line());
    }
    if !checked.errors.is_empty() {
        for error in &checked.errors {
            style::tell(&error.render(colours));
        }
        let count = checked.errors.len();
        let plural = if count == 1 { "" } else { "s" };
        style::error(&format!("{count} mistake{plural}; nothing was sent"));
        return Err(Failure::Told);
    }
    if checked.manifests.is_empty() {
        return failed("no objects in the files given");
    }
    Ok(checked.manifests)
}

/// Checks every document of every source.
pub(crate) fn check_all(sources: Vec<Source>) -> Checked {
    let mut out = Checked::default();
    for source in sources {
        let source = Arc::new(source);
        let documents = match yaml::read(&source.bytes) {
            Ok(documents) => documents,
            Err(bad) => {
                out.errors
                    .push(Diagnostic::new(&source, bad.mark, "", &bad.message));
                continue;
            }
        };
        let (errors, warnings) = (out.errors.len(), out.warnings.len());
        for document in documents {
            check::document(&source, document.value, document.spot, &mut out);
        }
        // Within a file in the order of its lines, whichever check found it.
        out.errors[errors..].sort_by_key(Diagnostic::place);
        out.warnings[warnings..].sort_by_key(Diagnostic::place);
    }
    out
}
