//! The store as it is shown: to `skiff-agent images`, and to the server.

use std::collections::BTreeSet;
use std::time::UNIX_EPOCH;

use serde_json::{Value, json};
use skiff_protocol::image_ref::{Digest, ImageRef};
use skiff_protocol::limits::{IMAGE_NAMES, NODE_IMAGES};
use skiff_protocol::wire::NodeImage;
use tracing::warn;

use super::Images;
use super::collection::is_pinned;

impl Images {
    /// Every name in the store, with why its image stays.
    #[must_use]
    pub(crate) fn shown(&self, named: &BTreeSet<ImageRef>, held: &BTreeSet<Digest>) -> Value {
        let listed = match self.store.list() {
            Ok(listed) => listed,
            Err(error) => return json!({ "error": error.to_string() }),
        };
        let good: BTreeSet<Digest> = self.good.values().copied().collect();
        let one = |it: &skiff_images::StoredImage| {
            let used = it.used.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            json!({
                "reference": it.reference.to_string(),
                "digest": it.digest.to_string(),
                "sizeBytes": it.size_bytes,
                "lastUsedUnix": used.map(|it| it.as_secs()),
                "inUse": held.contains(&it.digest),
                "named": named.contains(&it.reference),
                "pinned": is_pinned(&self.config.images, &it.reference),
                "lastGood": good.contains(&it.digest),
                "preloaded": it.preloaded,
            })
        };
        listed.iter().map(one).collect()
    }

    /// Whether the store has changed since this was last asked.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What the server shows of the store: the largest images, with all their names.
    #[must_use]
    pub(crate) fn inventory(&self) -> Vec<NodeImage> {
        let listed = self.store.list().unwrap_or_else(|error| {
            warn!(%error, "the server is not told which images are here");
            Vec::new()
        });
        let mut images: Vec<(Digest, NodeImage)> = Vec::new();
        for it in listed {
            let of_digest = |repository: &ImageRef| {
                let (registry, repository) = (repository.registry(), repository.repository());
                format!("{registry}/{repository}@{}", it.repo_digest)
            };
            // A kubelet's order: what a digest names, then tags.
            let mut names = vec![of_digest(&it.reference)];
            if it.reference.digest().is_none() {
                names.push(it.reference.to_string());
            }
            let known = images.iter_mut().find(|known| known.0 == it.digest);
            match known {
                Some((_, known)) => {
                    for name in names {
                        if !known.names.contains(&name) && known.names.len() < IMAGE_NAMES {
                            known.names.push(name);
                        }
                    }
                }
                None => {
                    let size_bytes = it.size_bytes;
                    images.push((it.digest, NodeImage { names, size_bytes }));
                }
            }
        }
        let mut images: Vec<NodeImage> = images.into_iter().map(|it| it.1).collect();
        images.sort_by_key(|it| std::cmp::Reverse(it.size_bytes));
        images.truncate(NODE_IMAGES);
        images
    }
}
