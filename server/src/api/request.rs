//! What the verbs need of an HTTP request: its parameters, its body, and the form the answer shall have.
//!
//! What always holds: a body is bounded in bytes, in depth and in time before anything looks at it.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use serde_json::Value;

use super::status::{ApiError, ApiResult};
use super::table::Include;
use super::{limits, patch, protobuf};

/// The parameters of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    /// Parses the part of a URL after its question mark; of repeated parameters the first counts, as in Kubernetes.
    pub(crate) fn parse(query: &str) -> Self {
        let mut parameters = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            parameters
                .entry(name.into_owned())
                .or_insert_with(|| value.into_owned());
        }
        Self(parameters)
    }

    /// A parameter that is there and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// A switch: `true` or `1`; absent is off.
    pub(crate) fn flag(&self, name: &str) -> ApiResult<bool> {
        match self.get(name) {
            None | Some("false" | "0" | "False" | "FALSE" | "f" | "F") => Ok(false),
            Some("true" | "1" | "True" | "TRUE" | "t" | "T") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!(
                "parameter {name}: {other:?} is neither true nor false"
            ))),
        }
    }

    /// A number, if the parameter is there.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let number = text.parse();
        number
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("parameter {name}: {text:?} is no number in range")))
    }

    /// Whether the request shall change nothing.
    pub(crate) fn dry_run(&self) -> ApiResult<bool> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!(
                "invalid dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))),
        }
    }
}

/// The form of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The objects themselves.
    Object,
    /// Rows for people.
    Table {
        /// `v1` or `v1beta1` of `meta.k8s.io`.
        version: &'static str,
        /// What a row carries beside its cells.
        include: Include,
    },
    /// The objects' metadata only.
    Partial,
}

impl Form {
    /// The first form of the Accept header that can be given.
    pub(crate) fn negotiate(headers: &HeaderMap, query: &Query) -> ApiResult<Self> {
        let accept = headers
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if accept.trim().is_empty() {
            return Ok(Self::Object);
        }
        for range in accept.split(',') {
            if let Some(form) = Self::of_range(range, query)? {
                return Ok(form);
            }
        }
        Err(ApiError::not_acceptable())
    }

    fn of_range(range: &str, query: &Query) -> ApiResult<Option<Self>> {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        if !matches!(media_type, "application/json" | "application/*" | "*/*") {
            return Ok(None);
        }
        let parameters: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
        let version = match parameters.get("v") {
            Some(&"v1beta1") => "v1beta1",
            _ => "v1",
        };
        Ok(match parameters.get("as").copied() {
            None => Some(Self::Object),
            Some("Table") => Some(Self::Table {
                version,
                include: include(query)?,
            }),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Some(Self::Partial),
            Some(_) => None,
        })
    }
}

fn include(query: &Query) -> ApiResult<Include> {
    match query.get("includeObject") {
        None | Some("Metadata") => Ok(Include::Metadata),
        Some("None") => Ok(Include::None),
        Some("Object") => Ok(Include::Object),
        Some(other) => Err(ApiError::bad_request(format!(
            "unrecognized includeObject value: {other:?}"
        ))),
    }
}

/// The media type of a request's body, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// What reading a body gives, within [`limits::BODY`].
pub(crate) async fn in_time<T>(reading: impl Future<Output = T>) -> ApiResult<T> {
    let read = tokio::time::timeout(limits::BODY, reading).await;
    read.map_err(|_| ApiError::bad_request(format!("the body did not arrive within {:?}", limits::BODY)))
}

/// Reads the body.
async fn bytes(body: Body) -> ApiResult<bytes::Bytes> {
    let read = in_time(axum::body::to_bytes(body, limits::BODY_BYTES)).await?;
    // Nothing but the bound, or a peer that is gone and reads no answer.
    read.map_err(|_| ApiError::too_large(limits::BODY_BYTES))
}

fn parse(bytes: &[u8]) -> ApiResult<Value> {
    let value = serde_json::from_slice(bytes);
    let value =
        value.map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
    patch::check_depth(&value)?;
    Ok(value)
}

/// Reads a body that is an object: JSON, or Kubernetes' protobuf.
pub(crate) async fn object(headers: &HeaderMap, body: Body) -> ApiResult<Value> {
    decode(headers, &bytes(body).await?)
}

/// Reads a body that may be missing; nothing then.
pub(crate) async fn optional(headers: &HeaderMap, body: Body) -> ApiResult<Value> {
    let bytes = bytes(body).await?;
    if bytes.is_empty() {
        Ok(Value::Null)
    } else {
        decode(headers, &bytes)
    }
}

fn decode(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    match media_type(headers) {
        "" | "application/json" => parse(bytes),
        protobuf::MEDIA_TYPE => protobuf::decode(bytes),
        _ => Err(ApiError::unsupported_media_type("application/json")),
    }
}

/// Reads a patch, whose media type says how it is to be applied.
pub(crate) async fn patch(body: Body) -> ApiResult<Value> {
    parse(&bytes(body).await?)
}

/// Removes what is null: in Kubernetes null and absent are the same.
pub(crate) fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn forms() {
        let check = |accept: &'static str, expected: Option<Form>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(
                Form::negotiate(&headers, &Query::default()).ok(),
                expected,
                "{accept}"
            );
        };
        let table = |version| Form::Table {
            version,
            include: Include::Metadata,
        };
        check("", Some(Form::Object));
        check("*/*", Some(Form::Object));
        check("application/json", Some(Form::Object));
        check(
            "application/vnd.kubernetes.protobuf, application/json",
            Some(Form::Object),
        );
        check("application/vnd.kubernetes.protobuf", None);
        check("application/yaml", None);
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some(table("v1")),
        );
        check(
            "application/json;as=Table;v=v1beta1;g=meta.k8s.io",
            Some(table("v1beta1")),
        );
        check(
            "application/json;as=Else;v=v1,application/json",
            Some(Form::Object),
        );
        check(
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            Some(Form::Partial),
        );
    }

    #[test]
    fn parameters() {
        let query = Query::parse("watch=true&limit=5&x=a%2Cb&dryRun=All&limit=6&empty=");
        assert_eq!(query.flag("watch"), Ok(true));
        assert_eq!(query.number::<u64>("limit"), Ok(Some(5)));
        assert_eq!(query.get("x"), Some("a,b"));
        assert_eq!(query.get("empty"), None);
        assert_eq!(query.dry_run(), Ok(true));
        assert!(Query::parse("watch=perhaps").flag("watch").is_err());
        assert!(Query::parse("limit=-1").number::<u64>("limit").is_err());
        assert!(Query::parse("dryRun=Some").dry_run().is_err());
    }
}
