//! Volumes as a container finds them: an image's files, memory, a file for last words.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Pod;
use skiff_sys::{Mount, volume};

fn bind(source: PathBuf, destination: &str, read_only: bool, options: &[&str]) -> Mount {
    Mount {
        source,
        destination: destination.into(),
        read_only,
        options: options.iter().map(|it| (*it).to_owned()).collect(),
        ..Default::default()
    }
}

fn make(path: &Path) -> PathBuf {
    fs::create_dir_all(path).unwrap();
    path.to_owned()
}

/// Source: Kubernetes documentation, "Use an Image Volume With a Pod": read-only, and nothing is run from it.
#[test]
fn an_image_is_read_and_neither_written_nor_run() {
    let mut pod = Pod::sandboxed(1);
    let layers: Vec<PathBuf> = ["bottom", "top"]
        .map(|name| make(&pod.root().join("volume-layers").join(name)))
        .to_vec();
    fs::write(layers[0].join("file"), "hidden").unwrap();
    fs::write(layers[1].join("file"), "seen").unwrap();
    fs::copy("/bin/busybox", layers[0].join("busybox")).unwrap();
    let target = make(&pod.root().join("volumes/image"));
    volume::image(&layers, &target, None).unwrap();
    let script =
        "cat /image/file; echo; echo x > /image/new && echo written; /image/busybox true && echo run; exit 0";
    let mut config = pod.shell("app", script);
    config.mounts = vec![bind(target, "/image", true, &["noexec", "nosuid", "nodev"])];
    let (code, text) = pod.output(config);
    skiff_sys::mount::unmount_all_under(&pod.root().join("volumes")).unwrap();
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("seen") && text.contains("Read-only file system"),
        "{text}"
    );
    assert!(text.contains("Permission denied"), "{text}");
    assert!(!text.contains("written\n") && !text.contains("run\n"), "{text}");
    pod.shut_down();
}

#[test]
fn programs_run_from_memory_and_last_words_reach_their_file() {
    let mut pod = Pod::sandboxed(1);
    let memory = make(&pod.root().join("volumes/memory"));
    volume::memory(&memory, 8 << 20).unwrap();
    let words = pod.root().join("term");
    fs::write(&words, "").unwrap();
    let script = "cp /bin/busybox /memory/ && /memory/busybox echo ran; echo last > /dev/termination-log";
    let mut config = pod.shell("app", script);
    config.mounts = vec![
        bind(memory, "/memory", false, &[]),
        bind(words.clone(), "/dev/termination-log", false, &[]),
    ];
    let (code, text) = pod.output(config);
    skiff_sys::mount::unmount_all_under(&pod.root().join("volumes")).unwrap();
    assert_eq!((code, text.trim()), (0, "ran"), "{text}");
    assert_eq!(fs::read_to_string(words).unwrap(), "last\n");
    pod.shut_down();
}
