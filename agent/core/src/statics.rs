//! Static Pods: manifests of the node's own directory, which run whether or not there is a server.
//!
//! ```text
//!   manifest read ──▶ journal ──Durable──▶ accepted, as any other Pod
//!        │ changed or gone
//!        ▼
//!   the Pod ends within its grace ──removed──▶ journal: forgotten, and the changed one in its place
//! ```
//!
//! The journal keeps the manifest itself, so that a directory that a power cut has damaged ends nothing: a file that cannot
//! be read means what it last meant. Source: Kubernetes documentation, "Create static Pods".
//!
//! Always holds: two static Pods of one name never run at once; a manifest that has not changed changes nothing; no
//! server's word ends a static Pod; none is evicted because the node is short of something.

use std::collections::BTreeMap;

use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::Up;

use crate::admission::{self, Standing};
use crate::machine::{Core, Now};
use crate::record::{Record, StaticPod};
use crate::state::Step;

/// Milliseconds until what the journal did not take is told it again.
const AGAIN: u64 = 30_000;

/// What the directory says, by the names of its files: `None` where a file is there and says nothing that can be used.
pub type Manifests = BTreeMap<String, Option<StaticPod>>;

/// The directory, and how far the journal follows it.
#[derive(Debug, Default)]
pub(crate) struct Statics {
    /// What it said last; nothing before it was read.
    asked: Option<Manifests>,
    /// It is known what runs: before that nothing can be said to have left.
    pub(crate) begun: bool,
    /// The server was told of some since this start.
    told: bool,
    /// A batch that is on its way into the journal.
    staged: Option<(u64, Vec<Record>)>,
    /// The journal refused the last one; tried again at this time.
    pub(crate) again: Option<u64>,
}

impl Core {
    /// The directory was read.
    pub(crate) fn statics_read(&mut self, now: Now, manifests: Manifests) {
        self.statics.asked = Some(manifests);
        self.statics.again = None;
        self.follow_statics(now);
    }

    /// Brings the journal a step nearer to the directory, and the Pods to the journal.
    pub(crate) fn follow_statics(&mut self, now: Now) {
        if !self.statics.begun
            || self.statics.staged.is_some()
            || self.statics.again.is_some_and(|at| at > now.mono)
        {
            return;
        }
        self.statics.again = None;
        let Some(asked) = &self.statics.asked else { return };
        let held = &self.durable.statics;
        let stays = |file: &String, pod: &StaticPod| {
            asked
                .get(file)
                .is_some_and(|it| it.as_ref().is_none_or(|it| it.uid == pod.uid))
        };
        let moved = |pod: &StaticPod| asked.values().flatten().any(|it| it.uid == pod.uid);
        // Of those that are to go, the ones that have left nothing behind, or go on under another file's name.
        let gone: Vec<&String> = held
            .iter()
            .filter(|(file, pod)| !stays(file, pod))
            .filter(|(_, pod)| moved(pod) || self.has_left(pod.uid))
            .map(|(file, _)| file)
            .collect();
        let in_the_way = |name: &(String, String)| {
            held.iter()
                .any(|(file, pod)| pod.name == *name && !gone.contains(&file))
        };
        let come = asked.iter().filter_map(|(file, pod)| Some((file, pod.as_ref()?)));
        let come = come.filter(|(file, pod)| match held.get(*file) {
            Some(before) => before.uid != pod.uid && gone.contains(file) && !in_the_way(&pod.name),
            None => !in_the_way(&pod.name),
        });
        // Those that only moved come first, so that nothing of them is forgotten when another takes their file.
        let (moved, new): (Vec<_>, Vec<_>) = come.partition(|(_, pod)| self.durable.holds(pod.uid));
        let mut records = Vec::new();
        for (file, pod) in moved.into_iter().chain(new) {
            records.push(Record::Static(file.clone(), pod.clone()));
            if !self.durable.holds(pod.uid) {
                records.push(Record::Accepted(pod.uid, now.unix));
            }
        }
        let replaced = |file: &String| {
            records
                .iter()
                .any(|it| matches!(it, Record::Static(name, _) if name == file))
        };
        let only_gone: Vec<Record> = gone
            .into_iter()
            .filter(|file| !replaced(file))
            .map(|file| Record::StaticGone(file.clone()))
            .collect();
        records.extend(only_gone);
        if !records.is_empty() {
            let token = self.append(now, records.clone());
            self.statics.staged = Some((token, records));
        }
        self.end_statics(now);
    }

    /// The journal answered for a batch: if it is one of static Pods, they are now what shall be.
    pub(crate) fn statics_answered(&mut self, now: Now, token: u64, durable: bool) {
        let Some((_, records)) = self.statics.staged.take_if(|it| it.0 == token) else {
            return;
        };
        if !durable {
            self.statics.again = Some(now.mono + AGAIN);
            return;
        }
        records.into_iter().for_each(|record| self.durable.apply(record));
        self.follow_objects(now);
        self.tell_statics();
        self.follow_statics(now);
    }

    /// Ends the Pods whose manifest is gone or another.
    fn end_statics(&mut self, now: Now) {
        let goes_on = |uid: &Uid| self.pods.get(uid).is_some_and(|it| it.ending.is_none());
        let ends = self.durable.statics.values().map(|it| it.uid);
        let ends: Vec<Uid> = ends
            .filter(|uid| goes_on(uid) && self.static_ends(*uid))
            .collect();
        for uid in ends {
            let Some(pod) = self.pods.get(&uid).and_then(|it| it.pod.clone()) else {
                self.unwanted(now, uid);
                continue;
            };
            let grace = pod.termination_grace_seconds;
            self.update(now, uid, pod.deleted(grace));
            self.reconcile(now, uid);
        }
    }

    /// Whether this Pod is one of the directory's.
    pub(crate) fn is_static(&self, uid: Uid) -> bool {
        self.durable.statics.values().any(|it| it.uid == uid)
    }

    /// The static Pod as the journal has it.
    pub(crate) fn static_pod(&self, uid: Uid) -> Option<Pod> {
        let mut statics = self.durable.statics.values();
        statics.find(|it| it.uid == uid)?.parse().ok()
    }

    /// Whether it was one, and the directory does not want it any more.
    fn static_ends(&self, uid: Uid) -> bool {
        let Some(asked) = &self.statics.asked else {
            return false;
        };
        let mut files = self.durable.statics.iter().filter(|(_, it)| it.uid == uid);
        let kept = |file: &String| asked.get(file).is_some_and(Option::is_none);
        !asked.values().flatten().any(|it| it.uid == uid) && files.all(|(file, _)| !kept(file))
    }

    /// Whether nothing is left of a Pod that is to go.
    fn has_left(&self, uid: Uid) -> bool {
        self.pods.get(&uid).is_none_or(|it| it.removal == Step::Done)
    }

    /// The static Pods of the journal, with what is wrong with those that this version does not take.
    pub(crate) fn desired_statics(&self) -> impl Iterator<Item = (Uid, Result<Pod, String>)> {
        self.durable.statics.values().map(|it| {
            let parsed = it.parse().map(|pod| {
                let grace = pod.termination_grace_seconds;
                if self.static_ends(it.uid) {
                    pod.deleted(grace)
                } else {
                    pod
                }
            });
            (it.uid, parsed)
        })
    }

    /// Tries again to find a place for those that had none: nobody makes another Pod for one that was refused.
    pub(crate) fn retry_statics(&mut self, now: Now) {
        let refused = |uid: &Uid| self.pods.get(uid).is_some_and(|it| it.rejected.is_some());
        let uids: Vec<Uid> = self
            .durable
            .statics
            .values()
            .map(|it| it.uid)
            .filter(refused)
            .collect();
        for uid in uids {
            let Some(pod) = self.pods.get(&uid).and_then(|it| it.pod.as_ref()) else {
                continue;
            };
            let still = admission::refuse(&self.config, &self.pods, &self.pressure, pod, Standing::Static);
            if still.is_none()
                && let Some(state) = self.pods.get_mut(&uid)
            {
                state.rejected = None;
                self.touch(now, uid);
                self.reconcile(now, uid);
            }
        }
    }

    /// Tells the server which static Pods there are, so that it can show them. A node that never had any says nothing.
    pub(crate) fn tell_statics(&mut self) {
        let any = self.statics.told || !self.durable.statics.is_empty();
        if any && self.can_speak() {
            self.say_statics();
        }
    }

    fn say_statics(&mut self) {
        self.statics.told = true;
        let uids = self.durable.statics.values().map(|it| it.uid).collect();
        self.send(Up::Statics { uids });
    }

    /// The server does not know these static Pods yet, or which there are.
    pub(crate) fn show_statics(&mut self, uids: &[Uid]) {
        if uids.is_empty() {
            self.say_statics();
        }
        let wanted = self.durable.statics.values().filter(|it| uids.contains(&it.uid));
        let wanted: Vec<StaticPod> = wanted.cloned().collect();
        for StaticPod { uid, manifest, .. } in wanted {
            self.send(Up::StaticPod { uid, manifest });
            // A mirror that is made anew shows nothing yet.
            self.report_anew(uid);
        }
    }
}
