//! What the node is short of: memory, disk, processes; and Pods that use more of the disk than they may.
//!
//! ```text
//!              short                      not short
//!   at ease ──────────▶ short, condition ───────────▶ condition held ──▶ at ease
//!                             ▲                short        │   after `hold_seconds`
//!                             └─────────────────────────────┘
//! ```
//!
//! Always holds: nothing is written; a look costs a few small reads, so it is taken every [`EASE`], and every [`SHORT`] while
//! something is short, or at once when the kernel says that processes wait for memory; files are counted on another
//! thread, and only those of Pods that are limited or while the disk is short.

mod usage;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use skiff_core::{Pressure, Usage};
use skiff_protocol::quantity::binary;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::NodeCondition;
use skiff_sys::cgroup::Cgroups;
use skiff_sys::fs::Space;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tracing::info;

use crate::config::{Config, Eviction};
use crate::node::meminfo;

pub(crate) use usage::{Measured, ToMeasure};

/// Between looks while all is well.
pub(crate) const EASE: Duration = Duration::from_secs(10);

/// Between looks while something is short or a condition stands.
const SHORT: Duration = Duration::from_secs(1);

/// Between counts of files.
const MEASURE: Duration = Duration::from_secs(10);

/// A kubelet's `memory.available` by default; on a node with less than twenty times as much, a twentieth.
const MEMORY_AVAILABLE: u64 = 100 << 20;

/// Microseconds within each two seconds that processes must wait for memory before we look at once. A window of two
/// seconds is what the kernel gives without CAP_SYS_RESOURCE too, and the last byte is one that it takes for the end.
const STALL: &str = "some 300000 2000000\n";

pub(crate) const PSI: &str = "/proc/pressure/memory";

/// How much of something there is, and how much of that is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    total: u64,
    available: u64,
}

/// What is looked at; `None` cannot be read here.
#[derive(Clone, Copy, Debug, Default)]
struct Reading {
    memory: Option<Amount>,
    disk: Option<Space>,
    pids: Option<Amount>,
}

/// One of the three conditions.
#[derive(Clone, Debug, Default)]
struct Signal {
    /// Why it is short now.
    short: Option<String>,
    /// Since when, and when it last was.
    span: Option<(Instant, Instant)>,
    /// What there is, for the condition's message.
    text: String,
}

impl Signal {
    /// Takes a new finding; says whether the condition has changed.
    fn see(&mut self, short: Option<String>, text: String, now: Instant, hold: Duration) -> bool {
        let stood = self.span.is_some();
        if short.is_some() {
            let since = self.span.map_or(now, |(since, _)| since);
            self.span = Some((since, now));
        } else if self
            .span
            .is_some_and(|(_, last)| now.duration_since(last) >= hold)
        {
            self.span = None;
        }
        self.short = short;
        self.text = text;
        stood != self.span.is_some()
    }

    fn stands(&self) -> bool {
        self.span.is_some()
    }
}

/// Why [`Watch::wake`] is done.
pub(crate) enum Wake {
    /// It is time to look.
    Look,
    /// Files have been counted.
    Measured(Vec<Measured>),
}

/// Watches the node.
pub(crate) struct Watch {
    memory: Signal,
    disk: Signal,
    pids: Signal,
    /// Processes and threads that the kernel allows.
    most_pids: u64,
    next: Instant,
    /// The kernel's word that processes wait for memory.
    stalled: Option<AsyncFd<fs::File>>,
    measuring: Option<JoinHandle<Vec<Measured>>>,
    /// When files were last begun to be counted.
    measured: Option<Instant>,
    /// Bytes of each Pod's files when they were last counted.
    files: BTreeMap<Uid, u64>,
    /// What the core was told to be short or held: memory, disk, processes.
    told: [bool; 3],
    /// The file system of the state directory takes no writes.
    read_only: bool,
}

impl Watch {
    /// A watch; the first look is due. Called inside the runtime.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self {
            memory: Signal::default(),
            disk: Signal::default(),
            pids: Signal::default(),
            most_pids: most_pids(),
            next: Instant::now(),
            stalled: stalled()
                .inspect_err(
                    |error| info!(path = PSI, %error, "the kernel does not tell when memory is waited for"),
                )
                .ok(),
            measuring: None,
            measured: None,
            files: BTreeMap::new(),
            told: [false; 3],
            read_only: false,
        }
    }

    /// Done when there is something to do. Cancelling it loses nothing: what it waits for is kept in `self`.
    pub(crate) async fn wake(&mut self) -> Wake {
        let Self {
            stalled,
            measuring,
            next,
            ..
        } = self;
        tokio::select! {
            () = tokio::time::sleep_until((*next).into()) => Wake::Look,
            // A readiness that was not taken is still there at the next call.
            () = stall(stalled.as_ref()) => Wake::Look,
            // A task that has ended tells so once; its handle is dropped right after.
            measured = done(measuring) => {
                self.measuring = None;
                Wake::Measured(measured)
            }
        }
    }

    /// Looks; says whether a condition has changed.
    pub(crate) fn look(&mut self, config: &Config, now: Instant) -> bool {
        let reading = Reading {
            memory: amount_of_memory(),
            disk: skiff_sys::fs::space(&config.state_dir).ok(),
            pids: self.amount_of_pids(),
        };
        self.judge(&reading, &config.eviction, now)
    }

    fn amount_of_pids(&self) -> Option<Amount> {
        let text = fs::read_to_string("/proc/loadavg").ok()?;
        // Its fourth field is `runnable/all`, of processes and threads.
        let used: u64 = text.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
        Some(Amount {
            total: self.most_pids,
            available: self.most_pids.saturating_sub(used),
        })
    }

    fn judge(&mut self, reading: &Reading, limits: &Eviction, now: Instant) -> bool {
        let hold = Duration::from_secs(limits.hold_seconds);
        let mut changed = false;
        if let Some(it) = reading.memory {
            let least = limits
                .memory_available
                .map_or_else(|| MEMORY_AVAILABLE.min(it.total / 20), |least| least.of(it.total));
            let text = format!(
                "{} MiB of {} MiB of memory are available",
                it.available >> 20,
                it.total >> 20
            );
            changed |= self
                .memory
                .see(below("", it.available, least, true), text, now, hold);
        }
        if let Some(it) = reading.disk {
            let bytes = limits.disk_available.of(it.total);
            let files = limits.inodes_free.of(it.files);
            let short = below("", it.available, bytes, true)
                .or_else(|| below("inodes: ", it.files_free, files, false).filter(|_| it.files > 0));
            let text = format!("{} MiB of disk are available", it.available >> 20);
            changed |= self.disk.see(short, text, now, hold);
            changed |= std::mem::replace(&mut self.read_only, it.read_only) != it.read_only;
        }
        if let Some(it) = reading.pids {
            let least = limits.pid_available.of(it.total);
            let text = format!("{} of {} processes are available", it.available, it.total);
            changed |= self
                .pids
                .see(below("", it.available, least, false), text, now, hold);
        }
        let busy = self.read_only
            || [&self.memory, &self.disk, &self.pids]
                .iter()
                .any(|it| it.stands());
        self.next = now + if busy { SHORT } else { EASE };
        changed
    }

    /// The node's conditions of it, in a kubelet's order.
    #[must_use]
    pub(crate) fn conditions(&self) -> Vec<NodeCondition> {
        let one = |kind: &str, signal: &Signal, good: &str, bad: &str| NodeCondition {
            kind: kind.to_owned(),
            status: signal.stands(),
            reason: if signal.stands() { bad } else { good }.to_owned(),
            message: signal.text.clone(),
        };
        let mut out = vec![
            one(
                "MemoryPressure",
                &self.memory,
                "NodeHasSufficientMemory",
                "NodeHasInsufficientMemory",
            ),
            one(
                "DiskPressure",
                &self.disk,
                "NodeHasNoDiskPressure",
                "NodeHasDiskPressure",
            ),
            one(
                "PIDPressure",
                &self.pids,
                "NodeHasSufficientPID",
                "NodeHasInsufficientPID",
            ),
        ];
        if self.read_only {
            // The node problem detector's name for it.
            out.push(NodeCondition {
                kind: "ReadonlyFilesystem".to_owned(),
                status: true,
                reason: "FilesystemIsReadOnly".to_owned(),
                message: "the file system of the state directory is read-only: what runs goes on and nothing new starts; \
                          look for its error in the kernel's log, check it, and mount it read-write"
                    .to_owned(),
            });
        }
        out
    }

    /// What to tell the core: what is short, as long as it is, with what each Pod uses of it; then, once, which conditions
    /// are held, with no use, for nobody is to be evicted for them; and once that none stands any more. While images are going
    /// to make room, no Pod's files are of use for the disk.
    pub(crate) fn pressure(
        &mut self,
        pods: impl Iterator<Item = Uid>,
        cgroups: &Cgroups,
        parent: &str,
        making_room: bool,
    ) -> Option<Pressure> {
        let signals = [&self.memory, &self.disk, &self.pids];
        let short = signals.map(|it| it.short.is_some());
        let any = short.contains(&true);
        let shown = signals.map(|it| {
            let held = || Some(it.text.clone()).filter(|_| !any && it.stands());
            it.short.clone().or_else(held)
        });
        let standing = shown.each_ref().map(Option::is_some);
        if !any && standing == self.told {
            return None;
        }
        self.told = standing;
        // Whom to evict for the disk is known once files were counted since it became short.
        let counted = match (self.disk.span, self.measured) {
            (Some((since, _)), Some(measured)) => {
                measured >= since && self.measuring.is_none() && !making_room
            }
            _ => false,
        };
        let usage = pods.filter(|_| any).map(|pod| {
            let used = cgroups.usage(&format!("{parent}/{pod}"));
            let files = self.files.get(&pod).copied().filter(|_| counted);
            let only = |at: usize, amount: u64| if short[at] { amount } else { 0 };
            Usage {
                pod,
                memory: only(0, used.memory_bytes),
                disk: only(1, files.unwrap_or(0)),
                pids: only(2, used.pids),
            }
        });
        let usage = usage.collect();
        let [memory, disk, pids] = shown;
        Some(Pressure {
            memory,
            disk,
            pids,
            usage,
        })
    }

    /// Whether files are to be counted: of all Pods, or of those alone that are limited.
    #[must_use]
    pub(crate) fn to_measure(&self, now: Instant) -> Option<All> {
        let due = self.measured.is_none_or(|at| now.duration_since(at) >= MEASURE);
        let fresh = |(since, _): (Instant, Instant)| self.measured.is_none_or(|at| at < since);
        let short = self.disk.short.is_some();
        if self.measuring.is_some() || !(due || short && self.disk.span.is_some_and(fresh)) {
            return None;
        }
        Some(All(short))
    }

    /// Counts files on another thread.
    pub(crate) fn measure(&mut self, pods: Vec<ToMeasure>, now: Instant) {
        if pods.is_empty() {
            if self.disk.short.is_some() {
                self.measured = Some(now);
            }
            return;
        }
        self.measured = Some(now);
        let work = move || pods.iter().map(ToMeasure::measure).collect();
        self.measuring = Some(tokio::task::spawn_blocking(work));
    }

    /// Takes what was counted: the Pods that are over their limits, each with a kubelet's message.
    pub(crate) fn counted(&mut self, measured: Vec<Measured>) -> Vec<(Uid, String)> {
        self.files = measured.iter().map(|it| (it.pod, it.bytes)).collect();
        let over = measured
            .into_iter()
            .filter_map(|it| it.over.map(|why| (it.pod, why)));
        over.collect()
    }
}

/// Whether files of all Pods are counted, or of limited ones only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct All(pub(crate) bool);

/// A kubelet's words where `available` is less than `least`.
fn below(what: &str, available: u64, least: u64, bytes: bool) -> Option<String> {
    let text = |amount: u64| {
        if bytes { binary(amount) } else { amount.to_string() }
    };
    (available < least).then(|| {
        format!(
            "{what}Threshold quantity: {}, available: {}",
            text(least),
            text(available)
        )
    })
}

fn amount_of_memory() -> Option<Amount> {
    Some(Amount {
        total: meminfo("MemTotal:")?,
        available: meminfo("MemAvailable:")?,
    })
}

/// The smaller of `kernel.pid_max` and `kernel.threads-max`.
fn most_pids() -> u64 {
    let number = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let both = [number("pid_max"), number("threads-max")];
    both.into_iter().flatten().min().unwrap_or(0)
}

/// A descriptor that becomes ready when processes wait for memory.
#[allow(
    deprecated,
    reason = "its successor is unsafe for descriptors that are borrowed; a file owns its own"
)]
fn stalled() -> io::Result<AsyncFd<fs::File>> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(PSI)?;
    file.write_all(STALL.as_bytes())?;
    AsyncFd::with_interest(file, Interest::PRIORITY)
}

async fn stall(stalled: Option<&AsyncFd<fs::File>>) {
    let Some(fd) = stalled else {
        return std::future::pending().await;
    };
    match fd.ready(Interest::PRIORITY).await {
        Ok(mut ready) => ready.clear_ready(),
        // The regular looks go on.
        Err(_) => std::future::pending().await,
    }
}

async fn done(measuring: &mut Option<JoinHandle<Vec<Measured>>>) -> Vec<Measured> {
    match measuring {
        // One that panicked has counted nothing; the next one may.
        Some(task) => task.await.unwrap_or_default(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
