//! One layer as a tar or cpio stream that depends on its entries alone: sorted, fixed times and owners.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use tar::{Builder, EntryType, Header};

/// The time of every file: 2020-01-01T00:00:00Z. Old enough that no clock finds it in the future.
pub(crate) const EPOCH: u64 = 1_577_836_800;

enum Entry {
    Dir { mode: u32, owner: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

/// A layer under construction. Paths have no leading slash; parents are added by themselves.
#[derive(Default)]
pub(crate) struct Layer {
    entries: BTreeMap<String, Entry>,
}

impl Layer {
    /// A directory owned by `owner` (user and group).
    pub(crate) fn dir(&mut self, path: &str, mode: u32, owner: u32) -> &mut Self {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::Dir { mode, owner });
        self
    }

    /// A plain file.
    pub(crate) fn text(&mut self, path: &str, content: &str) -> &mut Self {
        self.file(path, 0o644, content.into())
    }

    /// An executable script.
    pub(crate) fn script(&mut self, path: &str, content: &str) -> &mut Self {
        self.file(path, 0o755, content.into())
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.parents(path);
        self.entries.insert(
            path.to_owned(),
            Entry::Link {
                target: target.to_owned(),
            },
        );
        self
    }

    /// A copy of a file of this machine, executable where it was.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> Result<&mut Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let meta = from
            .metadata()
            .with_context(|| format!("cannot stat {}", from.display()))?;
        let mode = if meta.permissions().mode() & 0o111 == 0 {
            0o644
        } else {
            0o755
        };
        Ok(self.file(path, mode, content))
    }

    /// A file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) -> &mut Self {
        self.parents(path);
        self.entries
            .insert(path.to_owned(), Entry::File { mode, content });
        self
    }

    fn parents(&mut self, path: &str) {
        for (slash, _) in path.match_indices('/') {
            self.entries
                .entry(path[..slash].to_owned())
                .or_insert(Entry::Dir {
                    mode: 0o755,
                    owner: 0,
                });
        }
    }

    /// The layer as an uncompressed tar.
    pub(crate) fn to_tar(&self) -> Result<Vec<u8>> {
        let mut builder = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            append(&mut builder, path, entry).with_context(|| format!("cannot add {path} to a layer"))?;
        }
        builder.into_inner().context("cannot finish a layer")
    }

    /// The same tree as the kernel takes it for its first root: `newc` (Documentation/driver-api/early-userspace/buffer-format.rst).
    pub(crate) fn to_cpio(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, entry)) in self.entries.iter().enumerate() {
            is_plain(path)?;
            let (mode, owner, content): (u32, u32, &[u8]) = match entry {
                Entry::Dir { mode, owner } => (0o040_000 | mode, *owner, &[]),
                Entry::File { mode, content } => (0o100_000 | mode, 0, content),
                Entry::Link { target } => (0o120_777, 0, target.as_bytes()),
            };
            cpio_entry(&mut out, path, [u32::try_from(number)? + 1, mode, owner], content)?;
        }
        cpio_entry(&mut out, "TRAILER!!!", [0, 0, 0], &[])?;
        out.resize(out.len().next_multiple_of(512), 0);
        Ok(out)
    }
}

/// One entry: a header of thirteen hexadecimal numbers, the name, the content, the last two padded to four bytes.
fn cpio_entry(out: &mut Vec<u8>, name: &str, [number, mode, owner]: [u32; 3], content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large"))?;
    let name_size = u32::try_from(name.len())? + 1;
    out.extend_from_slice(b"070701");
    let time = u32::try_from(EPOCH)?;
    for field in [
        number, mode, owner, owner, 1, time, size, 0, 0, 0, 0, name_size, 0,
    ] {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

fn is_plain(path: &str) -> Result<()> {
    if path.starts_with('/') || path.split('/').any(|part| part.is_empty() || part == "..") {
        bail!("{path} is not a plain relative path");
    }
    Ok(())
}

fn append(builder: &mut Builder<Vec<u8>>, path: &str, entry: &Entry) -> Result<()> {
    is_plain(path)?;
    match entry {
        Entry::Dir { mode, owner } => {
            let mut header = header(EntryType::Directory, *mode, 0);
            header.set_uid(u64::from(*owner));
            header.set_gid(u64::from(*owner));
            builder.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        Entry::File { mode, content } => {
            builder.append_data(
                &mut header(EntryType::Regular, *mode, content.len()),
                path,
                content.as_slice(),
            )?;
        }
        Entry::Link { target } => {
            builder.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?;
        }
    }
    Ok(())
}

/// A header with everything fixed that could differ between two machines.
pub(crate) fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(EPOCH);
    header.set_size(size as u64);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_times_do_not_depend_on_how_it_was_filled() {
        let mut one = Layer::default();
        one.text("etc/passwd", "x")
            .dir("tmp", 0o1777, 0)
            .link("bin/sh", "busybox");
        let mut two = Layer::default();
        two.link("bin/sh", "busybox")
            .dir("tmp", 0o1777, 0)
            .text("etc/passwd", "x");
        assert_eq!(one.to_tar().unwrap(), two.to_tar().unwrap());
    }

    #[test]
    fn parents_come_before_their_children() {
        let mut layer = Layer::default();
        layer.text("a/b/c", "x");
        let bytes = layer.to_tar().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let paths: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(paths, ["a/", "a/b/", "a/b/c"]);
    }

    #[test]
    fn a_cpio_is_padded_and_ends_with_its_trailer() {
        let mut layer = Layer::default();
        layer.text("a/b", "four!").link("c", "a/b");
        let bytes = layer.to_cpio().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        let at = text.find("a/b\0").unwrap();
        // Header and name of the directory before it: 110 + 2 bytes, a multiple of four.
        assert_eq!(at, 112 + 110);
        assert_eq!(&bytes[at + 6..at + 11], b"four!");
        assert!(text.contains("TRAILER!!!\0"));
        assert_eq!(text.matches("070701").count(), 4);
    }

    #[test]
    fn a_path_that_leaves_the_root_is_refused() {
        let mut layer = Layer::default();
        layer.text("../etc/passwd", "x");
        assert!(layer.to_tar().is_err() && layer.to_cpio().is_err());
    }
}
