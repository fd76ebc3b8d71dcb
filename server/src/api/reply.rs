//! Answers: objects and lists in the form that the client wants, with warnings.
//!
//! What always holds: every object that leaves the server has its apiVersion and kind.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::limits;
use super::request::Form;
use super::resources::Resource;
use super::table;

/// An answer with a JSON body.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The HTTP status code.
    pub code: u16,
    /// The body.
    pub body: Value,
    /// Texts of `Warning` headers.
    pub warnings: Vec<String>,
}

impl Reply {
    /// 200.
    pub(crate) fn ok(body: Value) -> Self {
        Self {
            code: 200,
            body,
            warnings: Vec::new(),
        }
    }

    /// The HTTP answer.
    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(format!("{}\n", self.body)));
        *response.status_mut() = StatusCode::from_u16(self.code).unwrap_or(StatusCode::OK);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        for warning in bounded(self.warnings) {
            if let Ok(value) = HeaderValue::from_str(&quote(&warning)) {
                headers.append(header::WARNING, value);
            }
        }
        response
    }
}

/// The first warnings, and how many there were beyond them.
fn bounded(mut warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(limits::WARNINGS);
    warnings.truncate(limits::WARNINGS);
    if more > 0 {
        warnings.push(format!("{more} further warnings are not shown"));
    }
    warnings
}

/// A warning as RFC 7234 writes it. What no header can hold becomes a question mark.
fn quote(text: &str) -> String {
    let mut quoted = String::from("299 - \"");
    for c in text.chars().take(limits::WARNING_BYTES) {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

/// The object with its apiVersion and kind.
pub(crate) fn typed(resource: &Resource, value: &Value) -> Value {
    let mut value = value.clone();
    if let Value::Object(object) = &mut value {
        object.insert("apiVersion".into(), resource.api_version().into());
        object.insert("kind".into(), resource.kind.into());
    }
    value
}

/// One object in the form asked for.
pub(crate) fn object(resource: &Resource, form: &Form, value: &Value) -> Value {
    match form {
        Form::Object => typed(resource, value),
        Form::Partial => table::partial(value),
        Form::Table { version, include } => {
            let revision = value.pointer("/metadata/resourceVersion").unwrap_or(&Value::Null);
            let metadata = json!({ "resourceVersion": revision });
            table::render(
                resource,
                version,
                [typed(resource, value)].iter(),
                &metadata,
                *include,
                true,
            )
        }
    }
}

/// A list in the form asked for.
pub(crate) fn list(
    resource: &Resource,
    form: &Form,
    values: &[Value],
    revision: u64,
    next: Option<String>,
) -> Value {
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if let Some(next) = next {
        metadata["continue"] = next.into();
    }
    let items = |items: Vec<Value>, api_version: String, kind: String| json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items });
    match form {
        Form::Object => {
            let values = values.iter().map(|value| typed(resource, value)).collect();
            items(values, resource.api_version(), resource.list_kind())
        }
        Form::Partial => items(
            values.iter().map(table::partial).collect(),
            "meta.k8s.io/v1".into(),
            "PartialObjectMetadataList".into(),
        ),
        Form::Table { version, include } => {
            let values: Vec<Value> = values.iter().map(|value| typed(resource, value)).collect();
            table::render(resource, version, values.iter(), &metadata, *include, true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted_and_bounded() {
        assert_eq!(quote("a \"b\" \\ \n ü"), "299 - \"a \\\"b\\\" \\\\ ? ?\"");
        let many = bounded((0..20).map(|at| at.to_string()).collect());
        assert_eq!(
            (many.len(), many.last().map(String::as_str)),
            (17, Some("4 further warnings are not shown"))
        );
    }
}
