//! From the parser's events to values and places.
//!
//! Always holds: an anchor means the value that stood there when it ended, so that nothing contains itself; every
//! error has its place.

use std::borrow::Cow;
use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::scalar;
use super::spot::{Inner, Mark, Spot};
use super::{DEPTH, FILE_BYTES, SCALAR_BYTES, VALUES};

/// A document of a file.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its value; never null.
    pub value: Value,
    /// Where everything in it stands.
    pub spot: Spot,
}

/// Why a file is not YAML that we take, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    pub mark: Mark,
    pub message: String,
}

type Result<T> = std::result::Result<T, YamlError>;

fn error<T>(mark: Mark, message: impl Into<String>) -> Result<T> {
    let message = message.into();
    Err(YamlError { mark, message })
}

/// Reads the documents of a file; empty ones are left out.
pub fn read(bytes: &[u8]) -> Result<Vec<Document>> {
    let start = Mark {
        line: 1,
        column: 1,
        width: 1,
    };
    if bytes.len() > FILE_BYTES {
        return error(
            start,
            format!(
                "the file has {} bytes, at most {FILE_BYTES} are taken",
                bytes.len()
            ),
        );
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(bad) => return error(place_of(bytes, bad.valid_up_to()), "not UTF-8 text"),
    };
    if let Some(at) = text.find('\0') {
        return error(place_of(text.as_bytes(), at), "a NUL byte, which no YAML has");
    }
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        values: 0,
        bytes: 0,
    };
    reader.stream()
}

/// The line and column of a byte.
fn place_of(bytes: &[u8], at: usize) -> Mark {
    let before = &bytes[..at];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let begin = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[begin..]).chars().count() + 1;
    Mark {
        line,
        column,
        width: 1,
    }
}

fn mark(span: Span) -> Mark {
    let (start, end) = (span.start, span.end);
    let width = if start.line() == end.line() {
        end.col().saturating_sub(start.col())
    } else {
        1
    };
    Mark {
        line: start.line().max(1),
        column: start.col() + 1,
        width: width.max(1),
    }
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// Finished values by the parser's number of their anchor.
    anchors: BTreeMap<usize, (Value, Spot, Size)>,
    values: usize,
    bytes: usize,
}

/// What a value costs when it is used again.
#[derive(Clone, Copy)]
struct Size {
    values: usize,
    bytes: usize,
}

/// How many levels lie under a place.
fn height(spot: &Spot) -> usize {
    match &spot.inner {
        Inner::Scalar => 0,
        Inner::List(items) => 1 + items.iter().map(height).max().unwrap_or(0),
        Inner::Map(members) => 1 + members.values().map(height).max().unwrap_or(0),
    }
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(bad)) => {
                let at = bad.marker();
                let mark = Mark {
                    line: at.line().max(1),
                    column: at.col() + 1,
                    width: 1,
                };
                error(mark, plain_words(bad.info()))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn stream(&mut self) -> Result<Vec<Document>> {
        let mut documents = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(documents),
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                event => {
                    let (value, spot) = self.node(event, span, 0)?;
                    if !value.is_null() {
                        documents.push(Document { value, spot });
                    }
                    // An anchor lives as long as its document.
                    self.anchors.clear();
                }
            }
        }
    }

    fn count(&mut self, at: Mark, size: Size) -> Result<()> {
        self.values += size.values;
        self.bytes += size.bytes;
        if self.values > VALUES {
            return error(
                at,
                format!("more than {VALUES} values, aliases counted each time"),
            );
        }
        if self.bytes > SCALAR_BYTES {
            return error(
                at,
                format!("more than {SCALAR_BYTES} bytes of text, aliases counted each time"),
            );
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<(Value, Spot)> {
        let at = mark(span);
        if depth > DEPTH {
            return error(at, format!("nested deeper than {DEPTH} levels"));
        }
        let before = Size {
            values: self.values,
            bytes: self.bytes,
        };
        let (value, inner, anchor) = match event {
            Event::Alias(anchor) => return self.alias(anchor, at, depth),
            Event::Scalar(text, style, anchor, tag) => {
                self.count(
                    at,
                    Size {
                        values: 1,
                        bytes: text.len(),
                    },
                )?;
                (value(text, style, tag.as_deref(), at)?, Inner::Scalar, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.count(at, Size { values: 1, bytes: 0 })?;
                collection_tag(tag, "seq", at)?;
                let (items, spots) = self.sequence(depth)?;
                (Value::Array(items), Inner::List(spots), anchor)
            }
            Event::MappingStart(anchor, tag) => {
                self.count(at, Size { values: 1, bytes: 0 })?;
                collection_tag(tag, "map", at)?;
                let (members, spots) = self.mapping(depth)?;
                (Value::Object(members), Inner::Map(spots), anchor)
            }
            other => return error(at, format!("expected a value, found {other:?}")),
        };
        let spot = Spot {
            key: None,
            value: at,
            inner,
        };
        if anchor != 0 {
            let size = Size {
                values: self.values - before.values,
                bytes: self.bytes - before.bytes,
            };
            // What is kept for later use is a copy, and costs as much.
            self.count(at, size)?;
            self.anchors.insert(anchor, (value.clone(), spot.clone(), size));
        }
        Ok((value, spot))
    }

    fn alias(&mut self, anchor: usize, at: Mark, depth: usize) -> Result<(Value, Spot)> {
        let Some((_, spot, size)) = self.anchors.get(&anchor) else {
            return error(at, "an alias to a value that has not ended yet");
        };
        if depth + height(spot) > DEPTH {
            return error(at, format!("nested deeper than {DEPTH} levels"));
        }
        let size = *size;
        self.count(at, size)?;
        let (value, spot, _) = &self.anchors[&anchor];
        Ok((
            value.clone(),
            Spot {
                key: None,
                ..spot.clone()
            },
        ))
    }

    fn sequence(&mut self, depth: usize) -> Result<(Vec<Value>, Vec<Spot>)> {
        let (mut items, mut spots) = (Vec::new(), Vec::new());
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok((items, spots));
            }
            let (value, spot) = self.node(event, span, depth + 1)?;
            items.push(value);
            spots.push(spot);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<(Map<String, Value>, BTreeMap<String, Spot>)> {
        let (mut members, mut spots) = (Map::new(), BTreeMap::<String, Spot>::new());
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let at = mark(span);
            let (name, merge) = self.key(event, at)?;
            let (event, span) = self.next()?;
            let (value, mut spot) = self.node(event, span, depth + 1)?;
            if merge {
                merged.push((value, spot, at));
                continue;
            }
            if let Some(first) = spots.get(&name) {
                let line = first.key_or_value().line;
                return error(
                    at,
                    format!("key {name:?} stands twice in one object; the first is in line {line}"),
                );
            }
            spot.key = Some(at);
            members.insert(name.clone(), value);
            spots.insert(name, spot);
        }
        for (value, spot, at) in merged {
            merge_into(&mut members, &mut spots, value, spot, at)?;
        }
        Ok((members, spots))
    }

    /// A key as JSON has it, which is text; and whether it is the merge key.
    fn key(&mut self, event: Event<'a>, at: Mark) -> Result<(String, bool)> {
        let (text, style, tag) = match event {
            Event::Scalar(text, style, _, tag) => (text, style, tag),
            Event::Alias(anchor) => match self.alias(anchor, at, 0)? {
                (Value::String(text), _) => return Ok((text, false)),
                _ => return error(at, "a key must be text"),
            },
            _ => return error(at, "a key must be text, not a list or an object"),
        };
        self.count(
            at,
            Size {
                values: 1,
                bytes: text.len(),
            },
        )?;
        if style == ScalarStyle::Plain && tag.is_none() && text == "<<" {
            return Ok((String::new(), true));
        }
        match value(text, style, tag.as_deref(), at)? {
            Value::String(text) => Ok((text, false)),
            Value::Null => error(at, "a key is missing before the ':'"),
            // As Kubernetes turns them into JSON's keys.
            other => Ok((other.to_string(), false)),
        }
    }
}

/// YAML 1.1's `<<`: members of another object (or a list of them), where this one has none of that name.
fn merge_into(
    members: &mut Map<String, Value>,
    spots: &mut BTreeMap<String, Spot>,
    value: Value,
    spot: Spot,
    at: Mark,
) -> Result<()> {
    match (value, spot.inner) {
        (Value::Object(from), Inner::Map(mut places)) => {
            for (name, value) in from {
                if !members.contains_key(&name) {
                    spots.insert(name.clone(), places.remove(&name).unwrap_or_default());
                    members.insert(name, value);
                }
            }
            Ok(())
        }
        (Value::Array(items), Inner::List(places)) => {
            for (item, place) in items.into_iter().zip(places) {
                if !item.is_object() {
                    return error(at, "'<<' wants an object, or a list of objects");
                }
                merge_into(members, spots, item, place, at)?;
            }
            Ok(())
        }
        _ => error(at, "'<<' wants an object, or a list of objects"),
    }
}

/// A scalar's value by its tag, if it has one, or else by its style.
fn value(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>, at: Mark) -> Result<Value> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain {
            scalar::plain(&text)
        } else {
            text.into_owned().into()
        });
    };
    let kind = core_tag(tag);
    let value = match kind {
        Some("" | "str") => return Ok(Value::String(text.into_owned())),
        Some(_) => scalar::plain(&text),
        None => {
            return error(
                at,
                format!("tag {}{} has no meaning in a manifest", tag.handle, tag.suffix),
            );
        }
    };
    let fits = match kind {
        Some("null") => value.is_null(),
        Some("bool") => value.is_boolean(),
        Some("int") => value.is_i64() || value.is_u64(),
        Some("float") => value.is_number(),
        _ => false,
    };
    if fits {
        Ok(value)
    } else {
        error(at, format!("{text:?} is no !!{}", kind.unwrap_or_default()))
    }
}

/// The word of a tag of YAML's core; empty for the tag `!`, which says "not plain".
fn core_tag(tag: &Tag) -> Option<&str> {
    match (tag.handle.as_str(), tag.suffix.as_str()) {
        ("tag:yaml.org,2002:", word @ ("str" | "null" | "bool" | "int" | "float" | "seq" | "map")) => {
            Some(word)
        }
        ("" | "!", "") | ("", "!") => Some(""),
        _ => None,
    }
}

fn collection_tag(tag: Option<Cow<'_, Tag>>, own: &str, at: Mark) -> Result<()> {
    match tag {
        Some(tag) if core_tag(&tag) != Some(own) => error(
            at,
            format!("tag {}{} has no meaning in a manifest", tag.handle, tag.suffix),
        ),
        _ => Ok(()),
    }
}

/// The parser's words, with what people mostly did.
fn plain_words(info: &str) -> String {
    let hint = if info.contains("tab ") || info.contains("tabs ") {
        "; YAML indents with spaces, never with tabs"
    } else if info.contains("mapping values are not allowed") {
        "; is the line indented too far, or does text with ': ' lack its quotes?"
    } else if info.contains("did not find expected key") || info.contains("simple key expect") {
        "; is the indentation that of the lines before, and does each key end in ': '?"
    } else if info.contains("did not find expected '-' indicator") || info.contains("block collection") {
        "; do the lines of this list all begin in the same column?"
    } else {
        ""
    };
    format!("{info}{hint}")
}

#[cfg(test)]
mod tests;
