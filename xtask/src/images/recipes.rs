//! What is in each image: names as the manifests use them, files, and how the program starts.
//!
//! Every script traps SIGTERM: it is pid 1 of its container, and the kernel drops signals that pid 1 does not handle.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::command;
use crate::debian::Unpacked;

use super::Packages;
use super::layer::Layer;

/// An image to assemble.
pub(crate) struct Recipe {
    /// `nginx:latest`, as `docker save` writes it.
    pub(crate) reference: String,
    pub(crate) layers: Vec<Layer>,
    /// The `config` object of the image's configuration.
    pub(crate) config: Value,
}

impl Recipe {
    /// The last part of the name; a tag other than `latest` or `v1` of a name that has two is part of it.
    pub(crate) fn file_name(&self) -> String {
        let last = self.reference.rsplit('/').next().unwrap_or_default();
        match last.split_once(':') {
            Some(("nginx", tag)) if tag != "latest" => format!("nginx-{tag}"),
            Some((name, _)) => name.to_owned(),
            None => last.to_owned(),
        }
    }
}

/// Every image that the examples and the tests name.
pub(crate) fn all(packages: &Packages) -> Result<Vec<Recipe>> {
    let sh = |reference: &str, script: &str| -> Result<Recipe> { shell(packages, reference, script) };
    Ok(vec![
        busybox(packages, "busybox:latest")?,
        busybox(packages, "hello:1.1.1")?,
        nginx(packages, "nginx:latest")?,
        nginx(packages, "nginx:1.14.2")?,
        redis(packages)?,
        sh(
            "ghcr.io/subicura/counter:latest",
            include_str!("scripts/counter.sh"),
        )?,
        sh("ghcr.io/subicura/echo:v1", include_str!("scripts/echo.sh"))?,
        sh("mysql:5.7", include_str!("scripts/mysql.sh"))?,
        sh("myapp:latest", include_str!("scripts/myapp.sh"))?,
        sh("my-app-image:latest", include_str!("scripts/my-app-image.sh"))?,
        sh("log-collector:latest", include_str!("scripts/log-collector.sh"))?,
    ])
}

fn busybox(packages: &Packages, reference: &str) -> Result<Recipe> {
    busybox_with(reference, &packages.busybox, &applets(&packages.busybox)?)
}

/// busybox of any architecture, where what it contains is known already.
pub(super) fn busybox_with(reference: &str, package: &Unpacked, applets: &[String]) -> Result<Recipe> {
    Ok(Recipe {
        reference: reference.into(),
        layers: vec![busybox_layer(package, applets)?],
        config: json!({"Env": [PATH], "Cmd": ["sh"]}),
    })
}

/// The programs that busybox contains, as it says itself.
pub(crate) fn applets(package: &Unpacked) -> Result<Vec<String>> {
    let program = package.resolve("/bin/busybox")?;
    let listed = command::output(std::process::Command::new(&program).arg("--list"))?;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn shell(packages: &Packages, reference: &str, script: &str) -> Result<Recipe> {
    let mut own = Layer::default();
    own.script("usr/local/bin/start", script);
    Ok(Recipe {
        reference: reference.into(),
        layers: vec![
            busybox_layer(&packages.busybox, &applets(&packages.busybox)?)?,
            own,
        ],
        config: json!({"Env": [PATH], "Entrypoint": ["/usr/local/bin/start"], "WorkingDir": "/"}),
    })
}

fn nginx(packages: &Packages, reference: &str) -> Result<Recipe> {
    let mut program = Layer::default();
    system_files(&mut program);
    add_program(&mut program, &packages.nginx, "/usr/sbin/nginx")?;
    let mut own = Layer::default();
    own.text("etc/nginx/nginx.conf", include_str!("scripts/nginx.conf"))
        .text(
            "usr/share/nginx/html/index.html",
            include_str!("scripts/index.html"),
        )
        .dir("var/lib/nginx", 0o755, WWW_DATA)
        .dir("var/log/nginx", 0o755, 0);
    Ok(Recipe {
        reference: reference.into(),
        layers: vec![program, own],
        config: json!({
            "Env": [PATH],
            "Cmd": ["nginx", "-g", "daemon off;"],
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGQUIT",
        }),
    })
}

fn redis(packages: &Packages) -> Result<Recipe> {
    let mut layer = Layer::default();
    system_files(&mut layer);
    add_program(&mut layer, &packages.redis, "/usr/bin/redis-server")?;
    add_program(&mut layer, &packages.redis, "/usr/bin/redis-cli")?;
    layer.dir("data", 0o777, 0);
    Ok(Recipe {
        reference: "redis:latest".into(),
        layers: vec![layer],
        config: json!({
            "Env": [PATH],
            // Without a file, as a cache runs: an idle node writes nothing.
            "Cmd": ["redis-server", "--protected-mode", "no", "--save", "", "--appendonly", "no"],
            "ExposedPorts": {"6379/tcp": {}},
            "WorkingDir": "/data",
        }),
    })
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const WWW_DATA: u32 = 33;

fn system_files(layer: &mut Layer) {
    layer
        .text(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
             nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        )
        .text("etc/group", "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n")
        .text("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
        .text(
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n",
        )
        .dir("root", 0o700, 0)
        .dir("run", 0o755, 0)
        .dir("tmp", 0o1777, 0)
        .dir("proc", 0o555, 0)
        .dir("sys", 0o555, 0)
        .dir("dev", 0o755, 0);
}

/// busybox and a link for each program it contains.
fn busybox_layer(package: &Unpacked, applets: &[String]) -> Result<Layer> {
    let program = package.resolve("/bin/busybox")?;
    let mut layer = Layer::default();
    system_files(&mut layer);
    layer.copy("bin/busybox", &program)?;
    for applet in applets.iter().filter(|applet| *applet != "busybox") {
        layer.link(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}

/// A program at its own path, with its loader and libraries at theirs.
fn add_program(layer: &mut Layer, package: &Unpacked, path: &str) -> Result<()> {
    let program = package.resolve(path)?;
    layer.copy(path.trim_start_matches('/'), &program)?;
    for library in package.libraries(&program)? {
        let inside = library
            .strip_prefix(package.root())
            .context("a library outside its package")?;
        layer.copy(&inside.display().to_string(), &real(package, inside)?)?;
    }
    // The program names its loader by this path, which Debian's package has as a link or a file.
    let image = std::fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    if let Some(loader) = crate::elf::Facts::read(&image)?.interpreter {
        let file = package.resolve(&loader)?;
        layer.copy(loader.trim_start_matches('/'), &file)?;
    }
    Ok(())
}

fn real(package: &Unpacked, inside: &std::path::Path) -> Result<PathBuf> {
    package.resolve(&inside.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_after_the_image() {
        for (reference, name) in [
            ("nginx:latest", "nginx"),
            ("nginx:1.14.2", "nginx-1.14.2"),
            ("ghcr.io/subicura/counter:latest", "counter"),
            ("mysql:5.7", "mysql"),
            ("hello:1.1.1", "hello"),
        ] {
            let recipe = Recipe {
                reference: reference.into(),
                layers: Vec::new(),
                config: json!({}),
            };
            assert_eq!(recipe.file_name(), name);
        }
    }
}
