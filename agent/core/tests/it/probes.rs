//! `startupProbe`, `livenessProbe`, `readinessProbe`.

use skiff_core::ObservedPhase::Running;
use skiff_core::ProbeKind::{Liveness, Readiness, Startup};
use skiff_core::{Effect, Event, Now, ProbeOutcome, Probed};
use skiff_protocol::wire::spec::{Handler, PodSpec, PortRef, Probe, RestartPolicy};

use crate::bench::{Bench, check, found, found_pod, pod_with};

/// A probe of this period and `failureThreshold`.
pub(crate) fn probe(period: u32, failures: u32) -> Probe {
    Probe {
        handler: Handler::TcpSocket {
            host: String::new(),
            port: PortRef::Number(80),
        },
        initial_delay_seconds: 0,
        timeout_seconds: 1,
        period_seconds: period,
        success_threshold: 1,
        failure_threshold: failures,
        termination_grace_seconds: None,
    }
}

/// With the probes of its container changed by `change`.
fn probed(change: impl FnOnce(&mut PodSpec)) -> PodSpec {
    pod_with("web", change)
}

#[test]
fn readiness_begins_at_failure_and_moves_by_its_thresholds() {
    check("probe-readiness", |b| {
        b.linked();
        b.pods(&[probed(|it| {
            let mut ready = probe(5, 2);
            ready.success_threshold = 2;
            ready.initial_delay_seconds = 3;
            it.containers[0].readiness = Some(ready);
        })]);
        b.run("web");
        b.wait(3);
        for outcome in [true, true, false, true, false, false, true, true] {
            if outcome {
                b.succeeds("web/app#0", Readiness);
            } else {
                b.fails("web/app#0", Readiness);
            }
            b.wait(5);
        }
        b.reports();
    });
}

#[test]
fn liveness_ends_what_fails_and_the_policy_decides() {
    check("probe-liveness", |b| {
        b.linked();
        for policy in [
            RestartPolicy::Always,
            RestartPolicy::OnFailure,
            RestartPolicy::Never,
        ] {
            b.note(&format!("{policy:?}"));
            b.pods(&[probed(|it| {
                it.restart_policy = policy;
                let mut live = probe(1, 3);
                live.termination_grace_seconds = Some(5);
                it.containers[0].liveness = Some(live);
            })]);
            b.run("web");
            b.wait(1);
            for _ in 0..3 {
                b.fails("web/app#0", Liveness);
                b.wait(1);
            }
            b.wait(5);
            b.note("that it ended with 0 in the end does not help it");
            b.exited("web/app#0", 0);
            b.reports();
            b.pods(&[]);
            b.wait(1);
            b.removed("web");
        }
    });
}

#[test]
fn startup_gates_the_others() {
    check("probe-startup", |b| {
        b.pods(&[probed(|it| {
            it.containers[0].startup = Some(probe(2, 30));
            it.containers[0].liveness = Some(probe(10, 3));
            it.containers[0].readiness = Some(probe(10, 3));
        })]);
        b.run("web");
        b.fails("web/app#0", Startup);
        b.wait(2);
        b.succeeds("web/app#0", Startup);
        b.succeeds("web/app#0", Readiness);
    });
}

#[test]
fn a_container_that_never_comes_up_is_restarted() {
    check("probe-startup-fails", |b| {
        b.linked();
        b.pods(&[probed(|it| it.containers[0].startup = Some(probe(2, 2)))]);
        b.run("web");
        b.fails("web/app#0", Startup);
        b.wait(2);
        b.fails("web/app#0", Startup);
        b.exited("web/app#0", 143);
        b.start("web/app#1");
        b.reports();
    });
}

#[test]
fn an_outcome_that_says_nothing_counts_neither_way() {
    check("probe-unknown", |b| {
        b.linked();
        b.pods(&[probed(|it| it.containers[0].liveness = Some(probe(1, 2)))]);
        b.run("web");
        b.wait(1);
        b.fails("web/app#0", Liveness);
        for _ in 0..3 {
            b.wait(1);
            b.probed("web/app#0", Liveness, ProbeOutcome::Unknown("no shim".to_owned()));
        }
        b.wait(1);
        b.note("the second failure in a row");
        b.fails("web/app#0", Liveness);
        b.reports();
    });
}

#[test]
fn no_two_tries_are_in_flight() {
    check("probe-slow", |b| {
        b.pods(&[probed(|it| it.containers[0].readiness = Some(probe(1, 3)))]);
        b.run("web");
        b.wait(4);
        b.note("it answers late; the next try is due at once, and only one");
        b.succeeds("web/app#0", Readiness);
        b.note("an answer that nobody waits for");
        b.wait(0);
        b.succeeds("web/app#0", Readiness);
        b.fails("web/app#0", Readiness);
    });
}

#[test]
fn nothing_healthy_becomes_unready_by_an_agent_restart() {
    check("probe-adopted", |b| {
        let web = probed(|it| {
            it.containers[0].startup = Some(probe(1, 3));
            it.containers[0].readiness = Some(probe(10, 1));
            it.containers[0].liveness = Some(probe(10, 1));
        });
        b.pods(std::slice::from_ref(&web));
        for (note, started, ready) in [
            ("ready", true, true),
            ("started, not ready", true, false),
            ("not started", false, false),
        ] {
            b.note(note);
            let mut app = found(&web.containers[0], 0, Running(1000));
            app.probed = Probed { started, ready };
            b.restart(vec![found_pod("web", 2, vec![app])]);
            b.wait(10);
        }
    });
}

#[test]
fn readiness_is_still_tried_while_a_pod_ends_and_liveness_is_not() {
    check("probe-while-ending", |b| {
        let web = probed(|it| {
            it.containers[0].readiness = Some(probe(5, 1));
            it.containers[0].liveness = Some(probe(5, 1));
        });
        b.pods(std::slice::from_ref(&web));
        b.run("web");
        b.succeeds("web/app#0", Readiness);
        b.pods(&[PodSpec {
            deletion_grace_seconds: Some(30),
            ..web
        }]);
        b.wait(6);
        b.fails("web/app#0", Readiness);
        b.exited("web/app#0", 0);
    });
}

/// A hundred probes of one second that an agent finds at once must not all be tried in one moment, and each keeps its
/// period.
#[test]
fn a_hundred_probes_are_spread() {
    let mut b = Bench::with_room_for(100);
    b.observed(Vec::new());
    let pods: Vec<PodSpec> = (0..100)
        .map(|at| {
            pod_with(&format!("web-{at}"), |it| {
                it.containers[0].liveness = Some(probe(1, 3));
            })
        })
        .collect();
    b.pods(&pods);
    let running = pods.iter().zip(2..).map(|(pod, ip)| {
        let app = found(&pod.containers[0], 0, Running(0));
        found_pod(&pod.name, ip, vec![app])
    });
    b.restart(running.collect());
    let (mut at, mut most, mut sum) = (0, 0, 0);
    while let Some(next) = b.core.next_deadline().filter(|next| *next < 10_000) {
        at = at.max(next);
        let now = Now { mono: at, unix: 0 };
        let effects = b.core.handle(now, Event::Tick);
        let tried = effects.into_iter().filter_map(|it| match it {
            Effect::Probe { container, kind } => Some((container, kind)),
            _ => None,
        });
        let tried: Vec<_> = tried.collect();
        (most, sum) = (most.max(tried.len()), sum + tried.len());
        for (container, kind) in tried {
            let outcome = ProbeOutcome::Success;
            b.core.handle(
                now,
                Event::Probed {
                    container,
                    kind,
                    outcome,
                },
            );
        }
    }
    // Those that fell due in the moment of the start were tried there, and nobody answered them.
    assert!((980..=1000).contains(&sum), "{sum} tries of 100 probes in 10 s");
    assert!(most <= 5, "{most} in one millisecond");
}
