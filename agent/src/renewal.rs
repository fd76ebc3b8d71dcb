//! The renewal of the node's certificate: when it is due, and the process that gets it.
//!
//! Always holds: the running agent speaks no HTTP, `skiff-agent renew` does; Pods are not touched; the waits are by the
//! clock that never jumps, and a clock that cannot be right decides nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use skiff_protocol::enrol::JoinResponse;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::driver::Driver;
use crate::identity::Identity;
use crate::logs::rfc3339;
use crate::role;

/// The longest wait between two looks at the clock.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How often a node whose clock cannot be right looks whether its broker lets it in.
const HOUR: Duration = Duration::from_secs(3600);

/// The shortest time between two renewals, however short the life of a certificate is.
const PAUSE: Duration = Duration::from_secs(10);

/// The first and the longest wait after a renewal that failed.
const AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(6 * 3600));

/// How long the process may take: two requests to each server, each with a patience of its own.
const PATIENCE: Duration = Duration::from_secs(300);

/// What is to be done.
pub(crate) enum Turn {
    /// Look whether the certificate is due.
    Look,
    /// The process has ended.
    Ended(Result<()>),
}

/// The renewal of one node's certificate.
pub(crate) struct Renewal {
    executable: PathBuf,
    state: PathBuf,
    /// When to look next, unless the process runs.
    at: Instant,
    process: Option<JoinHandle<Result<()>>>,
    failures: u32,
}

impl Renewal {
    /// One that looks at once.
    pub(crate) fn new(executable: PathBuf, state: PathBuf) -> Self {
        Self {
            executable,
            state,
            at: Instant::now(),
            process: None,
            failures: 0,
        }
    }

    /// What is to be done next. Cancel-safe: a handle that is waited for by reference, and a fixed time.
    pub(crate) async fn next(&mut self) -> Turn {
        if let Some(process) = &mut self.process {
            let ended = process.await;
            self.process = None;
            return Turn::Ended(ended.unwrap_or_else(|error| Err(error.into())));
        }
        tokio::time::sleep_until(self.at).await;
        Turn::Look
    }

    fn begin(&mut self, known: u64) {
        let (executable, state) = (self.executable.clone(), self.state.clone());
        self.process = Some(tokio::spawn(async move { run(&executable, &state, known).await }));
    }

    /// Waits longer each time; gives the wait.
    fn failed(&mut self) -> Duration {
        let wait = AGAIN.0 * 2u32.saturating_pow(self.failures.min(16));
        self.failures += 1;
        let wait = wait.min(AGAIN.1);
        self.at = Instant::now() + wait;
        wait
    }

    /// Waits by what the new certificate's life is, whatever the clock says: a clock that is far ahead would have the
    /// next one be due already.
    fn succeeded(&mut self, joined: &JoinResponse) {
        self.failures = 0;
        self.at = Instant::now() + Duration::from_secs(life(joined) / 3).clamp(PAUSE, DAY);
    }
}

/// Seconds that a certificate is made for. Its own begin lies far in the past, for clocks that are behind.
fn life(joined: &JoinResponse) -> u64 {
    joined.not_after.saturating_sub(joined.server_time)
}

/// What is known of the time.
#[derive(Clone, Copy)]
struct Clock {
    /// The system's clock, in seconds since 1970.
    system: u64,
    /// What is known to have passed.
    floor: u64,
    /// How long the agent has run.
    up: Duration,
}

impl Clock {
    /// Whether the clock can be right: it is not behind the time at which the server made the certificate.
    fn plausible(&self, joined: &JoinResponse) -> bool {
        self.system >= joined.server_time
    }

    fn now(&self, joined: &JoinResponse) -> u64 {
        if self.plausible(joined) {
            self.system.max(self.floor)
        } else {
            self.floor
        }
    }
}

/// How long until the certificate is due: at two thirds of its life. Zero means now.
///
/// A node without a clock cannot tell; it takes a broker that does not let it in for a sign.
fn due(joined: &JoinResponse, clock: Clock, connected: bool) -> Duration {
    let at = joined.server_time.saturating_add(life(joined) / 3 * 2);
    let left = Duration::from_secs(at.saturating_sub(clock.now(joined)));
    if clock.plausible(joined) {
        left.min(DAY)
    } else if !connected && clock.up >= HOUR {
        Duration::ZERO
    } else {
        left.min(HOUR)
    }
}

/// What the condition `CertificateExpiring` says, when half of the time for renewing has passed in vain.
fn expiring(joined: &JoinResponse, clock: Clock, why: &str) -> Option<String> {
    let near = joined.not_after.saturating_sub(life(joined) / 6);
    if clock.now(joined) < near {
        return None;
    }
    let nanos = i64::try_from(joined.not_after.saturating_mul(1_000_000_000)).unwrap_or(i64::MAX);
    Some(format!(
        "the node's certificate ends at {} and cannot be renewed: {why}",
        rfc3339(nanos)
    ))
}

impl Driver {
    /// Does what is due about the node's certificate.
    pub(crate) async fn renew(&mut self, turn: Turn) {
        let system = SystemTime::now().duration_since(UNIX_EPOCH);
        let clock = Clock {
            system: system.map_or(0, |it| it.as_secs()),
            floor: self.floor.load(Ordering::Relaxed),
            up: self.began.elapsed(),
        };
        match turn {
            Turn::Look => {
                let wait = due(&self.identity.joined, clock, self.link.counters().connected);
                if wait.is_zero() {
                    info!("renewing the node's certificate");
                    self.renewal.begin(clock.now(&self.identity.joined));
                } else {
                    self.renewal.at = Instant::now() + wait;
                }
            }
            Turn::Ended(result) => match result.and_then(|()| Identity::load(&self.config.state_dir)) {
                Ok(identity) => {
                    info!("the node's certificate is renewed");
                    self.renewal.succeeded(&identity.joined);
                    self.node.certificate(None);
                    self.identity = Arc::new(identity);
                    self.images.renewed(self.identity.clone());
                    self.reconnect().await;
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    let retry_in = self.renewal.failed();
                    warn!(why, ?retry_in, "the node's certificate could not be renewed");
                    self.node
                        .certificate(expiring(&self.identity.joined, clock, &why));
                }
            },
        }
    }
}

/// Runs the process to its end. One that is killed leaves the old identity or the new one.
async fn run(executable: &Path, state: &Path, known: u64) -> Result<()> {
    let known = known.to_string();
    let arguments = [state.as_os_str(), known.as_ref()];
    role::run(executable, "renew", &arguments, PATIENCE)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests;
