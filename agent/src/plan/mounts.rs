//! What is mounted into a container: its volumes, the Pod's `/etc` files and the file of its last words.
//!
//! Always holds: pure; what a ConfigMap, a Secret or an image is made into is read-only; a volume of the Pod's comes
//! before a file of ours at the same path.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use skiff_protocol::wire::spec::{
    self, Container, PodSpec, Propagation, RecursiveReadOnly, SubPath, Volume, VolumeSource,
};
use skiff_sys::{Mount, MountKind};

use super::{Facts, expand_with};

/// `terminationMessagePath` where the container names none.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The Pod's files in `<run>/etc` that every container finds in its `/etc`.
const ETC: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Where a volume's files are on the node. `None` is a claim that no volume of this node answers to.
#[must_use]
pub(crate) fn volume_path(volume: &Volume, facts: &Facts<'_>) -> Option<PathBuf> {
    Some(match &volume.source {
        VolumeSource::EmptyDir { memory: false, .. } => facts.state.join("volumes").join(&volume.name),
        // Memory means tmpfs; ConfigMaps and Secrets never touch flash; an image is only mounted.
        VolumeSource::EmptyDir { memory: true, .. }
        | VolumeSource::Config { .. }
        | VolumeSource::Projected { .. }
        | VolumeSource::Image { .. } => facts.run.join("volumes").join(&volume.name),
        VolumeSource::HostPath { path, .. } => PathBuf::from(path),
        VolumeSource::Claim { name, .. } => facts.volumes.join((facts.claim)(name)?.name),
    })
}

/// Where the node's own files lie that the Pod's containers may write to: a small tmpfs.
#[must_use]
pub(crate) fn files_path(run: &Path) -> PathBuf {
    run.join("files")
}

/// The Pod's managed `/etc` files.
#[must_use]
pub(crate) fn etc_path(run: &Path) -> PathBuf {
    files_path(run).join("etc")
}

/// The file that a container finds at its `terminationMessagePath`.
#[must_use]
pub(crate) fn termination_path(run: &Path, id: &str) -> PathBuf {
    files_path(run).join("term").join(id)
}

/// All mounts of a container but the runtime's own.
///
/// # Errors
/// Which mount cannot be made, in a kubelet's words (`CreateContainerConfigError`).
pub(super) fn mounts(
    pod: &PodSpec,
    spec: &Container,
    id: &str,
    variables: &[(String, String)],
    facts: &Facts<'_>,
) -> Result<Vec<Mount>, String> {
    let etc = etc_path(facts.run);
    let file = |source: PathBuf, destination: String, read_only| Mount {
        source,
        destination: PathBuf::from(destination),
        read_only,
        ..Default::default()
    };
    let last_words = if spec.termination_message_path.is_empty() {
        TERMINATION_LOG
    } else {
        &spec.termination_message_path
    };
    // As the kubelet has it, `hosts` can be written to in a container whose root cannot.
    let fixed = |name| spec.security.read_only_root && name != "hosts";
    let ours = ETC
        .map(|name| file(etc.join(name), format!("/etc/{name}"), fixed(name)))
        .into_iter()
        .chain([file(
            termination_path(facts.run, id),
            last_words.to_owned(),
            false,
        )]);
    let mut own = Vec::new();
    for mount in &spec.mounts {
        if let Some(volume) = pod.volumes.iter().find(|it| it.name == mount.volume) {
            own.push(one(volume, mount, variables, facts)?);
        }
    }
    let taken = |it: &Mount| own.iter().any(|volume| volume.destination == it.destination);
    let mut out: Vec<Mount> = ours.filter(|it| !taken(it)).collect();
    out.append(&mut own);
    Ok(out)
}

/// Has the files of what is mounted show the ids of the Pod's user namespace.
pub(super) fn show_ids(mounts: &mut [Mount], pod: &PodSpec, facts: &Facts<'_>) {
    // These have them from their layers: an overlay as a whole cannot.
    let images = pod
        .volumes
        .iter()
        .filter(|it| matches!(it.source, VolumeSource::Image { .. }));
    let images: Vec<PathBuf> = images.filter_map(|it| volume_path(it, facts)).collect();
    for mount in mounts {
        if mount.kind == MountKind::Bind && !images.contains(&mount.source) {
            mount.options.push(skiff_sys::IDS.to_owned());
        }
    }
}

fn one(
    volume: &Volume,
    mount: &spec::Mount,
    variables: &[(String, String)],
    facts: &Facts<'_>,
) -> Result<Mount, String> {
    let source = volume_path(volume, facts).ok_or_else(|| match &volume.source {
        VolumeSource::Claim { name, .. } => format!("persistentvolumeclaim {name:?} not found"),
        _ => format!("volume {:?} has no files on this node", volume.name),
    })?;
    let (read_only, options) = match &volume.source {
        VolumeSource::Config { .. } | VolumeSource::Projected { .. } => (true, Vec::new()),
        // A bind mount that is made read-only would lose what the mounted image forbids.
        VolumeSource::Image { .. } => (true, ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec()),
        VolumeSource::Claim { read_only, .. } => (*read_only, Vec::new()),
        VolumeSource::EmptyDir { .. } | VolumeSource::HostPath { .. } => (false, Vec::new()),
    };
    Ok(Mount {
        source,
        destination: PathBuf::from(format!("/{}", mount.path.trim_start_matches('/'))),
        kind: MountKind::Bind,
        options,
        read_only: mount.read_only || read_only,
        recursive_read_only: match mount.recursive_read_only {
            RecursiveReadOnly::Disabled => skiff_sys::RecursiveReadOnly::Disabled,
            RecursiveReadOnly::IfPossible => skiff_sys::RecursiveReadOnly::IfPossible,
            RecursiveReadOnly::Enabled => skiff_sys::RecursiveReadOnly::Enabled,
        },
        sub_path: sub_path(&mount.sub_path, variables)?,
        propagation: match mount.propagation {
            Propagation::None => skiff_sys::Propagation::Private,
            Propagation::HostToContainer => skiff_sys::Propagation::HostToContainer,
            Propagation::Bidirectional => skiff_sys::Propagation::Bidirectional,
        },
    })
}

/// The part of the volume that is mounted.
///
/// Source: Kubernetes documentation, "Volumes", using `subPath` with expanded environment variables.
fn sub_path(wanted: &SubPath, variables: &[(String, String)]) -> Result<Option<PathBuf>, String> {
    let path = match wanted {
        SubPath::None => return Ok(None),
        SubPath::Path(path) => path.clone(),
        SubPath::Expr(text) => expr(text, variables)?,
    };
    if path.is_empty() {
        return Ok(None);
    }
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!(
            "unable to provision SubPath `{path}`: must not contain '..'"
        ));
    }
    Ok(Some(PathBuf::from(path)))
}

/// A path must be whole: a variable that is not there, or is empty, is an error, other than in a command.
fn expr(text: &str, variables: &[(String, String)]) -> Result<String, String> {
    let map: BTreeMap<&str, &str> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut missing = BTreeSet::new();
    let out = expand_with(text, &mut |name| {
        let value = map.get(name).copied().unwrap_or_default();
        if value.is_empty() {
            missing.insert(name.to_owned());
        }
        Some(value.to_owned())
    });
    if missing.is_empty() {
        return Ok(out);
    }
    let names: Vec<String> = missing.into_iter().collect();
    Err(format!("missing value for {}", names.join(", ")))
}

#[cfg(test)]
pub(crate) mod tests;
