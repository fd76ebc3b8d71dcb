//! The directory of static Pods: when it has changed, and the process that reads it.
//!
//! ```text
//!   at rest ──look: another signature──▶ unsettled ──the same for a second──▶ being read ──▶ at rest, told to the core
//! ```
//!
//! Always holds: a file that is still being written is not read; while nothing changes, a look costs a listing; when the
//! directory or its reader fails, what ran before runs on, and a condition of the node says why.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use skiff_core::{Event, Manifests};
use skiff_protocol::topic::NodeName;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::driver::Driver;
use crate::manifests::{self, Outcome};
use crate::role;

/// How long a change must be over before the files are read.
const SETTLE: Duration = Duration::from_secs(1);

/// When a reader that failed is started again.
const AGAIN: Duration = Duration::from_secs(60);

/// How long the reader may take: a node's most files on its slowest disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// What tells one state of the directory from another without reading it: of each file its size, its inode, and when it was
/// changed.
type Signature = Result<BTreeMap<PathBuf, (u64, u64, i64, i64)>, String>;

/// What a reader found, by the names of the files.
type Found = Vec<(String, Outcome)>;

/// What is to be done.
pub(crate) enum Turn {
    /// Look whether what has changed has settled.
    Look,
    /// A read has ended.
    Found(Result<Found>),
}

/// The directory.
pub(crate) struct Statics {
    /// Nothing where there are to be none.
    dir: Option<PathBuf>,
    executable: PathBuf,
    node: NodeName,
    /// What was read last.
    read: Signature,
    /// What is there now and differs from that, and when it will have settled.
    unsettled: Option<(Signature, Instant)>,
    reading: Option<JoinHandle<Result<Found>>>,
    /// What is wrong, by file.
    broken: Vec<String>,
}

impl Statics {
    /// The directory, not read yet.
    pub(crate) fn new(dir: &Path, executable: PathBuf, node: NodeName) -> Self {
        Self {
            dir: (!dir.as_os_str().is_empty()).then(|| dir.to_owned()),
            executable,
            node,
            read: Ok(BTreeMap::new()),
            unsettled: None,
            reading: None,
            broken: Vec::new(),
        }
    }

    /// Looks whether something has changed.
    pub(crate) fn look(&mut self, now: Instant) {
        let Some(dir) = self.dir.as_deref().filter(|_| self.reading.is_none()) else {
            return;
        };
        let there = signature(dir);
        match self.unsettled.take() {
            Some((before, at)) if before == there && at <= now => self.begin(there),
            Some((before, at)) if before == there => self.unsettled = Some((before, at)),
            _ if there == self.read => {}
            _ => self.unsettled = Some((there, now + SETTLE)),
        }
    }

    /// What is to be done next. Cancel-safe: a handle that is waited for by reference, or a fixed time.
    pub(crate) async fn next(&mut self) -> Turn {
        if let Some(reading) = &mut self.reading {
            let found = reading.await;
            self.reading = None;
            return Turn::Found(found.unwrap_or_else(|error| Err(error.into())));
        }
        match &self.unsettled {
            Some((_, at)) => tokio::time::sleep_until((*at).into()).await,
            None => std::future::pending().await,
        }
        Turn::Look
    }

    fn begin(&mut self, there: Signature) {
        let none = there.as_ref().is_ok_and(BTreeMap::is_empty);
        self.read = there;
        let (Some(dir), false) = (&self.dir, none) else {
            self.reading = Some(tokio::spawn(async { Ok(Vec::new()) }));
            return;
        };
        let (executable, dir, node) = (self.executable.clone(), dir.clone(), self.node.clone());
        self.reading = Some(tokio::spawn(async move { run(&executable, &dir, &node).await }));
    }

    /// What the core is to be told of a read; nothing where it says nothing of any file.
    fn found(&mut self, found: Result<Found>) -> Option<Manifests> {
        let before = std::mem::take(&mut self.broken);
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                let why = format!("{error:#}");
                if !before.contains(&why) {
                    warn!(why, "the static Pods cannot be read; those that there are go on");
                }
                self.broken.push(why);
                self.unsettled = Some((self.read.clone(), Instant::now() + AGAIN));
                return None;
            }
        };
        let mut out = Manifests::new();
        for (file, outcome) in found {
            let pod = match outcome {
                Ok((pod, warnings)) => {
                    for warning in warnings {
                        info!(file, warning, "a field of a static Pod is not honoured");
                    }
                    Some(pod)
                }
                Err(why) => {
                    let why = format!("{file}: {why}");
                    if !before.contains(&why) {
                        warn!(why, "a file of the static Pods says nothing that can run");
                    }
                    self.broken.push(why);
                    None
                }
            };
            out.insert(file, pod);
        }
        Some(out)
    }

    /// What is wrong with the directory or its files.
    pub(crate) fn broken(&self) -> &[String] {
        &self.broken
    }
}

fn signature(dir: &Path) -> Signature {
    let failed = |error| format!("cannot read {}: {error}", dir.display());
    let files = manifests::files(dir).map_err(failed)?;
    let mut out = BTreeMap::new();
    for path in files {
        // One that has gone meanwhile is missed at the next look.
        if let Ok(meta) = path.metadata() {
            out.insert(path, (meta.size(), meta.ino(), meta.ctime(), meta.ctime_nsec()));
        }
    }
    Ok(out)
}

async fn run(executable: &Path, dir: &Path, node: &NodeName) -> Result<Found> {
    let arguments = [dir.as_os_str(), node.as_str().as_ref()];
    let found = role::run(executable, "manifests", &arguments, PATIENCE).await?;
    postcard::from_bytes(&found).context("the reader of static Pods did not say what it found")
}

impl Driver {
    /// Reads the directory at the start, before anything is decided.
    pub(crate) async fn begin_statics(&mut self) {
        let Some(dir) = &self.statics.dir else {
            // Those that an earlier configuration had end.
            self.event(Event::Statics(Manifests::new()));
            return;
        };
        let there = signature(dir);
        self.statics.begin(there);
        let turn = self.statics.next().await;
        self.statics_turn(turn);
    }

    /// Does what is due about the directory; tells the core what a read has found.
    pub(crate) fn statics_turn(&mut self, turn: Turn) {
        let found = match turn {
            Turn::Look => return self.statics.look(Instant::now()),
            Turn::Found(found) => found,
        };
        if let Some(manifests) = self.statics.found(found) {
            self.event(Event::Statics(manifests));
        }
        self.node.statics(self.statics.broken());
    }
}

#[cfg(test)]
mod tests;
