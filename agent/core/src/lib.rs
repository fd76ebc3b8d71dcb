//! The node's state machine: what shall run, what does run, and what to do next.
//!
//! `handle(now, event)` is the only way in, its effects the only way out. Restart, reboot and reconnect have no path
//! of their own: the caller recovers the journal, observes what runs, and the same reconciliation follows.
//!
//! Always holds:
//! - Pure: no clock, no randomness, no files, no threads. The same events give the same effects.
//! - Durable before acted upon: no effect follows from a desired state whose records are not durable.
//! - A container that runs as desired is never signalled.
//! - Every collection is bounded by [`skiff_protocol::limits`]; what is dropped is counted in [`Counters`].

mod admission;
mod backoff;
mod containers;
mod desired;
mod effect;
mod event;
mod eviction;
mod hooks;
mod init;
mod ipam;
mod machine;
mod out;
mod pods;
mod probes;
mod record;
mod requests;
mod resize;
mod state;
mod statics;
mod status;
mod stop;
mod volumes;

pub use effect::{ContainerRef, Effect, Refusal, Urgency};
pub use event::{
    Event, Exit, HookKind, ImageError, ObservedContainer, ObservedPhase, ObservedPod, Pressure, ProbeKind,
    ProbeOutcome, Probed, StartError, Usage,
};
pub use machine::{Config, Core, Counters, Now};
pub use record::{ContainerRecord, Record, Recovered, StaticPod};
pub use statics::Manifests;
