//! The HTTP/1.1 that the control socket needs, and no more: one request and one response a connection.
//!
//! Bounded before anything is kept: 8 KiB of header, 32 header fields, 64 KiB of body, five seconds for all of
//! it. Parsing the head is httparse's; the rules of RFC 9112 on where the body ends are here. A request that could be
//! read in two ways (two lengths, a length and chunks) is refused.

use std::io::{self, Read, Write};

use super::passed::PassedFile;

/// The longest request line and header fields, together.
pub const MAX_HEAD: usize = 8 << 10;
/// The longest body of a request.
pub const MAX_BODY: usize = 64 << 10;
/// The most header fields of a request.
const MAX_FIELDS: usize = 32;

/// A whole request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `PUT`, …
    pub method: String,
    /// The path, without host and query.
    pub path: String,
    /// The body; empty if there is none.
    pub body: Vec<u8>,
    /// The file that came along, if one did.
    pub file: Option<PassedFile>,
}

/// An answer that ends a request early, or any other answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, for a person.
    pub text: String,
    /// For 405: the methods that the path has.
    pub allow: Option<String>,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
            allow: None,
        }
    }
}

/// Why there is no request.
#[derive(Debug)]
pub enum ReadError {
    /// Something came that gets an answer.
    Refused(Refusal),
    /// Nothing came, or too little before the end or the deadline: there is nobody to answer.
    Gone,
}

impl From<Refusal> for ReadError {
    fn from(refusal: Refusal) -> Self {
        ReadError::Refused(refusal)
    }
}

/// The part of a request before its body.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    method: String,
    path: String,
    /// Where the body begins.
    bytes: usize,
    body: usize,
    expects_continue: bool,
}

/// Reads one request. `reply` is where an interim "100 Continue" goes.
///
/// # Errors
/// See [`ReadError`].
pub fn read_request(input: &mut impl Read, reply: &mut impl Write) -> Result<Request, ReadError> {
    let mut buffer = Vec::with_capacity(1024);
    let head = loop {
        if let Some(head) = parse_head(&buffer)? {
            break head;
        }
        if buffer.len() >= MAX_HEAD {
            return Err(
                Refusal::new(431, format!("a header of more than {MAX_HEAD} bytes")).into(),
            );
        }
        let room = MAX_HEAD - buffer.len();
        if more(input, &mut buffer, room)? == 0 {
            return Err(ReadError::Gone);
        }
    };
    let mut body = buffer.split_off(head.bytes);
    if head.expects_continue && body.len() < head.body {
        (reply.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")).map_err(|_| ReadError::Gone)?;
    }
    while body.len() < head.body {
        let room = head.body - body.len();
        if more(input, &mut body, room)? == 0 {
            return Err(ReadError::Gone);
        }
    }
    // Whatever follows (another request) is not looked at: the connection is closed after the response.
    body.truncate(head.body);
    Ok(Request {
        method: head.method,
        path: head.path,
        body,
        file: None,
    })
}

/// Reads once, at most `room` bytes, to the end of `buffer`.
fn more(input: &mut impl Read, buffer: &mut Vec<u8>, room: usize) -> Result<usize, ReadError> {
    let mut piece = [0; 4096];
    let room = room.min(piece.len());
    loop {
        match input.read(&mut piece[..room]) {
            Ok(count) => {
                buffer.extend_from_slice(&piece[..count]);
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => {
                return Err(
                    Refusal::new(408, "the request did not come within five seconds").into(),
                );
            }
            Err(_) => return Err(ReadError::Gone),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The head, once it is complete.
fn parse_head(buffer: &[u8]) -> Result<Option<Head>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let bytes = match request.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(
                431,
                format!("more than {MAX_FIELDS} header fields"),
            ));
        }
        Err(error) => {
            return Err(Refusal::new(
                400,
                format!("not an HTTP/1.1 request: {error}"),
            ));
        }
    };
    let (body, expects_continue) = body_rules(request.headers)?;
    Ok(Some(Head {
        method: request.method.unwrap_or_default().to_owned(),
        path: path_of(request.path.unwrap_or_default()).to_owned(),
        bytes,
        body,
        expects_continue,
    }))
}

/// The length of the body, and whether the client waits to be told to send it.
fn body_rules(fields: &[httparse::Header<'_>]) -> Result<(usize, bool), Refusal> {
    let mut length = None;
    let mut expects_continue = false;
    for field in fields {
        if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Refusal::new(
                400,
                "chunked bodies are not taken here: send Content-Length",
            ));
        } else if field.name.eq_ignore_ascii_case("content-length") {
            let digits = std::str::from_utf8(field.value).ok().filter(|text| {
                !text.is_empty() && text.len() <= 19 && text.bytes().all(|b| b.is_ascii_digit())
            });
            let value: Option<u64> = digits.and_then(|text| text.parse().ok());
            match (value, length) {
                (Some(value), None) => length = Some(value),
                _ => {
                    return Err(Refusal::new(
                        400,
                        "Content-Length must be one decimal number",
                    ));
                }
            }
        } else if field.name.eq_ignore_ascii_case("expect") {
            expects_continue = field.value.eq_ignore_ascii_case(b"100-continue");
        }
    }
    match usize::try_from(length.unwrap_or(0)) {
        Ok(length) if length <= MAX_BODY => Ok((length, expects_continue)),
        _ => Err(Refusal::new(
            413,
            format!("a body of more than {MAX_BODY} bytes"),
        )),
    }
}

/// The path of a request target: a proxy's absolute form loses its host, and a query is cut off.
fn path_of(target: &str) -> &str {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    path.split(['?', '#']).next().unwrap_or_default()
}

/// Writes a whole response with a JSON body.
///
/// # Errors
/// The client does not take it.
pub fn respond(
    out: &mut impl Write,
    status: u16,
    allow: Option<&str>,
    body: &str,
) -> io::Result<()> {
    whole(out, head(status, "application/json", allow), body)
}

/// Writes a whole response of success with a body of another type.
///
/// # Errors
/// The client does not take it.
pub fn respond_as(out: &mut impl Write, content_type: &str, body: &str) -> io::Result<()> {
    whole(out, head(200, content_type, None), body)
}

fn whole(out: &mut impl Write, mut head: String, body: &str) -> io::Result<()> {
    head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    out.write_all(head.as_bytes())?;
    out.flush()
}

/// Begins a response whose length is not known yet: lines of JSON.
///
/// # Errors
/// The client does not take it.
pub fn begin_lines(out: &mut impl Write) -> io::Result<()> {
    let mut text = head(200, "application/x-ndjson", None);
    text.push_str("Transfer-Encoding: chunked\r\n\r\n");
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes one line as one chunk.
///
/// # Errors
/// The client does not take it.
pub fn line(out: &mut impl Write, json: &str) -> io::Result<()> {
    let chunk = format!("{:x}\r\n{json}\n\r\n", json.len() + 1);
    out.write_all(chunk.as_bytes())?;
    out.flush()
}

/// Ends a response begun with [`begin_lines`].
///
/// # Errors
/// The client does not take it.
pub fn end_lines(out: &mut impl Write) -> io::Result<()> {
    out.write_all(b"0\r\n\r\n")?;
    out.flush()
}

fn head(status: u16, content_type: &str, allow: Option<&str>) -> String {
    let reason = match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let allow = allow.map_or(String::new(), |methods| format!("Allow: {methods}\r\n"));
    format!(
        "HTTP/1.1 {status} {reason}\r\nServer: ferry\r\nConnection: close\r\nContent-Type: {content_type}\r\n{allow}"
    )
}
