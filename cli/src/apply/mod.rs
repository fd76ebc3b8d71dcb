//! `skiff apply`: make objects as files describe them, or change them to that.
//!
//! An object that is there is read, and what differs is sent as a JSON merge patch (RFC 7386), computed from what was
//! applied last, what is wanted, and what is there (see [`patch`]). What was applied last is kept in the annotation
//! that kubectl uses, so that both tools go on with each other's work.
//!
//! Always holds: nothing is sent before every file has been checked; of more than one object, nothing is stored before
//! the server has said that it would take each.

mod patch;

use std::collections::BTreeSet;

use http::Method;
use serde_json::Value;

use crate::args::ApplyArgs;
use crate::connect::{Ask, Refusal, Server, Target, said};
use crate::failure::{Failure, Outcome};
use crate::manifest::{self, Diagnostic, Manifest};
use crate::out::Out;
use crate::style::{self, Colours};

/// Tries of one object that somebody else changes at the same time.
const TRIES: u32 = 5;

/// How an object came to be as described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Created,
    Configured,
    Unchanged,
}

impl Done {
    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

pub(crate) async fn run(target: &Target, args: &ApplyArgs) -> Outcome {
    let manifests = manifest::load(&args.filename)?;
    for manifest in &manifests {
        if manifest.name().is_empty() {
            let message = "apply needs a name: with generateName each time would make another object";
            let place =
                Diagnostic::of_field(&manifest.source, &manifest.spot, "metadata.name", false, message);
            style::tell(&place.render(Colours::of_stderr()));
            return Err(Failure::Told);
        }
    }
    let server = target.server().await?;
    if manifests.len() > 1 && !args.dry_run {
        rehearse(&server, &manifests).await?;
    }
    let mut out = Out::new();
    for manifest in &manifests {
        let done = apply(&server, manifest, args.dry_run).await;
        let done = done.map_err(|refusal| tell(&server, manifest, refusal))?;
        let note = if args.dry_run { " (dry run)" } else { "" };
        out.line(&format!(
            "{}/{} {}{note}",
            manifest.kind.singular,
            manifest.name(),
            done.as_str()
        ))?;
    }
    out.flush()
}

/// Asks the server about every object, and shows every refusal. An object of a namespace that is made on the way
/// cannot be asked about yet.
async fn rehearse(server: &Server, manifests: &[Manifest]) -> Outcome {
    let made = manifests.iter().filter(|it| it.kind.kind == "Namespace");
    let made: BTreeSet<&str> = made.map(Manifest::name).collect();
    let mut failure = None;
    for manifest in manifests {
        if manifest.kind.namespaced && made.contains(namespace(server, manifest)) {
            continue;
        }
        if let Err(refusal) = apply(server, manifest, true).await {
            let unanswered = refusal.code().is_none();
            failure = Some(tell(server, manifest, refusal));
            if unanswered {
                break;
            }
        }
    }
    match failure {
        None => Ok(()),
        Some(Failure::Told) => {
            style::error("nothing was stored");
            Err(Failure::Told)
        }
        Some(other) => Err(other),
    }
}

fn namespace<'a>(server: &'a Server, manifest: &'a Manifest) -> &'a str {
    manifest.namespace().unwrap_or(&server.namespace)
}

async fn apply(server: &Server, manifest: &Manifest, dry_run: bool) -> Result<Done, Refusal> {
    let kind = manifest.kind;
    let namespace = namespace(server, manifest);
    let wanted = patch::wanted(&manifest.value, kind.namespaced.then_some(namespace));
    let path = kind.object(namespace, manifest.name());
    let options = |ask: Ask| {
        let ask = ask
            .with("fieldManager", "skiff")
            .with("fieldValidation", "Strict");
        if dry_run { ask.with("dryRun", "All") } else { ask }
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let current = match server.json(Ask::new(Method::GET, path.clone())).await {
            Ok(current) => current,
            Err(refusal) if refusal.code() == Some(404) => {
                let ask = Ask::new(Method::POST, kind.path(Some(namespace)));
                match server
                    .json(options(ask.sending("application/json", &wanted)))
                    .await
                {
                    Ok(_) => return Ok(Done::Created),
                    // Made by somebody else in between.
                    Err(refusal) if refusal.code() == Some(409) && tries < TRIES => continue,
                    Err(refusal) => return Err(refusal),
                }
            }
            Err(refusal) => return Err(refusal),
        };
        let Some(patch) = patch::patch(&wanted, &current) else {
            return Ok(Done::Unchanged);
        };
        let ask = Ask::new(Method::PATCH, path.clone()).sending("application/merge-patch+json", &patch);
        match server.json(options(ask)).await {
            Ok(after) => {
                let same = version(&after) == version(&current);
                return Ok(if same { Done::Unchanged } else { Done::Configured });
            }
            // Deleted in between, or changed under a patch that names its version.
            Err(refusal) if matches!(refusal.code(), Some(404 | 409)) && tries < TRIES => {}
            Err(refusal) => return Err(refusal),
        }
    }
}

fn version(object: &Value) -> &Value {
    &object["metadata"]["resourceVersion"]
}

/// Shows the server's causes at their places in the file.
fn tell(server: &Server, manifest: &Manifest, refusal: Refusal) -> Failure {
    let status = match refusal {
        Refusal::Status(status) => status,
        unanswered @ Refusal::Unanswered(_) => return unanswered.into(),
    };
    let causes = status
        .details
        .as_ref()
        .map(|details| details.causes.as_slice())
        .unwrap_or_default();
    let colours = Colours::of_stderr();
    for cause in causes {
        let unknown = cause.reason == "FieldValueUnknown";
        let message = cause
            .message
            .replacen(&format!("unknown field {:?}", cause.field), "unknown field", 1);
        let place = Diagnostic::of_field(&manifest.source, &manifest.spot, &cause.field, unknown, &message);
        style::tell(&place.render(colours));
    }
    let whole = Diagnostic::of_field(&manifest.source, &manifest.spot, "", false, &said(&status));
    if causes.is_empty() {
        style::tell(&whole.line());
    }
    let name = format!("{}/{}", manifest.kind.singular, manifest.name());
    style::error(&format!("{name}: refused by {}", server.origin()));
    Failure::Told
}
