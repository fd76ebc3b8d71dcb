//! Pressure, limits of disk use, and who goes first.

use skiff_core::ObservedPhase::Running;
use skiff_core::{Event, Pressure, Usage};
use skiff_protocol::wire::spec::PodSpec;

use crate::bench::{check, found, found_pod, pod_with, uid};

fn asks(name: &str, request: Option<u64>, limit: Option<u64>) -> PodSpec {
    pod_with(name, |it| {
        let of = &mut it.containers[0].resources;
        of.memory_request = request.map(|mib| mib << 20);
        of.memory_limit = limit.map(|mib| mib << 20);
        if limit.is_some() {
            (of.cpu_request, of.cpu_limit) = (Some(10), Some(10));
        }
    })
}

#[test]
fn who_uses_most_over_its_request_goes_first() {
    check("eviction-memory", |b| {
        b.linked();
        b.pods(&[
            asks("bound", Some(200), Some(200)),
            asks("half", Some(100), None),
            asks("free", None, None),
        ]);
        for name in ["bound", "half", "free"] {
            b.run(name);
        }
        b.note("half is 60 over, free 50");
        let used = [("bound", 200), ("half", 160), ("free", 50)];
        b.memory_pressure(&used);
        b.note("it has not ended yet: one at a time");
        b.memory_pressure(&used);
        b.wait(1);
        b.exited("half/app#0", 137);
        b.removed("half");
        b.memory_pressure(&[("bound", 200), ("free", 50)]);
        b.exited("free/app#0", 143);
        b.removed("free");
        b.note("who keeps its promises goes last");
        b.memory_pressure(&[("bound", 200)]);
        b.exited("bound/app#0", 143);
        b.removed("bound");
        b.event("pressure is over", Event::Pressure(Pressure::default()));
        b.reports();
        b.note("the server deletes one");
        b.pods(&[asks("bound", Some(200), Some(200)), asks("half", Some(100), None)]);
        b.note("and a reboot runs none of them");
        b.restart(Vec::new());
    });
}

#[test]
fn nothing_is_evicted_before_it_is_durable() {
    check("eviction-durable", |b| {
        b.pods(&[asks("free", None, None)]);
        b.run("free");
        b.hold = true;
        b.memory_pressure(&[("free", 50)]);
        b.answer(false);
        b.note("the shortage lasts, and is told again");
        b.memory_pressure(&[("free", 50)]);
        b.note("a container that ends meanwhile is not started again");
        b.exited("free/app#0", 1);
        b.answer(true);
    });
}

#[test]
fn a_pod_that_uses_more_disk_than_it_may() {
    check("eviction-over-limit", |b| {
        b.linked();
        b.pods(&[asks("web", None, None)]);
        b.run("web");
        let message = "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". ".to_owned();
        b.event("over limit", Event::OverLimit(uid("web"), message));
        b.exited("web/app#0", 143);
        b.removed("web");
        b.reports();
        b.note("deleted: it is gone already");
        b.pods(&[pod_with("web", |it| it.deletion_grace_seconds = Some(30))]);
    });
}

/// The node's own logs may have filled the disk.
#[test]
fn who_has_nothing_on_the_disk_is_not_evicted_for_it() {
    check("eviction-disk-of-others", |b| {
        b.pods(&[asks("a", None, None)]);
        b.run("a");
        let pressure = |disk| Pressure {
            disk: Some(String::new()),
            usage: vec![Usage {
                pod: uid("a"),
                disk,
                pids: 9,
                memory: 9 << 20,
            }],
            ..Pressure::default()
        };
        b.event("disk pressure", Event::Pressure(pressure((1 << 20) - 1)));
        b.note("and with something of its own");
        b.event("disk pressure", Event::Pressure(pressure(1 << 20)));
    });
}

#[test]
fn disk_and_processes_have_their_own_use() {
    check("eviction-disk", |b| {
        b.pods(&[
            asks("a", None, None),
            asks("b", None, None),
            asks("c", None, None),
        ]);
        for name in ["a", "b", "c"] {
            b.run(name);
        }
        let usage = [("a", 9, 1), ("b", 5, 2), ("c", 1, 99)];
        let usage = usage.map(|(name, disk, pids)| Usage {
            pod: uid(name),
            disk: disk << 20,
            pids,
            memory: 0,
        });
        let pressure = |disk: bool| Pressure {
            disk: disk.then(String::new),
            pids: Some(String::new()),
            usage: usage.to_vec(),
            ..Pressure::default()
        };
        b.event("disk and pid pressure", Event::Pressure(pressure(true)));
        b.exited("a/app#0", 143);
        let disk = || Pressure {
            pids: None,
            ..pressure(true)
        };
        b.event(
            "disk pressure, while files of the first are there",
            Event::Pressure(disk()),
        );
        b.removed("a");
        b.event("disk pressure still", Event::Pressure(disk()));
        b.exited("b/app#0", 143);
        b.event("pid pressure", Event::Pressure(pressure(false)));
    });
}

#[test]
fn an_eviction_that_a_restart_cut_off_goes_on() {
    check("eviction-restart", |b| {
        let web = asks("web", None, None);
        b.pods(std::slice::from_ref(&web));
        b.run("web");
        b.memory_pressure(&[("web", 50)]);
        let running = found(&web.containers[0], 0, Running(0));
        b.restart(vec![found_pod("web", 2, vec![running])]);
        b.wait(1);
        b.exited("web/app#0", 137);
        b.removed("web");
    });
}
