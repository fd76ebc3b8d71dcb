//! One Debian suite with a private apt state, and packages of it unpacked with the libraries they need.
//!
//! The package database that apt sees is empty, so a download is always the whole closure, the C library
//! included: what is unpacked runs with its own libraries and does not depend on the system's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::command;
use crate::files;
use crate::workspace::Workspace;

use super::sources;

/// Package lists older than this are fetched again before a download.
const STALE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A suite of the system's own mirror, `bookworm` or a later one.
#[derive(Debug)]
pub(crate) struct Suite {
    dir: PathBuf,
    sources: String,
    /// Debian's name of an architecture other than this machine's.
    architecture: Option<&'static str>,
}

impl Suite {
    /// The suite that the system itself runs, with its updates and security fixes.
    pub(crate) fn of_system(workspace: &Workspace) -> Result<Self> {
        let (codename, found) = sources::of_system()?;
        let lines = found.iter().map(|source| source.line(&source.suite)).collect();
        Ok(Self {
            dir: workspace.target().join("debian").join(codename),
            sources: lines,
            architecture: None,
        })
    }

    /// Another suite of the same mirror. Its packages are only ever unpacked, never installed.
    pub(crate) fn named(workspace: &Workspace, name: &str) -> Result<Self> {
        let (_, found) = sources::of_system()?;
        let main = found
            .first()
            .context("the system's configuration names no Debian mirror")?;
        Ok(Self {
            dir: workspace.target().join("debian").join(name),
            sources: main.line(name),
            architecture: None,
        })
    }

    /// A suite as it is for another architecture. Its programs do not run here; nothing is told to the system's dpkg.
    pub(crate) fn foreign(workspace: &Workspace, name: &str, architecture: &'static str) -> Result<Self> {
        let suite = Self::named(workspace, name)?;
        Ok(Self {
            dir: workspace
                .target()
                .join("debian")
                .join(format!("{name}-{architecture}")),
            architecture: Some(architecture),
            ..suite
        })
    }

    /// Fetches `packages` with all that they depend on and unpacks them and their libraries.
    ///
    /// The result is cached: the second call with the same packages touches no network.
    pub(crate) fn unpack(&self, packages: &[&str]) -> Result<Unpacked> {
        let root = self.dir.join("root").join(packages.join("+"));
        let done = root.with_extension("done");
        if done.is_file() && root.is_dir() {
            return Ok(Unpacked { root });
        }
        let debs = self.download(packages)?;
        files::remove(&root)?;
        files::make_dir(&root)?;
        for deb in &debs {
            command::quiet(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&root))?;
        }
        let names: Vec<_> = debs
            .iter()
            .filter_map(|deb| deb.file_name())
            .map(|n| n.to_string_lossy())
            .collect();
        files::write(&done, names.join("\n"))?;
        Ok(Unpacked { root })
    }

    /// The archives of `packages` and of the libraries in their closure.
    fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let fetch = || {
            command::quiet(
                self.apt("apt-get")
                    .args(["-y", "--no-install-recommends", "--download-only", "install"])
                    .args(packages),
            )
        };
        self.refresh(STALE)?;
        fetch()
            .or_else(|_| {
                // A mirror drops a package when a newer one comes: lists of yesterday name what is not there.
                self.refresh(Duration::ZERO)?;
                fetch()
            })
            .with_context(|| format!("cannot download the Debian packages {}", packages.join(" ")))?;
        let archives = self.dir.join("archives");
        // apt leaves out of its list what is in the cache already: asked with an empty one, it names all.
        let none = format!("Dir::Cache::archives={}", self.dir.join("none").display());
        let wanted = command::output(
            self.apt("apt-get")
                .args([
                    "-o",
                    &none,
                    "-y",
                    "--no-install-recommends",
                    "--print-uris",
                    "-qq",
                    "install",
                ])
                .args(packages),
        )?;
        let debs: Vec<PathBuf> = wanted
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .filter(|name| is_wanted(name, packages))
            .map(|name| archives.join(name))
            .collect();
        if debs.is_empty() {
            bail!("apt found nothing to download for {}", packages.join(" "));
        }
        Ok(debs)
    }

    /// Fetches the package lists when there are none or they are older than this.
    fn refresh(&self, oldest: Duration) -> Result<()> {
        for part in ["lists/partial", "archives/partial", "none/partial", "root"] {
            files::make_dir(&self.dir.join(part))?;
        }
        files::write(&self.dir.join("status"), "")?;
        files::write(&self.dir.join("sources.list"), &self.sources)?;
        let fetched = self.dir.join("fetched");
        if files::age(&fetched).is_none_or(|age| age >= oldest) {
            command::quiet(self.apt("apt-get").arg("update"))
                .with_context(|| format!("cannot fetch package lists with {}", self.sources.trim_end()))?;
            files::write(&fetched, "")?;
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        let dir = |name: &str| self.dir.join(name).display().to_string();
        for (key, value) in [
            ("Dir::Etc::sourcelist", dir("sources.list")),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State", dir("")),
            ("Dir::State::lists", dir("lists")),
            ("Dir::State::status", dir("status")),
            ("Dir::Cache", dir("")),
            ("Dir::Cache::archives", dir("archives")),
            // The directories belong to whoever runs us; apt's own user cannot write there.
            ("APT::Sandbox::User", String::new()),
            ("Acquire::Languages", "none".into()),
            (
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
                "false".into(),
            ),
            // The list of what else would be removed or suggested is of no use here.
            ("APT::Get::AutomaticRemove", "false".into()),
        ] {
            command.arg("-o").arg(format!("{key}={value}"));
        }
        if let Some(name) = self.architecture {
            command.arg("-o").arg(format!("APT::Architecture={name}"));
            command.arg("-o").arg(format!("APT::Architectures={name}"));
        }
        command
    }
}

/// Programs are unpacked only where asked for; of the rest of the closure only libraries.
fn is_wanted(deb: &str, packages: &[&str]) -> bool {
    let name = deb.split('_').next().unwrap_or(deb);
    let library = name.starts_with("lib") || name.starts_with("zlib");
    // The package with a kernel's plain name is empty and depends on the one of today's version.
    let kernel = name.starts_with("linux-image-") && packages.iter().any(|it| it.starts_with("linux-image-"));
    packages.contains(&name) || kernel || (library && !name.ends_with("-perl"))
}

/// Packages unpacked in a directory of their own, libraries beside them.
#[derive(Debug)]
pub(crate) struct Unpacked {
    root: PathBuf,
}

impl Unpacked {
    /// The directory that stands for `/`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The real file behind `path`, with links followed inside this root.
    pub(crate) fn resolve(&self, path: &str) -> Result<PathBuf> {
        let mut at = path.trim_start_matches('/').to_owned();
        for _ in 0..8 {
            let here = self.root.join(&at);
            let merged = ["bin/", "sbin/", "lib/", "lib64/"]
                .iter()
                .any(|it| at.starts_with(it));
            if merged && here.symlink_metadata().is_err() {
                // Newer suites ship it below /usr alone; the links to there belong to no package that is unpacked.
                at = format!("usr/{at}");
                continue;
            }
            let meta = here
                .symlink_metadata()
                .with_context(|| format!("{} is not in the package", here.display()))?;
            if !meta.is_symlink() {
                return Ok(here);
            }
            let link = std::fs::read_link(&here)
                .with_context(|| format!("cannot read the link {}", here.display()))?;
            at = match link.strip_prefix("/") {
                Ok(absolute) => absolute.display().to_string(),
                Err(_) => {
                    let parent = Path::new(&at).parent().unwrap_or(Path::new(""));
                    parent.join(&link).display().to_string()
                }
            };
        }
        bail!("{path} in {} is a loop of links", self.root.display())
    }

    /// The dynamic loader and every shared library that `program` loads, all inside this root.
    ///
    /// A program that is linked statically has none.
    pub(crate) fn libraries(&self, program: &Path) -> Result<Vec<PathBuf>> {
        let image = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
        let Some(interpreter) = crate::elf::Facts::read(&image)?.interpreter else {
            return Ok(Vec::new());
        };
        let loader = self.resolve(&interpreter)?;
        let listed = command::output(self.loader(&loader)?.arg("--list").arg(program))?;
        let mut found = vec![loader];
        for line in listed.lines() {
            if line.contains("not found") {
                bail!("{} misses a library: {}", program.display(), line.trim());
            }
            let Some(path) = line
                .split("=>")
                .nth(1)
                .and_then(|right| right.split_whitespace().next())
            else {
                continue;
            };
            let path = PathBuf::from(path);
            if !path.starts_with(&self.root) {
                bail!(
                    "{} would load {}, which none of its packages holds",
                    program.display(),
                    path.display()
                );
            }
            if !found.contains(&path) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Makes `program` runnable as `link`: directly where the system's libraries serve, else through its own loader.
    pub(crate) fn expose(&self, program: &str, link: &Path) -> Result<()> {
        let real = self.resolve(program)?;
        let direct = command::output(Command::new("ldd").arg(&real));
        if direct.as_ref().is_ok_and(|text| !text.contains("not found")) {
            return files::link(&real, link);
        }
        let image = std::fs::read(&real).with_context(|| format!("cannot read {}", real.display()))?;
        let interpreter = crate::elf::Facts::read(&image)?
            .interpreter
            .with_context(|| format!("{} neither runs here nor has a loader of its own", real.display()))?;
        let loader = self.resolve(&interpreter)?;
        let words = [
            &loader.display().to_string(),
            "--inhibit-cache",
            "--library-path",
            &self.library_path()?,
        ];
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        files::remove(link)?;
        files::write_program(
            link,
            &format!(
                "#!/bin/sh\nexec {} '{}' \"$@\"\n",
                quoted.join(" "),
                real.display()
            ),
        )
    }

    fn loader(&self, loader: &Path) -> Result<Command> {
        let mut command = Command::new(loader);
        command
            .arg("--inhibit-cache")
            .arg("--library-path")
            .arg(self.library_path()?);
        Ok(command)
    }

    /// Debian's library directories of this root: `lib/<triplet>`, `usr/lib/<triplet>`.
    fn library_path(&self) -> Result<String> {
        let mut dirs = Vec::new();
        for parent in ["lib", "usr/lib"] {
            let parent = self.root.join(parent);
            let Ok(entries) = std::fs::read_dir(&parent) else {
                continue;
            };
            dirs.extend(
                entries
                    .filter_map(Result::ok)
                    .map(|entry| entry.path())
                    .filter(|path| path.is_dir() && path.to_string_lossy().ends_with("-linux-gnu")),
            );
        }
        if dirs.is_empty() {
            bail!("{} holds no libraries", self.root.display());
        }
        dirs.sort();
        Ok(dirs
            .iter()
            .map(|dir| dir.display().to_string())
            .collect::<Vec<_>>()
            .join(":"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_closure_only_libraries_are_unpacked() {
        for (deb, wanted) in [
            ("nginx_1.22.1-9_amd64.deb", true),
            ("libpcre2-8-0_10.42-1_amd64.deb", true),
            ("zlib1g_1.2.13_amd64.deb", true),
            ("debconf_1.5.82_all.deb", false),
            ("libtext-glob-perl_0.11-3_all.deb", false),
            ("linux-image-6.12.1-arm64_6.12.1-1_arm64.deb", false),
        ] {
            assert_eq!(is_wanted(deb, &["nginx"]), wanted, "{deb}");
        }
        let kernel = "linux-image-6.12.1-cloud-arm64_6.12.1-1_arm64.deb";
        assert!(is_wanted(kernel, &["linux-image-cloud-arm64"]));
    }
}
