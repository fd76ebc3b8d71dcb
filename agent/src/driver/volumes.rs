//! The driver's part in volumes: what a start waits for, what is brought up to date, what is dropped.
//!
//! Always holds: a start that waits for a volume is answered when the volume is there, has failed, or is of no use any more;
//! what takes long is done by a thread that may wait.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use skiff_core::{ContainerRef, Event, StartError};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{PersistentVolume, VolumeSource};
use tokio::sync::{Semaphore, mpsc};
use tracing::{error, info, warn};

use super::Driver;
use crate::plan;
use crate::volumes::image::{ImageVolumes, Wanted};
use crate::volumes::{self, Unowned, claim};

/// Answers that may wait: each is one finished piece of work, and the threads wait where there is no room.
const ANSWERS: usize = 16;

/// What is under way for volumes.
#[derive(Debug)]
pub(crate) struct Volumes {
    /// Starts that wait for a volume.
    held: BTreeSet<ContainerRef>,
    images: ImageVolumes,
    /// Volumes whose files are being given to a group.
    owning: BTreeSet<(Uid, String)>,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    /// One piece of work at once: the process has two threads that may wait, and removing a Pod needs the other.
    one: Arc<Semaphore>,
    /// Whether files that nobody desires may be there still.
    untidy: bool,
}

/// Work that a thread has done.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The files of a Pod's volume are its group's, or cannot be.
    Owned(Uid, String, Result<(), String>),
    /// The files of a PersistentVolume are gone, or cannot be removed yet.
    Dropped(String, Result<(), String>),
}

impl Volumes {
    pub(super) fn new() -> Self {
        Self {
            held: BTreeSet::new(),
            images: ImageVolumes::default(),
            owning: BTreeSet::new(),
            answers: mpsc::channel(ANSWERS),
            one: Arc::new(Semaphore::new(1)),
            untidy: true,
        }
    }

    /// The next finished piece of work. Cancelling it loses nothing.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        self.answers.1.recv().await
    }

    /// The Pod's containers are gone, and with them what they waited for.
    pub(super) fn forget(&mut self, pod: Uid) {
        self.held.retain(|it| it.pod != pod);
        self.images.forget(pod);
    }

    /// Its starts are over, whatever became of them.
    pub(super) fn let_go(&mut self, pod: Uid) {
        self.held.retain(|it| it.pod != pod);
    }

    /// Does work where waiting is allowed, and answers.
    fn work(&self, work: impl FnOnce() -> Answer + Send + 'static) {
        let (sender, one) = (self.answers.0.clone(), self.one.clone());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let permit = one.acquire_owned().await;
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                // The driver is gone only when the agent ends.
                let _ = sender.blocking_send(work());
            });
        });
    }
}

impl Driver {
    /// Has the volumes of a start made. `false`: it waits for one, and is begun again when that is there.
    pub(super) fn make_volumes(&mut self, container: &ContainerRef) -> Result<bool, String> {
        let (pod, ip) = self.core.pod(container.pod).ok_or("the Pod is not known")?;
        let spec = pod
            .container(&container.name)
            .ok_or("the container is not known")?;
        let id = plan::container_id(spec, container.attempt);
        let pod = pod.clone();
        let memory = self.node.allocatable_memory(&self.config);
        let unowned = self.with_facts(&pod, ip, |facts, lookup| {
            volumes::prepare(&pod, &id, memory, facts, lookup)
        })??;
        let mut there = unowned.is_empty();
        for it in unowned {
            self.own(pod.uid, it);
        }
        let (run, now) = (self.place.run_of(pod.uid), Instant::now());
        let users = pod.user_namespace.then(|| run.join("ns/user"));
        let floor = self.floor.load(std::sync::atomic::Ordering::Relaxed);
        for volume in &pod.volumes {
            if let VolumeSource::Image {
                reference,
                pull_policy,
            } = &volume.source
            {
                let logins = self.logins(pod.uid, reference);
                let wanted = Wanted {
                    pod: pod.uid,
                    volume: &volume.name,
                    reference,
                    policy: *pull_policy,
                    path: &run.join("volumes").join(&volume.name),
                    logins: &logins,
                    users: users.as_deref(),
                };
                let uses = &mut self.uses;
                let mut hold = |image| uses.hold_volume(pod.uid, &volume.name, image);
                let made = self
                    .volumes
                    .images
                    .make(&mut self.images, &wanted, floor, now, &mut hold);
                there &= made.map_err(|why| {
                    format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name)
                })?;
            }
        }
        if !there {
            self.volumes.held.insert(container.clone());
        }
        Ok(there)
    }

    /// Has the files of a volume given to the Pod's group.
    fn own(&mut self, pod: Uid, it: Unowned) {
        if !self.volumes.owning.insert((pod, it.volume.clone())) {
            return;
        }
        info!(%pod, volume = it.volume, group = it.group, "changing the group of many files");
        self.volumes.work(move || {
            let given = volumes::give_to_group(&it.path, it.group, usize::MAX);
            let done = given.and_then(|_| volumes::note_owned(&it.done));
            Answer::Owned(pod, it.volume, done)
        });
    }

    /// Takes an answer about an image for itself if it is about a volume.
    pub(super) fn volume_pulled(&mut self, event: &Event) -> bool {
        let Some(pod) = self.volumes.images.answered(event, Instant::now()) else {
            return false;
        };
        self.start_held(pod);
        true
    }

    /// A thread has done its work.
    pub(super) fn volume_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Owned(pod, volume, done) => {
                self.volumes.owning.remove(&(pod, volume.clone()));
                match done {
                    Ok(()) => self.start_held(pod),
                    Err(why) => {
                        let why = format!("MountVolume.SetUp failed for volume {volume:?} : {why}");
                        self.fail_held(|it| it.pod == pod, &StartError::Config(why));
                    }
                }
            }
            Answer::Dropped(name, done) => {
                if let Err(why) = done {
                    error!(
                        volume = name,
                        why, "files of a dropped volume stay until the next start"
                    );
                }
                self.event(Event::VolumeDropped(name));
            }
        }
    }

    /// Begins the starts anew that waited.
    fn start_held(&mut self, pod: Uid) {
        let held = std::mem::take(&mut self.volumes.held);
        let (now, later) = held.into_iter().partition(|it| it.pod == pod);
        self.volumes.held = later;
        let now: BTreeSet<ContainerRef> = now;
        for container in now {
            if let Some(event) = self.start(container) {
                self.event(event);
            }
        }
    }

    /// Answers the starts that wait for nothing that is of use: their Pod is to end.
    pub(super) fn end_held(&mut self) {
        if self.volumes.held.is_empty() {
            return;
        }
        let held = self.volumes.held.iter();
        let ended: BTreeSet<ContainerRef> = held.filter(|it| !self.core.lives(it.pod)).cloned().collect();
        let error = StartError::Failed {
            exit_code: 128,
            message: "the Pod was to end before its volumes were there".to_owned(),
        };
        self.fail_held(|it| ended.contains(it), &error);
    }

    fn fail_held(&mut self, which: impl Fn(&ContainerRef) -> bool, error: &StartError) {
        let held = std::mem::take(&mut self.volumes.held);
        let (failed, later): (BTreeSet<_>, BTreeSet<_>) = held.into_iter().partition(which);
        self.volumes.held = later;
        for container in failed {
            let error = error.clone();
            self.event(Event::StartFailed { container, error });
        }
    }

    /// Brings a Pod's mounted files up to date.
    pub(super) fn refresh_volumes(&self, uid: Uid) {
        let Some((pod, ip)) = self.core.pod(uid) else {
            return;
        };
        let done = self.with_facts(pod, ip, |facts, lookup| volumes::refresh(pod, facts, lookup));
        for why in done.unwrap_or_else(|why| vec![why]) {
            warn!(pod = %uid, why, "a volume keeps what it has");
        }
    }

    /// Removes the files of a PersistentVolume.
    pub(super) fn drop_volume(&mut self, name: String) -> Option<Event> {
        match claim::detach(&self.volume_dir(), &name) {
            Ok(None) => Some(Event::VolumeDropped(name)),
            Ok(Some(path)) => {
                self.delete_volume(name, path);
                None
            }
            Err(error) => {
                error!(volume = name, %error, "a volume cannot be dropped; tried again at the next start");
                None
            }
        }
    }

    fn delete_volume(&self, name: String, path: PathBuf) {
        info!(volume = name, "removing the files of a dropped volume");
        self.volumes.work(move || {
            let done = claim::delete(&path);
            Answer::Dropped(name, done)
        });
    }

    /// The start: mounted files are brought up to date, and what an earlier agent did not live to remove is removed.
    pub(super) fn tidy_volumes(&mut self, running: &[Uid]) {
        for uid in running {
            self.refresh_volumes(*uid);
        }
        // A journal that is new knows of no volume, and says nothing about those that are here.
        self.volumes.untidy = self.core.generation() > 0;
        self.mark_volumes();
        self.tidy_again();
    }

    /// Removes the files that are to go, once no Pod may use them any more.
    pub(super) fn tidy_again(&mut self) {
        if !self.volumes.untidy {
            return;
        }
        let desired: Vec<PersistentVolume> = self.core.volumes().collect();
        let mut pods = self.core.statuses().map(|(pod, _)| pod);
        if !pods.all(|pod| pod.is_some_and(|pod| claim::all_desired(pod, &desired))) {
            return;
        }
        self.volumes.untidy = false;
        match claim::left_over(&self.volume_dir(), &desired) {
            Ok(found) => {
                for (path, name) in found {
                    self.delete_volume(name, path);
                }
            }
            Err(error) => error!(%error, "the directory of volumes cannot be read"),
        }
        let orphans = claim::orphans(&self.volume_dir(), &desired).unwrap_or_default();
        if !orphans.is_empty() {
            warn!(
                ?orphans,
                "the server knows of no such PersistentVolumes; their files stay"
            );
        }
    }

    /// The desired state has changed: keep beside each volume that its files are to go, or not.
    pub(super) fn mark_volumes(&self) {
        let desired: Vec<PersistentVolume> = self.core.volumes().collect();
        if let Err(error) = claim::mark_all(&self.volume_dir(), &desired) {
            error!(%error, "what is to become of a volume cannot be kept");
        }
    }

    pub(super) fn volume_dir(&self) -> PathBuf {
        claim::root(&self.config.state_dir)
    }
}
