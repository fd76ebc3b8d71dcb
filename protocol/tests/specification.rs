//! SPEC.md says what is so: its table of bounds, its example bytes, and its numbers of variants.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use skiff_protocol::limits as l;

mod samples;

const SPEC: &str = include_str!("../SPEC.md");

#[test]
fn bounds_are_those_of_the_code() {
    let known: BTreeMap<&str, usize> = BTreeMap::from([
        ("NODE_NAME", l::NODE_NAME),
        ("TOPIC", l::TOPIC),
        ("SHARDS", usize::from(l::SHARDS)),
        ("FRAME", l::FRAME),
        ("CHUNK", l::CHUNK),
        ("MESSAGE", l::MESSAGE),
        ("REASSEMBLIES", l::REASSEMBLIES),
        ("OBJECTS", l::OBJECTS),
        ("PODS", l::PODS),
        ("CONTAINERS", l::CONTAINERS),
        ("VOLUMES", l::VOLUMES),
        ("MOUNTS", l::MOUNTS),
        ("ENV", l::ENV),
        ("ARGS_BYTES", l::ARGS_BYTES),
        ("PORTS", l::PORTS),
        ("ITEMS", l::ITEMS),
        ("CONFIG_BYTES", l::CONFIG_BYTES),
        ("ANNOTATION_BYTES", l::ANNOTATION_BYTES),
        ("TEXT", l::TEXT),
        ("STATUSES", l::STATUSES),
        ("NODE_IMAGES", l::NODE_IMAGES),
        ("IMAGE_NAMES", l::IMAGE_NAMES),
        ("EVENTS", l::EVENTS),
        ("STATIC_MANIFEST", l::STATIC_MANIFEST),
        ("STATICS_AT_ONCE", l::STATICS_AT_ONCE),
        ("STREAMS", l::STREAMS),
        ("STREAM_WINDOW", l::STREAM_WINDOW as usize),
        ("STREAM_PIECE", l::STREAM_PIECE),
    ]);
    let (_, table) = SPEC
        .split_once("| bound | value |")
        .expect("SPEC.md has a table of bounds");
    let rows = table.lines().filter_map(|row| {
        let (name, value) = row.strip_prefix("| `")?.split_once("` | ")?;
        Some((name, value.strip_suffix(" |")?.parse::<usize>().expect(row)))
    });
    assert_eq!(rows.collect::<BTreeMap<_, _>>(), known);
    assert_eq!(l::MESSAGE.div_ceil(l::CHUNK), 49, "section 2");
}

#[test]
fn example_bytes_are_the_golden_ones() {
    let mut examples = 0;
    for line in SPEC.lines() {
        let Some((name, rest)) = line.strip_prefix("- `").and_then(|rest| rest.split_once("`: `")) else {
            continue;
        };
        let bytes = rest.split('`').next().unwrap_or_default();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v1/{name}.hex"));
        let golden = fs::read_to_string(&path).expect(line);
        assert_eq!(golden.replace('\n', ""), bytes, "{line}");
        examples += 1;
    }
    assert_eq!(examples, 5);
}

/// The table of variants: the first byte of each sample is the number under which SPEC.md lists its name.
#[test]
fn variants_have_their_numbers() {
    for (file, sample) in samples::samples() {
        let Some(direction) = file.split('-').next().filter(|it| *it == "down" || *it == "up") else {
            continue;
        };
        let bytes = sample.encode();
        let heading = if direction == "down" {
            "| number | `Down`"
        } else {
            "| number | `Up`"
        };
        let (_, table) = SPEC.split_once(heading).expect(heading);
        let row = format!("| {} | `", bytes[0]);
        let row = table
            .lines()
            .find_map(|line| line.strip_prefix(&row))
            .expect(file);
        let name = row.split('`').next().unwrap_or_default();
        let kebab: String = name
            .char_indices()
            .map(|(at, c)| match (at, c.is_ascii_uppercase()) {
                (0, _) | (_, false) => c.to_ascii_lowercase().to_string(),
                (_, true) => format!("-{}", c.to_ascii_lowercase()),
            })
            .collect();
        assert!(
            file.starts_with(&format!("{direction}-{kebab}")),
            "{file} is variant {}, {name}",
            bytes[0]
        );
    }
}
