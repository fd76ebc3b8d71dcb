//! An OCI image layout, with all the platforms that it has.
//!
//! An index may name images that the layout leaves out (`skopeo copy` takes one platform): at least one image of each
//! name must be whole, and one that is begun must be.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use skiff_protocol::image_ref::{Digest, ImageRef};

use super::{Contents, Import, Imported, Progress};
use crate::error::Error;
use crate::limits::{MAX_IMAGES, MAX_INDEX_DEPTH, MAX_LAYERS};

/// The tag or name that OCI's tools write.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The full name that containerd, buildx and `docker save` write.
const IMAGE_NAME: &str = "io.containerd.image.name";

#[derive(Clone, Deserialize)]
struct Descriptor {
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// What one name's image consists of, gathered while it is stored.
#[derive(Default)]
struct Gathered {
    images: usize,
    layers: BTreeSet<Digest>,
    bytes: u64,
}

pub(super) fn import(import: &mut Import<'_>, contents: &Contents) -> Result<Vec<Imported>, Error> {
    let index: Document = import.parse(&import.json(contents, "index.json")?, "index.json")?;
    let manifests = index.manifests.unwrap_or_default();
    if manifests.is_empty() || manifests.len() > MAX_IMAGES {
        let reason = format!(
            "it lists {} images, 1 to {MAX_IMAGES} are possible",
            manifests.len()
        );
        return Err(Error::invalid(import.file, "index.json", reason));
    }
    let named = names(import, &manifests)?;
    let mut imported = Vec::new();
    for (descriptor, reference) in named {
        let mut gathered = Gathered::default();
        store_document(import, contents, &descriptor, 0, &mut gathered)?;
        if gathered.images == 0 {
            let reason = "none of the images that its index names is in the layout";
            return Err(Error::invalid(
                import.file,
                &descriptor.digest.to_string(),
                reason,
            ));
        }
        import
            .store
            .commit_ref(import.stage, &reference, descriptor.digest, gathered.bytes)?;
        imported.push(Imported {
            reference,
            digest: descriptor.digest,
            layers: gathered.layers.len(),
            bytes: gathered.bytes,
        });
    }
    Ok(imported)
}

/// Which name each entry of `index.json` gets.
fn names(import: &Import<'_>, manifests: &[Descriptor]) -> Result<Vec<(Descriptor, ImageRef)>, Error> {
    let Some(name) = import.name else {
        let named = manifests
            .iter()
            .map(|entry| Ok((entry.clone(), own_name(import, entry)?)));
        return named.collect();
    };
    if let [only] = manifests {
        return Ok(vec![(only.clone(), name.clone())]);
    }
    // With several images, the name picks the one that is called so.
    let picked = manifests.iter().filter(|entry| {
        let tag = annotation(entry, REF_NAME);
        tag.is_some_and(|tag| Some(tag) == name.tag() || ImageRef::parse(tag).as_ref() == Ok(name))
            || own_name(import, entry).as_ref().is_ok_and(|own| own == name)
    });
    match picked.collect::<Vec<_>>().as_slice() {
        [one] => Ok(vec![((*one).clone(), name.clone())]),
        picked => {
            let reason = format!(
                "{} of its {} images are called {name}, not one",
                picked.len(),
                manifests.len()
            );
            Err(Error::invalid(import.file, "index.json", reason))
        }
    }
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations.as_ref()?.get(key).map(String::as_str)
}

fn own_name(import: &Import<'_>, entry: &Descriptor) -> Result<ImageRef, Error> {
    let unnamed = |reason: String| Error::Unnamed {
        file: import.file.to_owned(),
        reason,
    };
    let text = match (annotation(entry, IMAGE_NAME), annotation(entry, REF_NAME)) {
        (Some(name), _) => name,
        (None, Some(name)) if name.contains([':', '/']) => name,
        (None, Some(tag)) => {
            return Err(unnamed(format!(
                "its image is called only {tag:?}, which is a tag"
            )));
        }
        (None, None) => return Err(unnamed(format!("image {} has no name", entry.digest))),
    };
    ImageRef::parse(text).map_err(|source| Error::Name {
        file: import.file.to_owned(),
        source,
    })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Stores a manifest or an index with all it needs, itself last.
fn store_document(
    import: &mut Import<'_>,
    contents: &Contents,
    descriptor: &Descriptor,
    depth: usize,
    gathered: &mut Gathered,
) -> Result<(), Error> {
    let part = descriptor.digest.to_string();
    let bytes = import.json(contents, &blob_name(&descriptor.digest))?;
    let got = crate::digest::sha256(&bytes);
    if got != descriptor.digest {
        let file = import.file.to_owned();
        return Err(Error::Mismatch {
            file,
            part,
            expected: descriptor.digest,
            got,
        });
    }
    let document: Document = import.parse(&bytes, &part)?;
    match (document.manifests, document.config, document.layers) {
        (Some(children), None, None) => {
            if depth >= MAX_INDEX_DEPTH || children.len() > MAX_IMAGES {
                let reason =
                    format!("indexes nested deeper than {MAX_INDEX_DEPTH}, or more than {MAX_IMAGES} images");
                return Err(Error::invalid(import.file, &part, reason));
            }
            for child in &children {
                if contents.open(&blob_name(&child.digest))?.is_some() {
                    store_document(import, contents, child, depth + 1, gathered)?;
                }
            }
        }
        (None, Some(config), Some(layers)) => {
            if layers.len() > MAX_LAYERS {
                let reason = format!("{} layers, at most {MAX_LAYERS}", layers.len());
                return Err(Error::invalid(import.file, &part, reason));
            }
            store_blob(import, contents, &config, gathered)?;
            for (index, layer) in layers.iter().enumerate() {
                if gathered.layers.insert(layer.digest) {
                    store_blob(import, contents, layer, gathered)?;
                }
                (import.progress)(Progress::Storing {
                    done: index + 1,
                    total: layers.len(),
                });
            }
            gathered.images += 1;
        }
        _ => {
            return Err(Error::invalid(
                import.file,
                &part,
                "it is neither an index nor an image manifest",
            ));
        }
    }
    import.store.commit_bytes(import.stage, &bytes)?;
    Ok(())
}

fn store_blob(
    import: &Import<'_>,
    contents: &Contents,
    descriptor: &Descriptor,
    gathered: &mut Gathered,
) -> Result<(), Error> {
    let part = descriptor.digest.to_string();
    let Some(source) = contents.open(&blob_name(&descriptor.digest))? else {
        return Err(Error::invalid(import.file, &part, "the blob is missing"));
    };
    if !import.store.has_blob(&descriptor.digest) {
        let size = import.copy_blob(source, &descriptor.digest, &part)?;
        if size != descriptor.size {
            let reason = format!("{size} bytes, its descriptor says {}", descriptor.size);
            return Err(Error::invalid(import.file, &part, reason));
        }
    }
    gathered.bytes += descriptor.size;
    Ok(())
}
