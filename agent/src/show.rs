//! `skiff-agent status`, `skiff-agent pods` and `skiff-agent images` as people read them.

use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use serde_json::Value;

/// Prints the agent's status.
pub(crate) fn status(value: &Value, json: bool) {
    if json {
        println!("{value:#}");
        return;
    }
    let text = |pointer: &str| {
        value
            .pointer(pointer)
            .map(|it| it.to_string().trim_matches('"').to_owned())
            .unwrap_or_default()
    };
    let connected = value.pointer("/link/connected").and_then(Value::as_bool) == Some(true);
    println!(
        "Node:        {} (agent {}, pid {})",
        text("/node"),
        text("/version"),
        text("/pid")
    );
    println!(
        "Up:          {} s, start {}",
        text("/uptimeSeconds"),
        text("/epoch")
    );
    println!(
        "Link:        {}",
        if connected {
            "connected"
        } else {
            "not connected; Pods run on"
        }
    );
    println!(
        "Desired:     generation {}, {} Pods",
        text("/generation"),
        text("/pods")
    );
    println!(
        "Journal:     {} bytes written in {} syncs since the start, {} of {} bytes used",
        text("/journal/bytesWritten"),
        text("/journal/syncs"),
        text("/journal/usedBytes"),
        text("/journal/capacityBytes")
    );
    println!(
        "Disk:        {} bytes by this agent, {} bytes and {} syncs by {} image pulls",
        text("/disk/agent/bytes"),
        text("/disk/images/bytes"),
        text("/disk/images/syncs"),
        text("/disk/images/pulls")
    );
    println!(
        "Refused:     {} desired states, {} objects, {} unreadable messages; {} events lost",
        text("/refused/desired"),
        text("/refused/objects"),
        text("/link/unreadable"),
        text("/refused/eventsLost")
    );
}

/// A figure as Prometheus reads it: name, labels, what it means, and where it stands in the status.
type Metric = (&'static str, &'static str, &'static str, &'static str);

const METRICS: [Metric; 19] = [
    (
        "skiff_agent_up_seconds",
        "",
        "Seconds since the agent's start.",
        "/uptimeSeconds",
    ),
    (
        "skiff_agent_connected",
        "",
        "1 while the link stands.",
        "/link/connected",
    ),
    ("skiff_agent_pods", "", "Pods that the agent knows.", "/pods"),
    (
        "skiff_agent_generation",
        "",
        "Generation of the desired state.",
        "/generation",
    ),
    (
        "skiff_disk_written_bytes_total",
        "{cause=\"journal\"}",
        "Bytes written to the disk since the agent's start: what the journal wrote, what pulls wrote, and all that the agent's own process wrote, in whole pages.",
        "/disk/journal/bytes",
    ),
    (
        "skiff_disk_written_bytes_total",
        "{cause=\"images\"}",
        "",
        "/disk/images/bytes",
    ),
    (
        "skiff_disk_written_bytes_total",
        "{cause=\"agent\"}",
        "",
        "/disk/agent/bytes",
    ),
    (
        "skiff_disk_syncs_total",
        "{cause=\"journal\"}",
        "Times that the disk was made to flush its cache since the agent's start.",
        "/disk/journal/syncs",
    ),
    (
        "skiff_disk_syncs_total",
        "{cause=\"images\"}",
        "",
        "/disk/images/syncs",
    ),
    (
        "skiff_image_pulls_total",
        "",
        "Image pulls since the agent's start.",
        "/disk/images/pulls",
    ),
    (
        "skiff_image_received_bytes_total",
        "{source=\"server\"}",
        "Bytes of images that came over the network in pulls that are over, since the agent's start.",
        "/received/server",
    ),
    (
        "skiff_image_received_bytes_total",
        "{source=\"mirror\"}",
        "",
        "/received/mirror",
    ),
    (
        "skiff_image_received_bytes_total",
        "{source=\"registry\"}",
        "",
        "/received/registry",
    ),
    (
        "skiff_image_collections_total",
        "",
        "Times that the image store was tidied since the agent's start.",
        "/disk/images/collections",
    ),
    (
        "skiff_image_freed_bytes_total",
        "",
        "Bytes of the disk that this gave back.",
        "/disk/images/freed",
    ),
    (
        "skiff_journal_used_bytes",
        "",
        "Bytes of the journal's segment in use.",
        "/journal/usedBytes",
    ),
    (
        "skiff_journal_failures_total",
        "",
        "Writes and syncs of the journal that failed.",
        "/journal/failures",
    ),
    (
        "skiff_refused_desired_total",
        "",
        "Desired states that were not believed.",
        "/refused/desired",
    ),
    (
        "skiff_events_lost_total",
        "",
        "Events that found no room.",
        "/refused/eventsLost",
    ),
];

/// The status as Prometheus' text format, for a textfile collector or a scraper's wrapper.
pub(crate) fn metrics(value: &Value) -> String {
    let mut out = String::new();
    for (name, labels, help, pointer) in METRICS {
        let figure = match value.pointer(pointer) {
            Some(Value::Bool(is_so)) => u64::from(*is_so),
            Some(other) => other.as_u64().unwrap_or(0),
            // An agent of another version does not count it.
            None => continue,
        };
        if !help.is_empty() {
            let kind = if name.ends_with("_total") {
                "counter"
            } else {
                "gauge"
            };
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        }
        out.push_str(&format!("{name}{labels} {figure}\n"));
    }
    out
}

/// Prints the Pods, a container a line.
pub(crate) fn pods(value: &Value, json: bool) {
    if json {
        println!("{value:#}");
        return;
    }
    let pods = value.as_array().map(Vec::as_slice).unwrap_or_default();
    if pods.is_empty() {
        println!("No Pods on this node.");
        return;
    }
    let mut rows = vec![["NAMESPACE", "POD", "CONTAINER", "STATE", "RESTARTS", "IP"].map(str::to_owned)];
    for pod in pods {
        for container in pod["containers"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
        {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            rows.push([
                text(&pod["namespace"]),
                text(&pod["name"]),
                text(&container["name"]),
                text(&container["state"]),
                text(&container["restartCount"]),
                text(&pod["ip"]),
            ]);
        }
    }
    table(&rows);
}

fn table<const N: usize>(rows: &[[String; N]]) {
    let widths: [usize; N] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("   ").trim_end());
    }
}

/// Why an image stays, by the field of [`crate::local`] that says so.
const STAYS: [(&str, &str); 5] = [
    ("inUse", "in use"),
    ("named", "named by a Pod"),
    ("pinned", "pinned"),
    ("preloaded", "preloaded"),
    ("lastGood", "last good"),
];

/// Prints the images, a name a line.
///
/// # Errors
/// When the agent could not list them.
pub(crate) fn images(value: &Value, pulls: &Value, json: bool) -> Result<()> {
    if let Some(error) = value["error"].as_str() {
        bail!("{error}");
    }
    if json {
        println!("{value:#}");
        return Ok(());
    }
    for it in pulls.as_array().into_iter().flatten() {
        let bytes = |field: &str| size(it[field].as_u64().unwrap_or(0));
        let (done, total) = (bytes("bytes"), bytes("totalBytes"));
        println!(
            "pulling {}: {done} of {total}",
            it["image"].as_str().unwrap_or_default()
        );
    }
    let mut rows = vec![["IMAGE", "DIGEST", "SIZE", "LAST USED", "STAYS"].map(str::to_owned)];
    for image in value.as_array().into_iter().flatten() {
        let why = STAYS.iter().filter(|(field, _)| image[field] == true);
        let why: Vec<&str> = why.map(|it| it.1).collect();
        let digest = image["digest"].as_str().unwrap_or_default();
        rows.push([
            image["reference"].as_str().unwrap_or_default().to_owned(),
            digest.chars().take(19).collect(),
            size(image["sizeBytes"].as_u64().unwrap_or(0)),
            image["lastUsedUnix"].as_u64().map_or_else(String::new, ago),
            why.join(", "),
        ]);
    }
    table(&rows);
    Ok(())
}

/// Bytes in the largest unit of which there is one.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.iter().find(|(bits, _)| bytes >> bits > 0);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(bits, unit)| {
            let tenths = (u128::from(bytes) * 10) >> bits;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        },
    )
}

/// How long ago that was, in one unit; nothing of what a clock that was never set has written.
fn ago(unix: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(unix);
    let seconds = SystemTime::now().duration_since(at).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7200 => format!("{}m ago", seconds / 60),
        7200..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86400),
    }
}

/// Prints what a tidying of the store has removed.
///
/// # Errors
/// When it could not be done.
pub(crate) fn pruned(value: &Value, json: bool) -> Result<()> {
    if json {
        println!("{value:#}");
    } else {
        for it in value["removed"].as_array().into_iter().flatten() {
            let bytes = size(it["bytes"].as_u64().unwrap_or(0));
            println!("removed {} ({bytes})", it["what"].as_str().unwrap_or_default());
        }
        println!("{} freed", size(value["bytes"].as_u64().unwrap_or(0)));
    }
    match value["error"].as_str() {
        Some(error) => bail!("{error}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn metrics_are_in_prometheus_text_format() {
        let status = json!({
            "uptimeSeconds": 7,
            "link": { "connected": true },
            "disk": { "journal": { "bytes": 571, "syncs": 4 }, "images": { "bytes": 4096, "syncs": 6, "pulls": 1 } },
        });
        assert_eq!(
            metrics(&status),
            "# HELP skiff_agent_up_seconds Seconds since the agent's start.\n\
             # TYPE skiff_agent_up_seconds gauge\n\
             skiff_agent_up_seconds 7\n\
             # HELP skiff_agent_connected 1 while the link stands.\n\
             # TYPE skiff_agent_connected gauge\n\
             skiff_agent_connected 1\n\
             # HELP skiff_disk_written_bytes_total Bytes written to the disk since the agent's start: what the journal \
             wrote, what pulls wrote, and all that the agent's own process wrote, in whole pages.\n\
             # TYPE skiff_disk_written_bytes_total counter\n\
             skiff_disk_written_bytes_total{cause=\"journal\"} 571\n\
             skiff_disk_written_bytes_total{cause=\"images\"} 4096\n\
             # HELP skiff_disk_syncs_total Times that the disk was made to flush its cache since the agent's start.\n\
             # TYPE skiff_disk_syncs_total counter\n\
             skiff_disk_syncs_total{cause=\"journal\"} 4\n\
             skiff_disk_syncs_total{cause=\"images\"} 6\n\
             # HELP skiff_image_pulls_total Image pulls since the agent's start.\n\
             # TYPE skiff_image_pulls_total counter\n\
             skiff_image_pulls_total 1\n"
        );
    }
}
