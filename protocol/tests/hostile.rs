//! Bytes and manifests from anybody: whatever comes in, the answer is a value or an error, and never a panic.

#![allow(clippy::unwrap_used, reason = "a test says by its line what failed")]

mod samples;

use proptest::prelude::*;
use serde_json::{Value, json};
use skiff_protocol::manifest;
use skiff_protocol::pod::Pod;
use skiff_protocol::quantity::Quantity;
use skiff_protocol::topic::{NodeName, Topic};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::desired::{Index, verify};
use skiff_protocol::wire::spec::Object;
use skiff_protocol::wire::{Assembler, Down, OLDEST, decode_down, decode_up, frames};

use samples::{Sample, samples};

/// Marsaglia's xorshift64*: the same sequence on every machine, from the seed that a failure names.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Does with a decoded value what its receiver does first.
fn receive(sample: Sample) {
    let again = sample.encode();
    assert_eq!(
        sample.decode_same(&again),
        Ok(sample.clone()),
        "what decodes encodes to itself"
    );
    match sample {
        Sample::Down(Down::Desired(desired)) => {
            assert!(verify(&samples::node(), &[1; 32], 0, &Index::default(), &desired).is_err());
        }
        Sample::Object(Object::Pod(spec)) => {
            if let Ok(pod) = Pod::from_wire(spec) {
                pod.references().for_each(drop);
            }
        }
        _ => {}
    }
}

#[test]
fn flipped_bits_never_panic() {
    let (mut read, mut refused) = (0, 0);
    for (at, (name, sample)) in samples().into_iter().enumerate() {
        let mut random = Random(0x5eed + at as u64);
        let bytes = sample.encode();
        for round in 0..2_000 {
            let mut bytes = bytes.clone();
            for _ in 0..=random.below(3) {
                let bit = random.below(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            match std::panic::catch_unwind(|| sample.decode_same(&bytes).map(receive)) {
                Ok(Ok(())) => read += 1,
                Ok(Err(_)) => refused += 1,
                Err(_) => panic!("{name}, round {round}: {bytes:02x?}"),
            }
        }
    }
    assert!(
        read > 1_000 && refused > 1_000,
        "{read} read, {refused} refused: the flips hit nothing"
    );
}

#[test]
fn flipped_bits_in_frames_never_panic() {
    let message = Sample::long().encode();
    let payloads = frames(OLDEST, &message, 77).unwrap();
    let mut random = Random(0x000f_4a3e);
    for round in 0..20_000 {
        let mut assembler = Assembler::default();
        for _ in 0..3 {
            let mut payload = payloads[random.below(payloads.len())].clone();
            // Half of the flips in the header, where they hurt.
            let span = if random.below(2) == 0 { 10 } else { payload.len() };
            let bit = random.below(span * 8);
            payload[bit / 8] ^= 1 << (bit % 8);
            let pushed = std::panic::AssertUnwindSafe(|| assembler.push(&payload).map(|_| ()));
            let pushed = std::panic::catch_unwind(pushed);
            assert!(pushed.is_ok(), "round {round}: header {:02x?}", &payload[..10]);
        }
    }
}

/// JSON of any shape, many of its keys words of the Pod schema, so that it reaches deep.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        3 => prop::sample::select(vec![
            "apiVersion", "kind", "metadata", "name", "namespace", "labels", "uid", "spec", "containers", "image",
            "env", "value", "valueFrom", "fieldRef", "fieldPath", "ports", "containerPort", "hostPort", "resources",
            "limits", "cpu", "memory", "volumes", "volumeMounts", "mountPath", "emptyDir", "sizeLimit", "configMap",
            "items", "path", "mode", "securityContext", "capabilities", "add", "restartPolicy", "v1", "Pod",
        ]).prop_map(str::to_owned),
        1 => ".{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
        "[0-9.eE+-]{0,30}[a-zA-Z]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(word.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn parse_any(value: &Value) {
    for kind in manifest::KINDS.into_iter().chain(["Nothing"]) {
        let found = manifest::inspect(kind, value);
        assert!(kind != "Nothing" || found == manifest::Inspection::default());
    }
    match Pod::parse(value) {
        Ok(parsed) => {
            let spec = parsed.pod.into_wire();
            assert_eq!(
                Pod::from_wire(spec.clone()).map(Pod::into_wire),
                Ok(spec),
                "one gate for both ways in"
            );
        }
        Err(causes) => assert!(!causes.is_empty(), "refused for no cause: {value}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_manifest_is_taken_or_refused(value in any_json()) {
        parse_any(&value);
    }

    #[test]
    fn any_part_of_a_good_manifest_may_be_anything(value in any_json(), place in 0_usize..12) {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
            "spec": {
                "containers": [{
                    "name": "a", "image": "a", "env": [{"name": "A"}], "ports": [{"containerPort": 1}],
                    "resources": {"limits": {"cpu": 1}},
                }],
                "volumes": [{"name": "v", "emptyDir": {}}],
            },
        });
        let pointer = [
            "/metadata", "/metadata/name", "/spec", "/spec/containers", "/spec/containers/0", "/spec/containers/0/env",
            "/spec/containers/0/env/0", "/spec/containers/0/ports/0/containerPort",
            "/spec/containers/0/resources/limits", "/spec/containers/0/resources/limits/cpu", "/spec/volumes/0",
            "/spec/volumes/0/emptyDir",
        ][place];
        *pod.pointer_mut(pointer).unwrap() = value;
        parse_any(&pod);
    }

    #[test]
    fn a_quantity_means_what_its_text_says(number in -1_000_000_000_000_i64..1_000_000_000_000) {
        let value = |text: String| Quantity::parse(&text).unwrap();
        prop_assert_eq!(value(format!("{number}m")).milli(), number);
        prop_assert_eq!(value(format!("{number}")).value(), number);
        prop_assert_eq!(value(format!("{number}Ki")).value(), number * 1024);
        prop_assert_eq!(value(format!("{number}k")), value(format!("{number}e3")));
        prop_assert_eq!(value(format!("{number}000u")), value(format!("{number}m")));
        prop_assert_eq!(value(format!("{number}.000")), value(format!("{number}")));
        let (whole, more) = (value(format!("{number}")), value(format!("{number}.001")));
        prop_assert_eq!(more > whole, number >= 0);
    }

    #[test]
    fn any_text_is_a_quantity_a_topic_a_uid_or_none(text in ".{0,48}", near in "[+-]?[0-9.]{0,26}[eEnumkMGTPi]{0,2}[0-9+-]{0,4}") {
        for text in [&text, &near] {
            let _ = Quantity::parse(text).map(|it| (it.milli(), it.value()));
            let _ = Topic::parse(text);
            let _ = NodeName::parse(text);
            let _ = text.parse::<Uid>();
        }
    }

    #[test]
    fn any_bytes_decode_or_do_not(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = decode_down(&bytes);
        let _ = decode_up(&bytes);
        let _ = Assembler::default().push(&bytes);
    }
}
