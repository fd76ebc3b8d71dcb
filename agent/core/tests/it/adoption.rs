//! A start of the agent: what runs is taken over, what shall run is brought up, what nobody wants is ended.

use skiff_core::ObservedPhase::{Exited, Running, Starting};
use skiff_core::StartError;
use skiff_protocol::wire::spec::RestartPolicy;

use crate::bench::{Bench, check, container, exit, found, found_pod, pod, pod_with};

/// A container that runs once is about to be started.
fn starts_once(b: &mut Bench) {
    b.pods(&[pod_with("job", |it| it.restart_policy = RestartPolicy::Never)]);
    b.sandbox_ready("job");
    b.image_ready("job/app#0");
}

#[test]
fn a_running_pod_is_taken_over_untouched() {
    check("adopt-running", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.wait(100);
        b.restart(vec![found_pod(
            "web",
            2,
            vec![found(&container("app"), 0, Running(1000))],
        )]);
        b.link_up();
        b.reports();
        b.wait(3600);
    });
}

#[test]
fn only_the_container_whose_spec_changed_is_replaced() {
    check("adopt-changed", |b| {
        let two = pod_with("web", |it| it.containers.push(container("log")));
        b.pods(&[two]);
        let mut older = container("log");
        older.image = "log:0".to_owned();
        b.restart(vec![found_pod(
            "web",
            2,
            vec![
                found(&container("app"), 0, Running(1000)),
                found(&older, 3, Running(1000)),
            ],
        )]);
        b.exited("web/log#3", 0);
        b.image_ready("web/log#4");
    });
}

#[test]
fn a_pod_that_nobody_wants_is_removed() {
    check("adopt-orphan", |b| {
        b.restart(vec![found_pod(
            "stray",
            9,
            vec![found(&container("app"), 2, Running(1000))],
        )]);
        b.note("its address is taken while it is there");
        b.pods(&[pod("web")]);
        b.wait(2);
        b.exited("stray/app#2", 143);
        b.removed("stray");
    });
}

#[test]
fn an_exit_while_the_agent_was_away_counts_once() {
    check("adopt-exited", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.wait(100);
        let shims = || {
            vec![found_pod(
                "web",
                2,
                vec![found(&container("app"), 0, Exited(exit(1, 50)))],
            )]
        };
        b.restart(shims());
        b.note("and once more, before the next attempt began");
        b.restart(shims());
        b.image_ready("web/app#1");
        b.started("web/app#1");
    });
}

#[test]
fn a_finished_container_is_not_run_again() {
    check("adopt-finished", |b| {
        let never = pod_with("job", |it| it.restart_policy = RestartPolicy::Never);
        b.pods(&[never]);
        b.run("job");
        b.exited("job/app#0", 3);
        b.restart(vec![found_pod(
            "job",
            2,
            vec![found(&container("app"), 0, Exited(exit(3, 0)))],
        )]);
        b.note("nor after a reboot");
        b.restart(Vec::new());
    });
}

#[test]
fn a_reboot_starts_what_shall_run() {
    check("reboot", |b| {
        b.pods(&[
            pod("always"),
            pod_with("done", |it| it.restart_policy = RestartPolicy::OnFailure),
            pod_with("tried", |it| it.restart_policy = RestartPolicy::OnFailure),
        ]);
        for name in ["always", "done", "tried"] {
            b.run(name);
        }
        b.exited("done/app#0", 0);
        b.exited("tried/app#0", 1);
        b.restart(Vec::new());
    });
}

/// `restartPolicy: Never`: what ran when the power went has run, however it ended.
#[test]
fn a_container_that_runs_once_is_not_run_again_after_a_reboot() {
    check("reboot-never", |b| {
        starts_once(b);
        b.note("it may be running already, whatever is heard of it");
        b.restart(Vec::new());
    });
}

#[test]
fn a_count_that_was_told_is_not_taken_back_by_a_reboot() {
    check("reboot-count", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.exited("web/app#0", 1);
        b.image_ready("web/app#1");
        b.started("web/app#1");
        b.restart(Vec::new());
        b.note("and what went with the node waits for no back-off");
        b.sandbox_ready("web");
        b.image_ready("web/app#2");
        b.started("web/app#2");
    });
}

#[test]
fn a_start_that_is_under_way_is_asked_for_again_under_its_number() {
    check("adopt-starting", |b| {
        starts_once(b);
        b.restart(vec![found_pod(
            "job",
            2,
            vec![found(&container("app"), 0, Starting)],
        )]);
        b.image_ready("job/app#0");
        b.started("job/app#0");
    });
}

#[test]
fn a_start_that_came_to_nothing_may_be_tried_after_a_reboot() {
    check("reboot-not-started", |b| {
        starts_once(b);
        b.start_failed(
            "job/app#0",
            StartError::Config("the Pod has no network".to_owned()),
        );
        b.note("one that lacks what it needs leaves nothing in the journal, however often it is tried");
        b.unmet = true;
        b.wait(10);
        b.image_ready("job/app#0");
        b.start_failed(
            "job/app#0",
            StartError::Config("configmap \"c\" not found".to_owned()),
        );
        b.restart(Vec::new());
    });
}

#[test]
fn a_deletion_goes_on() {
    check("adopt-deleted", |b| {
        b.pods(&[pod_with("web", |it| it.deletion_grace_seconds = Some(20))]);
        b.restart(vec![found_pod(
            "web",
            2,
            vec![found(&container("app"), 0, Running(1000))],
        )]);
        b.wait(30);
        b.exited("web/app#0", 137);
        b.removed("web");
        b.note("nothing is left when the agent starts the next time");
        b.restart(Vec::new());
        b.removed("web");
    });
}

#[test]
fn a_pod_without_its_sandbox_gets_one() {
    check("adopt-half", |b| {
        b.pods(&[pod("web")]);
        let mut half = found_pod("web", 7, Vec::new());
        half.sandbox = false;
        b.restart(vec![half]);
    });
}
