//! Images that can tell whether they are whole: busybox, random files, and the digests of those files beside them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skiff_tests::rng::Rng;

/// Prints `whole` when every file of the image is as it was made, and `torn` when one is not.
pub(crate) const CHECK: &str = "cd /payload && sha256sum -c sums >/dev/null 2>&1 && echo whole || echo torn";

/// Writes the archive of the image `name`, as `docker save` does: on top of the archive `base`, `files` files of `bytes`
/// random bytes each.
#[track_caller]
pub(crate) fn write(
    base: &Path,
    dir: &Path,
    name: &str,
    (files, bytes): (usize, usize),
    rng: &mut Rng,
) -> PathBuf {
    let base = read_archive(base);
    let manifest: Value = serde_json::from_slice(&base["manifest.json"]).unwrap();
    let path_of = |value: &Value| value.as_str().unwrap().to_owned();
    let first = path_of(&manifest[0]["Layers"][0]);
    let mut config: Value = serde_json::from_slice(&base[&path_of(&manifest[0]["Config"])]).unwrap();

    let mut layer = tar::Builder::new(Vec::new());
    let mut sums = String::new();
    for number in 0..files {
        let content: Vec<u8> = (0..bytes.div_ceil(8))
            .flat_map(|_| rng.bits().to_le_bytes())
            .collect();
        sums.push_str(&format!("{}  file-{number}\n", digest(&content[..bytes])));
        add(&mut layer, &format!("payload/file-{number}"), &content[..bytes]);
    }
    add(&mut layer, "payload/sums", sums.as_bytes());
    let layer = layer.into_inner().unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
    diff_ids.push(json!(format!("sha256:{}", digest(&layer))));

    let mut archive = tar::Builder::new(Vec::new());
    let saved = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": [first, "payload.tar"] }]);
    add(&mut archive, &first, &base[&first]);
    add(&mut archive, "payload.tar", &layer);
    add(&mut archive, "config.json", config.to_string().as_bytes());
    add(&mut archive, "manifest.json", saved.to_string().as_bytes());
    let path = dir.join("payload.tar");
    std::fs::write(&path, archive.into_inner().unwrap()).unwrap();
    path
}

/// SHA-256 as `sha256sum` writes it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn add(builder: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    builder.append_data(&mut header, path, content).unwrap();
}

fn read_archive(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).unwrap());
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(name, content);
    }
    files
}
