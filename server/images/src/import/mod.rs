//! What `skiff image import` feeds: a docker-archive (`docker save`, plain or gzipped), an OCI layout as a directory,
//! or an OCI layout as an archive; from a file or from a stream.
//!
//! Always holds: nothing is believed before its digest was computed here; a reference is written last. Layers of a
//! docker-archive are stored gzip-compressed (links to nodes are slow, and the archive has them plain); whatever is
//! already compressed, and all of an OCI layout, is stored as it is.
//!
//! An archive that is both (newer `docker save`) is read as the OCI layout.

mod archive;
mod docker;
mod layout;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use skiff_protocol::image_ref::{Digest, ImageRef};

use crate::digest::Hashing;
use crate::error::Error;
use crate::limits::{MAX_IMPORT_BYTES, MAX_JSON_BYTES};
use crate::store::{ImageStore, Stage};
use archive::Staged;

/// One name that an import gave to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The name.
    pub reference: ImageRef,
    /// The digest of its manifest or index.
    pub digest: Digest,
    /// How many layers it has, over all platforms, each counted once.
    pub layers: usize,
    /// The size of its configurations and layers as stored, in bytes.
    pub bytes: u64,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The archive is being read: bytes so far, and altogether where that is known.
    Reading {
        /// Bytes read.
        done: u64,
        /// The file's size.
        total: Option<u64>,
    },
    /// Layers are being verified and stored: how many are done, of how many.
    Storing {
        /// Layers stored.
        done: usize,
        /// Layers of this image.
        total: usize,
    },
}

/// What the steps of one import share.
struct Import<'a> {
    store: &'a ImageStore,
    stage: &'a Stage,
    /// The file as the user named it, for errors.
    file: &'a str,
    name: Option<&'a ImageRef>,
    progress: &'a mut dyn FnMut(Progress),
}

impl ImageStore {
    /// Imports the images of a file or of an OCI layout directory.
    ///
    /// `name` overrides the name that the file has, and is needed where it has none; it goes with exactly one image.
    ///
    /// # Errors
    /// [`Error`] names the file, and the part of it that is wrong.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&ImageRef>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Imported>, Error> {
        let label = path.display().to_string();
        let metadata = path.metadata().map_err(Error::io("open", path))?;
        if !metadata.is_dir() {
            let file = File::open(path).map_err(Error::io("open", path))?;
            return self.import_stream(file, &label, Some(metadata.len()), name, progress);
        }
        let stage = self.stage()?;
        let mut import = Import {
            store: self,
            stage: &stage,
            file: &label,
            name,
            progress,
        };
        import.contents(&Contents::Directory(path.to_owned()))
    }

    /// Imports the images of an archive that comes as a stream; `label` names it in errors.
    ///
    /// # Errors
    /// As [`Self::import`].
    pub fn import_reader(
        &self,
        source: impl Read,
        label: &str,
        name: Option<&ImageRef>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Imported>, Error> {
        self.import_stream(source, label, None, name, progress)
    }

    fn import_stream(
        &self,
        source: impl Read,
        label: &str,
        total: Option<u64>,
        name: Option<&ImageRef>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<Imported>, Error> {
        let stage = self.stage()?;
        let counted = Counted {
            inner: source,
            done: 0,
            total,
            progress: &mut *progress,
        };
        let staged = archive::stage(counted, &stage, label)?;
        let mut import = Import {
            store: self,
            stage: &stage,
            file: label,
            name,
            progress,
        };
        import.contents(&Contents::Staged(staged))
    }
}

/// The files that were given, by their names.
enum Contents {
    Directory(PathBuf),
    Staged(Staged),
}

impl Contents {
    /// A regular file, or `None`. Directories are only ever asked for names that cannot lead out of them.
    fn open(&self, name: &str) -> Result<Option<File>, Error> {
        let path = match self {
            Self::Directory(root) => root.join(name),
            Self::Staged(staged) => match staged.get(name) {
                Some(entry) => entry.path.clone(),
                None => return Ok(None),
            },
        };
        match File::open(&path) {
            Ok(file) => {
                let is_file = file.metadata().map_err(Error::io("look at", &path))?.is_file();
                Ok(is_file.then_some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", &path)(error)),
        }
    }
}

impl Import<'_> {
    fn contents(&mut self, contents: &Contents) -> Result<Vec<Imported>, Error> {
        let is_layout = contents.open("oci-layout")?.is_some() && contents.open("index.json")?.is_some();
        if is_layout {
            return layout::import(self, contents);
        }
        if contents.open("manifest.json")?.is_some()
            && let Contents::Staged(staged) = contents
        {
            return docker::import(self, contents, staged);
        }
        Err(Error::Unrecognised(self.file.to_owned()))
    }

    /// A small file, whole.
    fn json(&self, contents: &Contents, name: &str) -> Result<Vec<u8>, Error> {
        let Some(file) = contents.open(name)? else {
            return Err(Error::invalid(self.file, name, "it is missing"));
        };
        let mut bytes = Vec::new();
        file.take(MAX_JSON_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::invalid(self.file, name, error))?;
        if bytes.len() as u64 > MAX_JSON_BYTES {
            let (file, what) = (self.file.to_owned(), name.to_owned());
            return Err(Error::Limit {
                file,
                what,
                limit: MAX_JSON_BYTES,
            });
        }
        Ok(bytes)
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8], part: &str) -> Result<T, Error> {
        serde_json::from_slice(bytes).map_err(|error| Error::invalid(self.file, part, error))
    }

    /// Copies `source` into the store as it is, if it is `expected`. Returns its size.
    fn copy_blob(&self, source: File, expected: &Digest, part: &str) -> Result<u64, Error> {
        let path = self.stage.file();
        let mut source = Hashing::new(BufReader::new(source).take(MAX_IMPORT_BYTES));
        let mut target = File::create(&path).map_err(Error::io("create", &path))?;
        io::copy(&mut source, &mut target).map_err(Error::io("write", &path))?;
        let (_, got, size) = source.finish();
        if got != *expected {
            let (file, part) = (self.file.to_owned(), part.to_owned());
            return Err(Error::Mismatch {
                file,
                part,
                expected: *expected,
                got,
            });
        }
        self.store.commit_blob(&path, expected)?;
        Ok(size)
    }
}

/// Counts what is read, tells it, and stops at the limit.
struct Counted<'a, R> {
    inner: R,
    done: u64,
    total: Option<u64>,
    progress: &'a mut dyn FnMut(Progress),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        if self.done > MAX_IMPORT_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 64 GiB"));
        }
        (self.progress)(Progress::Reading {
            done: self.done,
            total: self.total,
        });
        Ok(count)
    }
}

/// The stream decompressed if it begins as gzip.
fn gunzipped<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(2);
    source.by_ref().take(2).read_to_end(&mut magic)?;
    let is_gzip = magic == [0x1f, 0x8b];
    let whole = io::Cursor::new(magic).chain(source);
    Ok(if is_gzip {
        Box::new(MultiGzDecoder::new(whole))
    } else {
        Box::new(whole)
    })
}
