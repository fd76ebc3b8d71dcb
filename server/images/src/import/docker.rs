//! A docker-archive as an OCI image: the configuration is the same, the layers are compressed, the manifest is made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use flate2::{Compression, GzBuilder};
use serde::Deserialize;
use serde_json::json;
use skiff_protocol::image_ref::{Digest, ImageRef};

use super::archive::{Staged, StagedFile};
use super::{Contents, Import, Imported, Progress};
use crate::digest::Hashing;
use crate::error::Error;
use crate::limits::{MAX_IMAGES, MAX_IMPORT_BYTES, MAX_LAYERS};

const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<Digest>,
}

/// A blob of the store.
#[derive(Clone, Copy)]
struct Stored {
    digest: Digest,
    size: u64,
}

pub(super) fn import(
    import: &mut Import<'_>,
    contents: &Contents,
    staged: &Staged,
) -> Result<Vec<Imported>, Error> {
    let images: Vec<SavedImage> = import.parse(&import.json(contents, "manifest.json")?, "manifest.json")?;
    if images.is_empty() || images.len() > MAX_IMAGES {
        let reason = format!("it lists {} images, 1 to {MAX_IMAGES} are possible", images.len());
        return Err(Error::invalid(import.file, "manifest.json", reason));
    }
    // Names first: an archive of gigabytes should not be stored only to be refused for its name.
    let names = names(import, &images)?;
    let mut layers = BTreeMap::new();
    let mut imported = Vec::new();
    for (image, names) in images.iter().zip(names) {
        let (digest, bytes) = store_image(import, contents, staged, image, &mut layers)?;
        for reference in names {
            import.store.commit_ref(import.stage, &reference, digest, bytes)?;
            imported.push(Imported {
                reference,
                digest,
                layers: image.layers.len(),
                bytes,
            });
        }
    }
    Ok(imported)
}

fn names(import: &Import<'_>, images: &[SavedImage]) -> Result<Vec<Vec<ImageRef>>, Error> {
    if let Some(name) = import.name {
        if images.len() > 1 {
            let reason = format!("it has {} images, and one name was given for it", images.len());
            return Err(Error::invalid(import.file, "manifest.json", reason));
        }
        return Ok(vec![vec![name.clone()]]);
    }
    let named = images.iter().map(|image| {
        let tags = image.repo_tags.as_deref().unwrap_or_default();
        if tags.is_empty() {
            let reason = format!("the image with configuration {:?} has no RepoTags", image.config);
            return Err(Error::Unnamed {
                file: import.file.to_owned(),
                reason,
            });
        }
        let parse = |tag: &String| {
            ImageRef::parse(tag).map_err(|source| Error::Name {
                file: import.file.to_owned(),
                source,
            })
        };
        tags.iter().map(parse).collect()
    });
    named.collect()
}

fn store_image(
    import: &mut Import<'_>,
    contents: &Contents,
    staged: &Staged,
    image: &SavedImage,
    known: &mut BTreeMap<Digest, Stored>,
) -> Result<(Digest, u64), Error> {
    let config = import.json(contents, &image.config)?;
    let diff_ids = import.parse::<RawConfig>(&config, &image.config)?.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() || diff_ids.len() > MAX_LAYERS {
        let reason = format!(
            "{} diff IDs for {} layers, at most {MAX_LAYERS}",
            diff_ids.len(),
            image.layers.len()
        );
        return Err(Error::invalid(import.file, &image.config, reason));
    }
    let mut layers = Vec::new();
    for (name, diff_id) in image.layers.iter().zip(&diff_ids) {
        let stored = match known.get(diff_id) {
            Some(stored) => *stored,
            None => store_layer(import, staged, name, diff_id)?,
        };
        known.insert(*diff_id, stored);
        layers.push(stored);
        (import.progress)(Progress::Storing {
            done: layers.len(),
            total: diff_ids.len(),
        });
    }
    let config_digest = import.store.commit_bytes(import.stage, &config)?;
    let descriptor =
        |kind: &str, blob: Stored| json!({ "mediaType": kind, "digest": blob.digest, "size": blob.size });
    let config = Stored {
        digest: config_digest,
        size: config.len() as u64,
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, config),
        "layers": layers.iter().map(|layer| descriptor(LAYER_TYPE, *layer)).collect::<Vec<_>>(),
    });
    let digest = import
        .store
        .commit_bytes(import.stage, manifest.to_string().as_bytes())?;
    Ok((
        digest,
        layers.iter().fold(config.size, |sum, layer| sum + layer.size),
    ))
}

/// Stores one layer: as it is if it is gzip, else compressed; and only if it unpacks to its diff ID.
fn store_layer(import: &Import<'_>, staged: &Staged, name: &str, diff_id: &Digest) -> Result<Stored, Error> {
    let Some(layer) = staged.get(name) else {
        return Err(Error::invalid(import.file, name, "the layer is missing"));
    };
    let mut magic = Vec::new();
    let open = || File::open(&layer.path).map_err(Error::io("open", &layer.path));
    open()?
        .take(4)
        .read_to_end(&mut magic)
        .map_err(Error::io("read", &layer.path))?;
    if magic == [0x28, 0xb5, 0x2f, 0xfd] {
        let reason = "a zstd layer in a docker-archive; save the image as an OCI layout";
        return Err(Error::invalid(import.file, name, reason));
    }
    let mismatch = |got| Error::Mismatch {
        file: import.file.to_owned(),
        part: format!("layer {name}"),
        expected: *diff_id,
        got,
    };
    if magic.starts_with(&[0x1f, 0x8b]) {
        let mut plain = Hashing::new(MultiGzDecoder::new(open()?).take(MAX_IMPORT_BYTES));
        io::copy(&mut plain, &mut io::sink()).map_err(|error| Error::invalid(import.file, name, error))?;
        let (_, got, _) = plain.finish();
        if got != *diff_id {
            return Err(mismatch(got));
        }
        import.store.commit_blob(&layer.path, &layer.digest)?;
        return Ok(Stored {
            digest: layer.digest,
            size: layer.size,
        });
    }
    if layer.digest != *diff_id {
        return Err(mismatch(layer.digest));
    }
    compress(import, layer)
}

/// The same bytes give the same digest: the header has no name and no time.
fn compress(import: &Import<'_>, layer: &StagedFile) -> Result<Stored, Error> {
    let path = import.stage.file();
    let target = File::create(&path).map_err(Error::io("create", &path))?;
    let mut source = File::open(&layer.path).map_err(Error::io("open", &layer.path))?;
    let mut encoder = GzBuilder::new().write(Hashing::new(target), Compression::default());
    io::copy(&mut source, &mut encoder).map_err(Error::io("write", &path))?;
    let (_, digest, size) = encoder.finish().map_err(Error::io("write", &path))?.finish();
    import.store.commit_blob(&path, &digest)?;
    Ok(Stored { digest, size })
}
