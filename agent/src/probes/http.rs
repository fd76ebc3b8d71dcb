//! GET over HTTP/1.1, as a kubelet's probes and hooks do it: one connection a request, redirects within the same host.
//!
//! Always holds: at most [`MAX_HEAD`] bytes of a head and [`MAX_BODY`] of a body are read, and everything ends at the
//! try's deadline.
//!
//! Source: RFC 9110 and 9112; Kubernetes API reference, `HTTPGetAction`.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

use super::dial::{authority, dial, word};
use super::tls::Tls;

/// Bytes of a response's head, interim ones included.
const MAX_HEAD: u64 = 16 * 1024;

/// Bytes of a body: what a kubelet reads.
const MAX_BODY: u64 = 10 * 1024;

/// Requests of one try.
const MAX_REQUESTS: usize = 10;

/// One GET.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Get {
    /// `scheme: HTTPS`.
    pub(crate) https: bool,
    /// An address or a name.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// With a leading `/`; a query may follow.
    pub(crate) path: String,
    /// `httpHeaders`.
    pub(crate) headers: Vec<(String, String)>,
    /// `User-Agent`, where `headers` has none.
    pub(crate) agent: &'static str,
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Response {
    /// Its code.
    pub(crate) status: u16,
    /// `Location`, where it has one.
    location: Option<String>,
}

/// Why there is no response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// The request failed.
    Failed(String),
    /// The head came, and then not the body: says nothing, as with a kubelet.
    Body(String),
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket below; asked for its addresses only when something failed.
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Stream for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

type Connection = BufReader<Box<dyn Stream>>;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Url {
    https: bool,
    host: String,
    port: u16,
    /// As it was written.
    authority: String,
    /// Path and query.
    target: String,
}

impl Url {
    fn of(get: &Get) -> Self {
        let path = get.path.split('#').next().unwrap_or_default();
        Self {
            https: get.https,
            host: get.host.clone(),
            port: get.port,
            authority: authority(&get.host, get.port),
            target: escaped(path),
        }
    }

    fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }

    fn text(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority, self.target)
    }

    /// Where a `Location` leads, seen from here; nothing where it is not HTTP.
    fn join(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next().unwrap_or_default();
        let absolute = match (location.strip_prefix("//"), location.split_once("://")) {
            (Some(rest), _) => Some((self.https, rest)),
            (None, Some((scheme, rest))) if !scheme.contains(['/', '?']) => {
                let https = scheme.eq_ignore_ascii_case("https");
                if !https && !scheme.eq_ignore_ascii_case("http") {
                    return None;
                }
                Some((https, rest))
            }
            _ => None,
        };
        if let Some((https, rest)) = absolute {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, target) = rest.split_at(end);
            let authority = authority.rsplit('@').next().unwrap_or_default();
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
                _ => (authority, if https { 443 } else { 80 }),
            };
            let target = if target.starts_with('/') {
                escaped(target)
            } else {
                format!("/{}", escaped(target))
            };
            return Some(Self {
                https,
                host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
                port,
                authority: authority.to_owned(),
                target,
            });
        }
        let path = self.target.split('?').next().unwrap_or_default();
        let target = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{path}{location}"),
            _ => format!("{}/{location}", path.rsplit_once('/').map_or("", |it| it.0)),
        };
        Some(Self {
            target: escaped(&target),
            ..self.clone()
        })
    }
}

/// What must not stand in a request's first line is written as `%XX`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (0x21..0x7f).contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// GETs, and follows redirects as long as they stay with the host.
///
/// # Errors
/// Why there is no response, in a kubelet's words.
pub(crate) async fn get(get: &Get, until: Instant, tls: &Tls) -> Result<Response, Error> {
    let given = |name: &str| {
        let found = get.headers.iter().find(|it| it.0.eq_ignore_ascii_case(name));
        found.map(|it| it.1.as_str())
    };
    let mut url = Url::of(get);
    let mut host = given("Host").filter(|it| !it.is_empty());
    for _ in 0..MAX_REQUESTS {
        let response = once(get, &url, host, until, tls).await?;
        let next = match (response.status, &response.location) {
            (301..=303 | 307 | 308, Some(location)) => url.join(location),
            _ => None,
        };
        match next {
            Some(next) if next.host.eq_ignore_ascii_case(&get.host) => {
                // A `Host` of its own is meant for where it leads by itself.
                if next.authority != url.authority {
                    host = None;
                }
                url = next;
            }
            // A redirect to elsewhere proves that the server answers.
            _ => return Ok(response),
        }
    }
    let why = format!("Get {:?}: stopped after {MAX_REQUESTS} redirects", url.text());
    Err(Error::Failed(why))
}

async fn once(
    get: &Get,
    url: &Url,
    host: Option<&str>,
    until: Instant,
    tls: &Tls,
) -> Result<Response, Error> {
    let head = timeout_at(until, async {
        let stream = dial(&url.host, url.port).await?;
        let stream: Box<dyn Stream> = if url.https {
            Box::new(tls.connect(&url.host, stream).await?)
        } else {
            Box::new(stream)
        };
        let mut stream = BufReader::with_capacity(4096, stream);
        let request = request(get, url, host);
        let sent = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await
        };
        sent.await
            .map_err(|error| format!("write {}: write: {}", pair(&stream), word(&error)))?;
        let head = head(&mut stream).await.map_err(|error| match error {
            HeadError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            HeadError::Io(error) => format!("read {}: read: {}", pair(&stream), word(&error)),
            HeadError::Malformed(why) => why,
        })?;
        Ok::<_, String>((head, stream))
    });
    let failed = |why: String| Error::Failed(format!("Get {:?}: {why}", url.text()));
    let late =
        |_| failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned());
    let (head, mut stream) = head.await.map_err(late)?.map_err(failed)?;
    let late = "context deadline exceeded (Client.Timeout or context cancellation while reading body)";
    timeout_at(until, read_body(&mut stream, &head))
        .await
        .map_err(|_| Error::Body(late.to_owned()))?
        .map_err(|error| Error::Body(word(&error)))?;
    Ok(Response {
        status: head.status,
        location: head.location,
    })
}

fn pair(stream: &Connection) -> String {
    let tcp = stream.get_ref().tcp();
    match (tcp.local_addr(), tcp.peer_addr()) {
        (Ok(local), Ok(peer)) => format!("tcp {local}->{peer}"),
        _ => "tcp".to_owned(),
    }
}

fn request(get: &Get, url: &Url, host: Option<&str>) -> String {
    // These are the request's own, as with a kubelet.
    let own = ["Host", "Content-Length", "Transfer-Encoding", "Trailer"];
    let mut out = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\n",
        url.target,
        host.unwrap_or(&url.authority)
    );
    let mut line = |name: &str, value: &str| {
        out.push_str(name);
        out.push_str(": ");
        out.push_str(value);
        out.push_str("\r\n");
    };
    let is = |given: &(String, String), name: &str| given.0.eq_ignore_ascii_case(name);
    for (name, default) in [("User-Agent", get.agent), ("Accept", "*/*")] {
        if !get.headers.iter().any(|it| is(it, name)) {
            line(name, default);
        }
    }
    for given in &get.headers {
        // One that is given and empty is meant to be left out.
        let emptied = given.1.is_empty() && (is(given, "User-Agent") || is(given, "Accept"));
        if !emptied && !own.iter().any(|it| is(given, it)) {
            line(&given.0, &given.1);
        }
    }
    line("Connection", "close");
    out.push_str("\r\n");
    out
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    Close,
}

#[derive(Debug)]
struct Head {
    status: u16,
    location: Option<String>,
    framing: Framing,
}

enum HeadError {
    Io(io::Error),
    Malformed(String),
}

/// The head of the final response.
async fn head(stream: &mut Connection) -> Result<Head, HeadError> {
    let mut left = MAX_HEAD;
    loop {
        let head = one_head(stream, &mut left).await?;
        // Interim responses announce another.
        if !(100..200).contains(&head.status) || head.status == 101 {
            return Ok(head);
        }
    }
}

async fn one_head(stream: &mut Connection, left: &mut u64) -> Result<Head, HeadError> {
    let first = line(stream, left).await?;
    let broken = |what: &str, it: &str| {
        HeadError::Malformed(format!(
            "net/http: HTTP/1.x transport connection broken: malformed HTTP {what} {it:?}"
        ))
    };
    let (version, rest) = first.split_once(' ').ok_or_else(|| broken("response", &first))?;
    if !version.starts_with("HTTP/") {
        return Err(broken("response", &first));
    }
    let code = rest.trim_start().split(' ').next().unwrap_or_default();
    let status = code.parse().ok().filter(|_| code.len() == 3);
    let status: u16 = status.ok_or_else(|| broken("status code", code))?;
    let (mut location, mut length, mut chunked) = (None, None, false);
    loop {
        let line = line(stream, left).await?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            let why =
                format!("net/http: HTTP/1.x transport connection broken: malformed MIME header line: {line}");
            return Err(HeadError::Malformed(why));
        };
        let value = value.trim();
        match name {
            _ if name.eq_ignore_ascii_case("Location") => location = Some(value.to_owned()),
            _ if name.eq_ignore_ascii_case("Content-Length") => {
                let number = value.parse().map_err(|_| {
                    let what = format!("bad Content-Length {value:?}");
                    HeadError::Malformed(format!("net/http: HTTP/1.x transport connection broken: {what}"))
                });
                length = Some(number?);
            }
            _ if name.eq_ignore_ascii_case("Transfer-Encoding") => {
                chunked = value.to_ascii_lowercase().ends_with("chunked");
            }
            _ => {}
        }
    }
    let framing = match (status, chunked, length) {
        (100..200 | 204 | 304, ..) => Framing::None,
        (_, true, _) => Framing::Chunked,
        (.., Some(length)) => Framing::Length(length),
        _ => Framing::Close,
    };
    Ok(Head {
        status,
        location: location.filter(|it| !it.is_empty()),
        framing,
    })
}

/// A line without its end, out of what is `left` of a head.
async fn line(stream: &mut Connection, left: &mut u64) -> Result<String, HeadError> {
    let mut bytes = Vec::new();
    let read = stream.take(*left).read_until(b'\n', &mut bytes).await;
    *left -= read.map_err(HeadError::Io)? as u64;
    if bytes.is_empty() && *left > 0 {
        return Err(HeadError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    if *left == 0 {
        let why = format!("net/http: server response headers exceeded {MAX_HEAD} bytes; aborted");
        return Err(HeadError::Malformed(why));
    }
    let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Reads a body to its end or to the bound, so that the server sees it taken. What it says is of no use: a kubelet's
/// messages leave it out too.
async fn read_body(stream: &mut Connection, head: &Head) -> io::Result<()> {
    match head.framing {
        Framing::None => Ok(()),
        Framing::Length(length) => skip(stream, length.min(MAX_BODY)).await,
        Framing::Close => match tokio::io::copy(&mut stream.take(MAX_BODY), &mut tokio::io::sink()).await {
            // TLS without its last word ends just as well.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(()),
        },
        Framing::Chunked => {
            let mut left = MAX_BODY;
            loop {
                let mut bytes = Vec::new();
                let read = stream.take(left).read_until(b'\n', &mut bytes).await? as u64;
                let size = std::str::from_utf8(&bytes).ok();
                let size = size.and_then(|it| it.split([';', '\r', '\n']).next());
                let size = size.and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
                let taken = match size {
                    Some(0) => return Ok(()),
                    Some(size) => read.saturating_add(size).saturating_add(2),
                    None if read == left => return Ok(()),
                    None => {
                        let why = "invalid byte in chunk length";
                        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                    }
                };
                if taken >= left {
                    return skip(stream, left - read).await;
                }
                skip(stream, taken - read).await?;
                left -= taken;
            }
        }
    }
}

async fn skip(stream: &mut Connection, bytes: u64) -> io::Result<()> {
    match tokio::io::copy(&mut stream.take(bytes), &mut tokio::io::sink()).await? {
        read if read == bytes => Ok(()),
        _ => Err(io::Error::other("unexpected EOF")),
    }
}

#[cfg(test)]
mod tests;
