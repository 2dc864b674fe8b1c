//! Requests on the control socket: HTTP, the router, and the bodies.

use std::io::{self, Read};

use vmm::control::{MAX_BODY, ReadError, Request, read_request, route, routes};

/// Gives at most so many bytes a read.
struct Trickle<'a> {
    rest: &'a [u8],
    step: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let step = self.step.min(into.len());
        self.rest.read(&mut into[..step])
    }
}

/// The input is what a client sends.
pub fn run(input: &[u8]) {
    let whole = read(input, usize::MAX);
    assert_eq!(read(input, 1), whole);
    assert_eq!(read(input, 61), whole);
    if let Ok(request) = whole {
        assert!(request.body.len() <= MAX_BODY);
        answer(&request);
    }
    // The router gets its turn even where HTTP would stop it.
    let (line, body) = match input.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, &[][..]),
    };
    for (method, path) in routes() {
        if line.starts_with(path.as_bytes()) {
            answer(&Request {
                method: method.into(),
                path: path.into(),
                body: body.to_vec(),
                file: None,
            });
        }
    }
}

fn answer(request: &Request) {
    if let Err(refusal) = route(request) {
        assert!((400..500).contains(&refusal.status) && !refusal.text.is_empty());
    }
}

/// The request, or the status of the refusal; 0 for nothing to be answered.
fn read(input: &[u8], step: usize) -> Result<Request, u16> {
    let mut said = Vec::new();
    let request = read_request(&mut Trickle { rest: input, step }, &mut said);
    assert!(said.is_empty() || said == b"HTTP/1.1 100 Continue\r\n\r\n");
    request.map_err(|error| match error {
        ReadError::Refused(refusal) => refusal.status,
        ReadError::Gone => 0,
    })
}

const MIGRATE: &str = r#"{"target":"tcp:127.0.0.1:4700","downtime_ms":50,"bandwidth_bytes_per_s":125000000,"streams":2,"max_rounds":30,"timeout_ms":60000,"on_timeout":"switch","throttle":"auto_converge","compress":"zstd","delta_cache_bytes":67108864,"insecure_plaintext":true}"#;
const PREDICT: &str = r#"{"move":{"target":"unix:/tmp/b.ferry"},"watch_ms":8000}"#;

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (method, path) in routes() {
        let body = match path {
            "/v1/migrate" => MIGRATE,
            "/v1/predict" => PREDICT,
            "/v1/resume" => r#"{"force":true}"#,
            "/v1/dirty-rate" => r#"{"longest_ms":1000}"#,
            _ => "",
        };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        seeds.push(request.into_bytes());
        seeds.push(format!("{path}\n{body}").into_bytes());
    }
    let late = "PUT http://x/v1/pause?now#1 HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}";
    seeds.push(late.as_bytes().to_vec());
    seeds.push(b"PUT /v1/stop HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec());
    seeds
}
