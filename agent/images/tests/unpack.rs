//! Layers as builders write them, and layers as an attacker would.
//!
//! Needs root: owners, device nodes and `trusted.` attributes are what is tested.

#![allow(clippy::unwrap_used)]

#[path = "common/archive.rs"]
mod archive;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use skiff_images::{DeviceNodes, UnpackError, UnpackOptions, Unpacked, unpack_layer};
use tar::EntryType;

use archive::Tar;

fn options() -> UnpackOptions {
    UnpackOptions {
        max_bytes: 4 << 20,
        max_entries: 1000,
        devices: DeviceNodes::Skip,
        keep_free: 0,
    }
}

fn unpack(archive: &[u8], root: &Path, options: &UnpackOptions) -> Result<Unpacked, UnpackError> {
    let root = fs::File::open(root).unwrap();
    unpack_layer(archive, root.as_fd(), options)
}

/// One line per file: path, kind, permissions, owner, and content or target.
fn listing(root: &Path) -> String {
    fn walk(directory: &Path, root: &Path, lines: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let kind = metadata.file_type();
            let (letter, content) = if kind.is_dir() {
                let mut value = [0; 8];
                let opaque = rustix::fs::getxattr(&path, "trusted.overlay.opaque", &mut value).is_ok();
                (
                    "d",
                    if opaque {
                        "opaque".to_owned()
                    } else {
                        String::new()
                    },
                )
            } else if kind.is_symlink() {
                ("l", fs::read_link(&path).unwrap().display().to_string())
            } else if kind.is_char_device() {
                ("c", metadata.rdev().to_string())
            } else if kind.is_fifo() {
                ("p", String::new())
            } else {
                (
                    "-",
                    format!(
                        "{}{}",
                        fs::read_to_string(&path).unwrap(),
                        "*".repeat(metadata.nlink() as usize - 1)
                    ),
                )
            };
            let name = path.strip_prefix(root).unwrap().display();
            let mode = metadata.mode() & 0o7777;
            let line = format!(
                "{name} {letter}{mode:o} {}:{} {content}",
                metadata.uid(),
                metadata.gid()
            );
            lines.push(line.trim_end().to_owned());
            if kind.is_dir() {
                walk(&path, root, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines.sort();
    lines.join("\n")
}

fn check(name: &str, archive: Tar, expected: &str) {
    let root = tempfile::tempdir().unwrap();
    let result = unpack(&archive.bytes(), root.path(), &options());
    assert!(result.is_ok(), "{name}: {result:?}");
    let expected: Vec<&str> = expected
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(listing(root.path()), expected.join("\n"), "{name}");
}

#[test]
fn layers_become_overlay_directories() {
    check("a file", Tar::new().file("a", "A"), "a -644 1000:1001 A");
    check(
        "dot and slash are the root",
        Tar::new().dir("./").file("./a", "A").file("/b", "B"),
        "
        a -644 1000:1001 A
        b -644 1000:1001 B",
    );
    check(
        "parents that are left out",
        Tar::new().file("a/b/c", "C"),
        "
        a d755 0:0
        a/b d755 0:0
        a/b/c -644 1000:1001 C",
    );
    check(
        "set-user-ID and sticky bits",
        Tar::new().raw(EntryType::Regular, b"su", b"", 0o4755, b"x").raw(
            EntryType::Directory,
            b"tmp",
            b"",
            0o1777,
            b"",
        ),
        "
        su -4755 1000:1001 x
        tmp d1777 1000:1001",
    );
    check(
        "links",
        Tar::new()
            .file("a", "A")
            .hard_link("b", "a")
            .hard_link("c", "/a")
            .symlink("d", "../../x"),
        "
        a -644 1000:1001 A**
        b -644 1000:1001 A**
        c -644 1000:1001 A**
        d l777 1000:1001 ../../x",
    );
    check(
        "a hard link to a symbolic link",
        Tar::new().symlink("a", "/etc/passwd").hard_link("b", "a"),
        "
        a l777 1000:1001 /etc/passwd
        b l777 1000:1001 /etc/passwd",
    );
    check(
        "a link to itself",
        Tar::new().file("a", "A").hard_link("a", "./a"),
        "a -644 1000:1001 A",
    );
    check(
        "a FIFO",
        Tar::new().kind(EntryType::Fifo, "f"),
        "f p644 1000:1001",
    );
    check(
        "the later entry counts",
        Tar::new().file("a", "1").file("a", "2"),
        "a -644 1000:1001 2",
    );
    check(
        "a file over a directory",
        Tar::new().file("a/b/c", "1").file("a", "2"),
        "a -644 1000:1001 2",
    );
    check(
        "a directory over a file",
        Tar::new().file("a", "1").dir("a").file("a/b", "2"),
        "
        a d755 1000:1001
        a/b -644 1000:1001 2",
    );
    check(
        "a directory over a link",
        Tar::new().dir("x").symlink("a", "x").dir("a").file("a/b", "2"),
        "
        a d755 1000:1001
        a/b -644 1000:1001 2
        x d755 1000:1001",
    );
    check(
        "a directory twice keeps its content",
        Tar::new().dir("a").file("a/b", "1").dir("a"),
        "
        a d755 1000:1001
        a/b -644 1000:1001 1",
    );
    check(
        "devices are left out",
        Tar::new()
            .device("null", 1, 3)
            .device("white", 0, 0)
            .file("a", "A"),
        "
        a -644 1000:1001 A",
    );
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    check(
        "PAX path and owner",
        Tar::new()
            .pax(&[("path", long.as_bytes()), ("uid", b"70000"), ("gid", b"3000000")])
            .file("short", "L"),
        &format!("{} d755 0:0\n{long} -644 70000:3000000 L", "d".repeat(120)),
    );
    check(
        "PAX link target",
        Tar::new()
            .pax(&[("linkpath", long.as_bytes())])
            .symlink("l", "short"),
        &format!("l l777 1000:1001 {long}"),
    );
    let mut gnu = long.clone().into_bytes();
    gnu.push(0);
    check(
        "GNU long name",
        Tar::new()
            .raw(EntryType::GNULongName, b"././@LongLink", b"", 0o644, &gnu)
            .file("short", "L"),
        &format!("{} d755 0:0\n{long} -644 1000:1001 L", "d".repeat(120)),
    );
}

#[test]
fn whiteouts_hide_only_what_is_below() {
    check(
        "a file",
        Tar::new().dir("a").file("a/.wh.b", ""),
        "
        a d755 1000:1001
        a/b c0 0:0 0",
    );
    check(
        "before the file of the same layer",
        Tar::new().file(".wh.b", "").file("b", "new"),
        "b -644 1000:1001 new",
    );
    check(
        "after the file of the same layer",
        Tar::new().file("b", "new").file(".wh.b", ""),
        "b -644 1000:1001 new",
    );
    check(
        "with a directory of the same layer",
        Tar::new().file(".wh.b", "").dir("b").file("b/c", "1"),
        "
        b d755 1000:1001 opaque
        b/c -644 1000:1001 1",
    );
    check(
        "opaque",
        Tar::new().dir("a").file("a/.wh..wh..opq", "").file("a/b", "1"),
        "
        a d755 1000:1001 opaque
        a/b -644 1000:1001 1",
    );
    check(
        "aufs' own",
        Tar::new()
            .dir(".wh..wh.plnk")
            .file(".wh..wh.aufs", "")
            .file("a", "A"),
        "a -644 1000:1001 A",
    );
}

#[test]
fn links_in_a_path_stay_beneath_the_root() {
    check(
        "relative",
        Tar::new()
            .dir("usr/lib")
            .symlink("lib", "usr/lib")
            .file("lib/a", "A"),
        "
        lib l777 1000:1001 usr/lib
        usr d755 0:0
        usr/lib d755 1000:1001
        usr/lib/a -644 1000:1001 A",
    );
    check(
        "absolute",
        Tar::new().symlink("esc", "/tmp/inside").file("esc/a", "A"),
        "
        esc l777 1000:1001 /tmp/inside
        tmp d755 0:0
        tmp/inside d755 0:0
        tmp/inside/a -644 1000:1001 A",
    );
    check(
        "above the root",
        Tar::new().symlink("esc", "../../../../..").file("esc/a", "A"),
        "
        a -644 1000:1001 A
        esc l777 1000:1001 ../../../../..",
    );
    check(
        "a file replaces the link, not its target",
        Tar::new().symlink("a", "/etc/hostname").file("a", "mine"),
        "
        a -644 1000:1001 mine",
    );
    check(
        "the way is looked up again when a link on it is replaced",
        Tar::new()
            .dir("x")
            .symlink("l", "x")
            .file("l/a", "1")
            .dir("l")
            .file("l/b", "2"),
        "
        l d755 1000:1001
        l/b -644 1000:1001 2
        x d755 1000:1001
        x/a -644 1000:1001 1",
    );
    check(
        "a whiteout through a link",
        Tar::new().dir("usr").symlink("l", "usr").file("l/.wh.a", ""),
        "
        l l777 1000:1001 usr
        usr d755 1000:1001
        usr/a c0 0:0 0",
    );
}

fn refused(name: &str, archive: &[u8], options: &UnpackOptions, words: &str) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(outer.path().join("victim"), "untouched").unwrap();
    let error = unpack(archive, &root, options).expect_err(name).to_string();
    assert!(error.contains(words), "{name}: {error}");
    let around: Vec<_> = fs::read_dir(outer.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(
        around.len(),
        2,
        "{name}: something was written outside: {around:?}"
    );
    assert_eq!(
        fs::read_to_string(outer.path().join("victim")).unwrap(),
        "untouched",
        "{name}"
    );
}

#[test]
fn hostile_layers_are_refused() {
    let deep = "d/".repeat(300);
    let long_part = "x".repeat(256);
    let long_path = "x/".repeat(2100);
    let looping = Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "");
    let table: Vec<(&str, Tar, &str)> = vec![
        ("dot dot", Tar::new().file("../victim", "owned"), "'..'"),
        (
            "dot dot within",
            Tar::new().file("a/../../victim", "owned"),
            "'..'",
        ),
        (
            "dot dot whiteout",
            Tar::new().file(".wh...", ""),
            "whiteout must name",
        ),
        ("dot whiteout", Tar::new().file(".wh..", ""), "whiteout must name"),
        (
            "nameless whiteout",
            Tar::new().file(".wh.", ""),
            "whiteout must name",
        ),
        ("hard link out", Tar::new().hard_link("a", "../victim"), "'..'"),
        (
            "hard link through a link",
            Tar::new().symlink("l", "..").hard_link("a", "l/victim"),
            "is not in the layer",
        ),
        (
            "hard link to an absolute path",
            Tar::new().hard_link("a", "/etc/passwd"),
            "is not in the layer",
        ),
        (
            "hard link to a directory",
            Tar::new().dir("d").hard_link("a", "d"),
            "hard link to a directory",
        ),
        (
            "hard link to the root",
            Tar::new().hard_link("a", "./"),
            "the layer's root",
        ),
        ("links in a circle", looping, "more than 40 symbolic links"),
        (
            "a file as a parent",
            Tar::new().file("a", "").file("a/b", ""),
            "not a directory",
        ),
        (
            "too deep",
            Tar::new().pax(&[("path", deep.as_bytes())]).file("x", ""),
            "nested deeper",
        ),
        (
            "too long a part",
            Tar::new().pax(&[("path", long_part.as_bytes())]).file("x", ""),
            "longer than 255",
        ),
        (
            "too long a path",
            Tar::new().pax(&[("path", long_path.as_bytes())]).file("x", ""),
            "longer than 4095",
        ),
        ("a NUL", Tar::new().pax(&[("path", b"a\0b")]).file("x", ""), "NUL"),
        (
            "a NUL in a link",
            Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("x", "y"),
            "NUL",
        ),
        ("an empty link", Tar::new().symlink("x", ""), "empty"),
        (
            "another size in PAX",
            Tar::new().pax(&[("size", b"4096")]).file("x", "abc"),
            "size differs",
        ),
        (
            "an owner over 32 bits",
            Tar::new().pax(&[("uid", b"4294967296")]).file("x", ""),
            "owner",
        ),
        (
            "the owner -1",
            Tar::new().pax(&[("gid", b"4294967295")]).file("x", ""),
            "owner",
        ),
        (
            "a sparse file",
            Tar::new().kind(EntryType::GNUSparse, "x"),
            "sparse",
        ),
        (
            "a PAX sparse file",
            Tar::new().pax(&[("GNU.sparse.major", b"1")]).file("x", ""),
            "sparse",
        ),
        (
            "an unknown type",
            Tar::new().kind(EntryType::new(b'Z'), "x"),
            "type 'Z'",
        ),
        (
            "a malformed PAX record",
            Tar::new().raw(EntryType::XHeader, b"p", b"", 0, b"99 path=x\n"),
            "malformed",
        ),
        (
            "a PAX record of nothing",
            Tar::new().raw(EntryType::XHeader, b"p", b"", 0, b"2 \n"),
            "malformed",
        ),
        (
            "a long name for nothing",
            Tar::new().raw(EntryType::GNULongName, b"p", b"", 0, b"x\0"),
            "ends after",
        ),
        (
            "a long name of megabytes",
            Tar::new().raw(EntryType::GNULongName, b"p", b"", 0, &vec![b'x'; 2 << 20]),
            "limit",
        ),
    ];
    for (name, archive, words) in table {
        refused(name, &archive.bytes(), &options(), words);
    }
    let few = UnpackOptions {
        max_entries: 3,
        ..options()
    };
    refused(
        "entries",
        &Tar::new().dir("a").dir("b").dir("c").dir("d").bytes(),
        &few,
        "number of entries",
    );
    let small = UnpackOptions {
        max_bytes: 4096,
        ..options()
    };
    refused(
        "bytes",
        &Tar::new().file("a", &"x".repeat(8192)).bytes(),
        &small,
        "unpacked size",
    );
    let mut trailing = Tar::new().file("a", "A").bytes();
    trailing.extend(vec![0; 8192]);
    refused("bytes after the end", &trailing, &small, "unpacked size");
    let whole = Tar::new().file("a", &"x".repeat(5000)).bytes();
    refused(
        "cut in a file",
        &whole[..2000],
        &options(),
        "not a whole tar archive",
    );
    refused(
        "cut in a header",
        &whole[..300],
        &options(),
        "not a whole tar archive",
    );
    refused("no tar", &[b'#'; 2048], &options(), "not a whole tar archive");
    let create = UnpackOptions {
        devices: DeviceNodes::Create,
        ..options()
    };
    refused(
        "a forged whiteout",
        &Tar::new().device("x", 0, 0).bytes(),
        &create,
        "0/0",
    );
    let implying = Tar::new().pax(&[("path", "d/".repeat(200).as_bytes())]).dir("x");
    let hundred = UnpackOptions {
        max_entries: 100,
        ..options()
    };
    refused(
        "implied directories",
        &implying.bytes(),
        &hundred,
        "number of entries",
    );
    let directory = format!("{}/", "d".repeat(250)).repeat(15);
    let mut long_names = Tar::new();
    for n in 0..5000 {
        let name = format!("{directory}.wh.{n}");
        long_names = long_names.pax(&[("path", name.as_bytes())]).file("x", "");
    }
    let many = UnpackOptions {
        max_bytes: 1 << 30,
        max_entries: 10_000,
        ..options()
    };
    refused(
        "names to remember",
        &long_names.bytes(),
        &many,
        "length of all directory names",
    );
}

#[test]
fn the_root_can_only_be_a_directory() {
    let symlink = Tar::new().raw(EntryType::Symlink, b"./", b"/etc", 0o777, b"");
    refused(
        "root as a link",
        &symlink.bytes(),
        &options(),
        "only be a directory",
    );
}

#[test]
fn devices_times_and_attributes() {
    let root = tempfile::tempdir().unwrap();
    let archive = Tar::new()
        .dir("d")
        .pax(&[
            ("mtime", b"1500000000.25"),
            ("SCHILY.xattr.user.note", b"a\nb"),
            (
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .file("d/a", "A")
        .device("d/null", 1, 3)
        .bytes();
    let create = UnpackOptions {
        devices: DeviceNodes::Create,
        ..options()
    };
    let unpacked = unpack(&archive, root.path(), &create).unwrap();
    assert_eq!(unpacked.skipped_xattrs, 3);
    assert_eq!(
        (unpacked.entries, unpacked.file_bytes, unpacked.skipped_devices),
        (3, 1, 0)
    );
    assert_eq!(unpacked.stream_bytes, archive.len() as u64);
    let file = root.path().join("d/a");
    let metadata = file.metadata().unwrap();
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1_500_000_000, 250_000_000)
    );
    assert_eq!(root.path().join("d").metadata().unwrap().mtime(), 1_600_000_000);
    assert_eq!(
        root.path().join("d/null").metadata().unwrap().rdev(),
        rustix::fs::makedev(1, 3)
    );
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(&file, "user.note", &mut value).unwrap();
    assert_eq!(&value[..length], b"a\nb");
    assert_eq!(
        rustix::fs::getxattr(&file, "security.capability", &mut value).unwrap(),
        20
    );
    for absent in ["trusted.overlay.redirect", "user.overlay.opaque"] {
        assert!(
            rustix::fs::getxattr(&file, absent, &mut value).is_err(),
            "{absent}"
        );
    }
}
