//! From an HTTP request to the verb that answers it: authentication, authorization, routing.
//!
//! What always holds: the order is who, may they, what; a path that nobody may use tells strangers nothing of itself.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, Response, header};
use axum::middleware::{self, Next};
use serde_json::Value;

use super::identity::{self, Identity, NODES, Peer};
use super::reply::Reply;
use super::request::{self, Form, Query};
use super::resources::Verb;
use super::route;
use super::status::{ApiError, ApiResult};
use super::verbs::Call;
use super::{ApiState, discovery, openapi};

/// Paths that say nothing but that a server is there, and which; Kubernetes shows them to anybody too.
const PUBLIC: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// The API behind the paths of `extra`. Both see the caller's [`Identity`] as an extension when there is one.
pub fn router(state: ApiState, extra: Router) -> Router {
    let api = axum::routing::any(answer).with_state(state.clone());
    extra
        .fallback_service(api)
        .layer(middleware::from_fn_with_state(state, identify))
}

async fn identify(State(state): State<ApiState>, mut request: Request, next: Next) -> Response<Body> {
    let peer = request.extensions().get::<Peer>().cloned();
    if let Some(identity) = identity::of_request(peer.as_ref(), request.headers(), &*state.tokens).await {
        request.extensions_mut().insert(identity);
    }
    next.run(request).await
}

async fn answer(State(state): State<ApiState>, request: Request) -> Response<Body> {
    match dispatch(&state, request).await {
        Ok(response) => response,
        Err(error) => {
            if error.code >= 500 {
                tracing::warn!(%error, "a request failed");
            }
            error.into_response()
        }
    }
}

async fn dispatch(state: &ApiState, request: Request) -> ApiResult<Response<Body>> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if PUBLIC.contains(&path)
        || path.starts_with("/healthz/")
        || path.starts_with("/livez/")
        || path.starts_with("/readyz/")
    {
        return public(state, &parts.method, path).await;
    }
    let identity = parts
        .extensions
        .get::<Identity>()
        .ok_or_else(ApiError::unauthorized)?;
    if identity.in_group(NODES) {
        return Err(ApiError::forbidden_path(
            &identity.user,
            &verb_of(&parts.method),
            path,
        ));
    }
    if discovery::is_review(path) {
        if parts.method != Method::POST {
            return Err(ApiError::method_not_allowed());
        }
        let body = request::object(&parts.headers, body).await?;
        return Ok(discovery::review(path, &body, identity)?.into_response());
    }
    if let Some(response) = documents(&parts, path) {
        return response;
    }
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let target = match route::parse(path) {
        Ok(target) => target,
        Err(_) if !identity.is_admin() => {
            return Err(ApiError::forbidden_path(
                &identity.user,
                &verb_of(&parts.method),
                path,
            ));
        }
        Err(error) => return Err(error),
    };
    let verb = target.verb(&parts.method, query.flag("watch")?)?;
    authorize(identity, verb, &target)?;
    let form = if is_log(&target) {
        Form::Object
    } else {
        Form::negotiate(&parts.headers, &query)?
    };
    run(
        Call {
            state,
            target,
            query,
            form,
        },
        verb,
        &parts.headers,
        body,
    )
    .await
}

fn is_log(target: &route::Target) -> bool {
    target.subresource.as_deref() == Some("log")
}

fn verb_of(method: &Method) -> String {
    method.as_str().to_lowercase()
}

fn authorize(identity: &Identity, verb: Verb, target: &route::Target) -> ApiResult<()> {
    if identity.is_admin() {
        return Ok(());
    }
    let resource = target.resource;
    let subresource = target
        .subresource
        .as_ref()
        .map(|sub| format!("/{sub}"))
        .unwrap_or_default();
    let within = match &target.namespace {
        Some(namespace) => format!(" in the namespace {namespace:?}"),
        None => " at the cluster scope".to_owned(),
    };
    let why = format!(
        "User {:?} cannot {} resource \"{}{subresource}\" in API group {:?}{within}",
        identity.user,
        verb.as_str(),
        resource.plural,
        resource.group
    );
    Err(ApiError::forbidden(resource, target.name(), &why))
}

async fn public(state: &ApiState, method: &Method, path: &str) -> ApiResult<Response<Body>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    if path == "/version" {
        return Ok(Reply::ok(discovery::version()).into_response());
    }
    // Alive means that answers come; ready means that the store gives some.
    if !path.starts_with("/livez") {
        state
            .store
            .kv_get("health", "")
            .await
            .map_err(|error| ApiError::unavailable(error.to_string()))?;
    }
    let mut response = Response::new(Body::from("ok"));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    Ok(response)
}

/// Discovery and OpenAPI; nothing when the path is neither.
fn documents(parts: &axum::http::request::Parts, path: &str) -> Option<ApiResult<Response<Body>>> {
    let json = |body: Value| Reply::ok(body).into_response();
    let response = match path {
        "/openapi/v3" => json(openapi::v3_index()),
        "/openapi/v2" => {
            let mut response = Response::new(Body::from(openapi::v2()));
            let media_type = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
            response
        }
        _ => match path.strip_prefix("/openapi/v3/") {
            Some(name) => match openapi::v3(name) {
                Some(document) => json(document),
                None => return Some(Err(ApiError::no_path())),
            },
            None => {
                let mut response = json(discovery::answer(path, &parts.headers)?);
                let media_type = discovery::media_type(path, &parts.headers);
                if let Ok(media_type) = HeaderValue::from_str(&media_type) {
                    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
                }
                response
            }
        },
    };
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Some(Err(ApiError::method_not_allowed()));
    }
    Some(Ok(response))
}

async fn run(
    call: Call<'_>,
    verb: Verb,
    headers: &axum::http::HeaderMap,
    body: Body,
) -> ApiResult<Response<Body>> {
    let reply = match (verb, call.target.subresource.as_deref()) {
        (Verb::Get, Some("log")) => return call.logs().await,
        (Verb::Watch, _) => return call.watch().await,
        (Verb::Create, Some("binding")) => call.bind(&request::object(headers, body).await?).await?,
        (Verb::Get, _) => call.get().await?,
        (Verb::List, _) => call.list().await?,
        (Verb::Create, _) => call.create(request::object(headers, body).await?).await?,
        (Verb::Update, _) => call.update(request::object(headers, body).await?).await?,
        (Verb::Patch, _) => call.patch(headers, &request::patch(body).await?).await?,
        (Verb::Delete, _) => call.delete(&request::optional(headers, body).await?).await?,
        (Verb::DeleteCollection, _) => {
            call.delete_collection(&request::optional(headers, body).await?)
                .await?
        }
    };
    Ok(reply.into_response())
}
