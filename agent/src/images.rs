//! Images for containers: from the store, or by a `skiff-agent pull` process.
//!
//! Always holds: one pull a reference, [`PULLS`] at once; the agent itself never unpacks anything.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use skiff_core::{ContainerRef, Event, ImageError};
use skiff_images::pull::{Platform, PullError, PullReason, PullReport, PullRequest, Source, SourceKind};
use skiff_images::{Image, Store};
use skiff_protocol::image_ref::ImageRef;
use skiff_protocol::wire::spec::PullPolicy;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{Semaphore, mpsc};
use tracing::{info, warn};

use crate::config::Config;
use crate::identity::Identity;
use crate::input::Input;

/// Pulls at once: one that waits for its registry must not hold up all others, and memory is small.
const PULLS: usize = 2;

/// Bytes of one line that a pull process may write.
const LINE: u64 = 64 * 1024;

/// The node's images.
pub(crate) struct Images {
    store: Store,
    config: Arc<Config>,
    identity: Arc<Identity>,
    executable: PathBuf,
    inputs: mpsc::Sender<Input>,
    permits: Arc<Semaphore>,
    /// Who waits for the pull of a reference.
    waiting: BTreeMap<String, Vec<(ContainerRef, PullPolicy)>>,
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
        inputs: mpsc::Sender<Input>,
    ) -> Result<Self> {
        let store = Store::open(config.state_dir.join("images"))?;
        let permits = Arc::new(Semaphore::new(PULLS));
        Ok(Self {
            store,
            config,
            identity,
            executable,
            inputs,
            permits,
            waiting: BTreeMap::new(),
        })
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

    /// Has the image in the store; answers at once where nothing is to be fetched.
    pub(crate) fn ensure(
        &mut self,
        container: ContainerRef,
        image: &str,
        policy: PullPolicy,
        floor: u64,
    ) -> Option<Event> {
        let reference = match ImageRef::parse(image) {
            Ok(reference) => reference,
            Err(error) => {
                let message = format!("Failed to apply default image tag {image:?}: {error}");
                let error = ImageError {
                    reason: "InvalidImageName".to_owned(),
                    message,
                    retry: false,
                };
                return Some(Event::ImageFailed { container, error });
            }
        };
        if policy != PullPolicy::Always || reference.digest().is_some() {
            match self.store.resolve(&reference) {
                Ok(Some(image)) => return Some(ready(container, &image)),
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
            return Some(Event::ImageFailed { container, error });
        }
        let waiting = self.waiting.entry(image.to_owned()).or_default();
        waiting.push((container, policy));
        if waiting.len() == 1 {
            self.pull(image.to_owned(), &reference, floor);
        }
        None
    }

    /// A pull is over: the events of all who waited for it.
    pub(crate) fn pulled(&mut self, image: &str, result: &Result<(), PullError>) -> Vec<Event> {
        let waiting = self.waiting.remove(image).unwrap_or_default();
        let local = ImageRef::parse(image)
            .ok()
            .and_then(|it| self.store.resolve(&it).ok().flatten());
        if let Err(error) = result {
            info!(image, %error, "image not pulled");
        }
        let answer = |(container, policy): (ContainerRef, PullPolicy)| match (result, &local) {
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
        waiting.into_iter().map(answer).collect()
    }

    fn pull(&self, image: String, reference: &ImageRef, floor: u64) {
        let request = PullRequest {
            reference: image.clone(),
            sources: self.sources(reference),
            platform: Platform::host(),
            store: self.store.root().to_owned(),
            limits: Default::default(),
            not_before_unix: floor,
        };
        let (executable, inputs, permits) =
            (self.executable.clone(), self.inputs.clone(), self.permits.clone());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _permit = permits.acquire_owned().await;
            let result = run(&executable, &request).await;
            let result = result.unwrap_or_else(|error| {
                Err(PullError {
                    reason: PullReason::ErrImagePull,
                    message: format!("image {image}: {error:#}"),
                })
            });
            // The driver is gone only when the agent ends.
            let _ = inputs.send(Input::Pulled { image, result }).await;
        });
    }

    /// Where an image may come from: the server, mirrors, the registry itself.
    fn sources(&self, reference: &ImageRef) -> Vec<Source> {
        let mut out = Vec::new();
        if self.config.images_from_server {
            for url in &self.identity.joined.server_urls {
                let mut source = Source::new(SourceKind::Server, url.as_str());
                source.ca_pem = Some(self.identity.joined.ca_certificate.clone());
                source.client_cert_pem = Some(self.identity.joined.certificate.clone());
                source.client_key_pem = Some(self.identity.key_pem.clone());
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
        let own = (SourceKind::Registry, String::new());
        let mirrors = registry
            .mirrors
            .iter()
            .map(|url| (SourceKind::Mirror, url.clone()));
        for (kind, url) in mirrors.chain([own]) {
            let mut source = Source::new(kind, url);
            source.plain_http = registry.plain_http;
            source.ca_pem.clone_from(&ca);
            source.username.clone_from(&registry.username);
            source.password.clone_from(&registry.password);
            out.push(source);
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

/// Runs one pull process to its last line.
async fn run(executable: &PathBuf, request: &PullRequest) -> Result<Result<(), PullError>> {
    let mut child = tokio::process::Command::new(executable)
        .arg("pull")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {} pull", executable.display()))?;
    let mut stdin = child.stdin.take().context("the pull process has no input")?;
    stdin.write_all(&serde_json::to_vec(request)?).await?;
    drop(stdin);
    let stdout = child.stdout.take().context("the pull process has no output")?;
    let mut lines = BufReader::new(stdout);
    let mut last = None;
    let mut line = String::new();
    while (&mut lines).take(LINE).read_line(&mut line).await? > 0 {
        match serde_json::from_str(&line)? {
            PullReport::Progress(_) => {}
            PullReport::Ok(_) => last = Some(Ok(())),
            PullReport::Error(error) => last = Some(Err(error)),
        }
        line.clear();
    }
    let status = child.wait().await?;
    match last {
        Some(last) => Ok(last),
        None => bail!("the pull process ended without an answer: {status}"),
    }
}
