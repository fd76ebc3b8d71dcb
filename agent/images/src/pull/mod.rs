//! The `pull` role: one process that brings one image into the store and ends.
//!
//! It is a process of its own so that its memory returns, so that its end costs the agent nothing, and so that a hostile
//! layer meets nothing of the agent. It stays in the agent's cgroup: what bounds the agent bounds both. It ends with
//! the agent. `SIGKILL` at any moment leaves the store as it was, or with more of it.

mod attempt;
mod request;

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use skiff_protocol::image_ref::{Digest, ImageRef};

use crate::limits::{MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, MAX_SOURCES};
use crate::store::{self, Store};
use attempt::{Attempt, Failure};
pub use request::{
    Fetched, Plan, Platform, Progress, PullError, PullReason, PullReport, PullRequest, Source, SourceKind,
    Wrote,
};

/// The least time between two progress lines of one layer.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Reads a [`PullRequest`] from standard input, pulls, and writes [`PullReport`] lines to standard output.
///
/// The exit code is 0 where the last line is `ok`, else 1.
#[must_use]
pub fn main() -> ExitCode {
    // Without the agent nobody would hear of the image, and the pull of the next agent would wait for this one. What has come
    // is kept but for a block.
    if let Err(error) = end_with_parent() {
        tracing::warn!(%error, "this pull may outlive the agent");
    }
    let mut output = io::stdout().lock();
    let last = match read_request::<PullRequest>(io::stdin().lock()) {
        Ok(request) => {
            let mut reporter = Reporter {
                output: &mut output,
                layer: None,
                last: Instant::now(),
            };
            match pull(&request, &mut reporter) {
                Ok(digest) => PullReport::Ok(digest),
                Err(error) => PullReport::Error(error),
            }
        }
        Err(error) => PullReport::Error(PullError::new(PullReason::ErrImagePull, error)),
    };
    let wrote = Wrote {
        bytes: written_bytes(),
        syncs: store::syncs(),
    };
    let fetched = PullReport::Fetched(crate::pace::fetched());
    let all = [&fetched, &PullReport::Wrote(wrote), &last];
    let written = all
        .into_iter()
        .try_for_each(|report| write_line(&mut output, report));
    match (last, written) {
        (PullReport::Ok(_), Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Has the kernel end this process when the thread ends that started it.
pub(crate) fn end_with_parent() -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
}

/// Bytes that this process has had written to disks, in whole pages (proc_pid_io(5)); 0 where the kernel does not count.
#[must_use]
pub fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|it| it.trim().parse().ok()).unwrap_or(0)
}

/// The request of a role of this crate; the error is for people.
pub(crate) fn read_request<T: DeserializeOwned>(input: impl Read) -> Result<T, String> {
    let mut bytes = Vec::new();
    let read = input.take(MAX_REQUEST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("the request cannot be read: {error}"))?;
    if bytes.len() as u64 > MAX_REQUEST_BYTES {
        return Err(format!("the request is larger than {MAX_REQUEST_BYTES} bytes"));
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("the request is malformed: {error}"))
}

/// Takes note of how far a pull is; an error ends it, for nobody listens any more.
pub trait ProgressSink {
    /// `done` of `total` bytes of `layer` are transferred and unpacked.
    ///
    /// # Errors
    /// Whatever the listener's channel gives; the pull then ends.
    fn progress(&mut self, layer: &Digest, done: u64, total: u64) -> io::Result<()>;

    /// The layers are known.
    ///
    /// # Errors
    /// As [`Self::progress`].
    fn plan(&mut self, _plan: Plan) -> io::Result<()> {
        Ok(())
    }
}

struct Reporter<'a, W> {
    output: &'a mut W,
    layer: Option<Digest>,
    last: Instant,
}

impl<W: Write> ProgressSink for Reporter<'_, W> {
    fn progress(&mut self, layer: &Digest, done: u64, total: u64) -> io::Result<()> {
        let same = self.layer.as_ref() == Some(layer);
        if same && done < total && self.last.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.layer = Some(*layer);
        self.last = Instant::now();
        let fetched = crate::pace::fetched();
        write_line(self.output, &PullReport::Fetched(fetched))?;
        write_line(
            self.output,
            &PullReport::Progress(Progress {
                layer: *layer,
                done,
                total,
            }),
        )
    }

    fn plan(&mut self, plan: Plan) -> io::Result<()> {
        write_line(self.output, &PullReport::Plan(plan))
    }
}

pub(crate) fn write_line(output: &mut impl Write, report: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    output.write_all(&line)?;
    output.flush()
}

/// Brings the image into the store, asking each source in order. This is [`main`] without the process.
///
/// # Errors
/// [`PullError`] with what each source answered.
pub fn pull(request: &PullRequest, progress: &mut dyn ProgressSink) -> Result<Digest, PullError> {
    let reference = ImageRef::parse(&request.reference)
        .map_err(|error| PullError::new(PullReason::InvalidImageName, error.to_string()))?;
    let local = |error: crate::Error| {
        PullError::new(
            PullReason::ErrImagePull,
            bounded(&format!("image {reference}: {error}")),
        )
    };
    let store = Store::attach(&request.store).map_err(local)?;
    let store = store.with_preloaded(request.preloaded.as_deref());
    // What a digest names never changes, so what is here is right.
    if reference.digest().is_some() || request.sources.is_empty() {
        match store.resolve(&reference) {
            Ok(Some(image)) => return Ok(image.digest),
            Ok(None) => {}
            Err(error) if error.is_repaired_by_pull() && !request.sources.is_empty() => {}
            Err(error) => return Err(local(error)),
        }
    }
    if request.sources.is_empty() {
        let message = format!("image {reference} is not present, and nothing says where to pull it from");
        return Err(PullError::new(PullReason::ErrImageNeverPull, bounded(&message)));
    }
    if request.sources.len() > MAX_SOURCES {
        let message = format!("{} sources, at most {MAX_SOURCES}", request.sources.len());
        return Err(PullError::new(PullReason::ErrImagePull, message));
    }
    let stage = store.stage().map_err(local)?;
    let mut failures = Vec::new();
    for source in &request.sources {
        let attempt = Attempt {
            request,
            reference: &reference,
            store: &store,
            stage: &stage,
        };
        match attempt.run(source, progress) {
            Ok(digest) => return Ok(digest),
            Err(failure) => {
                let ends_all = failure.is_local();
                failures.push((source, failure));
                if ends_all {
                    break;
                }
            }
        }
    }
    let mut error = combine(&reference, &failures);
    let (left, kept) = (store.claimed(&stage).bytes, request.limits.keep_free_bytes);
    error.needed_bytes = failures.last().and_then(|it| it.1.needs(left, kept));
    Err(error)
}

fn combine(reference: &ImageRef, failures: &[(&Source, Failure)]) -> PullError {
    // Only the registry itself knows that there is no such image; that another place has none says nothing.
    let says_nothing = |source: &Source, failure: &Failure| {
        failure.is_unavailable() || (source.kind != SourceKind::Registry && failure.is_not_found())
    };
    let unavailable = failures.iter().any(|(_, failure)| failure.is_unavailable());
    let unanswered = failures
        .iter()
        .all(|(source, failure)| says_nothing(source, failure));
    let reason = if unavailable && unanswered {
        PullReason::RegistryUnavailable
    } else {
        PullReason::ErrImagePull
    };
    let texts = failures.iter().map(|(source, failure)| {
        let place = attempt::base_url(source, reference);
        format!("{} {place}: {failure}", source.kind)
    });
    let texts: Vec<String> = texts.collect();
    let message = format!("failed to pull image {reference}: {}", texts.join("; "));
    PullError::new(reason, bounded(&message))
}

/// A registry chooses its words, so their length is bounded and control characters are not passed on.
fn bounded(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        let shown = if character.is_control() { ' ' } else { character };
        if out.len() + shown.len_utf8() + '…'.len_utf8() > MAX_MESSAGE_BYTES {
            out.push('…');
            break;
        }
        out.push(shown);
    }
    out
}
