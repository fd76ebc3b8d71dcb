//! Probes and lifecycle hooks.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Convert;
use crate::manifest::{self, Cause};
use crate::pod::check;
use crate::wire::spec::{Handler, HttpGet, PortRef, Probe};

/// What a handler that could not be read is replaced by; its Pod is refused.
const STAND_IN: Handler = Handler::Exec(Vec::new());

impl Convert {
    pub(super) fn probe(&mut self, path: &str, from: Option<&manifest::Probe>) -> Option<Probe> {
        let from = from?;
        let mut handlers = Vec::new();
        self.common(
            path,
            from.exec.as_ref(),
            from.http_get.as_ref(),
            from.tcp_socket.as_ref(),
            &mut handlers,
        );
        if let Some(grpc) = &from.grpc {
            let port = self.port_number(&format!("{path}.grpc.port"), grpc.port);
            handlers.push(Handler::Grpc {
                port,
                service: grpc.service.clone().unwrap_or_default(),
            });
        }
        let mut count = |name: &str, value: Option<i64>, default: u32, least: u32| {
            self.count(&format!("{path}.{name}"), value, default, least)
        };
        Some(Probe {
            initial_delay_seconds: count("initialDelaySeconds", from.initial_delay_seconds, 0, 0),
            timeout_seconds: count("timeoutSeconds", from.timeout_seconds, 1, 1),
            period_seconds: count("periodSeconds", from.period_seconds, 10, 1),
            success_threshold: count("successThreshold", from.success_threshold, 1, 1),
            failure_threshold: count("failureThreshold", from.failure_threshold, 3, 1),
            termination_grace_seconds: from
                .termination_grace_period_seconds
                .map(|it| self.probe_grace(path, it)),
            handler: self.only_one(path, handlers),
        })
    }

    /// Unlike the other times of a probe, 0 stands for no default here.
    fn probe_grace(&mut self, path: &str, value: i64) -> u32 {
        let seconds = u32::try_from(value).ok().filter(|it| *it > 0);
        seconds.unwrap_or_else(|| {
            let field = format!("{path}.terminationGracePeriodSeconds");
            let why = "must be greater than 0";
            self.causes.push(Cause::invalid(field, value, why));
            1
        })
    }

    pub(super) fn hook(
        &mut self,
        path: &str,
        name: &str,
        lifecycle: Option<&manifest::Lifecycle>,
        of: impl Fn(&manifest::Lifecycle) -> Option<&manifest::LifecycleHandler>,
    ) -> Option<Handler> {
        let from = of(lifecycle?)?;
        let path = format!("{path}.lifecycle.{name}");
        let mut handlers = Vec::new();
        self.common(
            &path,
            from.exec.as_ref(),
            from.http_get.as_ref(),
            from.tcp_socket.as_ref(),
            &mut handlers,
        );
        if let Some(sleep) = &from.sleep {
            let seconds = self.count(&format!("{path}.sleep.seconds"), Some(sleep.seconds), 0, 0);
            handlers.push(Handler::Sleep(seconds));
        }
        Some(self.only_one(&path, handlers))
    }

    /// Source: Kubernetes API reference, `Lifecycle.stopSignal`.
    pub(super) fn stop_signal(&mut self, path: &str, lifecycle: Option<&manifest::Lifecycle>) -> Option<u8> {
        let written = lifecycle?.stop_signal.as_deref()?;
        let found = signal(written);
        if found.is_none() {
            let names: Vec<&str> = SIGNALS.iter().map(|(name, _)| *name).collect();
            let field = format!("{path}.lifecycle.stopSignal");
            self.causes.push(Cause::not_supported(field, written, &names));
        }
        found
    }

    /// The kinds of handler that probes and hooks share.
    fn common(
        &mut self,
        path: &str,
        exec: Option<&manifest::ExecAction>,
        http: Option<&manifest::HttpGetAction>,
        tcp: Option<&manifest::TcpSocketAction>,
        out: &mut Vec<Handler>,
    ) {
        if let Some(exec) = exec {
            if exec.command.is_empty() {
                self.causes
                    .push(Cause::required(format!("{path}.exec.command"), ""));
            }
            out.push(Handler::Exec(exec.command.clone()));
        }
        if let Some(http) = http {
            out.push(Handler::HttpGet(self.http_get(&format!("{path}.httpGet"), http)));
        }
        if let Some(tcp) = tcp {
            out.push(Handler::TcpSocket {
                host: tcp.host.clone(),
                port: self.port_ref(&format!("{path}.tcpSocket.port"), &tcp.port),
            });
        }
    }

    fn http_get(&mut self, path: &str, from: &manifest::HttpGetAction) -> HttpGet {
        let target = match from.path.as_str() {
            "" => "/".into(),
            path if path.starts_with('/') => from.path.clone(),
            path => format!("/{path}"),
        };
        for (at, header) in from.http_headers.iter().enumerate() {
            if !is_header_name(&header.name) {
                let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name')";
                let field = format!("{path}.httpHeaders[{at}].name");
                self.causes.push(Cause::invalid(field, &header.name, why));
            }
            if header.value.contains(['\r', '\n', '\0']) {
                let field = format!("{path}.httpHeaders[{at}].value");
                self.causes
                    .push(Cause::invalid(field, &header.value, "must be one line"));
            }
        }
        if target.contains([' ', '\r', '\n', '\0']) {
            let why = "must hold neither blanks nor line ends; write %20 for a blank";
            self.causes
                .push(Cause::invalid(format!("{path}.path"), &from.path, why));
        }
        HttpGet {
            host: from.host.clone(),
            port: self.port_ref(&format!("{path}.port"), &from.port),
            path: target,
            https: self.one_of(
                &format!("{path}.scheme"),
                from.scheme.as_deref(),
                &[("HTTP", false), ("HTTPS", true)],
            ),
            headers: from
                .http_headers
                .iter()
                .map(|it| (it.name.clone(), it.value.clone()))
                .collect(),
        }
    }

    fn port_ref(&mut self, field: &str, from: &manifest::IntOrString) -> PortRef {
        match from {
            manifest::IntOrString::Int(number) => PortRef::Number(self.port_number(field, *number)),
            manifest::IntOrString::Text(name) => {
                if !check::is_port_name(name) {
                    let why =
                        "must be a port's number, or its name: at most 15 lower case letters, digits or '-'";
                    self.causes.push(Cause::invalid(field, name, why));
                }
                PortRef::Name(name.clone())
            }
        }
    }

    fn port_number(&mut self, field: &str, number: i64) -> u16 {
        u16::try_from(number)
            .ok()
            .filter(|it| *it > 0)
            .unwrap_or_else(|| {
                let why = "must be between 1 and 65535, inclusive";
                self.causes.push(Cause::invalid(field, number, why));
                1
            })
    }

    /// A number of at least `least`; Kubernetes takes 0 as absent where it has a default.
    fn count(&mut self, field: &str, value: Option<i64>, default: u32, least: u32) -> u32 {
        let Some(value) = value.filter(|it| *it != 0 || least == 0 || default == 0) else {
            return default;
        };
        u32::try_from(value)
            .ok()
            .filter(|it| i32::try_from(*it).is_ok())
            .unwrap_or_else(|| {
                let why = format!("must be greater than or equal to {}", least.min(1));
                self.causes.push(Cause::invalid(field, value, why));
                default
            })
    }

    fn only_one(&mut self, path: &str, mut handlers: Vec<Handler>) -> Handler {
        match handlers.len() {
            0 => {
                self.causes
                    .push(Cause::required(path, "must specify a handler type"));
                STAND_IN
            }
            1 => handlers.remove(0),
            _ => {
                let why = "may not specify more than 1 handler type";
                self.causes.push(Cause::forbidden(path, why));
                STAND_IN
            }
        }
    }
}

fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
}

/// Linux's signals (signal(7)) on the architectures that Skiff runs on, as Kubernetes names them.
const SIGNALS: [(&str, u8); 31] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGILL", 4),
    ("SIGTRAP", 5),
    ("SIGABRT", 6),
    ("SIGBUS", 7),
    ("SIGFPE", 8),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGSEGV", 11),
    ("SIGUSR2", 12),
    ("SIGPIPE", 13),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    ("SIGSTKFLT", 16),
    ("SIGCHLD", 17),
    ("SIGCONT", 18),
    ("SIGSTOP", 19),
    ("SIGTSTP", 20),
    ("SIGTTIN", 21),
    ("SIGTTOU", 22),
    ("SIGURG", 23),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
    ("SIGVTALRM", 26),
    ("SIGPROF", 27),
    ("SIGWINCH", 28),
    ("SIGIO", 29),
    ("SIGPWR", 30),
    ("SIGSYS", 31),
];

/// The number of a signal by its name; `SIGRTMIN+n` and `SIGRTMAX-n` are 34 + n and 64 - n.
fn signal(name: &str) -> Option<u8> {
    let named = SIGNALS
        .iter()
        .find(|(it, _)| *it == name)
        .map(|(_, number)| *number);
    let real_time = |base: &str, sign: char| -> Option<u8> {
        let rest = name.strip_prefix(base)?;
        let digits: String = rest.chars().filter(char::is_ascii_digit).collect();
        let offset = if rest.is_empty() { 0 } else { digits.parse().ok()? };
        match rest.chars().next() {
            None => Some(0),
            Some(first) if first == sign && rest.len() == digits.len() + 1 && offset <= 30 => Some(offset),
            Some(_) => None,
        }
    };
    named
        .or_else(|| real_time("SIGRTMIN", '+').map(|offset| 34 + offset))
        .or_else(|| real_time("SIGRTMAX", '-').map(|offset| 64 - offset))
}
