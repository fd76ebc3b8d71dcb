//! Shapes of JSON objects and the walk that compares a value with them.
//!
//! Always holds: the walk reads the value and changes nothing; its depth is that of the schema, not of the value.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::Value;

use super::{Cause, Reason};

/// What a value may be.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    Str,
    Int,
    Bool,
    /// A string or a number.
    Quantity,
    /// A string or an integer, as for a port.
    IntOrString,
    /// A map from string to string.
    Strings,
    /// A map from string to quantity.
    Quantities,
    List(&'static Shape),
    Object(&'static [Field]),
    /// Anything: parts of the API that we carry and do not read.
    Any,
}

/// How far a field is honoured.
#[derive(Clone, Copy)]
pub(crate) enum Support {
    Yes,
    /// Taken, kept, reported by name as not yet honoured.
    Later,
    /// Refused: ignoring it would change what the Pod means.
    Refused,
}

/// A field of an object.
#[derive(Clone, Copy)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) support: Support,
    /// Values that ask for nothing beyond what is done anyway, in JSON.
    pub(crate) quiet: &'static [&'static str],
    /// What is particular here, in half a sentence for SUPPORT.md; mostly empty.
    pub(crate) note: &'static str,
}

impl Field {
    /// The same field with a note: a limit of a field that is honoured, a reason of one that is not.
    pub(crate) const fn noted(mut self, note: &'static str) -> Self {
        self.note = note;
        self
    }
}

pub(crate) const fn yes(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        support: Support::Yes,
        quiet: &[],
        note: "",
    }
}

pub(crate) const fn later(name: &'static str, shape: Shape, quiet: &'static [&'static str]) -> Field {
    Field {
        name,
        shape,
        support: Support::Later,
        quiet,
        note: "",
    }
}

pub(crate) const fn refused(name: &'static str, shape: Shape, quiet: &'static [&'static str]) -> Field {
    Field {
        name,
        shape,
        support: Support::Refused,
        quiet,
        note: "",
    }
}

/// What [`inspect`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Fields that the schema does not know, each with the nearest known name.
    pub unknown: Vec<Cause>,
    /// Values of the wrong type, each with the likely fix.
    pub type_errors: Vec<Cause>,
}

/// What of an object is known and not honoured.
#[derive(Debug, Default)]
pub(crate) struct Unsupported {
    pub(crate) later: Vec<Cause>,
    pub(crate) refused: Vec<Cause>,
}

pub(crate) fn inspect(fields: Option<&'static [Field]>, value: &Value) -> Inspection {
    let mut found = Inspection::default();
    if let Some(fields) = fields {
        check(Shape::Object(fields), value, "", &mut found);
    }
    found
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn check(shape: Shape, value: &Value, path: &str, found: &mut Inspection) {
    let expected = match (shape, value) {
        (_, Value::Null)
        | (Shape::Any, _)
        | (Shape::Str, Value::String(_))
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Quantity, Value::String(_) | Value::Number(_)) => return,
        (Shape::Int, Value::Number(number)) if number.is_i64() => return,
        (Shape::IntOrString, Value::Number(number)) if number.is_i64() => return,
        (Shape::IntOrString, Value::String(_)) => return,
        (Shape::List(inner), Value::Array(items)) => {
            for (at, item) in items.iter().enumerate() {
                let path = format!("{path}[{at}]");
                if item.is_null() && !matches!(inner, Shape::Any) {
                    // Absence has a meaning for a field, and none for an item.
                    let message =
                        "expected a list item, found nothing; remove the '-' or write the item after it";
                    let cause = Cause::new(path, Reason::TypeInvalid, message);
                    found.type_errors.push(cause);
                } else {
                    check(*inner, item, &path, found);
                }
            }
            return;
        }
        (Shape::Strings | Shape::Quantities, Value::Object(map)) => {
            let inner = if matches!(shape, Shape::Strings) {
                Shape::Str
            } else {
                Shape::Quantity
            };
            for (key, item) in map {
                check(inner, item, &join(path, key), found);
            }
            return;
        }
        (Shape::Object(fields), Value::Object(map)) => {
            for (key, item) in map {
                check_field(fields, key, item, path, found);
            }
            return;
        }
        (Shape::Str, _) => "a string",
        (Shape::Int, _) => "an integer",
        (Shape::Bool, _) => "true or false",
        (Shape::Quantity, _) => "a quantity such as \"250m\" or \"64Mi\"",
        (Shape::IntOrString, _) => "an integer or a string",
        (Shape::List(_), _) => "a list",
        (Shape::Strings | Shape::Quantities | Shape::Object(_), _) => "an object",
    };
    let hint = match (shape, value) {
        (Shape::Str, Value::Number(_) | Value::Bool(_)) => format!("; write it in quotes: \"{value}\""),
        (Shape::Int, Value::String(text)) if text.parse::<i64>().is_ok() => {
            format!("; write it without quotes: {text}")
        }
        (Shape::Bool, Value::String(text)) if matches!(text.as_str(), "true" | "false") => {
            format!("; write it without quotes: {text}")
        }
        (Shape::List(_), _) => "; begin it with '- '".to_owned(),
        _ => String::new(),
    };
    let message = format!("expected {expected}, found {}{hint}", describe(value));
    found
        .type_errors
        .push(Cause::new(path, Reason::TypeInvalid, message));
}

fn check_field(fields: &'static [Field], key: &str, item: &Value, path: &str, found: &mut Inspection) {
    let path = join(path, key);
    match fields.iter().find(|field| field.name == key) {
        Some(field) => check(field.shape, item, &path, found),
        None => {
            let near = nearest(key, fields.iter().map(|field| field.name));
            let hint = near
                .map(|near| format!(" (did you mean {near:?}?)"))
                .unwrap_or_default();
            found.unknown.push(Cause::new(
                &path,
                Reason::Unknown,
                format!("unknown field {path:?}{hint}"),
            ));
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(it) => format!("the boolean {it}"),
        Value::Number(it) => format!("the number {it}"),
        Value::String(it) => format!("the string {:?}", it.chars().take(64).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Reports fields that are set and not honoured.
/// `what` is it that would have them: "the Pod".
pub(crate) fn unsupported(fields: &'static [Field], what: &str, value: &Value) -> Unsupported {
    let mut out = Unsupported::default();
    walk(Shape::Object(fields), value, "", what, &mut out);
    out
}

fn walk(shape: Shape, value: &Value, path: &str, what: &str, out: &mut Unsupported) {
    match (shape, value) {
        (Shape::List(inner), Value::Array(items)) => {
            for (at, item) in items.iter().enumerate() {
                walk(*inner, item, &format!("{path}[{at}]"), what, out);
            }
        }
        (Shape::Object(fields), Value::Object(map)) => {
            for (key, item) in map {
                let Some(field) = fields.iter().find(|field| field.name == key) else {
                    continue;
                };
                let path = join(path, key);
                match field.support {
                    Support::Yes => walk(field.shape, item, &path, what, out),
                    _ if asks_nothing(field, item) => {}
                    Support::Later => {
                        let goes_on = if what == "the Pod" { "runs" } else { "is kept" };
                        let message =
                            format!("not yet honoured by this version of Skiff; {what} {goes_on} without it");
                        out.later.push(Cause::new(path, Reason::NotSupported, message));
                    }
                    Support::Refused => {
                        let why = format!(
                            "not supported by this version of Skiff, and {what} would mean something else without it"
                        );
                        out.refused.push(Cause::forbidden(path, why));
                    }
                }
            }
        }
        _ => {}
    }
}

fn asks_nothing(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) if items.is_empty() => true,
        Value::Object(map) if map.is_empty() => true,
        Value::Bool(false) => true,
        _ => field
            .quiet
            .iter()
            .any(|quiet| serde_json::from_str::<Value>(quiet).is_ok_and(|quiet| quiet == *value)),
    }
}

/// Null means absent in Kubernetes; typed decoding knows only absence.
pub(crate) fn prune_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, item| !item.is_null());
            map.values_mut().for_each(prune_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(prune_nulls),
        _ => {}
    }
}

/// The known name nearest to `name`, if one is near enough to be a slip of the hand.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let bound = (name.len() / 3).clamp(1, 3);
    known
        .map(|candidate| {
            (
                distance(&name.to_ascii_lowercase(), &candidate.to_ascii_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance over bytes, for names of at most 64 bytes.
fn distance(left: &str, right: &str) -> usize {
    if left.len() > 64 || right.len() > 64 {
        return usize::MAX;
    }
    let mut row: [usize; 65] = core::array::from_fn(|at| at);
    for (at, l) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, r) in right.bytes().enumerate() {
            let cost = diagonal + usize::from(l != r);
            diagonal = row[column + 1];
            row[column + 1] = cost.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (left, right, expected) in [
            ("", "", 0),
            ("images", "image", 1),
            ("kitten", "sitting", 3),
            ("", "abc", 3),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }
}
