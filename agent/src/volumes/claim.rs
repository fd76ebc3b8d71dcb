//! PersistentVolumes: directories of this node that outlive Pods and reboots.
//!
//! ```text
//!   volumes/<name>               the files
//!   volumes/.<name>.reclaim      `Delete` or `Retain`, durable before the directory is there
//!   volumes/.new-<name>          being made
//!   volumes/.dropped-<name>      being removed
//! ```
//!
//! Always holds: a directory is removed only when nobody desires the volume and its policy, as last said by the server, is
//! Delete; where the policy is not known, the files stay.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use skiff_protocol::wire::spec::{PersistentVolume, PodSpec, VolumeSource};

/// Anybody may write there, as in the directories that Kubernetes' local provisioners make.
const MODE: u32 = 0o777;

/// Where a node's PersistentVolumes are.
#[must_use]
pub(crate) fn root(state_dir: &Path) -> PathBuf {
    state_dir.join("volumes")
}

/// Makes the directory of a volume, where it is missing.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make(root: &Path, volume: &PersistentVolume) -> Result<PathBuf, String> {
    if !is_name(&volume.name) {
        return Err(format!("persistentvolume {:?} has no usable name", volume.name));
    }
    let path = root.join(&volume.name);
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    if path.is_dir() {
        return Ok(path);
    }
    fs::create_dir_all(root).map_err(failed)?;
    // Files of all users lie below, and nobody but root has business there other than through a container.
    fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(failed)?;
    mark(root, volume).map_err(failed)?;
    let new = root.join(format!(".new-{}", volume.name));
    fs::create_dir_all(&new).map_err(failed)?;
    fs::set_permissions(&new, Permissions::from_mode(MODE)).map_err(failed)?;
    fs::rename(new, &path).map_err(failed)?;
    sync(root).map_err(failed)?;
    Ok(path)
}

/// Keeps the reclaim policies of volumes that have files in step with the desired state; writes only what differs.
/// Of a volume that is not desired the last word stays.
///
/// # Errors
/// With the first that could not be kept.
pub(crate) fn mark_all(root: &Path, desired: &[PersistentVolume]) -> io::Result<()> {
    for volume in desired.iter().filter(|it| is_name(&it.name)) {
        if root.join(&volume.name).is_dir() {
            mark(root, volume)?;
        }
    }
    Ok(())
}

/// Whether each claim of the Pod is bound to a volume that is desired. Of another the Pod may use files that nobody desires
/// any more.
#[must_use]
pub(crate) fn all_desired(pod: &PodSpec, desired: &[PersistentVolume]) -> bool {
    let bound = |name: &str| {
        desired
            .iter()
            .any(|it| it.claim.0 == pod.namespace && it.claim.1 == name)
    };
    pod.volumes.iter().all(|volume| match &volume.source {
        VolumeSource::Claim { name, .. } => bound(name),
        _ => true,
    })
}

/// Takes the directories away that nobody desires and that are to go, as after a loss of power amid their removal.
/// Gives what is still to be deleted, by the volume's name.
///
/// # Errors
/// When the directory of volumes cannot be read.
pub(crate) fn left_over(root: &Path, desired: &[PersistentVolume]) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut out = BTreeMap::new();
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(out),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if let Some(dropped) = name.strip_prefix(".dropped-") {
            out.insert(dropped.to_owned(), entry.path());
        } else if is_name(&name)
            && !desired.iter().any(|it| it.name == name)
            && fs::read_to_string(marker(root, &name)).is_ok_and(|it| it.trim() == "Delete")
        {
            out.extend(detach(root, &name)?.map(|path| (name, path)));
        }
    }
    Ok(out)
}

/// Takes a volume's directory away from where it would be found. Gives what is still to be deleted.
///
/// # Errors
/// When it cannot be renamed.
pub(crate) fn detach(root: &Path, name: &str) -> io::Result<Option<PathBuf>> {
    if !is_name(name) {
        return Ok(None);
    }
    let dropped = root.join(format!(".dropped-{name}"));
    // An earlier volume of this name may not be gone yet.
    remove(&dropped)?;
    match fs::rename(root.join(name), &dropped) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    match fs::remove_file(marker(root, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sync(root)?;
    Ok(Some(dropped))
}

/// Deletes what was taken away, with whatever a container has mounted there.
///
/// # Errors
/// What cannot be removed.
pub(crate) fn delete(dropped: &Path) -> Result<(), String> {
    skiff_sys::mount::unmount_all_under(dropped).map_err(|error| error.to_string())?;
    remove(dropped).map_err(|error| format!("{}: {error}", dropped.display()))
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A name that is one directory, and none of our own.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn marker(root: &Path, name: &str) -> PathBuf {
    root.join(format!(".{name}.reclaim"))
}

/// Writes the volume's reclaim policy beside it, durably, where it is another than before.
fn mark(root: &Path, volume: &PersistentVolume) -> io::Result<()> {
    let policy = if volume.delete { "Delete\n" } else { "Retain\n" };
    let path = marker(root, &volume.name);
    if fs::read_to_string(&path).is_ok_and(|it| it == policy) {
        return Ok(());
    }
    let new = root.join(format!(".{}.reclaim-new", volume.name));
    let mut file = File::create(&new)?;
    file.write_all(policy.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    sync(root)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_protocol::wire::spec::Volume;

    fn volume(name: &str, delete: bool) -> PersistentVolume {
        PersistentVolume {
            name: name.into(),
            claim: ("default".into(), "c".into()),
            capacity: 1,
            delete,
        }
    }

    fn names(root: &Path) -> String {
        let mut names: Vec<_> = fs::read_dir(root)
            .unwrap()
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.join(" ")
    }

    #[test]
    fn files_stay_until_they_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        let path = make(&root, &volume("pv", true)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        fs::write(path.join("f"), "1").unwrap();
        assert_eq!(make(&root, &volume("pv", true)).unwrap(), path);
        assert_eq!(fs::read(path.join("f")).unwrap(), b"1");
        assert_eq!(names(&root), ".pv.reclaim pv");
        let dropped = detach(&root, "pv").unwrap().unwrap();
        assert_eq!(names(&root), ".dropped-pv");
        delete(&dropped).unwrap();
        assert_eq!(names(&root), "");
        assert_eq!(detach(&root, "pv").unwrap(), None, "it never was");
    }

    #[test]
    fn at_the_start_goes_only_what_is_known_to_be_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        for (name, delete) in [
            ("wanted", true),
            ("gone", true),
            ("kept", false),
            ("changed", true),
            ("dropped-x", false),
        ] {
            make(&root, &volume(name, delete)).unwrap();
        }
        mark_all(&root, &[volume("changed", false), volume("no-files", true)]).unwrap();
        // A policy that was never written, and a removal that was cut off.
        fs::create_dir(root.join("unknown")).unwrap();
        fs::create_dir(root.join(".dropped-old")).unwrap();
        fs::create_dir(root.join(".new-half")).unwrap();
        let found = left_over(&root, &[volume("wanted", true)]).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["gone", "old"]);
        found.values().for_each(|path| delete(path).unwrap());
        assert_eq!(
            names(&root),
            ".changed.reclaim .dropped-x.reclaim .kept.reclaim .new-half .wanted.reclaim changed dropped-x kept unknown wanted"
        );
        assert!(left_over(&root.join("none"), &[]).unwrap().is_empty());
    }

    #[test]
    fn a_pod_may_use_what_its_claim_was_bound_to() {
        let claim = |namespace: &str, name: &str| PodSpec {
            namespace: namespace.into(),
            volumes: vec![Volume {
                name: "v".into(),
                source: VolumeSource::Claim {
                    name: name.into(),
                    read_only: false,
                },
            }],
            ..Default::default()
        };
        for (pod, expected) in [
            (PodSpec::default(), true),
            (claim("default", "c"), true),
            (claim("default", "other"), false),
            (claim("other", "c"), false),
        ] {
            assert_eq!(all_desired(&pod, &[volume("pv", true)]), expected, "{pod:?}");
        }
    }

    #[test]
    fn a_name_is_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        fs::create_dir_all(dir.path().join("other")).unwrap();
        for name in ["", ".", "..", "../other", "a/b", ".x.reclaim"] {
            assert!(make(&root, &volume(name, true)).is_err(), "{name}");
            assert_eq!(detach(&root, name).unwrap(), None, "{name}");
        }
        assert!(dir.path().join("other").exists());
    }
}
