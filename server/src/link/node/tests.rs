//! The conversation with one node, in steps.

use std::collections::BTreeMap;
use std::sync::Arc;

use ring::signature::{Ed25519KeyPair, KeyPair as _};
use skiff_protocol::sha256;
use skiff_protocol::wire::desired::verify;
use skiff_protocol::wire::{NodeInfo, OLDEST, VERSION};

use super::super::compile::Compiled;
use super::*;

impl Sign for Ed25519KeyPair {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(Ed25519KeyPair::sign(self, message).as_ref());
        out
    }
}

fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap()
}

fn name() -> NodeName {
    NodeName::parse("rover-7").unwrap()
}

fn state(pods: &[(u8, usize)]) -> NodeState {
    let objects: BTreeMap<ObjectKey, Arc<Compiled>> = pods
        .iter()
        .map(|(pod, size)| {
            let bytes = vec![*pod; *size];
            (
                ObjectKey::Pod(Uid([*pod; 16])),
                Arc::new(Compiled {
                    digest: sha256(&bytes),
                    bytes,
                }),
            )
        })
        .collect();
    let index = Index(objects.iter().map(|(key, it)| (key.clone(), it.digest)).collect());
    NodeState {
        index,
        objects,
        ..NodeState::default()
    }
}

fn hello(epoch: u64, generation: u64, state: &NodeState) -> Hello {
    Hello {
        epoch,
        versions: (OLDEST, VERSION),
        max_frame: 32 * 1024,
        generation,
        desired_digest: state.index.digest(),
        inventory_digest: [0; 32],
        node: NodeInfo::default(),
    }
}

fn now() -> Instant {
    Instant::now()
}

/// What is announced, with the reservation made where one is asked for.
fn announced(node: &mut Node) -> Option<Desired> {
    match node.announce(&key(), now()) {
        Step::Nothing => None,
        Step::Reserve(bound) => {
            assert_eq!(node.announce(&key(), now()), Step::Nothing, "not twice");
            node.reserved(Some(bound), now());
            announced(node)
        }
        Step::Send(Down::Desired(desired)) => Some(desired),
        Step::Send(other) => panic!("{other:?}"),
    }
}

/// A node that is here, with nothing.
fn here(reserved: u64) -> Node {
    let mut node = Node::new(&name(), reserved);
    let (liveness, answer) = node.hello(&hello(1, 0, &state(&[]))).unwrap();
    assert_eq!(
        (liveness, answer),
        (Liveness::Ready, Some(Down::InStep { generation: 0 }))
    );
    node
}

#[test]
fn changes_go_as_verifiable_deltas_and_wait_for_no_ack() {
    let mut node = here(0);
    assert_eq!(announced(&mut node), None);
    let (mut generation, mut held) = (0, Index::default());
    for pods in [vec![(1, 10)], vec![(1, 10), (2, 10)], vec![(2, 10)], vec![]] {
        node.set_state(state(&pods));
        let desired = announced(&mut node).unwrap();
        assert!(matches!(desired.change, Change::Delta { base, .. } if base == generation));
        held = verify(&name(), key().public_key().as_ref(), generation, &held, &desired).unwrap();
        assert_eq!(&held, &node.state().index);
        generation = desired.generation;
        assert_eq!(announced(&mut node), None, "once");
    }
    assert_eq!(generation, 4);
    node.applied_now(4, held.digest()).unwrap();
    assert_eq!(
        (node.deadline(), node.applied()),
        (None, Some((4, held.digest())))
    );
}

#[test]
fn generations_are_reserved_first_and_never_go_back() {
    let mut node = here(0);
    node.set_state(state(&[(1, 1)]));
    let Step::Reserve(bound) = node.announce(&key(), now()) else {
        panic!("not reserved")
    };
    assert_eq!(bound, limits::GENERATION_BLOCK);
    // The store failed: it is left in peace for a while, whatever the node says meanwhile.
    let failed = now();
    node.reserved(None, failed);
    assert_eq!(node.announce(&key(), failed), Step::Nothing);
    assert_eq!(node.deadline(), Some(failed + limits::RETRY));
    node.hello(&hello(1, 0, &state(&[(9, 9)]))).unwrap();
    assert_eq!(node.announce(&key(), failed), Step::Nothing);
    let later = failed + limits::RETRY;
    assert_eq!(node.late(later, Duration::from_secs(40)), Late::Announce);
    assert!(matches!(node.announce(&key(), later), Step::Reserve(_)));

    for (reserved, told, expected) in [(64, 0, 65), (64, 10, 65), (64, 1000, 1001), (0, 7, 8)] {
        let mut node = Node::new(&name(), reserved);
        node.set_state(state(&[(1, 1)]));
        node.hello(&hello(1, told, &state(&[(9, 9)]))).unwrap();
        let desired = announced(&mut node).unwrap();
        assert_eq!(desired.generation, expected, "{reserved} reserved, {told} told");
        assert!(matches!(desired.change, Change::Full(_)));
    }
}

#[test]
fn a_generation_that_nobody_can_have_counted_to_is_refused_and_costs_nothing() {
    let mut node = here(64);
    node.set_state(state(&[(1, 1)]));
    for told in [u64::MAX, limits::GENERATION + 1] {
        let held = state(&[(9, 9)]);
        assert_eq!(node.hello(&hello(1, told, &held)), Err(Wrong::Generation));
        assert_eq!(
            node.applied_now(told, held.index.digest()),
            Err(Wrong::Generation)
        );
    }
    assert_eq!(announced(&mut node).unwrap().generation, 65);
    let digest = state(&[(9, 9)]).index.digest();
    node.applied_now(limits::GENERATION, digest).unwrap();
    let next = announced(&mut node).unwrap().generation;
    assert_eq!(
        next,
        limits::GENERATION + 1,
        "there is room above the highest believed"
    );
}

#[test]
fn a_node_that_holds_something_else_gets_the_whole() {
    let mut node = here(64);
    node.set_state(state(&[(1, 1)]));
    let first = announced(&mut node).unwrap();
    // It says hello anew with nothing, while what was sent is on its way.
    node.hello(&hello(1, 0, &state(&[]))).unwrap();
    let second = announced(&mut node).unwrap();
    assert!(second.generation > first.generation && matches!(second.change, Change::Full(_)));
    // The former arrives after all.
    let digest = node.state().index.digest();
    node.applied_now(first.generation, digest).unwrap();
    assert_eq!(announced(&mut node), None, "older: the newer one is on its way");
    node.applied_now(second.generation + 5, state(&[(9, 9)]).index.digest())
        .unwrap();
    let third = announced(&mut node).unwrap();
    assert!(third.generation > second.generation + 5 && matches!(third.change, Change::Full(_)));
    // With the right content it is in step, whatever its generation, if nothing greater was sent.
    let digest = node.state().index.digest();
    node.applied_now(third.generation, digest).unwrap();
    let (_, answer) = node
        .hello(&hello(2, third.generation, &state(&[(1, 1)])))
        .unwrap();
    assert_eq!(
        answer,
        Some(Down::InStep {
            generation: third.generation
        })
    );
}

#[test]
fn objects_come_along_within_bounds_and_the_rest_when_asked() {
    let mut node = here(64);
    let large = limits::INLINE - 10;
    node.set_state(state(&[(1, large), (2, large), (3, 5)]));
    let desired = announced(&mut node).unwrap();
    assert_eq!(
        desired.objects.iter().map(Vec::len).collect::<Vec<_>>(),
        [large, 5]
    );
    let key = |pod: u8| ObjectKey::Pod(Uid([pod; 16]));
    node.need(desired.generation, vec![key(1), key(2), key(3), key(7)]);
    let Some(Down::Objects { generation, objects }) = node.next_objects() else {
        panic!("no objects")
    };
    assert_eq!(
        (generation, objects.len()),
        (desired.generation, 1),
        "the next would be past the bound"
    );
    assert_eq!(node.next_objects(), None, "the node asks again for the rest");
    node.in_flight = 1;
    node.need(desired.generation, vec![key(2), key(3)]);
    assert_eq!(node.next_objects(), None, "the others are still on their way");
    node.in_flight = 0;
    assert!(matches!(node.next_objects(), Some(Down::Objects { objects, .. }) if objects.len() == 2));
    // A node that has something, and needs the whole index, gets no object unasked.
    node.hello(&hello(1, desired.generation + 1, &state(&[(9, 9)])))
        .unwrap();
    assert!(announced(&mut node).unwrap().objects.is_empty());
}

#[test]
fn statuses_are_ordered_by_epoch_and_sequence() {
    let mut node = Node::new(&name(), 0);
    node.hello(&hello(3, 0, &state(&[]))).unwrap();
    let mut check = |epoch, sequence, order, asked| {
        let (got, question) = node.order(epoch, sequence, now());
        assert_eq!(
            (got, question.is_some()),
            (order, asked),
            "epoch {epoch}, sequence {sequence}"
        );
    };
    // After a start of the server any number will do.
    check(3, 7, Order::Next, false);
    check(3, 8, Order::Next, false);
    check(3, 8, Order::Stale, false);
    check(2, 9, Order::Stale, false);
    check(3, 10, Order::Gap, true);
    check(3, 12, Order::Gap, false);
    check(3, 11, Order::Stale, false);
    node.hello(&hello(3, 0, &state(&[]))).unwrap();
    let (order, question) = node.order(4, 1, now());
    assert_eq!(
        (order, question),
        (Order::Next, Some(Down::Resync)),
        "its hello is missing"
    );
    node.hello(&hello(5, 0, &state(&[]))).unwrap();
    assert_eq!(node.order(5, 2, now()).0, Order::Gap, "an epoch begins with 1");
}

#[test]
fn contact_is_lost_and_found() {
    let grace = Duration::from_secs(40);
    let mut node = here(64);
    assert_eq!(
        node.hello(&hello(0, 5, &state(&[]))),
        Err(Wrong::Epoch),
        "an agent that is no more"
    );
    assert!(!node.bye(0), "an old story");
    assert!(node.bye(1) && !node.is_here());
    assert!(!node.bye(1), "once");
    node.set_state(state(&[(1, 1)]));
    assert_eq!(node.announce(&key(), now()), Step::Nothing, "nobody is there");
    node.hello(&hello(1, 0, &state(&[]))).unwrap();
    // What is not applied in time makes the server ask; no answer makes the node unknown.
    assert!(announced(&mut node).is_some() && node.deadline().is_some());
    assert_eq!(node.late(now(), grace), Late::Ask(Down::Resync));
    assert!(!node.is_here() && node.is_asked());
    assert_eq!(node.late(now(), grace), Late::Gone);
    assert_eq!(node.deadline(), None);
    // An agent whose journal was lost begins again at epoch 1.
    node.hello(&hello(9, 0, &state(&[]))).unwrap();
    assert!(node.hello(&hello(1, 0, &state(&[]))).is_ok() && node.is_here());
    // One of the next version that still speaks ours is told things in ours.
    let mut newer = hello(10, 0, &state(&[]));
    newer.versions = (OLDEST, VERSION + 1);
    let (liveness, _) = node.hello(&newer).unwrap();
    assert_eq!((liveness, node.speaks()), (Liveness::Ready, VERSION));
    let mut strange = hello(10, 0, &state(&[]));
    strange.versions = (VERSION + 1, VERSION + 2);
    let (liveness, answer) = node.hello(&strange).unwrap();
    assert_eq!(
        (liveness, answer),
        (
            Liveness::Incompatible {
                versions: strange.versions
            },
            None
        )
    );
    assert!(!node.is_here());
}

#[test]
fn events_are_let_in_by_burst_and_rate() {
    let mut node = here(0);
    let start = now();
    let burst = limits::EVENT_BURST as usize;
    let mut check = |after: u64, wanted, allowed| {
        assert_eq!(
            node.may_tell(wanted, start + Duration::from_millis(after)),
            allowed,
            "after {after} ms"
        );
    };
    check(0, burst - 1, burst - 1);
    check(0, 5, 1);
    check(500, 5, 0);
    check(1100, 9, limits::EVENT_RATE as usize);
    check(2000, 9, limits::EVENT_RATE as usize);
    check(1_000_000, burst + 9, burst);
}

#[test]
fn a_lease_is_renewed_when_something_is_heard_and_not_too_often() {
    let start = now();
    let mut node = Node::new(&name(), 0);
    assert!(!node.renews(start), "it has not said hello");
    node.hello(&hello(1, 0, &state(&[]))).unwrap();
    for (after, due) in [
        (0, true),
        (1, false),
        (39, false),
        (40, true),
        (79, false),
        (200, true),
    ] {
        assert_eq!(
            node.renews(start + Duration::from_secs(after)),
            due,
            "after {after} s"
        );
    }
}
