//! Recent events in memory, and the watchers that are fed from them.
//!
//! What always holds: events enter in revision order, after they are on disk; the history, each watcher's queue and
//! the number of watchers are bounded; a watcher whose queue is full is cut off with [`StoreError::Gone`], so it never
//! misses an event without knowing. One lock covers history and watchers: it is held for copying pointers, never over
//! an await.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::mpsc;

use super::{Event, Scope, StoreError, limits};

/// Bounds of one history, so that tests can make them small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) events: usize,
    pub(super) bytes: usize,
    pub(super) queue: usize,
    pub(super) watches: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            events: limits::HISTORY_EVENTS,
            bytes: limits::HISTORY_BYTES,
            queue: limits::WATCH_QUEUE,
            watches: limits::WATCHES,
        }
    }
}

pub(super) struct History {
    bounds: Bounds,
    state: Mutex<State>,
}

struct State {
    events: VecDeque<(Event, usize)>,
    bytes: usize,
    /// A watch may start from here or later: everything after it is still in `events`.
    oldest: u64,
    published: u64,
    watchers: Vec<Watcher>,
}

struct Watcher {
    scope: Scope,
    queue: mpsc::Sender<Event>,
    /// Set to the oldest usable revision when the watcher is cut off; 0 until then.
    cut: Arc<AtomicU64>,
}

impl History {
    pub(super) fn new(revision: u64, bounds: Bounds) -> Self {
        let state = State {
            events: VecDeque::new(),
            bytes: 0,
            oldest: revision,
            published: revision,
            watchers: Vec::new(),
        };
        Self {
            bounds,
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole at each step, so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn published(&self) -> u64 {
        self.lock().published
    }

    /// Tells watchers of committed events, each with the size of its document.
    pub(super) fn publish(&self, events: Vec<(Event, usize)>) {
        let mut state = self.lock();
        let state = &mut *state;
        for (event, bytes) in events {
            state.published = event.revision;
            state
                .watchers
                .retain(|watcher| watcher.offer(&event, state.oldest));
            state.bytes += bytes;
            state.events.push_back((event, bytes));
            while state.events.len() > self.bounds.events || state.bytes > self.bounds.bytes {
                let Some((dropped, bytes)) = state.events.pop_front() else {
                    break;
                };
                state.bytes -= bytes;
                state.oldest = dropped.revision;
            }
        }
    }

    pub(super) fn watch(&self, scope: Scope, since: Option<u64>) -> Result<Watch, StoreError> {
        let mut state = self.lock();
        let wanted = since.unwrap_or(state.published);
        if wanted < state.oldest {
            return Err(StoreError::Gone {
                wanted,
                oldest: state.oldest,
            });
        }
        // A listing may have read a batch that is committed but not published yet, never more than that.
        if wanted > state.published + limits::WRITE_BATCH as u64 {
            return Err(StoreError::Future {
                wanted,
                current: state.published,
            });
        }
        state.watchers.retain(|watcher| !watcher.queue.is_closed());
        if state.watchers.len() >= self.bounds.watches {
            return Err(StoreError::TooManyWatches);
        }
        let backlog = state.events.iter().map(|(event, _)| event);
        let backlog = backlog.filter(|event| event.revision > wanted && scope.contains(&event.object.key));
        let backlog: VecDeque<Event> = backlog.cloned().collect();
        let (queue, live) = mpsc::channel(self.bounds.queue);
        let cut = Arc::new(AtomicU64::new(0));
        state.watchers.push(Watcher {
            scope,
            queue,
            cut: cut.clone(),
        });
        Ok(Watch {
            backlog,
            live,
            cut,
            since: wanted,
            ended: false,
        })
    }
}

impl Watcher {
    /// Hands the event over; whether the watcher is still there afterwards.
    fn offer(&self, event: &Event, oldest: u64) -> bool {
        if !self.scope.contains(&event.object.key) {
            return !self.queue.is_closed();
        }
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.cut.store(oldest.max(1), Ordering::Release);
                false
            }
        }
    }
}

/// The events of one scope, in revision order: a stream that ends only with an error or with the store.
pub struct Watch {
    backlog: VecDeque<Event>,
    live: mpsc::Receiver<Event>,
    cut: Arc<AtomicU64>,
    since: u64,
    ended: bool,
}

impl Watch {
    /// The next event. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Option<Result<Event, StoreError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        loop {
            let event = self.backlog.pop_front().or_else(|| self.live.try_recv().ok())?;
            if event.revision > self.since {
                self.since = event.revision;
                return Some(event);
            }
        }
    }

    /// Whether the watch has been cut off: what is still in its queue is followed by the error, not by what came since.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire) != 0
    }

    /// The revision of the last event given out, or the one that the watch started from.
    pub fn revision(&self) -> u64 {
        self.since
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Event, StoreError>>> {
        if let Some(event) = self.backlog.pop_front() {
            self.since = event.revision;
            return Poll::Ready(Some(Ok(event)));
        }
        loop {
            match self.live.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                // A watch from a listing's revision may be told of events that the listing already showed.
                Poll::Ready(Some(event)) if event.revision <= self.since => continue,
                Poll::Ready(Some(event)) => {
                    self.since = event.revision;
                    return Poll::Ready(Some(Ok(event)));
                }
                Poll::Ready(None) => return Poll::Ready(self.end()),
            }
        }
    }

    fn end(&mut self) -> Option<Result<Event, StoreError>> {
        let oldest = self.cut.load(Ordering::Acquire);
        if self.ended || oldest == 0 {
            return None;
        }
        self.ended = true;
        Some(Err(StoreError::Gone {
            wanted: self.since,
            oldest,
        }))
    }
}

impl Stream for Watch {
    type Item = Result<Event, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}
