//! The one task that writes: it takes what is waiting, puts it into one transaction, and only then answers and tells
//! the watchers.
//!
//! What always holds: an answer or an event means that the transaction is on disk (`synchronous=FULL`); a refused
//! write leaves the others of its batch alone; a database error fails the whole batch and writes nothing of it.

use std::sync::Arc;

use serde_json::Value;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};
use tokio::sync::{mpsc, oneshot};

use super::history::History;
use super::{CreateGuard, DeleteGuard, Event, EventKind, Key, Object, StoreError, document, limits};

pub(super) enum Write {
    Create {
        key: Key,
        value: Value,
        guard: CreateGuard,
    },
    Replace {
        key: Key,
        revision: u64,
        value: Value,
    },
    Delete {
        key: Key,
        guard: DeleteGuard,
    },
    KvPut {
        bucket: String,
        key: String,
        value: Vec<u8>,
    },
    KvDelete {
        bucket: String,
        key: String,
    },
}

pub(super) enum Written {
    Object(Arc<Object>),
    Value { existed: bool },
}

pub(super) struct Request {
    pub(super) write: Write,
    pub(super) reply: oneshot::Sender<Result<Written, StoreError>>,
}

pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) path: Arc<str>,
    pub(super) revision: u64,
    pub(super) history: Arc<History>,
    pub(super) requests: mpsc::Receiver<Request>,
}

/// A refusal concerns one write; a failure concerns the transaction.
enum Failure {
    Refused(StoreError),
    Database(sqlx::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

type Outcome = Result<Written, StoreError>;
type Events = Vec<(Event, usize)>;

impl Writer {
    /// Runs until the last handle of the store is dropped.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.requests.recv().await {
            let mut batch = vec![first];
            while batch.len() < limits::WRITE_BATCH
                && let Ok(request) = self.requests.try_recv()
            {
                batch.push(request);
            }
            self.commit(batch).await;
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(path = %self.path, %error, "the database did not close cleanly");
        }
    }

    async fn commit(&mut self, batch: Vec<Request>) {
        let (writes, replies): (Vec<_>, Vec<_>) = batch.into_iter().map(|r| (r.write, r.reply)).unzip();
        match self.transact(writes).await {
            Ok((outcomes, events, revision)) => {
                self.revision = revision;
                self.history.publish(events);
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // A caller that went away does not undo its write.
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => {
                let cause: Arc<str> = error.to_string().into();
                tracing::error!(path = %self.path, %cause, writes = replies.len(), "nothing could be written");
                for reply in replies {
                    let error = StoreError::Database {
                        path: self.path.clone(),
                        cause: cause.clone(),
                    };
                    let _ = reply.send(Err(error));
                }
            }
        }
    }

    async fn transact(&mut self, writes: Vec<Write>) -> Result<(Vec<Outcome>, Events, u64), sqlx::Error> {
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        let mut step = Step {
            connection: &mut transaction,
            revision: self.revision,
            events: Vec::new(),
        };
        let mut outcomes = Vec::with_capacity(writes.len());
        for write in writes {
            outcomes.push(match step.apply(write).await {
                Ok(written) => Ok(written),
                Err(Failure::Refused(error)) => Err(error),
                Err(Failure::Database(error)) => return Err(error),
            });
        }
        let (revision, events) = (step.revision, step.events);
        if revision != self.revision {
            sqlx::query("UPDATE revision SET value = ?")
                .bind(revision as i64)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok((outcomes, events, revision))
    }
}

/// The transaction while it is being filled.
struct Step<'a> {
    connection: &'a mut SqliteConnection,
    revision: u64,
    events: Events,
}

impl Step<'_> {
    async fn apply(&mut self, write: Write) -> Result<Written, Failure> {
        match write {
            Write::Create { key, value, guard } => self.create(key, value, &guard).await,
            Write::Replace { key, revision, value } => self.replace(key, revision, value).await,
            Write::Delete { key, guard } => self.delete(key, &guard).await,
            Write::KvPut { bucket, key, value } => {
                sqlx::query("INSERT OR REPLACE INTO kv (bucket, key, value) VALUES (?, ?, ?)")
                    .bind(bucket)
                    .bind(key)
                    .bind(value)
                    .execute(&mut *self.connection)
                    .await?;
                Ok(Written::Value { existed: true })
            }
            Write::KvDelete { bucket, key } => {
                let query = sqlx::query("DELETE FROM kv WHERE bucket = ? AND key = ?")
                    .bind(bucket)
                    .bind(key);
                let done = query.execute(&mut *self.connection).await?;
                Ok(Written::Value {
                    existed: done.rows_affected() > 0,
                })
            }
        }
    }

    async fn create(&mut self, key: Key, mut value: Value, guard: &CreateGuard) -> Result<Written, Failure> {
        if let Some(within) = &guard.within {
            let holder = self
                .read(within)
                .await?
                .ok_or_else(|| StoreError::NotWithin(within.clone()))?;
            if holder.value.pointer("/metadata/deletionTimestamp").is_some() {
                return Err(StoreError::Terminating(within.clone()).into());
            }
        }
        if self.read(&key).await?.is_some() {
            return Err(StoreError::Exists(key).into());
        }
        let uid = document::stamp_new(&key, &mut value)?;
        let revision = self.revision + 1;
        document::set_revision(&mut value, revision);
        let text = document::encode(&key, &value)?;
        let bytes = text.len();
        sqlx::query(
            "INSERT INTO objects (resource, namespace, name, uid, revision, document) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&key.resource)
        .bind(&key.namespace)
        .bind(&key.name)
        .bind(&uid)
        .bind(revision as i64)
        .bind(text)
        .execute(&mut *self.connection)
        .await?;
        let object = Arc::new(Object {
            key,
            uid,
            revision,
            value,
        });
        self.record(EventKind::Added, &object, None, bytes);
        Ok(Written::Object(object))
    }

    async fn replace(&mut self, key: Key, expected: u64, mut value: Value) -> Result<Written, Failure> {
        let stored = self
            .read(&key)
            .await?
            .ok_or_else(|| StoreError::NotFound(key.clone()))?;
        if stored.revision != expected {
            return Err(StoreError::Conflict(key).into());
        }
        document::stamp_replacement(&stored, &mut value)?;
        if value == stored.value {
            return Ok(Written::Object(stored));
        }
        let revision = self.revision + 1;
        document::set_revision(&mut value, revision);
        let text = document::encode(&key, &value)?;
        let bytes = text.len();
        sqlx::query(
            "UPDATE objects SET revision = ?, document = ? WHERE resource = ? AND namespace = ? AND name = ?",
        )
        .bind(revision as i64)
        .bind(text)
        .bind(&key.resource)
        .bind(&key.namespace)
        .bind(&key.name)
        .execute(&mut *self.connection)
        .await?;
        let object = Arc::new(Object {
            key,
            uid: stored.uid.clone(),
            revision,
            value,
        });
        self.record(EventKind::Modified, &object, Some(stored), bytes);
        Ok(Written::Object(object))
    }

    async fn delete(&mut self, key: Key, guard: &DeleteGuard) -> Result<Written, Failure> {
        let stored = self
            .read(&key)
            .await?
            .ok_or_else(|| StoreError::NotFound(key.clone()))?;
        if guard.revision.is_some_and(|revision| revision != stored.revision)
            || guard.uid.as_ref().is_some_and(|uid| *uid != stored.uid)
        {
            return Err(StoreError::Conflict(key).into());
        }
        if let Some(namespace) = &guard.empty_namespace {
            let query = sqlx::query("SELECT 1 FROM objects WHERE namespace = ? LIMIT 1").bind(namespace);
            if query.fetch_optional(&mut *self.connection).await?.is_some() {
                return Err(StoreError::NotEmpty(namespace.clone()).into());
            }
        }
        sqlx::query("DELETE FROM objects WHERE resource = ? AND namespace = ? AND name = ?")
            .bind(&key.resource)
            .bind(&key.namespace)
            .bind(&key.name)
            .execute(&mut *self.connection)
            .await?;
        let mut value = stored.value.clone();
        let revision = self.revision + 1;
        document::set_revision(&mut value, revision);
        let object = Arc::new(Object {
            key,
            uid: stored.uid.clone(),
            revision,
            value,
        });
        self.record(EventKind::Deleted, &object, Some(stored), 0);
        Ok(Written::Object(object))
    }

    async fn read(&mut self, key: &Key) -> Result<Option<Arc<Object>>, Failure> {
        let row = sqlx::query(
            "SELECT uid, revision, document FROM objects WHERE resource = ? AND namespace = ? AND name = ?",
        )
        .bind(&key.resource)
        .bind(&key.namespace)
        .bind(&key.name)
        .fetch_optional(&mut *self.connection)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let value = super::sqlite::decode(row.try_get("document")?)?;
        let revision = row.try_get::<i64, _>("revision")? as u64;
        Ok(Some(Arc::new(Object {
            key: key.clone(),
            uid: row.try_get("uid")?,
            revision,
            value,
        })))
    }

    fn record(&mut self, kind: EventKind, object: &Arc<Object>, previous: Option<Arc<Object>>, bytes: usize) {
        self.revision = object.revision;
        self.events.push((
            Event {
                kind,
                object: object.clone(),
                previous,
                revision: object.revision,
            },
            bytes,
        ));
    }
}
