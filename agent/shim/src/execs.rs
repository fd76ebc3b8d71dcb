//! Commands in running containers, for probes and hooks.
//!
//! Always holds: at most [`MAX_EXECS`] run at once in a Pod, each in a place of its own; a request is answered when its command
//! has ended, with all that it started, or when that is taken over by another operation.

use std::time::Duration;

use skiff_sys::container::{self, Exec, Execution};

use crate::operation::{Asker, Operation, Purpose};
use crate::pod::Life;
use crate::protocol::{ExecRequest, Executed, MAX_EXEC_OUTPUT, ReplyBody, ShimError};
use crate::requests::{Answer, wrong_state};
use crate::server::Server;

/// Commands of a Pod at a time: each is two processes of the node's.
const MAX_EXECS: usize = 16;

/// Longest that a command may take: a hook has at most the Pod's grace period, which is shorter.
const MAX_EXEC_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

impl Server {
    /// Begins a command.
    pub(crate) fn exec(&mut self, asker: Asker, request: &ExecRequest) -> Answer {
        let id = &request.container;
        let container = self
            .containers
            .get(id)
            .ok_or_else(|| ShimError::NotFound(id.clone()))?;
        let process = match &container.life {
            Life::Running { process, .. } => *process,
            Life::Starting => return Err(wrong_state(id, "is still being started")),
            Life::Exited(_) => return Err(wrong_state(id, "has exited")),
        };
        let place = self.free_place().ok_or_else(|| ShimError::TooMany {
            what: "commands in the containers of a pod".to_owned(),
            max: MAX_EXECS as u64,
        })?;
        let exec = Exec {
            container: &container.config,
            process,
            command: &request.config,
            group: container::group(&container.config, place),
            timeout: Duration::from_millis(request.timeout_ms).min(MAX_EXEC_TIMEOUT),
            output: request.output.min(MAX_EXEC_OUTPUT) as usize,
        };
        let operation = Operation::exec(&exec, &self.cgroups, place, asker)?;
        self.operations.push(operation);
        Ok(None)
    }

    fn free_place(&self) -> Option<usize> {
        let is_taken = |place: usize| {
            self.operations.iter().any(|operation| match operation.purpose {
                Purpose::Exec { place: taken, .. } | Purpose::EndExec { place: taken } => taken == place,
                _ => false,
            })
        };
        (0..MAX_EXECS).find(|&place| !is_taken(place))
    }

    /// Ends what a command has left whose operation is lost. What cannot be ended goes with its container.
    pub(crate) fn end_exec(&mut self, asker: Asker, group: &str, place: usize) {
        let begun = Operation::end_exec(group, place, &self.cgroups, asker);
        self.operations.extend(begun);
    }

    /// The Pod ends, and with it what runs in it.
    pub(crate) fn abort_execs(&mut self) {
        let (execs, others) = std::mem::take(&mut self.operations)
            .into_iter()
            .partition(Operation::is_exec);
        self.operations = others;
        let execs: Vec<Operation> = execs;
        for operation in execs {
            operation.abort();
            if let Purpose::Exec { container, .. } = &operation.purpose {
                let error = wrong_state(container, "is being removed");
                self.reply(operation.asker, Err(error));
            }
        }
    }
}

/// How the protocol shows it.
pub(crate) fn executed(execution: Execution) -> ReplyBody {
    ReplyBody::Executed(Executed {
        exit_code: execution.ended.map(skiff_sys::process::Ended::code),
        output: execution.output,
    })
}
