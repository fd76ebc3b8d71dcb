//! The `collect` role: takes out of the store what nobody needs, the longest unused first.
//!
//! ```text
//!   unused = images − (named by a Pod, run from, pinned, last good of their repository: what the request says)
//!          + layers of no image and no pull + what has come of layers that no pull is at
//! ```
//!
//! A process of its own, like the pull: it walks trees that images made. Always holds: an image goes name first, then record,
//! then the layers that no other image and no living pull needs; each step is on the disk before the next, so what a power
//! cut leaves is less to do. A store that came with the device is not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use skiff_protocol::image_ref::{Digest, ImageRef};

use crate::error::Error;
use crate::pull::{Wrote, read_request, write_line, written_bytes};
use crate::record::{self, ImageRecord, RefRecord};
use crate::store::{self, Stage, Store};

/// What stays, whatever room is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Keep {
    /// What Pods name, what is being pulled, what the configuration pins.
    pub references: BTreeSet<ImageRef>,
    /// What something runs from or has run well, by the digest of the platform's manifest.
    pub images: BTreeSet<Digest>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CollectRequest {
    /// The directory of the store.
    pub store: PathBuf,
    /// What stays.
    pub keep: Keep,
    /// Bytes of the disk with which free it ends; without it, all that is unused goes.
    pub until_free: Option<u64>,
    /// What was used so many seconds ago, or less, stays too.
    pub min_age_seconds: u64,
}

/// One line of the `collect` process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CollectReport {
    /// Something is gone.
    Removed(Removed),
    /// What that cost the flash, before the last line.
    Wrote(Wrote),
    /// All is done that could be.
    Done,
    /// It is not; what is gone is gone.
    Error(String),
}

/// What is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Removed {
    /// Its names, or what else it is.
    pub what: String,
    /// Bytes that its files had on the disk.
    pub bytes: u64,
}

/// Reads a [`CollectRequest`] from standard input and writes [`CollectReport`] lines to standard output.
///
/// The exit code is 0 where the last line is `done`, else 1.
#[must_use]
pub fn main() -> ExitCode {
    // The next agent knows nothing of what this one was told to keep.
    if let Err(error) = crate::pull::end_with_parent() {
        tracing::warn!(%error, "this collection may outlive the agent");
    }
    let mut output = io::stdout().lock();
    let mut say = |report: &CollectReport| write_line(&mut output, report);
    let request = read_request::<CollectRequest>(io::stdin().lock());
    let result = request.and_then(|request| {
        // An agent that is gone hears of nothing; what it asked for is right all the same.
        let mut tell = |removed| drop(say(&CollectReport::Removed(removed)));
        collect(&request, &mut tell).map_err(|error| error.to_string())
    });
    let wrote = Wrote {
        bytes: written_bytes(),
        syncs: store::syncs(),
    };
    let last = result.err().map_or(CollectReport::Done, CollectReport::Error);
    let said = say(&CollectReport::Wrote(wrote)).and_then(|()| say(&last));
    if last == CollectReport::Done && said.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Takes out what is unused, until enough is free. This is [`main`] without the process.
///
/// # Errors
/// [`Error::Io`] names what could not be read or removed, [`Error::Damaged`] an image that something runs from and whose
/// layers are therefore not known.
pub fn collect(request: &CollectRequest, tell: &mut dyn FnMut(Removed)) -> Result<(), Error> {
    let store = Store::attach(&request.store)?;
    store.clear_tmp()?;
    let now = SystemTime::now();
    // Made for the first thing that goes: where nothing does, nothing is written.
    let mut stage = None;
    for item in unused(&store, &request.keep)? {
        if let Some(enough) = request.until_free
            && store.free()? >= enough
        {
            return Ok(());
        }
        // A clock that went back makes nothing old.
        let age = now.duration_since(item.used).unwrap_or(Duration::ZERO);
        if age.as_secs() < request.min_age_seconds {
            continue;
        }
        let stage = match &mut stage {
            Some(stage) => stage,
            None => stage.insert(store.stage()?),
        };
        if let Some(removed) = remove(&store, stage, &item.what)? {
            tell(removed);
        }
    }
    Ok(())
}

/// Something that may go.
struct Item {
    what: What,
    /// When it was last used.
    used: SystemTime,
}

enum What {
    /// An image, with its names.
    Image(Digest, Vec<ImageRef>),
    /// A layer that no image has.
    Layer(Digest),
    /// What has come of a layer.
    Partial(PathBuf),
}

/// An image of the own store, and when it was last used.
struct Known {
    record: Result<ImageRecord, Error>,
    used: SystemTime,
}

/// What may go, the longest unused first.
fn unused(store: &Store, keep: &Keep) -> Result<Vec<Item>, Error> {
    let _guard = store.guard()?;
    let (images, names) = (images(store)?, store.references(store.root())?);
    let kept = kept(keep, &names);
    let mut items = Vec::new();
    for (digest, known) in &images {
        if !kept.contains(digest) {
            let of_image = names.iter().filter(|it| it.image == *digest);
            let names = of_image.map(|it| it.reference.clone()).collect();
            let used = known.used;
            let what = What::Image(*digest, names);
            items.push(Item { what, used });
        }
    }
    let needed = needed(store, &images, |digest| kept.contains(digest))?;
    for path in store::entries(&store.root().join(store::LAYERS))? {
        if let Some(layer) = digest_of(&path)
            && !needed.contains(&layer)
        {
            // Since it has its name; its other times are the archive's.
            let seconds = fs::symlink_metadata(&path).map_or(0, |it| it.ctime());
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0));
            let what = What::Layer(layer);
            items.push(Item { what, used });
        }
    }
    for path in store::entries(&store.root().join(store::PARTIAL))? {
        if let Some(used) = modified(&path) {
            let what = What::Partial(path);
            items.push(Item { what, used });
        }
    }
    items.sort_by_key(|it| it.used);
    Ok(items)
}

/// The images that stay.
fn kept(keep: &Keep, names: &[RefRecord]) -> BTreeSet<Digest> {
    let mut kept = keep.images.clone();
    let named = names.iter().filter(|it| keep.references.contains(&it.reference));
    kept.extend(named.map(|it| it.image));
    // What a digest names needs no name of its own; the digest may be of an index.
    let digests: BTreeSet<Digest> = keep
        .references
        .iter()
        .filter_map(|it| it.digest().copied())
        .collect();
    let of_index = names.iter().filter(|it| digests.contains(&it.repo_digest));
    kept.extend(of_index.map(|it| it.image));
    kept.extend(digests);
    kept
}

fn images(store: &Store) -> Result<BTreeMap<Digest, Known>, Error> {
    let mut out = BTreeMap::new();
    for path in store::entries(&store.root().join(store::IMAGES))? {
        let Some(digest) = digest_of(&path) else { continue };
        let record = match record::read_image(store.root(), &digest) {
            Ok(Some(record)) => Ok(record),
            Ok(None) => continue,
            Err(error @ Error::Damaged { .. }) => Err(error),
            Err(error) => return Err(error),
        };
        // Of what has no time nothing says that it was used.
        let used = modified(&path).unwrap_or(SystemTime::UNIX_EPOCH);
        out.insert(digest, Known { record, used });
    }
    Ok(out)
}

/// The layers that images have or living pulls need. One whose record is damaged has none, unless it must stay: what it needs
/// is then not known, and no layer can be taken out.
fn needed(
    store: &Store,
    images: &BTreeMap<Digest, Known>,
    must_stay: impl Fn(&Digest) -> bool,
) -> Result<BTreeSet<Digest>, Error> {
    let mut needed = BTreeSet::new();
    for (digest, known) in images {
        match &known.record {
            Ok(record) => needed.extend(record.layers.iter().copied()),
            Err(Error::Damaged { path, reason }) if must_stay(digest) => {
                return Err(Error::Damaged {
                    path: path.clone(),
                    reason: reason.clone(),
                });
            }
            Err(_) => {}
        }
    }
    needed.extend(store.claims(None)?.into_iter().flat_map(|it| it.layers));
    Ok(needed)
}

/// Takes one thing out of the store; nothing where somebody has begun to need it.
fn remove(store: &Store, stage: &Stage, what: &What) -> Result<Option<Removed>, Error> {
    let (name, layers) = match what {
        What::Image(digest, names) => (
            if names.is_empty() {
                format!("image {digest}")
            } else {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                format!("image {}", names.join(", "))
            },
            remove_image(store, stage, digest)?,
        ),
        What::Layer(layer) => {
            let _guard = store.guard()?;
            if needed(store, &images(store)?, |_| false)?.contains(layer) {
                return Ok(None);
            }
            (
                format!("layer {layer} of no image"),
                set_aside(store, stage, &[*layer])?,
            )
        }
        What::Partial(path) => {
            let Some(bytes) = crate::partial::remove(path)? else {
                return Ok(None);
            };
            let what = "what has come of a layer".to_owned();
            return Ok(Some(Removed { what, bytes }));
        }
    };
    let mut bytes = 0_u64;
    for path in layers {
        bytes = bytes.saturating_add(on_disk(&path));
        store::remove_tree(&path)?;
    }
    Ok(Some(Removed { what: name, bytes }))
}

/// Takes an image's names, its record, and the layers that are its alone; gives where those lie until they are removed.
fn remove_image(store: &Store, stage: &Stage, digest: &Digest) -> Result<Vec<PathBuf>, Error> {
    let _guard = store.guard()?;
    let root = store.root();
    let layers = match record::read_image(root, digest) {
        Ok(record) => record.map_or_else(Vec::new, |it| it.layers),
        Err(Error::Damaged { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    for name in store.references(root)?.iter().filter(|it| it.image == *digest) {
        unlink(&record::ref_path(root, &name.reference))?;
    }
    store::sync_dir(&root.join(store::REFS))?;
    unlink(&record::image_path(root, digest))?;
    store::sync_dir(&root.join(store::IMAGES))?;
    let needed = needed(store, &images(store)?, |_| false)?;
    let alone: Vec<Digest> = layers.into_iter().filter(|it| !needed.contains(it)).collect();
    set_aside(store, stage, &alone)
}

/// Takes layers' names from them.
fn set_aside(store: &Store, stage: &Stage, layers: &[Digest]) -> Result<Vec<PathBuf>, Error> {
    let mut out = Vec::new();
    for layer in layers {
        let (from, to) = (
            record::layer_path(store.root(), layer),
            stage.path().join(layer.hex()),
        );
        match fs::rename(&from, &to) {
            Ok(()) => out.push(to),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("rename", &from)(error)),
        }
    }
    store::sync_dir(&store.root().join(store::LAYERS))?;
    Ok(out)
}

fn unlink(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).and_then(|it| it.modified()).ok()
}

/// The digest that names a file.
fn digest_of(path: &Path) -> Option<Digest> {
    let hex = path.file_stem()?.to_str()?;
    Digest::parse(&format!("sha256:{hex}")).ok()
}

/// Bytes that a tree has on the disk; what has other names counts too, and what cannot be read does not.
fn on_disk(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let own = metadata.blocks().saturating_mul(512);
    if !metadata.is_dir() {
        return own;
    }
    let children = store::entries(path).unwrap_or_default();
    children
        .iter()
        .fold(own, |sum, child| sum.saturating_add(on_disk(child)))
}
