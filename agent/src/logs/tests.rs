//! Streams over real rings in a directory as a shim leaves it.

use std::time::Instant;

use skiff_protocol::wire::status::Terminated;
use skiff_shim::ring::{MIN_CAPACITY, Stream as Output, Writer};

use super::*;

#[test]
fn times_as_kubernetes_writes_them() {
    for (unix_ns, expected) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (4_102_444_799_000_000_000, "2099-12-31T23:59:59.000000000Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
    ] {
        assert_eq!(rfc3339(unix_ns), expected);
    }
}

const UID: Uid = Uid([7; 16]);

/// A Pod's directory with a shim's socket.
struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(dir.path().join(skiff_shim::EXIT_DIR)).unwrap();
        std::fs::write(dir.socket(), "").unwrap();
        dir
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn socket(&self) -> PathBuf {
        self.path().join(skiff_shim::SOCKET_NAME)
    }

    fn exit(&self, attempt: u32) -> PathBuf {
        self.path()
            .join(skiff_shim::EXIT_DIR)
            .join(format!("c-{attempt}"))
    }

    /// The ring of an attempt, with its number in it.
    fn ring(&self, attempt: u32) -> Writer {
        let path = ring_path(self.path(), "c", attempt);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut writer = Writer::create(&path, MIN_CAPACITY).unwrap();
        line(&mut writer, &format!("attempt {attempt}"));
        writer
    }

    fn source(&self, state: ContainerState, count: u32, previous: bool) -> Result<Source, String> {
        source(UID, &status(state, count), self.path(), previous)
    }
}

fn line(writer: &mut Writer, text: &str) {
    writer.append(Output::Stdout, 1, false, text.as_bytes());
    writer.flush();
}

fn status(state: ContainerState, restart_count: u32) -> ContainerStatus {
    let last = match &state {
        ContainerState::Terminated(_) => false,
        ContainerState::Waiting { reason, .. } if reason == "CrashLoopBackOff" => true,
        _ => restart_count > 0,
    };
    ContainerStatus {
        name: "c".to_owned(),
        last: last.then(terminated),
        state,
        ready: false,
        restart_count,
        image_id: String::new(),
        container_id: String::new(),
        ..Default::default()
    }
}

fn terminated() -> Terminated {
    Terminated {
        exit_code: 1,
        signal: 0,
        reason: "Error".to_owned(),
        message: String::new(),
        started_at: 0,
        finished_at: 0,
        container_id: String::new(),
    }
}

fn waiting(reason: &str) -> ContainerState {
    ContainerState::Waiting {
        reason: reason.to_owned(),
        message: String::new(),
    }
}

const RUNNING: ContainerState = ContainerState::Running { started_at: 0 };

fn follow() -> LogRequest {
    LogRequest {
        uid: Some(UID),
        container: "c".to_owned(),
        follow: true,
        previous: false,
        tail_lines: None,
        since: None,
        timestamps: false,
        limit_bytes: None,
    }
}

/// All that a stream says to its end.
async fn to_the_end(streams: &mut Streams) -> (String, StreamEnd) {
    let mut text = Vec::new();
    let limit = Duration::from_secs(5);
    loop {
        let next = tokio::time::timeout(limit, streams.next()).await;
        match next.expect("the stream ends by itself").unwrap() {
            Input::StreamData { sid, bytes, .. } => {
                streams.credit(sid, bytes.len() as u32);
                text.extend_from_slice(&bytes);
            }
            Input::StreamEnd { sid, end } => {
                streams.ended(sid);
                return (String::from_utf8(text).unwrap(), end);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Which attempt is shown without and with `--previous`, and how the stream is known to be over.
#[test]
fn previous_is_the_attempt_that_ended_last() {
    let crashed = || waiting("CrashLoopBackOff");
    let starting = || waiting("ContainerCreating");
    let lost = "unable to retrieve";
    let none = "previous terminated container";
    for (what, state, count, rings, exits, now, before) in [
        ("first run", RUNNING, 0, &[0][..], &[][..], "0", none),
        ("second run", RUNNING, 1, &[0, 1], &[], "1", "0 over"),
        ("back-off", crashed(), 1, &[0, 1], &[1], "1 over", "1 over"),
        (
            "back-off after the first",
            crashed(),
            0,
            &[0],
            &[0],
            "0 over",
            "0 over",
        ),
        (
            "back-off after a failed start",
            crashed(),
            1,
            &[0],
            &[],
            lost,
            none,
        ),
        (
            "image asked again",
            starting(),
            1,
            &[0, 1],
            &[1],
            "1 over",
            "1 over",
        ),
        ("being started", starting(), 2, &[1, 2], &[1], "2", "1 over"),
        (
            "about to be started",
            starting(),
            2,
            &[1],
            &[1],
            "1 over",
            "1 over",
        ),
        (
            "never started",
            starting(),
            0,
            &[],
            &[],
            "waiting to start: ContainerCreating",
            none,
        ),
        (
            "no image",
            waiting("ErrImagePull"),
            0,
            &[],
            &[],
            "waiting to start: ErrImagePull",
            none,
        ),
        (
            "done",
            ContainerState::Terminated(terminated()),
            1,
            &[0, 1],
            &[1],
            "1 over",
            "0 over",
        ),
        (
            "done, after a reboot",
            ContainerState::Terminated(terminated()),
            1,
            &[],
            &[],
            lost,
            none,
        ),
    ] {
        let dir = Dir::new();
        for attempt in rings {
            dir.ring(*attempt);
        }
        for attempt in exits {
            std::fs::write(dir.exit(*attempt), "").unwrap();
        }
        let status = status(state, count);
        for (previous, expected) in [(false, now), (true, before)] {
            let got = match source(UID, &status, dir.path(), previous) {
                Ok(source) => {
                    let attempt = source.ring.file_stem().unwrap().to_str().unwrap().to_owned();
                    if source.over { attempt + " over" } else { attempt }
                }
                Err(message) => message,
            };
            let matches = got == expected || expected.len() > 6 && got.contains(expected);
            assert!(matches, "{what}, previous {previous}: {got:?}, not {expected:?}");
        }
    }
}

type End = fn(&Dir, &mut Vec<Writer>);

/// A follower gets the last line and its end, however the attempt is over.
#[tokio::test]
async fn a_follower_ends_however_the_attempt_does() {
    let cases: [(&str, End); 5] = [
        ("an exit is recorded", |dir, _| {
            std::fs::write(dir.exit(3), "").unwrap();
        }),
        (
            "a later attempt began, and the exit was forgotten",
            |dir, writers| writers.push(dir.ring(4)),
        ),
        ("the start failed and its ring went", |dir, _| {
            std::fs::remove_file(ring_path(dir.path(), "c", 3)).unwrap();
        }),
        ("the shim is lost", |dir, _| {
            std::fs::remove_file(dir.socket()).unwrap();
        }),
        ("the Pod is removed", |dir, _| {
            std::fs::remove_dir_all(dir.path()).unwrap();
        }),
    ];
    for (what, end) in cases {
        let dir = Dir::new();
        let mut writers = vec![dir.ring(3)];
        let mut streams = Streams::default();
        streams.begin(1, follow(), |_| dir.source(RUNNING, 3, false));
        let first = streams.next().await.unwrap();
        assert!(
            matches!(&first, Input::StreamData { bytes, .. } if bytes == b"attempt 3\n"),
            "{what}: {first:?}"
        );
        tokio::time::sleep(2 * LOOK).await;
        assert!(streams.receiver.is_empty(), "{what}: not over yet");
        line(&mut writers[0], "last words");
        end(&dir, &mut writers);
        let said = to_the_end(&mut streams).await;
        assert_eq!(said, ("last words\n".to_owned(), StreamEnd::Complete), "{what}");
        assert!(streams.open.is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_follower_of_what_is_over_ends_without_a_record_of_the_end() {
    for (state, count, previous, expected) in [
        (ContainerState::Terminated(terminated()), 3, false, "attempt 3\n"),
        (waiting("CrashLoopBackOff"), 3, false, "attempt 3\n"),
        (RUNNING, 4, true, "attempt 3\n"),
    ] {
        let dir = Dir::new();
        let _writer = dir.ring(3);
        let mut streams = Streams::default();
        let what = format!("{state:?}");
        streams.begin(1, follow(), |_| dir.source(state, count, previous));
        let said = to_the_end(&mut streams).await;
        assert_eq!(said, (expected.to_owned(), StreamEnd::Complete), "{what}");
    }
}

/// The removal of a Pod may find a reader that waits for credit, with lines still unread.
#[tokio::test]
async fn a_removed_pod_is_read_to_its_end() {
    let dir = Dir::new();
    let mut writer = dir.ring(0);
    let text = "x".repeat(999);
    for _ in 0..200 {
        line(&mut writer, &text);
    }
    line(&mut writer, "last words");
    let mut streams = Streams::default();
    streams.begin(1, follow(), |_| dir.source(RUNNING, 0, false));
    std::fs::remove_dir_all(dir.path()).unwrap();
    let (said, end) = to_the_end(&mut streams).await;
    assert_eq!(said.lines().count(), 202);
    assert!(said.ends_with("\nlast words\n"));
    assert_eq!(end, StreamEnd::Complete);
}

#[tokio::test]
async fn streams_beyond_the_bound_cost_nothing() {
    let dir = Dir::new();
    let _writer = dir.ring(0);
    let mut streams = Streams::default();
    let open = |streams: &mut Streams, sid| {
        streams.begin(sid, follow(), |_| dir.source(RUNNING, 0, false));
    };
    let bound = limits::STREAMS as u32;
    (0..bound).for_each(|sid| open(&mut streams, sid));
    // One that is open already may be opened anew.
    open(&mut streams, 0);
    assert_eq!(streams.unanswered, 0);
    (bound..bound + 1000).for_each(|sid| open(&mut streams, sid));
    assert_eq!(streams.open.len(), limits::STREAMS);
    assert_eq!(streams.unanswered, 1000 - WAITING as u64);
    let began = Instant::now();
    for sid in bound..bound + WAITING as u32 {
        let told = streams.next().await.unwrap();
        let Input::StreamEnd {
            sid: of,
            end: StreamEnd::Failed(why),
        } = &told
        else {
            panic!("{told:?}")
        };
        assert_eq!(*of, sid);
        assert_eq!(why, "this node serves at most 64 streams at once");
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    streams.close(0);
    open(&mut streams, bound);
    assert!(streams.open.contains_key(&bound));
}
