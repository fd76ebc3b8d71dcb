//! The tar archive's entries, parsed into values that are safe to act on.
//!
//! Always holds: an [`Entry`]'s path is a list of non-empty components without `.`, `..`, `/` and NUL, within Linux'
//! lengths; its numbers fit the kernel's types. Long names, links and attributes come from GNU and PAX records of a
//! bounded size. The `tar` crate gives the raw headers; its own reading of these records has no bound.

use std::io::{self, Read};

use rustix::fs::Timespec;
use tar::{Archive, EntryType, Header};

use crate::error::UnpackError;
use crate::limits::{MAX_EXTENSION_BYTES, MAX_NAME_BYTES, MAX_PATH_BYTES};
use crate::unpack::tree::refused;

/// What an entry makes.
pub(crate) enum Kind {
    Directory,
    File,
    Symlink(Vec<u8>),
    /// A path within the layer.
    HardLink(Vec<Vec<u8>>),
    Fifo,
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
}

/// One checked entry; `data` gives its content.
pub(crate) struct Entry<'a, R: Read> {
    /// Empty for the layer's root.
    pub(crate) path: Vec<Vec<u8>>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timespec,
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) data: tar::Entry<'a, R>,
}

/// What GNU and PAX records say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Timespec>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    any: bool,
}

/// Reads entries in order.
pub(crate) struct Reader<'a, R: Read> {
    entries: tar::Entries<'a, R>,
}

impl<'a, R: Read> Reader<'a, R> {
    pub(crate) fn new(archive: &'a mut Archive<R>) -> Result<Self, UnpackError> {
        Ok(Self {
            entries: archive.entries().map_err(UnpackError::Archive)?.raw(true),
        })
    }

    /// The next entry, or `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<Entry<'a, R>>, UnpackError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(entry) = self.entries.next() else {
                if extensions.any {
                    return Err(archive_error("it ends after a long-name record"));
                }
                return Ok(None);
            };
            let mut entry = entry.map_err(UnpackError::Archive)?;
            extensions.any = true;
            match entry.header().entry_type() {
                EntryType::GNULongName => extensions.path = Some(long_text(&mut entry)?),
                EntryType::GNULongLink => extensions.link = Some(long_text(&mut entry)?),
                EntryType::XHeader => extensions.read_pax(&extension(&mut entry)?)?,
                // Global records carry comments and defaults that no image builder writes; Docker ignores them too.
                EntryType::XGlobalHeader => drop(extension(&mut entry)?),
                _ => return parse(entry, extensions).map(Some),
            }
        }
    }
}

fn archive_error(text: &str) -> UnpackError {
    UnpackError::Archive(io::Error::new(io::ErrorKind::InvalidData, text.to_owned()))
}

fn extension<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, UnpackError> {
    let size = entry.header().entry_size().map_err(UnpackError::Archive)?;
    if size > MAX_EXTENSION_BYTES {
        return Err(UnpackError::Limit {
            what: "a long-name or PAX record",
            limit: MAX_EXTENSION_BYTES,
        });
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(UnpackError::Archive)?;
    if bytes.len() as u64 != size {
        return Err(UnpackError::Archive(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

/// A GNU long name: text up to the first NUL.
fn long_text<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = extension(entry)?;
    bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    Ok(bytes)
}

impl Extensions {
    /// `<length> <key>=<value>\n`, the length counting all of it (pax(1), "Extended header").
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), UnpackError> {
        let bad = || archive_error("a PAX record is malformed");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length: usize = number(&records[..space])
                .ok_or_else(bad)?
                .try_into()
                .map_err(|_| bad())?;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &records[space + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            self.pax(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn pax(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        let whole = || number(value).ok_or_else(|| archive_error("a PAX record's number is malformed"));
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(whole()?),
            b"uid" => self.uid = Some(whole()?),
            b"gid" => self.gid = Some(whole()?),
            b"mtime" => {
                let mtime = timestamp(value).ok_or_else(|| archive_error("a PAX mtime is malformed"))?;
                self.mtime = Some(mtime);
            }
            _ => {
                if key.starts_with(b"GNU.sparse.") {
                    return Err(archive_error(
                        "it has a sparse file; build the layer without --sparse",
                    ));
                }
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`
fn timestamp(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let negative = seconds.starts_with('-');
    let seconds: i64 = seconds.parse().ok()?;
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = nine.parse().ok()?;
    if negative && nanoseconds > 0 {
        // -1.25 is 750 ms after -2.
        return Some(Timespec {
            tv_sec: seconds.checked_sub(1)?,
            tv_nsec: 1_000_000_000 - nanoseconds,
        });
    }
    Some(Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    })
}

fn parse<'a, R: Read>(entry: tar::Entry<'a, R>, extensions: Extensions) -> Result<Entry<'a, R>, UnpackError> {
    let header = entry.header();
    let raw_path = extensions
        .path
        .unwrap_or_else(|| header.path_bytes().into_owned());
    let path = components(&raw_path)?;
    let size = header.entry_size().map_err(UnpackError::Archive)?;
    if extensions.size.is_some_and(|other| other != size) {
        return Err(refused(
            &path,
            "its size differs between the PAX record and the header (larger than 8 GiB?)",
        ));
    }
    let link = extensions
        .link
        .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
    let kind = kind(header, &path, &raw_path, link.as_deref())?;
    let id = |given: Option<u64>, in_header: io::Result<u64>| {
        let id = given.map_or(in_header, Ok).map_err(UnpackError::Archive)?;
        match u32::try_from(id) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(refused(&path, "its owner is not below 4294967295")),
        }
    };
    let uid = id(extensions.uid, header.uid())?;
    let gid = id(extensions.gid, header.gid())?;
    let mode = header.mode().map_err(UnpackError::Archive)? & 0o7777;
    let header_time = header
        .mtime()
        .ok()
        .and_then(|seconds| i64::try_from(seconds).ok())
        .unwrap_or(0);
    let mtime = extensions.mtime.unwrap_or(Timespec {
        tv_sec: header_time,
        tv_nsec: 0,
    });
    let xattrs = extensions.xattrs;
    Ok(Entry {
        path,
        kind,
        mode,
        uid,
        gid,
        mtime,
        size,
        xattrs,
        data: entry,
    })
}

fn kind(
    header: &Header,
    path: &[Vec<u8>],
    raw_path: &[u8],
    link: Option<&[u8]>,
) -> Result<Kind, UnpackError> {
    let target = || match link {
        Some(link) if !link.is_empty() && link.len() < MAX_PATH_BYTES && !link.contains(&0) => {
            Ok(link.to_vec())
        }
        _ => Err(refused(path, "its link target is empty, too long or has a NUL")),
    };
    Ok(match header.entry_type() {
        EntryType::Directory => Kind::Directory,
        // Archives older than POSIX marked a directory by its trailing slash.
        EntryType::Regular if raw_path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Symlink => Kind::Symlink(target()?),
        EntryType::Link => Kind::HardLink(components(&target()?)?),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Block | EntryType::Char => Kind::Device {
            block: header.entry_type() == EntryType::Block,
            major: header.device_major().map_err(UnpackError::Archive)?.unwrap_or(0),
            minor: header.device_minor().map_err(UnpackError::Archive)?.unwrap_or(0),
        },
        EntryType::GNUSparse => {
            return Err(refused(
                path,
                "sparse files are not supported; build the layer without --sparse",
            ));
        }
        other => {
            return Err(refused(
                path,
                &format!(
                    "entries of type {:?} are not supported",
                    char::from(other.as_byte())
                ),
            ));
        }
    })
}

/// A leading `/` and `./` mean the layer's root, as in other engines; `..` means trouble.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>, UnpackError> {
    let name = || vec![path[..path.len().min(MAX_NAME_BYTES)].to_vec()];
    if path.len() >= MAX_PATH_BYTES {
        return Err(refused(&name(), "its path is longer than 4095 bytes"));
    }
    if path.contains(&0) {
        return Err(refused(&name(), "its path has a NUL"));
    }
    let mut kept = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refused(&name(), "its path has '..'")),
            part if part.len() > MAX_NAME_BYTES => {
                return Err(refused(&name(), "a part of its path is longer than 255 bytes"));
            }
            part => kept.push(part.to_vec()),
        }
    }
    Ok(kept)
}
