//! What a Pod uses of the node's disk, and whether that is more than it may.
//!
//! Always holds: measured as `du` does, in blocks; links are not followed; a tree is walked up to a bound, and what was
//! counted until then stands. Nothing is written. Slow: for a thread that may wait.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use skiff_protocol::wire::spec::{Container, PodSpec, VolumeSource};
use skiff_sys::volume::{Directories, walk};

/// Files of one tree that are looked at.
const MOST: usize = 1 << 18;

/// What a Pod has on the node's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodDisk {
    /// Each emptyDir on disk: name, bytes used and `sizeLimit`.
    pub empty_dirs: Vec<(String, u64, Option<u64>)>,
    /// Each container's writable layers: name and bytes used.
    pub writable_layers: Vec<(String, u64)>,
}

impl PodDisk {
    /// All bytes.
    #[must_use]
    pub(crate) fn total(&self) -> u64 {
        let dirs = self.empty_dirs.iter().map(|(_, bytes, _)| bytes);
        dirs.chain(self.writable_layers.iter().map(|(_, bytes)| bytes))
            .fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Whether anything limits what this Pod may use of the disk: only then is it worth measuring.
#[must_use]
pub(crate) fn is_limited(pod: &PodSpec) -> bool {
    let limited = |source: &VolumeSource| {
        matches!(
            source,
            VolumeSource::EmptyDir {
                memory: false,
                size_limit: Some(_)
            }
        )
    };
    pod.volumes.iter().any(|it| limited(&it.source))
        || pod
            .all_containers()
            .any(|it| it.resources.storage_limit.is_some())
}

/// Measures a Pod. `run` is its directory on tmpfs, `state` the one on disk. Memory volumes are bounded by the kernel and
/// not listed.
#[must_use]
pub(crate) fn usage(pod: &PodSpec, _run: &Path, state: &Path) -> PodDisk {
    let mut out = PodDisk::default();
    for volume in &pod.volumes {
        if let VolumeSource::EmptyDir {
            memory: false,
            size_limit,
        } = &volume.source
        {
            let bytes = tree(&state.join("volumes").join(&volume.name));
            out.empty_dirs.push((volume.name.clone(), bytes, *size_limit));
        }
    }
    let mut layers: BTreeMap<String, u64> = BTreeMap::new();
    for entry in fs::read_dir(state.join("containers"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let id = entry.file_name();
        // `<container>-<attempt>`, and a container's name may have dashes of its own.
        let name = id.to_str().and_then(|it| it.rsplit_once('-')).map(|it| it.0);
        if let Some(name) = name.filter(|name| pod.container(name).is_some()) {
            *layers.entry(name.to_owned()).or_default() += tree(&entry.path().join("upper"));
        }
    }
    out.writable_layers = layers.into_iter().collect();
    out
}

/// Bytes of everything in a directory; 0 where there is none.
fn tree(path: &Path) -> u64 {
    let mut bytes = 0;
    // What could be counted before an error is used all the same.
    let _ = walk(path, MOST, Directories::First, |found| {
        // A file with several names is counted once: each name takes its share.
        let links = if found.metadata.is_dir() {
            1
        } else {
            found.metadata.nlink().max(1)
        };
        bytes += found.metadata.blocks() * 512 / links;
        Ok(())
    });
    bytes
}

/// The first limit that the Pod exceeds, in a kubelet's words.
#[must_use]
pub(crate) fn over_limit(pod: &PodSpec, disk: &PodDisk) -> Option<String> {
    for (name, bytes, limit) in &disk.empty_dirs {
        if let Some(limit) = limit
            && *limit > 0
            && bytes > limit
        {
            return Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ",
                quantity(*limit)
            ));
        }
    }
    if let Some(limit) = whole(pod).filter(|limit| disk.total() > *limit) {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            quantity(limit)
        ));
    }
    for (name, bytes) in &disk.writable_layers {
        let limit = pod.container(name).and_then(|it| it.resources.storage_limit);
        if let Some(limit) = limit.filter(|limit| bytes > limit) {
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit {:?}. ",
                quantity(limit)
            ));
        }
    }
    None
}

/// The Pod's limit: what its containers and sidecars may use together, or one of the init containers before them.
/// A container without a limit adds nothing, as in Kubernetes.
fn whole(pod: &PodSpec) -> Option<u64> {
    let limit = |it: &Container| it.resources.storage_limit;
    let sidecars = pod.init_containers.iter().filter(|it| it.sidecar);
    let together = pod.containers.iter().chain(sidecars).filter_map(limit);
    let together = together.reduce(u64::saturating_add);
    let before = pod.init_containers.iter().filter(|it| !it.sidecar);
    together
        .into_iter()
        .chain(before.filter_map(limit))
        .max()
        .filter(|limit| *limit > 0)
}

/// Bytes as Kubernetes writes them: with the largest binary suffix that leaves no rest.
fn quantity(bytes: u64) -> String {
    let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let (mut amount, mut at) = (bytes, 0);
    while amount >= 1024 && amount.is_multiple_of(1024) && at + 1 < suffixes.len() {
        amount /= 1024;
        at += 1;
    }
    format!("{amount}{}", suffixes[at])
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_protocol::wire::spec::Volume;

    fn pod(limits: &[(&str, Option<u64>)], dirs: &[(&str, Option<u64>)]) -> PodSpec {
        let container = |(name, limit): &(&str, Option<u64>)| {
            let mut out = Container {
                name: (*name).to_owned(),
                ..Default::default()
            };
            out.resources.storage_limit = *limit;
            out
        };
        let volume = |(name, limit): &(&str, Option<u64>)| Volume {
            name: (*name).to_owned(),
            source: VolumeSource::EmptyDir {
                memory: false,
                size_limit: *limit,
            },
        };
        PodSpec {
            containers: limits.iter().map(container).collect(),
            volumes: dirs.iter().map(volume).collect(),
            ..Default::default()
        }
    }

    const KB: u64 = 1024;

    #[test]
    fn files_count_in_blocks_once_and_not_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let (run, state) = (dir.path().join("run"), dir.path().join("state"));
        let pod = pod(&[("a", None), ("a-1", None)], &[("v", Some(5)), ("none", None)]);
        let (v, outside) = (state.join("volumes/v"), dir.path().join("outside"));
        fs::create_dir_all(v.join("sub")).unwrap();
        fs::write(&outside, vec![1; 400 * 1024]).unwrap();
        fs::write(v.join("sub/f"), vec![1; 40 * 1024]).unwrap();
        fs::hard_link(v.join("sub/f"), v.join("again")).unwrap();
        std::os::unix::fs::symlink(&outside, v.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), v.join("dir-link")).unwrap();
        let sparse = fs::File::create(v.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        for (id, size) in [("a-0", 8), ("a-1", 16), ("a-1-0", 100), ("other-0", 500)] {
            let upper = state.join("containers").join(id).join("upper");
            fs::create_dir_all(&upper).unwrap();
            fs::write(upper.join("f"), vec![1; size * 1024]).unwrap();
        }
        let found = usage(&pod, &run, &state);
        let (name, bytes, limit) = &found.empty_dirs[0];
        assert_eq!((name.as_str(), *limit), ("v", Some(5)));
        // Directories and links take blocks of their own on some file systems.
        assert!((40 * KB..80 * KB).contains(bytes), "{bytes}");
        assert_eq!(found.empty_dirs[1], ("none".to_owned(), 0, None));
        let [(a, first), (a1, second)] = &found.writable_layers[..] else {
            panic!("{found:?}")
        };
        assert_eq!((a.as_str(), a1.as_str()), ("a", "a-1"));
        assert!((24 * KB..40 * KB).contains(first), "{first}");
        assert!((100 * KB..120 * KB).contains(second), "{second}");
        assert_eq!(found.total(), bytes + first + second);
    }

    #[test]
    fn limits_are_exceeded_in_a_kubelets_words() {
        const MI: u64 = 1 << 20;
        let disk = |dirs: &[(&str, u64, Option<u64>)], layers: &[(&str, u64)]| PodDisk {
            empty_dirs: dirs.iter().map(|it| (it.0.to_owned(), it.1, it.2)).collect(),
            writable_layers: layers.iter().map(|it| (it.0.to_owned(), it.1)).collect(),
        };
        let two = |a, b| pod(&[("a", a), ("b", b)], &[]);
        for (pod, disk, expected) in [
            (
                two(None, None),
                disk(&[("x", 9 * MI, None)], &[("a", 9 * MI)]),
                None,
            ),
            (two(None, None), disk(&[("x", MI, Some(MI))], &[]), None),
            (
                two(None, None),
                disk(&[("x", MI + 1, Some(MI))], &[]),
                Some("Usage of EmptyDir volume \"x\" exceeds the limit \"1Mi\". "),
            ),
            (
                two(Some(10 * MI), Some(20 * MI)),
                disk(&[("x", MI, None)], &[("a", 10 * MI + 1), ("b", MI)]),
                Some("Container a exceeded its local ephemeral storage limit \"10Mi\". "),
            ),
            (
                two(Some(10 * MI), None),
                disk(&[("x", 9 * MI, None)], &[("a", MI), ("b", MI)]),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. "),
            ),
            (
                two(Some(10 * MI), Some(20 * MI)),
                disk(&[("x", 25 * MI, None)], &[("a", 3 * MI), ("b", 3 * MI)]),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. "),
            ),
            (
                two(Some(10 * MI), Some(20 * MI)),
                disk(&[("x", 24 * MI, None)], &[("a", 3 * MI), ("b", 3 * MI)]),
                None,
            ),
        ] {
            assert_eq!(over_limit(&pod, &disk).as_deref(), expected);
        }
        for (limits, dirs, expected) in [
            (vec![("a", None)], vec![("v", None)], false),
            (vec![("a", Some(1))], vec![], true),
            (vec![("a", None)], vec![("v", Some(1))], true),
        ] {
            assert_eq!(is_limited(&pod(&limits, &dirs)), expected);
        }
    }

    #[test]
    fn quantities_are_kubernetes() {
        for (bytes, expected) in [
            (0, "0"),
            (1000, "1000"),
            (1024, "1Ki"),
            (1536, "1536"),
            (1 << 20, "1Mi"),
            (10 << 20, "10Mi"),
            (1 << 30, "1Gi"),
        ] {
            assert_eq!(quantity(bytes), expected);
        }
    }
}
