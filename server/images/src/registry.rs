//! The pull side of the OCI distribution API as a function: a request's parts in, an answer's parts out.
//!
//! Always holds: nothing is changed, no path of the server appears in an answer, and every error has the
//! specification's JSON body. Authentication is the caller's, before this is asked.

use std::fs::File;

use serde_json::json;
use skiff_protocol::image_ref::{DEFAULT_REGISTRY, Digest, ImageRef};

use crate::error::Error;
use crate::store::{ImageStore, StoredManifest};

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, and their values. `content-length` is always there.
    pub headers: Vec<(&'static str, String)>,
    /// What follows.
    pub body: Body,
}

/// The body of an [`Answer`].
#[derive(Debug)]
pub enum Body {
    /// Nothing, as for `HEAD`.
    Empty,
    /// A manifest or an error, at most [`crate::limits::MAX_JSON_BYTES`].
    Bytes(Vec<u8>),
    /// `length` bytes of `file` from `offset` on.
    File {
        /// The blob.
        file: File,
        /// Where to begin, in bytes.
        offset: u64,
        /// How much to send, in bytes.
        length: u64,
    },
}

/// An error of the distribution specification: status, code and words.
struct Refusal(u16, &'static str, &'static str);

const NAME_INVALID: Refusal = Refusal(400, "NAME_INVALID", "invalid repository name");
const NAME_UNKNOWN: Refusal = Refusal(404, "NAME_UNKNOWN", "repository name not known to registry");
const MANIFEST_UNKNOWN: Refusal = Refusal(404, "MANIFEST_UNKNOWN", "manifest unknown");
const BLOB_UNKNOWN: Refusal = Refusal(404, "BLOB_UNKNOWN", "blob unknown to registry");
const DIGEST_INVALID: Refusal = Refusal(
    400,
    "DIGEST_INVALID",
    "provided digest did not match uploaded content",
);
const UNSUPPORTED: Refusal = Refusal(405, "UNSUPPORTED", "the operation is unsupported");
const NOT_FOUND: Refusal = Refusal(404, "UNSUPPORTED", "no such endpoint");

/// Answers one request.
///
/// `path` and `query` are as in the request line, still percent-encoded; `range` is the `Range` header's value. A query
/// `ns=<registry>` says which registry is meant (containerd's convention for mirrors); without it `docker.io` is, or
/// else whichever has the repository.
#[must_use]
pub fn answer(
    store: &ImageStore,
    method: &str,
    path: &str,
    query: Option<&str>,
    range: Option<&str>,
) -> Answer {
    let result = match method {
        "GET" | "HEAD" => route(store, path, query, range),
        _ => Err(Failed::Refusal(UNSUPPORTED)),
    };
    let mut answer = match result {
        Ok(answer) => answer,
        Err(Failed::Refusal(refusal)) => refuse(&refusal),
        Err(Failed::Store(error)) => {
            tracing::error!(%error, path, "the image store failed");
            refuse(&Refusal(
                500,
                "UNKNOWN",
                "the image store failed; the server's log says why",
            ))
        }
    };
    if method == "HEAD" {
        answer.body = Body::Empty;
    }
    answer
}

enum Failed {
    Refusal(Refusal),
    Store(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

fn refuse(refusal: &Refusal) -> Answer {
    let Refusal(status, code, message) = refusal;
    let body = json!({ "errors": [{ "code": code, "message": message, "detail": {} }] });
    let mut answer = json_answer(&body);
    answer.status = *status;
    if *status == 405 {
        answer.headers.push(("allow", "GET, HEAD".to_owned()));
    }
    answer
}

fn json_answer(body: &serde_json::Value) -> Answer {
    bytes_answer(
        body.to_string().into_bytes(),
        "application/json".to_owned(),
        Vec::new(),
    )
}

fn bytes_answer(bytes: Vec<u8>, media_type: String, more: Vec<(&'static str, String)>) -> Answer {
    let mut headers = vec![
        ("docker-distribution-api-version", "registry/2.0".to_owned()),
        ("content-type", media_type),
        ("content-length", bytes.len().to_string()),
    ];
    headers.extend(more);
    Answer {
        status: 200,
        headers,
        body: Body::Bytes(bytes),
    }
}

fn route(store: &ImageStore, path: &str, query: Option<&str>, range: Option<&str>) -> Result<Answer, Failed> {
    let path = percent_decode(path).ok_or(Failed::Refusal(NOT_FOUND))?;
    if matches!(path.as_str(), "/v2" | "/v2/") {
        return Ok(json_answer(&json!({})));
    }
    let rest = path.strip_prefix("/v2/").ok_or(Failed::Refusal(NOT_FOUND))?;
    let namespace = namespace(query)?;
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return tags(store, name, namespace.as_deref());
    }
    let (rest, last) = rest.rsplit_once('/').ok_or(Failed::Refusal(NOT_FOUND))?;
    if let Some(name) = rest.strip_suffix("/manifests") {
        return manifest(store, name, last, namespace.as_deref());
    }
    match rest.strip_suffix("/blobs") {
        Some(name) => blob(store, name, last, range),
        None => Err(Failed::Refusal(NOT_FOUND)),
    }
}

/// The value of `ns`, which must be a registry's name.
fn namespace(query: Option<&str>) -> Result<Option<String>, Failed> {
    let pairs = query.unwrap_or_default().split('&');
    let Some(value) = pairs.filter_map(|pair| pair.strip_prefix("ns=")).next() else {
        return Ok(None);
    };
    percent_decode(value)
        .filter(|value| !value.is_empty())
        .map(Some)
        .ok_or(Failed::Refusal(NAME_INVALID))
}

fn reference(namespace: &str, name: &str, tail: &str) -> Result<ImageRef, Failed> {
    let parsed = ImageRef::parse(&format!("{namespace}/{name}{tail}"));
    // A name that is taken apart in another way than it was put together is none.
    let parsed = parsed.ok().filter(|parsed| parsed.registry() == namespace);
    parsed.ok_or(Failed::Refusal(NAME_INVALID))
}

fn manifest(store: &ImageStore, name: &str, last: &str, namespace: Option<&str>) -> Result<Answer, Failed> {
    let found = if last.contains(':') {
        let digest = Digest::parse(last).map_err(|_| Failed::Refusal(DIGEST_INVALID))?;
        reference(namespace.unwrap_or(DEFAULT_REGISTRY), name, "")?;
        store.manifest_by_digest(&digest)?
    } else {
        by_tag(store, name, last, namespace)?
    };
    let StoredManifest {
        media_type,
        digest,
        bytes,
    } = found.ok_or(Failed::Refusal(MANIFEST_UNKNOWN))?;
    let more = vec![
        ("docker-content-digest", digest.to_string()),
        ("etag", format!("\"{digest}\"")),
    ];
    Ok(bytes_answer(bytes, media_type, more))
}

fn by_tag(
    store: &ImageStore,
    name: &str,
    tag: &str,
    namespace: Option<&str>,
) -> Result<Option<StoredManifest>, Failed> {
    let wanted = reference(namespace.unwrap_or(DEFAULT_REGISTRY), name, &format!(":{tag}"))?;
    let found = store.manifest(&wanted)?;
    if found.is_some() || namespace.is_some() {
        return Ok(found);
    }
    let same = |image: &ImageRef| image.repository() == name && image.tag() == Some(tag);
    match store.list()?.into_iter().find(|image| same(&image.reference)) {
        Some(image) => Ok(store.manifest_by_digest(&image.digest)?),
        None => Ok(None),
    }
}

fn tags(store: &ImageStore, name: &str, namespace: Option<&str>) -> Result<Answer, Failed> {
    let wanted = reference(namespace.unwrap_or(DEFAULT_REGISTRY), name, "")?;
    let tags = store.tags(&wanted.name())?;
    if tags.is_empty() {
        return Err(Failed::Refusal(NAME_UNKNOWN));
    }
    Ok(json_answer(&json!({ "name": name, "tags": tags })))
}

/// What a `Range` header asks of a blob.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// First byte and number of bytes.
    Some(u64, u64),
    Unsatisfiable,
}

fn blob(store: &ImageStore, name: &str, last: &str, range: Option<&str>) -> Result<Answer, Failed> {
    reference(DEFAULT_REGISTRY, name, "")?;
    let digest = Digest::parse(last).map_err(|_| Failed::Refusal(DIGEST_INVALID))?;
    let (file, size) = store.blob(&digest)?.ok_or(Failed::Refusal(BLOB_UNKNOWN))?;
    let mut headers = vec![
        ("docker-distribution-api-version", "registry/2.0".to_owned()),
        ("accept-ranges", "bytes".to_owned()),
        ("docker-content-digest", digest.to_string()),
        ("etag", format!("\"{digest}\"")),
    ];
    let (status, offset, length) = match range.map_or(Part::Whole, |range| part(range, size)) {
        Part::Whole => (200, 0, size),
        Part::Some(offset, length) => {
            headers.push((
                "content-range",
                format!("bytes {offset}-{}/{size}", offset + length - 1),
            ));
            (206, offset, length)
        }
        Part::Unsatisfiable => {
            headers.push(("content-range", format!("bytes */{size}")));
            headers.push(("content-length", "0".to_owned()));
            return Ok(Answer {
                status: 416,
                headers,
                body: Body::Empty,
            });
        }
    };
    headers.push(("content-type", "application/octet-stream".to_owned()));
    headers.push(("content-length", length.to_string()));
    Ok(Answer {
        status,
        headers,
        body: Body::File { file, offset, length },
    })
}

/// RFC 9110 §14: a range that is malformed, or several of them, may be answered with the whole.
fn part(range: &str, size: u64) -> Part {
    let Some(spec) = range.trim().strip_prefix("bytes=") else {
        return Part::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Part::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (offset, end) = match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            Some(0) => return Part::Unsatisfiable,
            Some(suffix) => (size.saturating_sub(suffix), size),
            None => return Part::Whole,
        },
        (first, "") => match number(first) {
            Some(first) => (first, size),
            None => return Part::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
            _ => return Part::Whole,
        },
    };
    if offset >= size {
        Part::Unsatisfiable
    } else {
        Part::Some(offset, end - offset)
    }
}

/// `None` where it is malformed or no UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let value = digit()? * 16 + digit()?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let table = [
            ("bytes=0-", Part::Some(0, 100)),
            ("bytes=10-", Part::Some(10, 90)),
            ("bytes=10-19", Part::Some(10, 10)),
            ("bytes=99-99", Part::Some(99, 1)),
            ("bytes=90-1000", Part::Some(90, 10)),
            ("bytes=0-18446744073709551615", Part::Some(0, 100)),
            ("bytes=-5", Part::Some(95, 5)),
            ("bytes=-500", Part::Some(0, 100)),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=100-", Part::Unsatisfiable),
            ("bytes=100-200", Part::Unsatisfiable),
            ("bytes=5-1", Part::Whole),
            ("bytes=0-1,5-6", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("items=0-1", Part::Whole),
            ("bytes=", Part::Whole),
        ];
        for (range, expected) in table {
            assert_eq!(part(range, 100), expected, "{range}");
        }
        assert_eq!(part("bytes=0-", 0), Part::Unsatisfiable);
    }

    #[test]
    fn percent_encoding_is_undone_once() {
        let table = [
            ("sha256%3Aab", Some("sha256:ab")),
            ("a%2fb", Some("a/b")),
            ("%2541", Some("%41")),
            ("a%", None),
            ("a%4", None),
            ("a%zz", None),
            ("%ff", None),
        ];
        for (text, expected) in table {
            assert_eq!(percent_decode(text).as_deref(), expected, "{text}");
        }
    }
}
