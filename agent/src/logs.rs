//! Log streams: from a container's ring to the link, at the reader's pace.
//!
//! Always holds: a stream's sender is at most one window ahead of its reader; what the ring dropped is told in the
//! output; at most [`limits::STREAMS`] streams, each with one piece in memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use skiff_core::Core;
use skiff_protocol::limits;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::{LogRequest, StreamEnd, StreamOpen};
use skiff_shim::ring::{Gap, Reader, Record};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::input::Input;
use crate::shims::Place;

/// How often a followed ring is looked at. Only while somebody follows.
const LOOK: Duration = Duration::from_millis(50);

/// Pieces that wait for the link, of all streams together.
const WAITING: usize = 4;

/// The open streams.
pub(crate) struct Streams {
    open: BTreeMap<u32, Stream>,
    sender: mpsc::Sender<Input>,
    receiver: mpsc::Receiver<Input>,
}

struct Stream {
    pod: Uid,
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
        let sender = self.sender.clone();
        let full = self.open.len() >= limits::STREAMS;
        let found = if full {
            Err(format!(
                "this node serves at most {} streams at once",
                limits::STREAMS
            ))
        } else {
            find(core, place, &request)
        };
        let credit = Arc::new(Semaphore::new(limits::STREAM_WINDOW as usize));
        let pod = request.uid.unwrap_or(Uid([0; 16]));
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
        if let Some(before) = self.open.insert(sid, Stream { pod, credit, task }) {
            before.task.abort();
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

    /// The Pod goes, and its logs with it.
    pub(crate) fn close_pod(&mut self, pod: Uid) {
        let of: Vec<u32> = self
            .open
            .iter()
            .filter(|(_, it)| it.pod == pod)
            .map(|(sid, _)| *sid)
            .collect();
        for sid in of {
            self.close(sid);
        }
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
struct Source {
    ring: PathBuf,
    /// There once the container has ended.
    exit: PathBuf,
}

fn find(core: &Core, place: &Place, request: &LogRequest) -> Result<Source, String> {
    let uid = request.uid.ok_or("the request names no Pod")?;
    let status = core.statuses().map(|(_, status)| status).find(|it| it.uid == uid);
    let status = status.ok_or_else(|| format!("pod {uid} is not on this node"))?;
    let container = status.containers.iter().find(|it| it.name == request.container);
    let container =
        container.ok_or_else(|| format!("container {} is not valid for pod {uid}", request.container))?;
    let attempt = if request.previous {
        let message = || {
            format!(
                "previous terminated container {:?} in pod {uid} not found",
                request.container
            )
        };
        container.restart_count.checked_sub(1).ok_or_else(message)?
    } else {
        container.restart_count
    };
    let dir = place.run_of(uid);
    let ring = ring_path(&dir, &request.container, attempt);
    if !ring.exists() {
        return Err(if request.previous {
            format!(
                "previous terminated container {:?} in pod {uid} not found",
                request.container
            )
        } else {
            format!(
                "container {:?} in pod {uid} is waiting to start: ContainerCreating",
                request.container
            )
        });
    }
    let exit = dir
        .join(skiff_shim::EXIT_DIR)
        .join(format!("{}-{attempt}", request.container));
    Ok(Source { ring, exit })
}

fn ring_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
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
    let text = |error: skiff_shim::ring::RingError| format!("{}: {error}", source.ring.display());
    let reader = Reader::open(&source.ring).map_err(text)?;
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
        let ended = source.exit.exists() || !source.ring.exists();
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
fn rfc3339(unix_ns: i64) -> String {
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
mod tests {
    use super::*;

    #[test]
    fn times_as_kubernetes_writes_them() {
        for (unix_ns, expected) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
            (4_102_444_799_000_000_000, "2099-12-31T23:59:59.000000000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(rfc3339(unix_ns), expected);
        }
    }
}
