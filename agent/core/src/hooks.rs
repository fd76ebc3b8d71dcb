//! Lifecycle hooks: postStart before a container counts as started, preStop before it is asked to end.
//!
//! Always holds: an answer about a process that is no more changes nothing; a failed preStop hook does not keep a
//! container from being ended.

use crate::effect::{ContainerRef, Effect};
use crate::event::HookKind;
use crate::machine::{Core, Now};
use crate::out::Out;
use crate::state::ContainerState;
use crate::stop::Why;

/// Milliseconds that a postStart hook may take: Kubernetes sets no bound, and this one is only there so that a hook that
/// hangs is ended some day.
const POST_START: u64 = 24 * 3_600_000;

impl ContainerState {
    /// Begins its postStart hook; it counts as started after that.
    pub(crate) fn begin_post_start(&mut self, uid: skiff_protocol::uid::Uid, out: &mut Out) {
        self.health.post_start = true;
        out.effects.push(Effect::Hook {
            container: self.reference(uid),
            kind: HookKind::PostStart,
            within: POST_START,
        });
    }
}

impl Core {
    pub(crate) fn hook_done(
        &mut self,
        now: Now,
        reference: &ContainerRef,
        kind: HookKind,
        result: Result<(), String>,
    ) {
        if self.current(reference).is_none_or(|it| !it.running()) {
            return;
        }
        let mut out = Out::default();
        match kind {
            HookKind::PostStart => self.post_start_done(now, reference, result, &mut out),
            HookKind::PreStop => {
                let Some(container) = self.current(reference) else {
                    return;
                };
                if let Err(message) = result {
                    out.warn(&reference.name, "FailedPreStopHook", message);
                }
                container.pre_stop_ended();
            }
        }
        self.take_out(now, reference.pod, out);
        self.reconcile(now, reference.pod);
    }

    fn post_start_done(
        &mut self,
        now: Now,
        reference: &ContainerRef,
        result: Result<(), String>,
        out: &mut Out,
    ) {
        let Some(state) = self.pods.get_mut(&reference.pod) else {
            return;
        };
        let Some((container, spec, pod)) = state.with_spec(&reference.name) else {
            return;
        };
        if !std::mem::take(&mut container.health.post_start) {
            return;
        }
        out.changed = true;
        match result {
            Ok(()) => container.comes_up(now.mono, reference.pod, spec, false, out),
            Err(message) => {
                out.warn(&reference.name, "FailedPostStartHook", message);
                container.health.post_start_failed = true;
                if container.stop.is_none() {
                    container.why = Some(Why::PostStart);
                    let grace = u64::from(pod.termination_grace_seconds) * 1000;
                    container.end_by(now.mono + grace, false);
                }
            }
        }
    }
}
