//! What the server serves, told to clients: versions, groups, resources, and who they are.
//!
//! What always holds: everything here is computed from the table of resources, so that discovery never promises what
//! routing refuses.

use std::collections::BTreeSet;

use axum::http::{HeaderMap, header};
use serde_json::{Value, json};

use super::identity::{AUTHENTICATED, Identity};
use super::reply::Reply;
use super::resources::{RESOURCES, Resource, Subresource, Verb};
use super::status::{ApiError, ApiResult};

/// The version of Kubernetes whose API this is.
const KUBERNETES: (&str, &str) = ("1", "33");

/// GET /version.
pub(crate) fn version() -> Value {
    let (major, minor) = KUBERNETES;
    json!({
        "major": major, "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+skiff-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// The (group, version) pairs, the core group first.
pub(crate) fn versions() -> BTreeSet<(&'static str, &'static str)> {
    RESOURCES.iter().map(|row| (row.group, row.version)).collect()
}

fn rows(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES
        .iter()
        .filter(move |row| row.group == group && row.version == version)
}

/// Answers a path of discovery; nothing when the path is none.
pub(crate) fn answer(path: &str, headers: &HeaderMap) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api"] => Some(match aggregated(headers) {
            Some(version) => aggregate(version, &[""]),
            None => json!({
                "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }],
            }),
        }),
        ["apis"] => {
            let groups: Vec<&str> = groups();
            Some(match aggregated(headers) {
                Some(version) => aggregate(version, &groups),
                None => {
                    let groups: Vec<Value> = groups.iter().map(|group| self::group(group)).collect();
                    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
                }
            })
        }
        ["apis", group] => groups().contains(group).then(|| {
            let mut found = self::group(group);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            found
        }),
        ["api", version] => resource_list("", version),
        ["apis", group, version] => resource_list(group, version),
        _ => None,
    }
}

/// The groups with a name, also those that only review.
fn groups() -> Vec<&'static str> {
    let named = versions()
        .into_iter()
        .map(|(group, _)| group)
        .filter(|group| !group.is_empty());
    let mut groups: Vec<&str> = named.chain(REVIEWS.iter().map(|review| review.group)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "name": name, "versions": [version], "preferredVersion": version })
}

fn words(verbs: &[Verb]) -> Vec<&'static str> {
    verbs.iter().map(|verb| verb.as_str()).collect()
}

fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for row in rows(group, version) {
        let mut shown = json!({
            "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced,
            "kind": row.kind, "verbs": words(row.verbs),
        });
        if !row.short.is_empty() {
            shown["shortNames"] = json!(row.short);
        }
        if !row.categories.is_empty() {
            shown["categories"] = json!(row.categories);
        }
        resources.push(shown);
        for sub in row.subresources {
            resources.push(json!({
                "name": format!("{}/{}", row.plural, sub.name), "singularName": "",
                "namespaced": row.namespaced, "kind": sub.kind, "verbs": words(sub.verbs),
            }));
        }
    }
    for review in REVIEWS
        .iter()
        .filter(|review| review.group == group && version == "v1")
    {
        resources.push(json!({
            "name": review.plural, "singularName": "", "namespaced": false,
            "kind": review.kind, "verbs": ["create"],
        }));
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources }),
    )
}

/// The version of aggregated discovery that the client prefers to plain discovery.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    for range in accept.split(',') {
        let range = range.replace(' ', "");
        if !range.contains("g=apidiscovery.k8s.io") {
            if range.starts_with("application/json") || range.starts_with("*/*") {
                return None;
            }
            continue;
        }
        if range.contains("v=v2;") || range.ends_with("v=v2") {
            return Some("v2");
        }
        if range.contains("v=v2beta1") {
            return Some("v2beta1");
        }
    }
    None
}

/// The media type of an answer to a path of discovery.
pub(crate) fn media_type(path: &str, headers: &HeaderMap) -> String {
    match aggregated(headers).filter(|_| matches!(path.trim_matches('/'), "api" | "apis")) {
        Some(version) => {
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
        }
        None => "application/json".into(),
    }
}

fn aggregate(version: &str, groups: &[&str]) -> Value {
    let items: Vec<Value> = groups
        .iter()
        .map(|group| {
            let mut resources: Vec<Value> = rows(group, "v1").map(aggregate_row).collect();
            for review in REVIEWS.iter().filter(|review| review.group == *group) {
                resources.push(json!({
                    "resource": review.plural, "singularResource": "", "scope": "Cluster", "verbs": ["create"],
                    "responseKind": { "group": review.group, "version": "v1", "kind": review.kind },
                }));
            }
            json!({
                "metadata": { "name": group, "creationTimestamp": null },
                "versions": [{ "version": "v1", "freshness": "Current", "resources": resources }],
            })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    })
}

fn aggregate_row(row: &Resource) -> Value {
    let response = |kind: &str| json!({ "group": row.group, "version": row.version, "kind": kind });
    let sub = |sub: &Subresource| json!({ "subresource": sub.name, "responseKind": response(sub.kind), "verbs": words(sub.verbs) });
    let mut shown = json!({
        "resource": row.plural, "singularResource": row.singular, "responseKind": response(row.kind),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" }, "verbs": words(row.verbs),
    });
    if !row.short.is_empty() {
        shown["shortNames"] = json!(row.short);
    }
    if !row.categories.is_empty() {
        shown["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        shown["subresources"] = row.subresources.iter().map(sub).collect();
    }
    shown
}

/// Questions that clients POST about themselves; nothing of them is stored.
struct Review {
    group: &'static str,
    plural: &'static str,
    kind: &'static str,
}

const REVIEWS: [Review; 2] = [
    Review {
        group: "authentication.k8s.io",
        plural: "selfsubjectreviews",
        kind: "SelfSubjectReview",
    },
    Review {
        group: "authorization.k8s.io",
        plural: "selfsubjectaccessreviews",
        kind: "SelfSubjectAccessReview",
    },
];

/// Whether the path is that of a review.
pub(crate) fn is_review(path: &str) -> bool {
    REVIEWS
        .iter()
        .any(|review| path == format!("/apis/{}/v1/{}", review.group, review.plural))
}

/// Answers a review.
pub(crate) fn review(path: &str, body: &Value, identity: &Identity) -> ApiResult<Reply> {
    let review = REVIEWS
        .iter()
        .find(|review| path.ends_with(review.plural))
        .ok_or_else(ApiError::no_path)?;
    let status = match review.kind {
        "SelfSubjectReview" => {
            let mut groups = identity.groups.clone();
            groups.push(AUTHENTICATED.to_owned());
            json!({ "userInfo": { "username": identity.user, "groups": groups } })
        }
        _ if identity.is_admin() => {
            json!({ "allowed": true, "reason": "the user is in group system:masters" })
        }
        _ => json!({ "allowed": false, "reason": "only group system:masters may use the API" }),
    };
    let body = json!({
        "kind": review.kind, "apiVersion": format!("{}/v1", review.group), "metadata": {},
        "spec": body.get("spec").cloned().unwrap_or_else(|| json!({})), "status": status,
    });
    Ok(Reply {
        code: 201,
        body,
        warnings: Vec::new(),
    })
}
