//! The messages between server and node, and how they lie in MQTT payloads. `SPEC.md` says it in prose.
//!
//! Always holds: the first byte of every payload is the version; what does not decode whole, with nothing left
//! over, is an [`Unreadable`] and nothing else.

pub mod desired;
pub mod feature;
mod frame;
mod message;
pub mod spec;
pub mod status;

pub use frame::{Assembler, Frame, OLDEST, Unreadable, VERSION, common, frames};
pub use message::{
    Down, Event, Hello, LogRequest, NodeCondition, NodeImage, NodeInfo, StreamEnd, StreamOpen, Up,
    decode_down, decode_up, encode_down, encode_up,
};
