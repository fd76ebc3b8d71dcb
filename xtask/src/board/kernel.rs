//! Debian's arm64 kernel, and those of its modules that the board loads, in the order in which they can be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::debian::Unpacked;

/// What the board loads at its start; whatever these need comes before them.
const MODULES: [&str; 20] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "overlay",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_ct",
    "nft_compat",
    "nft_reject_inet",
    "nft_fib_inet",
    "nft_limit",
    "fuse",
    "softdog",
    "dm_mod",
];

/// An unpacked kernel package.
pub(super) struct Kernel {
    image: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

impl Kernel {
    /// Finds the kernel and the modules of a package.
    pub(super) fn of(package: &Unpacked) -> Result<Self> {
        let boot = package.root().join("boot");
        let image = only(&boot, |name| name.starts_with("vmlinuz-"))?;
        let usual = ["usr/lib/modules", "lib/modules"].map(|dir| package.root().join(dir));
        let dir = usual
            .iter()
            .find(|dir| dir.is_dir())
            .context("the kernel's package has no modules")?;
        let modules = only(dir, |_| true)?;
        let listed = crate::files::read(&modules.join("modules.builtin"))?;
        let mut files = BTreeMap::new();
        walk(&modules, &mut files)?;
        Ok(Self {
            image,
            files,
            built_in: listed.lines().filter_map(module_name).collect(),
        })
    }

    /// The kernel itself.
    pub(super) fn image(&self) -> &Path {
        &self.image
    }

    /// The modules, uncompressed, each after those that it needs.
    pub(super) fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut ordered = Vec::new();
        let mut seen = BTreeSet::new();
        for name in MODULES {
            self.add(name, &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(file) = self.files.get(name) else {
            bail!("the kernel has no module {name}");
        };
        let bytes = content(file)?;
        for needed in needs(&bytes, b"depends=", ',') {
            self.add(&needed, seen, ordered)?;
        }
        // What it is better with; such a name may also be that of an algorithm which the kernel has built in.
        for wished in needs(&bytes, b"softdep=pre: ", ' ') {
            if self.files.contains_key(&wished) {
                self.add(&wished, seen, ordered)?;
            }
        }
        ordered.push((name.to_owned(), bytes));
        Ok(())
    }
}

/// What a module names in one of its fields.
fn needs(module: &[u8], field: &[u8], between: char) -> Vec<String> {
    let mut found = Vec::new();
    for text in module.split(|byte| *byte == 0) {
        if let Some(names) = text
            .strip_prefix(field)
            .and_then(|it| std::str::from_utf8(it).ok())
        {
            found.extend(names.split(between).filter(|it| !it.is_empty()).map(plain));
        }
    }
    found
}

fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// `nf_tables` of `kernel/net/netfilter/nf_tables.ko.xz`.
fn module_name(path: &str) -> Option<String> {
    let last = path.rsplit('/').next()?;
    last.split_once(".ko").map(|(name, _)| plain(name))
}

/// A module as the kernel takes it.
fn content(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_some_and(|it| it == "ko") {
        return std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let output = Command::new("xz").args(["-dc", "--"]).arg(file).output();
    let output = output.with_context(|| format!("cannot start xz for {}", file.display()))?;
    if !output.status.success() {
        bail!("xz cannot unpack {}", file.display());
    }
    Ok(output.stdout)
}

fn walk(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            walk(&path, files)?;
        } else if let Some(name) = module_name(&path.to_string_lossy()) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The only entry of a directory whose name is as wanted.
fn only(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut found = entries
        .filter_map(Result::ok)
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path());
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        _ => bail!("{} was expected to hold one kernel", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_it() {
        let module =
            b"\x7fELF\0depends=nf-conntrack,libcrc32c\0name=x\0softdep=pre: crc32c other\0depends=\0";
        assert_eq!(needs(module, b"depends=", ','), ["nf_conntrack", "libcrc32c"]);
        assert_eq!(needs(module, b"softdep=pre: ", ' '), ["crc32c", "other"]);
    }

    #[test]
    fn a_module_is_named_after_its_file() {
        for (path, name) in [
            ("kernel/drivers/md/dm-mod.ko", Some("dm_mod")),
            ("kernel/net/bridge/bridge.ko.xz", Some("bridge")),
            ("modules.dep", None),
        ] {
            assert_eq!(module_name(path).as_deref(), name);
        }
    }
}
