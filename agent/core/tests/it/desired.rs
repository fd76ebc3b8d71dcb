//! The conversation about the desired state, and the journal before everything.

use ring::signature::Ed25519KeyPair;
use skiff_core::Event;
use skiff_protocol::sha256;
use skiff_protocol::wire::Down;
use skiff_protocol::wire::desired::{Change, Index, delta};
use skiff_protocol::wire::spec::Object;

use crate::bench::{Bench, check, config_map, encode, pod};

#[test]
fn nothing_is_acted_upon_before_it_is_durable() {
    check("durable-first", |b| {
        b.hold = true;
        b.link_up();
        b.pods(&[pod("web")]);
        b.wait(60);
        b.answer(true);
    });
}

#[test]
fn what_the_journal_refuses_is_not_acted_upon() {
    check("not-durable", |b| {
        b.link_up();
        b.pods(&[pod("web")]);
        b.run("web");
        b.hold = true;
        b.pods(&[]);
        b.note("a second one, built on the first, falls with it");
        b.pods(&[pod("job")]);
        b.answer(false);
        b.answer(false);
        b.wait(60);
        b.hold = false;
        b.note("sent again, it is taken");
        b.pods(&[pod("web"), pod("job")]);
    });
}

fn objects(pods: &[&str]) -> (Index, Vec<Vec<u8>>) {
    let objects: Vec<Object> = pods.iter().map(|name| Object::Pod(pod(name))).collect();
    let bytes: Vec<Vec<u8>> = objects.iter().map(encode).collect();
    let entries = objects
        .iter()
        .zip(&bytes)
        .map(|(object, bytes)| (object.key(), sha256(bytes)));
    (Index(entries.collect()), bytes)
}

fn say(b: &mut Bench, said: &str, generation: u64, change: Change, index: &Index, objects: Vec<Vec<u8>>) {
    let desired = b.sign(generation, change, index, objects);
    b.event(said, Event::Down(Down::Desired(desired)));
}

#[test]
fn missing_objects_are_asked_for_and_nothing_else_is_taken() {
    check("need", |b| {
        let (index, bytes) = objects(&["web", "job"]);
        say(
            b,
            "an index without objects",
            1,
            Change::Full(index.clone()),
            &index,
            Vec::new(),
        );
        let give = |b: &mut Bench, said: &str, generation, objects: Vec<Vec<u8>>| {
            b.event(said, Event::Down(Down::Objects { generation, objects }));
        };
        give(
            b,
            "objects of another generation",
            2,
            vec![bytes[0].clone(), bytes[1].clone()],
        );
        give(
            b,
            "an object that nobody announced, and rubbish",
            1,
            vec![encode(&config_map("other")), vec![0xff; 9]],
        );
        give(b, "the first", 1, vec![bytes[0].clone()]);
        give(b, "the first again", 1, vec![bytes[0].clone()]);
        give(b, "the second", 1, vec![bytes[1].clone()]);
    });
}

#[test]
fn deltas_replays_forks_and_forgeries() {
    check("desired-verified", |b| {
        b.link_up();
        let (one, bytes) = objects(&["web"]);
        say(
            b,
            "generation 5",
            5,
            Change::Full(one.clone()),
            &one,
            bytes.clone(),
        );
        let (two, more) = objects(&["web", "job"]);
        say(b, "6 as a delta to 5", 6, delta(5, &one, &two), &two, more);
        say(
            b,
            "a delta to what is not held",
            8,
            delta(7, &one, &two),
            &two,
            Vec::new(),
        );
        say(
            b,
            "5 again, later",
            5,
            Change::Full(one.clone()),
            &one,
            Vec::new(),
        );
        say(
            b,
            "6 with another content",
            6,
            Change::Full(one.clone()),
            &one,
            Vec::new(),
        );
        say(b, "6 again", 6, Change::Full(two.clone()), &two, Vec::new());
        let mut forged = b.sign(9, Change::Full(one.clone()), &one, Vec::new());
        let mallory = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).expect("32 bytes are a seed");
        forged.signature = mallory.sign(b"whatever").as_ref().to_vec();
        b.event("9, signed by another", Event::Down(Down::Desired(forged)));
        assert_eq!(b.core.counters().desired_refused, 4);
    });
}

#[test]
fn what_is_said_after_each_connect() {
    check("link", |b| {
        b.pods(&[pod("web")]);
        b.note("nothing is said before the link stands");
        b.reports();
        b.link_up();
        b.reports();
        b.run("web");
        b.reports();
        b.note("nothing new, nothing said");
        b.reports();
        b.event("link down", Event::LinkDown);
        b.exited("web/app#0", 1);
        b.reports();
        b.link_up();
        b.reports();
        b.event("resync", Event::Down(Down::Resync));
        b.reports();
    });
}

#[test]
fn events_that_find_no_room_are_counted() {
    let mut b = Bench::new();
    b.observed(Vec::new());
    b.pods(&[pod("web")]);
    for _ in 0..100 {
        b.image_failed("web/app#0", "ErrImagePull");
        b.wait(300);
    }
    b.link_up();
    let lost = b.core.counters().events_lost;
    assert!(lost >= 36, "{lost}");
    let said = std::iter::from_fn(|| b.core.next_report()).find_map(|up| match up {
        skiff_protocol::wire::Up::Events { lost, events } => Some((lost, events.len())),
        _ => None,
    });
    assert_eq!(said, Some((lost, 64)));
}
