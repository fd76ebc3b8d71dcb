//! ConfigMaps and Secrets: keys, sizes, and the promise of `immutable`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use skiff_protocol::limits::CONFIG_BYTES;
use skiff_protocol::manifest::Cause;

use crate::api::resources::Strategy;

/// A ConfigMap.
pub struct ConfigMap;

/// A Secret.
pub struct Secret;

impl Strategy for ConfigMap {
    fn check(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        let mut bytes = 0;
        for (key, value) in entries(object, "data") {
            check_key("data", key, &mut causes);
            bytes += key.len() + value.as_str().map_or(0, str::len);
            if object.get("binaryData").and_then(|data| data.get(key)).is_some() {
                let why = format!("duplicate of key present in binaryData[{key}]");
                causes.push(Cause::invalid(format!("data[{key}]"), key, why));
            }
        }
        for (key, value) in entries(object, "binaryData") {
            check_key("binaryData", key, &mut causes);
            bytes += key.len() + decoded_len("binaryData", key, value, &mut causes);
        }
        check_size("", bytes, &mut causes);
        causes
    }

    fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        immutable(old, new, &["data", "binaryData"])
    }
}

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        let Value::Object(secret) = object else { return };
        // stringData is write-only: it is folded into data and never shown.
        if let Some(Value::Object(texts)) = secret.remove("stringData") {
            let data = secret.entry("data").or_insert_with(|| Value::Object(Map::new()));
            if data.is_null() {
                *data = Value::Object(Map::new());
            }
            if let Value::Object(data) = data {
                for (key, text) in texts {
                    let text = text.as_str().unwrap_or_default();
                    data.insert(key, STANDARD.encode(text).into());
                }
            }
        }
        if secret
            .get("type")
            .and_then(Value::as_str)
            .is_none_or(str::is_empty)
        {
            secret.insert("type".into(), "Opaque".into());
        }
    }

    fn check(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        let mut bytes = 0;
        for (key, value) in entries(object, "data") {
            check_key("data", key, &mut causes);
            bytes += key.len() + decoded_len("data", key, value, &mut causes);
        }
        check_size("data", bytes, &mut causes);
        let required: &[&str] = match object.get("type").and_then(Value::as_str) {
            Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
            Some("kubernetes.io/dockerconfigjson") => &[".dockerconfigjson"],
            Some("kubernetes.io/dockercfg") => &[".dockercfg"],
            Some("kubernetes.io/ssh-auth") => &["ssh-privatekey"],
            _ => &[],
        };
        for key in required {
            if object.get("data").and_then(|data| data.get(*key)).is_none() {
                causes.push(Cause::required(format!("data[{key}]"), ""));
            } else if key.starts_with(".docker") && !is_json_object(&object["data"][*key]) {
                let why = "it is not base64 of a JSON object";
                causes.push(Cause::invalid(
                    format!("data[{key}]"),
                    "<secret contents redacted>",
                    why,
                ));
            }
        }
        causes
    }

    fn check_update(&self, old: &Value, new: &Value) -> Vec<Cause> {
        let mut causes = immutable(old, new, &["data"]);
        if old.get("type") != new.get("type") {
            let text = new.get("type").and_then(Value::as_str).unwrap_or_default();
            causes.push(Cause::invalid("type", text, "field is immutable"));
        }
        causes
    }
}

/// Whether a value of `data` is a JSON object.
fn is_json_object(value: &Value) -> bool {
    let decoded = value.as_str().and_then(|it| STANDARD.decode(it).ok());
    decoded.is_some_and(|it| serde_json::from_slice::<Map<String, Value>>(&it).is_ok())
}

fn entries<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object.get(field).and_then(Value::as_object).into_iter().flatten()
}

fn check_key(field: &str, key: &str, causes: &mut Vec<Cause>) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let why = if key.len() > 253 {
        "must be no more than 253 characters"
    } else if key == "." || key == ".." || key.starts_with("..") {
        "must not be '.' and must not begin with '..'"
    } else if key.is_empty() || !key.chars().all(allowed) {
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' \
         (e.g. 'key.name', or 'KEY_NAME', or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
    } else {
        return;
    };
    causes.push(Cause::invalid(format!("{field}[{key}]"), key, why));
}

fn decoded_len(field: &str, key: &str, value: &Value, causes: &mut Vec<Cause>) -> usize {
    match STANDARD.decode(value.as_str().unwrap_or_default()) {
        Ok(bytes) => bytes.len(),
        Err(error) => {
            let why = format!("must be base64 ({error}); plain text belongs in stringData");
            causes.push(Cause::invalid(format!("{field}[{key}]"), "", why));
            0
        }
    }
}

fn check_size(field: &str, bytes: usize, causes: &mut Vec<Cause>) {
    // Keys and values, as on the way to the nodes: what is accepted here can be sent.
    if bytes > CONFIG_BYTES {
        causes.push(Cause::too_long(field, CONFIG_BYTES, "bytes"));
    }
}

fn immutable(old: &Value, new: &Value, fields: &[&str]) -> Vec<Cause> {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return Vec::new();
    }
    let mut causes = Vec::new();
    let why = "field is immutable when `immutable` is set";
    if new.get("immutable") != Some(&Value::Bool(true)) {
        causes.push(Cause::forbidden("immutable", why));
    }
    for field in fields {
        if old.get(*field) != new.get(*field) {
            causes.push(Cause::forbidden(*field, why));
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The bound is on keys and values together, as on the way to the nodes.
    #[test]
    fn sizes() {
        let check = |strategy: &dyn Strategy, field: &str, bytes: usize, good: bool| {
            // Two keys of one byte each, and all of the value under one of them.
            let value = "x".repeat(bytes);
            let value = if field == "plain" {
                value
            } else {
                STANDARD.encode(value)
            };
            let name = if field == "plain" { "data" } else { field };
            let object = json!({ name: { "k": value, "l": "" } });
            let causes = strategy.check(&object);
            assert_eq!(causes.is_empty(), good, "{field}, {bytes} bytes: {causes:?}");
        };
        for (strategy, field) in [
            (&ConfigMap as &dyn Strategy, "plain"),
            (&ConfigMap, "binaryData"),
            (&Secret, "data"),
        ] {
            check(strategy, field, CONFIG_BYTES - 2, true);
            check(strategy, field, CONFIG_BYTES - 1, false);
        }
    }
}
