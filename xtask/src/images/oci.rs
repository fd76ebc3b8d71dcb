//! An assembled image and its two forms on disk (OCI image-spec 1.1: config, manifest, index, layout).

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use tar::{Builder, EntryType};

use crate::files;

use super::Recipe;
use super::layer::header;

const CREATED: &str = "2020-01-01T00:00:00Z";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Bytes and the name they are stored under.
struct Blob {
    media_type: String,
    bytes: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        let hash = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let digest = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            media_type: media_type.into(),
            bytes,
            digest,
        }
    }

    fn json(media_type: &str, value: &Value) -> Result<Self> {
        Ok(Self::new(
            media_type,
            serde_json::to_vec(value).context("cannot write JSON")?,
        ))
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": format!("sha256:{}", self.digest),
            "size": self.bytes.len(),
        })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }
}

/// An image: its config and its layers, plain and compressed.
pub(crate) struct Image {
    short: String,
    architecture: &'static str,
    config: Blob,
    plain: Vec<Blob>,
    gzipped: Vec<Blob>,
}

impl Image {
    /// Packs the recipe's layers and writes the config that describes them; `architecture` as OCI spells it.
    pub(crate) fn assemble(recipe: Recipe, architecture: &'static str) -> Result<Self> {
        let mut plain = Vec::new();
        let mut gzipped = Vec::new();
        for layer in &recipe.layers {
            let bytes = layer.to_tar()?;
            gzipped.push(Blob::new(format!("{LAYER}+gzip"), gzip(&bytes)?));
            plain.push(Blob::new(LAYER, bytes));
        }
        let diff_ids: Vec<String> = plain
            .iter()
            .map(|blob| format!("sha256:{}", blob.digest))
            .collect();
        let history: Vec<Value> = plain
            .iter()
            .map(|_| json!({"created": CREATED, "created_by": "cargo xtask images"}))
            .collect();
        let config = json!({
            "created": CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": recipe.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        Ok(Self {
            short: recipe.reference,
            architecture,
            config: Blob::json(CONFIG, &config)?,
            plain,
            gzipped,
        })
    }

    /// The full reference, `docker.io/library/nginx:latest`.
    pub(crate) fn reference(&self) -> String {
        let first = self.short.split('/').next().unwrap_or_default();
        if self.short.contains('/') && first.contains('.') {
            self.short.clone()
        } else {
            format!("docker.io/library/{}", self.short)
        }
    }

    /// Size of what a registry would hold, in bytes.
    pub(crate) fn size(&self) -> usize {
        self.config.bytes.len() + self.gzipped.iter().map(|blob| blob.bytes.len()).sum::<usize>()
    }

    /// The image's id (the config's digest), the same in both forms.
    pub(crate) fn digest(&self) -> String {
        format!("sha256:{}", &self.config.digest[..12])
    }

    /// Writes the archive that `docker save` writes: an OCI layout and a `manifest.json` in one tar.
    pub(crate) fn write_archive(&self, path: &Path) -> Result<()> {
        let manifest = self.manifest(&self.plain)?;
        let docker = json!([{
            "Config": self.config.path(),
            "RepoTags": [self.short],
            "Layers": self.plain.iter().map(Blob::path).collect::<Vec<_>>(),
        }]);
        let mut builder = Builder::new(Vec::new());
        let mut put = |name: &str, bytes: &[u8]| {
            builder
                .append_data(&mut header(EntryType::Regular, 0o644, bytes.len()), name, bytes)
                .with_context(|| format!("cannot add {name} to {}", path.display()))
        };
        for blob in self.plain.iter().chain([&self.config, &manifest]) {
            put(&blob.path(), &blob.bytes)?;
        }
        put("index.json", &self.index(&manifest)?)?;
        put("manifest.json", &serde_json::to_vec(&docker)?)?;
        put("oci-layout", LAYOUT.as_bytes())?;
        files::write(path, builder.into_inner().context("cannot finish the archive")?)
    }

    /// Writes the OCI layout directory, replacing an older one.
    pub(crate) fn write_layout(&self, dir: &Path) -> Result<()> {
        let manifest = self.manifest(&self.gzipped)?;
        files::remove(dir)?;
        files::make_dir(&dir.join("blobs/sha256"))?;
        for blob in self.gzipped.iter().chain([&self.config, &manifest]) {
            files::write(&dir.join(blob.path()), &blob.bytes)?;
        }
        files::write(&dir.join("oci-layout"), LAYOUT)?;
        files::write(&dir.join("index.json"), self.index(&manifest)?)
    }

    fn manifest(&self, layers: &[Blob]) -> Result<Blob> {
        let value = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        Blob::json(MANIFEST, &value)
    }

    fn index(&self, manifest: &Blob) -> Result<Vec<u8>> {
        let tag = self.short.rsplit(':').next().unwrap_or_default();
        let mut descriptor = manifest.descriptor();
        descriptor["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        // The tag alone is what the image-spec asks for; the second key carries the whole name, as docker does it.
        descriptor["annotations"] = json!({
            "org.opencontainers.image.ref.name": tag,
            "io.containerd.image.name": self.reference(),
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]});
        serde_json::to_vec(&index).context("cannot write JSON")
    }
}

const LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// This machine's architecture, as OCI spells it.
pub(super) fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Gzip with no name and no time in its header.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6));
    encoder.write_all(bytes).context("cannot compress a layer")?;
    encoder.finish().context("cannot compress a layer")
}

#[cfg(test)]
mod tests {
    use super::super::layer::Layer;
    use super::*;

    fn image(reference: &str) -> Image {
        let mut layer = Layer::default();
        layer.text("etc/motd", "hello\n");
        Image::assemble(
            Recipe {
                reference: reference.into(),
                layers: vec![layer],
                config: json!({}),
            },
            "amd64",
        )
        .unwrap()
    }

    #[test]
    fn digests_repeat() {
        let one = image("hello:1.1.1");
        let two = image("hello:1.1.1");
        assert_eq!(one.config.digest, two.config.digest);
        assert_eq!(one.gzipped[0].digest, two.gzipped[0].digest);
    }

    #[test]
    fn short_names_belong_to_docker_hub() {
        for (short, full) in [
            ("nginx:1.14.2", "docker.io/library/nginx:1.14.2"),
            ("ghcr.io/subicura/echo:v1", "ghcr.io/subicura/echo:v1"),
        ] {
            assert_eq!(image(short).reference(), full);
        }
    }

    #[test]
    fn a_digest_is_the_hash_of_the_bytes() {
        // The empty string's SHA-256, from FIPS 180-4's examples.
        let blob = Blob::new(LAYER, Vec::new());
        assert_eq!(
            blob.digest,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
