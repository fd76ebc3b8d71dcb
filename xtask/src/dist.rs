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

/// The targets that a release carries.
pub(crate) const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

/// SPECIFICATION's bound for the agent.
pub(crate) const MAX_BYTES: u64 = 7_000_000;

/// A C compiler for every target in one package without dependencies.
const ZIG: &str = "ziglang==0.17.0";

/// Builds the agent for `target`, checks it and returns its path under `target/dist`.
pub(crate) fn agent(workspace: &Workspace, target: &str) -> Result<PathBuf> {
    println!("agent for {target}");
    let built = build(workspace, target, "skiff-agent", "skiff-agent")?;
    let dist = workspace.target().join("dist");
    files::make_dir(&dist)?;
    let copy = dist.join(format!("skiff-agent-{target}"));
    files::copy(&built, &copy)?;
    check(workspace, &copy, target)?;
    Ok(copy)
}

/// Builds a program of ours for `target`, as the agent is built.
pub(crate) fn build(workspace: &Workspace, target: &str, package: &str, program: &str) -> Result<PathBuf> {
    std_for(workspace, target)?;
    let compiler = c_compiler(workspace, target)?;
    let lower = target.replace('-', "_");
    command::run(
        command::at(workspace.root(), "cargo")
            .args([
                "build",
                "--locked",
                "--release",
                "--package",
                package,
                "--bin",
                program,
            ])
            .args(["--target", target])
            .env(format!("CC_{lower}"), &compiler.cc)
            .env(format!("AR_{lower}"), &compiler.ar)
            .env("ZIG_GLOBAL_CACHE_DIR", workspace.tools().join("zig-cache"))
            // With --target these reach no build script. A RUSTFLAGS from outside comes second to them.
            .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace))
            .envs(source_date(workspace)),
    )?;
    Ok(workspace.target().join(target).join("release").join(program))
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

/// Not position independent: 100 kB less memory for each shim, whose pages then need no relocation. Equal functions
/// are folded into one, and the tables that only unwinding needs are left out: together half a megabyte.
fn flags(workspace: &Workspace) -> String {
    let script = workspace.root().join("xtask/src/static.ld");
    // cargo splits a plain RUSTFLAGS at spaces, which a path may hold; its encoded form is split at this character.
    [
        "-Clinker=rust-lld",
        "-Ctarget-feature=+crt-static",
        "-Crelocation-model=static",
        "-Clink-arg=--icf=all",
        "-Clink-arg=--no-eh-frame-hdr",
        &format!("-Clink-arg=-T{}", script.display()),
    ]
    .join("\x1f")
}

/// Prints the facts and fails where one of them breaks a promise.
fn check(workspace: &Workspace, path: &Path, target: &str) -> Result<()> {
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
    let arch = target.split('-').next().unwrap_or_default();
    if facts.machine != arch {
        bail!("{} is for {}, not for {arch}", path.display(), facts.machine);
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
pub(crate) fn prove(workspace: &Workspace, agent: &Path, target: &str) -> Result<()> {
    let arch = target.split('-').next().unwrap_or_default();
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

struct Compiler {
    cc: PathBuf,
    ar: PathBuf,
}

/// zig behind two small scripts: `cc` and `ar` for `target`.
fn c_compiler(workspace: &Workspace, target: &str) -> Result<Compiler> {
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
    let triple = target.replace("-unknown-", "-");
    let cc = bin.join(format!("cc-{triple}"));
    let ar = bin.join("ar-zig");
    files::write_program(&cc, &cc_script(&zig, &triple))?;
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
