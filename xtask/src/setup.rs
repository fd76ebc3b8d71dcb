//! What the commands need from the machine: packages, Rust tools, and programs taken from Debian's packages.
//!
//! Everything that can be unpacked under `target/` is; only what must be installed is, and no daemon is started.
//! A second run finds all of it and takes under a second.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::debian::Suite;
use crate::files;
use crate::workspace::Workspace;

/// What must be installed: a program in `PATH`, or a file by its path, and the Debian package that carries it. None of
/// them is a daemon.
type Needs = &'static [(&'static str, &'static str)];

/// What building needs. Without it this program cannot have been linked, but another machine's may have been copied.
const COMPILER: Needs = &[
    ("cc", "gcc"),
    ("/usr/include/stdlib.h", "libc6-dev"),
    ("patch", "patch"),
];
/// What a fleet on this machine is cleaned up with.
const NODE: Needs = &[("ip", "iproute2")];
/// What only tests drive.
const CHECKS: Needs = &[
    ("git", "git"),
    ("curl", "curl"),
    ("nft", "nftables"),
    ("openssl", "openssl"),
    ("mount", "mount"),
    // The board's disk, and its kernel's modules.
    ("mkfs.ext4", "e2fsprogs"),
    ("xz", "xz-utils"),
    // The tests of single crates make their root directories from it.
    ("busybox", "busybox-static"),
];

/// For `dist`.
pub(crate) const BUILD: &[Needs] = &[COMPILER];
/// For `demo` and `bench`.
pub(crate) const FLEET: &[Needs] = &[COMPILER, NODE];
/// For `test` and `setup`.
pub(crate) const TEST: &[Needs] = &[COMPILER, NODE, CHECKS];

/// The versions that this tree is tested with.
const NEXTEST: &str = "0.9.143";
const DENY: &str = "0.20.2";

/// The Debian suite whose `kubectl` most people have, and its version.
const KUBECTL: (&str, &str) = ("trixie", "1.32");
/// The suite whose QEMU is used.
const QEMU_SUITE: &str = "trixie";

/// The suite with the newest `kubectl`, whichever that is today.
const KUBECTL_NEXT: &str = "forky";

/// Installs the packages that are missing, when this process may.
pub(crate) fn packages(wanted: &[&str]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install --no-install-recommends {}", wanted.join(" "));
    if !is_root() {
        bail!("missing Debian packages. Run this, then try again:\n\n    sudo {line}\n");
    }
    println!("  installing {}", wanted.join(" "));
    let lists_are_stale = files::age(Path::new("/var/lib/apt/lists/partial"))
        .is_none_or(|age| age > std::time::Duration::from_secs(24 * 3600));
    let install = || {
        let mut apt = apt_get();
        apt.args(["-y", "-qq", "--no-install-recommends", "install"])
            .args(wanted);
        command::quiet(&mut apt)
    };
    // Lists that look fresh can still be incomplete (an image whose lists were emptied): then update and try again.
    if lists_are_stale || install().is_err() {
        command::quiet(apt_get().args(["-qq", "update"]))?;
        install().with_context(|| format!("cannot install packages; by hand: {line}"))?;
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    command
}

/// The packages that a command needs and this machine lacks.
pub(crate) fn missing(needs: &[Needs]) -> Vec<&'static str> {
    let is_there = |what: &str| {
        if what.starts_with('/') {
            Path::new(what).is_file()
        } else {
            command::find(what).is_some()
        }
    };
    needs
        .iter()
        .copied()
        .flatten()
        .filter(|(what, _)| !is_there(what))
        .map(|(_, package)| *package)
        .collect()
}

/// Starts this command again through sudo unless it runs as root already.
///
/// Containers need namespaces, cgroups and mounts, hence root.
pub(crate) fn become_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let line = "containers need root, and there is no sudo here: run the same command as root";
    let sudo = command::find("sudo").context(line)?;
    eprintln!("containers need root: going on through sudo (files under target/ will belong to root)");
    let mut again = Command::new(sudo);
    again.arg("env");
    // The caller's Rust, not root's.
    for name in [
        "PATH",
        "HOME",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "RUSTUP_TOOLCHAIN",
        "CARGO_MANIFEST_DIR",
        "CARGO_TARGET_DIR",
    ] {
        if let Some(value) = std::env::var_os(name) {
            let mut pair = std::ffi::OsString::from(format!("{name}="));
            pair.push(value);
            again.arg(pair);
        }
    }
    again
        .arg(std::env::current_exe().context("cannot tell our own path")?)
        .args(std::env::args_os().skip(1));
    Err(again.exec()).context("cannot start sudo")
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Checks the pinned toolchain and brings what is missing of it.
pub(crate) fn rust(workspace: &Workspace) -> Result<()> {
    let pinned = pinned_toolchain(workspace)?;
    let root = workspace.root();
    let found = command::output(command::at(root, "rustc").arg("--version")).with_context(|| {
        format!("Rust {pinned} is needed: install rustup, then `rustup toolchain install {pinned}`")
    })?;
    if found.split_whitespace().nth(1) != Some(&pinned) {
        bail!(
            "rust-toolchain.toml asks for {pinned}, but `rustc --version` says {}",
            found.trim()
        );
    }
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if !command::succeeds(command::at(root, "cargo").args([subcommand, "--version"])) {
            println!("  adding {component}");
            command::quiet(command::at(root, "rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// The channel that `rust-toolchain.toml` pins.
pub(crate) fn pinned_toolchain(workspace: &Workspace) -> Result<String> {
    let path = workspace.root().join("rust-toolchain.toml");
    let text = files::read(&path)?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("channel"));
    let value = line.and_then(|rest| rest.split('"').nth(1));
    value
        .map(str::to_owned)
        .with_context(|| format!("{} has no channel", path.display()))
}

/// Puts cargo-nextest in reach.
pub(crate) fn nextest(workspace: &Workspace) -> Result<()> {
    cargo_tool(workspace, "cargo-nextest", NEXTEST)
}

/// Puts cargo-deny in reach.
pub(crate) fn deny(workspace: &Workspace) -> Result<()> {
    cargo_tool(workspace, "cargo-deny", DENY)
}

fn cargo_tool(workspace: &Workspace, name: &str, version: &str) -> Result<()> {
    let ours = workspace.tools().join("bin").join(name);
    if ours.is_file() || command::find(name).is_some() {
        return Ok(());
    }
    println!("  building {name} {version} (some minutes, once)");
    command::quiet(
        command::at(workspace.root(), "cargo")
            .args([
                "install",
                "--quiet",
                "--locked",
                name,
                "--version",
                version,
                "--root",
            ])
            .arg(workspace.tools()),
    )
}

/// `PATH` with our own tools first.
pub(crate) fn path(workspace: &Workspace) -> Result<std::ffi::OsString> {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(workspace.tools().join("bin"))
        .chain(std::env::split_paths(&rest))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(dirs).context("a directory of PATH holds a colon")
}

/// kubectl as most clusters' users have it, as a path that can be executed.
pub(crate) fn kubectl(workspace: &Workspace) -> Result<PathBuf> {
    let (suite, version) = KUBECTL;
    let (program, said) = kubectl_of(workspace, suite, version)?;
    if !said.starts_with(&format!("v{version}.")) {
        bail!("Debian {suite} was expected to carry kubectl {version}, but it says {said}");
    }
    Ok(program)
}

/// Programs that tests drive, each as a path that can be executed.
pub(crate) struct TestPrograms {
    kubectl: PathBuf,
    /// The newest kubectl that Debian carries.
    kubectl_next: PathBuf,
    mosquitto: PathBuf,
    mosquitto_passwd: PathBuf,
    docker_registry: PathBuf,
    skopeo: PathBuf,
    /// Found by their names through [`path`].
    #[allow(dead_code, reason = "kept so that what is prepared stands in one place")]
    in_path: [PathBuf; 3],
}

impl TestPrograms {
    /// Fetches what is not there yet.
    pub(crate) fn prepare(workspace: &Workspace) -> Result<Self> {
        let suite = Suite::of_system(workspace)?;
        let take = |package: &str, program: &str| -> Result<PathBuf> {
            expose(workspace, &suite, package, program, "")
        };
        let (kubectl_next, version) = kubectl_of(workspace, KUBECTL_NEXT, "next")?;
        println!(
            "  kubectl {version} of Debian {KUBECTL_NEXT} beside {}",
            KUBECTL.1
        );
        Ok(Self {
            kubectl: kubectl(workspace)?,
            kubectl_next,
            mosquitto: take("mosquitto", "/usr/sbin/mosquitto")?,
            mosquitto_passwd: take("mosquitto", "/usr/bin/mosquitto_passwd")?,
            in_path: [
                take("mosquitto-clients", "/usr/bin/mosquitto_pub")?,
                take("mosquitto-clients", "/usr/bin/mosquitto_sub")?,
                take("apache2-utils", "/usr/bin/htpasswd")?,
            ],
            docker_registry: take("docker-registry", "/usr/bin/docker-registry")?,
            skopeo: take("skopeo", "/usr/bin/skopeo")?,
        })
    }

    /// The variables through which tests find these programs.
    pub(crate) fn environment(&self) -> [(&'static str, &Path); 6] {
        [
            ("SKIFF_KUBECTL", &self.kubectl),
            ("SKIFF_KUBECTL_NEXT", &self.kubectl_next),
            ("SKIFF_MOSQUITTO", &self.mosquitto),
            ("SKIFF_MOSQUITTO_PASSWD", &self.mosquitto_passwd),
            ("SKIFF_DOCKER_REGISTRY", &self.docker_registry),
            ("SKIFF_SKOPEO", &self.skopeo),
        ]
    }
}

/// qemu-user for a foreign architecture's programs; nothing is registered with the kernel.
pub(crate) fn qemu(workspace: &Workspace, arch: &str) -> Result<PathBuf> {
    // One that knows openat2(2), with which paths are kept inside of their volume.
    let suite = Suite::named(workspace, QEMU_SUITE)?;
    let program = format!("/usr/bin/qemu-{arch}");
    expose(workspace, &suite, "qemu-user", &program, "")
}

/// QEMU's 64-bit ARM machine.
pub(crate) fn emulator(workspace: &Workspace) -> Result<PathBuf> {
    let suite = Suite::named(workspace, QEMU_SUITE)?;
    expose(
        workspace,
        &suite,
        "qemu-system-arm",
        "/usr/bin/qemu-system-aarch64",
        "",
    )
}

/// The kubectl of a suite, exposed under this suffix, and its version.
fn kubectl_of(workspace: &Workspace, suite: &str, suffix: &str) -> Result<(PathBuf, String)> {
    let package = Suite::named(workspace, suite)?;
    let suffix = format!("-{suffix}");
    let program = expose(workspace, &package, "kubectl", "/usr/bin/kubectl", &suffix)?;
    let said = command::output(Command::new(&program).args(["version", "--client"]))?;
    let version = client_version(&said);
    let version = version.with_context(|| format!("{} says no version: {said}", program.display()))?;
    Ok((program, version.to_owned()))
}

/// `v1.32.4` of kubectl's `Client Version: v1.32.4`.
fn client_version(said: &str) -> Option<&str> {
    said.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+')))
        .find(|word| {
            word.strip_prefix("v1.")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
}

/// Makes a program of a Debian package runnable under `target/tools/bin`.
fn expose(
    workspace: &Workspace,
    suite: &Suite,
    package: &str,
    program: &str,
    suffix: &str,
) -> Result<PathBuf> {
    let name = Path::new(program)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let link = workspace.tools().join("bin").join(format!("{name}{suffix}"));
    files::make_dir(&workspace.tools().join("bin"))?;
    suite
        .unpack(&[package])
        .and_then(|unpacked| unpacked.expose(program, &link))
        .with_context(|| format!("cannot get `{name}` from the Debian package {package}"))?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_asks_for_what_it_needs() {
        let packages = |needs: &[Needs]| -> Vec<&str> {
            needs
                .iter()
                .copied()
                .flatten()
                .map(|(_, package)| *package)
                .collect()
        };
        assert_eq!(packages(BUILD), ["gcc", "libc6-dev", "patch"]);
        for tool in ["curl", "nftables", "openssl"] {
            assert!(
                !packages(FLEET).contains(&tool) && packages(TEST).contains(&tool),
                "{tool}"
            );
        }
        let none: Needs = &[
            ("/nonexistent/stdlib.h", "a"),
            ("no-such-program-here", "b"),
            ("sh", "c"),
            ("/bin/sh", "d"),
        ];
        assert_eq!(missing(&[none]), ["a", "b"]);
    }

    #[test]
    fn the_version_is_kubectls_own() {
        for (said, expected) in [
            (
                "Client Version: v1.32.4\nKustomize Version: v5.5.0\n",
                Some("v1.32.4"),
            ),
            (
                "Client Version: version.Info{GitVersion:\"v1.20.5+k\"}",
                Some("v1.20.5+k"),
            ),
            ("Kustomize Version: v5.5.0", None),
        ] {
            assert_eq!(client_version(said), expected, "{said}");
        }
    }
}
