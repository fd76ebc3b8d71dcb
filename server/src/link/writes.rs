//! What nodes say, on its way into the store.
//!
//! What always holds: one job a node at a time, so that later words never lie under earlier ones; what waits is the
//! latest of each Pod, so it is bounded by the Pods a node may have; a job that the store failed is done again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::StreamExt as _;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::status::PodStatus;
use skiff_protocol::wire::{NodeImage, NodeInfo};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::compile::{Refusal, text};
use super::nodes::Liveness;
use super::{lease, limits, nodes, status};
use crate::api::{self, DeleteOptions, resources};
use crate::store::{CreateGuard, Key, Object, Store, StoreError, StoreExt, UpdateError};

/// The bucket of the key-value table that holds, for each node, the highest generation reserved for it.
const GENERATIONS: &str = "generations";

/// Pods of one node written at once; the store's writer makes few transactions of them.
const PODS_AT_ONCE: usize = 16;

/// What a Pod's status is to become.
#[derive(Clone, Debug)]
enum Word {
    /// What its node says.
    Status(PodStatus),
    /// That it runs nowhere.
    Refused(Refusal),
}

/// What is to be written of a Pod.
#[derive(Clone, Debug)]
struct PodWrite {
    key: Key,
    word: Option<Word>,
    /// Afterwards the node went out of contact.
    out_of_contact: bool,
    /// It has ended, and its node keeps it no more.
    left: bool,
}

impl PodWrite {
    /// Nothing yet.
    fn of(key: &Key) -> Self {
        Self {
            key: key.clone(),
            word: None,
            out_of_contact: false,
            left: false,
        }
    }

    /// Puts what could not be written under what has come since: the node's latest word ends what was before it.
    fn under(self, newer: Self) -> Self {
        Self {
            out_of_contact: newer.out_of_contact || (self.out_of_contact && newer.word.is_none()),
            word: newer.word.or(self.word),
            left: newer.left || self.left,
            key: newer.key,
        }
    }
}

/// What is to be written of a node and its Pods.
#[derive(Debug, Default)]
struct Pending {
    info: Option<NodeInfo>,
    images: Option<Vec<NodeImage>>,
    liveness: Option<Liveness>,
    lease: bool,
    host_ip: Option<IpAddr>,
    pods: BTreeMap<Uid, PodWrite>,
    /// Volumes of which the node has heard that their files are to go.
    dropped: BTreeSet<Key>,
    /// Manifests of static Pods that have no mirror yet.
    mirrors: BTreeMap<Uid, Vec<u8>>,
    /// Mirrors of static Pods that are no more, with their own uids.
    unmirrored: BTreeMap<Key, String>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.info.is_none()
            && self.images.is_none()
            && self.liveness.is_none()
            && !self.lease
            && self.pods.is_empty()
            && self.dropped.is_empty()
            && self.mirrors.is_empty()
            && self.unmirrored.is_empty()
    }

    fn add_pod(&mut self, uid: Uid, newer: PodWrite) {
        let write = match self.pods.remove(&uid) {
            Some(older) => older.under(newer),
            None => newer,
        };
        self.pods.insert(uid, write);
    }

    /// Puts what could not be written under what has come since.
    fn under(mut self, newer: Self) -> Self {
        for (uid, write) in newer.pods {
            self.add_pod(uid, write);
        }
        self.dropped.extend(newer.dropped);
        self.mirrors.extend(newer.mirrors);
        self.unmirrored.extend(newer.unmirrored);
        Self {
            info: newer.info.or(self.info),
            images: newer.images.or(self.images),
            liveness: newer.liveness.or(self.liveness),
            lease: newer.lease || self.lease,
            host_ip: newer.host_ip.or(self.host_ip),
            pods: self.pods,
            dropped: self.dropped,
            mirrors: self.mirrors,
            unmirrored: self.unmirrored,
        }
    }
}

#[derive(Default)]
struct Lane {
    busy: bool,
    pending: Pending,
}

/// A job's end.
pub(crate) enum Done {
    /// A node's words are in the store, or could not be written and wait again.
    Written(Box<Ended>),
    /// Generations are reserved up to the bound; nothing when the store failed.
    Reserved(NodeName, Option<u64>),
}

/// See [`Done::Written`].
pub(crate) struct Ended {
    node: NodeName,
    failed: Pending,
}

/// See the module.
pub(crate) struct Writes {
    store: Arc<dyn Store>,
    lanes: BTreeMap<NodeName, Lane>,
    jobs: JoinSet<Done>,
    slots: Arc<Semaphore>,
}

impl Writes {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            lanes: BTreeMap::new(),
            jobs: JoinSet::new(),
            slots: Arc::new(Semaphore::new(limits::WRITES)),
        }
    }

    /// What the node is, and that it is there.
    pub(crate) fn node(&mut self, node: &NodeName, info: Option<NodeInfo>, liveness: Liveness) {
        self.add(node, |pending| {
            pending.info = info.or(pending.info.take());
            pending.liveness = Some(liveness);
        });
    }

    /// Which images the node has.
    pub(crate) fn images(&mut self, node: &NodeName, images: Vec<NodeImage>) {
        self.add(node, |pending| pending.images = Some(images));
    }

    /// Something was heard of the node.
    pub(crate) fn lease(&mut self, node: &NodeName) {
        self.add(node, |pending| pending.lease = true);
    }

    /// What a Pod of the node is doing. The caller has seen that it is the node's.
    pub(crate) fn pod(&mut self, node: &NodeName, host_ip: Option<IpAddr>, key: &Key, said: PodStatus) {
        self.add(node, |pending| {
            pending.host_ip = host_ip;
            let (uid, word) = (said.uid, Some(Word::Status(said)));
            pending.add_pod(
                uid,
                PodWrite {
                    word,
                    ..PodWrite::of(key)
                },
            );
        });
    }

    /// The node will remove the files of this volume, whatever happens.
    pub(crate) fn dropped(&mut self, node: &NodeName, volume: &Key) {
        self.add(node, |pending| {
            pending.dropped.insert(volume.clone());
        });
    }

    /// A static Pod of the node is to be shown.
    pub(crate) fn mirror(&mut self, node: &NodeName, uid: Uid, manifest: Vec<u8>) {
        self.add(node, |pending| {
            pending.mirrors.insert(uid, manifest);
        });
    }

    /// The node has the static Pod of this mirror no more.
    pub(crate) fn unmirror(&mut self, node: &NodeName, mirror: &Object) {
        self.add(node, |pending| {
            pending.unmirrored.insert(mirror.key.clone(), mirror.uid.clone());
        });
    }

    /// A Pod of the node cannot run there.
    pub(crate) fn refused(&mut self, node: &NodeName, uid: Uid, key: &Key, refusal: Refusal) {
        let word = Some(Word::Refused(refusal));
        self.add(node, |pending| {
            pending.add_pod(
                uid,
                PodWrite {
                    word,
                    ..PodWrite::of(key)
                },
            );
        });
    }

    /// Nothing is known of the Pod's node any more.
    pub(crate) fn out_of_contact(&mut self, node: &NodeName, uid: Uid, key: &Key) {
        let out_of_contact = true;
        self.add(node, |pending| {
            pending.add_pod(
                uid,
                PodWrite {
                    out_of_contact,
                    ..PodWrite::of(key)
                },
            );
        });
    }

    /// A Pod that has ended is kept by its node no more.
    pub(crate) fn left(&mut self, node: &NodeName, uid: Uid, key: &Key) {
        let left = true;
        self.add(node, |pending| {
            pending.add_pod(
                uid,
                PodWrite {
                    left,
                    ..PodWrite::of(key)
                },
            );
        });
    }

    /// Reserves generations.
    pub(crate) fn reserve(&mut self, node: &NodeName, bound: u64) {
        let (store, node) = (self.store.clone(), node.clone());
        self.jobs.spawn(async move {
            let value = bound.to_string();
            match store.kv_put(GENERATIONS, node.as_str(), value.as_bytes()).await {
                Ok(()) => Done::Reserved(node, Some(bound)),
                Err(error) => {
                    tracing::warn!(%node, %error, "generations could not be reserved; trying again");
                    Done::Reserved(node, None)
                }
            }
        });
    }

    /// A job's end; waits for ever while there are none. Cancelling the wait loses nothing.
    pub(crate) async fn next(&mut self) -> Done {
        loop {
            match self.jobs.join_next().await {
                Some(Ok(done)) => return done,
                Some(Err(error)) => tracing::error!(%error, "a write ended with a panic"),
                None => std::future::pending().await,
            }
        }
    }

    /// A node's job has ended: what came meanwhile is written next.
    pub(crate) fn ended(&mut self, ended: Ended) {
        let Ended { node, failed } = ended;
        if let Some(lane) = self.lanes.get_mut(&node) {
            lane.busy = false;
            let newer = std::mem::take(&mut lane.pending);
            lane.pending = failed.under(newer);
        }
        self.start(&node);
    }

    /// Waits until everything that was said is stored.
    pub(crate) async fn drain(&mut self) {
        while let Some(done) = self.jobs.join_next().await {
            if let Ok(Done::Written(ended)) = done
                && ended.failed.is_empty()
            {
                self.ended(*ended);
            }
        }
    }

    fn add(&mut self, node: &NodeName, change: impl FnOnce(&mut Pending)) {
        change(&mut self.lanes.entry(node.clone()).or_default().pending);
        self.start(node);
    }

    fn start(&mut self, node: &NodeName) {
        let Some(lane) = self.lanes.get_mut(node) else {
            return;
        };
        if lane.busy {
            return;
        }
        if lane.pending.is_empty() {
            self.lanes.remove(node);
            return;
        }
        lane.busy = true;
        let pending = std::mem::take(&mut lane.pending);
        let (store, slots, node) = (self.store.clone(), self.slots.clone(), node.clone());
        self.jobs.spawn(async move {
            // The semaphore is never closed.
            let _slot = slots.acquire_owned().await;
            let failed = write(&*store, &node, pending).await;
            if !failed.is_empty() {
                tokio::time::sleep(crate::RETRY).await;
            }
            Done::Written(Box::new(Ended { node, failed }))
        });
    }
}

/// The highest generation reserved for each node.
pub(crate) async fn generations(store: &dyn Store) -> Result<BTreeMap<String, u64>, StoreError> {
    let stored = store.kv_list(GENERATIONS).await?;
    let number = |(node, value): (String, Vec<u8>)| {
        // A damaged number must not let a generation be used twice: the node will tell which it holds.
        let number = std::str::from_utf8(&value)
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|number| *number <= 2 * limits::GENERATION);
        Some((node, number?))
    };
    Ok(stored.into_iter().filter_map(number).collect())
}

/// Writes; gives back what the store failed to take.
async fn write(store: &dyn Store, node: &NodeName, pending: Pending) -> Pending {
    let mut failed = Pending {
        host_ip: pending.host_ip,
        ..Pending::default()
    };
    let says = pending.info.is_some() || pending.images.is_some() || pending.liveness.is_some();
    if says && let Err(error) = write_node(store, node, &pending).await {
        tracing::warn!(%node, %error, "the node's state could not be stored");
        if again(&error) {
            failed.info = pending.info;
            failed.images = pending.images;
            failed.liveness = pending.liveness;
        }
    }
    if pending.lease
        && let Err(error) = lease::renew(store, node).await
    {
        // The next renewal comes by itself.
        tracing::warn!(%node, %error, "the node's Lease could not be renewed");
    }
    for volume in pending.dropped {
        if let Err(error) = api::volume_dropped(store, &volume).await {
            tracing::warn!(%node, %volume, %error, "the volume could not be let go");
            if again(&error.into()) {
                failed.dropped.insert(volume);
            }
        }
    }
    for (key, uid) in pending.unmirrored {
        if let Err(error) = remove(store, &key, &uid).await {
            tracing::warn!(%node, pod = %key, %error, "the mirror of a static Pod could not be removed");
            if again(&error) {
                failed.unmirrored.insert(key, uid);
            }
        }
    }
    for (uid, manifest) in pending.mirrors {
        if let Err(error) = api::make_mirror(store, node, uid, &manifest).await {
            tracing::warn!(%node, static_pod = %uid, %error, "the static Pod cannot be shown");
            if again(&error.into()) {
                failed.mirrors.insert(uid, manifest);
            }
        }
    }
    let host_ip = pending.host_ip;
    let jobs = pending.pods.into_iter().map(|(uid, what)| async move {
        let result = write_pod(store, node, &uid, &what, host_ip).await;
        let error = result.err()?;
        tracing::warn!(%node, pod = %what.key, %error, "the Pod's status could not be stored");
        again(&error).then_some((uid, what))
    });
    let left = futures_util::stream::iter(jobs).buffer_unordered(PODS_AT_ONCE);
    failed.pods = left.filter_map(std::future::ready).collect().await;
    failed
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Api(#[from] api::ApiError),
}

fn again(error: &WriteError) -> bool {
    match error {
        WriteError::Store(error) => matches!(error, StoreError::Database { .. } | StoreError::Conflict(_)),
        WriteError::Api(error) => error.code >= 500,
    }
}

async fn write_node(store: &dyn Store, name: &NodeName, pending: &Pending) -> Result<(), WriteError> {
    let key = Key::cluster("nodes", name.as_str());
    let change = |node: &mut serde_json::Value| {
        let now = crate::now();
        if let Some(info) = &pending.info {
            nodes::describe(node, name, info, &now);
        }
        if let Some(images) = &pending.images {
            nodes::set_images(node, images);
        }
        if let Some(liveness) = &pending.liveness {
            nodes::set_liveness(node, liveness, &now);
        }
    };
    for _ in 0..2 {
        let updated = store
            .update::<_, std::convert::Infallible>(&key, |node| {
                change(node);
                Ok(())
            })
            .await;
        match updated {
            Err(UpdateError::Store(StoreError::NotFound(_))) => {}
            Err(UpdateError::Store(error)) => return Err(error.into()),
            Err(UpdateError::Refused(never)) => match never {},
            Ok(_) => return Ok(()),
        }
        if pending.info.is_none() {
            // Somebody removed the object of a node that is not there.
            return Ok(());
        }
        let mut node = nodes::new_node(name);
        change(&mut node);
        match store.create(&key, node, CreateGuard::default()).await {
            Err(StoreError::Exists(_)) => {}
            other => return Ok(other.map(drop)?),
        }
    }
    Err(StoreError::Conflict(key).into())
}

/// Not this node's Pod, or no longer: then there is nothing to write.
struct NotIts;

async fn write_pod(
    store: &dyn Store,
    node: &NodeName,
    uid: &Uid,
    what: &PodWrite,
    host_ip: Option<IpAddr>,
) -> Result<(), WriteError> {
    let (uid, key) = (uid.to_string(), &what.key);
    if let Some(Word::Status(said)) = &what.word
        && said.gone
        && let Some(pod) = store.get(key).await?
        && pod.uid == uid
        && is_bound_and_deleted(&pod, node)
    {
        return remove(store, key, &uid).await;
    }
    let result = store
        .update(key, |pod| {
            let own = || text(pod, "/metadata/uid") == uid;
            let its = api::mirrored(pod).map_or_else(own, |it| it.to_string() == uid);
            let its = its && text(pod, "/spec/nodeName") == node.as_str();
            if !its {
                return Err(NotIts);
            }
            let now = crate::now();
            match &what.word {
                Some(Word::Status(said)) => status::apply(pod, said, host_ip, &now),
                Some(Word::Refused(refusal)) => status::refuse(pod, refusal),
                None => {}
            }
            if what.out_of_contact {
                status::out_of_contact(pod, &now);
            }
            if what.left {
                status::leave(pod, &now);
            }
            Ok(())
        })
        .await;
    match result {
        Ok(_) | Err(UpdateError::Refused(NotIts) | UpdateError::Store(StoreError::NotFound(_))) => Ok(()),
        Err(UpdateError::Store(error)) => Err(error.into()),
    }
}

fn is_bound_and_deleted(pod: &Object, node: &NodeName) -> bool {
    let deleted = pod.value["metadata"]
        .get("deletionTimestamp")
        .is_some_and(|it| !it.is_null());
    deleted && text(&pod.value, "/spec/nodeName") == node.as_str()
}

/// Removes a deleted Pod that has ended. While finalizers hold it, it only counts as ended: whoever removes the last
/// of them removes it.
async fn remove(store: &dyn Store, key: &Key, uid: &str) -> Result<(), WriteError> {
    let options = DeleteOptions {
        grace_seconds: Some(0),
        uid: Some(uid.to_owned()),
        revision: None,
    };
    match api::delete(store, resources::pods(), key, &options).await {
        Ok(_) => Ok(()),
        // It went by itself, or another has its name now.
        Err(error) if matches!(error.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use skiff_protocol::wire::status::Phase;

    use super::*;

    /// A later word ends what was before it; going out of contact does not undo a word that is still to be written.
    #[test]
    fn words_and_silence_are_written_in_their_order() {
        let uid = Uid([1; 16]);
        let key = Key::new("pods", "default", "web");
        let word = |phase| PodWrite {
            word: Some(Word::Status(PodStatus {
                uid,
                phase,
                ..PodStatus::default()
            })),
            ..PodWrite::of(&key)
        };
        let silence = || PodWrite {
            out_of_contact: true,
            ..PodWrite::of(&key)
        };
        let check = |writes: Vec<PodWrite>, phase: Option<Phase>, silent: bool| {
            let mut pending = Pending::default();
            for write in writes {
                let mut newer = Pending::default();
                newer.add_pod(uid, write);
                pending = pending.under(newer);
            }
            let write = &pending.pods[&uid];
            let said = match &write.word {
                Some(Word::Status(said)) => Some(said.phase),
                _ => None,
            };
            assert_eq!((said, write.out_of_contact), (phase, silent));
        };
        check(vec![silence()], None, true);
        check(vec![word(Phase::Running), silence()], Some(Phase::Running), true);
        check(
            vec![word(Phase::Running), silence(), word(Phase::Failed)],
            Some(Phase::Failed),
            false,
        );
        check(
            vec![word(Phase::Pending), word(Phase::Running), silence(), silence()],
            Some(Phase::Running),
            true,
        );
    }
}
