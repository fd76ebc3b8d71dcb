//! Claims from their making to their end, with the tasks that see to them and a real store.

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use crate::api::{self, DeleteOptions, resources};
use crate::events::Recorder;
use crate::store::{CreateGuard, SqliteStore, Store, StoreExt};

use super::*;

pub(in super::super) struct Bed {
    store: Arc<dyn Store>,
    stop: watch::Sender<bool>,
    _directory: tempfile::TempDir,
}

impl Bed {
    /// A store with two nodes, placement, and the care for volumes.
    pub(in super::super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(
            SqliteStore::open(&directory.path().join("skiff.db"))
                .await
                .unwrap(),
        );
        api::make_namespaces(&*store).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let (events, _) = Recorder::start(store.clone());
        tokio::spawn(super::super::run(store.clone(), events, stopped.clone()));
        tokio::spawn(api::housekeeping(store.clone(), stopped));
        let bed = Self {
            store,
            stop,
            _directory: directory,
        };
        for name in ["a", "b"] {
            let labels = json!({ "kubernetes.io/hostname": name });
            let node = json!({ "metadata": { "name": name, "labels": labels }, "spec": {}, "status": {
                "allocatable": { "cpu": "1", "memory": "1Gi", "pods": "10" },
                "conditions": [{ "type": "Ready", "status": "True" }] } });
            bed.create(&Key::cluster("nodes", name), node).await;
        }
        bed
    }

    pub(in super::super) async fn create(&self, key: &Key, value: Value) {
        self.store
            .create(key, value, CreateGuard::default())
            .await
            .unwrap();
    }

    async fn claim(&self, name: &str, class: &str) -> Key {
        let key = resources::claims().key("default", name);
        let mut claim = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": { "requests": { "storage": "1Gi" } } } });
        resources::claims().strategy.prepare_create(&mut claim);
        self.create(&key, claim).await;
        key
    }

    async fn pod(&self, name: &str, node: &str, claim: &str) -> Key {
        let key = resources::pods().key("default", name);
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
            "spec": { "containers": [{ "name": "a", "resources": { "requests": { "cpu": "600m" } } }],
                "nodeName": node,
                "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": claim } }] },
            "status": { "phase": "Pending" } });
        self.create(&key, pod).await;
        key
    }

    pub(in super::super) async fn change(&self, key: &Key, change: impl Fn(&mut Value) + Send + Sync) {
        let changed = self.store.update::<_, std::convert::Infallible>(key, |value| {
            change(value);
            Ok(())
        });
        changed.await.unwrap();
    }

    pub(in super::super) async fn delete(&self, key: &Key) {
        let resource = resources::of_key(key).unwrap();
        let options = DeleteOptions {
            grace_seconds: Some(0),
            ..DeleteOptions::default()
        };
        api::delete(&*self.store, resource, key, &options).await.unwrap();
    }

    /// Waits until the object is as described; nothing stands for its absence.
    pub(in super::super) async fn wait(
        &self,
        key: &Key,
        what: &str,
        is: impl Fn(Option<&Value>) -> bool,
    ) -> Value {
        let mut last = None;
        for _ in 0..500 {
            last = self.store.get(key).await.unwrap();
            if is(last.as_ref().map(|it| &it.value)) {
                return last.map(|it| it.value.clone()).unwrap_or_default();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{key} is not {what}: {last:?}");
    }

    async fn phase(&self, key: &Key, phase: &str) -> Value {
        let is = |it: Option<&Value>| it.is_some_and(|it| it["status"]["phase"] == phase);
        self.wait(key, phase, is).await
    }

    /// The volume waits until its node has heard that the files are to go, and then goes.
    async fn dropped(&self, key: &Key) {
        self.wait(key, "to be dropped", |it| it.is_some_and(api::drops))
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(
            self.store.get(key).await.unwrap().is_some(),
            "{key} went unheard of"
        );
        api::volume_dropped(&*self.store, key).await.unwrap();
        self.gone(key).await;
    }

    async fn gone(&self, key: &Key) {
        self.wait(key, "gone", |it| it.is_none()).await;
    }

    async fn refused(&self, key: &Key, why: &str) {
        let is = |it: Option<&Value>| it.is_some_and(|it| it["status"]["conditions"][0]["message"] == why);
        self.wait(key, why, is).await;
    }
}

fn volume_key(claim: &Value) -> Key {
    Key::cluster("persistentvolumes", api::volume_of(claim))
}

#[tokio::test]
async fn from_the_first_pod_to_the_last() {
    let bed = Bed::new().await;
    let pod = bed.pod("web", "", "data").await;
    bed.refused(
        &pod,
        "0/2 nodes are available: persistentvolumeclaim \"data\" not found.",
    )
    .await;
    let claim = bed.claim("data", "node-local").await;
    let bound = bed.phase(&claim, "Bound").await;
    let uid = bound["metadata"]["uid"].as_str().unwrap();
    assert_eq!(api::volume_of(&bound), format!("pvc-{uid}"));
    assert_eq!(
        bound["metadata"]["annotations"]["volume.kubernetes.io/selected-node"],
        "a"
    );
    assert_eq!(bound["status"]["capacity"]["storage"], "1Gi");
    let placed = |it: Option<&Value>| it.is_some_and(|it| it["spec"]["nodeName"] == "a");
    bed.wait(&pod, "on a", placed).await;
    let volume = volume_key(&bound);
    let kept = bed.phase(&volume, "Bound").await;
    assert_eq!(api::node_of(&kept), Some("a"));
    // The node of its volume has no room for a second such Pod, and no other node has the volume.
    let second = bed.pod("more", "", "data").await;
    bed.refused(
        &second,
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had volume node affinity conflict.",
    )
    .await;
    bed.delete(&second).await;
    bed.delete(&claim).await;
    bed.delete(&volume).await;
    let third = bed.pod("late", "", "data").await;
    bed.refused(
        &third,
        "0/2 nodes are available: persistentvolumeclaim \"data\" is being deleted.",
    )
    .await;
    for key in [&claim, &volume] {
        let held = |it: Option<&Value>| it.is_some_and(|it| it["metadata"]["deletionTimestamp"].is_string());
        bed.wait(key, "Terminating", held).await;
    }
    bed.delete(&pod).await;
    bed.gone(&claim).await;
    bed.dropped(&volume).await;
    drop(bed.stop);
}

#[tokio::test]
async fn what_becomes_of_a_volume() {
    let bed = Bed::new().await;
    let class =
        json!({ "metadata": { "name": "keep" }, "provisioner": api::PROVISIONER, "reclaimPolicy": "Retain" });
    bed.create(&Key::cluster("storageclasses.storage.k8s.io", "keep"), class)
        .await;
    let mut volumes = Vec::new();
    for (name, class) in [("kept", "keep"), ("lost", "node-local")] {
        let claim = bed.claim(name, class).await;
        // Whoever names the node leaves nothing to place, and gets the volume there.
        let pod = bed.pod(name, "b", name).await;
        let bound = bed.phase(&claim, "Bound").await;
        let volume = volume_key(&bound);
        assert_eq!(api::node_of(&bed.phase(&volume, "Bound").await), Some("b"));
        // A Pod that has ended holds nothing.
        bed.store
            .update::<_, std::convert::Infallible>(&pod, |pod| {
                pod["status"]["phase"] = "Succeeded".into();
                Ok(())
            })
            .await
            .unwrap();
        bed.delete(&claim).await;
        bed.gone(&claim).await;
        volumes.push(volume);
    }
    bed.phase(&volumes[0], "Released").await;
    api::volume_dropped(&*bed.store, &volumes[0]).await.unwrap();
    bed.dropped(&volumes[1]).await;
    bed.delete(&volumes[0]).await;
    bed.gone(&volumes[0]).await;
}

#[tokio::test]
async fn a_volume_does_not_wait_for_a_node_that_is_no_more_nor_for_a_policy_that_was_changed() {
    let bed = Bed::new().await;
    let mut volumes = Vec::new();
    for (name, node) in [("one", "a"), ("two", "b")] {
        let claim = bed.claim(name, "node-local").await;
        let pod = bed.pod(name, node, name).await;
        let bound = bed.phase(&claim, "Bound").await;
        bed.delete(&pod).await;
        bed.delete(&claim).await;
        bed.gone(&claim).await;
        let volume = volume_key(&bound);
        bed.wait(&volume, "to be dropped", |it| it.is_some_and(api::drops))
            .await;
        volumes.push(volume);
    }
    bed.delete(&Key::cluster("nodes", "a")).await;
    bed.gone(&volumes[0]).await;
    bed.change(&volumes[1], |volume| {
        volume["spec"]["persistentVolumeReclaimPolicy"] = "Retain".into();
    })
    .await;
    bed.gone(&volumes[1]).await;
}

#[tokio::test]
async fn a_claim_that_names_a_volume_gets_no_other() {
    let bed = Bed::new().await;
    let first = bed.claim("first", "node-local").await;
    bed.pod("first", "a", "first").await;
    let volume = volume_key(&bed.phase(&first, "Bound").await);
    let key = resources::claims().key("default", "second");
    let mut claim = bed.store.get(&first).await.unwrap().unwrap().value.clone();
    claim["metadata"] = json!({ "name": "second", "namespace": "default" });
    claim["spec"]["volumeName"] = volume.name.clone().into();
    claim["status"] = json!({ "phase": "Pending" });
    bed.create(&key, claim).await;
    let pod = bed.pod("second", "", "second").await;
    let why = format!(
        "0/2 nodes are available: persistentvolumeclaim \"second\" names persistentvolume {:?}, which is another claim's or \
         does not fit.",
        volume.name
    );
    bed.refused(&pod, &why).await;
    assert_eq!(
        api::bind_claim(&*bed.store, &key, "a").await.unwrap_err().code,
        409
    );
    let all = bed
        .store
        .list_all(&crate::store::Scope::all("persistentvolumes"))
        .await
        .unwrap();
    assert_eq!(all.0.len(), 1);
}

#[tokio::test]
async fn claims_grow_and_classes_must_be_there() {
    let bed = Bed::new().await;
    let claim = bed.claim("data", "nothing").await;
    let pod = bed.pod("web", "", "data").await;
    bed.refused(
        &pod,
        "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
    )
    .await;
    let class = json!({ "metadata": { "name": "nothing" }, "provisioner": api::PROVISIONER, "reclaimPolicy": "Delete" });
    bed.create(&Key::cluster("storageclasses.storage.k8s.io", "nothing"), class)
        .await;
    let bound = bed.phase(&claim, "Bound").await;
    bed.store
        .update::<_, std::convert::Infallible>(&claim, |claim| {
            claim["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
            Ok(())
        })
        .await
        .unwrap();
    let grown = |it: Option<&Value>| it.is_some_and(|it| it["status"]["capacity"]["storage"] == "2Gi");
    bed.wait(&claim, "grown", grown).await;
    let volume = bed.store.get(&volume_key(&bound)).await.unwrap().unwrap();
    assert_eq!(volume.value["spec"]["capacity"]["storage"], "2Gi");
}

#[tokio::test]
async fn a_volume_made_beforehand_is_taken_and_a_lost_one_is_named() {
    let bed = Bed::new().await;
    let volume = json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "old" },
        "spec": { "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "5Gi" }, "storageClassName": "by-hand",
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": ["b"] } ] }] } } },
        "status": { "phase": "Pending" } });
    let key = Key::cluster("persistentvolumes", "old");
    bed.create(&key, volume).await;
    bed.phase(&key, "Available").await;
    let claim = bed.claim("data", "by-hand").await;
    let pod = bed.pod("web", "", "data").await;
    let bound = bed.phase(&claim, "Bound").await;
    assert_eq!(
        (api::volume_of(&bound), &bound["status"]["capacity"]["storage"]),
        ("old", &json!("5Gi"))
    );
    let placed = |it: Option<&Value>| it.is_some_and(|it| it["spec"]["nodeName"] == "b");
    bed.wait(&pod, "on b", placed).await;
    bed.store.delete(&key, Default::default()).await.unwrap();
    bed.phase(&claim, "Lost").await;
    let late = bed.pod("late", "", "data").await;
    bed.refused(
        &late,
        "0/2 nodes are available: persistentvolumeclaim \"data\" bound to non-existent persistentvolume \"old\".",
    )
    .await;
}
