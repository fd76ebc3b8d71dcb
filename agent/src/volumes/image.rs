//! Image volumes: which are being fetched for whom, and which could not be.
//!
//! ```text
//!   unknown ──asked──▶ Asked ──▶ Pulled ──mounted──▶ unknown
//!                        └─────▶ Failed(until) ──asked again──▶ Asked
//! ```
//!
//! Always holds: a Pod's image volume is asked for once until that is answered; after a failure the registry is left in
//! peace for a while that grows.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use skiff_core::{ContainerRef, Event};
use skiff_images::Image;
use skiff_protocol::image_ref::Digest;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::PullPolicy;

use crate::images::keys::Login;
use crate::images::{Ensured, Images};

/// Kubernetes' back-off of image pulls.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// No container's name has a slash, so that no volume is taken for a container.
const PREFIX: &str = "volume/";

/// How far the image of a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// To be asked for.
    Ask,
    /// Asked for, not answered.
    Asked,
    /// In the store.
    Pulled,
    /// Not to be had now; the message says why.
    Failed(String),
}

/// The image volumes that are not mounted yet.
#[derive(Debug, Default)]
pub(crate) struct ImageVolumes(BTreeMap<(Uid, String), State>);

#[derive(Debug)]
struct State {
    step: Step,
    until: Instant,
    wait: Duration,
}

/// An image volume that a Pod needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Whose.
    pub pod: Uid,
    /// Its name in the Pod.
    pub volume: &'a str,
    /// `reference`.
    pub reference: &'a str,
    /// `pullPolicy`.
    pub policy: PullPolicy,
    /// Where it is mounted.
    pub path: &'a Path,
    /// What the Pod's Secrets say of its registry.
    pub logins: &'a [Login],
    /// The user namespace whose ids it shows.
    pub users: Option<&'a Path>,
}

/// What an image volume is called where containers are asked for.
#[must_use]
fn reference(pod: Uid, volume: &str) -> ContainerRef {
    ContainerRef {
        pod,
        name: format!("{PREFIX}{volume}"),
        attempt: 0,
    }
}

impl ImageVolumes {
    /// Has an image's files mounted, once a Pod and boot; `hold` hears of the image before that. `false`: the image is being pulled, and an answer will come.
    ///
    /// # Errors
    /// Why the image is not to be had, or cannot be mounted.
    pub(crate) fn make(
        &mut self,
        images: &mut Images,
        wanted: &Wanted<'_>,
        floor: u64,
        now: Instant,
        hold: &mut dyn FnMut(Digest),
    ) -> Result<bool, String> {
        if is_mounted(wanted.path)? {
            return Ok(true);
        }
        let (pod, volume) = (wanted.pod, wanted.volume);
        if self.step(pod, volume, now) == Step::Ask {
            self.asked(pod, volume, now);
            let container = reference(pod, volume);
            let ensured = images.ensure(
                container,
                wanted.reference,
                wanted.policy,
                wanted.logins.to_vec(),
                floor,
            );
            if let Ensured::Now(event) = ensured {
                self.answered(&event, now);
            }
        }
        match self.step(pod, volume, now) {
            Step::Ask | Step::Asked => Ok(false),
            Step::Failed(why) => Err(why),
            Step::Pulled => {
                // Whatever comes of it, the next start begins from what is known then.
                self.forget_volume(pod, volume);
                let image = images
                    .get(wanted.reference)
                    .map_err(|error| format!("{error:#}"))?;
                hold(image.digest);
                mount(&image, wanted)?;
                Ok(true)
            }
        }
    }

    /// How far a volume's image is.
    fn step(&self, pod: Uid, volume: &str, now: Instant) -> Step {
        match self.0.get(&(pod, volume.to_owned())) {
            None => Step::Ask,
            Some(State {
                step: Step::Failed(_),
                until,
                ..
            }) if *until <= now => Step::Ask,
            Some(state) => state.step.clone(),
        }
    }

    /// It has been asked for.
    fn asked(&mut self, pod: Uid, volume: &str, now: Instant) {
        let state = self.0.entry((pod, volume.to_owned())).or_insert(State {
            step: Step::Asked,
            until: now,
            wait: Duration::ZERO,
        });
        state.step = Step::Asked;
    }

    /// Takes the answer about an image if it is about a volume; gives the Pod.
    pub(crate) fn answered(&mut self, event: &Event, now: Instant) -> Option<Uid> {
        let (container, error) = match event {
            // That a volume's image is under way is known here.
            Event::Pulling(container) | Event::PullProgress { container, .. } => {
                return container.name.starts_with(PREFIX).then_some(container.pod);
            }
            Event::ImageReady { container, .. } => (container, None),
            Event::ImageFailed { container, error } => (container, Some(error)),
            _ => return None,
        };
        let volume = container.name.strip_prefix(PREFIX)?;
        if let Some(state) = self.0.get_mut(&(container.pod, volume.to_owned())) {
            state.step = match error {
                None => Step::Pulled,
                Some(error) => {
                    state.wait = (state.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
                    state.until = now + state.wait;
                    Step::Failed(format!("{}: {}", error.reason, error.message))
                }
            };
        }
        Some(container.pod)
    }

    fn forget_volume(&mut self, pod: Uid, volume: &str) {
        self.0.remove(&(pod, volume.to_owned()));
    }

    /// Nothing of the Pod is waited for any more.
    pub(crate) fn forget(&mut self, pod: Uid) {
        self.0.retain(|(it, _), _| *it != pod);
    }
}

/// Whether the volume is mounted.
///
/// # Errors
/// When that cannot be found out.
fn is_mounted(path: &Path) -> Result<bool, String> {
    // The kernel lists mounts by their real paths.
    match std::fs::canonicalize(path) {
        Ok(path) => skiff_sys::mount::is_mount_point(&path).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Mounts the image's files.
///
/// # Errors
/// When the kernel refuses.
fn mount(image: &Image, wanted: &Wanted<'_>) -> Result<(), String> {
    let path = wanted.path;
    let text = |error: std::io::Error| format!("{}: {error}", path.display());
    std::fs::create_dir_all(path).map_err(text)?;
    let path = std::fs::canonicalize(path).map_err(text)?;
    skiff_sys::volume::image(&image.layers, &path, wanted.users).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::tests::{Node, UNREACHED};
    use skiff_core::ImageError;

    #[test]
    fn an_image_is_asked_for_once_and_again_after_a_while() {
        let (pod, now) = (Uid([1; 16]), Instant::now());
        let mut volumes = ImageVolumes::default();
        let failed = || Event::ImageFailed {
            container: reference(pod, "v"),
            error: ImageError {
                reason: "ErrImagePull".into(),
                message: "no route".into(),
                retry: true,
            },
        };
        let step =
            |volumes: &ImageVolumes, seconds| volumes.step(pod, "v", now + Duration::from_secs(seconds));
        assert_eq!(step(&volumes, 0), Step::Ask);
        volumes.asked(pod, "v", now);
        assert_eq!(step(&volumes, 1000), Step::Asked);
        let no = Step::Failed("ErrImagePull: no route".into());
        assert_eq!(volumes.answered(&failed(), now), Some(pod));
        for (seconds, expected) in [(9, &no), (10, &Step::Ask)] {
            assert_eq!(&step(&volumes, seconds), expected, "{seconds}");
        }
        volumes.asked(pod, "v", now);
        assert_eq!(volumes.answered(&failed(), now), Some(pod));
        for (seconds, expected) in [(19, &no), (20, &Step::Ask)] {
            assert_eq!(&step(&volumes, seconds), expected, "{seconds}");
        }
        volumes.asked(pod, "v", now);
        let ready = Event::ImageReady {
            container: reference(pod, "v"),
            image_id: String::new(),
        };
        assert_eq!(volumes.answered(&ready, now), Some(pod));
        assert_eq!(step(&volumes, 0), Step::Pulled);
        volumes.forget_volume(pod, "v");
        assert_eq!(step(&volumes, 0), Step::Ask);
        volumes.asked(pod, "v", now);
        volumes.forget(pod);
        assert_eq!(step(&volumes, 0), Step::Ask);
    }

    #[tokio::test]
    async fn what_is_here_is_mounted_and_what_is_not_is_pulled() {
        let mut node = Node::new(UNREACHED);
        node.store("here:1");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volumes/v");
        let (pod, now) = (Uid([1; 16]), Instant::now());
        let mut volumes = ImageVolumes::default();
        let held = std::cell::RefCell::new(Vec::new());
        let make = |volumes: &mut ImageVolumes, node: &mut Node, reference: &str, policy, seconds| {
            let wanted = Wanted {
                pod,
                volume: "v",
                reference,
                policy,
                path: &path,
                logins: &[],
                users: None,
            };
            let now = now + Duration::from_secs(seconds);
            let mut hold = |image| held.borrow_mut().push(image);
            volumes.make(&mut node.images, &wanted, 0, now, &mut hold)
        };
        let never = make(&mut volumes, &mut node, "none:1", PullPolicy::Never, 0);
        assert_eq!(
            never.unwrap_err(),
            "ErrImageNeverPull: Container image \"none:1\" is not present with pull policy of Never"
        );
        // Its back-off is over; the registry does not answer.
        let policy = PullPolicy::IfNotPresent;
        for _ in 0..2 {
            assert_eq!(make(&mut volumes, &mut node, "none:1", policy, 10), Ok(false));
        }
        for event in node.answers().await {
            assert_eq!(volumes.answered(&event, now), Some(pod));
        }
        let failed = make(&mut volumes, &mut node, "none:1", policy, 10);
        assert_eq!(failed.unwrap_err(), "ErrImagePull: connection refused");
        let here = make(&mut volumes, &mut node, "here:1", policy, 1000);
        let again = make(&mut volumes, &mut node, "here:1", policy, 1000);
        let mounts = skiff_sys::mount::mounts_under(dir.path()).unwrap();
        skiff_sys::mount::unmount_all_under(dir.path()).unwrap();
        assert_eq!((here, again), (Ok(true), Ok(true)));
        assert_eq!(mounts, std::slice::from_ref(&path), "once");
        let image = node.images.get("here:1").unwrap().digest;
        assert_eq!(held.into_inner(), [image], "before it is mounted");
    }

    #[test]
    fn a_containers_image_is_not_a_volumes() {
        let mut volumes = ImageVolumes::default();
        let container = ContainerRef {
            pod: Uid([1; 16]),
            name: "volume".into(),
            attempt: 0,
        };
        let ready = Event::ImageReady {
            container,
            image_id: String::new(),
        };
        assert_eq!(volumes.answered(&ready, Instant::now()), None);
    }
}
