//! Volumes.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::Convert;
use super::resources::MAX_BYTES;
use crate::manifest::{self, Cause};
use crate::wire::spec::{
    DownwardFile, DownwardValue, FieldPath, HostPathType, KeyToPath, Projection, Volume, VolumeSource,
};

/// What a volume without a source is, as in Kubernetes.
const EMPTY_DIR: VolumeSource = VolumeSource::EmptyDir {
    memory: false,
    size_limit: None,
};

/// Kubernetes' `defaultMode`.
const DEFAULT_MODE: u16 = 0o644;

const HOST_PATH_TYPES: [(&str, HostPathType); 8] = [
    ("", HostPathType::Unchecked),
    ("DirectoryOrCreate", HostPathType::DirectoryOrCreate),
    ("Directory", HostPathType::Directory),
    ("FileOrCreate", HostPathType::FileOrCreate),
    ("File", HostPathType::File),
    ("Socket", HostPathType::Socket),
    ("CharDevice", HostPathType::CharDevice),
    ("BlockDevice", HostPathType::BlockDevice),
];

impl Convert {
    pub(super) fn volume(&mut self, path: &str, from: &manifest::Volume) -> Volume {
        let mut found = Vec::new();
        if let Some(dir) = &from.empty_dir {
            found.push(self.empty_dir(path, dir));
        }
        if let Some(map) = &from.config_map {
            let path = format!("{path}.configMap");
            found.push(self.config(
                &path,
                false,
                &map.name,
                &map.items,
                map.default_mode,
                map.optional,
            ));
        }
        if let Some(secret) = &from.secret {
            let path = format!("{path}.secret");
            let (items, mode) = (&secret.items, secret.default_mode);
            found.push(self.config(&path, true, &secret.secret_name, items, mode, secret.optional));
        }
        if let Some(host) = &from.host_path {
            found.push(VolumeSource::HostPath {
                path: host.path.clone(),
                kind: self.one_of(
                    &format!("{path}.hostPath.type"),
                    host.kind.as_deref(),
                    &HOST_PATH_TYPES,
                ),
            });
        }
        if let Some(projected) = &from.projected {
            found.push(self.projected(&format!("{path}.projected"), projected));
        }
        if let Some(downward) = &from.downward_api {
            let path = format!("{path}.downwardAPI");
            let mode = self.mode(&format!("{path}.defaultMode"), downward.default_mode);
            found.push(VolumeSource::Projected {
                sources: vec![Projection::Downward(self.downward(&path, &downward.items))],
                default_mode: mode.unwrap_or(DEFAULT_MODE),
            });
        }
        if let Some(image) = &from.image {
            let policy = image.pull_policy.as_deref();
            let field = format!("{path}.image.pullPolicy");
            found.push(VolumeSource::Image {
                reference: image.reference.clone(),
                pull_policy: self.pull_policy(&field, policy, &image.reference),
            });
        }
        if let Some(claim) = &from.persistent_volume_claim {
            found.push(VolumeSource::Claim {
                name: claim.claim_name.clone(),
                read_only: claim.read_only,
            });
        }
        if found.len() > 1 {
            self.causes
                .push(Cause::forbidden(path, "may not specify more than 1 volume type"));
        }
        Volume {
            name: from.name.clone(),
            // A source that is known and refused has its own cause; this stands for none at all.
            source: found.into_iter().next().unwrap_or(EMPTY_DIR),
        }
    }

    fn projected(&mut self, path: &str, from: &manifest::ProjectedVolume) -> VolumeSource {
        let mut sources = Vec::new();
        for (at, source) in from.sources.iter().enumerate() {
            let path = format!("{path}.sources[{at}]");
            let before = sources.len();
            for (secret, field, config) in [
                (false, "configMap", &source.config_map),
                (true, "secret", &source.secret),
            ] {
                if let Some(config) = config {
                    sources.push(Projection::Config {
                        secret,
                        name: config.name.clone(),
                        items: self.items(&format!("{path}.{field}"), &config.items),
                        optional: config.optional,
                    });
                }
            }
            if let Some(downward) = &source.downward_api {
                let items = self.downward(&format!("{path}.downwardAPI"), &downward.items);
                sources.push(Projection::Downward(items));
            }
            if sources.len() > before + 1 {
                let why = "may not specify more than 1 volume type per source";
                self.causes.push(Cause::forbidden(path, why));
            }
        }
        let mode = self.mode(&format!("{path}.defaultMode"), from.default_mode);
        VolumeSource::Projected {
            sources,
            default_mode: mode.unwrap_or(DEFAULT_MODE),
        }
    }

    fn downward(&mut self, path: &str, items: &[manifest::DownwardItem]) -> Vec<DownwardFile> {
        let mut out = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let path = format!("{path}.items[{at}]");
            let mode = self.mode(&format!("{path}.mode"), item.mode);
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), None) => self
                    .file_field(&path, &field.field_path)
                    .map(DownwardValue::Field),
                (None, Some(resource)) => {
                    if resource.container_name.is_empty() {
                        let field = format!("{path}.resourceFieldRef.containerName");
                        self.causes.push(Cause::required(field, ""));
                    }
                    self.resource_field(&path, resource).map(DownwardValue::Resource)
                }
                (Some(_), Some(_)) => {
                    let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                    self.causes.push(Cause::invalid(path, "resource", why));
                    None
                }
                (None, None) => {
                    let what = "one of fieldRef and resourceFieldRef is required";
                    self.causes.push(Cause::required(path, what));
                    None
                }
            };
            out.extend(value.map(|value| DownwardFile {
                path: item.path.clone(),
                mode,
                value,
            }));
        }
        out
    }

    /// Files may hold all labels or annotations, and nothing that is known only once the Pod runs.
    fn file_field(&mut self, path: &str, text: &str) -> Option<FieldPath> {
        match text {
            "metadata.labels" => return Some(FieldPath::Labels),
            "metadata.annotations" => return Some(FieldPath::Annotations),
            _ => {}
        }
        if text.starts_with("metadata.") {
            return self.field_path(path, text);
        }
        let supported = [
            "metadata.annotations",
            "metadata.labels",
            "metadata.name",
            "metadata.namespace",
            "metadata.uid",
            "metadata.labels['KEY']",
            "metadata.annotations['KEY']",
        ];
        let field = format!("{path}.fieldRef.fieldPath");
        self.causes.push(Cause::not_supported(field, text, &supported));
        None
    }

    fn empty_dir(&mut self, path: &str, dir: &manifest::EmptyDir) -> VolumeSource {
        if !matches!(dir.medium.as_str(), "" | "Memory") {
            self.causes.push(Cause::not_supported(
                format!("{path}.emptyDir.medium"),
                &dir.medium,
                &["", "Memory"],
            ));
        }
        let field = format!("{path}.emptyDir.sizeLimit");
        let written = dir.size_limit.as_ref();
        let size_limit = written.and_then(|written| self.amount(field, &written.0, MAX_BYTES));
        VolumeSource::EmptyDir {
            memory: dir.medium == "Memory",
            size_limit: size_limit.map(|it| it.value().unsigned_abs()),
        }
    }

    fn config(
        &mut self,
        path: &str,
        secret: bool,
        name: &str,
        items: &[manifest::KeyToPath],
        default_mode: Option<i64>,
        optional: bool,
    ) -> VolumeSource {
        let default_mode = self
            .mode(&format!("{path}.defaultMode"), default_mode)
            .unwrap_or(DEFAULT_MODE);
        VolumeSource::Config {
            secret,
            name: name.to_owned(),
            items: self.items(path, items),
            default_mode,
            optional,
        }
    }

    fn items(&mut self, path: &str, items: &[manifest::KeyToPath]) -> Vec<KeyToPath> {
        let items = items.iter().enumerate().map(|(at, item)| KeyToPath {
            key: item.key.clone(),
            path: item.path.clone(),
            mode: self.mode(&format!("{path}.items[{at}].mode"), item.mode),
        });
        items.collect()
    }

    fn mode(&mut self, field: &str, value: Option<i64>) -> Option<u16> {
        let value = value?;
        let mode = u16::try_from(value).ok().filter(|mode| *mode <= 0o777);
        if mode.is_none() {
            let why = "must be a number between 0 and 0777 (octal), both inclusive";
            self.causes.push(Cause::invalid(field, value, why));
        }
        mode
    }
}
