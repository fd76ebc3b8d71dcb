//! `grpc.health.v1.Health/Check` over cleartext HTTP/2.
//!
//! Always holds: one connection a try, driven by the try's own task; at most [`MAX_MESSAGE`] bytes of an answer are kept.
//!
//! Source: GRPC Health Checking Protocol and gRPC over HTTP2, of the gRPC project; Kubernetes API reference, `GRPCAction`.
//! The two messages have one field each, so they are written and read by hand.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE, USER_AGENT};
use http::{Method, Request, StatusCode, Version};
use skiff_core::ProbeOutcome;
use tokio::time::{Instant, timeout_at};

use super::PROBE_AGENT;
use super::dial::{authority, dial};

/// Bytes of an answer; one that is honest has 7.
const MAX_MESSAGE: usize = 4096;

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const SERVING: u64 = 1;
const UNIMPLEMENTED: u64 = 12;
const UNAVAILABLE: u64 = 14;
const INTERNAL: u64 = 13;

/// gRPC's status codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Why a call gave no message: gRPC's code and message.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    code: u64,
    message: String,
}

/// Asks once.
pub(super) async fn check(
    host: &str,
    port: u16,
    service: &str,
    within: Duration,
    until: Instant,
) -> ProbeOutcome {
    let address = authority(host, port);
    let connected = timeout_at(until, async {
        let stream = dial(host, port).await?;
        let mut builder = h2::client::Builder::new();
        builder.enable_push(false).max_header_list_size(16 * 1024);
        let connection = builder.handshake::<_, Bytes>(stream).await;
        connection.map_err(|error| error.to_string())
    });
    let within = go_duration(within);
    let (client, connection) = match connected.await {
        Ok(Ok(it)) => it,
        Ok(Err(why)) => {
            let why = format!("connection error: desc = \"transport: Error while dialing: {why}\"");
            return ProbeOutcome::Failure(format!("error: failed to connect service at {address:?}: {why}"));
        }
        Err(_) => {
            return ProbeOutcome::Failure(format!(
                "timeout: failed to connect service {address:?} within {within}: context deadline exceeded"
            ));
        }
    };
    let mut call = pin!(call(client, &address, service));
    let mut connection = pin!(connection);
    let answer = timeout_at(until, async {
        tokio::select! {
            biased;
            answer = &mut call => answer,
            // The connection is done; the call has its answer, or the reason why it has none.
            _ = &mut connection => call.as_mut().await,
        }
    });
    let why = match answer.await {
        Ok(Ok(SERVING)) => return ProbeOutcome::Success,
        Ok(Ok(status)) => format!("service unhealthy (responded with {:?})", health(status)),
        Ok(Err(status)) if status.code == UNIMPLEMENTED => format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message
        ),
        Ok(Err(status)) => {
            let code = usize::try_from(status.code).ok().and_then(|it| CODES.get(it));
            let code = code.map_or_else(|| format!("Code({})", status.code), |it| (*it).to_owned());
            format!(
                "error: health rpc probe failed: rpc error: code = {code} desc = {}",
                status.message
            )
        }
        Err(_) => format!("timeout: health rpc did not complete within {within}"),
    };
    ProbeOutcome::Failure(why)
}

/// `HealthCheckResponse.ServingStatus`.
fn health(status: u64) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        SERVING => "SERVING".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    }
}

async fn call(client: SendRequest<Bytes>, address: &str, service: &str) -> Result<u64, Status> {
    let broken = |error: h2::Error| Status {
        code: UNAVAILABLE,
        message: error.to_string(),
    };
    let mut client = client.ready().await.map_err(broken)?;
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))
        .header(TE, HeaderValue::from_static("trailers"))
        .header(USER_AGENT, HeaderValue::from_static(PROBE_AGENT))
        .body(())
        .map_err(|error| Status {
            code: INTERNAL,
            message: error.to_string(),
        })?;
    let (response, mut body) = client.send_request(request, false).map_err(broken)?;
    body.send_data(encoded(service), true).map_err(broken)?;
    let (head, mut stream) = response.await.map_err(broken)?.into_parts();
    let mut message = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data.map_err(broken)?;
        let room = MAX_MESSAGE - message.len();
        message.extend_from_slice(&data[..data.len().min(room)]);
        if message.len() == MAX_MESSAGE {
            return Err(Status {
                code: INTERNAL,
                message: format!("an answer of more than {MAX_MESSAGE} bytes"),
            });
        }
        // A window that cannot be opened is one that nobody writes to any more.
        let _ = stream.flow_control().release_capacity(data.len());
    }
    let trailers = stream.trailers().await.map_err(broken)?;
    // An answer without a body has everything in its head.
    let last = trailers.as_ref().unwrap_or(&head.headers);
    match status(last) {
        Some(Status { code: 0, .. }) => decoded(&message).ok_or_else(|| Status {
            code: INTERNAL,
            message: "grpc: failed to unmarshal the received message".to_owned(),
        }),
        Some(status) => Err(status),
        None => Err(of_http(head.status)),
    }
}

/// `grpc-status` and `grpc-message`.
fn status(headers: &HeaderMap) -> Option<Status> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes);
    Some(Status {
        code,
        message: unescaped(message.unwrap_or_default()),
    })
}

/// What an answer means that is not one of gRPC's.
fn of_http(status: StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => INTERNAL,
        401 => 16,
        403 => 7,
        404 => UNIMPLEMENTED,
        429 | 502..=504 => UNAVAILABLE,
        _ => 2,
    };
    let message = format!(
        "unexpected HTTP status code received from server: {} ({})",
        status.as_u16(),
        { status.canonical_reason().unwrap_or_default() }
    );
    Status { code, message }
}

/// Undoes `%XX`.
fn unescaped(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|it| std::str::from_utf8(it).ok());
        match hex.and_then(|it| u8::from_str_radix(it, 16).ok()) {
            Some(value) if byte == b'%' => {
                out.push(value);
                rest = &after[2..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A `HealthCheckRequest`: field 1 is the service's name, absent where it is empty.
fn encoded(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut out = vec![0];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(&message);
    out.into()
}

/// The status in a `HealthCheckResponse`: field 1, or 0 where it is absent.
fn decoded(bytes: &[u8]) -> Option<u64> {
    let (prefix, mut rest) = bytes.split_first_chunk::<PREFIX>()?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 || u32::from_be_bytes(length) as usize != rest.len() {
        return None;
    }
    let mut status = 0;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Whole seconds, as `1m30s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests;
