//! A tar archive's files, each in a file of the import's own directory, by name.
//!
//! The archive's order is unknown and its index may come last, so its files are kept until the end. Always holds:
//! names are only keys here, never paths of this machine; sizes, counts and lengths are bounded before they are kept.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;

use skiff_protocol::image_ref::Digest;
use tar::{Archive, EntryType};

use super::gunzipped;
use crate::digest::Hashing;
use crate::error::Error;
use crate::limits::{MAX_ENTRIES, MAX_EXTENSION_BYTES, MAX_IMPORT_BYTES, MAX_LINKS};
use crate::store::Stage;

/// One regular file of the archive.
pub(super) struct StagedFile {
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Staged {
    files: BTreeMap<String, StagedFile>,
    links: BTreeMap<String, String>,
}

impl Staged {
    /// The file under this name, or under what the links from there lead to.
    pub(super) fn get(&self, name: &str) -> Option<&StagedFile> {
        let mut name = normalise(name)?;
        for _ in 0..=MAX_LINKS {
            if let Some(file) = self.files.get(&name) {
                return Some(file);
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }
}

/// Without `.` and `..`; `None` where it leads above the archive.
fn normalise(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Reads the archive to its end.
pub(super) fn stage(source: impl Read, stage: &Stage, file: &str) -> Result<Staged, Error> {
    let failed = |source: io::Error| Error::Archive {
        file: file.to_owned(),
        source,
    };
    let plain = gunzipped(source).map_err(failed)?;
    // What gzip hides is bounded like what it shows.
    let mut archive = Archive::new(BufReader::with_capacity(64 << 10, plain.take(MAX_IMPORT_BYTES)));
    let mut staged = Staged::default();
    let mut extensions = Extensions::default();
    for (count, entry) in archive.entries().map_err(failed)?.raw(true).enumerate() {
        // What is no tar at all fails here, and is better called by its name.
        let mut entry = entry.map_err(|error| {
            if count == 0 {
                unrecognised(file, error)
            } else {
                failed(error)
            }
        })?;
        if count >= MAX_ENTRIES {
            let (file, what) = (file.to_owned(), "the number of entries".to_owned());
            return Err(Error::Limit {
                file,
                what,
                limit: MAX_ENTRIES as u64,
            });
        }
        let kind = entry.header().entry_type();
        if extensions.take_note(kind, &mut entry).map_err(failed)? {
            continue;
        }
        let extended = std::mem::take(&mut extensions);
        let path = extended
            .path
            .unwrap_or_else(|| entry.header().path_bytes().into_owned());
        let Some(name) = String::from_utf8(path).ok().and_then(|path| normalise(&path)) else {
            continue;
        };
        match kind {
            EntryType::Regular | EntryType::Continuous => {
                staged
                    .files
                    .insert(name, keep(&mut entry, stage).map_err(failed)?);
            }
            EntryType::Symlink | EntryType::Link => {
                let link = extended
                    .link
                    .or_else(|| entry.header().link_name_bytes().map(std::borrow::Cow::into_owned));
                let link = link
                    .and_then(|link| String::from_utf8(link).ok())
                    .unwrap_or_default();
                let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                let from_root = kind == EntryType::Link || link.starts_with('/');
                let target = if from_root {
                    normalise(&link)
                } else {
                    normalise(&format!("{directory}/{link}"))
                };
                staged.links.extend(target.map(|target| (name, target)));
            }
            _ => {}
        }
    }
    Ok(staged)
}

fn unrecognised(file: &str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Archive {
            file: file.to_owned(),
            source: error,
        },
        _ => Error::Unrecognised(file.to_owned()),
    }
}

fn keep<R: Read>(entry: &mut tar::Entry<'_, R>, stage: &Stage) -> io::Result<StagedFile> {
    let size = entry.header().entry_size()?;
    let path = stage.file();
    let mut hashing = Hashing::new(&mut *entry);
    io::copy(&mut hashing, &mut File::create(&path)?)?;
    let (_, digest, copied) = hashing.finish();
    if copied != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(StagedFile { path, digest, size })
}

/// What GNU and PAX records say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Extensions {
    /// Whether the entry was such a record.
    fn take_note<R: Read>(&mut self, kind: EntryType, entry: &mut tar::Entry<'_, R>) -> io::Result<bool> {
        match kind {
            EntryType::GNULongName => self.path = Some(until_nul(bounded(entry)?)),
            EntryType::GNULongLink => self.link = Some(until_nul(bounded(entry)?)),
            EntryType::XHeader => self.pax(&bounded(entry)?)?,
            EntryType::XGlobalHeader => drop(bounded(entry)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// `<length> <key>=<value>\n`, the length counting all of it.
    fn pax(&mut self, mut records: &[u8]) -> io::Result<()> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a PAX record is malformed");
        while !records.is_empty() {
            let space = records
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or_else(malformed)?;
            let length = std::str::from_utf8(&records[..space])
                .ok()
                .and_then(|digits| digits.parse::<usize>().ok());
            let length = length.ok_or_else(malformed)?;
            if length <= space + 1 || length > records.len() {
                return Err(malformed());
            }
            let record = &records[space + 1..length - 1];
            if let Some(path) = record.strip_prefix(b"path=") {
                self.path = Some(path.to_vec());
            } else if let Some(link) = record.strip_prefix(b"linkpath=") {
                self.link = Some(link.to_vec());
            } else if record.starts_with(b"size=") || record.starts_with(b"GNU.sparse.") {
                let reason = "files over 8 GiB and sparse files are not supported";
                return Err(io::Error::new(io::ErrorKind::Unsupported, reason));
            }
            records = &records[length..];
        }
        Ok(())
    }
}

fn bounded<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<u8>> {
    let size = entry.header().entry_size()?;
    if size > MAX_EXTENSION_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "a long-name or PAX record of more than 64 KiB",
        ));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    bytes
}
