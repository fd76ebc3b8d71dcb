//! The store's files, and the lookups over them.
//!
//! ```text
//! blobs/sha256/<hex>         manifests, configurations and layers, each named by its digest
//! refs/<hash of name>.json   which manifest a reference means
//! tmp/<pid>-<n>/             what an import is working on; `lock` in it is held while the import lives
//! ```
//!
//! Always holds: a blob is synced before it gets its name, a reference is written after all that it needs; each of
//! these steps is one `rename` and an `fsync` of the directory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use skiff_protocol::image_ref::{Digest, ImageRef};

use crate::digest::sha256;
use crate::error::Error;
use crate::limits::MAX_JSON_BYTES;

const BLOBS: &str = "blobs/sha256";
const REFS: &str = "refs";
const TMP: &str = "tmp";
const LOCK: &str = "lock";

/// Raised when the records change their meaning.
const FORMAT: u32 = 1;

/// `refs/<hash>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RefRecord {
    format: u32,
    reference: ImageRef,
    digest: Digest,
    bytes: u64,
}

/// One line of [`ImageStore::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// The image's name. An image with several is listed once for each.
    pub reference: ImageRef,
    /// The digest of its manifest or index.
    pub digest: Digest,
    /// The size of its configurations and layers as stored, in bytes.
    pub bytes: u64,
}

/// A manifest or an index as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes, at most [`MAX_JSON_BYTES`].
    pub bytes: Vec<u8>,
}

/// The server's images. All truth is on disk; methods may be called from many threads.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
}

impl ImageStore {
    /// Opens the store at `root`, makes it if it is not there, and clears what imports that died left in `tmp`.
    ///
    /// # Errors
    /// [`Error::Io`] names the path.
    pub fn open(root: impl AsRef<Path>) -> Result<Self, Error> {
        let store = Self {
            root: root.as_ref().to_owned(),
        };
        for name in [BLOBS, REFS, TMP] {
            let path = store.root.join(name);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        sync_dir(&store.root.join("blobs"))?;
        sync_dir(&store.root)?;
        store.clear_tmp()?;
        Ok(store)
    }

    /// The manifest or index that `reference` means: by its digest where it has one, else by its name.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Damaged`] name the file.
    pub fn manifest(&self, reference: &ImageRef) -> Result<Option<StoredManifest>, Error> {
        if let Some(digest) = reference.digest() {
            return self.manifest_by_digest(digest);
        }
        let path = self.ref_path(reference);
        let Some(record) = read_record(&path)? else {
            return Ok(None);
        };
        let found = self.manifest_by_digest(&record.digest)?;
        found.map(Some).ok_or_else(|| Error::Damaged {
            path,
            reason: format!("manifest {} is missing", record.digest),
        })
    }

    /// The manifest or index with this digest. `None` also where the blob is something else.
    ///
    /// # Errors
    /// [`Error::Io`] names the file.
    pub fn manifest_by_digest(&self, digest: &Digest) -> Result<Option<StoredManifest>, Error> {
        let Some((file, size)) = self.blob(digest)? else {
            return Ok(None);
        };
        if size > MAX_JSON_BYTES {
            return Ok(None);
        }
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        file.take(MAX_JSON_BYTES)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &path))?;
        let media_type = media_type(&bytes);
        Ok(media_type.map(|media_type| StoredManifest {
            media_type,
            digest: *digest,
            bytes,
        }))
    }

    /// The blob with this digest and its size in bytes.
    ///
    /// # Errors
    /// [`Error::Io`] names the file.
    pub fn blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, Error> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        let size = file.metadata().map_err(Error::io("look at", &path))?.len();
        Ok(Some((file, size)))
    }

    /// Each name with its image, sorted by name.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Damaged`] name the file.
    pub fn list(&self) -> Result<Vec<StoredImage>, Error> {
        let directory = self.root.join(REFS);
        let mut listed = Vec::new();
        for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
            let path = entry.map_err(Error::io("list", &directory))?.path();
            if let Some(record) = read_record(&path)? {
                let RefRecord {
                    reference,
                    digest,
                    bytes,
                    ..
                } = record;
                listed.push(StoredImage {
                    reference,
                    digest,
                    bytes,
                });
            }
        }
        listed.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(listed)
    }

    /// The tags of the repository `name` (`registry/repository`), sorted.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn tags(&self, name: &str) -> Result<Vec<String>, Error> {
        let of_name = self
            .list()?
            .into_iter()
            .filter(|image| image.reference.name() == name);
        Ok(of_name
            .filter_map(|image| image.reference.tag().map(str::to_owned))
            .collect())
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
        // Left by a process that had our number before.
        remove_tree(&path)?;
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(Error::io("create", &lock_path))?;
        lock.lock().map_err(Error::io("lock", &lock_path))?;
        Ok(Stage {
            path,
            sequence: AtomicU64::new(0),
            _lock: lock,
        })
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// Syncs the file at `from` and names it by its digest, which the caller has computed from its bytes.
    pub(crate) fn commit_blob(&self, from: &Path, digest: &Digest) -> Result<(), Error> {
        let file = File::open(from).map_err(Error::io("open", from))?;
        file.sync_all().map_err(Error::io("sync", from))?;
        let target = self.blob_path(digest);
        fs::rename(from, &target).map_err(Error::io("rename a blob to", &target))?;
        sync_dir(&self.root.join(BLOBS))
    }

    /// Stores bytes as a blob.
    pub(crate) fn commit_bytes(&self, stage: &Stage, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = sha256(bytes);
        let path = stage.file();
        fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        self.commit_blob(&path, &digest)?;
        Ok(digest)
    }

    /// Lets `reference` mean the manifest `digest`.
    pub(crate) fn commit_ref(
        &self,
        stage: &Stage,
        reference: &ImageRef,
        digest: Digest,
        bytes: u64,
    ) -> Result<(), Error> {
        let path = self.ref_path(reference);
        let record = RefRecord {
            format: FORMAT,
            reference: reference.clone(),
            digest,
            bytes,
        };
        let text = serde_json::to_vec(&record)
            .map_err(io::Error::from)
            .map_err(Error::io("encode", &path))?;
        let tmp = stage.file();
        let mut file = File::create(&tmp).map_err(Error::io("create", &tmp))?;
        file.write_all(&text).map_err(Error::io("write", &tmp))?;
        file.sync_all().map_err(Error::io("sync", &tmp))?;
        fs::rename(&tmp, &path).map_err(Error::io("rename a record to", &path))?;
        sync_dir(&self.root.join(REFS))
    }

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

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join(BLOBS).join(digest.hex())
    }

    fn ref_path(&self, reference: &ImageRef) -> PathBuf {
        let hash = sha256(reference.to_string().as_bytes()).hex();
        self.root.join(REFS).join(format!("{hash}.json"))
    }
}

/// An import's own directory under `tmp`, removed when it is dropped.
pub(crate) struct Stage {
    path: PathBuf,
    sequence: AtomicU64,
    /// Held for its lock.
    _lock: File,
}

impl Stage {
    /// A path in it that is not in use.
    pub(crate) fn file(&self) -> PathBuf {
        self.path
            .join(self.sequence.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(%error, "what an import left behind stays until the store is opened again");
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MediaTypeOnly {
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

/// The media type of a manifest or an index; OCI allows it to be left out of the text.
fn media_type(bytes: &[u8]) -> Option<String> {
    let parsed: MediaTypeOnly = serde_json::from_slice(bytes).ok()?;
    let implied = match (parsed.manifests, parsed.layers) {
        (Some(_), None) => "application/vnd.oci.image.index.v1+json",
        (None, Some(_)) => "application/vnd.oci.image.manifest.v1+json",
        _ => return None,
    };
    Some(parsed.media_type.unwrap_or_else(|| implied.to_owned()))
}

fn read_record(path: &Path) -> Result<Option<RefRecord>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read", path))?;
    let damaged = |reason: String| Error::Damaged {
        path: path.to_owned(),
        reason,
    };
    let record: RefRecord = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if record.format != FORMAT {
        return Err(damaged(format!(
            "format {}, this version knows {FORMAT}",
            record.format
        )));
    }
    Ok(Some(record))
}

fn sync_dir(path: &Path) -> Result<(), Error> {
    let directory = File::open(path).map_err(Error::io("open", path))?;
    directory.sync_all().map_err(Error::io("sync", path))
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}
