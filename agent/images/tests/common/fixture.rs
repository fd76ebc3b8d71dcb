//! A small HTTP server that serves an OCI layout as a registry, and lies, cuts and redirects where a test says so.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

/// One request: its path with the query, and its headers in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// One answer. `cut` closes the connection after so many bytes of the body; with `hangs` it stays open and says no more.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub cut: Option<usize>,
    pub hangs: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut: None,
            hangs: false,
        }
    }

    pub fn header(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

pub struct Fixture {
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Fixture {
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, handler): (_, Arc<Handler>) = (requests.clone(), Arc::new(handler));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, handler) = (log.clone(), handler.clone());
                thread::spawn(move || {
                    let stream = stream.unwrap();
                    serve(&stream, &stream, &log, &*handler);
                });
            }
        });
        Self { address, requests }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// Serves one connection until its end.
pub fn serve(
    input: impl Read,
    mut output: impl Write,
    log: &Mutex<Vec<Request>>,
    handler: &(dyn Fn(&Request) -> Reply + Send + Sync),
) {
    let mut input = BufReader::new(input);
    while let Some(request) = read(&mut input) {
        log.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        let mut head = format!(
            "HTTP/1.1 {} X\r\ncontent-length: {}\r\n",
            reply.status,
            reply.body.len()
        );
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let body = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
        let written = output
            .write_all(format!("{head}\r\n").as_bytes())
            .and_then(|()| output.write_all(body));
        let written = written.and_then(|()| output.flush());
        if reply.hangs {
            // Until the client goes.
            let _ = input.read(&mut [0; 1]);
        }
        if written.is_err() || reply.cut.is_some() {
            return;
        }
    }
}

fn read(input: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    if input.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Some(Request { path, headers })
}

/// The answers of an honest registry that has an OCI layout: tags from `index.json`, blobs with ranges.
pub fn honest(layout: PathBuf) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| {
        let path = request.path.split('?').next().unwrap();
        let (rest, last) = path.rsplit_once('/').unwrap();
        let unknown = |code: &str, message: &str| {
            Reply::new(
                404,
                format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#),
            )
        };
        let blob = |digest: &str| {
            fs::read(
                layout
                    .join("blobs/sha256")
                    .join(digest.trim_start_matches("sha256:")),
            )
        };
        if rest.ends_with("/manifests") {
            let index: serde_json::Value =
                serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
            let tagged = index["manifests"]
                .as_array()
                .unwrap()
                .iter()
                .find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == last);
            let digest = tagged.map_or(last.to_owned(), |entry| {
                entry["digest"].as_str().unwrap().to_owned()
            });
            return match blob(&digest) {
                Ok(bytes) => Reply::new(200, bytes).header("docker-content-digest", digest),
                Err(_) => unknown("MANIFEST_UNKNOWN", "manifest unknown"),
            };
        }
        let Ok(bytes) = blob(last) else {
            return unknown("BLOB_UNKNOWN", "blob unknown to registry");
        };
        let range = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        match range.map(|start| start.parse::<usize>().unwrap()) {
            None => Reply::new(200, bytes),
            Some(start) => Reply::new(206, &bytes[start..]).header(
                "content-range",
                format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
            ),
        }
    }
}
