//! Room for images: when the store is tidied, and what of it stays.
//!
//! ```text
//!   idle ──disk above high water─────▶ until low water ─┐
//!   idle ──a pull found no room──────▶ until it has it ─┼─▶ collecting (a process) ──▶ idle
//!   idle ──skiff-agent images prune──▶ all ─────────────┘
//! ```
//!
//! Always holds: one collection at a time; while one is under way no image is promised to a container, so that none is
//! taken out after it was.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use skiff_core::Event;
use skiff_images::collect::{CollectReport, CollectRequest, Keep, Removed};
use skiff_images::pull::{PullError, Wrote};
use skiff_protocol::image_ref::{Digest, ImageRef};
use tracing::{info, warn};

use super::child::{self, End};
use super::{Cost, Ensured, Images, PATIENCE, Waiter};
use crate::config::ImageStore;
use crate::input::Input;
use crate::own::Own;

/// How long the store is left in peace after a collection.
const AGAIN: Duration = Duration::from_secs(300);

/// The same where there was nothing to take, unless something falls out of use or comes.
const NOTHING: Duration = Duration::from_secs(86_400);

/// Things gone that are remembered for whoever asks.
const SHOWN: usize = 256;

/// Why room is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The disk is too full: until so many bytes are free.
    HighWater(u64),
    /// A pull needs so many bytes.
    Pull(u64),
    /// Somebody asked for all of it; of what last ran well too.
    Asked {
        /// Whether images go as well that last ran well.
        all: bool,
    },
}

/// What came of a collection.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// What is gone, in order; no more than some.
    removed: Vec<Removed>,
    /// How many things are gone.
    count: u64,
    bytes: u64,
    wrote: Wrote,
    error: Option<String>,
}

/// The store's tidying.
#[derive(Default)]
pub(super) struct Collections {
    running: bool,
    /// How many there were, the running one included.
    number: u64,
    last: Collected,
    /// When the disk may be above high water again for one to begin.
    not_before: Option<Instant>,
    /// Containers that asked meanwhile.
    pub(super) held: Vec<(String, Waiter)>,
    /// Pulls that found no room and wait for it.
    pub(super) starved: Vec<(String, PullError)>,
    /// Those that have had their second try.
    pub(super) tried: BTreeSet<String>,
    /// Bytes that collections gave back since the start.
    freed: u64,
}

impl Collections {
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// There may be something to take again.
    pub(super) fn look_soon(&mut self) {
        let soon = Instant::now() + AGAIN;
        self.not_before = self.not_before.map(|at| at.min(soon));
    }

    /// Whether the pull of this image waits for room.
    pub(super) fn starves(&self, image: &str) -> bool {
        self.starved.iter().any(|it| it.0 == image)
    }
}

impl Images {
    /// Whether the store is being tidied.
    #[must_use]
    pub(crate) fn is_collecting(&self) -> bool {
        self.collections.is_running()
    }

    /// Bytes to be free that a pull waits for, if one does.
    #[must_use]
    pub(crate) fn starving(&self) -> Option<u64> {
        let needed = self.collections.starved.iter();
        needed.filter_map(|it| it.1.needed_bytes).max()
    }

    /// Whether a disk above high water is to be seen to now.
    #[must_use]
    pub(crate) fn may_collect(&self, now: Instant) -> bool {
        !self.collections.running && self.collections.not_before.is_none_or(|at| at <= now)
    }

    /// Begins to tidy the store; `named` is what Pods name, `held` what something runs from. `false`: one is under way.
    pub(crate) fn collect(&mut self, why: Why, named: BTreeSet<ImageRef>, held: BTreeSet<Digest>) -> bool {
        if self.collections.running {
            return false;
        }
        let mut references = named;
        references.extend(self.waiting.keys().filter_map(|it| ImageRef::parse(it).ok()));
        references.extend(self.pinned());
        let until_free = match why {
            Why::HighWater(bytes) => Some(bytes),
            // More than that is free and it did not do: then all goes that can.
            Why::Pull(bytes) => Some(bytes).filter(|_| self.free().is_none_or(|free| free < bytes)),
            Why::Asked { .. } => None,
        };
        let mut images = held;
        if why != (Why::Asked { all: true }) {
            images.extend(self.good.values());
        }
        let settings = &self.config.images;
        let asked = matches!(why, Why::Asked { .. });
        let request = CollectRequest {
            store: self.store.root().to_owned(),
            keep: Keep { references, images },
            until_free,
            min_age_seconds: if asked { 0 } else { settings.gc_min_age_seconds },
        };
        info!(?why, "tidying the image store");
        self.collections.running = true;
        self.collections.number += 1;
        let (executable, own, inputs) = (self.executable.clone(), self.own.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let mut done = Collected::default();
            if let Err(error) = run(&executable, &own, &request, &mut done).await {
                done.error.get_or_insert(format!("{error:#}"));
            }
            // The driver is gone only when the agent ends.
            let _ = inputs.send(Input::Collected(Box::new(done))).await;
        });
        true
    }

    /// A collection is over: whoever waited for it goes on.
    pub(crate) fn collected(&mut self, done: Collected, now: Instant) -> Vec<Event> {
        let it = &mut self.collections;
        it.running = false;
        it.freed += done.bytes;
        // What there was to take is taken; the disk is looked at again when there may be more.
        it.not_before = Some(now + if done.count > 0 { AGAIN } else { NOTHING });
        self.wrote.bytes += done.wrote.bytes;
        self.wrote.syncs += done.wrote.syncs;
        match &done.error {
            Some(error) => warn!(
                error,
                removed = done.count,
                bytes = done.bytes,
                "the image store is not tidy"
            ),
            None => info!(
                removed = done.count,
                bytes = done.bytes,
                "the image store is tidy"
            ),
        }
        let freed = done.bytes > 0;
        self.changed |= done.count > 0;
        self.collections.last = done;
        let mut events = Vec::new();
        for (image, error) in std::mem::take(&mut self.collections.starved) {
            self.collections.tried.insert(image.clone());
            let next = self.waiting.get(&image).and_then(|it| it.first());
            let again = next.map(|it| (it.logins.clone(), it.floor));
            match (freed, again, ImageRef::parse(&image)) {
                (true, Some((logins, floor)), Ok(reference)) => self.pull(image, &reference, logins, floor),
                _ => events.extend(self.pulled(&image, &Err(error), Cost::default())),
            }
        }
        for (image, it) in std::mem::take(&mut self.collections.held) {
            let container = it.container.clone();
            match self.ensure(it.container, &image, it.policy, it.logins, it.floor) {
                Ensured::Now(event) => events.push(*event),
                Ensured::Pulling => events.push(Event::Pulling(container)),
                Ensured::Later => {}
            }
        }
        events
    }

    /// The store cannot be tidied now: whoever waits for room is told why there is none.
    pub(crate) fn cannot_collect(&mut self, error: String, now: Instant) -> Vec<Event> {
        let failed = Collected {
            error: Some(error),
            ..Collected::default()
        };
        self.collected(failed, now)
    }

    /// The last collection, for whoever asks.
    #[must_use]
    pub(crate) fn collection(&self) -> Value {
        let it = &self.collections;
        let removed = it.last.removed.iter();
        let removed = removed.map(|it| json!({ "what": it.what, "bytes": it.bytes }));
        json!({
            "number": it.number,
            "running": it.running,
            "removed": removed.collect::<Vec<_>>(),
            "count": it.last.count,
            "bytes": it.last.bytes,
            "error": it.last.error,
        })
    }

    /// How many collections there were, and what they gave back, in bytes.
    #[must_use]
    pub(crate) fn collections(&self) -> (u64, u64) {
        (self.collections.number, self.collections.freed)
    }

    /// What the configuration says shall stay, by the names that are here.
    pub(super) fn pinned(&self) -> BTreeSet<ImageRef> {
        let listed = self.store.list().unwrap_or_default();
        let names = listed.into_iter().map(|it| it.reference);
        names.filter(|it| is_pinned(&self.config.images, it)).collect()
    }

    fn free(&self) -> Option<u64> {
        skiff_sys::fs::space(self.store.root())
            .ok()
            .map(|it| it.available)
    }
}

/// Whether the configuration says that an image stays.
pub(super) fn is_pinned(settings: &ImageStore, image: &ImageRef) -> bool {
    let name = image.to_string();
    let short = name.strip_prefix("docker.io/").unwrap_or(&name);
    let shorter = short.strip_prefix("library/").unwrap_or(short);
    settings.pinned.iter().any(|it| match it.strip_suffix('*') {
        // As somebody writes it who leaves out what can be left out.
        Some(start) => [&name, short, shorter].iter().any(|it| it.starts_with(start)),
        None => ImageRef::parse(it).is_ok_and(|it| it == *image),
    })
}

async fn run(
    executable: &std::path::Path,
    own: &Own,
    request: &CollectRequest,
    done: &mut Collected,
) -> Result<()> {
    let mut last = None;
    let end = child::run(executable, "collect", own, request, PATIENCE, |line| match line {
        CollectReport::Removed(it) => {
            info!(what = it.what, bytes = it.bytes, "removed");
            done.count += 1;
            done.bytes += it.bytes;
            if done.removed.len() < SHOWN {
                done.removed.push(it);
            }
        }
        CollectReport::Wrote(wrote) => done.wrote = wrote,
        CollectReport::Done => last = Some(None),
        CollectReport::Error(error) => last = Some(Some(error)),
    })
    .await?;
    match (last, end) {
        (Some(error), _) => done.error = error,
        (None, End::Ended(status)) => bail!("the process ended without an answer: {status}"),
        (None, End::Stuck) => bail!("no progress for {} seconds", PATIENCE.as_secs()),
    }
    Ok(())
}
