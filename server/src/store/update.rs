//! Read, change, write: the loop that every controller would otherwise write itself.
//!
//! A change is only written over the version it was made from; when somebody was faster it is made again.

use std::future::Future;
use std::sync::Arc;

use serde_json::Value;

use super::{Key, Object, Store, StoreError, limits};

/// Why an update did not happen.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError<E> {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change itself refused; nothing was written.
    #[error("{0}")]
    Refused(E),
}

/// What can be done with any store.
pub trait StoreExt: Store {
    /// Changes an object in place, again from its newest version whenever somebody else wrote in between.
    /// A change that changes nothing writes nothing.
    fn update<F, E>(
        &self,
        key: &Key,
        change: F,
    ) -> impl Future<Output = Result<Arc<Object>, UpdateError<E>>> + Send
    where
        F: FnMut(&mut Value) -> Result<(), E> + Send,
        E: Send;

    /// All objects of a scope with the revision that a watch may start from.
    fn list_all(
        &self,
        scope: &super::Scope,
    ) -> impl Future<Output = Result<(Vec<Arc<Object>>, u64), StoreError>> + Send;
}

impl<S: Store + ?Sized> StoreExt for S {
    async fn update<F, E>(&self, key: &Key, mut change: F) -> Result<Arc<Object>, UpdateError<E>>
    where
        F: FnMut(&mut Value) -> Result<(), E> + Send,
        E: Send,
    {
        for _ in 0..limits::UPDATE_ATTEMPTS {
            let stored = self
                .get(key)
                .await?
                .ok_or_else(|| StoreError::NotFound(key.clone()))?;
            let mut value = stored.value.clone();
            change(&mut value).map_err(UpdateError::Refused)?;
            match self.replace(key, stored.revision, value).await {
                Err(StoreError::Conflict(_)) => {}
                other => return Ok(other?),
            }
        }
        Err(StoreError::Conflict(key.clone()).into())
    }

    async fn list_all(&self, scope: &super::Scope) -> Result<(Vec<Arc<Object>>, u64), StoreError> {
        let mut first = self.list(scope, None, limits::PAGE).await?;
        let mut next = first.next.take();
        while let Some((namespace, name)) = next {
            let page = self.list(scope, Some((&namespace, &name)), limits::PAGE).await?;
            first.objects.extend(page.objects);
            next = page.next;
        }
        // A watch from the first page's revision replays whatever changed while the later pages were read.
        Ok((first.objects, first.revision))
    }
}
