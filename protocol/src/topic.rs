//! The MQTT topic grammar. Both directions, no wildcards in a parsed topic.
//!
//! ```text
//! skiff/d/<node>/<kind>[/<sid>]           server to node    kind: spec, sync, stream, image
//! skiff/u/<shard>/<node>/<kind>[/<sid>]   node to server    kind: hello, bye, status, event, log, stream, image
//! ```
//!
//! Always holds: at most five slashes, `shard` = FNV-1a(node) mod 64, and the node's name is a valid one.

use alloc::string::{String, ToString};
use core::fmt;
use core::fmt::Write as _;

use crate::limits;

/// A node's name: `[a-z0-9-]{1,23}`, no dash at either end. It is the MQTT client id and the certificate's CN.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(heapless::String<{ limits::NODE_NAME }>);

impl NodeName {
    /// Checks `name`.
    ///
    /// # Errors
    /// When it is empty, longer than 23 bytes, or has a character outside `[a-z0-9-]`.
    pub fn parse(name: &str) -> Result<Self, BadNodeName> {
        let bad = || BadNodeName(name.chars().take(64).collect());
        let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || !name.chars().all(legal) || name.starts_with('-') || name.ends_with('-') {
            return Err(bad());
        }
        heapless::String::try_from(name).map(Self).map_err(|_| bad())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shard that this node's upward topics carry.
    #[must_use]
    pub fn shard(&self) -> u16 {
        let mut hash: u32 = 0x811c_9dc5;
        for byte in self.0.bytes() {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        (hash % u32::from(limits::SHARDS)) as u16
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node name outside `[a-z0-9-]{1,23}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadNodeName(String);

impl fmt::Display for BadNodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node name {:?}: must be 1 to {} characters of a-z, 0-9 and '-', with no '-' at either end",
            self.0,
            limits::NODE_NAME
        )
    }
}

impl core::error::Error for BadNodeName {}

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// The topic's word for this kind.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
            fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

kinds! {
    /// What a message to a node is about.
    DownKind {
        /// Desired state.
        Spec = "spec",
        /// The conversation about who has what.
        Sync = "sync",
        /// A stream's frames; the sid follows.
        Stream = "stream",
        /// Image blobs.
        Image = "image",
    }
}

kinds! {
    /// What a message from a node is about.
    UpKind {
        /// The conversation about who has what.
        Hello = "hello",
        /// The last will: the broker says that the node's connection broke.
        Bye = "bye",
        /// Pod and node status.
        Status = "status",
        /// Kubernetes events.
        Event = "event",
        /// Log records shipped unasked.
        Log = "log",
        /// A stream's frames; the sid follows.
        Stream = "stream",
        /// Requests for image blobs.
        Image = "image",
    }
}

/// A parsed topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Server to node.
    Down {
        /// The node addressed.
        node: NodeName,
        /// What about.
        kind: DownKind,
        /// The stream, for [`DownKind::Stream`].
        sid: Option<u32>,
    },
    /// Node to server.
    Up {
        /// The node that speaks.
        node: NodeName,
        /// What about.
        kind: UpKind,
        /// The stream, for [`UpKind::Stream`].
        sid: Option<u32>,
    },
}

impl Topic {
    /// A topic without a stream id, towards `node`.
    #[must_use]
    pub fn down(node: &NodeName, kind: DownKind) -> Self {
        Self::Down {
            node: node.clone(),
            kind,
            sid: None,
        }
    }

    /// A topic without a stream id, from `node`.
    #[must_use]
    pub fn up(node: &NodeName, kind: UpKind) -> Self {
        Self::Up {
            node: node.clone(),
            kind,
            sid: None,
        }
    }

    /// Parses a topic name.
    ///
    /// # Errors
    /// When it does not follow the grammar at the head of this file, or its shard is not its node's.
    pub fn parse(text: &str) -> Result<Self, BadTopic> {
        let bad = || BadTopic(text.chars().take(limits::TOPIC).collect());
        let mut parts = text.split('/');
        if text.len() > limits::TOPIC || parts.next() != Some("skiff") {
            return Err(bad());
        }
        let direction = parts.next().ok_or_else(bad)?;
        let shard = match direction {
            "d" => None,
            "u" => Some(parts.next().ok_or_else(bad)?),
            _ => return Err(bad()),
        };
        let node = NodeName::parse(parts.next().ok_or_else(bad)?).map_err(|_| bad())?;
        let kind = parts.next().ok_or_else(bad)?;
        let sid = match parts.next() {
            Some(sid) if kind == "stream" => Some(sid.parse().map_err(|_| bad())?),
            Some(_) => return Err(bad()),
            None => None,
        };
        if parts.next().is_some() {
            return Err(bad());
        }
        match shard {
            None => Ok(Self::Down {
                node,
                kind: DownKind::parse(kind).ok_or_else(bad)?,
                sid,
            }),
            Some(shard) if shard == node.shard().to_string() => Ok(Self::Up {
                node,
                kind: UpKind::parse(kind).ok_or_else(bad)?,
                sid,
            }),
            Some(_) => Err(bad()),
        }
    }

    /// The filter by which a node hears all that is meant for it.
    #[must_use]
    pub fn node_filter(node: &NodeName) -> String {
        alloc::format!("skiff/d/{node}/#")
    }

    /// The filter by which a server hears every node.
    #[must_use]
    pub fn server_filter() -> &'static str {
        "skiff/u/#"
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sid = match self {
            Self::Down { node, kind, sid } => {
                write!(f, "skiff/d/{node}/{}", kind.as_str())?;
                sid
            }
            Self::Up { node, kind, sid } => {
                write!(f, "skiff/u/{}/{node}/{}", node.shard(), kind.as_str())?;
                sid
            }
        };
        if let Some(sid) = sid {
            f.write_char('/')?;
            fmt::Display::fmt(sid, f)?;
        }
        Ok(())
    }
}

/// A topic outside the grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadTopic(pub String);

impl fmt::Display for BadTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "topic {:?} is not one of ours", self.0)
    }
}

impl core::error::Error for BadTopic {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_round_trip() {
        let node = NodeName::parse("rover-7").unwrap();
        let shard = node.shard();
        for text in [
            "skiff/d/rover-7/spec".to_string(),
            "skiff/d/rover-7/stream/12".to_string(),
            alloc::format!("skiff/u/{shard}/rover-7/hello"),
            alloc::format!("skiff/u/{shard}/rover-7/stream/4294967295"),
        ] {
            assert_eq!(Topic::parse(&text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn topics_outside_the_grammar_are_refused() {
        let wrong = (NodeName::parse("rover-7").unwrap().shard() + 1) % limits::SHARDS;
        for text in [
            "",
            "skiff",
            "skiff/d/rover-7",
            "skiff/d/Rover/spec",
            "skiff/d/rover-7/hello",
            "skiff/d/rover-7/spec/1",
            "skiff/d/rover-7/stream/x",
            "skiff/d/rover-7/stream/1/2",
            "skiff/d/+/spec",
            "other/d/rover-7/spec",
            &alloc::format!("skiff/u/{wrong}/rover-7/hello"),
        ] {
            assert!(Topic::parse(text).is_err(), "{text}");
        }
    }
}
