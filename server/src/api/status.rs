//! Errors as Kubernetes' `Status` objects.
//!
//! What always holds: each error has the HTTP code, the reason and the wording that Kubernetes gives it, because
//! clients branch on the first two and people read the last.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use skiff_protocol::manifest::{Cause, Reason};

use super::nodes::LogError;
use super::resources::Resource;
use crate::store::{StoreError, UpdateError};

/// An answer that is not the one asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    /// The HTTP status code.
    pub code: u16,
    /// Kubernetes' `metav1.StatusReason`.
    pub reason: &'static str,
    /// What people read.
    pub message: String,
    /// `details` of the Status.
    pub details: Option<Value>,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.reason, self.code, self.message)
    }
}

impl std::error::Error for ApiError {}

/// The result of everything behind the API.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        let mut details = json!({ "kind": resource.plural });
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !resource.group.is_empty() {
            details["group"] = resource.group.into();
        }
        self.details = Some(details);
        self
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: nobody in particular asks.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: the object or the user may not do that.
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let subject = if name.is_empty() {
            String::new()
        } else {
            format!(" {name:?}")
        };
        Self::new(
            403,
            "Forbidden",
            format!("{}{subject} is forbidden: {why}", resource.qualified()),
        )
        .about(resource, name)
    }

    /// 403 for a path that is no resource.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        Self::new(
            403,
            "Forbidden",
            format!("forbidden: User {user:?} cannot {verb} path {path:?}"),
        )
    }

    /// 404: no such object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} {name:?} not found", resource.qualified()),
        )
        .about(resource, name)
    }

    /// 404: no such path.
    pub fn no_path() -> Self {
        let mut error = Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
        error.details = Some(json!({}));
        error
    }

    /// 405: the path is right and the method is not.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        let mut error = Self::new(405, "MethodNotAllowed", message);
        error.details = Some(json!({}));
        error
    }

    /// 406: the client takes none of what can be given.
    pub fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::new(406, "NotAcceptable", message)
    }

    /// 409: somebody else wrote in between.
    pub fn conflict(resource: &Resource, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict_because(resource, name, why)
    }

    /// 409 for another reason.
    pub fn conflict_because(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            resource.qualified()
        );
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// 409: the name is taken.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// 410: the watch or the continue token is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413: the body is too long.
    pub fn too_large(bound: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {bound}"),
        )
    }

    /// 415: the body is in a format that is not spoken here.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object is refused, field by field.
    pub fn invalid(kind: &str, group: &str, name: &str, causes: &[Cause]) -> Self {
        let texts: Vec<String> = causes.iter().map(ToString::to_string).collect();
        let text = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let mut error = Self::new(422, "Invalid", format!("{qualified} {name:?} is invalid: {text}"));
        let causes: Vec<Value> = causes.iter().map(cause).collect();
        let mut details = json!({ "kind": kind, "name": name, "causes": causes });
        if !group.is_empty() {
            details["group"] = group.into();
        }
        error.details = Some(details);
        error
    }

    /// 400 with causes by field: the object cannot even be read as its kind.
    pub fn undecodable(version: &str, kind: &str, causes: &[Cause], strict: bool) -> Self {
        let mut texts = Vec::with_capacity(causes.len());
        for one in causes {
            // The message of an unknown field names it already.
            texts.push(if one.reason == Reason::Unknown {
                one.message.clone()
            } else {
                one.to_string()
            });
        }
        let strict = if strict { "strict decoding error: " } else { "" };
        let message = format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {strict}{}",
            texts.join(", ")
        );
        let causes: Vec<Value> = causes.iter().map(cause).collect();
        let mut error = Self::bad_request(message);
        error.details = Some(json!({ "kind": kind, "causes": causes }));
        error
    }

    /// 429: a bound of the server is reached; the client may come back.
    pub fn too_many(message: impl Into<String>) -> Self {
        let mut error = Self::new(429, "TooManyRequests", message);
        error.details = Some(json!({ "retryAfterSeconds": 1 }));
        error
    }

    /// 500: our fault.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {cause}"))
    }

    /// 503: a part that the answer needs is away.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// What the store said, about this object.
    pub fn of_store(error: StoreError, resource: &Resource, name: &str) -> Self {
        match error {
            StoreError::NotFound(_) => Self::not_found(resource, name),
            StoreError::Exists(_) => Self::already_exists(resource, name),
            StoreError::Conflict(_) => Self::conflict(resource, name),
            StoreError::NotWithin(key) => {
                let mut error = Self::new(404, "NotFound", format!("namespaces {:?} not found", key.name));
                error.details = Some(json!({ "kind": "namespaces", "name": key.name }));
                error
            }
            StoreError::Terminating(key) => {
                let why = format!(
                    "unable to create new content in namespace {} because it is being terminated",
                    key.name
                );
                Self::forbidden(resource, name, &why)
            }
            StoreError::Gone { wanted, oldest } => {
                Self::expired(format!("too old resource version: {wanted} ({oldest})"))
            }
            // The store was restored from a backup; only a fresh list helps the client.
            StoreError::Future { wanted, current } => Self::expired(format!(
                "resource version {wanted} is ahead of the server, which is at {current}"
            )),
            StoreError::TooManyWatches => Self::too_many(error.to_string()),
            StoreError::TooLarge { bound, .. } => Self::too_large(bound),
            StoreError::Malformed { reason, .. } => Self::bad_request(reason),
            StoreError::NotEmpty(_) => Self::conflict_because(resource, name, &error.to_string()),
            StoreError::Database { .. } => Self::internal(error),
            StoreError::Closed => Self::unavailable(error.to_string()),
        }
    }

    /// What an update said, about this object.
    pub fn of_update(error: UpdateError<Self>, resource: &Resource, name: &str) -> Self {
        match error {
            UpdateError::Store(error) => Self::of_store(error, resource, name),
            UpdateError::Refused(error) => error,
        }
    }

    /// What the node said about a pod's log.
    pub fn of_log(error: &LogError, pod: &str) -> Self {
        match error {
            LogError::Waiting { container, reason } => Self::bad_request(format!(
                "container {container:?} in pod {pod:?} is waiting to start: {reason}"
            )),
            LogError::NoPrevious { container } => Self::bad_request(format!(
                "previous terminated container {container:?} in pod {pod:?} not found"
            )),
            LogError::NotFound { .. } => Self::new(404, "NotFound", error.to_string()),
            LogError::Unreachable { .. } => Self::unavailable(error.to_string()),
            LogError::Timeout { .. } => Self::new(504, "Timeout", error.to_string()),
            LogError::TooMany { .. } => Self::too_many(error.to_string()),
            LogError::Failed { .. } => Self::internal(error),
        }
    }

    /// The Status object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    /// The HTTP answer.
    pub fn into_response(self) -> Response<Body> {
        let status = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::new(Body::from(format!("{}\n", self.to_value())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        match self.code {
            401 => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"skiff\""),
                );
            }
            429 => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

fn cause(cause: &Cause) -> Value {
    json!({ "reason": cause.reason.as_str(), "message": cause.message, "field": cause.field })
}

/// The Status of something that worked and has no object to show.
pub(crate) fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = json!({ "name": name, "kind": resource.plural, "uid": uid });
    if !resource.group.is_empty() {
        details["group"] = resource.group.into();
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}
