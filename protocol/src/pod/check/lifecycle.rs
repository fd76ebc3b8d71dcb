//! Init containers, sidecars, probes and hooks.

use alloc::format;
use alloc::vec::Vec;

use crate::limits;
use crate::manifest::Cause;
use crate::wire::spec::{Container, Handler, HttpGet, PortRef, Probe};

pub(super) fn check(path: &str, one: &Container, init: bool, out: &mut Vec<Cause>) {
    if one.sidecar && !init {
        let why = "may not be set for non-init containers";
        out.push(Cause::forbidden(format!("{path}.restartPolicy"), why));
    }
    if init && !one.sidecar {
        for (field, set) in [
            (
                "lifecycle",
                one.post_start.is_some() || one.pre_stop.is_some() || one.stop_signal.is_some(),
            ),
            ("livenessProbe", one.liveness.is_some()),
            ("readinessProbe", one.readiness.is_some()),
            ("startupProbe", one.startup.is_some()),
        ] {
            if set {
                let why = "may not be set for init containers without restartPolicy=Always";
                out.push(Cause::forbidden(format!("{path}.{field}"), why));
            }
        }
    }
    for (name, found) in [
        ("livenessProbe", &one.liveness),
        ("readinessProbe", &one.readiness),
        ("startupProbe", &one.startup),
    ] {
        if let Some(found) = found {
            probe(&format!("{path}.{name}"), name, found, out);
        }
    }
    for (name, hook) in [("postStart", &one.post_start), ("preStop", &one.pre_stop)] {
        if let Some(hook) = hook {
            handler(&format!("{path}.lifecycle.{name}"), hook, out);
        }
    }
    let message = &one.termination_message_path;
    if !message.is_empty() && (!message.starts_with('/') || message.split('/').any(|part| part == "..")) {
        let field = format!("{path}.terminationMessagePath");
        let why = "must be an absolute path without '..'";
        out.push(Cause::invalid(field, message, why));
    }
}

fn probe(path: &str, name: &str, probe: &Probe, out: &mut Vec<Cause>) {
    if name != "readinessProbe" && probe.success_threshold != 1 {
        let field = format!("{path}.successThreshold");
        out.push(Cause::invalid(field, probe.success_threshold, "must be 1"));
    }
    if name == "readinessProbe" && probe.termination_grace_seconds.is_some() {
        let field = format!("{path}.terminationGracePeriodSeconds");
        let why = "must not be set for readinessProbes";
        let value = probe.termination_grace_seconds.unwrap_or_default();
        out.push(Cause::invalid(field, value, why));
    }
    for (field, value) in [
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        // From a manifest 0 means the default; over the wire it would be a loop without a pause.
        if value == 0 {
            let why = "must be greater than or equal to 1";
            out.push(Cause::invalid(format!("{path}.{field}"), value, why));
        }
    }
    if matches!(probe.handler, Handler::Sleep(_)) {
        out.push(Cause::forbidden(format!("{path}.sleep"), "a probe cannot sleep"));
    }
    handler(path, &probe.handler, out);
}

fn handler(path: &str, handler: &Handler, out: &mut Vec<Cause>) {
    let port = match handler {
        Handler::Exec(command) => {
            if command.iter().any(|word| word.contains('\0')) {
                let why = "must not contain a NUL byte";
                out.push(Cause::invalid(format!("{path}.exec.command"), "", why));
            }
            return;
        }
        Handler::HttpGet(get) => {
            http_get(path, get, out);
            &get.port
        }
        Handler::TcpSocket { port, .. } => port,
        Handler::Grpc { port, .. } => &PortRef::Number(*port),
        Handler::Sleep(_) => return,
    };
    if *port == PortRef::Number(0) {
        let why = "must be between 1 and 65535, inclusive";
        out.push(Cause::invalid(format!("{path}.port"), 0, why));
    }
}

fn http_get(path: &str, get: &HttpGet, out: &mut Vec<Cause>) {
    if get.headers.len() > limits::ITEMS {
        let field = format!("{path}.httpGet.httpHeaders");
        out.push(Cause::too_long(field, limits::ITEMS, "headers"));
    }
    // What goes into a request line by line must be one line, whoever sent it.
    let parts = get.headers.iter().flat_map(|(name, value)| [name, value]);
    if parts.chain([&get.path]).any(|it| it.contains(['\r', '\n', '\0'])) {
        let why = "must be one line";
        out.push(Cause::invalid(format!("{path}.httpGet"), &get.path, why));
    }
}
