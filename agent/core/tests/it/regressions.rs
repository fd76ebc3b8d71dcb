//! One test for each defect that was found, named after it.

use skiff_core::ObservedPhase::{Exited, Running};
use skiff_core::{Event, Record, Recovered, StartError};
use skiff_protocol::wire::spec::{ObjectKey, PodSpec, RestartPolicy};
use skiff_protocol::wire::status::Phase;

use crate::bench::{Bench, check, container, exit, found, found_pod, pod, pod_with, uid};

fn with_image(name: &str, image: &str) -> PodSpec {
    pod_with(name, |it| it.containers[0].image = image.to_owned())
}

#[test]
fn a_corrected_image_waits_for_no_back_off_of_the_bad_one() {
    check("fix-image-in-back-off", |b| {
        b.pods(&[pod("web")]);
        b.sandbox_ready("web");
        for attempt in 0..4 {
            let at = format!("web/app#{attempt}");
            b.image_ready(&at);
            b.started(&at);
            b.exited(&at, 1);
            b.wait(if attempt < 3 { 20 } else { 1 });
        }
        b.note("in back-off for 40 s");
        b.pods(&[with_image("web", "app:2")]);
        b.image_ready("web/app#4");
        b.started("web/app#4");
        b.exited("web/app#4", 1);
    });
}

#[test]
fn an_answer_about_the_former_image_is_not_taken_for_the_present_one() {
    check("stale-image-answer", |b| {
        b.pods(&[with_image("web", "app:1")]);
        b.sandbox_ready("web");
        b.note("changed while app:1 is pulled");
        b.pods(&[with_image("web", "app:2")]);
        b.image_ready("web/app#0");
        b.note("now app:2 was asked for");
        b.image_ready("web/app#0");
    });
}

#[test]
fn every_start_asks_for_its_image() {
    check("image-each-start", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.exited("web/app#0", 0);
        b.image_ready("web/app#1");
    });
}

#[test]
fn an_exit_of_an_attempt_before_the_last_takes_no_count_back() {
    check("older-attempt-found", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.exited("web/app#0", 1);
        b.image_ready("web/app#1");
        b.note("attempt 1 never ran, so the shim knows attempt 0 as the last");
        let failed = StartError::Failed {
            exit_code: 128,
            message: "no memory".to_owned(),
        };
        b.start_failed("web/app#1", failed);
        b.restart(vec![found_pod(
            "web",
            2,
            vec![found(&container("app"), 0, Exited(exit(1, 0)))],
        )]);
    });
}

#[test]
fn a_container_found_ended_asks_for_its_image_before_the_next_start() {
    check("found-ended-asks-for-image", |b| {
        b.pods(&[with_image("web", "app:1")]);
        b.run("web");
        b.exited("web/app#0", 1);
        b.note("the image changes while the agent is away");
        b.hold = true;
        b.pods(&[with_image("web", "app:2")]);
        b.answer(true);
        b.hold = false;
        b.restart(vec![found_pod(
            "web",
            2,
            vec![found(&container("app"), 0, Exited(exit(1, 0)))],
        )]);
    });
}

#[test]
fn a_pod_found_half_ended_keeps_the_grace_of_the_other_half() {
    check("found-half-ended", |b| {
        let two = pod_with("web", |it| {
            it.containers.push(container("log"));
            it.deletion_grace_seconds = Some(20);
        });
        b.pods(&[two]);
        b.restart(vec![found_pod(
            "web",
            2,
            vec![
                found(&container("app"), 0, Exited(exit(0, 0))),
                found(&container("log"), 0, Running(0)),
            ],
        )]);
        b.event(
            "remove failed web",
            Event::RemoveFailed(uid("web"), "nobody asked".to_owned()),
        );
        b.wait(10);
        b.exited("web/log#0", 0);
    });
}

#[test]
fn a_change_that_is_taken_back_before_anybody_was_asked_restarts_nothing() {
    check("change-taken-back", |b| {
        b.pods(&[with_image("web", "app:1")]);
        b.sandbox_ready("web");
        b.image_ready("web/app#0");
        b.pods(&[with_image("web", "app:2")]);
        b.pods(&[with_image("web", "app:1")]);
        b.started("web/app#0");
        b.wait(60);
        b.note("once it was asked, it is replaced");
        b.pods(&[with_image("web", "app:2")]);
        b.pods(&[with_image("web", "app:1")]);
        b.wait(30);
        b.exited("web/app#0", 137);
    });
}

#[test]
fn ready_does_not_change_by_a_restart_of_the_agent() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    b.pods(&[pod("web")]);
    b.run("web");
    b.wait(1000);
    b.restart(vec![found_pod(
        "web",
        2,
        vec![found(&container("app"), 0, Running(77))],
    )]);
    let since: Vec<_> = b.core.statuses().map(|(_, status)| status.ready_since).collect();
    assert_eq!(since, [Some(77)]);
}

#[test]
fn what_is_held_is_not_written_again() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    b.pods(&[pod("web")]);
    b.pods(&[pod("web"), pod("job")]);
    let puts = b
        .journal
        .iter()
        .flatten()
        .filter(|it| matches!(it, Record::Put(..)));
    assert_eq!(puts.count(), 2);
}

#[test]
fn what_ran_keeps_its_place_over_a_restart_of_the_agent() {
    let asks = |name: &str| pod_with(name, |it| it.containers[0].resources.cpu_request = Some(600));
    let phases = |b: &Bench| -> Vec<Phase> { b.core.statuses().map(|(_, status)| status.phase).collect() };
    let mut b = Bench::new();
    b.observed(Vec::new());
    b.pods(&[asks("z")]);
    b.run("z");
    b.wait(10);
    b.pods(&[asks("a"), asks("z")]);
    assert_eq!(phases(&b), [Phase::Failed, Phase::Running]);
    let running = found(&asks("z").containers[0], 0, Running(0));
    b.restart(vec![found_pod("z", 2, vec![running])]);
    assert_eq!(
        phases(&b),
        [Phase::Failed, Phase::Running],
        "after a restart of the agent"
    );
    b.restart(Vec::new());
    assert_eq!(phases(&b), [Phase::Failed, Phase::Running], "after a reboot");
}

#[test]
fn a_finished_pod_is_not_refused_after_a_restart() {
    let asks = |name: &str| {
        pod_with(name, |it| {
            it.restart_policy = RestartPolicy::Never;
            it.containers[0].resources.cpu_request = Some(600);
        })
    };
    let mut b = Bench::new();
    b.observed(Vec::new());
    b.pods(&[asks("job")]);
    b.run("job");
    b.exited("job/app#0", 0);
    b.pods(&[asks("job"), asks("next")]);
    b.run("next");
    let running = found(&asks("next").containers[0], 0, Running(0));
    b.restart(vec![found_pod("next", 3, vec![running])]);
    let phases: Vec<Phase> = b.core.statuses().map(|(_, status)| status.phase).collect();
    assert_eq!(phases, [Phase::Succeeded, Phase::Running]);
}

#[test]
fn a_shim_that_dies_of_its_sandbox_is_not_started_in_a_loop() {
    check("shim-dies-of-sandbox", |b| {
        b.pods(&[pod("web")]);
        b.event(
            "sandbox failed web",
            Event::SandboxFailed(uid("web"), "the shim ended".to_owned()),
        );
        b.event("shim lost web", Event::ShimLost(uid("web")));
        b.wait(10);
    });
}

#[test]
fn a_start_that_lacked_configuration_leaves_no_replacement_behind() {
    check("config-error-while-replaced", |b| {
        b.pods(&[with_image("web", "app:1")]);
        b.sandbox_ready("web");
        b.image_ready("web/app#0");
        b.pods(&[with_image("web", "app:2")]);
        b.start_failed("web/app#0", StartError::Config("not there".to_owned()));
        b.wait(10);
        b.image_ready("web/app#0");
        b.note("it runs from app:2, so nothing ends it");
        b.started("web/app#0");
        b.wait(60);
    });
}

#[test]
fn a_container_that_ends_while_its_pod_is_removed_leaves_no_record_for_ever() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    b.pods(&[pod("web")]);
    b.run("web");
    b.hold = true;
    b.pods(&[]);
    b.exited("web/app#0", 1);
    b.answer(true);
    b.answer(true);
    assert_eq!(b.recovered().containers, Default::default());
    let mut state = Recovered::default();
    state.apply(Record::Put(ObjectKey::Pod(uid("web")), Vec::new()));
    state.apply(Record::Remove(ObjectKey::Pod(uid("web"))));
    assert!(state.objects.is_empty());
}

#[test]
fn a_pod_that_is_wanted_again_while_it_is_removed_begins_anew() {
    check("wanted-again", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.pods(&[]);
        b.wait(1);
        b.exited("web/app#0", 137);
        b.pods(&[pod("web")]);
        b.removed("web");
    });
}
