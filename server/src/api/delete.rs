//! DELETE of one object and of a collection.
//!
//! What always holds: an object that a node, a finalizer or a controller still holds is marked and stays, visibly,
//! until it is let go; nothing else stays. A second request can only shorten the wait.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::Value;

use super::reply::{self, Reply};
use super::resources::Resource;
use super::status::{self, ApiError, ApiResult};
use super::verbs::Call;
use super::{limits, metadata, time};
use crate::store::{self, DeleteGuard, Key, Object, Store, StoreError};

/// What a client asks of a deletion (Kubernetes' `DeleteOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Overrides the object's own grace period; 0 removes it at once.
    pub grace_seconds: Option<i64>,
    /// The uid that the object must have.
    pub uid: Option<String>,
    /// The version that the object must have.
    pub revision: Option<u64>,
}

/// What became of the object.
#[derive(Clone, Debug)]
pub enum Deletion {
    /// It is gone; this was its last version.
    Gone(Arc<Object>),
    /// It is marked and stays until it is let go.
    Pending(Arc<Object>),
}

impl Deletion {
    fn object(&self) -> &Arc<Object> {
        match self {
            Self::Gone(object) | Self::Pending(object) => object,
        }
    }
}

/// Deletes an object as its kind wants it: for clients and for controllers alike.
pub async fn delete(
    store: &dyn Store,
    resource: &Resource,
    key: &Key,
    options: &DeleteOptions,
) -> ApiResult<Deletion> {
    let name = key.name.as_str();
    let failed = |error: StoreError| ApiError::of_store(error, resource, name);
    if let Some(why) = resource.strategy.undeletable(name) {
        return Err(ApiError::forbidden(resource, name, &why));
    }
    for _ in 0..store::limits::UPDATE_ATTEMPTS {
        let stored = store.get(key).await.map_err(failed)?;
        let stored = stored.ok_or_else(|| ApiError::not_found(resource, name))?;
        check_preconditions(resource, &stored, options)?;
        let done = match plan(resource, &stored, options) {
            Plan::Nothing => return Ok(Deletion::Pending(stored)),
            Plan::Remove => {
                let guard = DeleteGuard {
                    revision: Some(stored.revision),
                    ..DeleteGuard::default()
                };
                store.delete(key, guard).await.map(Deletion::Gone)
            }
            Plan::Mark(value) => store
                .replace(key, stored.revision, value)
                .await
                .map(Deletion::Pending),
        };
        match done {
            Err(StoreError::Conflict(_)) => {}
            other => return other.map_err(failed),
        }
    }
    Err(ApiError::conflict(resource, name))
}

enum Plan {
    Nothing,
    Remove,
    Mark(Value),
}

fn plan(resource: &Resource, stored: &Object, options: &DeleteOptions) -> Plan {
    let strategy = resource.strategy;
    let grace = strategy.grace_seconds(&stored.value, options.grace_seconds);
    let held = metadata::has_finalizers(&stored.value) || strategy.outlives_deletion(&stored.value);
    if grace == 0 && !held {
        return Plan::Remove;
    }
    if metadata::is_deleting(&stored.value) {
        let current = stored
            .value
            .pointer("/metadata/deletionGracePeriodSeconds")
            .and_then(Value::as_i64);
        if current.unwrap_or(0) <= grace {
            return Plan::Nothing;
        }
    }
    let mut value = stored.value.clone();
    value["metadata"]["deletionTimestamp"] = time::after(grace).into();
    value["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    strategy.begin_deletion(&mut value);
    Plan::Mark(value)
}

fn check_preconditions(resource: &Resource, stored: &Object, options: &DeleteOptions) -> ApiResult<()> {
    if let Some(uid) = &options.uid
        && *uid != stored.uid
    {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            stored.uid
        );
        return Err(ApiError::conflict_because(resource, &stored.key.name, &why));
    }
    if let Some(revision) = options.revision
        && revision != stored.revision
    {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {revision}, ResourceVersion in object meta: {}",
            stored.revision
        );
        return Err(ApiError::conflict_because(resource, &stored.key.name, &why));
    }
    Ok(())
}

impl Call<'_> {
    fn delete_options(&self, body: &Value) -> ApiResult<(DeleteOptions, bool)> {
        let kind = body.get("kind").and_then(Value::as_str);
        if kind.is_some_and(|kind| kind != "DeleteOptions") {
            return Err(ApiError::bad_request(
                "the body of a DELETE must be DeleteOptions",
            ));
        }
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
        let revision = match text("/preconditions/resourceVersion") {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| {
                ApiError::bad_request(format!("preconditions.resourceVersion: {text:?} is no number"))
            })?),
        };
        let grace_seconds = match self.query.number("gracePeriodSeconds")? {
            Some(seconds) => Some(seconds),
            None => body.get("gracePeriodSeconds").and_then(Value::as_i64),
        };
        if grace_seconds.is_some_and(|seconds| seconds < 0) {
            return Err(ApiError::bad_request("gracePeriodSeconds: must be non-negative"));
        }
        let dry_run = match body.pointer("/dryRun/0").and_then(Value::as_str) {
            None => self.query.dry_run()?,
            Some("All") => true,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "dryRun: Unsupported value: {other:?}"
                )));
            }
        };
        let uid = text("/preconditions/uid").map(str::to_owned);
        Ok((
            DeleteOptions {
                grace_seconds,
                uid,
                revision,
            },
            dry_run,
        ))
    }

    /// DELETE of one object.
    pub(crate) async fn delete(&self, body: &Value) -> ApiResult<Reply> {
        let (options, dry_run) = self.delete_options(body)?;
        let (resource, key) = (self.resource(), self.key());
        if dry_run {
            let stored = self.stored().await?;
            check_preconditions(resource, &stored, &options)?;
            if let Some(why) = resource.strategy.undeletable(&key.name) {
                return Err(ApiError::forbidden(resource, &key.name, &why));
            }
            return Ok(Reply::ok(reply::object(resource, &self.form, &stored.value)));
        }
        let deletion = delete(&*self.state.store, resource, &key, &options).await?;
        let object = deletion.object();
        // Kubernetes shows the object of what stays, and of Pods in any case.
        if matches!(deletion, Deletion::Pending(_)) || resource.kind == "Pod" {
            return Ok(Reply::ok(reply::object(resource, &self.form, &object.value)));
        }
        Ok(Reply::ok(status::success(resource, &key.name, &object.uid)))
    }

    /// DELETE of a collection: what matched when the request came.
    pub(crate) async fn delete_collection(&self, body: &Value) -> ApiResult<Reply> {
        let (options, dry_run) = self.delete_options(body)?;
        let selector = self.selector()?;
        let page = self.page(&selector, usize::MAX, None).await?;
        if dry_run {
            return Ok(Reply::ok(reply::list(
                self.resource(),
                &self.form,
                &page.values,
                page.revision,
                None,
            )));
        }
        let resource = self.resource();
        let mut gone = Vec::with_capacity(page.values.len());
        // In groups, so that the store can put a group into one transaction.
        for group in page.values.chunks(limits::DELETE_GROUP) {
            let deletions = group.iter().map(|value| {
                let key = resource.key(metadata::text(value, "namespace"), metadata::text(value, "name"));
                let options = DeleteOptions {
                    uid: Some(metadata::text(value, "uid").to_owned()),
                    ..options.clone()
                };
                async move { delete(&*self.state.store, resource, &key, &options).await }
            });
            for deletion in join_all(deletions).await {
                match deletion {
                    Ok(deletion) => gone.push(deletion.object().value.clone()),
                    // It went by itself meanwhile, or another has taken its name.
                    Err(error) if matches!(error.code, 404 | 409) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Reply::ok(reply::list(
            resource,
            &self.form,
            &gone,
            self.state.store.revision(),
            None,
        )))
    }
}
