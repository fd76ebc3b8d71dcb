//! The agent's own socket: what it says of itself to `skiff-agent status`, `pods` and `images`.
//!
//! One line of text asks, one JSON document answers. Always holds: root only (mode 0600); nothing can be changed here but that
//! the image store is tidied.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skiff_protocol::wire::status::{ContainerState, PodStatus};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::driver::Driver;

/// Questions that may wait for the driver.
const QUEUE: usize = 8;

/// How long a client may take to ask and to read.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two questions whether something is done.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// A question.
pub(crate) struct Query {
    what: String,
    reply: oneshot::Sender<Value>,
}

/// The socket under a run directory.
#[must_use]
pub(crate) fn socket(run: &Path) -> PathBuf {
    run.join("agent.sock")
}

/// Listens; questions come out of the receiver.
///
/// # Errors
/// When the socket cannot be made.
pub(crate) fn listen(run: &Path) -> Result<mpsc::Receiver<Query>> {
    let path = socket(run);
    let failed = || format!("cannot listen on {}", path.display());
    // A socket left by an agent that was killed; the journal's lock says that no other one runs.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(failed)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
    let (sender, queries) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        // One client at a time: answers take microseconds, and none may hold up memory.
        while let Ok((stream, _)) = listener.accept().await {
            let _ = tokio::time::timeout(PATIENCE, serve(stream, &sender)).await;
        }
    });
    Ok(queries)
}

async fn serve(stream: UnixStream, sender: &mpsc::Sender<Query>) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut what = String::new();
    (&mut stream).take(64).read_line(&mut what).await?;
    let (reply, answer) = oneshot::channel();
    let query = Query {
        what: what.trim().to_owned(),
        reply,
    };
    if sender.send(query).await.is_err() {
        return Ok(());
    }
    let text = serde_json::to_vec(&answer.await?)?;
    stream.write_all(&text).await?;
    stream.shutdown().await?;
    Ok(())
}

/// Answers a question.
pub(crate) fn answer(driver: &mut Driver, query: Query) {
    let value = match query.what.as_str() {
        "status" => status(driver),
        "pods" => pods(driver),
        "images" => driver.shown_images(),
        "pulls" => driver.images.pulling(),
        "prune" => driver.prune(false),
        "prune-all" => driver.prune(true),
        "collection" => driver.images.collection(),
        other => json!({ "error": format!("unknown question {other:?}") }),
    };
    // A client that went away needs no answer.
    let _ = query.reply.send(value);
}

fn status(driver: &Driver) -> Value {
    let journal = driver.ledger.stats();
    let counters = driver.core.counters();
    json!({
        "node": driver.identity.node.as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptimeSeconds": driver.began.elapsed().as_secs(),
        "epoch": driver.core.epoch(),
        "generation": driver.core.generation(),
        "pods": driver.core.statuses().count(),
        "link": driver.link.counters(),
        "journal": {
            "bytesWritten": journal.bytes_written,
            "syncs": journal.syncs,
            "checkpoints": journal.checkpoints,
            "failures": journal.failures,
            "usedBytes": journal.used,
            "capacityBytes": journal.capacity,
        },
        "disk": disk(driver),
        "received": received(driver),
        "refused": {
            "desired": counters.desired_refused,
            "objects": counters.objects_refused,
            "journal": counters.journal_refused,
            "eventsLost": counters.events_lost,
        },
        "startMicroseconds": driver.latencies,
    })
}

/// What was written to the disk since the start, by what for. What the kernel counts is whole pages.
fn disk(driver: &Driver) -> Value {
    let journal = driver.ledger.stats();
    let (images, pulls) = driver.images.wrote();
    let (collections, freed) = driver.images.collections();
    json!({
        "journal": { "bytes": journal.bytes_written, "syncs": journal.syncs },
        "images": { "bytes": images.bytes, "syncs": images.syncs, "pulls": pulls, "collections": collections, "freed": freed },
        "agent": { "bytes": skiff_images::pull::written_bytes() },
    })
}

/// Bytes that pulls were sent since the start, by who sent them.
fn received(driver: &Driver) -> Value {
    let images = driver.images.fetched();
    json!({ "server": images.server, "mirror": images.mirror, "registry": images.registry })
}

fn pods(driver: &Driver) -> Value {
    driver
        .core
        .statuses()
        .map(|(pod, status)| {
            let (namespace, name) = pod.map_or(("", "(not wanted)"), |it| {
                (it.namespace.as_str(), it.name.as_str())
            });
            json!({
                "namespace": namespace,
                "name": name,
                "uid": status.uid.to_string(),
                "phase": status.phase.as_str(),
                "ready": status.ready(),
                "ip": status.pod_ip,
                "reason": status.reason,
                "message": status.message,
                "containers": containers(&status),
            })
        })
        .collect()
}

fn containers(status: &PodStatus) -> Value {
    let one = |it: &skiff_protocol::wire::status::ContainerStatus| {
        let (state, detail) = match &it.state {
            ContainerState::Waiting { reason, message } => (reason.clone(), message.clone()),
            ContainerState::Running { .. } => ("Running".to_owned(), String::new()),
            ContainerState::Terminated(end) => (end.reason.clone(), format!("exit code {}", end.exit_code)),
        };
        json!({
            "name": it.name,
            "state": state,
            "detail": detail,
            "restartCount": it.restart_count,
            "containerID": it.container_id,
            "imageID": it.image_id,
        })
    };
    status
        .init_containers
        .iter()
        .chain(&status.containers)
        .map(one)
        .collect()
}

/// Asks a running agent.
///
/// # Errors
/// When none listens there, or it does not answer.
pub(crate) fn ask(run: &Path, what: &str) -> Result<Value> {
    use std::io::{Read, Write};
    let path = socket(run);
    let mut stream = std::os::unix::net::UnixStream::connect(&path).with_context(|| {
        format!(
            "no agent answers on {}; is `skiff-agent run` up, and is the run directory the same?",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{what}")?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .context("the agent did not answer")?;
    Ok(serde_json::from_str(&text)?)
}

/// Has a running agent tidy its image store, and waits until that is done.
///
/// # Errors
/// As [`ask`], and when the store cannot be tidied.
pub(crate) fn prune(run: &Path, all: bool) -> Result<Value> {
    let mut begun = ask(run, if all { "prune-all" } else { "prune" })?;
    // The store is being tidied for another reason.
    while begun["busy"] == true {
        std::thread::sleep(ASK_AGAIN);
        begun = ask(run, if all { "prune-all" } else { "prune" })?;
    }
    if let Some(error) = begun["error"].as_str() {
        anyhow::bail!("{error}");
    }
    let number = begun["number"].as_u64();
    loop {
        let now = ask(run, "collection")?;
        if now["number"].as_u64() != number || now["running"] == false {
            return Ok(now);
        }
        std::thread::sleep(ASK_AGAIN);
    }
}
