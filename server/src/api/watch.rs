//! WATCH: a collection's changes as lines of JSON, for as long as the client listens.
//!
//! What always holds: a client is told of every change that its selector lets it see, in order, or is ended with a
//! `Status` of code 410; what it has not read yet is bounded by the store's queue and one chunk here.
//!
//! ```text
//!  backlog of the store ─▶ initial objects ─▶ (bookmark) ─▶ live events … bookmarks … ─▶ end
//!  (resourceVersion=N)     (unset or 0)
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::request::Form;
use super::resources::Resource;
use super::selector::Selector;
use super::status::{ApiError, ApiResult};
use super::table;
use super::verbs::Call;
use super::{limits, reply};
use crate::store::{Event, EventKind, Store, Watch};

/// Marks the end of the initial objects for clients that asked for them.
const INITIAL_END: &str = "k8s.io/initial-events-end";

impl Call<'_> {
    /// GET of a collection with `watch=true`.
    pub(crate) async fn watch(&self) -> ApiResult<Response<Body>> {
        let selector = self.selector()?;
        let bookmarks = self.query.flag("allowWatchBookmarks")?;
        let wanted = self.query.number::<u64>("resourceVersion")?.unwrap_or(0);
        let send_initial = self.query.flag("sendInitialEvents")?;
        self.check_match(send_initial)?;
        // Without a version the client wants the present state first.
        let initial = match self.query.get("sendInitialEvents") {
            Some(_) => send_initial,
            None => wanted == 0,
        };
        let (objects, since) = if initial {
            let page = self.page(&selector, usize::MAX, None).await?;
            (page.values, Some(page.revision))
        } else {
            (Vec::new(), (wanted > 0).then_some(wanted))
        };
        let watch = self
            .state
            .store
            .watch(self.scope(&selector), since)
            .map_err(|error| self.failed(error))?;
        let mut feed = Feed {
            resource: self.resource(),
            form: self.form.clone(),
            selector,
            store: self.state.store.clone(),
            stop: self.state.stop.clone(),
            watch,
            ready: VecDeque::new(),
            headings: true,
            bookmarks,
            deadline: Instant::now() + self.lifetime()?,
            bookmark_at: Instant::now() + limits::BOOKMARK,
            bookmark_due: false,
            ended: false,
        };
        for value in &objects {
            let line = feed.line("ADDED", value);
            feed.ready.push_back(line);
        }
        if send_initial && bookmarks {
            let line = feed.bookmark(since.unwrap_or(0), true);
            feed.ready.push_back(line);
        }
        Ok(feed.into_response())
    }

    fn check_match(&self, send_initial: bool) -> ApiResult<()> {
        match (self.query.get("resourceVersionMatch"), send_initial) {
            (None, false) | (Some("NotOlderThan"), true) => Ok(()),
            (None, true) => Err(ApiError::bad_request(
                "sendInitialEvents needs resourceVersionMatch=NotOlderThan",
            )),
            (Some(other), _) => Err(ApiError::bad_request(format!(
                "resourceVersionMatch {other:?} is forbidden for watch unless sendInitialEvents is set"
            ))),
        }
    }

    fn lifetime(&self) -> ApiResult<Duration> {
        match self.query.number::<u64>("timeoutSeconds")? {
            Some(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds).min(limits::WATCH_LONGEST)),
            _ => {
                let spread = f64::from(jiff::Timestamp::now().subsec_nanosecond()) / 1e9;
                Ok(limits::WATCH.mul_f64(1.0 + spread.clamp(0.0, 1.0)))
            }
        }
    }
}

struct Feed {
    resource: &'static Resource,
    form: Form,
    selector: Selector,
    store: Arc<dyn Store>,
    stop: tokio::sync::watch::Receiver<bool>,
    watch: Watch,
    /// Lines that are ready to go out.
    ready: VecDeque<String>,
    /// Whether a table's headings are still to be sent.
    headings: bool,
    bookmarks: bool,
    deadline: Instant,
    bookmark_at: Instant,
    bookmark_due: bool,
    ended: bool,
}

impl Feed {
    fn into_response(self) -> Response<Body> {
        let lines = stream::unfold(self, |mut feed| async move {
            let chunk = feed.next().await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), feed))
        });
        let mut response = Response::new(Body::from_stream(lines));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        response
    }

    /// The next chunk: all that is ready, up to a bound. Nothing when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if std::mem::take(&mut self.bookmark_due) {
                self.add_bookmark();
            }
            while self.ready.iter().map(String::len).sum::<usize>() < limits::WATCH_CHUNK
                && let Some(event) = self.watch.try_next()
            {
                self.take(&event);
            }
            if !self.ready.is_empty() {
                return Some(self.chunk());
            }
            if self.ended {
                return None;
            }
            self.wait().await;
        }
    }

    fn chunk(&mut self) -> Bytes {
        let mut chunk = String::new();
        while let Some(line) = self.ready.pop_front() {
            chunk.push_str(&line);
            chunk.push('\n');
            if chunk.len() >= limits::WATCH_CHUNK {
                break;
            }
        }
        Bytes::from(chunk)
    }

    /// Waits for whatever comes first. No arm holds anything that cancelling it would lose: events stay in the watch's
    /// queue, and the times are absolute.
    async fn wait(&mut self) {
        let event = tokio::select! {
            event = self.watch.next() => event,
            () = tokio::time::sleep_until(self.bookmark_at), if self.bookmarks => {
                self.bookmark_due = true;
                return;
            }
            () = tokio::time::sleep_until(self.deadline) => None,
            // An error means that the server is gone, which ends the watch as well.
            _ = self.stop.wait_for(|stop| *stop) => None,
        };
        match event {
            Some(Ok(event)) => self.take(&event),
            Some(Err(error)) => {
                let status = ApiError::of_store(error, self.resource, "").to_value();
                self.ready
                    .push_back(json!({ "type": "ERROR", "object": status }).to_string());
                self.ended = true;
            }
            None => self.ended = true,
        }
    }

    fn add_bookmark(&mut self) {
        self.bookmark_at = Instant::now() + limits::BOOKMARK;
        // Read before the queue is emptied: everything up to this revision is in the queue by now.
        let published = self.store.revision();
        while let Some(event) = self.watch.try_next() {
            self.take(&event);
        }
        if self.watch.is_cut() {
            // Events up to that revision are lost: what comes after those in the queue is the error that says so.
            return;
        }
        let line = self.bookmark(published.max(self.watch.revision()), false);
        self.ready.push_back(line);
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) -> String {
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ INITIAL_END: "true" });
        }
        let object = match &self.form {
            Form::Table { version, include } => {
                let headings = std::mem::take(&mut self.headings);
                let mut table = table::render(
                    self.resource,
                    version,
                    std::iter::empty(),
                    &metadata,
                    *include,
                    headings,
                );
                // The annotation has no place in a list's metadata; Kubernetes carries it in a row's object.
                if initial_end {
                    let object = table::partial(&json!({ "metadata": metadata }));
                    table["rows"] = json!([{ "cells": [], "object": object }]);
                }
                table
            }
            Form::Partial => table::partial(&json!({ "metadata": metadata })),
            Form::Object => {
                json!({ "kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": metadata })
            }
        };
        json!({ "type": "BOOKMARK", "object": object }).to_string()
    }

    /// Turns a change of the store into what this client sees of it: an object can enter or leave its selection.
    fn take(&mut self, event: &Event) {
        let before = event
            .previous
            .as_ref()
            .filter(|object| self.selector.matches(&object.value));
        let after =
            (event.kind != EventKind::Deleted && self.selector.matches(&event.object.value)).then_some(());
        let line = match (before, after) {
            (None, None) => return,
            (None, Some(())) => self.line("ADDED", &event.object.value),
            (Some(_), Some(())) => self.line("MODIFIED", &event.object.value),
            (Some(before), None) => {
                let mut last = before.value.clone();
                last["metadata"]["resourceVersion"] = event.revision.to_string().into();
                self.line("DELETED", &last)
            }
        };
        self.ready.push_back(line);
    }

    fn line(&mut self, kind: &str, value: &Value) -> String {
        let object = match &self.form {
            Form::Table { version, include } => {
                let headings = std::mem::take(&mut self.headings);
                let revision = value
                    .pointer("/metadata/resourceVersion")
                    .cloned()
                    .unwrap_or_default();
                let metadata = json!({ "resourceVersion": revision });
                let value = reply::typed(self.resource, value);
                table::render(
                    self.resource,
                    version,
                    std::iter::once(&value),
                    &metadata,
                    *include,
                    headings,
                )
            }
            form => reply::object(self.resource, form, value),
        };
        json!({ "type": kind, "object": object }).to_string()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::api::resources;
    use crate::store::{self, CreateGuard, Key, Scope, SqliteStore};

    /// A client that was cut off must list again; a bookmark would let it go on after what it has lost.
    #[tokio::test]
    async fn a_watch_that_was_cut_off_gets_no_bookmark() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("db")).await.unwrap());
        let (_stop, stop) = tokio::sync::watch::channel(false);
        let resource = resources::find("", "v1", "configmaps").unwrap();
        let events = store::limits::WATCH_QUEUE + 10;
        let mut feed = Feed {
            resource,
            form: Form::Object,
            selector: Selector::default(),
            store: store.clone(),
            stop,
            watch: store.watch(Scope::all("configmaps"), None).unwrap(),
            ready: VecDeque::new(),
            headings: true,
            bookmarks: true,
            deadline: Instant::now() + limits::WATCH,
            bookmark_at: Instant::now() + limits::BOOKMARK,
            bookmark_due: true,
            ended: false,
        };
        let creations = (0..events).map(|number| {
            let key = Key::new("configmaps", "default", &format!("m{number}"));
            let store = store.clone();
            async move { store.create(&key, json!({}), CreateGuard::default()).await }
        });
        assert!(join_all(creations).await.iter().all(Result::is_ok));
        let mut text = String::new();
        while let Some(chunk) = feed.next().await {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
        let kinds: Vec<String> = text
            .lines()
            .map(|line| {
                let event: Value = serde_json::from_str(line).unwrap();
                event["type"].as_str().unwrap().to_owned()
            })
            .collect();
        let added = kinds.iter().filter(|kind| *kind == "ADDED").count();
        assert_eq!(added, store::limits::WATCH_QUEUE);
        assert!(!kinds.iter().any(|kind| kind == "BOOKMARK"));
        assert_eq!(kinds.last().map(String::as_str), Some("ERROR"));
    }
}
