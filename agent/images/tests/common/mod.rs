//! What the pull tests share: images from plain values, real registries, a registry that misbehaves on demand, and
//! the pull role as a real child process.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod fixture;
pub mod registry;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flate2::write::GzEncoder;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use skiff_images::Store;
use skiff_images::limits::Limits;
use skiff_images::pull::{Platform, PullReport, PullRequest, Source, SourceKind};
use skiff_protocol::image_ref::ImageRef;

use fixture::Fixture;

/// Set for the child that plays the pull role.
pub const ROLE: &str = "SKIFF_TEST_PULL_ROLE";

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// A tar archive of regular files.
pub fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_cksum();
        builder
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[derive(Clone, Copy)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
}

pub fn compress(bytes: &[u8], compression: Compression) -> (Vec<u8>, &'static str) {
    match compression {
        Compression::Plain => (bytes.to_vec(), "application/vnd.oci.image.layer.v1.tar"),
        Compression::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            (
                encoder.finish().unwrap(),
                "application/vnd.oci.image.layer.v1.tar+gzip",
            )
        }
        Compression::Zstd => (
            ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest),
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    }
}

/// An OCI layout on disk, which skopeo pushes and the fixture serves.
pub struct Layout {
    pub dir: tempfile::TempDir,
    named: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self {
            dir,
            named: Vec::new(),
        }
    }

    pub fn blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        digest
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir
            .path()
            .join("blobs/sha256")
            .join(digest.strip_prefix("sha256:").unwrap())
    }

    /// Bytes of a blob.
    pub fn size(&self, digest: &str) -> u64 {
        fs::metadata(self.blob_path(digest)).unwrap().len()
    }

    /// An image of these layers; gives the descriptor of its manifest.
    pub fn image(
        &self,
        platform: (&str, Option<&str>),
        config: &Value,
        layers: &[(Vec<u8>, Compression)],
    ) -> Value {
        let (architecture, variant) = platform;
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for (content, compression) in layers {
            let (bytes, media_type) = compress(content, *compression);
            let digest = self.blob(&bytes);
            descriptors.push(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }));
            diff_ids.push(sha256(content));
        }
        let config = json!({
            "architecture": architecture, "variant": variant, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        self.manifest(platform, &config, &descriptors)
    }

    pub fn manifest(&self, platform: (&str, Option<&str>), config: &Value, layers: &[Value]) -> Value {
        let config = config.to_string();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(config.as_bytes()), "size": config.len(),
            },
            "layers": layers,
        });
        let bytes = manifest.to_string();
        let mut descriptor = json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.blob(bytes.as_bytes()), "size": bytes.len(),
            "platform": { "os": "linux", "architecture": platform.0 },
        });
        if let Some(variant) = platform.1 {
            descriptor["platform"]["variant"] = json!(variant);
        }
        descriptor
    }

    pub fn index(&self, manifests: &[Value]) -> Value {
        let bytes = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
        })
        .to_string();
        json!({
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": self.blob(bytes.as_bytes()), "size": bytes.len(),
        })
    }

    /// Gives a manifest or an index a tag.
    pub fn tag(&mut self, tag: &str, descriptor: &Value) {
        let mut named = descriptor.clone();
        named["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.named.push(named);
        let index = json!({ "schemaVersion": 2, "manifests": self.named }).to_string();
        fs::write(self.dir.path().join("index.json"), index).unwrap();
    }
}

/// The fixture as a registry of its own.
pub fn source(fixture: &Fixture) -> Source {
    Source {
        plain_http: true,
        ..Source::new(SourceKind::Registry, fixture.url())
    }
}

/// Text that does not compress, so that a layer has many packets; from a fixed seed.
pub fn noise(bytes: usize) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut text = String::with_capacity(bytes);
    while text.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push(char::from(b' ' + u8::try_from(state % 95).unwrap()));
    }
    text
}

/// A layout with one image `v1` of one layer; gives the layer's digest too.
pub fn one_layer(files: &[(&str, &str)], compression: Compression) -> (Layout, String) {
    let mut layout = Layout::new();
    let content = tar(files);
    let image = layout.image(("amd64", None), &json!({}), &[(content.clone(), compression)]);
    layout.tag("v1", &image);
    let digest = sha256(&compress(&content, compression).0);
    (layout, digest)
}

pub fn content(store: &Path, reference: &str, layer: usize, path: &str) -> String {
    let image = Store::open(store)
        .unwrap()
        .resolve(&ImageRef::parse(reference).unwrap())
        .unwrap()
        .unwrap();
    fs::read_to_string(image.layers[layer].join(path)).unwrap()
}

/// The image that most tests pull: three layers, each compressed otherwise.
pub fn usual_config() -> Value {
    json!({
        "Entrypoint": ["/bin/app"], "Cmd": null, "Env": ["PATH=/bin", "A=b"], "User": "app", "WorkingDir": "/srv",
        "StopSignal": "SIGINT", "ExposedPorts": { "80/tcp": {} }, "Volumes": { "/data": {} },
    })
}

pub fn usual_layers() -> Vec<(Vec<u8>, Compression)> {
    let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/var/lib/app:/bin/sh\n";
    let group = "root:x:0:\napp:x:1000:\nvideo:x:44:app\naudio:x:29:app,root\n";
    vec![
        (
            tar(&[("etc/passwd", "root:x:0:0::/:\n"), ("bin/app", "old")]),
            Compression::Gzip,
        ),
        (
            tar(&[("etc/passwd", passwd), ("etc/group", group)]),
            Compression::Zstd,
        ),
        (
            tar(&[("bin/app", "new"), ("etc/.wh.gone", "")]),
            Compression::Plain,
        ),
    ]
}

pub fn request(reference: &str, sources: Vec<Source>, store: &Path) -> PullRequest {
    PullRequest {
        reference: reference.to_owned(),
        sources,
        platform: Platform {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: None,
        },
        store: store.to_owned(),
        preloaded: None,
        limits: Limits {
            stall_timeout_seconds: 5,
            ..Limits::default()
        },
        not_before_unix: 0,
    }
}

/// Starts the pull role: this very test program, which runs the test `role` alone.
pub fn spawn(request: &PullRequest) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "role", "--nocapture", "--test-threads=1"])
        .env(ROLE, "1")
        .env("NO_PROXY", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let input = serde_json::to_vec(request).unwrap();
    child.stdin.take().unwrap().write_all(&input).unwrap();
    child
}

/// What a pull said, and how much memory it needed at most, in KiB.
pub struct Outcome {
    pub reports: Vec<PullReport>,
    pub peak_kib: u64,
}

impl Outcome {
    pub fn last(&self) -> &PullReport {
        self.reports.last().expect("a pull always reports its end")
    }

    pub fn ok(&self) -> String {
        match self.last() {
            PullReport::Ok(digest) => digest.to_string(),
            other => panic!("the pull failed: {other:?}"),
        }
    }

    /// Reason and message.
    pub fn error(&self) -> (String, String) {
        match self.last() {
            PullReport::Error(error) => (error.reason.to_string(), error.message.clone()),
            other => panic!("the pull did not fail: {other:?}"),
        }
    }
}

pub fn run(request: &PullRequest) -> Outcome {
    let mut child = spawn(request);
    let mut outcome = Outcome {
        reports: Vec::new(),
        peak_kib: 0,
    };
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The test harness writes its own words before the first report.
        if let Some(start) = line.find("{\"") {
            outcome
                .reports
                .push(serde_json::from_str(&line[start..]).unwrap());
        } else if let Some(peak) = line.strip_prefix("peak ") {
            outcome.peak_kib = peak.parse().unwrap();
        }
    }
    child.wait().unwrap();
    outcome
}

/// The body of each test program's `role` test.
pub fn role() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    // What it says is on standard output; the harness' own exit code hides this one.
    let _ = skiff_images::pull::main();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    println!("peak {}", peak.trim().trim_end_matches(" kB"));
}
