//! From MQTT messages to the nodes' words.
//!
//! What always holds: whatever is not a word of ours, from the node whose topic it came on, is counted, logged once
//! for each kind of wrong, and changes nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use skiff_protocol::topic::{NodeName, Topic, UpKind};
use skiff_protocol::wire::{Assembler, Unreadable, Up, decode_up};

macro_rules! wrongs {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// What can be wrong with a message from a node.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Wrong { $($(#[$doc])* $variant,)* }

        impl Wrong {
            /// All of them, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// In words.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

wrongs! {
    /// The topic is outside the grammar, or not one that nodes speak on.
    Topic = "topic is not one of ours",
    /// The node has not joined the fleet.
    Stranger = "node has not joined",
    /// More nodes than the server keeps state of.
    TooManyNodes = "too many nodes",
    /// A wire version that we do not speak.
    Version = "wire version",
    /// A frame or message that is cut short, or goes on after its end.
    Malformed = "truncated or malformed",
    /// A frame or message past its bound.
    TooLong = "past the bound",
    /// The message came on a topic of another kind.
    Kind = "message does not belong on its topic",
    /// A stream's message came on another stream's topic, or from a node that the stream is not with.
    Stream = "stream is not this node's",
    /// A stream's piece does not follow the one before, or is past the window.
    Offset = "stream piece out of place",
    /// The Pod is bound to another node.
    NotItsPod = "pod is another node's",
    /// A static Pod that the server did not ask for, or that is too long.
    NotAsked = "static pod was not asked for",
    /// The message is of an agent that has since been started anew.
    Epoch = "epoch is over",
    /// A generation that no server can have counted up to.
    Generation = "generation is not plausible",
    /// More statuses or events than one message may have.
    TooMany = "too many entries in one message",
    /// More events than a node may tell of in this time; the rest are left out.
    TooFast = "events too fast",
}

/// How often each kind of wrong was seen.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Wrong::ALL.len()]);

impl Counters {
    /// How often since the start.
    #[must_use]
    pub fn get(&self, wrong: Wrong) -> u64 {
        self.0[wrong as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, wrong: Wrong, topic: &str, detail: &dyn std::fmt::Display) {
        if self.0[wrong as usize].fetch_add(1, Ordering::Relaxed) == 0 {
            let topic: String = topic.chars().take(128).collect();
            tracing::warn!(topic, %detail, "message ignored: {}; more of the kind are only counted", wrong.as_str());
        }
    }
}

/// Takes messages apart, and puts the large ones together.
#[derive(Default)]
pub(crate) struct Ingest {
    assemblers: BTreeMap<NodeName, Assembler>,
}

impl Ingest {
    /// The node's word that the message carries or completes.
    pub(crate) fn take(
        &mut self,
        topic: &str,
        payload: &[u8],
        known: impl Fn(&NodeName) -> Result<(), Wrong>,
        counters: &Counters,
    ) -> Option<(NodeName, Up)> {
        let (node, kind, sid) = match Topic::parse(topic) {
            Ok(Topic::Up { node, kind, sid }) => (node, kind, sid),
            Ok(Topic::Down { .. }) => {
                counters.count(Wrong::Topic, topic, &"a topic towards a node");
                return None;
            }
            Err(error) => {
                counters.count(Wrong::Topic, topic, &error);
                return None;
            }
        };
        if let Err(wrong) = known(&node) {
            counters.count(wrong, topic, &node);
            return None;
        }
        let assembler = self.assemblers.entry(node.clone()).or_default();
        let up = match assembler
            .push(payload)
            .and_then(|message| message.as_deref().map(decode_up).transpose())
        {
            Ok(up) => up?,
            Err(error) => {
                counters.count(wrong(error), topic, &error);
                return None;
            }
        };
        if let Err(wrong) = belongs(&up, kind, sid) {
            counters.count(wrong, topic, &"wrong kind or stream");
            return None;
        }
        Some((node, up))
    }

    /// Drops what a node began to send.
    pub(crate) fn forget(&mut self, node: &NodeName) {
        self.assemblers.remove(node);
    }
}

fn wrong(error: Unreadable) -> Wrong {
    match error {
        Unreadable::Version(_) => Wrong::Version,
        Unreadable::Malformed => Wrong::Malformed,
        Unreadable::TooLong(_) => Wrong::TooLong,
    }
}

fn belongs(up: &Up, kind: UpKind, sid: Option<u32>) -> Result<(), Wrong> {
    let wanted = match up {
        Up::Hello(_) | Up::Need { .. } | Up::Applied { .. } | Up::Statics { .. } | Up::StaticPod { .. } => {
            UpKind::Hello
        }
        Up::Status { .. } | Up::Node(_) | Up::Images { .. } => UpKind::Status,
        Up::Events { .. } => UpKind::Event,
        Up::StreamData { sid: said, .. } | Up::StreamEnd { sid: said, .. } => {
            if kind == UpKind::Stream && sid != Some(*said) {
                return Err(Wrong::Stream);
            }
            UpKind::Stream
        }
        Up::Bye { .. } => UpKind::Bye,
    };
    if kind == wanted { Ok(()) } else { Err(Wrong::Kind) }
}

#[cfg(test)]
mod tests {
    use skiff_protocol::limits;
    use skiff_protocol::wire::{OLDEST, VERSION, encode_up, frames};

    use super::*;

    #[test]
    fn rubbish_is_counted_and_nothing_else() {
        let node = NodeName::parse("rover-7").unwrap();
        let topic = |kind: &str| format!("skiff/u/{}/rover-7/{kind}", node.shard());
        let bye = frames(OLDEST, &encode_up(&Up::Bye { epoch: 3 }), 1)
            .unwrap()
            .remove(0);
        let data = Up::StreamData {
            sid: 4,
            offset: 0,
            bytes: vec![1],
        };
        let data = frames(OLDEST, &encode_up(&data), 1).unwrap().remove(0);
        let check = |topic: &str, payload: &[u8], wrong: Option<Wrong>| {
            let counters = Counters::default();
            let known = |name: &NodeName| {
                if name.as_str() == "rover-7" {
                    Ok(())
                } else {
                    Err(Wrong::Stranger)
                }
            };
            let got = Ingest::default().take(topic, payload, known, &counters);
            assert_eq!(got.is_some(), wrong.is_none(), "{topic} {got:?}");
            for each in Wrong::ALL {
                assert_eq!(
                    counters.get(*each),
                    u64::from(Some(*each) == wrong),
                    "{topic} {each:?}"
                );
            }
        };
        check(&topic("bye"), &bye, None);
        check(&topic("stream/4"), &data, None);
        check(&topic("stream/5"), &data, Some(Wrong::Stream));
        check(&topic("stream"), &data, Some(Wrong::Stream));
        check(&topic("status"), &data, Some(Wrong::Kind));
        check(&topic("status"), &bye, Some(Wrong::Kind));
        check(&topic("nonsense"), &bye, Some(Wrong::Topic));
        check("skiff/d/rover-7/spec", &bye, Some(Wrong::Topic));
        let stranger = NodeName::parse("rover-8").unwrap();
        check(
            &format!("skiff/u/{}/rover-8/bye", stranger.shard()),
            &bye,
            Some(Wrong::Stranger),
        );
        check(&topic("bye"), &[], Some(Wrong::Malformed));
        check(&topic("bye"), &bye[..bye.len() - 1], Some(Wrong::Malformed));
        check(&topic("bye"), &[&bye[..], &[0]].concat(), Some(Wrong::Malformed));
        check(&topic("bye"), &[9, 0, 1], Some(Wrong::Version));
        check(
            &topic("bye"),
            &vec![VERSION; limits::FRAME + 1],
            Some(Wrong::TooLong),
        );
    }
}
