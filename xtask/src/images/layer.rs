//! One layer as a tar stream that depends on its entries alone: sorted, fixed times and owners.

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

    fn file(&mut self, path: &str, mode: u32, content: Vec<u8>) -> &mut Self {
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
}

fn append(builder: &mut Builder<Vec<u8>>, path: &str, entry: &Entry) -> Result<()> {
    if path.starts_with('/') || path.split('/').any(|part| part.is_empty() || part == "..") {
        bail!("not a plain relative path");
    }
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
    fn a_path_that_leaves_the_root_is_refused() {
        let mut layer = Layer::default();
        layer.text("../etc/passwd", "x");
        assert!(layer.to_tar().is_err());
    }
}
