//! The store on SQLite: one file in WAL mode, one writing connection, a few reading ones.
//!
//! What always holds: the files are their owner's alone; readers see one committed snapshot per call;
//! `synchronous=FULL` makes the WAL durable at every commit, because a node may act on a write before the server is
//! asked about it again.
//!
//! Tables: `objects` (one row an object, the document as JSON text), `revision` (one row), `kv`. `user_version` is the
//! schema's version; a file of a newer one is refused rather than misread.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions, Row};
use tokio::sync::{mpsc, oneshot};

use super::history::{Bounds, History};
use super::writer::{Request, Write, Writer, Written};
use super::{CreateGuard, DeleteGuard, Key, Listing, Object, Scope, Store, StoreError, Watch, limits};

/// The mode of the database's files.
const MODE: u32 = 0o600;

/// The version of the tables below.
const SCHEMA: i64 = 1;

const TABLES: &str = "
CREATE TABLE objects (
    resource TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    uid TEXT NOT NULL,
    revision INTEGER NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (resource, namespace, name)
) WITHOUT ROWID;
CREATE INDEX objects_of_namespace ON objects (namespace);
CREATE TABLE revision (value INTEGER NOT NULL);
INSERT INTO revision (value) VALUES (1);
CREATE TABLE kv (
    bucket TEXT NOT NULL,
    key TEXT NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (bucket, key)
) WITHOUT ROWID;
PRAGMA user_version = 1;
";

/// The store of one SQLite file. Dropping the last clone of its handle lets the writer finish and close the file.
pub struct SqliteStore {
    path: Arc<str>,
    readers: SqlitePool,
    history: Arc<History>,
    writes: mpsc::Sender<Request>,
}

impl SqliteStore {
    /// Opens the file, creating it and its tables where they are missing. Must be called inside a tokio runtime.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_bounded(path, Bounds::default()).await
    }

    async fn open_bounded(path: &Path, bounds: Bounds) -> Result<Self, StoreError> {
        let shown: Arc<str> = path.display().to_string().into();
        let failed = |error: sqlx::Error| database(&shown, &error);
        private(path).map_err(|error| StoreError::Database {
            path: shown.clone(),
            cause: error.to_string().into(),
        })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(limits::BUSY)
            .disable_statement_logging();
        let mut connection = options.clone().connect().await.map_err(failed)?;
        prepare(&mut connection, &shown).await?;
        let revision = sqlx::query("SELECT value FROM revision")
            .fetch_one(&mut connection)
            .await;
        let revision = revision
            .and_then(|row| row.try_get::<i64, _>(0))
            .map_err(failed)? as u64;
        let readers = SqlitePoolOptions::new().max_connections(limits::READERS);
        let readers = readers
            .connect_with(options.read_only(true))
            .await
            .map_err(failed)?;
        let history = Arc::new(History::new(revision, bounds));
        let (writes, requests) = mpsc::channel(limits::WRITE_QUEUE);
        let writer = Writer {
            connection,
            path: shown.clone(),
            revision,
            history: history.clone(),
            requests,
        };
        tokio::spawn(writer.run());
        Ok(Self {
            path: shown,
            readers,
            history,
            writes,
        })
    }

    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writes
            .send(Request { write, reply })
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn write_object(&self, write: Write) -> Result<Arc<Object>, StoreError> {
        match self.write(write).await? {
            Written::Object(object) => Ok(object),
            Written::Value { .. } => Err(StoreError::Closed),
        }
    }

    fn failed(&self, error: &sqlx::Error) -> StoreError {
        database(&self.path, error)
    }
}

/// Sees to it that only its owner reads the database, for Secrets lie in it. SQLite gives its other files the mode of
/// the database; those that an earlier start left are closed too.
fn private(path: &Path) -> std::io::Result<()> {
    let database = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(MODE)
        .open(path)?;
    database.set_permissions(Permissions::from_mode(MODE))?;
    for ending in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        match std::fs::set_permissions(&name, Permissions::from_mode(MODE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

async fn prepare(connection: &mut SqliteConnection, path: &Arc<str>) -> Result<(), StoreError> {
    let failed = |error: sqlx::Error| database(path, &error);
    let version = sqlx::query("PRAGMA user_version")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    match version.try_get::<i64, _>(0).map_err(failed)? {
        SCHEMA => Ok(()),
        0 => {
            let sql = sqlx::raw_sql(TABLES);
            let mut transaction = sqlx::Connection::begin(connection).await.map_err(failed)?;
            sql.execute(&mut *transaction).await.map_err(failed)?;
            transaction.commit().await.map_err(failed)
        }
        other => Err(StoreError::Database {
            path: path.clone(),
            cause: format!("its schema has version {other}, this server knows version {SCHEMA}").into(),
        }),
    }
}

fn database(path: &Arc<str>, error: &sqlx::Error) -> StoreError {
    StoreError::Database {
        path: path.clone(),
        cause: error.to_string().into(),
    }
}

pub(super) fn decode(text: &str) -> Result<Value, sqlx::Error> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

fn object(row: &SqliteRow) -> Result<Object, sqlx::Error> {
    let key = Key::new(
        row.try_get("resource")?,
        row.try_get("namespace")?,
        row.try_get("name")?,
    );
    let revision = row.try_get::<i64, _>("revision")? as u64;
    Ok(Object {
        key,
        uid: row.try_get("uid")?,
        revision,
        value: decode(row.try_get("document")?)?,
    })
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &Key) -> Result<Option<Arc<Object>>, StoreError> {
        let query = sqlx::query("SELECT * FROM objects WHERE resource = ? AND namespace = ? AND name = ?")
            .bind(&key.resource)
            .bind(&key.namespace)
            .bind(&key.name);
        let row = query
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| self.failed(&error))?;
        let object = row
            .map(|row| object(&row))
            .transpose()
            .map_err(|error| self.failed(&error))?;
        Ok(object.map(Arc::new))
    }

    async fn list(
        &self,
        scope: &Scope,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        let (namespace, name) = after.unwrap_or(("", ""));
        // One statement is one snapshot; the join gives the revision even when no object matches.
        let rows = sqlx::query(
            "SELECT revision.value AS snapshot, o.* FROM revision LEFT JOIN (
                SELECT * FROM objects WHERE resource = ?1
                    AND (?2 IS NULL OR namespace = ?2) AND (?3 IS NULL OR name = ?3)
                    AND (namespace, name) > (?4, ?5)
                ORDER BY namespace, name LIMIT ?6
             ) AS o ORDER BY o.namespace, o.name",
        )
        .bind(&scope.resource)
        .bind(&scope.namespace)
        .bind(&scope.name)
        .bind(namespace)
        .bind(name)
        .bind(limit.saturating_add(1) as i64)
        .fetch_all(&self.readers)
        .await
        .map_err(|error| self.failed(&error))?;
        listing(&rows, limit).map_err(|error| self.failed(&error))
    }

    async fn create(&self, key: &Key, value: Value, guard: CreateGuard) -> Result<Arc<Object>, StoreError> {
        self.write_object(Write::Create {
            key: key.clone(),
            value,
            guard,
        })
        .await
    }

    async fn replace(&self, key: &Key, revision: u64, value: Value) -> Result<Arc<Object>, StoreError> {
        self.write_object(Write::Replace {
            key: key.clone(),
            revision,
            value,
        })
        .await
    }

    async fn delete(&self, key: &Key, guard: DeleteGuard) -> Result<Arc<Object>, StoreError> {
        self.write_object(Write::Delete {
            key: key.clone(),
            guard,
        })
        .await
    }

    fn revision(&self) -> u64 {
        self.history.published()
    }

    fn watch(&self, scope: Scope, since: Option<u64>) -> Result<Watch, StoreError> {
        self.history.watch(scope, since)
    }

    async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query("SELECT value FROM kv WHERE bucket = ? AND key = ?")
            .bind(bucket)
            .bind(key);
        let row = query
            .fetch_optional(&self.readers)
            .await
            .map_err(|error| self.failed(&error))?;
        row.map(|row| row.try_get(0))
            .transpose()
            .map_err(|error| self.failed(&error))
    }

    async fn kv_put(&self, bucket: &str, key: &str, value: &[u8]) -> Result<(), StoreError> {
        if value.len() > limits::VALUE_BYTES {
            return Err(StoreError::TooLarge {
                what: format!("{bucket}/{key}"),
                bytes: value.len(),
                bound: limits::VALUE_BYTES,
            });
        }
        let write = Write::KvPut {
            bucket: bucket.into(),
            key: key.into(),
            value: value.into(),
        };
        self.write(write).await.map(|_| ())
    }

    async fn kv_delete(&self, bucket: &str, key: &str) -> Result<bool, StoreError> {
        let written = self
            .write(Write::KvDelete {
                bucket: bucket.into(),
                key: key.into(),
            })
            .await?;
        Ok(matches!(written, Written::Value { existed: true }))
    }

    async fn kv_list(&self, bucket: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let query = sqlx::query("SELECT key, value FROM kv WHERE bucket = ? ORDER BY key").bind(bucket);
        let rows = query
            .fetch_all(&self.readers)
            .await
            .map_err(|error| self.failed(&error))?;
        let pairs = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
        pairs
            .collect::<Result<_, sqlx::Error>>()
            .map_err(|error| self.failed(&error))
    }
}

fn listing(rows: &[SqliteRow], limit: usize) -> Result<Listing, sqlx::Error> {
    let revision = match rows.first() {
        Some(row) => row.try_get::<i64, _>("snapshot")? as u64,
        None => return Err(sqlx::Error::RowNotFound),
    };
    let mut objects = Vec::with_capacity(rows.len().min(limit));
    let mut next = None;
    for row in rows {
        // The outer join's row without an object.
        if row.try_get::<Option<&str>, _>("name")?.is_none() {
            break;
        }
        if objects.len() == limit {
            next = objects
                .last()
                .map(|last: &Arc<Object>| (last.key.namespace.clone(), last.key.name.clone()));
            break;
        }
        objects.push(Arc::new(object(row)?));
    }
    Ok(Listing {
        objects,
        revision,
        next,
    })
}

#[cfg(test)]
mod tests;
