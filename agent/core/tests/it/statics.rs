//! Static Pods: they come from the node's own directory, and only that ends them.

use skiff_core::ObservedPhase::Running;
use skiff_core::{Event, Manifests, Pressure, StaticPod, Usage};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::Down;
use skiff_protocol::wire::spec::PodSpec;

use crate::bench::{Bench, EPOCH, check, found, found_pod, pod_with, uid};

/// A static Pod; `id` is short, for what tells one manifest from another.
fn manifest(name: &str, id: &str, spec: &str) -> StaticPod {
    let text = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}", "namespace": "default", "uid": "{}"}},
            "spec": {{"containers": [{{"name": "app", "image": "app:1"{spec}}}]}}}}"#,
        uid(id)
    );
    StaticPod {
        uid: uid(id),
        name: ("default".to_owned(), name.to_owned()),
        manifest: text.into_bytes(),
    }
}

fn asking(name: &str, cpu_milli: u64) -> PodSpec {
    pod_with(name, |it| {
        it.containers[0].resources.cpu_request = Some(cpu_milli);
    })
}

fn web(id: &str) -> StaticPod {
    manifest("web-rover-7", id, "")
}

impl Bench {
    /// The directory was read.
    fn statics(&mut self, files: &[(&str, Option<StaticPod>)]) {
        let said: Vec<String> = files
            .iter()
            .map(|(file, pod)| match pod {
                Some(pod) => format!("{file} ({}, {})", pod.name.1, text(pod.uid)),
                None => format!("{file} unreadable"),
            })
            .collect();
        let manifests: Manifests = files
            .iter()
            .map(|(file, pod)| ((*file).to_owned(), pod.clone()))
            .collect();
        self.event(
            &format!("statics [{}]", said.join(", ")),
            Event::Statics(manifests),
        );
    }
}

fn text(uid: Uid) -> String {
    String::from_utf8_lossy(&uid.0).trim_end_matches('.').to_owned()
}

/// Kubernetes documentation, "Create static Pods": they need no server, and a server's desired state does not end them.
#[test]
fn one_runs_without_any_server_and_is_none_of_a_servers() {
    check("statics-alone", |b| {
        b.statics(&[("web.yaml", Some(web("w1")))]);
        b.run("w1");
        b.note("a server comes, which wants another Pod, and then none");
        b.linked();
        b.pods(&[asking("other", 1)]);
        b.pods(&[]);
        b.note("the server asks for its manifest; of what it has not it has nothing to tell");
        let uids = vec![uid("w1"), uid("x")];
        b.event("need", Event::Down(Down::NeedStatics { uids }));
        b.event("which", Event::Down(Down::NeedStatics { uids: Vec::new() }));
        b.note("the file goes: it ends in its own time");
        b.statics(&[]);
        b.exited("w1/app#0", 143);
        b.removed("w1");
    });
}

/// Two of one name never run at once, whatever becomes of their files.
#[test]
fn a_changed_manifest_takes_the_place_of_the_one_before() {
    check("statics-changed", |b| {
        b.statics(&[("web.yaml", Some(web("w1")))]);
        b.run("w1");
        b.note("the same under another name of the file changes nothing");
        b.statics(&[("renamed.yaml", Some(web("w1")))]);
        b.note("another manifest, and again another before the first has ended");
        b.statics(&[("renamed.yaml", Some(web("w2")))]);
        b.statics(&[("renamed.yaml", Some(web("w3")))]);
        b.exited("w1/app#0", 0);
        b.removed("w1");
        b.run("w3");
        b.note("in another file as well");
        b.statics(&[("a.yaml", Some(web("w4")))]);
        b.exited("w3/app#0", 0);
        b.removed("w3");
        b.run("w4");
        b.note("another file takes it over, and its own says something else: it goes on, with what is known of it");
        b.exited("w4/app#0", 1);
        b.statics(&[
            ("a.yaml", Some(manifest("db-rover-7", "d1", ""))),
            ("b.yaml", Some(web("w4"))),
        ]);
        assert!(
            b.recovered()
                .containers
                .contains_key(&(uid("w4"), "app".to_owned()))
        );
    });
}

/// A directory that a power cut has damaged ends nothing.
#[test]
fn a_file_that_cannot_be_read_means_what_it_last_meant() {
    check("statics-unreadable", |b| {
        b.statics(&[("web.yaml", Some(web("w1"))), ("b.yaml", None)]);
        b.run("w1");
        b.statics(&[("web.yaml", None)]);
        b.note("a reboot, and the directory cannot be read at all");
        b.restart(Vec::new());
        b.sandbox_ready("w1");
        b.start("w1/app#1");
        b.note("it can again");
        b.statics(&[("web.yaml", Some(web("w1")))]);
    });
}

#[test]
fn an_agent_that_starts_follows_what_changed_meanwhile() {
    check("statics-restart", |b| {
        b.statics(&[
            ("web.yaml", Some(web("w1"))),
            ("db.yaml", Some(manifest("db-rover-7", "d1", ""))),
        ]);
        b.run("w1");
        b.run("d1");
        b.note("one was edited while no agent ran; both run");
        b.begin_anew();
        b.statics(&[
            ("web.yaml", Some(web("w2"))),
            ("db.yaml", Some(manifest("db-rover-7", "d1", ""))),
        ]);
        let app = web("w1").parse().unwrap().containers[0].clone();
        let runs = |id| {
            found_pod(
                id,
                if id == "w1" { 2 } else { 3 },
                vec![found(&app, 0, Running(EPOCH))],
            )
        };
        b.observed(vec![runs("w1"), runs("d1")]);
        b.exited("w1/app#0", 0);
        b.removed("w1");
        b.run("w2");
        b.note("after a reboot the edited one starts, and never the old one");
        b.begin_anew();
        b.statics(&[("web.yaml", Some(web("w3")))]);
        b.observed(Vec::new());
        b.removed("w2");
        b.removed("d1");
    });
}

/// Nobody makes another Pod for one that was refused, so it waits for room; and it is not what a shortage ends.
#[test]
fn one_without_room_waits_and_none_is_evicted() {
    check("statics-room", |b| {
        b.pods(&[asking("big", 900)]);
        b.run("big");
        let asks = r#", "resources": {"requests": {"cpu": "500m"}}"#;
        b.statics(&[("web.yaml", Some(manifest("web-rover-7", "w1", asks)))]);
        b.note("a start of the agent is no room");
        let big = asking("big", 900).containers[0].clone();
        b.restart(vec![found_pod("big", 2, vec![found(&big, 0, Running(EPOCH))])]);
        b.pods(&[]);
        b.exited("big/app#0", 143);
        b.removed("big");
        b.run("w1");
        b.note("the node is short of memory, and takes a static Pod all the same");
        let used = Usage {
            pod: uid("w1"),
            memory: 500 << 20,
            ..Usage::default()
        };
        let short = Pressure {
            memory: Some("short".to_owned()),
            usage: vec![used],
            ..Pressure::default()
        };
        b.event("short", Event::Pressure(short));
        b.statics(&[
            ("web.yaml", Some(manifest("web-rover-7", "w1", asks))),
            ("db.yaml", Some(manifest("db-rover-7", "d1", ""))),
        ]);
        b.run("d1");
    });
}

#[test]
fn what_the_journal_refuses_is_told_it_again() {
    check("statics-journal", |b| {
        b.hold = true;
        b.statics(&[("web.yaml", Some(web("w1")))]);
        b.answer(false);
        b.wait(30);
        b.answer(true);
    });
}
