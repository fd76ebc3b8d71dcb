//! `skiff-agent stop`: ends every Pod of this node while no agent runs.
//!
//! Always holds: the desired state stays in the journal, so the next `skiff-agent run` starts the Pods again.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use skiff_protocol::uid::Uid;
use skiff_shim::client::Client;
use skiff_shim::protocol::RequestBody;
use skiff_sys::cgroup::Cgroups;

use crate::config::Config;
use crate::local;

/// How long one Pod may take to end.
const PATIENCE: Duration = Duration::from_secs(40);

/// Ends all Pods.
///
/// # Errors
/// When an agent runs, or something is left that cannot be removed.
pub(crate) fn run(config: &Config) -> Result<()> {
    if local::ask(&config.run_dir, "status").is_ok() {
        bail!("an agent runs here and would start the Pods again; stop it first");
    }
    let pods = config.run_dir.join("pods");
    let entries = match std::fs::read_dir(&pods) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("no Pods");
            return Ok(());
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", pods.display())),
    };
    let cgroups = Cgroups::detect(&config.cgroup_root)?;
    let mut ended = 0;
    for entry in entries {
        let path = entry?.path();
        let Some(uid) = path
            .file_name()
            .and_then(|it| it.to_str())
            .and_then(|it| it.parse::<Uid>().ok())
        else {
            continue;
        };
        if let Ok(mut client) = Client::connect(&path) {
            client
                .call(RequestBody::Shutdown, PATIENCE)
                .with_context(|| format!("cannot end pod {uid}"))?;
        }
        let state = config.state_dir.join("pods").join(uid.to_string());
        crate::shims::clear_now(&cgroups, &path, &state).map_err(anyhow::Error::msg)?;
        ended += 1;
    }
    crate::network::remove(config);
    skiff_sys::netlink::Netlink::open()?.delete_link(&config.bridge)?;
    skiff_sys::mount::unmount_all_under(&config.run_dir)?;
    cgroups.remove(&config.cgroup, Duration::from_secs(5))?;
    cgroups.remove(&crate::own::parent(config), Duration::from_secs(5))?;
    println!("ended {ended} Pods; `skiff-agent run` starts them again");
    Ok(())
}
