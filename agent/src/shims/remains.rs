//! What is left of a Pod whose shim is gone: what the kernel holds for it, and its files.

use std::io;
use std::path::Path;

use skiff_protocol::uid::Uid;
use skiff_sys::SandboxConfig;
use skiff_sys::cgroup::Cgroups;

use super::Place;

/// Kills and removes what a Pod without a shim left: processes, mounts, devices, cgroups, and with `files` its files.
pub(super) async fn clear(place: &Place, uid: Uid, files: bool) -> Result<(), String> {
    let (cgroups, run, state) = (place.cgroups.clone(), place.run_of(uid), place.state_of(uid));
    let work = move || {
        if files {
            return clear_now(&cgroups, &run, &state);
        }
        // Volumes and logs stay for the containers that follow.
        let _ = std::fs::remove_file(run.join(skiff_shim::SOCKET_NAME));
        destroy(&cgroups, &run)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| error.to_string())?
}

fn destroy(cgroups: &Cgroups, run: &Path) -> Result<(), String> {
    let sandbox = std::fs::read(run.join(skiff_shim::SANDBOX_FILE)).ok();
    match sandbox.and_then(|it| postcard::from_bytes::<SandboxConfig>(&it).ok()) {
        Some(config) => skiff_sys::sandbox::destroy(&config, cgroups).map_err(|error| error.to_string()),
        None => Ok(()),
    }
}

/// Removes all that is left of a Pod whose shim is gone: what the kernel holds, and its two directories.
///
/// # Errors
/// What could not be removed.
pub(crate) fn clear_now(cgroups: &Cgroups, run: &Path, state: &Path) -> Result<(), String> {
    destroy(cgroups, run)?;
    for dir in [run, state] {
        skiff_sys::mount::unmount_all_under(dir).map_err(|error| error.to_string())?;
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("{}: {error}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
