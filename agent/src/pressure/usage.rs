//! What Pods use of the node's disk, and whether that is more than they may.
//!
//! Always holds: only a Pod's own files are counted: writable layers and emptyDirs on disk; no link is followed and no
//! other file system entered; a file with several names counts once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use skiff_protocol::quantity::binary;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Container, PodSpec, VolumeSource};
use skiff_sys::volume::{Directories, walk};

/// Files of one tree that are counted.
const MOST: usize = 1 << 18;

/// One Pod whose files are counted.
#[derive(Clone, Debug)]
pub(crate) struct ToMeasure {
    pod: Uid,
    /// The Pod's directory on disk.
    state: PathBuf,
    /// The directory of its containers' writable layers.
    layers: PathBuf,
    /// Each container's name and `limits.ephemeral-storage`.
    containers: Vec<(String, Option<u64>)>,
    /// What all of them together may use.
    limit: Option<u64>,
    /// Each emptyDir on disk and its `sizeLimit`.
    volumes: Vec<(String, Option<u64>)>,
}

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// Which Pod.
    pub(crate) pod: Uid,
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// What it has exceeded, in a kubelet's words.
    pub(crate) over: Option<String>,
}

impl ToMeasure {
    /// What to count of a Pod.
    #[must_use]
    pub(crate) fn of(pod: &PodSpec, state: PathBuf, layers: PathBuf) -> Self {
        let containers = pod.all_containers();
        let volumes = pod.volumes.iter().filter_map(|it| match it.source {
            VolumeSource::EmptyDir {
                memory: false,
                size_limit,
            } => Some((it.name.clone(), size_limit.filter(|it| *it > 0))),
            _ => None,
        });
        Self {
            pod: pod.uid,
            state,
            layers,
            containers: containers
                .map(|it| (it.name.clone(), it.resources.storage_limit))
                .collect(),
            limit: limit_of(pod),
            volumes: volumes.collect(),
        }
    }

    /// Whether anything bounds it.
    #[must_use]
    pub(crate) fn is_limited(&self) -> bool {
        self.limit.is_some() || self.volumes.iter().any(|(_, limit)| limit.is_some())
    }

    /// Counts, and compares in a kubelet's order: emptyDirs, the Pod, its containers.
    #[must_use]
    pub(crate) fn measure(&self) -> Measured {
        let volumes = self.volumes.iter().map(|(name, limit)| {
            let used = disk_use(&self.state.join("volumes").join(name));
            (name, *limit, used)
        });
        let volumes: Vec<_> = volumes.collect();
        let containers = self.containers.iter().map(|(name, limit)| {
            let used = self.layers(name).iter().map(|it| disk_use(it)).sum::<u64>();
            (name, *limit, used)
        });
        let containers: Vec<_> = containers.collect();
        let bytes = volumes.iter().chain(&containers).map(|(_, _, used)| used).sum();
        let over = |(_, limit, used): &&(&String, Option<u64>, u64)| limit.is_some_and(|limit| *used > limit);
        let text = |limit: Option<u64>| binary(limit.unwrap_or(0));
        let volume = volumes.iter().find(over).map(|(name, limit, _)| {
            format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ",
                text(*limit)
            )
        });
        let whole = || {
            let limit = self.limit.filter(|limit| bytes > *limit)?;
            let limit = binary(limit);
            Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
            ))
        };
        let container = || {
            containers.iter().find(over).map(|(name, limit, _)| {
                format!(
                    "Container {name} exceeded its local ephemeral storage limit {:?}. ",
                    text(*limit)
                )
            })
        };
        Measured {
            pod: self.pod,
            bytes,
            over: volume.or_else(whole).or_else(container),
        }
    }

    /// The writable layers of a container's attempts.
    fn layers(&self, container: &str) -> Vec<PathBuf> {
        let of_this = |name: &str| {
            let attempt = name.strip_prefix(container).and_then(|it| it.strip_prefix('-'));
            attempt.is_some_and(|it| it.parse::<u32>().is_ok())
        };
        let entries = fs::read_dir(&self.layers).into_iter().flatten().flatten();
        entries
            .filter(|it| it.file_name().to_str().is_some_and(of_this))
            .map(|it| it.path().join("upper"))
            .collect()
    }
}

/// What a kubelet compares the whole Pod with: the limits that there are, init containers one at a time.
fn limit_of(pod: &PodSpec) -> Option<u64> {
    let of = |it: &Container| it.resources.storage_limit;
    pod.all_containers().any(|it| of(it).is_some()).then(|| {
        let lasting = pod
            .containers
            .iter()
            .chain(pod.init_containers.iter().filter(|it| it.sidecar));
        let running = lasting.filter_map(of).fold(0, u64::saturating_add);
        let first = pod.init_containers.iter().filter_map(of).max();
        running.max(first.unwrap_or(0))
    })
}

/// Bytes on disk of a directory and all in it, as `du` counts them; what cannot be read counts as nothing, and past the
/// bound what was counted stands.
fn disk_use(dir: &Path) -> u64 {
    let mut bytes = 0;
    let counted = walk(dir, MOST, Directories::First, |found| {
        // A file with several names is counted once: each name takes its share.
        let names = if found.metadata.is_dir() {
            1
        } else {
            found.metadata.nlink().max(1)
        };
        bytes += found.metadata.blocks() * 512 / names;
        Ok(())
    });
    // It may vanish at any time; what is there next time is counted then.
    drop(counted);
    bytes
}
