//! Just enough HTTP/1.1 over plain TCP to ask a pod, or the API behind `kubectl proxy`, and to follow a watch.
//!
//! For addresses of this machine only; answers are bounded.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// Longest answer that is read into memory: a list of a few hundred Pods.
const MAX_BODY: u64 = 16 << 20;
/// Longest header line.
const MAX_LINE: u64 = 64 << 10;

/// An answer, its body read to the end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Sends one request and reads the answer.
pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    timeout: Duration,
) -> Result<Answer> {
    let about = || format!("{method} http://{address}{path}");
    let (status, mut reader) = open(address, method, path, body, timeout).with_context(about)?;
    let mut text = String::new();
    reader
        .by_ref()
        .take(MAX_BODY)
        .read_to_string(&mut text)
        .with_context(about)?;
    Ok(Answer { status, body: text })
}

/// Follows a stream of lines; `timeout` bounds the wait for each.
pub(crate) fn lines(
    address: SocketAddr,
    path: &str,
    timeout: Duration,
) -> Result<impl Iterator<Item = std::io::Result<String>> + use<>> {
    let about = || format!("GET http://{address}{path}");
    let (status, reader) = open(address, "GET", path, "", timeout).with_context(about)?;
    if status != 200 {
        bail!("{}: status {status}", about());
    }
    Ok(BufReader::new(reader).lines())
}

fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
    timeout: Duration,
) -> Result<(u16, Box<dyn Read + Send>)> {
    let mut stream = TcpStream::connect_timeout(&address, timeout).context("cannot connect")?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAccept: */*\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).context("cannot send")?;
    let mut reader = BufReader::new(stream);
    let first = line(&mut reader)?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.with_context(|| format!("not an HTTP answer: {first:?}"))?;
    let mut length = None;
    let mut chunked = false;
    loop {
        let header = line(&mut reader)?;
        if header.is_empty() {
            break;
        }
        let Some((name, value)) = header.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.trim().eq_ignore_ascii_case("chunked");
        }
    }
    Ok((
        status,
        match length {
            _ if chunked => Box::new(Chunked {
                reader,
                left: 0,
                first: true,
                ended: false,
            }),
            Some(length) => Box::new(reader.take(length)),
            None => Box::new(reader),
        },
    ))
}

fn line(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut text = String::new();
    reader.take(MAX_LINE).read_line(&mut text)?;
    Ok(text.trim_end().to_owned())
}

/// A chunked body (RFC 9112 §7.1), handed on as it arrives.
struct Chunked<R> {
    reader: R,
    left: u64,
    first: bool,
    ended: bool,
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        if self.left == 0 {
            if !self.first {
                line(&mut self.reader)?;
            }
            self.first = false;
            let size = line(&mut self.reader)?;
            let digits = size.split(';').next().unwrap_or_default().trim();
            self.left = match u64::from_str_radix(digits, 16) {
                Ok(size) => size,
                Err(_) => return Err(std::io::Error::other(format!("a bad chunk size: {size:?}"))),
            };
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.reader.read(&mut buffer[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Serves `answer` once on a port of its own.
    fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut byte = [0];
            while !seen.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
                seen.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    fn check(answer: &'static str, status: u16, body: &str) {
        let got = request(serve(answer), "GET", "/", "", Duration::from_secs(5)).unwrap();
        assert_eq!((got.status, got.body.as_str()), (status, body), "{answer}");
    }

    #[test]
    fn bodies_of_each_framing_are_read() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", 200, "abc");
        check(
            "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
            404,
            "abcde",
        );
        check("HTTP/1.0 200 OK\r\n\r\nto the end", 200, "to the end");
    }

    #[test]
    fn bad_answers_are_errors() {
        for answer in [
            "",
            "SSH-2.0\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        ] {
            assert!(
                request(serve(answer), "GET", "/", "", Duration::from_secs(5)).is_err(),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn lines_come_one_by_one() {
        let address = serve(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\na\nb\n\r\n2\r\nc\n\r\n0\r\n\r\n",
        );
        let got: Vec<String> = lines(address, "/", Duration::from_secs(5))
            .unwrap()
            .map(|line| line.unwrap())
            .collect();
        assert_eq!(got, ["a", "b", "c"]);
    }
}
