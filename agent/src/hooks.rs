//! Lifecycle hooks: `postStart` and `preStop`.
//!
//! Always holds: a hook ends by the time it is given, with exactly one result; an error is what a kubelet says of it.
//!
//! Source: Kubernetes API reference, `LifecycleHandler`. As there, a `tcpSocket` hook fails when it is run, and as with a
//! kubelet an `httpGet` hook is content with any response.

use std::time::Duration;

use skiff_core::{ContainerRef, HookKind};
use skiff_protocol::wire::spec::{Container, Handler, PodSpec};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::probes::{self, Action, Tls, http};
use crate::shims::Command;

/// `User-Agent` of a hook.
const HOOK_AGENT: &str = concat!("kube-lifecycle/", env!("CARGO_PKG_VERSION"));

/// A hook to be run once.
pub(crate) struct Hook {
    /// Of which container.
    pub(crate) container: ContainerRef,
    /// Which of its hooks.
    pub(crate) kind: HookKind,
    /// `name_namespace(uid)`.
    pod: String,
    /// What is done.
    action: Result<Action, String>,
    /// `httpGet.path`, as it was written.
    path: String,
}

impl Hook {
    /// The hook of a container; nothing where it has none of this kind.
    pub(crate) fn of(
        container: ContainerRef,
        kind: HookKind,
        pod: &PodSpec,
        spec: &Container,
        host: &str,
    ) -> Option<Self> {
        let handler = match kind {
            HookKind::PostStart => spec.post_start.as_ref()?,
            HookKind::PreStop => spec.pre_stop.as_ref()?,
        };
        let path = match handler {
            Handler::HttpGet(get) => get.path.clone(),
            _ => String::new(),
        };
        Some(Self {
            container,
            kind,
            pod: format!("{}_{}({})", pod.name, pod.namespace, pod.uid),
            action: Action::of(handler, spec, host, HOOK_AGENT),
            path,
        })
    }

    /// Runs it.
    ///
    /// # Errors
    /// What a kubelet would say in its event.
    pub(crate) async fn run(
        &self,
        until: Instant,
        tls: &Tls,
        shim: &mpsc::UnboundedSender<Command>,
    ) -> Result<(), String> {
        let whose = format!(
            "for Container {:?} in Pod {:?} failed",
            self.container.name, self.pod
        );
        match &self.action {
            Ok(Action::Exec(command)) => {
                let (error, output) = match probes::exec(shim, &self.container, command, until).await {
                    Ok(it) => match it.exit_code {
                        Some(0) => return Ok(()),
                        Some(code) => {
                            let output = String::from_utf8_lossy(&it.output).into_owned();
                            let words = command.join(" ");
                            (format!("command '{words}' exited with {code}: {output}"), output)
                        }
                        None => (probes::timed_out(command), String::new()),
                    },
                    Err(why) => (why, String::new()),
                };
                let words = command.join(" ");
                Err(format!(
                    "Exec lifecycle hook ([{words}]) {whose} - error: {error}, message: {output:?}"
                ))
            }
            Ok(Action::Http(get)) => {
                let why = match http::get(get, until, tls).await {
                    Ok(_) | Err(http::Error::Body(_)) => return Ok(()),
                    Err(http::Error::Failed(why)) => why,
                };
                Err(format!(
                    "HTTP lifecycle hook ({}) {whose} - error: {why}",
                    self.path
                ))
            }
            Ok(Action::Sleep(seconds)) => {
                let slept = sleep(Duration::from_secs(u64::from(*seconds)));
                let why = "container terminated before sleep hook finished";
                timeout_at(until, slept)
                    .await
                    .map_err(|_| format!("Sleep lifecycle hook ({seconds}) {whose} - error: {why}"))
            }
            Ok(Action::Tcp { .. } | Action::Grpc { .. }) => Err(format!(
                "Cannot run handler: invalid handler: tcpSocket {whose}: it is not supported as a LifecycleHandler"
            )),
            Err(why) => Err(format!(
                "HTTP lifecycle hook ({}) {whose} - error: {why}",
                self.path
            )),
        }
    }
}

#[cfg(test)]
mod tests;
