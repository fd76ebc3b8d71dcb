//! A node that lacks something which the suite of the emulated board does not take away: a disk that can hold what containers
//! write.
//!
//! Always holds: the lack is named in a condition of the node, with the fix, and what can still run runs.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use crate::harness::cluster::Control;
use crate::harness::node::Node;
use crate::harness::{Setup, pod, shell, wait};

/// An overlay, as the root of a device that keeps nothing: no other overlay can write there.
struct Stack(PathBuf);

impl Stack {
    fn below(dir: &Path) -> Self {
        let base = dir.join("stack");
        fs::create_dir(&base).unwrap();
        let stack = Self(base);
        let tmpfs = Some("tmpfs");
        mount(tmpfs, &stack.0, tmpfs, MsFlags::empty(), Some("mode=700")).unwrap();
        for name in ["lower", "upper", "work", "root"] {
            fs::create_dir(stack.0.join(name)).unwrap();
        }
        let base = stack.0.display();
        let options = format!("lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work");
        let overlay = Some("overlay");
        mount(
            overlay,
            &stack.root(),
            overlay,
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        stack
    }

    fn root(&self) -> PathBuf {
        self.0.join("root")
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // With all that is mounted in it.
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_disk_without_room_for_overlays_is_named_and_pods_run_all_the_same() {
    let control = Control::start(&Setup {
        images: &["busybox"],
        ..Setup::default()
    });
    // Dropped in the other order: the node, then what lies below it.
    let stack = Stack::below(control.dir());
    let mut node = Node::new(&stack.root(), "rover", "");
    node.join(&control.token("rover"));
    node.start();
    control.is_ready("rover", 30);

    let path = "jsonpath={.status.conditions[?(@.type==\"OverlayUnavailable\")].message}";
    let message = control.kubectl(&["get", "node", "rover", "-o", path]).ok();
    assert!(message.contains("put the state directory on ext4"), "{message}");
    let doctor = node.agent(&["doctor"]);
    assert!(doctor.out.contains("so they lie in memory"), "{doctor}");

    let script =
        "trap 'exit 0' TERM; date >/written && cat /etc/hostname; while :; do sleep 1 & wait $!; done";
    let running = control.run(&pod("writes", &shell(script), Value::Null));
    control.logs_say(&["writes"], "writes\n");
    let uid = running["metadata"]["uid"].as_str().unwrap();
    let written = node
        .run
        .join("node/pods")
        .join(uid)
        .join("layers/main-0/upper/written");
    assert!(written.exists(), "{} is not there", written.display());
    let init = node.init_of(uid);
    node.kill();
    node.start();
    control.is_ready("rover", 30);
    control.running("writes");
    assert_eq!(node.init_of(uid), init, "the Pod was touched");
    // A restart begins with a fresh layer.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(init.pid),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    control.until("writes", "to be started again", 40, |it| {
        let status = &it["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && !status["state"]["running"].is_null()
    });
    control.delete("writes");
    wait("nothing to be left", 30, || {
        let left = node.leftovers();
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("\n"))
        }
    });
}
