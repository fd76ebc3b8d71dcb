//! The end of a Pod: order within one grace, `activeDeadlineSeconds`, what is said of it.

use skiff_core::ObservedPhase::Running;
use skiff_core::{Event, Exit, Recovered};
use skiff_protocol::wire::spec::{Handler, PodSpec, RestartPolicy};
use skiff_protocol::wire::status::{ContainerState, Phase};

use crate::bench::{Bench, check, container, found, found_pod, pod_with, reference};
use crate::init::sidecar;

fn with_sidecars() -> PodSpec {
    pod_with("web", |it| {
        it.init_containers = vec![sidecar("log"), sidecar("net")];
    })
}

fn deadline(seconds: u32) -> PodSpec {
    pod_with("web", |it| {
        it.termination_grace_seconds = 5;
        it.active_deadline_seconds = Some(seconds);
    })
}

#[test]
fn regular_containers_first_then_sidecars_from_the_last() {
    check("termination-order", |b| {
        b.linked();
        b.pods(&[with_sidecars()]);
        b.sandbox_ready("web");
        for at in ["web/log#0", "web/net#0", "web/app#0"] {
            b.start(at);
        }
        b.pods(&[PodSpec {
            deletion_grace_seconds: Some(30),
            ..with_sidecars()
        }]);
        b.wait(4);
        b.exited("web/app#0", 143);
        b.wait(4);
        b.exited("web/net#0", 143);
        b.exited("web/log#0", 143);
        b.removed("web");
        b.reports();
    });
}

#[test]
fn all_of_it_within_one_grace() {
    check("termination-grace", |b| {
        let web = pod_with("web", |it| {
            it.init_containers = vec![sidecar("log")];
            it.init_containers[0].pre_stop = Some(Handler::Sleep(1));
        });
        b.pods(std::slice::from_ref(&web));
        b.sandbox_ready("web");
        b.start("web/log#0");
        b.start("web/app#0");
        b.pods(&[PodSpec {
            deletion_grace_seconds: Some(10),
            ..web
        }]);
        b.hook_done("web/log#0", skiff_core::HookKind::PreStop, Ok(()));
        b.note("app does not end; the grace is over for the sidecar too, but for two seconds");
        b.wait(10);
        b.exited("web/app#0", 137);
        b.wait(2);
        b.exited("web/log#0", 137);
    });
}

#[test]
fn a_pod_that_is_active_too_long_fails() {
    check("deadline", |b| {
        b.linked();
        b.pods(&[deadline(60)]);
        b.run("web");
        b.wait(55);
        b.hold = true;
        b.wait(5);
        b.note("nothing is ended before the journal has it");
        b.answer(true);
        b.hold = false;
        b.wait(5);
        b.exited("web/app#0", 137);
        b.reports();
        b.note("a reboot does not run it again");
        b.restart(Vec::new());
    });
}

#[test]
fn a_deadline_that_the_journal_does_not_take_is_tried_again() {
    check("deadline-not-durable", |b| {
        b.pods(&[deadline(60)]);
        b.run("web");
        b.hold = true;
        b.wait(60);
        b.answer(false);
        b.hold = false;
        b.wait(10);
    });
}

#[test]
fn a_deadline_goes_on_over_restarts_and_clock_changes() {
    check("deadline-clock", |b| {
        b.pods(&[deadline(600)]);
        b.run("web");
        b.wait(100);
        b.set_clock(56 * 365 * 86_400);
        b.run_nothing();
        b.wait(100);
        b.note("400 s are left, by whatever clock");
        b.restart(Vec::new());
        b.set_clock(-3600);
        b.run_nothing();
        b.restart(Vec::new());
    });
}

#[test]
fn a_clock_that_was_never_set_is_not_believed() {
    check("deadline-no-clock", |b| {
        b.pods(&[deadline(600)]);
        b.wait(100);
        b.note("a boot without a clock");
        b.set_clock(-1_767_225_600);
        b.restart(Vec::new());
        b.wait(50);
        b.note("the clock is set: 150 s have passed");
        b.set_clock(1_767_225_600);
        b.run_nothing();
    });
}

#[test]
fn a_pod_over_its_deadline_is_not_run_after_a_restart_of_the_agent() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    b.pods(&[deadline(10)]);
    b.run("web");
    b.wait(10);
    b.restart(vec![found_pod(
        "web",
        2,
        vec![found(&container("app"), 0, Running(0))],
    )]);
    b.exited("web/app#0", 143);
    let phases: Vec<Phase> = b.core.statuses().map(|(_, status)| status.phase).collect();
    assert_eq!(phases, [Phase::Failed]);
    let recovered: Recovered = b.recovered();
    assert_eq!(recovered.failed.len(), 1);
}

#[test]
fn the_containers_own_word_about_its_end() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    b.pods(&[pod_with("web", |it| it.restart_policy = RestartPolicy::Never)]);
    b.run("web");
    let exit = Exit {
        exit_code: 1,
        message: "no disk".to_owned(),
        ..Exit::default()
    };
    b.event(
        "exited",
        Event::Exited {
            container: reference("web/app#0"),
            exit,
        },
    );
    let status = b.core.statuses().next().map(|(_, status)| status);
    let state = status.map(|it| it.containers[0].state.clone());
    assert!(
        matches!(&state, Some(ContainerState::Terminated(end)) if end.message == "no disk"),
        "{state:?}"
    );
}
