//! From `resources` to what the kernel enforces: limits of a container and of its Pod, and who dies first.
//!
//! Always holds: pure; sums saturate, for a node may hear of larger quantities than a server of this version passes on.

use std::path::Path;

use skiff_protocol::quantity::Quantity;
use skiff_protocol::wire::spec::{Container, PodSpec, Resources};
use skiff_sys::{IoLimit, Limits};

/// Kubernetes' period of a CPU limit, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// The least `cpu.shares` that the kernel takes.
pub(super) const LEAST_SHARES: u64 = 2;

/// Tenths of what lies between request and limit at which the kernel begins to reclaim: MemoryQoS'
/// `memoryThrottlingFactor` of 0.9.
const THROTTLE_TENTHS: u64 = 9;

/// What `memory.high` is a multiple of.
const PAGE: u64 = 4096;

/// `skiff.io/io-max` of all containers of the Pod, `skiff.io/io-max.<container>` of one: `device=/dev/x,rbps=…,wbps=…,
/// riops=…,wiops=…`, quantities a second; several devices are parted by `;`.
const IO_MAX: &str = "skiff.io/io-max";

/// Finds the numbers, major and minor, of a block device.
pub(crate) type Numbers<'a> = &'a dyn Fn(&Path) -> Result<(u32, u32), String>;

/// What of the node decides about limits.
pub(crate) struct NodeLimits<'a> {
    /// Processes that one container may have.
    pub pids: u64,
    /// Bytes of memory that Pods may request.
    pub allocatable_memory: u64,
    /// Sizes of the huge pages that the node has, where their controller is there.
    pub hugepages: &'a [u64],
    /// cgroup v2.
    pub unified: bool,
    /// `memory_qos` of the configuration.
    pub memory_qos: bool,
    /// Finds the numbers of a block device.
    pub block_device: Numbers<'a>,
    /// What the kernel cannot keep.
    pub lacks: Lacks,
}

/// Controllers that the kernel lacks. Limits of theirs are left out, and a condition of the node says so: what can run
/// without its limit runs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lacks {
    pub memory: bool,
    pub cpu: bool,
    pub pids: bool,
}

impl Lacks {
    /// What of the limits the kernel keeps.
    fn kept(self, limits: Limits) -> Limits {
        let mut kept = limits;
        if self.memory {
            (kept.memory_bytes, kept.memory_min) = (None, None);
            (kept.memory_low, kept.memory_high) = (None, None);
            kept.oom_group = false;
        }
        if self.cpu {
            (kept.cpu_quota_us, kept.cpu_period_us, kept.cpu_shares) = (None, None, None);
        }
        if self.pids {
            kept.pids = None;
        }
        kept
    }
}

/// Limits of one container.
///
/// # Errors
/// When an annotation of ours does not say what it should; it is named.
pub(crate) fn limits(pod: &PodSpec, spec: &Container, node: &NodeLimits<'_>) -> Result<Limits, String> {
    let it = &spec.resources;
    // A container without a limit of its own may use the Pod's.
    let memory = it.memory_limit.or(pod.resources.memory_limit);
    let cpu = it.cpu_limit.or(pod.resources.cpu_limit);
    let mut out = Limits {
        memory_bytes: memory,
        cpu_quota_us: cpu.map(quota),
        cpu_period_us: cpu.map(|_| CPU_PERIOD_US),
        cpu_shares: Some(shares(it.cpu_request.unwrap_or(0))),
        pids: Some(node.pids),
        // As a kubelet has it: half a container is worth nothing.
        oom_group: node.unified,
        io: io(pod, spec, node)?,
        ..Default::default()
    };
    let asked = |size: u64| it.hugepages.iter().find(|(page, _)| *page == size);
    out.hugepages.clone_from(&it.hugepages);
    let none = node.hugepages.iter().filter(|size| asked(**size).is_none());
    out.hugepages.extend(none.map(|size| (*size, 0)));
    if node.memory_qos && node.unified {
        let request = it.memory_request.unwrap_or(0);
        let limit = memory.unwrap_or(node.allocatable_memory);
        out.memory_min = Some(request).filter(|it| *it > 0);
        let between = limit.saturating_sub(request);
        let high = request.saturating_add(between / 10 * THROTTLE_TENTHS);
        out.memory_high = Some(high / PAGE * PAGE).filter(|it| *it > request);
    }
    Ok(node.lacks.kept(out))
}

/// Limits of the Pod as a whole: its own where it has them, else the sum where every container has one.
#[must_use]
pub(crate) fn pod_limits(pod: &PodSpec, node: &NodeLimits<'_>) -> Limits {
    let own = &pod.resources;
    let declared = |of: &dyn Fn(&Resources) -> Option<u64>| {
        let all = pod.all_containers().all(|it| of(&it.resources).is_some());
        all.then(|| total(pod, &|it| of(it).unwrap_or(0)))
    };
    let memory = own.memory_limit.or_else(|| declared(&|it| it.memory_limit));
    let cpu = own.cpu_limit.or_else(|| declared(&|it| it.cpu_limit));
    let request = own.cpu_request.or(own.cpu_limit);
    let request = request.unwrap_or_else(|| total(pod, &|it| it.cpu_request.unwrap_or(0)));
    let asked = || total(pod, &|it| it.memory_request.unwrap_or(0));
    let sizes = pod.all_containers().flat_map(|it| &it.resources.hugepages);
    let mut sizes: Vec<u64> = sizes.chain(&own.hugepages).map(|(size, _)| *size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let pages = |size: u64| {
        let of = move |it: &Resources| it.hugepages.iter().find(|it| it.0 == size).map(|it| it.1);
        of(own).unwrap_or_else(|| total(pod, &move |it| of(it).unwrap_or(0)))
    };
    node.lacks.kept(Limits {
        memory_bytes: memory,
        cpu_quota_us: cpu.map(quota),
        cpu_period_us: cpu.map(|_| CPU_PERIOD_US),
        cpu_shares: Some(shares(request)),
        memory_min: (node.memory_qos && node.unified)
            .then(|| own.memory_request.unwrap_or_else(asked))
            .filter(|it| *it > 0),
        hugepages: sizes.into_iter().map(|size| (size, pages(size))).collect(),
        ..Default::default()
    })
}

/// What the Pod needs at most at once: all containers and sidecars together, or one init container beside the sidecars
/// that began before it.
///
/// Source: Kubernetes documentation, "Sidecar Containers", resource sharing within containers.
fn total(pod: &PodSpec, of: &dyn Fn(&Resources) -> u64) -> u64 {
    let (mut sidecars, mut peak) = (0u64, 0u64);
    for it in &pod.init_containers {
        let with_this = sidecars.saturating_add(of(&it.resources));
        peak = peak.max(with_this);
        if it.sidecar {
            sidecars = with_this;
        }
    }
    let running = pod.containers.iter().map(|it| of(&it.resources));
    running.fold(sidecars, u64::saturating_add).max(peak)
}

/// Thousandths of a CPU as microseconds of each period, at least the millisecond that the kernel takes.
fn quota(milli: u64) -> u64 {
    (milli.saturating_mul(CPU_PERIOD_US) / 1000).max(1000)
}

fn shares(milli: u64) -> u64 {
    (milli.saturating_mul(1024) / 1000).max(LEAST_SHARES)
}

fn io(pod: &PodSpec, spec: &Container, node: &NodeLimits<'_>) -> Result<Vec<IoLimit>, String> {
    let own = format!("{IO_MAX}.{}", spec.name);
    let (key, text) = match (pod.annotations.get(&own), pod.annotations.get(IO_MAX)) {
        (Some(text), _) => (own.as_str(), text),
        (None, Some(text)) => (IO_MAX, text),
        (None, None) => return Ok(Vec::new()),
    };
    let each = text.split(';').map(|part| io_limit(part, node));
    each.collect::<Result<_, _>>()
        .map_err(|why| format!("annotation {key}: {why}"))
}

fn io_limit(text: &str, node: &NodeLimits<'_>) -> Result<IoLimit, String> {
    let mut out = IoLimit::default();
    let mut device = None;
    for part in text.split(',').map(str::trim) {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} must be name=value"))?;
        let bound = match name {
            "device" => {
                device = Some((node.block_device)(Path::new(value))?);
                continue;
            }
            "rbps" => &mut out.read_bytes,
            "wbps" => &mut out.write_bytes,
            "riops" => &mut out.reads,
            "wiops" => &mut out.writes,
            _ => {
                return Err(format!(
                    "{name:?} must be one of device, rbps, wbps, riops, wiops"
                ));
            }
        };
        let amount = Quantity::parse(value).ok().filter(|it| *it > Quantity::ZERO);
        let amount = amount.ok_or_else(|| format!("{name}: {value:?} must be a quantity above 0"))?;
        *bound = Some(amount.value().unsigned_abs());
    }
    out.device = device.ok_or("device= is missing")?;
    Ok(out)
}

/// `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// Source: Kubernetes documentation, "Pod Quality of Service Classes".
fn qos(pod: &PodSpec) -> Qos {
    let set = |it: Option<u64>| it.filter(|it| *it > 0);
    let asks = |it: &Resources| {
        [it.cpu_limit, it.memory_limit, it.cpu_request, it.memory_request]
            .into_iter()
            .any(|it| set(it).is_some())
    };
    let guaranteed = |it: &Resources| {
        set(it.cpu_limit).is_some()
            && set(it.memory_limit).is_some()
            && it.cpu_limit == it.cpu_request
            && it.memory_limit == it.memory_request
    };
    // Where the Pod has resources of its own, they alone count.
    if asks(&pod.resources) {
        return if guaranteed(&pod.resources) {
            Qos::Guaranteed
        } else {
            Qos::Burstable
        };
    }
    if pod.all_containers().all(|it| guaranteed(&it.resources)) {
        Qos::Guaranteed
    } else if pod.all_containers().any(|it| asks(&it.resources)) {
        Qos::Burstable
    } else {
        Qos::BestEffort
    }
}

/// Source: Kubernetes documentation, "Node-pressure Eviction", node out of memory behavior.
pub(super) fn oom_score_adj(pod: &PodSpec, spec: &Container, node_memory: u64) -> i32 {
    match qos(pod) {
        Qos::Guaranteed => return -997,
        Qos::BestEffort => return 1000,
        Qos::Burstable => {}
    }
    // What the Pod asks for beyond its containers is theirs alike.
    let asked = total(pod, &|it| it.memory_request.unwrap_or(0));
    let whole = pod.resources.memory_request.unwrap_or(0);
    let count = pod.all_containers().count().max(1) as u64;
    let more = whole.saturating_sub(asked) / count;
    let score = |it: &Container| {
        let request = it.resources.memory_request.unwrap_or(0).saturating_add(more);
        let share = (u128::from(request) * 1000 / u128::from(node_memory.max(1))).min(1000) as i32;
        (1000 - share).clamp(2, 999)
    };
    let own = score(spec);
    // A sidecar is to outlive what it serves.
    let served = pod.containers.iter().map(score).min();
    served
        .filter(|_| spec.sidecar)
        .map_or(own, |served| own.min(served))
}
