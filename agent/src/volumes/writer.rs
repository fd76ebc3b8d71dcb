//! Files that change all at once, as Kubernetes' atomic writer publishes them.
//!
//! ```text
//!   volume/a      ──▶ ..data/a
//!   volume/..data ──▶ ..2          turned in one rename, which makes the new files the volume
//!   volume/..2/a                   written whole before that, never changed after it
//! ```
//!
//! Always holds: what a reader opens through `..data` is of one version; a crash leaves the old version or the new one;
//! the same files again write nothing.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use super::payload::Payload;

/// What leads to the version that counts.
const DATA: &str = "..data";

/// The link that becomes [`DATA`].
const DATA_NEW: &str = "..data_tmp";

/// Mode of the directories.
const DIRECTORY: u32 = 0o755;

/// Makes `files` the content of the volume `dir`, readable for `group` where there is one. Says whether it wrote anything.
///
/// # Errors
/// When something cannot be written; what was there before stays.
pub(crate) fn publish(dir: &Path, files: &Payload, group: Option<u32>) -> io::Result<bool> {
    let Some(current) = current(dir) else {
        first(dir, files, group)?;
        return Ok(true);
    };
    let old = dir.join(format!("..{current}"));
    if same(&old, files)? {
        link_all(&old, dir, group)?;
        return Ok(false);
    }
    let version = format!("..{}", current + 1);
    let new = dir.join(&version);
    // Half of an earlier attempt may be there.
    remove(&new)?;
    fill(dir, &version, files, group)?;
    turn(dir, &version, group)?;
    link_all(&new, dir, group)?;
    unlink_gone(dir, files)?;
    remove(&old)?;
    Ok(true)
}

/// Whether the volume was published once.
#[must_use]
pub(crate) fn is_published(dir: &Path) -> bool {
    current(dir).is_some()
}

/// The version that `..data` leads to, if that is a whole one.
fn current(dir: &Path) -> Option<u64> {
    let target = fs::read_link(dir.join(DATA)).ok()?;
    let version = target.to_str()?.strip_prefix("..")?.parse().ok()?;
    dir.join(&target).is_dir().then_some(version)
}

/// The first version. No container has seen what is there, and it may hold what is no longer wanted.
fn first(dir: &Path, files: &Payload, group: Option<u32>) -> io::Result<()> {
    remove(dir)?;
    let version = "..1";
    fill(dir, version, files, group)?;
    // The links stand before the data, so that the volume is whole with one rename.
    link_all(&dir.join(version), dir, group)?;
    turn(dir, version, group)
}

fn turn(dir: &Path, version: &str, group: Option<u32>) -> io::Result<()> {
    let new = dir.join(DATA_NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    link(Path::new(version), &new, group)?;
    fs::rename(&new, dir.join(DATA))
}

/// Writes the files of one version.
fn fill(dir: &Path, version: &str, files: &Payload, group: Option<u32>) -> io::Result<()> {
    open_dirs(dir, Path::new(version), group)?;
    let inner = dir.join(version);
    for (path, it) in files {
        let parent = Path::new(path).parent().unwrap_or(Path::new(""));
        open_dirs(&inner, parent, group)?;
        let path = inner.join(path);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(&it.bytes)?;
        if group.is_some() {
            chown(&path, None, group)?;
        }
        file.set_permissions(Permissions::from_mode(u32::from(it.mode)))?;
    }
    Ok(())
}

/// Makes `base` and the directories of `path` below it, for all to read, whatever the umask.
fn open_dirs(base: &Path, path: &Path, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(base.join(path))?;
    let mode = if group.is_some() {
        DIRECTORY | 0o2000
    } else {
        DIRECTORY
    };
    let mut dir = base.to_owned();
    open_dir(&dir, mode, group)?;
    for part in path {
        dir.push(part);
        open_dir(&dir, mode, group)?;
    }
    Ok(())
}

fn open_dir(dir: &Path, mode: u32, group: Option<u32>) -> io::Result<()> {
    if group.is_some() {
        chown(dir, None, group)?;
    }
    fs::set_permissions(dir, Permissions::from_mode(mode))
}

fn link(target: &Path, path: &Path, group: Option<u32>) -> io::Result<()> {
    symlink(target, path)?;
    if group.is_some() {
        lchown(path, None, group)?;
    }
    Ok(())
}

/// Has everything in `inner` reachable from `dir` through `..data`.
fn link_all(inner: &Path, dir: &Path, group: Option<u32>) -> io::Result<()> {
    for entry in fs::read_dir(inner)? {
        let name = entry?.file_name();
        let path = dir.join(&name);
        if path.symlink_metadata().is_err() {
            link(&Path::new(DATA).join(&name), &path, group)?;
        }
    }
    Ok(())
}

/// Removes the links to what is no longer there.
fn unlink_gone(dir: &Path, files: &Payload) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let kept = |path: &String| path.split('/').next().is_some_and(|top| name == top);
        if name.as_encoded_bytes().starts_with(b"..") || files.keys().any(kept) {
            continue;
        }
        fs::remove_file(dir.join(name))?;
    }
    Ok(())
}

/// Whether a version holds just these files.
fn same(version: &Path, files: &Payload) -> io::Result<bool> {
    for (path, it) in files {
        let path = version.join(path);
        let Ok(metadata) = path.symlink_metadata() else {
            return Ok(false);
        };
        let alike = metadata.is_file()
            && metadata.len() == it.bytes.len() as u64
            && metadata.mode() & 0o777 == u32::from(it.mode)
            && fs::read(&path)? == it.bytes;
        if !alike {
            return Ok(false);
        }
    }
    Ok(count(version)? == files.len())
}

/// Files below a directory.
fn count(dir: &Path) -> io::Result<usize> {
    let (mut count, mut pending) = (0, vec![PathBuf::from(dir)]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    Ok(count)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::*;

    /// Of `path=text` words, mode 0644; a path with a `!` has 0440.
    fn files(text: &str) -> Payload {
        let one = |word: &str| {
            let (path, text) = word.split_once('=').unwrap();
            let mode = if path.ends_with('!') { 0o440 } else { 0o644 };
            let bytes = text.as_bytes().to_vec();
            (path.trim_end_matches('!').to_owned(), File { mode, bytes })
        };
        text.split_whitespace().map(one).collect()
    }

    fn names(dir: &Path) -> String {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names.join(" ")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    const FILES: &str = "a!=1 sub/b=2";

    type Before = fn(&Path);

    #[test]
    fn a_half_made_volume_is_made_anew() {
        let cases: [(&str, Before); 5] = [
            ("nothing", |_| {}),
            ("an empty directory", |volume| {
                fs::create_dir_all(volume).unwrap();
            }),
            ("files without the link", |volume| {
                fs::create_dir_all(volume.join("..1/gone")).unwrap();
                fs::write(volume.join("..1/a"), "cut").unwrap();
                symlink("..data/gone", volume.join("gone")).unwrap();
            }),
            ("a link that was not turned", |volume| {
                fs::create_dir_all(volume).unwrap();
                symlink("..1", volume.join(DATA_NEW)).unwrap();
            }),
            ("links that are missing", |volume| {
                publish(volume, &files(FILES), None).unwrap();
                fs::remove_file(volume.join("a")).unwrap();
                fs::remove_file(volume.join("sub")).unwrap();
            }),
        ];
        for (what, before) in cases {
            let dir = tempfile::tempdir().unwrap();
            let volume = dir.path().join("v");
            before(&volume);
            publish(&volume, &files(FILES), None).unwrap();
            assert_eq!(names(&volume), "..1 ..data a sub", "{what}");
            assert_eq!(fs::read(volume.join("a")).unwrap(), b"1", "{what}");
            assert_eq!(fs::read(volume.join("sub/b")).unwrap(), b"2", "{what}");
            assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
            for (path, expected) in [
                ("", 0o755),
                ("..1", 0o755),
                ("..1/sub", 0o755),
                ("a", 0o440),
                ("sub/b", 0o644),
            ] {
                assert_eq!(mode(&volume.join(path)), expected, "{what}: {path}");
            }
        }
    }

    #[test]
    fn the_links_are_there_before_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fill(&volume, "..1", &files(FILES), None).unwrap();
        link_all(&volume.join("..1"), &volume, None).unwrap();
        assert!(!volume.join("a").exists(), "it leads nowhere yet");
        turn(&volume, "..1", None).unwrap();
        assert!(volume.join("a").exists());
    }

    #[test]
    fn updates_are_new_versions_and_the_same_again_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        for (text, wrote, expected) in [
            ("a=1 sub/b=2", true, "..1 ..data a sub"),
            ("a=1 sub/b=2", false, "..1 ..data a sub"),
            ("a=2 sub/b=2", true, "..2 ..data a sub"),
            ("a!=2 sub/b=2", true, "..3 ..data a sub"),
            ("a!=2 sub/c=2", true, "..4 ..data a sub"),
            ("a!=2", true, "..5 ..data a"),
            ("sub/b=3 z=1", true, "..6 ..data sub z"),
            ("", true, "..7 ..data"),
            ("", false, "..7 ..data"),
            ("a=1", true, "..8 ..data a"),
        ] {
            assert_eq!(publish(&volume, &files(text), None).unwrap(), wrote, "{text}");
            assert_eq!(names(&volume), expected, "{text}");
            for (path, it) in files(text) {
                assert_eq!(fs::read(volume.join(path)).unwrap(), it.bytes, "{text}");
            }
        }
    }

    #[test]
    fn an_update_that_was_cut_off_is_done_again() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        publish(&volume, &files("a=1"), None).unwrap();
        fs::create_dir_all(volume.join("..2/half")).unwrap();
        symlink("..2", volume.join(DATA_NEW)).unwrap();
        assert_eq!(
            fs::read(volume.join("a")).unwrap(),
            b"1",
            "the old version counts"
        );
        publish(&volume, &files("a=2"), None).unwrap();
        assert_eq!(names(&volume), "..2 ..data a");
        assert_eq!(names(&volume.join("..2")), "a");
    }

    #[test]
    fn a_reader_of_the_old_version_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        publish(&volume, &files("a=1"), None).unwrap();
        // As a subPath mount does, which binds what the path led to.
        let old = fs::File::open(volume.join("a")).unwrap();
        publish(&volume, &files("a=2"), None).unwrap();
        assert_eq!(io::read_to_string(old).unwrap(), "1");
        assert_eq!(fs::read(volume.join("a")).unwrap(), b"2");
    }

    #[test]
    fn a_group_owns_everything() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        publish(&volume, &files(FILES), Some(4242)).unwrap();
        for (path, expected) in [
            ("", 0o2755),
            ("..1", 0o2755),
            ("..1/sub", 0o2755),
            ("..1/a", 0o440),
            ("..1/sub/b", 0o644),
        ] {
            let metadata = fs::metadata(volume.join(path)).unwrap();
            assert_eq!(
                (metadata.gid(), metadata.mode() & 0o7777),
                (4242, expected),
                "{path}"
            );
        }
        assert_eq!(volume.join("a").symlink_metadata().unwrap().gid(), 4242);
    }
}
