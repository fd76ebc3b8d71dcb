//! What the journal keeps, and how a state comes out of it.
//!
//! Always holds: records are appended in batches that are durable whole or not at all, so a fold over any prefix of
//! batches gives a state that was once true.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skiff_protocol::pod::Pod;
use skiff_protocol::sha256;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::Index;
use skiff_protocol::wire::spec::ObjectKey;
use skiff_protocol::wire::status::Terminated;

/// One durable fact. Variants are only appended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// The agent has started this many times.
    Epoch(u64),
    /// The time was at least this, in seconds since 1970.
    Time(i64),
    /// A desired object, as the server sent it.
    Put(ObjectKey, Vec<u8>),
    /// It is no longer desired.
    Remove(ObjectKey),
    /// The objects so far are the whole of this generation.
    Generation(u64),
    /// The Pod was accepted at this time, in seconds since 1970.
    Accepted(Uid, i64),
    /// What must be known of a container after a reboot.
    Container(Uid, ContainerRecord),
    /// The Pod was refused by this node, for good: reason and message.
    Rejected(Uid, String, String),
    /// The Pod failed as a whole, for good: reason and message.
    Failed(Uid, String, String),
    /// The Pod's `activeDeadlineSeconds` count from this time on, by the clock as it is now set.
    Counted(Uid, i64),
    /// This attempt of a container was started. It runs until a [`Record::Container`] says how it ended.
    Started(Uid, String, u32),
    /// That start came to nothing before anything ran.
    NotStarted(Uid, String),
    /// The static Pod of this file of the node's own directory; it takes the place of the one before it.
    Static(String, StaticPod),
    /// There is no such file any more, and nothing is left of its Pod.
    StaticGone(String),
}

impl Record {
    /// Whether the record's content must not lie in the clear.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        matches!(self, Self::Put(ObjectKey::Secret(..), _))
    }
}

/// A static Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticPod {
    /// Made from the node's name and the manifest: another manifest is another Pod.
    pub uid: Uid,
    /// Its namespace and its name.
    pub name: (String, String),
    /// The manifest as JSON, complete: namespace, name, uid and node are in it.
    pub manifest: Vec<u8>,
}

impl StaticPod {
    /// The Pod.
    ///
    /// # Errors
    /// What is wrong with the manifest, each cause with its field.
    pub fn parse(&self) -> Result<Pod, String> {
        let value = serde_json::from_slice(&self.manifest).map_err(|error| error.to_string())?;
        match Pod::parse(&value) {
            Ok(parsed) if parsed.pod.uid == self.uid => Ok(parsed.pod),
            Ok(_) => Err("metadata.uid: is another Pod's".to_owned()),
            Err(causes) => Err(causes
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")),
        }
    }
}

/// What must be known of a container after a reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its name.
    pub name: String,
    /// `restartCount`.
    pub restart_count: u32,
    /// How it last ended.
    pub last: Option<Terminated>,
    /// It ended for good: its restart policy starts it no more.
    pub done: bool,
    /// The crash back-off reached, in milliseconds.
    pub backoff_ms: u64,
}

/// The state that a journal's records add up to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// Starts of the agent so far.
    pub epoch: u64,
    /// The latest time that is known to have passed.
    pub time: i64,
    /// The generation held.
    pub generation: u64,
    /// Desired objects.
    pub objects: BTreeMap<ObjectKey, Vec<u8>>,
    /// When each Pod was accepted.
    pub accepted: BTreeMap<Uid, i64>,
    /// Per Pod and container name.
    pub containers: BTreeMap<(Uid, String), ContainerRecord>,
    /// Pods that this node refused: reason and message.
    pub rejected: BTreeMap<Uid, (String, String)>,
    /// Pods that failed as a whole: reason and message.
    pub failed: BTreeMap<Uid, (String, String)>,
    /// What a Pod's deadline counts from, where that is not when it was accepted.
    pub counted: BTreeMap<Uid, i64>,
    /// Attempts that were started and whose end is not known, per Pod and container name.
    pub started: BTreeMap<(Uid, String), u32>,
    /// Static Pods, by the names of their files.
    pub statics: BTreeMap<String, StaticPod>,
}

impl Recovered {
    /// Takes one more record, in the order of the journal.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Epoch(epoch) => self.epoch = epoch,
            Record::Time(time) => self.time = self.time.max(time),
            Record::Put(key, bytes) => drop(self.objects.insert(key, bytes)),
            Record::Remove(key) => {
                self.objects.remove(&key);
                if let ObjectKey::Pod(uid) = key {
                    self.forget(uid);
                }
            }
            Record::Generation(generation) => self.generation = generation,
            Record::Accepted(uid, at) => drop(self.accepted.insert(uid, at)),
            // The end of a container may be noted while the removal of its Pod is on its way.
            Record::Container(uid, record) => {
                if self.holds(uid) {
                    let key = (uid, record.name.clone());
                    self.started.remove(&key);
                    self.containers.insert(key, record);
                }
            }
            Record::Rejected(uid, reason, message) => {
                if self.holds(uid) {
                    self.rejected.insert(uid, (reason, message));
                }
            }
            Record::Failed(uid, reason, message) => {
                if self.holds(uid) {
                    self.failed.insert(uid, (reason, message));
                }
            }
            Record::Counted(uid, since) => {
                if self.holds(uid) {
                    self.counted.insert(uid, since);
                }
            }
            Record::Started(uid, name, attempt) => {
                if self.holds(uid) {
                    self.started.insert((uid, name), attempt);
                }
            }
            Record::NotStarted(uid, name) => drop(self.started.remove(&(uid, name))),
            Record::Static(file, pod) => {
                if let Some(before) = self.statics.insert(file, pod) {
                    self.forget(before.uid);
                }
            }
            Record::StaticGone(file) => {
                if let Some(before) = self.statics.remove(&file) {
                    self.forget(before.uid);
                }
            }
        }
    }

    /// Whether the Pod is one of those that shall be here.
    #[must_use]
    pub fn holds(&self, uid: Uid) -> bool {
        self.objects.contains_key(&ObjectKey::Pod(uid)) || self.statics.values().any(|it| it.uid == uid)
    }

    /// Forgets what was known of a Pod that is not held any more.
    fn forget(&mut self, uid: Uid) {
        if self.holds(uid) {
            return;
        }
        self.accepted.remove(&uid);
        self.rejected.remove(&uid);
        self.failed.remove(&uid);
        self.counted.remove(&uid);
        self.containers.retain(|(pod, _), _| *pod != uid);
        self.started.retain(|(pod, _), _| *pod != uid);
    }

    /// The least set of records that gives this state again.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut out = vec![Record::Epoch(self.epoch), Record::Time(self.time)];
        out.extend(
            self.objects
                .iter()
                .map(|(key, bytes)| Record::Put(key.clone(), bytes.clone())),
        );
        out.push(Record::Generation(self.generation));
        let statics = self.statics.iter();
        out.extend(statics.map(|(file, pod)| Record::Static(file.clone(), pod.clone())));
        out.extend(self.accepted.iter().map(|(uid, at)| Record::Accepted(*uid, *at)));
        out.extend(
            self.containers
                .iter()
                .map(|((uid, _), record)| Record::Container(*uid, record.clone())),
        );
        let rejected = self.rejected.iter();
        out.extend(
            rejected.map(|(uid, (reason, message))| Record::Rejected(*uid, reason.clone(), message.clone())),
        );
        let failed = self.failed.iter();
        out.extend(
            failed.map(|(uid, (reason, message))| Record::Failed(*uid, reason.clone(), message.clone())),
        );
        out.extend(
            self.counted
                .iter()
                .map(|(uid, since)| Record::Counted(*uid, *since)),
        );
        let started = self.started.iter();
        out.extend(started.map(|((uid, name), attempt)| Record::Started(*uid, name.clone(), *attempt)));
        out
    }

    /// The index of the objects held.
    #[must_use]
    pub fn index(&self) -> Index {
        Index(
            self.objects
                .iter()
                .map(|(key, bytes)| (key.clone(), sha256(bytes)))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_gives_the_same_state_again() {
        let uid = Uid([7; 16]);
        let mut state = Recovered::default();
        for record in [
            Record::Epoch(3),
            Record::Time(99),
            Record::Put(ObjectKey::Pod(uid), vec![1, 2]),
            Record::Put(ObjectKey::Secret("default".into(), "s".into()), vec![3]),
            Record::Generation(8),
            Record::Accepted(uid, 98),
            Record::Container(
                uid,
                ContainerRecord {
                    name: "a".into(),
                    restart_count: 2,
                    last: None,
                    done: true,
                    backoff_ms: 10_000,
                },
            ),
            Record::Rejected(uid, "OutOfcpu".into(), "why".into()),
            Record::Failed(uid, "Evicted".into(), "why".into()),
            Record::Counted(uid, 97),
            Record::Time(12),
        ] {
            state.apply(record);
        }
        assert_eq!(state.time, 99, "time never goes back");
        let mut again = Recovered::default();
        state.records().into_iter().for_each(|record| again.apply(record));
        assert_eq!(again, state);
        again.apply(Record::Remove(ObjectKey::Pod(uid)));
        assert!(
            again.accepted.is_empty()
                && again.containers.is_empty()
                && again.rejected.is_empty()
                && again.failed.is_empty()
                && again.counted.is_empty(),
            "a Pod's facts go with it"
        );
    }
}
