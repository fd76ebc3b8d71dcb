//! The credentials for registries that a Pod brings with it.
//!
//! Always holds: they are looked up when an image is asked for, so a Secret that came or changed since counts.

use skiff_protocol::image_ref::ImageRef;
use skiff_protocol::uid::Uid;
use tracing::warn;

use super::Driver;
use crate::images::keys::{Login, logins};

impl Driver {
    /// The credentials that a Pod brings for the registry of an image.
    pub(super) fn logins(&self, uid: Uid, image: &str) -> Vec<Login> {
        let Some((pod, _)) = self.core.pod(uid) else {
            return Vec::new();
        };
        let (Ok(reference), false) = (ImageRef::parse(image), pod.image_pull_secrets.is_empty()) else {
            return Vec::new();
        };
        let look = self.lookup(&pod.namespace);
        // One that is not there is told by the core.
        let secrets = pod.image_pull_secrets.iter().filter_map(|name| look(true, name));
        let (logins, wrong) = logins(&secrets.collect::<Vec<_>>(), &reference);
        for why in wrong {
            warn!(pod = %uid, namespace = pod.namespace, why, "credentials for a registry cannot be used");
        }
        logins
    }
}
