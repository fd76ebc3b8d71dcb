//! Bodies in Kubernetes' protobuf form, turned into the JSON that they mean.
//!
//! Since 1.32 `kubectl create namespace`, `create configmap`, `create secret`, `auth whoami` and `auth can-i` send
//! nothing else and do not fall back. Answers stay JSON, which every client takes.
//!
//! ```text
//!  "k8s\0" | Unknown { 1: TypeMeta { 1: apiVersion, 2: kind }, 2: raw message, 3: contentEncoding, 4: contentType }
//! ```
//!
//! What always holds: a message is read by the table of its kind, which follows the numbers of Kubernetes'
//! `generated.proto`; a field that the table does not have is an error, for it would be lost in silence.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::status::{ApiError, ApiResult};

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";

/// A field of a message. Absent and empty are the same for all but the optional ones.
struct Field(u32, &'static str, Kind);

#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// Base64 in JSON.
    Bytes,
    Int,
    /// Zero is a value.
    OptionalInt,
    /// False is a value.
    OptionalBool,
    /// Seconds and nanoseconds; RFC 3339 in JSON.
    Time,
    Texts,
    TextMap,
    BytesMap,
    Message(&'static [Field]),
    Messages(&'static [Field]),
}

const METADATA: &[Field] = &[
    Field(1, "name", Kind::Text),
    Field(2, "generateName", Kind::Text),
    Field(3, "namespace", Kind::Text),
    Field(4, "selfLink", Kind::Text),
    Field(5, "uid", Kind::Text),
    Field(6, "resourceVersion", Kind::Text),
    Field(7, "generation", Kind::Int),
    Field(8, "creationTimestamp", Kind::Time),
    Field(9, "deletionTimestamp", Kind::Time),
    Field(10, "deletionGracePeriodSeconds", Kind::OptionalInt),
    Field(11, "labels", Kind::TextMap),
    Field(12, "annotations", Kind::TextMap),
    Field(13, "ownerReferences", Kind::Messages(OWNER)),
    Field(14, "finalizers", Kind::Texts),
];

const OWNER: &[Field] = &[
    Field(1, "kind", Kind::Text),
    Field(3, "name", Kind::Text),
    Field(4, "uid", Kind::Text),
    Field(5, "apiVersion", Kind::Text),
    Field(6, "controller", Kind::OptionalBool),
    Field(7, "blockOwnerDeletion", Kind::OptionalBool),
];

const NAMESPACE: &[Field] = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "spec", Kind::Message(&[Field(1, "finalizers", Kind::Texts)])),
    Field(3, "status", Kind::Message(&[Field(1, "phase", Kind::Text)])),
];

const CONFIG_MAP: &[Field] = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "data", Kind::TextMap),
    Field(3, "binaryData", Kind::BytesMap),
    Field(4, "immutable", Kind::OptionalBool),
];

const SECRET: &[Field] = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "data", Kind::BytesMap),
    Field(3, "type", Kind::Text),
    Field(4, "stringData", Kind::TextMap),
    Field(5, "immutable", Kind::OptionalBool),
];

const DELETE_OPTIONS: &[Field] = &[
    Field(1, "gracePeriodSeconds", Kind::OptionalInt),
    Field(
        2,
        "preconditions",
        Kind::Message(&[
            Field(1, "uid", Kind::Text),
            Field(2, "resourceVersion", Kind::Text),
        ]),
    ),
    Field(3, "orphanDependents", Kind::OptionalBool),
    Field(4, "propagationPolicy", Kind::Text),
    Field(5, "dryRun", Kind::Texts),
];

const SUBJECT_REVIEW: &[Field] = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(
        2,
        "status",
        Kind::Message(&[Field(1, "userInfo", Kind::Message(USER_INFO))]),
    ),
];

const USER_INFO: &[Field] = &[
    Field(1, "username", Kind::Text),
    Field(2, "uid", Kind::Text),
    Field(3, "groups", Kind::Texts),
];

const ACCESS_REVIEW: &[Field] = &[
    Field(1, "metadata", Kind::Message(METADATA)),
    Field(2, "spec", Kind::Message(ACCESS_SPEC)),
    Field(
        3,
        "status",
        Kind::Message(&[
            Field(1, "allowed", Kind::Int),
            Field(2, "reason", Kind::Text),
            Field(3, "evaluationError", Kind::Text),
            Field(4, "denied", Kind::Int),
        ]),
    ),
];

const ACCESS_SPEC: &[Field] = &[
    Field(
        1,
        "resourceAttributes",
        Kind::Message(&[
            Field(1, "namespace", Kind::Text),
            Field(2, "verb", Kind::Text),
            Field(3, "group", Kind::Text),
            Field(4, "version", Kind::Text),
            Field(5, "resource", Kind::Text),
            Field(6, "subresource", Kind::Text),
            Field(7, "name", Kind::Text),
        ]),
    ),
    Field(
        2,
        "nonResourceAttributes",
        Kind::Message(&[Field(1, "path", Kind::Text), Field(2, "verb", Kind::Text)]),
    ),
];

/// The messages that are understood, by kind.
const KINDS: &[(&str, &[Field])] = &[
    ("ConfigMap", CONFIG_MAP),
    ("DeleteOptions", DELETE_OPTIONS),
    ("Namespace", NAMESPACE),
    ("Secret", SECRET),
    ("SelfSubjectAccessReview", ACCESS_REVIEW),
    ("SelfSubjectReview", SUBJECT_REVIEW),
];

/// Turns a body into JSON.
pub(crate) fn decode(body: &[u8]) -> ApiResult<Value> {
    let Some(body) = body.strip_prefix(MAGIC) else {
        return Err(bad("the body does not begin like Kubernetes' protobuf"));
    };
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), [].as_slice());
    for part in fields(body) {
        match part? {
            (1, Wire::Bytes(bytes)) => {
                for part in fields(bytes) {
                    match part? {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
                        _ => return Err(bad("the type of the body is not understood")),
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3 | 4, Wire::Bytes([])) => {}
            (field, _) => return Err(bad(&format!("field {field} of the envelope is not understood"))),
        }
    }
    let Some((_, table)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        return Err(ApiError::unsupported_media_type("application/json"));
    };
    let mut object = message(&kind, table, raw)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn bad(why: &str) -> ApiError {
    ApiError::bad_request(format!("protobuf: {why}"))
}

fn text(bytes: &[u8]) -> ApiResult<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| bad("a string is not UTF-8"))
}

/// Reads a message by its table. Recursion goes as deep as the tables do, whatever the bytes say.
fn message(path: &str, table: &[Field], bytes: &[u8]) -> ApiResult<Map<String, Value>> {
    let mut object = Map::new();
    for part in fields(bytes) {
        let (number, wire) = part?;
        let Some(Field(_, name, kind)) = table.iter().find(|field| field.0 == number) else {
            return Err(bad(&format!("field {number} of {path} is not understood")));
        };
        let path = format!("{path}.{name}");
        put(&mut object, name, &path, *kind, wire)?;
    }
    Ok(object)
}

fn put(object: &mut Map<String, Value>, name: &str, path: &str, kind: Kind, wire: Wire<'_>) -> ApiResult<()> {
    let wrong = || bad(&format!("{path} has the wrong wire type"));
    let value: Value = match (kind, wire) {
        (Kind::Text, Wire::Bytes(bytes)) => text(bytes)?.into(),
        (Kind::Bytes, Wire::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Kind::Int | Kind::OptionalInt, Wire::Varint(number)) => number.cast_signed().into(),
        (Kind::OptionalBool, Wire::Varint(number)) => (number != 0).into(),
        (Kind::Time, Wire::Bytes(bytes)) => time(bytes)?,
        (Kind::Message(table), Wire::Bytes(bytes)) => Value::Object(message(path, table, bytes)?),
        (Kind::Texts, Wire::Bytes(bytes)) => return push(object, name, text(bytes)?.into()),
        (Kind::Messages(table), Wire::Bytes(bytes)) => {
            return push(object, name, Value::Object(message(path, table, bytes)?));
        }
        (Kind::TextMap | Kind::BytesMap, Wire::Bytes(bytes)) => {
            let values = if matches!(kind, Kind::TextMap) {
                Kind::Text
            } else {
                Kind::Bytes
            };
            let mut entry = message(
                path,
                &[Field(1, "key", Kind::Text), Field(2, "value", values)],
                bytes,
            )?;
            let key = entry
                .remove("key")
                .and_then(|key| key.as_str().map(str::to_owned))
                .unwrap_or_default();
            let value = entry.remove("value").unwrap_or_else(|| "".into());
            let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, value);
            }
            return Ok(());
        }
        _ => return Err(wrong()),
    };
    // Kubernetes writes empty values of fields that are not optional; an entry of a map keeps them.
    let empty = match &value {
        Value::String(text) => text.is_empty() && !matches!(name, "key" | "value"),
        Value::Number(number) => number.as_i64() == Some(0) && matches!(kind, Kind::Int),
        Value::Object(map) => map.is_empty(),
        Value::Null => true,
        _ => false,
    };
    if !empty {
        object.insert(name.to_owned(), value);
    }
    Ok(())
}

fn push(object: &mut Map<String, Value>, name: &str, value: Value) -> ApiResult<()> {
    if let Value::Array(items) = object.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
        items.push(value);
    }
    Ok(())
}

fn time(bytes: &[u8]) -> ApiResult<Value> {
    let mut seconds = 0;
    for part in fields(bytes) {
        if let (1, Wire::Varint(number)) = part? {
            seconds = number.cast_signed();
        }
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let time = jiff::Timestamp::from_second(seconds).map_err(|_| bad("a time is out of range"))?;
    Ok(time.to_string().into())
}

#[derive(Debug, PartialEq)]
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in order. Ends after the first error.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = ApiResult<(u32, Wire<'_>)>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let field = next_field(&mut bytes);
        if field.is_none() {
            bytes = &[];
        }
        Some(field.ok_or_else(|| bad("the body is cut short or damaged")))
    })
}

fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Wire<'a>)> {
    let tag = varint(bytes)?;
    let number = u32::try_from(tag >> 3).ok()?;
    let wire = match tag & 7 {
        0 => Wire::Varint(varint(bytes)?),
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            Wire::Bytes(value)
        }
        // Kubernetes' types have no fixed-width fields.
        _ => return None,
    };
    Some((number, wire))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [
            MAGIC.to_vec(),
            field(1, &types),
            field(2, raw),
            field(3, b""),
            field(4, b""),
        ]
        .concat()
    }

    #[test]
    fn a_secret() {
        let metadata = [field(1, b"s"), field(2, b""), field(8, b""), vec![7 << 3, 0]].concat();
        let label = [field(1, b"a"), field(2, b"")].concat();
        let metadata = [metadata, field(11, &label), field(14, b"f/x")].concat();
        let data = [field(1, b"k"), field(2, &[0, 255])].concat();
        let raw = [
            field(1, &metadata),
            field(2, &data),
            field(3, b"Opaque"),
            vec![5 << 3, 0],
        ]
        .concat();
        let expected = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": {"k": "AP8="}, "immutable": false,
            "metadata": {"name": "s", "labels": {"a": ""}, "finalizers": ["f/x"]},
        });
        assert_eq!(decode(&body("Secret", &raw)), Ok(expected));
    }

    #[test]
    fn damage_is_refused() {
        let good = body("ConfigMap", &field(1, &field(1, b"c")));
        assert!(decode(&good).is_ok());
        for cut in 0..good.len() {
            // Cut between two fields of the envelope, the rest still parses; the metadata's name is then missing.
            if let Ok(value) = decode(&good[..cut]) {
                assert_eq!(value["kind"], "ConfigMap", "{cut}");
            }
        }
        for (body, code) in [
            (b"json".to_vec(), 400),
            (body("Pod", b""), 415),
            (body("ConfigMap", &field(9, b"new")), 400),
            (body("ConfigMap", &[1 << 3, 5]), 400),
            (body("ConfigMap", &[0xff; 12]), 400),
            (body("ConfigMap", &field(1, &field(1, &[0xff]))), 400),
        ] {
            assert_eq!(decode(&body).map_err(|error| error.code), Err(code), "{body:?}");
        }
    }
}
