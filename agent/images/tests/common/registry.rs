//! Debian's `docker-registry` on a port of its own, and skopeo to push to it.

use std::fs;
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::Layout;

/// A running registry; it ends with this value.
pub struct Registry {
    pub address: String,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// `auth` is the `auth:` section of its configuration, `{dir}` in it its directory, where `files` are written.
    pub fn start(auth: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        let address = skiff_tests::port::free().to_string();
        let path = dir.path().display();
        let auth = auth.replace("{dir}", &path.to_string());
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {path}/data\n\
             http:\n  addr: {address}\n{auth}"
        );
        let config_path = dir.path().join("config.yml");
        fs::write(&config_path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config_path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("docker-registry: {error}; install Debian's package docker-registry")
            });
        let registry = Self {
            address,
            child,
            _dir: dir,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(
                Instant::now() < deadline,
                "docker-registry does not listen on {}",
                registry.address
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// Pushes a tag of the layout as `name`, all its platforms.
    pub fn push(&self, layout: &Layout, tag: &str, name: &str, credentials: Option<&str>) {
        let mut arguments = vec![
            "copy".to_owned(),
            "--all".to_owned(),
            "--dest-tls-verify=false".to_owned(),
        ];
        arguments.extend(credentials.map(|credentials| format!("--dest-creds={credentials}")));
        arguments.push(format!("oci:{}:{tag}", layout.dir.path().display()));
        arguments.push(format!("docker://{}/{name}", self.address));
        skopeo(&arguments);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn skopeo(arguments: &[String]) -> Output {
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
    output
}

/// One line of an htpasswd file, with bcrypt as the registry wants it.
pub fn htpasswd(user: &str, password: &str) -> String {
    let output = Command::new("htpasswd")
        .args(["-nbB", "-C", "4", user, password])
        .output()
        .unwrap_or_else(|error| panic!("htpasswd: {error}; install Debian's package apache2-utils"));
    assert!(output.status.success(), "htpasswd failed");
    String::from_utf8(output.stdout).unwrap()
}
