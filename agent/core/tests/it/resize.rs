//! A change of `resources` of a container that runs, and `resizePolicy`.

use skiff_core::ObservedPhase::Running;
use skiff_core::{Core, Event};
use skiff_protocol::wire::spec::{PodSpec, ResizePolicy};
use skiff_protocol::wire::status::InForce;

use crate::bench::{Bench, check, container, found, found_pod, pod_with};

fn cpu(name: &str, milli: u64) -> PodSpec {
    pod_with(name, |it| {
        let of = &mut it.containers[0].resources;
        (of.cpu_request, of.cpu_limit) = (Some(milli), Some(milli));
    })
}

#[test]
fn a_change_that_fits_restarts_nothing() {
    check("resize", |b| {
        b.pods(&[cpu("web", 100)]);
        b.run("web");
        b.pods(&[cpu("web", 200)]);
        b.note("changed again before the kernel answered");
        b.pods(&[cpu("web", 300)]);
        b.resized("web/app#0", Ok(()));
        b.resized("web/app#0", Ok(()));
    });
}

#[test]
fn the_policy_may_ask_for_a_restart() {
    check("resize-restarts", |b| {
        let web = |milli| {
            let mut pod = cpu("web", milli);
            pod.containers[0].resize = ResizePolicy {
                cpu_restarts: true,
                memory_restarts: false,
            };
            pod
        };
        b.pods(&[web(100)]);
        b.run("web");
        b.note("memory: in place");
        let mut more = web(100);
        more.containers[0].resources.memory_request = Some(1 << 20);
        b.pods(std::slice::from_ref(&more));
        b.resized("web/app#0", Ok(()));
        b.note("cpu: started anew");
        b.pods(&[web(200)]);
        b.exited("web/app#0", 143);
        b.start("web/app#1");
    });
}

#[test]
fn what_does_not_fit_now_waits_and_what_never_fits_is_said() {
    check("resize-deferred", |b| {
        b.pods(&[cpu("web", 100), cpu("other", 800)]);
        b.run("web");
        b.run("other");
        b.pods(&[cpu("web", 300), cpu("other", 800)]);
        b.note("a start meanwhile has what was granted");
        b.exited("web/app#0", 1);
        b.start("web/app#1");
        b.note("the other goes");
        b.pods(&[cpu("web", 300)]);
        b.wait(1);
        b.exited("other/app#0", 137);
        b.removed("other");
        b.resized("web/app#1", Ok(()));
        b.note("more than the node has");
        b.pods(&[cpu("web", 1001)]);
        b.note("taken back");
        b.pods(&[cpu("web", 300)]);
    });
}

#[test]
fn what_the_kernel_refuses_is_tried_again() {
    check("resize-error", |b| {
        b.pods(&[cpu("web", 100)]);
        b.run("web");
        b.pods(&[cpu("web", 200)]);
        b.resized("web/app#0", Err("memory.max: device or resource busy"));
        b.wait(60);
        b.resized("web/app#0", Ok(()));
    });
}

#[test]
fn what_one_container_is_refused_is_not_settled_by_another() {
    check("resize-error-of-one", |b| {
        let both = |milli| {
            let mut pod = cpu("web", milli);
            let mut side = pod.containers[0].clone();
            side.name = "side".to_owned();
            pod.containers.push(side);
            pod
        };
        b.pods(&[both(100)]);
        b.run("web");
        b.start("web/side#0");
        b.pods(&[both(200)]);
        b.resized("web/app#0", Err("memory.max: device or resource busy"));
        b.resized("web/side#0", Ok(()));
        b.wait(60);
        b.resized("web/app#0", Ok(()));
    });
}

#[test]
fn a_container_that_is_taken_over_is_given_its_resources() {
    check("resize-adopted", |b| {
        let web = cpu("web", 100);
        b.pods(std::slice::from_ref(&web));
        b.run("web");
        b.hold = true;
        b.pods(&[cpu("web", 200)]);
        b.answer(true);
        b.hold = false;
        b.restart(vec![found_pod(
            "web",
            2,
            vec![found(&web.containers[0], 0, Running(0))],
        )]);
        b.resized("web/app#0", Ok(()));
    });
}

#[test]
fn the_digest_of_a_spec_says_nothing_of_cpu_and_memory() {
    let digest = |change: fn(&mut PodSpec)| Core::spec_digest(&pod_with("web", change).containers[0]);
    let plain = Core::spec_digest(&container("app"));
    assert_eq!(plain, digest(|it| it.containers[0].resources.cpu_limit = Some(1)));
    assert_eq!(
        plain,
        digest(|it| it.containers[0].resources.memory_request = Some(1))
    );
    assert_ne!(
        plain,
        digest(|it| it.containers[0].resources.storage_limit = Some(1))
    );
    assert_ne!(plain, digest(|it| it.containers[0].image = "app:2".to_owned()));
}

#[test]
fn the_status_shows_what_is_in_force() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    let shown = |b: &Bench| {
        b.core
            .statuses()
            .next()
            .and_then(|(_, it)| it.containers[0].resources)
    };
    let of = |milli| InForce {
        cpu_limit: Some(milli),
        cpu_request: Some(milli),
        ..InForce::default()
    };
    b.pods(&[cpu("web", 100)]);
    assert_eq!(shown(&b), None, "nothing runs");
    b.run("web");
    b.pods(&[cpu("web", 200)]);
    assert_eq!(shown(&b), Some(of(100)));
    b.resized("web/app#0", Ok(()));
    assert_eq!(shown(&b), Some(of(200)));
    b.event("tick", Event::Tick);
}
