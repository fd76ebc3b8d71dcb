//! A Pod's files on the node: its managed `/etc` files and its volumes.
//!
//! Always holds: ConfigMaps and Secrets lie on tmpfs only; their files appear all at once, through the `..data`
//! symbolic link, as in Kubernetes.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

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
    fs::write(dir.join("hosts"), hosts)
}

fn one(volume: &Volume, path: &Path, memory: u64, lookup: Lookup<'_>) -> Result<(), String> {
    let text = |error: io::Error| format!("{}: {error}", path.display());
    match &volume.source {
        VolumeSource::EmptyDir {
            memory: in_memory,
            size_limit,
        } => {
            if path.exists() {
                return Ok(());
            }
            fs::create_dir_all(path).map_err(text)?;
            if *in_memory {
                // Kubernetes' default is half of what the node has.
                skiff_sys::mount::tmpfs(path, size_limit.unwrap_or(memory / 2), 0o1777)
                    .map_err(|it| it.to_string())
            } else {
                fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(text)
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
    }
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

/// Writes the files into a new directory and turns `..data` to it in one rename.
fn publish(dir: &Path, files: &[FileOf<'_>]) -> io::Result<()> {
    if dir.join("..data").exists() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let version = "..1";
    let inner = dir.join(version);
    for (name, mode, bytes) in files {
        let path = inner.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&inner))?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(u32::from(*mode)))?;
    }
    fs::create_dir_all(&inner)?;
    let new = dir.join("..data_tmp");
    let _ = fs::remove_file(&new);
    symlink(version, &new)?;
    fs::rename(&new, dir.join("..data"))?;
    for (name, ..) in files {
        let first = name.split('/').next().unwrap_or(name);
        let link = dir.join(first);
        if link.symlink_metadata().is_err() {
            symlink(PathBuf::from("..data").join(first), link)?;
        }
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
}
