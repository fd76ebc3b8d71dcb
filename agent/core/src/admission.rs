//! Whether a Pod fits this node: the kubelet's own check, with its reasons.

use std::collections::BTreeMap;

use skiff_protocol::pod::Pod;
use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::Container;

use crate::machine::Config;
use crate::state::{Phase, PodState};

/// Why `pod` cannot run beside `others`, as reason and message; `None` when it can.
pub(crate) fn refuse(
    config: &Config,
    others: &BTreeMap<Uid, PodState>,
    pod: &Pod,
) -> Option<(String, String)> {
    let others = || {
        others
            .values()
            .filter(|it| it.uid != pod.uid && it.rejected.is_none() && !finished(it))
    };
    let count = others().count();
    if count >= config.max_pods {
        let message = format!(
            "Node didn't have enough resource: pods, requested: 1, used: {count}, capacity: {}",
            config.max_pods
        );
        return Some(("OutOfpods".to_owned(), message));
    }
    let used = others()
        .filter_map(|it| it.pod.as_ref())
        .map(requests)
        .fold((0, 0), add);
    let wanted = requests(pod);
    let short = |what: &str, wanted: u64, used: u64, capacity: u64| {
        (wanted > 0 && used.saturating_add(wanted) > capacity).then(|| {
            let message = format!("Node didn't have enough resource: {what}, requested: {wanted}, used: {used}, capacity: {capacity}");
            (format!("OutOf{what}"), message)
        })
    };
    short("cpu", wanted.0, used.0, config.allocatable_cpu_milli)
        .or_else(|| short("memory", wanted.1, used.1, config.allocatable_memory))
}

/// Requests of all containers: thousandths of a CPU, bytes.
fn requests(pod: &Pod) -> (u64, u64) {
    let of = |it: &Container| {
        let asked = &it.resources;
        (asked.cpu_request.unwrap_or(0), asked.memory_request.unwrap_or(0))
    };
    pod.containers.iter().map(of).fold((0, 0), add)
}

/// A sum too large to count is more than any node has.
fn add(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0.saturating_add(b.0), a.1.saturating_add(b.1))
}

/// A Pod whose containers have all ended for good holds no resources.
pub(crate) fn finished(pod: &PodState) -> bool {
    !pod.containers.is_empty() && pod.containers.iter().all(|it| matches!(it.phase, Phase::Done(_)))
}
