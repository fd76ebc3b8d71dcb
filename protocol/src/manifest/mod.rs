//! The Kubernetes objects as users write them.
//!
//! Data flow: JSON value → [`inspect`] (shape: unknown fields, wrong types) → [`decode`] (typed) →
//! [`crate::pod::Pod::parse`] (meaning). Each stage names the field it complains about.
//!
//! Always holds: a field of the Kubernetes API is in the tables of [`fields`], or it is reported as unknown.

mod fields;
mod schema;
mod support;
mod types;

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

pub use schema::{Inspection, nearest};
pub use support::support;
pub use types::*;

/// Why a field is refused; the words are those of Kubernetes' `field.ErrorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A value must be given.
    Required,
    /// The value has the right type and is not acceptable.
    Invalid,
    /// The value is none of the allowed ones.
    NotSupported,
    /// The value stands twice where it must be unique.
    Duplicate,
    /// The field is not in the schema.
    Unknown,
    /// The value has the wrong type.
    TypeInvalid,
    /// The field may not be set here.
    Forbidden,
    /// The value is longer than its bound.
    TooLong,
}

impl Reason {
    /// The reason in a `Status` object's causes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Unknown => "FieldValueUnknown",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
        }
    }
}

/// One complaint about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The path, as Kubernetes writes it: `spec.containers[0].image`.
    pub field: String,
    /// What kind of complaint.
    pub reason: Reason,
    /// The complaint without the path, in Kubernetes' wording where it has one, with the likely fix.
    pub message: String,
}

impl Cause {
    /// A complaint.
    pub fn new(field: impl Into<String>, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason,
            message: message.into(),
        }
    }

    /// `Required value`, with what is wanted.
    pub fn required(field: impl Into<String>, what: &str) -> Self {
        let message = if what.is_empty() {
            "Required value".to_string()
        } else {
            alloc::format!("Required value: {what}")
        };
        Self::new(field, Reason::Required, message)
    }

    /// `Invalid value: …`.
    pub fn invalid(field: impl Into<String>, value: impl fmt::Debug, why: impl fmt::Display) -> Self {
        Self::new(
            field,
            Reason::Invalid,
            alloc::format!("Invalid value: {value:?}: {why}"),
        )
    }

    /// `Unsupported value: …: supported values: …`.
    pub fn not_supported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let mut message = alloc::format!("Unsupported value: {value:?}: supported values: ");
        for (at, one) in supported.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            message += &alloc::format!("{comma}{one:?}");
        }
        if let Some(near) = nearest(value, supported.iter().copied()) {
            message += &alloc::format!(" (did you mean {near:?}?)");
        }
        Self::new(field, Reason::NotSupported, message)
    }

    /// `Duplicate value: …`.
    pub fn duplicate(field: impl Into<String>, value: impl fmt::Debug) -> Self {
        Self::new(
            field,
            Reason::Duplicate,
            alloc::format!("Duplicate value: {value:?}"),
        )
    }

    /// `Forbidden: …`.
    pub fn forbidden(field: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(field, Reason::Forbidden, alloc::format!("Forbidden: {why}"))
    }

    /// `Too long: …`.
    pub fn too_long(field: impl Into<String>, bound: usize, unit: &str) -> Self {
        Self::new(
            field,
            Reason::TooLong,
            alloc::format!("Too long: may not be more than {bound} {unit}"),
        )
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// The kinds that have a schema here.
pub const KINDS: [&str; 7] = [
    "Pod",
    "ConfigMap",
    "Secret",
    "Namespace",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "StorageClass",
];

/// Looks for unknown fields and wrong types in an object of `kind`. A kind without a schema here has
/// nothing to complain about.
#[must_use]
pub fn inspect(kind: &str, value: &Value) -> Inspection {
    schema::inspect(fields::of(kind), value)
}

/// What of this Pod the node would not honour: warnings, and refusals where the Pod's meaning would change.
#[must_use]
pub(crate) fn unsupported(value: &Value) -> schema::Unsupported {
    schema::unsupported(&fields::POD, "the Pod", value)
}

/// What of an object of `kind` is not honoured: warnings, and refusals where its meaning would change. Of a Pod
/// [`crate::pod::Pod::parse`] says it.
#[must_use]
pub fn not_honoured(kind: &str, value: &Value) -> (Vec<Cause>, Vec<Cause>) {
    let Some(fields) = fields::of(kind) else {
        return (Vec::new(), Vec::new());
    };
    let found = schema::unsupported(fields, "the object", value);
    (found.later, found.refused)
}

/// Decodes a typed object. Unknown fields are left out: [`inspect`] reports them.
///
/// # Errors
/// The type errors, each with its field.
pub fn decode<T: DeserializeOwned>(kind: &str, value: &Value) -> Result<T, Vec<Cause>> {
    let found = inspect(kind, value);
    if !found.type_errors.is_empty() {
        return Err(found.type_errors);
    }
    let mut value = value.clone();
    schema::prune_nulls(&mut value);
    serde_json::from_value(value)
        .map_err(|error| alloc::vec![Cause::new("", Reason::TypeInvalid, error.to_string())])
}
