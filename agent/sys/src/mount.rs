//! Mounts: bind, tmpfs, overlay, and undoing them.
//!
//! Always holds: a read-only bind is read-only before this returns; unmounting what is not mounted is not an error.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};

use crate::config::Overlay;
use crate::error::{Doing, Result};

/// Bytes of mount data that the kernel takes: one page.
pub(crate) const MAX_MOUNT_DATA: usize = 4096;

const NONE: Option<&str> = None;

/// Bind-mounts `source` on `target`, which must exist.
///
/// # Errors
/// When either is missing, or the kernel refuses.
pub fn bind(source: &Path, target: &Path, read_only: bool) -> Result<()> {
    nix::mount::mount(
        Some(source),
        target,
        NONE,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        NONE,
    )
    .doing_path("bind-mount on", target)?;
    if read_only {
        // The first call ignores the flag, so a second one sets it.
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let done = nix::mount::mount(NONE, target, NONE, flags, NONE).doing_path("make read-only", target);
        if done.is_err() {
            let _ = detach(target);
        }
        done?;
    }
    Ok(())
}

/// Mounts a tmpfs of at most `bytes` with the given mode.
///
/// # Errors
/// When the kernel refuses.
pub fn tmpfs(target: &Path, bytes: u64, mode: u32) -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let data = format!("size={bytes},mode={mode:o}");
    nix::mount::mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(data.as_str()))
        .doing_path("mount a tmpfs on", target)
}

/// Mounts an overlay. Upper, work and merged directories are made when missing.
///
/// The layers' paths are given relative to their common parent when the list would not fit into one page otherwise.
///
/// # Errors
/// When a layer is missing, a path holds a `:` or `,`, or there are too many layers for one page of options.
pub fn overlay(config: &Overlay) -> Result<()> {
    for directory in [&config.upper, &config.work, &config.merged] {
        fs::create_dir_all(directory).doing_path("make", directory)?;
    }
    for layer in &config.lower {
        fs::metadata(layer).doing_path("use as a layer", layer)?;
    }
    let data = overlay_options(config, None).doing_path("mount an overlay on", &config.merged)?;
    let (data, base) = if data.len() < MAX_MOUNT_DATA {
        (data, None)
    } else {
        let base = common_parent(&config.lower);
        let data =
            overlay_options(config, base.as_deref()).doing_path("mount an overlay on", &config.merged)?;
        (data, base)
    };
    if data.len() >= MAX_MOUNT_DATA {
        let cause = io::Error::other(format!(
            "{} layers do not fit into one page of options",
            config.lower.len()
        ));
        return Err(cause).doing_path("mount an overlay on", &config.merged);
    }
    // Relative layers are resolved against the working directory; the caller is a child forked for this.
    if let Some(base) = &base {
        nix::unistd::chdir(base).doing_path("enter", base)?;
    }
    let done = nix::mount::mount(
        Some("overlay"),
        &config.merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(data.as_slice()),
    );
    if base.is_some() {
        nix::unistd::chdir("/").doing("enter", "/")?;
    }
    done.doing_path("mount an overlay on", &config.merged)
}

/// `lowerdir=top:…:bottom,upperdir=…,workdir=…`, with layers below `base` relative to it.
fn overlay_options(config: &Overlay, base: Option<&Path>) -> io::Result<Vec<u8>> {
    let mut data = b"lowerdir=".to_vec();
    for (i, layer) in config.lower.iter().rev().enumerate() {
        if i > 0 {
            data.push(b':');
        }
        push_path(
            &mut data,
            base.and_then(|base| layer.strip_prefix(base).ok())
                .unwrap_or(layer),
        )?;
    }
    data.extend_from_slice(b",upperdir=");
    push_path(&mut data, &config.upper)?;
    data.extend_from_slice(b",workdir=");
    push_path(&mut data, &config.work)?;
    Ok(data)
}

pub(crate) fn push_path(data: &mut Vec<u8>, path: &Path) -> io::Result<()> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.iter().any(|byte| matches!(byte, b':' | b',' | b'\\' | 0)) {
        return Err(io::Error::other(format!(
            "{} holds a character that options cannot carry",
            path.display()
        )));
    }
    data.extend_from_slice(bytes);
    Ok(())
}

pub(crate) fn common_parent(paths: &[PathBuf]) -> Option<PathBuf> {
    let mut base = paths.first()?.parent()?.to_owned();
    while !paths.iter().all(|path| path.starts_with(&base) && path != &base) {
        base = base.parent()?.to_owned();
    }
    Some(base)
}

/// Unmounts now, or when the last user is gone.
///
/// # Errors
/// When the kernel refuses; not when nothing is mounted there.
pub fn detach(target: &Path) -> Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(error).doing_path("unmount", target),
    }
}

/// Gives this process (and its children) mounts of its own that no event from outside changes and that are not seen
/// outside.
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub fn private_namespace() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).doing("make", "a mount namespace")?;
    nix::mount::mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .doing("make private the mounts under", "/")
}

/// Mount points at or under `path`, in the order in which they were mounted.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn mounts_under(path: &Path) -> Result<Vec<PathBuf>> {
    let info = fs::read("/proc/self/mountinfo").doing("read", "/proc/self/mountinfo")?;
    Ok(mount_points(&info)
        .filter(|point| point.starts_with(path))
        .collect())
}

/// Whether something is mounted exactly there.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(mounts_under(path)?.iter().any(|point| point == path))
}

fn mount_points(info: &[u8]) -> impl Iterator<Item = PathBuf> {
    info.split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4).map(unescape))
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|d| byte == b'\\' && d.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = octal {
            out.push(
                digits
                    .iter()
                    .fold(0u8, |value, d| value.wrapping_mul(8).wrapping_add(d - b'0')),
            );
            rest = &tail[3..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Unmounts everything at or under `path`, the latest first.
///
/// # Errors
/// With the first that would not go; the others are tried all the same.
pub fn unmount_all_under(path: &Path) -> Result<()> {
    let mut outcome = Ok(());
    for point in mounts_under(path)?.iter().rev() {
        if let Err(error) = detach(point)
            && outcome.is_ok()
        {
            outcome = Err(error);
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_paths_are_unescaped() {
        let info = b"36 35 98:0 / /mnt\\0401/a\\134b rw shared:1 - tmpfs tmpfs rw\n37 36 0:1 / /x rw - proc proc rw\n";
        let points: Vec<_> = mount_points(info).collect();
        assert_eq!(points, [PathBuf::from("/mnt 1/a\\b"), PathBuf::from("/x")]);
    }

    #[test]
    fn overlay_lists_the_top_layer_first() {
        let config = Overlay {
            lower: vec!["/l/bottom".into(), "/l/top".into()],
            upper: "/u".into(),
            work: "/w".into(),
            merged: "/m".into(),
        };
        let check = |base: Option<&str>, expected: &str| {
            let data = overlay_options(&config, base.map(Path::new)).unwrap();
            assert_eq!(String::from_utf8(data).unwrap(), expected);
        };
        check(None, "lowerdir=/l/top:/l/bottom,upperdir=/u,workdir=/w");
        check(Some("/l"), "lowerdir=top:bottom,upperdir=/u,workdir=/w");
        assert_eq!(common_parent(&config.lower), Some("/l".into()));
        let bad = Overlay {
            lower: vec!["/l/a:b".into()],
            ..config
        };
        assert!(overlay_options(&bad, None).is_err());
    }

    #[test]
    fn many_layers_are_mounted_relative_to_their_parent() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir
            .path()
            .join("a-directory-with-a-long-name-so-that-forty-of-them-do-not-fit-into-one-page-of-options");
        let lower: Vec<_> = (0..40).map(|i| base.join(format!("layer-{i}"))).collect();
        for (i, layer) in lower.iter().enumerate() {
            fs::create_dir_all(layer).unwrap();
            fs::write(layer.join("top"), i.to_string()).unwrap();
        }
        let config = Overlay {
            lower,
            upper: dir.path().join("u"),
            work: dir.path().join("w"),
            merged: dir.path().join("m"),
        };
        // The working directory of the test process is restored for whoever runs next to it.
        tmpfs_free(&config, |merged| {
            assert_eq!(fs::read_to_string(merged.join("top")).unwrap(), "39");
        });
    }

    fn tmpfs_free(config: &Overlay, see: impl Fn(&Path)) {
        overlay(config).unwrap();
        see(&config.merged);
        assert!(is_mount_point(&config.merged).unwrap());
        unmount_all_under(&config.merged).unwrap();
        assert!(!is_mount_point(&config.merged).unwrap());
        detach(&config.merged).unwrap();
    }

    #[test]
    fn a_read_only_bind_refuses_writes_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&target).unwrap();
        bind(&source, &target, true).unwrap();
        let refused = fs::write(target.join("file"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        unmount_all_under(dir.path()).unwrap();
        assert!(mounts_under(dir.path()).unwrap().is_empty());
    }
}
