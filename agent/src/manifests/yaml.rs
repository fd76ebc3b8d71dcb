//! YAML as `kubectl` reads it: one document, made of what JSON has.
//!
//! Always holds: a plain scalar means what it means to Kubernetes' tools (YAML 1.1: `yes` is true, `0644` is octal); a
//! key stands once; nesting and the copies that aliases make are bounded; what JSON cannot say is refused with its line.

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Number, Value};

/// Nesting that is read: a Pod has twelve levels.
const DEPTH: usize = 64;

/// Values of a document, aliases counted with all that they repeat.
const VALUES: usize = 50_000;

const SECOND: &str = "a second document; write each Pod in a file of its own";

/// A collection that is being read.
enum Open {
    Sequence(Vec<Value>),
    /// With the key whose value comes next.
    Mapping(Map<String, Value>, Option<String>),
}

#[derive(Default)]
struct Reader {
    open: Vec<(Open, usize)>,
    anchors: Vec<(usize, Value)>,
    values: usize,
    /// The document, once it is whole.
    whole: Option<Value>,
}

/// Reads a document.
///
/// # Errors
/// Names the line.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| at(error.marker().line(), error.info()))?;
        reader
            .take(event, span)
            .map_err(|why| at(span.start.line(), &why))?;
    }
    reader.whole.ok_or_else(|| "the file is empty".to_owned())
}

fn at(line: usize, why: &str) -> String {
    format!("line {line}: {why}")
}

impl Reader {
    fn take(&mut self, event: Event<'_>, _: Span) -> Result<(), String> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => Ok(()),
            Event::Scalar(text, style, anchor, tag) => self.scalar(&text, style, anchor, tag.as_ref()),
            Event::SequenceStart(anchor, tag) => self.begin(Open::Sequence(Vec::new()), anchor, tag.as_ref()),
            Event::MappingStart(anchor, tag) => {
                self.begin(Open::Mapping(Map::new(), None), anchor, tag.as_ref())
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::Sequence(items), anchor)) => self.add(items.into(), anchor),
                Some((Open::Mapping(entries, _), anchor)) => self.add(entries.into(), anchor),
                None => Err("a collection ends that did not begin".to_owned()),
            },
            Event::Alias(anchor) => {
                let known = self.anchors.iter().rev().find(|(id, _)| *id == anchor);
                let value = known.map(|(_, value)| value.clone());
                let value = value.ok_or("an alias names an anchor that is not whole before it")?;
                self.values += count(&value);
                self.add(value, 0)
            }
        }
    }

    fn begin(&mut self, collection: Open, anchor: usize, tag: Option<&Cow<'_, Tag>>) -> Result<(), String> {
        if let Some(tag) = tag.filter(|it| !matches!(core(it), Some("seq" | "map"))) {
            return Err(unknown(tag));
        }
        if self.open.is_empty() && self.whole.is_some() {
            return Err(SECOND.to_owned());
        }
        if self.open.len() == DEPTH {
            return Err(format!("nested deeper than {DEPTH} levels"));
        }
        if matches!(self.open.last(), Some((Open::Mapping(_, None), _))) {
            return Err("a key must be text".to_owned());
        }
        self.open.push((collection, anchor));
        Ok(())
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Cow<'_, Tag>>,
    ) -> Result<(), String> {
        if let Some((Open::Mapping(entries, key @ None), _)) = self.open.last_mut() {
            if text == "<<" && style == ScalarStyle::Plain {
                return Err("merge keys (<<) are not read; write the fields out".to_owned());
            }
            if entries.contains_key(text) {
                return Err(format!("{text:?} is given twice"));
            }
            *key = Some(text.to_owned());
            return Ok(());
        }
        let value = match tag {
            Some(tag) if core(tag) == Some("str") => Value::from(text),
            Some(tag) if style != ScalarStyle::Plain || core(tag).is_none() => return Err(unknown(tag)),
            _ if style == ScalarStyle::Plain => plain(text),
            _ => Value::from(text),
        };
        self.add(value, anchor)
    }

    fn add(&mut self, value: Value, anchor: usize) -> Result<(), String> {
        self.values += 1;
        if self.values > VALUES {
            return Err(format!("more than {VALUES} values"));
        }
        if anchor > 0 {
            self.anchors.push((anchor, value.clone()));
        }
        match self.open.last_mut() {
            Some((Open::Sequence(items), _)) => items.push(value),
            Some((Open::Mapping(entries, key), _)) => {
                let key = key.take().ok_or("a key must be text")?;
                entries.insert(key, value);
            }
            // An empty document, as a `---` at the end makes one, says nothing.
            None if value.is_null() => {}
            None if self.whole.is_some() => return Err(SECOND.to_owned()),
            None => self.whole = Some(value),
        }
        Ok(())
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(entries) => 1 + entries.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// The name of one of YAML's own tags.
fn core(tag: &Tag) -> Option<&str> {
    tag.is_yaml_core_schema().then_some(tag.suffix.as_str())
}

fn unknown(tag: &Tag) -> String {
    format!("the tag {}{} has no meaning here", tag.handle, tag.suffix)
}

/// A scalar without quotes, by YAML 1.1 as Kubernetes' tools read it.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    integer(text)
        .or_else(|| float(text))
        .map_or_else(|| Value::from(text), Value::Number)
}

fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.starts_with(|it: char| it.is_ascii_digit()) {
        return None;
    }
    let digits = digits.replace('_', "");
    let radix = |prefix: &str, radix| u64::from_str_radix(digits.strip_prefix(prefix)?, radix).ok();
    let octal = digits.len() > 1 && digits.starts_with('0');
    let value = radix("0x", 16)
        .or_else(|| radix("0o", 8))
        .or_else(|| radix("0b", 2))
        .or_else(|| if octal { radix("0", 8) } else { digits.parse().ok() })?;
    if !negative {
        return Some(value.into());
    }
    i64::try_from(-i128::from(value)).ok().map(Number::from)
}

fn float(text: &str) -> Option<Number> {
    let of_a_number = |it: char| it.is_ascii_digit() || matches!(it, '.' | 'e' | 'E' | '+' | '-');
    let begins = text.trim_start_matches(['+', '-']);
    let begins = begins.starts_with(|it: char| it.is_ascii_digit())
        || begins
            .strip_prefix('.')
            .is_some_and(|it| it.starts_with(|it: char| it.is_ascii_digit()));
    if !begins || !text.chars().all(of_a_number) || !text.contains(['.', 'e', 'E']) {
        return None;
    }
    Number::from_f64(text.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_mean_what_they_mean_to_kubernetes_tools() {
        for (text, expected) in [
            (
                "a: 1\nb: x y\nc: yes\nd:\ne: ~\n",
                json!({"a": 1, "b": "x y", "c": true, "d": null, "e": null}),
            ),
            (
                "---\ncommand: [\"sh\", -c, 'echo \"a\"']\nenv: {A: '1', B: off}\n---\n",
                json!({"command": ["sh", "-c", "echo \"a\""], "env": {"A": "1", "B": false}}),
            ),
            (
                "a: |\n  one\n   two\nb: >-\n  three\n  four\n",
                json!({"a": "one\n two\n", "b": "three four"}),
            ),
            (
                "a: 0644\nb: 0o17\nc: 0x1f\nd: -3\ne: 1.5\nf: 1e3\ng: 1_000\nh: 09\n",
                json!({"a": 420, "b": 15, "c": 31, "d": -3, "e": 1.5, "f": 1000.0, "g": 1000, "h": "09"}),
            ),
            (
                "a: 1.2.3\nb: 100m\nc: 1Gi\nd: .hidden\nf: 2026-01-01\n",
                json!({"a": "1.2.3", "b": "100m", "c": "1Gi", "d": ".hidden", "f": "2026-01-01"}),
            ),
            (
                "base: &it {x: 1}\nsame: *it\nt: !!str 5\n1: one\n",
                json!({"base": {"x": 1}, "same": {"x": 1}, "t": "5", "1": "one"}),
            ),
            ("a: # why\n- b # c\n- 'd # e'\n", json!({"a": ["b", "d # e"]})),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        for (text, expected) in [
            ("", "the file is empty"),
            ("# nothing\n", "the file is empty"),
            ("a: 1\na: 2\n", "line 2: \"a\" is given twice"),
            ("a: 1\n---\nb: 2\n", "line 3: a second document"),
            ("a: 1\nb:\n  <<: {c: 1}\n", "line 3: merge keys"),
            ("a: !secret x\n", "line 1: the tag !secret"),
            ("a: *b\n", "line 1: "),
            ("a: [1, 2\n", "line "),
            ("a: \"x\n", "line "),
            ("a:\n\t- b\n", "line 2: "),
            ("? [a]\n: b\n", "line 1: a key must be text"),
            ("a: b: c\n", "line 1: "),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        let deep = "[".repeat(200);
        assert!(parse(&deep).is_err());
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        assert!(parse(&deep).unwrap_err().contains("nested deeper"));
    }

    /// Ten aliases of ten aliases of …: a few bytes that would be a billion values.
    #[test]
    fn aliases_cannot_make_a_document_explode() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for at in 1..10 {
            let before = format!("*a{}", at - 1);
            let all = vec![before; 10].join(", ");
            text += &format!("a{at}: &a{at} [{all}]\n");
        }
        assert!(parse(&text).unwrap_err().contains("more than 50000 values"));
    }
}
