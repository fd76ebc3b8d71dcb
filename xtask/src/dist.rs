//! `cargo xtask dist`: the static musl agent, and the proof that it is one.
//!
//! The same recipe serves every target: Rust's own musl and linker (`rust-lld`, part of the toolchain), and zig's
//! C compiler from a virtual environment for the one dependency with C and assembly in it. No root, nothing installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::elf::Facts;
use crate::files;
use crate::setup;
use crate::workspace::Workspace;

/// A target, and how a program comes to it.
pub(crate) struct Target {
    /// As rustc spells it.
    pub(crate) name: &'static str,
    /// As `uname -m` begins, and as QEMU spells it.
    machine: &'static str,
    /// As zig spells it, with its words for the processor.
    zig: &'static str,
    /// Rust has no standard library for it to fetch: it is built here, and linked by zig with zig's musl.
    builds_std: bool,
}

/// The targets that a release carries.
pub(crate) const TARGETS: [Target; 3] = [
    Target {
        name: "x86_64-unknown-linux-musl",
        machine: "x86_64",
        zig: "x86_64-linux-musl",
        builds_std: false,
    },
    Target {
        name: "aarch64-unknown-linux-musl",
        machine: "aarch64",
        zig: "aarch64-linux-musl",
        builds_std: false,
    },
    Target {
        name: "armv7-unknown-linux-musleabihf",
        machine: "arm",
        zig: "arm-linux-musleabihf -mcpu=generic+v7a+vfp3-d32+thumb2-neon",
        builds_std: true,
    },
];

/// Dependencies with a patch under `cross/patches`: the crate with its version, and the file.
const PATCHES: [(&str, &str, &str); 1] = [("libcontainer", "0.7.0", "libcontainer-0.7.0-32-bit-musl.diff")];

/// The patch to the standard library, where it is built here.
const STD_PATCH: &str = "library-1.95.0-64-bit-time.diff";

/// Crates whose unit tests need no kernel but an emulated one.
const TESTED: [&str; 6] = [
    "skiff-protocol",
    "skiff-core",
    "skiff-journal",
    "skiff-transport",
    "skiff-images",
    "skiff-agent",
];

impl Target {
    /// The one of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|it| it.name == name)
    }
}

/// SPECIFICATION's bound for the agent.
pub(crate) const MAX_BYTES: u64 = 7_500_000;

/// A C compiler for every target in one package without dependencies.
const ZIG: &str = "ziglang==0.17.0";

/// Builds the agent for `target`, checks it and returns its path under `target/dist`.
pub(crate) fn agent(workspace: &Workspace, target: &Target) -> Result<PathBuf> {
    println!("agent for {}", target.name);
    let built = build(workspace, target, "skiff-agent", "skiff-agent")?;
    let dist = workspace.target().join("dist");
    files::make_dir(&dist)?;
    let copy = dist.join(format!("skiff-agent-{}", target.name));
    files::copy(&built, &copy)?;
    check(workspace, &copy, target)?;
    Ok(copy)
}

/// Builds a program of ours for `target`, as the agent is built.
pub(crate) fn build(workspace: &Workspace, target: &Target, package: &str, program: &str) -> Result<PathBuf> {
    let mut build = cargo(workspace, target, "build")?;
    command::run(build.args(["--release", "--package", package, "--bin", program]))?;
    Ok(workspace.target().join(target.name).join("release").join(program))
}

/// Runs the unit tests as `target`'s programs, through qemu-user where the machine is another.
pub(crate) fn unit_tests(workspace: &Workspace, target: &Target) -> Result<()> {
    let mut test = cargo(workspace, target, "test")?;
    if target.machine != std::env::consts::ARCH {
        let name = target.name.replace('-', "_").to_uppercase();
        let qemu = setup::qemu(workspace, target.machine)?;
        test.env(format!("CARGO_TARGET_{name}_RUNNER"), qemu);
    }
    test.args(["--no-fail-fast", "--lib", "--bins"]);
    test.args(TESTED.iter().flat_map(|it| ["--package", it]));
    command::run(&mut test)
}

/// A cargo command for `target`, with its compiler, linker and standard library.
fn cargo(workspace: &Workspace, target: &Target, verb: &str) -> Result<Command> {
    let compiler = c_compiler(workspace, target)?;
    let lower = target.name.replace('-', "_");
    let mut cargo = command::at(workspace.root(), "cargo");
    cargo
        .args([verb, "--locked", "--target", target.name])
        .env(format!("CC_{lower}"), &compiler.cc)
        .env(format!("AR_{lower}"), &compiler.ar)
        .env("ZIG_GLOBAL_CACHE_DIR", workspace.tools().join("zig-cache"))
        // With --target these reach no build script. A RUSTFLAGS from outside comes second to them.
        .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace, target, &compiler))
        .envs(source_date(workspace));
    if target.builds_std {
        std_source(workspace)?;
        // Cargo overrides a dependency by a path, in which nothing but the patch differs, and the lock file stays as it is.
        let patched = PATCHES
            .iter()
            .map(|(name, version, patch)| patched(workspace, name, version, patch))
            .collect::<Result<Vec<String>>>()?;
        cargo
            .arg("-Zbuild-std=std,panic_abort,test")
            .args(["--config", &format!("paths=[{}]", patched.join(","))])
            // The standard library is built with what it is written in, from our copy: cargo has no other word for that.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("__CARGO_TESTS_ONLY_SRC_ROOT", patched_std(workspace)?);
    } else {
        std_for(workspace, target.name)?;
    }
    Ok(cargo)
}

/// A copy of a dependency's source with a patch of ours, as a string of TOML.
fn patched(workspace: &Workspace, name: &str, version: &str, patch: &str) -> Result<String> {
    let mut metadata = command::at(workspace.root(), "cargo");
    metadata.args(["metadata", "--locked", "--format-version", "1"]);
    let metadata: serde_json::Value = serde_json::from_str(&command::output(&mut metadata)?)
        .context("cannot read what `cargo metadata` printed")?;
    let packages = metadata["packages"]
        .as_array()
        .context("`cargo metadata` names no packages")?;
    let found = packages
        .iter()
        .find(|it| it["name"] == name && it["version"] == version)
        .and_then(|it| it["manifest_path"].as_str())
        .with_context(|| format!("{patch} is for {name} {version}, which is no dependency any more"))?;
    let source = Path::new(found)
        .parent()
        .context("a manifest without a directory")?;
    let copy = patched_copy(workspace, source, &format!("{name}-{version}"), patch)?;
    Ok(format!("{:?}", copy.display().to_string()))
}

/// A copy of the pinned toolchain's standard library with a patch of ours.
fn patched_std(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = setup::pinned_toolchain(workspace)?;
    let name = format!("library-{toolchain}");
    if !STD_PATCH.starts_with(&name) {
        bail!("{STD_PATCH} is not for the standard library of {toolchain}: see whether it is still needed");
    }
    let sysroot = command::output(command::at(workspace.root(), "rustc").args(["--print", "sysroot"]))?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    patched_copy(workspace, &source, &name, STD_PATCH)
}

fn patched_copy(workspace: &Workspace, source: &Path, name: &str, patch: &str) -> Result<PathBuf> {
    let dir = workspace.target().join("patched");
    let copy = dir.join(name);
    let done = dir.join(format!("{name}.done"));
    let text = files::read(&workspace.root().join("cross/patches").join(patch))?;
    if files::read(&done).is_ok_and(|it| it == text) {
        return Ok(copy);
    }
    files::make_dir(&dir)?;
    files::remove(&copy)?;
    command::quiet(Command::new("cp").arg("-r").arg(source).arg(&copy))?;
    let mut apply = Command::new("patch");
    apply.args(["--strip=1", "--batch", "--directory"]).arg(&copy);
    command::quiet_with(&mut apply, &text).with_context(|| format!("{patch} does not apply"))?;
    files::write(&done, text)?;
    Ok(copy)
}

/// The agent knows when it was built: by the sources' date, the same sources give the same bytes.
fn source_date(workspace: &Workspace) -> Option<(&'static str, String)> {
    let name = "SOURCE_DATE_EPOCH";
    if std::env::var_os(name).is_some() {
        return None;
    }
    // Sources without git have no date of their own; then it is today.
    let mut git = command::at(workspace.root(), "git");
    let said = command::output(git.args(["log", "-1", "--format=%ct"])).ok()?;
    Some((name, said.trim().to_owned()))
}

/// Not position independent: 100 kB less memory for each shim, whose pages then need no relocation. Where Rust's own linker
/// links, equal functions are folded into one, and the tables that only unwinding needs are left out: together half a
/// megabyte.
fn flags(workspace: &Workspace, target: &Target, compiler: &Compiler) -> String {
    let script = workspace.root().join("xtask/src/static.ld");
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
    ];
    if target.builds_std {
        flags.push(format!("-Clinker={}", compiler.cc.display()));
        flags.push("-Clink-self-contained=no".to_owned());
        // 64-bit times in what we, our dependencies and the standard library ask of libc.
        flags.push("--cfg=libc_unstable_musl_v1_2".to_owned());
    } else {
        flags.push("-Clinker=rust-lld".to_owned());
        flags.push("-Clink-arg=--icf=all".to_owned());
        flags.push("-Clink-arg=--no-eh-frame-hdr".to_owned());
        flags.push(format!("-Clink-arg=-T{}", script.display()));
    }
    // cargo splits a plain RUSTFLAGS at spaces, which a path may hold; its encoded form is split at this character.
    flags.join("\x1f")
}

/// Prints the facts and fails where one of them breaks a promise.
fn check(workspace: &Workspace, path: &Path, target: &Target) -> Result<()> {
    let image = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let facts = Facts::read(&image).with_context(|| format!("cannot understand {}", path.display()))?;
    let size = image.len() as u64;
    let linkage = if facts.interpreter.is_none() && !facts.dynamic {
        "static, no interpreter"
    } else {
        "dynamic"
    };
    let address = if facts.fixed_address {
        "fixed address"
    } else {
        "position independent"
    };
    println!("  {}", workspace.shorten(path).display());
    println!("  {size} bytes, ELF {}, {linkage}, {address}", facts.machine);
    if facts.machine != target.machine {
        bail!(
            "{} is for {}, not for {}",
            path.display(),
            facts.machine,
            target.machine
        );
    }
    if let Some(interpreter) = facts.interpreter {
        bail!("{} is not static: it asks for {interpreter}", path.display());
    }
    if facts.dynamic || !facts.fixed_address {
        bail!(
            "{} is position independent; relocation-model=static did not reach the linker",
            path.display()
        );
    }
    if size > MAX_BYTES {
        bail!(
            "{} has {size} bytes: {} more than the {MAX_BYTES} promised",
            path.display(),
            size - MAX_BYTES
        );
    }
    Ok(())
}

/// Runs the agent's `--version` and `doctor`, through qemu-user where the machine is another.
pub(crate) fn prove(workspace: &Workspace, agent: &Path, target: &Target) -> Result<()> {
    let arch = target.machine;
    let start = || -> Result<Command> {
        if arch == std::env::consts::ARCH {
            return Ok(Command::new(agent));
        }
        let mut command = Command::new(setup::qemu(workspace, arch)?);
        command.arg(agent);
        Ok(command)
    };
    let version = command::output(start()?.arg("--version"))?;
    println!("  --version: {}", version.trim());
    let doctor = command::capture(start()?.arg("doctor"))?;
    let said = String::from_utf8_lossy(&doctor.stdout);
    for line in said.lines() {
        println!("  doctor: {line}");
    }
    if doctor.status.code().is_none() || said.trim().is_empty() {
        bail!(
            "`doctor` did not answer: {}\n{}",
            doctor.status,
            String::from_utf8_lossy(&doctor.stderr)
        );
    }
    println!("  doctor ended with {}", doctor.status);
    Ok(())
}

/// Rust's standard library for the target, from rustup.
fn std_for(workspace: &Workspace, target: &str) -> Result<()> {
    let sysroot = command::output(command::at(workspace.root(), "rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim())
        .join("lib/rustlib")
        .join(target)
        .join("lib")
        .is_dir()
    {
        return Ok(());
    }
    println!("  adding Rust's standard library for {target}");
    let toolchain = setup::pinned_toolchain(workspace)?;
    command::quiet(command::at(workspace.root(), "rustup").args([
        "target",
        "add",
        "--toolchain",
        &toolchain,
        target,
    ]))
    .with_context(|| format!("{target} needs rustup (`rustup target add {target}`)"))
}

/// The standard library's source, from rustup.
fn std_source(workspace: &Workspace) -> Result<()> {
    let toolchain = setup::pinned_toolchain(workspace)?;
    command::quiet(command::at(workspace.root(), "rustup").args([
        "component",
        "add",
        "--toolchain",
        &toolchain,
        "rust-src",
    ]))
    .context("building the standard library needs its source (`rustup component add rust-src`)")
}

struct Compiler {
    cc: PathBuf,
    ar: PathBuf,
}

/// zig behind two small scripts: `cc` and `ar` for `target`.
fn c_compiler(workspace: &Workspace, target: &Target) -> Result<Compiler> {
    let venv = workspace.tools().join("zig");
    let python = venv.join("bin/python");
    let done = venv.join(format!("{ZIG}.done"));
    if !done.is_file() {
        make_venv(&venv)?;
        println!("  fetching {ZIG}");
        command::quiet(Command::new(&python).args(["-m", "pip", "install", "--quiet", ZIG]))?;
        files::write(&done, "")?;
    }
    let found =
        command::output(Command::new(&python).args(["-c", "import ziglang; print(ziglang.__path__[0])"]))?;
    let zig = Path::new(found.trim()).join("zig");
    let bin = workspace.tools().join("bin");
    files::make_dir(&bin)?;
    let cc = bin.join(format!("cc-{}", target.name));
    let ar = bin.join("ar-zig");
    files::write_program(&cc, &cc_script(&zig, target.zig))?;
    files::write_program(&ar, &format!("#!/bin/sh\nexec '{}' ar \"$@\"\n", zig.display()))?;
    Ok(Compiler { cc, ar })
}

/// Build scripts name the target and the CPU in GCC's or clang's words, which zig rejects; it has its own.
fn cc_script(zig: &Path, triple: &str) -> String {
    format!(
        "#!/bin/sh\n\
         for word; do\n    shift\n    case $word in\n    \
         --target=*|-march=*|-mfpu=*|-mfloat-abi=*|-mthumb|-marm) ;;\n    \
         *) set -- \"$@\" \"$word\" ;;\n    esac\ndone\n\
         exec '{}' cc -target {triple} \"$@\"\n",
        zig.display()
    )
}

fn make_venv(venv: &Path) -> Result<()> {
    // Debian's own Python, not one that a version switcher puts first.
    let python = Path::new("/usr/bin/python3");
    if !command::succeeds(Command::new(python).args(["-c", "import ensurepip, venv"])) {
        setup::packages(&["python3-venv"])?;
    }
    files::remove(venv)?;
    command::quiet(Command::new(python).args(["-m", "venv"]).arg(venv))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_zig_rejects_are_dropped_and_others_kept_whole() {
        let dir = std::env::temp_dir().join(format!("xtask-cc-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let zig = dir.join("zig");
        files::write_program(&zig, "#!/bin/sh\nfor word; do echo \"[$word]\"; done\n").unwrap();
        let cc = dir.join("cc");
        files::write_program(&cc, &cc_script(&zig, "arm-linux-musl")).unwrap();
        let said =
            command::output(Command::new(&cc).args(["--target=armv7", "-O2", "-march=x", "a b.c"])).unwrap();
        assert_eq!(said, "[cc]\n[-target]\n[arm-linux-musl]\n[-O2]\n[a b.c]\n");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
