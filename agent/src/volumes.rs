//! A Pod's files on the node: its managed `/etc` files and its volumes.
//!
//! Always holds: ConfigMaps and Secrets lie on tmpfs only, and their files change all at once; what a crash or a full disk
//! left half made is never taken for whole, and what is whole and the containers' is not touched again.

pub(crate) mod claim;
mod empty_dir;
mod etc;
mod host_path;
pub(crate) mod image;
mod owner;
mod payload;
mod writer;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use skiff_protocol::wire::spec::{PodSpec, Volume, VolumeSource};

pub(crate) use owner::give as give_to_group;

use crate::plan::{self, Facts, Lookup, volume_path};

/// Bytes of the managed `/etc` files and last words of one Pod. What a container writes there counts against this and
/// not against the tmpfs of all Pods.
const OWN_FILES: u64 = 256 << 10;

/// Files of a claim whose group is changed while the agent waits; more are changed beside it.
const OWNED_AT_ONCE: usize = 1024;

/// A claim's volume whose files are to be given to the Pod's group before anything starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unowned {
    /// The volume's name in the Pod.
    pub volume: String,
    /// Its directory.
    pub path: PathBuf,
    /// The group.
    pub group: u32,
    /// The file that says that it was done.
    pub done: PathBuf,
}

/// Makes everything that a container of the Pod will find mounted, but for images. What is there already is kept.
/// `id` names the start, `memory` is what all Pods of the node may use of it, in bytes.
/// Gives the volumes that need more time.
///
/// # Errors
/// What is missing or cannot be made, in a kubelet's words.
pub(crate) fn prepare(
    pod: &PodSpec,
    id: &str,
    memory: u64,
    facts: &Facts<'_>,
    lookup: Lookup<'_>,
) -> Result<Vec<Unowned>, String> {
    mount_once(&plan::files_path(facts.run), |path| {
        skiff_sys::mount::tmpfs(path, OWN_FILES, 0o755)
    })?;
    etc::write(pod, facts.hostname, facts.pod_ip, facts.run)?;
    let term = plan::termination_path(facts.run, id);
    last_words(&term).map_err(|error| format!("{}: {error}", term.display()))?;
    let mut out = Vec::new();
    for volume in &pod.volumes {
        if let VolumeSource::Claim { name, read_only } = &volume.source {
            let found =
                (facts.claim)(name).ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
            let path = claim::make(facts.volumes, &found).map_err(|why| failed(volume, &why))?;
            if !read_only {
                out.extend(owned(pod, volume, path, facts.run).map_err(|why| failed(volume, &why))?);
            }
        } else {
            one(pod, volume, memory, facts, lookup).map_err(|why| failed(volume, &why))?;
        }
    }
    Ok(out)
}

/// Brings the files of ConfigMaps, Secrets and the Pod itself up to date. Gives what could not be; of those the old files
/// stay.
#[must_use]
pub(crate) fn refresh(pod: &PodSpec, facts: &Facts<'_>, lookup: Lookup<'_>) -> Vec<String> {
    let mut out = Vec::new();
    for volume in &pod.volumes {
        let Some(path) = volume_path(volume, facts) else {
            continue;
        };
        // One that was never made is made whole when a container starts.
        let done = match payload::payload(pod, &volume.source, facts, lookup) {
            Ok(Some(files)) if writer::is_published(&path) => {
                writer::publish(&path, &files, pod.security.fs_group).map_err(|error| error.to_string())
            }
            Ok(_) => Ok(false),
            Err(why) => Err(why),
        };
        out.extend(done.err().map(|why| failed(volume, &why)));
    }
    out
}

fn failed(volume: &Volume, why: &str) -> String {
    format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name)
}

fn one(
    pod: &PodSpec,
    volume: &Volume,
    memory: u64,
    facts: &Facts<'_>,
    lookup: Lookup<'_>,
) -> Result<(), String> {
    let Some(path) = volume_path(volume, facts) else {
        return Ok(());
    };
    let text = |error: io::Error| format!("{}: {error}", path.display());
    let group = pod.security.fs_group;
    match &volume.source {
        VolumeSource::EmptyDir {
            memory: true,
            size_limit,
        } => {
            let limit = plan::limits::pod_limits(pod, facts.limits).memory_bytes;
            let bytes = empty_dir::memory_size(*size_limit, limit, memory);
            empty_dir::in_memory(&path, bytes, group)
        }
        VolumeSource::EmptyDir { memory: false, .. } => empty_dir::on_disk(&path, group).map_err(text),
        VolumeSource::HostPath { kind, .. } => host_path::prepare(&path, *kind),
        VolumeSource::Config { .. } | VolumeSource::Projected { .. } => {
            match payload::payload(pod, &volume.source, facts, lookup) {
                Ok(files) => writer::publish(&path, &files.unwrap_or_default(), group)
                    .map(drop)
                    .map_err(text),
                // A container that starts again does not wait for an object that is gone meanwhile.
                Err(_) if writer::is_published(&path) => Ok(()),
                Err(why) => Err(why),
            }
        }
        VolumeSource::Image { .. } | VolumeSource::Claim { .. } => Ok(()),
    }
}

/// Gives a claim's files to the Pod's group, once a Pod and boot.
fn owned(pod: &PodSpec, volume: &Volume, path: PathBuf, run: &Path) -> Result<Option<Unowned>, String> {
    let Some(group) = pod.security.fs_group else {
        return Ok(None);
    };
    let done = run.join("owned").join(&volume.name);
    let skip = pod.security.fs_group_on_root_mismatch && owner::matches(&path, group);
    if done.exists() || skip {
        return Ok(None);
    }
    if owner::give(&path, group, OWNED_AT_ONCE)? {
        note_owned(&done)?;
        return Ok(None);
    }
    let volume = volume.name.clone();
    Ok(Some(Unowned {
        volume,
        path,
        group,
        done,
    }))
}

/// Remembers that a volume's files are the group's.
///
/// # Errors
/// When the file cannot be made.
pub(crate) fn note_owned(done: &Path) -> Result<(), String> {
    // One directory and no more: a Pod that is gone meanwhile must not get a directory again.
    let parent = match done.parent().map_or(Ok(()), fs::create_dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        parent => parent,
    };
    let made = parent.and_then(|()| fs::write(done, ""));
    made.map_err(|error| format!("{}: {error}", done.display()))
}

/// The empty file that anybody in the container may write its last words to. Those of its earlier attempts were read.
/// Mounts on a directory, which is made, unless something is mounted there. Gives its real path, and whether it is new.
fn mount_once(
    path: &Path,
    mount: impl FnOnce(&Path) -> skiff_sys::Result<()>,
) -> Result<(PathBuf, bool), String> {
    let text = |error: io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(path).map_err(text)?;
    // The kernel lists mounts by their real paths.
    let path = fs::canonicalize(path).map_err(text)?;
    let new = !skiff_sys::mount::is_mount_point(&path).map_err(|error| error.to_string())?;
    if new {
        mount(&path).map_err(|error| error.to_string())?;
    }
    Ok((path, new))
}

fn last_words(path: &Path) -> io::Result<()> {
    let container = |path: &Path| {
        path.file_name()?
            .to_str()?
            .rsplit_once('-')
            .map(|it| it.0.to_owned())
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
        for entry in fs::read_dir(parent)? {
            let entry = entry?.path();
            if container(&entry) == container(path) {
                fs::remove_file(entry)?;
            }
        }
    }
    fs::write(path, "")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

#[cfg(test)]
mod tests;
