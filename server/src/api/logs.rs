//! GET of a pod's log: which container, which part of it, and the stream itself.
//!
//! What always holds: the node is only asked about a container that the pod's spec has; the client gets bytes as the
//! node sends them, and its slowness holds the node's stream back instead of filling memory here.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use futures_util::StreamExt;
use serde_json::Value;
use skiff_protocol::manifest::Cause;

use super::nodes::{LogOptions, PodRef};
use super::status::{ApiError, ApiResult};
use super::verbs::Call;
use super::{metadata, time};

/// The annotation that names the container which is meant when none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

impl Call<'_> {
    /// GET of `pods/NAME/log`.
    pub(crate) async fn logs(&self) -> ApiResult<Response<Body>> {
        let pod = self.stored().await?;
        let options = self.log_options(&pod.value)?;
        let node = pod
            .value
            .pointer("/spec/nodeName")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if node.is_empty() {
            return Err(ApiError::bad_request(format!(
                "pod {} does not have a host assigned",
                pod.key.name
            )));
        }
        let reference = PodRef {
            node: node.to_owned(),
            namespace: pod.key.namespace.clone(),
            name: pod.key.name.clone(),
            uid: super::mirror::node_uid(&pod).map_or_else(|| pod.uid.clone(), |uid| uid.to_string()),
        };
        let logs = self.state.nodes.logs(reference, options).await;
        let logs = logs.map_err(|error| ApiError::of_log(&error, &pod.key.name))?;
        let stop = self.state.stop.clone();
        let stopped = async move {
            let mut stop = stop;
            // An error means that the server is gone, which is the same here.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let name = pod.key.name.clone();
        let logs = logs.take_until(Box::pin(stopped)).inspect(move |chunk| {
            if let Err(error) = chunk {
                // The answer has begun, so the client can only be told by its end.
                tracing::warn!(pod = %name, %error, "a log stream broke off");
            }
        });
        let mut response = Response::new(Body::from_stream(logs));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    fn log_options(&self, pod: &Value) -> ApiResult<LogOptions> {
        let query = &self.query;
        let mut causes = Vec::new();
        let mut number = |name: &str, least: i64| -> ApiResult<Option<u64>> {
            let Some(value) = query.number::<i64>(name)? else {
                return Ok(None);
            };
            if value < least {
                let why = format!("must be greater than or equal to {least}");
                causes.push(Cause::invalid(name, value, why));
            }
            Ok(u64::try_from(value).ok())
        };
        let tail_lines = number("tailLines", 0)?;
        let since_seconds = number("sinceSeconds", 1)?;
        let limit_bytes = number("limitBytes", 1)?;
        let since_time = match query.get("sinceTime") {
            None => None,
            Some(text) => Some(time::parse(text).ok_or_else(|| {
                ApiError::bad_request(format!("parameter sinceTime: {text:?} is no RFC 3339 time"))
            })?),
        };
        if since_time.is_some() && since_seconds.is_some() {
            causes.push(Cause::forbidden(
                "sinceSeconds",
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        if !causes.is_empty() {
            return Err(ApiError::invalid("PodLogOptions", "", "", &causes));
        }
        Ok(LogOptions {
            container: self.container(pod)?,
            follow: query.flag("follow")?,
            previous: query.flag("previous")?,
            tail_lines,
            since_seconds,
            since_time,
            timestamps: query.flag("timestamps")?,
            limit_bytes,
        })
    }

    /// The container that is meant: the one named, the only one, or the one that the pod names itself.
    fn container(&self, pod: &Value) -> ApiResult<String> {
        let names = |field: &str| -> Vec<&str> {
            let list = pod.pointer(field).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(|container| container.get("name")?.as_str())
                .collect()
        };
        let (main, init) = (names("/spec/containers"), names("/spec/initContainers"));
        let pod_name = metadata::text(pod, "name");
        if let Some(wanted) = self.query.get("container") {
            if main.contains(&wanted) || init.contains(&wanted) {
                return Ok(wanted.to_owned());
            }
            return Err(ApiError::bad_request(format!(
                "container {wanted} is not valid for pod {pod_name}"
            )));
        }
        let annotations = pod.pointer("/metadata/annotations");
        let default = annotations
            .and_then(|annotations| annotations.get(DEFAULT_CONTAINER))
            .and_then(Value::as_str);
        match (main.as_slice(), default) {
            ([only], _) => Ok((*only).to_owned()),
            (many, Some(default)) if many.contains(&default) => Ok(default.to_owned()),
            (many, _) => {
                let inits = if init.is_empty() {
                    String::new()
                } else {
                    format!(" or one of the init containers: [{}]", init.join(" "))
                };
                Err(ApiError::bad_request(format!(
                    "a container name must be specified for pod {pod_name}, choose one of: [{}]{inits}",
                    many.join(" ")
                )))
            }
        }
    }
}
