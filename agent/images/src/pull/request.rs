//! What the agent and its `pull` process say to each other: one request on standard input, JSON lines on standard
//! output.
//!
//! Always holds: every report is one line of bounded length; the last one is [`PullReport::Ok`] or
//! [`PullReport::Error`], and a process that ends without one has failed.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skiff_protocol::image_ref::Digest;

use crate::limits::Limits;
use crate::pace::Pace;

/// One image to be pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PullRequest {
    /// The reference as the Pod has it.
    pub reference: String,
    /// Where to look, in this order, at most [`crate::limits::MAX_SOURCES`]. With none, only the local store counts.
    pub sources: Vec<Source>,
    /// Which of an index's images fits this node.
    pub platform: Platform,
    /// The directory of the store.
    pub store: PathBuf,
    /// A store that came with the device, whose images and layers are used in place.
    #[serde(default)]
    pub preloaded: Option<PathBuf>,
    /// Bounds of this pull.
    #[serde(default)]
    pub limits: Limits,
    /// The latest time that the node knows to have passed, in seconds since 1970. Certificates are checked against
    /// this or the system clock, whichever is later: a board without a battery wakes up in 1970.
    #[serde(default)]
    pub not_before_unix: u64,
}

/// What kind of place a [`Source`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceKind {
    /// Skiff's own server.
    Server,
    /// Something that answers for other registries, told by `?ns=` for which (containerd's convention).
    Mirror,
    /// A registry for its own images.
    Registry,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Mirror => "mirror",
            Self::Registry => "registry",
        })
    }
}

/// A place that may have the image.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// What kind of place it is.
    pub kind: SourceKind,
    /// `https://host[:port][/prefix]`, to which `/v2/…` is added. Empty for a registry: the reference's own.
    #[serde(default)]
    pub base_url: String,
    /// Whether HTTP without TLS is allowed; an empty `base_url` then means `http://` and the reference's registry.
    #[serde(default)]
    pub plain_http: bool,
    /// Certificate authorities to trust instead of the system's, as PEM.
    #[serde(default)]
    pub ca_pem: Option<String>,
    /// The node's certificate chain, as PEM; needs `client_key_pem`.
    #[serde(default)]
    pub client_cert_pem: Option<String>,
    /// The private key of `client_cert_pem`, as PEM.
    #[serde(default)]
    pub client_key_pem: Option<String>,
    /// User name for basic authentication or for the token service; needs `password`.
    #[serde(default)]
    pub username: Option<String>,
    /// The password of `username`.
    #[serde(default)]
    pub password: Option<String>,
    /// How fast layers may come from there; each limit holds.
    #[serde(default)]
    pub paces: Vec<Pace>,
}

impl Source {
    /// A source without certificates and credentials of its own.
    #[must_use]
    pub fn new(kind: SourceKind, base_url: impl Into<String>) -> Self {
        Self {
            kind,
            base_url: base_url.into(),
            plain_http: false,
            ca_pem: None,
            client_cert_pem: None,
            client_key_pem: None,
            username: None,
            password: None,
            paces: Vec::new(),
        }
    }
}

/// Key and password are left out.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("kind", &self.kind)
            .field("base_url", &self.base_url)
            .field("plain_http", &self.plain_http)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// An operating system and processor, in Go's words as OCI uses them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `arm64`, `arm`, `amd64`, …
    pub architecture: String,
    /// `v5`, `v6` or `v7` for `arm`, `v8` for `arm64`; `None` means that architecture's usual one.
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform that this program was compiled for.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            "arm" if cfg!(target_feature = "v7") => ("arm", Some("v7")),
            "arm" => ("arm", Some("v6")),
            other => (other, None),
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// One line of the `pull` process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PullReport {
    /// What its layers are, once that is known.
    Plan(Plan),
    /// A layer is under way. At most a few lines a second, and always one at its end.
    Progress(Progress),
    /// What has come over the network so far, with each line about a layer and before the last line.
    Fetched(Fetched),
    /// What the pull has cost the flash, before the last line.
    Wrote(Wrote),
    /// The image is in the store, under this manifest digest.
    Ok(Digest),
    /// It is not.
    Error(PullError),
}

/// What was written to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wrote {
    /// Bytes, as the kernel counts them for the process: whole pages.
    pub bytes: u64,
    /// Calls that made the disk flush its cache.
    pub syncs: u64,
}

/// The layers of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// Bytes of all, as transferred.
    pub total: u64,
    /// Bytes of those that are here.
    pub known: u64,
}

/// Bytes of manifests, configurations and layers that a pull was sent, by what kind of place sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetched {
    /// Skiff's server.
    pub server: u64,
    /// Mirrors.
    pub mirror: u64,
    /// Registries.
    pub registry: u64,
}

/// How far a layer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// The layer's digest as transferred.
    pub layer: Digest,
    /// Bytes transferred and unpacked.
    pub done: u64,
    /// Bytes altogether.
    pub total: u64,
}

/// Why there is no image, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{reason}: {message}")]
pub struct PullError {
    /// The waiting reason of the container.
    pub reason: PullReason,
    /// What happened at each source, with the registry's own words; at most [`crate::limits::MAX_MESSAGE_BYTES`].
    pub message: String,
    /// The disk was too full: with so many bytes free it may go well.
    #[serde(default)]
    pub needed_bytes: Option<u64>,
}

impl PullError {
    /// One that more room would not help.
    #[must_use]
    pub fn new(reason: PullReason, message: String) -> Self {
        Self {
            reason,
            message,
            needed_bytes: None,
        }
    }
}

/// The waiting reasons that the kubelet knows for images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullReason {
    /// The pull failed for any reason but the others. The kubelet's `ImagePullBackOff` is the wait after it.
    ErrImagePull,
    /// The image is not in the store, and there is no source to pull it from.
    ErrImageNeverPull,
    /// The reference is malformed.
    InvalidImageName,
    /// Some source could not be reached, and those that could, if any, only stand in for it and lack the image.
    RegistryUnavailable,
}

impl fmt::Display for PullReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
