//! What a node told of its static Pods, and which of them the server has yet to ask for.
//!
//! Pure. What always holds: a few manifests are asked for at a time, each once until the node tells anew or its mirror was
//! there and went; a mirror goes only when the node has said that it has the static Pod no more.

use std::collections::{BTreeMap, BTreeSet};

use skiff_protocol::limits;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::status::PodStatus;

/// What is to become of a mirror.
pub(crate) enum Shown {
    /// It stays; with a status that came before it.
    Yes(Option<Box<PodStatus>>),
    /// Its static Pod is no more.
    Unwanted,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Statics {
    /// The start of the agent that told.
    epoch: u64,
    /// All of them; nothing before the node told.
    told: Option<BTreeSet<Uid>>,
    /// Asked for, and whether the node has answered.
    asked: BTreeMap<Uid, bool>,
    /// Statuses of those whose mirrors are on their way.
    early: BTreeMap<Uid, Box<PodStatus>>,
}

impl Statics {
    /// The node said hello; `true` when nothing is known of this start of its agent.
    pub(crate) fn hello(&mut self, epoch: u64) -> bool {
        if epoch != self.epoch {
            *self = Self {
                epoch,
                ..Self::default()
            };
        }
        self.told.is_none()
    }

    /// The node told of all that it has.
    pub(crate) fn told(&mut self, uids: Vec<Uid>) {
        let told: BTreeSet<Uid> = uids.into_iter().collect();
        self.early.retain(|uid, _| told.contains(uid));
        self.told = Some(told);
        self.asked.clear();
    }

    /// Keeps a status until there is a mirror to show it. One of a Pod that is none of them is nobody's.
    pub(crate) fn keep(&mut self, said: PodStatus) {
        if self.told.as_ref().is_some_and(|it| it.contains(&said.uid)) {
            self.early.insert(said.uid, Box::new(said));
        }
    }

    /// The node sent a manifest; `false` when nobody asked for it.
    pub(crate) fn answered(&mut self, uid: Uid) -> bool {
        let asked = self.asked.get_mut(&uid);
        asked.is_some_and(|answered| !std::mem::replace(answered, true))
    }

    /// There is a mirror of this static Pod.
    pub(crate) fn has_mirror(&mut self, uid: Uid) -> Shown {
        if self.told.as_ref().is_some_and(|told| !told.contains(&uid)) {
            return Shown::Unwanted;
        }
        self.asked.remove(&uid);
        Shown::Yes(self.early.remove(&uid))
    }

    /// Those to ask for now, where `there` have their mirrors.
    pub(crate) fn ask(&mut self, there: &BTreeSet<Uid>) -> Vec<Uid> {
        if self.asked.values().any(|answered| !answered) {
            return Vec::new();
        }
        let missing = self.told.iter().flatten();
        let missing = missing.filter(|uid| !there.contains(uid) && !self.asked.contains_key(uid));
        let uids: Vec<Uid> = missing.copied().take(limits::STATICS_AT_ONCE).collect();
        self.asked.extend(uids.iter().map(|uid| (*uid, false)));
        uids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_at_a_time_are_asked_for_and_each_once() {
        let all: Vec<Uid> = (0..6).map(|it| Uid([it; 16])).collect();
        let mut statics = Statics::default();
        let none = BTreeSet::new();
        assert!(statics.ask(&none).is_empty(), "the node has not told yet");
        assert!(!statics.answered(all[0]), "nobody asked");
        statics.told(all.clone());
        let first = statics.ask(&none);
        assert_eq!(first, all[..4]);
        assert!(statics.ask(&none).is_empty(), "they are on their way");
        for uid in &first {
            assert!(statics.answered(*uid));
            assert!(!statics.answered(*uid), "once");
        }
        let mut there: BTreeSet<Uid> = first.iter().copied().collect();
        for uid in &first {
            assert!(matches!(statics.has_mirror(*uid), Shown::Yes(None)));
        }
        assert_eq!(statics.ask(&there), all[4..]);
        all[4..].iter().for_each(|uid| assert!(statics.answered(*uid)));
        // One of them cannot be shown: it is not asked for again before the node tells anew.
        assert!(statics.ask(&there).is_empty());
        statics.told(all.clone());
        assert_eq!(statics.ask(&there), all[4..]);
        all[4..].iter().for_each(|uid| assert!(statics.answered(*uid)));
        // Somebody deletes a mirror.
        there.remove(&all[0]);
        assert_eq!(statics.ask(&there), all[..1]);
    }

    #[test]
    fn only_a_node_that_told_takes_mirrors_away_and_early_statuses_wait() {
        let (one, two) = (Uid([1; 16]), Uid([2; 16]));
        let status = |uid| PodStatus {
            uid,
            ..PodStatus::default()
        };
        let mut statics = Statics::default();
        assert!(matches!(statics.has_mirror(one), Shown::Yes(None)));
        statics.told(vec![two]);
        assert!(matches!(statics.has_mirror(one), Shown::Unwanted));
        statics.keep(status(one));
        statics.keep(status(two));
        assert!(matches!(statics.has_mirror(two), Shown::Yes(Some(said)) if said.uid == two));
        assert!(matches!(statics.has_mirror(two), Shown::Yes(None)));
        assert!(statics.early.is_empty());
    }
}
