//! Get, list, create, update and patch, for all kinds alike.
//!
//! What always holds: an object is checked whole before it is stored; a change is stored only over the version that it
//! was made from; a dry run takes the same way and stops before the store.

use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use skiff_protocol::manifest::Cause;

use super::reply::{self, Reply};
use super::request::{self, Form, Query};
use super::resources::{Resource, namespaces};
use super::route::Target;
use super::selector::Selector;
use super::status::{ApiError, ApiResult};
use super::validate::{self, FieldValidation};
use super::{ApiState, limits, metadata, patch, time};
use crate::store::{self, CreateGuard, DeleteGuard, Object, Scope, StoreError};

/// Everything a verb is told.
pub(crate) struct Call<'a> {
    /// The server.
    pub state: &'a ApiState,
    /// What it is about.
    pub target: Target,
    /// The parameters.
    pub query: Query,
    /// The form of the answer.
    pub form: Form,
}

impl Call<'_> {
    pub(super) fn resource(&self) -> &'static Resource {
        self.target.resource
    }

    pub(super) fn key(&self) -> store::Key {
        self.target
            .resource
            .key(self.target.namespace(), self.target.name())
    }

    pub(super) fn selector(&self) -> ApiResult<Selector> {
        let (labels, fields) = (self.query.get("labelSelector"), self.query.get("fieldSelector"));
        Selector::parse(self.target.resource, labels, fields)
    }

    /// The part of the store that the target and the selector can match.
    pub(super) fn scope(&self, selector: &Selector) -> Scope {
        let namespace = self.target.namespace.clone();
        let selected = selector
            .namespace()
            .filter(|_| self.target.resource.namespaced)
            .map(str::to_owned);
        Scope {
            resource: self.target.resource.qualified(),
            namespace: namespace.or(selected),
            name: selector.name().map(str::to_owned),
        }
    }

    pub(super) fn failed(&self, error: StoreError) -> ApiError {
        ApiError::of_store(error, self.target.resource, self.target.name())
    }

    /// The target as it is stored.
    pub(super) async fn stored(&self) -> ApiResult<std::sync::Arc<Object>> {
        let found = self
            .state
            .store
            .get(&self.key())
            .await
            .map_err(|error| self.failed(error))?;
        found.ok_or_else(|| ApiError::not_found(self.target.resource, self.target.name()))
    }

    fn show(&self, code: u16, value: &Value, warnings: Vec<String>) -> Reply {
        Reply {
            code,
            body: reply::object(self.resource(), &self.form, value),
            warnings,
        }
    }

    /// GET of one object.
    pub(crate) async fn get(&self) -> ApiResult<Reply> {
        Ok(self.show(200, &self.stored().await?.value, Vec::new()))
    }

    /// GET of a collection.
    pub(crate) async fn list(&self) -> ApiResult<Reply> {
        let selector = self.selector()?;
        let limit = self.query.number::<u64>("limit")?.unwrap_or(0);
        let limit = if limit == 0 {
            usize::MAX
        } else {
            usize::try_from(limit).unwrap_or(usize::MAX)
        };
        let token = self.query.get("continue").map(Token::decode).transpose()?;
        let page = self.page(&selector, limit, token.as_ref()).await?;
        // Later pages show the first one's revision: a watch from there replays what changed in between.
        let revision = token.map_or(page.revision, |token| token.revision);
        self.check_version(page.revision)?;
        let next = page.next.map(|(namespace, name)| {
            Token {
                revision,
                namespace,
                name,
            }
            .encode()
        });
        Ok(Reply::ok(reply::list(
            self.resource(),
            &self.form,
            &page.values,
            revision,
            next,
        )))
    }

    fn check_version(&self, current: u64) -> ApiResult<()> {
        let wanted = self.query.number::<u64>("resourceVersion")?.unwrap_or(0);
        let exact = self.query.get("resourceVersionMatch") == Some("Exact");
        if wanted > current || (exact && wanted != current) {
            let message = format!(
                "the requested resource version {wanted} is not available, the server is at {current}"
            );
            return Err(ApiError::expired(message));
        }
        Ok(())
    }

    pub(super) async fn page(
        &self,
        selector: &Selector,
        limit: usize,
        from: Option<&Token>,
    ) -> ApiResult<Page> {
        let scope = self.scope(selector);
        let mut after = from.map(|token| (token.namespace.clone(), token.name.clone()));
        let mut page = Page::default();
        loop {
            let wanted = if selector.is_empty() {
                limit - page.values.len()
            } else {
                limit
            };
            let wanted = wanted.min(store::limits::PAGE);
            let from = after
                .as_ref()
                .map(|(namespace, name)| (namespace.as_str(), name.as_str()));
            let listing = self
                .state
                .store
                .list(&scope, from, wanted)
                .await
                .map_err(|error| self.failed(error))?;
            if page.revision == 0 {
                page.revision = listing.revision;
            }
            for object in listing.objects {
                if !selector.matches(&object.value) {
                    continue;
                }
                if page.values.len() == limit {
                    page.next = page.last.take();
                    return Ok(page);
                }
                page.last = Some((object.key.namespace.clone(), object.key.name.clone()));
                page.values.push(object.value.clone());
            }
            match listing.next {
                None => return Ok(page),
                Some(next) if page.values.len() == limit => {
                    page.next = Some(next);
                    return Ok(page);
                }
                Some(next) => after = Some(next),
            }
        }
    }

    /// POST to a collection.
    pub(crate) async fn create(&self, mut value: Value) -> ApiResult<Reply> {
        let resource = self.resource();
        if resource.namespaced && self.target.namespace.is_none() {
            return Err(ApiError::method_not_allowed());
        }
        let validation = FieldValidation::parse(self.query.get("fieldValidation"))?;
        let dry_run = self.query.dry_run()?;
        let mut warnings = validate::schema(resource, &mut value, validation)?;
        request::prune_nulls(&mut value);
        let generated = metadata::text(&value, "name").is_empty();
        for _ in 0..limits::GENERATED_NAMES {
            let mut value = value.clone();
            let name = metadata::prepare_create(resource, self.target.namespace(), &mut value)?;
            resource.strategy.default(&mut value);
            resource.strategy.prepare_create(&mut value);
            let mut honoured = self.check(&name, &value)?;
            let store = &*self.state.store;
            honoured.extend(resource.strategy.admit(store, None, &mut value).await?);
            match self.store_new(&name, value, dry_run).await {
                Err(StoreError::Exists(_)) if generated => {}
                Err(error) => return Err(ApiError::of_store(error, resource, &name)),
                Ok(created) => {
                    warnings.extend(honoured);
                    return Ok(self.show(201, &created, warnings));
                }
            }
        }
        let why = "the server was not able to generate a unique name for the object";
        Err(ApiError::conflict_because(resource, "", why))
    }

    /// Metadata, the kind's own rules and the node's gate; gives back what is not yet honoured.
    fn check(&self, name: &str, value: &Value) -> ApiResult<Vec<String>> {
        let resource = self.resource();
        let mut causes = metadata::check(resource, value);
        causes.extend(resource.strategy.check(value));
        let honoured = validate::meaning(resource, value).unwrap_or_else(|more| {
            for cause in more {
                if !causes
                    .iter()
                    .any(|known| known.field == cause.field && known.reason == cause.reason)
                {
                    causes.push(cause);
                }
            }
            Vec::new()
        });
        self.refuse(name, &causes)?;
        Ok(honoured)
    }

    fn refuse(&self, name: &str, causes: &[Cause]) -> ApiResult<()> {
        if causes.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(
            self.resource().kind,
            self.resource().group,
            name,
            causes,
        ))
    }

    async fn store_new(&self, name: &str, mut value: Value, dry_run: bool) -> Result<Value, StoreError> {
        let key = self.resource().key(self.target.namespace(), name);
        let within = self
            .resource()
            .namespaced
            .then(|| namespaces().key("", self.target.namespace()));
        if !dry_run {
            let created = self
                .state
                .store
                .create(&key, value, CreateGuard { within })
                .await?;
            return Ok(created.value.clone());
        }
        if let Some(within) = within {
            let holder = self.state.store.get(&within).await?;
            let holder = holder.ok_or_else(|| StoreError::NotWithin(within.clone()))?;
            if metadata::is_deleting(&holder.value) {
                return Err(StoreError::Terminating(within));
            }
        }
        if self.state.store.get(&key).await?.is_some() {
            return Err(StoreError::Exists(key));
        }
        value["metadata"]["creationTimestamp"] = time::now().into();
        value["metadata"]["uid"] = store::uid()?.into();
        Ok(value)
    }

    /// PUT of one object.
    pub(crate) async fn update(&self, mut value: Value) -> ApiResult<Reply> {
        let validation = FieldValidation::parse(self.query.get("fieldValidation"))?;
        let warnings = validate::schema(self.resource(), &mut value, validation)?;
        request::prune_nulls(&mut value);
        self.change(false, |_| Ok((value.clone(), warnings.clone())))
            .await
    }

    /// PATCH of one object.
    pub(crate) async fn patch(&self, headers: &HeaderMap, patch: &Value) -> ApiResult<Reply> {
        let validation = FieldValidation::parse(self.query.get("fieldValidation"))?;
        let media_type = request::media_type(headers);
        let resource = self.resource();
        self.change(true, |stored| {
            let mut value = patch::apply(resource, media_type, &reply::typed(resource, stored), patch)?;
            patch::check_depth(&value)?;
            let warnings = validate::schema(resource, &mut value, validation)?;
            request::prune_nulls(&mut value);
            Ok((value, warnings))
        })
        .await
    }

    /// Replaces the stored object by what `make` makes of it. When somebody else wrote in between it is made again,
    /// unless the client named the version it saw. What is made from the stored version carries that version's number;
    /// a patch that names another one fails on the first look.
    async fn change<F>(&self, from_stored: bool, make: F) -> ApiResult<Reply>
    where
        F: Fn(&Value) -> ApiResult<(Value, Vec<String>)> + Send + Sync,
    {
        let dry_run = self.query.dry_run()?;
        let (resource, name) = (self.resource(), self.target.name());
        for _ in 0..store::limits::UPDATE_ATTEMPTS {
            let stored = self.stored().await?;
            let (mut value, mut warnings) = make(&stored.value)?;
            let namespace = self.target.namespace();
            let seen = metadata::prepare_update(resource, namespace, name, &stored.value, &mut value)?;
            if seen.is_some_and(|seen| seen != stored.revision) {
                return Err(ApiError::conflict(resource, name));
            }
            warnings.extend(self.check_change(&stored.value, &mut value)?);
            if self.target.subresource.as_deref() != Some("status") {
                let (store, old) = (&*self.state.store, Some(&stored.value));
                warnings.extend(resource.strategy.admit(store, old, &mut value).await?);
            }
            if dry_run {
                return Ok(self.show(200, &value, warnings));
            }
            match self.replace(&stored, value).await {
                Ok(written) => return Ok(self.show(200, &written.value, warnings)),
                Err(StoreError::Conflict(_)) if from_stored || seen.is_none() => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Err(ApiError::conflict(resource, name))
    }

    fn check_change(&self, old: &Value, new: &mut Value) -> ApiResult<Vec<String>> {
        let (resource, name) = (self.resource(), self.target.name());
        if self.target.subresource.as_deref() == Some("status") {
            let status = new.get("status").cloned();
            *new = old.clone();
            if let (Value::Object(new), Some(status)) = (new, status) {
                new.insert("status".into(), status);
            }
            return Ok(Vec::new());
        }
        let resize = self.target.subresource.as_deref() == Some("resize");
        if resize {
            *new = match resource.strategy.resize(old, new) {
                Ok(resized) => resized,
                Err(causes) => {
                    self.refuse(name, &causes)?;
                    old.clone()
                }
            };
        }
        if let (true, Value::Object(object)) = (resource.has_status(), &mut *new) {
            match old.get("status") {
                Some(status) => object.insert("status".into(), status.clone()),
                None => object.remove("status"),
            };
        }
        resource.strategy.default(new);
        if !resize {
            self.refuse(name, &resource.strategy.check_update(old, new))?;
        }
        let mut warnings = self.check(name, new)?;
        let known = validate::meaning(resource, old).unwrap_or_default();
        warnings.retain(|warning| !known.contains(warning));
        Ok(warnings)
    }

    /// Writes the new version; removes the object instead when it was only held back by finalizers that are gone now.
    async fn replace(&self, stored: &Object, value: Value) -> Result<std::sync::Arc<Object>, StoreError> {
        let store = &self.state.store;
        let grace = value
            .pointer("/metadata/deletionGracePeriodSeconds")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        let released = metadata::is_deleting(&value)
            && metadata::has_finalizers(&stored.value)
            && !metadata::has_finalizers(&value)
            && grace == 0
            && !self.resource().strategy.outlives_deletion(&value);
        if released {
            let guard = DeleteGuard {
                revision: Some(stored.revision),
                ..DeleteGuard::default()
            };
            return store.delete(&stored.key, guard).await;
        }
        store.replace(&stored.key, stored.revision, value).await
    }
}

/// The objects of one answer.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) values: Vec<Value>,
    pub(super) revision: u64,
    next: Option<(String, String)>,
    last: Option<(String, String)>,
}

/// Where a list goes on, as the client keeps it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    revision: u64,
    namespace: String,
    name: String,
}

impl Token {
    fn encode(&self) -> String {
        let token = json!({ "rv": self.revision, "namespace": self.namespace, "name": self.name });
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn decode(text: &str) -> ApiResult<Self> {
        let token = URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let part = |name: &str| Some(token.as_ref()?.get(name)?.as_str()?.to_owned());
        let revision = token.as_ref().and_then(|token| token.get("rv")?.as_u64());
        match (revision, part("namespace"), part("name")) {
            (Some(revision), Some(namespace), Some(name)) => Ok(Self {
                revision,
                namespace,
                name,
            }),
            _ => Err(ApiError::bad_request(
                "continue key is not valid: it was not given out by this server",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continue_tokens() {
        let token = Token {
            revision: 5,
            namespace: "n".into(),
            name: "a".into(),
        };
        assert_eq!(Token::decode(&token.encode()), Ok(token));
        for bad in ["x", "", "e30", "!!!"] {
            assert!(Token::decode(bad).is_err(), "{bad}");
        }
    }
}
