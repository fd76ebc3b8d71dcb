//! A Pod's files on the node: its managed `/etc` files and its volumes.
//!
//! Always holds: ConfigMaps and Secrets lie on tmpfs only; their files appear all at once, through the `..data`
//! symbolic link, as in Kubernetes. What a crash or a full disk left half made is never taken for whole, and what is whole
//! is not touched again, for it belongs to the containers.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

use skiff_protocol::wire::spec::{ConfigData, KeyToPath, PodSpec, Volume, VolumeSource};

use crate::plan::{Lookup, volume_path};

/// Makes everything that the Pod's containers will find mounted. What is there already is kept.
///
/// # Errors
/// What is missing or cannot be made, in a kubelet's words.
pub(crate) fn prepare(
    pod: &PodSpec,
    ip: Option<std::net::Ipv4Addr>,
    run: &Path,
    state: &Path,
    memory: u64,
    lookup: Lookup<'_>,
) -> Result<(), String> {
    etc(pod, ip, run).map_err(|error| format!("cannot write the Pod's /etc files: {error}"))?;
    for volume in &pod.volumes {
        let path = volume_path(run, state, &volume.name, &volume.source);
        let failed = |why: String| format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name);
        one(volume, &path, memory, lookup).map_err(failed)?;
    }
    Ok(())
}

fn etc(pod: &PodSpec, ip: Option<std::net::Ipv4Addr>, run: &Path) -> io::Result<()> {
    let dir = run.join("etc");
    if dir.join("hosts").exists() {
        return Ok(());
    }
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("hostname"), format!("{}\n", pod.hostname))?;
    fs::write(
        dir.join("resolv.conf"),
        fs::read("/etc/resolv.conf").unwrap_or_default(),
    )?;
    let own = ip
        .map(|ip| format!("{ip}\t{}\n", pod.hostname))
        .unwrap_or_default();
    let hosts = format!(
        "# Managed by Skiff.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n{own}"
    );
    // The last of the three tells that all are there.
    let new = dir.join(".hosts");
    fs::write(&new, hosts)?;
    for file in [&new, &dir.join("hostname"), &dir.join("resolv.conf")] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644))?;
    }
    fs::rename(new, dir.join("hosts"))
}

fn one(volume: &Volume, path: &Path, memory: u64, lookup: Lookup<'_>) -> Result<(), String> {
    let text = |error: io::Error| format!("{}: {error}", path.display());
    match &volume.source {
        VolumeSource::EmptyDir {
            memory: in_memory,
            size_limit,
        } => {
            if *in_memory {
                // Kubernetes' default is half of what the node has; to the kernel 0 would mean no bound.
                let bytes = size_limit.filter(|bytes| *bytes > 0).unwrap_or(memory / 2);
                in_tmpfs(path, bytes)
            } else {
                on_disk(path).map_err(text)
            }
        }
        VolumeSource::Config {
            secret,
            name,
            items,
            default_mode,
            optional,
        } => {
            let kind = if *secret { "secret" } else { "configmap" };
            let data = match lookup(*secret, name) {
                Some(data) => Some(data),
                None if *optional => None,
                None => return Err(format!("{kind} {name:?} not found")),
            };
            let files = match &data {
                Some(data) => select(data, items, *default_mode, *optional)?,
                None => Vec::new(),
            };
            publish(path, &files).map_err(text)
        }
        VolumeSource::HostPath { .. }
        | VolumeSource::Projected { .. }
        | VolumeSource::Image { .. }
        | VolumeSource::Claim { .. } => Err("volumes of this kind are not supported yet".to_owned()),
    }
}

/// A directory that anybody may write to.
fn on_disk(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    // A volume's name has no dot, so this is no other volume. With the rename it is there and open to all at once.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}"));
    fs::create_dir_all(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o777))?;
    fs::rename(new, path)
}

/// A directory with a tmpfs on it; one without is not yet the volume.
fn in_tmpfs(path: &Path, bytes: u64) -> Result<(), String> {
    let text = |error: io::Error| format!("{}: {error}", path.display());
    fs::create_dir_all(path).map_err(text)?;
    // The kernel lists mounts by their real paths.
    let path = fs::canonicalize(path).map_err(text)?;
    let mounted = skiff_sys::mount::is_mount_point(&path).map_err(|error| error.to_string())?;
    if mounted {
        return Ok(());
    }
    skiff_sys::mount::tmpfs(&path, bytes, 0o1777).map_err(|error| error.to_string())
}

type FileOf<'a> = (&'a str, u16, &'a [u8]);

fn select<'a>(
    data: &'a ConfigData,
    items: &'a [KeyToPath],
    mode: u16,
    optional: bool,
) -> Result<Vec<FileOf<'a>>, String> {
    if items.is_empty() {
        return Ok(data
            .data
            .iter()
            .map(|(key, value)| (key.as_str(), mode, value.as_slice()))
            .collect());
    }
    let mut out = Vec::new();
    for item in items {
        match data.data.get(&item.key) {
            Some(value) => out.push((item.path.as_str(), item.mode.unwrap_or(mode), value.as_slice())),
            None if optional => {}
            None => return Err(format!("references non-existent config key: {}", item.key)),
        }
    }
    Ok(out)
}

/// What `..data` leads to.
const VERSION: &str = "..1";

/// Writes the files into a new directory and turns `..data` to it in one rename, which makes the volume whole.
fn publish(dir: &Path, files: &[FileOf<'_>]) -> io::Result<()> {
    let data = dir.join("..data");
    if data.exists() {
        return link_all(&data, dir);
    }
    fill(dir, files)?;
    let new = dir.join("..data_tmp");
    symlink(VERSION, &new)?;
    fs::rename(&new, &data)
}

/// Writes the files, and the visible links to them, which lead nowhere until `..data` is there.
fn fill(dir: &Path, files: &[FileOf<'_>]) -> io::Result<()> {
    // No container has seen what is here, and it may hold what is no longer wanted.
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let inner = dir.join(VERSION);
    open_dirs(dir, Path::new(VERSION))?;
    for (name, mode, bytes) in files {
        let parent = Path::new(name).parent().unwrap_or(Path::new(""));
        open_dirs(&inner, parent)?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(inner.join(name))?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(u32::from(*mode)))?;
    }
    link_all(&inner, dir)
}

/// Has everything in `inner` reachable from `dir` through `..data`.
fn link_all(inner: &Path, dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(inner)? {
        let name = entry?.file_name();
        let link = dir.join(&name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(&name), link)?;
        }
    }
    Ok(())
}

/// Makes the directories of `path` below `base`, and `base`, for all to read, whatever the umask.
fn open_dirs(base: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir_all(base.join(path))?;
    let mut dir = base.to_owned();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    for part in path {
        dir.push(part);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stand_behind_the_data_link_with_their_modes() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        publish(&volume, &[("a", 0o440, b"1"), ("sub/b", 0o644, b"2")]).unwrap();
        assert_eq!(fs::read(volume.join("a")).unwrap(), b"1");
        assert_eq!(fs::read(volume.join("sub/b")).unwrap(), b"2");
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(
            fs::metadata(volume.join("a")).unwrap().permissions().mode() & 0o777,
            0o440
        );
    }

    const FILES: [FileOf<'static>; 2] = [("a", 0o440, b"1"), ("sub/b", 0o644, b"2")];

    type Before = fn(&Path);

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_half_made_config_volume_is_made_anew() {
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
                symlink("..1", volume.join("..data_tmp")).unwrap();
            }),
            ("links that are missing", |volume| {
                publish(volume, &FILES).unwrap();
                fs::remove_file(volume.join("a")).unwrap();
                fs::remove_file(volume.join("sub")).unwrap();
            }),
        ];
        for (what, before) in cases {
            let dir = tempfile::tempdir().unwrap();
            let volume = dir.path().join("v");
            before(&volume);
            publish(&volume, &FILES).unwrap();
            let mut names: Vec<_> = fs::read_dir(&volume)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names, ["..1", "..data", "a", "sub"], "{what}");
            assert_eq!(fs::read(volume.join("a")).unwrap(), b"1", "{what}");
            assert_eq!(fs::read(volume.join("sub/b")).unwrap(), b"2", "{what}");
            for dir in ["", "..1", "..1/sub"] {
                assert_eq!(mode(&volume.join(dir)), 0o755, "{what}: {dir}");
            }
        }
    }

    #[test]
    fn the_links_are_there_before_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        fill(&volume, &FILES).unwrap();
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
        assert!(!volume.join("a").exists(), "it leads nowhere yet");
        assert!(volume.join("..data").symlink_metadata().is_err());
    }

    #[test]
    fn a_half_made_empty_dir_on_disk_is_finished_and_a_whole_one_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volumes/v");
        // Made, but not open to all yet.
        fs::create_dir_all(dir.path().join("volumes/.v")).unwrap();
        on_disk(&path).unwrap();
        assert_eq!(mode(&path), 0o777);
        assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 1);
        // From now on its mode is the containers' choice.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        on_disk(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
    }

    #[test]
    fn a_directory_without_its_tmpfs_is_no_memory_volume() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real");
        let path = real.join("v");
        fs::create_dir_all(&path).unwrap();
        let through = dir.path().join("link");
        symlink(&real, &through).unwrap();
        in_tmpfs(&path, 1 << 20).unwrap();
        assert!(skiff_sys::fs::is_tmpfs(&path).unwrap());
        assert_eq!(mode(&path), 0o1777);
        fs::write(path.join("kept"), "1").unwrap();
        for again in [&path, &through.join("v")] {
            in_tmpfs(again, 1 << 20).unwrap();
        }
        let (mounts, kept) = (
            skiff_sys::mount::mounts_under(dir.path()),
            path.join("kept").exists(),
        );
        skiff_sys::mount::unmount_all_under(dir.path()).unwrap();
        assert_eq!(mounts.unwrap(), [path]);
        assert!(kept, "what is in it stays visible");
    }
}
