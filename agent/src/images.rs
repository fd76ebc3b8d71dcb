//! Images for containers: from the store, or by a `skiff-agent pull` process.
//!
//! Always holds: one pull a reference, so many at once as the configuration says; the agent itself never unpacks anything; a
//! registry that cannot be reached keeps no image waiting that is here; an image that a Pod was promised stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use skiff_core::{ContainerRef, Event, ImageError};
use skiff_images::limits::Limits;
use skiff_images::pull::{
    Fetched, Platform, PullError, PullReason, PullReport, PullRequest, Source, SourceKind, Wrote,
};
use skiff_images::{Image, Pace, Store};
use skiff_protocol::image_ref::{Digest, ImageRef};
use skiff_protocol::wire::spec::PullPolicy;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout_at;
use tracing::{info, warn};

use crate::config::Config;
use crate::identity::Identity;
use crate::input::Input;
use crate::own::Own;
use child::End;
use collection::Collections;
use keys::Login;
use progress::Shown;
use window::State;

mod child;
pub(crate) mod collection;
pub(crate) mod holds;
pub(crate) mod keys;
mod progress;
mod shown;
pub(crate) mod window;

/// How long a registry that could not be reached is not asked for an image that is here.
const UNREACHABLE: Duration = Duration::from_secs(60);

/// Where the limits of what comes are shared, in the run directory.
const PACES: &str = "pace";

/// The file there of what holds for the node; a registry's name has a dot, a colon, or is `localhost`.
const NODE: &str = "node";

/// No end: a month.
const FOREVER: Duration = Duration::from_secs(30 * 86_400);

/// Registries remembered as unreachable.
const HOSTS: usize = 64;

/// How long a pull may go without a word. Each of its own waits is far shorter; this is for what they do not cover.
const PATIENCE: Duration = Duration::from_secs(600);

/// The node's images.
pub(crate) struct Images {
    store: Store,
    config: Arc<Config>,
    identity: Arc<Identity>,
    executable: PathBuf,
    own: Own,
    inputs: mpsc::Sender<Input>,
    permits: Arc<Semaphore>,
    /// Who waits for the pull of a reference.
    waiting: BTreeMap<String, Vec<Waiter>>,
    /// The pulls under way, by reference.
    pulls: BTreeMap<String, Pull>,
    unreachable: Unreachable,
    collections: Collections,
    /// The image of each repository that last ran well.
    good: BTreeMap<String, Digest>,
    /// Repositories of which that is not noted in the store yet.
    unnoted: BTreeSet<String>,
    /// What is in the store is not what it was when the server was last told.
    changed: bool,
    /// What pulls and collections have written since the start, and how many pulls there were.
    wrote: Wrote,
    ended: u64,
    /// What pulls that are over were sent since the start.
    fetched: Fetched,
}

/// What becomes of a container's wish for an image.
#[derive(Debug, PartialEq)]
pub(crate) enum Ensured {
    /// It is here, or will not come.
    Now(Box<Event>),
    /// It is being pulled; the answer comes later.
    Pulling,
    /// Nothing is known yet; the answer comes later.
    Later,
}

/// A container that waits for an image.
struct Waiter {
    container: ContainerRef,
    policy: PullPolicy,
    /// What its Pod's Secrets say.
    logins: Vec<Login>,
    /// The least time that certificates are checked against.
    floor: u64,
}

/// What a pull has cost, as far as it said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// The flash.
    pub(crate) wrote: Wrote,
    /// The link.
    pub(crate) fetched: Fetched,
}

/// A pull that waits for its turn or has it.
struct Pull {
    /// With what it asks. A Pod with others gets a pull of its own, where this one fails.
    logins: Vec<Login>,
    /// There once it has begun, and given back with this, when its outcome is known: the next one must not begin what
    /// that outcome makes needless.
    turn: Arc<OnceLock<OwnedSemaphorePermit>>,
    /// How far it is.
    shown: Arc<Mutex<Shown>>,
    task: AbortHandle,
}

/// The registries that could not be reached, by when that was found.
#[derive(Default)]
struct Unreachable(BTreeMap<String, Instant>);

impl Unreachable {
    fn note(&mut self, registry: &str, now: Instant) {
        self.0.retain(|_, found| now.duration_since(*found) < UNREACHABLE);
        if self.0.len() >= HOSTS
            && let Some(oldest) = self.0.iter().min_by_key(|it| it.1).map(|it| it.0.clone())
        {
            self.0.remove(&oldest);
        }
        self.0.insert(registry.to_owned(), now);
    }

    fn has(&self, registry: &str, now: Instant) -> bool {
        let found = self.0.get(registry);
        found.is_some_and(|found| now.duration_since(*found) < UNREACHABLE)
    }

    fn forget(&mut self, registry: &str) {
        self.0.remove(registry);
    }
}

impl Images {
    /// The images under the state directory.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub(crate) fn open(
        config: Arc<Config>,
        identity: Arc<Identity>,
        executable: PathBuf,
        own: Own,
        inputs: mpsc::Sender<Input>,
    ) -> Result<Self> {
        let preloaded = config.images.preloaded.as_deref();
        let store = Store::open(config.state_dir.join("images"))?.with_preloaded(preloaded);
        let good = store.good()?;
        let permits = Arc::new(Semaphore::new(config.images.parallel_pulls.into()));
        let paces = config.run_dir.join(PACES);
        std::fs::create_dir_all(&paces).with_context(|| format!("cannot make {}", paces.display()))?;
        Ok(Self {
            store,
            config,
            identity,
            executable,
            own,
            inputs,
            permits,
            waiting: BTreeMap::new(),
            pulls: BTreeMap::new(),
            unreachable: Unreachable::default(),
            collections: Collections::default(),
            good,
            unnoted: BTreeSet::new(),
            changed: true,
            wrote: Wrote::default(),
            ended: 0,
            fetched: Fetched::default(),
        })
    }

    /// The node's certificate is another from now on.
    pub(crate) fn renewed(&mut self, identity: Arc<Identity>) {
        self.identity = identity;
    }

    /// What pulls and collections have written since the start, and how many pulls there were.
    pub(crate) fn wrote(&self) -> (Wrote, u64) {
        (self.wrote, self.ended)
    }

    /// The image that a container is started from.
    ///
    /// # Errors
    /// When it is not in the store, or the store is damaged.
    pub(crate) fn get(&self, image: &str) -> Result<Image> {
        let reference = ImageRef::parse(image)?;
        self.store
            .resolve(&reference)?
            .with_context(|| format!("image {reference} is not in the store"))
    }

    /// Has the image in the store; answers at once where nothing is to be fetched. `logins` are tried before the node's own
    /// credentials, at the registry alone.
    pub(crate) fn ensure(
        &mut self,
        container: ContainerRef,
        image: &str,
        policy: PullPolicy,
        logins: Vec<Login>,
        floor: u64,
    ) -> Ensured {
        if self.collections.is_running() {
            let waiter = Waiter {
                container,
                policy,
                logins,
                floor,
            };
            self.collections.held.push((image.to_owned(), waiter));
            return Ensured::Later;
        }
        let reference = match ImageRef::parse(image) {
            Ok(reference) => reference,
            Err(error) => {
                let message = format!("Failed to apply default image tag {image:?}: {error}");
                let error = ImageError {
                    reason: "InvalidImageName".to_owned(),
                    message,
                    retry: false,
                };
                return Ensured::Now(Box::new(Event::ImageFailed { container, error }));
            }
        };
        let asks = policy == PullPolicy::Always && reference.digest().is_none();
        let closed = self.closed();
        if !asks || closed.is_some() || self.unreachable.has(reference.registry(), Instant::now()) {
            match self.store.resolve(&reference) {
                Ok(Some(image)) => return Ensured::Now(Box::new(ready(container, &image))),
                Ok(None) => {}
                Err(error) => {
                    warn!(image = %reference, %error, "the stored image is damaged; pulling it again");
                }
            }
        }
        if policy == PullPolicy::Never {
            let message = format!("Container image {image:?} is not present with pull policy of Never");
            let error = ImageError {
                reason: "ErrImageNeverPull".to_owned(),
                message,
                retry: true,
            };
            return Ensured::Now(Box::new(Event::ImageFailed { container, error }));
        }
        if let Some(message) = closed.filter(|_| !self.pulls.contains_key(image)) {
            let error = ImageError {
                reason: "ErrImagePull".to_owned(),
                message: format!("image {reference}: {message}"),
                retry: true,
            };
            return Ensured::Now(Box::new(Event::ImageFailed { container, error }));
        }
        let waiting = self.waiting.entry(image.to_owned()).or_default();
        waiting.push(Waiter {
            container,
            policy,
            logins: logins.clone(),
            floor,
        });
        if !self.pulls.contains_key(image) && !self.collections.starves(image) {
            self.pull(image.to_owned(), &reference, logins, floor);
        }
        Ensured::Pulling
    }

    /// A pull is over: the events of all who waited for it.
    pub(crate) fn pulled(&mut self, image: &str, result: &Result<(), PullError>, cost: Cost) -> Vec<Event> {
        self.wrote.bytes += cost.wrote.bytes;
        self.wrote.syncs += cost.wrote.syncs;
        self.fetched.server += cost.fetched.server;
        self.fetched.mirror += cost.fetched.mirror;
        self.fetched.registry += cost.fetched.registry;
        self.ended += 1;
        let ended = self.pulls.remove(image);
        self.changed |= result.is_ok();
        self.collections.look_soon();
        // One that found no room is tried again when there is some, once.
        let tried = self.collections.tried.remove(image);
        if let Err(error) = result
            && error.needed_bytes.is_some()
            && !tried
        {
            self.collections.starved.push((image.to_owned(), error.clone()));
            return Vec::new();
        }
        let mut waiting = self.waiting.remove(image).unwrap_or_default();
        let reference = ImageRef::parse(image).ok();
        let local = reference
            .as_ref()
            .and_then(|it| self.store.resolve(it).ok().flatten());
        if let Err(error) = result {
            info!(image, %error, "image not pulled");
        }
        let mut events = reference
            .as_ref()
            .map_or_else(Vec::new, |it| self.note(it.registry(), result));
        // It failed with the credentials of one Pod, which says nothing of another's.
        let asked = result
            .as_ref()
            .is_err_and(|it| it.reason != PullReason::RegistryUnavailable);
        if let (true, Some(ended), Some(reference)) = (asked, &ended, &reference) {
            let (answered, others): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|it| it.logins == ended.logins);
            waiting = answered;
            if let Some(next) = others.first() {
                let (logins, floor) = (next.logins.clone(), next.floor);
                self.waiting.insert(image.to_owned(), others);
                self.pull(image.to_owned(), reference, logins, floor);
            }
        }
        let answer = |Waiter {
                          container, policy, ..
                      }: Waiter| match (result, &local) {
            (Ok(()), Some(image)) => ready(container, image),
            // Nobody could be asked: what is here runs, or a node without a link would start nothing after a reboot.
            (Err(error), Some(image))
                if policy == PullPolicy::Always && error.reason == PullReason::RegistryUnavailable =>
            {
                ready(container, image)
            }
            (Err(error), _) => Event::ImageFailed {
                container,
                error: failed(error),
            },
            (Ok(()), None) => {
                let message = format!("image {image} was pulled and is not in the store");
                let error = ImageError {
                    reason: "ErrImagePull".to_owned(),
                    message,
                    retry: true,
                };
                Event::ImageFailed { container, error }
            }
        };
        events.extend(waiting.into_iter().map(answer));
        events
    }

    /// Remembers whether a registry could be reached. Where not, it answers from the store whoever still waits for the
    /// turn to ask it too: after a boot without a link, the waits for each image would add up.
    fn note(&mut self, registry: &str, result: &Result<(), PullError>) -> Vec<Event> {
        match result {
            Err(error) if error.reason == PullReason::RegistryUnavailable => {
                self.unreachable.note(registry, Instant::now());
            }
            _ => {
                self.unreachable.forget(registry);
                return Vec::new();
            }
        }
        let mut events = Vec::new();
        for (image, waiting) in &mut self.waiting {
            let queued = self.pulls.get(image).filter(|it| it.turn.get().is_none());
            let here = ImageRef::parse(image)
                .ok()
                .filter(|it| queued.is_some() && it.registry() == registry)
                .and_then(|it| self.store.resolve(&it).ok().flatten());
            if let (Some(pull), Some(here)) = (queued, here) {
                // It has not had its turn, so it has said nothing yet and never will.
                pull.task.abort();
                self.pulls.remove(image);
                events.extend(waiting.drain(..).map(|it| ready(it.container, &here)));
            }
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        events
    }

    fn pull(&mut self, image: String, reference: &ImageRef, logins: Vec<Login>, floor: u64) {
        let request = PullRequest {
            reference: image.clone(),
            sources: self.sources(reference, &logins),
            platform: Platform::host(),
            store: self.store.root().to_owned(),
            preloaded: self.config.images.preloaded.clone(),
            limits: Limits {
                keep_free_bytes: self.keep_free(),
                ..Limits::default()
            },
            not_before_unix: floor,
        };
        let (executable, inputs, permits) =
            (self.executable.clone(), self.inputs.clone(), self.permits.clone());
        let own = self.own.clone();
        let turn = Arc::new(OnceLock::new());
        let (taken, key) = (turn.clone(), image.clone());
        let shown = Arc::new(Mutex::new(Shown::new(Instant::now())));
        let progress = shown.clone();
        let until = Instant::now()
            + match self.window() {
                State::Open(Some(seconds)) => Duration::from_secs(seconds),
                State::Open(None) => FOREVER,
                // It closed while this pull had to wait.
                State::Closed => Duration::ZERO,
            };
        let task = tokio::spawn(async move {
            // The semaphore is never closed, and the turn is taken once.
            if let Ok(permit) = permits.acquire_owned().await {
                let _ = taken.set(permit);
            }
            let mut cost = Cost::default();
            let tell = |text: String| {
                let (image, inputs) = (image.clone(), inputs.clone());
                // One that finds no room is about something that the next one tells better.
                let _ = inputs.try_send(Input::PullProgress { image, text });
            };
            let result = run_until(until, &executable, &own, &request, &mut cost, &progress, &tell).await;
            let result = result.unwrap_or_else(|error| {
                let message = format!("image {image}: {error:#}");
                Err(PullError::new(PullReason::ErrImagePull, message))
            });
            // The driver is gone only when the agent ends.
            let _ = inputs.send(Input::Pulled { image, result, cost }).await;
        });
        let pull = Pull {
            logins,
            turn,
            shown,
            task: task.abort_handle(),
        };
        self.pulls.insert(key, pull);
    }

    /// What holds of pulls now, by the time of the day.
    fn window(&self) -> State {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |it| it.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        window::state(&self.config.images.pull_windows, now, now >= crate::BUILT)
    }

    /// Why nothing is pulled now, if that is so.
    fn closed(&self) -> Option<String> {
        if !matches!(self.window(), State::Closed) {
            return None;
        }
        let windows = self.config.images.pull_windows.iter();
        let windows: Vec<String> = windows.map(ToString::to_string).collect();
        Some(format!(
            "images are pulled at {} UTC alone (images.pull_windows)",
            windows.join(", ")
        ))
    }

    /// The limits of what comes from a registry, or from the server.
    fn paces(&self, registry: Option<(&str, u64)>) -> Vec<Pace> {
        let node = (NODE, self.config.images.max_bytes_per_second);
        let both = [Some(node), registry].into_iter().flatten();
        let limits = both.filter(|(_, limit)| *limit > 0);
        let pace = |(name, bytes_per_second): (&str, u64)| Pace {
            file: self.config.run_dir.join(PACES).join(name),
            bytes_per_second,
        };
        limits.map(pace).collect()
    }

    /// Who waits for a pull hears how far it is.
    pub(crate) fn progressed(&self, image: &str, text: &str) -> Vec<Event> {
        let waiting = self.waiting.get(image).into_iter().flatten();
        let event = |it: &Waiter| Event::PullProgress {
            container: it.container.clone(),
            text: text.to_owned(),
        };
        waiting.map(event).collect()
    }

    /// The pulls under way, for whoever asks.
    pub(crate) fn pulling(&self) -> serde_json::Value {
        let pulls = self.pulls.iter();
        pulls.map(|(image, it)| lock(&it.shown).json(image)).collect()
    }

    /// What pulls that are over were sent since the start.
    pub(crate) fn fetched(&self) -> Fetched {
        self.fetched
    }

    /// Bytes of the disk that a pull must leave: with less, Pods would be ended for it.
    fn keep_free(&self) -> u64 {
        let total = skiff_sys::fs::space(self.store.root()).map_or(0, |it| it.total);
        self.config.eviction.disk_available.of(total)
    }

    /// Something no longer runs from an image: it is unused from now on. What ran well is noted now, for the disk is written
    /// for that Pod's end anyway, and while it ran it stayed for that.
    pub(crate) fn unused(&mut self, image: &Digest, floor: u64) {
        self.collections.look_soon();
        for repository in std::mem::take(&mut self.unnoted) {
            let noted = self.good.get(&repository);
            let noted = noted.map(|image| self.store.note_good(&repository, image));
            if let Some(Err(error)) = noted {
                warn!(repository, %error, "that an image ran well is not kept");
            }
        }
        let now = SystemTime::now().max(SystemTime::UNIX_EPOCH + Duration::from_secs(floor));
        if let Err(error) = self.store.note_used(image, now) {
            warn!(%image, %error, "the time of an image's last use is not kept");
        }
    }

    /// A container ran well from an image: of its repository it stays.
    pub(crate) fn ran_well(&mut self, image: &str, digest: Digest) {
        let Ok(reference) = ImageRef::parse(image) else {
            return;
        };
        let repository = format!("{}/{}", reference.registry(), reference.repository());
        if self.good.insert(repository.clone(), digest) != Some(digest) {
            self.unnoted.insert(repository);
        }
    }

    /// Where an image may come from: the server, mirrors, the registry itself, once for each of the credentials.
    fn sources(&self, reference: &ImageRef, logins: &[Login]) -> Vec<Source> {
        let mut out = Vec::new();
        if self.config.images_from_server {
            for url in &self.identity.joined.server_urls {
                let mut source = Source::new(SourceKind::Server, url.as_str());
                source.ca_pem = Some(self.identity.joined.ca_certificate.clone());
                source.client_cert_pem = Some(self.identity.joined.certificate.clone());
                source.client_key_pem = Some(self.identity.key_pem.clone());
                source.paces = self.paces(None);
                out.push(source);
            }
        }
        let registry = self
            .config
            .registries
            .get(reference.registry())
            .cloned()
            .unwrap_or_default();
        let ca = registry.ca.as_ref().and_then(|path| {
            std::fs::read_to_string(path)
                .inspect_err(
                    |error| warn!(path = %path.display(), %error, "the registry's CA cannot be read"),
                )
                .ok()
        });
        let configured = registry.username.zip(registry.password);
        let paces = self.paces(Some((reference.registry(), registry.max_bytes_per_second)));
        let mut push = |kind, url: &str, login: Option<(String, String)>| {
            let mut source = Source::new(kind, url);
            source.plain_http = registry.plain_http;
            source.ca_pem.clone_from(&ca);
            (source.username, source.password) = login.unzip();
            source.paces.clone_from(&paces);
            out.push(source);
        };
        for url in &registry.mirrors {
            push(SourceKind::Mirror, url, configured.clone());
        }
        for login in logins {
            let login = (login.username.clone(), login.password.clone());
            push(SourceKind::Registry, "", Some(login));
        }
        if logins.is_empty() || configured.is_some() {
            push(SourceKind::Registry, "", configured);
        }
        out
    }
}

fn ready(container: ContainerRef, image: &Image) -> Event {
    Event::ImageReady {
        container,
        image_id: image.repo_digest.to_string(),
    }
}

fn failed(error: &PullError) -> ImageError {
    let reason = match error.reason {
        PullReason::InvalidImageName => "InvalidImageName",
        PullReason::ErrImageNeverPull => "ErrImageNeverPull",
        PullReason::ErrImagePull | PullReason::RegistryUnavailable => "ErrImagePull",
    };
    let retry = error.reason != PullReason::InvalidImageName;
    ImageError {
        reason: reason.to_owned(),
        message: error.message.clone(),
        retry,
    }
}

/// Runs one pull process until then at most; what has come by then is kept.
async fn run_until(
    until: Instant,
    executable: &Path,
    own: &Own,
    request: &PullRequest,
    cost: &mut Cost,
    shown: &Mutex<Shown>,
    tell: &(dyn Fn(String) + Sync),
) -> Result<Result<(), PullError>> {
    // Dropped, it kills its process.
    let pull = run(executable, own, request, PATIENCE, cost, shown, tell);
    match timeout_at(until.into(), pull).await {
        Ok(result) => result,
        Err(_) => Ok(Err(clear(request, "the pull window has closed").await)),
    }
}

/// Runs one pull process to its last line, or kills it when it has said nothing for `patience`.
async fn run(
    executable: &Path,
    own: &Own,
    request: &PullRequest,
    patience: Duration,
    cost: &mut Cost,
    shown: &Mutex<Shown>,
    tell: &(dyn Fn(String) + Sync),
) -> Result<Result<(), PullError>> {
    let mut last = None;
    let end = child::run(executable, "pull", own, request, patience, |line| match line {
        PullReport::Plan(plan) => lock(shown).plan(plan.total, plan.known),
        PullReport::Progress(it) => {
            if let Some(text) = lock(shown).hear(&it, Instant::now()) {
                tell(text);
            }
        }
        PullReport::Fetched(said) => cost.fetched = said,
        PullReport::Wrote(said) => cost.wrote = said,
        PullReport::Ok(_) => last = Some(Ok(())),
        PullReport::Error(error) => last = Some(Err(error)),
    })
    .await?;
    match (end, last) {
        (End::Stuck, _) => {
            let why = format!("no progress for {} seconds", patience.as_secs());
            Ok(Err(clear(request, &why).await))
        }
        (End::Ended(_), Some(last)) => Ok(last),
        (End::Ended(status), None) => bail!("the pull process ended without an answer: {status}"),
    }
}

/// Removes what a pull had unpacked that was ended; what it had fetched stays for its next try.
async fn clear(request: &PullRequest, why: &str) -> PullError {
    let store = request.store.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || Store::open(store)).await {
        warn!(image = request.reference, %error, "a pull's files stay until the next start");
    }
    let message = format!("image {}: {why}; the pull was ended", request.reference);
    // A registry that gives nothing is as good as none.
    PullError::new(PullReason::RegistryUnavailable, message)
}

/// What is shown of a pull is whole after each step, so a panic elsewhere says nothing of it.
fn lock(shown: &Mutex<Shown>) -> std::sync::MutexGuard<'_, Shown> {
    shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
