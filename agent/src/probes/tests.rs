//! Tries against real servers on this machine.

use std::time::Duration;

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{EnvVar, HttpGet, Port, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

pub(super) fn reference() -> ContainerRef {
    ContainerRef {
        pod: Uid([7; 16]),
        name: "c".to_owned(),
        attempt: 0,
    }
}

/// A server that reads one request's head from each connection and then does as it is told.
pub(super) async fn serve<F, A>(answer: A) -> u16
where
    F: Future<Output = ()> + Send + 'static,
    A: Fn(TcpStream, String) -> F + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                answer(stream, String::from_utf8(head).unwrap()).await;
            });
        }
    });
    port
}

/// A server that answers each request with these bytes and closes.
pub(super) async fn say(text: &'static str) -> u16 {
    serve(move |mut stream, _| async move {
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        // The client has read it all when it closes too.
        let _ = stream.read_u8().await;
    })
    .await
}

/// A port that nobody listens on.
pub(super) fn closed() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Tries as the driver has it done, and gives the event's outcome. `shim` answers commands.
async fn outcome_with(
    action: Action,
    within: Duration,
    shim: impl Fn(Vec<String>) -> Option<Result<Executed, String>> + Send + 'static,
) -> ProbeOutcome {
    let (inputs, mut said) = mpsc::channel(1);
    let (commands, mut asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(command) = asked.recv().await {
            let Command::Exec { command, answer, .. } = command else {
                panic!("a probe asks for commands alone");
            };
            match shim(command) {
                Some(executed) => answer.send(executed).unwrap(),
                None => kept.push(answer),
            }
        }
    });
    let probes = Probes::new(inputs);
    probes.probe(reference(), ProbeKind::Liveness, action, within, commands);
    match said.recv().await {
        Some(Input::Core(event)) => match *event {
            Event::Probed {
                container,
                kind: ProbeKind::Liveness,
                outcome,
            } if container == reference() => outcome,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

pub(super) async fn outcome(action: Action, within: Duration) -> ProbeOutcome {
    outcome_with(action, within, |_| None).await
}

pub(super) fn failure(text: impl Into<String>) -> ProbeOutcome {
    ProbeOutcome::Failure(text.into())
}

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_tcp_socket_is_well_when_it_can_be_connected_to() {
    let tcp = |host: &str, port| Action::Tcp {
        host: host.to_owned(),
        port,
    };
    let open = serve(|_, _| async {}).await;
    assert_eq!(outcome(tcp("127.0.0.1", open), SOON).await, ProbeOutcome::Success);
    assert_eq!(outcome(tcp("localhost", open), SOON).await, ProbeOutcome::Success);
    let closed = closed();
    let text = format!("dial tcp 127.0.0.1:{closed}: connect: connection refused");
    assert_eq!(outcome(tcp("127.0.0.1", closed), SOON).await, failure(text));
    let text = "dial tcp: lookup no.such.name.invalid: no such host";
    assert_eq!(outcome(tcp("no.such.name.invalid", 1), SOON).await, failure(text));
    // A backlog that is full answers nobody.
    let full = full_listener();
    let address = full.0.local_addr().unwrap();
    let text = format!("dial tcp {address}: i/o timeout");
    let tried = outcome(tcp("127.0.0.1", address.port()), Duration::from_millis(300)).await;
    assert_eq!(tried, failure(text));
}

/// A listener whose backlog is taken.
fn full_listener() -> (TcpListener, Vec<tokio::task::JoinHandle<()>>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let taken = (0..8).map(|_| {
        tokio::spawn(async move {
            let _stream = TcpStream::connect(address).await;
            std::future::pending::<()>().await;
        })
    });
    let taken = taken.collect();
    // Connecting is the kernel's work, done before anybody accepts.
    (listener, taken)
}

#[tokio::test]
async fn a_command_is_well_when_it_exits_with_zero() {
    let done = |exit_code, output: &str| {
        let output = output.as_bytes().to_vec();
        Some(Ok(Executed { exit_code, output }))
    };
    let check = async |answer: Option<Result<Executed, String>>, expected| {
        let action = Action::Exec(vec!["a".to_owned(), "b".to_owned()]);
        let shim = move |command: Vec<String>| {
            assert_eq!(command, ["a", "b"]);
            answer.clone()
        };
        assert_eq!(outcome_with(action, SOON, shim).await, expected);
    };
    check(done(Some(0), "fine\n"), ProbeOutcome::Success).await;
    check(done(Some(3), "not\nwell"), failure("not\nwell")).await;
    check(done(None, "half"), failure("command \"a b\" timed out")).await;
    let unknown = |text: &str| ProbeOutcome::Unknown(text.to_owned());
    check(Some(Err("it has exited".to_owned())), unknown("it has exited")).await;
}

#[tokio::test]
async fn a_shim_that_does_not_answer_says_nothing() {
    let action = Action::Exec(vec!["a".to_owned()]);
    let began = Instant::now();
    let outcome = outcome(action, Duration::from_millis(50)).await;
    let expected = "the Pod's shim did not answer in time";
    assert_eq!(outcome, ProbeOutcome::Unknown(expected.to_owned()));
    assert!(began.elapsed() >= SHIM_GRACE);
}

#[tokio::test]
async fn a_task_that_is_gone_says_nothing() {
    let (inputs, mut said) = mpsc::channel(1);
    let action = Action::Exec(vec!["a".to_owned()]);
    let nobody = mpsc::unbounded_channel().0;
    Probes::new(inputs).probe(reference(), ProbeKind::Startup, action, SOON, nobody);
    let Some(Input::Core(event)) = said.recv().await else {
        panic!("no event")
    };
    let expected = ProbeOutcome::Unknown("the Pod's shim is gone".to_owned());
    assert!(matches!(*event, Event::Probed { outcome, .. } if outcome == expected));
}

#[tokio::test]
async fn tries_beyond_the_bound_wait_inside_their_timeout() {
    let (inputs, mut said) = mpsc::channel(1);
    let (shim, mut asked) = mpsc::unbounded_channel();
    let probes = Probes::new(inputs);
    let within = Duration::from_secs(3);
    for _ in 0..AT_ONCE + 2 {
        let action = Action::Exec(vec!["a".to_owned()]);
        probes.probe(reference(), ProbeKind::Readiness, action, within, shim.clone());
    }
    let mut waiting = Vec::new();
    let short = Duration::from_millis(300);
    while let Ok(Some(Command::Exec { answer, .. })) = tokio::time::timeout(short, asked.recv()).await {
        waiting.push(answer);
    }
    assert_eq!(waiting.len(), AT_ONCE);
    // One that ends lets the next one in; the other one's time runs out.
    let executed = Executed {
        exit_code: Some(0),
        output: Vec::new(),
    };
    waiting.pop().unwrap().send(Ok(executed)).unwrap();
    let mut next = async || match said.recv().await {
        Some(Input::Core(event)) => match *event {
            Event::Probed { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    assert_eq!(next().await, ProbeOutcome::Success);
    let Some(Command::Exec { answer, .. }) = asked.recv().await else {
        panic!("the slot went to nobody")
    };
    waiting.push(answer);
    let expected = "no turn came: 64 probes are being tried already";
    assert_eq!(next().await, ProbeOutcome::Unknown(expected.to_owned()));
    assert_eq!(probes.slots.available_permits(), 0);
}

#[test]
fn handlers_as_a_container_means_them() {
    let spec = Container {
        ports: vec![Port {
            name: "web".to_owned(),
            container_port: 8080,
            host_port: 0,
            host_ip: String::new(),
            protocol: Protocol::Tcp,
        }],
        env: vec![EnvVar {
            name: "WHO".to_owned(),
            value: EnvValue::Literal("me".to_owned()),
        }],
        ..Default::default()
    };
    let check = |handler: Handler, expected: Result<Action, &str>| {
        let got = Action::of(&handler, &spec, "10.0.0.2", PROBE_AGENT).map(|it| it.expanded(&spec));
        assert_eq!(got, expected.map_err(str::to_owned));
    };
    let named = |name: &str| PortRef::Name(name.to_owned());
    let get = |host: &str, port| {
        Handler::HttpGet(HttpGet {
            host: host.to_owned(),
            port,
            path: "/x".to_owned(),
            https: true,
            headers: Vec::new(),
        })
    };
    let http = |host: &str, port| {
        Action::Http(Get {
            https: true,
            host: host.to_owned(),
            port,
            path: "/x".to_owned(),
            headers: Vec::new(),
            agent: PROBE_AGENT,
        })
    };
    check(get("", named("web")), Ok(http("10.0.0.2", 8080)));
    check(get("h", PortRef::Number(9)), Ok(http("h", 9)));
    check(get("", named("wbe")), Err("couldn't find port: wbe"));
    let tcp = |host: &str| Handler::TcpSocket {
        host: host.to_owned(),
        port: named("web"),
    };
    let connect = |host: &str| Action::Tcp {
        host: host.to_owned(),
        port: 8080,
    };
    check(tcp(""), Ok(connect("10.0.0.2")));
    check(tcp("::1"), Ok(connect("::1")));
    let command = |words: &[&str]| words.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    check(
        Handler::Exec(command(&["say", "$(WHO)$(NOBODY)"])),
        Ok(Action::Exec(command(&["say", "me$(NOBODY)"]))),
    );
}

/// A hundred probes with a period of one second, for ten seconds. The figure is CPU time of the agent's one thread.
#[test]
#[ignore = "a measurement"]
fn a_hundred_probes_a_second_cost_little() {
    const SECONDS: u64 = 10;
    let (ports, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            ports.send(say(ok).await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let port = port.recv().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (used, tried) = runtime.unwrap().block_on(async {
        let (inputs, mut said) = mpsc::channel(1024);
        let probes = Probes::new(inputs);
        let before = thread_cpu_ns();
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        let mut well = 0;
        for _ in 0..100 * SECONDS {
            tick.tick().await;
            let action = Action::Http(Get {
                https: false,
                host: "127.0.0.1".to_owned(),
                port,
                path: "/".to_owned(),
                headers: Vec::new(),
                agent: PROBE_AGENT,
            });
            let nobody = mpsc::unbounded_channel().0;
            probes.probe(reference(), ProbeKind::Readiness, action, SOON, nobody);
            while let Ok(Input::Core(event)) = said.try_recv() {
                let success = ProbeOutcome::Success;
                well += u64::from(matches!(*event, Event::Probed { outcome, .. } if outcome == success));
            }
        }
        (thread_cpu_ns() - before, well)
    });
    let share = used as f64 / (SECONDS as f64 * 1e9) * 100.0;
    println!(
        "{tried} tries succeeded, {share:.2} % of a core, {} us a try",
        used / 1000 / tried.max(1)
    );
    assert!(tried >= 90 * SECONDS);
    // The promise is a release's.
    assert!(cfg!(debug_assertions) || share <= 2.0, "{share:.2} %");
}

/// The first figure of schedstat: nanoseconds on a CPU.
fn thread_cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
