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
        "Refused:     {} desired states, {} objects, {} unreadable messages; {} events lost",
        text("/refused/desired"),
        text("/refused/objects"),
        text("/link/unreadable"),
        text("/refused/eventsLost")
    );
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
