//! How what a node began turns out: pulls, sandboxes, starts, ends and removals, with their share of bad luck.
//!
//! Always holds: the machine changes whether or not an agent is there to hear of it.

use skiff_core::{ContainerRef, Event, Exit, HookKind, ImageError, ProbeKind, ProbeOutcome, StartError};
use skiff_protocol::uid::Uid;

use super::{ABSENT, Defect, Node, Turn, Work};
use crate::machine::{Instance, Life, Sandbox, container_id, image_id};

impl Node {
    pub(super) fn pulled(&mut self, turn: &mut Turn<'_>, life: u64, container: ContainerRef, image: &str) {
        if life != self.life {
            return;
        }
        let failed = image.starts_with(ABSENT) || turn.unlucky(30);
        if failed && self.defect == Defect::NeverAnswers {
            return;
        }
        let event = if failed {
            let error = ImageError {
                reason: "ErrImagePull".to_owned(),
                message: format!("{image}: not found"),
                retry: true,
            };
            Event::ImageFailed { container, error }
        } else {
            self.machine.images.insert(image.to_owned());
            let image_id = image_id(image);
            Event::ImageReady { container, image_id }
        };
        self.event(turn, event);
    }

    pub(super) fn sandbox_made(&mut self, turn: &mut Turn<'_>, uid: Uid, id: u64) {
        let fails = turn.unlucky(10);
        let Some(shim) = self.machine.shims.get_mut(&uid).filter(|it| it.id == id) else {
            return;
        };
        if fails {
            (shim.sandbox, shim.ip) = (Sandbox::None, None);
            self.event(turn, Event::SandboxFailed(uid, "no bridge".to_owned()));
        } else {
            shim.sandbox = Sandbox::Ready;
            self.event(turn, Event::SandboxReady(uid));
        }
    }

    pub(super) fn start_done(&mut self, turn: &mut Turn<'_>, container: ContainerRef, id: u64) {
        let fails = turn.unlucky(8);
        let unix = self.now(turn).unix;
        let Some(shim) = self
            .machine
            .shims
            .get_mut(&container.pod)
            .filter(|it| it.id == id)
        else {
            return;
        };
        let current = |it: &&mut Instance| it.attempt == container.attempt;
        let Some(instance) = shim.containers.get_mut(&container.name).filter(current) else {
            return;
        };
        if fails {
            shim.containers.remove(&container.name);
            let error = StartError::Failed {
                exit_code: 128,
                message: "cannot allocate memory".to_owned(),
            };
            self.event(turn, Event::StartFailed { container, error });
            return;
        }
        instance.life = Life::Running(unix);
        let behaviour = instance.args.first().map_or("serve", String::as_str);
        let code = match behaviour {
            "job" => Some(0),
            "flaky" if container.attempt < 3 => Some(1),
            _ => None,
        };
        if let Some(code) = code {
            turn.later(
                500,
                5000,
                Work::Ends {
                    container: container.clone(),
                    shim: id,
                    code,
                },
            );
        }
        let container_id = container_id(&container.name, container.attempt);
        self.event(
            turn,
            Event::Started {
                container,
                container_id,
            },
        );
    }

    pub(super) fn ends(&mut self, turn: &mut Turn<'_>, container: ContainerRef, id: u64, code: i32) {
        let unix = self.now(turn).unix;
        let Some(shim) = self
            .machine
            .shims
            .get_mut(&container.pod)
            .filter(|it| it.id == id)
        else {
            return;
        };
        let Some(instance) = shim.containers.get_mut(&container.name) else {
            return;
        };
        let (Life::Running(started_at), true) = (&instance.life, instance.attempt == container.attempt)
        else {
            return;
        };
        let exit = Exit {
            exit_code: code,
            signal: if code > 128 { code - 128 } else { 0 },
            oom_killed: false,
            started_at: *started_at,
            finished_at: unix,
            ..Default::default()
        };
        instance.life = Life::Exited(exit.clone());
        if !shim.removing {
            self.event(turn, Event::Exited { container, exit });
        }
    }

    pub(super) fn probe_done(
        &mut self,
        turn: &mut Turn<'_>,
        life: u64,
        container: ContainerRef,
        kind: ProbeKind,
    ) {
        if life != self.life {
            return;
        }
        let outcome = if turn.unlucky(15) {
            if kind != ProbeKind::Readiness {
                self.watch.ails(&container);
            }
            ProbeOutcome::Failure("connection refused".to_owned())
        } else if turn.unlucky(5) {
            ProbeOutcome::Unknown("no shim".to_owned())
        } else {
            ProbeOutcome::Success
        };
        self.event(
            turn,
            Event::Probed {
                container,
                kind,
                outcome,
            },
        );
    }

    pub(super) fn hook_done(
        &mut self,
        turn: &mut Turn<'_>,
        life: u64,
        container: ContainerRef,
        kind: HookKind,
        late: bool,
    ) {
        if life != self.life {
            return;
        }
        let result = if late || turn.unlucky(15) {
            self.watch.ails(&container);
            Err("the hook failed".to_owned())
        } else {
            Ok(())
        };
        self.event(
            turn,
            Event::HookDone {
                container,
                kind,
                result,
            },
        );
    }

    pub(super) fn remove_done(&mut self, turn: &mut Turn<'_>, uid: Uid, id: u64) {
        if self.machine.shims.get(&uid).is_none_or(|it| it.id != id) {
            return;
        }
        if turn.unlucky(15) {
            self.machine.shim(uid).removing = false;
            self.event(turn, Event::RemoveFailed(uid, "device busy".to_owned()));
        } else {
            self.machine.shims.remove(&uid);
            self.event(turn, Event::Removed(uid));
        }
    }

    /// A shim dies, and its containers with it.
    pub(crate) fn shim_dies(&mut self, turn: &mut Turn<'_>, uid: Uid) {
        if self.machine.shims.get(&uid).is_none_or(|it| it.removing) {
            return;
        }
        let making = self
            .machine
            .shims
            .remove(&uid)
            .is_some_and(|it| it.sandbox == Sandbox::Making);
        if making {
            self.event(turn, Event::SandboxFailed(uid, "the shim ended".to_owned()));
        }
        self.event(turn, Event::ShimLost(uid));
    }

    /// A container of a Pod ends by itself.
    pub(crate) fn container_ends(&mut self, turn: &mut Turn<'_>) {
        let running: Vec<(ContainerRef, u64)> = self
            .machine
            .shims
            .iter()
            .flat_map(|(uid, shim)| {
                shim.containers.iter().map(|(name, it)| {
                    let container = ContainerRef {
                        pod: *uid,
                        name: name.clone(),
                        attempt: it.attempt,
                    };
                    (container, shim.id)
                })
            })
            .collect();
        if !running.is_empty() {
            let (container, shim) = turn.rng.pick(&running).clone();
            let code = *turn.rng.pick(&[0, 1, 137]);
            self.ends(turn, container, shim, code);
        }
    }
}
