//! Log streams: a node's pieces on one side, an HTTP client's reading on the other.
//!
//! ```text
//! node ── StreamData ──▶ Streams::data ──▶ pipe (≤ STREAM_WINDOW bytes) ──▶ Reader ──▶ HTTP
//!      ◀─ StreamCredit ── service ◀── Bell ◀───────────────── bytes taken, or dropped
//! ```
//!
//! What always holds: a pipe holds at most [`STREAM_WINDOW`] bytes, for the node may send no more than its credit; a
//! piece that is lost ends the stream with words, never with a hole; dropping the reader closes the stream on the node.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::Stream;
use skiff_protocol::limits::{STREAM_WINDOW, STREAMS as STREAMS_PER_NODE};
use skiff_protocol::topic::NodeName;
use skiff_protocol::wire::{Down, StreamEnd};
use tokio::sync::Notify;

use super::ingest::Wrong;
use super::limits;
use crate::api::LogError;

/// Rings when a reader took something or went away.
#[derive(Default)]
pub(crate) struct Bell {
    changed: Mutex<BTreeSet<u32>>,
    notify: Notify,
}

impl Bell {
    fn ring(&self, sid: u32) {
        lock(&self.changed).insert(sid);
        self.notify.notify_one();
    }

    /// Waits until a reader did something. Cancelling the wait loses nothing.
    pub(crate) async fn wait(&self) {
        self.notify.notified().await;
    }

    fn take(&self) -> BTreeSet<u32> {
        std::mem::take(&mut *lock(&self.changed))
    }
}

/// How much of the reason of a bad end is in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Told {
    #[default]
    Nothing,
    Words,
    All,
}

#[derive(Default)]
struct Pipe {
    waiting: Vec<u8>,
    taken: u64,
    end: Option<Result<(), LogError>>,
    reader_gone: bool,
    told: Told,
    waker: Option<Waker>,
}

/// The HTTP client's end.
pub(crate) struct Reader {
    sid: u32,
    pipe: Arc<Mutex<Pipe>>,
    bell: Arc<Bell>,
}

impl Reader {
    /// Waits until there is something to read, or the end.
    pub(crate) async fn ready(&self) -> Option<Result<(), LogError>> {
        std::future::poll_fn(|context| {
            let mut pipe = lock(&self.pipe);
            if pipe.waiting.is_empty() && pipe.end.is_none() {
                pipe.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(if pipe.waiting.is_empty() {
                pipe.end.clone()
            } else {
                None
            })
        })
        .await
    }
}

impl Stream for Reader {
    type Item = Result<Bytes, LogError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut pipe = lock(&self.pipe);
        if !pipe.waiting.is_empty() {
            let bytes = std::mem::take(&mut pipe.waiting);
            pipe.taken += bytes.len() as u64;
            drop(pipe);
            self.bell.ring(self.sid);
            return Poll::Ready(Some(Ok(bytes.into())));
        }
        match pipe.end.take() {
            Some(Ok(())) => {
                pipe.end = Some(Ok(()));
                Poll::Ready(None)
            }
            // The client has had its headers, so words in the stream are all that can reach a person.
            Some(Err(error)) if pipe.told == Told::Nothing => {
                let words = format!("skiff: the log ends here: {error}\n");
                pipe.told = Told::Words;
                pipe.end = Some(Err(error));
                Poll::Ready(Some(Ok(words.into())))
            }
            // An error cuts the connection, with whatever was not written yet: let the words be.
            Some(Err(error)) if pipe.told == Told::Words => {
                pipe.told = Told::All;
                pipe.end = Some(Err(error));
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Err(error)) => {
                pipe.end = Some(Ok(()));
                Poll::Ready(Some(Err(error)))
            }
            None => {
                pipe.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        lock(&self.pipe).reader_gone = true;
        self.bell.ring(self.sid);
    }
}

struct Open {
    node: NodeName,
    pipe: Arc<Mutex<Pipe>>,
    received: u64,
    credited: u64,
}

/// All streams that are open.
pub(crate) struct Streams {
    open: BTreeMap<u32, Open>,
    bell: Arc<Bell>,
    last: u32,
}

impl Streams {
    /// `start` is random, so that a stream of an earlier process is not taken for one of this.
    pub(crate) fn new(start: u32) -> Self {
        Self {
            open: BTreeMap::new(),
            bell: Arc::default(),
            last: start,
        }
    }

    pub(crate) fn bell(&self) -> Arc<Bell> {
        self.bell.clone()
    }

    /// A new stream with a node.
    pub(crate) fn open(&mut self, node: &NodeName) -> Result<(u32, Reader), LogError> {
        let with_node = self.open.values().filter(|open| open.node == *node).count();
        if with_node >= STREAMS_PER_NODE || self.open.len() >= limits::STREAMS {
            return Err(LogError::TooMany {
                node: node.to_string(),
            });
        }
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.open.contains_key(&self.last) {
                break;
            }
        }
        let pipe = Arc::new(Mutex::new(Pipe::default()));
        let open = Open {
            node: node.clone(),
            pipe: pipe.clone(),
            received: 0,
            credited: 0,
        };
        self.open.insert(self.last, open);
        Ok((
            self.last,
            Reader {
                sid: self.last,
                pipe,
                bell: self.bell.clone(),
            },
        ))
    }

    /// A piece came. The answer closes the stream on the node where it must not go on.
    pub(crate) fn data(
        &mut self,
        node: &NodeName,
        sid: u32,
        offset: u64,
        bytes: &[u8],
    ) -> (Option<Wrong>, Option<Down>) {
        let Some(open) = self.open.get_mut(&sid) else {
            // Its reader has gone a moment ago, or it is of an earlier process.
            return (None, Some(Down::StreamClose { sid }));
        };
        if open.node != *node {
            return (Some(Wrong::Stream), None);
        }
        let end = offset.saturating_add(bytes.len() as u64);
        if end <= open.received && !bytes.is_empty() {
            // Delivered twice, as QoS 1 may.
            return (None, None);
        }
        let why = if offset != open.received {
            format!(
                "{} bytes of the log were lost on the way",
                offset.abs_diff(open.received)
            )
        } else if end > open.credited + u64::from(STREAM_WINDOW) {
            "the node sent more than it was allowed to".to_owned()
        } else {
            open.received = end;
            let mut pipe = lock(&open.pipe);
            pipe.waiting.extend_from_slice(bytes);
            wake(&mut pipe);
            return (None, None);
        };
        self.fail(sid, &why);
        (Some(Wrong::Offset), Some(Down::StreamClose { sid }))
    }

    /// The node ended a stream.
    pub(crate) fn end(&mut self, node: &NodeName, sid: u32, end: StreamEnd) -> Option<Wrong> {
        match self.open.get(&sid) {
            None => return None,
            Some(open) if open.node != *node => return Some(Wrong::Stream),
            Some(_) => {}
        }
        match end {
            StreamEnd::Complete => self.finish(sid, Ok(())),
            StreamEnd::Failed(why) => self.fail(sid, &super::status::bounded(&why)),
        }
        None
    }

    /// The node is gone, or its agent was started anew: its streams are over.
    pub(crate) fn lost(&mut self, node: &NodeName) {
        let sids: Vec<u32> = self
            .open
            .iter()
            .filter(|(_, it)| it.node == *node)
            .map(|(sid, _)| *sid)
            .collect();
        for sid in sids {
            self.fail(sid, "the connection to the node was lost");
        }
    }

    /// What the readers' doings mean for the nodes: credit and closing, with where to send it.
    pub(crate) fn service(&mut self) -> Vec<(NodeName, u32, Down)> {
        let mut out = Vec::new();
        for sid in self.bell.take() {
            let Some(open) = self.open.get_mut(&sid) else {
                continue;
            };
            let pipe = lock(&open.pipe);
            let (taken, gone) = (pipe.taken, pipe.reader_gone);
            drop(pipe);
            if gone {
                out.push((open.node.clone(), sid, Down::StreamClose { sid }));
                self.open.remove(&sid);
                continue;
            }
            // The window bounds the difference.
            let bytes = (taken - open.credited) as u32;
            if bytes >= limits::CREDIT {
                open.credited = taken;
                out.push((open.node.clone(), sid, Down::StreamCredit { sid, bytes }));
            }
        }
        out
    }

    /// A message of the stream could not be sent.
    pub(crate) fn fail(&mut self, sid: u32, why: &str) {
        let Some(open) = self.open.get(&sid) else { return };
        let error = LogError::Failed {
            node: open.node.to_string(),
            cause: why.to_owned(),
        };
        self.finish(sid, Err(error));
    }

    fn finish(&mut self, sid: u32, end: Result<(), LogError>) {
        if let Some(open) = self.open.remove(&sid) {
            let mut pipe = lock(&open.pipe);
            pipe.end = Some(end);
            wake(&mut pipe);
        }
    }
}

fn wake(pipe: &mut Pipe) {
    if let Some(waker) = pipe.waker.take() {
        waker.wake();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these; were it to, what it left is still whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
