//! What is said to nodes.
//!
//! What always holds: of one node at most one message about desired state and one of the conversation wait in the
//! outbox, so no node can take the others' room; what is due meanwhile follows when they have left.

use skiff_protocol::sha256;
use skiff_protocol::topic::{DownKind, NodeName, Topic};
use skiff_protocol::wire::{self, Down, encode_down};
use skiff_transport::outbox::{Class, Message};
use skiff_transport::{Bytes, PublishError, Qos, Transport};
use tokio::time::Instant;

use super::Task;
use crate::link::limits;
use crate::link::node::{Node, Step};

impl Task {
    pub(super) fn serve_streams(&mut self) {
        for (node, sid, down) in self.streams.service() {
            if !self.send(&node, DownKind::Stream, Some(sid), &down) {
                self.streams.fail(sid, "too much is waiting for the broker");
            }
        }
    }

    /// Sends what the node's desired state needs now: the state itself, or else objects that the node asked for.
    pub(super) fn announce(&mut self, name: &NodeName) {
        let now = Instant::now();
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        let down = match node.announce(&self.signer, now) {
            Step::Nothing => node.next_objects(),
            Step::Reserve(bound) => {
                self.writes.reserve(name, bound);
                None
            }
            Step::Send(down) => Some(down),
        };
        if let Some(down) = down {
            let ids = self.queue(name, DownKind::Spec, None, &down);
            if let Some(node) = self.nodes.get_mut(name) {
                match ids {
                    Some(ids) => {
                        node.in_flight = ids.len();
                        self.in_flight
                            .extend(ids.into_iter().map(|id| (id, name.clone())));
                    }
                    None => node.unsent(now),
                }
            }
        }
        self.arm(name);
    }

    /// A message has left the outbox; if it was the last frame about a node's desired state, the next may follow.
    pub(super) fn left(&mut self, id: u64) {
        let Some(name) = self.in_flight.remove(&id) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(&name) {
            node.in_flight = node.in_flight.saturating_sub(1);
        }
        self.announce(&name);
    }

    /// Whether there was room for the message.
    pub(super) fn send(&mut self, name: &NodeName, kind: DownKind, sid: Option<u32>, down: &Down) -> bool {
        self.queue(name, kind, sid, down).is_some()
    }

    /// Puts all of a message's frames into the outbox, or none.
    fn queue(&mut self, name: &NodeName, kind: DownKind, sid: Option<u32>, down: &Down) -> Option<Vec<u64>> {
        let class = if kind == DownKind::Stream {
            Class::Stream
        } else {
            Class::Control
        };
        let topic = Topic::Down {
            node: name.clone(),
            kind,
            sid,
        }
        .to_string();
        self.message_id = self.message_id.wrapping_add(1);
        let version = self.nodes.get(name).map_or(wire::OLDEST, Node::speaks);
        let frames = match wire::frames(version, &encode_down(down), self.message_id) {
            Ok(frames) => frames,
            Err(error) => {
                tracing::error!(node = %name, %error, "a message to the node is too long");
                return None;
            }
        };
        let bytes = frames.iter().map(|frame| frame.len() + topic.len()).sum();
        let most = if class == Class::Stream {
            limits::STREAM_MESSAGES
        } else {
            limits::CONTROL_MESSAGES
        };
        if self.outbox.len(class) + frames.len() > most || !self.outbox.has_room(class, bytes) {
            return None;
        }
        // Of the conversation only the last word counts.
        let key = (kind == DownKind::Sync).then(|| key_of(name));
        let push = |payload: Vec<u8>| {
            let payload = Bytes::from(payload);
            let message = Message {
                topic: topic.clone(),
                payload,
                qos: Qos::AtLeastOnce,
            };
            self.outbox.push(class, key, message).ok()
        };
        frames.into_iter().map(push).collect()
    }

    /// Hands to the client what it takes.
    pub(super) fn pump(&mut self) {
        while self.connected
            && self.outbox.len(Class::Control) < limits::CONTROL_MESSAGES / 2
            && let Some(name) = self.to_ask.pop_first()
        {
            let until = Instant::now() + self.grace;
            if let Some(node) = self.nodes.get_mut(&name) {
                let question = node.ask(until);
                self.send(&name, DownKind::Sync, None, &question);
                self.arm(&name);
            }
        }
        while let Some((id, message)) = self.outbox.next() {
            match self
                .client
                .try_publish(id, &message.topic, message.payload.clone(), message.qos)
            {
                Ok(()) => self.outbox.sent(id),
                Err(PublishError::Offline(_) | PublishError::Full(_)) => return,
                Err(error) => {
                    tracing::warn!(%error, "link: a message cannot be sent through this broker");
                    self.outbox.refused(id);
                    self.left(id);
                }
            }
        }
    }
}

/// A key of the outbox for what is said to a node; that two nodes share one is as likely as guessing a key.
fn key_of(name: &NodeName) -> u64 {
    let digest = sha256(name.as_str().as_bytes());
    let mut key = [0; 8];
    key.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(key)
}
