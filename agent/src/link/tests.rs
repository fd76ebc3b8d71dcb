//! The link over a transport that does as the test says.

use std::sync::Mutex;

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::status::{ContainerState, ContainerStatus, InForce, Phase, PodStatus, Terminated};
use skiff_protocol::wire::{Frame, decode_up};
use skiff_transport::Why;
use tokio::sync::mpsc;

use super::*;

type Published = Arc<Mutex<Vec<(u64, Bytes)>>>;

/// Tells what the test puts in, and takes note of what is published.
struct Script {
    events: mpsc::UnboundedReceiver<Event>,
    published: Published,
}

#[async_trait::async_trait]
impl Transport for Script {
    async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    fn try_publish(&mut self, id: u64, _: &str, payload: Bytes, _: Qos) -> Result<(), PublishError> {
        self.published.lock().unwrap().push((id, payload));
        Ok(())
    }

    fn ack(&mut self, _: AckToken) -> bool {
        true
    }

    fn wake(&mut self) {}

    async fn disconnect(&mut self) {}
}

/// A link that stands, and both ends of its transport.
struct Fixture {
    link: Link,
    events: mpsc::UnboundedSender<Event>,
    published: Published,
}

impl Fixture {
    async fn connected() -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        let published = Published::default();
        let script = Script {
            events: receiver,
            published: published.clone(),
        };
        let node = NodeName::parse("rover-7").unwrap();
        let mut it = Self {
            link: Link::over(node, Box::new(script)),
            events,
            published,
        };
        let connected = it.tell(Event::Connected {
            session_present: true,
            protocol: skiff_transport::Protocol::V5,
            max_payload: limits::FRAME,
        });
        assert!(matches!(connected.await, Incoming::Up));
        it
    }

    async fn tell(&mut self, event: Event) -> Incoming {
        self.events.send(event).unwrap();
        self.link.next().await
    }

    async fn refuse(&mut self, id: u64, passing: bool) {
        let reason = "QuotaExceeded".to_owned();
        self.tell(Event::Refused { id, reason, passing }).await;
    }

    async fn ack(&mut self, id: u64) {
        self.tell(Event::Acked { id }).await;
    }

    /// Lets the link go on for so long, in which nothing comes.
    async fn pass(&mut self, seconds: f32) {
        let quiet = async {
            loop {
                self.link.next().await;
            }
        };
        let span = Duration::from_secs_f32(seconds);
        let _: Result<(), _> = tokio::time::timeout(span, quiet).await;
    }

    /// The ids published since this was last asked.
    fn ids(&self) -> Vec<u64> {
        self.published.lock().unwrap().drain(..).map(|it| it.0).collect()
    }
}

/// An event message of about so many bytes, told apart by `lost`.
fn events(lost: u64, bytes: usize) -> Up {
    let event = wire::Event {
        uid: Uid([7; 16]),
        container: None,
        warning: false,
        reason: "Started".to_owned(),
        message: "x".repeat(bytes),
        at: 0,
    };
    Up::Events {
        lost,
        events: vec![event],
    }
}

fn small(lost: u64) -> Up {
    events(lost, 1)
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_may_pass_is_repeated_later_and_in_order() {
    let mut it = Fixture::connected().await;
    for lost in 0..3 {
        assert!(it.link.send(&small(lost)));
    }
    assert_eq!(it.ids(), [1, 2, 3]);
    it.refuse(1, true).await;
    // It was on its way when the wait began: no second wait.
    it.refuse(2, true).await;
    it.ack(3).await;
    assert!(it.link.send(&small(3)));
    it.pass(0.9).await;
    assert_eq!(it.ids(), [0; 0], "before the wait is over");
    it.pass(0.2).await;
    assert_eq!(it.ids(), [1], "one at a time, the oldest first");
    it.pass(9.0).await;
    assert_eq!(it.ids(), [0; 0], "before the broker has answered for it");
    it.refuse(1, true).await;
    it.pass(1.9).await;
    assert_eq!(it.ids(), [0; 0], "the second wait is longer");
    it.pass(0.2).await;
    for id in [1, 2, 4] {
        assert_eq!(it.ids(), [id]);
        it.ack(id).await;
    }
    // All is sent: as many as the window takes go at once again.
    assert!(it.link.send(&small(4)) && it.link.send(&small(5)));
    assert_eq!(it.ids(), [5, 6]);
    assert_eq!(it.link.counters().unsendable, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_is_counted_and_not_repeated() {
    let mut it = Fixture::connected().await;
    assert!(it.link.send(&small(0)));
    it.refuse(1, false).await;
    it.pass(100.0).await;
    assert_eq!(it.ids(), [1]);
    assert_eq!(it.link.counters().unsendable, 1);
    assert!(it.link.outbox.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_on_a_stream_ends_with_the_connection() {
    let mut it = Fixture::connected().await;
    let piece = Up::StreamData {
        sid: 1,
        offset: 0,
        bytes: vec![0; 100],
    };
    assert!(it.link.send(&piece) && it.link.send(&small(0)));
    let (why, retry_in) = (Why::NoAnswer, Some(Duration::ZERO));
    it.tell(Event::Disconnected { why, retry_in }).await;
    assert_eq!(it.link.outbox.len(Class::Stream), 0);
    assert_eq!(it.link.outbox.len(Class::Event), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_of_several_frames_is_queued_whole_or_kept() {
    let mut it = Fixture::connected().await;
    // Two of three frames each: the second finds room for a part of it only.
    let mut reports = vec![small(9), events(2, 80_000), events(1, 60_000)];
    let mut next = || reports.pop();
    it.link.report(&mut next);
    assert_eq!(it.ids(), [1, 2]);
    assert_eq!(it.link.outbox.len(Class::Event), 2, "no part of the second");
    it.link.report(&mut next);
    assert_eq!(it.ids(), [0; 0], "it still waits, and nothing goes before it");
    it.ack(1).await;
    it.ack(2).await;
    it.link.report(&mut next);
    let sent: Vec<Bytes> = it.published.lock().unwrap().drain(..).map(|it| it.1).collect();
    let mut assembler = Assembler::default();
    let whole = sent.iter().filter_map(|it| assembler.push(it).unwrap());
    let lost: Vec<u64> = whole
        .map(|it| match decode_up(&it).unwrap() {
            Up::Events { lost, .. } => lost,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lost, [2, 9]);
    assert_eq!(it.link.counters().unsendable, 0);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_no_room_is_ever_enough_for_is_counted_and_holds_up_nothing() {
    let mut it = Fixture::connected().await;
    let mut reports = vec![small(2), events(1, 200_000)];
    it.link.report(|| reports.pop());
    assert_eq!(it.ids(), [1]);
    assert_eq!(it.link.counters().unsendable, 1);
}

#[tokio::test(start_paused = true)]
async fn the_largest_status_is_never_too_large() {
    let mut it = Fixture::connected().await;
    let id = || "x".repeat(128);
    let last = Terminated {
        exit_code: 1,
        signal: 0,
        reason: "ContainerCannotRun".to_owned(),
        message: "x".repeat(limits::TEXT),
        started_at: i64::MAX,
        finished_at: i64::MAX,
        container_id: id(),
    };
    let container = ContainerStatus {
        name: "x".repeat(limits::LABEL),
        state: ContainerState::Waiting {
            reason: "CreateContainerConfigError".to_owned(),
            message: "x".repeat(limits::TEXT),
        },
        last: Some(last),
        ready: false,
        restart_count: u32::MAX,
        image_id: id(),
        container_id: id(),
        started: true,
        resources: Some(InForce {
            cpu_limit: Some(u64::MAX),
            memory_limit: Some(u64::MAX),
            cpu_request: Some(u64::MAX),
            memory_request: Some(u64::MAX),
        }),
    };
    let status = PodStatus {
        uid: Uid([7; 16]),
        phase: Phase::Pending,
        reason: "Evicted".to_owned(),
        message: "x".repeat(limits::TEXT),
        pod_ip: "10.255.255.255".to_owned(),
        start_time: Some(i64::MAX),
        ready_since: Some(i64::MAX),
        initialized_since: Some(i64::MAX),
        init_containers: Vec::new(),
        resize: Some(("Infeasible".to_owned(), "x".repeat(limits::TEXT))),
        containers: vec![container; limits::CONTAINERS],
        gone: false,
    };
    let report = Up::Status {
        epoch: u64::MAX,
        sequence: u64::MAX,
        pods: vec![status],
    };
    assert!(it.link.send(&report));
}

#[tokio::test(start_paused = true)]
async fn what_one_link_did_not_send_the_next_one_does() {
    let mut it = Fixture::connected().await;
    assert!(it.link.send(&small(1)));
    let mut next = Fixture::connected().await;
    next.link.succeed(it.link);
    assert!(next.link.send(&small(2)));
    assert_eq!(next.ids(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn chunks_of_two_starts_are_told_apart() {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut it = Fixture::connected().await;
        assert!(it.link.send(&events(0, limits::FRAME)));
        let published = it.published.lock().unwrap();
        let Ok(Frame::Chunk { id, .. }) = Frame::parse(&published[0].1) else {
            panic!("no chunk")
        };
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);
}
