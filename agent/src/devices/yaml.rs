//! The part of YAML that CDI specifications are written in: what generators and people write, and no more.
//!
//! Always holds: text is read as YAML means it, or refused with its line; anchors, tags, block scalars, flow collections
//! that are not empty and several documents are refused. It is read within the running agent, which a panic of a whole
//! YAML parser would end.

use serde_json::{Map, Value};

/// Nesting that is read: a specification has eight levels.
const DEPTH: usize = 32;

/// One line that says something.
struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

/// Reads a document.
///
/// # Errors
/// Names the line.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let body = uncomment(line).trim_end();
        let text = body.trim_start_matches(' ');
        if text.is_empty() || (text == "---" && lines.is_empty()) {
            continue;
        }
        let line = Line {
            number: at + 1,
            indent: body.len() - text.len(),
            text,
        };
        if text.starts_with('\t') {
            return Err(refused(&line, "a tab cannot indent"));
        }
        if matches!(text, "---" | "...") {
            return Err(refused(&line, "only one document is read"));
        }
        lines.push(line);
    }
    let Some(first) = lines.first() else {
        return Err("the file is empty".to_owned());
    };
    let mut reader = Reader { lines: &lines, at: 0 };
    let value = reader.block(first.indent, 0)?;
    match lines.get(reader.at) {
        Some(line) => Err(refused(line, "indented in another way than what is above")),
        None => Ok(value),
    }
}

fn refused(line: &Line<'_>, why: &str) -> String {
    format!(
        "line {}: {why}; this reads plain YAML, and JSON in files that end in .json",
        line.number
    )
}

/// A line without its comment: a `#` at its start or after a space, outside of quotes.
fn uncomment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    let mut escaped = false;
    for (at, c) in line.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            // A quote inside a word is part of it.
            None if matches!(c, '"' | '\'') && matches!(before, ' ' | '\t') => quote = Some(c),
            None if c == '#' && matches!(before, ' ' | '\t') => return &line[..at],
            None => {}
        }
        before = c;
    }
    line
}

struct Reader<'a> {
    lines: &'a [Line<'a>],
    at: usize,
}

impl Reader<'_> {
    /// The mapping or sequence whose lines have this indentation.
    fn block(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let line = &self.lines[self.at];
        if depth > DEPTH {
            return Err(refused(line, "nested too deep"));
        }
        if item(line.text).is_some() {
            self.sequence(indent, depth)
        } else if entry(line.text).is_some() {
            self.mapping(indent, None, depth)
        } else {
            self.at += 1;
            scalar(line, line.text)
        }
    }

    fn sequence(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let mut out = Vec::new();
        while let Some(line) = self.lines.get(self.at).filter(|it| it.indent == indent) {
            let Some(rest) = item(line.text) else { break };
            let inner = indent + (line.text.len() - rest.len());
            out.push(if rest.is_empty() {
                self.at += 1;
                self.below(indent, depth)?
            } else if item(rest).is_some() {
                return Err(refused(line, "a sequence begins on a line of its own"));
            } else if entry(rest).is_some() {
                self.mapping(inner, Some(rest), depth + 1)?
            } else {
                self.at += 1;
                scalar(line, rest)?
            });
        }
        Ok(Value::Array(out))
    }

    /// A mapping; `first` is its first entry where that stands behind a dash.
    fn mapping(&mut self, indent: usize, first: Option<&str>, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err(refused(&self.lines[self.at], "nested too deep"));
        }
        let mut out = Map::new();
        let mut first = first;
        while let Some(line) = self.lines.get(self.at) {
            let text = match first.take() {
                Some(text) => text,
                None if line.indent == indent && item(line.text).is_none() => line.text,
                None => break,
            };
            let (key, rest) = entry(text).ok_or_else(|| refused(line, "expected `key: value`"))?;
            let Value::String(key) = quoted(line, key)?.unwrap_or_else(|| key.into()) else {
                return Err(refused(line, "a key must be text"));
            };
            self.at += 1;
            let value = if rest.is_empty() {
                self.value_below(indent, depth)?
            } else {
                scalar(line, rest)?
            };
            if out.insert(key.clone(), value).is_some() {
                return Err(refused(line, &format!("{key:?} is given twice")));
            }
        }
        Ok(Value::Object(out))
    }

    /// What belongs to a key: deeper lines, or a sequence at the key's own indentation.
    fn value_below(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let own = |it: &&Line<'_>| it.indent == indent && item(it.text).is_some();
        if self.lines.get(self.at).filter(own).is_some() {
            return self.sequence(indent, depth + 1);
        }
        self.below(indent, depth)
    }

    fn below(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        match self.lines.get(self.at).filter(|it| it.indent > indent) {
            Some(line) => self.block(line.indent, depth + 1),
            None => Ok(Value::Null),
        }
    }
}

/// What follows a dash.
fn item(text: &str) -> Option<&str> {
    if text == "-" {
        return Some("");
    }
    text.strip_prefix("- ").map(str::trim_start)
}

/// Key and value of `key: value`.
fn entry(text: &str) -> Option<(&str, &str)> {
    let end = match text.chars().next()? {
        quote @ ('"' | '\'') => text[1..].find(quote)? + 2,
        _ => text.find(": ").or_else(|| text.strip_suffix(':').map(str::len))?,
    };
    let (key, rest) = text.split_at(end);
    let rest = rest.strip_prefix(':')?;
    (rest.is_empty() || rest.starts_with(' ')).then(|| (key, rest.trim_start()))
}

/// A quoted scalar; `None` where it is not quoted.
fn quoted(line: &Line<'_>, text: &str) -> Result<Option<Value>, String> {
    let bad = || refused(line, "a quoted text must end on its line");
    if text.starts_with('"') {
        // JSON's escapes are a part of YAML's.
        return serde_json::from_str::<String>(text)
            .map(|it| Some(Value::String(it)))
            .map_err(|_| bad());
    }
    let Some(rest) = text.strip_prefix('\'') else {
        return Ok(None);
    };
    let inner = rest.strip_suffix('\'').ok_or_else(bad)?;
    if inner.replace("''", "").contains('\'') {
        return Err(bad());
    }
    Ok(Some(Value::String(inner.replace("''", "'"))))
}

fn scalar(line: &Line<'_>, text: &str) -> Result<Value, String> {
    if let Some(value) = quoted(line, text)? {
        return Ok(value);
    }
    match text {
        "[]" => return Ok(Value::Array(Vec::new())),
        "{}" => return Ok(Value::Object(Map::new())),
        "null" | "Null" | "NULL" | "~" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    if text.starts_with(['[', '{', '&', '*', '!', '|', '>', '%', '@', '`', ',', ']', '}']) {
        return Err(refused(line, &format!("{text:?} is more of YAML than is read")));
    }
    if text.contains(": ") || text.ends_with(':') {
        return Err(refused(line, "a text that holds a colon must be quoted"));
    }
    let radix = |prefix: &str, radix| u64::from_str_radix(text.strip_prefix(prefix)?, radix).ok();
    let number = radix("0o", 8).or_else(|| radix("0x", 16));
    // YAML 1.1, which Kubernetes' tools write, has octal numbers by a leading 0 alone.
    let number = number.or_else(|| {
        let octal = text.len() > 1 && text.starts_with('0');
        if octal {
            radix("0", 8)
        } else {
            text.parse::<u64>().ok()
        }
    });
    let number = number.map(Value::from);
    let number = number.or_else(|| text.parse::<i64>().ok().map(Value::from));
    Ok(number.unwrap_or_else(|| Value::String(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_generators_write_is_read() {
        for (text, expected) in [
            (
                "a: 1\nb: x y\nc: true\nd:\n",
                json!({"a": 1, "b": "x y", "c": true, "d": null}),
            ),
            ("---\n# all\na: 'it''s' # it is\n", json!({"a": "it's"})),
            ("a: \"x\\ty: # z\"\n", json!({"a": "x\ty: # z"})),
            (
                "a:\n- b\n- c: 1\n  d: 2\n- e:\n  - f\nz: 0\n",
                json!({"a": ["b", {"c": 1, "d": 2}, {"e": ["f"]}], "z": 0}),
            ),
            (
                "a:\n    - b: x\n      c:\n        d: []\n    -\n      e: {}\n",
                json!({"a": [{"b": "x", "c": {"d": []}}, {"e": {}}]}),
            ),
            (
                "cdiVersion: 0.5.0\nkind: v.com/c\nname: \"0\"\nmode: 0644\noct: 0o644\nneg: -1\n",
                json!({"cdiVersion": "0.5.0", "kind": "v.com/c", "name": "0", "mode": 420, "oct": 420, "neg": -1}),
            ),
            ("env:\n- A=b:c\n- B=#c\n", json!({"env": ["A=b:c", "B=#c"]})),
            ("\"a b\": c\n'd': e\n", json!({"a b": "c", "d": "e"})),
            ("- a\n- b\n", json!(["a", "b"])),
            ("a:\n  - x\n  # between\n\n  - y\n", json!({"a": ["x", "y"]})),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_beyond_it_is_refused_with_its_line() {
        for (text, expected) in [
            ("", "the file is empty"),
            ("a: &x 1\n", "line 1: "),
            ("a: 1\nb: |\n  x\n", "line 2: "),
            ("a: [1, 2]\n", "line 1: "),
            ("a: 1\na: 2\n", "line 2: \"a\" is given twice"),
            ("a: 1\n  b: 2\n", "line 2: indented"),
            ("a:\n  b: 1\n c: 2\n", "line 3: indented"),
            ("a: 1\n---\nb: 2\n", "line 2: only one"),
            ("a:\n\t- b\n", "line 2: a tab"),
            ("a: \"x\n", "line 1: a quoted"),
            ("a: b: c\n", "line 1: a text that holds a colon"),
            ("- - a\n", "line 1: a sequence"),
            ("a: 1\nb\n", "line 2: expected"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
        let deep: String = (0..100).map(|at| format!("{}a:\n", " ".repeat(at))).collect();
        assert!(parse(&deep).unwrap_err().contains("nested too deep"));
    }
}
