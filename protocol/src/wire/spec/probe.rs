//! Probes and lifecycle hooks, as they travel.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// `livenessProbe`, `readinessProbe` or `startupProbe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is tried; never [`Handler::Sleep`].
    pub handler: Handler,
    /// `initialDelaySeconds`.
    pub initial_delay_seconds: u32,
    /// `timeoutSeconds`, at least 1.
    pub timeout_seconds: u32,
    /// `periodSeconds`, at least 1.
    pub period_seconds: u32,
    /// `successThreshold`, at least 1.
    pub success_threshold: u32,
    /// `failureThreshold`, at least 1.
    pub failure_threshold: u32,
    /// `terminationGracePeriodSeconds`; `None` means the Pod's.
    pub termination_grace_seconds: Option<u32>,
}

/// What a probe tries or a hook does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handler {
    /// `exec.command`, in the container.
    Exec(Vec<String>),
    /// `httpGet`.
    HttpGet(HttpGet),
    /// `tcpSocket`.
    TcpSocket {
        /// `host`; empty means the Pod's address.
        host: String,
        /// `port`.
        port: PortRef,
    },
    /// `grpc`: the health service of gRPC.
    Grpc {
        /// `port`.
        port: u16,
        /// `service`; may be empty.
        service: String,
    },
    /// `sleep.seconds`; hooks only.
    Sleep(u32),
}

/// `httpGet`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpGet {
    /// `host`; empty means the Pod's address.
    pub host: String,
    /// `port`.
    pub port: PortRef,
    /// `path`, with a leading `/`; a query may follow.
    pub path: String,
    /// `scheme: HTTPS`. The certificate is not verified.
    pub https: bool,
    /// `httpHeaders`: name and value.
    pub headers: Vec<(String, String)>,
}

/// A port by number, or by the name that the container gave it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortRef {
    /// 1 to 65535.
    Number(u16),
    /// `ports[].name` of the same container.
    Name(String),
}
