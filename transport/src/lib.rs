//! MQTT 3.1.1 and 5 behind one [`Transport`] trait, for the node and for the server, and the [`outbox`] that decides
//! what goes next.
//!
//! Always holds: nothing here is unbounded, nothing retries a message by itself (un-acked messages are the outbox's
//! to repeat), and the MQTT library sees only packets whose size and number were checked first.
//!
//! What the library (rumqttc) does wrong when left alone, and what this crate does about it:
//!
//! | trap | here |
//! | --- | --- |
//! | a stalled write hangs `poll()` for ever | every poll has a deadline; past it the event loop is dropped |
//! | `publish().await` in the polling task deadlocks | only `try_publish`, behind a window of our own |
//! | a packet past the broker's limit reconnects for ever | sizes are checked before; see also below |
//! | an incoming packet past our limit is redelivered for ever | the next session starts clean |
//! | packet ids collide when acks come out of order, and the loop stops | the next id is predicted; in use means full |
//! | acks wait while the publish window is full | our window is one smaller than the library's |
//! | the v5 client preallocates 16 MB | its window is capped |
//! | state of a dead connection leaks into the next one | each connection has a new event loop |

mod api;
mod backoff;
mod client;
mod driver;
mod key;
mod options;
pub mod outbox;
pub mod tls;
mod v4;
mod v5;

pub use api::{AckToken, Event, PublishError, Transport, Why};
pub use bytes::Bytes;
pub use client::Client;
pub use key::{KeyError, NodeKey};
pub use options::{BrokerUrl, LastWill, Options, OptionsError, Protocol, ProtocolChoice, Qos};
