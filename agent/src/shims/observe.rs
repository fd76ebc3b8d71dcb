//! What a shim knows of its containers, as the core wants to hear it when an agent finds it running.
//!
//! Always holds: of each container the latest attempt counts.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use skiff_core::{ContainerRef, Exit, ObservedContainer, ObservedPhase, ObservedPod, Probed};
use skiff_protocol::uid::Uid;
use skiff_shim::protocol::{self, Phase};
use tracing::warn;

use super::{NOTE_FORMAT, Note, container_id};

pub(super) fn reference(uid: Uid, container: &protocol::ContainerState) -> ContainerRef {
    ContainerRef {
        pod: uid,
        name: container.name.clone(),
        attempt: container.attempt,
    }
}

pub(super) fn note_path(pod_dir: &Path, container: &str) -> PathBuf {
    pod_dir.join("notes").join(container)
}

pub(super) fn read_note(path: &Path) -> Option<Note> {
    let bytes = std::fs::read(path).ok()?;
    postcard::from_bytes(&bytes).ok()
}

/// What is known of a container's probes; beside its note, whose format says nothing of them. No container's name has
/// a dot.
pub(super) fn probed_path(pod_dir: &Path, container: &str) -> PathBuf {
    pod_dir.join("notes").join(format!("{container}.probed"))
}

/// Keeps it: two digits, 0 or 1, for `started` and `ready`. Whole at any moment, for an agent may end at any.
pub(super) fn keep_probed(pod_dir: &Path, container: &str, probed: Probed) {
    let path = probed_path(pod_dir, container);
    let text = format!("{}{}", u8::from(probed.started), u8::from(probed.ready));
    let new = path.with_extension("probed.new");
    let kept = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path));
    if let Err(error) = kept {
        warn!(path = %path.display(), %error, "cannot keep what the next agent must know of probes");
    }
}

/// What was kept. Of a container that an agent started which kept nothing, all is taken for well: an upgrade makes
/// nothing unready.
fn read_probed(pod_dir: &Path, container: &str) -> Probed {
    let kept = std::fs::read(probed_path(pod_dir, container)).unwrap_or_default();
    let [started, ready] = match *kept {
        [started, ready] => [started, ready].map(|it| it == b'1'),
        _ => [true, true],
    };
    Probed { started, ready }
}

/// The Pods that have a directory in `dir`.
pub(super) fn pods_in(dir: &Path) -> io::Result<Vec<Uid>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        out.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<Uid>().ok()),
        );
    }
    Ok(out)
}

/// Whether a connection failed because no shim is there.
pub(super) fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

pub(super) fn observe(uid: Uid, dir: &Path, state: &protocol::State) -> ObservedPod {
    let ip = state
        .sandbox
        .as_ref()
        .and_then(|it| it.network.as_ref())
        .and_then(|it| match it.address.address {
            std::net::IpAddr::V4(ip) => Some(ip),
            std::net::IpAddr::V6(_) => None,
        });
    // Of a container that was restarted the shim may still know the attempt before; the latest counts.
    let mut latest: BTreeMap<&str, &protocol::ContainerState> = BTreeMap::new();
    for container in &state.containers {
        let newer = latest
            .get(container.name.as_str())
            .is_none_or(|it| it.attempt <= container.attempt);
        if newer {
            latest.insert(&container.name, container);
        }
    }
    let containers = latest.into_values().map(|it| {
        let note = read_note(&note_path(dir, &it.id));
        let phase = match &it.phase {
            Phase::Starting => ObservedPhase::Starting,
            Phase::Running { started_at, .. } => ObservedPhase::Running(started_at.unix_ns / 1_000_000_000),
            Phase::Exited(exit) => ObservedPhase::Exited(exit_of(exit)),
        };
        ObservedContainer {
            name: it.name.clone(),
            attempt: it.attempt,
            container_id: container_id(uid, &it.id),
            image_id: note.as_ref().map(|it| it.image_id.clone()).unwrap_or_default(),
            // Lost, or of another format: not known is not the same as changed.
            spec_digest: note
                .filter(|it| it.format == NOTE_FORMAT)
                .map(|it| it.spec_digest),
            phase,
            probed: read_probed(dir, &it.id),
        }
    });
    ObservedPod {
        uid,
        sandbox: state.sandbox.is_some(),
        ip,
        containers: containers.collect(),
    }
}

pub(super) fn exit_of(exit: &protocol::Exit) -> Exit {
    Exit {
        exit_code: exit.exit_code,
        signal: exit.signal.unwrap_or(0),
        oom_killed: exit.oom_killed,
        started_at: exit.started_at.unix_ns / 1_000_000_000,
        finished_at: exit.finished_at.unix_ns / 1_000_000_000,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_probes_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let well = Probed {
            started: true,
            ready: true,
        };
        let of = |started, ready| Probed { started, ready };
        // Kept by an agent that knew no probes: nothing at all, or what nobody understands.
        assert_eq!(read_probed(dir.path(), "c-0"), well);
        std::fs::create_dir_all(dir.path().join("notes")).unwrap();
        std::fs::write(probed_path(dir.path(), "c-0"), "?").unwrap();
        assert_eq!(read_probed(dir.path(), "c-0"), well);
        for probed in [of(false, false), of(true, false), of(false, true), well] {
            keep_probed(dir.path(), "c-0", probed);
            assert_eq!(read_probed(dir.path(), "c-0"), probed);
        }
        assert_eq!(read_probed(dir.path(), "c-1"), well);
        let note = Note {
            format: NOTE_FORMAT,
            image_id: "i".to_owned(),
            spec_digest: 7,
        };
        // The note beside it is as it was before there were probes.
        let path = note_path(dir.path(), "c-0");
        std::fs::write(&path, postcard::to_allocvec(&note).unwrap()).unwrap();
        assert_eq!(read_note(&path).unwrap().spec_digest, 7);
        assert_eq!(read_probed(dir.path(), "c-0"), well);
    }
}
