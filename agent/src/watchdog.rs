//! Whoever waits for the agent's sign of life, and what it is told: systemd, the kernel's alarm, a watchdog device.
//!
//! The signs come from the loop itself, so a loop that no longer turns gives none. Always holds: without any of them nothing
//! is done and no timer runs.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use skiff_sys::watchdog::{Device, end_me_after};
use tracing::{info, warn};

use crate::config::Config;

/// The manager's variables (sd_notify(3), sd_watchdog_enabled(3)).
const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Keeps the manager's variables from a process to be: they are for this one alone.
pub(crate) fn keep_from(command: &mut tokio::process::Command) {
    for name in VARIABLES {
        command.env_remove(name);
    }
}

/// A manager that speaks sd_notify's protocol.
struct Manager {
    socket: UnixDatagram,
    /// How often it wants to hear of us at least.
    interval: Option<Duration>,
    /// The `STATUS=` it heard last.
    status: String,
}

impl Manager {
    /// The one that the variables name; `pid` is ours.
    fn find(variable: &dyn Fn(&str) -> Option<std::ffi::OsString>, pid: u32) -> Option<io::Result<Self>> {
        let [socket, interval, owner] = VARIABLES.map(variable);
        let name = socket?;
        let number = |text: Option<std::ffi::OsString>| text?.to_str()?.parse::<u64>().ok();
        // Without an owner it is meant for whoever reads it.
        let ours = owner.is_none() || number(owner) == Some(u64::from(pid));
        let interval = number(interval)
            .filter(|it| ours && *it > 0)
            .map(Duration::from_micros);
        Some(Self::connect(name.as_bytes(), interval))
    }

    fn connect(name: &[u8], interval: Option<Duration>) -> io::Result<Self> {
        let address = match name {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that reads nothing must not hold us up.
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            interval,
            status: String::new(),
        })
    }

    fn tell(&self, text: &str) {
        if let Err(error) = self.socket.send(text.as_bytes()) {
            warn!(%error, "the service manager does not take a notification");
        }
    }
}

/// All that wait for a sign of life.
pub(crate) struct Watchdog {
    manager: Option<Manager>,
    device: Option<Device>,
    /// Seconds after which the kernel ends us; 0 for never.
    seconds: u32,
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// Finds who waits. Nobody is told anything before [`Watchdog::ready`], but for a device, which runs from now on.
    pub(crate) fn new(config: &Config) -> Self {
        let manager = Manager::find(&|name| std::env::var_os(name), std::process::id());
        let manager = manager.and_then(|found| {
            let failed = |error: &io::Error| warn!(%error, "the service manager cannot be notified");
            found.inspect_err(failed).ok()
        });
        let seconds = config.watchdog_seconds;
        let device = config.watchdog_device.as_deref().and_then(|path| {
            let failed = |error: &skiff_sys::KernelError| warn!(%error, "no watchdog device");
            let device = Device::open(path, seconds.saturating_mul(2)).inspect_err(failed).ok()?;
            info!(path = %path.display(), seconds = device.seconds(), "the machine is reset unless an agent answers");
            Some(device)
        });
        // Early enough that one that is late by a whole turn still comes in time.
        let own = (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)) / 3);
        let managers = manager.as_ref().and_then(|it| it.interval).map(|it| it / 2);
        let devices = device
            .as_ref()
            .map(|it| Duration::from_secs(u64::from(it.seconds())) / 3);
        Self {
            every: own.into_iter().chain(managers).chain(devices).min(),
            manager,
            device,
            seconds,
            next: Instant::now(),
        }
    }

    /// The start is over; from now on signs of life are due.
    pub(crate) fn ready(&mut self) {
        if let Some(manager) = &self.manager {
            manager.tell("READY=1\n");
        }
        self.alive();
    }

    /// Tells the manager how the agent is, if that is news.
    pub(crate) fn status(&mut self, status: impl FnOnce() -> String) {
        if let Some(manager) = &mut self.manager {
            let status = status();
            if manager.status != status {
                manager.tell(&format!("STATUS={status}\n"));
                manager.status = status;
            }
        }
    }

    /// A sign of life to all.
    pub(crate) fn alive(&mut self) {
        if self.seconds > 0 {
            end_me_after(self.seconds);
        }
        if let Some(manager) = self.manager.as_ref().filter(|it| it.interval.is_some()) {
            manager.tell("WATCHDOG=1\n");
        }
        if let Some(device) = &mut self.device
            && let Err(error) = device.feed()
        {
            warn!(%error, "the watchdog device is not fed");
        }
        self.next = Instant::now() + self.every.unwrap_or_default();
    }

    /// When the next sign of life is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.every.map(|_| self.next)
    }

    /// The agent ends because it was asked to: nobody shall wait for it any more.
    pub(crate) fn stopping(&mut self) {
        if let Some(manager) = &self.manager {
            manager.tell("STOPPING=1\nSTATUS=stopping; Pods run on\n");
        }
        end_me_after(0);
        if let Some(device) = self.device.take()
            && let Err(error) = device.stop()
        {
            warn!(%error, "the watchdog device goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&'static str, String)]) -> impl Fn(&str) -> Option<std::ffi::OsString> {
        let pairs = pairs.to_vec();
        move |name| {
            let found = pairs.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        }
    }

    #[test]
    fn a_manager_is_found_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let name = format!("skiff-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let hidden = UnixDatagram::bind_addr(&address).unwrap();
        for (listener, socket) in [
            (listener, path.display().to_string()),
            (hidden, format!("@{name}")),
        ] {
            let found = Manager::find(&environment(&[("NOTIFY_SOCKET", socket)]), 7);
            let manager = found.unwrap().unwrap();
            assert_eq!(manager.interval, None);
            manager.tell("READY=1\n");
            let mut bytes = [0; 64];
            let count = listener.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"READY=1\n");
        }
    }

    #[test]
    fn an_interval_for_another_process_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _listener = UnixDatagram::bind(&path).unwrap();
        let socket = ("NOTIFY_SOCKET", path.display().to_string());
        let usec = ("WATCHDOG_USEC", "4000000".to_owned());
        for (pid, expected) in [(None, Some(4)), (Some("7"), Some(4)), (Some("8"), None)] {
            let mut all = vec![socket.clone(), usec.clone()];
            all.extend(pid.map(|it| ("WATCHDOG_PID", it.to_owned())));
            let manager = Manager::find(&environment(&all), 7).unwrap().unwrap();
            assert_eq!(manager.interval, expected.map(Duration::from_secs), "{pid:?}");
        }
        assert!(
            Manager::find(&environment(&[usec]), 7).is_none(),
            "no socket, no manager"
        );
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error() {
        let nobody = ("NOTIFY_SOCKET", "/nonexistent/notify".to_owned());
        assert!(Manager::find(&environment(&[nobody]), 7).unwrap().is_err());
    }
}
