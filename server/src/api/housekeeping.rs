//! What the API does by itself: the first namespaces, the end of namespaces, the end of old Events, and the care
//! for volumes.
//!
//! What always holds: a namespace that is being deleted loses its contents, each as its kind wants to be deleted, and
//! goes once nothing is left in it; until then nothing new can come into it.

use std::sync::Arc;

use serde_json::json;
use tokio::time::{Instant, interval, sleep_until};

use super::delete::{self, DeleteOptions};
use super::kinds::namespace::INITIAL;
use super::resources::{RESOURCES, Strategy, namespaces};
use super::{events, limits, metadata, volumes};
use crate::store::{CreateGuard, DeleteGuard, EventKind, Object, Scope, Store, StoreError, StoreExt};

/// Makes the namespaces that every server has, and its StorageClass.
pub async fn make_namespaces(store: &dyn Store) -> Result<(), StoreError> {
    for name in INITIAL {
        let mut namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let strategy: &dyn Strategy = namespaces().strategy;
        strategy.default(&mut namespace);
        strategy.prepare_create(&mut namespace);
        match store
            .create(&namespaces().key("", name), namespace, CreateGuard::default())
            .await
        {
            Ok(_) | Err(StoreError::Exists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    volumes::make_class(store).await
}

/// Runs until the server stops.
pub(crate) async fn run(store: Arc<dyn Store>, mut stop: tokio::sync::watch::Receiver<bool>) {
    // Cancelling loses nothing: whatever was begun is found again in the store after the next start.
    tokio::select! {
        () = end_namespaces(&*store) => {}
        () = end_events(&*store) => {}
        () = volumes::run(&*store) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

async fn end_events(store: &dyn Store) {
    let mut ticks = interval(limits::EVENT_SWEEP);
    loop {
        ticks.tick().await;
        match events::sweep(store).await {
            Ok(0) => {}
            Ok(gone) => tracing::debug!(gone, "old events removed"),
            Err(error) => tracing::warn!(%error, "old events could not be removed"),
        }
    }
}

/// Looks at the ending namespaces at the start, whenever one begins to end, and again while one waits.
async fn end_namespaces(store: &dyn Store) {
    let scope = Scope::all(&namespaces().qualified());
    loop {
        let (listed, revision) = match store.list_all(&scope).await {
            Ok(listing) => listing,
            Err(error) => {
                tracing::warn!(%error, "the namespaces cannot be read");
                sleep_until(Instant::now() + limits::NAMESPACE_RETRY).await;
                continue;
            }
        };
        let mut waiting = false;
        for namespace in listed
            .iter()
            .filter(|namespace| metadata::is_deleting(&namespace.value))
        {
            match end_namespace(store, namespace).await {
                Ok(gone) => waiting |= !gone,
                Err(error) => {
                    tracing::warn!(namespace = %namespace.key.name, %error, "the namespace cannot be emptied");
                    waiting = true;
                }
            }
        }
        let Ok(mut watch) = store.watch(scope.clone(), Some(revision)) else {
            sleep_until(Instant::now() + limits::NAMESPACE_RETRY).await;
            continue;
        };
        let retry = Instant::now() + limits::NAMESPACE_RETRY;
        loop {
            // Cancelling either arm loses nothing: the next round lists everything again.
            tokio::select! {
                event = watch.next() => match event {
                    Some(Ok(event)) if event.kind == EventKind::Modified && metadata::is_deleting(&event.object.value) => break,
                    Some(Ok(_)) => {}
                    Some(Err(_)) => break,
                    None => return,
                },
                () = sleep_until(retry), if waiting => break,
            }
        }
    }
}

/// Deletes what is in the namespace, and the namespace itself when nothing is; whether it is gone.
async fn end_namespace(store: &dyn Store, namespace: &Object) -> Result<bool, StoreError> {
    let name = namespace.key.name.as_str();
    for resource in RESOURCES.iter().filter(|resource| resource.namespaced) {
        let (objects, _) = store
            .list_all(&Scope::namespace(&resource.qualified(), name))
            .await?;
        for object in objects
            .iter()
            .filter(|object| !metadata::is_deleting(&object.value))
        {
            let deleted = delete::delete(store, resource, &object.key, &DeleteOptions::default()).await;
            if let Err(error) = deleted
                && error.code != 404
            {
                tracing::warn!(object = %object.key, %error, "an object of an ending namespace cannot be deleted");
            }
        }
    }
    if metadata::has_finalizers(&namespace.value) {
        return Ok(false);
    }
    let guard = DeleteGuard {
        uid: Some(namespace.uid.clone()),
        empty_namespace: Some(name.to_owned()),
        ..DeleteGuard::default()
    };
    match store.delete(&namespace.key, guard).await {
        Ok(_) | Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => Ok(true),
        Err(StoreError::NotEmpty(_)) => Ok(false),
        Err(error) => Err(error),
    }
}
