//! The small files of the store: where each is, what it says, and how it is read and written.
//!
//! Always holds: a record is written whole before it has its name, and synced; one of another format, or damaged, is an error
//! and never taken for a missing one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skiff_protocol::image_ref::{Digest, ImageRef};

use crate::digest::sha256;
use crate::error::Error;
use crate::image::ImageConfig;
use crate::limits::{MAX_LAYERS, MAX_METADATA_BYTES};
use crate::store::{GOOD, IMAGES, LAYERS, REFS, Stage, count_sync, sync_dir};

/// Raised when the files of the store change their meaning; another version is refused, never guessed at.
const FORMAT: u32 = 1;

/// `images/<manifest>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ImageRecord {
    format: u32,
    pub(crate) digest: Digest,
    /// Diff IDs, bottom first.
    pub(crate) layers: Vec<Digest>,
    pub(crate) config: ImageConfig,
    pub(crate) size_bytes: u64,
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
pub(crate) struct RefRecord {
    format: u32,
    pub(crate) reference: ImageRef,
    pub(crate) image: Digest,
    pub(crate) repo_digest: Digest,
}

impl RefRecord {
    pub(crate) fn new(reference: &ImageRef, image: Digest, repo_digest: Digest) -> Self {
        Self {
            format: FORMAT,
            reference: reference.clone(),
            image,
            repo_digest,
        }
    }
}

/// `good/<hash>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GoodRecord {
    format: u32,
    /// `registry/repository`.
    pub(crate) repository: String,
    pub(crate) image: Digest,
}

impl GoodRecord {
    /// The record and where it is.
    pub(crate) fn new(place: &Path, repository: &str, image: Digest) -> (Self, PathBuf) {
        let hash = sha256(repository.as_bytes()).hex();
        let record = Self {
            format: FORMAT,
            repository: repository.to_owned(),
            image,
        };
        (record, place.join(GOOD).join(format!("{hash}.json")))
    }
}

/// What a pull needs of the store until it ends: `claim` in its directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Claim {
    /// Diff IDs of its image.
    pub(crate) layers: Vec<Digest>,
    /// Bytes that are still to come, as transferred.
    pub(crate) bytes: u64,
}

/// What a name means, by the file that says so.
pub(crate) fn read_ref(path: &Path) -> Result<Option<RefRecord>, Error> {
    let Some(record) = read_record::<RefRecord>(path)? else {
        return Ok(None);
    };
    check_format(path, record.format)?;
    Ok(Some(record))
}

/// An image that ran well; what cannot be read is not known.
pub(crate) fn read_good(path: &Path) -> Option<GoodRecord> {
    let record = read_record::<GoodRecord>(path).ok()?;
    record.filter(|it| it.format == FORMAT)
}

/// An image's record in one of the places.
pub(crate) fn read_image(place: &Path, digest: &Digest) -> Result<Option<ImageRecord>, Error> {
    let path = image_path(place, digest);
    let Some(record) = read_record::<ImageRecord>(&path)? else {
        return Ok(None);
    };
    check_format(&path, record.format)?;
    let reason = if record.digest != *digest {
        format!("it describes {}", record.digest)
    } else if record.layers.len() > MAX_LAYERS {
        format!("it has {} layers", record.layers.len())
    } else {
        return Ok(Some(record));
    };
    Err(Error::Damaged { path, reason })
}

pub(crate) fn layer_path(place: &Path, diff_id: &Digest) -> PathBuf {
    place.join(LAYERS).join(diff_id.hex())
}

pub(crate) fn image_path(place: &Path, digest: &Digest) -> PathBuf {
    place.join(IMAGES).join(format!("{}.json", digest.hex()))
}

pub(crate) fn ref_path(place: &Path, reference: &ImageRef) -> PathBuf {
    // A name may hold what a file name cannot, so its hash names the file and the file names the reference.
    let hash = sha256(reference.to_string().as_bytes()).hex();
    place.join(REFS).join(format!("{hash}.json"))
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

pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
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

pub(crate) fn encode<T: Serialize>(path: &Path, record: &T) -> Result<Vec<u8>, Error> {
    let encoded = serde_json::to_vec(record).map_err(io::Error::from);
    encoded.map_err(Error::io("encode", path))
}

pub(crate) fn write_record<T: Serialize>(stage: &Stage, path: &Path, record: &T) -> Result<(), Error> {
    let tmp = stage.path().join("record");
    let bytes = encode(path, record)?;
    let mut file = File::create(&tmp).map_err(Error::io("create", &tmp))?;
    file.write_all(&bytes).map_err(Error::io("write", &tmp))?;
    file.sync_all().map_err(Error::io("sync", &tmp))?;
    count_sync();
    fs::rename(&tmp, path).map_err(Error::io("rename a record to", path))?;
    let directory = path.parent().unwrap_or(path);
    sync_dir(directory)
}
