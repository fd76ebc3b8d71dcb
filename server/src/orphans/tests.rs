//! What goes with a node, over a real store.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::*;
use crate::store::{CreateGuard, Key, SqliteStore};

/// A fleet whose members have names that begin with `m`; one is still to come.
struct Members;

impl Fleet for Members {
    fn sign(&self, _message: &[u8]) -> [u8; 64] {
        [0; 64]
    }

    fn is_member(&self, node: &NodeName) -> bool {
        node.as_str().starts_with('m')
    }

    fn was_removed(&self, node: &NodeName) -> bool {
        !self.is_member(node) && node.as_str() != "to-come"
    }
}

async fn put(store: &dyn Store, key: Key, value: Value) {
    store.create(&key, value, CreateGuard::default()).await.unwrap();
}

fn pod(name: &str) -> Key {
    Key::new("pods", "default", name)
}

#[tokio::test]
async fn pods_and_leases_go_with_their_node() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&dir.path().join("db")).await.unwrap());
    for node in ["n1", "n2"] {
        put(&*store, Key::cluster("nodes", node), json!({})).await;
    }
    let leased = ["n1", "gone", "m1"];
    for node in leased {
        put(
            &*store,
            Key::new(lease::RESOURCE, lease::NAMESPACE, node),
            json!({}),
        )
        .await;
    }
    let deleted = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30 });
    let held = json!({ "finalizers": ["x/y"] });
    for (name, node, metadata) in [
        ("of-object", "n1", json!({})),
        ("of-second", "n2", json!({})),
        ("of-member", "m1", json!({})),
        ("of-to-come", "to-come", json!({})),
        ("unplaced", "", json!({})),
        ("orphan", "gone", json!({})),
        ("ending", "gone", deleted),
        ("held", "gone", held),
    ] {
        let value = json!({
            "metadata": metadata, "spec": { "nodeName": node }, "status": { "phase": "Running" },
        });
        put(&*store, pod(name), value).await;
    }
    let left = async |resource: &str| -> Vec<String> {
        let (objects, _) = store.list_all(&Scope::all(resource)).await.unwrap();
        objects.iter().map(|it| it.key.name.clone()).collect()
    };
    let until = async |resource: &str, expected: &[&str]| {
        let wait = timeout(Duration::from_secs(20), async {
            while left(resource).await != expected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let reached = wait.await.is_ok();
        assert!(
            reached,
            "{resource}: {:?}, not {expected:?}",
            left(resource).await
        );
    };
    let removed = Arc::new(Notify::new());
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(run(store.clone(), Arc::new(Members), removed.clone(), stopped));
    // At the start, and nothing else goes.
    until(
        "pods",
        &[
            "held",
            "of-member",
            "of-object",
            "of-second",
            "of-to-come",
            "unplaced",
        ],
    )
    .await;
    until(lease::RESOURCE, &["m1", "n1"]).await;
    let held = store.get(&pod("held")).await.unwrap().unwrap();
    assert_eq!(held.value["status"]["phase"], "Failed");
    assert_eq!(held.value["status"]["conditions"][0]["reason"], "DeletionByPodGC");
    assert!(held.value["metadata"]["deletionTimestamp"].is_string());
    // When a Node object goes.
    let guard = DeleteGuard::default;
    store.delete(&Key::cluster("nodes", "n1"), guard()).await.unwrap();
    until(
        "pods",
        &["held", "of-member", "of-second", "of-to-come", "unplaced"],
    )
    .await;
    until(lease::RESOURCE, &["m1"]).await;
    // When it is told so: a Pod that was bound to a node of another name.
    let late = json!({ "spec": { "nodeName": "gone" }, "status": {} });
    put(&*store, pod("late"), late).await;
    removed.notify_one();
    until(
        "pods",
        &["held", "of-member", "of-second", "of-to-come", "unplaced"],
    )
    .await;
    stop.send(true).unwrap();
    timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
}
