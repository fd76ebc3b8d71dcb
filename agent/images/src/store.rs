//! The content-addressed store on the node's flash.
//!
//! ```text
//! layers/<diff ID>/          the unpacked tree of one layer, ready to be an overlayfs lower directory
//! images/<manifest>.json     what an image consists of: configuration and diff IDs, bottom first
//! refs/<hash of name>.json   which image a reference means
//! good/<hash of repository>  which image of a repository last ran well
//! partial/<digest>           what has come of a layer that is not whole yet
//! tmp/<pid>-<n>/             what a pull is working on; `lock` in it is held while the pull lives, `claim` says what it needs
//! lock                       held while a claim is made, and while something is taken out of the store
//! ```
//!
//! The time of an image's file is when it was last used. A second store, which is only read, may come with the device: what it
//! has is as good as here.
//!
//! Always holds: a layer is written and the file system synced before it gets its name, an image is written after all
//! its layers have theirs, a reference after its image. So a power cut leaves the old image or the new one. Each of
//! these steps is one `rename` followed by an `fsync` of the directory; nothing is changed in place. What goes, goes in the
//! other order. A damaged file is an error and never taken for a missing one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::io::Errno;
use skiff_protocol::image_ref::{Digest, ImageRef};

use crate::digest::sha256;
use crate::error::Error;
use crate::image::Image;
use crate::partial::{self, Partial};
use crate::record::{
    Claim, GoodRecord, ImageRecord, RefRecord, encode, image_path, layer_path, read_good, read_image,
    read_record, read_ref, ref_path, write_record,
};

pub(crate) const LAYERS: &str = "layers";
pub(crate) const IMAGES: &str = "images";
pub(crate) const REFS: &str = "refs";
pub(crate) const GOOD: &str = "good";
pub(crate) const TMP: &str = "tmp";
pub(crate) const PARTIAL: &str = "partial";
const LOCK: &str = "lock";
const CLAIM: &str = "claim";
/// Times that this process has had the disk flush its cache.
static SYNCS: AtomicU64 = AtomicU64::new(0);

/// The disk was had to flush its cache once more.
pub(crate) fn count_sync() {
    SYNCS.fetch_add(1, Ordering::Relaxed);
}

/// Times that this process has had the disk flush its cache.
pub(crate) fn syncs() -> u64 {
    SYNCS.load(Ordering::Relaxed)
}

/// One line of [`Store::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// A name of the image. An image with several is listed once for each.
    pub reference: ImageRef,
    /// The digest of the platform's manifest.
    pub digest: Digest,
    /// The digest that the reference led to when it was pulled.
    pub repo_digest: Digest,
    /// Configuration and layers as transferred, in bytes; layers that images share count for each.
    pub size_bytes: u64,
    /// When it came or was last used, where that is known.
    pub used: Option<SystemTime>,
    /// It came with the device, and stays.
    pub preloaded: bool,
}

/// The store. Cheap to clone in meaning: it holds a path, and all truth is on disk.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    /// A store that came with the device and is only read.
    preloaded: Option<PathBuf>,
}

impl Store {
    /// Opens the store at `root`, makes it if it is not there, and clears what pulls that died left in `tmp`, and of layers
    /// that nobody has gone on with for a week.
    ///
    /// # Errors
    /// [`Error::Io`] names the path that could not be made, synced or cleared.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, Error> {
        let store = Self::attach(root)?;
        store.clear_tmp()?;
        partial::clear(&store.root.join(PARTIAL), false)?;
        Ok(store)
    }

    /// Opens the store without clearing, as a pull does beside other pulls.
    pub(crate) fn attach(root: impl AsRef<Path>) -> Result<Self, Error> {
        let root = root.as_ref().to_owned();
        fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
        let mut made = false;
        for name in [LAYERS, IMAGES, REFS, GOOD, TMP, PARTIAL] {
            let path = root.join(name);
            match fs::create_dir(&path) {
                Ok(()) => made = true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &path)(error)),
            }
        }
        if made {
            // Layers hold setuid programs: nobody but root may walk to them.
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            fs::set_permissions(&root, private).map_err(Error::io("change the mode of", &root))?;
            sync_dir(&root)?;
        }
        Ok(Self {
            root,
            preloaded: None,
        })
    }

    /// The same with what another store has, which is used in place and never changed. One that is not there has nothing.
    #[must_use]
    pub fn with_preloaded(mut self, directory: Option<&Path>) -> Self {
        self.preloaded = directory.map(Path::to_owned);
        self
    }

    /// The directories that images may be in, the own one first.
    fn places(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.root.as_path()).chain(self.preloaded.as_deref())
    }

    /// The directory of the store.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The image that `reference` means here, whole. `None` if it was never pulled under this name, nor under any
    /// other where the reference has a digest.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Incomplete`] where the disk lost something, [`Error::Io`] where it cannot be read.
    pub fn resolve(&self, reference: &ImageRef) -> Result<Option<Image>, Error> {
        for place in self.places() {
            let path = ref_path(place, reference);
            let Some(record) = read_ref(&path)? else {
                continue;
            };
            let image = self.load(&record.image, record.repo_digest)?;
            return image.map(Some).ok_or_else(|| Error::Incomplete {
                reference: reference.to_string(),
                missing: format!("image {}", record.image),
            });
        }
        match reference.digest() {
            Some(digest) => self.load(digest, *digest),
            None => Ok(None),
        }
    }

    /// Each name in the store with its image, sorted by name.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn list(&self) -> Result<Vec<StoredImage>, Error> {
        let mut listed: Vec<StoredImage> = Vec::new();
        for place in self.places() {
            for record in self.references(place)? {
                // A name of the own store hides the same one of the other.
                if listed.iter().any(|it| it.reference == record.reference) {
                    continue;
                }
                let image =
                    self.load(&record.image, record.repo_digest)?
                        .ok_or_else(|| Error::Incomplete {
                            reference: record.reference.to_string(),
                            missing: format!("image {}", record.image),
                        })?;
                let path = image_path(&self.root, &record.image);
                let used = fs::metadata(&path).and_then(|it| it.modified()).ok();
                listed.push(StoredImage {
                    reference: record.reference,
                    digest: record.image,
                    repo_digest: record.repo_digest,
                    size_bytes: image.size_bytes,
                    used,
                    preloaded: place != self.root,
                });
            }
        }
        listed.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(listed)
    }

    /// What each name means in one of the places.
    pub(crate) fn references(&self, place: &Path) -> Result<Vec<RefRecord>, Error> {
        let mut out = Vec::new();
        for path in entries(&place.join(REFS))? {
            match read_ref(&path) {
                // Gone between the listing and the reading is as good as never listed.
                Ok(record) => out.extend(record),
                // Whoever asks for it by its name is told so, and pulls it again.
                Err(error @ Error::Damaged { .. }) => tracing::warn!(%error, "a name means nothing"),
                Err(error) => return Err(error),
            }
        }
        Ok(out)
    }

    /// The image of each repository, by `registry/repository`, that is noted to have run well. What cannot be read is not
    /// known.
    ///
    /// # Errors
    /// [`Error::Io`] names the directory that could not be listed.
    pub fn good(&self) -> Result<BTreeMap<String, Digest>, Error> {
        let paths = entries(&self.root.join(GOOD))?;
        let records = paths.iter().filter_map(|it| read_good(it));
        Ok(records.map(|it| (it.repository, it.image)).collect())
    }

    /// Notes that an image of a repository ran well. Writes nothing where nothing changes, and is not synced: what is lost
    /// with the power costs a download at worst.
    ///
    /// # Errors
    /// [`Error::Io`] names the file that could not be written.
    pub fn note_good(&self, repository: &str, image: &Digest) -> Result<(), Error> {
        let (record, path) = GoodRecord::new(&self.root, repository, *image);
        if read_good(&path).is_some_and(|known| known.image == *image) {
            return Ok(());
        }
        let bytes = encode(&path, &record)?;
        let new = path.with_extension("new");
        fs::write(&new, bytes).map_err(Error::io("write", &new))?;
        fs::rename(&new, &path).map_err(Error::io("rename a record to", &path))
    }

    /// Notes that an image was used until now. Not synced; one that came with the device needs no note.
    ///
    /// # Errors
    /// [`Error::Io`] names the file whose time could not be set.
    pub fn note_used(&self, image: &Digest, now: SystemTime) -> Result<(), Error> {
        let path = image_path(&self.root, image);
        match File::open(&path) {
            Ok(file) => file
                .set_modified(now)
                .map_err(Error::io("set the time of", &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }

    /// A digest over names and images, equal on two nodes that hold the same.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn inventory_digest(&self) -> Result<Digest, Error> {
        let mut text = String::new();
        for image in self.list()? {
            text.push_str(&format!("{} {}\n", image.reference, image.digest));
        }
        Ok(sha256(text.as_bytes()))
    }

    fn load(&self, digest: &Digest, repo_digest: Digest) -> Result<Option<Image>, Error> {
        for place in self.places() {
            if let Some(record) = read_image(place, digest)? {
                return self.whole(record, repo_digest).map(Some);
            }
        }
        Ok(None)
    }

    /// The image of a record, if all its layers are there.
    fn whole(&self, record: ImageRecord, repo_digest: Digest) -> Result<Image, Error> {
        let mut layers = Vec::with_capacity(record.layers.len());
        for layer in &record.layers {
            let path = self.find_layer(layer)?.ok_or_else(|| Error::Incomplete {
                reference: record.digest.to_string(),
                missing: format!("layer {layer}"),
            })?;
            layers.push(path);
        }
        Ok(Image {
            digest: record.digest,
            repo_digest,
            layers,
            config: record.config,
            size_bytes: record.size_bytes,
        })
    }

    /// Whether the layer with this diff ID is here, whole.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> Result<bool, Error> {
        Ok(self.find_layer(diff_id)?.is_some())
    }

    /// The directory of the layer with this diff ID.
    fn find_layer(&self, diff_id: &Digest) -> Result<Option<PathBuf>, Error> {
        for place in self.places() {
            let path = layer_path(place, diff_id);
            match fs::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => return Ok(Some(path)),
                Ok(_) => {
                    return Err(Error::Damaged {
                        path,
                        reason: "it is not a directory".to_owned(),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("look at", &path)(error)),
            }
        }
        Ok(None)
    }

    /// Holds others off while a claim is made, or something is taken out of the store.
    pub(crate) fn guard(&self) -> Result<File, Error> {
        let path = self.root.join(LOCK);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::options().create(true).append(true).open(&path)
            }
            opened => opened,
        };
        let file = file.map_err(Error::io("open", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    /// Says what a pull needs: such layers stay, and other pulls leave it the room.
    pub(crate) fn claim(&self, stage: &Stage, claim: &Claim) -> Result<(), Error> {
        let _guard = self.guard()?;
        stage.claim(claim)
    }

    /// The same where there is the room.
    pub(crate) fn reserve(&self, stage: &Stage, claim: &Claim, keep_free: u64) -> Result<(), Error> {
        // Of two pulls that find room for one of them, one gets it.
        let _guard = self.guard()?;
        self.room_for(stage, claim.bytes, keep_free)?;
        stage.claim(claim)
    }

    /// What a pull has said that it needs.
    pub(crate) fn claimed(&self, stage: &Stage) -> Claim {
        let claim = read_record(&stage.path.join(CLAIM));
        claim.ok().flatten().unwrap_or_default()
    }

    /// What the pulls that live need, but for one.
    pub(crate) fn claims(&self, except: Option<&Stage>) -> Result<Vec<Claim>, Error> {
        let mut out = Vec::new();
        for path in entries(&self.root.join(TMP))? {
            if except.is_some_and(|it| it.path == path) || !is_in_use(&path) {
                continue;
            }
            // One that it has not made yet, or is gone by now.
            if let Ok(Some(claim)) = read_record(&path.join(CLAIM)) {
                out.push(claim);
            }
        }
        Ok(out)
    }

    /// Makes a directory of its own under `tmp`, locked while the [`Stage`] lives.
    pub(crate) fn stage(&self) -> Result<Stage, Error> {
        static SEQUENCE: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "{}-{}",
            std::process::id(),
            SEQUENCE.fetch_add(1, Ordering::Relaxed)
        );
        let path = self.root.join(TMP).join(name);
        // Until it is locked it could be taken for one of a pull that died.
        let _guard = self.guard()?;
        remove_tree(&path)?;
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(Error::io("create", &lock_path))?;
        lock.lock().map_err(Error::io("lock", &lock_path))?;
        Ok(Stage { path, _lock: lock })
    }

    /// What has come of the layer with this digest; nothing while another pull has it.
    pub(crate) fn partial(&self, layer: &Digest) -> Result<Option<Partial>, Error> {
        Partial::open(&self.root.join(PARTIAL).join(layer.hex()))
    }

    /// Bytes that are free for a layer of `size` bytes as transferred: without `keep_free`, and without what other pulls need;
    /// once what others have begun was given up for it where that is needed. What it unpacks to is no less, so to fetch it for
    /// less room would be a waste.
    pub(crate) fn room_for(&self, stage: &Stage, size: u64, keep_free: u64) -> Result<u64, Error> {
        let others = self.claims(Some(stage))?.iter().map(|it| it.bytes).sum::<u64>();
        let kept = keep_free.saturating_add(others);
        let mut free = self.free()?.saturating_sub(kept);
        if free < size {
            self.reclaim()?;
            free = self.free()?.saturating_sub(kept);
        }
        if free < size {
            return Err(Error::Full {
                path: self.root.clone(),
                needed: size,
                free,
                kept,
            });
        }
        Ok(free)
    }

    pub(crate) fn free(&self) -> Result<u64, Error> {
        let disk = rustix::fs::statvfs(&self.root).map_err(Error::sys("look at the disk of", &self.root))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Gives up what has come of layers that no pull is at, to make room. Gives back how many bytes that were.
    pub(crate) fn reclaim(&self) -> Result<u64, Error> {
        partial::clear(&self.root.join(PARTIAL), true)
    }

    /// Syncs the tree at `unpacked` and names it as the layer `diff_id`. Another pull may have been faster; its tree
    /// then stays, for it has the same content.
    pub(crate) fn commit_layer(&self, unpacked: &Path, diff_id: &Digest) -> Result<(), Error> {
        let tree = File::open(unpacked).map_err(Error::io("open", unpacked))?;
        rustix::fs::syncfs(&tree).map_err(Error::sys("sync the file system of", unpacked))?;
        count_sync();
        let target = layer_path(&self.root, diff_id);
        match fs::rename(unpacked, &target) {
            Ok(()) => {}
            Err(_) if self.has_layer(diff_id)? => remove_tree(unpacked)?,
            Err(error) => return Err(Error::io("rename a layer to", &target)(error)),
        }
        sync_dir(&self.root.join(LAYERS))
    }

    /// Names a whole image, then lets `reference` mean it. All its layers must have been committed.
    pub(crate) fn commit_image(
        &self,
        stage: &Stage,
        record: &ImageRecord,
        reference: &ImageRef,
        repo_digest: Digest,
    ) -> Result<(), Error> {
        write_record(stage, &image_path(&self.root, &record.digest), record)?;
        let name = RefRecord::new(reference, record.digest, repo_digest);
        write_record(stage, &ref_path(&self.root, reference), &name)
    }

    /// Lets `reference` mean the image `digest` if that is here, whole. Writes nothing where nothing changes.
    pub(crate) fn adopt(
        &self,
        stage: &Stage,
        digest: Digest,
        reference: &ImageRef,
        repo_digest: Digest,
    ) -> Result<bool, Error> {
        // Not to be taken out before it has the name.
        let _guard = self.guard()?;
        match self.load(&digest, repo_digest) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(error) if error.is_repaired_by_pull() => return Ok(false),
            Err(error) => return Err(error),
        }
        let path = ref_path(&self.root, reference);
        let known = match read_ref(&path) {
            Ok(known) => known,
            Err(Error::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        if known.is_some_and(|known| known.image == digest && known.repo_digest == repo_digest) {
            return Ok(true);
        }
        let name = RefRecord::new(reference, digest, repo_digest);
        write_record(stage, &path, &name)?;
        Ok(true)
    }

    /// Removes what no living pull holds the lock of.
    pub(crate) fn clear_tmp(&self) -> Result<(), Error> {
        let found = entries(&self.root.join(TMP))?;
        if found.is_empty() {
            return Ok(());
        }
        let _guard = self.guard()?;
        for path in found {
            if !is_in_use(&path) {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }
}

/// Whether the pull whose directory this is lives.
fn is_in_use(stage: &Path) -> bool {
    match File::open(stage.join(LOCK)) {
        Ok(lock) => matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

/// What is in a directory; nothing where it is not there.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let paths = listed.map(|entry| entry.map(|it| it.path()));
    paths
        .collect::<io::Result<_>>()
        .map_err(Error::io("list", directory))
}

/// A pull's own directory under `tmp`, removed when it is dropped.
pub(crate) struct Stage {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl Stage {
    fn claim(&self, claim: &Claim) -> Result<(), Error> {
        let path = self.path.join(CLAIM);
        let bytes = encode(&path, claim)?;
        fs::write(&path, bytes).map_err(Error::io("write", &path))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory for a layer to be unpacked into.
    pub(crate) fn layer_path(&self) -> PathBuf {
        self.path.join("layer")
    }

    /// The same, empty.
    pub(crate) fn layer_dir(&self) -> Result<PathBuf, Error> {
        let path = self.layer_path();
        remove_tree(&path)?;
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(%error, "what a pull left behind stays until the store is opened again");
        }
    }
}

pub(crate) fn sync_dir(path: &Path) -> Result<(), Error> {
    let directory = File::open(path).map_err(Error::io("open", path))?;
    directory.sync_all().map_err(Error::io("sync", path))?;
    count_sync();
    Ok(())
}

/// Removes a file or a tree; that it is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
