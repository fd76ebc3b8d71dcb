//! Pods that look at their own image and at their ConfigMap, so that what is half there is seen.

use serde_json::json;
use skiff_tests::rng::Rng;

use crate::harness::cluster::Control;
use crate::harness::payload::{CHECK, write};
use crate::harness::pods::IDLE;
use crate::harness::{self, shell};

/// Files of one image, and the bytes of each. Not a multiple of a block or a sector.
pub(crate) const FILES: usize = 6;
const BYTES: usize = 300_001;

/// What such an image is called.
pub(crate) fn name(pod: &str) -> String {
    format!("payload:{pod}")
}

/// Makes a Pod that says its mark, which a ConfigMap of its own gives it. With `random` it has an image of its own too,
/// and says whether that is whole. Gives back its uid.
#[track_caller]
pub(crate) fn apply(control: &Control, pod: &str, once: bool, random: Option<&mut Rng>) -> String {
    let mut container = shell(&format!("echo $MARK; {IDLE}"));
    if let Some(rng) = random {
        let base = crate::node::file("images/busybox.tar");
        control.import(&write(&base, control.dir(), &name(pod), (FILES, BYTES), rng));
        container = shell(&format!("echo $MARK; {CHECK}; {IDLE}"));
        container["image"] = json!(name(pod));
    }
    container["envFrom"] = json!([{ "configMapRef": { "name": pod } }]);
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": pod },
        // Longer than what a disk writes whole, so that its record in the journal can be torn.
        "data": { "MARK": format!("mark-{pod}"), "PADDING": "-".repeat(6000) },
    });
    control.apply(&config);
    let policy = if once { "Never" } else { "Always" };
    control.apply(&harness::pod(pod, &container, json!({ "restartPolicy": policy })));
    let made = control.get(pod).unwrap();
    made["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// Asks for its end, and its ConfigMap's.
#[track_caller]
pub(crate) fn delete(control: &Control, pod: &str) {
    control
        .kubectl(&["delete", "pod", pod, "--wait=false", "--grace-period=1"])
        .ok();
    control.kubectl(&["delete", "configmap", pod]).ok();
}
