//! What hooks do, and what is said of those that fail.

use skiff_protocol::uid::Uid;
use skiff_protocol::wire::spec::{HttpGet, PortRef};
use skiff_shim::protocol::Executed;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const SOON: Duration = Duration::from_secs(20);

async fn run(handler: Handler, executed: Result<Executed, String>, within: Duration) -> Result<(), String> {
    let pod = PodSpec {
        name: "p".to_owned(),
        namespace: "default".to_owned(),
        ..Default::default()
    };
    let spec = Container {
        pre_stop: Some(handler),
        ..Default::default()
    };
    let container = ContainerRef {
        pod: Uid::default(),
        name: "c".to_owned(),
        attempt: 0,
    };
    let none = Hook::of(container.clone(), HookKind::PostStart, &pod, &spec, "127.0.0.1");
    assert!(none.is_none());
    let hook = Hook::of(container, HookKind::PreStop, &pod, &spec, "127.0.0.1").unwrap();
    let (shim, mut asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let Some(Command::Exec { command, answer, .. }) = asked.recv().await else {
            return;
        };
        assert_eq!(command, ["sh", "-c", "x $(Y)"]);
        answer.send(executed).unwrap();
    });
    hook.run(Instant::now() + within, &Tls::default(), &shim).await
}

fn failed(what: &str, why: &str) -> Result<(), String> {
    let pod = "p_default(00000000-0000-0000-0000-000000000000)";
    Err(format!(
        "{what} for Container \"c\" in Pod \"{pod}\" failed - error: {why}"
    ))
}

#[tokio::test]
async fn commands() {
    let check = async |executed, expected| {
        let command = ["sh", "-c", "x $(Y)"].map(str::to_owned).to_vec();
        assert_eq!(run(Handler::Exec(command), executed, SOON).await, expected);
    };
    let done = |exit_code, output: &str| {
        let output = output.as_bytes().to_vec();
        Ok(Executed { exit_code, output })
    };
    let what = "Exec lifecycle hook ([sh -c x $(Y)])";
    check(done(Some(0), ""), Ok(())).await;
    let why = "command 'sh -c x $(Y)' exited with 3: no\n, message: \"no\\n\"";
    check(done(Some(3), "no\n"), failed(what, why)).await;
    let why = "command \"sh -c x $(Y)\" timed out, message: \"\"";
    check(done(None, ""), failed(what, why)).await;
    check(
        Err("it has exited".to_owned()),
        failed(what, "it has exited, message: \"\""),
    )
    .await;
}

#[tokio::test]
async fn requests() {
    let get = |port| {
        Handler::HttpGet(HttpGet {
            host: String::new(),
            port,
            path: "/stop".to_owned(),
            https: false,
            headers: Vec::new(),
        })
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 1024];
        let read = stream.read(&mut head).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        head.truncate(read);
        String::from_utf8(head).unwrap()
    });
    let nothing = || Err(String::new());
    // Any response will do.
    assert_eq!(run(get(PortRef::Number(port)), nothing(), SOON).await, Ok(()));
    let head = server.await.unwrap();
    assert!(head.starts_with("GET /stop HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nUser-Agent: kube-lifecycle/"), "{head}");
    let refused = format!("dial tcp 127.0.0.1:{port}: connect: connection refused");
    let why = format!("Get \"http://127.0.0.1:{port}/stop\": {refused}");
    let expected = failed("HTTP lifecycle hook (/stop)", &why);
    assert_eq!(run(get(PortRef::Number(port)), nothing(), SOON).await, expected);
    let expected = failed("HTTP lifecycle hook (/stop)", "couldn't find port: web");
    assert_eq!(
        run(get(PortRef::Name("web".to_owned())), nothing(), SOON).await,
        expected
    );
}

#[tokio::test]
async fn sleeps() {
    let check = async |seconds, within, expected, took| {
        let began = Instant::now();
        let nothing = Err(String::new());
        let within = Duration::from_millis(within);
        assert_eq!(run(Handler::Sleep(seconds), nothing, within).await, expected);
        let took = Duration::from_millis(took);
        assert!(began.elapsed() >= took && began.elapsed() < took + SOON);
    };
    check(1, 60_000, Ok(()), 1000).await;
    let why = "container terminated before sleep hook finished";
    check(60, 200, failed("Sleep lifecycle hook (60)", why), 200).await;
}

#[tokio::test]
async fn sockets_are_not_supported() {
    let tcp = Handler::TcpSocket {
        host: String::new(),
        port: PortRef::Number(1),
    };
    let why = run(tcp, Err(String::new()), SOON).await.unwrap_err();
    assert!(
        why.starts_with("Cannot run handler: invalid handler: tcpSocket for Container \"c\""),
        "{why}"
    );
}
