//! What can be known of an object without the server: its kind, its fields, and for a Pod everything.

use std::sync::Arc;

use base64::Engine as _;
use serde_json::Value;
use skiff_protocol::manifest::{self, Cause, Reason};
use skiff_protocol::pod::Pod;

use super::{Checked, Diagnostic, Manifest, Source};
use crate::kinds::{self, Kind};
use skiff_yaml::{Inner, Spot};

/// Checks one document: an object, or a List of them.
pub(super) fn document(source: &Arc<Source>, value: Value, spot: Spot, out: &mut Checked) {
    let is_list = value["kind"] == "List" && value["items"].is_array();
    let (Value::Object(mut members), true) = (value.clone(), is_list) else {
        return object(source, value, spot, out);
    };
    let Some(Value::Array(items)) = members.remove("items") else {
        return;
    };
    let places = match spot.inner {
        Inner::Map(mut members) => members.remove("items"),
        _ => None,
    };
    let places = match places.map(|items| items.inner) {
        Some(Inner::List(places)) => places,
        _ => Vec::new(),
    };
    for (item, place) in items.into_iter().zip(places) {
        object(source, item, place, out);
    }
}

fn object(source: &Arc<Source>, value: Value, spot: Spot, out: &mut Checked) {
    let tell = |cause: &Cause| Diagnostic::of_cause(source, &spot, cause);
    let kind = match kind_of(&value) {
        Ok(kind) => kind,
        Err(cause) => {
            out.errors.push(tell(&cause));
            return;
        }
    };
    let (mut causes, warnings) = complaints(kind, &value);
    without_echoes(&mut causes);
    out.warnings.extend(warnings.iter().map(tell));
    out.errors.extend(causes.iter().map(tell));
    if causes.is_empty() {
        out.manifests.push(Manifest {
            source: source.clone(),
            spot,
            value,
            kind,
        });
    }
}

/// The kind that is written, or the one that was meant: then its name is complained of later.
fn kind_of(value: &Value) -> Result<&'static Kind, Cause> {
    if !value.is_object() {
        let message = "expected an object with apiVersion, kind and metadata";
        return Err(Cause::new("", Reason::TypeInvalid, message));
    }
    let written = match &value["kind"] {
        Value::String(kind) => kind.as_str(),
        Value::Null => return Err(Cause::required("kind", "write kind: Pod, or another kind")),
        other => {
            let message = format!("expected a string, found {other}");
            return Err(Cause::new("kind", Reason::TypeInvalid, message));
        }
    };
    let near = || manifest::nearest(written, manifest::KINDS.into_iter()).and_then(kinds::by_kind);
    kinds::by_kind(written)
        .filter(|kind| manifest::KINDS.contains(&kind.kind))
        .or_else(near)
        .ok_or_else(|| Cause::not_supported("kind", written, &manifest::KINDS))
}

fn complaints(kind: &Kind, value: &Value) -> (Vec<Cause>, Vec<Cause>) {
    let mut causes = manifest::inspect(kind.kind, value).unknown;
    if kind.kind == "Pod" {
        match Pod::parse(value) {
            Ok(parsed) => return (causes, parsed.warnings),
            Err(found) => causes.extend(found),
        }
        return (causes, Vec::new());
    }
    head(kind, value, &mut causes);
    let typed = match kind.kind {
        "ConfigMap" => manifest::decode::<manifest::ConfigMap>(kind.kind, value).map(|map| {
            base64("binaryData", &map.binary_data, &mut causes);
            map.metadata.name
        }),
        "Secret" => manifest::decode::<manifest::Secret>(kind.kind, value).map(|secret| {
            base64("data", &secret.data, &mut causes);
            secret.metadata.name
        }),
        _ => manifest::decode::<manifest::Namespace>(kind.kind, value).map(|it| it.metadata.name),
    };
    match typed {
        Ok(name) if name.is_empty() => causes.push(Cause::required("metadata.name", "name is required")),
        Ok(_) => {}
        Err(found) => causes.extend(found),
    }
    let (warnings, refused) = manifest::not_honoured(kind.kind, value);
    causes.extend(refused);
    (causes, warnings)
}

fn head(kind: &Kind, value: &Value, causes: &mut Vec<Cause>) {
    let wanted = kind.api_version();
    match value["apiVersion"].as_str() {
        Some(written) if written == wanted => {}
        Some(other) => causes.push(Cause::not_supported("apiVersion", other, &[wanted.as_str()])),
        None if value["apiVersion"].is_null() => {
            let what = format!("write apiVersion: {wanted}");
            causes.push(Cause::required("apiVersion", &what));
        }
        None => {}
    }
    match value["kind"].as_str() {
        Some(written) if written != kind.kind => {
            causes.push(Cause::not_supported("kind", written, &manifest::KINDS));
        }
        _ => {}
    }
}

fn base64(field: &str, data: &std::collections::BTreeMap<String, String>, causes: &mut Vec<Cause>) {
    for (key, text) in data {
        // As Go reads it: line breaks inside are nothing.
        let text: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        if base64::engine::general_purpose::STANDARD.decode(text).is_err() {
            let hint = if field == "data" {
                "; plain text goes under stringData"
            } else {
                ""
            };
            let message = format!("expected base64{hint}");
            causes.push(Cause::new(format!("{field}.{key}"), Reason::TypeInvalid, message));
        }
    }
}

/// Takes out the complaint that a field is missing where it only stands under a mistyped name.
fn without_echoes(causes: &mut Vec<Cause>) {
    let meant: Vec<String> = causes.iter().filter_map(meant).collect();
    causes.retain(|cause| cause.reason != Reason::Required || !meant.contains(&cause.field));
}

/// The field that an unknown one was meant to be.
fn meant(cause: &Cause) -> Option<String> {
    if cause.reason != Reason::Unknown {
        return None;
    }
    let (_, rest) = cause.message.rsplit_once("did you mean \"")?;
    let (name, _) = rest.split_once('"')?;
    let parent = cause
        .field
        .rsplit_once('.')
        .map_or(String::new(), |(parent, _)| format!("{parent}."));
    Some(format!("{parent}{name}"))
}
