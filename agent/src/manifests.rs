//! From the manifests of a directory to static Pods: `skiff-agent manifests` for the running agent, `skiff-agent check` for
//! people who make device images.
//!
//! A process of its own: YAML is taken apart by a library, and whatever a file does to that, the agent and its Pods go on.
//!
//! Always holds: what is wrong with a file is named by its line or its field; a file is one Pod or nothing; the same
//! manifest on the same node is the same Pod.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use skiff_core::StaticPod;
use skiff_protocol::manifest;
use skiff_protocol::pod::Pod;
use skiff_protocol::topic::NodeName;
use skiff_protocol::uid::Uid;
use skiff_protocol::{limits, sha256};
use skiff_yaml::Spot;

/// Bytes of one file that are read.
const FILE_BYTES: u64 = 4 * limits::STATIC_MANIFEST as u64;

/// Annotations with which a kubelet marks what comes from a file.
const SOURCE: &str = "kubernetes.io/config.source";
const HASH: &str = "kubernetes.io/config.hash";

/// What came of one file: the Pod and what of it is not honoured, or why there is none.
pub(crate) type Outcome = Result<(StaticPod, Vec<String>), String>;

/// The files of a directory that are manifests, by name, in order.
///
/// # Errors
/// When the directory is there and cannot be read.
pub(crate) fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut out = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or(".");
        // Editors and package managers leave their own files beside ours.
        let ours = matches!(
            path.extension().and_then(|it| it.to_str()),
            Some("yaml" | "yml" | "json")
        );
        if ours && !name.starts_with('.') && path.is_file() {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

/// `skiff-agent manifests DIR NODE`: the directory's Pods on standard output, as the agent reads them.
pub(crate) fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let told = || -> Result<()> {
        let (Some(dir), Some(node)) = (arguments.next(), arguments.next()) else {
            bail!("manifests: needs a directory and the node's name");
        };
        let node = NodeName::parse(&node.to_string_lossy())?;
        let dir = PathBuf::from(dir);
        let files = files(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let bytes = postcard::to_allocvec(&read(&files, &node))?;
        Ok(io::stdout().write_all(&bytes)?)
    };
    match { told }() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `skiff-agent check FILE…`: whether these manifests would run as static Pods of a node.
pub(crate) fn check(files: &[PathBuf], node: &NodeName) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (path, (_, outcome)) in files.iter().zip(read(files, node)) {
        match outcome {
            Ok((pod, warnings)) => {
                println!("{}: Pod {}/{}", path.display(), pod.name.0, pod.name.1);
                for warning in warnings {
                    println!("  warning: {warning}");
                }
            }
            Err(why) => {
                eprintln!("{}: {why}", path.display());
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// What each file says. Of two that name the same Pod the second is refused.
fn read(files: &[PathBuf], node: &NodeName) -> Vec<(String, Outcome)> {
    let mut names = BTreeSet::new();
    let mut out = Vec::new();
    for path in files {
        let mut outcome = one(path, node);
        if let Ok((pod, _)) = &outcome
            && !names.insert(pod.name.clone())
        {
            outcome = Err(format!(
                "metadata.name: another file of the directory already is {:?} in the namespace {:?}",
                pod.name.1, pod.name.0
            ));
        }
        if out.len() >= limits::PODS {
            outcome = Err(format!("a node takes at most {} manifests", limits::PODS));
        }
        let name = path.file_name().unwrap_or_default();
        out.push((name.to_string_lossy().into_owned(), outcome));
    }
    out
}

fn one(path: &Path, node: &NodeName) -> Outcome {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES {
        return Err(format!("is longer than {FILE_BYTES} bytes"));
    }
    of_text(&bytes, node)
}

/// The static Pod of a file's content. JSON is YAML as well.
fn of_text(bytes: &[u8], node: &NodeName) -> Outcome {
    let documents = skiff_yaml::read(bytes).map_err(|error| format!("line {}: {error}", error.mark.line))?;
    match documents.as_slice() {
        [] => Err("the file is empty".to_owned()),
        [one] => complete(&one.value, &one.spot, node),
        [_, second, ..] => Err(format!(
            "line {}: a second document; write each Pod in a file of its own",
            second.spot.value.line
        )),
    }
}

/// The static Pod of a manifest, with all that a node adds to it.
fn complete(value: &Value, spot: &Spot, node: &NodeName) -> Outcome {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    if (version, kind) != ("v1", "Pod") {
        return Err(format!(
            "apiVersion and kind: {version:?} and {kind:?}; a node itself runs \"v1\" \"Pod\" alone, controllers need a server"
        ));
    }
    let inspected = manifest::inspect("Pod", value);
    let found = [inspected.type_errors, inspected.unknown].concat();
    if !found.is_empty() {
        return Err(in_words(&found, spot));
    }
    let name = text("/metadata/name");
    if name.is_empty() {
        return Err("metadata.name: Required value".to_owned());
    }
    let bound = text("/spec/nodeName");
    if !bound.is_empty() && bound != node.as_str() {
        return Err(format!("spec.nodeName: {bound:?}; this node is {node}"));
    }
    let name = format!("{name}-{node}");
    let namespace = match text("/metadata/namespace") {
        "" => "default".to_owned(),
        given => given.to_owned(),
    };
    let map = |name: &str| match value["metadata"].get(name) {
        Some(Value::Object(map)) => map.clone(),
        _ => Map::new(),
    };
    let mut annotations = map("annotations");
    annotations.insert(SOURCE.to_owned(), "file".into());
    let mut spec = value["spec"].clone();
    spec["nodeName"] = node.as_str().into();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {
            "name": name, "namespace": namespace, "labels": map("labels"), "annotations": annotations,
        },
    });
    let uid = uid(&pod);
    pod["metadata"]["annotations"][HASH] = uid.to_string().into();
    pod["metadata"]["uid"] = uid.to_string().into();
    let parsed = Pod::parse(&pod).map_err(|causes| in_words(&causes, spot))?;
    if let Some((secret, name)) = parsed.pod.references().next() {
        let kind = if secret { "Secret" } else { "ConfigMap" };
        return Err(format!(
            "a static Pod cannot read the {kind} {name:?}: only a server has it"
        ));
    }
    if let Some(name) = parsed.pod.claims().next() {
        return Err(format!(
            "a static Pod cannot use the PersistentVolumeClaim {name:?}: only a server has it; use a hostPath"
        ));
    }
    let manifest = serde_json::to_vec(&pod).map_err(|error| error.to_string())?;
    if manifest.len() > limits::STATIC_MANIFEST {
        let (has, most) = (manifest.len(), limits::STATIC_MANIFEST);
        return Err(format!(
            "the manifest has {has} bytes as JSON; a node takes at most {most}"
        ));
    }
    let warnings = parsed.warnings.iter().map(ToString::to_string).collect();
    let name = (namespace, name);
    Ok((StaticPod { uid, name, manifest }, warnings))
}

/// All causes in one line, each with the line of the file that it is about.
fn in_words(causes: &[manifest::Cause], spot: &Spot) -> String {
    let line = |cause: &manifest::Cause| spot.find(&cause.field).spot.key_or_value().line;
    let all: Vec<String> = causes
        .iter()
        .map(|cause| format!("line {}: {cause}", line(cause)))
        .collect();
    all.join("; ")
}

/// The uid of a Pod that has none: of its content, the node's name among it.
fn uid(pod: &Value) -> Uid {
    let digest = sha256(pod.to_string().as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uid::from_random(bytes)
}

#[cfg(test)]
mod tests;
