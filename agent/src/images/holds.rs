//! Which images something runs from: what must not be taken out of the store under it.
//!
//! ```text
//! <run>/pods/<uid>/images/<container>          the digest of the image that the container was last started from
//! <run>/pods/<uid>/images/volume.<volume>      the same of an image volume
//! ```
//!
//! Always holds: it is written before the mount, and goes with the Pod's directory; so an agent that comes later knows it
//! too, and after a reboot nothing is held.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use skiff_protocol::image_ref::Digest;
use skiff_protocol::uid::Uid;
use tracing::warn;

const DIR: &str = "images";

/// What each Pod holds.
#[derive(Debug)]
pub(crate) struct Holds {
    /// `<run>/pods`.
    pods: PathBuf,
    held: BTreeMap<Uid, BTreeMap<String, Digest>>,
    /// Pods of an agent that kept no such notes: what they run from is not known.
    unknown: BTreeSet<Uid>,
}

impl Holds {
    /// Nothing is held yet.
    #[must_use]
    pub(crate) fn new(pods: PathBuf) -> Self {
        Self {
            pods,
            held: BTreeMap::new(),
            unknown: BTreeSet::new(),
        }
    }

    /// Takes over what Pods hold that an agent before this one started.
    pub(crate) fn adopt(&mut self, pods: &[Uid]) {
        for uid in pods {
            let dir = self.dir(*uid);
            if let Ok(held) = read(&dir) {
                self.held.insert(*uid, held);
            } else if dir.with_file_name("notes").exists() {
                // It has started containers.
                self.unknown.insert(*uid);
            }
        }
    }

    /// A container or volume is about to use an image. Gives the one before it, where nothing uses that any more.
    pub(crate) fn hold(&mut self, pod: Uid, name: &str, image: Digest) -> Option<Digest> {
        let dir = self.dir(pod);
        let written = std::fs::create_dir_all(&dir).and_then(|()| {
            // Whole at any moment, for an agent may end at any.
            let new = dir.join(".new");
            std::fs::write(&new, image.to_string())?;
            std::fs::rename(&new, dir.join(name))
        });
        if let Err(error) = written {
            warn!(%pod, name, %error, "the next agent will not know which image this runs from");
        }
        let before = self.held.entry(pod).or_default().insert(name.to_owned(), image)?;
        (!self.is_held(&before)).then_some(before)
    }

    /// A Pod is gone. Gives what nothing uses any more.
    pub(crate) fn release(&mut self, pod: Uid) -> BTreeSet<Digest> {
        self.unknown.remove(&pod);
        let held = self.held.remove(&pod).unwrap_or_default();
        let images: BTreeSet<Digest> = held.into_values().collect();
        images.into_iter().filter(|it| !self.is_held(it)).collect()
    }

    /// What a container runs from.
    #[must_use]
    pub(crate) fn of(&self, pod: Uid, name: &str) -> Option<Digest> {
        self.held.get(&pod)?.get(name).copied()
    }

    /// Everything that something uses.
    ///
    /// # Errors
    /// A Pod of which it is not known.
    pub(crate) fn all(&self) -> Result<BTreeSet<Digest>, Uid> {
        match self.unknown.first() {
            Some(pod) => Err(*pod),
            None => Ok(self.held.values().flat_map(|it| it.values()).copied().collect()),
        }
    }

    fn is_held(&self, image: &Digest) -> bool {
        self.held.values().any(|it| it.values().any(|held| held == image))
    }

    fn dir(&self, pod: Uid) -> PathBuf {
        self.pods.join(pod.to_string()).join(DIR)
    }
}

fn read(dir: &Path) -> std::io::Result<BTreeMap<String, Digest>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|it| it.to_str());
        let digest = Digest::parse(std::fs::read_to_string(&path)?.trim());
        if let (Some(name), Ok(digest)) = (name, digest)
            && !name.starts_with('.')
        {
            out.insert(name.to_owned(), digest);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_holds_its_image_until_nothing_does() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = [1, 2].map(|n| Digest::from_sha256([n; 32]));
        let [one, two] = [1, 2].map(|n| Uid([n; 16]));
        let mut holds = Holds::new(dir.path().to_owned());
        assert_eq!(holds.hold(one, "main", a), None);
        assert_eq!(holds.hold(two, "main", a), None);
        assert_eq!(holds.hold(one, "main", b), None, "the other Pod still uses it");
        assert_eq!(holds.hold(two, "main", b), Some(a));
        assert_eq!(holds.hold(two, "volume.v", a), None);
        // The next agent knows it too.
        let mut holds = Holds::new(dir.path().to_owned());
        holds.adopt(&[one, two]);
        assert_eq!(holds.all(), Ok([a, b].into()));
        assert_eq!(holds.of(two, "volume.v"), Some(a));
        assert_eq!(holds.release(one), [].into());
        assert_eq!(holds.release(two), [a, b].into());
        assert_eq!(holds.all(), Ok([].into()));
    }

    #[test]
    fn of_a_pod_whose_images_are_not_known_nothing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = [1, 2].map(|n| Uid([n; 16]));
        std::fs::create_dir_all(dir.path().join(one.to_string()).join("notes")).unwrap();
        // A sandbox alone runs from nothing.
        std::fs::create_dir_all(dir.path().join(two.to_string())).unwrap();
        let mut holds = Holds::new(dir.path().to_owned());
        holds.adopt(&[one, two]);
        assert_eq!(holds.all(), Err(one));
        holds.release(one);
        assert_eq!(holds.all(), Ok([].into()));
    }
}
