//! Indexes, manifests and configurations: OCI's, and Docker's schema 2, which says the same in other media types.
//!
//! Always holds: a [`Manifest`] has between 1 and [`MAX_LAYERS`] layers, each a file system layer with a SHA-256
//! digest; a [`Config`] is for the platform that was asked for.

use std::collections::BTreeMap;

use serde::Deserialize;
use skiff_protocol::image_ref::Digest;

use super::RegistryError;
use crate::image::ImageConfig;
use crate::limits::{MAX_INDEX_ENTRIES, MAX_LAYERS, MAX_MANIFEST_BYTES};
use crate::pull::Platform;

/// A digest and a size, as a manifest names its parts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<RawPlatform>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// What stands under a tag or a digest.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// One platform's image.
#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Bottom first.
    pub(crate) layers: Vec<Descriptor>,
}

impl Document {
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Self, RegistryError> {
        let malformed = |reason: &str| RegistryError::malformed(what, reason);
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|error| RegistryError::malformed(what, error))?;
        if raw.schema_version == 1 {
            return Err(malformed(
                "a Docker schema 1 manifest, which is not supported; push the image again",
            ));
        }
        let media_type = raw.media_type.as_deref().unwrap_or_default();
        match (raw.manifests, raw.config, raw.layers) {
            // One text that is both could be shown to a verifier as one and to a node as the other.
            (Some(_), _, Some(_)) => Err(malformed("it is both an index and a manifest")),
            (Some(manifests), None, None) => {
                if media_type.contains("manifest.v") {
                    return Err(malformed("it is an index that calls itself a manifest"));
                }
                if manifests.len() > MAX_INDEX_ENTRIES {
                    return Err(malformed("an index of more than 1024 images"));
                }
                Ok(Self::Index(manifests))
            }
            (None, Some(config), Some(layers)) => {
                if media_type.contains("index") || media_type.contains("list") {
                    return Err(malformed("it is a manifest that calls itself an index"));
                }
                check_layers(&layers, what)?;
                if config.size > MAX_MANIFEST_BYTES {
                    return Err(RegistryError::TooLarge {
                        what: format!("config of {what}"),
                        limit: MAX_MANIFEST_BYTES,
                    });
                }
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            _ => Err(malformed("it is neither an index nor an image manifest")),
        }
    }
}

fn check_layers(layers: &[Descriptor], what: &str) -> Result<(), RegistryError> {
    if layers.is_empty() {
        return Err(RegistryError::malformed(what, "an image without layers"));
    }
    if layers.len() > MAX_LAYERS {
        return Err(RegistryError::malformed(
            what,
            format!("an image of {} layers, at most {MAX_LAYERS}", layers.len()),
        ));
    }
    for layer in layers {
        let kind = &layer.media_type;
        if kind.contains("encrypted") || !kind.contains("tar") {
            let reason = format!(
                "layer {} is of type {kind:?}, not a file system layer",
                layer.digest
            );
            return Err(RegistryError::malformed(what, reason));
        }
    }
    Ok(())
}

/// The image of an index that fits `wanted` best.
pub(crate) fn choose<'a>(
    manifests: &'a [Descriptor],
    wanted: &Platform,
) -> Result<&'a Descriptor, RegistryError> {
    // An index around a single image of an unstated platform: its configuration says what it is for.
    if let [only @ Descriptor { platform: None, .. }] = manifests {
        return Ok(only);
    }
    let ranked = manifests
        .iter()
        .filter_map(|descriptor| Some((rank(descriptor.platform.as_ref()?, wanted)?, descriptor)));
    // Of equals the first counts, as elsewhere.
    let best = ranked.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|(_, descriptor)| descriptor).ok_or_else(|| {
        let names = manifests
            .iter()
            .filter_map(|descriptor| descriptor.platform.as_ref())
            .map(name);
        let names: Vec<String> = names.filter(|name| !name.contains("unknown")).take(32).collect();
        let offered = if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        };
        RegistryError::Platform {
            wanted: wanted.to_string(),
            offered,
        }
    })
}

fn name(platform: &RawPlatform) -> String {
    let mut name = format!("{}/{}", platform.os, platform.architecture);
    if let Some(variant) = platform.variant.as_ref().filter(|variant| !variant.is_empty()) {
        name.push('/');
        name.push_str(variant);
    }
    name
}

/// How well an image fits, or `None` if it does not run. A processor runs its own variant and those before it.
fn rank(offered: &RawPlatform, wanted: &Platform) -> Option<(u32, u32)> {
    if offered.os != wanted.os || offered.architecture != wanted.architecture {
        return None;
    }
    let variant = |given: Option<&str>| version(given.filter(|text| !text.is_empty()), &wanted.architecture);
    let (offered, wanted) = (
        variant(offered.variant.as_deref())?,
        variant(wanted.variant.as_deref())?,
    );
    (offered <= wanted).then_some(offered)
}

/// `v8.1` as (8, 1). What leaves the variant out means the usual one.
fn version(variant: Option<&str>, architecture: &str) -> Option<(u32, u32)> {
    let Some(variant) = variant else {
        return Some(match architecture {
            "arm" => (7, 0),
            "arm64" => (8, 0),
            _ => (1, 0),
        });
    };
    let digits = variant.strip_prefix('v').unwrap_or(variant);
    let (major, minor) = digits.split_once('.').unwrap_or((digits, "0"));
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    config: Option<RawExecution>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// Docker writes `null` for what is empty.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawExecution {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

/// A configuration blob, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) config: ImageConfig,
    /// Bottom first.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8], wanted: &Platform, layers: usize) -> Result<Self, RegistryError> {
        const WHAT: &str = "image configuration";
        let raw: RawConfig =
            serde_json::from_slice(bytes).map_err(|error| RegistryError::malformed(WHAT, error))?;
        if raw.rootfs.diff_ids.len() != layers {
            let reason = format!("{} diff IDs for {layers} layers", raw.rootfs.diff_ids.len());
            return Err(RegistryError::malformed(WHAT, reason));
        }
        let platform = RawPlatform {
            os: raw.os,
            architecture: raw.architecture,
            variant: raw.variant,
        };
        // Images put together by hand may not say what they are for.
        if !platform.architecture.is_empty() && rank(&platform, wanted).is_none() {
            let (wanted, offered) = (wanted.to_string(), name(&platform));
            return Err(RegistryError::Platform { wanted, offered });
        }
        let execution = raw.config.unwrap_or_default();
        let names = |map: Option<BTreeMap<String, _>>| map.unwrap_or_default().into_keys().collect();
        let config = ImageConfig {
            entrypoint: execution.entrypoint.unwrap_or_default(),
            cmd: execution.cmd.unwrap_or_default(),
            env: execution.env.unwrap_or_default(),
            working_dir: execution.working_dir.unwrap_or_default(),
            user: execution.user.unwrap_or_default(),
            stop_signal: execution.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports: names(execution.exposed_ports),
            volumes: names(execution.volumes),
            labels: execution.labels.unwrap_or_default(),
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant.filter(|variant| !variant.is_empty()),
        };
        Ok(Self {
            config,
            diff_ids: raw.rootfs.diff_ids,
        })
    }
}
