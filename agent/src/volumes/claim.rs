//! PersistentVolumes: directories of this node that outlive Pods and reboots.
//!
//! ```text
//!   volumes/<name>               the files
//!   volumes/.<name>.drop         the server has said that they are to go
//!   volumes/.new-<name>          being made
//!   volumes/.dropped-<name>      being removed; with `~1` and so on behind it while an earlier one is
//! ```
//!
//! Always holds: files go only when the server has said of this volume that they shall. That a volume is not spoken of says
//! nothing: the server may have lost it with its store, or the node may have come to another fleet.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
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
/// When it cannot be made, or is to go.
pub(crate) fn make(root: &Path, volume: &PersistentVolume) -> Result<PathBuf, String> {
    if !is_name(&volume.name) {
        return Err(format!("persistentvolume {:?} has no usable name", volume.name));
    }
    if volume.drop {
        return Err(format!("persistentvolume {:?} is being deleted", volume.name));
    }
    let path = root.join(&volume.name);
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    if path.is_dir() {
        return Ok(path);
    }
    fs::create_dir_all(root).map_err(failed)?;
    // Files of all users lie below, and nobody but root has business there other than through a container.
    fs::set_permissions(root, Permissions::from_mode(0o700)).map_err(failed)?;
    // Of an earlier volume of this name, whose files went and whose mark did not.
    unmark(root, &volume.name).map_err(failed)?;
    let new = root.join(format!(".new-{}", volume.name));
    fs::create_dir_all(&new).map_err(failed)?;
    fs::set_permissions(&new, Permissions::from_mode(MODE)).map_err(failed)?;
    fs::rename(new, &path).map_err(failed)?;
    sync(root).map_err(failed)?;
    Ok(path)
}

/// Marks the files that are to go, and no others, durably. Files of a volume that is not desired keep what they have.
///
/// # Errors
/// With the first that could not be marked.
pub(crate) fn mark_all(root: &Path, desired: &[PersistentVolume]) -> io::Result<()> {
    for volume in desired.iter().filter(|it| is_name(&it.name)) {
        if !root.join(&volume.name).is_dir() {
            continue;
        }
        if volume.drop {
            mark(root, &volume.name)?;
        } else {
            unmark(root, &volume.name)?;
        }
    }
    Ok(())
}

/// Volumes with files here of which the server says nothing.
///
/// # Errors
/// When the directory of volumes cannot be read.
pub(crate) fn orphans(root: &Path, desired: &[PersistentVolume]) -> io::Result<Vec<String>> {
    let mut out = names(root)?;
    out.retain(|name| is_name(name) && !desired.iter().any(|it| it.name == *name));
    Ok(out)
}

/// Whether each claim of the Pod is bound to a volume that is desired and not to go. Of another the Pod may use files that
/// are to go.
#[must_use]
pub(crate) fn all_desired(pod: &PodSpec, desired: &[PersistentVolume]) -> bool {
    let bound = |name: &str| {
        desired
            .iter()
            .any(|it| !it.drop && it.claim.0 == pod.namespace && it.claim.1 == name)
    };
    pod.volumes.iter().all(|volume| match &volume.source {
        VolumeSource::Claim { name, .. } => bound(name),
        _ => true,
    })
}

/// Takes the directories away that are marked, as after a loss of power amid their removal. Gives what is still to be
/// deleted, by the volume's name.
///
/// # Errors
/// When the directory of volumes cannot be read.
pub(crate) fn left_over(root: &Path, desired: &[PersistentVolume]) -> io::Result<BTreeMap<PathBuf, String>> {
    let mut out = BTreeMap::new();
    for name in names(root)? {
        if let Some(dropped) = name.strip_prefix(".dropped-") {
            out.insert(root.join(&name), dropped.to_owned());
        } else if is_name(&name)
            && marker(root, &name).exists()
            && !desired.iter().any(|it| it.name == name && !it.drop)
        {
            out.extend(detach(root, &name)?.map(|path| (path, name)));
        }
    }
    Ok(out)
}

/// The directories under `root`; none where there is no such directory.
fn names(root: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut out = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            out.extend(entry.file_name().into_string());
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
    let mut dropped = root.join(format!(".dropped-{name}"));
    // An earlier volume of this name may not be gone yet.
    for other in 1.. {
        if !dropped.exists() {
            break;
        }
        dropped = root.join(format!(".dropped-{name}~{other}"));
    }
    match fs::rename(root.join(name), &dropped) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    unmark(root, name)?;
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
    root.join(format!(".{name}.drop"))
}

fn mark(root: &Path, name: &str) -> io::Result<()> {
    let path = marker(root, name);
    if path.exists() {
        return Ok(());
    }
    File::create(path)?.sync_all()?;
    sync(root)
}

fn unmark(root: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(marker(root, name)) {
        Ok(()) => sync(root),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use skiff_protocol::wire::spec::Volume;

    fn volume(name: &str, drop: bool) -> PersistentVolume {
        PersistentVolume {
            name: name.into(),
            claim: ("default".into(), "c".into()),
            capacity: 1,
            drop,
        }
    }

    fn all(root: &Path) -> String {
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
        let path = make(&root, &volume("pv", false)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
        fs::write(path.join("f"), "1").unwrap();
        assert_eq!(make(&root, &volume("pv", false)).unwrap(), path);
        assert_eq!(fs::read(path.join("f")).unwrap(), b"1");
        assert_eq!(all(&root), "pv");
        let why = make(&root, &volume("pv", true)).unwrap_err();
        assert_eq!(why, "persistentvolume \"pv\" is being deleted");
        let dropped = detach(&root, "pv").unwrap().unwrap();
        assert_eq!(all(&root), ".dropped-pv");
        // The next of its name does not wait for it.
        make(&root, &volume("pv", false)).unwrap();
        let second = detach(&root, "pv").unwrap().unwrap();
        assert_eq!(all(&root), ".dropped-pv .dropped-pv~1");
        delete(&dropped).unwrap();
        delete(&second).unwrap();
        assert_eq!(all(&root), "");
        assert_eq!(detach(&root, "pv").unwrap(), None, "it never was");
    }

    #[test]
    fn only_what_was_said_to_go_goes() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        let names = ["wanted", "going", "gone", "silent", "spared", "dropped-x"];
        for name in names {
            make(&root, &volume(name, false)).unwrap();
        }
        let going = [
            volume("going", true),
            volume("gone", true),
            volume("spared", true),
        ];
        mark_all(&root, &going).unwrap();
        // What was said last counts, and what is not said any more was said.
        mark_all(&root, &[volume("spared", false), volume("no-files", true)]).unwrap();
        fs::create_dir(root.join(".dropped-old")).unwrap();
        fs::create_dir(root.join(".new-half")).unwrap();
        let desired = [volume("wanted", false), volume("going", true)];
        let found = left_over(&root, &desired).unwrap();
        let going: BTreeSet<_> = found.values().map(String::as_str).collect();
        assert_eq!(going, BTreeSet::from(["going", "gone", "old"]));
        found.keys().for_each(|path| delete(path).unwrap());
        assert_eq!(all(&root), ".new-half dropped-x silent spared wanted");
        let mut orphans = orphans(&root, &desired).unwrap();
        orphans.sort();
        assert_eq!(orphans, ["dropped-x", "silent", "spared"]);
        assert!(left_over(&root.join("none"), &[]).unwrap().is_empty());
    }

    #[test]
    fn a_mark_is_not_for_the_next_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        let path = make(&root, &volume("pv", false)).unwrap();
        mark_all(&root, &[volume("pv", true)]).unwrap();
        // The power went between the two halves of taking it away.
        fs::rename(path, root.join(".dropped-pv")).unwrap();
        make(&root, &volume("pv", false)).unwrap();
        assert_eq!(all(&root), ".dropped-pv pv");
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
            assert_eq!(all_desired(&pod, &[volume("pv", false)]), expected, "{pod:?}");
        }
        assert!(!all_desired(&claim("default", "c"), &[volume("pv", true)]));
    }

    #[test]
    fn a_name_is_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        fs::create_dir_all(dir.path().join("other")).unwrap();
        for name in ["", ".", "..", "../other", "a/b", ".x.drop"] {
            assert!(make(&root, &volume(name, false)).is_err(), "{name}");
            assert_eq!(detach(&root, name).unwrap(), None, "{name}");
        }
        assert!(dir.path().join("other").exists());
    }
}
