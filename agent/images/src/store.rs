//! The content-addressed store on the node's flash.
//!
//! ```text
//! layers/<diff ID>/          the unpacked tree of one layer, ready to be an overlayfs lower directory
//! images/<manifest>.json     what an image consists of: configuration and diff IDs, bottom first
//! refs/<hash of name>.json   which image a reference means
//! partial/<digest>           what has come of a layer that is not whole yet
//! tmp/<pid>-<n>/             what a pull is working on; `lock` in it is held while the pull lives
//! ```
//!
//! Always holds: a layer is written and the file system synced before it gets its name, an image is written after all
//! its layers have theirs, a reference after its image. So a power cut leaves the old image or the new one. Each of
//! these steps is one `rename` followed by an `fsync` of the directory; nothing is changed in place. A damaged file is
//! an error and never taken for a missing one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skiff_protocol::image_ref::{Digest, ImageRef};

use crate::digest::sha256;
use crate::error::Error;
use crate::image::{Image, ImageConfig};
use crate::limits::{MAX_LAYERS, MAX_METADATA_BYTES};
use crate::partial::{self, Partial};

const LAYERS: &str = "layers";
const IMAGES: &str = "images";
const REFS: &str = "refs";
const TMP: &str = "tmp";
const PARTIAL: &str = "partial";
const LOCK: &str = "lock";
/// Raised when the files of the store change their meaning; another version is refused, never guessed at.
const FORMAT: u32 = 1;

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

/// `images/<manifest>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ImageRecord {
    format: u32,
    digest: Digest,
    /// Diff IDs, bottom first.
    layers: Vec<Digest>,
    config: ImageConfig,
    size_bytes: u64,
}

impl ImageRecord {
    pub(crate) fn new(digest: Digest, layers: Vec<Digest>, config: ImageConfig, size_bytes: u64) -> Self {
        Self {
            format: FORMAT,
            digest,
            layers,
            config,
            size_bytes,
        }
    }
}

/// `refs/<hash>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RefRecord {
    format: u32,
    reference: ImageRef,
    image: Digest,
    repo_digest: Digest,
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
}

/// The store. Cheap to clone in meaning: it holds a path, and all truth is on disk.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
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
        for name in [LAYERS, IMAGES, REFS, TMP, PARTIAL] {
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
        Ok(Self { root })
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
        if let Some(record) = read_record::<RefRecord>(&self.ref_path(reference))? {
            check_format(&self.ref_path(reference), record.format)?;
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
        let mut listed = Vec::new();
        let directory = self.root.join(REFS);
        for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
            let path = entry.map_err(Error::io("list", &directory))?.path();
            // Gone between the listing and the reading is as good as never listed.
            let Some(record) = read_record::<RefRecord>(&path)? else {
                continue;
            };
            check_format(&path, record.format)?;
            let image = self
                .load(&record.image, record.repo_digest)?
                .ok_or_else(|| Error::Incomplete {
                    reference: record.reference.to_string(),
                    missing: format!("image {}", record.image),
                })?;
            listed.push(StoredImage {
                reference: record.reference,
                digest: record.image,
                repo_digest: record.repo_digest,
                size_bytes: image.size_bytes,
            });
        }
        listed.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(listed)
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
        let path = self.image_path(digest);
        let Some(record) = read_record::<ImageRecord>(&path)? else {
            return Ok(None);
        };
        check_format(&path, record.format)?;
        if record.digest != *digest {
            let reason = format!("it describes {}", record.digest);
            return Err(Error::Damaged { path, reason });
        }
        if record.layers.len() > MAX_LAYERS {
            return Err(Error::Damaged {
                path,
                reason: format!("it has {} layers", record.layers.len()),
            });
        }
        for layer in &record.layers {
            if !self.has_layer(layer)? {
                let missing = format!("layer {layer}");
                return Err(Error::Incomplete {
                    reference: digest.to_string(),
                    missing,
                });
            }
        }
        Ok(Some(Image {
            digest: record.digest,
            repo_digest,
            layers: record.layers.iter().map(|layer| self.layer_path(layer)).collect(),
            config: record.config,
            size_bytes: record.size_bytes,
        }))
    }

    /// Whether the layer with this diff ID is here, whole.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> Result<bool, Error> {
        let path = self.layer_path(diff_id);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(true),
            Ok(_) => Err(Error::Damaged {
                path,
                reason: "it is not a directory".to_owned(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("look at", &path)(error)),
        }
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

    /// Bytes that are free for a layer of `size` bytes as transferred, once what others have begun was given up for it where
    /// that is needed. What it unpacks to is no less, so to fetch it for less room would be a waste.
    pub(crate) fn room_for(&self, size: u64) -> Result<u64, Error> {
        let mut free = self.free()?;
        if free < size {
            self.reclaim()?;
            free = self.free()?;
        }
        if free < size {
            return Err(Error::Full {
                path: self.root.clone(),
                needed: size,
                free,
            });
        }
        Ok(free)
    }

    fn free(&self) -> Result<u64, Error> {
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
        let target = self.layer_path(diff_id);
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
        write_record(stage, &self.image_path(&record.digest), record)?;
        let name = RefRecord {
            format: FORMAT,
            reference: reference.clone(),
            image: record.digest,
            repo_digest,
        };
        write_record(stage, &self.ref_path(reference), &name)
    }

    /// Lets `reference` mean the image `digest` if that is here, whole. Writes nothing where nothing changes.
    pub(crate) fn adopt(
        &self,
        stage: &Stage,
        digest: Digest,
        reference: &ImageRef,
        repo_digest: Digest,
    ) -> Result<bool, Error> {
        match self.load(&digest, repo_digest) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            Err(error) if error.is_repaired_by_pull() => return Ok(false),
            Err(error) => return Err(error),
        }
        let path = self.ref_path(reference);
        let known = match read_record::<RefRecord>(&path) {
            Ok(known) => known,
            Err(Error::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        if known.is_some_and(|known| known.image == digest && known.repo_digest == repo_digest) {
            return Ok(true);
        }
        let name = RefRecord {
            format: FORMAT,
            reference: reference.clone(),
            image: digest,
            repo_digest,
        };
        write_record(stage, &path, &name)?;
        Ok(true)
    }

    /// Removes what no living pull holds the lock of.
    fn clear_tmp(&self) -> Result<(), Error> {
        let tmp = self.root.join(TMP);
        for entry in fs::read_dir(&tmp).map_err(Error::io("list", &tmp))? {
            let path = entry.map_err(Error::io("list", &tmp))?.path();
            let in_use = match File::open(path.join(LOCK)) {
                Ok(lock) => matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)),
                Err(_) => false,
            };
            if !in_use {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join(LAYERS).join(diff_id.hex())
    }

    fn image_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(IMAGES).join(format!("{}.json", digest.hex()))
    }

    fn ref_path(&self, reference: &ImageRef) -> PathBuf {
        // A name may hold what a file name cannot, so its hash names the file and the file names the reference.
        let hash = sha256(reference.to_string().as_bytes()).hex();
        self.root.join(REFS).join(format!("{hash}.json"))
    }
}

/// A pull's own directory under `tmp`, removed when it is dropped.
pub(crate) struct Stage {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

impl Stage {
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

fn check_format(path: &Path, format: u32) -> Result<(), Error> {
    if format == FORMAT {
        return Ok(());
    }
    Err(Error::Damaged {
        path: path.to_owned(),
        reason: format!("format {format}, this version knows {FORMAT}"),
    })
}

fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_METADATA_BYTES)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    let damaged = |error: serde_json::Error| Error::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

fn write_record<T: Serialize>(stage: &Stage, path: &Path, record: &T) -> Result<(), Error> {
    let tmp = stage.path.join("record");
    let bytes = serde_json::to_vec(record)
        .map_err(io::Error::from)
        .map_err(Error::io("encode", path))?;
    let mut file = File::create(&tmp).map_err(Error::io("create", &tmp))?;
    file.write_all(&bytes).map_err(Error::io("write", &tmp))?;
    file.sync_all().map_err(Error::io("sync", &tmp))?;
    count_sync();
    fs::rename(&tmp, path).map_err(Error::io("rename a record to", path))?;
    let directory = path.parent().unwrap_or(path);
    sync_dir(directory)
}

fn sync_dir(path: &Path) -> Result<(), Error> {
    let directory = File::open(path).map_err(Error::io("open", path))?;
    directory.sync_all().map_err(Error::io("sync", path))?;
    count_sync();
    Ok(())
}

/// Removes a file or a tree; that it is not there is fine.
fn remove_tree(path: &Path) -> Result<(), Error> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.raw_os_error() == Some(Errno::NOTDIR.raw_os_error()) => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
