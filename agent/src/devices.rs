//! The node's devices that Pods may ask for: which there are, who holds them, and what they add to a container.
//!
//! Always holds: a device is held by one Pod at a time; within a Pod, containers may take over what its init containers
//! held, for those run before them; what a container holds stays the same over its restarts and those of the agent. The
//! notes of it lie on tmpfs beside the Pod's other ones: a reboot, which ends every container, forgets them.

mod cdi;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{Container, PodSpec};
use skiff_sys::{ContainerConfig, Device, Hook, Mount};
use tracing::warn;

use crate::config::{Config, DeviceSpec};

pub(crate) use cdi::Cdi;

/// The annotation that asks for CDI devices by name, as containerd takes it: `cdi.k8s.io/<any>: vendor/class=name,…`.
const ANNOTATION: &str = "cdi.k8s.io/";

/// The note of a Pod's devices, in its directory on tmpfs.
const NOTE: &str = "devices";

/// What a device adds to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Device nodes.
    pub(crate) devices: Vec<Device>,
    /// Mounts.
    pub(crate) mounts: Vec<Mount>,
    /// Commands.
    pub(crate) hooks: Vec<Hook>,
    /// Supplementary groups.
    pub(crate) gids: Vec<u32>,
}

impl Edits {
    fn add(&mut self, more: &Self) {
        self.env.extend_from_slice(&more.env);
        self.devices.extend_from_slice(&more.devices);
        self.mounts.extend_from_slice(&more.mounts);
        self.hooks.extend_from_slice(&more.hooks);
        self.gids.extend_from_slice(&more.gids);
    }

    /// Puts them into a container's configuration; they win over what is there.
    pub(crate) fn apply(self, config: &mut ContainerConfig) {
        for variable in self.env {
            let name = variable.split('=').next();
            config.env.retain(|it| it.split('=').next() != name);
            config.env.push(variable);
        }
        for device in self.devices {
            config.devices.retain(|it| it.path != device.path);
            config.devices.push(device);
        }
        for mount in self.mounts {
            config.mounts.retain(|it| it.destination != mount.destination);
            config.mounts.push(mount);
        }
        config.hooks.extend(self.hooks);
        let gids = &mut config.user.additional_gids;
        for gid in self.gids {
            if !gids.contains(&gid) {
                gids.push(gid);
            }
        }
    }
}

/// One of an extended resource.
#[derive(Clone, Debug)]
enum Unit {
    /// Of the configuration: these nodes.
    Nodes(Vec<Device>),
    /// Of a CDI specification: kind and name.
    Cdi(String, String),
}

/// What a container holds: the resource, and the names of the units of it.
type Held = BTreeMap<String, Vec<String>>;

/// The node's devices.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// Resource, name of the unit, the unit.
    units: BTreeMap<String, BTreeMap<String, Unit>>,
    cdi: Cdi,
    /// When each of the CDI directories last changed, as far as it is there.
    seen: Vec<Option<SystemTime>>,
    /// By Pod and container.
    held: BTreeMap<Uid, BTreeMap<String, Held>>,
    /// `<run>/pods`.
    run: PathBuf,
}

impl Devices {
    /// The devices of the configuration and of the CDI directories, and who holds them by the notes in `run`.
    #[must_use]
    pub(crate) fn look(config: &Config, run: &Path) -> Self {
        let mut out = Self {
            held: notes(run),
            run: run.to_owned(),
            ..Default::default()
        };
        out.load(config);
        out
    }

    /// Reads the CDI directories again where one has changed: vendors write theirs at each boot, perhaps after we began.
    /// Says whether there is another number of something.
    pub(crate) fn refresh(&mut self, config: &Config) -> bool {
        if self.seen == changes(&config.cdi_dirs) {
            return false;
        }
        let counts = |it: &Self| (it.extended().collect::<Vec<_>>(), it.cdi.broken.clone());
        let before = counts(self);
        self.load(config);
        counts(self) != before
    }

    fn load(&mut self, config: &Config) {
        // First, so that what changes while it is read is read again.
        self.seen = changes(&config.cdi_dirs);
        self.cdi = Cdi::load(&config.cdi_dirs);
        for why in &self.cdi.broken {
            warn!("CDI specification not used: {why}");
        }
        self.units.clear();
        for (kind, names) in self.cdi.kinds() {
            let of_kind = names.into_iter();
            let of_kind = of_kind.map(|name| (name.clone(), Unit::Cdi(kind.clone(), name)));
            self.units.insert(kind.clone(), of_kind.collect());
        }
        for spec in &config.devices {
            // What the configuration says of a name is said on purpose.
            self.units.insert(spec.name.clone(), units_of(spec));
        }
    }

    /// Extended resources and how many there are of each.
    pub(crate) fn extended(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.units
            .iter()
            .map(|(name, units)| (name.clone(), units.len() as u64))
    }

    /// CDI specifications that are not used, each with its file and the place in it.
    #[must_use]
    pub(crate) fn broken(&self) -> &[String] {
        &self.cdi.broken
    }

    /// What the container's devices add to it. It holds them from now on. `ended` tells of a Pod that needs its devices
    /// no more; it is asked only where there are too few.
    ///
    /// # Errors
    /// What cannot be given, in a kubelet's words.
    pub(crate) fn edits(
        &mut self,
        pod: &PodSpec,
        spec: &Container,
        ended: &dyn Fn(Uid) -> bool,
    ) -> Result<Edits, String> {
        let wanted = &spec.resources.extended;
        let asked = by_annotation(pod)?;
        if wanted.is_empty() && asked.is_empty() {
            return Ok(Edits::default());
        }
        let mut held = Held::new();
        for (resource, count) in wanted.iter().filter(|(_, count)| *count > 0) {
            let names = self.choose(pod, spec, resource, *count, ended)?;
            held.insert(resource.clone(), names);
        }
        let edits = self.edits_of(&held, asked)?;
        self.hold(pod.uid, &spec.name, held);
        Ok(edits)
    }

    fn choose(
        &mut self,
        pod: &PodSpec,
        spec: &Container,
        resource: &str,
        count: u64,
        ended: &dyn Fn(Uid) -> bool,
    ) -> Result<Vec<String>, String> {
        let units = self
            .units
            .get(resource)
            .ok_or_else(|| format!("the node has no device of {resource}"))?;
        let kept = self.held.get(&pod.uid).and_then(|it| it.get(&spec.name));
        if let Some(kept) = kept.and_then(|it| it.get(resource))
            && kept.len() as u64 == count
            && kept.iter().all(|name| units.contains_key(name))
        {
            return Ok(kept.clone());
        }
        let mut free = self.free(pod, spec, resource);
        if (free.len() as u64) < count {
            let over: Vec<Uid> = self.held.keys().copied().filter(|uid| ended(*uid)).collect();
            for uid in over {
                self.release(uid);
            }
            free = self.free(pod, spec, resource);
        }
        let available = free.len();
        if (available as u64) < count {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {count}, Available: {available}"
            ));
        }
        free.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(free)
    }

    /// Names of units that nobody needs, those first that the Pod's own init containers held.
    fn free(&self, pod: &PodSpec, spec: &Container, resource: &str) -> Vec<String> {
        let passed_on = |name: &str| {
            let init = pod.init_containers.iter().find(|it| it.name == name);
            init.is_some_and(|it| !it.sidecar) || name == spec.name
        };
        let mut reused = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for (uid, containers) in &self.held {
            for (name, held) in containers {
                let names = held.get(resource).into_iter().flatten();
                if *uid == pod.uid && passed_on(name) {
                    reused.extend(names);
                } else {
                    taken.extend(names);
                }
            }
        }
        let units = self.units.get(resource).into_iter().flat_map(BTreeMap::keys);
        let mut free: Vec<&String> = units.filter(|name| !taken.contains(name)).collect();
        free.sort_by_key(|name| !reused.contains(name));
        free.into_iter().cloned().collect()
    }

    fn edits_of(&self, held: &Held, asked: Vec<(String, String)>) -> Result<Edits, String> {
        let mut out = Edits::default();
        let mut wanted = Vec::new();
        for (resource, names) in held {
            for name in names {
                match self.units.get(resource).and_then(|it| it.get(name)) {
                    Some(Unit::Nodes(nodes)) => out.devices.extend_from_slice(&there(nodes)?),
                    Some(Unit::Cdi(kind, name)) => wanted.push((kind.clone(), name.clone())),
                    None => return Err(format!("the node has no device {name} of {resource}")),
                }
            }
        }
        for key in asked {
            if !wanted.contains(&key) {
                wanted.push(key);
            }
        }
        out.add(&self.cdi.edits(&wanted)?);
        Ok(out)
    }

    fn hold(&mut self, uid: Uid, container: &str, held: Held) {
        if held.is_empty() {
            return;
        }
        let containers = self.held.entry(uid).or_default();
        if containers.get(container) == Some(&held) {
            return;
        }
        containers.insert(container.to_owned(), held);
        let note = self.run.join(uid.to_string()).join(NOTE);
        if let Err(error) = write_note(&note, containers) {
            // The next agent would take the device for free; this one does not.
            warn!(path = %note.display(), %error, "cannot note who holds which device");
        }
    }

    /// The Pod needs its devices no more. Its note goes with its directory.
    pub(crate) fn release(&mut self, uid: Uid) {
        self.held.remove(&uid);
    }
}

fn changes(dirs: &[PathBuf]) -> Vec<Option<SystemTime>> {
    let changed = |dir: &PathBuf| fs::metadata(dir).and_then(|it| it.modified()).ok();
    dirs.iter().map(changed).collect()
}

fn units_of(spec: &DeviceSpec) -> BTreeMap<String, Unit> {
    let device = |path: &PathBuf| Device {
        path: path.clone(),
        host_path: path.clone(),
        access: spec.access.clone().unwrap_or_else(|| "rw".to_owned()),
        mode: None,
        owner: None,
    };
    match spec.count {
        None => {
            let each = spec.paths.iter();
            each.map(|path| (path.display().to_string(), Unit::Nodes(vec![device(path)])))
                .collect()
        }
        Some(count) => {
            let nodes: Vec<Device> = spec.paths.iter().map(device).collect();
            (0..count)
                .map(|at| (at.to_string(), Unit::Nodes(nodes.clone())))
                .collect()
        }
    }
}

/// The nodes, if they are there: what is plugged in later is waited for.
fn there(nodes: &[Device]) -> Result<Vec<Device>, String> {
    for node in nodes {
        numbers(&node.host_path, false)?;
    }
    Ok(nodes.to_vec())
}

/// Major and minor number of a device node; only a block device where `block` is set.
///
/// # Errors
/// When there is no such node.
pub(crate) fn numbers(path: &Path, block: bool) -> Result<(u32, u32), String> {
    let found = fs::metadata(path).map_err(|error| format!("device {}: {error}", path.display()))?;
    let kind = found.file_type();
    if !kind.is_block_device() && (block || !kind.is_char_device()) {
        let what = if block { "block device" } else { "device" };
        return Err(format!("device {}: not a {what}", path.display()));
    }
    // Linux' own encoding of both in 64 bits, makedev(3).
    let number = found.rdev();
    let major = (number >> 8 & 0xfff) | (number >> 32 & !0xfff);
    let minor = (number & 0xff) | (number >> 12 & !0xff);
    Ok((major as u32, minor as u32))
}

/// The devices that the Pod's annotations name.
fn by_annotation(pod: &PodSpec) -> Result<Vec<(String, String)>, String> {
    let mut out = Vec::new();
    let asking = pod
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION));
    for (key, value) in asking {
        for device in value.split(',') {
            let device = device.trim();
            let named = cdi::qualified(device);
            let named = named.ok_or_else(|| {
                format!("annotation {key}: {device:?} must be a device's full name, vendor/class=name")
            })?;
            out.push(named);
        }
    }
    Ok(out)
}

/// The note, as it is kept: [`Held`] by container.
#[derive(Serialize, Deserialize)]
struct Note(BTreeMap<String, Held>);

fn write_note(path: &Path, containers: &BTreeMap<String, Held>) -> io::Result<()> {
    let bytes = postcard::to_allocvec(&Note(containers.clone())).map_err(io::Error::other)?;
    let new = path.with_extension("new");
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

/// The notes of all Pods. What is damaged is said and held by nobody.
fn notes(run: &Path) -> BTreeMap<Uid, BTreeMap<String, Held>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let Some(uid) = entry.file_name().to_str().and_then(|it| it.parse::<Uid>().ok()) else {
            continue;
        };
        let path = entry.path().join(NOTE);
        match fs::read(&path) {
            Ok(bytes) => match postcard::from_bytes::<Note>(&bytes) {
                Ok(Note(held)) => {
                    out.insert(uid, held);
                }
                Err(error) => {
                    warn!(path = %path.display(), %error, "the note of a Pod's devices is damaged");
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(path = %path.display(), %error, "cannot read who holds which device"),
        }
    }
    out
}

#[cfg(test)]
mod tests;
