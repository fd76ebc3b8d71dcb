//! One node as the server sees it: whether it is there, and whether it has what it shall have.
//!
//! ```text
//!                 hello                          hello
//!   asked ─────────────────▶ here ◀───────────────────────── away
//!     │                       │  bye; a question unanswered    ▲
//!     └───────────────────────┴────────────────────────────────┘
//!       no hello in time
//!
//!   here, in step:     its index is the announced one, or will be once what was sent has arrived: changes go as deltas
//!   here, out of step: the whole index goes
//! ```
//!
//! Pure: `now` is an argument, and what is to be sent or stored is the answer.
//!
//! What always holds: a generation is used once, is greater than every one the node has told of, and is reserved in
//! the store before it is sent.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use skiff_protocol::Digest;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::{Change, Desired, Index, delta, signed_bytes};
use skiff_protocol::wire::spec::ObjectKey;
use skiff_protocol::wire::{self, Down, Hello};
use tokio::time::Instant;

use super::compile::NodeState;
use super::ingest::Wrong;
use super::limits;
use super::nodes::Liveness;
use super::statics::Statics;

/// Signs with the fleet's key.
pub(crate) trait Sign: Send + Sync {
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contact {
    Asked,
    Here,
    Away,
}

#[derive(Debug)]
struct Announced {
    generation: u64,
    digest: Digest,
    index: Index,
}

/// What `announce` asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing is to be done, or something is under way already.
    Nothing,
    /// Generations up to this one must be reserved first; then [`Node::reserved`].
    Reserve(u64),
    /// To be sent.
    Send(Down),
}

/// What a status message means by its number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The next one.
    Next,
    /// It is good, and something before it was lost.
    Gap,
    /// It was there before, or is of an agent that is no more.
    Stale,
}

/// What is due when a node did not do in time what it was asked for.
#[derive(Debug, PartialEq)]
pub(crate) enum Late {
    /// It did not say hello: nothing is known of it.
    Gone,
    /// It did not apply what was sent, or something it sent was lost: it is asked to say hello.
    Ask(Down),
    /// Generations can be asked for again: [`Node::announce`] comes after it.
    Announce,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Node {
    name: NodeName,
    contact: Contact,
    /// The wire version that it is told things in.
    speaks: u8,
    epoch: u64,
    /// The next status message of the epoch; nothing while any will do.
    sequence: Option<u64>,
    resync_asked: bool,
    state: NodeState,
    digest: Digest,
    announced: Option<Announced>,
    in_step: bool,
    applied: Option<(u64, Digest)>,
    /// The highest generation that may be anywhere.
    last: u64,
    /// The highest generation that this process has sent.
    sent: u64,
    reserved: u64,
    reserving: bool,
    /// The store failed to reserve generations: when it is asked again.
    reserve_at: Option<Instant>,
    wanted: BTreeSet<ObjectKey>,
    wanted_for: u64,
    deadline: Option<Instant>,
    patience: Duration,
    /// When the link's task looks at the deadline next.
    pub(crate) armed: Option<Instant>,
    /// Frames about its desired state that the broker has not acked.
    pub(crate) in_flight: usize,
    /// The node's own address, for `hostIP`.
    pub(crate) address: Option<IpAddr>,
    /// Pods whose refusal has been reported.
    pub(crate) refused: BTreeSet<Uid>,
    /// Events that it may still tell of, and when that was counted.
    events: (u32, Option<Instant>),
    /// When its Lease was renewed last.
    renewed: Option<Instant>,
    /// What it told of its static Pods.
    pub(crate) statics: Statics,
}

impl Node {
    /// A node of which nothing is known but the generations reserved for it.
    pub(crate) fn new(name: &NodeName, reserved: u64) -> Self {
        Self {
            name: name.clone(),
            contact: Contact::Away,
            speaks: wire::OLDEST,
            epoch: 0,
            sequence: None,
            resync_asked: false,
            digest: Index::default().digest(),
            state: NodeState::default(),
            announced: None,
            in_step: false,
            applied: None,
            // Those that an earlier process reserved may have been sent.
            last: reserved,
            sent: 0,
            reserved,
            reserving: false,
            reserve_at: None,
            wanted: BTreeSet::new(),
            wanted_for: 0,
            deadline: None,
            patience: limits::RETRY,
            armed: None,
            in_flight: 0,
            address: None,
            refused: BTreeSet::new(),
            events: (limits::EVENT_BURST, None),
            renewed: None,
            statics: Statics::default(),
        }
    }

    /// Whether its Lease is due, now that something was heard of it; it counts as renewed then.
    pub(crate) fn renews(&mut self, now: Instant) -> bool {
        let due = self.contact == Contact::Here
            && self
                .renewed
                .is_none_or(|at| now.duration_since(at) >= limits::LEASE);
        if due {
            self.renewed = Some(now);
        }
        due
    }

    /// The index that it was told last, or holds; nothing while neither is known.
    pub(crate) fn announced(&self) -> Option<&Index> {
        self.announced.as_ref().map(|announced| &announced.index)
    }

    /// How many of `wanted` events it may tell of now.
    pub(crate) fn may_tell(&mut self, wanted: usize, now: Instant) -> usize {
        let (left, since) = self.events;
        let since = since.unwrap_or(now);
        let earned = (now - since).as_secs().saturating_mul(limits::EVENT_RATE.into());
        let left = u64::from(left)
            .saturating_add(earned)
            .min(limits::EVENT_BURST.into());
        let allowed = left.min(wanted as u64);
        // Whole seconds are spent; what is left of one counts next time.
        let counted = since + Duration::from_secs((now - since).as_secs());
        self.events = ((left - allowed) as u32, Some(counted));
        allowed as usize
    }

    pub(crate) fn is_here(&self) -> bool {
        self.contact == Contact::Here
    }

    /// The wire version that it is told things in.
    pub(crate) fn speaks(&self) -> u8 {
        self.speaks
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether the server waits for a hello.
    pub(crate) fn is_asked(&self) -> bool {
        self.resync_asked
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> &NodeState {
        &self.state
    }

    /// The generation and digest that the node has confirmed.
    #[cfg(test)]
    pub(crate) fn applied(&self) -> Option<(u64, Digest)> {
        self.applied
    }

    /// When [`Node::late`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What the node shall have from now on.
    pub(crate) fn set_state(&mut self, state: NodeState) {
        self.digest = state.index.digest();
        self.state = state;
        self.wanted.retain(|key| self.state.objects.contains_key(key));
    }

    /// The server asks the node to say hello, and waits until `until`.
    pub(crate) fn ask(&mut self, until: Instant) -> Down {
        self.contact = Contact::Asked;
        // The agent that answers may be older than the one before.
        self.speaks = wire::OLDEST;
        self.resync_asked = true;
        self.deadline = Some(until);
        Down::Resync
    }

    /// The node said hello; what of it is Ready, and what is to be answered. [`Node::announce`] comes after it.
    ///
    /// # Errors
    /// When the hello is of an agent that is no more, or tells of a generation that nobody can have counted up to:
    /// believed, it would leave none for what the node shall have.
    pub(crate) fn hello(&mut self, hello: &Hello) -> Result<(Liveness, Option<Down>), Wrong> {
        if hello.generation > limits::GENERATION {
            return Err(Wrong::Generation);
        }
        // An epoch goes back only with the journal that kept it, and then the generation is gone too.
        if hello.epoch < self.epoch && hello.generation != 0 {
            return Err(Wrong::Epoch);
        }
        if hello.epoch != self.epoch {
            self.sequence = (self.epoch != 0 && hello.epoch > self.epoch).then_some(1);
            self.epoch = hello.epoch;
        }
        self.resync_asked = false;
        self.wanted.clear();
        self.deadline = None;
        self.in_step = false;
        self.announced = None;
        self.applied = Some((hello.generation, hello.desired_digest));
        self.last = self.last.max(hello.generation);
        let Some(version) = wire::common(hello.versions) else {
            self.contact = Contact::Away;
            return Ok((
                Liveness::Incompatible {
                    versions: hello.versions,
                },
                None,
            ));
        };
        self.speaks = version;
        self.contact = Contact::Here;
        // Something greater that was sent may still be on its way and would take the node out of step.
        if hello.desired_digest != self.digest || hello.generation < self.sent {
            return Ok((Liveness::Ready, None));
        }
        let generation = hello.generation;
        self.announced = Some(Announced {
            generation,
            digest: self.digest,
            index: self.state.index.clone(),
        });
        self.in_step = true;
        self.patience = limits::RETRY;
        Ok((Liveness::Ready, Some(Down::InStep { generation })))
    }

    /// The node's connection is over; `false` when that is an old story. It is asked to say hello nevertheless, for
    /// word of the end of a former connection can overtake the hello of the next.
    pub(crate) fn bye(&mut self, epoch: u64) -> bool {
        if epoch < self.epoch || self.contact == Contact::Away {
            return false;
        }
        self.contact = Contact::Away;
        self.in_step = false;
        self.deadline = None;
        self.wanted.clear();
        true
    }

    /// What a status message is worth, and the question to the node when one before it was lost.
    pub(crate) fn order(&mut self, epoch: u64, sequence: u64, now: Instant) -> (Order, Option<Down>) {
        if epoch < self.epoch {
            return (Order::Stale, None);
        }
        let news = epoch > self.epoch;
        if news {
            // Its hello was lost, or comes later.
            self.epoch = epoch;
            self.sequence = Some(1);
        }
        let expected = self.sequence.unwrap_or(sequence);
        if sequence < expected {
            return (Order::Stale, None);
        }
        self.sequence = Some(sequence.saturating_add(1));
        let order = if sequence == expected {
            Order::Next
        } else {
            Order::Gap
        };
        if (order == Order::Next && !news) || self.resync_asked {
            return (order, None);
        }
        self.resync_asked = true;
        let due = now + self.patience;
        self.deadline = Some(self.deadline.map_or(due, |at| at.min(due)));
        (order, Some(Down::Resync))
    }

    /// The node has applied a desired state. [`Node::announce`] comes after it.
    ///
    /// # Errors
    /// When nobody can have counted up to that generation.
    pub(crate) fn applied_now(&mut self, generation: u64, digest: Digest) -> Result<(), Wrong> {
        if generation > limits::GENERATION {
            return Err(Wrong::Generation);
        }
        self.applied = Some((generation, digest));
        let Some(announced) = &self.announced else {
            return Ok(());
        };
        if (generation, digest) == (announced.generation, announced.digest) {
            self.patience = limits::RETRY;
            if self.contact == Contact::Here && !self.resync_asked {
                self.deadline = None;
            }
        } else if generation >= announced.generation {
            // It holds something that this process did not announce last.
            self.last = self.last.max(generation);
            self.in_step = false;
        }
        Ok(())
    }

    /// Whether it has, durably, all that it shall have now.
    pub(crate) fn has_it_all(&self) -> bool {
        self.applied.is_some_and(|(_, digest)| digest == self.digest)
    }

    /// What has to happen for the node to get what it shall have.
    pub(crate) fn announce(&mut self, sign: &dyn Sign, now: Instant) -> Step {
        let same = self.announced.as_ref().is_some_and(|it| it.digest == self.digest);
        if self.contact != Contact::Here || self.reserving || self.in_flight > 0 || (self.in_step && same) {
            return Step::Nothing;
        }
        let Some(generation) = self.last.checked_add(1) else {
            return Step::Nothing;
        };
        if generation > self.reserved {
            if let Some(at) = self.reserve_at.filter(|at| *at > now) {
                self.deadline = Some(self.deadline.map_or(at, |due| due.min(at)));
                return Step::Nothing;
            }
            self.reserving = true;
            return Step::Reserve(generation.saturating_add(limits::GENERATION_BLOCK - 1));
        }
        let signature = sign
            .sign(&signed_bytes(&self.name, generation, &self.digest))
            .to_vec();
        let (change, objects) = match &self.announced {
            Some(base) if self.in_step => {
                let change = delta(base.generation, &base.index, &self.state.index);
                let objects = self.inline(&change);
                (change, objects)
            }
            _ => {
                let change = Change::Full(self.state.index.clone());
                // A node with nothing will ask for everything; a little of it saves the question.
                let nothing = self.applied.is_none_or(|(generation, _)| generation == 0);
                let objects = if nothing { self.inline(&change) } else { Vec::new() };
                (change, objects)
            }
        };
        self.last = generation;
        self.sent = generation;
        self.in_step = true;
        self.announced = Some(Announced {
            generation,
            digest: self.digest,
            index: self.state.index.clone(),
        });
        let due = now + self.patience;
        self.deadline = Some(self.deadline.map_or(due, |at| at.min(due)));
        Step::Send(Down::Desired(Desired {
            generation,
            signature,
            change,
            objects,
        }))
    }

    /// Generations up to `bound` are reserved in the store, or could not be: then the store is given time.
    /// [`Node::announce`] comes after it.
    pub(crate) fn reserved(&mut self, bound: Option<u64>, now: Instant) {
        self.reserving = false;
        self.reserve_at = match bound {
            Some(bound) => {
                self.reserved = self.reserved.max(bound);
                None
            }
            None => Some(now + limits::RETRY),
        };
    }

    /// What was announced last could not be sent.
    pub(crate) fn unsent(&mut self, now: Instant) {
        self.in_step = false;
        self.deadline = Some(now + self.patience);
    }

    fn inline(&self, change: &Change) -> Vec<Vec<u8>> {
        let keys: Vec<&ObjectKey> = match change {
            Change::Full(index) => index.0.keys().collect(),
            Change::Delta { put, .. } => put.iter().map(|(key, _)| key).collect(),
        };
        let mut room = limits::INLINE;
        let objects = keys.iter().filter_map(|key| self.state.objects.get(*key));
        let fitting = objects.filter(|it| {
            let fits = it.bytes.len() <= room;
            room -= if fits { it.bytes.len() } else { 0 };
            fits
        });
        fitting.map(|it| it.bytes.clone()).collect()
    }

    /// The node asks for objects; what it asked for before is what it asks for again, or has.
    pub(crate) fn need(&mut self, generation: u64, keys: Vec<ObjectKey>) {
        self.wanted_for = generation;
        let known = keys
            .into_iter()
            .filter(|key| self.state.objects.contains_key(key));
        self.wanted = known.collect();
    }

    /// The first of the objects that the node asked for, as many as one message carries: it asks again for the rest.
    /// Nothing while others are on their way.
    pub(crate) fn next_objects(&mut self) -> Option<Down> {
        if self.in_flight > 0 || self.contact != Contact::Here {
            return None;
        }
        let (mut objects, mut bytes) = (Vec::new(), 0);
        for key in std::mem::take(&mut self.wanted) {
            let Some(object) = self.state.objects.get(&key) else {
                continue;
            };
            if !objects.is_empty() && bytes + object.bytes.len() > limits::OBJECTS_MESSAGE {
                break;
            }
            bytes += object.bytes.len();
            objects.push(object.bytes.clone());
        }
        (!objects.is_empty()).then_some(Down::Objects {
            generation: self.wanted_for,
            objects,
        })
    }

    /// The deadline has passed. `grace` is how long the node has to say hello when it is asked.
    pub(crate) fn late(&mut self, now: Instant, grace: Duration) -> Late {
        self.deadline = None;
        if self.contact == Contact::Here && self.reserve_at.is_some_and(|at| at <= now) {
            self.reserve_at = None;
            return Late::Announce;
        }
        if self.contact == Contact::Here {
            self.patience = (self.patience * 2).min(limits::RETRY_CAP);
            return Late::Ask(self.ask(now + grace));
        }
        self.contact = Contact::Away;
        self.in_step = false;
        Late::Gone
    }
}

#[cfg(test)]
mod tests;
