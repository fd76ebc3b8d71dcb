//! JSON values as YAML, for people to read and for any YAML reader to take back.
//!
//! Always holds: what is written reads back as the same value; text that would read as anything but itself is quoted.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::scalar;

/// The value as a YAML document, ending with a newline.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(members) if !members.is_empty() => object(&mut out, members, 0, false),
        Value::Array(items) if !items.is_empty() => list(&mut out, items, 0),
        other => leaf(&mut out, other, 0),
    }
    out
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// Members, each on its line; the first one goes on where the cursor is when `inline`.
fn object(out: &mut String, members: &Map<String, Value>, indent: usize, mut inline: bool) {
    for (key, value) in members {
        if !std::mem::take(&mut inline) {
            pad(out, indent);
        }
        text(out, key);
        out.push(':');
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                object(out, inner, indent + 2, false);
            }
            Value::Array(inner) if !inner.is_empty() => {
                out.push('\n');
                list(out, inner, indent);
            }
            other => {
                out.push(' ');
                leaf(out, other, indent + 2);
            }
        }
    }
}

fn list(out: &mut String, items: &[Value], indent: usize) {
    for item in items {
        pad(out, indent);
        out.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => object(out, inner, indent + 2, true),
            Value::Array(inner) if !inner.is_empty() => {
                // A list in a list begins on its own line, so that its items align.
                out.truncate(out.len() - 1);
                out.push('\n');
                list(out, inner, indent + 2);
            }
            other => leaf(out, other, indent + 2),
        }
    }
}

/// A value without lines of its own, and the end of its line.
fn leaf(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Array(_) => out.push_str("[]"),
        Value::Object(_) => out.push_str("{}"),
        Value::String(it) if is_block(it) => return block(out, it, indent),
        Value::String(it) => text(out, it),
        // Infallible on a String; a number, a boolean or null is the same in JSON.
        other => drop(write!(out, "{other}")),
    }
    out.push('\n');
}

/// Whether a text of several lines can stand as they are.
fn is_block(text: &str) -> bool {
    let printable = |c: char| c == '\n' || (c >= ' ' && c != '\u{7f}' && !is_break(c));
    text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && !text.ends_with("\n\n")
        && text.chars().all(printable)
        && text.lines().all(|line| line.trim_end() == line)
}

fn block(out: &mut String, text: &str, indent: usize) {
    out.push_str(if text.ends_with('\n') { "|\n" } else { "|-\n" });
    for line in text.lines() {
        if !line.is_empty() {
            pad(out, indent);
            out.push_str(line);
        }
        out.push('\n');
    }
}

fn text(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' || c == '\u{7f}' || is_break(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Characters outside ASCII that YAML 1.1 or 1.2 treat as more than themselves.
fn is_break(c: char) -> bool {
    matches!(
        c,
        '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
    )
}

fn is_plain(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || "-_./:@+=()*,%<> ".contains(c);
    let begins = |c: char| c.is_ascii_alphanumeric() || "_./".contains(c);
    text.starts_with(begins)
        && text.chars().all(legal)
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
        && !text.starts_with("...")
        && text.len() < 120
        && scalar::plain(text).is_string()
        // Other readers know more kinds of numbers and times than Kubernetes does.
        && !text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        || is_version(text)
}

/// `1.14.2` or `64Mi` or `250m`: begins with a digit, and is a number to nobody.
fn is_version(text: &str) -> bool {
    let points = text.matches('.').count();
    let digits = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    let quantity = text
        .strip_suffix("Mi")
        .or_else(|| text.strip_suffix("Gi"))
        .or_else(|| text.strip_suffix("Ki"))
        .or_else(|| text.strip_suffix('m'));
    let all_digits = |it: &str| !it.is_empty() && it.chars().all(|c| c.is_ascii_digit());
    (points >= 2 && digits && text.split('.').all(|part| !part.is_empty()))
        || quantity.is_some_and(all_digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn written_as_people_write_it() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"labels": {"app": "web", "on": "yes", "n": "123456"}, "name": "web"},
            "spec": {
                "containers": [{"args": [], "image": "nginx:1.14.2", "name": "a", "ports": [{"containerPort": 80}]}],
                "volumes": [{"emptyDir": {}, "name": "v"}],
            },
            "text": "a\n  b\n\nc\n", "quoted": " \t\u{1}é",
        });
        assert_eq!(
            to_yaml(&pod),
            r#"apiVersion: v1
kind: Pod
metadata:
  labels:
    app: web
    "n": "123456"
    "on": "yes"
  name: web
quoted: " \t\u0001é"
spec:
  containers:
  - args: []
    image: nginx:1.14.2
    name: a
    ports:
    - containerPort: 80
  volumes:
  - emptyDir: {}
    name: v
text: |
  a
    b

  c
"#
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            ".{0,16}",
            "[ -~\n\t]{0,24}",
            "[-+0-9.eExob_:]{0,8}",
            prop::sample::select(vec![
                "yes", "No", "null", "~", "", "---", "...", "- a", "a: b", "#", "<<", "=", "a #b", "|",
                "a\nb", "a\n\n", "64Mi"
            ])
            .prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(text.clone(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1024, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_reads_back(value in any_json()) {
            let text = to_yaml(&value);
            let read = crate::read(text.as_bytes());
            let read: Vec<Value> = read.map_err(|bad| TestCaseError::fail(format!("{bad:?}\n{text}")))?
                .into_iter().map(|document| document.value).collect();
            let expected: Vec<Value> = if value.is_null() { Vec::new() } else { vec![value] };
            prop_assert_eq!(read, expected, "{}", text);
        }

        #[test]
        fn any_text_is_yaml_or_is_not(text in "[ -~\n\t]{0,200}", more in "[-:\\[\\]{}&*!|>'\"#%@`a \n,?<]{0,80}") {
            for text in [&text, &more] {
                let _ = crate::read(text.as_bytes());
            }
        }
    }
}
