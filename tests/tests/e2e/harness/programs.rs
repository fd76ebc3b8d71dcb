//! The programs that the suite drives: ours as built, the others as `cargo xtask test` unpacks them.
//!
//! Always holds: a program that is not there fails the test with the command that brings it.

use std::path::{Path, PathBuf};

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a variable names, or else `fallback` below `target/`; `command` brings it.
pub(crate) fn find(variable: &str, fallback: &str, command: &str) -> PathBuf {
    let path = match std::env::var_os(variable) {
        Some(value) => PathBuf::from(value),
        None => root().join("target").join(fallback),
    };
    assert!(
        path.exists(),
        "{} is not there (from {variable} or its default); run: {command}",
        path.display()
    );
    path
}

fn tool(variable: &str, name: &str) -> PathBuf {
    find(variable, &format!("tools/bin/{name}"), "cargo xtask setup")
}

/// The kubectl that most people have.
pub(crate) fn kubectl() -> PathBuf {
    tool("SKIFF_KUBECTL", "kubectl-1.32")
}

/// The newest kubectl.
pub(crate) fn kubectl_next() -> PathBuf {
    tool("SKIFF_KUBECTL_NEXT", "kubectl-next")
}

/// Mosquitto.
pub(crate) fn mosquitto() -> PathBuf {
    tool("SKIFF_MOSQUITTO", "mosquitto")
}

/// Docker's registry.
pub(crate) fn docker_registry() -> PathBuf {
    tool("SKIFF_DOCKER_REGISTRY", "docker-registry")
}

/// skopeo.
pub(crate) fn skopeo() -> PathBuf {
    tool("SKIFF_SKOPEO", "skopeo")
}

/// `skiff`.
pub(crate) fn skiff() -> PathBuf {
    ours("skiff")
}

/// `skiff-agent`.
pub(crate) fn agent() -> PathBuf {
    ours("skiff-agent")
}

/// `skiff-agent` as the release after this one may be: it speaks the next version of the wire, and of the shims' frames.
pub(crate) fn next_agent() -> PathBuf {
    find("SKIFF_NEXT_DIR", "next", "cargo xtask test --only build").join("skiff-agent")
}

fn ours(name: &str) -> PathBuf {
    let build = "cargo build --package skiff --package skiff-agent";
    let path = find("SKIFF_BIN_DIR", "debug", build).join(name);
    assert!(path.exists(), "{} is not there; run: {build}", path.display());
    path
}

/// A stand-in image: `name.tar` as `docker save` writes it.
pub(crate) fn archive(name: &str) -> PathBuf {
    image(&format!("{name}.tar"))
}

/// A stand-in image as an OCI layout.
pub(crate) fn layout(name: &str) -> PathBuf {
    image(name)
}

fn image(name: &str) -> PathBuf {
    let path = find("SKIFF_IMAGES", "images", "cargo xtask test --only images").join(name);
    assert!(
        path.exists(),
        "{} is not there; run: cargo xtask test --only images",
        path.display()
    );
    path
}
