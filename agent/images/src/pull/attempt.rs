//! One source's try at an image: manifest, configuration, layers, commit.
//!
//! Always holds: a layer that was committed stays committed, so the next source, or the next pull, goes on from there.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use skiff_protocol::image_ref::{Digest, ImageRef};

use super::{ProgressSink, PullRequest, Source, SourceKind};
use crate::decompress::Decompressed;
use crate::digest::HashingReader;
use crate::error::{Error, UnpackError};
use crate::registry::{
    BlobReader, Client, Config, Descriptor, Document, Manifest, ReadFailure, RegistryError, choose,
};
use crate::store::{ImageRecord, Stage, Store};
use crate::unpack::{DeviceNodes, UnpackOptions, unpack_layer};

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
            Self::Unpack { error, .. } => matches!(error, UnpackError::Write { .. }),
            Self::Registry(_) => false,
        }
    }

    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Registry(RegistryError::Unavailable(_)))
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Registry(RegistryError::Answer { status: 404, .. }))
    }
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
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            if self.store.has_layer(diff_id)? {
                progress
                    .progress(&layer.digest, layer.size, layer.size)
                    .map_err(Failure::Listener)?;
            } else {
                left -= self.layer(&mut client, layer, diff_id, left, progress)?;
            }
        }
        let size = manifest
            .layers
            .iter()
            .fold(manifest.config.size, |sum, layer| sum.saturating_add(layer.size));
        let record = ImageRecord::new(digest, config.diff_ids, config.config, size);
        self.store
            .commit_image(self.stage, &record, self.reference, repo_digest)?;
        Ok(digest)
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

    /// Transfers, verifies, unpacks and commits one layer. Returns the bytes that it unpacked to, at most `left`.
    fn layer(
        &self,
        client: &mut Client,
        layer: &Descriptor,
        diff_id: &Digest,
        left: u64,
        progress: &mut dyn ProgressSink,
    ) -> Result<u64, Failure> {
        let directory = self.stage.layer_dir()?;
        let root = File::open(&directory).map_err(Error::io("open", &directory))?;
        let what = format!("layer {}", layer.digest);
        let options = UnpackOptions {
            max_bytes: left,
            max_entries: self.request.limits.max_entries,
            devices: DeviceNodes::Skip,
        };
        let mut blob = BlobReader::new(client, progress, layer, &what);
        let streamed = stream(&mut blob, &root, &options);
        if let Some(failure) = blob.into_failure() {
            return Err(match failure {
                ReadFailure::Registry(error) => Failure::Registry(error),
                ReadFailure::Listener(error) => Failure::Listener(error),
            });
        }
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
        if let Err(error @ (UnpackError::Write { .. } | UnpackError::Limit { .. })) = streamed.unpacked {
            return Err(unpack(error));
        }
        if transferred != layer.digest {
            return Err(mismatch(what, layer.digest, transferred));
        }
        let (content, length) = streamed.unpacked.map_err(unpack)?;
        if content != *diff_id {
            return Err(mismatch(format!("{what}, uncompressed"), *diff_id, content));
        }
        self.store.commit_layer(&directory, diff_id)?;
        Ok(length)
    }
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
        Err(UnpackError::Write { .. } | UnpackError::Limit { .. }) => Ok((Digest::from_sha256([0; 32]), 0)),
        _ => transferred.drain(),
    };
    Streamed {
        transferred,
        unpacked,
    }
}
