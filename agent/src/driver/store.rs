//! The driver's part in the image store: what stays in it, when it is tidied, and what the server hears of it.
//!
//! Always holds: what is taken out is what no Pod names and nothing runs from, as it stands when the tidying begins; what
//! begins later waits for its end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skiff_core::{ContainerRef, Event, ObservedPhase};
use skiff_protocol::image_ref::{Digest, ImageRef};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::Up;
use skiff_protocol::wire::spec::{PodSpec, VolumeSource};
use skiff_protocol::wire::status::{ContainerState, ContainerStatus};
use tracing::warn;

use super::Driver;
use crate::images::collection::Why;
use crate::images::holds::Holds;

/// How long a container must have run, and be ready, for its image to have run well.
const WELL: i64 = 10;

/// How long the disk may be short before Pods are ended for it, while the image store gives room.
const PATIENCE: Duration = Duration::from_secs(120);

/// What of the images in use must be known.
#[derive(Debug)]
pub(crate) struct Uses {
    holds: Holds,
    /// The containers that have not shown yet that their image is any good.
    unproven: BTreeSet<(Uid, String)>,
    /// When the running collection began.
    since: Option<Instant>,
}

impl Uses {
    pub(super) fn new(pods: std::path::PathBuf) -> Self {
        Self {
            holds: Holds::new(pods),
            unproven: BTreeSet::new(),
            since: None,
        }
    }

    /// An image volume is about to be mounted. It is mounted once, so there was no image before this one.
    pub(super) fn hold_volume(&mut self, pod: Uid, volume: &str, image: Digest) {
        self.holds.hold(pod, &format!("volume.{volume}"), image);
    }
}

impl Driver {
    /// Takes over what runs at the start.
    pub(super) fn adopt_images(&mut self, found: &Event) {
        let Event::Observed(pods) = found else { return };
        let running: Vec<Uid> = pods.iter().map(|it| it.uid).collect();
        self.uses.holds.adopt(&running);
        for pod in pods {
            let running = |it: &&skiff_core::ObservedContainer| matches!(it.phase, ObservedPhase::Running(_));
            for it in pod.containers.iter().filter(running) {
                self.uses.unproven.insert((pod.uid, it.name.clone()));
            }
        }
    }

    /// A container is about to be started from an image.
    pub(super) fn hold_image(&mut self, container: &ContainerRef, image: Digest) {
        let (pod, name) = (container.pod, &container.name);
        self.uses.unproven.insert((pod, name.clone()));
        if let Some(before) = self.uses.holds.hold(pod, name, image) {
            self.images.unused(&before, self.floor_unix());
        }
    }

    /// A Pod is gone, and what it ran from is unused from now on.
    pub(super) fn release_images(&mut self, pod: Uid) {
        self.uses.unproven.retain(|(it, _)| *it != pod);
        for image in self.uses.holds.release(pod) {
            self.images.unused(&image, self.floor_unix());
        }
    }

    fn floor_unix(&self) -> u64 {
        self.floor.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Notes which images have shown that they run.
    pub(super) fn prove_images(&mut self) {
        if self.uses.unproven.is_empty() {
            return;
        }
        let now = self.now().unix;
        let mut proven = Vec::new();
        for (pod, status) in self.core.statuses() {
            let Some(pod) = pod else { continue };
            for it in status.init_containers.iter().chain(&status.containers) {
                let key = (status.uid, it.name.clone());
                if self.uses.unproven.contains(&key)
                    && ran_well(it, now)
                    && let (Some(spec), Some(image)) =
                        (pod.container(&it.name), self.uses.holds.of(status.uid, &it.name))
                {
                    proven.push((key, spec.image.clone(), image));
                }
            }
        }
        for (key, name, image) in proven {
            self.uses.unproven.remove(&key);
            self.images.ran_well(&name, image);
        }
    }

    /// What Pods name: those that run, and those that shall.
    fn named_images(&self) -> BTreeSet<ImageRef> {
        let mut names = BTreeSet::new();
        let mut of = |pod: &PodSpec| {
            let volumes = pod.volumes.iter().filter_map(|it| match &it.source {
                VolumeSource::Image { reference, .. } => Some(reference.as_str()),
                _ => None,
            });
            let all = pod.all_containers().map(|it| it.image.as_str()).chain(volumes);
            names.extend(all.filter_map(|it| ImageRef::parse(it).ok()));
        };
        for (pod, _) in self.core.statuses() {
            if let Some(pod) = pod {
                of(pod);
            }
        }
        for uid in self.core.wanted() {
            if let Some(pod) = self.core.wanted_pod(uid) {
                of(&pod);
            }
        }
        names
    }

    /// Begins to tidy the image store, unless that is under way.
    ///
    /// # Errors
    /// A Pod of which it is not known what it runs from.
    pub(super) fn collect_images(&mut self, why: Why) -> Result<(), String> {
        let held = self.uses.holds.all().map_err(|pod| {
            format!(
                "Pod {pod} was started by an agent that did not note what it runs from, so no image can go until it is gone"
            )
        })?;
        let named = self.named_images();
        if self.images.collect(why, named, held) {
            self.uses.since = Some(Instant::now());
        }
        Ok(())
    }

    /// Tidies the image store where the disk is too full, or a pull waits for room.
    pub(super) fn see_to_room(&mut self, now: Instant) {
        let why = if let Some(needed) = self.images.starving() {
            Some(Why::Pull(needed))
        } else if self.images.may_collect(now) {
            let disk = skiff_sys::fs::space(&self.config.state_dir).ok();
            let until = disk.and_then(|it| self.config.images.until_free(it.total, it.available));
            until.map(Why::HighWater)
        } else {
            None
        };
        if let Some(why) = why
            && !self.images.is_collecting()
            && let Err(error) = self.collect_images(why)
        {
            warn!(error, "the image store cannot be tidied");
            let events = self.images.cannot_collect(error, now);
            self.image_events(events);
        }
    }

    /// Whether no Pod is to be ended for the disk, because the image store may still give room.
    pub(super) fn is_making_room(&self, now: Instant) -> bool {
        let since = self.uses.since.filter(|_| self.images.is_collecting());
        since.is_some_and(|since| now.duration_since(since) < PATIENCE)
    }

    /// Has the answers of the image store heard by whom they are for.
    pub(super) fn image_events(&mut self, events: Vec<Event>) {
        for event in events {
            if !self.volume_pulled(&event) {
                self.event(event);
            }
        }
    }

    /// Tells the server what is in the store, where that is not what it was.
    pub(super) fn tell_images(&mut self) {
        if self.link.counters().connected && self.images.take_changed() {
            let images = self.images.inventory();
            self.link.send(&Up::Images { images });
        }
    }

    /// The store, for whoever asks on the node.
    pub(crate) fn shown_images(&self) -> Value {
        let held = self.uses.holds.all().unwrap_or_default();
        self.images.shown(&self.named_images(), &held)
    }

    /// Tidies the store for whoever asks on the node.
    pub(crate) fn prune(&mut self, all: bool) -> Value {
        if self.images.is_collecting() {
            return json!({ "busy": true });
        }
        if let Err(error) = self.collect_images(Why::Asked { all }) {
            return json!({ "error": error });
        }
        self.images.collection()
    }
}

fn ran_well(status: &ContainerStatus, now: i64) -> bool {
    match &status.state {
        ContainerState::Running { started_at } => status.ready && now - started_at >= WELL,
        ContainerState::Terminated(end) => end.exit_code == 0,
        ContainerState::Waiting { .. } => false,
    }
}
