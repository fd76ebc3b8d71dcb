//! One try of a probe, from the node's network namespace.
//!
//! Always holds: a try makes no choices about the container: timers and thresholds are the core's; each try is one task
//! that ends by its timeout and answers exactly once; at most [`AT_ONCE`] of them are under way, the others wait inside
//! their own timeout. No try has a thread; only a `host` that is a name is looked up on a blocking one, as the system's
//! resolver has it.
//!
//! Source: Kubernetes API reference, `Probe`; the texts are a kubelet's.

mod dial;
mod grpc;
pub(crate) mod http;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use skiff_core::{ContainerRef, Event, ProbeKind, ProbeOutcome};
use skiff_protocol::wire::spec::{Container, EnvValue, Handler, PortRef};
use skiff_shim::protocol::Executed;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::input::Input;
use crate::plan;
use crate::shims::Command;
use http::Get;
pub(crate) use tls::Tls;

/// Tries under way at once: each may hold a socket and some 30 KiB, and a node of 250 Pods spreads its probes in time.
const AT_ONCE: usize = 64;

/// How much longer than its timeout a shim may take to tell that it has killed a command.
const SHIM_GRACE: Duration = Duration::from_secs(5);

/// `User-Agent` of a probe.
pub(crate) const PROBE_AGENT: &str = concat!("kube-probe/", env!("CARGO_PKG_VERSION"));

/// What is to be done, with nothing left to choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Run a command in the container.
    Exec(Vec<String>),
    /// GET over HTTP or HTTPS.
    Http(Get),
    /// Connect, and no more.
    Tcp {
        /// An address or a name.
        host: String,
        /// Its port.
        port: u16,
    },
    /// Ask gRPC's health service.
    Grpc {
        /// An address.
        host: String,
        /// Its port.
        port: u16,
        /// Which service; may be empty.
        service: String,
    },
    /// Wait.
    Sleep(u32),
}

impl Action {
    /// What a handler of this container means, for a Pod at the address `host`.
    ///
    /// # Errors
    /// When it names a port that the container does not have.
    pub(crate) fn of(
        handler: &Handler,
        spec: &Container,
        host: &str,
        agent: &'static str,
    ) -> Result<Self, String> {
        let or_pod = |given: &String| if given.is_empty() { host } else { given.as_str() }.to_owned();
        Ok(match handler {
            Handler::Exec(command) => Self::Exec(command.clone()),
            Handler::HttpGet(get) => Self::Http(Get {
                https: get.https,
                host: or_pod(&get.host),
                port: port(&get.port, spec)?,
                path: get.path.clone(),
                headers: get.headers.clone(),
                agent,
            }),
            Handler::TcpSocket { host, port: of } => Self::Tcp {
                host: or_pod(host),
                port: port(of, spec)?,
            },
            Handler::Grpc { port, service } => Self::Grpc {
                host: host.to_owned(),
                port: *port,
                service: service.clone(),
            },
            Handler::Sleep(seconds) => Self::Sleep(*seconds),
        })
    }

    /// Expands the `$(NAME)`s of a probe's command by the variables that the container's spec gives as values.
    #[must_use]
    pub(crate) fn expanded(self, spec: &Container) -> Self {
        let Self::Exec(command) = self else { return self };
        let variables: BTreeMap<String, String> = spec
            .env
            .iter()
            .map(|it| match &it.value {
                EnvValue::Literal(text) => (it.name.clone(), text.clone()),
                _ => (it.name.clone(), String::new()),
            })
            .collect();
        Self::Exec(command.iter().map(|it| plan::expand(it, &variables)).collect())
    }
}

fn port(of: &PortRef, spec: &Container) -> Result<u16, String> {
    match of {
        PortRef::Number(number) => Ok(*number),
        PortRef::Name(name) => {
            let found = spec.ports.iter().find(|it| it.name == *name);
            found
                .map(|it| it.container_port)
                .ok_or_else(|| format!("couldn't find port: {name}"))
        }
    }
}

/// Has probes tried.
pub(crate) struct Probes {
    inputs: mpsc::Sender<Input>,
    slots: Arc<Semaphore>,
    /// For HTTPS, of hooks too.
    pub(crate) tls: Arc<Tls>,
}

impl Probes {
    /// Nothing is being tried yet.
    #[must_use]
    pub(crate) fn new(inputs: mpsc::Sender<Input>) -> Self {
        Self {
            inputs,
            slots: Arc::new(Semaphore::new(AT_ONCE)),
            tls: Arc::default(),
        }
    }

    /// Tries once; the answer comes as [`Event::Probed`]. `shim` takes the Pod's commands.
    pub(crate) fn probe(
        &self,
        container: ContainerRef,
        kind: ProbeKind,
        action: Action,
        within: Duration,
        shim: mpsc::UnboundedSender<Command>,
    ) {
        let (slots, tls, inputs) = (self.slots.clone(), self.tls.clone(), self.inputs.clone());
        let until = Instant::now() + within;
        tokio::spawn(async move {
            let outcome = match timeout_at(until, slots.acquire()).await {
                Ok(Ok(_slot)) => try_once(&container, &action, within, until, &tls, &shim).await,
                _ => ProbeOutcome::Unknown(format!("no turn came: {AT_ONCE} probes are being tried already")),
            };
            let event = Event::Probed {
                container,
                kind,
                outcome,
            };
            // The driver is gone only when the agent ends.
            let _ = inputs.send(Input::Core(Box::new(event))).await;
        });
    }

    /// Runs a hook for at most `within`; the answer comes as [`Event::HookDone`].
    pub(crate) fn hook(
        &self,
        hook: crate::hooks::Hook,
        within: Duration,
        shim: mpsc::UnboundedSender<Command>,
    ) {
        let (tls, inputs) = (self.tls.clone(), self.inputs.clone());
        let until = Instant::now() + within;
        tokio::spawn(async move {
            let result = hook.run(until, &tls, &shim).await;
            let event = Event::HookDone {
                container: hook.container,
                kind: hook.kind,
                result,
            };
            // The driver is gone only when the agent ends.
            let _ = inputs.send(Input::Core(Box::new(event))).await;
        });
    }
}

async fn try_once(
    container: &ContainerRef,
    action: &Action,
    within: Duration,
    until: Instant,
    tls: &Tls,
    shim: &mpsc::UnboundedSender<Command>,
) -> ProbeOutcome {
    match action {
        Action::Exec(command) => match exec(shim, container, command, until).await {
            Ok(Executed {
                exit_code: Some(0), ..
            }) => ProbeOutcome::Success,
            Ok(Executed {
                exit_code: Some(_),
                output,
            }) => ProbeOutcome::Failure(String::from_utf8_lossy(&output).into_owned()),
            Ok(Executed { exit_code: None, .. }) => ProbeOutcome::Failure(timed_out(command)),
            Err(why) => ProbeOutcome::Unknown(why),
        },
        Action::Http(get) => match http::get(get, until, tls).await {
            Ok(response) if (200..400).contains(&response.status) => ProbeOutcome::Success,
            Ok(response) => {
                ProbeOutcome::Failure(format!("HTTP probe failed with statuscode: {}", response.status))
            }
            Err(http::Error::Failed(why)) => ProbeOutcome::Failure(why),
            Err(http::Error::Body(why)) => ProbeOutcome::Unknown(why),
        },
        Action::Tcp { host, port } => match timeout_at(until, dial::dial(host, *port)).await {
            Ok(Ok(_)) => ProbeOutcome::Success,
            Ok(Err(why)) => ProbeOutcome::Failure(why),
            Err(_) => {
                ProbeOutcome::Failure(format!("dial tcp {}: i/o timeout", dial::authority(host, *port)))
            }
        },
        Action::Grpc { host, port, service } => grpc::check(host, *port, service, within, until).await,
        Action::Sleep(_) => ProbeOutcome::Unknown("a probe cannot sleep".to_owned()),
    }
}

/// What a kubelet says of a command that took too long.
pub(crate) fn timed_out(command: &[String]) -> String {
    format!("command {:?} timed out", command.join(" "))
}

/// Runs a command in the container, through the Pod's shim, which kills it at its end.
///
/// # Errors
/// When it could not be run; says nothing about the container.
pub(crate) async fn exec(
    shim: &mpsc::UnboundedSender<Command>,
    container: &ContainerRef,
    command: &[String],
    until: Instant,
) -> Result<Executed, String> {
    let (answer, answered) = oneshot::channel();
    let request = Command::Exec {
        container: container.clone(),
        command: command.to_vec(),
        until,
        answer,
    };
    let asked = async {
        // A shim's task that ends, or loses its shim, drops what it was asked.
        let gone = || "the Pod's shim is gone".to_owned();
        shim.send(request).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    };
    timeout_at(until + SHIM_GRACE, asked)
        .await
        .unwrap_or_else(|_| Err("the Pod's shim did not answer in time".to_owned()))
}

#[cfg(test)]
mod tests;
