//! Documents read, and documents refused with their place.

use serde_json::json;

use super::*;

fn one(text: &str) -> Document {
    let mut documents = read(text.as_bytes()).unwrap_or_else(|bad| panic!("{bad:?}\n{text}"));
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

#[test]
fn values() {
    for (text, expected) in [
        (
            "a: 1\nb: [x, 'yes', \"no\", yes]\n",
            json!({"a": 1, "b": ["x", "yes", "no", true]}),
        ),
        (
            "a:\n- b: c\n  d: |\n    e\n    f\n- null\n",
            json!({"a": [{"b": "c", "d": "e\nf\n"}, null]}),
        ),
        (
            "a: &x {k: v}\nb: *x\nc: [*x]\n",
            json!({"a": {"k": "v"}, "b": {"k": "v"}, "c": [{"k": "v"}]}),
        ),
        (
            "base: &b {k: v, m: 1}\nuse:\n  <<: *b\n  m: 2\n",
            json!({"base": {"k": "v", "m": 1}, "use": {"k": "v", "m": 2}}),
        ),
        (
            "a: {<<: [{k: 1}, {k: 2, l: 3}]}\n",
            json!({"a": {"k": 1, "l": 3}}),
        ),
        (
            "a: !!str 123\nb: !!int \"7\"\nc: ! 8\n",
            json!({"a": "123", "b": 7, "c": "8"}),
        ),
        (
            "1: a\ntrue: b\nx: {yes: c}\n",
            json!({"1": "a", "true": "b", "x": {"true": "c"}}),
        ),
        (
            "{\"json\": [1, {\"too\": null}]}",
            json!({"json": [1, {"too": null}]}),
        ),
        ("\u{feff}a: é\n", json!({"a": "é"})),
        ("\"a.b/c\": d\n", json!({"a.b/c": "d"})),
    ] {
        assert_eq!(one(text).value, expected, "{text}");
    }
}

#[test]
fn documents_of_a_stream() {
    let text = "# only a comment\n---\na: 1\n---\n---\n# nothing\n---\nb: &x 2\n...\n---\nc: 3\n";
    let values: Vec<_> = read(text.as_bytes())
        .unwrap()
        .into_iter()
        .map(|it| it.value)
        .collect();
    assert_eq!(values, [json!({"a": 1}), json!({"b": 2}), json!({"c": 3})]);
    assert!(read(b"").unwrap().is_empty());
    assert!(
        read(b"a: &x 1\n---\nb: *x\n").is_err(),
        "an anchor ends with its document"
    );
}

#[test]
fn places() {
    let document =
        one("apiVersion: v1\nspec:\n  containers:\n  - name: a\n    image:   nginx\n    x: {y.z: [1, 2]}\n");
    for (path, whole, key, value) in [
        ("", true, None, (1, 1)),
        ("apiVersion", true, Some((1, 1)), (1, 13)),
        ("spec", true, Some((2, 1)), (3, 3)),
        ("spec.containers[0]", true, None, (4, 5)),
        ("spec.containers[0].image", true, Some((5, 5)), (5, 14)),
        ("spec.containers[0].x.y.z[1]", true, None, (6, 18)),
        ("spec.containers[0].ports[0].hostPort", false, None, (4, 5)),
        ("spec.containers[7].name", false, Some((3, 3)), (4, 5)),
        ("spec.containersx", false, Some((2, 1)), (3, 3)),
    ] {
        let found = document.spot.find(path);
        let place = |mark: Mark| (mark.line, mark.column);
        assert_eq!(
            (found.whole, found.spot.key.map(place), place(found.spot.value)),
            (whole, key, value),
            "{path}"
        );
    }
    assert_eq!(document.spot.find("spec.containers[0].image").spot.value.width, 5);
}

/// The text is refused at this place, with these words.
#[track_caller]
fn check_refused(text: &[u8], line: usize, column: usize, words: &str) {
    let bad = read(text).expect_err(words);
    assert_eq!((bad.mark.line, bad.mark.column), (line, column), "{bad}");
    assert!(bad.message.contains(words), "{bad}");
}

#[test]
fn what_is_no_manifest_is_refused_with_its_place() {
    check_refused(
        b"a: 1\nb: 2\na: 3\n",
        3,
        1,
        "key \"a\" stands twice in one object; the first is in line 1",
    );
    check_refused(b"a: {b: 1, b: 2}\n", 1, 11, "the first is in line 1");
    check_refused(b"1: a\n\"1\": b\n", 2, 1, "stands twice");
    check_refused(b"a: *nowhere\n", 1, 4, "anchor");
    check_refused(
        b"a: &x [*x]\n",
        1,
        8,
        "an alias to a value that has not ended yet",
    );
    check_refused(b"a: !thing 1\n", 1, 4, "has no meaning in a manifest");
    check_refused(b"a: !!int x\n", 1, 4, "\"x\" is no !!int");
    check_refused(b"? [a]\n: b\n", 1, 3, "a key must be text");
    check_refused(b": b\n", 1, 1, "a key is missing before the ':'");
    check_refused(b"a: 1\n\xff\n", 2, 1, "not UTF-8");
    check_refused(b"a: 1\nb: \0\n", 2, 4, "NUL");
    check_refused(b"a:\n\tb: 1\n", 2, 2, "never with tabs");
    check_refused(b"a: b: c\n", 1, 5, "mapping values are not allowed");
    check_refused(b"a: 'x\n", 1, 4, "quote");
    check_refused(b"a: {<<: 3}\n", 1, 5, "'<<' wants an object");
}

#[test]
fn bounds() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(read(nested(DEPTH).as_bytes()).is_ok());
    check_refused(nested(DEPTH + 2).as_bytes(), 1, DEPTH + 2, "nested deeper");
    assert!(read(nested(100_000).as_bytes()).is_err());
    check_refused(&vec![b' '; FILE_BYTES + 1], 1, 1, "at most 3145728");
    let many = "- 1\n".repeat(VALUES + 1);
    check_refused(many.as_bytes(), VALUES, 3, "more than 200000 values");

    // Each line holds ten of the line before: ten lines would be 10^10 values.
    let mut bomb = String::from("a0: &a0 [x]\n");
    for level in 1..10 {
        let before = format!("*a{} ", level - 1);
        let list: Vec<&str> = vec![before.as_str(); 10];
        bomb += &format!("a{level}: &a{level} [{}]\n", list.join(","));
    }
    let bad = read(bomb.as_bytes()).unwrap_err();
    assert!(bad.message.contains("aliases counted each time"), "{bad}");
    // The same with text: a few values, many bytes.
    let mut bomb = format!("a0: &a0 {}\n", "x".repeat(1 << 20));
    for level in 1..8 {
        bomb += &format!("a{level}: &a{level} [*a{0} , *a{0} ]\n", level - 1);
    }
    assert!(
        read(bomb.as_bytes())
            .unwrap_err()
            .message
            .contains("bytes of text")
    );
    // And with depth: each level stands on the one before.
    let mut deep = format!("a0: &a0 {}\n", nested(60));
    deep += &format!("a1: {}*a0 {}\n", "[".repeat(60), "]".repeat(60));
    assert!(
        read(deep.as_bytes())
            .unwrap_err()
            .message
            .contains("nested deeper")
    );
}
