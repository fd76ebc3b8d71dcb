//! `skiff get -w`: what there is, and then what changes.
//!
//! Always holds: a watch that ends goes on from the last version seen; only where the server has forgotten that
//! version is everything shown anew. A server that is away is waited for once it has answered; what it says is believed.
//! Memory is bounded by the largest event taken.

use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;
use serde_json::Value;

use super::table::{Shape, Table};
use super::{Wanted, show};
use crate::args::Output;
use crate::connect::{Ask, JSON, Refusal, Server, TABLE};
use crate::failure::{Outcome, failed};
use crate::out::Out;
use crate::style;

/// Bytes of one event: an object of the largest size, in a table.
const EVENT: usize = 8 << 20;

/// How long to wait before the server is asked again after a watch that told nothing.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest wait for a server that is away.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a watch ended with.
enum Ended {
    /// Go on from this version.
    From(String),
    /// The version is forgotten: list again.
    Forgotten,
    /// The watch did not come to be.
    Refused(Refusal),
}

/// What is done about a server that does not answer.
#[derive(Default)]
struct Absence {
    /// It has answered once, so the command line is right.
    answered: bool,
    /// Attempts in vain since it answered last.
    failures: u32,
}

impl Absence {
    fn over(&mut self) {
        self.answered = true;
        self.failures = 0;
    }

    /// Waits until it is worth trying again, and says so at the first time.
    ///
    /// # Errors
    /// The refusal, where the server has said it or was never there.
    async fn wait(&mut self, refusal: Refusal) -> Outcome {
        // 5xx is a server that is just starting or stopping.
        let away = refusal.code().is_none_or(|code| code >= 500);
        if !away || !self.answered {
            return Err(refusal.into());
        }
        if self.failures == 0 {
            style::warning(&format!("{}; trying again", refusal.words()));
        }
        let wait = PAUSE * 2u32.saturating_pow(self.failures.min(8));
        self.failures += 1;
        tokio::time::sleep(wait.min(PATIENCE)).await;
        Ok(())
    }
}

pub(super) async fn run(server: &Server, wanted: &Wanted<'_>) -> Outcome {
    let mut out = Out::new();
    let mut shown = Shown {
        table: Table::new(wanted.shape()),
        header: !wanted.args.no_headers,
    };
    let mut absence = Absence::default();
    loop {
        let ask = wanted.selecting(collection(wanted));
        let answer = match server.json(ask.clone()).await {
            Ok(answer) => answer,
            Err(refusal) => {
                absence.wait(refusal).await?;
                continue;
            }
        };
        absence.over();
        if wanted.name.is_some() && is_empty(&answer) {
            // The collection is watched; only the object itself says that it is not there.
            wanted.list(server).await?;
        }
        let mut version = answer["metadata"]["resourceVersion"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        shown.all(wanted, &answer, &mut out)?;
        loop {
            let watch = ask
                .clone()
                .with("watch", "true")
                .with("allowWatchBookmarks", "true");
            let watch = watch.with("resourceVersion", &version);
            match follow(server, wanted, watch, &version, &mut shown, &mut out).await? {
                Ended::Forgotten => break,
                Ended::Refused(refusal) => absence.wait(refusal).await?,
                Ended::From(next) => {
                    absence.over();
                    if next == version {
                        tokio::time::sleep(PAUSE).await;
                    }
                    version = next;
                }
            }
        }
    }
}

/// One object is watched as the collection that holds only it.
fn collection(wanted: &Wanted<'_>) -> Ask {
    let table = matches!(wanted.args.output, None | Some(Output::Wide));
    let ask = Ask::new(Method::GET, wanted.kind.path(wanted.namespace));
    let ask = ask.accepting(if table { TABLE } else { JSON });
    match wanted.name {
        Some(name) => ask.with("fieldSelector", &format!("metadata.name={name}")),
        None => ask,
    }
}

fn is_empty(answer: &Value) -> bool {
    let list = if answer["kind"] == "Table" {
        &answer["rows"]
    } else {
        &answer["items"]
    };
    list.as_array().is_none_or(Vec::is_empty)
}

struct Shown {
    table: Table,
    header: bool,
}

impl Shown {
    fn all(&mut self, wanted: &Wanted<'_>, answer: &Value, out: &mut Out) -> Outcome {
        if let (None, Some(form)) = (self.as_table(wanted), wanted.args.output) {
            for item in answer["items"].as_array().into_iter().flatten() {
                one(wanted, item, form, out)?;
            }
            return out.flush();
        }
        self.rows(answer, out)
    }

    fn as_table(&self, wanted: &Wanted<'_>) -> Option<Shape> {
        matches!(wanted.args.output, None | Some(Output::Wide)).then(|| wanted.shape())
    }

    fn rows(&mut self, answer: &Value, out: &mut Out) -> Outcome {
        let rows = self.table.add(answer)?;
        if rows.is_empty() {
            return Ok(());
        }
        for line in self.table.lines(&rows, std::mem::take(&mut self.header)) {
            out.line(&line)?;
        }
        out.flush()
    }
}

/// One object of a stream of them.
fn one(wanted: &Wanted<'_>, object: &Value, form: Output, out: &mut Out) -> Outcome {
    if form == Output::Yaml {
        out.line("---")?;
    }
    let mut object = object.clone();
    if let Some(members) = object.as_object_mut() {
        let version = wanted.kind.api_version();
        members.entry("apiVersion").or_insert_with(|| version.into());
        members.entry("kind").or_insert_with(|| wanted.kind.kind.into());
    }
    out.bytes(show(&object, wanted.kind, form).as_bytes())?;
    out.flush()
}

async fn follow(
    server: &Server,
    wanted: &Wanted<'_>,
    watch: Ask,
    from: &str,
    shown: &mut Shown,
    out: &mut Out,
) -> Outcome<Ended> {
    let mut version = from.to_owned();
    let mut stream = match server.stream(watch).await {
        Ok(stream) => stream,
        Err(Refusal::Status(status)) if status.code == 410 => return Ok(Ended::Forgotten),
        Err(refusal) => return Ok(Ended::Refused(refusal)),
    };
    let mut line = Vec::new();
    while let Some(piece) = stream.next().await {
        // A server that restarts ends its watches; going on is the point of one.
        let Ok(piece) = piece else {
            return Ok(Ended::From(version));
        };
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if line.len() > EVENT {
                return failed(format!(
                    "{}: an event of more than {EVENT} bytes",
                    server.origin()
                ));
            }
            if !line.ends_with(b"\n") {
                continue;
            }
            let event: Value = serde_json::from_slice(&std::mem::take(&mut line))?;
            let object = &event["object"];
            if event["type"] == "ERROR" {
                if object["code"] == 410 {
                    return Ok(Ended::Forgotten);
                }
                let message = object["message"].as_str().unwrap_or("the watch failed");
                return failed(format!("{}: {message}", server.origin()));
            }
            if let Some(seen) = version_of(object) {
                seen.clone_into(&mut version);
            }
            if event["type"] == "BOOKMARK" {
                continue;
            }
            match (shown.as_table(wanted), wanted.args.output) {
                (None, Some(form)) => one(wanted, object, form, out)?,
                _ => shown.rows(object, out)?,
            }
        }
    }
    Ok(Ended::From(version))
}

/// The version of an event's object, or of the one row of its table.
fn version_of(object: &Value) -> Option<&str> {
    let row = &object["rows"][0]["object"]["metadata"]["resourceVersion"];
    let own = &object["metadata"]["resourceVersion"];
    row.as_str()
        .or_else(|| own.as_str())
        .filter(|version| !version.is_empty())
}
