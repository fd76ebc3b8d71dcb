//! `lifecycle.postStart` and `lifecycle.preStop`.

use skiff_core::HookKind::{PostStart, PreStop};
use skiff_core::ProbeKind::Readiness;
use skiff_protocol::wire::spec::{Handler, PodSpec, RestartPolicy};

use crate::bench::{check, pod_with};
use crate::probes::probe;

fn hook() -> Option<Handler> {
    Some(Handler::Exec(vec!["/bin/hook".to_owned()]))
}

fn with_pre_stop() -> PodSpec {
    pod_with("web", |it| it.containers[0].pre_stop = hook())
}

fn deleted(pod: PodSpec, grace: u32) -> PodSpec {
    PodSpec {
        deletion_grace_seconds: Some(grace),
        ..pod
    }
}

#[test]
fn a_container_counts_as_started_when_its_post_start_hook_has_ended() {
    check("hook-post-start", |b| {
        b.pods(&[pod_with("web", |it| {
            it.containers[0].post_start = hook();
            it.containers[0].readiness = Some(probe(10, 1));
        })]);
        b.run("web");
        b.wait(2);
        b.hook_done("web/app#0", PostStart, Ok(()));
        b.succeeds("web/app#0", Readiness);
    });
}

#[test]
fn a_post_start_hook_that_fails_ends_the_container() {
    check("hook-post-start-fails", |b| {
        b.linked();
        for policy in [RestartPolicy::Always, RestartPolicy::Never] {
            b.note(&format!("{policy:?}"));
            b.pods(&[pod_with("web", |it| {
                it.restart_policy = policy;
                it.containers[0].post_start = hook();
            })]);
            b.run("web");
            b.hook_done("web/app#0", PostStart, Err("PostStartHook failed"));
            b.exited("web/app#0", 143);
            b.reports();
            b.pods(&[]);
            b.wait(1);
            b.removed("web");
        }
    });
}

#[test]
fn the_pre_stop_hook_comes_before_the_signal_and_within_the_grace() {
    check("hook-pre-stop", |b| {
        b.linked();
        b.pods(&[with_pre_stop()]);
        b.run("web");
        b.pods(&[deleted(with_pre_stop(), 30)]);
        b.wait(10);
        b.hook_done("web/app#0", PreStop, Ok(()));
        b.wait(20);
        b.exited("web/app#0", 137);
        b.reports();
    });
}

#[test]
fn a_pre_stop_hook_that_takes_all_the_grace_leaves_two_seconds() {
    check("hook-pre-stop-late", |b| {
        b.pods(&[with_pre_stop()]);
        b.run("web");
        b.pods(&[deleted(with_pre_stop(), 5)]);
        b.wait(5);
        b.note("an answer that comes too late changes nothing");
        b.hook_done("web/app#0", PreStop, Ok(()));
        b.wait(2);
        b.exited("web/app#0", 137);
    });
}

#[test]
fn a_pre_stop_hook_that_fails_does_not_keep_the_container() {
    check("hook-pre-stop-fails", |b| {
        b.linked();
        b.pods(&[with_pre_stop()]);
        b.run("web");
        b.pods(&[deleted(with_pre_stop(), 5)]);
        b.wait(4);
        b.hook_done("web/app#0", PreStop, Err("PreStopHook failed"));
        b.exited("web/app#0", 0);
        b.reports();
    });
}

#[test]
fn no_hook_on_a_forced_end() {
    check("hook-forced", |b| {
        b.pods(&[with_pre_stop()]);
        b.run("web");
        b.note("--force --grace-period=0");
        b.pods(&[]);
        b.wait(1);
        b.exited("web/app#0", 137);
        b.removed("web");
        b.note("forced while the hook runs");
        b.pods(&[with_pre_stop()]);
        b.run("web");
        b.pods(&[deleted(with_pre_stop(), 30)]);
        b.pods(&[]);
        b.wait(1);
        b.exited("web/app#0", 137);
    });
}
