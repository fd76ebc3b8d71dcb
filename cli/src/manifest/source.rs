//! Files, directories and standard input as `-f` names them.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use skiff_yaml::FILE_BYTES;

/// Files of one directory that are read.
const FILES: usize = 1_000;

/// A manifest file.
#[derive(Debug)]
pub(crate) struct Source {
    /// As the user named it.
    pub(crate) name: String,
    /// What it holds; at most one byte more than [`FILE_BYTES`].
    pub(crate) bytes: Vec<u8>,
}

impl Source {
    /// The text of a line, counted from 1.
    pub(crate) fn line(&self, line: usize) -> String {
        let mut lines = self.bytes.split(|byte| *byte == b'\n');
        let text = lines.nth(line.saturating_sub(1)).unwrap_or_default();
        String::from_utf8_lossy(text).trim_end_matches('\r').to_owned()
    }
}

/// Reads everything that the arguments name, directories file by file.
pub(super) fn read_all(files: &[impl AsRef<Path>]) -> anyhow::Result<Vec<Source>> {
    let mut out = Vec::new();
    for path in files {
        let path = path.as_ref();
        if path == Path::new("-") {
            let bytes = bounded(std::io::stdin().lock()).context("standard input")?;
            out.push(Source {
                name: "standard input".to_owned(),
                bytes,
            });
        } else if path.is_dir() {
            let inside = of_directory(path).with_context(|| path.display().to_string())?;
            if inside.is_empty() {
                bail!(
                    "{}: no .yaml, .yml or .json files in this directory",
                    path.display()
                );
            }
            for file in inside {
                out.push(read(&file)?);
            }
        } else {
            out.push(read(path)?);
        }
    }
    Ok(out)
}

fn read(path: &Path) -> anyhow::Result<Source> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| name.clone())?;
    let bytes = bounded(file).with_context(|| name.clone())?;
    Ok(Source { name, bytes })
}

/// One byte past the bound is enough to see that it is passed.
fn bounded(from: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The manifests of a directory, by name, as kubectl takes them: not of the directories in it.
fn of_directory(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let wanted = file
            .extension()
            .is_some_and(|it| it == "yaml" || it == "yml" || it == "json");
        if wanted && file.is_file() {
            files.push(file);
        }
        if files.len() > FILES {
            bail!("more than {FILES} manifests in one directory");
        }
    }
    files.sort();
    Ok(files)
}
