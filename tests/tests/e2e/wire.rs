//! What a hostile broker can do to a node: waste its time, and nothing else.
//!
//! Always holds: after every abuse the same processes run, the counter that belongs to it has gone up by one, and the
//! link still carries what is genuine.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use ring::signature::Ed25519KeyPair;
use serde_json::Value;
use skiff_pki::FleetAuthority;
use skiff_protocol::limits;
use skiff_protocol::topic::NodeName;
use skiff_protocol::wire::desired::{Change, Desired, Index, signed_bytes};
use skiff_protocol::wire::{Down, Frame, OLDEST, decode_down, encode_down, frames};

use crate::harness::middle::{Middle, Seen};
use crate::harness::pods::{IDLE, NUMBERS, numbers};
use crate::harness::process::read;
use crate::harness::{Cluster, Init, Setup, pod, shell, wait};

const UNREADABLE: &str = "/link/unreadable";
const DESIRED: &str = "/refused/desired";
const OBJECTS: &str = "/refused/objects";

struct Scene<'a> {
    cluster: &'a Cluster,
    middle: &'a Middle,
    inits: BTreeSet<Init>,
}

impl Scene<'_> {
    /// Puts a payload in; the counter goes up by one, the others stay, and everything runs on.
    #[track_caller]
    fn check(&self, what: &str, topic: &str, payload: &[u8], counter: &str) {
        let figures = || [UNREADABLE, DESIRED, OBJECTS].map(|it| (it, self.cluster.node.figure(it)));
        let expected = figures().map(|(name, value)| (name, value + u64::from(name == counter)));
        let generation = self.cluster.node.figure("/generation");
        self.middle.publish(topic, payload);
        wait(&format!("{what} to be counted as {counter}"), 10, || {
            let now = figures();
            if now == expected {
                Ok(())
            } else {
                Err(format!("{now:?}, not {expected:?}"))
            }
        });
        assert_eq!(self.cluster.node.figure("/generation"), generation, "{what}");
        assert_eq!(self.cluster.node.inits(), self.inits, "{what}");
        assert!(self.connected(), "{what}: the link broke");
    }

    fn connected(&self) -> bool {
        let status = self.cluster.node.ask("status").unwrap();
        status["link"]["connected"] == true
    }
}

/// The payloads of desired states that the server sent, the first one first.
fn desired(seen: &[Seen]) -> Vec<(Seen, Desired)> {
    seen.iter()
        .filter_map(|it| {
            let Ok(Frame::Whole(message)) = Frame::parse(&it.payload) else {
                return None;
            };
            match decode_down(message) {
                Ok(Down::Desired(desired)) => Some((it.clone(), desired)),
                _ => None,
            }
        })
        .collect()
}

fn payload(message: &Down) -> Vec<u8> {
    frames(OLDEST, &encode_down(message), 1).unwrap().remove(0)
}

/// A desired state without a single Pod, signed by `sign` for `node`.
fn nothing(node: &str, generation: u64, sign: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let node = NodeName::parse(node).unwrap();
    let index = Index::default();
    payload(&Down::Desired(Desired {
        generation,
        signature: sign(&signed_bytes(&node, generation, &index.digest())),
        change: Change::Full(index),
        objects: Vec::new(),
    }))
}

#[test]
fn a_hostile_broker_deploys_nothing_and_stops_nothing() {
    let middle = OnceCell::new();
    let cluster = Cluster::start(&Setup {
        mosquitto: true,
        images: &["busybox"],
        agent: "mqtt_version = \"3.1.1\"\n",
        broker_url: Some(&|cluster| {
            let listening = Middle::start(cluster);
            let url = listening.url();
            middle.set(listening).ok();
            url
        }),
        server: &[],
    });
    let middle: &Middle = middle.get().unwrap();
    cluster.run(&pod("numbers", &shell(NUMBERS), Value::Null));
    cluster.run(&pod("gone", &shell(IDLE), Value::Null));
    cluster.delete("gone");
    let scene = Scene {
        cluster: &cluster,
        middle,
        inits: cluster.node.inits(),
    };
    assert_eq!(scene.inits.len(), 1);
    frames_that_are_none(&scene);
    desired_states_of_others(&scene);
    floods(&scene);

    // It was never more than noise.
    cluster.run(&pod("genuine", &shell(IDLE), Value::Null));
    let log = numbers(&cluster.logs(&["numbers"]));
    assert_eq!(log, (1..=log.len() as u64).collect::<Vec<_>>());
    let lines = cluster.node.log();
    let noted = lines
        .lines()
        .filter(|it| it.contains("no message of ours"))
        .count();
    assert!((1..=12).contains(&noted), "{noted} lines in the log:\n{lines}");
    cluster
        .kubectl(&["delete", "pods", "--all", "--grace-period=1"])
        .ok();
    cluster.is_empty();
}

fn frames_that_are_none(scene: &Scene<'_>) {
    let (genuine, _) = desired(&scene.middle.seen()).remove(0);
    let own = genuine.topic.as_str();
    let half = &genuine.payload[..genuine.payload.len() / 2];
    let mut other_version = genuine.payload.clone();
    other_version[0] = 9;
    let longer: Vec<u8> = genuine.payload.iter().copied().chain([0]).collect();
    for (what, topic, payload) in [
        ("another version", own, other_version.as_slice()),
        ("a truncated frame", own, half),
        ("an empty frame", own, &[]),
        ("a frame with something behind it", own, &longer),
        ("a frame past the bound", own, &vec![1; limits::FRAME + 1]),
        ("another node's topic", "skiff/d/other/spec", &genuine.payload),
        ("the other direction", "skiff/u/1/rover/hello", &genuine.payload),
        ("no topic of ours", "skiff/d/rover/unheard-of", &genuine.payload),
        ("a chunk past the count", own, &[1, 1, 0, 0, 0, 0, 9, 0, 2, 0, 1]),
    ] {
        scene.check(what, topic, payload, UNREADABLE);
    }
}

fn desired_states_of_others(scene: &Scene<'_>) {
    let all = desired(&scene.middle.seen());
    let (first, old) = &all[0];
    let own = first.topic.as_str();
    let held = scene.cluster.node.figure("/generation");
    assert!(
        old.generation < held,
        "the first one is old: {} < {held}",
        old.generation
    );
    let stranger = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let stored = read(&scene.cluster.data().join("fleet.json"));
    let server = FleetAuthority::open(serde_json::from_str(&stored).unwrap()).unwrap();
    let by_stranger = |bytes: &[u8]| stranger.sign(bytes).as_ref().to_vec();
    let by_server = |bytes: &[u8]| server.sign(bytes).to_vec();
    for (what, payload) in [
        ("another key", nothing("rover", held + 1, by_stranger)),
        ("another node's", nothing("other", held + 1, by_server)),
        ("no signature", nothing("rover", held + 1, |_| Vec::new())),
        ("an old one again", first.payload.clone()),
        ("an old generation anew", nothing("rover", held - 1, by_server)),
        ("a fork of the one held", nothing("rover", held, by_server)),
    ] {
        scene.check(what, own, &payload, DESIRED);
    }
    let unannounced = payload(&Down::Objects {
        generation: held,
        objects: vec![vec![1, 2, 3]],
    });
    // Nobody waits for objects, so they are dropped; what is counted is the frame behind them.
    scene.middle.publish(own, &unannounced);
    scene.check("what follows objects that nobody asked for", own, &[], UNREADABLE);
    // The current state once more is what every reconnect brings.
    let (latest, _) = all.last().unwrap();
    scene.middle.publish(own, &latest.payload);
    scene.check("what follows the current state", own, &[], UNREADABLE);
}

fn floods(scene: &Scene<'_>) {
    let before = scene.cluster.node.figure(UNREADABLE);
    for round in 0..500_u32 {
        let mut state = round;
        let noise: Vec<u8> = (0..round % 97 + 3)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Never version 1, so that each is counted.
                (state >> 24) as u8 | 2
            })
            .collect();
        scene.middle.publish("skiff/d/rover/spec", &noise);
    }
    wait("all noise to be counted", 20, || {
        let counted = scene.cluster.node.figure(UNREADABLE) - before;
        if counted == 500 {
            Ok(())
        } else {
            Err(counted.to_string())
        }
    });
    // Beginnings of messages that never end.
    let long = frames(OLDEST, &vec![0; 4 * limits::FRAME], 0).unwrap();
    for id in 0..50_u32 {
        let mut chunk = long[0].clone();
        chunk[2..6].copy_from_slice(&id.to_le_bytes());
        scene.middle.publish("skiff/d/rover/spec", &chunk);
    }
    // A packet that no broker may send to it: the session begins anew.
    scene
        .middle
        .publish("skiff/d/rover/spec", &vec![1; 3 * limits::FRAME]);
    wait("the link to stand again", 20, || {
        let log = scene.cluster.node.log();
        let connects = log.matches("connected to the broker").count();
        if connects >= 2 && scene.connected() {
            Ok(())
        } else {
            Err(format!("{connects} connects"))
        }
    });
    assert_eq!(scene.cluster.node.inits(), scene.inits);
    scene.cluster.is_ready();
}
