//! `user[:group]` against `/etc/passwd` and `/etc/group` as stacked layers show them.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use skiff_images::{DeviceNodes, Image, ImageConfig, UnpackOptions, unpack_layer};
use skiff_protocol::image_ref::Digest;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/var/lib/app:/bin/sh\n\
    # comment\nbroken:x:abc:1::/:\n12:x:13:14::relative:\nmax:x:4294967295:0::/:\n";
const GROUP: &str =
    "root:x:0:\napps:x:1001:\nvideo:x:44:app,other\naudio:x:29: app\nvideo2:x:44:app\nself:x:1001:app\n";

fn image(layers: &[&Path]) -> Image {
    Image {
        digest: Digest::from_sha256([0; 32]),
        repo_digest: Digest::from_sha256([0; 32]),
        layers: layers.iter().map(PathBuf::from).collect(),
        config: ImageConfig::default(),
        size_bytes: 0,
    }
}

/// A layer with these files.
fn layer(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

/// `uid:gid groups home`, or a part of the error.
fn check(image: &Image, spec: &str, expected: &str) {
    let shown = match image.resolve_user(spec) {
        Ok(user) => format!(
            "{}:{} {:?} {}",
            user.uid, user.gid, user.additional_gids, user.home
        ),
        Err(error) => error.to_string(),
    };
    assert!(shown.contains(expected), "{spec:?}: {shown}, expected {expected}");
}

#[test]
fn users_are_found_as_docker_finds_them() {
    let base = layer(&[("etc/passwd", PASSWD), ("etc/group", GROUP)]);
    let image = image(&[base.path()]);
    let table = [
        ("", "0:0 [] /root"),
        ("root", "0:0 [] /root"),
        ("0", "0:0 [] /root"),
        ("app", "1000:1001 [29, 44] /var/lib/app"),
        ("1000", "1000:1001 [29, 44] /var/lib/app"),
        ("app:video", "1000:44 [] /var/lib/app"),
        ("app:7", "1000:7 [] /var/lib/app"),
        ("4242", "4242:0 [] /"),
        ("4242:4243", "4242:4243 [] /"),
        (":video", "0:44 [] /root"),
        // A name of digits is a name; its home is not absolute.
        ("12", "13:14 [] /"),
        ("nobody", "unable to find user \"nobody\""),
        ("broken", "unable to find user \"broken\""),
        ("max", "unable to find user \"max\""),
        ("app:none", "unable to find group \"none\""),
        ("app:", "is not user[:group]"),
        ("a:b:c", "is not user[:group]"),
        ("4294967295", "is not user[:group]"),
        ("4294967296", "is not user[:group]"),
        ("1:99999999999", "is not user[:group]"),
        ("-1", "unable to find user"),
    ];
    for (spec, expected) in table {
        check(&image, spec, expected);
    }
}

#[test]
fn upper_layers_hide_lower_ones() {
    let lower = layer(&[("etc/passwd", "app:x:1:1::/:\n"), ("etc/group", "app:x:1:\n")]);
    let over = layer(&[("etc/passwd", "app:x:2:2::/:\n")]);
    check(&image(&[lower.path(), over.path()]), "app", "2:2");
    check(&image(&[over.path(), lower.path()]), "app", "1:1");
    check(&image(&[lower.path(), over.path()]), "app:app", "2:1");
    let white = layer(&[("etc/x", "")]);
    mknodat(
        CWD,
        white.path().join("etc/passwd"),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .unwrap();
    check(
        &image(&[lower.path(), white.path()]),
        "app",
        "unable to find user",
    );
    check(&image(&[lower.path(), white.path(), over.path()]), "app", "2:2");
    let gone = layer(&[]);
    mknodat(
        CWD,
        gone.path().join("etc"),
        FileType::CharacterDevice,
        Mode::empty(),
        0,
    )
    .unwrap();
    check(&image(&[lower.path(), gone.path()]), "app", "unable to find user");
    let file = layer(&[("etc", "not a directory")]);
    check(&image(&[lower.path(), file.path()]), "app", "unable to find user");
    // An opaque directory, made by the unpack that images go through.
    let opaque = tempfile::tempdir().unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    builder
        .append_data(&mut header, "etc/.wh..wh..opq", &b""[..])
        .unwrap();
    let options = UnpackOptions {
        max_bytes: 1 << 20,
        max_entries: 10,
        devices: DeviceNodes::Skip,
        keep_free: 0,
    };
    let archive = builder.into_inner().unwrap();
    unpack_layer(
        archive.as_slice(),
        File::open(opaque.path()).unwrap().as_fd(),
        &options,
    )
    .unwrap();
    check(
        &image(&[lower.path(), opaque.path()]),
        "app",
        "unable to find user",
    );
}

#[test]
fn no_link_leads_out_of_the_layers() {
    let host = layer(&[("passwd", "app:x:666:666::/:\n")]);
    let lower = layer(&[("real/passwd", "app:x:5:5::/:\n")]);
    let linked = |target: &str| {
        let dir = layer(&[("etc/x", "")]);
        symlink(target, dir.path().join("etc/passwd")).unwrap();
        dir
    };
    for (target, expected) in [
        ("/real/passwd", "5:5"),
        ("../real/passwd", "5:5"),
        ("../../../../../../../../real/passwd", "5:5"),
        ("passwd", "/etc/passwd: "),
        ("/nowhere", "unable to find user"),
        ("/real", "/etc/passwd: "),
    ] {
        check(&image(&[lower.path(), linked(target).path()]), "app", expected);
    }
    let outside = host.path().join("passwd").display().to_string();
    check(
        &image(&[lower.path(), linked(&outside).path()]),
        "app",
        "unable to find user",
    );
    let directory = layer(&[]);
    symlink(host.path(), directory.path().join("etc")).unwrap();
    check(&image(&[directory.path()]), "app", "unable to find user");
    let fifo = layer(&[("etc/x", "")]);
    mknodat(CWD, fifo.path().join("etc/passwd"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    check(&image(&[fifo.path()]), "app", "not a regular file");
    let huge = layer(&[("etc/x", "")]);
    File::create(huge.path().join("etc/passwd"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    check(&image(&[huge.path()]), "app", "larger than 4194304 bytes");
}
