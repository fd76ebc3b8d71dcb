//! The store on a real file: revisions, conflicts, watches and their bounds.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;

use super::*;
use crate::store::{EventKind, StoreExt};

struct Opened {
    store: SqliteStore,
    directory: tempfile::TempDir,
}

async fn open(bounds: Bounds) -> Opened {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_bounded(&directory.path().join("db"), bounds)
        .await
        .unwrap();
    Opened { store, directory }
}

fn key(name: &str) -> Key {
    Key::new("pods", "default", name)
}

async fn create(store: &SqliteStore, name: &str) -> Arc<Object> {
    store
        .create(&key(name), json!({ "spec": {} }), CreateGuard::default())
        .await
        .unwrap()
}

#[tokio::test]
async fn objects_are_stamped_and_checked() {
    let Opened {
        store,
        directory: _directory,
    } = open(Bounds::default()).await;
    let created = create(&store, "a").await;
    assert_eq!(created.value["metadata"]["name"], "a");
    assert_eq!(created.value["metadata"]["uid"], created.uid.as_str());
    assert_eq!(
        created.value["metadata"]["resourceVersion"],
        created.revision.to_string()
    );
    assert!(created.value["metadata"]["creationTimestamp"].is_string());
    assert_eq!(store.get(&key("a")).await.unwrap().unwrap(), created);
    let again = store.create(&key("a"), json!({}), CreateGuard::default()).await;
    assert!(matches!(again, Err(StoreError::Exists(_))), "{again:?}");

    let mut value = created.value.clone();
    value["spec"]["x"] = 1.into();
    value["metadata"]["uid"] = "forged".into();
    let replaced = store
        .replace(&key("a"), created.revision, value.clone())
        .await
        .unwrap();
    assert!(replaced.revision > created.revision);
    assert_eq!(replaced.value["metadata"]["uid"], created.uid.as_str());
    let stale = store.replace(&key("a"), created.revision, value).await;
    assert!(matches!(stale, Err(StoreError::Conflict(_))), "{stale:?}");
    let same = store
        .replace(&key("a"), replaced.revision, replaced.value.clone())
        .await
        .unwrap();
    assert_eq!(same.revision, replaced.revision, "an equal document is no change");

    let other = DeleteGuard {
        uid: Some("other".into()),
        ..DeleteGuard::default()
    };
    assert!(matches!(
        store.delete(&key("a"), other).await,
        Err(StoreError::Conflict(_))
    ));
    let deleted = store.delete(&key("a"), DeleteGuard::default()).await.unwrap();
    assert!(deleted.revision > replaced.revision);
    assert!(matches!(
        store.delete(&key("a"), DeleteGuard::default()).await,
        Err(StoreError::NotFound(_))
    ));
    let huge = json!({ "x": "x".repeat(limits::DOCUMENT_BYTES) });
    let huge = store.create(&key("huge"), huge, CreateGuard::default()).await;
    assert!(matches!(huge, Err(StoreError::TooLarge { .. })), "{huge:?}");
    let list = store
        .create(&key("list"), json!([]), CreateGuard::default())
        .await;
    assert!(matches!(list, Err(StoreError::Malformed { .. })), "{list:?}");
}

#[tokio::test]
async fn guards_hold_in_the_transaction() {
    let Opened {
        store,
        directory: _directory,
    } = open(Bounds::default()).await;
    let namespace = Key::cluster("namespaces", "n");
    let within = || CreateGuard {
        within: Some(namespace.clone()),
    };
    let inside = Key::new("pods", "n", "a");
    let early = store.create(&inside, json!({}), within()).await;
    assert!(matches!(early, Err(StoreError::NotWithin(_))), "{early:?}");
    store
        .create(&namespace, json!({}), CreateGuard::default())
        .await
        .unwrap();
    store.create(&inside, json!({}), within()).await.unwrap();
    let empty = || DeleteGuard {
        empty_namespace: Some("n".into()),
        ..DeleteGuard::default()
    };
    let full = store.delete(&namespace, empty()).await;
    assert!(matches!(full, Err(StoreError::NotEmpty(_))), "{full:?}");
    let mark = |value: &mut Value| {
        value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        Ok::<_, ()>(())
    };
    store.update(&namespace, mark).await.unwrap();
    let late = store
        .create(&Key::new("pods", "n", "b"), json!({}), within())
        .await;
    assert!(matches!(late, Err(StoreError::Terminating(_))), "{late:?}");
    store.delete(&inside, DeleteGuard::default()).await.unwrap();
    store.delete(&namespace, empty()).await.unwrap();
}

#[tokio::test]
async fn everything_survives_a_restart_and_revisions_go_on() {
    let Opened { store, directory } = open(Bounds::default()).await;
    create(&store, "a").await;
    let gone = create(&store, "b").await;
    let deleted = store.delete(&key("b"), DeleteGuard::default()).await.unwrap();
    store.kv_put("ca", "key", b"secret").await.unwrap();
    drop(store);
    let store = SqliteStore::open(&directory.path().join("db")).await.unwrap();
    assert!(store.get(&key("a")).await.unwrap().is_some());
    assert_eq!(
        store.kv_get("ca", "key").await.unwrap().as_deref(),
        Some(b"secret".as_slice())
    );
    let next = create(&store, "c").await;
    assert!(next.revision > deleted.revision, "{next:?} after {deleted:?}");
    let old = store.watch(Scope::all("pods"), Some(gone.revision));
    assert!(
        matches!(old, Err(StoreError::Gone { .. })),
        "the events of the last run are not kept"
    );
    assert!(store.watch(Scope::all("pods"), Some(deleted.revision)).is_ok());
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let Opened { store, directory } = open(Bounds::default()).await;
    drop(store);
    let path = directory.path().join("db");
    let mut raw = SqliteConnectOptions::new()
        .filename(&path)
        .connect()
        .await
        .unwrap();
    sqlx::query("PRAGMA user_version = 99")
        .execute(&mut raw)
        .await
        .unwrap();
    let Err(error) = SqliteStore::open(&path).await else {
        panic!("a newer schema was opened")
    };
    assert!(error.to_string().contains("99"), "{error}");
}

#[tokio::test]
async fn lists_have_pages_and_scopes() {
    let Opened {
        store,
        directory: _directory,
    } = open(Bounds::default()).await;
    let empty = store.list(&Scope::all("pods"), None, 10).await.unwrap();
    assert!(empty.objects.is_empty() && empty.next.is_none() && empty.revision > 0);
    for namespace in ["a", "b"] {
        for name in ["x", "y", "z"] {
            let key = Key::new("pods", namespace, name);
            store
                .create(&key, json!({}), CreateGuard::default())
                .await
                .unwrap();
        }
    }
    store
        .create(&Key::new("secrets", "a", "x"), json!({}), CreateGuard::default())
        .await
        .unwrap();
    let (all, revision) = store.list_all(&Scope::all("pods")).await.unwrap();
    let names: Vec<String> = all.iter().map(|object| object.key.to_string()).collect();
    assert_eq!(
        names,
        [
            "pods/a/x", "pods/a/y", "pods/a/z", "pods/b/x", "pods/b/y", "pods/b/z"
        ]
    );
    assert_eq!(revision, store.revision());
    let mut after: Option<(String, String)> = None;
    let mut sizes = Vec::new();
    loop {
        let from = after
            .as_ref()
            .map(|(namespace, name)| (namespace.as_str(), name.as_str()));
        let page = store.list(&Scope::all("pods"), from, 4).await.unwrap();
        sizes.push(page.objects.len());
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(sizes, [4, 2]);
    let one = Scope {
        name: Some("y".into()),
        ..Scope::namespace("pods", "b")
    };
    assert_eq!(store.list(&one, None, 10).await.unwrap().objects.len(), 1);
}

#[tokio::test]
async fn watches_see_every_event_once_in_order() {
    let Opened {
        store,
        directory: _directory,
    } = open(Bounds::default()).await;
    let first = create(&store, "a").await;
    let mut watch = store.watch(Scope::all("pods"), Some(first.revision - 1)).unwrap();
    let mut live = store.watch(Scope::namespace("pods", "default"), None).unwrap();
    let mut elsewhere = store.watch(Scope::namespace("pods", "other"), None).unwrap();
    let set = |value: &mut Value| {
        value["spec"]["x"] = 1.into();
        Ok::<_, ()>(())
    };
    store.update(&key("a"), set).await.unwrap();
    store.update(&key("a"), set).await.unwrap();
    store.delete(&key("a"), DeleteGuard::default()).await.unwrap();
    let mut seen = Vec::new();
    let mut last = 0;
    for _ in 0..3 {
        let event = watch.next().await.unwrap().unwrap();
        assert!(event.revision > last, "{event:?}");
        assert_eq!(
            event.previous.is_some(),
            event.kind != EventKind::Added,
            "{event:?}"
        );
        last = event.revision;
        seen.push(event.kind);
    }
    assert_eq!(seen, [EventKind::Added, EventKind::Modified, EventKind::Deleted]);
    assert_eq!(live.next().await.unwrap().unwrap().kind, EventKind::Modified);
    assert!(watch.try_next().is_none() && elsewhere.try_next().is_none());
    assert!(matches!(
        store.watch(Scope::all("pods"), Some(1 << 40)),
        Err(StoreError::Future { .. })
    ));
}

#[tokio::test]
async fn bounds_end_in_gone_and_never_in_silence() {
    let bounds = Bounds {
        events: 4,
        queue: 2,
        watches: 2,
        ..Bounds::default()
    };
    let Opened {
        store,
        directory: _directory,
    } = open(bounds).await;
    let first = create(&store, "first").await;
    let mut slow = store.watch(Scope::all("pods"), None).unwrap();
    for at in 0..6 {
        create(&store, &format!("p{at}")).await;
    }
    let late = store.watch(Scope::all("pods"), Some(first.revision));
    assert!(matches!(late, Err(StoreError::Gone { wanted, oldest }) if wanted < oldest));
    // What was queued before the cut still comes, then the end is told.
    assert!(slow.next().await.unwrap().is_ok());
    assert!(slow.next().await.unwrap().is_ok());
    assert!(matches!(slow.next().await, Some(Err(StoreError::Gone { .. }))));
    assert!(slow.next().await.is_none());
    drop(slow);
    let _one = store.watch(Scope::all("pods"), None).unwrap();
    let two = store.watch(Scope::all("pods"), None).unwrap();
    assert!(matches!(
        store.watch(Scope::all("pods"), None),
        Err(StoreError::TooManyWatches)
    ));
    drop(two);
    assert!(
        store.watch(Scope::all("pods"), None).is_ok(),
        "a dropped watch frees its place"
    );
}

#[tokio::test]
async fn history_is_bounded_in_bytes() {
    let Opened {
        store,
        directory: _directory,
    } = open(Bounds {
        bytes: 1000,
        ..Bounds::default()
    })
    .await;
    let first = create(&store, "first").await;
    assert!(store.watch(Scope::all("pods"), Some(first.revision - 1)).is_ok());
    let large = json!({ "x": "x".repeat(900) });
    store
        .create(&key("large"), large, CreateGuard::default())
        .await
        .unwrap();
    let old = store.watch(Scope::all("pods"), Some(first.revision - 1));
    assert!(matches!(old, Err(StoreError::Gone { .. })));
}

#[tokio::test]
async fn concurrent_updates_all_count() {
    let Opened {
        store,
        directory: _directory,
    } = open(Bounds::default()).await;
    create(&store, "counter").await;
    let add = |value: &mut Value| {
        let count = value["spec"]["count"].as_i64().unwrap_or(0);
        value["spec"]["count"] = (count + 1).into();
        Ok::<_, ()>(())
    };
    let key = key("counter");
    let updates = (0..8).map(|_| store.update(&key, add));
    let done = join_all(updates).await.into_iter().filter(Result::is_ok).count();
    let counter = store.get(&key).await.unwrap().unwrap();
    assert_eq!(
        counter.value["spec"]["count"], done,
        "as many as were acknowledged"
    );
    assert_eq!(done, 8);
}

#[tokio::test]
async fn values_by_bucket() {
    let Opened {
        store,
        directory: _directory,
    } = open(Bounds::default()).await;
    assert_eq!(store.kv_get("b", "k").await.unwrap(), None);
    store.kv_put("b", "k", b"1").await.unwrap();
    store.kv_put("b", "k", b"2").await.unwrap();
    store.kv_put("c", "k", b"3").await.unwrap();
    assert_eq!(
        store.kv_list("b").await.unwrap(),
        [("k".to_owned(), b"2".to_vec())]
    );
    assert!(store.kv_delete("b", "k").await.unwrap());
    assert!(!store.kv_delete("b", "k").await.unwrap());
    let huge = vec![0; limits::VALUE_BYTES + 1];
    assert!(matches!(
        store.kv_put("b", "k", &huge).await,
        Err(StoreError::TooLarge { .. })
    ));
}

/// The whole way from `kubectl apply` to Running has 100 ms; the store's part must stay small.
#[tokio::test]
async fn an_event_comes_soon_after_its_write_began() {
    let Opened {
        store,
        directory: _directory,
    } = open(Bounds::default()).await;
    let mut watch = store.watch(Scope::all("pods"), None).unwrap();
    let mut times = Vec::new();
    for at in 0..50 {
        let begun = Instant::now();
        create(&store, &format!("p{at}")).await;
        watch.next().await.unwrap().unwrap();
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    println!("create to event: median {:?}, 90th {:?}", times[25], times[45]);
    assert!(times[25] < Duration::from_millis(50), "{times:?}");
}

#[tokio::test]
async fn files_are_their_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let modes = || {
        let entries = std::fs::read_dir(directory.path()).unwrap();
        let modes = entries.map(|it| {
            let it = it.unwrap();
            let mode = it.metadata().unwrap().permissions().mode() & 0o777;
            (it.file_name().into_string().unwrap(), mode)
        });
        modes.collect::<std::collections::BTreeMap<_, _>>()
    };
    let private = ["db", "db-shm", "db-wal"]
        .map(|name| (name.to_owned(), 0o600))
        .into();
    // What an earlier version left open.
    for open in [false, true] {
        if open {
            for name in ["db", "db-wal", "db-shm"] {
                let path = directory.path().join(name);
                OpenOptions::new().create(true).append(true).open(&path).unwrap();
                std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            }
        }
        let store = SqliteStore::open(&path).await.unwrap();
        create(&store, if open { "b" } else { "a" }).await;
        assert_eq!(modes(), private, "open before: {open}");
        drop(store);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
