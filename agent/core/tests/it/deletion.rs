//! Ending: with grace, by force, and at awkward moments.

use skiff_core::Event;

use crate::bench::{check, pod, pod_with, uid};

fn deleted(name: &str, grace: u32) -> skiff_protocol::wire::spec::PodSpec {
    pod_with(name, |it| it.deletion_grace_seconds = Some(grace))
}

#[test]
fn a_pod_is_asked_then_killed_then_removed() {
    check("deletion", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.wait(10);
        b.pods(&[deleted("web", 20)]);
        b.wait(25);
        b.exited("web/app#0", 137);
        b.removed("web");
        b.note("the server has seen it");
        b.pods(&[]);
    });
}

#[test]
fn a_pod_that_ends_when_it_is_asked() {
    check("deletion-obeyed", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.pods(&[deleted("web", 20)]);
        b.wait(1);
        b.exited("web/app#0", 0);
        b.event(
            "remove failed web",
            Event::RemoveFailed(uid("web"), "device busy".to_owned()),
        );
        b.wait(5);
        b.removed("web");
    });
}

#[test]
fn a_shorter_grace_counts_and_a_longer_one_does_not() {
    check("deletion-grace", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.pods(&[deleted("web", 20)]);
        b.wait(5);
        b.pods(&[deleted("web", 60)]);
        b.wait(5);
        b.pods(&[deleted("web", 2)]);
        b.wait(2);
    });
}

#[test]
fn no_grace_at_all() {
    check("deletion-at-once", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.pods(&[deleted("web", 0)]);
    });
}

#[test]
fn a_forced_deletion_takes_the_pod_out_of_the_index() {
    check("deletion-forced", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.pods(&[]);
        b.wait(3);
        b.exited("web/app#0", 137);
        b.removed("web");
    });
}

#[test]
fn force_after_grace() {
    check("deletion-grace-then-forced", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.pods(&[deleted("web", 600)]);
        b.wait(3);
        b.pods(&[]);
        b.wait(3);
        b.exited("web/app#0", 137);
        b.removed("web");
    });
}

#[test]
fn deleted_while_a_container_starts() {
    check("deletion-while-starting", |b| {
        b.pods(&[pod("web")]);
        b.sandbox_ready("web");
        b.image_ready("web/app#0");
        b.pods(&[deleted("web", 5)]);
        b.wait(10);
        b.started("web/app#0");
        b.exited("web/app#0", 137);
        b.removed("web");
    });
}

#[test]
fn deleted_while_the_sandbox_is_made() {
    check("deletion-while-sandbox", |b| {
        b.pods(&[pod("web")]);
        b.pods(&[deleted("web", 5)]);
        b.wait(10);
        b.sandbox_ready("web");
        b.note("the image comes too late to matter");
        b.image_ready("web/app#0");
        b.removed("web");
    });
}

#[test]
fn deleted_in_back_off() {
    check("deletion-in-back-off", |b| {
        b.pods(&[pod("web"), pod("pull")]);
        b.sandbox_ready("web");
        b.sandbox_ready("pull");
        for attempt in 0..2 {
            let at = format!("web/app#{attempt}");
            b.image_ready(&at);
            b.started(&at);
            b.exited(&at, 1);
        }
        b.image_failed("pull/app#0", "ErrImagePull");
        b.pods(&[deleted("web", 5), deleted("pull", 5)]);
        b.wait(600);
        b.removed("web");
        b.removed("pull");
    });
}

#[test]
fn the_shim_is_lost_while_the_pod_ends() {
    check("deletion-shim-lost", |b| {
        b.pods(&[pod("web")]);
        b.run("web");
        b.pods(&[deleted("web", 5)]);
        b.event("shim lost web", Event::ShimLost(uid("web")));
        b.removed("web");
    });
}
