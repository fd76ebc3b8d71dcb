//! Telling of events without waiting for them.
//!
//! What always holds: nobody waits for an event to be stored; one that cannot be is counted, logged and lost, for
//! nothing may depend on one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::api;
use crate::store::{Object, Store};

/// Events that wait to be stored; further ones are lost.
const QUEUE: usize = 4096;

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Happening {
    /// `Warning` rather than `Normal`.
    pub(crate) warning: bool,
    /// `reason`.
    pub(crate) reason: String,
    /// `message`.
    pub(crate) message: String,
    /// `source.component`.
    pub(crate) component: &'static str,
    /// `source.host`: the node; may be empty.
    pub(crate) host: String,
    /// The container it is about; may be empty.
    pub(crate) container: String,
}

/// Takes events and stores them in order, behind the back of whoever tells of them. It ends with its last clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<(Arc<Object>, Happening)>,
    lost: Arc<AtomicU64>,
}

impl Recorder {
    /// The task ends once every clone is gone and what they told of is stored.
    pub(crate) fn start(store: Arc<dyn Store>) -> (Self, JoinHandle<()>) {
        let (queue, mut waiting) = mpsc::channel::<(Arc<Object>, Happening)>(QUEUE);
        let task = tokio::spawn(async move {
            while let Some((object, happening)) = waiting.recv().await {
                record(&*store, &object, &happening).await;
            }
        });
        (
            Self {
                queue,
                lost: Arc::default(),
            },
            task,
        )
    }

    /// Tells of something that happened to `object`.
    pub(crate) fn tell(&self, object: &Arc<Object>, happening: Happening) {
        if self.queue.try_send((object.clone(), happening)).is_err()
            && self.lost.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(
                bound = QUEUE,
                "events come faster than they can be stored; some are lost"
            );
        }
    }
}

async fn record(store: &dyn Store, object: &Object, happening: &Happening) {
    let field_path = if happening.container.is_empty() {
        String::new()
    } else {
        format!("spec.containers{{{}}}", happening.container)
    };
    let what = api::Happening {
        kind: if happening.warning { "Warning" } else { "Normal" },
        reason: &happening.reason,
        message: &happening.message,
        component: happening.component,
        host: &happening.host,
        field_path: &field_path,
    };
    match api::record_event(store, &object.value, what).await {
        Ok(_) => {}
        // Its namespace is going or gone; so is whoever might have read it.
        Err(error) if matches!(error.code, 403 | 404) => {}
        Err(error) => {
            tracing::warn!(object = %object.key, reason = happening.reason, %error, "an event was lost");
        }
    }
}
