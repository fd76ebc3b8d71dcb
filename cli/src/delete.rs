//! `skiff delete`: end objects, and wait until they are gone.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::args::DeleteArgs;
use crate::connect::{Ask, Refusal, Server, Target, said};
use crate::failure::{Failure, Outcome, failed};
use crate::kinds::{self, Kind};
use crate::manifest;
use crate::out::Out;
use crate::style;

/// How often an object that is ending is looked at: soon at first, since most end at once.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long an object may take to go before the user is told that something holds it.
const SLOW: Duration = Duration::from_secs(45);

struct Doomed {
    kind: &'static Kind,
    namespace: String,
    name: String,
}

pub(crate) async fn run(target: &Target, args: &DeleteArgs) -> Outcome {
    // What is wrong with the arguments shows before any connection is made.
    let listed = listed(args)?;
    let server = target.server().await?;
    let mut doomed = Vec::new();
    for (kind, namespace, name) in listed {
        let namespace = namespace.unwrap_or_else(|| server.namespace.clone());
        doomed.push(Doomed {
            kind,
            namespace,
            name,
        });
    }
    if args.force {
        style::warning(
            "--force takes the object away at once; where its node is out of reach the Pod runs on there",
        );
    }
    let mut out = Out::new();
    // All are told to end before any is waited for; one that cannot be does not save the others.
    let mut ending = Vec::new();
    let mut refused = false;
    for one in doomed {
        match begin(&server, &one, args).await {
            Ok(uid) => ending.push((one, uid)),
            Err(refusal) if refusal.code() == Some(404) && args.ignore_not_found => {}
            Err(Refusal::Status(status)) => {
                style::error(&said(&status));
                refused = true;
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
    for (one, uid) in ending {
        if !args.no_wait {
            wait(&server, &one, &uid).await?;
        }
        out.line(&format!("{} {:?} deleted", one.kind.singular, one.name))?;
        out.flush()?;
    }
    if refused { Err(Failure::Told) } else { Ok(()) }
}

type Listed = Vec<(&'static Kind, Option<String>, String)>;

fn listed(args: &DeleteArgs) -> Outcome<Listed> {
    let mut out: Listed = Vec::new();
    if !args.filename.is_empty() {
        for manifest in manifest::load(&args.filename)? {
            let namespace = manifest.namespace().map(str::to_owned);
            out.push((manifest.kind, namespace, manifest.name().to_owned()));
        }
        // What was made last goes first: a namespace after what is in it.
        out.reverse();
        return Ok(out);
    }
    if args.what.iter().all(|word| word.contains('/')) {
        for word in &args.what {
            let (kind, name) = word.split_once('/').unwrap_or((word, ""));
            out.push((kinds::by_word(kind)?, None, name.to_owned()));
        }
    } else if let [kind, names @ ..] = args.what.as_slice() {
        let kind = kinds::by_word(kind)?;
        out.extend(names.iter().map(|name| (kind, None, name.clone())));
    }
    if out.is_empty()
        || out
            .iter()
            .any(|(_, _, name)| name.is_empty() || name.contains('/'))
    {
        return failed("which one? Write KIND NAME, as in `skiff delete pod nginx`, or KIND/NAME");
    }
    Ok(out)
}

fn options(args: &DeleteArgs) -> Value {
    let seconds = if args.force {
        Some(0)
    } else if args.now {
        Some(1)
    } else {
        args.grace_period
    };
    let mut options = json!({ "apiVersion": "v1", "kind": "DeleteOptions" });
    if let Some(seconds) = seconds {
        options["gracePeriodSeconds"] = seconds.into();
    }
    options
}

/// Tells the object to end; gives its uid.
async fn begin(server: &Server, one: &Doomed, args: &DeleteArgs) -> Result<String, Refusal> {
    let ask = Ask::new(Method::DELETE, one.path()).sending("application/json", &options(args));
    let answer = server.json(ask).await?;
    // The object as it ends, or a Status where it is gone already.
    let uid = answer["metadata"]["uid"]
        .as_str()
        .or_else(|| answer["details"]["uid"].as_str());
    Ok(uid.unwrap_or_default().to_owned())
}

async fn wait(server: &Server, one: &Doomed, uid: &str) -> Outcome {
    let begun = tokio::time::Instant::now();
    let (mut pause, longest) = LOOK;
    let mut told = false;
    loop {
        match server.json(Ask::new(Method::GET, one.path())).await {
            // Another object of the same name is not the one that was deleted.
            Ok(there) if there["metadata"]["uid"] != uid => return Ok(()),
            Ok(there) => {
                if !told && begun.elapsed() > SLOW {
                    told = true;
                    style::warning(&format!(
                        "{} {:?} has not ended yet{}",
                        one.kind.singular,
                        one.name,
                        why(&there)
                    ));
                }
            }
            Err(refusal) if refusal.code() == Some(404) => return Ok(()),
            Err(refusal) => return Err(refusal.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

fn why(there: &Value) -> String {
    match there["spec"]["nodeName"].as_str() {
        Some(node) => {
            format!(": its node {node} has not said so; `skiff get node {node}` tells whether it is reached")
        }
        None => String::new(),
    }
}

impl Doomed {
    fn path(&self) -> String {
        self.kind.object(&self.namespace, &self.name)
    }
}
