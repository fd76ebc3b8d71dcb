//! Imports of what real tools write, and of what is broken; and skopeo as a client of the registry face.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use common::{config, docker_files, gzip, layers, layout_files, pack, sha256, tar};
use serde_json::{Value, json};
use skiff_image_store::registry::{Body, answer};
use skiff_image_store::{Error, ImageStore, Imported, Progress};
use skiff_protocol::image_ref::{Digest, ImageRef};

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    (dir, store)
}

fn import(store: &ImageStore, bytes: &[u8], name: Option<&str>) -> Result<Vec<Imported>, Error> {
    let name = name.map(|name| ImageRef::parse(name).unwrap());
    store.import_reader(bytes, "FILE", name.as_ref(), &mut |_| {})
}

fn names(imported: &[Imported]) -> Vec<String> {
    imported.iter().map(|image| image.reference.to_string()).collect()
}

/// Every blob has its digest, and what the manifest names is there.
fn check_whole(dir: &Path, store: &ImageStore, image: &Imported) {
    for blob in fs::read_dir(dir.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let name = format!("sha256:{}", path.file_name().unwrap().to_str().unwrap());
        assert_eq!(sha256(&fs::read(&path).unwrap()), name);
    }
    let manifest = store.manifest(&image.reference).unwrap().unwrap();
    assert_eq!(manifest.digest, image.digest);
    let document: Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let mut bytes = 0;
    for descriptor in document["layers"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&document["config"]])
    {
        let digest = Digest::parse(descriptor["digest"].as_str().unwrap()).unwrap();
        let (_, size) = store.blob(&digest).unwrap().unwrap();
        assert_eq!(descriptor["size"], size);
        bytes += size;
    }
    assert_eq!(bytes, image.bytes);
    assert_eq!(fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
}

#[test]
fn docker_archives_become_oci_images() {
    let plain = pack(&docker_files(
        &json!(["app:v1", "r.example/team/app:v1"]),
        &layers(),
    ));
    let mut digests = Vec::new();
    for bytes in [plain.clone(), gzip(&plain)] {
        let (dir, store) = store();
        let imported = import(&store, &bytes, None).unwrap();
        assert_eq!(
            names(&imported),
            ["docker.io/library/app:v1", "r.example/team/app:v1"]
        );
        assert_eq!(imported[0].layers, 2);
        check_whole(dir.path(), &store, &imported[1]);
        let manifest = store.manifest(&imported[0].reference).unwrap().unwrap();
        assert_eq!(manifest.media_type, "application/vnd.oci.image.manifest.v1+json");
        assert!(
            imported[0].bytes < 5000,
            "plain layers are stored compressed: {}",
            imported[0].bytes
        );
        assert_eq!(store.tags("docker.io/library/app").unwrap(), ["v1"]);
        assert_eq!(store.list().unwrap().len(), 2);
        digests.push(imported[0].digest);
    }
    assert_eq!(digests[0], digests[1], "the same image has the same digest");
    let (_dir, store) = store();
    assert_eq!(
        names(&import(&store, &plain, Some("other:v2")).unwrap()),
        ["docker.io/library/other:v2"]
    );
}

#[test]
fn repeated_and_compressed_layers_of_docker_archives() {
    let twice = vec![layers()[0].clone(), layers()[0].clone()];
    let mut files = docker_files(&json!(["app:v1"]), &twice);
    files[1].1 = gzip(&twice[0]);
    files.remove(2);
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in &files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder
            .append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder
        .append_link(&mut header, "1/layer.tar", "../0/layer.tar")
        .unwrap();
    let (dir, store) = store();
    let imported = import(&store, &builder.into_inner().unwrap(), None).unwrap();
    check_whole(dir.path(), &store, &imported[0]);
    let stored = dir
        .path()
        .join("blobs/sha256")
        .join(&sha256(&gzip(&twice[0]))[7..]);
    assert!(stored.exists(), "a compressed layer is stored as it is");
}

#[test]
fn oci_layouts_come_as_archives_and_as_directories() {
    let named = layout_files(Some("r.example/app:v1"), &layers());
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in &named {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let archive = dir.path().join("image.tar");
    fs::write(&archive, pack(&named)).unwrap();
    for path in [dir.path(), &archive] {
        let (root, store) = store();
        let mut told = Vec::new();
        let imported = store
            .import(path, None, &mut |progress| told.push(progress))
            .unwrap();
        assert_eq!(names(&imported), ["r.example/app:v1"]);
        check_whole(root.path(), &store, &imported[0]);
        assert_eq!(told.last(), Some(&Progress::Storing { done: 2, total: 2 }));
        if path == archive {
            let total = fs::metadata(&archive).unwrap().len();
            assert!(
                told.contains(&Progress::Reading {
                    done: total,
                    total: Some(total)
                }),
                "{told:?}"
            );
        }
    }
    let (_root, store) = store();
    let only_a_tag = pack(&layout_files(Some("v1"), &layers()));
    let error = import(&store, &only_a_tag, None).unwrap_err().to_string();
    assert!(
        error.contains("FILE: its image is called only \"v1\", which is a tag"),
        "{error}"
    );
    assert_eq!(
        names(&import(&store, &only_a_tag, Some("app:v1")).unwrap()),
        ["docker.io/library/app:v1"]
    );
}

#[test]
fn rubbish_is_called_by_its_name() {
    let docker = || docker_files(&json!(["app:v1"]), &layers());
    let change = |mut files: Vec<(String, Vec<u8>)>, name: &str, content: &[u8]| {
        files.iter_mut().find(|file| file.0.contains(name)).unwrap().1 = content.to_vec();
        pack(&files)
    };
    let without = |mut files: Vec<(String, Vec<u8>)>, name: &str| {
        files.retain(|file| !file.0.contains(name));
        pack(&files)
    };
    let layout = || layout_files(Some("app:v1"), &layers());
    let layer = sha256(&gzip(&layers()[0]));
    let neither = "neither an OCI layout nor a docker-archive: no manifest.json, no oci-layout in FILE";
    let two = json!([{ "Config": "config.json", "RepoTags": ["a"], "Layers": ["0/layer.tar"] }]).to_string();
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), neither),
        ("text", vec![b'#'; 5000], neither),
        ("another tar", tar(&[("a", b"b")]), neither),
        ("short", vec![b'x'; 100], neither),
        (
            "cut",
            pack(&docker())[..2000].to_vec(),
            "FILE: not a whole tar archive",
        ),
        (
            "cut gzip",
            gzip(&pack(&docker()))[..300].to_vec(),
            "FILE: not a whole tar archive",
        ),
        (
            "no json",
            change(docker(), "manifest.json", b"{"),
            "FILE: manifest.json: ",
        ),
        (
            "no images",
            change(docker(), "manifest.json", b"[]"),
            "lists 0 images",
        ),
        (
            "no config",
            without(docker(), "config.json"),
            "FILE: config.json: it is missing",
        ),
        (
            "no layer",
            without(docker(), "1/layer.tar"),
            "FILE: 1/layer.tar: the layer is missing",
        ),
        (
            "another layer",
            change(docker(), "0/layer.tar", &tar(&[("a", b"b")])),
            "layer 0/layer.tar: digest mismatch",
        ),
        (
            "another gzip layer",
            change(docker(), "0/layer.tar", &gzip(b"x")),
            "layer 0/layer.tar: digest mismatch",
        ),
        (
            "a zstd layer",
            change(docker(), "0/layer.tar", b"\x28\xb5\x2f\xfd...."),
            "save the image as an OCI layout",
        ),
        (
            "fewer layers",
            change(docker(), "manifest.json", two.as_bytes()),
            "2 diff IDs for 1 layers",
        ),
        (
            "no tags",
            pack(&docker_files(&Value::Null, &layers())),
            "no RepoTags; say which name",
        ),
        (
            "a bad tag",
            pack(&docker_files(&json!(["UP"]), &layers())),
            "FILE: couldn't parse image name \"UP\"",
        ),
        (
            "layout without blob",
            without(layout(), &layer[7..]),
            "the blob is missing",
        ),
        (
            "layout with another blob",
            change(layout(), &layer[7..], b"x"),
            "digest mismatch: expected",
        ),
        (
            "layout without a name",
            pack(&layout_files(None, &layers())),
            "has no name; say which name",
        ),
        (
            "layout without images",
            change(layout(), "index.json", br#"{"manifests":[]}"#),
            "lists 0 images",
        ),
    ];
    for (name, bytes, words) in table {
        let (dir, store) = store();
        let error = import(&store, &bytes, None).expect_err(name).to_string();
        assert!(error.contains(words), "{name}: {error}");
        assert_eq!(store.list().unwrap(), Vec::new(), "{name}");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0, "{name}");
    }
    let (_dir, store) = store();
    let error = store
        .import(Path::new("/nonexistent/x.tar"), None, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nonexistent/x.tar: cannot open"), "{error}");
}

fn skopeo(arguments: &[&str]) {
    let output = Command::new("skopeo")
        .arg("--insecure-policy")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("skopeo: {error}; install Debian's package skopeo"));
    assert!(
        output.status.success(),
        "skopeo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Serves the registry face over plain HTTP, one request a connection.
fn serve(store: ImageStore) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (store, mut stream) = (store.clone(), stream.unwrap());
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                let headers: Vec<String> = lines
                    .map(|line| line.unwrap())
                    .take_while(|line| !line.is_empty())
                    .collect();
                let range = headers.iter().find_map(|line| line.strip_prefix("Range: "));
                let mut parts = first.split(' ');
                let (method, target) = (parts.next().unwrap(), parts.next().unwrap());
                let (path, query) = target
                    .split_once('?')
                    .map_or((target, None), |(path, query)| (path, Some(query)));
                let answer = answer(&store, method, path, query, range);
                write!(stream, "HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status).unwrap();
                for (name, value) in &answer.headers {
                    write!(stream, "{name}: {value}\r\n").unwrap();
                }
                write!(stream, "\r\n").unwrap();
                match answer.body {
                    Body::Empty => {}
                    Body::Bytes(bytes) => stream.write_all(&bytes).unwrap(),
                    Body::File {
                        mut file,
                        offset,
                        length,
                    } => {
                        file.seek(SeekFrom::Start(offset)).unwrap();
                        std::io::copy(&mut file.take(length), &mut stream).unwrap();
                    }
                }
            });
        }
    });
    address
}

/// skopeo makes both formats from one image, and pulls from the registry face what was imported.
#[test]
fn skopeo_agrees() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    let layout = work.path().join("layout");
    for (name, content) in layout_files(Some("v1"), &layers()) {
        let file = layout.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    let source = format!("oci:{}:v1", layout.display());
    skopeo(&[
        "copy",
        &source,
        &format!("docker-archive:{}:app:docker", path("docker.tar")),
    ]);
    skopeo(&[
        "copy",
        &source,
        &format!("oci-archive:{}:r.example/team/app:oci", path("oci.tar")),
    ]);
    let (dir, store) = store();
    let quiet = &mut |_| {};
    let docker = store
        .import(&PathBuf::from(path("docker.tar")), None, quiet)
        .unwrap();
    let oci = store
        .import(&PathBuf::from(path("oci.tar")), None, quiet)
        .unwrap();
    assert_eq!(names(&docker), ["docker.io/library/app:docker"]);
    assert_eq!(names(&oci), ["r.example/team/app:oci"]);
    check_whole(dir.path(), &store, &docker[0]);
    check_whole(dir.path(), &store, &oci[0]);
    let address = serve(store);
    for name in ["library/app:docker", "team/app:oci"] {
        let target = work.path().join(name.replace(['/', ':'], "-"));
        let (from, to) = (
            format!("docker://{address}/{name}"),
            format!("dir:{}", target.display()),
        );
        skopeo(&["copy", "--src-tls-verify=false", &from, &to]);
        let manifest: Value =
            serde_json::from_slice(&fs::read(target.join("manifest.json")).unwrap()).unwrap();
        let digest = manifest["config"]["digest"].as_str().unwrap();
        let pulled: Value = serde_json::from_slice(&fs::read(target.join(&digest[7..])).unwrap()).unwrap();
        let expected: Value = serde_json::from_str(&config(&layers())).unwrap();
        assert_eq!(
            pulled["rootfs"]["diff_ids"], expected["rootfs"]["diff_ids"],
            "{name}"
        );
    }
}

fn header<'a>(headers: &'a [(&'static str, String)], name: &str) -> Option<&'a str> {
    headers
        .iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.as_str())
}

#[test]
fn the_registry_face_answers_as_specified() {
    let (_dir, store) = store();
    let files = docker_files(&json!(["app:v1", "r.example/team/tool:v2"]), &layers());
    let image = import(&store, &pack(&files), None).unwrap().remove(0);
    let digest = image.digest.to_string();
    let manifest = store.manifest(&image.reference).unwrap().unwrap().bytes;
    let document: Value = serde_json::from_slice(&manifest).unwrap();
    let (blob, size) = (
        document["layers"][1]["digest"].as_str().unwrap(),
        document["layers"][1]["size"].as_u64().unwrap(),
    );
    let blob_path = format!("/v2/library/app/blobs/{blob}");
    let encoded = format!("/v2/library/app/blobs/{}", blob.replace(':', "%3A"));
    let by_digest = format!("/v2/library/app/manifests/{digest}");
    let unknown = format!("sha256:{}", "0".repeat(64));
    let (whole, part) = (format!("bytes 10-{}/{size}", size - 1), format!("bytes */{size}"));
    type Row<'a> = (
        &'a str,
        &'a str,
        Option<&'a str>,
        Option<&'a str>,
        u16,
        Option<(&'a str, &'a str)>,
        &'a str,
    );
    let (no_manifest, no_blob) = (
        format!("/v2/library/app/manifests/{unknown}"),
        format!("/v2/library/app/blobs/{unknown}"),
    );
    let table: Vec<Row<'_>> = vec![
        (
            "GET",
            "/v2/",
            None,
            None,
            200,
            Some(("docker-distribution-api-version", "registry/2.0")),
            "{}",
        ),
        (
            "GET",
            "/v2/library/app/manifests/v1",
            None,
            None,
            200,
            Some(("docker-content-digest", &digest)),
            "schemaVersion",
        ),
        (
            "GET",
            "/v2/library/app/manifests/v1",
            Some("ns=docker.io"),
            None,
            200,
            None,
            "schemaVersion",
        ),
        (
            "GET",
            "/v2/library/app/manifests/v1",
            Some("a=b&ns=r.example"),
            None,
            404,
            None,
            "MANIFEST_UNKNOWN",
        ),
        (
            "GET",
            "/v2/team/tool/manifests/v2",
            Some("ns=r.example"),
            None,
            200,
            None,
            "schemaVersion",
        ),
        (
            "GET",
            "/v2/team/tool/manifests/v2",
            None,
            None,
            200,
            None,
            "schemaVersion",
        ),
        (
            "GET",
            &by_digest,
            None,
            None,
            200,
            Some(("content-type", "application/vnd.oci.image.manifest.v1+json")),
            "layers",
        ),
        (
            "HEAD",
            &by_digest,
            None,
            None,
            200,
            Some(("docker-content-digest", &digest)),
            "",
        ),
        (
            "GET",
            "/v2/library/app/manifests/v9",
            None,
            None,
            404,
            None,
            r#""message":"manifest unknown""#,
        ),
        ("GET", &no_manifest, None, None, 404, None, "MANIFEST_UNKNOWN"),
        ("GET", &no_blob, None, None, 404, None, "BLOB_UNKNOWN"),
        (
            "GET",
            "/v2/library/app/blobs/sha256:zz",
            None,
            None,
            400,
            None,
            "DIGEST_INVALID",
        ),
        (
            "GET",
            "/v2/library/app/blobs/sha256:..%2f..%2frefs",
            None,
            None,
            404,
            None,
            "no such endpoint",
        ),
        (
            "GET",
            "/v2/UPPER/manifests/v1",
            None,
            None,
            400,
            None,
            "NAME_INVALID",
        ),
        (
            "GET",
            "/v2/a/../b/manifests/v1",
            None,
            None,
            400,
            None,
            "NAME_INVALID",
        ),
        (
            "GET",
            "/v2/library/app/manifests/v1",
            Some("ns=%zz"),
            None,
            400,
            None,
            "NAME_INVALID",
        ),
        (
            "GET",
            "/v2/library/app/tags/list",
            None,
            None,
            200,
            None,
            r#""tags":["v1"]"#,
        ),
        (
            "GET",
            "/v2/library/none/tags/list",
            None,
            None,
            404,
            None,
            "NAME_UNKNOWN",
        ),
        ("GET", "/v2/x", None, None, 404, None, "no such endpoint"),
        ("GET", "/etc/passwd", None, None, 404, None, "no such endpoint"),
        (
            "PUT",
            "/v2/library/app/manifests/v1",
            None,
            None,
            405,
            Some(("allow", "GET, HEAD")),
            "UNSUPPORTED",
        ),
        (
            "GET",
            &blob_path,
            None,
            None,
            200,
            Some(("accept-ranges", "bytes")),
            "\u{1f}",
        ),
        ("GET", &encoded, None, None, 200, None, "\u{1f}"),
        (
            "HEAD",
            &blob_path,
            None,
            None,
            200,
            Some(("docker-content-digest", blob)),
            "",
        ),
        (
            "GET",
            &blob_path,
            None,
            Some("bytes=10-"),
            206,
            Some(("content-range", &whole)),
            "",
        ),
        (
            "GET",
            &blob_path,
            None,
            Some("bytes=999999999-"),
            416,
            Some(("content-range", &part)),
            "",
        ),
    ];
    for (method, path, query, range, status, expected, words) in table {
        let answer = answer(&store, method, path, query, range);
        let row = format!("{method} {path} {query:?} {range:?}");
        assert_eq!(answer.status, status, "{row}: {answer:?}");
        if let Some((name, value)) = expected {
            assert_eq!(header(&answer.headers, name), Some(value), "{row}");
        }
        let length: u64 = header(&answer.headers, "content-length")
            .expect(&row)
            .parse()
            .unwrap();
        let body = match answer.body {
            Body::Empty => Vec::new(),
            Body::Bytes(bytes) => bytes,
            Body::File {
                mut file,
                offset,
                length,
            } => {
                let mut bytes = Vec::new();
                file.seek(SeekFrom::Start(offset)).unwrap();
                file.take(length).read_to_end(&mut bytes).unwrap();
                bytes
            }
        };
        assert!(method == "HEAD" || body.len() as u64 == length, "{row}");
        assert!(method != "HEAD" || (body.is_empty() && length > 0), "{row}");
        assert!(
            String::from_utf8_lossy(&body).contains(words),
            "{row}: {}",
            String::from_utf8_lossy(&body)
        );
    }
}
