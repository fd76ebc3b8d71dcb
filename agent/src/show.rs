//! `skiff-agent status` and `skiff-agent pods` as people read them.

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

const METRICS: [Metric; 14] = [
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
    let widths: [usize; 6] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].len()).max().unwrap_or(0));
    for row in rows {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("   ").trim_end());
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
