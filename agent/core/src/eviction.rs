//! A Pod fails as a whole: its deadline is over, the node is short of something, or it has used more than it may.
//!
//! ```text
//!   lives ──▶ failing: on its way into the journal ──Durable──▶ failed: its containers are ended, its status says why
//!     ▲             │
//!     └─not durable─┘
//! ```
//!
//! Source: Kubernetes documentation, "Node-pressure Eviction".
//!
//! Always holds: nothing is ended before the journal has it, so that no reboot runs the Pod again; one Pod at a time is
//! evicted for a shortage, and none while an evicted one still ends.

use std::cmp::Reverse;

use skiff_protocol::quantity::binary;
use skiff_protocol::uid::Uid;

use crate::event::{Pressure, Usage};
use crate::machine::{Core, Now};
use crate::record::Record;
use crate::requests::{Qos, Requests};
use crate::state::{Mono, Phase, PodState, Step};

/// The grace of a Pod that is evicted, in milliseconds: a kubelet's for a hard threshold.
const EVICTION_GRACE: u64 = 1_000;

/// Milliseconds until a failure that the journal did not take is told it again.
const AGAIN: u64 = 10_000;

/// A clock that shows less was never set: 2025-01-01.
const SET: i64 = 1_735_689_600;

const EVICTED: &str = "Evicted";
const DEADLINE: &str = "DeadlineExceeded";

/// On its way into the journal.
#[derive(Clone, Debug)]
pub(crate) struct Failing {
    token: u64,
    reason: String,
    message: String,
}

/// In the journal.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) reason: String,
    pub(crate) message: String,
    /// When its containers must have ended.
    pub(crate) deadline: Mono,
}

impl Failed {
    /// Found in the journal at a start.
    pub(crate) fn recovered(reason: String, message: String, now: Mono) -> Self {
        Self {
            reason,
            message,
            deadline: now + EVICTION_GRACE,
        }
    }

    /// What was made for an evicted Pod goes at once, because the node needs it.
    pub(crate) fn evicted(&self) -> bool {
        self.reason == EVICTED
    }
}

/// Bytes on the disk below which the end of a Pod is no help. A writable layer that nobody has written to has a few blocks.
const LEAST_DISK: u64 = 1 << 20;

/// What a node can be short of.
#[derive(Clone, Copy)]
enum Short {
    Memory,
    Disk,
    Pids,
}

impl Short {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Pids => "pids",
        }
    }

    fn used(self, usage: &Usage) -> u64 {
        match self {
            Self::Memory => usage.memory,
            Self::Disk => usage.disk,
            Self::Pids => usage.pids,
        }
    }

    /// Who uses less gives nothing back by going: a disk that others have filled ends no Pod.
    fn least(self) -> u64 {
        match self {
            Self::Memory | Self::Pids => 1,
            Self::Disk => LEAST_DISK,
        }
    }

    fn request(self, of: &Requests) -> u64 {
        match self {
            Self::Memory => of.memory,
            Self::Disk => of.storage,
            // Kubernetes knows no request for processes.
            Self::Pids => 0,
        }
    }

    fn show(self, amount: u64) -> String {
        match self {
            Self::Memory | Self::Disk => binary(amount),
            Self::Pids => amount.to_string(),
        }
    }
}

/// Seconds between two times of one clock, where the clock can be believed in between.
fn elapsed(from: i64, to: i64) -> Option<u64> {
    let same_clock = (from < SET) == (to < SET);
    u64::try_from(to - from).ok().filter(|_| same_clock)
}

impl Core {
    fn fail(&mut self, now: Now, uid: Uid, reason: &str, message: String) {
        let Some(state) = self.pods.get(&uid) else { return };
        if !state.lives() || (state.over() && !state.any_alive()) {
            return;
        }
        let record = Record::Failed(uid, reason.to_owned(), message.clone());
        let token = self.append(now, vec![record]);
        if let Some(state) = self.pods.get_mut(&uid) {
            state.containers.iter_mut().for_each(|it| it.resize_again = 0);
            state.failing = Some(Failing {
                token,
                reason: reason.to_owned(),
                message,
            });
        }
    }

    /// The journal answered for a batch: the failure that it holds, if it holds one, is carried out.
    pub(crate) fn failure_answered(&mut self, now: Now, token: u64, durable: bool) {
        let failing = |it: &&mut PodState| it.failing.as_ref().is_some_and(|it| it.token == token);
        let Some(state) = self.pods.values_mut().find(failing) else {
            return;
        };
        let Some(Failing { reason, message, .. }) = state.failing.take() else {
            return;
        };
        let uid = state.uid;
        if !durable {
            // A shortage is told again as long as it lasts; a deadline is over only once.
            state.active_until = state.active_until.map(|at| at.max(now.mono + AGAIN));
            self.reconcile(now, uid);
            return;
        }
        let evicted = reason == EVICTED;
        let grace = match &state.pod {
            Some(pod) if !evicted => u64::from(pod.termination_grace_seconds) * 1000,
            _ => EVICTION_GRACE,
        };
        state.failed = Some(Failed {
            reason: reason.clone(),
            message: message.clone(),
            deadline: now.mono + grace,
        });
        for container in &mut state.containers {
            // It was to be started again; now it has ended for good.
            if let (Phase::Backoff { .. }, Some(last)) = (&container.phase, &container.last) {
                container.phase = Phase::Done(last.clone());
            }
        }
        self.durable
            .apply(Record::Failed(uid, reason.clone(), message.clone()));
        self.event(now, uid, None, evicted, &reason, message);
        self.touch(now, uid);
        self.reconcile(now, uid);
    }

    /// The node is short of something, or no longer is.
    pub(crate) fn pressed(&mut self, now: Now, mut pressure: Pressure) {
        let usage = std::mem::take(&mut pressure.usage);
        let short = match &pressure {
            Pressure { memory: Some(_), .. } => Some(Short::Memory),
            Pressure { disk: Some(_), .. } => Some(Short::Disk),
            Pressure { pids: Some(_), .. } => Some(Short::Pids),
            _ => None,
        };
        self.pressure = pressure;
        // One after another: what the last one had is free with its processes, its disk only with its files.
        let gives_back = |it: &PodState| {
            it.any_alive() || (matches!(short, Some(Short::Disk)) && it.removal != Step::Done)
        };
        let ends = |it: &PodState| {
            it.failing.is_some() || (it.failed.as_ref().is_some_and(Failed::evicted) && gives_back(it))
        };
        if let Some(short) = short
            && !self.pods.values().any(ends)
            && let Some((uid, message)) = self.first_to_go(short, &usage)
        {
            self.fail(now, uid, EVICTED, message);
        }
    }

    /// The Pod that a kubelet would evict first: by use over request, then by how much that is. One that keeps its promises
    /// in full goes last, a static one never.
    fn first_to_go(&self, short: Short, usage: &[Usage]) -> Option<(Uid, String)> {
        let candidates = usage.iter().filter_map(|usage| {
            let state = self
                .pods
                .get(&usage.pod)
                .filter(|it| it.lives() && it.any_alive() && !self.is_static(it.uid))?;
            let pod = state.pod.as_ref()?;
            let (used, request) = (short.used(usage), short.request(&Requests::of(pod)));
            (used >= short.least()).then_some((pod, used, request))
        });
        let (pod, used, request) = candidates.max_by_key(|(pod, used, request)| {
            let over = used.saturating_sub(*request);
            (
                used > request,
                Reverse(Qos::of(pod) == Qos::Guaranteed),
                over,
                *used,
            )
        })?;
        let name = short.name();
        let who = match pod.containers.as_slice() {
            [only] if pod.init_containers.is_empty() => format!("Container {}", only.name),
            _ => "Its containers".to_owned(),
        };
        let verb = if who.starts_with("Its") { "were" } else { "was" };
        let mut message = format!("The node was low on resource: {name}. ");
        if used > request {
            message += &format!(
                "{who} {verb} using {}, request is {}, has larger consumption of {name}. ",
                short.show(used),
                short.show(request)
            );
        }
        Some((pod.uid, message))
    }

    pub(crate) fn over_limit(&mut self, now: Now, uid: Uid, message: String) {
        self.fail(now, uid, EVICTED, message);
    }

    /// Has a Pod fail whose `activeDeadlineSeconds` are over.
    pub(crate) fn check_deadline(&mut self, now: Now, uid: Uid) {
        let due =
            |it: &PodState| it.active_until.is_some_and(|at| at <= now.mono) && it.lives() && !it.over();
        if self.pods.get(&uid).is_some_and(due) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.fail(now, uid, DEADLINE, message.to_owned());
        }
    }

    /// Begins to count a Pod's `activeDeadlineSeconds`, with what passed of them before this start.
    pub(crate) fn count_deadline(&mut self, now: Now, state: &mut PodState) {
        let Some(seconds) = state.pod.as_ref().and_then(|pod| pod.active_deadline_seconds) else {
            state.active_until = None;
            return;
        };
        let since = self.durable.counted.get(&state.uid).copied();
        let since = since.unwrap_or(state.accepted_at);
        let passed = elapsed(since, now.unix);
        let left = u64::from(seconds).saturating_sub(passed.unwrap_or(0));
        state.active_until = Some(now.mono + left * 1000);
        // Counted anew by a clock that may be right; one that was never set may be set yet.
        if passed.is_none() && (now.unix >= SET || since < SET) {
            self.record(now, vec![Record::Counted(state.uid, now.unix)]);
        }
    }

    /// The system's clock was set. What passed of a deadline did not change by that, so what it is counted from does; but
    /// after a start without a clock this is the first time that it can be known.
    pub(crate) fn clock_set(&mut self, now: Now, before: i64) {
        let mut records = Vec::new();
        for state in self.pods.values_mut().filter(|it| it.lives() && !it.over()) {
            let seconds = state.pod.as_ref().and_then(|pod| pod.active_deadline_seconds);
            let (Some(seconds), Some(until)) = (seconds, state.active_until) else {
                continue;
            };
            let since = self.durable.counted.get(&state.uid).copied();
            let since = since.unwrap_or(state.accepted_at);
            let left = until.saturating_sub(now.mono);
            if since >= SET && before < SET {
                // The journal's time is of a clock that was right, the node's was not until now.
                if let Some(passed) = elapsed(since, now.unix) {
                    let known = u64::from(seconds).saturating_sub(passed) * 1000;
                    state.active_until = Some(now.mono + known.min(left));
                }
            } else {
                let passed = u64::from(seconds).saturating_sub(left.div_ceil(1000));
                let since = now.unix - i64::try_from(passed).unwrap_or(0);
                records.push(Record::Counted(state.uid, since));
            }
        }
        if !records.is_empty() {
            self.record(now, records);
        }
    }
}
