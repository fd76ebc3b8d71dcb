//! One source's try at an image: manifest, configuration, layers, commit.
//!
//! Always holds: a layer that was committed stays committed, and what has come of one that was not is kept, so the next
//! source, or the next pull, goes on from there. Two pulls that need one layer fetch it once.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use skiff_protocol::image_ref::{Digest, ImageRef};

use super::{Plan, ProgressSink, PullRequest, Source, SourceKind};
use crate::decompress::Decompressed;
use crate::digest::HashingReader;
use crate::error::{Error, UnpackError};
use crate::partial::Partial;
use crate::record::{Claim, ImageRecord};
use crate::registry::{
    BlobReader, Client, Config, Descriptor, Document, Manifest, ReadFailure, RegistryError, choose,
};
use crate::store::{Stage, Store};
use crate::unpack::{DeviceNodes, UnpackOptions, unpack_layer};

/// How many times its size must be free for what comes of a layer to be kept beside what it unpacks to.
const ROOM: u64 = 4;

/// How often a pull asks whether another one is done with a layer that both need.
const AGAIN: Duration = Duration::from_millis(500);

/// Why one source gave no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Store(#[from] Error),
    #[error("layer {digest}: {error}")]
    Unpack { digest: Digest, error: UnpackError },
    #[error("nobody listens to the pull any more: {0}")]
    Listener(io::Error),
}

impl Failure {
    /// Whether the next source could not help, because it is this node that fails.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Store(_) | Self::Listener(_) => true,
            Self::Unpack { error, .. } => is_of_disk(error),
            Self::Registry(_) => false,
        }
    }

    /// Whether what came is not what was asked for, or is nothing that a layer can be.
    fn is_of_content(&self) -> bool {
        match self {
            Self::Unpack { error, .. } => !is_of_disk(error),
            Self::Registry(error) => matches!(error, RegistryError::Mismatch { .. }),
            Self::Store(_) | Self::Listener(_) => false,
        }
    }

    /// Whether more room on the disk would have helped.
    fn is_full_disk(&self) -> bool {
        match self {
            Self::Store(error) => error.is_full(),
            Self::Unpack { error, .. } => match error {
                UnpackError::Full { .. } => true,
                UnpackError::Write { source, .. } => source.kind() == io::ErrorKind::StorageFull,
                _ => false,
            },
            Self::Registry(_) | Self::Listener(_) => false,
        }
    }

    /// Bytes that should be free for another try, if that is what was missing; `left` bytes were still to come, and `kept`
    /// are not this pull's. That what they unpack to is more is known where it has filled the disk.
    pub(crate) fn needs(&self, left: u64, kept: u64) -> Option<u64> {
        match self {
            Self::Store(Error::Full { needed, kept, .. }) => Some(needed.saturating_add(*kept)),
            _ => self
                .is_full_disk()
                .then(|| left.saturating_mul(ROOM).saturating_add(kept)),
        }
    }

    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Registry(RegistryError::Unavailable(_)))
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Registry(RegistryError::Answer { status: 404, .. }))
    }
}

/// Whether it is the node's disk that refused.
fn is_of_disk(error: &UnpackError) -> bool {
    matches!(error, UnpackError::Write { .. } | UnpackError::Full { .. })
}

/// The URL that a source is asked at.
pub(crate) fn base_url(source: &Source, reference: &ImageRef) -> String {
    if !source.base_url.is_empty() || source.kind != SourceKind::Registry {
        return source.base_url.clone();
    }
    let scheme = if source.plain_http { "http" } else { "https" };
    format!("{scheme}://{}", reference.registry_host())
}

/// What all sources' tries share.
pub(crate) struct Attempt<'a> {
    pub(crate) request: &'a PullRequest,
    pub(crate) reference: &'a ImageRef,
    pub(crate) store: &'a Store,
    pub(crate) stage: &'a Stage,
}

impl Attempt<'_> {
    pub(crate) fn run(&self, source: &Source, progress: &mut dyn ProgressSink) -> Result<Digest, Failure> {
        let base = base_url(source, self.reference);
        let limits = &self.request.limits;
        let mut client = Client::new(
            source,
            &base,
            self.reference,
            limits,
            self.request.not_before_unix,
        )?;
        let (manifest, digest, repo_digest) = self.manifest(&mut client)?;
        if self
            .store
            .adopt(self.stage, digest, self.reference, repo_digest)?
        {
            return Ok(digest);
        }
        let config = client.small_blob(&manifest.config.digest, "image configuration")?;
        let config = Config::parse(&config, &self.request.platform, manifest.layers.len())?;
        let mut left = limits.max_unpacked_bytes;
        let mut claim = Claim {
            layers: config.diff_ids.clone(),
            bytes: 0,
        };
        // Before it looks what is here: from now on that stays.
        self.store.claim(self.stage, &claim)?;
        claim.bytes = self.missing(&manifest.layers, &config.diff_ids)?;
        let total = manifest
            .layers
            .iter()
            .fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        let known = total.saturating_sub(claim.bytes);
        progress.plan(Plan { total, known }).map_err(Failure::Listener)?;
        self.store.reserve(self.stage, &claim, limits.keep_free_bytes)?;
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            if self.store.has_layer(diff_id)? {
                progress
                    .progress(&layer.digest, layer.size, layer.size)
                    .map_err(Failure::Listener)?;
            } else {
                left -= self.layer(&mut client, layer, diff_id, left, progress)?;
                claim.bytes = claim.bytes.saturating_sub(layer.size);
                self.store.claim(self.stage, &claim)?;
            }
        }
        let size = manifest.config.size.saturating_add(total);
        let record = ImageRecord::new(digest, config.diff_ids, config.config, size);
        self.store
            .commit_image(self.stage, &record, self.reference, repo_digest)?;
        Ok(digest)
    }

    /// Bytes of the layers that are not here, as transferred.
    fn missing(&self, layers: &[Descriptor], diff_ids: &[Digest]) -> Result<u64, Error> {
        let mut sum = 0_u64;
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            if !self.store.has_layer(diff_id)? {
                sum = sum.saturating_add(layer.size);
            }
        }
        Ok(sum)
    }

    /// The platform's manifest, its digest, and the digest that the reference led to.
    fn manifest(&self, client: &mut Client) -> Result<(Manifest, Digest, Digest), RegistryError> {
        let asked = self.reference.manifest_reference();
        let (bytes, repo_digest) = client.manifest(&asked)?;
        let what = format!("manifest {asked}");
        let manifests = match Document::parse(&bytes, &what)? {
            Document::Manifest(manifest) => return Ok((manifest, repo_digest, repo_digest)),
            Document::Index(manifests) => manifests,
        };
        let chosen = choose(&manifests, &self.request.platform)?;
        let (bytes, digest) = client.manifest(&chosen.digest.to_string())?;
        let what = format!("manifest {digest}");
        match Document::parse(&bytes, &what)? {
            Document::Manifest(manifest) => Ok((manifest, digest, repo_digest)),
            Document::Index(_) => Err(RegistryError::malformed(&what, "an index within an index")),
        }
    }

    /// Transfers, verifies, unpacks and commits one layer, or waits for a pull that is at it. Returns the bytes that it
    /// unpacked to, at most `left`.
    fn layer(
        &self,
        client: &mut Client,
        layer: &Descriptor,
        diff_id: &Digest,
        left: u64,
        progress: &mut dyn ProgressSink,
    ) -> Result<u64, Failure> {
        let (mut may_doubt, mut may_reclaim) = (true, true);
        loop {
            let Some(mut partial) = self.partial(layer, diff_id, progress)? else {
                return Ok(0);
            };
            let keep_free = self.request.limits.keep_free_bytes;
            if self.store.room_for(self.stage, layer.size, keep_free)? / ROOM < layer.size {
                partial.stop();
            }
            let pass = self.try_layer(client, layer, diff_id, left, progress, partial)?;
            let failure = match pass.unpacked {
                Ok(length) => {
                    self.commit(diff_id, pass.partial)?;
                    return Ok(length);
                }
                Err(failure) => failure,
            };
            let Some(mut partial) = pass.partial else {
                return Err(failure);
            };
            if failure.is_of_content() {
                // Never gone on with. If some of it came before this pull, that may be what is wrong.
                partial.remove()?;
                if pass.known > 0 && std::mem::take(&mut may_doubt) {
                    tracing::warn!(layer = %layer.digest, %failure, "what was kept of the layer is wrong; it is fetched anew");
                    continue;
                }
            } else {
                // A full disk may have no room for the last block.
                let _ = partial.keep();
                drop(partial);
                if failure.is_full_disk() && std::mem::take(&mut may_reclaim) && self.store.reclaim()? > 0 {
                    continue;
                }
            }
            return Err(failure);
        }
    }

    /// What has come of a layer. While another pull is at it, waits; nothing once the layer is here.
    fn partial(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        progress: &mut dyn ProgressSink,
    ) -> Result<Option<Partial>, Failure> {
        loop {
            let partial = self.store.partial(&layer.digest)?;
            // Asked once it is ours, or the one who had it could have finished in between.
            if self.store.has_layer(diff_id)? {
                if let Some(partial) = partial {
                    partial.remove()?;
                }
                return Ok(None);
            }
            if partial.is_some() {
                return Ok(partial);
            }
            progress
                .progress(&layer.digest, 0, layer.size)
                .map_err(Failure::Listener)?;
            thread::sleep(AGAIN);
        }
    }

    /// Names a layer that is whole, and gives up what was kept of it.
    fn commit(&self, diff_id: &Digest, mut partial: Option<Partial>) -> Result<(), Error> {
        // What a fast link has brought is not worth a write, which the sync of the layer would be.
        if let Some(fresh) = partial.take_if(|it| !it.is_durable()) {
            fresh.remove()?;
        }
        self.store.commit_layer(&self.stage.layer_path(), diff_id)?;
        partial.map_or(Ok(()), Partial::remove)
    }

    /// One pass over a layer.
    fn try_layer(
        &self,
        client: &mut Client,
        layer: &Descriptor,
        diff_id: &Digest,
        left: u64,
        progress: &mut dyn ProgressSink,
        partial: Partial,
    ) -> Result<Pass, Failure> {
        let directory = self.stage.layer_dir()?;
        let root = File::open(&directory).map_err(Error::io("open", &directory))?;
        let what = format!("layer {}", layer.digest);
        let options = UnpackOptions {
            max_bytes: left,
            max_entries: self.request.limits.max_entries,
            devices: DeviceNodes::Skip,
            keep_free: self.request.limits.keep_free_bytes,
        };
        let mut blob = BlobReader::new(client, progress, layer, &what, partial);
        let streamed = stream(&mut blob, &root, &options);
        let (failure, partial, known) = blob.into_outcome();
        let unpacked = match failure {
            Some(ReadFailure::Registry(error)) => Err(Failure::Registry(error)),
            Some(ReadFailure::Listener(error)) => Err(Failure::Listener(error)),
            None => judge(streamed, layer, &what, diff_id),
        };
        Ok(Pass {
            unpacked,
            partial,
            known,
        })
    }
}

/// What a pass over a layer came to.
struct Pass {
    /// The bytes that it unpacked to.
    unpacked: Result<u64, Failure>,
    /// What has come of it, while that could be kept.
    partial: Option<Partial>,
    /// Bytes of that which came before this pull.
    known: u64,
}

/// Whether what has come is the layer.
fn judge(streamed: Streamed, layer: &Descriptor, what: &str, diff_id: &Digest) -> Result<u64, Failure> {
    let mismatch = |what: String, expected: Digest, got: Digest| {
        Failure::Registry(RegistryError::Mismatch { what, expected, got })
    };
    let unpack = |error| Failure::Unpack {
        digest: layer.digest,
        error,
    };
    // A lie is the better explanation of content that makes no sense.
    let (transferred, _) = streamed
        .transferred
        .map_err(|error| unpack(UnpackError::Archive(error)))?;
    if let Err(error @ (UnpackError::Write { .. } | UnpackError::Full { .. } | UnpackError::Limit { .. })) =
        streamed.unpacked
    {
        return Err(unpack(error));
    }
    if transferred != layer.digest {
        return Err(mismatch(what.to_owned(), layer.digest, transferred));
    }
    let (content, length) = streamed.unpacked.map_err(unpack)?;
    if content != *diff_id {
        return Err(mismatch(format!("{what}, uncompressed"), *diff_id, content));
    }
    Ok(length)
}

/// What one pass over a layer gave.
struct Streamed {
    /// Digest and length as transferred.
    transferred: io::Result<(Digest, u64)>,
    /// Digest and length of the archive.
    unpacked: Result<(Digest, u64), UnpackError>,
}

/// socket → hash → decompress → hash → tar → disk, in constant memory.
fn stream(blob: &mut BlobReader<'_>, root: &File, options: &UnpackOptions) -> Streamed {
    let mut transferred = HashingReader::new(blob);
    let unpacked = Decompressed::new(&mut transferred)
        .map_err(UnpackError::Archive)
        .and_then(|archive| {
            let mut archive = HashingReader::new(archive);
            unpack_layer(&mut archive, root.as_fd(), options)?;
            archive.drain().map_err(UnpackError::Archive)
        });
    // A full disk or a passed bound is not worth the rest of the transfer.
    let transferred = match &unpacked {
        Err(UnpackError::Write { .. } | UnpackError::Full { .. } | UnpackError::Limit { .. }) => {
            Ok((Digest::from_sha256([0; 32]), 0))
        }
        _ => transferred.drain(),
    };
    Streamed {
        transferred,
        unpacked,
    }
}
