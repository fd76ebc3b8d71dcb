//! `SUPPORT.md`: every field of the API that is known here, and how far it is honoured.
//!
//! Always holds: the text is made of the tables of [`super::fields`] and of nothing else, so it cannot promise what a
//! manifest would not get.

use alloc::format;
use alloc::string::String;

use super::schema::{Field, Shape, Support};
use super::{KINDS, fields};

const HEAD: &str = "# What of the Kubernetes API is honoured

Made from the tables of `protocol/src/manifest/fields.rs` by `SKIFF_SUPPORT=write cargo test -p skiff-protocol --test
support`; a test fails when the two differ. A field that is not listed is unknown, and said to be.

- `yes`: as the Kubernetes API reference says.
- `yes, with limits`: so, but for what the line says.
- `not yet`: kept, and named in a warning when the object is applied; the Pod runs without it.
- `refused`: the object is refused by the field's name, for it would mean something else without it. A value that asks
  for nothing (absent, empty, `false`, or what stands in parentheses) is taken.

What a field asks of the node itself (the host's network, AppArmor, an extended resource, …) is compared with what the
node says of itself, in its annotation `skiff.io/features` and in `status.allocatable`.
";

/// The text of `SUPPORT.md`.
#[must_use]
pub fn support() -> String {
    let mut out = String::from(HEAD);
    for kind in KINDS {
        out += &format!("\n## {kind}\n\n| field | honoured |\n| --- | --- |\n");
        rows(fields::of(kind).unwrap_or_default(), "", &mut out);
    }
    out
}

fn rows(fields: &'static [Field], path: &str, out: &mut String) {
    for field in fields {
        let path = if path.is_empty() {
            String::from(field.name)
        } else {
            format!("{path}.{}", field.name)
        };
        let (path, inner) = match field.shape {
            Shape::List(Shape::Object(inner)) => (path + "[]", Some(*inner)),
            Shape::List(_) => (path + "[]", None),
            Shape::Object(inner) => (path, Some(inner)),
            _ => (path, None),
        };
        *out += &format!("| `{path}` | {} |\n", word(field));
        // What stands below a field that is not honoured is not honoured either.
        if let (Support::Yes, Some(inner)) = (field.support, inner) {
            rows(inner, &path, out);
        }
    }
}

fn word(field: &Field) -> String {
    let mut out = String::from(match field.support {
        Support::Yes if field.note.is_empty() => "yes",
        Support::Yes => "yes, with limits",
        Support::Later => "not yet: warned about",
        Support::Refused => "refused",
    });
    for (at, quiet) in field.quiet.iter().enumerate() {
        out += if at == 0 { " (but for " } else { ", " };
        out += &format!("`{quiet}`");
    }
    if !field.quiet.is_empty() {
        out += ")";
    }
    if !field.note.is_empty() {
        out += &format!(": {}", field.note);
    }
    out
}
