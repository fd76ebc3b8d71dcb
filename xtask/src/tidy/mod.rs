//! `cargo xtask tidy`: the habits of this tree that no other tool checks, each finding with its file and line.
//!
//! Only files that git tracks or would track are read. A rule is a pure function from a file's text to findings.

mod edges;
mod rules;

use std::fmt;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// One thing to put right.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            line,
            message: message.into(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Checks the whole tree.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let paths = tracked(workspace)?;
    let mut findings = Vec::new();
    for path in &paths {
        let bytes = match std::fs::read(workspace.root().join(path)) {
            Ok(bytes) => bytes,
            // Deleted, and the deletion not yet committed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
        };
        if let Ok(text) = String::from_utf8(bytes) {
            findings.extend(rules::check_file(path, &text, &|link| {
                workspace.root().join(link).exists()
            }));
        }
    }
    findings.extend(edges::check(workspace)?);
    findings.sort();
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => {
            println!("  {} files are tidy", paths.len());
            Ok(())
        }
        1 => bail!("1 finding"),
        many => bail!("{many} findings"),
    }
}

fn tracked(workspace: &Workspace) -> Result<Vec<String>> {
    let mut git = command::at(workspace.root(), "git");
    // The tree may belong to another user than the one that checks it (sudo).
    git.arg("-c")
        .arg(format!("safe.directory={}", workspace.root().display()));
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = command::output(&mut git)?;
    let mut paths: Vec<String> = listed
        .split('\0')
        .filter(|path| !path.is_empty())
        .map(str::to_owned)
        .collect();
    paths.sort();
    paths.dedup();
    Ok(paths)
}
