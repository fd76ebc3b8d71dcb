//! What the files of a configMap, secret, projected or downwardAPI volume say.
//!
//! Always holds: pure; every path is relative and stays inside the volume, also where a key of a ConfigMap is the path.

use std::collections::BTreeMap;

use skiff_protocol::wire::spec::{
    ConfigData, DownwardFile, DownwardValue, KeyToPath, PodSpec, Projection, VolumeSource,
};

use crate::plan::{self, Facts, Lookup};

/// A file: its mode and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Permission bits.
    pub mode: u16,
    /// What it says.
    pub bytes: Vec<u8>,
}

/// The files by their paths in the volume.
pub(crate) type Payload = BTreeMap<String, File>;

/// The files of a volume; `None` where it is made of something else.
///
/// # Errors
/// What it refers to and is not there, in a kubelet's words.
pub(crate) fn payload(
    pod: &PodSpec,
    source: &VolumeSource,
    facts: &Facts<'_>,
    lookup: Lookup<'_>,
) -> Result<Option<Payload>, String> {
    let mut out = Payload::new();
    match source {
        VolumeSource::Config {
            secret,
            name,
            items,
            default_mode,
            optional,
        } => {
            let wanted = Wanted {
                secret: *secret,
                name,
                items,
                optional: *optional,
            };
            config(&wanted, *default_mode, lookup, &mut out)?;
        }
        VolumeSource::Projected {
            sources,
            default_mode,
        } => {
            for source in sources {
                match source {
                    Projection::Config {
                        secret,
                        name,
                        items,
                        optional,
                    } => {
                        let wanted = Wanted {
                            secret: *secret,
                            name,
                            items,
                            optional: *optional,
                        };
                        config(&wanted, *default_mode, lookup, &mut out)?;
                    }
                    Projection::Downward(files) => downward(pod, files, *default_mode, facts, &mut out)?,
                }
            }
        }
        VolumeSource::EmptyDir { .. }
        | VolumeSource::HostPath { .. }
        | VolumeSource::Image { .. }
        | VolumeSource::Claim { .. } => return Ok(None),
    }
    check(&out)?;
    if pod.security.fs_group.is_some() {
        // As a kubelet does for volumes that are read-only: whoever is of the group may read.
        out.values_mut().for_each(|file| file.mode |= 0o440);
    }
    Ok(Some(out))
}

struct Wanted<'a> {
    secret: bool,
    name: &'a str,
    items: &'a [KeyToPath],
    optional: bool,
}

fn config(wanted: &Wanted<'_>, mode: u16, lookup: Lookup<'_>, out: &mut Payload) -> Result<(), String> {
    let Some(data) = lookup(wanted.secret, wanted.name) else {
        let kind = if wanted.secret { "secret" } else { "configmap" };
        return if wanted.optional {
            Ok(())
        } else {
            Err(format!("{kind} {:?} not found", wanted.name))
        };
    };
    let ConfigData { data, .. } = data;
    if wanted.items.is_empty() {
        out.extend(data.into_iter().map(|(key, bytes)| (key, File { mode, bytes })));
        return Ok(());
    }
    for item in wanted.items {
        match data.get(&item.key) {
            Some(bytes) => {
                let file = File {
                    mode: item.mode.unwrap_or(mode),
                    bytes: bytes.clone(),
                };
                out.insert(item.path.clone(), file);
            }
            None if wanted.optional => {}
            None if wanted.secret => return Err(format!("references non-existent secret key: {}", item.key)),
            None => {
                return Err(format!(
                    "configmap references non-existent config key: {}",
                    item.key
                ));
            }
        }
    }
    Ok(())
}

fn downward(
    pod: &PodSpec,
    files: &[DownwardFile],
    mode: u16,
    facts: &Facts<'_>,
    out: &mut Payload,
) -> Result<(), String> {
    for file in files {
        let text = match &file.value {
            DownwardValue::Field(path) => plan::field(pod, path, facts),
            DownwardValue::Resource(wanted) => plan::resource(pod, &wanted.container, wanted, facts)?,
        };
        let made = File {
            mode: file.mode.unwrap_or(mode),
            bytes: text.into_bytes(),
        };
        out.insert(file.path.clone(), made);
    }
    Ok(())
}

/// The rules of Kubernetes' atomic writer for paths; and no file may stand where another needs a directory.
fn check(payload: &Payload) -> Result<(), String> {
    for path in payload.keys() {
        let bad = |why: &str| Err(format!("invalid path {path:?}: {why}"));
        if path.is_empty() {
            return bad("must not be empty");
        }
        if path.starts_with('/') {
            return bad("must be relative");
        }
        if path.split('/').any(|part| part == "..") {
            return bad("must not contain '..'");
        }
        if path.split('/').any(|part| part.is_empty() || part == ".") {
            return bad("must be whole");
        }
        if path.starts_with("..") {
            return bad("must not start with '..'");
        }
        let mut parents = path
            .match_indices('/')
            .map(|(at, _)| &path[..at])
            .filter(|parent| payload.contains_key(*parent));
        if let Some(parent) = parents.next() {
            return bad(&format!("{parent:?} is a file of the same volume"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::mounts_tests::facts;
    use skiff_protocol::wire::spec::{Container, FieldPath, PodSecurity, ResourceField, ResourceName};
    use std::path::Path;

    /// ConfigMap `cm` (a, b), Secret `s` (a), ConfigMap `bad` (`../x`), ConfigMap `deep` (`d`).
    fn object(secret: bool, name: &str) -> Option<ConfigData> {
        let keys: &[(&str, &str)] = match (secret, name) {
            (false, "cm") => &[("a", "1"), ("b", "2")],
            (true, "s") => &[("a", "s1")],
            (false, "bad") => &[("../x", "1")],
            (false, "deep") => &[("d", "1")],
            _ => return None,
        };
        Some(ConfigData {
            namespace: "default".into(),
            name: name.into(),
            data: keys
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
                .collect(),
        })
    }

    fn pod(fs_group: Option<u32>) -> PodSpec {
        let mut container = Container {
            name: "c".into(),
            ..Default::default()
        };
        container.resources.memory_limit = Some(3 << 20);
        PodSpec {
            name: "p".into(),
            labels: [("app".to_owned(), "x \"y\"".to_owned()), ("b".into(), "2".into())].into(),
            containers: vec![container],
            security: PodSecurity {
                fs_group,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    /// `path mode text`, a line each, or the error.
    fn shown(source: &VolumeSource, fs_group: Option<u32>) -> String {
        let facts = facts(Path::new("/run"), Path::new("/state"), Path::new("/v"));
        match payload(&pod(fs_group), source, &facts, &object) {
            Ok(Some(files)) => files
                .iter()
                .map(|(path, it)| format!("{path} {:o} {}", it.mode, String::from_utf8_lossy(&it.bytes)))
                .collect::<Vec<_>>()
                .join("|"),
            Ok(None) => "none".to_owned(),
            Err(error) => error,
        }
    }

    fn items(text: &str) -> Vec<KeyToPath> {
        let item = |it: &str| {
            let mut parts = it.split(':');
            let mut next = || parts.next().map(str::to_owned);
            KeyToPath {
                key: next().unwrap(),
                path: next().unwrap(),
                mode: next().map(|it| u16::from_str_radix(&it, 8).unwrap()),
            }
        };
        text.split_whitespace().map(item).collect()
    }

    #[test]
    fn config_maps_and_secrets() {
        let not_there = "references non-existent";
        for (secret, name, wanted, optional, expected) in [
            (false, "cm", "", false, "a 644 1|b 644 2".to_owned()),
            (
                false,
                "cm",
                "a:x/y:400 b:z",
                false,
                "x/y 400 1|z 644 2".to_owned(),
            ),
            (true, "s", "a:k", false, "k 644 s1".to_owned()),
            (
                false,
                "cm",
                "no:x",
                false,
                format!("configmap {not_there} config key: no"),
            ),
            (true, "s", "no:x", false, format!("{not_there} secret key: no")),
            (false, "cm", "no:x b:b", true, "b 644 2".to_owned()),
            (false, "no", "", false, "configmap \"no\" not found".to_owned()),
            (true, "no", "", false, "secret \"no\" not found".to_owned()),
            (true, "no", "", true, String::new()),
            (
                false,
                "bad",
                "",
                false,
                "invalid path \"../x\": must not contain '..'".to_owned(),
            ),
            (
                false,
                "cm",
                "a:..x",
                false,
                "invalid path \"..x\": must not start with '..'".to_owned(),
            ),
            (
                false,
                "cm",
                "a:/x",
                false,
                "invalid path \"/x\": must be relative".to_owned(),
            ),
            (
                false,
                "cm",
                "a:d b:d/e",
                false,
                "invalid path \"d/e\": \"d\" is a file of the same volume".to_owned(),
            ),
        ] {
            let source = VolumeSource::Config {
                secret,
                name: name.to_owned(),
                items: items(wanted),
                default_mode: 0o644,
                optional,
            };
            assert_eq!(shown(&source, None), expected, "{name} {wanted}");
        }
    }

    #[test]
    fn projections_follow_each_other_and_a_group_may_read() {
        let of = |secret, name: &str, wanted| Projection::Config {
            secret,
            name: name.to_owned(),
            items: items(wanted),
            optional: false,
        };
        let resource = |request| {
            DownwardValue::Resource(ResourceField {
                container: "c".into(),
                request,
                resource: ResourceName::Memory,
                divisor_milli: (1 << 20) * 1000,
            })
        };
        let file = |path: &str, mode, value| DownwardFile {
            path: path.to_owned(),
            mode,
            value,
        };
        let sources = vec![
            of(false, "cm", ""),
            of(true, "s", "a:a:200"),
            Projection::Downward(vec![
                file(
                    "meta/labels",
                    Some(0o600),
                    DownwardValue::Field(FieldPath::Labels),
                ),
                file("meta/name", None, DownwardValue::Field(FieldPath::Name)),
                file("limit", None, resource(false)),
                file("request", None, resource(true)),
            ]),
        ];
        let source = VolumeSource::Projected {
            sources,
            default_mode: 0o400,
        };
        let labels = "app=\"x \\\"y\\\"\"\nb=\"2\"";
        assert_eq!(
            shown(&source, None),
            format!("a 200 s1|b 400 2|limit 400 3|meta/labels 600 {labels}|meta/name 400 p|request 400 0")
        );
        assert_eq!(
            shown(&source, Some(7)),
            format!("a 640 s1|b 440 2|limit 440 3|meta/labels 640 {labels}|meta/name 440 p|request 440 0")
        );
        let missing = VolumeSource::Projected {
            sources: vec![of(false, "cm", ""), of(true, "no", "")],
            default_mode: 0o400,
        };
        assert_eq!(shown(&missing, None), "secret \"no\" not found");
        let disk = VolumeSource::EmptyDir {
            memory: false,
            size_limit: None,
        };
        assert_eq!(shown(&disk, None), "none");
    }
}
