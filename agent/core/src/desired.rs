//! The conversation about the desired state: believe, gather, make durable, act.
//!
//! ```text
//!   Desired ──verify──▶ gathering ──all objects there──▶ staged ──Durable──▶ held ──▶ Applied, reconcile
//!                │           │
//!                │           └─ Need (what is missing)
//!                └─ refused: counted, reported, nothing changes; a wrong base says hello again
//! ```
//!
//! Always holds: a newer desired state builds on the last one staged; held is only what is durable.

use std::collections::BTreeMap;

use skiff_protocol::pod::Pod;
use skiff_protocol::sha256;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::{self, Desired, Index, Refused};
use skiff_protocol::wire::spec::{Object, ObjectKey};
use skiff_protocol::wire::{Down, Up};

use crate::effect::{Effect, Refusal};
use crate::machine::{Core, Now};
use crate::record::Record;

/// A verified index whose objects are not all there.
#[derive(Debug)]
pub(crate) struct Gathering {
    generation: u64,
    index: Index,
    got: BTreeMap<ObjectKey, Vec<u8>>,
}

/// A desired state on its way into the journal.
#[derive(Debug)]
pub(crate) struct Staged {
    token: u64,
    generation: u64,
    index: Index,
    records: Vec<Record>,
}

impl Core {
    pub(crate) fn down(&mut self, now: Now, message: Down) {
        match message {
            Down::Desired(desired) => self.desired(now, desired),
            Down::Objects { generation, objects } => {
                if self
                    .gathering
                    .as_ref()
                    .is_some_and(|it| it.generation == generation)
                {
                    self.gather(now, objects);
                }
            }
            Down::Resync => self.greet(),
            Down::NeedStatics { uids } => self.show_statics(&uids),
            // In step is what the node takes for granted; streams are served beside the core.
            Down::InStep { .. }
            | Down::StreamOpen(_)
            | Down::StreamCredit { .. }
            | Down::StreamClose { .. } => {}
        }
    }

    fn latest(&self) -> (u64, &Index) {
        self.staged
            .back()
            .map_or((self.durable.generation, &self.index), |it| {
                (it.generation, &it.index)
            })
    }

    fn desired(&mut self, now: Now, desired: Desired) {
        let (generation, held) = self.latest();
        let verified = desired::verify(
            &self.config.node,
            &self.config.server_key,
            generation,
            held,
            &desired,
        );
        let index = match verified {
            Ok(index) => index,
            Err(why) => {
                self.counters.desired_refused += 1;
                self.effects.push(Effect::Report(Refusal::Desired(why)));
                if matches!(why, Refused::Base { .. }) {
                    self.greet();
                }
                return;
            }
        };
        if desired.generation == self.durable.generation && self.staged.is_empty() {
            self.applied();
            return;
        }
        self.gathering = Some(Gathering {
            generation: desired.generation,
            index,
            got: BTreeMap::new(),
        });
        self.gather(now, desired.objects);
    }

    /// Takes objects that the index being gathered names; stages it once none is missing.
    fn gather(&mut self, now: Now, objects: Vec<Vec<u8>>) {
        let Some(mut gathering) = self.gathering.take() else {
            return;
        };
        for bytes in objects {
            let key = postcard::from_bytes::<Object>(&bytes)
                .ok()
                .map(|object| object.key());
            match key.filter(|key| gathering.index.0.get(key) == Some(&sha256(&bytes))) {
                Some(key) => drop(gathering.got.insert(key, bytes)),
                None => {
                    self.counters.objects_refused += 1;
                    self.effects.push(Effect::Report(Refusal::Object));
                }
            }
        }
        let held = self.latest().1;
        let missing =
            gathering.index.0.iter().filter(|(key, digest)| {
                !gathering.got.contains_key(*key) && held.0.get(*key) != Some(*digest)
            });
        let keys: Vec<ObjectKey> = missing.map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            self.stage(now, gathering);
        } else {
            self.send(Up::Need {
                generation: gathering.generation,
                keys,
            });
            self.gathering = Some(gathering);
        }
    }

    fn stage(&mut self, now: Now, gathering: Gathering) {
        let held = self.latest().1;
        let gone = held.0.keys().filter(|key| !gathering.index.0.contains_key(*key));
        let mut records: Vec<Record> = gone.cloned().map(Record::Remove).collect();
        for (key, bytes) in gathering.got {
            if held.0.get(&key) == gathering.index.0.get(&key) {
                // It is held as it is; writing it again would only wear the medium.
                continue;
            }
            if let ObjectKey::Pod(uid) = &key
                && !held.0.contains_key(&key)
            {
                records.push(Record::Accepted(*uid, now.unix));
            }
            records.push(Record::Put(key, bytes));
        }
        records.push(Record::Generation(gathering.generation));
        let token = self.append(now, records.clone());
        self.staged.push_back(Staged {
            token,
            generation: gathering.generation,
            index: gathering.index,
            records,
        });
    }

    /// A batch is in the journal: the desired state that it holds, if it holds one, is now what shall be.
    pub(crate) fn durable(&mut self, now: Now, token: u64) {
        if self.staged.front().is_none_or(|it| it.token != token) {
            return;
        }
        let Some(staged) = self.staged.pop_front() else {
            return;
        };
        let changed = self.note_volumes(&staged.records);
        staged
            .records
            .into_iter()
            .for_each(|record| self.durable.apply(record));
        self.index = staged.index;
        self.applied();
        self.follow_objects(now);
        self.refresh_volumes(&changed);
        self.retry_pulls(now, &changed);
    }

    /// The journal refused a batch. What was staged on it cannot stand either; the server hears what is held.
    pub(crate) fn not_durable(&mut self, token: u64) {
        self.counters.journal_refused += 1;
        if let Some(at) = self.staged.iter().position(|it| it.token == token) {
            self.staged.truncate(at);
            self.gathering = None;
            self.effects.push(Effect::Report(Refusal::Journal));
        }
    }

    fn applied(&mut self) {
        let generation = self.durable.generation;
        self.send(Up::Applied {
            generation,
            digest: self.index.digest(),
        });
    }

    /// The Pods of the objects held and of the node's own directory, with what is wrong with those that do not check.
    pub(crate) fn desired_pods(&self) -> BTreeMap<Uid, Result<Pod, String>> {
        let pods = self.durable.objects.iter().filter_map(|(key, bytes)| {
            let ObjectKey::Pod(uid) = key else { return None };
            let parsed = match postcard::from_bytes(bytes) {
                Ok(Object::Pod(spec)) if spec.uid == *uid => Pod::from_wire(spec).map_err(|causes| {
                    causes
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join("; ")
                }),
                _ => Err("the Pod does not decode".to_owned()),
            };
            Some((*uid, parsed))
        });
        pods.chain(self.desired_statics()).collect()
    }
}
