//! A server in virtual time: what it wants, what it has signed, and what it knows of its nodes.
//!
//! It keeps to the rules of the real one: a generation is used once and is greater than all that the node has told of;
//! a change goes as a delta while the node is in step, as a whole index otherwise; a gap in the statuses makes it ask.
//!
//! Always holds: generations and statuses survive a restart of the server; nothing else does.

use std::collections::{BTreeMap, BTreeSet};

use ring::signature::Ed25519KeyPair;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::{Change, Desired, Index, delta, signed_bytes};
use skiff_protocol::wire::spec::{ConfigData, Object, ObjectKey, PodSpec};
use skiff_protocol::wire::status::PodStatus;
use skiff_protocol::wire::{Down, Hello, Up};
use skiff_protocol::{Digest, sha256};
use skiff_tests::rng::Rng;

/// How long an answer may take, in milliseconds, and the longest that patience grows to.
const RETRY: u64 = 15_000;
const RETRY_CAP: u64 = 120_000;

/// The seed of the server's key.
pub(crate) const KEY: [u8; 32] = [7; 32];

/// What the server knows of one node; lost when it restarts, but for `last` and `statuses`.
#[derive(Default)]
pub(crate) struct Peer {
    /// The highest generation that was used. Survives.
    last: u64,
    /// Survives.
    pub(crate) statuses: BTreeMap<Uid, PodStatus>,
    here: bool,
    epoch: u64,
    sequence: Option<u64>,
    resync_asked: bool,
    announced: Option<(u64, Index)>,
    in_step: bool,
    pub(crate) applied: Option<(u64, Digest)>,
    deadline: Option<u64>,
    patience: u64,
}

pub(crate) struct Server {
    key: Ed25519KeyPair,
    pub(crate) names: Vec<NodeName>,
    pub(crate) peers: Vec<Peer>,
    /// By node.
    pub(crate) pods: Vec<BTreeMap<Uid, PodSpec>>,
    pub(crate) configs: BTreeMap<ObjectKey, ConfigData>,
    /// Everything ever signed, by node and generation: the truth that nodes are held against.
    pub(crate) signed: BTreeMap<(usize, u64), Digest>,
    /// What must never be seen.
    pub(crate) violations: Vec<String>,
}

impl Server {
    pub(crate) fn new(names: Vec<NodeName>) -> Self {
        let count = names.len();
        Self {
            key: Ed25519KeyPair::from_seed_unchecked(&KEY).expect("32 bytes are a seed"),
            names,
            peers: (0..count).map(|_| Peer::default()).collect(),
            pods: vec![BTreeMap::new(); count],
            configs: BTreeMap::new(),
            signed: (0..count)
                .map(|node| ((node, 0), Index::default().digest()))
                .collect(),
            violations: Vec::new(),
        }
    }

    /// The process ends and begins anew: it asks every node to say hello.
    pub(crate) fn restart(&mut self, now: u64) -> Vec<(usize, Down)> {
        for peer in &mut self.peers {
            *peer = Peer {
                last: peer.last,
                statuses: std::mem::take(&mut peer.statuses),
                ..Peer::default()
            };
        }
        (0..self.peers.len())
            .map(|node| (node, self.ask(node, now)))
            .collect()
    }

    /// The objects that a node shall have.
    pub(crate) fn objects(&self, node: usize) -> BTreeMap<ObjectKey, Vec<u8>> {
        let encode = |object: &Object| postcard::to_allocvec(object).expect("encodes without fail");
        let mut out = BTreeMap::new();
        for pod in self.pods[node].values() {
            out.insert(ObjectKey::Pod(pod.uid), encode(&Object::Pod(pod.clone())));
            for from in pod.all_containers().flat_map(|it| &it.env_from) {
                let key = config_key(from.secret, &from.name);
                if let Some(data) = self.configs.get(&key) {
                    let object = if from.secret {
                        Object::Secret(data.clone())
                    } else {
                        Object::ConfigMap(data.clone())
                    };
                    out.insert(key, encode(&object));
                }
            }
        }
        out
    }

    pub(crate) fn index(&self, node: usize) -> Index {
        let objects = self.objects(node);
        Index(
            objects
                .iter()
                .map(|(key, bytes)| (key.clone(), sha256(bytes)))
                .collect(),
        )
    }

    /// Whether the node has confirmed what it shall have.
    pub(crate) fn in_step(&self, node: usize) -> bool {
        let peer = &self.peers[node];
        let digest = self.index(node).digest();
        peer.here && peer.applied.is_some_and(|(_, applied)| applied == digest)
    }

    fn ask(&mut self, node: usize, now: u64) -> Down {
        let peer = &mut self.peers[node];
        peer.resync_asked = true;
        peer.patience = peer.patience.max(RETRY);
        peer.deadline = Some(now + peer.patience);
        Down::Resync
    }

    /// What has to be sent for the node to get what it shall have.
    pub(crate) fn announce(&mut self, node: usize, now: u64, rng: &mut Rng) -> Option<Down> {
        let objects = self.objects(node);
        let index = self.index(node);
        let digest = index.digest();
        let peer = &mut self.peers[node];
        let same = peer
            .announced
            .as_ref()
            .is_some_and(|(_, it)| it.digest() == digest);
        if !peer.here || (peer.in_step && same) {
            return None;
        }
        let generation = peer.last + 1;
        let change = match &peer.announced {
            Some((base, held)) if peer.in_step => delta(*base, held, &index),
            _ => Change::Full(index.clone()),
        };
        let keys: Vec<&ObjectKey> = match &change {
            Change::Full(index) => index.0.keys().collect(),
            Change::Delta { put, .. } => put.iter().map(|(key, _)| key).collect(),
        };
        let inline = keys.into_iter().filter(|_| rng.percent(60));
        let inline = inline.map(|key| objects[key].clone()).collect();
        let signed = signed_bytes(&self.names[node], generation, &digest);
        peer.last = generation;
        peer.in_step = true;
        peer.announced = Some((generation, index));
        peer.patience = peer.patience.max(RETRY);
        let due = now + peer.patience;
        peer.deadline = Some(peer.deadline.map_or(due, |at| at.min(due)));
        self.signed.insert((node, generation), digest);
        Some(Down::Desired(Desired {
            generation,
            signature: self.key.sign(&signed).as_ref().to_vec(),
            change,
            objects: inline,
        }))
    }

    /// A deadline may have passed.
    pub(crate) fn look(&mut self, node: usize, now: u64) -> Option<Down> {
        let peer = &mut self.peers[node];
        peer.deadline.filter(|at| *at <= now)?;
        peer.deadline = None;
        // A node that is away is asked too: the question, or its answer, may be what was lost.
        peer.patience = (peer.patience * 2).clamp(RETRY, RETRY_CAP);
        Some(self.ask(node, now))
    }

    /// Takes a message of a node; gives what is to be answered.
    pub(crate) fn up(&mut self, node: usize, up: Up, now: u64, rng: &mut Rng) -> Vec<Down> {
        let mut out = Vec::new();
        match up {
            Up::Hello(hello) => out.extend(self.hello(node, &hello)),
            Up::Need { generation, keys } => {
                let objects = self.objects(node);
                let wanted: Vec<Vec<u8>> = keys.iter().filter_map(|key| objects.get(key)).cloned().collect();
                for objects in wanted.chunks(2) {
                    out.push(Down::Objects {
                        generation,
                        objects: objects.to_vec(),
                    });
                }
            }
            Up::Applied { generation, digest } => self.applied(node, generation, digest),
            Up::Status {
                epoch,
                sequence,
                pods,
            } => out.extend(self.status(node, (epoch, sequence), pods, now)),
            Up::Bye { epoch } => {
                let peer = &mut self.peers[node];
                if epoch >= peer.epoch && peer.here {
                    peer.here = false;
                    peer.in_step = false;
                    peer.deadline = None;
                    // Word of the end of one connection can overtake the hello of the next.
                    out.push(self.ask(node, now));
                }
            }
            Up::Statics { .. }
            | Up::StaticPod { .. }
            | Up::Node(_)
            | Up::Events { .. }
            | Up::StreamData { .. }
            | Up::StreamEnd { .. }
            | Up::Images { .. } => {}
        }
        out.extend(self.announce(node, now, rng));
        out
    }

    fn hello(&mut self, node: usize, hello: &Hello) -> Option<Down> {
        let index = self.index(node);
        let peer = &mut self.peers[node];
        if hello.epoch < peer.epoch && hello.generation != 0 {
            return None;
        }
        if hello.epoch != peer.epoch {
            peer.sequence = (peer.epoch != 0 && hello.epoch > peer.epoch).then_some(1);
            peer.epoch = hello.epoch;
        }
        let newer_on_its_way = peer.announced.as_ref().is_some_and(|it| it.0 > hello.generation);
        peer.here = true;
        peer.resync_asked = false;
        peer.deadline = None;
        peer.in_step = false;
        peer.announced = None;
        peer.applied = Some((hello.generation, hello.desired_digest));
        peer.last = peer.last.max(hello.generation);
        if hello.desired_digest != index.digest() || newer_on_its_way {
            return None;
        }
        peer.announced = Some((hello.generation, index));
        peer.in_step = true;
        peer.patience = RETRY;
        Some(Down::InStep {
            generation: hello.generation,
        })
    }

    fn applied(&mut self, node: usize, generation: u64, digest: Digest) {
        let peer = &mut self.peers[node];
        if peer.applied.is_none_or(|(held, _)| held <= generation) {
            peer.applied = Some((generation, digest));
        }
        let Some((announced, index)) = &peer.announced else {
            return;
        };
        if *announced == generation && index.digest() == digest {
            peer.patience = RETRY;
            if !peer.resync_asked {
                peer.deadline = None;
            }
        } else if generation >= *announced {
            peer.last = peer.last.max(generation);
            peer.in_step = false;
        }
    }

    fn status(
        &mut self,
        node: usize,
        (epoch, sequence): (u64, u64),
        pods: Vec<PodStatus>,
        now: u64,
    ) -> Option<Down> {
        let peer = &mut self.peers[node];
        if epoch < peer.epoch {
            return None;
        }
        let news = epoch > peer.epoch;
        if news {
            peer.epoch = epoch;
            peer.sequence = Some(1);
        }
        // Hello does not say how many statuses went before it: after a restart of the server the first one that
        // comes may not be the first that was sent, so all are asked for once more.
        let unsure = peer.sequence.is_none();
        let expected = peer.sequence.unwrap_or(sequence);
        if sequence < expected {
            return None;
        }
        peer.sequence = Some(sequence + 1);
        let gap = sequence > expected || news || unsure;
        for status in pods {
            self.take(node, status);
        }
        if gap && !self.peers[node].resync_asked {
            return Some(self.ask(node, now));
        }
        None
    }

    fn take(&mut self, node: usize, status: PodStatus) {
        let uid = status.uid;
        let Some(pod) = self.pods[node].get(&uid) else {
            return;
        };
        if !status.gone {
            self.peers[node].statuses.insert(uid, status);
            return;
        }
        if pod.deletion_grace_seconds.is_none() {
            let why = format!("node {node} says that {uid} is gone, which nobody deleted");
            self.violations.push(why);
        }
        self.pods[node].remove(&uid);
        self.peers[node].statuses.remove(&uid);
    }

    /// What is known of Pods that are no more is forgotten.
    pub(crate) fn forget(&mut self, node: usize) {
        let wanted: BTreeSet<Uid> = self.pods[node].keys().copied().collect();
        self.peers[node].statuses.retain(|uid, _| wanted.contains(uid));
    }
}

pub(crate) fn config_key(secret: bool, name: &str) -> ObjectKey {
    let (namespace, name) = ("default".to_owned(), name.to_owned());
    if secret {
        ObjectKey::Secret(namespace, name)
    } else {
        ObjectKey::ConfigMap(namespace, name)
    }
}
