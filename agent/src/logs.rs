//! Log streams: from a container's ring to the link, at the reader's pace.
//!
//! Always holds: a stream's sender is at most one window ahead of its reader; what the ring dropped is told in the
//! output; at most [`limits::STREAMS`] streams, each with one piece in memory; a stream that is followed ends when its
//! attempt has, also where nobody recorded that end or the Pod is gone, and never before the last line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skiff_core::Core;
use skiff_protocol::limits;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::status::{ContainerState, ContainerStatus};
use skiff_protocol::wire::{LogRequest, StreamEnd, StreamOpen};
use skiff_shim::ring::{Gap, Reader, Record, RingError};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tracing::warn;

use crate::input::Input;
use crate::shims::Place;

/// How often a followed ring is looked at. Only while somebody follows.
const LOOK: Duration = Duration::from_millis(50);

/// Pieces that wait for the link, of all streams together.
const WAITING: usize = 4;

/// What a container waits for whose start is on its way, or about to be.
const STARTING: &str = "ContainerCreating";

/// The open streams.
pub(crate) struct Streams {
    open: BTreeMap<u32, Stream>,
    sender: mpsc::Sender<Input>,
    receiver: mpsc::Receiver<Input>,
    /// Refusals that there was no room to tell.
    unanswered: u64,
}

struct Stream {
    credit: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Default for Streams {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        Self {
            open: BTreeMap::new(),
            sender,
            receiver,
            unanswered: 0,
        }
    }
}

impl Streams {
    /// The next piece or end of any stream. Cancel-safe, as receiving is.
    pub(crate) async fn next(&mut self) -> Option<Input> {
        self.receiver.recv().await
    }

    /// Begins a stream, or says why not.
    pub(crate) fn open(&mut self, core: &Core, place: &Place, open: StreamOpen) {
        let StreamOpen::Logs { sid, request } = open;
        self.begin(sid, request, |request| find(core, place, request));
    }

    fn begin(
        &mut self,
        sid: u32,
        request: LogRequest,
        find: impl FnOnce(&LogRequest) -> Result<Source, String>,
    ) {
        if self.open.len() >= limits::STREAMS && !self.open.contains_key(&sid) {
            self.refuse(sid);
            return;
        }
        let found = find(&request);
        let sender = self.sender.clone();
        let credit = Arc::new(Semaphore::new(limits::STREAM_WINDOW as usize));
        let window = credit.clone();
        let task = tokio::spawn(async move {
            let end = match found {
                Ok(source) => send(sid, &source, &request, &window, &sender).await,
                Err(message) => Err(message),
            };
            let end = end.map_or_else(StreamEnd::Failed, |()| StreamEnd::Complete);
            // The driver is gone only when the agent ends.
            let _ = sender.send(Input::StreamEnd { sid, end }).await;
        });
        if let Some(before) = self.open.insert(sid, Stream { credit, task }) {
            before.task.abort();
        }
    }

    /// Says that there are too many streams, which costs nothing that would have to be bounded. Where even the answer
    /// has no room, the asker is left to its own patience.
    fn refuse(&mut self, sid: u32) {
        let message = format!("this node serves at most {} streams at once", limits::STREAMS);
        let end = StreamEnd::Failed(message);
        if self.sender.try_send(Input::StreamEnd { sid, end }).is_err() {
            self.unanswered += 1;
            if self.unanswered.is_power_of_two() {
                warn!(
                    sid,
                    count = self.unanswered,
                    "too many streams are asked for; a refusal was not told"
                );
            }
        }
    }

    /// The reader has taken `bytes`.
    pub(crate) fn credit(&mut self, sid: u32, bytes: u32) {
        if let Some(stream) = self.open.get(&sid) {
            // A reader that credits more than it was sent gains nothing: the window is the bound.
            let room = limits::STREAM_WINDOW as usize
                - stream
                    .credit
                    .available_permits()
                    .min(limits::STREAM_WINDOW as usize);
            stream.credit.add_permits((bytes as usize).min(room));
        }
    }

    /// The reader has gone.
    pub(crate) fn close(&mut self, sid: u32) {
        if let Some(stream) = self.open.remove(&sid) {
            stream.task.abort();
        }
    }

    /// A stream said its last word.
    pub(crate) fn ended(&mut self, sid: u32) {
        self.open.remove(&sid);
    }

    /// The link broke, and every reader with it.
    pub(crate) fn close_all(&mut self) {
        for (_, stream) in std::mem::take(&mut self.open) {
            stream.task.abort();
        }
        while self.receiver.try_recv().is_ok() {}
    }
}

/// Where a stream's bytes come from.
#[derive(Debug)]
struct Source {
    /// Open from the first, so that what the container wrote is read to its end also when its Pod goes meanwhile.
    reader: Reader,
    ring: PathBuf,
    /// There once the attempt has ended.
    exit: PathBuf,
    /// There once a later attempt has begun, and the record of this one's end may be gone.
    later: PathBuf,
    /// There while somebody writes.
    shim: PathBuf,
    /// The attempt had ended when the stream was opened.
    over: bool,
}

impl Source {
    /// Whether nothing more comes.
    fn has_ended(&self) -> bool {
        self.over || self.exit.exists() || self.later.exists() || !self.ring.exists() || !self.shim.exists()
    }
}

fn find(core: &Core, place: &Place, request: &LogRequest) -> Result<Source, String> {
    let uid = request.uid.ok_or("the request names no Pod")?;
    let status = core.statuses().map(|(_, status)| status).find(|it| it.uid == uid);
    let status = status.ok_or_else(|| format!("pod {uid} is not on this node"))?;
    let mut all = status.init_containers.iter().chain(&status.containers);
    let container = all.find(|it| it.name == request.container);
    let container =
        container.ok_or_else(|| format!("container {} is not valid for pod {uid}", request.container))?;
    source(uid, container, &place.run_of(uid), request.previous)
}

/// The attempt that a kubelet would show, by `state` and `lastState`.
fn source(uid: Uid, container: &ContainerStatus, dir: &Path, previous: bool) -> Result<Source, String> {
    let name = &container.name;
    let count = container.restart_count;
    let exit = |attempt| dir.join(skiff_shim::EXIT_DIR).join(format!("{name}-{attempt}"));
    // One that is being started has its number already, but no end, and for a moment no log.
    let (waits_for, over) = match &container.state {
        ContainerState::Running { .. } => (None, false),
        ContainerState::Terminated(_) => (None, true),
        ContainerState::Waiting { reason, .. } => (
            Some(reason),
            container.last.is_some() && (reason != STARTING || exit(count).exists()),
        ),
    };
    let (latest, before) = (Some(count), count.checked_sub(1));
    let wanted = match (previous, waits_for, over) {
        (true, Some(_), true) | (false, None, _) | (false, Some(_), true) => [latest, None],
        (true, ..) => [before, None],
        (false, Some(_), false) => [latest, before],
    };
    let has_ring = |attempt: &u32| ring_path(dir, name, *attempt).exists();
    let Some(attempt) = wanted.into_iter().flatten().find(has_ring) else {
        return Err(match waits_for {
            _ if previous => format!("previous terminated container {name:?} in pod {uid} not found"),
            Some(reason) if !over => format!("container {name:?} in pod {uid} is waiting to start: {reason}"),
            _ => format!("unable to retrieve container logs for {name:?} in pod {uid}"),
        });
    };
    let ring = ring_path(dir, name, attempt);
    Ok(Source {
        reader: Reader::open(&ring).map_err(|error| error.to_string())?,
        ring,
        exit: exit(attempt),
        later: ring_path(dir, name, attempt.saturating_add(1)),
        shim: dir.join(skiff_shim::SOCKET_NAME),
        over: previous || attempt < count || over,
    })
}

/// The ring of one attempt of a container.
pub(crate) fn ring_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join(skiff_shim::LOG_DIR)
        .join(container)
        .join(format!("{attempt}.ring"))
}

async fn send(
    sid: u32,
    source: &Source,
    request: &LogRequest,
    window: &Semaphore,
    sender: &mpsc::Sender<Input>,
) -> Result<(), String> {
    let text = |error: RingError| error.to_string();
    let reader = &source.reader;
    let bounds = reader.bounds().map_err(text)?;
    let mut from = bounds.oldest;
    if let Some(since) = request.since {
        from = from.max(reader.since(since).map_err(text)?);
    }
    if let Some(lines) = request.tail_lines {
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        from = from.max(reader.tail(lines).map_err(text)?);
    }
    let mut out = Out {
        sid,
        offset: 0,
        left: request.limit_bytes.unwrap_or(u64::MAX),
        window,
        sender,
    };
    loop {
        // Looked at before the ring: what was written before the end is then surely read.
        let ended = source.has_ended();
        let chunk = reader.read(from, limits::STREAM_PIECE).map_err(text)?;
        let done = !request.follow && chunk.next >= bounds.end
            || chunk.records.is_empty() && (ended || !request.follow);
        let mut bytes = Vec::new();
        if let Some(gap) = &chunk.gap {
            write_gap(&mut bytes, gap);
        }
        for record in &chunk.records {
            write_record(&mut bytes, record, request.timestamps);
        }
        let idle = chunk.records.is_empty() && chunk.next == from;
        from = chunk.next;
        if !out.send(&bytes).await || done {
            return Ok(());
        }
        if idle {
            tokio::time::sleep(LOOK).await;
        }
    }
}

struct Out<'a> {
    sid: u32,
    offset: u64,
    left: u64,
    window: &'a Semaphore,
    sender: &'a mpsc::Sender<Input>,
}

impl Out<'_> {
    /// Sends in pieces as credit comes; `false` once the byte limit is reached or nobody listens.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(limits::STREAM_PIECE) {
            let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
            let Ok(credit) = self.window.acquire_many(take as u32).await else {
                return false;
            };
            credit.forget();
            let message = Input::StreamData {
                sid: self.sid,
                offset: self.offset,
                bytes: piece[..take].to_vec(),
            };
            self.offset += take as u64;
            self.left -= take as u64;
            if self.sender.send(message).await.is_err() || self.left == 0 {
                return false;
            }
        }
        true
    }
}

fn write_gap(out: &mut Vec<u8>, gap: &Gap) {
    let text = format!(
        "[skiff: {} bytes of this log were dropped here, from {} to {}]\n",
        gap.bytes(),
        gap.from,
        gap.to
    );
    out.extend_from_slice(text.as_bytes());
}

fn write_record(out: &mut Vec<u8>, record: &Record, timestamps: bool) {
    if timestamps {
        out.extend_from_slice(rfc3339(record.unix_ns).as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(&record.bytes);
    if !record.partial {
        out.push(b'\n');
    }
}

/// Nanoseconds since 1970 as `2006-01-02T15:04:05.999999999Z`.
///
/// The civil date is found by counting days in eras of 400 years, which begin on the first of March.
pub(crate) fn rfc3339(unix_ns: i64) -> String {
    let (seconds, nanos) = (
        unix_ns.div_euclid(1_000_000_000),
        unix_ns.rem_euclid(1_000_000_000),
    );
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let (dom, month) = (
        day_of_year - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{dom:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

#[cfg(test)]
mod tests;
