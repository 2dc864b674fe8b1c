//! The client's side of the control socket: what `ferry status`, `ferry migrate` and the others speak.
//!
//! Any HTTP client will do; this one is a few lines on top of httparse, because it must be in the static binary and
//! reads nothing but our own server's answers. Those are bounded all the same.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use migration::wire::{Local, Transport};

use super::event::{MoveEvent, PredictEvent, RateEvent};
use super::request::{BalloonRequest, DirtyRateRequest, MigrateRequest, PredictRequest};
use super::snapshot::SnapshotRequest;
use super::status::Status;

/// The longest head of a response.
const MAX_HEAD: usize = 16 << 10;
/// The longest body of a response, and the longest line: a report of the most rounds is well below.
const MAX_BODY: usize = 4 << 20;
/// Longer than the server itself waits for the VM.
const PATIENCE: Duration = Duration::from_secs(40);

/// Why there is no answer, or no good one.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens, or not for us.
    #[error("cannot connect to control socket {}; start the VM with --control on that path, or give the path that it has", .path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something else.
    #[error("{} is not a socket: give the control socket of a VM", .0.display())]
    NotASocket(PathBuf),
    /// The connection broke.
    #[error("the connection to control socket {} broke: the VM has just ended, or that is not a VM's socket", .path.display())]
    Broken {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else answers there.
    #[error("{} does not speak ferry's control protocol ({what}): give the control socket of a VM", .path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What is odd about the answer.
        what: String,
    },
    /// The VM does not do it; the text is its own.
    #[error("{text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Why, and what to do.
        text: String,
    },
}

/// Speaks to one control socket; every request is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    error: String,
}

impl Client {
    /// A client of the socket at `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Asks how the VM is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        let value = self.status_json()?;
        serde_json::from_value(value).map_err(|error| self.foreign(error.to_string()))
    }

    /// The same as JSON, with whatever a newer VM has to tell.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status_json(&self) -> Result<Value, ClientError> {
        self.whole("GET", "/v1/status", None)
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn pause(&self) -> Result<(), ClientError> {
        self.whole("PUT", "/v1/pause", None).map(drop)
    }

    /// Lets the vCPUs go on; with `force` also when the outcome of a move is unknown.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resume(&self, force: bool) -> Result<(), ClientError> {
        let body = force.then(|| serde_json::json!({ "force": true }));
        self.whole("PUT", "/v1/resume", body).map(drop)
    }

    /// Ends the move under way.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn cancel(&self) -> Result<(), ClientError> {
        self.whole("PUT", "/v1/cancel", None).map(drop)
    }

    /// Ends the VM.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stop(&self) -> Result<(), ClientError> {
        self.whole("PUT", "/v1/stop", None).map(drop)
    }

    /// Sets the size of the guest's balloon.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn balloon(&self, request: BalloonRequest) -> Result<(), ClientError> {
        let body =
            serde_json::to_value(request).map_err(|error| self.foreign(error.to_string()))?;
        self.whole("PUT", "/v1/balloon", Some(body)).map(drop)
    }

    /// Begins a move; what happens is read from what is returned.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn migrate(&self, request: &MigrateRequest) -> Result<Told<MoveEvent>, ClientError> {
        let body =
            serde_json::to_value(request).map_err(|error| self.foreign(error.to_string()))?;
        self.told("/v1/migrate", body, None)
    }

    /// Begins to measure how fast the guest writes; the windows are read from what is returned.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dirty_rate(&self, request: DirtyRateRequest) -> Result<Told<RateEvent>, ClientError> {
        let body =
            serde_json::to_value(request).map_err(|error| self.foreign(error.to_string()))?;
        self.told("/v1/dirty-rate", body, None)
    }

    /// Begins to find out what a move would cost; what was measured and the prediction are read from what is
    /// returned.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn predict(&self, request: &PredictRequest) -> Result<Told<PredictEvent>, ClientError> {
        let body =
            serde_json::to_value(request).map_err(|error| self.foreign(error.to_string()))?;
        self.told("/v1/predict", body, None)
    }

    /// Begins to save the guest into `file`, which is handed over; what happens is read from what is returned.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn snapshot(
        &self,
        request: &SnapshotRequest,
        file: &File,
    ) -> Result<Told<MoveEvent>, ClientError> {
        let body =
            serde_json::to_value(request).map_err(|error| self.foreign(error.to_string()))?;
        self.told("/v1/snapshot", body, Some(file))
    }

    /// A request that is answered line by line.
    fn told<E>(
        &self,
        path: &str,
        body: Value,
        file: Option<&File>,
    ) -> Result<Told<E>, ClientError> {
        let response = self.send("POST", path, Some(body), file)?;
        // It may be silent for as long as it likes between two events.
        response
            .no_deadline()
            .map_err(|source| self.broken(source))?;
        Ok(Told {
            client: self.clone(),
            response: BufReader::new(response),
            event: PhantomData,
        })
    }

    /// A request whose answer is one JSON value.
    fn whole(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value, ClientError> {
        let response = self.send(method, path, body, None)?;
        let text = self.body(response)?;
        serde_json::from_slice(&text).map_err(|error| self.foreign(error.to_string()))
    }

    /// Sends a request and reads the head of the answer; an answer that is no success becomes the error.
    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        file: Option<&File>,
    ) -> Result<Response, ClientError> {
        let mut stream =
            UnixStream::connect(&self.path).map_err(|source| self.unconnected(source))?;
        let body = body.map_or(String::new(), |value| value.to_string());
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let set = stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        // A server that sends us away closes without having read everything: its answer may be there all the same.
        let sent = set.and_then(|()| {
            let begun = hand_over(&stream, request.as_bytes(), file)?;
            stream.write_all(&request.as_bytes()[begun..])
        });
        let response = match Response::begin(stream) {
            Ok(response) => response,
            Err(error) => {
                sent.map_err(|source| self.broken(source))?;
                return Err(match error.kind() {
                    io::ErrorKind::InvalidData => self.foreign(error.to_string()),
                    _ => self.broken(error),
                });
            }
        };
        if response.status == 200 {
            return Ok(response);
        }
        let status = response.status;
        let text = self.body(response)?;
        let ErrorBody { error } = serde_json::from_slice(&text)
            .map_err(|_| self.foreign(format!("HTTP status {status} without a reason")))?;
        Err(ClientError::Refused {
            status,
            text: error,
        })
    }

    fn body(&self, response: Response) -> Result<Vec<u8>, ClientError> {
        let mut text = Vec::new();
        (response.take(MAX_BODY as u64).read_to_end(&mut text))
            .map_err(|source| self.broken(source))?;
        Ok(text)
    }

    /// The kernel says "refused" to a file that is no socket as well as to a socket that nobody listens on.
    fn unconnected(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match fs::metadata(&path) {
            Ok(meta) if !meta.file_type().is_socket() => ClientError::NotASocket(path),
            _ => ClientError::Connect { path, source },
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken {
            path: self.path.clone(),
            source,
        }
    }

    fn foreign(&self, what: String) -> ClientError {
        ClientError::Foreign {
            path: self.path.clone(),
            what,
        }
    }
}

/// Sends the first bytes together with the file; says how many.
fn hand_over(stream: &UnixStream, bytes: &[u8], file: Option<&File>) -> io::Result<usize> {
    let Some(file) = file else {
        return Ok(0);
    };
    Local::from(stream.try_clone()?).send_files(bytes, &[file.as_fd()])
}

/// A move or a measurement under way, as it is told.
#[derive(Debug)]
pub struct Told<E> {
    client: Client,
    response: BufReader<Response>,
    event: PhantomData<E>,
}

impl<E: DeserializeOwned> Iterator for Told<E> {
    type Item = Result<E, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.response).take(MAX_BODY as u64);
        match bounded.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(
                serde_json::from_slice(&line)
                    .map_err(|error| self.client.foreign(error.to_string())),
            ),
            Err(source) => Some(Err(self.client.broken(source))),
        }
    }
}

/// How the body of a response ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// After so many bytes.
    Length(u64),
    /// After a chunk of no bytes; so many are left in the present chunk.
    Chunks(u64),
    /// With the connection, or it has ended already.
    Done,
}

/// A response: its status, and its body as something to read.
#[derive(Debug)]
struct Response {
    stream: BufReader<UnixStream>,
    status: u16,
    body: Body,
}

impl Response {
    fn begin(stream: UnixStream) -> io::Result<Self> {
        let mut stream = BufReader::new(stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let room = MAX_HEAD - head.len();
            let mut bounded = (&mut stream).take(room as u64);
            if bounded.read_until(b'\n', &mut head)? == 0 {
                return Err(if head.len() >= MAX_HEAD {
                    odd("an endless header")
                } else {
                    io::ErrorKind::UnexpectedEof.into()
                });
            }
        }
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut fields);
        if !response
            .parse(&head)
            .map_err(|error| odd(&error.to_string()))?
            .is_complete()
        {
            return Err(odd("a header cut short"));
        }
        let status = response.code.unwrap_or(0);
        let field = |name: &str| {
            let field = response
                .headers
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(field.value).ok()
        };
        let body = if field("transfer-encoding").is_some() {
            Body::Chunks(0)
        } else {
            let length = field("content-length").and_then(|text| text.parse().ok());
            Body::Length(length.ok_or_else(|| odd("no length of the body"))?)
        };
        Ok(Self {
            stream,
            status,
            body,
        })
    }

    fn no_deadline(&self) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(None)
    }

    /// The length of the next chunk.
    fn chunk(&mut self) -> io::Result<u64> {
        let mut line = Vec::new();
        (&mut self.stream).take(20).read_until(b'\n', &mut line)?;
        let digits = std::str::from_utf8(&line)
            .ok()
            .and_then(|text| text.strip_suffix("\r\n"));
        match digits.map(|digits| u64::from_str_radix(digits, 16)) {
            Some(Ok(length)) => Ok(length),
            _ if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(odd("a chunk without a length")),
        }
    }

    /// At most so many bytes of the present piece.
    fn piece(&mut self, buffer: &mut [u8], left: u64) -> io::Result<usize> {
        let count = self.stream.by_ref().take(left).read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(count)
    }
}

impl Read for Response {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.body {
            Body::Done | Body::Length(0) => Ok(0),
            Body::Length(left) => {
                let count = self.piece(buffer, left)?;
                self.body = Body::Length(left - count as u64);
                Ok(count)
            }
            Body::Chunks(0) => {
                let length = self.chunk()?;
                if length == 0 {
                    self.body = Body::Done;
                    return Ok(0);
                }
                self.body = Body::Chunks(length);
                self.read(buffer)
            }
            Body::Chunks(left) => {
                let count = self.piece(buffer, left)?;
                let left = left - count as u64;
                if left == 0 {
                    let mut end = [0; 2];
                    self.stream.read_exact(&mut end)?;
                    if end != *b"\r\n" {
                        return Err(odd("a chunk longer than it said"));
                    }
                }
                self.body = Body::Chunks(left);
                Ok(count)
            }
        }
    }
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
