//! One connection's life: polls the MQTT library until it ends, with a deadline on every poll.
//!
//! ```text
//!            CONNACK              PINGREQ written
//! connecting ───────▶ up ────────────────────────▶ up, answer due in keepalive / 2
//!     │ connect_timeout │ 1.5 × keepalive             │ passed
//!     ▼                 ▼                             ▼
//!   ended: why        ended: Stalled                ended: Silent
//! ```
//!
//! Always holds: the driver ends with exactly one [`Why`], after all its packets. It is polled only by the client's
//! `next`, and dropping it drops the connection.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::api::Why;
use crate::options::Qos;

/// What a connection tells its client, whichever protocol it speaks.
#[derive(Debug)]
pub(crate) enum Packet {
    Connected(Granted),
    Message {
        topic: String,
        payload: Bytes,
        pkid: u16,
    },
    /// The index of the first subscription that was refused.
    Subscribed {
        refused: Option<usize>,
    },
    /// A publish was given this packet id (0 at QoS 0) and handed to the socket.
    Sent {
        pkid: u16,
    },
    Acked {
        pkid: u16,
        refused: Option<Refusal>,
    },
    Pinged,
    Disconnecting,
    /// Something came in that nobody needs, but it shows that the broker lives.
    Heard,
    /// Something went out that nobody needs to know of.
    Wrote,
}

/// Why the broker did not take a publish.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub reason: String,
    pub passing: bool,
}

/// What the broker granted in CONNACK.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Granted {
    pub session_present: bool,
    pub keepalive: Option<Duration>,
    pub receive_maximum: Option<u16>,
    pub max_packet: Option<usize>,
    pub at_most_qos0: bool,
}

/// The receiving half of the library, for one protocol version. Not cancel-safe.
pub(crate) trait Wire: Send + 'static {
    fn poll(&mut self) -> impl Future<Output = Result<Packet, Why>> + Send;
}

/// The sending half. Every call returns at once; `false` means that the library's channel is full or closed.
pub(crate) trait Submit: Send {
    fn publish(&self, topic: &str, payload: Bytes, qos: Qos) -> bool;
    fn subscribe(&self, filters: &[String]) -> bool;
    fn ack(&self, pkid: u16) -> bool;
    fn disconnect(&self) -> bool;
}

pub(crate) struct Timing {
    pub keepalive: Duration,
    pub connect_timeout: Duration,
}

pub(crate) async fn drive<W: Wire>(mut wire: W, timing: Timing, out: mpsc::Sender<Packet>) -> Why {
    let mut keepalive = timing.keepalive;
    let mut connected = false;
    let mut answer_due: Option<Instant> = None;
    let connect_by = Instant::now() + timing.connect_timeout;
    loop {
        let stalled_at = Instant::now() + keepalive + keepalive / 2;
        let deadline = match (connected, answer_due) {
            (false, _) => connect_by,
            (true, Some(due)) => due.min(stalled_at),
            (true, None) => stalled_at,
        };
        let packet = match timeout_at(deadline, wire.poll()).await {
            Ok(Ok(packet)) => packet,
            Ok(Err(why)) => return why,
            Err(_) if !connected => return Why::NoAnswer,
            Err(_) if answer_due.is_some() => return Why::Silent,
            Err(_) => return Why::Stalled,
        };
        match &packet {
            Packet::Connected(granted) => {
                connected = true;
                if let Some(asked) = granted.keepalive.filter(|k| !k.is_zero()) {
                    keepalive = asked;
                }
            }
            Packet::Pinged => answer_due = Some(Instant::now() + keepalive / 2),
            Packet::Message { .. } | Packet::Subscribed { .. } | Packet::Acked { .. } | Packet::Heard => {
                answer_due = None;
            }
            Packet::Sent { .. } | Packet::Disconnecting | Packet::Wrote => {}
        }
        if out.send(packet).await.is_err() {
            // The client is gone; there is nobody to read the reason.
            return Why::Requested;
        }
    }
}
