//! The shim's loop: one poll over signals, clients, operations and output.
//!
//! Always holds: nothing in here waits but the poll; every child is waited for; a client's request is answered exactly
//! once, if the client is still there; an exit is recorded before it is told.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use skiff_sys::cgroup::Cgroups;
use skiff_sys::process::{self, Ended};
use skiff_sys::{KernelError, SandboxConfig};

use crate::connection::{Connection, Disconnected};
use crate::operation::Operation;
use crate::pod::{self, Container, Life};
use crate::protocol::{Event, Request, Stamp, ToClient};
use crate::updates::Change;
use crate::{SOCKET_NAME, protocol};

/// Clients at a time: the agent, its successor, and somebody who looks.
const MAX_CLIENTS: usize = 8;

/// Exits of processes that an operation in flight may still turn out to have started.
const MAX_STRAY_EXITS: usize = 256;

/// Why a shim ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("{what} {path}: {cause}")]
    Io {
        what: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("signals: {0}")]
    Signals(nix::Error),
}

/// What a descriptor that is ready belongs to.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Listener,
    Client(u64),
    Operation,
    Output,
}

/// A running shim.
pub(crate) struct Server {
    pub(crate) pod_dir: PathBuf,
    pub(crate) cgroups: Cgroups,
    pub(crate) sandbox: Option<SandboxConfig>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) operations: Vec<Operation>,
    /// Changes of limits that wait for the one under way.
    pub(crate) changes: VecDeque<Change>,
    pub(crate) finished: bool,
    signals: SignalFd,
    listener: UnixListener,
    clients: BTreeMap<u64, Connection>,
    next_client: u64,
    stray_exits: Vec<(i32, Ended)>,
}

impl Server {
    /// Becomes the shim of the Pod in this directory.
    pub(crate) fn start(pod_dir: &Path, cgroups: Cgroups) -> Result<Self, ServeError> {
        let io = |what, path: &Path| {
            let path = path.to_owned();
            move |cause| ServeError::Io { what, path, cause }
        };
        // A shim that leads its group already (started by hand) is in nobody's way.
        let _ = process::new_session();
        process::become_subreaper()?;
        // Without CAP_SYS_RESOURCE it stays as it is, and the shim is a little easier to kill than it should be.
        let _ = process::set_oom_score_adj(-999);
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        let mut mask = SigSet::empty();
        // Only SIGCHLD is acted upon; the others must not end a shim while its containers run.
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block().map_err(ServeError::Signals)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&mask, flags).map_err(ServeError::Signals)?;
        fs::create_dir_all(pod_dir).map_err(io("make", pod_dir))?;
        let socket = pod_dir.join(SOCKET_NAME);
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            let cause = io::Error::from(io::ErrorKind::AddrInUse);
            return Err(ServeError::Io {
                what: "another shim serves",
                path: socket,
                cause,
            });
        }
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io("replace", &socket)(error));
            }
            _ => {}
        }
        // Nobody may connect before the mode is set.
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(&socket).map_err(io("bind", &socket));
        nix::sys::stat::umask(before);
        let listener = listener?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).map_err(io("protect", &socket))?;
        listener.set_nonblocking(true).map_err(io("bind", &socket))?;
        Ok(Self {
            pod_dir: pod_dir.to_owned(),
            cgroups,
            sandbox: None,
            containers: BTreeMap::new(),
            operations: Vec::new(),
            changes: VecDeque::new(),
            finished: false,
            signals,
            listener,
            clients: BTreeMap::new(),
            next_client: 0,
            stray_exits: Vec::new(),
        })
    }

    /// Serves until a client has it shut down.
    pub(crate) fn serve(&mut self) -> Result<(), ServeError> {
        while !self.finished {
            let mut output = false;
            for source in self.wait() {
                match source {
                    Source::Signals => while let Ok(Some(_)) = self.signals.read_signal() {},
                    Source::Listener => self.accept(),
                    Source::Client(id) => self.serve_client(id),
                    Source::Output => output = true,
                    Source::Operation => {}
                }
            }
            if output {
                self.containers
                    .values_mut()
                    .for_each(|container| container.output.drain());
            }
            // Reaping comes before the reports: of a container that has started and ended, the exit is then known.
            self.reap();
            self.finish_operations(Instant::now());
        }
        let socket = self.pod_dir.join(SOCKET_NAME);
        fs::remove_file(&socket).map_err(|cause| ServeError::Io {
            what: "remove",
            path: socket,
            cause,
        })
    }

    /// Waits until something is ready or a deadline passes.
    fn wait(&self) -> Vec<Source> {
        let mut sources: Vec<(Source, BorrowedFd<'_>)> = vec![
            (Source::Signals, self.signals.as_fd()),
            (Source::Listener, self.listener.as_fd()),
        ];
        sources.extend(
            self.clients
                .iter()
                .map(|(id, client)| (Source::Client(*id), client.fd())),
        );
        sources.extend(
            self.operations
                .iter()
                .map(|operation| (Source::Operation, operation.fd())),
        );
        let outputs = self
            .containers
            .values()
            .flat_map(|container| container.output.fds());
        sources.extend(outputs.map(|fd| (Source::Output, fd)));
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(source, fd)| {
                let writes = matches!(source, Source::Client(id) if self.clients[id].wants_to_write());
                PollFd::new(
                    *fd,
                    if writes {
                        PollFlags::POLLIN | PollFlags::POLLOUT
                    } else {
                        PollFlags::POLLIN
                    },
                )
            })
            .collect();
        let timeout = match self.operations.iter().map(|operation| operation.deadline).min() {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::from(u16::try_from(left.as_millis()).unwrap_or(u16::MAX))
            }
        };
        // An interruption is a wake-up like any other.
        let _ = nix::poll::poll(&mut fds, timeout);
        let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        fds.iter()
            .zip(&sources)
            .filter(|(fd, _)| ready(fd))
            .map(|(_, (source, _))| *source)
            .collect()
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < MAX_CLIENTS
                && let Some(client) = Connection::accept(stream)
            {
                self.clients.insert(self.next_client, client);
                self.next_client += 1;
            }
        }
    }

    fn serve_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let received = client.flush().and_then(|()| client.receive());
        match received {
            Ok(requests) => requests.into_iter().for_each(|request| self.answer(id, request)),
            Err(Disconnected) => drop(self.clients.remove(&id)),
        }
    }

    fn answer(&mut self, client: u64, Request { id, body }: Request) {
        let asker = crate::operation::Asker { client, request: id };
        if let Some(result) = self.handle(asker, body).transpose() {
            self.reply(asker, result);
        }
    }

    /// Tells a client, if it is still there, what came of its request.
    pub(crate) fn reply(
        &mut self,
        asker: crate::operation::Asker,
        result: Result<protocol::ReplyBody, protocol::ShimError>,
    ) {
        let reply = ToClient::Reply(protocol::Reply {
            id: asker.request,
            result,
        });
        if let Some(client) = self.clients.get_mut(&asker.client)
            && client.send(&reply).is_err()
        {
            self.clients.remove(&asker.client);
        }
    }

    fn tell_all(&mut self, event: Event) {
        let message = ToClient::Event(event);
        self.clients.retain(|_, client| client.send(&message).is_ok());
    }

    /// Waits for every child that has ended.
    fn reap(&mut self) {
        let starting = self.operations.iter().any(Operation::is_start);
        while let Some((pid, ended)) = process::reap() {
            let running = self
                .containers
                .iter()
                .find_map(|(id, container)| match container.life {
                    Life::Running { process, started_at } if process.pid == pid => {
                        Some((id.clone(), started_at))
                    }
                    _ => None,
                });
            match running {
                Some((id, started_at)) => self.exited(&id, started_at, ended),
                // An operation's own end is of no interest: its report is.
                None if self.operations.iter().any(|operation| operation.pid() == pid) => {}
                // It may be the first process of a container whose start is not reported yet.
                None if starting && self.stray_exits.len() < MAX_STRAY_EXITS => {
                    self.stray_exits.push((pid, ended));
                }
                None => {}
            }
        }
        if !starting {
            self.stray_exits.clear();
        }
    }

    /// How a process ended that has been waited for before anybody knew whose it was.
    pub(crate) fn take_stray_exit(&mut self, pid: i32) -> Option<Ended> {
        let at = self.stray_exits.iter().position(|(stray, _)| *stray == pid)?;
        Some(self.stray_exits.swap_remove(at).1)
    }

    /// A container's first process has ended.
    pub(crate) fn exited(&mut self, id: &str, started_at: Stamp, ended: Ended) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        // Without a PID namespace of its own, the container's other processes would go on.
        let _ = self.cgroups.kill_once(&container.remains.cgroup_path);
        container.output.finish();
        let oom_killed = self.cgroups.oom_kills(&container.remains.cgroup_path) > 0;
        let exit = container.exit(id, started_at, ended, oom_killed);
        container.life = Life::Exited(exit.clone());
        // A full tmpfs costs the copy, which only a crash of the shim would need.
        let _ = pod::store(&pod::exit_file(&self.pod_dir, id), &exit);
        self.tell_all(Event::Exited(exit));
    }
}
