//! From a request's path and method to what it asks for.
//!
//! What always holds: a [`Target`] names a resource of the table; its names are percent-decoded and free of slashes.

use axum::http::Method;
use percent_encoding::percent_decode_str;

use super::resources::{self, Resource, Verb};
use super::status::{ApiError, ApiResult};

/// What a path under `/api` or `/apis` names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    /// The resource.
    pub resource: &'static Resource,
    /// The namespace of the path; nothing for all namespaces and for cluster-scoped resources.
    pub namespace: Option<String>,
    /// The object; nothing for the collection.
    pub name: Option<String>,
    /// What stands under the object.
    pub subresource: Option<String>,
}

impl Target {
    /// The namespace, empty when there is none.
    pub(crate) fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    /// The object's name, empty for a collection.
    pub(crate) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// What the method does to this target.
    pub(crate) fn verb(&self, method: &Method, watch: bool) -> ApiResult<Verb> {
        let verb = match (method, self.name.is_some()) {
            (&Method::GET | &Method::HEAD, false) if watch => Verb::Watch,
            (&Method::GET | &Method::HEAD, false) => Verb::List,
            (&Method::GET | &Method::HEAD, true) => Verb::Get,
            (&Method::POST, _) => Verb::Create,
            (&Method::PUT, true) => Verb::Update,
            (&Method::PATCH, true) => Verb::Patch,
            (&Method::DELETE, true) => Verb::Delete,
            (&Method::DELETE, false) => Verb::DeleteCollection,
            _ => return Err(ApiError::method_not_allowed()),
        };
        let allowed = match &self.subresource {
            None => self.resource.verbs.contains(&verb) && !(verb == Verb::Create && self.name.is_some()),
            Some(name) => {
                let row = self.resource.subresources.iter().find(|row| row.name == name);
                row.ok_or_else(ApiError::no_path)?.verbs.contains(&verb)
            }
        };
        if allowed {
            Ok(verb)
        } else {
            Err(ApiError::method_not_allowed())
        }
    }
}

/// Parses the path of a resource. Paths of discovery are the caller's.
pub(crate) fn parse(path: &str) -> ApiResult<Target> {
    let mut parts = Vec::new();
    for part in path.trim_matches('/').split('/') {
        let part = percent_decode_str(part)
            .decode_utf8()
            .map_err(|_| ApiError::no_path())?;
        if part.is_empty() || part.contains('/') {
            return Err(ApiError::no_path());
        }
        parts.push(part.into_owned());
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Err(ApiError::no_path()),
    };
    let (namespace, rest) = match rest {
        // `namespaces/x` and its own subresources are the namespace itself, anything else is inside it.
        ["namespaces", name, plural, rest @ ..] if !(*plural == "status" && rest.is_empty()) => {
            (Some((*name).to_owned()), [&[*plural], rest].concat())
        }
        _ => (None, rest.to_vec()),
    };
    let [plural, rest @ ..] = rest.as_slice() else {
        return Err(ApiError::no_path());
    };
    let resource = resources::find(group, version, plural).ok_or_else(ApiError::no_path)?;
    let (name, subresource) = match rest {
        [] => (None, None),
        [name] => (Some((*name).to_owned()), None),
        [name, sub] => (Some((*name).to_owned()), Some((*sub).to_owned())),
        _ => return Err(ApiError::no_path()),
    };
    // An object of a namespaced resource has no path without its namespace, a cluster-scoped one none with it.
    if resource.namespaced && name.is_some() && namespace.is_none()
        || !resource.namespaced && namespace.is_some()
    {
        return Err(ApiError::no_path());
    }
    Ok(Target {
        resource,
        namespace,
        name,
        subresource,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let check = |path: &str, expected: Option<&str>| {
            let shown = parse(path).ok().map(|target| {
                let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".into());
                format!(
                    "{} {} {} {}",
                    target.resource.qualified(),
                    part(&target.namespace),
                    part(&target.name),
                    part(&target.subresource)
                )
            });
            assert_eq!(shown.as_deref(), expected, "{path}");
        };
        check("/api/v1/pods", Some("pods - - -"));
        check("/api/v1/namespaces/n/pods", Some("pods n - -"));
        check("/api/v1/namespaces/n/pods/p", Some("pods n p -"));
        check("/api/v1/namespaces/n/pods/p/log", Some("pods n p log"));
        check("/api/v1/namespaces/n/pods/a%2Fb", None);
        check("/api/v1/namespaces", Some("namespaces - - -"));
        check("/api/v1/namespaces/n", Some("namespaces - n -"));
        check("/api/v1/namespaces/n/status", Some("namespaces - n status"));
        check("/api/v1/nodes/n/status", Some("nodes - n status"));
        check(
            "/apis/coordination.k8s.io/v1/namespaces/n/leases/l",
            Some("leases.coordination.k8s.io n l -"),
        );
        check("/api/v1/pods/p", None);
        check("/api/v1/namespaces/n/nodes/m", None);
        check("/api/v2/pods", None);
        check("/api/v1/nothing", None);
        check("/api/v1/namespaces//pods", None);
        check("/apis/apps/v1/deployments", None);
        check("/api/v1/namespaces/n/pods/p/log/x", None);
    }

    #[test]
    fn verbs() {
        let check = |method: Method, path: &str, expected: Result<Verb, u16>| {
            let verb = parse(path).and_then(|target| target.verb(&method, false));
            assert_eq!(verb.map_err(|error| error.code), expected, "{method} {path}");
        };
        check(Method::GET, "/api/v1/pods", Ok(Verb::List));
        check(Method::POST, "/api/v1/namespaces/n/pods", Ok(Verb::Create));
        check(Method::POST, "/api/v1/namespaces/n/pods/p", Err(405));
        check(Method::PUT, "/api/v1/namespaces/n/pods", Err(405));
        check(Method::POST, "/api/v1/namespaces/n/services", Err(405));
        check(Method::DELETE, "/api/v1/namespaces", Err(405));
        check(Method::DELETE, "/api/v1/namespaces/n/pods/p", Ok(Verb::Delete));
        check(
            Method::POST,
            "/api/v1/namespaces/n/pods/p/binding",
            Ok(Verb::Create),
        );
        check(Method::GET, "/api/v1/namespaces/n/pods/p/exec", Err(404));
        check(Method::POST, "/api/v1/namespaces/n/pods/p/log", Err(405));
    }
}
