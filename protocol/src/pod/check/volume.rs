//! Volumes, and where containers mount them.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::vec::Vec;

use super::{SUBDOMAIN, is_subdomain, name, relative};
use crate::limits;
use crate::manifest::Cause;
use crate::wire::spec::{
    Container, DownwardFile, DownwardValue, KeyToPath, Mount, PodSpec, Projection, Propagation,
    RecursiveReadOnly, SubPath, VolumeSource,
};

/// Checks the volumes; gives their names.
pub(super) fn volumes<'a>(pod: &'a PodSpec, out: &mut Vec<Cause>) -> BTreeSet<&'a str> {
    let volumes = &pod.volumes;
    if volumes.len() > limits::VOLUMES {
        out.push(Cause::too_long("spec.volumes", limits::VOLUMES, "volumes"));
    }
    let mut names = BTreeSet::new();
    for (at, volume) in volumes.iter().enumerate() {
        let path = format!("spec.volumes[{at}]");
        name(&format!("{path}.name"), &volume.name, &mut names, out);
        source(&path, &volume.source, pod, out);
    }
    names
}

fn source(path: &str, source: &VolumeSource, pod: &PodSpec, out: &mut Vec<Cause>) {
    match source {
        VolumeSource::EmptyDir { .. } => {}
        VolumeSource::Config {
            secret, name, items, ..
        } => {
            let (path, field) = if *secret {
                (format!("{path}.secret"), "secretName")
            } else {
                (format!("{path}.configMap"), "name")
            };
            config(&path, field, name, items, out);
        }
        VolumeSource::HostPath { path: host, .. } => {
            let field = format!("{path}.hostPath.path");
            if host.is_empty() {
                out.push(Cause::required(field, ""));
            } else if host.split('/').any(|part| part == "..") {
                out.push(Cause::invalid(field, host, "must not contain '..'"));
            } else if !host.starts_with('/') {
                out.push(Cause::invalid(field, host, "must be an absolute path"));
            }
        }
        VolumeSource::Projected { sources, .. } => projected(path, sources, pod, out),
        VolumeSource::Image { reference, .. } => {
            if reference.is_empty() {
                out.push(Cause::required(format!("{path}.image.reference"), ""));
            }
        }
        VolumeSource::Claim { name, .. } => {
            let field = format!("{path}.persistentVolumeClaim.claimName");
            if name.is_empty() {
                out.push(Cause::required(field, ""));
            } else if !is_subdomain(name) {
                out.push(Cause::invalid(field, name, SUBDOMAIN));
            }
        }
    }
}

fn config(path: &str, field: &str, name: &str, items: &[KeyToPath], out: &mut Vec<Cause>) {
    if name.is_empty() {
        out.push(Cause::required(format!("{path}.{field}"), ""));
    }
    for (at, item) in items.iter().enumerate() {
        if item.key.is_empty() {
            out.push(Cause::required(format!("{path}.items[{at}].key"), ""));
        }
        relative(&format!("{path}.items[{at}].path"), &item.path, out);
    }
}

/// Of a projection the files must not meet, as far as their names stand in the manifest.
fn projected(path: &str, sources: &[Projection], pod: &PodSpec, out: &mut Vec<Cause>) {
    if sources.len() > limits::ITEMS {
        out.push(Cause::too_long(
            format!("{path}.projected.sources"),
            limits::ITEMS,
            "sources",
        ));
    }
    let mut paths = BTreeSet::new();
    for (at, source) in sources.iter().enumerate() {
        let path = format!("{path}.projected.sources[{at}]");
        let (field, files): (_, Vec<&str>) = match source {
            Projection::Config {
                secret, name, items, ..
            } => {
                let field = format!("{path}.{}", if *secret { "secret" } else { "configMap" });
                config(&field, "name", name, items, out);
                (field, items.iter().map(|it| it.path.as_str()).collect())
            }
            Projection::Downward(items) => {
                let field = format!("{path}.downwardAPI");
                downward(&field, items, pod, out);
                (field, items.iter().map(|it| it.path.as_str()).collect())
            }
        };
        for file in files {
            if !paths.insert(file) {
                let why = "conflicting duplicate paths";
                out.push(Cause::invalid(format!("{field}.items"), file, why));
            }
        }
    }
}

fn downward(path: &str, items: &[DownwardFile], pod: &PodSpec, out: &mut Vec<Cause>) {
    for (at, item) in items.iter().enumerate() {
        let path = format!("{path}.items[{at}]");
        relative(&format!("{path}.path"), &item.path, out);
        if let DownwardValue::Resource(resource) = &item.value
            && pod.container(&resource.container).is_none()
        {
            let field = format!("{path}.resourceFieldRef.containerName");
            let why = "no container of this Pod has this name";
            out.push(Cause::invalid(field, &resource.container, why));
        }
    }
}

/// Checks where a container mounts its volumes.
pub(super) fn mounts(path: &str, one: &Container, volumes: &BTreeSet<&str>, out: &mut Vec<Cause>) {
    if one.mounts.len() > limits::MOUNTS {
        out.push(Cause::too_long(
            format!("{path}.volumeMounts"),
            limits::MOUNTS,
            "mounts",
        ));
    }
    let mut paths = BTreeSet::new();
    for (at, mount) in one.mounts.iter().enumerate() {
        let path = format!("{path}.volumeMounts[{at}]");
        if mount.volume.is_empty() {
            out.push(Cause::required(format!("{path}.name"), ""));
        } else if !volumes.contains(mount.volume.as_str()) {
            let cause = Cause::new(
                format!("{path}.name"),
                crate::manifest::Reason::Invalid,
                format!(
                    "Not found: {:?}: no volume of this name stands under spec.volumes",
                    mount.volume
                ),
            );
            out.push(cause);
        }
        if mount.path.is_empty() {
            out.push(Cause::required(format!("{path}.mountPath"), ""));
        } else if mount.path.contains(':') {
            out.push(Cause::invalid(
                format!("{path}.mountPath"),
                &mount.path,
                "must not contain ':'",
            ));
        } else if mount.path.split('/').any(|part| part == "..") {
            out.push(Cause::invalid(
                format!("{path}.mountPath"),
                &mount.path,
                "must not contain '..'",
            ));
        }
        how(&path, one, mount, out);
        if !paths.insert(mount.path.trim_end_matches('/')) {
            out.push(Cause::invalid(
                format!("{path}.mountPath"),
                &mount.path,
                "must be unique",
            ));
        }
    }
}

/// The rules of `subPath`, `mountPropagation` and `recursiveReadOnly`.
fn how(path: &str, one: &Container, mount: &Mount, out: &mut Vec<Cause>) {
    match &mount.sub_path {
        SubPath::None => {}
        SubPath::Path(part) => sub_path(&format!("{path}.subPath"), part, out),
        SubPath::Expr(part) => sub_path(&format!("{path}.subPathExpr"), part, out),
    }
    if mount.propagation == Propagation::Bidirectional && !one.security.privileged {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        out.push(Cause::forbidden(format!("{path}.mountPropagation"), why));
    }
    if mount.recursive_read_only != RecursiveReadOnly::Disabled {
        let field = format!("{path}.recursiveReadOnly");
        if !mount.read_only {
            let why = "may only be specified when readOnly is true";
            out.push(Cause::forbidden(&field, why));
        }
        if mount.propagation != Propagation::None {
            let why = "may only be specified when mountPropagation is None or not specified";
            out.push(Cause::forbidden(field, why));
        }
    }
}

fn sub_path(field: &str, path: &str, out: &mut Vec<Cause>) {
    if path.starts_with('/') {
        out.push(Cause::invalid(field, path, "must be a relative path"));
    } else if path.split('/').any(|part| part == "..") {
        out.push(Cause::invalid(field, path, "must not contain '..'"));
    }
}
