//! `spec.initContainers`: order, restarts, sidecars, reboots.

use skiff_core::ObservedPhase::{Exited, Running};
use skiff_core::ProbeKind::Startup;
use skiff_core::{Event, Probed};
use skiff_protocol::wire::spec::{Container, PodSpec, RestartPolicy};

use crate::bench::{Bench, check, container, exit, found, found_pod, pod_with, uid};
use crate::probes::probe;

pub(crate) fn sidecar(name: &str) -> Container {
    Container {
        sidecar: true,
        ..container(name)
    }
}

/// Init containers `one` and `two`, and `app`.
fn two_inits(policy: RestartPolicy) -> PodSpec {
    pod_with("web", |it| {
        it.restart_policy = policy;
        it.init_containers = vec![container("one"), container("two")];
    })
}

/// An init container, a sidecar, another init container, and `app`.
fn with_sidecar(policy: RestartPolicy) -> PodSpec {
    pod_with("web", |it| {
        it.restart_policy = policy;
        it.init_containers = vec![container("one"), sidecar("log"), container("two")];
    })
}

fn ends_well(b: &mut Bench, at: &str) {
    b.start(at);
    b.exited(at, 0);
}

#[test]
fn one_after_the_other() {
    check("init-order", |b| {
        b.linked();
        b.pods(&[two_inits(RestartPolicy::Always)]);
        b.sandbox_ready("web");
        ends_well(b, "web/one#0");
        b.wait(2);
        ends_well(b, "web/two#0");
        b.start("web/app#0");
        b.reports();
    });
}

#[test]
fn one_that_fails_is_restarted_with_back_off() {
    check("init-fails", |b| {
        b.linked();
        b.pods(&[two_inits(RestartPolicy::OnFailure)]);
        b.sandbox_ready("web");
        for (attempt, wait) in [(0, 0), (1, 10), (2, 20)] {
            b.start(&format!("web/one#{attempt}"));
            b.exited(&format!("web/one#{attempt}"), 1);
            b.wait(wait);
        }
        ends_well(b, "web/one#3");
        b.reports();
    });
}

#[test]
fn one_that_fails_under_never_fails_the_pod() {
    check("init-fails-never", |b| {
        b.pods(&[with_sidecar(RestartPolicy::Never)]);
        b.sandbox_ready("web");
        ends_well(b, "web/one#0");
        b.start("web/log#0");
        b.start("web/two#0");
        b.exited("web/two#0", 3);
        b.exited("web/log#0", 143);
        b.note("nothing of it runs again, not even after a reboot");
        b.restart(Vec::new());
    });
}

#[test]
fn a_sidecar_is_passed_once_it_is_started() {
    check("sidecar-started", |b| {
        b.pods(&[pod_with("web", |it| {
            let mut log = sidecar("log");
            log.startup = Some(probe(1, 3));
            it.init_containers = vec![log, container("two")];
        })]);
        b.sandbox_ready("web");
        b.start("web/log#0");
        b.succeeds("web/log#0", Startup);
        ends_well(b, "web/two#0");
        b.start("web/app#0");
    });
}

#[test]
fn a_sidecar_is_restarted_whatever_the_policy_and_ended_after_the_others() {
    check("sidecar-ends-last", |b| {
        b.linked();
        b.pods(&[pod_with("web", |it| {
            it.restart_policy = RestartPolicy::Never;
            it.init_containers = vec![sidecar("log"), sidecar("net")];
        })]);
        b.sandbox_ready("web");
        for at in ["web/log#0", "web/net#0", "web/app#0"] {
            b.start(at);
        }
        b.exited("web/log#0", 0);
        b.start("web/log#1");
        b.wait(5);
        b.exited("web/app#0", 0);
        b.note("the last one first, and how they end does not count");
        b.wait(1);
        b.exited("web/net#0", 143);
        b.exited("web/log#1", 137);
        b.reports();
        b.restart(Vec::new());
    });
}

#[test]
fn a_new_sandbox_begins_with_the_first() {
    check("init-shim-lost", |b| {
        b.pods(&[with_sidecar(RestartPolicy::Always)]);
        b.sandbox_ready("web");
        ends_well(b, "web/one#0");
        b.start("web/log#0");
        ends_well(b, "web/two#0");
        b.start("web/app#0");
        b.event("shim lost web", Event::ShimLost(uid("web")));
        b.sandbox_ready("web");
        ends_well(b, "web/one#1");
    });
}

#[test]
fn a_reboot_begins_with_the_first() {
    check("init-reboot", |b| {
        b.pods(&[two_inits(RestartPolicy::Always)]);
        b.sandbox_ready("web");
        b.start("web/one#0");
        b.exited("web/one#0", 1);
        ends_well(b, "web/one#1");
        ends_well(b, "web/two#0");
        b.start("web/app#0");
        b.note("the power is gone");
        b.restart(Vec::new());
        b.sandbox_ready("web");
        ends_well(b, "web/one#2");
        ends_well(b, "web/two#0");
        b.start("web/app#0");
    });
}

#[test]
fn a_pod_that_is_taken_over_is_initialized() {
    check("init-adopted", |b| {
        b.pods(&[with_sidecar(RestartPolicy::Always)]);
        b.note("all run");
        b.restart(vec![found_pod(
            "web",
            2,
            vec![
                found(&container("one"), 0, Exited(exit(0, 3))),
                found(&sidecar("log"), 0, Running(1000)),
                found(&container("two"), 0, Exited(exit(0, 5))),
                found(&container("app"), 0, Running(1000)),
            ],
        )]);
        b.note("the shim knows nothing more of the init containers");
        b.restart(vec![found_pod(
            "web",
            2,
            vec![
                found(&sidecar("log"), 0, Running(1000)),
                found(&container("app"), 0, Running(1000)),
            ],
        )]);
        b.note("in the middle of them");
        let mut log = found(&sidecar("log"), 0, Running(1000));
        log.probed = Probed::default();
        b.restart(vec![found_pod(
            "web",
            2,
            vec![found(&container("one"), 0, Exited(exit(0, 3))), log],
        )]);
    });
}

/// Found by the simulation: the journal's word about an init container is of a sandbox before the one that stands.
#[test]
fn what_ran_in_a_sandbox_before_a_reboot_does_not_count_in_the_next() {
    check("init-reboot-restart", |b| {
        b.pods(&[two_inits(RestartPolicy::Always)]);
        b.sandbox_ready("web");
        b.start("web/one#0");
        b.exited("web/one#0", 1);
        ends_well(b, "web/one#1");
        b.restart(Vec::new());
        b.sandbox_ready("web");
        b.restart(vec![found_pod("web", 2, Vec::new())]);
    });
}

#[test]
fn a_pod_is_deleted_while_it_initializes() {
    check("init-deleted", |b| {
        let web = with_sidecar(RestartPolicy::Always);
        b.pods(std::slice::from_ref(&web));
        b.sandbox_ready("web");
        ends_well(b, "web/one#0");
        b.start("web/log#0");
        b.start("web/two#0");
        b.pods(&[PodSpec {
            deletion_grace_seconds: Some(30),
            ..web
        }]);
        b.exited("web/two#0", 143);
        b.exited("web/log#0", 143);
        b.removed("web");
    });
}
