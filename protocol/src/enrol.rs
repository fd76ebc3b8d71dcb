//! Enrolment: the join token that a person carries to a node, and what node and server say to each other with it.
//!
//! The node makes its own P-256 key, which never leaves it. It sends the public key, the token's one-time secret,
//! and a signature over both ([`JoinRequest::payload`]), and is given its certificate and what it must trust.
//! [`RenewRequest`] asks for a new certificate over the same key.
//!
//! Always holds: pure. A parsed [`JoinToken`] has a valid node name and between 1 and [`MAX_URLS`] server URLs.
//! Requests and responses are JSON with a `version`; what arrives is unverified until the server has checked it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::topic::{BadNodeName, NodeName};

/// The version of the join messages and of the token.
pub const VERSION: u8 = 1;
/// What a token's text begins with.
pub const TOKEN_PREFIX: &str = "skiff1.";
/// Server URLs in one token: a server's public and private address, and one spare of each.
pub const MAX_URLS: usize = 4;
/// Bytes of one URL.
pub const MAX_URL: usize = 256;
/// Bytes of a token's text: four long URLs, base64, and the rest; still fits a QR code.
pub const MAX_TOKEN: usize = 1536;
/// Bytes of the one-time secret.
pub const SECRET: usize = 24;
/// Bytes of an uncompressed P-256 public key.
pub const PUBLIC_KEY: usize = 65;
/// Bytes of a join or renewal message's JSON; a response with two certificates is about 3 KiB.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Why a token's or a message's text is not one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnrolError {
    /// The text does not begin with `skiff1.`.
    Prefix,
    /// The text is longer than [`MAX_TOKEN`].
    TooLong(usize),
    /// A character, or the length, is not base64url without padding; the name of the field.
    Base64(&'static str),
    /// The token's bytes do not decode: it was cut off or mistyped.
    Damaged,
    /// The version is not one this build speaks.
    Version(u8),
    /// No server URL, too many, or one that is not `https://…`.
    Urls,
    /// The node's name.
    Node(BadNodeName),
}

impl fmt::Display for EnrolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix => write!(f, "join token: does not begin with {TOKEN_PREFIX}"),
            Self::TooLong(len) => write!(f, "join token: {len} characters, at most {MAX_TOKEN}"),
            Self::Base64(field) => write!(f, "{field}: not base64url without padding, or the wrong length"),
            Self::Damaged => f.write_str("join token: damaged; was all of it copied?"),
            Self::Version(v) => write!(f, "enrolment version {v}: this build speaks version {VERSION}"),
            Self::Urls => write!(
                f,
                "join token: needs 1 to {MAX_URLS} server URLs that begin with https://"
            ),
            Self::Node(e) => write!(f, "join token: {e}"),
        }
    }
}

impl core::error::Error for EnrolError {}

/// What a person carries to the node. Its text is `skiff1.<base64url>`; it is a secret until used.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Where to join, in the order to try: `https://host:port`.
    pub server_urls: Vec<String>,
    /// SHA-256 of the fleet CA certificate's DER: the only thing the node trusts before it has joined.
    pub ca_sha256: Digest,
    /// The name the node will have.
    pub node: NodeName,
    /// The one-time secret.
    pub secret: [u8; SECRET],
    /// When the server stops accepting it, in seconds since 1970. The node does not check it: its clock may be wrong.
    pub expires: u64,
}

#[derive(Serialize, Deserialize)]
struct RawToken {
    server_urls: Vec<String>,
    ca_sha256: [u8; 32],
    node: String,
    secret: [u8; SECRET],
    expires: u64,
}

impl JoinToken {
    /// Reads a token's text. White space around it is ignored, as people paste it.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, EnrolError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN {
            return Err(EnrolError::TooLong(text.len()));
        }
        let body = text.strip_prefix(TOKEN_PREFIX).ok_or(EnrolError::Prefix)?;
        let bytes = from_base64(body).ok_or(EnrolError::Base64("join token"))?;
        let (raw, rest): (RawToken, &[u8]) =
            postcard::take_from_bytes(&bytes).map_err(|_| EnrolError::Damaged)?;
        if !rest.is_empty() {
            return Err(EnrolError::Damaged);
        }
        check_urls(&raw.server_urls)?;
        Ok(Self {
            server_urls: raw.server_urls,
            ca_sha256: raw.ca_sha256,
            node: NodeName::parse(&raw.node).map_err(EnrolError::Node)?,
            secret: raw.secret,
            expires: raw.expires,
        })
    }

    /// The token's text.
    ///
    /// # Errors
    /// When the server URLs are none, too many, too long, or not `https://`.
    pub fn to_text(&self) -> Result<String, EnrolError> {
        check_urls(&self.server_urls)?;
        let raw = RawToken {
            server_urls: self.server_urls.clone(),
            ca_sha256: self.ca_sha256,
            node: self.node.to_string(),
            secret: self.secret,
            expires: self.expires,
        };
        let bytes = postcard::to_allocvec(&raw).map_err(|_| EnrolError::Damaged)?;
        let mut text = String::from(TOKEN_PREFIX);
        text.push_str(&to_base64(&bytes));
        if text.len() > MAX_TOKEN {
            Err(EnrolError::TooLong(text.len()))
        } else {
            Ok(text)
        }
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret must not reach a log.
        f.debug_struct("JoinToken")
            .field("node", &self.node)
            .field("server_urls", &self.server_urls)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

fn check_urls(urls: &[String]) -> Result<(), EnrolError> {
    let good =
        |url: &String| url.starts_with("https://") && url.len() > "https://".len() && url.len() <= MAX_URL;
    if urls.is_empty() || urls.len() > MAX_URLS || !urls.iter().all(good) {
        return Err(EnrolError::Urls);
    }
    Ok(())
}

/// The node asks to join. `POST /skiff/v1/join`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct JoinRequest {
    /// [`VERSION`].
    pub version: u8,
    /// The node's name, as the token has it.
    pub node: String,
    /// The token's secret, base64url.
    pub secret: String,
    /// The node's P-256 public key, uncompressed point, base64url.
    pub public_key: String,
    /// ECDSA-P256-SHA256 (ASN.1) over [`JoinRequest::payload`] with that key, base64url.
    pub signature: String,
}

impl JoinRequest {
    /// What the node signs to show that it holds the key: a domain, its name, the secret and the public key.
    #[must_use]
    pub fn payload(node: &NodeName, secret: &[u8; SECRET], public_key: &[u8; PUBLIC_KEY]) -> Vec<u8> {
        signed(b"skiff-join-v1\0", node, &[secret, public_key])
    }

    /// A request from its parts.
    #[must_use]
    pub fn new(token: &JoinToken, public_key: &[u8; PUBLIC_KEY], signature: &[u8]) -> Self {
        Self {
            version: VERSION,
            node: token.node.to_string(),
            secret: to_base64(&token.secret),
            public_key: to_base64(public_key),
            signature: to_base64(signature),
        }
    }
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// What the node is given. The node keeps it as its identity.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinResponse {
    /// [`VERSION`].
    pub version: u8,
    /// The node's name.
    pub node: String,
    /// The fleet CA's certificate, PEM.
    pub ca_certificate: String,
    /// The node's certificate, PEM.
    pub certificate: String,
    /// The server's Ed25519 public key, base64url. The node pins it: desired state must carry its signature.
    pub signing_key: String,
    /// `mqtts://host:port`.
    pub broker_url: String,
    /// The node's name at the broker.
    pub broker_username: String,
    /// The node's password at the broker.
    pub broker_password: String,
    /// Where the server's API is, in the order to try.
    pub server_urls: Vec<String>,
    /// The server's clock, in seconds since 1970: a first floor for a node without one.
    pub server_time: u64,
    /// When the certificate ends, in seconds since 1970.
    pub not_after: u64,
}

impl fmt::Debug for JoinResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinResponse")
            .field("node", &self.node)
            .field("broker_url", &self.broker_url)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The node asks for a new certificate over its same key. `POST /skiff/v1/renew`, after fetching a nonce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RenewRequest {
    /// [`VERSION`].
    pub version: u8,
    /// The node's name.
    pub node: String,
    /// The certificate to renew, PEM. It may have ended lately.
    pub certificate: String,
    /// The nonce that the server gave, base64url.
    pub nonce: String,
    /// ECDSA-P256-SHA256 (ASN.1) over [`RenewRequest::payload`], base64url.
    pub signature: String,
}

impl RenewRequest {
    /// What the node signs: a domain, its name, the server's nonce, and the old certificate's SHA-256 (of the DER).
    #[must_use]
    pub fn payload(node: &NodeName, nonce: &[u8; 32], certificate_sha256: &Digest) -> Vec<u8> {
        signed(b"skiff-renew-v1\0", node, &[nonce, certificate_sha256])
    }
}

fn signed(domain: &[u8], node: &NodeName, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::from(domain);
    let name = node.as_str().as_bytes();
    // The only part of variable length goes behind its length, so no two inputs give the same bytes.
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// `bytes` as base64url without padding (RFC 4648 §5).
#[must_use]
pub fn to_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..=chunk.len() {
            let index = (group >> (18 - 6 * i)) & 63;
            out.push(char::from(ALPHABET[index as usize]));
        }
    }
    out
}

/// The bytes of `text`, base64url without padding. `None` for any other character, length, or stray trailing bits.
#[must_use]
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut group: u32 = 0;
        for (i, c) in chunk.iter().enumerate() {
            let value = match c {
                b'A'..=b'Z' => c - b'A',
                b'a'..=b'z' => c - b'a' + 26,
                b'0'..=b'9' => c - b'0' + 52,
                b'-' => 62,
                b'_' => 63,
                _ => return None,
            };
            group |= u32::from(value) << (18 - 6 * i);
        }
        let bytes = group.to_be_bytes();
        let whole = match chunk.len() {
            4 => 3,
            3 => 2,
            2 => 1,
            _ => return None,
        };
        // One text for one value: bits beyond the last byte must be zero.
        if bytes[1 + whole..].iter().any(|b| *b != 0) {
            return None;
        }
        out.extend_from_slice(&bytes[1..=whole]);
    }
    Some(out)
}

/// Decodes a base64url field of exactly `N` bytes.
///
/// # Errors
/// Names the field.
pub fn fixed<const N: usize>(field: &'static str, text: &str) -> Result<[u8; N], EnrolError> {
    from_base64(text)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(EnrolError::Base64(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn token() -> JoinToken {
        JoinToken {
            server_urls: vec!["https://fleet.example:6443".into()],
            ca_sha256: [7; 32],
            node: NodeName::parse("pump-17").unwrap(),
            secret: [9; SECRET],
            expires: 1_800_000_000,
        }
    }

    #[test]
    fn base64_agrees_with_the_rfc_and_refuses_the_rest() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
        ] {
            assert_eq!(to_base64(bytes.as_bytes()), text);
            assert_eq!(from_base64(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(to_base64(&[0xfb, 0xff]), "-_8");
        for bad in ["Z", "Zg==", "Zm9v\n", "Zh", "Zm9", "+/8", "Zm9vZ"] {
            assert_eq!(from_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_token_reads_back_and_any_damage_is_refused() {
        let text = token().to_text().unwrap();
        assert_eq!(JoinToken::parse(&alloc::format!("  {text}\n")).unwrap(), token());
        assert!(text.len() < 200, "{}", text.len());
        for cut in 0..text.len() {
            assert!(JoinToken::parse(&text[..cut]).is_err(), "cut at {cut}");
        }
        let longer = alloc::format!("{text}AAAA");
        assert_eq!(JoinToken::parse(&longer), Err(EnrolError::Damaged));
        assert_eq!(JoinToken::parse("kubeadm.abc"), Err(EnrolError::Prefix));
        assert_eq!(
            JoinToken::parse(&"s".repeat(MAX_TOKEN + 1)),
            Err(EnrolError::TooLong(MAX_TOKEN + 1))
        );
    }

    #[test]
    fn urls_are_bounded_and_https() {
        for urls in [
            vec![],
            vec!["http://a".to_string()],
            vec!["https://".to_string()],
            vec!["https://a".to_string(); MAX_URLS + 1],
            vec![alloc::format!("https://{}", "a".repeat(MAX_URL))],
        ] {
            let token = JoinToken {
                server_urls: urls.clone(),
                ..token()
            };
            assert_eq!(token.to_text(), Err(EnrolError::Urls), "{urls:?}");
        }
    }

    #[test]
    fn no_two_payloads_are_alike_across_domains_and_names() {
        let name = |n: &str| NodeName::parse(n).unwrap();
        let join = JoinRequest::payload(&name("a"), &[1; SECRET], &[2; PUBLIC_KEY]);
        assert_ne!(
            join,
            JoinRequest::payload(&name("b"), &[1; SECRET], &[2; PUBLIC_KEY])
        );
        assert_ne!(
            join,
            JoinRequest::payload(&name("a"), &[3; SECRET], &[2; PUBLIC_KEY])
        );
        assert_ne!(
            join[..14],
            RenewRequest::payload(&name("a"), &[1; 32], &[2; 32])[..14]
        );
    }

    #[test]
    fn the_secret_stays_out_of_debug_text() {
        let token = token();
        let shown = alloc::format!(
            "{token:?} {:?}",
            JoinRequest::new(&token, &[4; PUBLIC_KEY], &[5; 70])
        );
        assert!(
            !shown.contains(&to_base64(&token.secret)) && !shown.contains("9, 9"),
            "{shown}"
        );
    }

    #[test]
    fn messages_are_json_with_a_version() {
        let request = JoinRequest::new(&token(), &[4; PUBLIC_KEY], &[5; 70]);
        let json = serde_json::to_string(&request).unwrap();
        assert!(
            json.starts_with(r#"{"version":1,"node":"pump-17","secret":"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<JoinRequest>(&json).unwrap(), request);
        let extra = json.replace("{\"version\"", "{\"extra\":1,\"version\"");
        assert!(serde_json::from_str::<JoinRequest>(&extra).is_err());
        assert_eq!(fixed::<SECRET>("secret", &request.secret).unwrap(), [9; SECRET]);
        assert_eq!(
            fixed::<32>("secret", &request.secret),
            Err(EnrolError::Base64("secret"))
        );
    }
}
