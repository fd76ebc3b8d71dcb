//! Images as files, in both formats, from plain values.

use std::io::Write;

use flate2::write::GzEncoder;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use skiff_protocol::image_ref::Digest;

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Digest::from_sha256(digest(&SHA256, bytes).as_ref().try_into().unwrap()).to_string()
}

pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn layers() -> Vec<Vec<u8>> {
    vec![
        tar(&[("etc/hostname", b"one")]),
        tar(&[("bin/app", &[b'x'; 70_000])]),
    ]
}

pub(crate) fn config(layers: &[Vec<u8>]) -> String {
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    json!({
        "os": "linux", "architecture": "amd64", "config": { "Cmd": ["/bin/app"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
}

/// The files of a docker-archive, which tests then change.
pub(crate) fn docker_files(tags: &Value, layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{ "Config": "config.json", "RepoTags": tags, "Layers": names }]).to_string();
    let mut files = vec![("config.json".to_owned(), config(layers).into_bytes())];
    files.extend(names.into_iter().zip(layers.iter().cloned()));
    files.push(("manifest.json".to_owned(), manifest.into_bytes()));
    files
}

pub(crate) fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, content)| (name.as_str(), content.as_slice()))
        .collect();
    tar(&files)
}

/// An OCI layout as files; `name` is its `ref.name`.
pub(crate) fn layout_files(name: Option<&str>, layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![(
        "oci-layout".to_owned(),
        br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
    )];
    let mut blob = |bytes: Vec<u8>, kind: &str| {
        let digest = sha256(&bytes);
        let descriptor = json!({ "mediaType": kind, "digest": digest, "size": bytes.len() });
        files.push((format!("blobs/sha256/{}", &digest[7..]), bytes));
        descriptor
    };
    let packed: Vec<Value> = layers
        .iter()
        .map(|layer| blob(gzip(layer), "application/vnd.oci.image.layer.v1.tar+gzip"))
        .collect();
    let config = blob(
        config(layers).into_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": packed }).to_string();
    let mut manifest = blob(
        manifest.into_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    if let Some(name) = name {
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    }
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    files.push(("index.json".to_owned(), index.into_bytes()));
    files
}
