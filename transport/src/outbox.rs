//! What goes next: bounded queues by class, strictly in the order control, status, events, streams, logs.
//!
//! ```text
//! push ──▶ queued ── next, sent ──▶ in flight ── acked / refused ──▶ gone
//!             ▲                        │
//!             └ disconnected, postponed ┘   (unless a newer one with its key is queued)
//! ```
//!
//! Always holds: pure, no I/O. A class never holds more than its [`Bound`], in flight included. A message leaves only
//! by `acked`, `refused`, by a newer one with its key, or (logs) by being the oldest when the class is full; every
//! loss is counted.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::options::Qos;

/// What a message is about, in the order of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Hello, sync, and answers: without these nothing else is of use.
    Control,
    /// What is true now; a newer one replaces an older one with the same key.
    Status,
    /// What happened.
    Event,
    /// Streams that a person waits for.
    Stream,
    /// Logs; the oldest give way.
    Log,
}

/// All classes, in the order of sending.
pub const CLASSES: [Class; 5] = [
    Class::Control,
    Class::Status,
    Class::Event,
    Class::Stream,
    Class::Log,
];

/// What one class may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// Messages.
    pub messages: usize,
    /// Bytes of topics and payloads.
    pub bytes: usize,
}

/// The bounds of all classes, in the order of [`CLASSES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds(pub [Bound; 5]);

impl Default for Bounds {
    /// 768 KiB in all: control and streams must hold a few frames of 64 KiB, a status is about 250 bytes.
    fn default() -> Self {
        let kib = |messages, kib: usize| Bound {
            messages,
            bytes: kib * 1024,
        };
        Self([
            kib(32, 192),
            kib(256, 128),
            kib(256, 128),
            kib(16, 192),
            kib(64, 128),
        ])
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// How it is sent.
    pub qos: Qos,
}

impl Message {
    fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

/// A message that its class has no room for. It comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the outbox has no room for a {class:?} message of {} bytes on {}", message.payload.len(), message.topic)]
pub struct Full {
    /// The class.
    pub class: Class,
    /// Given back.
    pub message: Message,
}

/// What happened in one class since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages taken.
    pub pushed: u64,
    /// Messages acked.
    pub acked: u64,
    /// Messages that the broker refused: lost.
    pub refused: u64,
    /// Messages that a newer one with the same key made worthless.
    pub replaced: u64,
    /// Oldest messages that gave way: lost.
    pub dropped: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
    /// Messages given back for want of room.
    pub rejected: u64,
    /// Messages put back after a lost connection, or after a refusal that may pass.
    pub repeated: u64,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    key: Option<u64>,
    in_flight: bool,
    message: Message,
}

#[derive(Debug, Default)]
struct Queue {
    entries: VecDeque<Entry>,
    bytes: usize,
    counters: Counters,
}

impl Queue {
    fn remove(&mut self, index: usize) -> Option<Entry> {
        let entry = self.entries.remove(index)?;
        self.bytes -= entry.message.bytes();
        Some(entry)
    }

    fn fits(&self, bound: Bound, messages: usize, bytes: usize) -> bool {
        self.entries.len() + messages <= bound.messages && self.bytes + bytes <= bound.bytes
    }

    /// Queues what is in flight at `index` again; `false` where it went because a newer one with its key waits.
    fn again(&mut self, index: usize) -> bool {
        let (id, key) = (self.entries[index].id, self.entries[index].key);
        if key.is_some() && self.entries.iter().any(|e| e.key == key && e.id > id) {
            self.remove(index);
            self.counters.replaced += 1;
            return false;
        }
        self.entries[index].in_flight = false;
        self.counters.repeated += 1;
        true
    }
}

/// The outbox.
#[derive(Debug)]
pub struct Outbox {
    bounds: Bounds,
    queues: [Queue; 5],
    last_id: u64,
}

impl Outbox {
    /// An empty outbox.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            queues: Default::default(),
            last_id: 0,
        }
    }

    /// Takes a message and returns its id. With a `key`, a queued message of the same class and key is replaced and
    /// its place in the queue kept; one in flight stays until acked, and is not repeated.
    ///
    /// # Errors
    /// Gives the message back when its class is full. Logs drop their oldest instead, unless it could never fit.
    pub fn push(&mut self, class: Class, key: Option<u64>, message: Message) -> Result<u64, Full> {
        let bound = self.bounds.0[class as usize];
        let queue = &mut self.queues[class as usize];
        let id = self.last_id + 1;
        let bytes = message.bytes();
        let old = key.and_then(|_| queue.entries.iter().position(|e| e.key == key && !e.in_flight));
        if let Some(index) = old {
            let before = queue.entries[index].message.bytes();
            if queue.bytes - before + bytes > bound.bytes {
                queue.counters.rejected += 1;
                return Err(Full { class, message });
            }
            queue.bytes = queue.bytes - before + bytes;
            queue.counters.replaced += 1;
            queue.entries[index] = Entry {
                id,
                key,
                in_flight: false,
                message,
            };
        } else {
            if class == Class::Log && bytes <= bound.bytes {
                Self::make_room(queue, bound, bytes);
            }
            if !queue.fits(bound, 1, bytes) {
                queue.counters.rejected += 1;
                return Err(Full { class, message });
            }
            queue.bytes += bytes;
            queue.entries.push_back(Entry {
                id,
                key,
                in_flight: false,
                message,
            });
        }
        queue.counters.pushed += 1;
        self.last_id = id;
        Ok(id)
    }

    /// Drops the oldest that are not in flight until `bytes` more fit, or none is left.
    fn make_room(queue: &mut Queue, bound: Bound, bytes: usize) {
        while !queue.fits(bound, 1, bytes) {
            let Some(index) = queue.entries.iter().position(|e| !e.in_flight) else {
                return;
            };
            if let Some(entry) = queue.remove(index) {
                queue.counters.dropped += 1;
                queue.counters.dropped_bytes += entry.message.bytes() as u64;
            }
        }
    }

    /// The message to send next, with its id. It stays queued until [`Outbox::sent`].
    #[must_use]
    pub fn next(&self) -> Option<(u64, &Message)> {
        let queued = |queue: &'_ Queue| queue.entries.iter().position(|e| !e.in_flight);
        let queue = self.queues.iter().find(|queue| queued(queue).is_some())?;
        let entry = queue.entries.iter().find(|e| !e.in_flight)?;
        Some((entry.id, &entry.message))
    }

    /// The transport took the message.
    pub fn sent(&mut self, id: u64) {
        if let Some((class, index)) = self.find(id) {
            self.queues[class].entries[index].in_flight = true;
        }
    }

    /// The broker has the message. Returns its class, or `None` for an id that is not here.
    pub fn acked(&mut self, id: u64) -> Option<Class> {
        let (class, index) = self.find(id)?;
        self.queues[class].remove(index)?;
        self.queues[class].counters.acked += 1;
        Some(CLASSES[class])
    }

    /// The broker, or the transport's size limit, refused the message for good. Gives it back.
    pub fn refused(&mut self, id: u64) -> Option<(Class, Message)> {
        let (class, index) = self.find(id)?;
        let entry = self.queues[class].remove(index)?;
        self.queues[class].counters.refused += 1;
        Some((CLASSES[class], entry.message))
    }

    /// The broker refused the message for now: it is queued again in its old place, except where a newer one with its
    /// key waits.
    pub fn postponed(&mut self, id: u64) {
        if let Some((class, index)) = self.find(id) {
            self.queues[class].again(index);
        }
    }

    /// The connection ended: what was in flight is queued again in its old order, except where a newer one with its
    /// key waits.
    pub fn disconnected(&mut self) {
        for queue in &mut self.queues {
            let mut index = 0;
            while index < queue.entries.len() {
                if !queue.entries[index].in_flight || queue.again(index) {
                    index += 1;
                }
            }
        }
    }

    /// Whether the broker has yet to answer for a message.
    #[must_use]
    pub fn is_in_flight(&self) -> bool {
        self.queues
            .iter()
            .any(|queue| queue.entries.iter().any(|entry| entry.in_flight))
    }

    /// Drops what is queued or in flight in a class, as when all of it was said anew. Returns how many.
    pub fn clear(&mut self, class: Class) -> usize {
        let queue = &mut self.queues[class as usize];
        let count = queue.entries.len();
        queue.entries.clear();
        queue.bytes = 0;
        queue.counters.replaced += count as u64;
        count
    }

    /// Messages held in a class, in flight included.
    #[must_use]
    pub fn len(&self, class: Class) -> usize {
        self.queues[class as usize].entries.len()
    }

    /// Whether nothing is held in any class.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(|queue| queue.entries.is_empty())
    }

    /// Whether a message of this class and size would be taken now.
    #[must_use]
    pub fn has_room(&self, class: Class, bytes: usize) -> bool {
        self.queues[class as usize].fits(self.bounds.0[class as usize], 1, bytes)
    }

    /// Whether so many messages of this class, of so many bytes altogether, would all be taken now.
    #[must_use]
    pub fn has_room_for(&self, class: Class, messages: usize, bytes: usize) -> bool {
        self.queues[class as usize].fits(self.bounds.0[class as usize], messages, bytes)
    }

    /// Whether they would be taken if nothing else were here.
    #[must_use]
    pub fn could_hold(&self, class: Class, messages: usize, bytes: usize) -> bool {
        let bound = self.bounds.0[class as usize];
        messages <= bound.messages && bytes <= bound.bytes
    }

    /// What happened in a class.
    #[must_use]
    pub fn counters(&self, class: Class) -> Counters {
        self.queues[class as usize].counters
    }

    fn find(&self, id: u64) -> Option<(usize, usize)> {
        self.queues.iter().enumerate().find_map(|(class, queue)| {
            queue
                .entries
                .iter()
                .position(|entry| entry.id == id)
                .map(|index| (class, index))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, bytes: usize) -> Message {
        Message {
            topic: name.to_owned(),
            payload: Bytes::from(vec![0; bytes]),
            qos: Qos::AtLeastOnce,
        }
    }

    fn outbox(messages: usize, bytes: usize) -> Outbox {
        Outbox::new(Bounds([Bound { messages, bytes }; 5]))
    }

    /// Sends everything that can be sent; the topics, in order.
    fn drain(outbox: &mut Outbox) -> Vec<String> {
        let mut topics = Vec::new();
        while let Some((id, message)) = outbox.next() {
            topics.push(message.topic.clone());
            outbox.sent(id);
        }
        topics
    }

    #[test]
    fn classes_go_in_order_and_each_class_in_its_own() {
        let mut outbox = outbox(10, 1000);
        for (class, name) in [
            (Class::Log, "log"),
            (Class::Stream, "stream"),
            (Class::Event, "event-1"),
            (Class::Control, "control-1"),
            (Class::Status, "status"),
            (Class::Event, "event-2"),
            (Class::Control, "control-2"),
        ] {
            outbox.push(class, None, message(name, 1)).unwrap();
        }
        let order = [
            "control-1",
            "control-2",
            "status",
            "event-1",
            "event-2",
            "stream",
            "log",
        ];
        assert_eq!(drain(&mut outbox), order);
        assert!(outbox.next().is_none());
        outbox.disconnected();
        assert_eq!(drain(&mut outbox), order, "the same after a lost connection");
    }

    #[test]
    fn a_full_class_gives_the_message_back_and_logs_drop_their_oldest() {
        for class in CLASSES {
            let mut outbox = outbox(3, 100);
            for n in 0..3 {
                outbox.push(class, None, message(&n.to_string(), 10)).unwrap();
            }
            let fourth = message("3", 10);
            let pushed = outbox.push(class, None, fourth.clone());
            let counters = outbox.counters(class);
            if class == Class::Log {
                assert!(pushed.is_ok());
                assert_eq!(
                    (counters.dropped, counters.dropped_bytes, counters.rejected),
                    (1, 11, 0)
                );
                assert_eq!(drain(&mut outbox), ["1", "2", "3"]);
            } else {
                assert_eq!(
                    pushed.unwrap_err(),
                    Full {
                        class,
                        message: fourth
                    }
                );
                assert_eq!((counters.dropped, counters.rejected), (0, 1));
                assert_eq!(drain(&mut outbox), ["0", "1", "2"]);
            }
        }
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut outbox = outbox(100, 100);
        outbox.push(Class::Event, None, message("e", 60)).unwrap();
        assert!(outbox.push(Class::Event, None, message("e", 39)).is_err());
        assert!(!outbox.has_room(Class::Event, 40) && outbox.has_room(Class::Event, 39));
        outbox.push(Class::Event, None, message("e", 38)).unwrap();
        // A log that can never fit drops nothing.
        outbox.push(Class::Log, None, message("l", 50)).unwrap();
        assert!(outbox.push(Class::Log, None, message("l", 100)).is_err());
        assert_eq!(outbox.counters(Class::Log).dropped, 0);
        outbox.push(Class::Log, None, message("l", 60)).unwrap();
        assert_eq!(
            (outbox.len(Class::Log), outbox.counters(Class::Log).dropped),
            (1, 1)
        );
    }

    #[test]
    fn a_log_in_flight_is_never_dropped_for_another() {
        let mut outbox = outbox(2, 100);
        let first = outbox.push(Class::Log, None, message("0", 1)).unwrap();
        outbox.sent(first);
        outbox.push(Class::Log, None, message("1", 1)).unwrap();
        outbox.push(Class::Log, None, message("2", 1)).unwrap();
        outbox.disconnected();
        assert_eq!(drain(&mut outbox), ["0", "2"]);
        assert!(
            outbox.push(Class::Log, None, message("3", 1)).is_err(),
            "all in flight"
        );
    }

    #[test]
    fn the_newest_status_of_a_key_wins_and_keeps_its_place() {
        let mut outbox = outbox(3, 100);
        outbox.push(Class::Status, Some(1), message("a-1", 10)).unwrap();
        outbox.push(Class::Status, Some(2), message("b-1", 10)).unwrap();
        outbox.push(Class::Status, Some(1), message("a-2", 20)).unwrap();
        assert_eq!(outbox.counters(Class::Status).replaced, 1);
        let (id, first) = outbox.next().unwrap();
        assert_eq!(first.topic, "a-2");
        outbox.sent(id);
        // In flight: the newer one waits behind, and the older one is not repeated.
        outbox.push(Class::Status, Some(1), message("a-3", 10)).unwrap();
        assert_eq!(outbox.len(Class::Status), 3);
        outbox.disconnected();
        assert_eq!(drain(&mut outbox), ["b-1", "a-3"]);
        assert_eq!(outbox.counters(Class::Status).replaced, 2);
        // A replacement that does not fit is given back, and the old one stays.
        assert!(outbox.push(Class::Status, Some(9), message("c", 1)).is_ok());
        assert!(outbox.push(Class::Status, Some(9), message("d", 99)).is_err());
        assert_eq!(drain(&mut outbox), ["c"]);
    }

    #[test]
    fn only_an_ack_or_a_refusal_removes() {
        let mut outbox = outbox(3, 100);
        let a = outbox.push(Class::Event, None, message("a", 10)).unwrap();
        let b = outbox.push(Class::Event, None, message("b", 10)).unwrap();
        outbox.sent(a);
        outbox.sent(b);
        outbox.disconnected();
        outbox.sent(a);
        outbox.sent(b);
        assert_eq!(outbox.acked(b), Some(Class::Event), "out of order");
        assert_eq!(outbox.acked(b), None, "twice");
        assert_eq!(outbox.acked(99), None);
        assert_eq!(outbox.refused(a), Some((Class::Event, message("a", 10))));
        assert!(outbox.is_empty() && outbox.has_room(Class::Event, 100));
        let counters = outbox.counters(Class::Event);
        assert_eq!(
            (
                counters.pushed,
                counters.acked,
                counters.refused,
                counters.repeated
            ),
            (2, 1, 1, 2)
        );
    }

    #[test]
    fn what_is_postponed_goes_again_in_its_old_place() {
        let mut outbox = outbox(5, 100);
        let a = outbox.push(Class::Status, None, message("a", 1)).unwrap();
        outbox.push(Class::Status, None, message("b", 1)).unwrap();
        let keyed = outbox.push(Class::Status, Some(1), message("c-1", 1)).unwrap();
        assert!(!outbox.is_in_flight());
        assert_eq!(drain(&mut outbox), ["a", "b", "c-1"]);
        assert!(outbox.is_in_flight());
        outbox.push(Class::Status, Some(1), message("c-2", 1)).unwrap();
        outbox.push(Class::Status, None, message("d", 1)).unwrap();
        outbox.postponed(a);
        outbox.postponed(keyed);
        outbox.postponed(99);
        assert_eq!(drain(&mut outbox), ["a", "c-2", "d"]);
        let counters = outbox.counters(Class::Status);
        assert_eq!(
            (counters.repeated, counters.replaced, counters.refused),
            (1, 1, 0)
        );
    }

    #[test]
    fn room_is_told_for_several_at_once() {
        let mut outbox = outbox(3, 100);
        outbox.push(Class::Status, None, message("a", 49)).unwrap();
        for (messages, bytes, now, ever) in [
            (2, 50, true, true),
            (3, 3, false, true),
            (2, 51, false, true),
            (4, 4, false, false),
            (1, 101, false, false),
        ] {
            let told = (
                outbox.has_room_for(Class::Status, messages, bytes),
                outbox.could_hold(Class::Status, messages, bytes),
            );
            assert_eq!(told, (now, ever), "{messages} of {bytes} bytes");
        }
    }

    #[test]
    fn clearing_a_class_leaves_the_others() {
        let mut outbox = outbox(3, 100);
        outbox.push(Class::Status, Some(1), message("a", 10)).unwrap();
        outbox.push(Class::Control, None, message("hello", 10)).unwrap();
        assert_eq!(outbox.clear(Class::Status), 1);
        assert_eq!(drain(&mut outbox), ["hello"]);
        assert!(outbox.has_room(Class::Status, 100));
    }
}
