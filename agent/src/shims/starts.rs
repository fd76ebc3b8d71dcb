//! Starts of containers: what a start waits for, what became of one that an earlier agent began, and what earlier attempts
//! left.
//!
//! Always holds: the same attempt is never started twice.

use std::io;
use std::time::Duration;

use skiff_core::{ContainerRef, Event, StartError};
use skiff_shim::protocol::{self, Phase, RequestBody};
use tracing::warn;

use super::observe::{exit_of, note_path, probed_path};
use super::{Pending, Task, container_id};

/// How long a start that an earlier agent began is left alone before the shim is asked for it again.
const BEGUN_AGAIN: Duration = Duration::from_millis(50);

/// A start that the core waits for.
pub(super) struct Start {
    pub(super) container: ContainerRef,
    /// What the shim calls it.
    pub(super) id: String,
    /// An earlier agent may have begun it, from a spec that is not the one now wanted.
    pub(super) stale: bool,
}

impl Start {
    pub(super) fn failed(self, exit_code: i32, message: String) -> Event {
        Event::StartFailed {
            container: self.container,
            error: StartError::Failed { exit_code, message },
        }
    }
}

impl Task {
    /// Asks for what a start waits for; without a shim it has failed.
    pub(super) async fn begin(
        &mut self,
        body: RequestBody,
        start: Start,
        pending: impl FnOnce(Start) -> Pending,
    ) {
        let container = start.container.clone();
        if self.ask(body, pending(start)).await.is_err() {
            let error = StartError::Failed {
                exit_code: 128,
                message: "the Pod's shim is gone".to_owned(),
            };
            self.tell(Event::StartFailed { container, error }).await;
        }
    }

    /// What became of a start that an earlier agent began: the same attempt is never started twice.
    pub(super) async fn begun(&mut self, start: Start, state: &protocol::State) {
        let found = state.containers.iter().find(|it| it.id == start.id);
        match found.map(|it| &it.phase) {
            None => {
                let message = "the start that was under way when the agent ended has failed";
                self.tell(start.failed(128, message.to_owned())).await;
            }
            Some(Phase::Starting) => self.look_again(start).await,
            Some(Phase::Running { .. }) if start.stale => {
                let container = Some(start.id.clone());
                // A shim that is gone is told by an event of its own.
                let _ = self.ask(RequestBody::KillAll { container }, Pending::Quiet).await;
                self.look_again(start).await;
            }
            Some(Phase::Exited(_)) if start.stale => {
                let message = "its spec changed while the agent was away";
                self.tell(start.failed(128, message.to_owned())).await;
            }
            Some(Phase::Running { .. }) => self.tell(self.started(&start)).await,
            Some(Phase::Exited(exit)) => {
                self.tell(self.started(&start)).await;
                let (container, exit) = (start.container, exit_of(exit));
                self.tell(Event::Exited { container, exit }).await;
            }
        }
    }

    async fn look_again(&mut self, start: Start) {
        tokio::time::sleep(BEGUN_AGAIN).await;
        self.begin(RequestBody::State, start, Pending::Begun).await;
    }

    pub(super) fn started(&self, start: &Start) -> Event {
        Event::Started {
            container: start.container.clone(),
            container_id: container_id(self.uid, &start.id),
        }
    }

    /// Removes what the shim and the disk keep of the container's earlier attempts, but for the last one's log.
    pub(super) async fn forget_older(&mut self, container: &ContainerRef) {
        let older = self
            .attempts
            .iter()
            .filter(|(_, it)| it.name == container.name && it.attempt < container.attempt);
        let older: Vec<String> = older.map(|(id, _)| id.clone()).collect();
        for id in older {
            self.attempts.remove(&id);
            let _ = self
                .ask(
                    RequestBody::Delete {
                        container: id.clone(),
                    },
                    Pending::Quiet,
                )
                .await;
            let run = self.place.run_of(self.uid);
            let _ = std::fs::remove_file(note_path(&run, &id));
            let _ = std::fs::remove_file(probed_path(&run, &id));
        }
        // Also what an earlier boot or a lost shim left, and what lies under this very attempt's name: a container
        // begins with a fresh writable layer.
        let layers = self.place.layers_of(self.uid);
        let of_this = |name: &str| {
            let attempt = name
                .strip_prefix(container.name.as_str())
                .and_then(|it| it.strip_prefix('-'));
            attempt.is_some_and(|it| it.parse::<u32>().is_ok())
        };
        let entries = std::fs::read_dir(&layers).into_iter().flatten().flatten();
        for path in entries
            .filter(|it| it.file_name().to_str().is_some_and(of_this))
            .map(|it| it.path())
        {
            if let Err(error) = tokio::fs::remove_dir_all(&path).await
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(path = %path.display(), %error, "cannot remove an ended container's files");
            }
        }
    }
}
