//! Container Device Interface: specifications of devices, and what each injects into a container.
//!
//! Always holds: a specification is taken whole or not at all; one that is not is named with its file and the place in it,
//! and the others are used all the same.
//!
//! Source: github.com/cncf-tags/container-device-interface, `SPEC.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use skiff_sys::{Device, Hook, Mount, MountKind};

use super::{Edits, yaml};

/// Bytes of one specification that are read. A board with every device of its own has some tens of KiB.
const FILE_BYTES: u64 = 4 << 20;

/// Files of one directory that are read.
const FILES: usize = 256;

/// What takes part in a specification's `cdiVersion`: major and minor. 1.1 adds network devices, which change a sandbox.
const VERSIONS: [(u32, u32); 7] = [(0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (0, 8), (1, 0)];

/// The device that stands for all of its class, as vendors' generators name it.
const ALL: &str = "all";

/// Everything that the directories hold.
#[derive(Debug, Default)]
pub(crate) struct Cdi {
    /// By kind and name.
    devices: BTreeMap<(String, String), Found>,
    /// One line for each file that is not used, or device that two files claim.
    pub(crate) broken: Vec<String>,
    /// Files that are used.
    pub(crate) files: usize,
}

/// A device, and its specification's edits for any of its devices.
#[derive(Debug)]
struct Found {
    edits: Edits,
    common: Edits,
    file: PathBuf,
    /// Which of the directories.
    rank: usize,
}

impl Cdi {
    /// Reads the directories, in order: a later one's devices hide those of an earlier one.
    #[must_use]
    pub(crate) fn load(dirs: &[PathBuf]) -> Self {
        let mut out = Self::default();
        for (rank, dir) in dirs.iter().enumerate() {
            let mut clashing = BTreeSet::new();
            match files(dir) {
                Ok(files) => {
                    for file in files {
                        match read(&file) {
                            Ok(spec) => out.take(rank, &file, spec, &mut clashing),
                            Err(why) => out.broken.push(format!("{}: {why}", file.display())),
                        }
                    }
                }
                Err(error) => out.broken.push(format!("{}: {error}", dir.display())),
            }
            for key in clashing {
                out.devices.remove(&key);
            }
        }
        out
    }

    fn take(&mut self, rank: usize, file: &Path, spec: Spec, clashing: &mut BTreeSet<(String, String)>) {
        self.files += 1;
        for (name, edits) in spec.devices {
            let key = (spec.kind.clone(), name);
            if let Some(other) = self.devices.get(&key).filter(|it| it.rank == rank) {
                let (kind, name) = &key;
                self.broken.push(format!(
                    "{}: device {kind}={name} is also in {}; neither is used",
                    file.display(),
                    other.file.display()
                ));
                clashing.insert(key);
                continue;
            }
            let found = Found {
                edits,
                common: spec.common.clone(),
                file: file.to_owned(),
                rank,
            };
            self.devices.insert(key, found);
        }
    }

    /// What can be asked for as an extended resource: each kind, and the names of its devices.
    #[must_use]
    pub(crate) fn kinds(&self) -> BTreeMap<String, Vec<String>> {
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (kind, name) in self.devices.keys() {
            out.entry(kind.clone()).or_default().push(name.clone());
        }
        for names in out.values_mut() {
            // A class that has nothing but `all` has one device.
            if names.len() > 1 {
                names.retain(|name| name != ALL);
            }
        }
        out
    }

    /// The edits of these devices, those of each specification once.
    ///
    /// # Errors
    /// Names the device that is not known.
    pub(crate) fn edits(&self, wanted: &[(String, String)]) -> Result<Edits, String> {
        let mut out = Edits::default();
        let mut seen = BTreeSet::new();
        for key in wanted {
            let found = self
                .devices
                .get(key)
                .ok_or_else(|| format!("unresolvable CDI devices {}={}", key.0, key.1))?;
            if seen.insert(&found.file) {
                out.add(&found.common);
            }
            out.add(&found.edits);
        }
        Ok(out)
    }
}

/// `vendor/class=name` of an annotation, with each part as the specification wants it.
#[must_use]
pub(super) fn qualified(text: &str) -> Option<(String, String)> {
    let (kind, name) = text.split_once('=')?;
    (is_kind(kind) && is_name(name)).then(|| (kind.to_owned(), name.to_owned()))
}

fn is_kind(text: &str) -> bool {
    let part = |text: &str, more: &[char]| {
        let inner = |c: char| c.is_ascii_alphanumeric() || more.contains(&c);
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(inner)
    };
    text.split_once('/')
        .is_some_and(|(vendor, class)| part(vendor, &['_', '-', '.']) && part(class, &['_', '-', '.']))
}

fn is_name(text: &str) -> bool {
    let end = |c: char| c.is_ascii_alphanumeric();
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    text.starts_with(end) && text.ends_with(end) && text.chars().all(inner)
}

/// The specifications of a directory by name; one that is missing has none.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut out = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if matches!(
            path.extension().and_then(|it| it.to_str()),
            Some("json" | "yaml" | "yml")
        ) {
            out.push(path);
        }
    }
    out.sort();
    if out.len() > FILES {
        return Err(io::Error::other(format!(
            "{} files; at most {FILES} are read",
            out.len()
        )));
    }
    Ok(out)
}

/// A specification that holds what it should.
struct Spec {
    kind: String,
    common: Edits,
    devices: BTreeMap<String, Edits>,
}

fn read(file: &Path) -> Result<Spec, String> {
    let length = fs::metadata(file).map_err(|error| error.to_string())?.len();
    if length > FILE_BYTES {
        return Err(format!("{length} bytes; at most {FILE_BYTES} are read"));
    }
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let written: WrittenSpec = if file.extension().is_some_and(|it| it == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())?
    } else {
        let value = yaml::parse(&text)?;
        serde_json::from_value(value).map_err(|error| error.to_string())?
    };
    written.check()
}

/// A specification as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenSpec {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    devices: Vec<WrittenDevice>,
    #[serde(default)]
    container_edits: WrittenEdits,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenDevice {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    container_edits: WrittenEdits,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct WrittenEdits {
    env: Vec<String>,
    device_nodes: Vec<WrittenNode>,
    mounts: Vec<WrittenMount>,
    hooks: Vec<WrittenHook>,
    #[serde(rename = "additionalGids")]
    gids: Vec<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenNode {
    path: PathBuf,
    host_path: Option<PathBuf>,
    #[serde(rename = "type")]
    kind: Option<String>,
    // The host's own numbers are taken when the container is made: these may be of another boot.
    #[serde(rename = "major")]
    _major: Option<u32>,
    #[serde(rename = "minor")]
    _minor: Option<u32>,
    file_mode: Option<u32>,
    permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenMount {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenHook {
    hook_name: String,
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<u32>,
}

impl WrittenSpec {
    fn check(self) -> Result<Spec, String> {
        let mut numbers = self
            .cdi_version
            .trim_start_matches('v')
            .split('.')
            .map(str::parse::<u32>);
        let version = (numbers.next(), numbers.next());
        if !matches!(version, (Some(Ok(major)), Some(Ok(minor))) if VERSIONS.contains(&(major, minor))) {
            return Err(format!(
                "cdiVersion: {:?} is not supported; 0.3 to 0.8 and 1.0 are",
                self.cdi_version
            ));
        }
        if !is_kind(&self.kind) {
            return Err(format!("kind: {:?} must be vendor/class", self.kind));
        }
        if self.devices.is_empty() {
            return Err("devices: must not be empty".to_owned());
        }
        let common = self.container_edits.check("containerEdits")?;
        let mut devices = BTreeMap::new();
        for (at, device) in self.devices.into_iter().enumerate() {
            let name = device.name;
            if !is_name(&name) {
                return Err(format!("devices[{at}].name: {name:?} is no device's name"));
            }
            let edits = device
                .container_edits
                .check(&format!("devices[{at}].containerEdits"))?;
            if devices.insert(name.clone(), edits).is_some() {
                return Err(format!("devices[{at}].name: {name:?} is given twice"));
            }
        }
        Ok(Spec {
            kind: self.kind,
            common,
            devices,
        })
    }
}

impl WrittenEdits {
    fn check(self, at: &str) -> Result<Edits, String> {
        for (n, variable) in self.env.iter().enumerate() {
            if variable.find('=').is_none_or(|at| at == 0) {
                return Err(format!("{at}.env[{n}]: {variable:?} must be NAME=value"));
            }
        }
        let devices = self.device_nodes.into_iter().enumerate();
        let devices = devices.map(|(n, it)| it.check(&format!("{at}.deviceNodes[{n}]")));
        let mounts = self.mounts.into_iter().enumerate();
        let mounts = mounts.map(|(n, it)| it.check(&format!("{at}.mounts[{n}]")));
        let hooks = self.hooks.into_iter().enumerate();
        let hooks = hooks.map(|(n, it)| it.check(&format!("{at}.hooks[{n}]")));
        Ok(Edits {
            env: self.env,
            devices: devices.collect::<Result<_, _>>()?,
            mounts: mounts.collect::<Result<_, _>>()?,
            hooks: hooks.collect::<Result<_, _>>()?,
            // 0 adds nothing, and would give a container the node's root group.
            gids: self.gids.into_iter().filter(|gid| *gid != 0).collect(),
        })
    }
}

fn absolute(at: &str, path: &Path) -> Result<(), String> {
    if path.is_absolute() {
        Ok(())
    } else {
        Err(format!("{at}: {} must be an absolute path", path.display()))
    }
}

impl WrittenNode {
    fn check(self, at: &str) -> Result<Device, String> {
        absolute(&format!("{at}.path"), &self.path)?;
        let host_path = self.host_path.filter(|it| !it.as_os_str().is_empty());
        let host_path = host_path.unwrap_or_else(|| self.path.clone());
        absolute(&format!("{at}.hostPath"), &host_path)?;
        if let Some(kind) = self
            .kind
            .filter(|kind| !matches!(kind.as_str(), "" | "b" | "c" | "u"))
        {
            return Err(format!("{at}.type: {kind:?} must be \"b\", \"c\" or \"u\""));
        }
        let access = self.permissions.filter(|it| !it.is_empty());
        let access = access.unwrap_or_else(|| "rwm".to_owned());
        if !access.chars().all(|c| "rwm".contains(c)) {
            return Err(format!(
                "{at}.permissions: {access:?} must be made of 'r', 'w' and 'm'"
            ));
        }
        Ok(Device {
            path: self.path,
            host_path,
            access,
            mode: self.file_mode,
            owner: match (self.uid, self.gid) {
                (None, None) => None,
                (uid, gid) => Some((uid.unwrap_or(0), gid.unwrap_or(0))),
            },
        })
    }
}

impl WrittenMount {
    fn check(self, at: &str) -> Result<Mount, String> {
        absolute(&format!("{at}.containerPath"), &self.container_path)?;
        let kind = match self.kind.as_deref() {
            None | Some("" | "none" | "bind") => MountKind::Bind,
            Some("tmpfs") => MountKind::Tmpfs,
            Some(other) => return Err(format!("{at}.type: {other:?} must be \"bind\" or \"tmpfs\"")),
        };
        if kind == MountKind::Bind {
            absolute(&format!("{at}.hostPath"), &self.host_path)?;
        }
        let read_only = self.options.iter().any(|it| it == "ro");
        let said = |it: &String| !matches!(it.as_str(), "ro" | "rw" | "bind" | "rbind");
        Ok(Mount {
            source: self.host_path,
            destination: self.container_path,
            kind,
            options: self.options.into_iter().filter(said).collect(),
            read_only,
            ..Default::default()
        })
    }
}

impl WrittenHook {
    fn check(self, at: &str) -> Result<Hook, String> {
        absolute(&format!("{at}.path"), &self.path)?;
        let stage = match self.hook_name.as_str() {
            // The older name of what is run at the same place.
            "prestart" => "createRuntime",
            it @ ("createRuntime" | "createContainer" | "startContainer" | "poststart" | "poststop") => it,
            other => return Err(format!("{at}.hookName: {other:?} is no hook")),
        };
        Ok(Hook {
            stage: stage.to_owned(),
            path: self.path,
            args: self.args,
            env: self.env,
            timeout: self.timeout,
        })
    }
}
