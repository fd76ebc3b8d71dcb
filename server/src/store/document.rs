//! The few fields of a document that the store itself owns: name, namespace, uid, creationTimestamp, resourceVersion.
//!
//! A document that was stamped here always agrees with the key and revision it is stored under.

use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value};

use super::{Key, Object, StoreError, limits};

/// The current time as Kubernetes writes it: RFC 3339 in UTC, whole seconds.
pub(crate) fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

/// A random (version 4) UUID.
pub(crate) fn uid() -> Result<String, StoreError> {
    let mut bytes = [0u8; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| StoreError::Database {
            path: "/dev/urandom".into(),
            cause: "the system gives no random numbers".into(),
        })?;
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    Ok(text)
}

/// Prepares a new document for storage: everything but its revision.
pub(super) fn stamp_new(key: &Key, value: &mut Value) -> Result<String, StoreError> {
    let uid = uid()?;
    let metadata = metadata(key, value)?;
    metadata.insert("uid".into(), uid.clone().into());
    metadata.insert("creationTimestamp".into(), now().into());
    Ok(uid)
}

/// Prepares a document that replaces a stored one: what identifies the object stays as it was.
pub(super) fn stamp_replacement(stored: &Object, value: &mut Value) -> Result<(), StoreError> {
    let created = stored
        .value
        .pointer("/metadata/creationTimestamp")
        .cloned()
        .unwrap_or_default();
    let metadata = metadata(&stored.key, value)?;
    metadata.insert("uid".into(), stored.uid.clone().into());
    metadata.insert("creationTimestamp".into(), created);
    metadata.insert("resourceVersion".into(), stored.revision.to_string().into());
    Ok(())
}

/// Writes the revision into the document.
pub(super) fn set_revision(value: &mut Value, revision: u64) {
    if let Some(Value::Object(metadata)) = value.get_mut("metadata") {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

/// The document as it goes to disk.
pub(super) fn encode(key: &Key, value: &Value) -> Result<String, StoreError> {
    let text = value.to_string();
    if text.len() > limits::DOCUMENT_BYTES {
        return Err(StoreError::TooLarge {
            what: key.to_string(),
            bytes: text.len(),
            bound: limits::DOCUMENT_BYTES,
        });
    }
    Ok(text)
}

fn metadata<'a>(key: &Key, value: &'a mut Value) -> Result<&'a mut Map<String, Value>, StoreError> {
    let malformed = |reason: &str| StoreError::Malformed {
        key: key.clone(),
        reason: reason.into(),
    };
    let Value::Object(document) = value else {
        return Err(malformed("the document is not a JSON object"));
    };
    let metadata = document
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(metadata) = metadata else {
        return Err(malformed("metadata is not a JSON object"));
    };
    metadata.insert("name".into(), key.name.clone().into());
    if key.namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".into(), key.namespace.clone().into());
    }
    Ok(metadata)
}
