//! Requests and limits.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::Convert;
use crate::manifest::{self, Cause};
use crate::quantity::{self, Quantity};
use crate::wire::spec::{ResizePolicy, Resources};

/// Most CPUs and bytes that a resource may name. No machine has as much, and sums over all Pods of a node stay in 64 bits.
const MAX_CPUS: u64 = 1_000_000;
pub(super) const MAX_BYTES: u64 = 1 << 60;

/// Most of an extended resource: no node has as many devices.
const MAX_COUNT: u64 = 1_000_000;

/// What of a resource list has a name of its own; anything with a `/` in its name is an extended resource.
const NAMES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// One map of quantities, read.
#[derive(Default)]
struct Amounts {
    /// By [`NAMES`].
    named: [Option<Quantity>; 3],
    hugepages: BTreeMap<u64, u64>,
    extended: BTreeMap<String, u64>,
}

impl Convert {
    pub(super) fn resources(&mut self, path: &str, from: &manifest::ResourceRequirements) -> Resources {
        self.requirements(&format!("{path}.resources"), from, true)
    }

    /// `spec.resources`: `cpu`, `memory` and huge pages only.
    pub(super) fn pod_resources(&mut self, from: &manifest::ResourceRequirements) -> Resources {
        self.requirements("spec.resources", from, false)
    }

    fn requirements(
        &mut self,
        path: &str,
        from: &manifest::ResourceRequirements,
        container: bool,
    ) -> Resources {
        let limits = self.amounts(&format!("{path}.limits"), &from.limits, container);
        let requests = self.amounts(&format!("{path}.requests"), &from.requests, container);
        for ((name, limit), request) in NAMES.iter().zip(limits.named).zip(requests.named) {
            if let (Some(limit), Some(request)) = (limit, request)
                && request > limit
            {
                let why = format!(
                    "must be less than or equal to {name} limit of {}",
                    from.limits[*name].0
                );
                let written = &from.requests[*name].0;
                self.causes
                    .push(Cause::invalid(format!("{path}.requests"), written, why));
            }
        }
        self.whole(path, &from.requests, &limits, &requests);
        let milli = |it: Option<Quantity>| it.map(|it| it.milli().unsigned_abs());
        let bytes = |it: Option<Quantity>| it.map(|it| it.value().unsigned_abs());
        let request = |at: usize| requests.named[at].or(limits.named[at]);
        Resources {
            cpu_limit: milli(limits.named[0]),
            memory_limit: bytes(limits.named[1]),
            cpu_request: milli(request(0)),
            memory_request: bytes(request(1)),
            storage_limit: bytes(limits.named[2]),
            storage_request: bytes(request(2)),
            hugepages: limits.hugepages.into_iter().collect(),
            extended: limits.extended.into_iter().collect(),
        }
    }

    /// Huge pages and extended resources are had whole or not at all: a limit must be given, and a request be the same.
    fn whole(
        &mut self,
        path: &str,
        written: &BTreeMap<String, manifest::WrittenQuantity>,
        limits: &Amounts,
        requests: &Amounts,
    ) {
        let path = format!("{path}.requests");
        let pages = requests.hugepages.iter();
        let pages =
            pages.map(|(size, bytes)| (quantity::hugepages(*size), *bytes, limits.hugepages.get(size)));
        let extended = requests.extended.iter();
        let extended = extended.map(|(name, count)| (name.clone(), *count, limits.extended.get(name)));
        let mut wrong = Vec::new();
        for (name, request, limit) in pages.chain(extended) {
            if limit.is_none() {
                let what = format!("Limit must be set for non overcommitable resources ({name})");
                wrong.push(Cause::required(&path, &what));
            } else if limit != Some(&request) {
                let written = written.get(&name).map_or("", |it| &it.0);
                let why = format!("must be equal to {name} limit");
                wrong.push(Cause::invalid(&path, written, why));
            }
        }
        if !limits.hugepages.is_empty() && limits.named[..2].iter().all(Option::is_none) {
            let why = "HugePages require cpu or memory";
            wrong.push(Cause::forbidden(path.replace(".requests", ""), why));
        }
        self.causes.append(&mut wrong);
    }

    fn amounts(
        &mut self,
        path: &str,
        from: &BTreeMap<String, manifest::WrittenQuantity>,
        container: bool,
    ) -> Amounts {
        let mut out = Amounts::default();
        for (name, written) in from {
            let field = format!("{path}.{name}");
            let known = NAMES.iter().position(|it| it == name);
            match known.filter(|at| container || *at < 2) {
                Some(0) => out.named[0] = self.amount(field, &written.0, MAX_CPUS),
                Some(at) => out.named[at] = self.amount(field, &written.0, MAX_BYTES),
                None => self.other(field, name, written, container, &mut out),
            }
        }
        out
    }

    fn other(
        &mut self,
        field: String,
        name: &str,
        written: &manifest::WrittenQuantity,
        container: bool,
        out: &mut Amounts,
    ) {
        if let Some(size) = name.strip_prefix("hugepages-") {
            let page = Quantity::parse(size).ok().map(|it| it.value().unsigned_abs());
            let Some(page) = page.filter(|it| it.is_power_of_two()) else {
                let why = "hugepages- is followed by the size of a page, such as 2Mi";
                self.causes.push(Cause::invalid(field, name, why));
                return;
            };
            if let Some(amount) = self.amount(field.clone(), &written.0, MAX_BYTES) {
                let bytes = amount.value().unsigned_abs();
                if bytes.is_multiple_of(page) {
                    out.hugepages.insert(page, bytes);
                } else {
                    let why = format!("must be a multiple of the page size {size}");
                    self.causes.push(Cause::invalid(field, &written.0, why));
                }
            }
        } else if container && name.contains('/') && !name.contains("kubernetes.io/") {
            if let Some(amount) = self.amount(field.clone(), &written.0, MAX_COUNT) {
                if amount.milli() % 1000 == 0 {
                    out.extended
                        .insert(name.to_owned(), amount.value().unsigned_abs());
                } else {
                    self.causes
                        .push(Cause::invalid(field, &written.0, "must be an integer"));
                }
            }
        } else {
            let supported: &[&str] = if container { &NAMES } else { &NAMES[..2] };
            self.causes.push(Cause::not_supported(field, name, supported));
        }
    }

    pub(super) fn resize(&mut self, path: &str, from: &[manifest::ContainerResizePolicy]) -> ResizePolicy {
        let mut out = ResizePolicy::default();
        for (at, it) in from.iter().enumerate() {
            let path = format!("{path}.resizePolicy[{at}]");
            let restarts = self.one_of(
                &format!("{path}.restartPolicy"),
                Some(&it.restart_policy),
                &[("NotRequired", false), ("RestartContainer", true)],
            );
            match it.resource_name.as_str() {
                "cpu" => out.cpu_restarts = restarts,
                "memory" => out.memory_restarts = restarts,
                other => {
                    let field = format!("{path}.resourceName");
                    self.causes
                        .push(Cause::not_supported(field, other, &["cpu", "memory"]));
                }
            }
        }
        out
    }

    /// A quantity from 0 to `most`.
    pub(super) fn amount(&mut self, field: String, written: &str, most: u64) -> Option<Quantity> {
        let why = match Quantity::parse(written) {
            Ok(value) if value < Quantity::ZERO => "must be greater than or equal to 0".to_owned(),
            // Rounded up and saturating, so what is above in any digit is above here.
            Ok(value) if value.value().unsigned_abs() > most => {
                format!("must be less than or equal to {most}")
            }
            Ok(value) => return Some(value),
            Err(error) => error.to_string(),
        };
        self.causes.push(Cause::invalid(field, written, why));
        None
    }
}
