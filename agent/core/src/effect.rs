//! What the core wants done. Executors hold no choices: each effect names all that it needs.

use std::net::Ipv4Addr;

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::Up;
use skiff_protocol::wire::desired::Refused;
use skiff_protocol::wire::spec::PullPolicy;

use crate::event::{HookKind, ProbeKind, Probed};
use crate::record::Record;

/// One container of one Pod, at one attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerRef {
    /// The Pod.
    pub pod: Uid,
    /// The container's name.
    pub name: String,
    /// Restarts before this start. Answers to an older attempt are ignored.
    pub attempt: u32,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make these records durable, all or none, then say [`crate::Event::Durable`].
    Append {
        /// Names the answer.
        token: u64,
        /// In order.
        records: Vec<Record>,
    },
    /// Send to the server. Statuses and events are not sent this way: see [`crate::Core::next_report`].
    Send(Box<Up>),
    /// Have the image in the store.
    EnsureImage {
        /// For which container.
        container: ContainerRef,
        /// The reference as written.
        image: String,
        /// When to ask a registry.
        policy: PullPolicy,
    },
    /// Make the Pod's sandbox.
    MakeSandbox {
        /// The Pod.
        pod: Uid,
        /// Its address.
        ip: Option<Ipv4Addr>,
    },
    /// Start the container.
    Start(ContainerRef),
    /// Ask the container to end, or make it.
    Stop {
        /// Which.
        container: ContainerRef,
        /// How.
        urgency: Urgency,
    },
    /// Try a probe once, within its own timeout; answered by [`crate::Event::Probed`].
    Probe {
        /// Which container.
        container: ContainerRef,
        /// Which of its probes.
        kind: ProbeKind,
    },
    /// Run a lifecycle hook, for at most so long; answered by [`crate::Event::HookDone`].
    Hook {
        /// Which container.
        container: ContainerRef,
        /// Which of its hooks.
        kind: HookKind,
        /// Milliseconds.
        within: u64,
    },
    /// Give a running container the limits of its present spec; answered by [`crate::Event::Resized`].
    Resize(ContainerRef),
    /// Keep this where the next agent finds it and a reboot forgets it; costs no write to flash.
    Note {
        /// Which container.
        container: ContainerRef,
        /// What.
        probed: Probed,
    },
    /// An object that the Pod's mounted files are made from has changed: bring them up to date.
    RefreshVolumes(Uid),
    /// Remove the files of a PersistentVolume; answered by [`crate::Event::VolumeDropped`].
    DropVolume(String),
    /// Kill what is left of the Pod and remove everything that was made for it.
    Remove(Uid),
    /// Something came that was not believed; log it once a kind.
    Report(Refusal),
}

/// How a container is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The image's stop signal, or SIGTERM.
    Ask,
    /// SIGKILL.
    Kill,
}

/// What was not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A desired state.
    Desired(Refused),
    /// An object that no announced index names, or that does not decode.
    Object,
    /// The node's desired state would not fit the journal.
    Journal,
}
