//! Image references: `nginx`, `registry.example:5000/team/app:1.2`, `app@sha256:…`.
//!
//! The one grammar for server, agent and CLI, and it is Docker's and containerd's: a reference without a registry
//! means `docker.io`, one of its names without a slash means `library/`, one without tag and digest means `latest`.
//! An [`ImageRef`] is always complete, normalised and within its bounds; whatever cannot be one is refused with the
//! reason that Kubernetes reports as `InvalidImageName`.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// The registry that a reference without one means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag that a reference without tag and digest means.
pub const DEFAULT_TAG: &str = "latest";
/// Longest registry and repository together, in bytes (the distribution specification's 255).
pub const MAX_NAME_LEN: usize = 255;
/// Longest tag, in bytes (the distribution specification's 128).
pub const MAX_TAG_LEN: usize = 128;
/// Longest reference that is looked at: name, tag, digest and their separators.
pub const MAX_REFERENCE_LEN: usize = MAX_NAME_LEN + 1 + MAX_TAG_LEN + 1 + DIGEST_TEXT_LEN;

const DIGEST_TEXT_LEN: usize = "sha256:".len() + 64;
/// An error carries at most this much of a hostile reference.
const MAX_QUOTED_LEN: usize = 128;

/// A SHA-256 content digest, written `sha256:<64 lower-case hexadecimal digits>`.
///
/// OCI image specification, "Digests". SHA-512 is registered there too, but nothing this project talks to uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Wraps the 32 bytes that SHA-256 gave.
    #[must_use]
    pub const fn from_sha256(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses `sha256:<hex>`.
    ///
    /// # Errors
    /// [`Reason::DigestAlgorithm`] for any algorithm but sha256, [`Reason::Digest`] for wrong digits or length.
    pub fn parse(text: &str) -> Result<Self, Reason> {
        let (algorithm, hex) = text.split_once(':').ok_or(Reason::Digest)?;
        if algorithm != "sha256" {
            return Err(Reason::DigestAlgorithm);
        }
        let hex = hex.as_bytes();
        if hex.len() != 64 {
            return Err(Reason::Digest);
        }
        let mut bytes = [0_u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
        }
        Ok(Self(bytes))
    }

    /// The 64 hexadecimal digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        let mut text = self.to_string();
        text.split_off("sha256:".len())
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn nibble(digit: u8) -> Result<u8, Reason> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(Reason::Digest),
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Reason;

    fn from_str(text: &str) -> Result<Self, Reason> {
        Self::parse(text)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Digest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a digest such as sha256:<64 hexadecimal digits>")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Digest, E> {
                Digest::parse(text).map_err(|reason| E::custom(format!("{}: {reason}", quoted(text))))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Why a text is not an image reference, without the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing, or only blanks.
    Empty,
    /// Longer than [`MAX_REFERENCE_LEN`], or its name than [`MAX_NAME_LEN`].
    TooLong,
    /// White space or a control character.
    Blank,
    /// `https://…`: a reference has no scheme.
    Scheme,
    /// The registry is no `host[:port]`.
    Registry,
    /// The registry's port is no number from 1 to 65535.
    Port,
    /// The repository has an upper-case letter.
    UpperCase,
    /// The repository is missing, has an empty part, or characters outside `a-z0-9._-/`.
    Repository,
    /// 64 hexadecimal digits alone: an image ID, not a name.
    ImageId,
    /// The tag has characters outside `A-Za-z0-9_.-`, is empty or is longer than [`MAX_TAG_LEN`].
    Tag,
    /// The digest's digits are not 64 lower-case hexadecimal ones.
    Digest,
    /// The digest is of another algorithm than sha256.
    DigestAlgorithm,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "the reference is empty",
            Self::TooLong => "the reference is too long (255 bytes of name, 128 of tag)",
            Self::Blank => "white space and control characters are not allowed",
            Self::Scheme => "a reference starts with the registry's host name, not with a URL scheme",
            Self::Registry => "the registry must be a host name or an address, with an optional port",
            Self::Port => "the registry's port must be a number from 1 to 65535",
            Self::UpperCase => "repository name must be lowercase",
            Self::Repository => {
                "the repository must be lowercase letters and digits, separated by '/', '.', '_', '__' or '-'"
            }
            Self::ImageId => "64 hexadecimal digits are an image ID, not a name",
            Self::Tag => {
                "the tag must be 1 to 128 of letters, digits, '_', '.' and '-', not starting with '.' or '-'"
            }
            Self::Digest => "the digest must be sha256: and 64 lowercase hexadecimal digits",
            Self::DigestAlgorithm => "unsupported digest algorithm, sha256 is the one that is known",
        })
    }
}

impl core::error::Error for Reason {}

/// A text that is not an image reference: what Kubernetes calls `InvalidImageName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRefError {
    /// The text as given, escaped and cut to a bounded length.
    pub reference: String,
    /// What is wrong with it.
    pub reason: Reason,
}

impl fmt::Display for ImageRefError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "couldn't parse image name {}: invalid reference format: {}",
            self.reference, self.reason
        )
    }
}

impl core::error::Error for ImageRefError {}

fn quoted(text: &str) -> String {
    if text.len() <= MAX_QUOTED_LEN {
        return format!("{text:?}");
    }
    let mut end = MAX_QUOTED_LEN;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{:?}…", &text[..end])
}

/// A complete, normalised image reference.
///
/// Displays as the canonical text (`docker.io/library/nginx:latest`), which parses back to the same value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    /// Absent only where there is a digest.
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Parses and normalises what a user wrote in `image:`.
    ///
    /// # Errors
    /// [`ImageRefError`] names the text and the reason.
    pub fn parse(text: &str) -> Result<Self, ImageRefError> {
        parse(text).map_err(|reason| ImageRefError {
            reference: quoted(text),
            reason,
        })
    }

    /// `host[:port]` of the registry, `docker.io` for Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Where the registry's API answers: Docker Hub's has another name than its references.
    #[must_use]
    pub fn registry_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY {
            "registry-1.docker.io"
        } else {
            &self.registry
        }
    }

    /// The repository within the registry, `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. Where a digest stands beside it, the digest decides and the tag is only a remark.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the content, if the reference has one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What follows `/manifests/` in the registry's API: the digest, or else the tag.
    #[must_use]
    pub fn manifest_reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The same repository, pinned to `digest` and without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// `registry/repository`, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// As a user would write it: without `docker.io/library/` where that is implied.
    #[must_use]
    pub fn familiar(&self) -> String {
        let text = self.to_string();
        if self.registry != DEFAULT_REGISTRY {
            return text;
        }
        let short = text.strip_prefix("docker.io/").unwrap_or(&text);
        let short = match short.strip_prefix("library/") {
            Some(bare) if !bare.contains('/') => bare,
            _ => short,
        };
        // `docker.io/a.b/c` cannot be shortened: `a.b` would be taken for a registry.
        if Self::parse(short).as_ref() == Ok(self) {
            short.to_owned()
        } else {
            text
        }
    }

    /// Whether leaving `imagePullPolicy` out means `Always`: a tag `latest` and no digest (Kubernetes' rule).
    #[must_use]
    pub fn is_latest(&self) -> bool {
        self.digest.is_none() && self.tag.as_deref() == Some(DEFAULT_TAG)
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        Self::parse(text)
    }
}

impl Serialize for ImageRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = ImageRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an image reference")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ImageRef, E> {
                ImageRef::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

fn parse(text: &str) -> Result<ImageRef, Reason> {
    if text.trim().is_empty() {
        return Err(Reason::Empty);
    }
    if text.len() > MAX_REFERENCE_LEN {
        return Err(Reason::TooLong);
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Reason::Blank);
    }
    if text.contains("://") {
        return Err(Reason::Scheme);
    }
    if text.len() == 64 && text.bytes().all(|b| nibble(b).is_ok()) {
        return Err(Reason::ImageId);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (text, None),
    };
    let (registry, path) = split_registry(rest)?;
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (path, None),
    };
    check_repository(repository)?;
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    if registry.len() + 1 + repository.len() > MAX_NAME_LEN {
        return Err(Reason::TooLong);
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_TAG.to_owned()),
    };
    Ok(ImageRef {
        registry,
        repository,
        tag,
        digest,
    })
}

/// The first part is a registry if it could not be part of a Docker Hub repository: it has a dot, a port or an
/// upper-case letter, or is `localhost`.
fn split_registry(name: &str) -> Result<(String, &str), Reason> {
    let Some((first, rest)) = name.split_once('/') else {
        return Ok((DEFAULT_REGISTRY.to_owned(), name));
    };
    let is_registry = first == "localhost"
        || first.contains(['.', ':', '['])
        || first.bytes().any(|byte| byte.is_ascii_uppercase());
    if !is_registry {
        return Ok((DEFAULT_REGISTRY.to_owned(), name));
    }
    check_registry(first)?;
    let registry = if first == "index.docker.io" {
        DEFAULT_REGISTRY
    } else {
        first
    };
    Ok((registry.to_owned(), rest))
}

fn check_registry(registry: &str) -> Result<(), Reason> {
    let (host, port) = if let Some(bracketed) = registry.strip_prefix('[') {
        let (address, after) = bracketed.split_once(']').ok_or(Reason::Registry)?;
        address
            .parse::<core::net::Ipv6Addr>()
            .map_err(|_| Reason::Registry)?;
        (
            None,
            if after.is_empty() {
                None
            } else {
                Some(after.strip_prefix(':').ok_or(Reason::Registry)?)
            },
        )
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    if let Some(port) = port {
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        if !digits || port.parse::<u16>().map_or(true, |number| number == 0) {
            return Err(Reason::Port);
        }
    }
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match host {
        Some(host) if !host.split('.').all(is_label) => Err(Reason::Registry),
        _ => Ok(()),
    }
}

fn check_repository(repository: &str) -> Result<(), Reason> {
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(Reason::UpperCase);
    }
    if repository.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err(Reason::Repository)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separator = String::new();
    let mut started = false;
    for byte in component.bytes() {
        if alphanumeric(byte) {
            let joined = separator.is_empty()
                || (started
                    && (matches!(separator.as_str(), "." | "_" | "__")
                        || separator.bytes().all(|b| b == b'-')));
            if !joined {
                return false;
            }
            separator.clear();
            started = true;
        } else if matches!(byte, b'.' | b'_' | b'-') {
            separator.push(char::from(byte));
        } else {
            return false;
        }
    }
    started && separator.is_empty()
}

fn check_tag(tag: &str) -> Result<(), Reason> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    let starts_well = bytes.next().is_some_and(word);
    if starts_well && tag.len() <= MAX_TAG_LEN && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
    {
        Ok(())
    } else {
        Err(Reason::Tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    /// The canonical text, the familiar text, or the reason.
    fn check(given: &str, expected: Result<(&str, &str), Reason>) {
        match (ImageRef::parse(given), expected) {
            (Ok(parsed), Ok((canonical, familiar))) => {
                assert_eq!(parsed.to_string(), canonical, "{given}");
                assert_eq!(parsed.familiar(), familiar, "{given}");
                assert_eq!(
                    ImageRef::parse(canonical),
                    Ok(parsed.clone()),
                    "{given}: canonical text"
                );
                assert_eq!(ImageRef::parse(familiar), Ok(parsed), "{given}: familiar text");
            }
            (Err(error), Err(reason)) => {
                assert_eq!(error.reason, reason, "{given}");
                assert!(
                    error.to_string().contains("couldn't parse image name \""),
                    "{error}"
                );
            }
            (got, expected) => panic!("{given}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn references_are_normalised_like_dockers() {
        let pinned = format!("app@sha256:{HEX}");
        let pinned_canonical = format!("docker.io/library/app@sha256:{HEX}");
        let both = format!("r.example:5000/a/b:1@sha256:{HEX}");
        let table: Vec<(&str, &str, &str)> = alloc::vec![
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
            ("library/nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("team/app", "docker.io/team/app:latest", "team/app:latest"),
            (
                "docker.io/nginx",
                "docker.io/library/nginx:latest",
                "nginx:latest"
            ),
            ("index.docker.io/a/b:x", "docker.io/a/b:x", "a/b:x"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            (
                "localhost:5000/app:v1",
                "localhost:5000/app:v1",
                "localhost:5000/app:v1"
            ),
            (
                "127.0.0.1:5000/app",
                "127.0.0.1:5000/app:latest",
                "127.0.0.1:5000/app:latest"
            ),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
            (
                "ghcr.io/a/b/c:T_1.x-y",
                "ghcr.io/a/b/c:T_1.x-y",
                "ghcr.io/a/b/c:T_1.x-y"
            ),
            (
                "a__b/c--d.e",
                "docker.io/a__b/c--d.e:latest",
                "a__b/c--d.e:latest"
            ),
            (
                "UPPER.example/app",
                "UPPER.example/app:latest",
                "UPPER.example/app:latest"
            ),
            (
                "docker.io/a.b/c",
                "docker.io/a.b/c:latest",
                "docker.io/a.b/c:latest"
            ),
            (
                "library/a/b",
                "docker.io/library/a/b:latest",
                "library/a/b:latest"
            ),
            (&pinned, &pinned_canonical, &pinned),
            (&both, &both, &both),
        ];
        for (given, canonical, familiar) in table {
            check(given, Ok((canonical, familiar)));
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_reason() {
        let long_tag = format!("app:{}", "t".repeat(129));
        let long_name = "a".repeat(250);
        let too_long = "a".repeat(MAX_REFERENCE_LEN + 1);
        let short_digest = format!("app@sha256:{}", &HEX[1..]);
        let upper_digest = format!("app@sha256:{}", HEX.to_uppercase());
        let sha512 = format!("app@sha512:{HEX}{HEX}");
        let table = [
            ("", Reason::Empty),
            ("  ", Reason::Empty),
            (&too_long, Reason::TooLong),
            (&long_name, Reason::TooLong),
            ("a b", Reason::Blank),
            ("app\n", Reason::Blank),
            ("https://r.example/app", Reason::Scheme),
            (HEX, Reason::ImageId),
            ("Nginx", Reason::UpperCase),
            ("a/B", Reason::UpperCase),
            ("a//b", Reason::Repository),
            ("a/", Reason::Repository),
            ("/a", Reason::Repository),
            ("r.example/", Reason::Repository),
            ("../etc", Reason::Registry),
            ("a/../b", Reason::Repository),
            ("a___b", Reason::Repository),
            ("-a", Reason::Repository),
            ("a-", Reason::Repository),
            ("a._b", Reason::Repository),
            (":tag", Reason::Repository),
            ("näm", Reason::Repository),
            ("r.example:port/app", Reason::Port),
            ("r.example:0/app", Reason::Port),
            ("r.example:70000/app", Reason::Port),
            ("-r.example/app", Reason::Registry),
            ("[::g]/app", Reason::Registry),
            ("[::1]x/app", Reason::Registry),
            ("app:", Reason::Tag),
            ("app:-x", Reason::Tag),
            ("app:a:b", Reason::Tag),
            (&long_tag, Reason::Tag),
            ("app@", Reason::Digest),
            (&short_digest, Reason::Digest),
            (&upper_digest, Reason::Digest),
            (&sha512, Reason::DigestAlgorithm),
        ];
        for (given, reason) in table {
            check(given, Err(reason));
        }
    }

    #[test]
    fn an_error_quotes_a_bounded_part() {
        let error = ImageRef::parse(&"é ".repeat(5000)).expect_err("blanks");
        assert!(
            error.reference.len() < 2 * MAX_QUOTED_LEN,
            "{}",
            error.reference.len()
        );
    }

    #[test]
    fn the_api_sees_the_digest_before_the_tag() {
        let both = ImageRef::parse(&format!("a/b:1@sha256:{HEX}")).expect("valid");
        assert_eq!(both.manifest_reference(), format!("sha256:{HEX}"));
        assert_eq!(both.registry_host(), "registry-1.docker.io");
        assert!(!both.is_latest());
        assert!(ImageRef::parse("a/b").expect("valid").is_latest());
        let digest = Digest::parse(&format!("sha256:{HEX}")).expect("valid");
        assert_eq!(digest.hex(), HEX);
        assert_eq!(Digest::from_sha256(*digest.as_bytes()), digest);
    }
}
