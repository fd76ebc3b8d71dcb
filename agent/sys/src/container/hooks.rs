//! Commands of CDI specifications that are run when a container has ended. All others libcontainer runs.
//!
//! Always holds: a hook that fails, or takes longer than it may, holds up nothing: the OCI runtime specification wants the
//! container removed all the same.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::config::Hook;

/// How long a hook may take that names no time.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between looks at a hook that runs.
const POLL: Duration = Duration::from_millis(5);

/// The hooks by stage, as the OCI runtime specification has them; `None` when there are none.
pub(super) fn to_oci(hooks: &[Hook]) -> Option<Value> {
    let mut stages = serde_json::Map::new();
    for hook in hooks {
        let mut entry = json!({"path": hook.path, "args": hook.args, "env": hook.env});
        if let Some(seconds) = hook.timeout {
            entry["timeout"] = seconds.into();
        }
        if let Value::Array(list) = stages.entry(hook.stage.as_str()).or_insert_with(|| json!([])) {
            list.push(entry);
        }
    }
    (!stages.is_empty()).then(|| stages.into())
}

/// Runs the hooks for the container's end that its bundle names, if it is still there.
pub(super) fn after_stop(bundle: &Path) {
    let document = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<Value>(&text).ok())
        .unwrap_or_default();
    let state = json!({
        "ociVersion": "1.0.2", "id": bundle.file_name().map(|name| name.to_string_lossy()),
        "status": "stopped", "bundle": bundle,
    });
    for hook in document["hooks"]["poststop"].as_array().into_iter().flatten() {
        let _ = run(hook, &state.to_string());
    }
}

fn run(hook: &Value, state: &str) -> std::io::Result<()> {
    let strings = |key: &str| -> Vec<String> {
        let list = hook[key].as_array().into_iter().flatten();
        list.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let args = strings("args");
    let environment = strings("env");
    let mut child = Command::new(hook["path"].as_str().unwrap_or_default())
        .args(args.iter().skip(1))
        .env_clear()
        .envs(environment.iter().filter_map(|entry| entry.split_once('=')))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook that does not want to know the state has closed its end.
        let _ = stdin.write_all(state.as_bytes());
    }
    let timeout = hook["timeout"].as_u64().map_or(TIMEOUT, Duration::from_secs);
    let deadline = Instant::now() + timeout;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
