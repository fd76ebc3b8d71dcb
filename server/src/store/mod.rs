//! The store: Kubernetes objects as JSON documents, with optimistic concurrency and watches.
//!
//! What always holds:
//! - every write gets the next revision of one counter that never goes back, not even over a restart;
//! - a write is on disk before its caller or any watcher hears of it;
//! - a watcher sees every event of its scope once, in revision order, or is told that it cannot ([`StoreError::Gone`]).
//!
//! The store knows nothing of kinds: what an object means is the API's business. [`Store`] is the seam behind
//! which a second database can stand; [`SqliteStore`] is the one that every installation has.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

mod document;
mod history;
pub mod limits;
mod sqlite;
mod update;
mod writer;

pub(crate) use document::{now, uid};
pub use history::Watch;
pub use sqlite::SqliteStore;
pub use update::{StoreExt, UpdateError};

/// Names one object: the resource in the plural (with its group, as `leases.coordination.k8s.io`), the namespace
/// (empty for cluster-scoped objects) and the name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `pods`, or `leases.coordination.k8s.io` outside the core group.
    pub resource: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// A key from its three parts.
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self {
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(resource: &str, name: &str) -> Self {
        Self::new(resource, "", name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.resource, self.name)
        } else {
            write!(f, "{}/{}/{}", self.resource, self.namespace, self.name)
        }
    }
}

/// One version of one object. The document carries the same uid and revision in its metadata.
#[derive(Debug, PartialEq)]
pub struct Object {
    /// Which object this is.
    pub key: Key,
    /// `metadata.uid`: tells an object from an earlier one of the same name.
    pub uid: String,
    /// `metadata.resourceVersion` as a number.
    pub revision: u64,
    /// The whole document as Kubernetes' API shows it.
    pub value: Value,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was created.
    Added,
    /// It was replaced by a new version.
    Modified,
    /// It was removed.
    Deleted,
}

/// One change, as watchers see it.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The object after the change; for [`EventKind::Deleted`] its last version under the deletion's revision.
    pub object: Arc<Object>,
    /// The version before the change; nothing for [`EventKind::Added`]. Selectors need it to see an object leave.
    pub previous: Option<Arc<Object>>,
    /// The revision of the change.
    pub revision: u64,
}

/// Which objects a listing or a watch is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The resource, as in [`Key::resource`].
    pub resource: String,
    /// Only this namespace, or all of them.
    pub namespace: Option<String>,
    /// Only this name, or all of them.
    pub name: Option<String>,
}

impl Scope {
    /// All objects of a resource.
    pub fn all(resource: &str) -> Self {
        Self {
            resource: resource.into(),
            namespace: None,
            name: None,
        }
    }

    /// The objects of a resource in one namespace.
    pub fn namespace(resource: &str, namespace: &str) -> Self {
        Self {
            resource: resource.into(),
            namespace: Some(namespace.into()),
            name: None,
        }
    }

    /// Whether an object belongs to the scope.
    pub fn contains(&self, key: &Key) -> bool {
        self.resource == key.resource
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == key.namespace)
            && self.name.as_ref().is_none_or(|name| *name == key.name)
    }
}

/// One page of a listing, in order of namespace and name.
#[derive(Debug)]
pub struct Listing {
    /// The objects of the page.
    pub objects: Vec<Arc<Object>>,
    /// The store's revision in the same snapshot: a watch from here misses nothing.
    pub revision: u64,
    /// Where the next page begins: after this (namespace, name). Nothing when this was the last page.
    pub next: Option<(String, String)>,
}

/// What must be so for a new object to be accepted, checked in the same transaction.
#[derive(Clone, Debug, Default)]
pub struct CreateGuard {
    /// This object must exist and must not be on its way out: the namespace of what is created.
    pub within: Option<Key>,
}

/// What must be so for an object to be removed, checked in the same transaction.
#[derive(Clone, Debug, Default)]
pub struct DeleteGuard {
    /// The object's revision must be this.
    pub revision: Option<u64>,
    /// The object's uid must be this.
    pub uid: Option<String>,
    /// Nothing may exist in this namespace.
    pub empty_namespace: Option<String>,
}

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{0} does not exist")]
    NotFound(Key),
    /// There is such an object already.
    #[error("{0} exists already")]
    Exists(Key),
    /// The object is at another revision, or is another object, than the caller thinks.
    #[error("{0} was changed by somebody else")]
    Conflict(Key),
    /// The object that must hold the new one is missing.
    #[error("{0}, which the object belongs to, does not exist")]
    NotWithin(Key),
    /// The object that must hold the new one is being deleted.
    #[error("{0}, which the object belongs to, is being deleted")]
    Terminating(Key),
    /// The namespace still has contents.
    #[error("namespace {0} still has contents")]
    NotEmpty(String),
    /// The watch asks for events that are no longer kept, or fell too far behind.
    #[error("revision {wanted} is too old: events are kept from {oldest} on")]
    Gone {
        /// The revision asked for.
        wanted: u64,
        /// The oldest revision that a watch can start from.
        oldest: u64,
    },
    /// The watch asks for events after a revision that does not exist yet.
    #[error("revision {wanted} lies in the future: the store is at {current}")]
    Future {
        /// The revision asked for.
        wanted: u64,
        /// The store's revision.
        current: u64,
    },
    /// As many watches as the store carries are open.
    #[error("{} watches are open, which is the bound", limits::WATCHES)]
    TooManyWatches,
    /// The document or value is larger than the store takes.
    #[error("{what} has {bytes} bytes, the bound is {bound}")]
    TooLarge {
        /// The object or key.
        what: String,
        /// Its size.
        bytes: usize,
        /// The bound.
        bound: usize,
    },
    /// The document cannot be stored: it is not an object with metadata.
    #[error("{key}: {reason}")]
    Malformed {
        /// The object.
        key: Key,
        /// What is wrong with the document.
        reason: String,
    },
    /// The database failed; nothing of the batch was written.
    #[error("the database {path} failed: {cause}")]
    Database {
        /// The database file.
        path: Arc<str>,
        /// What the database said.
        cause: Arc<str>,
    },
    /// The store has been shut down.
    #[error("the store is closed")]
    Closed,
}

/// What the API and the controllers need of a database. All methods may be called from any task.
#[async_trait]
pub trait Store: Send + Sync {
    /// The object, if it exists.
    async fn get(&self, key: &Key) -> Result<Option<Arc<Object>>, StoreError>;

    /// At most `limit` objects of the scope that come after (namespace, name).
    async fn list(
        &self,
        scope: &Scope,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Listing, StoreError>;

    /// Stores a new object. uid, creationTimestamp and resourceVersion are set here.
    async fn create(&self, key: &Key, value: Value, guard: CreateGuard) -> Result<Arc<Object>, StoreError>;

    /// Replaces the object that is at `revision`. uid and creationTimestamp stay as they were.
    /// A document equal to the stored one is not written, and its revision stays.
    async fn replace(&self, key: &Key, revision: u64, value: Value) -> Result<Arc<Object>, StoreError>;

    /// Removes the object at once and gives back its last version.
    async fn delete(&self, key: &Key, guard: DeleteGuard) -> Result<Arc<Object>, StoreError>;

    /// The revision up to which watchers have been told everything.
    fn revision(&self) -> u64;

    /// The events of the scope after revision `since`, or from now on.
    fn watch(&self, scope: Scope, since: Option<u64>) -> Result<Watch, StoreError>;

    /// A value of the key-value table, which holds what is no Kubernetes object.
    async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Sets a value of the key-value table; it is on disk when this returns.
    async fn kv_put(&self, bucket: &str, key: &str, value: &[u8]) -> Result<(), StoreError>;

    /// Removes a value of the key-value table; whether it was there.
    async fn kv_delete(&self, bucket: &str, key: &str) -> Result<bool, StoreError>;

    /// All values of a bucket in order of their keys.
    async fn kv_list(&self, bucket: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
}
