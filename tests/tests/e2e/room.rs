//! A small disk: which images go when room is needed, and which stay.
//!
//! Always holds: the disk is a file system of its own, so that nothing but the node fills it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skiff_tests::rng::Rng;

use crate::harness::cluster::Control;
use crate::harness::node::Node;
use crate::harness::pods::IDLE;
use crate::harness::{Setup, payload, pod, programs, shell, until, wait};

/// Bytes of the disk. The journal has 8 MiB of it.
const DISK: u64 = 100 << 20;

/// Files of each image, and bytes of each: 16 MB that do not compress.
const SIZE: (usize, usize) = (2, 8_000_000);

/// A file system of its own.
struct Disk(PathBuf);

impl Disk {
    fn new(dir: &Path) -> Self {
        let path = dir.join("disk");
        std::fs::create_dir(&path).unwrap();
        let tmpfs = Some("tmpfs");
        let options = format!("size={DISK},mode=700");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(tmpfs, &path, tmpfs, flags, Some(options.as_str())).unwrap();
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// A server with a node on a small disk, which is told of its settings through its file.
struct Small {
    node: Node,
    control: Control,
    rng: Rng,
    _disk: Disk,
}

impl Small {
    fn start(settings: &str) -> Self {
        let control = Control::start(&Setup {
            images: &["busybox"],
            ..Setup::default()
        });
        let disk = Disk::new(control.dir());
        let mut node = Node::new(&disk.0, "rover", settings);
        node.join(&control.token("rover"));
        node.start();
        control.is_ready("rover", 30);
        Self {
            node,
            control,
            rng: Rng::new(7),
            _disk: disk,
        }
    }

    /// Makes an image that the server gives to its nodes.
    fn image(&mut self, name: &str, size: (usize, usize)) {
        let base = programs::archive("busybox");
        let archive = payload::write(&base, self.control.dir(), name, size, &mut self.rng);
        self.control.import(&archive);
    }

    /// Runs an image in a Pod that finds all its files right.
    fn run(&self, name: &str, image: &str) -> Value {
        let mut container = shell(&format!("{}; {IDLE}", payload::CHECK));
        container["image"] = json!(image);
        let running = self.control.run(&pod(name, &container, Value::Null));
        self.control.logs_say(&[name], "whole\n");
        running
    }

    fn delete(&self, name: &str) {
        self.control
            .kubectl(&["delete", "pod", name, "--grace-period=1"])
            .ok();
        wait("the Pod to be gone from its node", 30, || {
            let pods = self.node.ask("pods")?;
            let there = pods.as_array().into_iter().flatten().any(|it| it["name"] == name);
            if there { Err(pods.to_string()) } else { Ok(()) }
        });
    }

    /// The images of the node, each with what its agent says of it.
    fn images(&self) -> Vec<(String, Value)> {
        let shown = self.node.ask("images").unwrap();
        let name = |it: &Value| {
            let name = it["reference"].as_str().unwrap();
            name.trim_start_matches("docker.io/library/").to_owned()
        };
        let all = shown.as_array().unwrap_or_else(|| panic!("{shown}"));
        all.iter().map(|it| (name(it), it.clone())).collect()
    }

    fn names(&self) -> Vec<String> {
        self.images().into_iter().map(|it| it.0).collect()
    }

    fn is(&self, image: &str, field: &str) -> bool {
        let images = self.images();
        images.iter().any(|it| it.0 == image && it.1[field] == true)
    }

    /// What `kubectl` shows of the node's images.
    fn told(&self) -> String {
        let path = "jsonpath={.status.images[*].names}";
        self.control.kubectl(&["get", "node", "rover", "-o", path]).ok()
    }
}

#[test]
fn images_go_when_room_is_needed_and_those_in_use_stay() {
    let mut it = Small::start(
        "images.gc_high_percent = 100\nimages.gc_min_age_seconds = 0\nimages.pinned = [\"pin*\"]\n",
    );
    for name in ["app:1", "app:2", "pinned:1", "tool:1"] {
        it.image(name, SIZE);
    }

    // What the node has is shown in all three places.
    it.run("app", "app:1");
    until("the server to hear of it", 30, || it.told().contains("app:1"));
    let shown = it.control.skiff(&["node", "images", "rover"]).ok();
    assert!(shown.contains("docker.io/library/app:1   sha256:"), "{shown}");
    let shown = it.node.agent(&["images"]).ok();
    assert!(shown.contains("in use, named by a Pod"), "{shown}");
    // It has shown that it runs, and stays when nothing runs from it any more.
    until("the image to have run well", 40, || it.is("app:1", "lastGood"));

    // Nothing goes that runs, is pinned, or last ran well; and only what nobody needs.
    it.run("pin", "pinned:1");
    it.delete("pin");
    it.run("tool", "tool:1");
    let said = it.node.agent(&["images", "prune"]).ok();
    assert_eq!(said, "0 B freed\n");
    it.delete("tool");
    it.delete("app");
    let said = it.node.agent(&["images", "prune"]).ok();
    assert!(
        said.starts_with("removed image docker.io/library/tool:1 (15.2 MiB)\n"),
        "{said}"
    );
    assert_eq!(it.names(), ["app:1", "pinned:1"]);
    until("the server to hear of that", 30, || !it.told().contains("tool:1"));

    // The next version runs, and until it has done so well the one before stays, whatever is asked.
    it.run("app", "app:2");
    let said = it.node.agent(&["images", "prune"]).ok();
    assert_eq!(said, "0 B freed\n");
    until("the next image to have run well", 40, || {
        it.is("app:2", "lastGood")
    });
    let said = it.node.agent(&["images", "prune"]).ok();
    assert!(
        said.contains("removed image docker.io/library/app:1 (15.2 MiB)"),
        "{said}"
    );

    // A pull that finds no room: what is longest unused goes for it, and what runs is not touched.
    let before = it.control.running("app");
    for name in ["old:1", "new:1"] {
        it.image(name, SIZE);
        it.run("short", name);
        it.delete("short");
    }
    assert_eq!(it.names(), ["app:2", "new:1", "old:1", "pinned:1"]);
    it.image("large:1", (3, 10_000_000));
    it.run("large", "large:1");
    let names = it.names();
    assert!(!names.contains(&"old:1".to_owned()), "{names:?}");
    for stays in ["app:2", "pinned:1", "large:1"] {
        assert!(names.contains(&stays.to_owned()), "{stays} of {names:?}");
    }

    // One that fits nowhere says so, and nothing of it is left.
    it.image("huge:1", (9, 8_000_000));
    let mut container = shell(IDLE);
    container["image"] = json!("huge:1");
    it.control.apply(&pod("huge", &container, Value::Null));
    it.control.until("huge", "to say why it does not run", 60, |it| {
        let waiting = &it["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].to_string().contains("are free; free some")
    });
    let after = it.control.running("app");
    let id = |it: &Value| it["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&before), id(&after));
    assert!(it.node.log().contains("why=Pull("), "{}", it.node.log());
    for name in ["huge", "large"] {
        it.delete(name);
    }

    // High water: the node tidies its store by itself, and no further than it must.
    it.node.stop();
    let text = std::fs::read_to_string(&it.node.config).unwrap();
    let text = text.replace(
        "gc_high_percent = 100",
        "gc_high_percent = 60\nimages.gc_low_percent = 55",
    );
    std::fs::write(&it.node.config, text).unwrap();
    it.node.start();
    it.run("tool", "tool:1");
    until("the store to be tidied", 40, || {
        !it.names().contains(&"large:1".to_owned())
    });
    assert!(it.node.log().contains("why=HighWater("), "{}", it.node.log());
    let names = it.names();
    for stays in ["app:2", "pinned:1", "tool:1"] {
        assert!(names.contains(&stays.to_owned()), "{stays} of {names:?}");
    }
    let metrics = it.node.agent(&["metrics"]).ok();
    assert!(metrics.contains("\nskiff_image_collections_total "), "{metrics}");
    assert_eq!(id(&it.control.running("app")), id(&after), "it was never touched");
}
