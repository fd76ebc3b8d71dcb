//! Everything that reaches the driver from its tasks.

use skiff_core::Event;
use skiff_images::pull::PullError;
use skiff_protocol::wire::StreamEnd;

use crate::images::Cost;
use crate::images::collection::Collected;

/// One input.
#[derive(Debug)]
pub(crate) enum Input {
    /// Something for the core.
    Core(Box<Event>),
    /// A pull is over.
    Pulled {
        /// The reference as written.
        image: String,
        /// What came of it.
        result: Result<(), PullError>,
        /// What it has cost, as far as it said so.
        cost: Cost,
    },
    /// A pull goes on.
    PullProgress {
        /// The reference as written.
        image: String,
        /// How far it is.
        text: String,
    },
    /// The image store has been tidied.
    Collected(Box<Collected>),
    /// A piece of a stream.
    StreamData {
        /// The stream.
        sid: u32,
        /// Bytes before this piece.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// A stream is over.
    StreamEnd {
        /// The stream.
        sid: u32,
        /// How.
        end: StreamEnd,
    },
}
